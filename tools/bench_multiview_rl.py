"""Measure fine-tuning of a multi-view prior: every algorithm, best-of-N, longer training, on prompts not trained on.

    python tools/bench_multiview_rl.py --out runs/tuning                               # everything: many hours on a CPU
    python tools/bench_multiview_rl.py --out runs/tuning --rows nft carve3d --seeds 1 --set rounds=20 --held-out 20
    python tools/bench_multiview_rl.py --out runs/tuning --rows nft sft --data DATA --cache CACHE
    python tools/bench_multiview_rl.py --out runs/tuning --report-only
    python tools/bench_multiview_rl.py --out runs/tuning --rows nft grpo ddpo --speed

Trains on the prompts on which the base scores worst (Carve3D keeps the 30 worst of 100 too) and measures on the 60 of
the text-to-3D benchmark, from the same initial noise for every row. The reward is optimised, the guard chooses the
state that is kept; leave-one-out MRC and the gold judge only measure. Training runs are folders of --out that go on
after a kill; finished ones are skipped.

Rows: base; best-of-N (the base, the best of N by the optimised reward); sft (the adapter trained on real renders for as
many seconds as the first algorithm took); names of algorithms (rl3d finetune --help).
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_tables import Measure, cluster_bootstrap, difference_table, differences, distractors, noun_of
from bench_text_to_3d import PROMPTS, article
from torch import Tensor

from rl3d import config
from rl3d.cameras import Cameras
from rl3d.data.asset_set import read_records
from rl3d.data.batches import ViewBatches
from rl3d.data.colours import WORDS as COLOURS
from rl3d.errors import ConfigError, RL3DError
from rl3d.files import atomic_write_text, write_json
from rl3d.multiview.guard import guard_for
from rl3d.multiview.loop import ADAPTER, finetune
from rl3d.multiview.options import ALGORITHMS, FinetuneOptions
from rl3d.multiview.policy import Policy
from rl3d.multiview.rollouts import Path as Drawn
from rl3d.multiview.rollouts import rollout
from rl3d.multiview.rounds import guarded_scores, ring
from rl3d.multiview.update import optimizer_for, take
from rl3d.preview import view_sheet
from rl3d.priors import load as load_prior
from rl3d.priors.adapters import save_adapter
from rl3d.priors.load import join_prompts
from rl3d.priors.protocol import Prior
from rl3d.progress import Progress
from rl3d.randomness import generator_for
from rl3d.rewards import Judge, load_judge, retrieval
from rl3d.rewards import load as load_reward
from rl3d.rewards.pictures import reward_input, to_rgba
from rl3d.rewards.protocol import Reward
from rl3d.rl import squared_error
from rl3d.runs import read_metrics, status

POOL, CANDIDATES = 100, 4  # prompts that the base is tried on, and samples of each
MEASURES = (
    Measure("mrc", "MRC, leave one out", 4),
    Measure("hull", "hull agreement", 4),
    Measure("reward", "optimised", 4),
    Measure("gold", "gold similarity", 3),
    Measure("gold_top1", "gold retrieval of 20", 2),
    Measure("diversity", "diversity", 3),
)
HELD_OUT = [*PROMPTS["known"], *PROMPTS["unseen"]]
EVALUATION, SEARCH = 21, 22  # places of noise, see `rl3d.randomness`


def training_pool(count: int = POOL) -> list[str]:
    """`count` prompts of a colour and a noun, none of them held out; always the same."""
    nouns = sorted({noun_of(p) for p in PROMPTS["known"]})
    every = [f"{article(colour)} {colour} {noun}" for colour in COLOURS for noun in nouns]
    held = set(HELD_OUT)
    return random.Random(0).sample([p for p in every if p not in held], count)


def draw(prior: Prior, texts: Sequence[str], options: FinetuneOptions, place: int, copy: int) -> Drawn:
    """One deterministic sample a prompt; noise and cameras belong to the prompt and the copy."""
    keys = [sum(ord(c) * (i + 1) for i, c in enumerate(text)) for text in texts]
    return rollout(
        prior,
        join_prompts([prior.encode_prompt(text) for text in texts]),
        Cameras.cat([ring(prior, options, place, key) for key in keys]),
        options.sampler,
        [generator_for(0, place, copy, key) for key in keys],
        keep=[],
    )


def scored(prior: Prior, drawn: Drawn, rewards: Sequence[Reward]) -> tuple[Tensor, list[list[float]]]:
    """Premultiplied views [B, V, 4, H, W] and the scores of each reward."""
    with torch.no_grad():
        images = prior.decode(drawn.clean)
        x = reward_input(images, prior, drawn.cameras, drawn.prompt.prompts)
        return to_rgba(images, prior), [guarded_scores(reward, x).tolist() for reward in rewards]


def worst_prompts(
    prior: Prior, reward: Reward, options: FinetuneOptions, args: argparse.Namespace, file: Path
) -> list[str]:
    """The prompts of the pool on which the base scores lowest; kept in a file."""
    if not file.exists():
        means: dict[str, list[float]] = {text: [] for text in training_pool(args.pool)}
        texts = list(means)
        for copy in range(CANDIDATES):
            for first in range(0, len(texts), options.micro_batch):
                some = texts[first : first + options.micro_batch]
                _, (scores,) = scored(prior, draw(prior, some, options, SEARCH, copy), [reward])
                for text, score in zip(some, scores):
                    means[text].append(score)
        ranked = sorted(texts, key=lambda text: sum(means[text]) / CANDIDATES)
        write_json(file, {"reward": reward.name, "prompts": [[t, sum(means[t]) / CANDIDATES] for t in ranked]})
    kept = json.loads(file.read_text(encoding="utf-8"))
    if kept["reward"] != reward.name:
        raise ConfigError(f"{file} was ranked by reward {kept['reward']!r}; choose another --out")
    return [text for text, _ in kept["prompts"][: args.train_prompts]]


def evaluate(
    prior: Prior, row: str, seed: int, reward: Reward, gold: Judge, options: FinetuneOptions, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """A record a held-out prompt, of `args.copies` samples; `best-of-N` keeps the best of N by the reward for each."""
    n = int(row.rpartition("-")[2]) if row.startswith("best-of-") else 1
    watchers = [reward, load_reward("mrc"), load_reward("hull")]
    records = []
    texts = HELD_OUT[: args.held_out]
    for first in range(0, len(texts), options.micro_batch):
        some = texts[first : first + options.micro_batch]
        kept: list[list[tuple[Tensor, list[float]]]] = [[] for _ in some]
        for copy in range(args.copies):
            tries = []
            for k in range(n):
                images, scores = scored(prior, draw(prior, some, options, EVALUATION, copy + k * args.copies), watchers)
                tries.append([(images[i], [s[i] for s in scores]) for i in range(len(some))])
            for i in range(len(some)):
                kept[i].append(max((t[i] for t in tries), key=lambda found: found[1][0]))
        for text, found in zip(some, kept):
            records.append(
                {"method": row, "seed": seed, "prompt": text, "group": "known", **measured(found, text, gold)}
            )
    return records


def measured(found: Sequence[tuple[Tensor, list[float]]], text: str, gold: Judge) -> dict[str, Any]:
    """Means over a prompt's samples, and how far apart these are in the gold judge's eyes."""
    group = PROMPTS["known"] if text in PROMPTS["known"] else PROMPTS["unseen"]
    others = distractors(text, group)
    seen = [retrieval(gold, images[None], text, others) for images, _ in found]
    scores = torch.tensor([s for _, s in found], dtype=torch.float64).mean(0).tolist()
    stacked = torch.stack([images for images, _ in found])
    with torch.no_grad():
        embedded = torch.nn.functional.normalize(gold.encode(stacked).embedding, dim=-1)
    apart = 1 - embedded @ embedded.T
    pairs = apart[~torch.eye(len(found), dtype=torch.bool)]
    return {
        "failed": None,
        "reward": scores[0],
        "mrc": -scores[1],
        "hull": scores[2],
        "gold": sum(s.similarity for s in seen) / len(seen),
        "gold_top1": sum(s.rank == 1 for s in seen) / len(seen),
        "diversity": float(pairs.mean()) if len(pairs) else None,
    }


@dataclass(frozen=True)
class Bench:
    """What all rows share."""

    args: argparse.Namespace
    options: FinetuneOptions
    reward: Reward
    gold: Judge


def tuned(row: str, seed: int, texts: Sequence[str], bench: Bench) -> tuple[Path, dict[str, float]]:
    """The adapter of a row's training run, made or gone on with if it is not finished, and what it cost."""
    folder = bench.args.out / f"{row}-{seed}"
    if status(folder) != "finished":
        prior: Any = load_prior(bench.args.prior, bench.args.device)
        options = options_of(row, seed, bench.args)
        guard = guard_for(options, bench.reward, bench.args.device)
        print(f"training {folder.name}", flush=True)
        finetune(
            prior,
            bench.reward,
            texts,
            options,
            folder,
            base=bench.args.prior,
            guard=guard,
            resume=True,
            progress=Progress(silent=not bench.args.verbose),
        )
    rounds = [r for r in read_metrics(folder / "metrics.jsonl") if r["stage"] == "round"]
    spent = {k: sum(r[k] for r in rounds) for k in ("seconds_rollout", "seconds_update")}
    samples = len(rounds) * bench.options.prompts_per_round * bench.options.group
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return folder / ADAPTER, {
        **spent,
        "seconds": sum(spent.values()),
        "samples": samples,
        "kept_round": -1 if report["best"] is None else report["best"]["round"],
        "from_base": next((r["from_base"] for r in reversed(rounds) if "from_base" in r), 0.0),
    }


