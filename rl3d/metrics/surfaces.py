"""A triangle mesh made ready to be measured: welded by position, with edges, and the faces that do not count marked.

Everything in this package works on a `Surface`, so that no metric can be improved by splitting vertices or by saying
faces twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rl3d.errors import InputError
from rl3d.scenes.checks import check_geometry
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.weld import position_groups

WELD = 1e-6  # of the box's diagonal: float32 rounding, far below any edge that was meant
FLAT = 1e-6  # a face whose height is less than this share of its longest side has no area to speak of

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Edges:
    """The unordered edges of the faces that count. E edges, H = 3 K half-edges (one a side of each counted face).

    Attributes:
        ends: [E, 2] vertices, lower first.
        count: [E] how many counted faces have it.
        of_side: [K, 3] edge from corner i to corner i + 1 of each counted face.
        sides: [H] half-edges (3 k + i) sorted by edge; those of edge e are sides[first[e] : first[e] + count[e]].
        first: [E].
    """

    ends: Indices
    count: Indices
    of_side: Indices
    sides: Indices
    first: Indices


@dataclass(frozen=True)
class Surface:
    """A welded triangle mesh.

    Attributes:
        vertices: [V, 3] float64, the positions that faces use, in the mesh's own units.
        faces: [F, 3] every face that came, in its order, as indices into `vertices`.
        polygon: [F] which polygon of the file a triangle belongs to, or None where only triangles are known.
    """

    vertices: Array
    faces: Indices
    polygon: Indices | None = None

    @cached_property
    def collapsed(self) -> Flags:
        """[F] two corners are the same vertex."""
        a, b, c = self.faces.T
        return (a == b) | (b == c) | (c == a)

    @cached_property
    def duplicate(self) -> Flags:
        """[F] the same three vertices as an earlier face, in whatever order. Collapsed faces are none."""
        twice = np.zeros(len(self.faces), bool)
        solid = np.flatnonzero(~self.collapsed)
        corners = np.sort(self.faces[solid], 1)
        order = np.lexsort(corners.T)  # stable: of equal faces the first in the file leads
        twice[solid[order[1:]]] = (corners[order[1:]] == corners[order[:-1]]).all(1)
        return twice

    @cached_property
    def kept(self) -> Indices:
        """[K] the faces that count: neither collapsed nor said before."""
        return np.flatnonzero(~(self.collapsed | self.duplicate))

    @cached_property
    def cross(self) -> Array:
        """[F, 3] cross product of two sides: twice the area long, along the normal."""
        a, b, c = self.vertices[self.faces].transpose(1, 0, 2)
        return np.cross(b - a, c - a)

    @cached_property
    def areas(self) -> Array:
        """[F]"""
        return 0.5 * np.linalg.norm(self.cross, axis=1)

    @cached_property
    def normals(self) -> Array:
        """[F, 3] of unit length, out of the counter-clockwise side; zero where there is no area."""
        length = 2 * self.areas[:, None]
        return np.divide(self.cross, length, out=np.zeros_like(self.cross), where=length > 0)

    @cached_property
    def lengths(self) -> Array:
        """[F, 3] of the side from corner i to corner i + 1."""
        corners = self.vertices[self.faces]
        return np.linalg.norm(np.roll(corners, -1, 1) - corners, axis=2)

    @cached_property
    def degenerate(self) -> Flags:
        """[F] collapsed, or lower than 1e-6 of its longest side: three corners on a line."""
        longest = self.lengths.max(1, initial=0.0)
        return self.collapsed | (2 * self.areas <= FLAT * longest**2)

    @cached_property
    def edges(self) -> Edges:
        """Edges of the faces that count (degenerate ones that did not collapse take part: they close T-junctions)."""
        corners = self.faces[self.kept]
        start, end = corners.reshape(-1), corners[:, [1, 2, 0]].reshape(-1)
        # one int64 an edge sorts faster than pairs
        key = np.minimum(start, end) * max(len(self.vertices), 1) + np.maximum(start, end)
        sides = np.argsort(key, kind="stable")
        ordered = key[sides]
        starts = np.ones(len(ordered), bool)
        starts[1:] = ordered[1:] != ordered[:-1]
        first = np.flatnonzero(starts)
        of_side = np.empty(len(key), np.int64)
        of_side[sides] = np.cumsum(starts) - 1
        ends = np.stack(np.divmod(ordered[first], max(len(self.vertices), 1)), 1)
        count = np.diff(np.append(first, len(key)))
        return Edges(ends, count, of_side.reshape(-1, 3), sides, first)


def surface(vertices: NDArray, faces: NDArray, polygon: NDArray | None = None, name: str = "the mesh") -> Surface:
    """Weld a mesh by position and drop the vertices that no face uses; faces and their order stay.

    Vertices closer than 1e-6 of the diagonal of the box around the faces become one (their first position stays).

    Args:
        vertices: [N, 3], any unit. faces: [F, 3] integers; none at all is a surface, of the worst score.
        polygon: [F] integers: triangles with the same number were one polygon. name: for error messages.

    Raises:
        InputError: other shapes, indices out of range, NaN, infinite, or coordinates beyond 1e9.
    """
    vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise InputError(f"{name}: vertices must be [N, 3], got {list(vertices.shape)}")
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype.kind not in "iu":
        raise InputError(f"{name}: faces must be [F, 3] integers, got {list(faces.shape)} of {faces.dtype}")
    if polygon is not None and np.shape(polygon) != (len(faces),):
        raise InputError(f"{name}: polygon must be [{len(faces)}], one a face, got {list(np.shape(polygon))}")
    faces = faces.astype(np.int64)
    if len(faces) == 0:
        return Surface(np.zeros((0, 3)), faces, None if polygon is None else np.zeros(0, np.int64))
    check_geometry(vertices, faces, name)
    is_used = np.zeros(len(vertices), bool)
    is_used[faces] = True
    used = np.flatnonzero(is_used)
    places = vertices[used]
    group = position_groups(places, WELD * float(np.linalg.norm(np.ptp(places, axis=0))))
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    index = np.empty(len(vertices), np.int64)
    index[used] = inverse.reshape(-1)
    return Surface(places[first], index[faces], None if polygon is None else np.asarray(polygon, np.int64))


def as_surface(mesh: Mesh | Surface) -> Surface:
    """The surface of a `Mesh` (off its device, without gradients); a surface as it is."""
    if isinstance(mesh, Surface):
        return mesh
    return surface(mesh.vertices.detach().cpu().numpy(), mesh.faces.cpu().numpy())
