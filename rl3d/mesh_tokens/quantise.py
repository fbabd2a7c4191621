"""Meshes on a grid of bins: the frame that fits them into it, rounding, and the one clean form of what comes out.

Bins are read at their centres (MeshXL, arXiv 2405.20853; DeepMesh, arXiv 2503.15265):

    q = clamp(round((t - lo) / (hi - lo) N - 1/2), 0, N - 1),    back: lo + (q + 1/2) / N (hi - lo),

with lo = -1/2, hi = 1/2. A mesh is fitted so that its longest side runs from the first bin's centre to the last one's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl3d.errors import InputError
from rl3d.scenes.mesh import Mesh

BINS = 128
LOW, HIGH = -0.5, 0.5
# What is sorted by first: height, then depth, then width. Papers say "z-y-x", their z is up; ours is +Y. Growing from
# the ground up, each face has its support already written.
AXES = (1, 2, 0)


@dataclass(frozen=True)
class Frame:
    """Where a shape lies in the world: world = unit * scale + centre.

    Attributes:
        centre: [3] float64, middle of the bounding box. scale: positive, metres that one unit is.
    """

    centre: NDArray[np.float64]
    scale: float

    def to_unit(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """[N, 3] from world to unit."""
        out: NDArray[np.float64] = (points.astype(np.float64) - self.centre) / self.scale
        return out

    def to_world(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """[N, 3] from unit to world."""
        out: NDArray[np.float64] = points.astype(np.float64) * self.scale + self.centre
        return out


def frame_of(points: NDArray[np.floating], bins: int = BINS) -> Frame:
    """The frame whose box of `bins` bins the points' bounding box fits.

    Raises:
        InputError: no points, NaN or infinite ones, or all of them in one place.
    """
    if len(points) == 0:
        raise InputError("there are no points to fit into a box")
    if not np.isfinite(points).all():
        bad = int((~np.isfinite(points)).any(1).sum())
        raise InputError(f"{bad} of {len(points)} points are NaN or infinite; drop them first")
    low, high = points.min(0).astype(np.float64), points.max(0).astype(np.float64)
    side = float((high - low).max())
    if not side > 0:
        raise InputError(f"all {len(points)} points lie in one place, they have no size to fit into a box")
    return Frame(0.5 * (low + high), side * bins / ((bins - 1) * (HIGH - LOW)))


def quantise(points: NDArray[np.floating], bins: int = BINS) -> NDArray[np.int64]:
    """[..., 3] coordinates in [LOW, HIGH] to bins in [0, bins - 1]; what lies outside goes to the nearest bin."""
    bin_of = np.rint((points.astype(np.float64) - LOW) / (HIGH - LOW) * bins - 0.5)
    return np.clip(bin_of, 0, bins - 1).astype(np.int64)


def dequantise(indices: NDArray[np.integer], bins: int = BINS) -> NDArray[np.float64]:
    """Bins to the coordinates of their centres."""
    out: NDArray[np.float64] = LOW + (indices.astype(np.float64) + 0.5) / bins * (HIGH - LOW)
    return out


@dataclass(frozen=True)
class BinMesh:
    """A triangle mesh on the grid, in its one clean form.

    Attributes:
        vertices: [N, 3] int64 bins of x, y, z; each position once, all used, sorted by `AXES`.
        faces: [F, 3] int64, lowest index first with the winding kept, no vertex twice in a face, no two faces of the
            same three vertices, rows sorted.
        bins: number of bins an axis.
    """

    vertices: NDArray[np.int64]
    faces: NDArray[np.int64]
    bins: int = BINS

    def mesh(self, frame: Frame | None = None) -> Mesh:
        """The mesh at the bins' centres, float32, in the world of `frame` or in the unit box."""
        points = dequantise(self.vertices, self.bins)
        placed = points if frame is None else frame.to_world(points)
        return Mesh(torch.from_numpy(placed.astype(np.float32)), torch.from_numpy(self.faces.copy()))


def clean(vertices: NDArray[np.integer], faces: NDArray[np.integer], bins: int = BINS) -> BinMesh:
    """Vertices in bins [N, 3] and faces [F, 3] in the clean form of `BinMesh`; possibly without any face.

    Vertices of one bin are merged. Faces that collapse are dropped, and of those with the same three vertices all but
    the first, also if they are wound the other way: a board thinner than a bin becomes one sheet. Faces whose corners
    lie on a line stay, since dropping them would tear the surface.
    """
    keys = vertices[:, AXES]
    unique, inverse = np.unique(keys, axis=0, return_inverse=True)
    faces = inverse.reshape(-1)[faces.reshape(-1)].reshape(-1, 3)
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    if len(faces):
        _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
        faces = faces[np.sort(first)]
    used, local = np.unique(faces, return_inverse=True)
    faces = local.reshape(-1, 3)
    lowest = faces.argmin(1)[:, None] if len(faces) else np.zeros((0, 1), np.int64)
    faces = np.take_along_axis(faces, (lowest + np.arange(3)) % 3, 1)
    ordered = faces[np.lexsort(faces.T[::-1])].astype(np.int64)
    back = np.argsort(AXES)
    return BinMesh(unique[used.astype(np.int64)][:, back].astype(np.int64).reshape(-1, 3), ordered, bins)


def to_bins(
    vertices: NDArray[np.floating] | Tensor, faces: NDArray[np.integer] | Tensor, bins: int = BINS
) -> tuple[BinMesh, Frame]:
    """Fit a mesh into the box, round it and clean it; also the way back to its world.

    Raises:
        InputError: no faces, an index that no vertex has, NaN, no size, or nothing left at this number of bins.
    """
    points = np.asarray(vertices.detach().cpu() if isinstance(vertices, Tensor) else vertices)
    corners = np.asarray(faces.detach().cpu() if isinstance(faces, Tensor) else faces)
    if len(corners) == 0:
        raise InputError(f"a mesh without faces ({len(points)} vertices) has no tokens")
    if corners.min() < 0 or corners.max() >= len(points):
        raise InputError(f"a face names vertex {int(corners.max())} of {len(points)}; export the mesh again")
    frame = frame_of(points[np.unique(corners)], bins)
    mesh = clean(quantise(frame.to_unit(points), bins), corners, bins)
    if len(mesh.faces) == 0:
        raise InputError(f"all {len(corners)} faces collapse on a grid of {bins} bins; use more bins")
    return mesh, frame
