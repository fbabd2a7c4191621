"""Topology score (TS): triangles are paired into quads, and four properties of the quads are weighed.

The frame, four parts and their weights, is that of Mesh-RFT (2505.16761, section on topology-aware scoring); the paper
does not give the parts' formulas or its pairing. Those here are this project's own: its numbers do not compare with the
paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rl3d.metrics.surfaces import Array, Flags, Indices, Surface, as_surface
from rl3d.scenes.mesh import Mesh

WEIGHTS = {"quad_ratio": 0.4, "angle_quality": 0.2, "aspect_ratio": 0.3, "adjacent_consistency": 0.1}  # Mesh-RFT
MOST_FOLDED = np.deg2rad(40.0)  # between the normals of two triangles that become one quad
MOST_SKEWED = np.deg2rad(40.0)  # of a corner from a right angle
_SAME = 1e-4  # qualities closer than this are equal, so that rounding does not decide which pair comes first


@dataclass(frozen=True)
class Quads:
    """Pairs of triangles that share an edge, no triangle in two.

    Attributes:
        faces: [Q, 2] indices of the two triangles among the surface's faces.
        corners: [Q, 4] vertices, counter-clockwise, the first and third on the shared edge.
        quality: [Q] q, mean over the corners of max(0, 1 - |angle - 90 degrees| / 90 degrees), in [0, 1].
        sides: [Q, 4] edges (indices into the surface's edges).
    """

    faces: Indices
    corners: Indices
    quality: Array
    sides: Indices


@dataclass(frozen=True)
class TopologyScore:
    """TS and its parts, each in [0, 1], higher is better; 0 where there are no quads.

    Attributes:
        ts: 0.4 quad_ratio + 0.2 angle_quality + 0.3 aspect_ratio + 0.1 adjacent_consistency. Papers print 100 times it.
        quad_ratio: s1 = 2 quads / triangles.
        angle_quality: s2 = mean quality of the quads.
        aspect_ratio: s3 = mean of shortest side / longest side.
        adjacent_consistency: s4 = share of the quads' sides that two quads have in common.
        quads: how many. quad_share: quads / (quads + triangles left over), what modelling programs show.
    """

    ts: float
    quad_ratio: float
    angle_quality: float
    aspect_ratio: float
    adjacent_consistency: float
    quads: int
    quad_share: float


def pair_quads(mesh: Mesh | Surface) -> Quads:
    """Turn triangles into quads: the best first, each triangle once (greedy matching).

    Two triangles may pair that share an edge of no third, are wound alike, fold by at most 40 degrees, and whose four
    corners together are within 40 degrees of right angles. Equal qualities pair in the order of the faces.

    Where the surface knows polygons, those of two triangles are quads already, whatever their shape; the triangles of
    larger polygons pair among each other only; single triangles as above.
    """
    surface = as_surface(mesh)
    edges, kept = surface.edges, surface.kept
    inner = np.flatnonzero(edges.count == 2)
    left, right = edges.sides[edges.first[inner]], edges.sides[edges.first[inner] + 1]  # [C] half-edges
    corners = surface.faces[kept]
    flat = corners.reshape(-1)
    alike = flat[left] != flat[right]  # they begin at different ends
    inner, left, right = inner[alike], left[alike], right[alike]
    face, other = kept[left // 3], kept[right // 3]

    angles = _corner_angles(surface, kept).reshape(-1)
    left_next, left_last = _turn(left, 1), _turn(left, 2)
    right_next, right_last = _turn(right, 1), _turn(right, 2)
    # left runs a -> b with wing c, right b -> a with wing d: the quad is a, d, b, c
    quad = np.stack([flat[left], flat[right_last], flat[left_next], flat[left_last]], 1)
    corner = np.stack(
        [
            angles[left] + angles[right_next],
            angles[right_last],
            angles[left_next] + angles[right],
            angles[left_last],
        ],
        1,
    )
    skew = np.abs(corner - np.pi / 2)  # [C, 4]
    quality = np.maximum(0.0, 1 - skew / (np.pi / 2)).mean(1)
    side_edges = edges.of_side.reshape(-1)
    sides = np.stack([side_edges[h] for h in (right_next, right_last, left_next, left_last)], 1)

    fold = np.einsum("ij,ij->i", surface.normals[face], surface.normals[other])
    solid = ~surface.degenerate
    allowed = (fold >= np.cos(MOST_FOLDED)) & (skew.max(1, initial=0) <= MOST_SKEWED) & solid[face] & solid[other]
    given = np.zeros(len(inner), bool)
    if surface.polygon is not None:
        allowed, given = _by_polygon(surface.polygon, face, other, allowed)
    chosen = _greedy(face, other, np.where(given, 2.0, quality), allowed | given, len(surface.faces))
    return Quads(np.stack([face, other], 1)[chosen], quad[chosen], quality[chosen], sides[chosen])


def topology_score(mesh: Mesh | Surface, quads: Quads | None = None) -> TopologyScore:
    """TS of a mesh, of the quads given or of those that `pair_quads` finds.

    Faces that collapse or were said before count as triangles left over.
    """
    surface = as_surface(mesh)
    quads = pair_quads(surface) if quads is None else quads
    count, triangles = len(quads.faces), len(surface.faces)
    if count == 0:
        return TopologyScore(0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0)
    positions = surface.vertices[quads.corners]  # [Q, 4, 3]
    length = np.linalg.norm(np.roll(positions, -1, 1) - positions, axis=2)
    uses = np.bincount(quads.sides.reshape(-1), minlength=len(surface.edges.count))
    parts = {
        "quad_ratio": 2 * count / triangles,
        "angle_quality": float(quads.quality.mean()),
        "aspect_ratio": float((length.min(1) / length.max(1)).mean()),
        "adjacent_consistency": float((uses[quads.sides] > 1).mean()),
    }
    ts = sum(WEIGHTS[name] * value for name, value in parts.items())
    return TopologyScore(ts=ts, **parts, quads=count, quad_share=count / (triangles - count))


def face_quality(mesh: Mesh | Surface, quads: Quads | None = None) -> Array:
    """[F] in [0, 1]: how good each face that came is, for masks over faces or tokens (M-DPO: phi is a threshold of it).

    The quality q of the face's own quad; 0 for a face without one, for one with a boundary or non-manifold edge, and
    for one that collapsed or was said before.
    """
    surface = as_surface(mesh)
    quads = pair_quads(surface) if quads is None else quads
    quality = np.zeros(len(surface.faces))
    quality[quads.faces] = quads.quality[:, None]
    sound = np.zeros(len(surface.faces), bool)
    edges = surface.edges
    sound[surface.kept] = (edges.count[edges.of_side] == 2).all(1)
    return np.where(sound, quality, 0.0)


def _turn(half_edge: Indices, steps: int) -> Indices:
    """The half-edge so many steps on in the same face."""
    return half_edge - half_edge % 3 + (half_edge + steps) % 3


def _corner_angles(surface: Surface, kept: Indices) -> Array:
    """[K, 3] radians, at each corner of the counted faces; exact also for slivers."""
    corners = surface.vertices[surface.faces[kept]]
    ahead, back = np.roll(corners, -1, 1) - corners, np.roll(corners, 1, 1) - corners
    twice_area = 2 * surface.areas[kept][:, None]
    return np.arctan2(twice_area, np.einsum("kij,kij->ki", ahead, back))


def _by_polygon(polygon: Indices, face: Indices, other: Indices, allowed: Flags) -> tuple[Flags, Flags]:
    """([C] pairs that polygons leave open, [C] pairs that are quads already)."""
    _, number, size = np.unique(polygon, return_inverse=True, return_counts=True)
    number = number.reshape(-1)
    same = number[face] == number[other]
    size_of = size[number]
    free = (size_of[face] == 1) & (size_of[other] == 1)
    return allowed & (free | (same & (size_of[face] > 2))), same & (size_of[face] == 2)


def _greedy(face: Indices, other: Indices, quality: Array, allowed: Flags, n_faces: int) -> Indices:
    """Candidates by descending quality, each face once."""
    candidates = np.flatnonzero(allowed)
    order = candidates[
        np.lexsort((other[candidates], face[candidates], -np.rint(quality[candidates] / _SAME).astype(np.int64)))
    ]
    taken = bytearray(n_faces)
    chosen = []
    for candidate, a, b in zip(order.tolist(), face[order].tolist(), other[order].tolist()):
        if not taken[a] and not taken[b]:
            taken[a] = taken[b] = 1
            chosen.append(candidate)
    return np.array(sorted(chosen), np.int64)
