"""A picture of points before and after, from two sides: the visible ones dark, the new ones orange."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from rl3d.agents.completion.clouds import turned
from rl3d.files import atomic_path

SEEN, NEW, GROUND = (52, 84, 122), (226, 122, 40), (246, 246, 246)
TILT = 0.35  # radians that the camera looks down
SIDES = (0.6, 2.7)
MOST = 6000


def panel(points: Tensor, colours: Tensor, azimuth: float, low: Tensor, high: Tensor, size: int = 300) -> Image.Image:
    """Points [N, 3] with colours [N, 3] in 0..255 as discs, far ones first and paler; the box from low to high fits."""
    middle, reach = 0.5 * (low + high), 0.5 * float((high - low).norm()) + 1e-9
    shown = turned((points - middle)[None], torch.tensor([-azimuth]))[0] / reach
    c, s = np.cos(TILT), np.sin(TILT)
    x, y, z = shown[:, 0], c * shown[:, 1] - s * shown[:, 2], s * shown[:, 1] + c * shown[:, 2]
    fade = (0.45 * (1 - (z.clamp(-1, 1) + 1) / 2))[:, None]
    paint = (colours * (1 - fade) + 246 * fade).round().int().tolist()
    fine = 2 * size
    picture = Image.new("RGB", (fine, fine), GROUND)
    draw, radius = ImageDraw.Draw(picture), 0.007 * fine
    u, v = ((0.5 + 0.48 * x) * fine).tolist(), ((0.5 - 0.48 * y) * fine).tolist()
    for i in z.argsort().tolist():
        draw.ellipse((u[i] - radius, v[i] - radius, u[i] + radius, v[i] + radius), fill=tuple(paint[i]))
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def before_and_after(given: Tensor, kept: Tensor, new: Tensor, out: Path) -> Path:
    """Beside OUT, as .png: the input above, visible and new points below; the same two cameras. Of more than MOST
    points an even choice is drawn."""
    given, kept, new = (points[:: 1 + len(points) // MOST] for points in (given, kept, new))
    everything = torch.cat([given, kept, new])
    low, high = everything.amin(0), everything.amax(0)
    dark, bright = torch.tensor(SEEN, dtype=torch.float32), torch.tensor(NEW, dtype=torch.float32)
    rows = [
        (given, dark.expand(len(given), 3)),
        (torch.cat([kept, new]), torch.cat([dark.expand(len(kept), 3), bright.expand(len(new), 3)])),
    ]
    panels = [[panel(points, colours, side, low, high) for side in SIDES] for points, colours in rows]
    return save_grid(panels, out.with_suffix(".png"))


def save_grid(panels: list[list[Image.Image]], path: Path) -> Path:
    """Pictures of one size in rows, as one PNG."""
    width, height = panels[0][0].size
    sheet = Image.new("RGB", (max(map(len, panels)) * width, len(panels) * height), GROUND)
    for j, row in enumerate(panels):
        for i, picture in enumerate(row):
            sheet.paste(picture, (i * width, j * height))
    with atomic_path(path) as temporary:
        sheet.save(temporary)
    return path
