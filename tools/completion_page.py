"""The page of tools/bench_completion.py: tables, and gains with intervals by bootstrap over shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
from bench_tables import cluster_bootstrap

MEASURES = (("cd_l1", "CD-l1 x 1000", 1000.0, 1), ("cd_l2", "CD-l2 x 1000", 1000.0, 2), ("f1", "F@1 %", 1.0, 3))
METHODS = {
    "input": "the input",
    "autoencoder": "autoencoder, Dec(E(P))",
    "search": "hill climbing, equal calls",
    "generator": "best of the generator, equal calls",
    "search64": "hill climbing, 64 calls",
    "td3": "agent by TD3",
    "agent": "agent",
    "selected": "agent + selector",
    "autoencoder_joined": "autoencoder + the input's points",
    "selected_joined": "agent + selector + the input's points (what is written)",
    "agent_joined": "agent + the input's points (`--always`)",
}

TITLES = {
    **{f"view{p}": f"View crop, {p} % gone" for p in (25, 50, 75)},
    **{f"ball{p}": f"Ball crop, {p} % gone" for p in (20, 30, 40, 50, 60, 70)},
    "look": "One depth view",
}


def by_shape(row: dict[str, Any], values: list[float]) -> list[list[float]]:
    """One cluster a shape."""
    return [values[i :: row["shapes"]] for i in range(row["shapes"])]


def mean_of(row: dict[str, Any], method: str, measure: str) -> tuple[float, float, float]:
    found = cluster_bootstrap(by_shape(row, row["methods"][method][measure]))
    assert found is not None
    return found


def gain_of(row: dict[str, Any], method: str, other: str, measure: str = "cd_l1") -> tuple[float, float, float]:
    """1 - mean(method) / mean(other), with the interval of a bootstrap over shapes of the paired ratio."""
    a, b = (np.array(by_shape(row, row["methods"][m][measure])).mean(1) for m in (method, other))
    drawn = np.random.default_rng(0).integers(len(a), size=(10_000, len(a)))
    low, high = np.percentile(1 - a[drawn].mean(1) / b[drawn].mean(1), [2.5, 97.5])
    return float(1 - a.mean() / b.mean()), float(low), float(high)


def no_worse(row: dict[str, Any], method: str, other: str) -> float:
    a, b = (row["methods"][m]["cd_l1"] for m in (method, other))
    return sum(x <= y for x, y in zip(a, b)) / len(a)


def percent(found: tuple[float, float, float]) -> str:
    return f"{100 * found[0]:.1f} % [{100 * found[1]:.1f}, {100 * found[2]:.1f}]"


def table(row: dict[str, Any], methods: dict[str, str] = METHODS) -> str:
    lines = ["| method | " + " | ".join(title for _, title, _, _ in MEASURES) + " | missing x 1000 | excess x 1000 |"]
    lines.append("|---" * (len(MEASURES) + 3) + "|")
    for key, name in methods.items():
        if key not in row["methods"]:
            continue
        cells = []
        for measure, _, scale, digits in (*MEASURES, ("missing", "", 1000.0, 1), ("excess", "", 1000.0, 1)):
            mean, low, high = (scale * v for v in mean_of(row, key, measure))
            cells.append(f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


HEAD = """# Benchmark: point-cloud completion

Written by `tools/bench_completion.py`; do not edit. {shapes} shapes of the val split, which no model was trained or
tuned on, in their own frame (as ShapeNet-55 and PCN do). Inputs of 2,048 points: *view crops* (PoinTr's protocol: of
8,192 points the share nearest to one of the viewpoints (+-1, +-1, +-1) is taken away; every other one), *ball crops*
(RL-GAN-Net's: the share nearest to a random point), and *depth views* (what one camera of the renderer sees). Truth:
8,192 points. Lengths are in units of the shape's longest side. CD-l1: the mean over both directions of the mean
distance; CD-l2: the sum of both mean squared distances; F@1 %: at 0.01; missing: from the truth to the cloud; excess:
the other way. Means with 95 % intervals of a bootstrap over shapes.

A decoded cloud has 2,048 points; even 2,048 points drawn from the truth itself have a CD-l1 of {floor:.1f} and an F of
{ceiling:.2f}. "Equal calls": {calls} decoder calls, as many as the agent makes.

A first table of the 25 % view crops showed that the written cloud was farther from the truth than the input; how far
from the visible points a decoded one must lie to be written was then chosen anew, on training shapes. Nothing else was
changed after a look at these shapes."""


def page(results: dict[str, Any]) -> str:
    """Markdown."""
    first = results["view50"]
    floor = results["floor"]
    parts = [
        HEAD.format(
            shapes=first["shapes"],
            calls=first["calls"],
            floor=1000 * float(np.mean(floor["cd_l1"])),
            ceiling=float(np.mean(floor["f1"])),
        ),
        "![Rows: input, autoencoder, agent with selector, agent, truth](../images/completion.png)",
        "*Ten shapes evenly through the val split, half gone by a view crop, nothing picked. Rows: the input, the "
        "autoencoder, the agent with the selector, the agent alone, the truth.*",
        "## The agent's gain in CD-l1",
        gains(results),
        "followed: how much of the agent's way the selector takes, on average. no worse: share of the cases in which "
        "CD-l1 is not above the autoencoder's; the selector promises that no evidence is worse, not this.",
    ]
    for key, title in TITLES.items():
        if key in results:
            parts += [f"## {title}", table(results[key])]
    if "unknown" in results:
        row = results["unknown"]
        parts += [
            "## Frame unknown",
            f"As `rl3d complete` works: a view crop of half the points, turned by a random angle, of which neither box "
            f"nor heading is known; every third shape. The selector followed {100 * row['followed']:.0f} % of the "
            f"agent's way. {np.mean(row['cpu_ms']['agent']):.0f} ms of one thread a cloud.",
            table(row, UNKNOWN),
        ]
    parts += ["## Time", times(first)]
    return "\n\n".join(parts) + "\n"


UNKNOWN = {
    "input": "the input",
    "autoencoder": "autoencoder",
    "autoencoder_joined": "autoencoder + the input's points",
    "agent": "agent + selector",
    "agent_joined": "agent + selector + the input's points (what is written)",
    "always": "agent",
    "always_joined": "agent + the input's points (`--always`)",
}


def gains(results: dict[str, Any]) -> str:
    lines = [
        "| | agent below autoencoder | agent + selector below autoencoder | agent below hill climbing at equal calls "
        "| followed | no worse: agent | no worse: agent + selector |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, title in TITLES.items():
        if key not in results:
            continue
        row = results[key]
        cells = [percent(gain_of(row, m, o)) for m, o in (("agent", "autoencoder"), ("selected", "autoencoder"))]
        cells.append(percent(gain_of(row, "agent", "search")))
        cells.append(f"{100 * np.mean(row['followed']):.0f} %")
        cells += [f"{100 * no_worse(row, m, 'autoencoder'):.0f} %" for m in ("agent", "selected")]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def times(row: dict[str, Any]) -> str:
    lines = [
        "CPU ms of one thread a shape, all shapes in one batch, without files:",
        "",
        "| method | ms |",
        "|---|---|",
    ]
    for name, title in METHODS.items():
        if name in row["cpu_ms"]:
            lines.append(f"| {title} | {np.mean(row['cpu_ms'][name]):.1f} |")
    return "\n".join(lines)
