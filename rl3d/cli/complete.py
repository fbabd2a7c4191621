"""`rl3d complete`: complete a partial point cloud."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rl3d.cli import checks
from rl3d.errors import InputError
from rl3d.progress import Progress

EPILOG = """examples:
  rl3d complete partial.ply --out full.ply
  rl3d complete partial.ply --out full.ply --mesh --seen-from 0,0.4,2
  rl3d complete scan.ply --out full.ply --up z --by search --steps 64

Beside full.ply lie full.json (the report) and full.png (before and after), with --mesh full-mesh.glb. The visible
points stay as they came; new ones fill in where nothing was seen. The models know low-poly game assets: see
docs/completion.md.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("file", metavar="PARTIAL", help="point cloud, .ply")
    parser.add_argument("--out", default="full.ply", metavar="FILE", help="PLY to write (default: full.ply)")
    parser.add_argument("--mesh", action="store_true", help="also extract a mesh, beside FILE as -mesh.glb")
    parser.add_argument(
        "--by", choices=("agent", "search", "autoencoder"), default="agent", help="who completes (default: agent)"
    )
    parser.add_argument(
        "--always", action="store_true", help="keep what it made, whatever the evidence says (docs/completion.md)"
    )
    parser.add_argument("--steps", type=int, default=64, metavar="N", help="decoder calls of --by search (64)")
    parser.add_argument("--points", type=int, default=4096, metavar="N", help="at most so many are written (4096)")
    parser.add_argument("--up", choices=("y", "z"), default="y", help="the cloud's upward axis (default: y)")
    parser.add_argument(
        "--own-frame",
        action="store_true",
        help="the cloud lies already where it belongs in the whole object's box, of longest side 1 around the origin",
    )
    parser.add_argument("--seen-from", metavar="X,Y,Z", help="where the cloud was seen from, in its own coordinates")
    parser.add_argument("--models", metavar="DIR", help="models of tools/train_completion.py (default: the embedded)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    path, out = Path(args.file), Path(args.out)
    if not path.is_file():
        raise InputError(f"{path} is a folder; give a file" if path.is_dir() else f"no such file: {path}")
    if path.suffix.lower() != ".ply":
        raise InputError(f"point clouds are read from .ply files, got {path.name!r}; convert it to PLY")
    if out.suffix.lower() != ".ply":
        raise InputError(f"--out {out}: points are written as .ply; name it {out.stem}.ply")
    if out.resolve() == path.resolve():
        raise InputError(f"--out {out} is the cloud to complete; choose another name")
    checks.whole_number("--steps", args.steps, 1, 100_000)
    checks.whole_number("--points", args.points, 64, 1_000_000)
    viewpoint = None if args.seen_from is None else _place(args.seen_from)
    seed = checks.seed(args.seed)

    from rl3d.agents.completion.complete import CompletionOptions, complete_file, load_models

    options = CompletionOptions(
        by=args.by,
        calls=args.steps,
        own_frame=args.own_frame,
        points=args.points,
        viewpoint=viewpoint,
        up=args.up,
        mesh=args.mesh,
        seed=seed,
        always=args.always,
    )
    progress = Progress(silent=args.quiet)
    with progress.notes_of("rl3d.kernels"), progress.stage("complete", 1) as stage:
        report = complete_file(path, out, options, load_models(None if args.models is None else Path(args.models)))
        stage.step()
    if args.json:
        print(json.dumps({"file": str(out), **report}, indent=2))
    else:
        said = f", the {args.by} followed for {100 * report['followed']:.0f} % of its way"
        print(
            f"{report['points']} points, {report['new_points']} of them new, {report['seconds']:.1f} s{said}",
            file=sys.stderr,
        )
        print(out)
    return 0


def _place(text: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(word) for word in text.split(","))
    except ValueError:
        raise InputError(f"--seen-from takes three numbers such as 0,0.4,2, got {text!r}") from None
    if not all(abs(v) < 1e9 for v in (x, y, z)):
        raise InputError(f"--seen-from takes three numbers below 1e9, got {text!r}")
    return x, y, z
