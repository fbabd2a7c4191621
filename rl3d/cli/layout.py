"""`rl3d layout`: furnish a room, train the policy that does it, or score a furnished room."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rl3d import runs
from rl3d.cli import checks
from rl3d.errors import InputError
from rl3d.progress import Progress

EPILOG = """examples:
  rl3d layout generate --room bedroom --size 4x3.5 --seed 0 --out room.glb
  rl3d layout generate --room office --furniture my_glbs/ --out office.glb
  rl3d layout generate --room bedroom --items "single bed, nightstand, desk, office chair, wardrobe" --out room.glb
  rl3d layout score room.json
  rl3d layout train --out runs/layout --updates 160
  rl3d layout train --from --rate 0.0012 --updates 70 --out runs/layout2

Room types: bedroom, living room, dining room, kitchen, office, bathroom. Beside room.glb (a scene of named nodes) lie
room.json (where everything stands, and the report), room.png (the plan) and room-view.png.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    what = parser.add_subparsers(dest="what", metavar="generate | train | score", required=True)
    generate = what.add_parser("generate", help="furnish a room and write it as a GLB scene", allow_abbrev=False)
    generate.add_argument("--room", default="bedroom", metavar="TYPE", help="bedroom, living room, kitchen, ...")
    generate.add_argument("--size", metavar="WxD", help="metres, such as 4x3.5 (default: drawn by the seed)")
    generate.add_argument("--items", metavar="LIST", help='what to place: "double bed, nightstand x2" (default: drawn)')
    generate.add_argument("--door", type=float, metavar="M", help="width of the door (default: 0.8 or 0.9)")
    shape = generate.add_mutually_exclusive_group()
    shape.add_argument("--l-shaped", action="store_true", default=None, help="cut a corner out of the room")
    shape.add_argument("--rectangle", action="store_false", dest="l_shaped", help="no corner cut out")
    generate.add_argument("--furniture", metavar="DIR", help="meshes of your own (default: simple built-in pieces)")
    generate.add_argument("--by", choices=("policy", "greedy", "anneal"), default="policy", help="default: policy")
    generate.add_argument(
        "--tries", type=int, metavar="N", help="rooms to choose from (32), places a piece (64), or reward calls (1000)"
    )
    generate.add_argument(
        "--polish", type=int, default=0, metavar="N", help="moves of a cold annealing after the policy (0)"
    )
    generate.add_argument("--policy", metavar="DIR", help="a policy of rl3d layout train (default: the embedded one)")
    generate.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    generate.add_argument("--out", default="room.glb", metavar="FILE", help="GLB scene to write (default: room.glb)")
    generate.add_argument("--json", action="store_true", help="print the report as JSON on stdout")
    score = what.add_parser("score", help="judge a furnished room", allow_abbrev=False)
    score.add_argument("files", nargs="+", metavar="FILE", help="room .json, or the .glb beside which it lies")
    score.add_argument("--json", action="store_true", help="print a JSON list, one object a file")
    train = what.add_parser("train", help="train the policy with PPO", allow_abbrev=False)
    train.add_argument("--out", default="runs/layout", metavar="DIR", help="run folder (default: runs/layout)")
    train.add_argument("--updates", type=int, default=160, metavar="N", help="rollouts with an update each (160)")
    train.add_argument("--envs", type=int, default=64, metavar="N", help="rooms side by side (64)")
    train.add_argument("--rooms", type=int, default=1536, metavar="N", help="different rooms to train on (1536)")
    train.add_argument(
        "--where", choices=("policy", "greedy"), default="policy", help="who finds the place (RLSS: greedy)"
    )
    train.add_argument("--rate", type=float, default=2.5e-3, metavar="X", help="Adam's at the start (0.0025)")
    train.add_argument(
        "--from",
        dest="begin",
        nargs="?",
        const="",
        metavar="DIR",
        help="begin with a policy's weights (without DIR: the embedded one's); then take half the rate",
    )
    train.add_argument("--seed", type=int, default=1, metavar="N", help="default: 1")
    again = train.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in --out")
    again.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    train.add_argument("--quiet", action="store_true", help="no progress")
    for part in (generate, score, train):
        part.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        part.set_defaults(parser=part)


