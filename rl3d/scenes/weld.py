"""Merging vertices by position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from rl3d.errors import InputError
from rl3d.scenes.mesh import Mesh


def position_groups(vertices: NDArray[np.floating], tolerance: float) -> NDArray[np.int64]:
    """[N] group of every vertex [N, 3]; those in one group are joined by steps of at most `tolerance`.

    Not a grid: two vertices closer than the tolerance always meet, wherever they lie.
    """
    order = np.lexsort(vertices.T[::-1])  # np.unique of rows does the same, four times as slowly
    starts = np.ones(len(order), bool)
    starts[1:] = (vertices[order[1:]] != vertices[order[:-1]]).any(1)
    unique = vertices[order[starts]]
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.cumsum(starts) - 1
    if tolerance <= 0 or len(unique) < 2:
        return inverse
    pairs = cKDTree(unique).query_pairs(tolerance, output_type="ndarray")
    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(len(unique),) * 2)
    return connected_components(links, directed=False)[1].astype(np.int64)[inverse]


def weld(mesh: Mesh, tolerance: float = 1e-6) -> Mesh:
    """Merge vertices within `tolerance` metres; the first of each group stays, in the order of the file.

    Faces, their order and their colours stay, also faces that collapse (`mesh_facts` counts them). Texture seams stay,
    since uvs are indexed apart. Vertices of different vertex colours (by more than half of 1/255) are kept apart, for a
    colour border would be lost. Differentiable: the kept positions are gathered from `mesh.vertices`.

    Raises:
        InputError: a negative tolerance.
    """
    if tolerance < 0:
        raise InputError(f"the weld tolerance must not be negative, got {tolerance}")
    group = position_groups(mesh.vertices.detach().cpu().numpy(), tolerance)
    if mesh.vertex_colours is not None:
        shade = np.rint(mesh.vertex_colours.detach().cpu().numpy() * 255).astype(np.int64)
        group = np.unique(np.column_stack([group, shade]), axis=0, return_inverse=True)[1].reshape(-1)
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    order = np.argsort(first)  # groups by their first vertex
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    keep = torch.from_numpy(first[order]).to(mesh.device)
    remap = torch.from_numpy(rank[inverse.reshape(-1)]).to(mesh.device)
    colours = None if mesh.vertex_colours is None else mesh.vertex_colours[keep]
    return replace(mesh, vertices=mesh.vertices[keep], faces=remap[mesh.faces], vertex_colours=colours)
