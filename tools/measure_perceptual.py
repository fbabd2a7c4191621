"""Does a perceptual distance grow with damage? Blur, noise and shift on renders of held-out assets; prints Markdown.

    python tools/measure_perceptual.py DATA CACHE
    python tools/measure_perceptual.py DATA CACHE --lpips FOLDER

DATA is the asset set, CACHE what tools/build_views.py made of it. Measures only; nothing is chosen by it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rl3d.data.asset_set import read_records
from rl3d.data.batches import ViewBatches
from rl3d.rewards import damage
from rl3d.rewards.perceptual import PerceptualDistance, judge_features, load_lpips

STRENGTHS = {
    "blur, sigma in pixels": (0.5, 1, 2, 4),
    "noise, sigma": (0.02, 0.05, 0.1, 0.2),
    "shift, pixels": (1, 2, 4, 8),
    "another asset": (1,),
}


def damaged(views: Tensor, kind: str, strength: float) -> Tensor:
    """[N, 4, H, W] premultiplied views, worse by `strength`."""
    if kind.startswith("blur"):
        return damage.blur(views[None], strength)[0]
    if kind.startswith("noise"):
        return damage.noise(views[None], strength, torch.Generator().manual_seed(0))[0]
    if kind.startswith("shift"):
        return views.roll(int(strength), -1)
    return views.roll(int(strength), 0)


@torch.no_grad()
def table(distance: PerceptualDistance, views: Tensor) -> str:
    """Mean distance by kind and strength, and the share of views on which it is larger than one strength before."""
    rows = [f"| {distance.name} | strength | mean distance | grew |", "|---|---|---|---|"]
    for kind, strengths in STRENGTHS.items():
        before = distance(views, views)
        for strength in strengths:
            after = distance(views, damaged(views, kind, strength))
            rows.append(f"| {kind} | {strength:g} | {after.mean():.4f} | {(after > before).float().mean():.3f} |")
            before = after
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--lpips", type=Path, help="safetensors of AlexNet and LPIPS; else the embedded distance")
    parser.add_argument("--views", type=int, default=256)
    parser.add_argument("--split", default="val", choices=("train", "val"))
    args = parser.parse_args()
    source = ViewBatches(args.cache, read_records(args.data), args.split, 0.0)
    images = source.draw(args.views, np.random.default_rng(0))[0][:, 0]
    distance = load_lpips(args.lpips) if args.lpips else judge_features()
    print(f"{len(images)} views of {args.split} assets, {images.shape[-1]} pixels\n\n{table(distance, images)}")


if __name__ == "__main__":
    main()