def options_of(algorithm: str, seed: int, args: argparse.Namespace) -> FinetuneOptions:
    """The algorithm's preset and --set; all algorithms draw as many samples a round."""
    preset = config.preset_path("finetune", algorithm)
    return config.resolve(FinetuneOptions, [preset, {"seed": seed}], args.overrides)


def longer_training(seed: int, seconds: float, bench: Bench) -> tuple[Path, dict[str, float]]:
    """The row "sft": the same adapter, trained on real renders of the training assets for as many seconds."""
    args, folder = bench.args, bench.args.out / f"sft-{seed}"
    if not (folder / "cost.json").exists():
        prior: Any = load_prior(args.prior, args.device)
        options = replace(options_of("nft", seed, args), algorithm="rwr")
        policy = Policy.of(prior, options)
        optimizer = optimizer_for(policy, options.adapter)
        source = ViewBatches(args.cache, read_records(args.data), "train", 0.5, args.device)
        rng, began, steps, rows = np.random.default_rng(seed), time.perf_counter(), 0, 0
        while time.perf_counter() - began < seconds:
            images, captions, params, _ = source.draw(2 * options.micro_batch, rng)
            noise = torch.Generator().manual_seed(seed * 1_000_003 + steps)
            clean = prior.to_latents(images)
            t = prior.times(options.sampler.steps)[torch.randint(options.sampler.steps, (len(clean),), generator=noise)]
            x_t = prior.add_noise(clean, torch.randn(clean.shape, generator=noise), t.float())
            prompt = join_prompts([prior.encode_prompt(text) for text in captions])
            x0, _ = prior.predict_x0(x_t, t.float(), prompt, source.cameras(params))
            optimizer.zero_grad(set_to_none=True)
            squared_error(x0, clean).mean().backward()
            take(policy, optimizer, options.adapter)
            steps, rows = steps + 1, rows + len(clean)
        save_adapter(prior, folder / ADAPTER, args.prior, {"algorithm": "sft", "steps": steps})
        spent = time.perf_counter() - began
        write_json(folder / "cost.json", {"seconds": spent, "samples": rows, "steps": steps})
    return folder / ADAPTER, json.loads((folder / "cost.json").read_text(encoding="utf-8"))


