"""report.html of a fine-tuning run: curves over rounds; the same samples at the start, at the best and at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rl3d.files import atomic_write_text
from rl3d.html_page import Chart, bullets, document, picture, svg, table, text
from rl3d.multiview.looks import FOLDER

PAGE = "report.html"
LEGEND = "Over rounds. Dashed: the budget; green bar: the kept state."
SHARES = ("rollout", "reward", "update")  # of a round's time; the reward's is what no drawing hid
SECONDS = (*(f"seconds_{part}" for part in SHARES), "seconds_reward_hidden")


def report_of(
    config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], stopped: str | None, best: tuple[int, float] | None
) -> dict[str, Any]:
    """What report.json says.

    Args:
        rows: of metrics.jsonl. stopped: why the run ended early. best: (round, guard's score) of the best look.
    """
    rounds = [row for row in rows if row["stage"] == "round"]
    seconds = {k: sum(row.get(k, 0.0) for row in rounds) for k in SECONDS}
    whole = sum(seconds[f"seconds_{k}"] for k in SHARES)
    return {
        "config": config,
        "rounds": len(rounds),
        "stopped": stopped,
        "best": None if best is None else {"round": best[0], "guard": best[1]},
        "looks": [row for row in rows if row["stage"] == "look"],
        "samples": len(rounds) * config["prompts_per_round"] * config["group"],
        **seconds,
        "shares": {k: seconds[f"seconds_{k}"] / whole if whole else 0.0 for k in SHARES},
    }


def charts(rows: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> list[Chart]:
    """The curves of metrics.jsonl; empty ones are left out."""

    def curve(stage: str, name: str) -> list[tuple[int, float]]:
        found = [(row["step"], row.get(name)) for row in rows if row["stage"] == stage]
        return [(step, value) for step, value in found if isinstance(value, float | int)]  # an infinity is text

    best = None if report["best"] is None else report["best"]["round"]
    budget = report["config"]["watch"]["kl_budget"]
    drawn = [
        Chart(f"{report['config']['reward']}, of the rounds' samples", {"reward": curve("round", "reward")}, best=best),
        Chart("the same on fixed prompts and noise", {"reward": curve("look", "reward")}, best=best),
        Chart(f"watched: {report['config']['guard']}", {"guard": curve("look", "guard")}, best=best),
        Chart("distance of the predictions from the base's", {"distance": curve("round", "from_base")}, budget),
        Chart("norm of the gradient", {"gradient": curve("round", "gradient")}),
        Chart("share of groups whose rewards are all alike", {"silent": curve("round", "silent")}),
        Chart("samples a second", {"samples": curve("round", "samples_per_second")}),
    ]
    return [chart for chart in drawn if any(chart.curves.values())]


def shares(report: Mapping[str, Any]) -> str:
    """Where the rounds' time went, in words."""
    found = ", ".join(f"{name} {share:.0%}" for name, share in report["shares"].items())
    return f"Of the rounds' time: {found}. A reward's share is what no drawing hid."


def write_page(folder: Path, report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write report.html into a run folder, atomically.

    Args:
        report: what report.json holds. rows: of metrics.jsonl.
    """
    config = report["config"]
    title = f"{config['algorithm']} on {config['reward']}"
    best = report["best"]
    kept = "the last state" if best is None else f"round {best['round']} (guard {best['guard']:.4g})"
    ended = report["stopped"] or f"all {report['rounds']} rounds"
    about = f"prior {config['prior']}, seed {config['seed']}, {len(config['prompts'])} prompts"
    looks = sorted((folder / FOLDER).glob("round-*.png"))
    shown = {0: "before", len(looks) - 1: "at the end"}
    if best is not None:
        shown[next((i for i, p in enumerate(looks) if int(p.stem[6:]) == best["round"]), 0)] = "kept"
    pictures = [
        f"<h3>{escape(what)}: {looks[i].stem.replace('-', ' ')}</h3>" + picture(looks[i], "image/png", what)
        for i, what in sorted(shown.items())
        if looks
    ]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(about)}</p>',
        bullets([f"kept: {kept}", f"ended: {ended}"]),
        f"<h2>While it was tuned</h2><p class='quiet'>{LEGEND}</p>",
        *map(svg, charts(rows, report)),
        *(["<h2>The same prompts, cameras and noise</h2>", *pictures] if pictures else []),
        "<h2>Spent</h2>",
        table(("", ""), [(name.replace("_", " "), text(report[name])) for name in ("samples", *SECONDS)]),
        f"<p class='quiet'>{escape(shares(report))}</p>",
        "<h2>Configuration</h2>",
        f"<pre>{escape(json.dumps(config, indent=2, ensure_ascii=False))}</pre>",
    ]
    atomic_write_text(folder / PAGE, document(title, parts))
