"""`rl3d mesh pairs`: candidates of shapes and the preference pairs among them."""

from __future__ import annotations

import argparse
from pathlib import Path

from rl3d.cli import checks
from rl3d.errors import InputError, RL3DError
from rl3d.mesh_tokens.pairs import METRICS, PairRule

EPILOG = f"""examples:
  rl3d mesh pairs assets/ --out runs/pairs
  rl3d mesh pairs assets/ --out runs/n-dpo --metrics hd --ties

DATA is a folder of meshes with captions.jsonl; each shape is asked for by points on its surface, its caption and its
number of faces. A pair is kept where one candidate is better on every metric ({", ".join(METRICS)}), or equal on those
of --ties. The folder then holds lines that people can read and edit; `rl3d mesh label` shows pairs side by side,
`rl3d mesh align` learns from them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    rule = PairRule()
    parser.add_argument("data", metavar="DATA", type=Path, help="folder of meshes with captions.jsonl")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the set, made")
    parser.add_argument("--model", metavar="DIR", type=Path, help="a trained mesh model (default: the embedded one)")
    parser.add_argument("--shapes", type=int, default=100, metavar="N", help="how many (default: 100)")
    parser.add_argument("--candidates", type=int, default=8, metavar="N", help="of each shape (default: 8)")
    parser.add_argument("--split", choices=("train", "val"), default="train", help="of captions.jsonl (default: train)")
    parser.add_argument("--metrics", nargs="+", default=list(rule.metrics), metavar="M", help="default: ber ts hd")
    parser.add_argument("--ties", nargs="*", default=list(rule.ties), metavar="M", help="default: ber")
    parser.add_argument("--margin", type=float, default=rule.margin, metavar="X", help="share to win by (default: 0)")
    parser.add_argument("--most", type=int, default=rule.most, metavar="N", help="pairs a shape (default: 0, all)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of sampling (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--overwrite", action="store_true", help="replace the set in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    rule = PairRule(tuple(args.metrics), tuple(args.ties), args.margin, most=args.most)
    checks.whole_number("--shapes", args.shapes, 1, 10**6)
    checks.whole_number("--candidates", args.candidates, 2, 4096)
    checks.seed(args.seed)
    if (args.out / "pairs.jsonl").exists() and not args.overwrite:
        raise InputError(f"{args.out} holds a set of pairs already; give --overwrite, or another --out")
    device = checks.usable_device(checks.device_name(args.device))

    from rl3d.data.asset_set import load_asset_set
    from rl3d.mesh_tokens.candidates import asked, draw_candidates, pair_set, picked
    from rl3d.mesh_tokens.model import load_mesh_lm
    from rl3d.mesh_tokens.pair_files import write_pair_set
    from rl3d.mesh_tokens.sampling import SampleOptions
    from rl3d.progress import Progress

    progress = Progress(silent=args.quiet)
    model = load_mesh_lm(args.model, device)
    assets = load_asset_set(args.data)
    chosen = picked(assets, args.split, args.shapes, model.config, args.seed)
    shapes, references = asked(assets, chosen, model.config, args.seed)
    most = 2 * max(shape.faces for shape in shapes.values())
    options = SampleOptions(temperature=args.temperature, top_p=1.0, max_faces=most)
    with progress.stage("candidates", len(shapes)) as stage, progress.notes_of("rl3d.kernels"):
        drawn = draw_candidates(model, shapes, references, args.candidates, options, args.seed, progress=stage.at)
    facts = {
        "kind": model.config.kind,
        "bins": model.config.bins,
        "rule": {"metrics": args.metrics, "ties": args.ties, "margin": args.margin, "most": args.most},
        "temperature": args.temperature,
        "seed": args.seed,
    }
    made = pair_set(shapes, drawn, rule, facts)
    write_pair_set(args.out, made)
    failed = sum(c.failed for c in drawn.values())
    progress.note(f"{len(made.pairs)} pairs of {len(drawn)} candidates of {len(shapes)} shapes; {failed} failed")
    print(args.out)
    if not made.pairs:
        raise RL3DError("no candidate is better than another on every metric; draw more, or fewer --metrics")
    return 0
