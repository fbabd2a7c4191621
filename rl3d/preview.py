"""Pictures of a scene for people: turntables, sheets of views, single pictures. sRGB throughout."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, pad

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.files import atomic_path
from rl3d.render import render
from rl3d.render.occupancy import OccupancyGrid, update_occupancy
from rl3d.scenes.field import Field, check_field
from rl3d.scenes.gaussians import Gaussians
from rl3d.scenes.mesh import Mesh

FORMATS = (".webp", ".gif", ".png", ".mp4")
TOP, BOTTOM = 0.97, 0.84  # grey levels of the background's upper and lower edge


@dataclass(frozen=True)
class Framing:
    """Where a scene sits and how large it is, in metres: what cameras need to show all of it."""

    centre: tuple[float, float, float]
    radius: float
    floor: float

    def orbit(self, azimuth: Tensor | float, elevation: Tensor | float, size: int, fov_y: float = 0.47) -> Cameras:
        """Cameras that look at the centre from where the bounding sphere fills 94% of the picture's height."""
        distance = self.radius / math.sin(0.5 * fov_y) / 0.94
        return Cameras.orbit(azimuth, elevation, distance, fov_y, size, self.centre)


def framing(scene: Mesh | Gaussians | Field) -> Framing:
    """Bounding sphere around the box's centre. Splats below 0.1 opacity and the outermost 0.5% a side do not count.

    Of a field, the cells count that hide a tenth of what is behind them.

    Raises:
        InputError: nothing to see.
    """
    if isinstance(scene, Field):
        points = _dense_cells(scene)
    elif isinstance(scene, Gaussians):
        points = scene.means.detach()[scene.opacity_logits.detach().sigmoid() > 0.1]
    else:
        points = scene.vertices.detach()[scene.faces.unique()] if len(scene.faces) else scene.vertices[:0]
    if len(points) == 0:
        raise InputError("there is nothing to show: no faces, no splat above 0.1 opacity, or an empty field")
    points = points.double().cpu()
    low, high = points.min(0).values, points.max(0).values
    if isinstance(scene, Gaussians) and len(points) >= 200:
        order = points.sort(0).values
        cut = len(points) // 200
        low, high = order[cut], order[-1 - cut]
    centre = 0.5 * (low + high)
    kept = points[((points >= low) & (points <= high)).all(1)]
    radius = max(float((kept - centre).norm(dim=1).max()) if len(kept) else 0.0, 1e-6)
    x, y, z = centre.tolist()
    return Framing((x, y, z), radius, float(low[1]))


@torch.no_grad()
def _dense_cells(field: Field) -> Tensor:
    """[2 K, 3] the lowest and highest corners of the cells whose density hides a tenth of what is behind them."""
    check_field(field)
    density = update_occupancy(OccupancyGrid.full(field), field).density
    sizes = torch.tensor(density.shape, device=field.device).flip(0)
    cell = (field.box[1] - field.box[0]) / sizes
    where = (density * cell.mean() > 0.1).nonzero().flip(1)  # x, y, z
    return torch.cat([field.box[0] + where * cell, field.box[0] + (where + 1) * cell])


