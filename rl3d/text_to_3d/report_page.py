"""report.html: a run on one page. One file without scripts or network; pictures are inside, curves are SVG."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from rl3d.files import atomic_write_text
from rl3d.text_to_3d.alarms import COLOUR, FACES, FLOATING, GROWN, SETTLED, SPILL, History, drifts

PAGE = "report.html"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 170, 58, 14, 14, 26  # of a chart and its margins, in SVG units
LINES = ("#1f6fb2", "#c2571a")
ALARM, BEST = "#c0182b", "#1b8a3d"
LEGEND = "Over steps. Red bar: an alarm; dashed: what is allowed; green bar: the kept state; grey: does not count yet."
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .15rem 1.2rem .15rem 0; text-align: left; vertical-align: top }
th { font-weight: 600; color: #555 } img { max-width: 100%; background: #eee; border-radius: 4px }
.alarm { color: #c0182b } .quiet { color: #666 } svg { max-width: 100%; height: auto }
figure { display: inline-block; width: 27rem; vertical-align: top; margin: .4rem 1rem .4rem 0 }
figcaption { font-size: .85rem; color: #444 } pre { background: #f5f5f5; padding: .8rem; overflow-x: auto }
svg text { font: 11px system-ui, sans-serif; fill: #555 }
"""


@dataclass(frozen=True)
class Chart:
    """One picture of curves over steps.

    Attributes:
        title: said below it. curves: name -> (step, value) pairs. level: a threshold, drawn dashed.
        alarms: steps at which it rang. best: the kept state's step. after: the step before which nothing counts.
    """

    title: str
    curves: Mapping[str, Sequence[tuple[int, float]]]
    level: float | None = None
    alarms: Sequence[int] = ()
    best: int | None = None
    after: float = 0.0


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


def page(report: Mapping[str, Any], charts: Sequence[Chart], pictures: Mapping[str, str]) -> str:
    """The page's HTML; `pictures`: what each shows -> its data URI. Every text that came from outside is escaped."""
    prompt = escape(str(report["prompt"]))
    parts = [
        f"<h1>{prompt}</h1>",
        f'<p class="quiet">{escape(_subtitle(report))}</p>',
        *(f'<img src="{uri}" alt="{escape(name)}">' for name, uri in pictures.items()),
        "<h2>Alarms</h2>",
        _alarms(report.get("guard")),
        *([f"<h2>While it was optimised</h2><p class='quiet'>{LEGEND}</p>", *map(svg, charts)] if charts else []),
        "<h2>Judges</h2>",
        _table(("judge", "similarity", "rank of 20", "probability", "colour"), _judge_rows(report["judges"])),
        '<p class="quiet">The gold judge only measures; nothing was optimised, chosen or stopped by it.</p>',
        "<h2>Mesh</h2>",
        _table(("", ""), [(k.replace("_", " "), _text(v)) for k, v in report["mesh"].items()]),
        "<h2>Stages</h2>",
        _table(
            ("stage", "seconds", "peak MiB"),
            [(k, _text(v["seconds"]), _text(v["peak_memory_mib"])) for k, v in report["stages"].items()],
        ),
        "<h2>Warnings</h2>",
        _list(report["warnings"]) if report["warnings"] else "<p>None.</p>",
        "<h2>Configuration</h2>",
        f"<pre>{escape(json.dumps(report['config'], indent=2, ensure_ascii=False))}</pre>",
    ]
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{prompt}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def svg(chart: Chart) -> str:
    """A chart as a figure with inline SVG: curves, the threshold dashed, alarms as red bars, the kept step in green."""
    points = [p for curve in chart.curves.values() for p in curve]
    if not points:
        return ""
    last = max(max(step for step, _ in points), 1)
    values = [value for _, value in points] + ([] if chart.level is None else [chart.level])
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = low - room, high + room
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(step: float, value: float) -> tuple[float, float]:
        return LEFT + width * step / last, TOP + height * (high - value) / (high - low)

    shade = min(chart.after / last, 1) * width
    drawn = [f'<rect x="{LEFT}" y="{TOP}" width="{shade:.1f}" height="{height}" fill="#f2f2f2"/>'] if shade else []
    drawn += [f'<rect x="{LEFT}" y="{TOP}" width="{width}" height="{height}" fill="none" stroke="#bbb"/>']
    for value in (low + room, 0.5 * (low + high), high - room):
        y = at(0, value)[1]
        drawn.append(f'<line x1="{LEFT}" x2="{LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        drawn.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for step in (0, last // 2, last):
        drawn.append(f'<text x="{at(step, 0)[0]:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{step}</text>')
    if chart.level is not None:
        y = at(0, chart.level)[1]
        drawn.append(
            f'<line x1="{LEFT}" x2="{LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="{ALARM}" stroke-dasharray="5 4"/>'
        )
    marks = [(step, ALARM) for step in chart.alarms] + ([] if chart.best is None else [(chart.best, BEST)])
    for step, colour in marks:
        x = at(step, 0)[0]
        drawn.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + height}" stroke="{colour}" stroke-width="2"/>'
        )
    for i, (name, curve) in enumerate(chart.curves.items()):
        line = " ".join("{:.1f},{:.1f}".format(*at(*p)) for p in curve)
        colour = LINES[i % len(LINES)]
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(chart.curves) > 1:
            place = f'x="{LEFT + 24 + 70 * i}" y="{HEIGHT - 8}"'
            drawn.append(f'<text {place} style="fill: {colour}">{escape(name)}</text>')
    box = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">'
    return f"<figure>{box}{''.join(drawn)}</svg><figcaption>{escape(chart.title)}</figcaption></figure>"


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
    return watched + f'<div class="alarm">{_list(rang)}</div>'


def _judge_rows(judges: Mapping[str, Any]) -> list[tuple[str, ...]]:
    keys = ("similarity", "rank_of_20", "probability", "colour")
    found = {name: verdict for name, verdict in judges.items() if isinstance(verdict, Mapping)}
    return [(name, *(_text(verdict.get(key, "")) for key in keys)) for name, verdict in found.items()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " x ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    top = row(head, "th") if any(head) else ""
    return f"<table>{top}{''.join(row(cells, 'td') for cells in rows)}</table>"


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _pictures(folder: Path) -> dict[str, str]:
    """The run's pictures as data URIs; those that are not there are left out."""
    wanted = {
        "a turn around the mesh": ("turntable.webp", "image/webp"),
        "four views of the optimised scene above, of the written mesh below": ("views.png", "image/png"),
    }
    found = {name: (folder / file, kind) for name, (file, kind) in wanted.items() if (folder / file).exists()}
    return {
        name: f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
        for name, (path, kind) in found.items()
    }
