"""Measure preference alignment of the mesh model: rows pretrained, best-of-8, N-DPO, S-DPO, M-DPO and GRPO.

    python tools/bench_mesh_dpo.py DATA --model RUN/model --out runs/mesh_dpo
    python tools/bench_mesh_dpo.py DATA --model RUN/model --out runs/mesh_dpo --val-shapes 20 --seeds 1
    python tools/bench_mesh_dpo.py DATA --model RUN/model --out runs/mesh_dpo --report-only

Pairs come from training shapes and the model as it is; N-DPO's by HD alone, S-DPO's and M-DPO's by BER, TS and HD, all
from the same candidates. Every row then draws one mesh of each val shape, with the same seeds; best-of-8 draws eight of
the pretrained model and keeps the best by mean rank of the three metrics. Everything is a file of --out; the same
command goes on after a kill.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_tables import cluster_bootstrap

from rl3d.data.asset_set import load_asset_set
from rl3d.environment import environment
from rl3d.files import atomic_write_text, write_json
from rl3d.mesh_tokens.align import align
from rl3d.mesh_tokens.align_options import AlignOptions, OnlineOptions
from rl3d.mesh_tokens.candidates import asked, condition_of, draw_candidates, pair_set, picked
from rl3d.mesh_tokens.model import MeshLM, load_mesh_lm
from rl3d.mesh_tokens.online import align_online
from rl3d.mesh_tokens.pair_files import PairSet, Shape, read_pair_set, write_pair_set
from rl3d.mesh_tokens.pairs import PairRule
from rl3d.mesh_tokens.sampling import SampleOptions, sample
from rl3d.metrics import MeshScore, Reference, reference, score_mesh, worst_score
from rl3d.preview import view_sheet
from rl3d.randomness import seed_for
from rl3d.scenes.mesh import Mesh
from rl3d.wireframe import wireframe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "mesh_dpo.md"
ROWS = ("pretrained", "best-of-8", "n-dpo", "s-dpo", "m-dpo", "grpo")
RULES = {"n-dpo": PairRule(("hd",), ()), "s-dpo": PairRule(), "m-dpo": PairRule()}
BEST_OF = 8
# By name: (title, whether more is better, digits).
MEASURES = {
    "cd": ("CD", False, 4),
    "hd": ("HD", False, 4),
    "ts": ("TS", True, 1),
    "ber": ("BER", False, 4),
    "non_manifold": ("non-manifold", False, 4),
    "failed": ("failed", False, 3),
    "faces": ("faces of the asked", True, 2),
}
SHOWN = 6


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of meshes with captions.jsonl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="the pretrained model (default: the embedded one)")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--train-shapes", type=int, default=120)
    parser.add_argument("--val-shapes", type=int, default=60)
    parser.add_argument("--max-faces", type=int, default=0, help="of the shapes; 0: what the model was trained on")
    parser.add_argument("--candidates", type=int, default=8, help="of a training shape")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.7, help="of the rows' meshes; candidates have 1")
    parser.add_argument("--align", type=json.loads, default={}, help='JSON of AlignOptions, e.g. {"lr": 2e-5}')
    parser.add_argument("--online", type=json.loads, default={}, help="JSON of OnlineOptions")
    parser.add_argument("--report-only", action="store_true", help="make nothing, rebuild the page")
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args()


class Bench:
    """What all rows share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, args.out
        self.base = load_mesh_lm(args.model)
        assets = load_asset_set(args.data)
        config = self.base.config
        train = sorted(picked(assets, "train", args.train_shapes, config, 1, args.max_faces))
        val = sorted(picked(assets, "val", args.val_shapes, config, 2, args.max_faces))
        self.train_shapes, self.train_meshes = asked(assets, train, config, 1)
        self.val_shapes, self.val_meshes = asked(assets, val, config, 2)
        self.references = {name: reference(mesh) for name, mesh in self.val_meshes.items()}
        self.most = args.max_faces or config.max_faces or 10**9

    def sampling(self, temperature: float) -> SampleOptions:
        return SampleOptions(temperature=temperature, top_p=1.0, max_faces=min(2 * self.most, 2000))


