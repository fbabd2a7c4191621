"""report.html of a run of text to 3D."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from rl3d.files import atomic_write_text
from rl3d.html_page import Chart, bullets, document, picture, svg, table, text
from rl3d.text_to_3d.alarms import COLOUR, FACES, FLOATING, GROWN, SETTLED, SPILL, History, drifts

PAGE = "report.html"
LEGEND = "Over steps. Red bar: an alarm; dashed: what is allowed; green bar: the kept state; grey: does not count yet."


def charts(history: History, guard: Mapping[str, Any] | None) -> list[Chart]:
    """The curves of a run's looks; `guard`: what report.json says about them, None where nobody looked."""
    if guard is None:
        return []
    looks = history.looks
    seen = [(look.step, drifts(history.until(i + 1))) for i, look in enumerate(looks)]

    def curve(name: str) -> list[tuple[int, float]]:
        return [(step, numbers[name]) for step, numbers in seen if name in numbers]

    def rang(*kinds: str) -> list[int]:
        return [alarm["step"] for alarm in guard["alarms"] if alarm["kind"] in kinds]

    divergence = rang("reward up, guard down")
    start, area = seen[0][1], curve("coverage")
    drawn = [
        Chart("optimised: " + str(guard["reward"]), {"reward": curve("reward")}, None, divergence),
        Chart("watched: " + guard["guard"], {"guard": curve("guard")}, None, divergence),
        Chart("mean colour's distance from the start's", {"colour": curve("colour")}, COLOUR, rang("colour drift")),
        Chart(
            "share of what is seen outside the first silhouettes, and on the border",
            {"outside": curve("spill"), "border": curve("border")},
            SPILL,
            rang("background drift"),
        ),
        Chart(
            "area of the silhouettes, of the start's",
            {"area": area},
            1 + GROWN if area[-1][1] >= 1 else 1 - GROWN,
            rang("background drift"),
        ),
        Chart(
            "share of the mass beside the main body",
            {"floating": curve("floating")},
            FLOATING + start["floating"],
            rang("floaters"),
        ),
        Chart("how unlike opposite views are, of the start's", {"faces": curve("faces")}, FACES, rang("two faces")),
    ]
    marks = {"best": guard["kept_step"], "after": SETTLED * history.steps}
    return [replace(chart, **marks) for chart in drawn if any(chart.curves.values())]


def write_page(folder: Path, report: Mapping[str, Any], charts: Sequence[Chart]) -> None:
    """Write report.html into a run folder, atomically.

    Args:
        report: what report.json will hold. charts: in the order of the page.

    Raises:
        InputError: the folder cannot be written.
    """
    atomic_write_text(folder / PAGE, page(report, charts, _pictures(folder)))


def page(report: Mapping[str, Any], charts: Sequence[Chart], pictures: Sequence[str]) -> str:
    """The page's HTML; `pictures`: image elements. Every text that came from outside is escaped."""
    prompt = escape(str(report["prompt"]))
    parts = [
        f"<h1>{prompt}</h1>",
        f'<p class="quiet">{escape(_subtitle(report))}</p>',
        *pictures,
        "<h2>Alarms</h2>",
        _alarms(report.get("guard")),
        *([f"<h2>While it was optimised</h2><p class='quiet'>{LEGEND}</p>", *map(svg, charts)] if charts else []),
        "<h2>Judges</h2>",
        table(("judge", "similarity", "rank of 20", "probability", "colour"), _judge_rows(report["judges"])),
        '<p class="quiet">The gold judge only measures; nothing was optimised, chosen or stopped by it.</p>',
        "<h2>Mesh</h2>",
        table(("", ""), [(k.replace("_", " "), text(v)) for k, v in report["mesh"].items()]),
        "<h2>Stages</h2>",
        table(
            ("stage", "seconds", "peak MiB"),
            [(k, text(v["seconds"]), text(v["peak_memory_mib"])) for k, v in report["stages"].items()],
        ),
        "<h2>Warnings</h2>",
        bullets(report["warnings"]) if report["warnings"] else "<p>None.</p>",
        "<h2>Configuration</h2>",
        f"<pre>{escape(json.dumps(report['config'], indent=2, ensure_ascii=False))}</pre>",
    ]
    return document(str(report["prompt"]), parts)


def _subtitle(report: Mapping[str, Any]) -> str:
    method = report["method"]
    reward = f", optimising {method['reward']['name']}" if "reward" in method else ""
    return f"seed {report['seed']}, prior {report['prior']['name']}, method {method['name']}{reward}"


def _alarms(guard: Mapping[str, Any] | None) -> str:
    if guard is None:
        return "<p>Nobody watched: there was nothing to distil, or guard.every is 0.</p>"
    watched = f"<p>{escape(guard['about'])}</p>"
    if not guard["alarms"]:
        return watched + f"<p>None in {guard['looks']} looks.</p>"
    rang = [f"step {alarm['step']}, {alarm['kind']}: {alarm['message']}" for alarm in guard["alarms"]]
    return watched + f'<div class="alarm">{bullets(rang)}</div>'


def _judge_rows(judges: Mapping[str, Any]) -> list[tuple[str, ...]]:
    keys = ("similarity", "rank_of_20", "probability", "colour")
    found = {name: verdict for name, verdict in judges.items() if isinstance(verdict, Mapping)}
    return [(name, *(text(verdict.get(key, "")) for key in keys)) for name, verdict in found.items()]


def _pictures(folder: Path) -> list[str]:
    """The run's pictures as elements of the page; those that are not there are left out."""
    wanted = {
        "a turn around the mesh": ("turntable.webp", "image/webp"),
        "four views of the optimised scene above, of the written mesh below": ("views.png", "image/png"),
    }
    return [picture(folder / file, kind, about) for about, (file, kind) in wanted.items() if (folder / file).exists()]
