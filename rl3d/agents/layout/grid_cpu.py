"""Compiled kernels of `rl3d.agents.layout.grid`, one core a layout."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from rl3d.agents.layout.grid import MARGIN, ROBOT, strata
from rl3d.kernels import prange_only

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def legal_places_cpu(blocked: Tensor, cells: Tensor) -> Tensor:
    """See `grid.legal_places`."""
    g = blocked.shape[1]
    out = torch.empty(len(blocked), 4, g, g, dtype=torch.bool)
    _legal(blocked.contiguous().numpy(), cells.contiguous().numpy(), out.numpy())
    return out


def propose_cpu(
    legal: Tensor, floor: Tensor, items: Tensor, cells: Tensor, snug: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """See `grid.propose`."""
    out = torch.empty(uniform.shape, dtype=torch.int64)
    first, second = strata(uniform.shape[1])
    arrays = (t.contiguous().numpy() for t in (legal, floor, items, cells, snug, uniform))
    _propose(*arrays, first, second, out.numpy())
    return out, out[:, 0] >= 0


def walkable_cpu(floor: Tensor, seed: Tensor, room: Tensor, boxes: Tensor, solid: Tensor) -> tuple[Tensor, Tensor]:
    """See `grid.walkable`."""
    share = torch.empty(len(room))
    sides = torch.empty(*solid.shape, 4)
    arrays = (t.contiguous().numpy() for t in (floor, seed, room, boxes, solid))
    _walkable(*arrays, share.numpy(), sides.numpy())
    return share, sides


@njit(cache=True, inline="always")
def _sum(table: NDArray, i: int, j: int, i_end: int, j_end: int) -> int:
    last = table.shape[0] - 1
    a, b = min(max(i + MARGIN, 0), last), min(max(j + MARGIN, 0), last)
    c, d = min(max(i_end + MARGIN, 0), last), min(max(j_end + MARGIN, 0), last)
    return table[c, d] - table[a, d] - table[c, b] + table[a, b]


@njit(cache=True)
def _table(cells: Bools, invert: bool, outside: int) -> NDArray:
    """The summed-area table of a grid (or of its complement) with MARGIN cells of `outside` around."""
    g = cells.shape[0]
    side = g + 2 * MARGIN
    table = np.zeros((side + 1, side + 1), np.int32)
    for i in range(side):
        run = 0
        for j in range(side):
            a, b = i - MARGIN, j - MARGIN
            if a < 0 or b < 0 or a >= g or b >= g:
                run += outside
            elif cells[a, b] != invert:
                run += 1
            table[i + 1, j + 1] = table[i, j + 1] + run
    return table


@njit(cache=True, parallel=prange_only(), nogil=True)
def _legal(blocked: Bools, cells: Ints, out: Bools) -> None:
    n, g = blocked.shape[0], blocked.shape[1]
    for e in prange(n):
        table = _table(blocked[e], False, 1)
        for turn in range(2):
            rows, columns = cells[e, 1 - turn], cells[e, turn]
            for i in range(g):
                for j in range(g):
                    fits = i + rows <= g and j + columns <= g and _sum(table, i, j, i + rows, j + columns) == 0
                    out[e, turn, i, j] = fits
                    out[e, turn + 2, i, j] = fits


@njit(cache=True, inline="always")
def _strip(table: NDArray, i: int, j: int, i_end: int, j_end: int, side: int, depth: int) -> int:
    if side == 0:
        return _sum(table, i_end, j, i_end + depth, j_end)
    if side == 1:
        return _sum(table, i, j_end, i_end, j_end + depth)
    if side == 2:
        return _sum(table, i - depth, j, i, j_end)
    return _sum(table, i, j - depth, i_end, j)


@njit(cache=True, parallel=prange_only(), nogil=True)
def _propose(
    legal: Bools,
    floor: Bools,
    items: Bools,
    cells: Ints,
    snug: Ints,
    uniform: NDArray,
    first: int,
    second: int,
    out: Ints,
) -> None:
    n, g = floor.shape[0], floor.shape[1]
    count = uniform.shape[1]
    for e in prange(n):
        walls, things = _table(floor[e], True, 1), _table(items[e], False, 0)
        every = np.empty(4 * g * g, np.int32)
        usual = np.empty(4 * g * g, np.int32)
        beside = np.empty(4 * g * g, np.int32)
        n_every, n_usual, n_beside = 0, 0, 0
        width, kind = cells[e, 0], snug[e]
        for heading in range(4):
            rows, columns = cells[e, 1 - heading % 2], cells[e, heading % 2]
            for i in range(g):
                for j in range(g):
                    if not legal[e, heading, i, j]:
                        continue
                    place = (heading * g + i) * g + j
                    every[n_every] = place
                    n_every += 1
                    ie, je = i + rows, j + columns
                    if kind == 0:
                        fits = _strip(walls, i, j, ie, je, (heading + 2) % 4, 1) == width
                    elif kind == 1:
                        fits = 2 * _strip(things, i, j, ie, je, heading, 2) >= width
                    elif kind == 2:
                        fits = _sum(things, i - 4, j - 4, ie + 4, je + 4) > 0
                    else:
                        fits = True
                    if not fits:
                        continue
                    usual[n_usual] = place
                    n_usual += 1
                    if _sum(things, i - 2, j - 2, ie + 2, je + 2) > 0:
                        beside[n_beside] = place
                        n_beside += 1
        if n_usual == 0:
            usual, n_usual = every, n_every
        if n_beside == 0:
            beside, n_beside = usual, n_usual
        for c in range(count):
            if n_every == 0:
                out[e, c] = -1
            elif c < first:
                out[e, c] = beside[int(uniform[e, c] * n_beside)]
            elif c < second:
                out[e, c] = usual[int(uniform[e, c] * n_usual)]
            else:
                out[e, c] = every[int(uniform[e, c] * n_every)]


@njit(cache=True, parallel=prange_only(), nogil=True)
def _walkable(floor: Bools, seed: Ints, room: Ints, boxes: Ints, solid: Bools, share: NDArray, sides: NDArray) -> None:
    m, k = solid.shape[0], solid.shape[1]
    g = floor.shape[1]
    for e in prange(m):
        free = floor[room[e]].copy()
        for p in range(k):
            if solid[e, p]:
                free[boxes[e, p, 0] : boxes[e, p, 2], boxes[e, p, 1] : boxes[e, p, 3]] = False
        table = _table(free, True, 1)
        stand = np.zeros((g, g), np.bool_)
        standing = 0
        for i in range(g):
            for j in range(g):
                if free[i, j] and _sum(table, i - ROBOT, j - ROBOT, i + ROBOT + 1, j + ROBOT + 1) == 0:
                    stand[i, j] = True
                    standing += 1
        reached = np.zeros((g, g), np.bool_)
        stack = np.empty(g * g, np.int32)
        height, count = 0, 0
        i, j = seed[room[e], 0], seed[room[e], 1]
        if stand[i, j]:
            reached[i, j] = True
            stack[0] = i * g + j
            height, count = 1, 1
        while height > 0:
            height -= 1
            i, j = stack[height] // g, stack[height] % g
            for di, dj in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                a, b = i + di, j + dj
                if 0 <= a < g and 0 <= b < g and stand[a, b] and not reached[a, b]:
                    reached[a, b] = True
                    count += 1
                    stack[height] = a * g + b
                    height += 1
        share[e] = count / max(standing, 1)
        for p in range(k):
            i, j, ie, je = boxes[e, p, 0], boxes[e, p, 1], boxes[e, p, 2], boxes[e, p, 3]
            for side in range(4):
                total, length = 0, 0
                if side % 2 == 0:
                    row = ie + ROBOT if side == 0 else i - ROBOT - 1
                    length = je - j
                    if 0 <= row < g:
                        for b in range(j, je):
                            total += reached[row, b]
                else:
                    column = je + ROBOT if side == 1 else j - ROBOT - 1
                    length = ie - i
                    if 0 <= column < g:
                        for a in range(i, ie):
                            total += reached[a, column]
                sides[e, p, side] = total / max(length, 1)