def pairs_of(bench: Bench, row: str) -> PairSet:
    """The row's pairs, drawn once for all rows."""
    folder = bench.out / "pairs" / row
    if (folder / "pairs.jsonl").exists():
        return read_pair_set(folder)
    drawn = next(
        (read_pair_set(p.parent).candidates for p in sorted((bench.out / "pairs").glob("*/pairs.jsonl"))), None
    )
    if drawn is None:
        begun = time.monotonic()
        drawn = draw_candidates(
            bench.base, bench.train_shapes, bench.train_meshes, bench.args.candidates, bench.sampling(1.0), 3,
            progress=lambda done, of: print(f"candidates of {done}/{of} shapes", file=sys.stderr),
        )  # fmt: skip
        print(f"candidates: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    config = bench.base.config
    facts = {"kind": config.kind, "bins": config.bins, "rule": row}
    write_pair_set(folder, pair_set(bench.train_shapes, drawn, RULES[row], facts))
    return read_pair_set(folder)


def tuned(bench: Bench, row: str, seed: int) -> MeshLM:
    """The row's model; the pretrained one for the rows that tune nothing."""
    if row in ("pretrained", "best-of-8"):
        return bench.base
    folder = bench.out / "runs" / f"{row}-seed{seed}"
    if not (folder / "model").exists():
        model = load_mesh_lm(bench.args.model)
        if row == "grpo":
            online = replace(OnlineOptions(seed=seed), **bench.args.online)
            align_online(model, bench.train_shapes, bench.train_meshes, online, folder, resume=True, progress=said(row))
        else:
            options = replace(AlignOptions(seed=seed, masked=row == "m-dpo"), **bench.args.align)
            align(model, pairs_of(bench, row), options, folder, resume=True, progress=said(row))
    return load_mesh_lm(folder / "model")


def said(row: str) -> Any:
    def say(step: int, of: int, numbers: Any) -> None:
        if step % 10 == 0 or step == of:
            shown = " ".join(f"{k}={v:.4g}" for k, v in numbers.items())
            print(f"{row} {step}/{of} {shown}", file=sys.stderr, flush=True)

    return say


def measure(
    model: MeshLM, shape: Shape, target: Reference, count: int, how: SampleOptions, seed: int
) -> dict[str, Any]:
    """One record: the mesh that counts of `count` drawn, its numbers, and what drawing cost."""
    begun = time.monotonic()
    drawn = sample(model, condition_of([shape], model.config), count, how, seed)
    seconds = time.monotonic() - begun
    found: list[tuple[MeshScore, list[int]]] = []
    for tokens, length, why in zip(drawn.tokens, drawn.lengths.tolist(), drawn.failures):
        decoded = model.config.tokenizer.decode(tokens[:length].numpy())
        bad = why or decoded.failure
        score = worst_score(bad, True) if bad else score_mesh(decoded.mesh(), target, faces=shape.faces)
        found.append((score, tokens[:length].tolist()))
    score, tokens = found[best([s for s, _ in found])]
    assert score.geometry is not None
    return {
        "cd": score.geometry.chamfer_l1 if score.passed else 1.0,
        "hd": score.hausdorff,
        "ts": 100 * score.ts,
        "ber": score.ber,
        "non_manifold": score.topology.non_manifold_ratio,
        "failed": float(not score.passed),
        "faces": score.topology.faces / shape.faces,
        "why": list(score.failed),
        "tokens": tokens,
        "drawn": int(drawn.lengths.sum()),
        "seconds": round(seconds, 3),
    }


def best(scores: Sequence[MeshScore]) -> int:
    """The candidate with the best mean rank of BER, TS and HD."""
    columns = [[s.ber for s in scores], [-s.ts for s in scores], [s.hausdorff or 0.0 for s in scores]]
    ranks = np.mean([np.searchsorted(np.sort(c), c, side="left") for c in columns], axis=0)
    return int(ranks.argmin())


def run_row(bench: Bench, row: str, seed: int) -> None:
    path = bench.out / "records" / f"{row}-seed{seed}.json"
    if path.exists():
        return
    model, how = tuned(bench, row, seed), bench.sampling(bench.args.temperature)
    count = BEST_OF if row == "best-of-8" else 1
    records = []
    for place, (name, shape) in enumerate(bench.val_shapes.items()):
        one = measure(model, shape, bench.references[name], count, how, seed_for(seed, 7, place))
        records.append({"row": row, "seed": seed, "shape": name, **one})
    write_json(path, records)
    print(f"{row}, seed {seed}: HD {np.mean([r['hd'] for r in records]):.4f}", file=sys.stderr)


def interval(values: Sequence[tuple[str, float]]) -> tuple[float, float, float]:
    """(mean, low, high) of (shape, value) pairs: 95 % over shapes, whose seeds stay together."""
    by_shape: dict[str, list[float]] = {}
    for shape, value in values:
        by_shape.setdefault(shape, []).append(value)
    found = cluster_bootstrap(list(by_shape.values()))
    assert found is not None  # a row has records
    return found


def level(records: Sequence[dict[str, Any]], name: str) -> tuple[float, float, float]:
    return interval([(r["shape"], r[name]) for r in records])


def gain(records: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]], name: str) -> tuple[float, float, float]:
    """The row's values minus the pretrained one's, on the same shapes and seeds."""
    of = {(r["shape"], r["seed"]): r[name] for r in base}
    return interval([(r["shape"], r[name] - of[key]) for r in records if (key := (r["shape"], r["seed"])) in of])


