"""One picture of several finished runs: each asset as its written GLB looks, its prompt below.

python tools/gallery.py docs/images/gallery.png runs/barrel runs/tree ... [--size 240] [--columns 4]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from rl3d.preview import view_sheet, views
from rl3d.scenes import Mesh

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--size", type=int, default=240, help="pixels a picture")
    parser.add_argument("--columns", type=int, default=4)
    args = parser.parse_args()
    pictures = [views(Mesh.load(run / "asset.glb"), torch.tensor([-0.5]), size=args.size)[0] for run in args.runs]
    prompts = [json.loads((run / "report.json").read_text(encoding="utf-8"))["prompt"] for run in args.runs]
    view_sheet(pictures, args.out, columns=args.columns, labels=prompts)
