"""`rl3d render`: a turntable of any mesh, splat or field file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rl3d.cli import checks
from rl3d.errors import InputError
from rl3d.progress import Progress

SHADINGS = ("unlit", "half_lambert", "lambert")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help=f"mesh, splats or field: {', '.join(checks.SCENE_SUFFIXES)}")
    parser.add_argument("--out", metavar="PICTURE", help="animated picture to write (default: FILE's name with .webp)")
    parser.add_argument("--size", type=int, default=256, metavar="PX", help="height and width in pixels (default: 256)")
    parser.add_argument("--frames", type=int, default=36, metavar="N", help="views of the turn (default: 36)")
    parser.add_argument("--shading", choices=SHADINGS, default="half_lambert", help="light on meshes (half_lambert)")
    parser.add_argument("--json", action="store_true", help="print facts about the scene as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    path = checks.scene_file(args.file)
    checks.whole_number("--size", args.size, 16, 4096)
    checks.whole_number("--frames", args.frames, 1, 720)
    out = Path(args.out) if args.out else Path(path.name).with_suffix(".webp")
    if out.resolve() == path.resolve():
        raise InputError(f"--out {out} is the file to render; choose another name")

    from rl3d.cli.facts import scene_facts, short, visible
    from rl3d.preview import turntable
    from rl3d.scenes import load_scene

    scene = visible(load_scene(path), args.file)
    with Progress().notes_of("rl3d.kernels"):
        turntable(scene, out, frames=args.frames, size=args.size, shading=args.shading)
    facts = scene_facts(scene)
    if args.json:
        print(json.dumps({"file": str(path), "turntable": str(out), **facts}, indent=2))
    else:
        print(", ".join(f"{k} {short(v)}" for k, v in facts.items() if not isinstance(v, list | dict)), file=sys.stderr)
        print(out)
    return 0
