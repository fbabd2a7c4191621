"""`rl3d mesh grpo`: tune the mesh model on the metrics of what it draws itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rl3d import config
from rl3d.cli import checks, mesh_align
from rl3d.mesh_tokens.align_options import OnlineOptions

if TYPE_CHECKING:
    from rl3d.mesh_tokens.model import MeshLM
    from rl3d.mesh_tokens.pair_files import Shape
    from rl3d.scenes.mesh import Mesh

EPILOG = """examples:
  rl3d mesh grpo assets/ --out runs/grpo
  rl3d mesh grpo assets/ --out runs/grpo --shapes 500 --set group=16 --set lr=2e-6
  rl3d mesh grpo assets/ --out runs/grpo --set "weights=[[hd, 2], [ber, 1]]"
  accelerate launch --multi_gpu --num_processes 2 -m rl3d mesh grpo assets/ --out runs/grpo

DATA is a folder of meshes with captions.jsonl. Every step draws a group of candidates of some shapes, asked for by
points, caption and number of faces, scores them (BER, TS, Hausdorff distance) and moves towards the better ones. What
decides pairs offline (`rl3d mesh pairs`) is the reward here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("data", metavar="DATA", type=Path, help="folder of meshes with captions.jsonl")
    parser.add_argument("--shapes", type=int, default=200, metavar="N", help="to draw of (default: 200)")
    parser.add_argument("--split", choices=("train", "val"), default="train", help="of captions.jsonl (default: train)")
    mesh_align.run_arguments(parser, "what is tuned (default: the embedded mesh model)")


def run(args: argparse.Namespace) -> int:
    checks.whole_number("--shapes", args.shapes, 1, 10**6)
    options = config.resolve(OnlineOptions, mesh_align.layers(args, "grpo"), args.overrides)

    def loaded(model: MeshLM) -> tuple[dict[str, Shape], dict[str, Mesh]]:
        from rl3d.data.asset_set import load_asset_set
        from rl3d.mesh_tokens.candidates import asked, picked

        assets = load_asset_set(args.data)
        chosen = picked(assets, args.split, args.shapes, model.config, options.seed)
        return asked(assets, chosen, model.config, options.seed)

    def tuned(session: mesh_align.Session, data: tuple[dict[str, Shape], dict[str, Mesh]]) -> Path:
        from rl3d.mesh_tokens.online import align_online

        return align_online(
            session.model,
            *data,
            options,
            args.out,
            resume=args.resume,
            progress=session.showing("failed", "kl", *(name for name, _ in options.weights)),
            accelerator=session.accelerator,
        )

    return mesh_align.tune(args, options.steps, loaded, tuned)


can_resume = mesh_align.can_resume
