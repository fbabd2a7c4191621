"""`rl3d generate`: a sentence to a folder with a checked asset."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl3d import config, runs
from rl3d.cli import checks
from rl3d.errors import ConfigError, RL3DError
from rl3d.progress import Progress
from rl3d.text_to_3d.method_options import METHOD_NAMES

if TYPE_CHECKING:
    from rl3d.text_to_3d.options import GenerateOptions

EPILOG = """examples:
  rl3d generate "a small wooden barrel" --out runs/barrel
  rl3d generate "a red chest" --preset draft --best-of 4 --seed 7
  rl3d generate "a castle" --set distill.steps=400 --out runs/castle
  rl3d generate "a red chest" --method dreamdpo

The folder then holds asset.glb (mesh), asset.ply (Gaussian splats), turntable.webp, views.png, report.json,
metrics.jsonl and what the run was asked for. The path of asset.glb is printed on stdout."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("prompt", metavar="PROMPT", help="what to make, in quotes")
    parser.add_argument("--out", metavar="DIR", help="run folder (default: runs/ and the prompt's words and seed)")
    parser.add_argument("--preset", default="default", metavar="NAME", help="default, draft, or a YAML file's path")
    parser.add_argument(
        "--method", metavar="NAME", help=f"how the scene is distilled: {', '.join(METHOD_NAMES)} (default: mvdream)"
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file laid over the preset")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="one setting; may be repeated"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="same seed, same machine: same asset (default: 0)")
    parser.add_argument("--best-of", type=int, metavar="N", help="draft N seeds, let the judge pick one to refine")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what it should not look like")
    parser.add_argument(
        "--prior", metavar="SPEC", help="PATH_OR_ID[@REVISION] of a diffusers pipeline (default: embedded)"
    )
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:N or mps (default: cpu)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in --out")
    again.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    prompt = checks.prompt(args.prompt)
    options = resolve_options(args)
    device = checks.device_name(args.device)
    out = out_folder(args)
    runs.check_out(out, resume=args.resume, overwrite=args.overwrite)
    checks.usable_device(device)
    if args.overwrite:
        runs.clear(out)

    from rl3d.text_to_3d.generate import generate

    progress = Progress(silent=args.quiet)
    try:
        with progress.notes_of("rl3d.kernels"):
            result = generate(
                prompt,
                options,
                out,
                prior=args.prior or getattr(options, "prior", None),
                device=device,
                resume=args.resume,
                progress=progress,
            )
    except RL3DError:
        _discard_barren(out)
        raise
    print(result.asset)
    return 0


def can_resume(args: argparse.Namespace) -> bool:
    """Whether the interrupted command left a run to go on with (asked by the command line for its last line)."""
    return runs.status(out_folder(args)) == "unfinished"


def resolve_options(args: argparse.Namespace) -> GenerateOptions:
    """The preset, the method's own preset, --config, the command line's options, then --set; imports no torch."""
    from rl3d.text_to_3d.options import GenerateOptions, method_preset

    flags: dict[str, Any] = {}
    if args.seed is not None:
        flags["seed"] = checks.seed(args.seed)
    if args.best_of is not None:
        flags["best_of"] = checks.whole_number("--best-of", args.best_of, 1, 64)
    if args.negative_prompt is not None:
        flags["negative_prompt"] = args.negative_prompt
    layers: list[config.Layer] = [config.preset_path("generate", args.preset)]
    if args.method is not None:
        layers.append(method_preset(args.method))
    if args.config is not None:
        if not Path(args.config).is_file():
            raise ConfigError(f"no such file: --config {args.config}")
        layers.append(Path(args.config))
    options = config.resolve(GenerateOptions, [*layers, flags], args.overrides)
    if args.method is not None and options.distill.steps == 0:
        raise ConfigError(
            f"--method {args.method} has no effect: distill.steps is 0; add --set distill.steps=200 or drop --method"
        )
    return options


def out_folder(args: argparse.Namespace) -> Path:
    if args.out:
        return Path(args.out)
    words = re.sub(r"[^a-z0-9]+", "-", args.prompt.lower()).strip("-")[:60].rstrip("-")
    return Path("runs") / f"{words or 'asset'}-seed{args.seed or 0}"


def _discard_barren(out: Path) -> None:
    """A run that was refused before any stage was finished leaves nothing behind."""
    if runs.status(out) == "unfinished" and not runs.finished_stages(out):
        runs.clear(out)
