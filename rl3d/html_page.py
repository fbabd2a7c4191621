"""Pages that people open in a browser: one file without scripts or network, pictures inside, curves as SVG."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 170, 58, 14, 14, 26  # of a chart and its margins, in SVG units
LINES = ("#1f6fb2", "#c2571a")
ALARM, BEST = "#c0182b", "#1b8a3d"
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


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page; `title` is escaped, `parts` are HTML."""
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def picture(path: Path, kind: str, about: str) -> str:
    """An image file inside the page; `kind`: its MIME type."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:{kind};base64,{data}" alt="{escape(about)}">'


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


def text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " x ".join(map(text, value)) if isinstance(value, list | tuple) else str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    top = row(head, "th") if any(head) else ""
    return f"<table>{top}{''.join(row(cells, 'td') for cells in rows)}</table>"


def bullets(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
