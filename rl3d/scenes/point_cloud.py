"""Points with normals and colours, and drawing them from a surface."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.scenes.mesh import Mesh

if TYPE_CHECKING:
    import open3d
    import trimesh


@dataclass(frozen=True)
class PointCloud:
    """N points.

    Attributes:
        points: [N, 3] metres.
        normals: [N, 3] unit length, or None.
        colours: [N, 3] sRGB in [0, 1], or None.
    """

    points: Tensor
    normals: Tensor | None = None
    colours: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and tuple(value.shape) != (len(self.points), 3):
                raise InputError(f"PointCloud.{name} must be [{len(self.points)}, 3], got {list(value.shape)}")

    def __len__(self) -> int:
        return self.points.shape[0]

    @property
    def device(self) -> torch.device:
        return self.points.device

    def to(self, device: torch.device | str) -> PointCloud:
        """The points on another device; dtypes stay."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if v is not None})

    @staticmethod
    def load(path: str | Path) -> PointCloud:
        """Read a PLY's vertices with their normals and colours; its faces, if any, are left out.

        Raises:
            InputError: missing, empty, truncated or other file; NaN, infinite or absurd points.
        """
        from rl3d.scenes.load import load_points

        return load_points(path)

    def save(self, path: str | Path) -> None:
        """Write a binary PLY, atomically; colours are rounded to 8 bits.

        Raises:
            InputError: not a .ply name, no points, NaN, a folder that cannot be written.
        """
        from rl3d.scenes.load import save_points

        save_points(self, path)

    def to_trimesh(self) -> trimesh.PointCloud:
        """A trimesh.PointCloud with 8-bit colours; it has no place for normals. See `rl3d.scenes.convert`."""
        from rl3d.scenes.convert import points_to_trimesh

        return points_to_trimesh(self)

    @staticmethod
    def from_trimesh(source: trimesh.PointCloud) -> PointCloud:
        """From a trimesh.PointCloud, see `rl3d.scenes.convert`."""
        from rl3d.scenes.convert import points_from_trimesh

        return points_from_trimesh(source)

    def to_open3d(self) -> open3d.geometry.PointCloud:
        """An open3d.geometry.PointCloud with normals and colours, see `rl3d.scenes.convert_open3d`."""
        from rl3d.scenes.convert_open3d import to_open3d

        return to_open3d(self)

    @staticmethod
    def from_open3d(source: open3d.geometry.PointCloud) -> PointCloud:
        """From a point cloud of Open3D, see `rl3d.scenes.convert_open3d`."""
        from rl3d.scenes.convert_open3d import from_open3d

        cloud = from_open3d(source)
        if not isinstance(cloud, PointCloud):
            raise InputError("the Open3D object is a triangle mesh; use Mesh.from_open3d")
        return cloud


def sample_surface(mesh: Mesh, count: int, generator: torch.Generator | None = None) -> PointCloud:
    """Draw points uniformly by area (Osada et al. 2002, eq. 1), with flat normals and the surface's colours.

    Args:
        mesh: with a positive area. count: number of points, at least 1.
        generator: random state, on the mesh's device.

    Returns:
        `count` points; colours are None where the mesh has none. Differentiable to vertices and colours.

    Raises:
        InputError: a count under 1, or a surface without area.
    """
    from rl3d.scenes.texture import surface_colours

    if count < 1:
        raise InputError(f"the number of points must be at least 1, got {count}")
    cumulative = mesh.face_areas.detach().double().cumsum(0)
    if len(mesh.faces) == 0 or not float(cumulative[-1]) > 0:
        raise InputError("the mesh has no surface to draw points from: all its faces are degenerate")
    # searchsorted instead of multinomial: no limit of 2^24 faces, and float64 sums
    draw = torch.rand(count, generator=generator, device=mesh.device, dtype=torch.float64) * cumulative[-1]
    face = torch.searchsorted(cumulative, draw, right=True).clamp_max(len(mesh.faces) - 1)
    uniform = torch.rand(count, 2, generator=generator, device=mesh.device, dtype=mesh.vertices.dtype)
    root = uniform[:, 0].sqrt()
    barycentric = torch.stack([1 - root, root * (1 - uniform[:, 1]), root * uniform[:, 1]], 1)
    points = (mesh.triangles[face] * barycentric.unsqueeze(-1)).sum(1)
    plain = mesh.vertex_colours is None and mesh.face_colours is None and mesh.texture is None
    colours = None if plain else surface_colours(mesh, face, barycentric)
    return PointCloud(points, mesh.face_normals[face], colours)


@torch.no_grad()
def farthest(points: Tensor, count: int) -> Tensor:
    """[B, count] indices of points [B, N, 3], each the farthest from those before it; the first is farthest from the
    mean."""
    rows = torch.arange(len(points), device=points.device)
    nearest = torch.full(points.shape[:2], torch.inf, dtype=points.dtype, device=points.device)
    last = points.mean(1)
    chosen = []
    for i in range(count):
        squared = ((points - last[:, None]) ** 2).sum(-1)
        nearest = squared if i == 0 else torch.minimum(nearest, squared)
        index = nearest.argmax(1)
        if i == 0:
            nearest = torch.full_like(nearest, torch.inf)
        chosen.append(index)
        last = points[rows, index]
    return torch.stack(chosen, 1)
