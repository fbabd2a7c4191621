"""`rl3d mesh`: what is done with meshes, an action a file (`mesh_score.py`, ...)."""

from __future__ import annotations

import argparse

from rl3d.cli import mesh_align, mesh_generate, mesh_grpo, mesh_label, mesh_pairs, mesh_score

ACTIONS = {
    "generate": (mesh_generate, "write a low-poly mesh for words, points or a dense mesh"),
    "score": (mesh_score, "measure topology, quads and distances from a reference"),
    "pairs": (mesh_pairs, "draw candidates of shapes, and keep the pairs in which one is better"),
    "label": (mesh_label, "show pairs in a browser, and write down which mesh a person prefers"),
    "align": (mesh_align, "tune the mesh model on preference pairs (M-DPO, DPO, tDPO)"),
    "grpo": (mesh_grpo, "tune the mesh model on the metrics of what it draws itself (GRPO)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (module, summary) in ACTIONS.items():
        sub = actions.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        module.add_arguments(sub)
        sub.set_defaults(parser=sub)


def run(args: argparse.Namespace) -> int:
    module, _ = ACTIONS[args.action]
    return module.run(args)


def can_resume(args: argparse.Namespace) -> bool:
    """Whether the interrupted action left a run to go on with."""
    module, _ = ACTIONS[args.action]
    asked = getattr(module, "can_resume", None)
    return asked is not None and bool(asked(args))
