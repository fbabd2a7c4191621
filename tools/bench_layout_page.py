"""The page of tools/bench_layout.py from what it measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from bench_tables import cluster_bootstrap

from rl3d.agents.layout.inventory import ROOM_TYPES

COLUMNS = (
    ("score", "score", 3),
    ("rules", "rules kept", 2),
    ("navigability", "navigable", 3),
    ("accessibility", "accessible", 2),
    ("placed", "placed", 3),
    ("objects", "pieces", 1),
    ("collisions", "collisions", 0),
    ("outside", "outside", 0),
    ("door", "in the door", 0),
)
PAIRS = (
    ("policy-64", "random-64"),
    ("policy-64", "greedy-12"),
    ("policy-64", "anneal-64"),
    ("polish-64", "policy-64"),
    ("polish-64", "anneal-64"),
    ("rlss-12", "greedy-12"),
    ("policy-64", "rlss-12"),
    ("rlss-64", "greedy-64"),
    ("policy-64", "rlss-64"),
    ("policy-64", "greedy-64"),
    ("polish-216", "anneal-384"),
    ("policy-64", "anneal-384"),
    ("policy-1", "anneal-64"),
    ("policy-16", "greedy-64"),
    ("policy-16", "rlss-64"),
)
# The aim: navigability and rules above annealing that is given 50 times the policy's time.
AIMS = (
    ("policy-1", "anneal-1200"),
    ("policy-16", "anneal-384"),
    ("policy-16", "anneal-1200"),
    ("policy-16", "anneal-12000"),
)


def cell(values: list[float], digits: int) -> str:
    found = cluster_bootstrap([[value] for value in values])
    assert found is not None
    mean, low, high = found
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def apart(first: dict[str, Any], second: dict[str, Any], key: str) -> list[float]:
    """Differences of a measure, room by room; of the rooms that both have, the first ones of each type."""
    return [x - y for x, y in zip(first["measures"][key], second["measures"][key])]


def aims(results: dict[str, Any]) -> list[str]:
    """What was aimed at, and what came."""
    done = [results[key] for key in results["order"] if key in results]
    out, bad = (sum(sum(row["measures"][key]) for row in done) for key in ("outside", "collisions"))
    lines = [
        "",
        "Aims:",
        "",
        f"- no collision, nothing out of bounds: {bad:.0f} pieces collide and {out:.0f} stand out of bounds, in all "
        "rooms of all rows;",
        "- navigability and rules kept above annealing that has 50 times the policy's time. The multiple that it had, "
        "and the difference (positive: the policy is better):",
        "",
        "| | multiple | rooms | rules kept | navigable | score |",
        "|---|---|---|---|---|---|",
    ]
    for first, second in AIMS:
        if first in results and second in results:
            a, b = results[first], results[second]
            cells = " | ".join(cell(apart(a, b, key), 4) for key in ("rules", "navigability", "score"))
            lines.append(f"| {a['name']} less {b['name']} | {b['cpu_ms'] / a['cpu_ms']:.0f} | {b['rooms']} | {cells} |")
    return lines


def page(results: dict[str, Any], shown: str | None = None) -> str:
    """The benchmark's page, Markdown; `shown`: a picture, as a link relative to it."""
    done = [results[key] for key in results["order"] if key in results]
    rooms = max(row["rooms"] for row in done)
    lines = [
        "# Benchmark: room layout",
        "",
        f"{rooms} unseen rooms, {rooms // len(ROOM_TYPES)} of each type ({', '.join(ROOM_TYPES)}), drawn from a seed "
        "that training refuses. Means with 95 % bootstrap intervals over rooms. A reward call is one look at the "
        "objective of one room in any state; the policy makes none while it furnishes, so N tries cost N. CPU time is "
        "that of one thread, all rooms in one batch. `score` is the objective itself; other columns are measured from "
        "boxes in metres (rl3d.agents.layout.scene.measures). `different`: pieces that stand more than 0.5 m away or "
        "another way round in a second draw of the same room. RLSS: a trained policy picks the piece, a search its "
        "place; greedy takes the largest piece first and has the same search. A row of fewer rooms has the first ones "
        "of each type, and so have its differences. The machine was busy, so times are rough.",
        "",
        "| | reward calls | CPU ms a room | different | " + " | ".join(title for _, title, _ in COLUMNS) + " |",
        "|---|---|---|---|" + "---|" * len(COLUMNS),
    ]
    for row in done:
        cells = []
        for key, _, digits in COLUMNS:
            values = row["measures"][key]
            total = digits == 0 or key == "objects"
            if digits == 0:
                cells.append(f"{sum(values):.0f}")
            else:
                cells.append(f"{np.mean(values):.{digits}f}" if total else cell(values, digits))
        fewer = "" if row["rooms"] == rooms else f" ({row['rooms']} rooms)"
        lines.append(
            f"| {row['name']}{fewer} | {row['calls']:.0f} | {row['cpu_ms']:.0f} | {row['diversity']:.2f} | "
            + " | ".join(cells)
            + " |"
        )
    lines += aims(results)
    lines += ["", "Differences of the score, room by room (positive: the first is better):", ""]
    lines += ["| | reward calls | difference |", "|---|---|---|"]
    for first, second in PAIRS:
        if first in results and second in results:
            a, b = results[first], results[second]
            calls = f"{a['calls']:.0f} and {b['calls']:.0f}"
            lines.append(f"| {a['name']} less {b['name']} | {calls} | {cell(apart(a, b, 'score'), 4)} |")
    lines += ["", "Score by room type:", "", "| | " + " | ".join(ROOM_TYPES) + " |", "|---|" + "---|" * len(ROOM_TYPES)]
    for row in done:
        types, score = np.array(row["types"]), np.array(row["measures"]["score"])
        lines.append(
            f"| {row['name']} | " + " | ".join(f"{score[types == i].mean():.3f}" for i in range(len(ROOM_TYPES))) + " |"
        )
    if "speed" in results:
        lines += [
            "",
            "## Environment steps a second",
            "",
            "One thread, by CPU time; shares of one training step (PPO, 4 epochs).",
            "",
        ]
        lines += [
            "| rooms side by side | environment steps/s | with the policy | trained | environment | policy | update |",
            "|---|---|---|---|---|---|---|",
        ]
        for s in results["speed"]:
            whole = s["env"] + s["policy"] + s["update"]
            shares = " | ".join(f"{s[k] / whole:.0%}" for k in ("env", "policy", "update"))
            drawn = 1 / (s["env"] + s["policy"])
            lines.append(f"| {s['n']:.0f} | {1 / s['env']:.0f} | {drawn:.0f} | {1 / whole:.0f} | {shares} |")
        if "wrapped" in results:
            rate = {name: 1 / seconds for name, seconds in results["wrapped"].items()}
            best = max(1 / s["env"] for s in results["speed"])
            lines += [
                "",
                f"The same rooms one by one through the gymnasium adapter: {rate['sync']:.0f} environment steps/s in "
                f"gymnasium's SyncVectorEnv of 8, {rate['dummy']:.0f} in stable-baselines3's DummyVecEnv of 8. The "
                f"largest batch makes {best / rate['sync']:.0f} and {best / rate['dummy']:.0f} times as many. The "
                f"adapter's own batch of 256, which shows the same NumPy pictures as the single ones, makes "
                f"{rate['batch']:.0f}: {rate['batch'] / rate['sync']:.0f} and {rate['batch'] / rate['dummy']:.0f} "
                "times as many.",
            ]
    if "room" in results:
        times = [row["ms"] for row in results["room"]]
        lines += [
            "",
            "## One room",
            "",
            f"As `rl3d layout generate` furnishes it (best of 32): {np.mean(times):.0f} ms of one thread's CPU time, "
            f"{min(times):.0f} to {max(times):.0f} over {len(times)} rooms of all types; loading the policy, and "
            "writing files and pictures, apart.",
        ]
    if shown is not None:
        lines += [
            "",
            "## Pictures",
            "",
            f"![the first unseen room of each type, by four ways to furnish]({shown})",
            "",
            "*The first unseen room of each type, nothing picked; the number is the score.*",
        ]
    return "\n".join(lines) + "\n"
