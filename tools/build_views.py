"""Pre-render an asset set into a view cache for training.

python tools/build_views.py DATA_FOLDER CACHE_FOLDER [--look prior|judge|gold]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rl3d.data.asset_set import load_asset_set
from rl3d.data.views import ViewSpec, build_view_cache

# The judges look at the world differently from the prior, so that agreeing with one is no proof for another.
LOOKS = {
    "prior": ViewSpec(front=4),
    "judge": ViewSpec(sets=6, elevation=(0.0, 40.0), distance=(2.4, 3.0), seed=1),
    "gold": ViewSpec(
        sets=6,
        elevation=(-5.0, 55.0),
        distance=(2.2, 3.2),
        fov_y=0.55,
        light=(-0.6, 0.7, 0.4),
        ambient=0.5,
        diffuse=0.5,
        half_lambert=False,
        seed=2,
    ),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with captions.jsonl and meshes")
    parser.add_argument("cache", type=Path, help="folder to write")
    parser.add_argument("--look", choices=LOOKS, default="prior")
    parser.add_argument("--sets", type=int, help="view sets per asset (default: the look's own)")
    args = parser.parse_args()
    spec = LOOKS[args.look]
    build_view_cache(load_asset_set(args.data), replace(spec, sets=args.sets) if args.sets else spec, args.cache)
