"""How far edges run on through quads: what modelling programs select as an edge loop.

QuadGPT (2509.21420) rewards a longer average loop and a lower fracture ratio and gives no formula for either; these two
are this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rl3d.metrics.quads import Quads, pair_quads
from rl3d.metrics.surfaces import Flags, Indices, Surface, as_surface
from rl3d.scenes.mesh import Mesh


@dataclass(frozen=True)
class EdgeLoops:
    """Of the sides of quads. An edge goes on at a vertex where four quads meet, in the edge across; along the mesh's
    border, at a vertex of two quads.

    Attributes:
        count: how many loops. average: edges in one, mean over loops; 0 without quads. Higher is better.
        fracture_ratio: of the ends of all sides, the share at a fault: at a vertex with a triangle that is in no quad,
            or with an edge of three faces or more, where nothing goes on. The border and poles among quads are no
            faults. [0, 1], lower is better; 1 without quads.
    """

    count: int
    average: float
    fracture_ratio: float


def edge_loops(mesh: Mesh | Surface, quads: Quads | None = None) -> EdgeLoops:
    """Follow the edges of the quads given, or of those that `pair_quads` finds."""
    surface = as_surface(mesh)
    quads = pair_quads(surface) if quads is None else quads
    if len(quads.faces) == 0:
        return EdgeLoops(0, 0.0, 1.0)
    edges, n_vertices = surface.edges, len(surface.vertices)
    sides = np.unique(quads.sides)  # [S] edges that are sides of quads
    ends = edges.ends[sides]

    faulty = np.zeros(n_vertices, bool)
    single = np.ones(len(surface.faces), bool)
    single[quads.faces] = False
    faulty[surface.faces[surface.kept[single[surface.kept]]]] = True
    faulty[edges.ends[edges.count > 2]] = True
    border = np.zeros(n_vertices, bool)
    border[edges.ends[edges.count == 1]] = True
    valence = np.bincount(ends.reshape(-1), minlength=n_vertices)
    around = np.bincount(quads.corners.reshape(-1), minlength=n_vertices)
    regular = ~faulty & ~border & (valence == 4) & (around == 4)
    along = ~faulty & border & (valence == 3) & (around == 2)

    one, other = (np.concatenate(pair) for pair in zip(_across(quads, regular), _along(surface, along)))
    place = np.empty(len(edges.count), np.int64)
    place[sides] = np.arange(len(sides))
    links = coo_array((np.ones(len(one), np.int8), (place[one], place[other])), shape=(len(sides),) * 2)
    count = connected_components(links, directed=False)[0]
    return EdgeLoops(count, len(sides) / count, float(faulty[ends].mean()))


def _along(surface: Surface, at: Flags) -> tuple[Indices, Indices]:
    """Pairs of border edges that meet at the vertices `at`, where there are two."""
    edge = np.flatnonzero(surface.edges.count == 1)
    vertex, edge = surface.edges.ends[edge].reshape(-1), edge.repeat(2)
    chosen = at[vertex]
    order = np.argsort(vertex[chosen], kind="stable")
    return edge[chosen][order][::2], edge[chosen][order][1::2]


def _across(quads: Quads, regular: Flags) -> tuple[Indices, Indices]:
    """Pairs of edges that go on in each other at the regular vertices, each pair twice.

    Every quad joins two edges at each of its corners. At a vertex of four quads, the edge across is the one that none
    of them joins with this one: the sum of all four, less this one and the two that quads join it with.
    """
    corner = quads.corners.reshape(-1)  # sides[q, i] runs from corner i to i + 1
    leaving, coming = quads.sides.reshape(-1), np.roll(quads.sides, 1, 1).reshape(-1)
    total = np.bincount(corner, weights=leaving + coming, minlength=len(regular)).astype(np.int64) // 2
    at_regular = np.flatnonzero(regular[corner])
    vertex = np.concatenate([corner[at_regular]] * 2)
    edge = np.concatenate([leaving[at_regular], coming[at_regular]])
    neighbour = np.concatenate([coming[at_regular], leaving[at_regular]])
    order = np.lexsort((edge, vertex))  # each edge of a vertex now stands twice in a row, with its two neighbours
    edge, neighbour, vertex = edge[order][::2], neighbour[order].reshape(-1, 2).sum(1), vertex[order][::2]
    return edge, total[vertex] - edge - neighbour
