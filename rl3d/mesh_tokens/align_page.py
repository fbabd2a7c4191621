"""report.html of an alignment run, offline or online: curves, and some of the shapes drawn before and after it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rl3d.files import atomic_write_text
from rl3d.html_page import Chart, bullets, document, svg, table, text
from rl3d.mesh_tokens.candidates import condition_of
from rl3d.mesh_tokens.model import MeshLM
from rl3d.mesh_tokens.pair_files import Shape
from rl3d.mesh_tokens.pairs import METRICS
from rl3d.mesh_tokens.sampling import SampleOptions, sample
from rl3d.preview import to_uint8
from rl3d.wireframe import wireframe

SHOWN, SIZE, AZIMUTH = 3, 240, 0.6


@dataclass(frozen=True)
class Looks:
    """Some shapes, and wireframes [3, SIZE, SIZE] of what the model made of them before."""

    shapes: tuple[Shape, ...]
    before: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: MeshLM, shapes: Iterable[Shape]) -> Looks:
        """The first few of the shapes."""
        few = tuple(islice(shapes, SHOWN))
        return cls(few, drawn(model, few))

    def after(self, model: MeshLM) -> list[tuple[Shape, Tensor, Tensor]]:
        """(shape, before, after) of each."""
        return list(zip(self.shapes, self.before, drawn(model, self.shapes)))


def drawn(model: MeshLM, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """A wireframe of the likeliest tokens for each shape; grey where that gives no mesh."""
    most = max(shape.faces for shape in shapes)
    how = SampleOptions(temperature=0.0, max_faces=2 * most)
    found = sample(model, condition_of(shapes, model.config), len(shapes), how, 0)
    pictures = []
    for tokens in found.sequences():
        decoded = model.config.tokenizer.decode(tokens)
        if decoded.face_count:
            pictures.append(wireframe(decoded.mesh(), torch.tensor([AZIMUTH]), size=SIZE)[0])
        else:
            pictures.append(torch.full((3, SIZE, SIZE), 0.9))
    return tuple(pictures)


def curve(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of what metrics.jsonl logged under a name."""
    return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), float | int)]


def pair_charts(rows: Sequence[Mapping[str, Any]], alarms: Sequence[int]) -> list[Chart]:
    """Of alignment on pairs."""
    return [
        Chart("loss of the preference", {"loss": curve(rows, "preference")}),
        Chart("margin: beta (L+ - L-)", {"margin": curve(rows, "margin")}, alarms=alarms),
        Chart(
            "beta times the log-ratio of winners and losers; winners belong above 0 (red bar: the alarm)",
            {"winner": curve(rows, "winner"), "loser": curve(rows, "loser")},
            level=0.0,
            alarms=alarms,
        ),
        Chart("-log p of the winners, a token", {"nll": curve(rows, "nll")}),
        Chart("share of pairs in which the winner gained more", {"accuracy": curve(rows, "accuracy")}),
        Chart("norm of the gradient", {"norm": curve(rows, "gradient_norm")}),
    ]


def online_charts(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[Chart]:
    """Of online alignment by some metrics."""
    better = {
        name: f"{name.upper()} of what was drawn ({'more' if METRICS[name] else 'less'} is better)" for name in metrics
    }
    return [
        *(Chart(title, {name: curve(rows, name)}) for name, title in better.items()),
        Chart("share that failed", {"failed": curve(rows, "failed")}),
        Chart("KL to the model at the start, a token", {"kl": curve(rows, "kl")}),
        Chart("norm of the gradient", {"norm": curve(rows, "gradient_norm")}),
    ]


def write_page(
    folder: Path,
    title: str,
    report: Mapping[str, Any],
    charts: Sequence[Chart],
    looks: Sequence[tuple[Shape, Tensor, Tensor]],
) -> None:
    """Write report.html into a run folder, atomically.

    Args:
        report: what report.json holds. looks: of `Looks.after`.
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    if report.get("warnings"):
        parts.append(f'<div class="alarm">{bullets(report["warnings"])}</div>')
    parts += ["<h2>Over steps</h2>", *map(svg, charts)]
    parts.append("<h2>Before (left) and after: the likeliest tokens for shapes of the set</h2>")
    for shape, before, after in looks:
        about = escape(f"{shape.caption or 'points alone'}, asked for with {shape.faces} faces")
        parts.append(f"<p>{about}<br>{_image(torch.cat([before, after], 2))}</p>")
    rows = [[name, text(value)] for name, value in report["options"].items()]
    parts += ["<h2>Options</h2>", table(["", ""], rows)]
    atomic_write_text(folder / "report.html", document("rl3d mesh alignment", parts))


def _image(picture: Tensor) -> str:
    data = io.BytesIO()
    Image.fromarray(to_uint8(picture)).save(data, "PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}" alt="before and after">'
