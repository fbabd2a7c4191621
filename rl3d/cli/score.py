"""`rl3d score`: how well 3D files match a sentence, by both embedded judges."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rl3d.cli import checks
from rl3d.progress import Progress
from rl3d.text_to_3d.prompts import clean_prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="the sentence to compare with, in quotes")
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help=f"meshes or splats: {', '.join(checks.SCENE_SUFFIXES)}"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object a file")


def run(args: argparse.Namespace) -> int:
    prompt = clean_prompt(args.prompt)
    paths = [checks.scene_file(name) for name in args.files]

    from rl3d.cli.facts import scene_facts, surface
    from rl3d.rewards import score_asset
    from rl3d.scenes import load_scene

    rows: list[dict[str, Any]] = []
    for path in paths:
        scene = surface(load_scene(path), str(path))
        with Progress().notes_of("rl3d.kernels"):
            scores = score_asset(prompt, scene)
        rows.append({"file": str(path), "scores": scores, "facts": scene_facts(scene)})
        if not args.json:
            print(_text(rows[-1]), flush=True)
    if args.json:
        print(json.dumps({"prompt": prompt, "assets": rows}, indent=2))
    return 0


def _text(row: dict[str, Any]) -> str:
    from rl3d.cli.facts import short

    lines = [row["file"]]
    for title in ("scores", "facts"):
        lines += [f"  {key}: {short(value)}" for key, value in row[title].items()]
    return "\n".join(lines)
