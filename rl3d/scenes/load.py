"""One entrance for every scene file, and the files of point clouds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from rl3d.errors import InputError
from rl3d.files import atomic_write_bytes
from rl3d.scenes import ply
from rl3d.scenes.checks import MAX_COORDINATE, read_bytes
from rl3d.scenes.field import Field
from rl3d.scenes.field_io import load_field
from rl3d.scenes.gaussians import Gaussians
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.mesh_io import load_mesh
from rl3d.scenes.ply_mesh_io import encode_points, point_columns
from rl3d.scenes.point_cloud import PointCloud
from rl3d.scenes.splat_io import is_splat_header, load_splats, parse_splats
from rl3d.scenes.texture import to_bytes


def load_scene(path: str | Path) -> Mesh | Gaussians | PointCloud | Field:
    """Read any scene file. A .ply is splats, a mesh or points by what its header declares, not by its name.

    Raises:
        InputError: as `Mesh.load`, `Gaussians.load`, `PointCloud.load` and `Field.load`.
    """
    path = Path(path)
    if path.suffix.lower() == ".safetensors":
        return load_field(path)
    if path.suffix.lower() == ".splat":
        return load_splats(path)
    if path.suffix.lower() != ".ply":
        return load_mesh(path)
    data = read_bytes(path)
    header = ply.parse_header(data, path)
    if is_splat_header(header):
        return parse_splats(data, header, path)
    if header.count("face") > 0:
        return load_mesh(path)
    return _parse_points(data, header, path)


def load_points(path: str | Path) -> PointCloud:
    """Read the vertices of a PLY as points, see `PointCloud.load`."""
    path = Path(path)
    if path.suffix.lower() != ".ply":
        raise InputError(f"point clouds are read from .ply files, got {path.name!r}; convert it to PLY")
    data = read_bytes(path)
    return _parse_points(data, ply.parse_header(data, path), path)


def _parse_points(data: bytes, header: ply.Header, path: Path) -> PointCloud:
    points, normals, colours = point_columns(data, header, path)
    _check(points, str(path))

    def tensor(values: np.ndarray | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(values.astype(np.float32))

    return PointCloud(torch.from_numpy(points.astype(np.float32)), tensor(normals), tensor(colours))


def save_points(cloud: PointCloud, path: str | Path) -> None:
    """Write points as a binary PLY, see `PointCloud.save`."""
    path = Path(path)
    if path.suffix.lower() != ".ply":
        raise InputError(f"point clouds are written as .ply, got {path.name!r}; name it {path.stem}.ply")
    if len(cloud) == 0:
        raise InputError(f"there are no points to write to {path}")
    points = cloud.points.detach().cpu().numpy()
    _check(points, "the points")
    normals = None if cloud.normals is None else cloud.normals.detach().cpu().numpy()
    colours = None if cloud.colours is None else to_bytes(cloud.colours)
    atomic_write_bytes(path, encode_points(points, normals, colours))


def _check(points: np.ndarray, where: str) -> None:
    bad = int((~np.isfinite(points)).any(1).sum())
    if bad:
        raise InputError(f"{where}: {bad} of {len(points)} points are NaN or infinite; drop them first")
    if np.abs(points).max() > MAX_COORDINATE:
        raise InputError(
            f"{where}: coordinates reach {np.abs(points).max():.1e}, the limit is 1e9; scale it down first"
        )
