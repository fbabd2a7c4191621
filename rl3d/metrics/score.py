"""Everything that is measured of one mesh, and the three numbers that count in the end: BER, TS, Hausdorff distance.

Each of the three can be had alone by a worthless mesh: BER by saying faces twice, TS by flat boxes, the distance by a
soup of triangles. Gates find such meshes; one that fails any gets the worst of all three.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rl3d.errors import InputError
from rl3d.metrics.connectivity import Topology, topology
from rl3d.metrics.geometry import FARTHEST, Geometry, Reference, compare
from rl3d.metrics.intersections import self_intersecting
from rl3d.metrics.loops import EdgeLoops, edge_loops
from rl3d.metrics.quads import TopologyScore, pair_quads, topology_score
from rl3d.metrics.surfaces import Surface, as_surface, surface
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.mesh_io import load_polygons


@dataclass(frozen=True)
class Gates:
    """What a mesh must pass; the limits themselves pass. docs/mesh_metrics.md says where artists' meshes lie.

    Attributes:
        least_faces: that count (neither copies nor collapsed).
        most_duplicates: share of faces said before.
        most_needles: share of faces with an angle under 1 degree or without an area.
        most_boundary: BER; a soup of single triangles has 1, of single squares 0.8, of pairs of squares 0.67.
        most_non_manifold: share of edges with more than two faces.
        least_share, most_share: of the number of faces asked for, where one was.
        most_hausdorff: longest sides of the reference, where there is one.
    """

    least_faces: int = 4
    most_duplicates: float = 0.25
    most_needles: float = 0.5
    most_boundary: float = 0.6
    most_non_manifold: float = 0.25
    least_share: float = 0.25
    most_share: float = 4.0
    most_hausdorff: float = 0.2

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value < math.inf:
                raise InputError(f"Gates.{name} must not be negative or infinite, got {value}")


GATES = Gates()


@dataclass(frozen=True)
class MeshScore:
    """What is measured, as it is, and what counts.

    Attributes:
        ber, ts: as in `topology` and `quads`, or 1 and 0 where a gate failed.
        hausdorff: as in `geometry`, or 1 where a gate failed; None without a reference.
        failed: one sentence for each gate that failed, or why the mesh could not be read; empty for a sound mesh.
        self_intersection_ratio: share of the faces that go through others.
        geometry: None without a reference.
    """

    ber: float
    ts: float
    hausdorff: float | None
    failed: tuple[str, ...]
    topology: Topology
    quads: TopologyScore
    loops: EdgeLoops
    self_intersection_ratio: float
    geometry: Geometry | None

    @property
    def passed(self) -> bool:
        return not self.failed

    def as_json(self) -> dict[str, Any]:
        """Plain values, all finite."""
        return asdict(self)


def score_mesh(
    mesh: Mesh | Surface, reference: Reference | None = None, *, faces: int | None = None, gates: Gates = GATES
) -> MeshScore:
    """Measure a mesh.

    Args:
        reference: what to compare with, from `rl3d.metrics.reference`.
        faces: how many were asked for; None: as many as the reference has, 0: any number.

    Raises:
        InputError: a Mesh with NaN, infinite or absurd vertices, or bad indices; a negative number of faces.
    """
    if faces is not None and faces < 0:
        raise InputError(f"the number of faces asked for must not be negative, got {faces}; 0 is any number")
    surface = as_surface(mesh)
    quads = pair_quads(surface)
    found, score = topology(surface), topology_score(surface, quads)
    geometry = None if reference is None else compare(surface, reference)
    if faces is None:
        faces = 0 if reference is None else len(reference.surface.kept)
    failed = tuple(_failures(found, geometry, faces, gates))
    distance = None if geometry is None else geometry.hausdorff
    return MeshScore(
        ber=1.0 if failed else found.ber,
        ts=0.0 if failed else score.ts,
        hausdorff=FARTHEST if failed and geometry is not None else distance,
        failed=failed,
        topology=found,
        quads=score,
        loops=edge_loops(surface, quads),
        self_intersection_ratio=float(self_intersecting(surface).mean()) if found.faces else 1.0,
        geometry=geometry,
    )


def worst_score(why: str, compared: bool) -> MeshScore:
    """The score of what is no mesh at all: an undecodable sample, a file that cannot be read.

    Args:
        compared: whether there is a reference.
    """
    nothing = surface(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
    return MeshScore(
        ber=1.0,
        ts=0.0,
        hausdorff=FARTHEST if compared else None,
        failed=(why,),
        topology=topology(nothing),
        quads=topology_score(nothing),
        loops=edge_loops(nothing),
        self_intersection_ratio=1.0,
        geometry=Geometry() if compared else None,
    )


def score_file(
    path: str | Path, reference: Reference | None = None, *, faces: int | None = None, gates: Gates = GATES
) -> MeshScore:
    """Measure a mesh file, with the polygons that it has. One that cannot be read gets the worst of everything.

    Raises:
        InputError: a negative number of faces.
    """
    try:
        loaded = load_surface(path)
    except InputError as error:
        return worst_score(str(error), reference is not None)
    return score_mesh(loaded, reference, faces=faces, gates=gates)


def load_surface(path: str | Path) -> Surface:
    """The surface in a mesh file, with its polygons where it has any beside triangles.

    Raises:
        InputError: as `Mesh.load`.
    """
    raw = load_polygons(path)
    polygon = raw.polygon
    if polygon is not None and len(np.unique(polygon)) == len(polygon):
        polygon = None
    return surface(raw.vertices, raw.faces, polygon, str(path))


def _failures(found: Topology, geometry: Geometry | None, faces: int, gates: Gates) -> Iterator[str]:
    count = found.counted_faces
    if count < gates.least_faces:
        yield f"faces: {count} count, at least {gates.least_faces} make a shape"
    for name, value, most in (
        ("duplicates", found.duplicate_ratio, gates.most_duplicates),
        ("needles", found.needle_ratio, gates.most_needles),
        ("soup", found.ber, gates.most_boundary),
        ("non-manifold", found.non_manifold_ratio, gates.most_non_manifold),
    ):
        if value > most:
            yield f"{name}: {value:.3f}, at most {most:g}"
    if faces > 0 and not gates.least_share * faces <= count <= gates.most_share * faces:
        yield f"face count: {count}, asked for {faces} ({gates.least_share:g} to {gates.most_share:g} times it)"
    if geometry is not None and geometry.hausdorff > gates.most_hausdorff:
        yield f"distance: {geometry.hausdorff:.3f} from the reference, at most {gates.most_hausdorff:g}"
