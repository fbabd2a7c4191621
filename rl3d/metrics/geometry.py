"""How far a mesh is from a reference, by one protocol, so that all numbers of this project compare with each other.

10,000 points a mesh, uniform by area, seed 0; from each point to the nearest place on the other surface,
exactly (not to its nearest sample, which would give two samplings of one surface a distance). Lengths are in units of
the longest side of the reference's box. Neither mesh is moved or scaled: a prediction elsewhere, or of another size, is
wrong. A distance counts 1 at most, which is also what a mesh gets that cannot be measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rl3d.errors import InputError
from rl3d.metrics.surfaces import Array, Indices, Surface, as_surface
from rl3d.metrics.tree import Tree, build, nearest
from rl3d.scenes.mesh import Mesh

FARTHEST = 1.0  # longest sides of the reference
_R2 = np.array([0.7548776662466927, 0.5698402909980532])  # 1/g, 1/g^2 with g^3 = g + 1 (Roberts 2018)
SHARP = np.deg2rad(30.0)  # an edge is sharp where the normals of its two faces differ by more


@dataclass(frozen=True)
class Protocol:
    """points: a mesh, on its surface and along its sharp edges. threshold: of the F-score, in longest sides."""

    points: int = 10_000
    seed: int = 0
    threshold: float = 0.01

    def __post_init__(self) -> None:
        if self.points < 1 or self.seed < 0:
            raise InputError(f"a protocol takes at least 1 point and a seed from 0, got {self.points} and {self.seed}")
        if not 0 < self.threshold < FARTHEST:
            raise InputError(f"the threshold of the F-score must lie between 0 and 1, got {self.threshold}")


PROTOCOL = Protocol()


@dataclass(frozen=True)
class Geometry:
    """Distances in longest sides of the reference, each counted as 1 at most. Defaults are the worst of each.

    Attributes:
        hausdorff: the farthest that either surface is from the other (all corners and all samples), [0, 1].
        chamfer_l1: mean over both directions of the mean distance, [0, 1].
        chamfer_l2: mean over both directions of the mean squared distance, [0, 1].
        f_score: harmonic mean of precision and recall, [0, 1], higher is better.
        precision, recall: share of the prediction's points within the threshold of the reference, and the other way.
        normal_consistency: mean over both directions of |cos| between a point's normal and that of the nearest face,
            [0, 1], higher is better.
        signed_normal_consistency: the same without | |, [-1, 1]: tells inside out.
        edge_chamfer: chamfer_l1 between the sharp, boundary and non-manifold edges of the two, of points uniform by
            length; 0 where neither has such edges, 1 where one has none.
    """

    hausdorff: float = FARTHEST
    chamfer_l1: float = FARTHEST
    chamfer_l2: float = FARTHEST
    f_score: float = 0.0
    precision: float = 0.0
    recall: float = 0.0
    normal_consistency: float = 0.0
    signed_normal_consistency: float = -1.0
    edge_chamfer: float = FARTHEST


@dataclass(frozen=True)
class Samples:
    """Points of a surface. points, normals: [P, 3]; faces: [P], which face of the surface each lies on."""

    points: Array
    normals: Array
    faces: Indices


@dataclass(frozen=True)
class Reference:
    """A mesh to compare with, prepared once for many predictions.

    Attributes:
        unit: length of the longest side of its box, in its own unit.
        faces: [S] those that count and have an area, in the order of `tree`.
        corners: [C, 3] vertices of these faces.
        edge_tree, edge_points [P, 3]: of the sharp edges, None where there are none.
    """

    surface: Surface
    unit: float
    protocol: Protocol
    faces: Indices
    tree: Tree
    samples: Samples
    corners: Array
    edge_tree: Tree | None
    edge_points: Array | None


def reference(mesh: Mesh | Surface, protocol: Protocol = PROTOCOL) -> Reference:
    """Prepare a mesh to compare with.

    Raises:
        InputError: it has no face with an area.
    """
    surface = as_surface(mesh)
    if not has_area(surface):
        raise InputError("the reference has no face with an area, nothing can be compared with it; give another")
    used = surface.vertices[np.unique(surface.faces[_solid(surface)])]
    return _prepare(surface, float(np.ptp(used, axis=0).max()), protocol)


def compare(prediction: Mesh | Surface, with_reference: Reference | Mesh | Surface) -> Geometry:
    """All distances of a prediction from a reference. One without a face that has an area gets the worst of each.

    Raises:
        InputError: the reference is none.
    """
    target = with_reference if isinstance(with_reference, Reference) else reference(with_reference)
    surface = as_surface(prediction)
    if not has_area(surface):
        return Geometry()
    mine = _prepare(surface, target.unit, target.protocol)
    to_target, toward = _distances(mine, target), _distances(target, mine)
    threshold = target.protocol.threshold
    precision, recall = float((to_target.samples <= threshold).mean()), float((toward.samples <= threshold).mean())
    return Geometry(
        hausdorff=float(
            max(to_target.samples.max(), to_target.corners.max(), toward.samples.max(), toward.corners.max())
        ),
        chamfer_l1=float(to_target.samples.mean() + toward.samples.mean()) / 2,
        chamfer_l2=float((to_target.samples**2).mean() + (toward.samples**2).mean()) / 2,
        f_score=2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0,
        precision=precision,
        recall=recall,
        normal_consistency=float(np.abs(to_target.cosines).mean() + np.abs(toward.cosines).mean()) / 2,
        signed_normal_consistency=float(to_target.cosines.mean() + toward.cosines.mean()) / 2,
        edge_chamfer=_edge_chamfer(mine, target),
    )


def hausdorff(prediction: Mesh | Surface, with_reference: Reference | Mesh | Surface) -> float:
    """The symmetric Hausdorff distance alone, see `Geometry`."""
    return compare(prediction, with_reference).hausdorff


def sample_points(mesh: Mesh | Surface, count: int, seed: int = 0) -> Samples:
    """Points uniform by area on the faces that count, as evenly as a sequence of low discrepancy spreads them.

    One in each of `count` equal shares of the area; those of one face lie as R2, shifted by random numbers. The same
    surface, count and seed give the same points.

    Raises:
        InputError: no face has an area, or a count under 1.
    """
    surface = as_surface(mesh)
    if count < 1:
        raise InputError(f"the number of points must be at least 1, got {count}")
    if not has_area(surface):
        raise InputError("the mesh has no surface to draw points from: all its faces are degenerate")
    solid = _solid(surface)
    cumulative = surface.areas[solid].cumsum()
    random = np.random.default_rng(seed)
    at = (np.arange(count) + random.random(count)) * (cumulative[-1] / count)
    face = solid[np.minimum(np.searchsorted(cumulative, at, side="right"), len(solid) - 1)]
    spread, share = ((np.arange(count)[:, None] * _R2 + random.random(2)) % 1).T
    root = np.sqrt(spread)
    weights = np.stack([1 - root, root * (1 - share), root * share], 1)  # Osada et al. 2002, eq. 1
    points = np.einsum("pi,pij->pj", weights, surface.vertices[surface.faces[face]])
    return Samples(points, surface.normals[face], face)


def has_area(surface: Surface) -> bool:
    """Whether any face that counts is not degenerate."""
    return len(_solid(surface)) > 0


def sharp_edges(mesh: Mesh | Surface) -> Indices:
    """[S, 2] vertices of the edges that are seen: folded by more than 30 degrees, of one face, or of more than two."""
    surface = as_surface(mesh)
    edges, kept = surface.edges, surface.kept
    sharp = edges.count != 2
    inner = np.flatnonzero(~sharp)
    left, right = edges.sides[edges.first[inner]], edges.sides[edges.first[inner] + 1]
    one, other = kept[left // 3], kept[right // 3]
    cosine = np.einsum("ij,ij->i", surface.normals[one], surface.normals[other])
    start = surface.faces[kept].reshape(-1)
    cosine = np.where(start[left] == start[right], -cosine, cosine)  # a fold is one, however the two are wound
    known = ~(surface.degenerate[one] | surface.degenerate[other])
    sharp[inner] = known & (cosine < np.cos(SHARP))
    return edges.ends[sharp]


def _solid(surface: Surface) -> Indices:
    return surface.kept[~surface.degenerate[surface.kept]]


def _prepare(surface: Surface, unit: float, protocol: Protocol) -> Reference:
    faces = _solid(surface)
    segments = surface.vertices[sharp_edges(surface)]  # [E, 2, 3]
    there = len(segments) > 0
    return Reference(
        surface=surface,
        unit=unit,
        protocol=protocol,
        faces=faces,
        tree=build(surface.vertices[surface.faces[faces]]),
        samples=sample_points(surface, protocol.points, protocol.seed),
        corners=surface.vertices[np.unique(surface.faces[faces])],
        edge_tree=build(segments[:, [0, 1, 1]]) if there else None,  # triangles without an area
        edge_points=_along(segments, protocol) if there else None,
    )


@dataclass(frozen=True)
class _Distances:
    """From one mesh to another: of its samples and corners, at most 1, and the cosines of the samples' normals."""

    samples: Array
    corners: Array
    cosines: Array