def run_rows(bench: Bench, texts: Sequence[str]) -> None:
    """Train and measure what is not measured yet; a file of records a row and seed."""
    args, first_cost = bench.args, None
    for seed in range(args.seeds):
        for row in args.rows:
            file = args.out / "records" / f"{row}-{seed}.json"
            trained = row in ALGORITHMS or row == "sft"
            if file.exists() or (not trained and seed > 0):
                continue  # the noise of the evaluation is fixed: the base is the same for every seed
            cost: dict[str, float] = {}
            adapter: Path | None = None
            if row in ALGORITHMS:
                adapter, cost = tuned(row, seed, texts, bench)
                first_cost = first_cost or cost["seconds"]
            elif row == "sft":
                if first_cost is None:
                    raise ConfigError("the row sft trains as long as an algorithm; name one before it in --rows")
                adapter, cost = longer_training(seed, first_cost, bench)
            prior = load_prior(args.prior if adapter is None else str(adapter), args.device)
            began = time.perf_counter()
            records = evaluate(prior, row, seed, bench.reward, bench.gold, bench.options, args)
            write_json(file, {"cost": cost, "evaluation_seconds": time.perf_counter() - began, "records": records})
            print(f"{row}, seed {seed}: " + summary(records), flush=True)


def summary(records: Sequence[dict[str, Any]]) -> str:
    means = {m.key: [r[m.key] for r in records if r[m.key] is not None] for m in MEASURES}
    return ", ".join(f"{name} {sum(values) / len(values):.4f}" for name, values in means.items() if values)


