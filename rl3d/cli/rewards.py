"""`rl3d rewards`: the embedded rewards, and the calibration of one."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rl3d.errors import InputError

EPILOG = """examples:
  rl3d rewards list
  rl3d rewards check judge
  rl3d rewards check depth_normal --json

check renders eight props and damaged versions of them; every case must be in the right order on average and in three
of four comparisons. Exit code 1 where the reward fails a case that it claims to see. A reward of your own is checked in
Python: rl3d.rewards.check_reward(mine).table()"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("action", choices=("list", "check"), help="list the embedded rewards, or calibrate one")
    parser.add_argument("name", metavar="NAME", nargs="?", help="the reward to check")
    parser.add_argument("--case", action="append", metavar="CASE", help="ask for this case alone; may be repeated")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    if args.action == "list":
        if args.name is not None or args.case:
            raise InputError("rl3d rewards list takes no name and no --case")
        return _list(args.json)
    if args.name is None:
        raise InputError("name the reward to check, e.g. rl3d rewards check judge; rl3d rewards list shows them")

    from rl3d.progress import Progress
    from rl3d.rewards import check_reward, load

    reward = load(args.name)
    with Progress().notes_of("rl3d.kernels"):
        found = check_reward(reward, args.case)
    failed = found.failed
    if args.json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        verdict = f"fails: {', '.join(failed)}" if failed else "passes every case that it claims to see"
        print(f"{found.table()}\nreward {found.reward!r} {verdict}")
    return 1 if failed else 0


def _list(as_json: bool) -> int:
    from rl3d.rewards import load
    from rl3d.rewards.calibrated import recorded_calibration
    from rl3d.rewards.check import CLAIMS

    rows: list[dict[str, Any]] = []
    for name in CLAIMS:
        reward = load(name)
        found = recorded_calibration(reward)
        rows.append(
            {
                "name": reward.name,
                "differentiable": reward.differentiable,
                "range": list(reward.range),
                "licence": reward.licence,
                "calibrated": found is not None,
                "failed": found["failed"] if found else [],
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        state = "not calibrated" if not row["calibrated"] else "calibrated"
        if row["failed"]:
            state += f", fails {', '.join(row['failed'])}"
        gradients = "gradients" if row["differentiable"] else "no gradients"
        low, high = row["range"]
        print(f"{row['name']:14} [{low:g}, {high:g}]  {gradients:12}  licence {row['licence']:10}  {state}")
    return 0
