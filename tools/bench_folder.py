"""What a run folder of the text-to-3D benchmark shows without a judge: its geometry, and a picture of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.render import render
from rl3d.rewards.geometry import depth_normal_consistency
from rl3d.scenes.load import load_scene
from rl3d.scenes.mesh import Mesh
from rl3d.text_to_3d.finish import FIELD, SPLATS

VIEWS = "views.safetensors"
# The camera of the prior's first view, and of the picture.
AZIMUTH, ELEVATION, DISTANCE, FOV_Y = 0.0, math.radians(20), 2.7, 0.47
TILE = 144  # pixels


def shape(folder: Path, mesh: dict[str, Any]) -> dict[str, Any]:
    """The measures of a finished run's geometry; no judge."""
    scene = next(folder / name for name in (SPLATS, FIELD) if (folder / name).exists())
    azimuth = torch.arange(8) * (2 * math.pi / 8)
    cameras = Cameras.orbit(azimuth, torch.full((8,), ELEVATION), DISTANCE, FOV_Y, 128)
    with torch.no_grad():
        frames = render(load_scene(scene), cameras, normals=True)
    assert frames.normal is not None
    seen = (frames.normal[None], frames.depth[None], frames.alpha[None])
    return {
        "dnc": round(float(depth_normal_consistency(*seen, cameras)), 4),
        "valid": mesh["watertight"] and mesh["consistent_winding"] and mesh["non_manifold_edges"] == 0,
        "parts": mesh["components"],
    }


def tile(folder: Path, size: int = TILE) -> Tensor:
    """A picture [3, S, S] of a run's result over light grey, from the camera of the prior's first view."""
    if (folder / VIEWS).exists():
        first = load_file(folder / VIEWS)["images"][:1]
        rgb = (first[:, :3] + 0.93 * (1 - first[:, 3:])).clamp(0, 1)
        return torch.nn.functional.interpolate(rgb, (size, size), mode="bilinear", align_corners=False)[0]
    if not (folder / "asset.glb").exists():
        return words_tile("failed", size)
    cameras = Cameras.orbit(AZIMUTH, ELEVATION, DISTANCE, FOV_Y, size)
    mesh = Mesh.load(folder / "asset.glb")
    return render(mesh, cameras, background=0.93, shading="half_lambert", supersample=2).rgb[0].clamp(0, 1)


def words_tile(text: str, size: int = TILE) -> Tensor:
    image = Image.new("RGB", (size, size), (255, 255, 255))
    ImageDraw.Draw(image).text((size / 2, size / 2), text, (40, 40, 40), ImageFont.load_default(16), anchor="mm")
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