def page(rows: dict[str, list[dict[str, Any]]], made: dict[str, Any], picture: str | None) -> str:
    """Markdown of the result."""
    titles = [title for title, _, _ in MEASURES.values()]
    lines = [
        "# Preference alignment of the mesh model",
        "",
        "One mesh of each held-out shape, asked for by points on its surface, its caption and its number of faces.",
        "CD and HD in longest sides of the reference, TS by our sub-scores ([formulas](../mesh_metrics.md)): it does",
        "not compare with the paper's. A mesh that cannot be decoded or fails a gate has the worst of each. Mean and",
        "95 % interval over shapes.",
        "",
        f"    {made['command']}",
        "",
        f"{made['shapes']} shapes, {made['seeds']} seeds; " + "; ".join(made["pairs"]) + ".",
        "",
        "| row | " + " | ".join(titles) + " | tokens/s |",
        "|---" * (len(titles) + 2) + "|",
    ]
    for row, records in rows.items():
        cells = []
        for name, (_, _, digits) in MEASURES.items():
            mean, low, high = level(records, name)
            cells.append(f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        speed = sum(r["drawn"] for r in records) / max(sum(r["seconds"] for r in records), 1e-9)
        lines.append(f"| {row} | " + " | ".join(cells) + f" | {speed:.0f} |")
    if "pretrained" in rows:
        lines += ["", "Against the pretrained model, on the same shapes and seeds (relative change of the mean):", ""]
        lines += ["| row | CD | HD | TS | BER |", "|---|---|---|---|---|"]
        for row, records in rows.items():
            if row == "pretrained":
                continue
            cells = []
            for name in ("cd", "hd", "ts", "ber"):
                digits, base = MEASURES[name][2], level(rows["pretrained"], name)[0]
                mean, low, high = gain(records, rows["pretrained"], name)
                share = f"{100 * mean / base:+.1f} %" if base else "-"
                cells.append(f"{share} ({mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}])")
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    if picture:
        lines += ["", f"![The same shapes by every row]({picture})"]
    return "\n".join([*lines, ""])


def draw_sheet(bench: Bench, rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """The first shapes by every row as wireframes, the reference in front."""
    names = list(bench.val_shapes)[:SHOWN]
    angle, tokenizer = torch.tensor([0.6]), bench.base.config.tokenizer
    tiles, labels = [], []

    def add(mesh: Mesh, label: str) -> None:
        tiles.append(wireframe(mesh, angle, size=200)[0])
        labels.append(label)

    for name in names:
        add(bench.val_meshes[name], name.split(" ", 1)[-1])
    for row, records in rows.items():
        of = {r["shape"]: r for r in records if r["seed"] == 0}
        for name in names:
            decoded = tokenizer.decode(np.array(of[name]["tokens"]))
            if decoded.face_count:
                add(decoded.mesh(), row)
            else:
                tiles.append(torch.ones(3, 200, 200))
                labels.append(f"{row}: nothing")
    view_sheet(tiles, path, columns=len(names), labels=labels)


def write_report(bench: Bench) -> None:
    args = bench.args
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in ROWS:
        files = [bench.out / "records" / f"{row}-seed{seed}.json" for seed in range(args.seeds)]
        found = [r for file in files if file.exists() for r in json.loads(file.read_text())]
        if found:
            rows[row] = found
    words = [re.sub(r"[^=]*/", "", a) for a in sys.argv[1:] if a != "--report-only"]
    counts = [f"{row}: {len(pairs_of(bench, row).pairs)} pairs" for row in RULES if row in rows]
    made = {
        "command": shlex.join(["python", "tools/bench_mesh_dpo.py", *words]),
        "shapes": len(bench.val_shapes),
        "seeds": args.seeds,
        "pairs": counts or ["no pairs"],
        "environment": environment(),
    }
    home = args.page.resolve().parent
    picture = (home.parent / "images" if home.name == "benchmarks" else home) / f"bench_{args.page.stem}.png"
    if all(any(r["seed"] == 0 for r in records) for records in rows.values()) and rows:
        draw_sheet(bench, rows, picture)
    where = f"../images/{picture.name}" if home.name == "benchmarks" else picture.name
    write_json(args.page.with_suffix(".json"), {"made": made, "rows": rows})
    atomic_write_text(args.page, page(rows, made, where if picture.exists() else None))
    print(args.page)


def main() -> None:
    args = arguments()
    bench = Bench(args)
    if not args.report_only:
        for seed in range(args.seeds):
            for row in args.rows:
                run_row(bench, row, seed)
    write_report(bench)


if __name__ == "__main__":
    main()
