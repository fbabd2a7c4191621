"""`rl3d mesh label`: show pairs in a browser, and write a person's picks into the set."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rl3d.cli import checks
from rl3d.errors import InputError

EPILOG = """examples:
  rl3d mesh label runs/pairs

Open the printed address. "This one" makes a mesh the winner of its pair, "Neither" drops the pair; both are written
into PAIRS/pairs.jsonl at once, as by "human". Ctrl-C ends it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("pairs", metavar="PAIRS", type=Path, help="folder that `rl3d mesh pairs` made")
    parser.add_argument("--port", type=int, default=8321, metavar="N", help="on this machine alone (default: 8321)")


def run(args: argparse.Namespace) -> int:
    checks.whole_number("--port", args.port, 0, 65535)

    from rl3d.mesh_tokens.label import Session, server
    from rl3d.mesh_tokens.pair_files import read_pair_set
    from rl3d.mesh_tokens.tokenizer import Tokenizer

    facts = read_pair_set(args.pairs).facts
    if facts.get("kind") not in ("adjacent", "raw") or not isinstance(facts.get("bins"), int):
        raise InputError(f"{args.pairs / 'pair_set.json'} must name the tokenizer: kind and bins; make the set again")
    session = Session.open(args.pairs, Tokenizer(facts["kind"], facts["bins"]))
    if not session.pairs.pairs:
        raise InputError(f"{args.pairs} has no pairs to show; draw more candidates, or loosen the rule")
    with server(session, args.port) as page:
        print(f"http://127.0.0.1:{page.server_address[1]}/")
        sys.stdout.flush()
        try:
            page.serve_forever()
        except KeyboardInterrupt:
            done = sum(p.by == "human" for p in session.pairs.pairs)
            print(f"{done} of {len(session.pairs.pairs)} pairs are labelled by people", file=sys.stderr)
    return 0
