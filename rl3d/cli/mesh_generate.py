"""`rl3d mesh generate`: low-poly meshes from words, points or a dense mesh."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rl3d.cli import checks
from rl3d.errors import InputError
from rl3d.progress import Progress
from rl3d.text_to_3d.prompts import clean_prompt

if TYPE_CHECKING:
    from rl3d.scenes import Mesh, PointCloud

EPILOG = """examples:
  rl3d mesh generate "wooden barrel" --faces 120 --out barrel.glb
  rl3d mesh generate scan.ply --faces 300 --out low.glb
  rl3d mesh generate dense.glb --faces 200 --best-of 16 --out low.obj

Points and meshes are followed, the nearest of the samples is kept and lies where they lie; for words it is the
likeliest, in a box of 1 m. The number of faces is a wish."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("source", metavar="SOURCE", help="a sentence in quotes, a PLY of points, or a mesh file")
    parser.add_argument("--faces", type=int, metavar="N", help="about how many triangles (default: as it likes)")
    parser.add_argument("--out", required=True, metavar="FILE", help="mesh to write: .glb, .obj, .ply, .stl or .off")
    parser.add_argument("--best-of", type=int, default=8, metavar="N", help="samples, the best is kept (default: 8)")
    parser.add_argument("--model", metavar="FOLDER", help="a trained mesh model (default: embedded)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the samples (default: 0)")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T", help="0: likeliest (default: 0.7)")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="P", help="(default: 0.95)")
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:N or mps (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print facts about the mesh and all samples as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    path = Path(args.source) if Path(args.source).suffix.lower() in checks.SCENE_SUFFIXES else None
    prompt = clean_prompt(args.source) if path is None else ""
    if path is not None:
        checks.scene_file(args.source)
        if path.resolve() == Path(args.out).resolve():
            raise InputError(f"--out {args.out} is the file to read; choose another name")
    if args.faces is not None:
        checks.whole_number("--faces", args.faces, 4, 10**6)
    checks.whole_number("--best-of", args.best_of, 1, 1024)
    checks.seed(args.seed)
    device = checks.usable_device(checks.device_name(args.device))
    if Path(args.out).suffix.lower() not in (".glb", ".obj", ".ply", ".stl", ".off"):
        raise InputError(f"--out {args.out} is no mesh file that rl3d writes; name it .glb, .obj, .ply, .stl or .off")

    from rl3d.mesh_tokens.generate import GenerateOptions, generate_mesh
    from rl3d.mesh_tokens.model import load_mesh_lm
    from rl3d.mesh_tokens.sampling import SampleOptions

    sampling = SampleOptions(temperature=args.temperature, top_p=args.top_p)
    options = GenerateOptions(args.faces, args.best_of, args.seed, sampling)
    source = prompt if path is None else _shape(path)
    model = load_mesh_lm(args.model, device)
    with Progress(silent=args.quiet).stage("samples", args.best_of) as stage:
        made = generate_mesh(model, source, options, stage.at)
    if made.unknown:
        print(f"rl3d: warning: the mesh model does not know: {', '.join(made.unknown)}", file=sys.stderr)
    made.best.mesh.save(args.out)
    if args.json:
        from rl3d.scenes import mesh_facts

        rows = [
            {"failure": c.failure, "faces": len(c.mesh.faces), "distance": c.distance, "log_prob": c.log_prob}
            for c in made.candidates
        ]
        kept = rows[next(i for i, c in enumerate(made.candidates) if c is made.best)]
        facts = mesh_facts(made.best.mesh)
        print(json.dumps({"mesh": args.out, "kept": kept, "facts": facts, "samples": rows}, indent=2))
    else:
        print(args.out)
    return 0


def _shape(path: Path) -> Mesh | PointCloud:
    from rl3d.scenes import Mesh, PointCloud, load_scene

    scene = load_scene(path)
    if not isinstance(scene, Mesh | PointCloud):
        raise InputError(f"{path} holds neither a mesh nor points; convert it to one of them")
    return scene
