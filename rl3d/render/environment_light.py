"""Light from all around as nine numbers a channel: order-2 spherical harmonics of the environment's radiance.

Ramamoorthi & Hanrahan 2001, "An efficient representation for irradiance environment maps": the cosine lobe keeps little
of an environment beyond degree 2, so a matt surface with normal n and albedo a sends out

    a / pi E(n),   E(n) = sum over l <= 2, m of A_l L_lm Y_lm(n),   A = (pi, 2 pi / 3, pi / 4).

An environment of constant radiance 1 shows the albedo itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.scenes.spherical_harmonics import C0, basis

_LOBE = (1.0, *(2 / 3,) * 3, *(1 / 4,) * 5)  # A_l / pi


def environment_factor(normals: Tensor, coefficients: Tensor) -> Tensor:
    """The factor on linear albedo; differentiable to both.

    Args:
        normals: [..., 3] unit, world. coefficients: [9, 3] radiance L_lm, linear RGB, in the order of
            `spherical_harmonics.basis`.

    Returns:
        [..., 3] linear RGB, >= 0 (nine numbers overshoot below 0 where a surface turns away from a strong light).
    """
    lobe = normals.new_tensor(_LOBE)[:, None]
    return (basis(normals, 9) @ (coefficients.to(normals) * lobe)).clamp_min(0)


def constant_environment(radiance: float | Tensor = 1.0) -> Tensor:
    """[9, 3] coefficients of the same light from everywhere: a number or [3] linear RGB; differentiable."""
    level = torch.as_tensor(radiance)
    level = level if level.is_floating_point() else level.to(torch.get_default_dtype())
    return torch.cat([(level / C0).expand(1, 3), level.new_zeros(8, 3)])


def project_environment(image: Tensor) -> Tensor:
    """Spherical-harmonic coefficients of an equirectangular image; differentiable.

    Args:
        image: [H, W, 3] linear radiance, >= 0. Row 0 looks up (+Y); the middle column looks along +Z, and columns to
            its right turn towards +X (a camera at azimuth 0 stands there).

    Returns:
        [9, 3] L_lm.

    Raises:
        InputError: another shape.
    """
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"an environment image must be [H, W, 3], linear RGB, got {list(image.shape)}")
    height, width = image.shape[:2]
    like = {"dtype": image.dtype, "device": image.device}
    edges = torch.linspace(0, math.pi, height + 1, **like)  # type: ignore[call-overload]
    polar = 0.5 * (edges[1:] + edges[:-1])[:, None]
    azimuth = (2 * math.pi / width) * (torch.arange(width, **like) + 0.5)[None] - math.pi  # type: ignore[call-overload]
    directions = torch.stack(
        torch.broadcast_tensors(polar.sin() * azimuth.sin(), polar.cos(), polar.sin() * azimuth.cos()), -1
    )
    solid_angle = (edges[:-1].cos() - edges[1:].cos()) * (2 * math.pi / width)  # [H], of one pixel
    return torch.einsum("hwk,hwc,h->kc", basis(directions, 9), image, solid_angle)


def check_environment(coefficients: Tensor) -> None:
    """Raise InputError if these are not [9, 3] finite numbers."""
    if tuple(coefficients.shape) != (9, 3) or not bool(torch.isfinite(coefficients.detach()).all()):
        raise InputError(
            f"an environment must be [9, 3] finite coefficients (see project_environment), got "
            f"{list(coefficients.shape)}"
        )
