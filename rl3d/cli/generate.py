"""`rl3d generate`: a sentence to a folder with a checked asset."""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl3d import config, runs, workers
from rl3d.cli import checks
from rl3d.errors import ConfigError, InputError, RL3DError
from rl3d.progress import Progress
from rl3d.text_to_3d.method_options import METHOD_NAMES
from rl3d.text_to_3d.prompts import clean_prompt, read_prompts, slug
from rl3d.workers import Worker

if TYPE_CHECKING:
    from rl3d.text_to_3d.options import GenerateOptions

EPILOG = """examples:
  rl3d generate "a small wooden barrel" --out runs/barrel
  rl3d generate "a red chest" --preset draft --best-of 4 --seed 7
  rl3d generate "a castle" --set distill.steps=400 --out runs/castle
  rl3d generate "a red chest" --method dreamdpo
  rl3d generate --prompts prompts.txt --out runs/batch
  accelerate launch --multi_gpu --num_processes 2 -m rl3d generate --prompts prompts.txt --out runs/batch

The folder then holds asset.glb (mesh), asset.ply (Gaussian splats), turntable.webp, views.png, report.html to look at
and report.json to read by program, metrics.jsonl and what the run was asked for. The path of asset.glb is printed on
stdout.

--prompts makes such a folder per prompt, beside summary.json and sheet.png, a picture of all. A prompt that fails stops
no other, and makes the exit code 1. The same command again skips what is finished, goes on with what is not and tries
again what failed.

Under `accelerate launch` the workers share the prompts, or the drafts of --best-of. --multi_gpu begins several on CPUs
too (--cpu begins one); --num_cpu_threads_per_process says how many threads each takes, by default 1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="what to make, in quotes")
    parser.add_argument(
        "--prompts", metavar="FILE", help="many instead, one a line (# begins a comment), each in a folder of its own"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="run folder (default: runs/ and the words of the prompt, or of FILE, and the seed)"
    )
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
    again.add_argument("--resume", action="store_true", help="go on with the run in --out (--prompts always does)")
    again.add_argument("--overwrite", action="store_true", help="replace the run in --out, or those of all prompts")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    if (args.prompt is None) == (args.prompts is None):
        raise InputError("give either --prompts FILE or a PROMPT; see rl3d generate --help")
    asked = [clean_prompt(args.prompt)] if args.prompts is None else read_prompts(args.prompts)
    options = resolve_options(args)
    device = checks.device_name(args.device)
    worker = workers.current()
    if worker.first and workers.launched_one_of_many():
        print(f"rl3d: warning: {workers.ONE_INSTEAD}", file=sys.stderr)
    make = _one if args.prompts is None else _many
    if worker.first:
        return make(args, asked, options, device, worker)
    try:
        make(args, asked, options, device, worker)
    except KeyboardInterrupt:  # the first worker says it for all
        return 130
    except Exception as error:  # a helper's exit code would end the first worker, which can do without it
        print(f"rl3d: worker {worker.index} has stopped: {' '.join(str(error).split())}", file=sys.stderr)
        if args.debug:
            traceback.print_exc()
    return 0


def _one(args: argparse.Namespace, asked: list[str], options: GenerateOptions, device: str, worker: Worker) -> int:
    """One prompt, whose drafts the workers share."""
    out, progress = out_folder(args), _progress(args, worker)
    shared: dict[str, Any] = {"prior": args.prior or getattr(options, "prior", None), "progress": progress}
    if not worker.first:
        from rl3d.text_to_3d.generate import help_generate

        help_generate(asked[0], options, out, device=_usable(device, worker), worker=worker, **shared)
        return 0
    runs.check_out(out, resume=args.resume, overwrite=args.overwrite)
    device = _usable(device, worker)
    if args.overwrite:
        runs.clear(out)

    from rl3d.text_to_3d.generate import generate

    try:
        with progress.notes_of("rl3d.kernels"):
            result = generate(asked[0], options, out, device=device, resume=args.resume, worker=worker, **shared)
    except RL3DError:
        runs.discard_barren(out)
        raise
    print(result.asset)
    return 0


def _many(args: argparse.Namespace, asked: list[str], options: GenerateOptions, device: str, worker: Worker) -> int:
    """A file of prompts, which the workers share."""
    out, progress = out_folder(args), _progress(args, worker)
    device = _usable(device, worker)

    from rl3d.text_to_3d.batch import Outcome, generate_batch
    from rl3d.text_to_3d.finish import ASSET

    def failed(outcome: Outcome, error: Exception) -> None:
        print(f"rl3d: failed: {outcome.prompt!r}: {outcome.error}", file=sys.stderr)
        if args.debug:
            traceback.print_exception(error)

    with progress.notes_of("rl3d.kernels"):
        outcomes = generate_batch(
            asked,
            options,
            out,
            prior=args.prior or getattr(options, "prior", None),
            device=device,
            overwrite=args.overwrite,
            progress=progress,
            worker=worker,
            on_failure=failed,
        )
    if worker.first:
        for outcome in outcomes:
            if outcome.finished:
                print(out / outcome.folder / ASSET)
    return int(any(outcome.status == "failed" for outcome in outcomes))


def _progress(args: argparse.Namespace, worker: Worker) -> Progress:
    return Progress(silent=args.quiet, aside="" if worker.first else f"worker {worker.index}: ")


def _usable(device: str, worker: Worker) -> str:
    return worker.device(checks.usable_device(device))


def can_resume(args: argparse.Namespace) -> bool:
    """Whether the interrupted command left a run to go on with (asked by the command line for its last line)."""
    out = out_folder(args)
    return out.is_dir() if args.prompts is not None else runs.status(out) == "unfinished"


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
        layers.append(checks.config_file(args.config))
    options = config.resolve(GenerateOptions, [*layers, flags], args.overrides)
    if args.method is not None and options.distill.steps == 0:
        raise ConfigError(
            f"--method {args.method} has no effect: distill.steps is 0; add --set distill.steps=200 or drop --method"
        )
    return options


def out_folder(args: argparse.Namespace) -> Path:
    if args.out:
        return Path(args.out)
    name = args.prompt if args.prompts is None else Path(args.prompts).stem
    return Path("runs") / f"{slug(name or '') or 'asset'}-seed{args.seed or 0}"
