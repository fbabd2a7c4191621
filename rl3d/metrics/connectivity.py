"""How well the faces of a mesh hang together: boundary edge ratio (BER, Mesh-RFT 2505.16761) and what guards it.

BER alone can be had for nothing: every face said twice has no boundary. So faces said before do not count, vertices are
welded first, and the ratios of what was dropped, and of non-manifold edges, stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rl3d.metrics.surfaces import Flags, Indices, Surface, as_surface
from rl3d.scenes.mesh import Mesh

NEEDLE = np.deg2rad(1.0)


@dataclass(frozen=True)
class Topology:
    """Of the welded mesh. Edges, vertices and components are those of its counted faces: no copies, none collapsed.

    Attributes:
        faces: all that came. counted_faces: those that count. vertices, edges: of the counted faces.
        ber: boundary edges / edges, [0, 1], lower is better; 1 without faces.
        non_manifold_ratio: edges of more than two faces / edges, [0, 1], lower is better; 1 without faces.
        winding_ratio: of the edges with two faces, the share that these run through in opposite directions, [0, 1].
        watertight: every edge has exactly two faces.
        winding_consistent: no edge is run through twice in the same direction.
        edge_manifold: no edge has more than two faces.
        vertex_manifold: the faces around every vertex are one fan.
        manifold: both.
        degenerate_ratio: faces without an area (collapsed, or corners on a line) / faces; 1 without faces.
        needle_ratio: faces with an angle under 1 degree, or degenerate / faces; 1 without faces.
        duplicate_ratio: faces said before, in whatever winding / faces.
        components: parts that share no vertex. euler: vertices - edges + faces.
    """

    faces: int
    counted_faces: int
    vertices: int
    edges: int
    ber: float
    non_manifold_ratio: float
    winding_ratio: float
    watertight: bool
    winding_consistent: bool
    edge_manifold: bool
    vertex_manifold: bool
    manifold: bool
    degenerate_ratio: float
    needle_ratio: float
    duplicate_ratio: float
    components: int
    euler: int


def topology(mesh: Mesh | Surface) -> Topology:
    """Count. A mesh without faces has the worst of every value.

    Raises:
        InputError: as `surface`, for a Mesh.
    """
    surface = as_surface(mesh)
    n_faces, kept, edges = len(surface.faces), surface.kept, surface.edges
    n_edges = len(edges.count)
    if n_edges == 0:
        return Topology(n_faces, 0, 0, 0, 1.0, 1.0, 0.0, False, False, False, False, False, 1.0, 1.0, 0.0, 0, 0)
    corners = surface.faces[kept]
    used = np.unique(corners)
    boundary, crowded = edges.count == 1, edges.count > 2
    forward = np.zeros(n_edges, np.int64)  # half-edges that run from the lower to the higher vertex
    np.add.at(forward, edges.of_side.reshape(-1), (corners < corners[:, [1, 2, 0]]).reshape(-1))
    pairs = edges.count == 2
    consistent = not bool(((forward > 1) | (edges.count - forward > 1)).any())
    edge_manifold, vertex_manifold = not bool(crowded.any()), _single_fans(surface)
    links = coo_array((np.ones(n_edges, np.int8), edges.ends.T), shape=(len(surface.vertices),) * 2)
    part = connected_components(links, directed=False)[1]
    return Topology(
        faces=n_faces,
        counted_faces=len(kept),
        vertices=len(used),
        edges=n_edges,
        ber=float(boundary.mean()),
        non_manifold_ratio=float(crowded.mean()),
        winding_ratio=float((forward[pairs] == 1).mean()) if pairs.any() else 0.0,
        watertight=bool(pairs.all()),
        winding_consistent=consistent,
        edge_manifold=edge_manifold,
        vertex_manifold=vertex_manifold,
        manifold=edge_manifold and vertex_manifold,
        degenerate_ratio=float(surface.degenerate.mean()),
        needle_ratio=float((surface.degenerate | _needles(surface)).mean()),
        duplicate_ratio=float(surface.duplicate.mean()),
        components=len(np.unique(part[used])),
        euler=len(used) - n_edges + len(kept),
    )


def _needles(surface: Surface) -> Flags:
    """[F] the smallest angle, between the two longest sides, is under 1 degree: area = a b sin(angle) / 2."""
    _, middle, longest = np.sort(surface.lengths, 1).T
    return 2 * surface.areas < np.sin(NEEDLE) * middle * longest


def _single_fans(surface: Surface) -> bool:
    """Whether the faces around every vertex hang together by edges at that vertex."""
    corner = surface.faces[surface.kept].reshape(-1)  # [H] vertex of every face corner, the nodes of a graph
    edges = surface.edges
    # Half-edges of one edge, each with the next in the sorted list: their faces meet at both ends of the edge.
    same = edges.of_side.reshape(-1)[edges.sides]
    a, b = edges.sides[:-1][same[1:] == same[:-1]], edges.sides[1:][same[1:] == same[:-1]]
    ends_a, ends_b = _ends_in_order(a, corner), _ends_in_order(b, corner)
    links = coo_array(
        (np.ones(2 * len(a), np.int8), (ends_a.reshape(-1), ends_b.reshape(-1))), shape=(len(corner),) * 2
    )
    fans = connected_components(links, directed=False)[0]
    return fans == len(np.unique(corner))


def _ends_in_order(side: Indices, corner: Indices) -> Indices:
    """[n, 2] the two face corners of half-edges, the one at the lower vertex first."""
    following = side - side % 3 + (side + 1) % 3
    ends = np.stack([side, following], 1)
    return np.where((corner[side] < corner[following])[:, None], ends, ends[:, ::-1])
