"""The compiled look-up of `grids`: rows blended at points, forward and backward, float32 on the CPU.

The gradient of the table is a scatter. Each job owns some rows (a level, or a slab of one) and takes from all points,
in order, what falls into them, so results do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from rl3d.kernels import prange_only
from rl3d.scenes.grids import PRIMES, Level, lookup_torch

_P1, _P2 = np.uint32(PRIMES[1]), np.uint32(PRIMES[2])
_JOBS = 4  # slabs x levels of the scatter, at least; hashed levels are not cut
_BLOCK = 512  # points a forward job takes


@numba.njit(inline="always")
def _cell(coordinate, samples):  # type: ignore[no-untyped-def]
    """The cell's first sample and the position inside it; one sample has a cell of its own, NaN has the first."""
    position = np.float64(coordinate) * (samples - 1)
    if samples == 1:
        return np.int64(0), 0.0
    first = max(min(np.int64(position), samples - 2), 0)
    return first, position - first


@numba.njit(inline="always")
def _row(x, y, z, level):  # type: ignore[no-untyped-def]
    nx, ny, nz, first, rows = level[0], level[1], level[2], level[3], level[4]
    if nx * ny * nz <= rows:
        return first + (z * ny + y) * nx + x
    hashed = np.uint32(x) ^ (np.uint32(y) * _P1) ^ (np.uint32(z) * _P2)
    return first + np.int64(hashed & np.uint32(rows - 1))


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def _forward(table, points, levels, summed):  # type: ignore[no-untyped-def]
    """[N, C] or [N, L C] float32 features."""
    count, channels, depth = points.shape[0], table.shape[1], levels.shape[0]
    out = np.zeros((count, channels if summed else depth * channels), np.float32)
    for block in numba.prange((count + _BLOCK - 1) // _BLOCK):
        for n in range(block * _BLOCK, min(count, (block + 1) * _BLOCK)):
            for l in range(depth):
                level = levels[l]
                start = 0 if summed else l * channels
                x, fx = _cell(points[n, 0], level[0])
                y, fy = _cell(points[n, 1], level[1])
                z, fz = _cell(points[n, 2], level[2])
                for k in range(min(level[2], 2)):
                    wz = fz if k else 1.0 - fz
                    for j in range(min(level[1], 2)):
                        wy = wz * (fy if j else 1.0 - fy)
                        for i in range(min(level[0], 2)):
                            w = np.float32(wy * (fx if i else 1.0 - fx))
                            row = _row(x + i, y + j, z + k, level)
                            for c in range(channels):
                                out[n, start + c] += w * table[row, c]
    return out


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def _table_gradient(points, levels, summed, cotangent, rows, channels, slabs):  # type: ignore[no-untyped-def]
    """[R, C] float32; slabs lie along z, or along y where z has one sample."""
    count, depth = points.shape[0], levels.shape[0]
    out = np.zeros((rows, channels), np.float32)
    for job in numba.prange(slabs * depth):
        l, slab = job // slabs, job % slabs
        level = levels[l]
        start = 0 if summed else l * channels
        axis = 2 if level[2] > 1 else 1
        low, high = level[axis] * slab // slabs, level[axis] * (slab + 1) // slabs
        if level[0] * level[1] * level[2] > level[4]:  # hashed: any sample may fall into any row
            low, high = 0, level[axis] if slab == 0 else 0
        for n in range(count if high > low else 0):
            at, _ = _cell(points[n, axis], level[axis])
            if at + 1 < low or at >= high:
                continue
            x, fx = _cell(points[n, 0], level[0])
            y, fy = _cell(points[n, 1], level[1])
            z, fz = _cell(points[n, 2], level[2])
            for k in range(min(level[2], 2)):
                wz = fz if k else 1.0 - fz
                if axis == 2 and (z + k < low or z + k >= high):
                    continue
                for j in range(min(level[1], 2)):
                    wy = wz * (fy if j else 1.0 - fy)
                    if axis == 1 and (y + j < low or y + j >= high):
                        continue
                    for i in range(min(level[0], 2)):
                        w = np.float32(wy * (fx if i else 1.0 - fx))
                        row = _row(x + i, y + j, z + k, level)
                        for c in range(channels):
                            out[row, c] += w * cotangent[n, start + c]
    return out


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def _point_gradient(table, points, levels, summed, cotangent):  # type: ignore[no-untyped-def]
    """[N, 3] float32."""
    count, channels, depth = points.shape[0], table.shape[1], levels.shape[0]
    out = np.empty((count, 3), np.float32)
    for block in numba.prange((count + _BLOCK - 1) // _BLOCK):
        for n in range(block * _BLOCK, min(count, (block + 1) * _BLOCK)):
            gx = gy = gz = 0.0
            for l in range(depth):
                level = levels[l]
                start = 0 if summed else l * channels
                x, fx = _cell(points[n, 0], level[0])
                y, fy = _cell(points[n, 1], level[1])
                z, fz = _cell(points[n, 2], level[2])
                for k in range(min(level[2], 2)):
                    wz = fz if k else 1.0 - fz
                    for j in range(min(level[1], 2)):
                        wy = fy if j else 1.0 - fy
                        for i in range(min(level[0], 2)):
                            wx = fx if i else 1.0 - fx
                            row = _row(x + i, y + j, z + k, level)
                            value = 0.0
                            for c in range(channels):
                                value += np.float64(table[row, c]) * cotangent[n, start + c]
                            # An axis of one sample has the factor n - 1 = 0.
                            gx += (level[0] - 1) * (value if i else -value) * wy * wz
                            gy += (level[1] - 1) * (value if j else -value) * wx * wz
                            gz += (level[2] - 1) * (value if k else -value) * wx * wy
            out[n, 0], out[n, 1], out[n, 2] = gx, gy, gz
    return out


class _Lookup(torch.autograd.Function):
    """First derivatives by kernels; where a graph of the derivative is wanted, the twin builds it."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, points: Tensor, levels: tuple[Level, ...], summed: bool) -> Tensor:
        ctx.save_for_backward(table, points)
        ctx.levels, ctx.summed = levels, summed
        arrays = (table.detach().numpy(), points.detach().contiguous().numpy())
        return torch.from_numpy(_forward(*arrays, np.array(levels, np.int64), summed))

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        table, points = ctx.saved_tensors
        wants_table, wants_points = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # create_graph=True
            value = lookup_torch(table, points, ctx.levels, ctx.summed)
            wanted = [t for t, wants in ((table, wants_table), (points, wants_points)) if wants]
            gradients = iter(torch.autograd.grad(value, wanted, cotangent, create_graph=True))
            return next(gradients) if wants_table else None, next(gradients) if wants_points else None, None, None
        levels = np.array(ctx.levels, np.int64)
        g = cotangent.contiguous().numpy()
        arrays = (table.detach().numpy(), points.detach().contiguous().numpy())
        by_table = by_points = None
        if wants_table:
            slabs = -(-_JOBS // len(levels))
            by_table = torch.from_numpy(_table_gradient(arrays[1], levels, ctx.summed, g, *table.shape, slabs))
        if wants_points:
            by_points = torch.from_numpy(_point_gradient(*arrays, levels, ctx.summed, g))
        return by_table, by_points, None, None


def lookup(table: Tensor, points: Tensor, levels: tuple[Level, ...], summed: bool) -> Tensor:
    """`grids.lookup_torch` compiled; float32 tensors on the CPU, points in [0, 1]."""
    return _Lookup.apply(table, points, levels, summed)
