"""The same numbers from libraries that many use. The package needs none of them; absent ones are skipped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from metric_shapes import both, cube, grid, sphere, turned

from rl3d.metrics import Protocol, Surface, compare, reference, self_intersecting, surface, topology

POINTS = 20_000


def shapes() -> dict[str, Surface]:
    vertices, faces = sphere(200, seed=1)
    crumpled = vertices * np.random.default_rng(0).uniform(0.7, 1.3, (200, 1)), faces
    fin = np.concatenate([faces, [[int(faces[0, 0]), int(faces[0, 1]), 200]]])
    return {
        "closed": surface(vertices, faces),
        "holes": surface(vertices, np.delete(faces, [3, 50, 51, 120], 0)),
        "sheet": surface(*turned(grid(6, jitter=0.2))),
        "in each other": surface(*both(crumpled, (turned(crumpled)[0] + 0.4, faces))),
        "two at a corner": surface(*both(cube(), (cube()[0] + 1, cube()[1]))),
        "fin": surface(np.concatenate([vertices, [[2.0, 2.0, 2.0]]]), fin),
    }


def test_pymeshlab_counts_the_same() -> None:
    pymeshlab = pytest.importorskip("pymeshlab")
    for name, s in shapes().items():
        t = topology(s)
        meshes = pymeshlab.MeshSet()
        meshes.add_mesh(pymeshlab.Mesh(s.vertices, s.faces[s.kept]))
        other: dict[str, Any] = meshes.get_topological_measures()
        assert (t.vertices, t.edges) == (other["vertices_number"], other["edges_number"]), name
        assert round(t.ber * t.edges) == other["boundary_edges"], name
        if (
            name != "two at a corner"
        ):  # one part here, since they share a vertex; two for MeshLab, which asks for an edge
            assert t.components == other["connected_components_number"], name
        assert t.edge_manifold == (other["non_two_manifold_edges"] == 0), name
        assert t.vertex_manifold == (other["non_two_manifold_vertices"] == 0), name
        meshes.compute_selection_by_self_intersections_per_face()
        assert self_intersecting(s).sum() == meshes.current_mesh().selected_face_number(), name


def test_pymeshlab_measures_the_same_distances() -> None:
    pymeshlab = pytest.importorskip("pymeshlab")
    one, other = surface(*turned(sphere(120, seed=2))), surface(*cube())
    mine = compare(one, reference(other, Protocol(points=POINTS)))
    meshes = pymeshlab.MeshSet()
    for s in (one, other):
        meshes.add_mesh(pymeshlab.Mesh(s.vertices, s.faces))
    found = [
        meshes.get_hausdorff_distance(sampledmesh=a, targetmesh=b, samplevert=True, sampleface=True, samplenum=POINTS)
        for a, b in ((0, 1), (1, 0))
    ]
    # the reference's longest side is 1, so the units are the same; MeshLab's own points are random
    assert mine.hausdorff == pytest.approx(max(f["max"] for f in found), rel=1e-2)
    assert mine.chamfer_l1 == pytest.approx(sum(f["mean"] for f in found) / 2, rel=1e-2)


def test_open3d_counts_the_same() -> None:
    try:  # an installed one fails with an OSError or ImportError where the system lacks libusb
        import open3d
    except (ImportError, OSError) as error:
        pytest.skip(f"Open3D does not import: {error}")
    for name, s in shapes().items():
        mesh = open3d.geometry.TriangleMesh(
            open3d.utility.Vector3dVector(s.vertices), open3d.utility.Vector3iVector(s.faces[s.kept])
        )
        t = topology(s)
        assert t.edge_manifold == mesh.is_edge_manifold(allow_boundary_edges=True), name
        assert t.vertex_manifold == mesh.is_vertex_manifold(), name
        crossing = self_intersecting(s)
        assert crossing.sum() == len(np.unique(np.asarray(mesh.get_self_intersecting_triangles()))), name
        assert (t.watertight and t.manifold and not crossing.any()) == mesh.is_watertight(), name
