"""Pre-render an asset set into a view cache for training.

python tools/build_views.py DATA_FOLDER CACHE_FOLDER [--look prior|judge|gold] [--torn]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from rl3d.data.asset_set import AssetSet, load_asset_set
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

TORN = (0.08, 0.35)  # share of a torn mesh's pieces that is missing


def torn(assets: AssetSet) -> AssetSet:
    """Every face in four, and a random share of the pieces gone, another share for every asset."""
    vertices, faces, colours = [], [], []
    for i in range(len(assets)):
        v, f, c = assets.mesh(i)
        rng = np.random.default_rng([3, i])
        corners = v[f]  # [F, 3, 3]
        middles = 0.5 * (corners + corners[:, [1, 2, 0]])  # of ab, bc, ca
        (a, b, c_), (ab, bc, ca) = corners.swapaxes(0, 1), middles.swapaxes(0, 1)
        pieces = np.stack([a, ab, ca, ab, b, bc, ca, bc, c_, ab, bc, ca], 1).reshape(-1, 3, 3)
        left = rng.random(len(pieces)) > rng.uniform(*TORN)
        left[0] |= not left.any()
        vertices.append(pieces[left].reshape(-1, 3).astype(np.float32))
        faces.append(np.arange(3 * left.sum()).reshape(-1, 3))
        colours.append(c.repeat(4, axis=0)[left])
    starts = [np.concatenate([[0], np.cumsum([len(part) for part in parts])]) for parts in (vertices, faces)]
    flat = [np.concatenate(parts) for parts in (vertices, faces, colours)]
    return AssetSet(assets.records, *flat, *starts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with captions.jsonl and meshes")
    parser.add_argument("cache", type=Path, help="folder to write")
    parser.add_argument("--look", choices=LOOKS, default="prior")
    parser.add_argument("--sets", type=int, help="view sets per asset (default: the look's own)")
    parser.add_argument("--torn", action="store_true", help="the same views of the meshes with pieces missing")
    args = parser.parse_args()
    assets = load_asset_set(args.data)
    spec = LOOKS[args.look]
    build_view_cache(
        torn(assets) if args.torn else assets, replace(spec, sets=args.sets) if args.sets else spec, args.cache
    )
