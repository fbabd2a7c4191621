"""`rl3d finetune multiview`: tune a multi-view prior on a reward."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl3d import config, runs, workers
from rl3d.cli import checks
from rl3d.errors import ConfigError, InputError, RL3DError, way_out
from rl3d.multiview.options import ALGORITHMS
from rl3d.progress import Progress
from rl3d.text_to_3d.prompts import clean_prompt, read_prompts

if TYPE_CHECKING:
    from rl3d.multiview.options import FinetuneOptions

EPILOG = """examples:
  rl3d finetune multiview --reward judge --prompts train.txt --out runs/tuned
  rl3d finetune multiview --algorithm carve3d --reward judge --prompts train.txt --out runs/carve --set rounds=100
  rl3d generate "a red chest" --prior runs/tuned/adapter
  accelerate launch --multi_gpu --num_processes 2 -m rl3d finetune multiview --reward judge --prompts train.txt

The folder then holds adapter/ (what --prior takes: the best state by the guard, a reward that is not optimised), last/,
looks/ (the same prompts and noise through training), report.html to look at and report.json to read by program. The
adapter's path is printed on stdout.

algorithms:
""" + "\n".join(f"  {name:14} {about}" for name, about in ALGORITHMS.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("what", choices=("multiview",), help="what is tuned: a prior of several views")
    parser.add_argument("--prompts", metavar="FILE", required=True, help="to train on, one a line (# begins a comment)")
    parser.add_argument("--reward", metavar="NAME", default="judge", help="what is optimised (rl3d rewards list)")
    parser.add_argument("--constraint", metavar="NAME", help="a reward that must not fall while the other is raised")
    parser.add_argument("--algorithm", metavar="NAME", default="nft", help=f"{', '.join(ALGORITHMS)} (default: nft)")
    parser.add_argument("--out", metavar="DIR", help="run folder (default: runs/ALGORITHM-REWARD-seedN)")
    parser.add_argument("--config", metavar="FILE", help="YAML file laid over the algorithm's preset")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="one setting; may be repeated"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="default: 0")
    parser.add_argument(
        "--prior", metavar="SPEC", help="PATH_OR_ID[@REVISION] of a multi-view pipeline (default: embedded)"
    )
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:N or mps (default: cpu)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in --out")
    again.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    prompts = [clean_prompt(text) for text in read_prompts(args.prompts)]
    options = resolve_options(args)
    device = checks.device_name(args.device)
    out = out_folder(args)
    several = workers.launched()
    if not several:
        runs.check_out(out, resume=args.resume, overwrite=args.overwrite)
    device = checks.usable_device(device)

    from accelerate import Accelerator

    from rl3d.multiview.guard import guard_for
    from rl3d.multiview.loop import finetune
    from rl3d.priors import load as load_prior
    from rl3d.rewards import load as load_reward
    from rl3d.rewards.calibrated import calibration_warning

    accelerator = Accelerator(cpu=device == "cpu")
    first = accelerator.is_main_process
    if several and first:
        runs.check_out(out, resume=args.resume, overwrite=args.overwrite)
    place = str(accelerator.device) if device == "cuda" else device
    progress = Progress(silent=args.quiet or not first)
    repeated = len(prompts) - len(set(prompts))
    if repeated:
        progress.note(f"warning: --prompts {args.prompts} repeats {repeated} of its lines; each prompt counts once")
    reward = load_reward(args.reward, place)
    constraint = None if args.constraint is None else load_reward(args.constraint, place)
    for name, used in ((args.reward, reward), (args.constraint, constraint)):
        warning = None if used is None else calibration_warning(used, embedded=":" not in name)
        if warning is not None:
            progress.note(f"warning: {warning}")
    guard = guard_for(options, reward, place)
    prior: Any = load_prior(args.prior, place)
    if prior.n_views < 2:
        raise InputError(f"--prior {args.prior} draws one view; give a multi-view pipeline, or leave it out")
    if args.overwrite and first:
        runs.clear(out)
    accelerator.wait_for_everyone()
    try:
        with progress.notes_of("rl3d.kernels"):
            folder = finetune(
                prior,
                reward,
                prompts,
                options,
                out,
                base=args.prior,
                constraint=constraint,
                guard=guard,
                resume=args.resume,
                progress=progress,
                accelerator=accelerator,
            )
    except RL3DError:
        if first:
            runs.discard_barren(out)
        raise
    if first:
        print(folder)
    return 0


def can_resume(args: argparse.Namespace) -> bool:
    """Whether the interrupted command left a run to go on with (asked by the command line for its last line)."""
    return runs.status(out_folder(args)) == "unfinished"


def resolve_options(args: argparse.Namespace) -> FinetuneOptions:
    """The algorithm's preset, --config, the command line's options, then --set; imports no torch."""
    from rl3d.multiview.options import FinetuneOptions

    if args.algorithm not in ALGORITHMS:
        raise ConfigError(f"unknown --algorithm {args.algorithm!r}; {way_out(args.algorithm, ALGORITHMS)}")
    layers: list[config.Layer] = [config.preset_path("finetune", args.algorithm)]
    if args.config is not None:
        layers.append(checks.config_file(args.config))
    if args.seed is not None:
        layers.append({"seed": checks.seed(args.seed)})
    return config.resolve(FinetuneOptions, layers, args.overrides)


def out_folder(args: argparse.Namespace) -> Path:
    if args.out:
        return Path(args.out)
    return Path("runs") / f"{args.algorithm}-{args.reward.replace('/', '-').replace(':', '-')}-seed{args.seed or 0}"
