"""Time the mesh metrics beside trimesh, pymeshlab and Open3D for the same numbers.

    python tools/bench_mesh_metrics.py                     # 10,000 faces, everything installed
    python tools/bench_mesh_metrics.py --faces 1000000 --repeats 1

Peers that are not installed are named as missing. Every time is CPU time of this process (all its threads), which other
programs disturb less than the clock; the best of --repeats, after a first call that compiles kernels. Loading files and
importing are not in it. The mesh is a bumpy ball, closed, of about the
number of faces asked for; the reference a smooth one of the same number.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rl3d.environment import environment, peak_memory_mib
from rl3d.metrics import (
    compare,
    edge_loops,
    face_quality,
    pair_quads,
    reference,
    score_mesh,
    self_intersecting,
    surface,
    topology,
    topology_score,
)

POINTS = 10_000


def ball(faces: int, bumps: float) -> tuple[np.ndarray, np.ndarray]:
    """A closed ball of squares (triangles at the poles), 2 n^2 faces or so, radius 1 give or take `bumps`."""
    n = max(int((faces / 2) ** 0.5), 3)
    around = np.arange(n) * (2 * np.pi / n)
    down = np.arange(1, n) * (np.pi / n)
    angle, tilt = np.meshgrid(around, down, indexing="ij")
    radius = 1 + bumps * np.sin(7 * angle) * np.sin(5 * tilt)
    points = radius[..., None] * np.stack(
        [np.sin(tilt) * np.cos(angle), np.cos(tilt), np.sin(tilt) * np.sin(angle)], -1
    )
    vertices = np.concatenate([points.reshape(-1, 3), [[0, 1, 0], [0, -1, 0]]])
    i, j = np.meshgrid(np.arange(n), np.arange(n - 2), indexing="ij")
    a, b = i * (n - 1) + j, (i + 1) % n * (n - 1) + j
    sides = np.stack([a, b, b + 1, a, b + 1, a + 1], -1).reshape(-1, 3)
    first, following = np.arange(n) * (n - 1), (np.arange(n) + 1) % n * (n - 1)
    top = np.stack([np.full(n, len(vertices) - 2), following, first], 1)
    bottom = np.stack([np.full(n, len(vertices) - 1), first + n - 2, following + n - 2], 1)
    return vertices, np.concatenate([sides, top, bottom])


def ours(mesh: tuple[np.ndarray, np.ndarray], target: tuple[np.ndarray, np.ndarray]) -> dict[str, Callable[[], Any]]:
    """What is timed of this project, from bare arrays; the reference is prepared before, as for many predictions."""
    prepared = reference(surface(*target))
    ready = surface(*mesh)
    quads = pair_quads(ready)
    return {
        "weld": lambda: surface(*mesh),
        "topology": lambda: topology(surface(*mesh)),
        "pair_quads": lambda: pair_quads(surface(*mesh)),
        "topology_score": lambda: topology_score(ready, quads),
        "face_quality": lambda: face_quality(ready, quads),
        "edge_loops": lambda: edge_loops(ready, quads),
        "self_intersections": lambda: self_intersecting(surface(*mesh)),
        "hausdorff": lambda: compare(surface(*mesh), prepared),
        "score": lambda: score_mesh(surface(*mesh)),
        "score with reference": lambda: score_mesh(surface(*mesh), prepared, faces=0),
    }


def peers(mesh: tuple[np.ndarray, np.ndarray], target: tuple[np.ndarray, np.ndarray]) -> dict[str, dict[str, Any]]:
    """The nearest thing that each library has, or why it is missing."""
    found: dict[str, dict[str, Any]] = {}
    for name, make in (("trimesh", _trimesh), ("pymeshlab", _pymeshlab), ("open3d", _open3d)):
        try:
            found[name] = make(importlib.import_module(name), mesh, target)
        except ImportError as error:
            found[name] = {"missing": str(error).splitlines()[0]}
    return found


def _trimesh(trimesh: Any, mesh: tuple, target: tuple) -> dict[str, Callable[[], Any]]:
    def facts() -> tuple:
        m = trimesh.Trimesh(*mesh, process=False)
        m.merge_vertices()
        counts = np.bincount(m.edges_unique_inverse)
        return (counts == 1).mean(), m.is_watertight, m.is_winding_consistent, m.euler_number, m.body_count

    return {"topology": facts}


def _pymeshlab(pymeshlab: Any, mesh: tuple, target: tuple) -> dict[str, Callable[[], Any]]:
    def one(shape: tuple) -> Any:
        meshes = pymeshlab.MeshSet()
        meshes.add_mesh(pymeshlab.Mesh(*shape))
        return meshes

    def facts() -> Any:
        meshes = one(mesh)
        meshes.meshing_merge_close_vertices()
        return meshes.get_topological_measures()

    def pairing() -> None:
        one(mesh).meshing_tri_to_quad_dominant()

    def crossing() -> None:
        one(mesh).compute_selection_by_self_intersections_per_face()

    def distances() -> None:
        meshes = one(mesh)
        meshes.add_mesh(pymeshlab.Mesh(*target))
        meshes.get_hausdorff_distance(sampledmesh=0, targetmesh=1, samplenum=POINTS)
        meshes.get_hausdorff_distance(sampledmesh=1, targetmesh=0, samplenum=POINTS)

    return {"topology": facts, "pair_quads": pairing, "self_intersections": crossing, "hausdorff": distances}


def _open3d(open3d: Any, mesh: tuple, target: tuple) -> dict[str, Callable[[], Any]]:
    def one(shape: tuple) -> Any:
        vector = open3d.utility
        return open3d.geometry.TriangleMesh(vector.Vector3dVector(shape[0]), vector.Vector3iVector(shape[1]))

    def facts() -> tuple:
        m = one(mesh)
        m.merge_close_vertices(1e-6)
        return m.is_edge_manifold(), m.is_vertex_manifold(), m.is_watertight(), m.euler_poincare_characteristic()

    def crossing() -> Any:
        return one(mesh).get_self_intersecting_triangles()

    def distances() -> None:
        for source, other in ((mesh, target), (target, mesh)):
            scene = open3d.t.geometry.RaycastingScene(nthreads=1)
            scene.add_triangles(open3d.t.geometry.TriangleMesh.from_legacy(one(other)))
            points = np.asarray(one(source).sample_points_uniformly(POINTS).points, np.float32)
            scene.compute_distance(open3d.core.Tensor(points), nthreads=1)

    # is_watertight looks for self-intersections too
    return {"topology and self_intersections": facts, "self_intersections": crossing, "hausdorff": distances}


def best(call: Callable[[], Any], repeats: int) -> float:
    """CPU milliseconds of the cheapest call, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return 1000 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    mesh, target = ball(args.faces, 0.05), ball(args.faces, 0.0)
    times = {name: best(call, args.repeats) for name, call in ours(mesh, target).items()}
    report: dict[str, Any] = {"faces": len(mesh[1]), "milliseconds": {"rl3d": times}, "missing": {}}
    for name, calls in {} if args.no_peers else peers(mesh, target).items():
        if "missing" in calls:
            report["missing"][name] = calls["missing"]
            continue
        report["milliseconds"][name] = {what: best(call, args.repeats) for what, call in calls.items()}
    report |= {"peak_memory_mib": peak_memory_mib(), "environment": environment()}
    if args.json:
        print(json.dumps(report, indent=2, default=str))
        return
    memory = f"peak memory {report['peak_memory_mib']} MiB"
    print(f"{report['faces']} faces, best of {args.repeats}, CPU milliseconds; {memory}")
    for what, own in times.items():
        others = [
            f"{peer} {found[what]:.1f} ({found[what] / own:.1f} times)"
            for peer, found in report["milliseconds"].items()
            if peer != "rl3d" and what in found
        ]
        print(f"  {what:22} {own:8.1f}   {', '.join(others)}".rstrip())
    for name, why in report["missing"].items():
        print(f"  {name} is missing: {why}")


if __name__ == "__main__":
    main()
