"""The benchmark's arithmetic and its page: order of runs, aggregation, bootstrap, tables. No torch, no files.

A record is one run as plain values: method, prompt, group ("known" or "unseen"), seed, failed (a sentence, or None),
and one value a measure (None where it does not apply).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

GROUPS = ("known", "unseen")
DISTRACTORS = 19
RESAMPLES = 10_000


@dataclass(frozen=True)
class Measure:
    """A column: its key in a record, title, digits, and what a failed run counts as (None: it is left out)."""

    key: str
    title: str
    digits: int = 2
    if_failed: float | None = None


QUALITY = (
    Measure("top1", "retrieval of 20", 2, 0.0),
    Measure("top1_same_colour", "same, one colour", 2, 0.0),
    Measure("similarity", "similarity", 3),
    Measure("colour", "colour right", 2, 0.0),
    Measure("janus", "Janus rate", 2),
)
SHAPE = (
    Measure("dnc", "depth-normal consistency", 3),
    Measure("valid", "valid mesh", 2, 0.0),
    Measure("parts", "parts", 1),
)
COST = (
    Measure("iou", "export IoU", 3, 0.0),
    Measure("psnr", "export PSNR, dB", 1),
    Measure("seconds", "seconds", 0),
    Measure("peak_memory_mib", "peak MiB", 0),
)
AIMS = (("known", "top1", 0.6), ("unseen", "top1", 0.4), ("known", "iou", 0.9))


def interleaved(known: Sequence[str], unseen: Sequence[str]) -> list[tuple[str, str]]:
    """(group, prompt) of both lists, each spread evenly: every beginning of the list holds both in proportion."""
    places = [((i + 0.5) / len(known), "known", p) for i, p in enumerate(known)]
    places += [((i + 0.5) / len(unseen), "unseen", p) for i, p in enumerate(unseen)]
    return [(group, prompt) for _, group, prompt in sorted(places, key=lambda place: place[:2])]


def plan(
    prompts: Sequence[tuple[str, str]], seeds: int, methods: Sequence[str], count: int | None = None
) -> list[tuple[str, str, str, int]]:
    """(method, group, prompt, seed) in the order of running: all methods of a prompt, all prompts of a seed, all seeds.

    A run that stops early thus compares the methods on the same prompts, up to the last one.
    """
    return [(m, group, prompt, seed) for seed in range(seeds) for group, prompt in prompts[:count] for m in methods]


def noun_of(prompt: str) -> str:
    """Benchmark prompts end with their noun."""
    return prompt.split()[-1]


def distractors(prompt: str, prompts: Sequence[str], count: int = DISTRACTORS) -> list[str]:
    """`count` other prompts of the same list with other nouns; the prompt alone decides which."""
    others = sorted(p for p in prompts if noun_of(p) != noun_of(prompt))
    return random.Random(prompt).sample(others, count)


def in_the_same_colour(prompt: str, others: Sequence[str]) -> list[str]:
    """The prompt's own adjective with the others' nouns: then only the shape decides."""
    adjective = prompt.split()[-2]
    return [f"{article(adjective)} {adjective} {noun_of(other)}" for other in others]


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def cluster_bootstrap(
    clusters: Sequence[Sequence[float]], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float] | None:
    """Mean of all values and its 95 % percentile interval when whole clusters are drawn again with replacement.

    A prompt's seeds are one cluster: they fail together. None without values; with one cluster the interval is the mean
    and says nothing.
    """
    filled = [c for c in clusters if len(c)]
    if not filled:
        return None
    sums, counts = np.array([sum(c) for c in filled], dtype=float), np.array([len(c) for c in filled])
    drawn = np.random.default_rng(seed).integers(len(filled), size=(resamples, len(filled)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def value_of(record: Mapping[str, Any], measure: Measure) -> float | None:
    """A record's value of a measure as a number; None where it does not count."""
    if record["failed"] is not None:
        # A measure that does not apply to a prompt (the colour of "a wooden barrel") does not apply to its failure.
        return None if record.get(measure.key, 0) is None else measure.if_failed
    value = record.get(measure.key)
    return None if value is None else float(value)


