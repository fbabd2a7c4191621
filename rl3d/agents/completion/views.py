"""What one look sees of a surface: depth of the shared renderer, projected back to points."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render import render
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.point_cloud import PointCloud


def seen_from(mesh: Mesh, cameras: Cameras) -> PointCloud:
    """The points of a mesh that V cameras see, one for each pixel that shows it, in world coordinates.

    Raises:
        InputError: no camera sees the mesh.
    """
    points = _points(mesh, cameras)
    if not len(points):
        raise InputError("no camera sees the mesh; point them at it")
    return PointCloud(points)


@torch.no_grad()
def _points(mesh: Mesh, cameras: Cameras) -> Tensor:
    depth = render(mesh, cameras, antialias=False).depth[:, 0]  # [V, H, W]
    origins, directions = cameras.rays()  # unit directions
    forward = cameras.view[:, 2, :3]  # the camera's +Z in world coordinates
    along = (directions * forward[:, None, None]).sum(-1)
    return (origins + directions * (depth / along)[..., None])[depth > 0]


def random_looks(mesh: Mesh, count: int, points: int, generator: Generator, size: int = 96) -> Tensor:
    """[count, points, 3] each what one camera sees from a random side, 10 degrees below to 50 above the middle.

    A side that shows less than 16 pixels (a flat thing from its edge) is drawn again.

    Raises:
        InputError: 100 sides show no more.
    """
    rows: list[Tensor] = []
    for _ in range(100 + count):
        azimuth, height = torch.rand(2, generator=generator).tolist()
        camera = Cameras.orbit(2 * torch.pi * azimuth, -0.17 + 1.04 * height, size=size)
        seen = _points(mesh, camera)
        if len(seen) >= 16:
            rows.append(seen[torch.randint(len(seen), (points,), generator=generator)])
        if len(rows) == count:
            return torch.stack(rows)
    raise InputError("the mesh is seen from hardly any side; take one with a surface")
