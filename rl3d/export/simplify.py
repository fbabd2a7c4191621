"""Fewer triangles, and triangles in order: quadric decimation, welding, degenerate faces, orientation.

Everything here is geometry alone: the colours of the input are not carried over (they are baked afterwards).
"""

from __future__ import annotations

from typing import Any

import fast_simplification
import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from rl3d.errors import InputError
from rl3d.scenes.mesh import Mesh

Array = np.ndarray[Any, np.dtype[Any]]


def tidy(vertices: Array, faces: Array, *, tolerance: float = 1e-6, repeated: bool = False) -> tuple[Array, Array]:
    """Weld, drop degenerate and repeated faces and unused vertices, orient outwards.

    Args:
        vertices: [N, 3] float. faces: [F, 3] int.
        tolerance: vertices that round to the same multiple of `tolerance` x the bounding box's diagonal are one; faces
            thinner than it are dropped.
        repeated: keep a face that comes twice in the same turning sense (a later step parts the two).

    Returns:
        vertices [M, 3] float64 and faces [G, 3] int64. "Outwards" is a positive signed volume of the whole mesh, which
        decides nothing for open sheets.

    Raises:
        InputError: no face is left.
    """
    vertices = np.asarray(vertices, dtype=np.float64)
    faces = np.asarray(faces, dtype=np.int64)
    if len(faces) == 0 or len(vertices) == 0:
        raise InputError("the mesh has no faces")
    diagonal = float(np.linalg.norm(vertices.max(0) - vertices.min(0)))
    if not np.isfinite(diagonal) or diagonal == 0:
        raise InputError(f"the mesh has no extent: its bounding box's diagonal is {diagonal}")
    step = tolerance * diagonal
    _, first, inverse = np.unique(np.round(vertices / step), axis=0, return_index=True, return_inverse=True)
    vertices, faces = vertices[first], inverse.reshape(-1)[faces]
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    faces = faces[distinct]
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    double_area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    longest = np.sqrt(np.maximum.reduce([((b - a) ** 2).sum(1), ((c - b) ** 2).sum(1), ((a - c) ** 2).sum(1)]))
    faces = faces[double_area > step * longest]  # the height over the longest edge
    if len(faces) and not repeated:  # the same corners in the same turning sense; two sides of a sheet both stay
        start = faces.argmin(1)[:, None]
        _, kept = np.unique(np.take_along_axis(faces, (start + np.arange(3)) % 3, 1), axis=0, return_index=True)
        faces = faces[np.sort(kept)]
    if len(faces) == 0:
        raise InputError("the mesh has no faces left once degenerate ones are dropped")
    used, flat = np.unique(faces, return_inverse=True)
    vertices, faces = vertices[used], flat.reshape(-1, 3).astype(np.int64)
    return vertices, faces[:, ::-1].copy() if signed_volume(vertices, faces) < 0 else faces


