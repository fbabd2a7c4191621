"""Views of a few solids, for reconstructors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tiny_world import BLUE, BROWN, GREEN, GREY, RED, YELLOW, box
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.render import render

SIZE = 32


def ring(count: int, size: int = SIZE, start: float = 0.0) -> Cameras:
    return Cameras.orbit(torch.arange(count) * (2 * math.pi / count) + start, 0.35, 2.7, 0.47, size)


def views_of(extents: tuple[float, float, float], cameras: Cameras) -> Tensor:
    """[V, 4, H, W] of a box with six colours."""
    frames = render(box(extents, RED, BLUE, GREY, YELLOW, GREEN, BROWN), cameras, supersample=3, antialias=False)
    return torch.cat([frames.rgb, frames.alpha], 1)


@pytest.fixture
def random_views() -> Callable[..., Tensor]:
    """[B, V, 4, S, S] premultiplied noise."""

    def make(batch: int, views: int = 4, size: int = 16) -> Tensor:
        images = torch.rand(batch, views, 4, size, size, generator=torch.Generator().manual_seed(0))
        return torch.cat([images[:, :, :3] * images[:, :, 3:], images[:, :, 3:]], 2)

    return make


@pytest.fixture(scope="session")
def cameras() -> Cameras:
    """Every one sees two sides of a box, its neighbours one of them each."""
    return ring(4, start=math.pi / 4)


@pytest.fixture(scope="session")
def boxes(cameras: Cameras) -> Tensor:
    """[2, 4, 4, 32, 32]: a cube, and a board that is long to the sides."""
    return torch.stack([views_of((0.55, 0.55, 0.55), cameras), views_of((0.9, 0.3, 0.4), cameras)])