def _distances(source: Reference, target: Reference) -> _Distances:
    away, at = nearest(target.tree, source.samples.points)
    corners, _ = nearest(target.tree, source.corners)
    normals = target.surface.normals[target.faces[at]]
    return _Distances(
        np.minimum(away / target.unit, FARTHEST),
        np.minimum(corners / target.unit, FARTHEST),
        np.einsum("ij,ij->i", source.samples.normals, normals),
    )


def _along(segments: Array, protocol: Protocol) -> Array:
    """[P, 3] points uniform by length on segments [E, 2, 3], one in each of P equal shares."""
    start, end = segments[:, 0], segments[:, 1]
    cumulative = np.linalg.norm(end - start, axis=1).cumsum()
    random = np.random.default_rng(protocol.seed)
    at = (np.arange(protocol.points) + random.random(protocol.points)) * (cumulative[-1] / protocol.points)
    which = np.minimum(np.searchsorted(cumulative, at, side="right"), len(segments) - 1)
    share = random.random(protocol.points)[:, None]
    return start[which] + share * (end - start)[which]


def _edge_chamfer(prediction: Reference, target: Reference) -> float:
    if prediction.edge_points is None and target.edge_points is None:
        return 0.0
    if prediction.edge_points is None or target.edge_points is None:
        return FARTHEST
    assert prediction.edge_tree is not None and target.edge_tree is not None
    there = nearest(target.edge_tree, prediction.edge_points)[0] / target.unit
    back = nearest(prediction.edge_tree, target.edge_points)[0] / target.unit
    return float(np.minimum(there, FARTHEST).mean() + np.minimum(back, FARTHEST).mean()) / 2
