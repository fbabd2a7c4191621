"""`rl3d mesh`: what is done with meshes, an action a file (`mesh_score.py`, ...)."""

from __future__ import annotations

import argparse

from rl3d.cli import mesh_score

ACTIONS = {"score": (mesh_score, "measure topology, quads and distances from a reference")}


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