def write_report(bench: Bench, texts: Sequence[str]) -> None:
    """The page and its numbers, from whatever was measured so far."""
    args = bench.args
    records, rows = [], []
    for row in args.rows:
        files = [args.out / "records" / f"{row}-{seed}.json" for seed in range(args.seeds)]
        found = [json.loads(f.read_text(encoding="utf-8")) for f in files if f.exists()]
        mine = [record for part in found for record in part["records"]]
        if not mine:
            continue
        if row not in ALGORITHMS and row != "sft":  # one measurement stands beside every seed
            mine = [{**record, "seed": seed} for seed in range(args.seeds) for record in mine]
        records += mine
        costs = [part["cost"] for part in found if part["cost"]]
        rows.append(row_of(row, mine, len(found), costs))
    lines = [
        "# Fine-tuning the multi-view prior, measured",
        "",
        f"Written by `tools/bench_multiview_rl.py`; do not edit. Optimised: `{bench.reward.name}`; {len(texts)} "
        f"training prompts, the worst of {args.pool} for the base; {args.held_out} other prompts here, "
        f"{args.copies} samples each from fixed noise. Means with 95 % intervals of a bootstrap over prompts. MRC: "
        "lower is better.",
        "",
        "| row | seeds | " + " | ".join(m.title for m in MEASURES) + " | samples | seconds | moved |",
        "|---" * (5 + len(MEASURES)) + "|",
        *(line_of(row) for row in rows),
        "",
        "Moved: mean squared distance of the predictions from the base's at the end of training.",
        "",
        "## Against the base",
        "",
        difference_table(differences(records, [row["method"] for row in rows], "base", MEASURES), MEASURES),
        "",
    ]
    lines += ["## What produced it", "", f"    {command_of(args)}", ""]
    atomic_write_text(args.page, "\n".join(lines))
    write_json(args.page.with_suffix(".json"), {"rows": rows, "prompts": list(texts), "records": records})
    print(args.page)


def command_of(args: argparse.Namespace) -> str:
    """The call with what decides the numbers, on lines of 120 characters."""
    words = ["--out", "RUNS", "--reward", args.reward, "--rows", *args.rows, "--seeds", str(args.seeds)]
    words += ["--train-prompts", str(args.train_prompts), "--pool", str(args.pool)]
    words += ["--held-out", str(args.held_out), "--copies", str(args.copies)]
    words += [word for change in args.overrides for word in ("--set", change)]
    whole = textwrap.wrap(f"python tools/bench_multiview_rl.py {shlex.join(words)}", 112, break_on_hyphens=False)
    return " \\\n        ".join(whole)