def to_uint8(image: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[3, H, W] or [V, 3, H, W] sRGB, clamped to [0, 1], as [.., H, W, 3] bytes, rounded."""
    return (image.detach().cpu().float().clamp(0, 1) * 255).round().byte().movedim(-3, -1).numpy()


def backdrop(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """[3, H, W] light grey, brighter above."""
    ramp = torch.linspace(TOP, BOTTOM, height, device=device)
    return ramp[None, :, None].expand(3, height, width)


@torch.no_grad()
def views(
    scene: Mesh | Gaussians | Field,
    azimuth: Tensor,
    elevation: Tensor | float = 0.3,
    *,
    size: int = 256,
    shading: str | None = None,
    supersample: int = 2,
    shadow: float = 0.35,
    where: Framing | None = None,
) -> Tensor:
    """Pictures of a scene on a soft background with a contact shadow.

    Args:
        azimuth: [V], radians. elevation: [V] or one number, radians.
        shading: of meshes; None: half_lambert. Splats and fields are always unlit.
        supersample: of meshes and splats; a field is smooth, it gets one ray a pixel.
        shadow: darkness of the contact shadow in [0, 1]; 0 for none.
        where: the framing; None: of this scene.

    Returns:
        [V, 3, size, size] sRGB in [0, 1].
    """
    where = where or framing(scene)
    cameras = where.orbit(azimuth, elevation, size).to(scene.device, torch.float32)
    light = shading or "half_lambert" if isinstance(scene, Mesh) else "unlit"
    fine = 1 if isinstance(scene, Field) else supersample
    ground = backdrop(size, size, scene.device)[None].expand(len(cameras), 3, size, size)
    if shadow > 0:
        ground = ground * (1 - shadow * _contact_shadow(scene, where, cameras))
    out = []
    for v in range(0, len(cameras), 4):  # a few at a time keeps supersampled buffers small
        frames = render(scene, cameras[slice(v, v + 4)], shading=light, supersample=fine)
        out.append(frames.rgb + (1 - frames.alpha) * ground[v : v + 4])
    return torch.cat(out).clamp(0, 1)


def _contact_shadow(scene: Mesh | Gaussians | Field, where: Framing, cameras: Cameras, size: int = 96) -> Tensor:
    """[V, 1, H, W] in [0, 1]: how much of the sky the scene hides from the floor under each pixel, roughly.

    A picture of the scene from straight below gives the height of its underside; low parts darken more, blurred.
    """
    fov = 0.2
    reach = 1.5 * where.radius  # half the width of the shadow map
    distance = reach / math.tan(0.5 * fov)
    below = Cameras.orbit(0.0, -math.pi / 2 + 1e-3, distance, fov, size, where.centre).to(scene.device, torch.float32)
    frames = render(scene, below)
    height = frames.depth - (distance - (where.centre[1] - where.floor))
    dark = frames.alpha * torch.exp(-height.clamp_min(0) / (0.35 * where.radius))
    sigma = 0.04 * size
    steps = torch.arange(-int(3 * sigma), int(3 * sigma) + 1, device=scene.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(dark.dtype)
    margin = len(steps) // 2
    dark = conv2d(pad(dark, (margin, margin, 0, 0)), kernel[None, None, None, :])
    dark = conv2d(pad(dark, (0, 0, margin, margin)), kernel[None, None, :, None])
    origins, directions = cameras.rays()
    t = (where.floor - origins[..., 1]) / torch.where(directions[..., 1] < -1e-3, directions[..., 1], torch.inf)
    points = origins + t[..., None] * directions  # [V, H, W, 3] on the floor
    in_map = points @ below.view[0, :3, :3].T + below.view[0, :3, 3]
    pixel = in_map @ below.intrinsics[0].T
    place = 2 * pixel[..., :2] / pixel[..., 2:].clamp_min(1e-6) / size - 1
    found = grid_sample(dark.expand(len(cameras), -1, -1, -1), place, align_corners=False, padding_mode="zeros")
    return found * (t > 0)[:, None]


def turntable(
    scene: Mesh | Gaussians | Field,
    out: str | Path,
    *,
    frames: int = 36,
    size: int = 256,
    elevation: float = 0.3,
    seconds: float = 3.6,
    shading: str | None = None,
    shadow: float = 0.35,
) -> Path:
    """A full turn as an endless animation (.webp, .gif; .mp4 where imageio is there), or a .png of 8 views.

    Args:
        frames: pictures in one turn. seconds: one turn. elevation: radians.

    Raises:
        InputError: a suffix that cannot be written, unusable numbers, an empty scene, an unwritable folder.
    """
    path = Path(out)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"cannot write a turntable to {path.name!r}; use one of {', '.join(FORMATS)}")
    if suffix == ".mp4" and importlib.util.find_spec("imageio") is None:
        raise InputError(f"{path.name!r} needs the package imageio; without it use one of {', '.join(FORMATS[:3])}")
    if frames < 1 or not 8 <= size <= 8192 or seconds <= 0:
        raise InputError(
            f"a turntable needs frames >= 1, 8 <= size <= 8192, seconds > 0; got {frames}, {size}, {seconds}"
        )
    count = 8 if suffix == ".png" else frames
    azimuth = torch.arange(count) * (2 * math.pi / count)
    pictures = views(scene, azimuth, elevation, size=size, shading=shading, shadow=shadow)
    if suffix == ".png":
        return view_sheet(pictures, path, columns=4)
    images = [Image.fromarray(picture) for picture in to_uint8(pictures)]
    wait = max(20, round(1000 * seconds / frames))
    with atomic_path(path) as temporary:
        if suffix == ".mp4":
            _write_mp4(temporary, to_uint8(pictures), 1000 / wait)
        else:
            more: dict[str, Any] = (
                {"quality": 80, "method": 4} if suffix == ".webp" else {"disposal": 1, "optimize": True}
            )
            images[0].save(temporary, save_all=True, append_images=images[1:], duration=wait, loop=0, **more)
    return path


def _write_mp4(path: Path, pictures: np.ndarray[Any, Any], rate: float) -> None:
    import imageio

    try:
        imageio.mimwrite(path, list(pictures), fps=rate)
    except (ImportError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(
            f"imageio cannot write .mp4 here ({str(error).splitlines()[0]}); install imageio[ffmpeg] or use .webp"
        ) from error


def view_sheet(
    images: Tensor | Sequence[Tensor],
    out: str | Path,
    *,
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    gap: int = 4,
) -> Path:
    """Pictures side by side as a PNG.

    Args:
        images: [V, 3, H, W] or V of [3, H, W], sRGB in [0, 1], one size.
        columns: None: near-square, wider than tall.
        labels: one a picture, written under it.

    Raises:
        InputError: no pictures, different sizes, a wrong number of labels, an unwritable folder.
    """
    items = list(images)
    if not items or len({tuple(i.shape) for i in items}) != 1 or items[0].ndim != 3 or items[0].shape[0] != 3:
        raise InputError(f"a sheet needs pictures [3, H, W] of one size, got {[list(i.shape) for i in items][:4]}")
    if labels is not None and len(labels) != len(items):
        raise InputError(f"a sheet of {len(items)} pictures needs as many labels, got {len(labels)}")
    if columns is not None and columns < 1:
        raise InputError(f"a sheet needs at least 1 column, got {columns}")
    columns = min(columns or math.ceil(math.sqrt(len(items))), len(items))
    rows = math.ceil(len(items) / columns)
    height, width = items[0].shape[1:]
    line = 18 if labels else 0
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + line + gap) - gap), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, item in enumerate(items):
        x, y = (i % columns) * (width + gap), (i // columns) * (height + line + gap)
        sheet.paste(Image.fromarray(to_uint8(item)), (x, y))
        if labels:
            text = labels[i]
            while len(text) > 1 and draw.textlength(text, font=font) > width - 4:
                text = text[:-2] + "…"
            draw.text((x + 2, y + height + 2), text, fill=(40, 40, 40), font=font)
    path = Path(out)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def picture(
    scene: Mesh | Gaussians,
    out: str | Path,
    *,
    azimuth: float = 0.6,
    elevation: float = 0.3,
    size: int = 512,
    shading: str | None = None,
) -> Path:
    """One picture of a scene, three-quarter view by default; the format by suffix (.png, .webp, .jpg).

    Raises:
        InputError: a suffix that cannot be written, an empty scene, an unwritable folder.
    """
    path = Path(out)
    if path.suffix.lower() not in (".png", ".webp", ".jpg", ".jpeg"):
        raise InputError(f"cannot write a picture to {path.name!r}; use .png, .webp or .jpg")
    shown = views(scene, torch.tensor([azimuth]), elevation, size=size, shading=shading)
    with atomic_path(path) as temporary:
        Image.fromarray(to_uint8(shown[0])).save(temporary, quality=90)
    return path