def aggregate(records: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """One row a method and group: runs, prompts, failures, and per measure mean, low, high and count (or None)."""
    rows = []
    for group in GROUPS:
        for method in methods:
            mine = [r for r in records if r["method"] == method and r["group"] == group]
            prompts = sorted({r["prompt"] for r in mine})
            row: dict[str, Any] = {
                "method": method,
                "group": group,
                "runs": len(mine),
                "prompts": len(prompts),
                "failures": sum(r["failed"] is not None for r in mine),
            }
            for measure in (*QUALITY, *SHAPE, *COST):
                clusters = [
                    [v for r in mine if r["prompt"] == p and (v := value_of(r, measure)) is not None] for p in prompts
                ]
                found = cluster_bootstrap(clusters)
                count = sum(len(c) for c in clusters)
                spread = sum(len(c) > 0 for c in clusters)
                row[measure.key] = found and {
                    **dict(zip(("mean", "low", "high"), found)),
                    "count": count,
                    "prompts": spread,
                }
            rows.append(row)
    return rows


def differences(
    records: Sequence[Mapping[str, Any]], methods: Sequence[str], against: str, measures: Sequence[Measure]
) -> list[dict[str, Any]]:
    """One row a method: per measure its mean difference to row `against` over the runs (prompt and seed) that both
    have, known and unseen prompts together, with the interval of a bootstrap over prompts; None without such runs."""
    base = {(r["prompt"], r["seed"]): r for r in records if r["method"] == against}
    rows = []
    for method in methods:
        if method == against:
            continue
        mine = [r for r in records if r["method"] == method]
        pairs = [(r, b) for r in mine if (b := base.get((r["prompt"], r["seed"]))) is not None]
        row: dict[str, Any] = {"method": method, "pairs": len(pairs)}
        for measure in measures:
            by_prompt: dict[str, list[float]] = {}
            for one, other in pairs:
                a, b = value_of(one, measure), value_of(other, measure)
                if a is not None and b is not None:
                    by_prompt.setdefault(one["prompt"], []).append(a - b)
            found = cluster_bootstrap(list(by_prompt.values()))
            row[measure.key] = found and {
                **dict(zip(("mean", "low", "high"), found)),
                "count": sum(map(len, by_prompt.values())),
                "prompts": len(by_prompt),
            }
        rows.append(row)
    return rows


def best_of_name(method: str, count: int) -> str:
    return f"{method}, best of {count}"


def best_of_seeds(records: Sequence[Mapping[str, Any]], methods: Sequence[str], count: int) -> list[dict[str, Any]]:
    """What one would keep who made every prompt with `count` seeds and took the one that the reward judge likes best.

    Records of the rows `best_of_name(method, count)`, one a prompt that has all its seeds, with the price of them all.
    A failed seed is never kept unless all failed. Methods without the reward judge's score have none.
    """
    kept = []
    for method in methods:
        mine = [r for r in records if r["method"] == method and r["seed"] < count]
        for prompt in dict.fromkeys(r["prompt"] for r in mine):
            seeds = [r for r in mine if r["prompt"] == prompt]
            if len(seeds) < count or any(r["failed"] is None and "reward" not in r for r in seeds):
                continue
            best = max(seeds, key=lambda r: r.get("reward", -2.0))
            price = {"seconds": round(sum(r.get("seconds", 0.0) for r in seeds), 2)} if "seconds" in best else {}
            kept.append({**best, "method": best_of_name(method, count), **price})
    return kept


def cell(value: Mapping[str, float] | None, measure: Measure) -> str:
    """ "0.61 [0.50, 0.72]", or "–" where there is nothing to say; the Janus rate with the number it rests on."""
    if value is None:
        return "–"
    d = measure.digits
    rests = f" of {value['count']}" if measure.key == "janus" else ""
    mean = f"{value['mean']:.{d}f}{rests}"
    return mean if value["prompts"] < 2 else f"{mean} [{value['low']:.{d}f}, {value['high']:.{d}f}]"


def table(rows: Sequence[Mapping[str, Any]], measures: Sequence[Measure], whole: int) -> str:
    """Markdown; a row of `whole` runs is complete."""
    lines = ["| method | runs | failed | " + " | ".join(m.title for m in measures) + " |"]
    lines.append("|---" * (3 + len(measures)) + "|")
    for row in rows:
        cells = [row["method"], f"{row['runs']} of {whole // row.get('best_of', 1)}", str(row["failures"])]
        lines.append("| " + " | ".join(cells + [cell(row[m.key], m) for m in measures]) + " |")
    return "\n".join(lines)


def difference_table(rows: Sequence[Mapping[str, Any]], measures: Sequence[Measure]) -> str:
    """Markdown; a difference whose interval leaves out zero is bold."""
    lines = ["| method | pairs | " + " | ".join(m.title for m in measures) + " |", "|---" * (2 + len(measures)) + "|"]
    for row in rows:
        cells = [row["method"], str(row["pairs"])]
        for measure in measures:
            value, d = row[measure.key], measure.digits
            if value is None:
                cells.append("–")
                continue
            sure = value["prompts"] > 1 and value["low"] * value["high"] > 0
            mean = f"**{value['mean']:+.{d}f}**" if sure else f"{value['mean']:+.{d}f}"
            wide = f" [{value['low']:+.{d}f}, {value['high']:+.{d}f}]" if value["prompts"] > 1 else ""
            cells.append(mean + wide)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def budget_table(budget: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = ["| method | one draft, CPU s | one step, CPU s | drafts | steps |", "|---|---:|---:|---:|---:|"]
    for name, row in budget["rows"].items():
        costs = f"{row['draft_seconds']:.1f} | {row['step_seconds']:.3f}"
        lines.append(f"| {name} | {costs} | {row['best_of']} | {row['steps']} |")
    return "\n".join(lines)


def aims(rows: Sequence[Mapping[str, Any]], method: str = "default") -> list[str]:
    """What was aimed at and what came, a Markdown list item each."""
    titles = {m.key: m.title for m in (*QUALITY, *COST)}
    lines = []
    for group, key, least in AIMS:
        found = next((r[key] for r in rows if r["method"] == method and r["group"] == group), None)
        came = "not measured"
        if found is not None:
            came = f"{found['mean']:.2f}, {'met' if found['mean'] >= least else 'missed'}"
        lines.append(f"- {titles[key]}, {group} prompts: aim {least:g}, {came}")
    return lines


TITLES = {
    "known": "Known prompts: {count} from the words and pairs of the training data",
    "unseen": "Unseen pairs: {count} of known words that no training caption or recolouring shows together",
}


def page(results: Mapping[str, Any], picture: str | None) -> str:
    """The benchmark's page from the content of results.json; `picture` is a link relative to the page."""
    rows, made = results["rows"], results["made"]
    named = {row["method"] for row in rows}
    parts = [
        "# Text to 3D: what comes out, measured",
        "Written by `tools/bench_text_to_3d.py`; do not edit. Numbers are means with 95 % intervals of a bootstrap over"
        " prompts (all seeds of a prompt together).",
        *(["\n".join(["Aims of the `default` row:", "", *aims(rows)])] if named & {"default"} else []),
        "The judge that measures here makes mistakes of its own: what it reaches on renders of real, unseen assets"
        f" {_real(results.get('gold_on_renders'))}.",
    ]
    full = results["full"]
    whole = {group: full[group] * full["seeds"] for group in GROUPS}
    made_rows = [r for r in rows if not r.get("best_of")]
    counts = {m: sum(r["runs"] for r in made_rows if r["method"] == m) for m in {r["method"]: 0 for r in made_rows}}
    if min(counts.values(), default=0) < sum(whole.values()):
        said = ", ".join(f"{method} {count}" for method, count in counts.items())
        parts.append(f"**A part of the benchmark**: of {sum(whole.values())} runs a row, {said} are made.")
    if picture:
        parts.append(f"![One row a method, one column a prompt, the same camera]({picture})")
        parts.append(
            "Rows: " + ", ".join(results["picture"]["methods"]) + ". Seed 0, the first prompts of the fixed order."
        )
    if results.get("budget"):
        parts += [
            "## Equal time",
            f"Every row has {results['budget']['seconds']:g} CPU seconds of one thread for its drafts (views and lift)"
            " and its distillation; the mesh, the pictures and the scores come on top, the same for all.",
            budget_table(results["budget"]),
        ]
    for group in GROUPS:
        mine = [r for r in rows if r["group"] == group]
        title = TITLES[group].format(count=full[group])
        parts += [f"## {title}", table(mine, QUALITY, whole[group])]
        if any(r.get(m.key) for r in mine for m in SHAPE):
            parts.append(table(mine, SHAPE, whole[group]))
        parts.append(table(mine, COST, whole[group]))
    for compared in results.get("against") or ():
        parts += [
            f"## Against {compared['row']}",
            "Mean differences over the runs that both have, known and unseen prompts together, with 95 % intervals of a"
            " bootstrap over prompts; bold where the interval leaves out zero.",
            difference_table(compared["rows"], (*QUALITY, *SHAPE)),
        ]
    parts += ["## How to read it", NOTES.format(distractors=DISTRACTORS, janus=_janus(results))]
    failed = [r for r in results["records"] if r["failed"] is not None]
    if failed:
        parts += [
            "## Failures",
            "\n".join(f"- {r['method']}, “{r['prompt']}”, seed {r['seed']}: {r['failed']}" for r in failed[:50]),
        ]
    machine = made["environment"]
    packages = ", ".join(f"{k} {v}" for k, v in machine["packages"].items())
    sums = "\n".join(f"| {n} | {f} | `{s[:16]}…` |" for n, files in made["models"].items() for f, s in files.items())
    parts += [
        "## What produced it",
        f"    {made['command']}",
        f"- revision: {made['revision'] or 'unknown'}\n- prior: {made['prior']}\n- machine: {machine['cpu']},"
        f" {machine['cpus']} CPUs, {machine.get('torch_threads', '?')} torch threads, {machine['platform']}\n"
        f"- Python {machine['python']}, {packages}",
        "| embedded model | file | SHA-256 |\n|---|---|---|\n" + sums,
    ]
    return "\n\n".join(parts) + "\n"


def _janus(results: Mapping[str, Any]) -> str:
    """Which prompts the Janus rate rests on, and its errors on real renders."""
    found = results.get("janus_on_renders")
    if not found or not found["nouns"]:
        return "No noun has a threshold, so the column is empty."
    prompts = found["prompts"]
    said = " and ".join(f"{prompts[group]} of {results['full'][group]} {group}" for group in GROUPS)
    left, val = (found[part] for part in ("train_left_out", "val"))
    return (
        f"Only nouns count whose real assets have a back of their own ({', '.join(found['nouns'])}):\n  {said} prompts."
        f" It errs: of renders of {left['assets']} real training assets, each left out of its own threshold,\n  it"
        f" calls {_share(left['real'])}, and of copies with the front seen again at the back it finds"
        f" {_share(left['again'])}."
        f"\n  Val has {val['assets']} assets of these nouns: {val['real'][0]:.2f} called, {val['again'][0]:.2f} of the"
        " copies found (`assets/judge_gold/README.md`).\n"
        "  A rate no higher than the false calls says nothing against a method."
    )


def _share(value: Sequence[float]) -> str:
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"


def _real(evaluation: Mapping[str, Any] | None) -> str:
    if not evaluation:
        return "is in its model card, `assets/judge_gold/README.md`"
    said = {
        "caption_of_20": "retrieval of 20",
        "noun_of_20_same_colour": "same, one colour",
        "colour_head_of_13": "colour right",
    }
    numbers = [f"{said[k]} {evaluation[k][0]:.2f}" for k in said if evaluation.get(k)]
    return f"is {', '.join(numbers)} (from its model card, `assets/judge_gold/README.md`, with its own 19 distractors)"


NOTES = """\
- **views** are the prior's own 4 views, judged as they are: what a perfect lift would keep, and no asset.
  They are framed as the judge frames assets, but they carry the prior's light, not the judge's.
- **draft**, **default**: the presets of `rl3d generate`; **best-of-4**: the default with 4 candidates, of which the
  reward judge picks one. **x, best of 3**: of the three seeds of row x the one whose finished asset the reward judge
  likes best, at the price of all three. The gold judge, which measures here, has no say in any of them.
- **retrieval of 20**: the written GLB, rendered as the gold judge looks at assets, is closer to its own prompt
  than to {distractors} other prompts of the same list, none with the same noun (chance 0.05). **same, one colour**: all
  20 captions carry the prompt's adjective, so that colour cannot help. **similarity**: cosine, in [-1, 1].
- **colour right**: the judge's colour head, which does not see the prompt, names the prompt's colour (chance 0.08);
  prompts without a colour word do not count.
- **Janus rate**, the lower the better: the front is shown again at the back. The gold judge finds the two views more
  alike (the back plain or mirrored) than real assets of the noun are. {janus}
- **depth-normal consistency**, in [-1, 1]: how far the normals of the distilled scene, rendered, are those of its
  rendered depth. **valid mesh**: watertight, wound consistently, no non-manifold edge. **parts**: pieces of the mesh
  that share no vertex.
- **export**: the GLB, read back and rendered, against the splats in memory, from cameras that neither was made with.
- **seconds, peak MiB**: of all stages, without loading the models; memory is the whole process's.
- A failed run counts as 0 in the retrieval, the colour and the IoU; it is left out of the other columns.
- An interval of a row at 0 or 1 has no width; that is the bootstrap's, not certainty.
- The gold judge shares the training data with the prior, so a fault of the data is shared.
- Runs are made in a fixed order, known and unseen prompts interleaved, so a table that is not complete is balanced."""
