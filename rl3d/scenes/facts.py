"""What can be said of a mesh without looking at it: counts, topology, size."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rl3d.errors import InputError
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.weld import position_groups


def mesh_facts(mesh: Mesh, tolerance: float = 1e-6) -> dict[str, Any]:
    """Facts of the surface after welding by position (colours and seams do not count), as plain JSON values.

    Keys:
        vertices, faces: used vertices and all faces after welding.
        degenerate_faces: faces that collapse or have less than 1e-12 of the bounding diagonal's square as area; the
            collapsed ones do not take part in what follows.
        components: parts that share no vertex.
        boundary_edges, non_manifold_edges: edges of one face, of more than two.
        watertight: every edge has exactly two faces. consistent_winding: and they run along it in opposite directions.
        extents: [3] metres. area: square metres. volume: cubic metres where watertight and consistent, else None.

    Raises:
        InputError: the mesh has no faces.
    """
    if len(mesh.faces) == 0:
        raise InputError(f"a mesh without faces ({len(mesh.vertices)} vertices) has no facts")
    positions = mesh.vertices.detach().cpu().double().numpy()
    faces = position_groups(positions, tolerance)[mesh.faces.cpu().numpy()]  # [F, 3]
    triangles = positions[mesh.faces.cpu().numpy()]
    cross = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    area = 0.5 * np.linalg.norm(cross, axis=1)
    low, high = triangles.reshape(-1, 3).min(0), triangles.reshape(-1, 3).max(0)
    collapsed = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 2] == faces[:, 0])
    degenerate = collapsed | (area <= 1e-12 * float(((high - low) ** 2).sum()))
    used, whole = np.unique(faces, return_inverse=True)
    whole = whole.reshape(-1, 3)
    solid = whole[~collapsed]

    start, end = solid.reshape(-1), solid[:, [1, 2, 0]].reshape(-1)
    key = np.minimum(start, end) * len(used) + np.maximum(start, end)  # one int64 an edge sorts faster than pairs
    edge_key, count = np.unique(key, return_counts=True)
    edge = np.stack(np.divmod(edge_key, len(used)), 1)  # [E, 2]
    once = len(np.unique(start * len(used) + end)) == len(start)
    boundary, crowded = int((count == 1).sum()), int((count > 2).sum())
    watertight = len(solid) > 0 and boundary == 0 and crowded == 0
    links = coo_array((np.ones(len(edge), np.int8), (edge[:, 0], edge[:, 1])), shape=(len(used),) * 2)
    labels = connected_components(links, directed=False)[1]
    volume = float((triangles[:, 0] * np.cross(triangles[:, 1], triangles[:, 2])).sum() / 6)
    return {
        "vertices": len(used),
        "faces": len(faces),
        "watertight": watertight,
        "consistent_winding": bool(watertight and once),
        "components": len(np.unique(labels[solid])) if len(solid) else 0,
        "boundary_edges": boundary,
        "non_manifold_edges": crowded,
        "degenerate_faces": int(degenerate.sum()),
        "extents": (high - low).tolist(),
        "area": float(area.sum()),
        "volume": volume if watertight and once else None,
    }
