"""report.html of an alignment run: its curves, and a few of the training shapes drawn before and after it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rl3d.files import atomic_write_text
from rl3d.html_page import Chart, bullets, document, svg, table, text
from rl3d.mesh_tokens.candidates import condition_of
from rl3d.mesh_tokens.model import MeshLM
from rl3d.mesh_tokens.pair_files import PairSet, Shape
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
    def of(cls, model: MeshLM, pairs: PairSet) -> Looks:
        """The first shapes that pairs name."""
        names = dict.fromkeys(pairs.candidates[p.winner].shape for p in pairs.pairs)
        shapes = tuple(pairs.shapes[name] for name in list(names)[:SHOWN])
        return cls(shapes, drawn(model, shapes))

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


def write_page(
    folder: Path,
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    looks: Sequence[tuple[Shape, Tensor, Tensor]],
) -> None:
    """Write report.html into a run folder, atomically.

    Args:
        report: what report.json holds. rows: of metrics.jsonl. looks: of `Looks.after`.
    """

    def curve(name: str) -> list[tuple[int, float]]:
        return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), float | int)]

    alarms = report["displaced"][:1]
    charts = [
        Chart("loss of the preference", {"loss": curve("preference")}),
        Chart("margin: beta (L+ - L-)", {"margin": curve("margin")}, alarms=alarms),
        Chart(
            "beta times the log-ratio of winners and losers; winners belong above 0 (red bar: the alarm)",
            {"winner": curve("winner"), "loser": curve("loser")},
            level=0.0,
            alarms=alarms,
        ),
        Chart("-log p of the winners, a token", {"nll": curve("nll")}),
        Chart("share of pairs in which the winner gained more", {"accuracy": curve("accuracy")}),
        Chart("norm of the gradient", {"norm": curve("gradient_norm")}),
    ]
    parts = [f"<h1>Alignment on {report['pairs']} pairs</h1>"]
    if report["warnings"]:
        parts.append(f'<div class="alarm">{bullets(report["warnings"])}</div>')
    parts += ["<h2>Over steps</h2>", *map(svg, charts)]
    parts.append("<h2>Before (left) and after: the likeliest tokens for shapes of the set</h2>")
    for shape, before, after in looks:
        about = escape(f"{shape.caption or 'points alone'}, asked for with {shape.faces} faces")
        parts.append(f"<p>{about}<br>{_image(torch.cat([before, after], 2))}</p>")
    rows_ = [[name, text(value)] for name, value in report["options"].items()]
    parts += ["<h2>Options</h2>", table(["", ""], rows_)]
    atomic_write_text(folder / "report.html", document("rl3d mesh align", parts))


def _image(picture: Tensor) -> str:
    data = io.BytesIO()
    Image.fromarray(to_uint8(picture)).save(data, "PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}" alt="before and after">'