def row_of(
    name: str, records: Sequence[dict[str, Any]], seeds: int, costs: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """Means with intervals over prompts, and the mean cost of a seed."""
    row: dict[str, Any] = {"method": name, "seeds": seeds}
    for measure in MEASURES:
        by_prompt: dict[str, list[float]] = {}
        for record in records:
            if record[measure.key] is not None:
                by_prompt.setdefault(record["prompt"], []).append(record[measure.key])
        row[measure.key] = cluster_bootstrap(list(by_prompt.values()))
    for key in ("samples", "seconds", "from_base"):
        known = [cost[key] for cost in costs if key in cost]
        row[key] = sum(known) / len(known) if known else None
    return row


def line_of(row: dict[str, Any]) -> str:
    cells = [row["method"], str(row["seeds"])]
    for m in MEASURES:
        found = row[m.key]
        cells.append("–" if found is None else "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*found, d=m.digits))
    for key, form in (("samples", ".0f"), ("seconds", ".0f"), ("from_base", ".2g")):
        cells.append("–" if row[key] is None else format(row[key], form))
    return "| " + " | ".join(cells) + " |"


def speed(bench: Bench, rows: Sequence[str]) -> None:
    """Samples a second of one round of each algorithm, and of the loop that the first public trainers have.

    That one (ddpo-pytorch's form): the same model and numbers of samples, one sample at a time, guidance at every step,
    all steps trained. Printed as a table; the first round compiles kernels and is not counted.
    """
    plain = ["micro_batch=1", "sampler.guide_above=0.0", "path.window=0"]
    found: dict[str, dict[str, float]] = {}
    for name, algorithm, changes in [("plain loop", "ddpo", plain), *((row, row, []) for row in rows)]:
        words = [*bench.args.overrides, "rounds=2", "watch.every=0", *changes]
        options = config.resolve(FinetuneOptions, config.preset_path("finetune", algorithm), words)
        prior: Any = load_prior(bench.args.prior, bench.args.device)
        with tempfile.TemporaryDirectory() as folder:
            finetune(prior, bench.reward, training_pool(4), options, Path(folder) / "run")
            found[name] = read_metrics(Path(folder) / "run" / "metrics.jsonl")[-1]
    print("| loop | samples a second | of the plain loop | rollout and reward, s | update, s |\n|---|---|---|---|---|")
    for name, row in found.items():
        ratio = row["samples_per_second"] / found["plain loop"]["samples_per_second"]
        times = f"{row['seconds_rollout']:.1f} | {row['seconds_update']:.1f}"
        print(f"| {name} | {row['samples_per_second']:.2f} | {ratio:.1f} | {times} |")


def draw_sheet(bench: Bench, path: Path) -> None:
    """The first held-out prompts as each row paints them, from the same noise: a row a prompt and method."""
    pictures, labels = [], []
    texts = HELD_OUT[: min(6, bench.args.held_out)]
    for row in bench.args.rows:
        adapter = bench.args.out / f"{row}-0" / ADAPTER
        if row != "base" and not adapter.exists():
            continue
        prior = load_prior(bench.args.prior if row == "base" else str(adapter), bench.args.device)
        images, _ = scored(prior, draw(prior, texts, bench.options, EVALUATION, 0), [])
        over = images[:, :, :3] + 0.9 * (1 - images[:, :, 3:])
        pictures.append(over.flatten(0, 1))
        labels += [f"{row}: {text}" if v == 0 else "" for text in texts for v in range(over.shape[1])]
    view_sheet(torch.cat(pictures), path, columns=2 * pictures[0].shape[0] // len(texts), labels=labels)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; made, or gone on with")
    parser.add_argument("--rows", nargs="+", default=["base", "best-of-4", *ALGORITHMS], metavar="ROW")
    parser.add_argument("--reward", default="hull", help="what is optimised")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-prompts", type=int, default=30, help="the worst of the pool")
    parser.add_argument("--pool", type=int, default=POOL, help="prompts that the base is tried on first")
    parser.add_argument("--held-out", type=int, default=len(HELD_OUT), help="only the first N of the 60")
    parser.add_argument("--copies", type=int, default=2, help="samples a held-out prompt")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--data", type=Path, help="for the row sft: the folder of captioned meshes")
    parser.add_argument("--cache", type=Path, help="for the row sft: its view cache (tools/build_views.py)")
    parser.add_argument("--prior", help="as in rl3d generate (default: the embedded one)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks/multiview_rl.md"))
    parser.add_argument("--report-only", action="store_true", help="train and measure nothing, rebuild the page")
    parser.add_argument("--speed", action="store_true", help="only measure the algorithms' samples a second")
    parser.add_argument("--verbose", action="store_true", help="show the training's progress")
    args = parser.parse_args(argv)
    for row in args.rows:
        if row not in ("base", "sft", *ALGORITHMS) and not row.removeprefix("best-of-").isdigit():
            parser.error(f"unknown row {row!r}; known: base, best-of-N, sft, {', '.join(ALGORITHMS)}")
    if "sft" in args.rows and (args.data is None or args.cache is None):
        parser.error("the row sft needs --data and --cache")
    if args.copies < 1 or args.seeds < 1 or not 1 <= args.held_out <= len(HELD_OUT):
        parser.error(f"--copies and --seeds are at least 1, --held-out lies between 1 and {len(HELD_OUT)}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    options = options_of("nft", 0, args)
    reward = load_reward(args.reward, args.device)
    bench = Bench(args, options, reward, load_judge("gold", args.device))
    if args.speed:
        speed(bench, [row for row in args.rows if row in ALGORITHMS])
        return 0
    prior = load_prior(args.prior, args.device)
    texts = worst_prompts(prior, reward, options, args, args.out / "prompts.json")
    if not args.report_only:
        run_rows(bench, texts)
        draw_sheet(bench, args.out / "sheet.png")
    write_report(bench, texts)
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except RL3DError as error:
        raise SystemExit(f"error: {error}") from error
