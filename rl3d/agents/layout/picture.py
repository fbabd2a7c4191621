"""Pictures of a furnished room: the plan from above with names, and a look in from a corner."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from rl3d.agents.layout.scene import FurnishedRoom
from rl3d.cameras import Cameras
from rl3d.files import atomic_path
from rl3d.preview import to_uint8
from rl3d.render import render
from rl3d.scenes.mesh import Mesh

BACKGROUND = 0.95


@torch.no_grad()
def plan(room: FurnishedRoom, scene: Mesh, out: str | Path, *, size: int = 640) -> Path:
    """The room from straight above: x to the right, z down, names on the pieces, a title with its size. PNG.

    Args:
        scene: the whole room, see `scene.whole`.
    """
    reach = max(room.task.room.width, room.task.room.depth) + 0.5
    fov = 0.12  # narrow, so that walls and tall pieces hardly lean
    camera = Cameras.orbit(0.0, math.pi / 2 - 1e-3, 0.5 * reach / math.tan(0.5 * fov), fov, size)
    frames = render(scene, camera, background=BACKGROUND, shading="half_lambert", supersample=2)
    picture = Image.fromarray(to_uint8(frames.rgb[0]))
    draw = ImageDraw.Draw(picture)
    metre = size / reach
    font = ImageFont.load_default(max(10, round(0.13 * metre)))
    for s in room.standing:
        x = size / 2 + (s.x - 0.5 * room.task.room.width) * metre
        y = size / 2 + (s.z - 0.5 * room.task.room.depth) * metre
        draw.text(
            (x, y), s.name, fill=(20, 20, 20), font=font, anchor="mm", stroke_width=2, stroke_fill=(255, 255, 255)
        )
    title = f"{room.task.room_type}, {room.task.room.width:g} x {room.task.room.depth:g} m"
    draw.text((8, 6), title, fill=(40, 40, 40), font=ImageFont.load_default(14))
    return _save(picture, Path(out))


@torch.no_grad()
def look_in(room: FurnishedRoom, scene: Mesh, out: str | Path, *, size: int = 640, azimuth: float = 0.6) -> Path:
    """The room from outside and above, over its low walls. PNG. azimuth: radians, 0 looks from the south."""
    shape = room.task.room
    radius = 0.5 * math.hypot(shape.width, shape.depth) + 0.3
    camera = Cameras.orbit(azimuth, 0.75, 1.05 * radius / math.sin(0.35), 0.7, size, (0.0, 0.3, 0.0))
    frames = render(scene, camera, background=BACKGROUND, shading="half_lambert", supersample=2)
    return _save(Image.fromarray(to_uint8(frames.rgb[0])), Path(out))


def _save(picture: Image.Image, path: Path) -> Path:
    with atomic_path(path) as temporary:
        picture.save(temporary)
    return path
