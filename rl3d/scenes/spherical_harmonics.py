"""Real spherical harmonics of degree 0 to 3, in the order and with the signs of 3D Gaussian Splatting's files."""

from __future__ import annotations

import torch
from torch import Tensor

from rl3d.errors import InputError

COUNTS = (1, 4, 9, 16)  # coefficients up to degree 0, 1, 2, 3

C0 = 0.28209479177387814  # 1 / 2 sqrt(1 / pi)
C1 = 0.4886025119029199  # sqrt(3 / (4 pi))
C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
C3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)


def basis(directions: Tensor, count: int) -> Tensor:
    """The first `count` basis functions at unit directions [.., 3] -> [.., count]; differentiable.

    They are orthonormal on the sphere; odd orders carry the Condon-Shortley sign, as in Sloan 2008, "Stupid spherical
    harmonics tricks", appendix A2.
    """
    if count not in COUNTS:
        raise InputError(f"spherical harmonics come with 1, 4, 9 or 16 coefficients, got {count}")
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, C0)]
    if count > 1:
        values += [-C1 * y, C1 * z, -C1 * x]
    if count > 4:
        xx, yy, zz = x * x, y * y, z * z
        values += [
            C2[0] * x * y,
            -C2[0] * y * z,
            C2[1] * (2 * zz - xx - yy),
            -C2[0] * x * z,
            C2[2] * (xx - yy),
        ]
    if count > 9:
        values += [
            -C3[0] * y * (3 * xx - yy),
            C3[1] * x * y * z,
            -C3[2] * y * (4 * zz - xx - yy),
            C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            -C3[2] * x * (4 * zz - xx - yy),
            C3[4] * z * (xx - yy),
            -C3[0] * x * (xx - 3 * yy),
        ]
    return torch.stack(values, -1)


def evaluate(sh: Tensor, directions: Tensor) -> Tensor:
    """The functions with coefficients [N, K, C] (K = 1, 4, 9 or 16) at unit directions [.., N, 3] -> [.., N, C].

    Differentiable to both. A splat's colour is 0.5 + this, sRGB, not clamped here.
    """
    return torch.einsum("...nk,nkc->...nc", basis(directions, sh.shape[1]), sh)