def run(args: argparse.Namespace) -> int:
    return {"generate": _generate, "score": _score, "train": _train}[args.what](args)


def can_resume(args: argparse.Namespace) -> bool:
    """Whether the interrupted command left a run to go on with."""
    return args.what == "train" and runs.status(Path(args.out)) == "unfinished"


def _generate(args: argparse.Namespace) -> int:
    from rl3d.agents.layout.inventory import room_type
    from rl3d.agents.layout.rooms import parse_size

    tries = args.tries if args.tries is not None else {"policy": 32, "greedy": 64, "anneal": 1000}[args.by]
    checks.whole_number("--tries", tries, 1, 100_000)
    out = Path(args.out)
    if out.suffix.lower() != ".glb":
        raise InputError(f"--out {args.out}: a scene is written as .glb; name it {out.stem}.glb")
    room_type(args.room)
    size = None if args.size is None else parse_size(args.size)

    from rl3d.agents.layout.folder import furniture_folder
    from rl3d.agents.layout.generate import LayoutOptions, generate

    options = LayoutOptions(
        room=args.room,
        size=size,
        items=args.items,
        door=args.door,
        l_shaped=args.l_shaped,
        by=args.by,
        tries=tries,
        polish=checks.whole_number("--polish", args.polish, 0, 100_000),
        seed=checks.seed(args.seed),
        policy=None if args.policy is None else Path(args.policy),
    )
    with Progress().notes_of("rl3d.kernels"):
        models = None if args.furniture is None else furniture_folder(args.furniture)
        report = generate(options, out, models)
    if args.json:
        print(json.dumps({"file": str(out), **report}, indent=2))
    else:
        print(
            f"score {report['score']:.3f}, {report['objects']:.0f} pieces, navigability {report['navigability']:.2f}, "
            f"rules {report['rules']:.2f}, {report['seconds']:.1f} s",
            file=sys.stderr,
        )
        print(out)
    return 0


def _score(args: argparse.Namespace) -> int:
    from rl3d.agents.layout.generate import score_file

    rows = []
    for name in args.files:
        with Progress().notes_of("rl3d.kernels"):
            rows.append({"file": name, **score_file(name)})
        if not args.json:
            print("\n".join([name, *(f"  {key}: {value:g}" for key, value in rows[-1].items() if key != "file")]))
    if args.json:
        print(json.dumps(rows, indent=2))
    return 0


def _train(args: argparse.Namespace) -> int:
    checks.whole_number("--updates", args.updates, 1, 10**6)
    checks.whole_number("--envs", args.envs, 1, 65536)
    checks.whole_number("--rooms", args.rooms, 1, 10**6)
    out = Path(args.out)
    runs.check_out(out, resume=args.resume, overwrite=args.overwrite)

    from dataclasses import replace

    from rl3d.agents.layout.train import EMBEDDED, TEST_SEED, TrainOptions, fresh_policy, train

    if args.seed == TEST_SEED:
        raise InputError(f"--seed {TEST_SEED} draws the rooms that policies are measured on; take another")
    options = TrainOptions(rooms=args.rooms, envs=args.envs, seed=checks.seed(args.seed), where=args.where)
    begin = EMBEDDED if args.begin == "" else args.begin
    options = replace(options, begin=begin, ppo=replace(options.ppo, updates=args.updates, rate=args.rate))
    if begin is not None:
        fresh_policy(options)  # an error before anything is cleared or written
        if args.overwrite and out.resolve() in Path(begin).resolve().parents:
            raise InputError(f"--overwrite would delete {begin}, which --from begins with; take another --out")
    if args.overwrite:
        runs.clear(out)
    progress = Progress(silent=args.quiet)
    with progress.notes_of("rl3d.kernels"):
        print(train(options, out, resume=args.resume, command=["rl3d", *args.argv], progress=progress))
    return 0