def signed_volume(vertices: Array, faces: Array) -> float:
    """Volume enclosed by a closed mesh, positive where faces are counter-clockwise from outside; cubic metres."""
    a, b, c = (vertices[faces[:, k]] - vertices.mean(0) for k in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def split_non_manifold(vertices: Array, faces: Array, *, nudge: float = 0.01) -> tuple[Array, Array]:
    """Make edges and vertices manifold: folded face pairs go, sheets that touch in an edge or a vertex are parted.

    Edge collapses leave a handful of edges with four faces. Around such an edge the faces that bound the same wedge of
    solid stay together; every fan of faces at a vertex gets its own copy of it, `nudge` of the way to the fan's centre,
    so that welding does not undo it (Gueziec et al., Cutting and stitching, 2001).

    Args:
        vertices: [N, 3] float64. faces: [F, 3] int64 of a closed, consistently oriented surface.
    """
    faces = _cancel_folds(faces)
    count = len(faces)
    corner = np.arange(3 * count).reshape(count, 3)
    # Half-edge 3f + k runs from corner k of face f to corner k + 1.
    tail, head = faces.ravel(), np.roll(faces, -1, 1).ravel()
    tail_corner, head_corner = corner.ravel(), np.roll(corner, -1, 1).ravel()
    key = np.minimum(tail, head) * len(vertices) + np.maximum(tail, head)
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(order)))
    simple = starts[sizes == 2]
    pairs = [np.stack([order[simple], order[simple + 1]], 1)]
    for start, size in zip(starts[sizes > 2], sizes[sizes > 2]):
        pairs.append(_pair_around_edge(vertices, faces, order[start : start + size]))
    first, second = np.concatenate(pairs).T
    opposite = tail[first] == head[second]  # a pair that runs the same way is not one surface
    first, second = first[opposite], second[opposite]
    rows = np.concatenate([tail_corner[first], head_corner[first]])
    columns = np.concatenate([head_corner[second], tail_corner[second]])
    fans, fan = connected_components(coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(3 * count,) * 2), False)
    source = np.zeros(fans, dtype=np.int64)
    source[fan] = faces.ravel()
    placed = vertices[source]
    crowded = (np.bincount(source, minlength=len(vertices)) > 1)[source]
    centre = vertices[faces].mean(1).repeat(3, 0)  # of the face, at each of its corners
    share = np.bincount(fan, minlength=fans)[:, None]
    mean = np.stack([np.bincount(fan, centre[:, k], minlength=fans) for k in range(3)], 1) / share
    placed[crowded] += nudge * (mean - placed)[crowded]
    return _split_double_edges(placed, fan.reshape(count, 3).astype(np.int64), np.stack([first, second], 1), nudge)


def _cancel_folds(faces: Array) -> Array:
    """Drop faces pairwise with their reverses; what is left of a set of three corners turns one way."""
    _, which = np.unique(np.sort(faces, 1), axis=0, return_inverse=True)
    order = faces.argsort(1)
    even = ((order[:, 1] - order[:, 0]) % 3) == 1  # an even permutation of the sorted corners
    which, sign = which.reshape(-1), np.where(even, 1, -1)
    surplus = np.bincount(which, sign).astype(np.int64)
    kept = np.zeros(len(faces), dtype=bool)
    for key in np.flatnonzero(np.bincount(which) > 1):
        members = np.flatnonzero((which == key) & (sign == np.sign(surplus[key])))
        kept[members[: abs(surplus[key])]] = True
    return faces[kept | (np.bincount(which) == 1)[which]]


