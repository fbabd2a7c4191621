"""Differentiable dual marching cubes with weights, after FlexiCubes (Shen et al. 2023, arXiv 2308.05371).

Every cube gets one vertex for each sheet of the surface that passes through it (Nielson 2004, dual marching cubes), at
a weighted mean of where the sheet crosses the cube's edges; every grid edge that is crossed gives a quad between the
four cubes around it.

The sheets come from a rule rather than a drawn table: on each face of a cube the crossings are joined in pairs, around
the inside corners where there are four, and the closed loops of joined crossings are the sheets. Two cubes whose single
loops both pass twice through the face that they share would give an edge with four quads; there both cubes join the
crossings around the outside corners, which parts the loops. So the mesh is manifold for any signs.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.scenes.isosurface import active_cubes, check_grid, corner_steps, crossing
from rl3d.scenes.mesh import Mesh

# Corners by bits (x, y, z); the 12 edges by their lower corner and axis; face 2 k + s lies on side s of axis k.
EDGES = [(a, a | 1 << k) for k in range(3) for a in range(8) if not a >> k & 1]
_ROUND = ((0, 0), (1, 0), (1, 1), (0, 1))
_FACES = [[side << k | i << (k + 1) % 3 | j << (k + 2) % 3 for i, j in _ROUND] for k in range(3) for side in range(2)]


def _edge(a: int, b: int) -> int:
    return EDGES.index((min(a, b), max(a, b)))


def _sheets(code: int, flipped: int = -1) -> tuple[list[int], int, int]:
    """The sheet of each of the 12 edges (-1: not crossed), the number of sheets, and the face that one passes twice.

    Args:
        code: the inside corners, by bits. flipped: a face whose crossings are joined around its outside corners.
    """
    links: dict[int, list[int]] = {}
    twice = []
    for face, corners in enumerate(_FACES):
        inside = [code >> c & 1 for c in corners]
        edges = [_edge(corners[q], corners[(q + 1) % 4]) for q in range(4)]
        crossed = [q for q in range(4) if inside[q] != inside[(q + 1) % 4]]
        arcs = [tuple(edges[q] for q in crossed)] if len(crossed) == 2 else []
        if len(crossed) == 4:
            arcs = [(edges[q - 1], edges[q]) for q in range(4) if inside[q] == (face != flipped)]
            twice.append((face, arcs))
        for a, b in arcs:
            links.setdefault(a, []).append(b)
            links.setdefault(b, []).append(a)
    sheet, count = [-1] * 12, 0
    for start in sorted(links):
        if sheet[start] < 0:
            queue = [start]
            while queue:
                edge = queue.pop()
                if sheet[edge] < 0:
                    sheet[edge] = count
                    queue += links[edge]
            count += 1
    bad = [face for face, arcs in twice if sheet[arcs[0][0]] == sheet[arcs[1][0]]]
    return sheet, count, bad[0] if bad else -1


@lru_cache(maxsize=1)
def _tables() -> tuple[list[list[list[int]]], list[list[int]], list[int]]:
    """Sheets [2, 256, 12] and their numbers [2, 256], as they are and flipped, and the face to flip [256] or -1.

    A cube with such a face has no other face with four crossings, so that one flip is all it ever needs.
    """
    plain = [_sheets(code) for code in range(256)]
    both = [plain, [_sheets(code, face) for code, (_, _, face) in enumerate(plain)]]
    return (
        [[s for s, _, _ in rows] for rows in both],
        [[n for _, n, _ in rows] for rows in both],
        [f for *_, f in plain],
    )


def flexicubes(
    values: Tensor,
    points: Tensor,
    alpha: Tensor | None = None,
    beta: Tensor | None = None,
    gamma: Tensor | None = None,
) -> tuple[Mesh, Tensor]:
    """The zero level by dual marching cubes; see the module.

    Args:
        values: [D, H, W] signed distances, negative inside. points: [D, H, W, 3] the samples' positions.
        alpha: [D - 1, H - 1, W - 1, 8] > 0, weights of each cube's corners: they move crossings along edges.
        beta: [D - 1, H - 1, W - 1, 12] > 0, weights of each cube's edges (order `EDGES`): they move vertices.
        gamma: [D - 1, H - 1, W - 1] > 0: quads become four triangles around a middle that leans to the diagonal whose
            cubes weigh more. None: two triangles, along the shorter diagonal.
        The weights' cubes count along z, y, x; corners by bits (x, y, z). None: all 1.

    Returns:
        The mesh, without colours, and the regulariser: how far, in mean, a vertex's distances to its crossings lie from
        their mean, metres (the paper's L_dev). Both are differentiable to all arguments; the mesh is empty where all
        signs agree.

    Raises:
        InputError: shapes, weights that are not positive, or numbers that are not finite.
    """
    check_grid(values, points)
    depth, height, width = values.shape
    device = values.device
    for name, weight, last in (("alpha", alpha, (8,)), ("beta", beta, (12,)), ("gamma", gamma, ())):
        want = (depth - 1, height - 1, width - 1, *last)
        if weight is not None and (tuple(weight.shape) != want or not bool((weight.detach() > 0).all())):
            raise InputError(f"flexicubes: {name} must be {list(want)} and positive, got {list(weight.shape)}")
    steps = corner_steps(tuple(values.shape), device)
    cubes = active_cubes(values)  # [M] flat index of each cube's first sample
    cell = ((cubes // (width * height)) * (height - 1) + cubes // width % height) * (width - 1) + cubes % width
    flat, places = values.reshape(-1), points.reshape(-1, 3)
    code = ((flat.detach()[cubes[:, None] + steps] < 0) << torch.arange(8, device=device)).sum(1)  # [M]
    flip = _to_flip(code, cubes, flat.numel(), steps)
    sheets, numbers, _ = _tables()
    sheet, counts = (torch.tensor(table, device=device)[flip, code] for table in (sheets, numbers))  # [M, 12], [M]
    first = counts.cumsum(0) - counts

    # Crossings [P], a cube and an edge each; grid edges are seen by up to four cubes.
    cube, edge = (sheet >= 0).nonzero().unbind(1)
    owner = first[cube] + sheet[cube, edge]  # [P] the dual vertex
    ends = torch.tensor(EDGES, device=device)[edge]  # [P, 2] corners
    a, b = (cubes[cube] + steps[ends[:, k]] for k in range(2))
    at_a, at_b = flat[a], flat[b]
    if alpha is not None:
        scale = alpha.reshape(-1, 8)[cell[cube]]
        at_a, at_b = (s * scale.gather(1, ends[:, k : k + 1])[:, 0] for k, s in enumerate((at_a, at_b)))
    where = crossing(at_a, at_b, places[a], places[b])  # [P, 3]
    weight = torch.ones_like(at_a) if beta is None else beta.reshape(-1, 12)[cell[cube], edge]
    total = int(counts.sum())
    whole = weight.new_zeros(total).index_add(0, owner, weight)
    vertices = where.new_zeros(total, 3).index_add(0, owner, weight[:, None] * where) / whole[:, None]
    deviation = _deviation(vertices, where, owner)

    # Quads: the crossings by grid edge and, around it, counter-clockwise seen from its upper end.
    axis = edge // 4
    near_i, near_j = (ends[:, 0] >> (axis + k) % 3 & 1 for k in (1, 2))
    turn = torch.tensor([[2, 1], [3, 0]], device=device)[near_i, near_j]
    order = ((a * 3 + axis) * 4 + turn).argsort()
    _, group, size = torch.unique_consecutive((a * 3 + axis)[order], return_inverse=True, return_counts=True)
    order = order[size[group] == 4]  # edges on the grid's border have fewer cubes: the surface is open there
    quads, inward = owner[order].reshape(-1, 4), flat.detach()[a[order[::4]]] >= 0
    corners = cell[cube[order]].reshape(-1, 4)
    quads = torch.where(inward[:, None], quads.flip(1), quads)
    corners = torch.where(inward[:, None], corners.flip(1), corners)
    return _split(vertices, quads, None if gamma is None else gamma.reshape(-1)[corners]), deviation


def _to_flip(code: Tensor, cubes: Tensor, samples: int, steps: Tensor) -> Tensor:
    """[M] 1 where a cube and its neighbour both pass a sheet twice through their common face, else 0."""
    face = torch.tensor(_tables()[2], device=code.device)[code]  # [M], -1: none
    face_of = torch.full((samples,), -1, device=code.device)
    face_of[cubes] = face
    step = steps[1 << face.clamp_min(0) // 2] * (2 * (face.clamp_min(0) % 2) - 1)
    # Beyond the grid's border lie samples that start no cube: theirs is -1.
    return ((face >= 0) & (face_of[cubes + step] == (face ^ 1))).long()


def _deviation(vertices: Tensor, where: Tensor, owner: Tensor) -> Tensor:
    """The mean over vertices of the mean absolute deviation of their distances to their crossings; 0 for none."""
    if len(vertices) == 0:
        return vertices.sum()
    squared = ((vertices[owner] - where) ** 2).sum(1)
    distance = torch.where(squared > 0, torch.where(squared > 0, squared, 1).sqrt(), 0)
    count = torch.bincount(owner, minlength=len(vertices))
    mean = distance.new_zeros(len(vertices)).index_add(0, owner, distance) / count
    return distance.new_zeros(len(vertices)).index_add(0, owner, (distance - mean[owner]).abs()).div(count).mean()


def _split(vertices: Tensor, quads: Tensor, gamma: Tensor | None) -> Mesh:
    """Quads [Q, 4] as triangles; gamma [Q, 4] of their corners' cubes."""
    a, b, c, d = quads.unbind(1)
    p, q, r, s = vertices[quads].unbind(1)
    if gamma is None:
        with torch.no_grad():
            along = ((p - r) ** 2).sum(1) <= ((q - s) ** 2).sum(1)
        one = torch.stack([a, b, c, a, c, d], 1)
        other = torch.stack([a, b, d, b, c, d], 1)
        return Mesh(vertices, torch.where(along[:, None], one, other).reshape(-1, 3))
    g = torch.stack([gamma[:, 0] * gamma[:, 2], gamma[:, 1] * gamma[:, 3]], 1)
    middle = (g[:, :1] * (p + r) / 2 + g[:, 1:] * (q + s) / 2) / g.sum(1, keepdim=True)
    m = len(vertices) + torch.arange(len(quads), device=quads.device)
    faces = torch.stack([a, b, m, b, c, m, c, d, m, d, a, m], 1).reshape(-1, 3)
    return Mesh(torch.cat([vertices, middle]), faces)
