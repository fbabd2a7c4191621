"""The compiled twin of `compositing`, forward and backward, and the march that packs samples; float32 on the CPU.

A ray belongs to one thread, and its samples' gradients are its own: results do not depend on the number of threads.
Compiled code is cached per file: after a change of a constant in `compositing`, touch this one.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl3d.kernels import prange_only
from rl3d.render.compositing import TRANSMITTANCE_MIN

_T_MIN = np.float64(TRANSMITTANCE_MIN)


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def _forward(thickness, features, offsets):  # type: ignore[no-untyped-def]
    """[R, D] and [R] float32."""
    rays, width = offsets.shape[0] - 1, features.shape[1]
    blended, coverage = np.zeros((rays, width), np.float32), np.zeros(rays, np.float32)
    for r in numba.prange(rays):
        total, transmittance = 0.0, 1.0
        for s in range(offsets[r], offsets[r + 1]):
            if transmittance < _T_MIN:
                break
            after = transmittance * np.exp(-np.float64(thickness[s]))
            weight = transmittance - after  # float64 keeps nine digits of a thickness of 1e-7
            total += weight
            for d in range(width):
                blended[r, d] += np.float32(weight) * features[s, d]
            transmittance = after
        coverage[r] = total
    return blended, coverage


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def _backward(thickness, features, offsets, blended, coverage, grad_blended, grad_coverage):  # type: ignore[no-untyped-def]
    """[S] and [S, D] float32: with q_i the cotangent of w_i, dL/dtau_i = T_(i+1) q_i - sum over j > i of w_j q_j."""
    rays, width = offsets.shape[0] - 1, features.shape[1]
    by_thickness = np.zeros(thickness.shape[0], np.float32)
    by_features = np.zeros(features.shape, np.float32)
    for r in numba.prange(rays):
        behind = np.float64(grad_coverage[r]) * coverage[r]  # first the whole sum, then what is behind each sample
        for d in range(width):
            behind += np.float64(grad_blended[r, d]) * blended[r, d]
        transmittance = 1.0
        for s in range(offsets[r], offsets[r + 1]):
            if transmittance < _T_MIN:
                break
            after = transmittance * np.exp(-np.float64(thickness[s]))
            weight = transmittance - after
            q = np.float64(grad_coverage[r])
            for d in range(width):
                q += np.float64(grad_blended[r, d]) * features[s, d]
                by_features[s, d] = np.float32(weight) * grad_blended[r, d]
            behind -= weight * q
            by_thickness[s] = after * q - behind
            transmittance = after
    return by_thickness, by_features


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, thickness: Tensor, features: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        arrays = _forward(*(t.detach().contiguous().numpy() for t in (thickness, features, offsets)))
        blended, coverage = map(torch.from_numpy, arrays)
        ctx.save_for_backward(thickness, features, offsets, blended, coverage)
        return blended, coverage

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        arrays = [t.detach().contiguous().numpy() for t in (*ctx.saved_tensors, *cotangents)]
        by_thickness, by_features = _backward(*arrays)
        return torch.from_numpy(by_thickness), torch.from_numpy(by_features), None


def composite_cpu(thickness: Tensor, features: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """`compositing.composite_torch`, compiled."""
    return _Composite.apply(thickness, features, offsets)


@numba.njit(inline="always")
def _is_occupied(o, d, t, low, high, occupied):  # type: ignore[no-untyped-def]
    depth, height, width = occupied.shape
    x = np.int64((o[0] + t * d[0] - low[0]) / (high[0] - low[0]) * width)
    y = np.int64((o[1] + t * d[1] - low[1]) / (high[1] - low[1]) * height)
    z = np.int64((o[2] + t * d[2] - low[2]) / (high[2] - low[2]) * depth)
    return occupied[min(max(z, 0), depth - 1), min(max(y, 0), height - 1), min(max(x, 0), width - 1)]


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def march_cpu(origins, directions, near, length, bins, shift, low, high, occupied):  # type: ignore[no-untyped-def]
    """`fields.march_torch` compiled: distances [S] float32 of the samples in occupied cells, and offsets [R + 1]."""
    rays = origins.shape[0]
    offsets = np.zeros(rays + 1, np.int64)
    for r in numba.prange(rays):
        count, o, d = 0, origins[r].astype(np.float64), directions[r].astype(np.float64)
        step = np.float64(length[r]) / max(bins[r], 1)
        for k in range(bins[r]):
            if _is_occupied(o, d, near[r] + (k + shift[r]) * step, low, high, occupied):
                count += 1
        offsets[r + 1] = count
    for r in range(rays):
        offsets[r + 1] += offsets[r]
    distances = np.empty(offsets[rays], np.float32)
    for r in numba.prange(rays):
        s, o, d = offsets[r], origins[r].astype(np.float64), directions[r].astype(np.float64)
        step = np.float64(length[r]) / max(bins[r], 1)
        for k in range(bins[r]):
            t = near[r] + (k + shift[r]) * step
            if _is_occupied(o, d, t, low, high, occupied):
                distances[s] = t
                s += 1
    return distances, offsets
