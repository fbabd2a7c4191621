"""The Cauchy-Schwarz divergence of two sets of points (Jenssen et al. 2006), as DreamCS (arXiv 2506.09814) uses it.

    D_CS(p, q) = -log[(int p q)^2 / (int p^2 int q^2)] >= 0,  0 where p = q

With kernel density estimates of both sets this is a formula of pairwise kernels:

    D = log mean_ij k(x_i, x_j) + log mean_ij k(y_i, y_j) - 2 log mean_ij k(x_i, y_j)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rl3d.errors import InputError


def cauchy_schwarz_divergence(x: Tensor, y: Tensor, bandwidth: float | Tensor | None = None) -> Tensor:
    """D_CS of two sets, a scalar; differentiable to both.

    Symmetric, never negative beyond rounding, 0 for equal sets; unbounded above. O(M^2 + N^2 + M N) memory.

    Args:
        x: [M, D]. y: [N, D]; M and N may differ.
        bandwidth: of the Gaussian kernel exp(-|u - v|^2 / (2 h^2)), in the points' units; None: the median distance
            between all points of both sets, a constant to the gradient.

    Raises:
        InputError: shapes, an empty set, numbers that are not finite, or a bandwidth that is not positive.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise InputError(f"two sets of points must be [M, D] and [N, D], got {list(x.shape)} and {list(y.shape)}")
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise InputError("a set of points holds NaN or infinity")
    h = median_distance(torch.cat([x, y])) if bandwidth is None else torch.as_tensor(bandwidth).to(x)
    if not bool(h > 0):
        raise InputError(f"the kernel's bandwidth must be positive, got {float(h):g}")
    return _log_mean(x, x, h) + _log_mean(y, y, h) - 2 * _log_mean(x, y, h)


def _log_mean(x: Tensor, y: Tensor, h: Tensor) -> Tensor:
    """log mean_ij k(x_i, y_j), without underflow for far sets."""
    squared = ((x[:, None] - y[None]) ** 2).sum(-1)
    return (-squared / (2 * h**2)).flatten().logsumexp(0) - math.log(len(x) * len(y))


@torch.no_grad()
def median_distance(points: Tensor) -> Tensor:
    """The median distance between different points [N, D] (N >= 2); 1 where all coincide."""
    distances = torch.nn.functional.pdist(points)
    positive = distances[distances > 0]
    return positive.median() if len(positive) else points.new_tensor(1.0)