def _split_double_edges(vertices: Array, faces: Array, pairs: Array, nudge: float) -> tuple[Array, Array]:
    """Where two surface edges still join the same two vertices, give all but one of them a midpoint (and two faces)."""
    ends = np.sort(np.stack([faces.ravel(), np.roll(faces, -1, 1).ravel()], 1)[pairs[:, 0]], 1)
    _, first = np.unique(ends, axis=0, return_index=True)
    doubles = np.setdiff1d(np.arange(len(pairs)), first)
    points, triangles, more = list(vertices), faces.copy(), []
    touched: set[int] = set()
    for pair in pairs[doubles]:
        if touched.intersection((pair // 3).tolist()):
            continue  # two in one face are too rare to be worth the bookkeeping
        touched.update((pair // 3).tolist())
        a, b = ends[np.flatnonzero((pairs == pair).all(1))[0]]
        centre = vertices[faces[pair // 3]].mean((0, 1))
        middle = 0.5 * (vertices[a] + vertices[b])
        points.append(middle + nudge * (centre - middle))
        for half_edge in pair:
            f, k = half_edge // 3, half_edge % 3
            corners = np.roll(faces[f], -k)  # runs corners[0] -> corners[1] along the edge
            triangles[f] = (corners[0], len(points) - 1, corners[2])
            more.append((len(points) - 1, corners[1], corners[2]))
    return np.array(points), np.concatenate([triangles, np.array(more, dtype=np.int64).reshape(-1, 3)])


def _flip_caps(vertices: Array, faces: Array, height: float) -> Array:
    """Flip the longest edge of each face that is flatter than `height`, since dropping the face would open a hole."""
    faces = faces.copy()
    for _ in range(3):
        p = vertices[faces]
        lengths = np.linalg.norm(np.roll(p, -1, 1) - p, axis=2)
        double_area = np.linalg.norm(np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]), axis=1)
        caps = np.flatnonzero((double_area <= height * lengths.max(1)) & (lengths.min(1) > height))
        if not len(caps):
            break
        half_edge = {(int(f[k]), int(f[(k + 1) % 3])): (i, k) for i, f in enumerate(faces) for k in range(3)}
        touched: set[int] = set()
        for i in caps:
            k = int(lengths[i].argmax())
            a, b, c = (int(x) for x in np.roll(faces[i], -k))
            j, q = half_edge.get((b, a), (i, 0))
            d = int(faces[j, (q + 2) % 3])
            if j == i or d == c or int(i) in touched or j in touched:
                continue
            touched.update((int(i), int(j)))
            faces[i], faces[j] = (a, d, c), (d, b, c)
    return faces


def _pair_around_edge(vertices: Array, faces: Array, half_edges: Array) -> Array:
    """Pair the half-edges of one crowded edge by the wedges of solid between their faces: [P, 2]."""
    face, k = half_edges // 3, half_edges % 3
    a, b = faces[face[0], k[0]], faces[face[0], (k[0] + 1) % 3]
    axis = (vertices[b] - vertices[a]) / max(float(np.linalg.norm(vertices[b] - vertices[a])), 1e-300)
    out = vertices[faces[face, (k + 2) % 3]] - vertices[a]
    out -= (out @ axis)[:, None] * axis
    angle = np.arctan2(np.cross(axis, out[0]) @ out.T, out[0] @ out.T)
    # With the edge from a to b, a face that runs a -> b has its solid on the side of falling angle.
    along = faces[face, k] == a
    ring, pairs = list(np.argsort(angle, kind="stable")), []
    while True:  # like brackets: the innermost wedges first
        match = next((i for i in range(len(ring)) if along[ring[i]] and not along[ring[i - 1]]), None)
        if match is None:
            break
        pairs.append((half_edges[ring[match]], half_edges[ring[match - 1]]))
        ring = [r for r in ring if r not in (ring[match], ring[match - 1])]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def simplify(mesh: Mesh, faces: int = 4000, *, aggressiveness: float = 5.0) -> Mesh:
    """Quadric edge collapse (Garland and Heckbert, SIGGRAPH 1997) down to about `faces` triangles, then `tidy`.

    A mesh that already has no more faces is only tidied. Meant for closed surfaces, which stay closed; a sheet that is
    folded on itself cancels. Colours are dropped. Not differentiable.

    Args:
        faces: target count, at least 4; the result may stay above it where collapses would flip faces.
        aggressiveness: how fast the error bound grows between passes, 0 to 10; lower is slower and keeps shape better.

    Raises:
        InputError: an unusable target, or nothing left.
    """
    if faces < 4:
        raise InputError(f"a closed mesh needs at least 4 faces, got a target of {faces}")
    vertices, triangles = tidy(mesh.vertices.detach().cpu().numpy(), mesh.faces.cpu().numpy())
    if len(triangles) > faces:
        points, cells = fast_simplification.simplify(
            np.ascontiguousarray(vertices, dtype=np.float32),
            np.ascontiguousarray(triangles, dtype=np.int32),
            target_count=faces,
            agg=aggressiveness,
        )
        points = points.astype(np.float64)
        cells = _flip_caps(points, cells.astype(np.int64), 2e-6 * float(np.linalg.norm(np.ptp(points, 0))))
        vertices, triangles = split_non_manifold(*tidy(points, cells, repeated=True))
    return Mesh(
        torch.from_numpy(vertices.astype(np.float32)).to(mesh.device), torch.from_numpy(triangles).to(mesh.device)
    )
