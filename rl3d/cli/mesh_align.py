"""`rl3d mesh align`: tune the mesh model on preference pairs."""

from __future__ import annotations

import argparse
from pathlib import Path

from rl3d import config, runs
from rl3d.cli import checks
from rl3d.errors import ConfigError, RL3DError, way_out
from rl3d.mesh_tokens.align_options import AlignOptions

PRESETS = {
    "mdpo": "good faces of the winner up, bad faces of the loser down (Mesh-RFT)",
    "dpo": "all tokens of both (DPO; S-DPO, N-DPO and DeepMesh's by their pairs)",
    "tdpo": "a window of both (QuadGPT)",
}
EPILOG = """examples:
  rl3d mesh align runs/pairs --out runs/mdpo
  rl3d mesh align runs/pairs --out runs/dpo --preset dpo --set beta=0.05 --set lr=2e-5
  rl3d mesh generate "a barrel" --model runs/mdpo/model --out barrel.glb

presets:
""" + "\n".join(f"  {name:6} {about}" for name, about in PRESETS.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("pairs", metavar="PAIRS", type=Path, help="folder that `rl3d mesh pairs` made")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="run folder")
    parser.add_argument("--model", metavar="DIR", type=Path, help="what is tuned (default: the embedded mesh model)")
    parser.add_argument("--preset", default="mdpo", metavar="NAME", help=f"{', '.join(PRESETS)} (default: mdpo)")
    parser.add_argument("--config", metavar="FILE", help="YAML file laid over the preset")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="one setting; may be repeated"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="default: 0")
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda or cuda:N (default: cpu)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in --out")
    again.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    if args.preset not in PRESETS:
        raise ConfigError(f"unknown --preset {args.preset!r}; {way_out(args.preset, PRESETS)}")
    layers: list[config.Layer] = [config.preset_path("align", args.preset)]
    if args.config is not None:
        layers.append(checks.config_file(args.config))
    if args.seed is not None:
        layers.append({"seed": checks.seed(args.seed)})
    options = config.resolve(AlignOptions, layers, args.overrides)
    device = checks.usable_device(checks.device_name(args.device))
    runs.check_out(args.out, resume=args.resume, overwrite=args.overwrite)

    from rl3d.mesh_tokens.align import align
    from rl3d.mesh_tokens.model import load_mesh_lm
    from rl3d.mesh_tokens.pair_files import read_pair_set
    from rl3d.progress import Progress

    progress = Progress(silent=args.quiet)
    pairs = read_pair_set(args.pairs)
    model = load_mesh_lm(args.model, device)
    if args.overwrite:
        runs.clear(args.out)
    try:
        with progress.stage("align", options.steps) as stage:
            folder = align(
                model,
                pairs,
                options,
                args.out,
                resume=args.resume,
                progress=lambda step, of, x: stage.at(step, of, loss=x["preference"], margin=x["margin"], nll=x["nll"]),
            )
    except RL3DError:
        runs.discard_barren(args.out)
        raise
    print(folder)
    return 0


def can_resume(args: argparse.Namespace) -> bool:
    """Whether the interrupted command left a run to go on with (asked by the command line for its last line)."""
    return runs.status(args.out) == "unfinished"
