"""`rl3d mesh align`: tune the mesh model on preference pairs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rl3d import config, runs, workers
from rl3d.cli import checks
from rl3d.errors import ConfigError, RL3DError, way_out
from rl3d.mesh_tokens.align_options import AlignOptions

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rl3d.mesh_tokens.model import MeshLM
    from rl3d.mesh_tokens.pair_files import PairSet
    from rl3d.progress import Progress, Stage

Data = TypeVar("Data")
PRESETS = {
    "mdpo": "good faces of the winner up, bad faces of the loser down (Mesh-RFT)",
    "dpo": "all tokens of both (DPO; S-DPO, N-DPO and DeepMesh's by their pairs)",
    "tdpo": "a window of both (QuadGPT)",
}
EPILOG = """examples:
  rl3d mesh align runs/pairs --out runs/mdpo
  rl3d mesh align runs/pairs --out runs/dpo --preset dpo --set beta=0.05 --set lr=2e-5
  accelerate launch --multi_gpu --num_processes 2 -m rl3d mesh align runs/pairs --out runs/mdpo
  rl3d mesh generate "a barrel" --model runs/mdpo/model --out barrel.glb

presets:
""" + "\n".join(f"  {name:6} {about}" for name, about in PRESETS.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("pairs", metavar="PAIRS", type=Path, help="folder that `rl3d mesh pairs` made")
    parser.add_argument("--preset", default="mdpo", metavar="NAME", help=f"{', '.join(PRESETS)} (default: mdpo)")
    run_arguments(parser, "what is tuned, and the reference (default: the embedded mesh model)")


def run_arguments(parser: argparse.ArgumentParser, model: str) -> None:
    """What every command that tunes the mesh model takes; `model`: what --model is."""
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="run folder")
    parser.add_argument("--model", metavar="DIR", type=Path, help=model)
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


def layers(args: argparse.Namespace, preset: str) -> list[config.Layer]:
    """The preset, --config and --seed; --set comes over them."""
    found: list[config.Layer] = [config.preset_path("align", preset)]
    if args.config is not None:
        found.append(checks.config_file(args.config))
    if args.seed is not None:
        found.append({"seed": checks.seed(args.seed)})
    return found


def run(args: argparse.Namespace) -> int:
    if args.preset not in PRESETS:
        raise ConfigError(f"unknown --preset {args.preset!r}; {way_out(args.preset, PRESETS)}")
    options = config.resolve(AlignOptions, layers(args, args.preset), args.overrides)

    def loaded(model: MeshLM) -> PairSet:
        from rl3d.mesh_tokens.pair_files import read_pair_set

        return read_pair_set(args.pairs)

    def tuned(session: Session, pairs: PairSet) -> Path:
        from rl3d.mesh_tokens.align import align

        return align(
            session.model,
            pairs,
            options,
            args.out,
            resume=args.resume,
            progress=session.showing("preference", "margin", "nll"),
            note=session.progress.note,
            accelerator=session.accelerator,
        )

    return tune(args, options.steps, loaded, tuned)


@dataclass(frozen=True)
class Session:
    """The model, the processes, and where progress and warnings are shown."""

    model: MeshLM
    accelerator: Accelerator
    stage: Stage
    progress: Progress

    def showing(self, *names: str) -> Callable[[int, int, Mapping[str, float]], None]:
        """A report of each step's numbers of these names."""
        return lambda step, of, numbers: self.stage.at(step, of, **{name: numbers[name] for name in names})


def tune(
    args: argparse.Namespace, steps: int, loaded: Callable[[MeshLM], Data], tuned: Callable[[Session, Data], Path]
) -> int:
    """Run `tuned` in every process that `accelerate launch` started, and print the model's folder.

    Args:
        loaded: reads what the model is tuned on, before anything is shown or removed.
    """
    device = checks.device_name(args.device)
    several = workers.launched()
    if not several:
        runs.check_out(args.out, resume=args.resume, overwrite=args.overwrite)
    device = checks.usable_device(device)

    from accelerate import Accelerator

    from rl3d.mesh_tokens.model import load_mesh_lm
    from rl3d.progress import Progress

    accelerator = Accelerator(cpu=device == "cpu")
    first = accelerator.is_main_process
    if several and first:
        runs.check_out(args.out, resume=args.resume, overwrite=args.overwrite)
    progress = Progress(silent=args.quiet or not first)
    if workers.launched_one_of_many():
        progress.note(f"warning: {workers.ONE_INSTEAD}")
    model = load_mesh_lm(args.model, str(accelerator.device) if device == "cuda" else device)
    data = loaded(model)
    if args.overwrite and first:
        runs.clear(args.out)
    accelerator.wait_for_everyone()
    try:
        with progress.stage("align", steps) as stage, progress.notes_of("rl3d.kernels"):
            folder = tuned(Session(model, accelerator, stage, progress), data)
    except RL3DError:
        if first:
            runs.discard_barren(args.out)
        raise
    if first:
        print(folder)
    return 0


def can_resume(args: argparse.Namespace) -> bool:
    """Whether the interrupted command left a run to go on with (asked by the command line for its last line)."""
    return runs.status(args.out) == "unfinished"
