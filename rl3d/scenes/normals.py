"""Shading normals for files: smooth across gentle edges, sharp across creases."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def corner_normals(vertices: NDArray, faces: NDArray, crease: float) -> NDArray[np.float64]:
    """[F, 3, 3] unit normals of face corners.

    A corner's normal is the area-weighted mean over the faces at its position (equal coordinates, so that seams do not
    show) that turn by less than `crease` from its own face.

    Args:
        vertices: [N, 3]. faces: [F, 3]. crease: radians in [0, pi]; 0 is flat shading.
    """
    corners = vertices[faces].astype(np.float64)  # [F, 3, 3]
    weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(weighted, axis=1, keepdims=True)
    unit = np.where(length > 0, weighted / np.maximum(length, 1e-300), [0.0, 1.0, 0.0])
    _, place = np.unique(vertices[faces].reshape(-1, 3), axis=0, return_inverse=True)
    place = place.reshape(-1)
    order = np.argsort(place, kind="stable")  # corners, those at one position together
    count = np.bincount(place)
    start = np.cumsum(count) - count
    # Every ordered pair of corners at one position: `mine` meets `other`.
    mine = np.repeat(np.arange(len(place)), count[place])
    within = np.arange(len(mine)) - np.repeat(np.cumsum(count[place]) - count[place], count[place])
    other = order[start[place[mine]] + within]
    close = np.einsum("ij,ij->i", unit[mine // 3], unit[other // 3]) >= math.cos(crease) - 1e-9
    total = np.zeros((len(place), 3))
    np.add.at(total, mine[close], weighted[other[close] // 3])
    size = np.linalg.norm(total, axis=1, keepdims=True)
    flat = unit[np.arange(len(place)) // 3]
    return np.where(size > 1e-300, total / np.maximum(size, 1e-300), flat).reshape(-1, 3, 3)
