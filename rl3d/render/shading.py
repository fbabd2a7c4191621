"""How a surface answers light. Light and albedo are multiplied in linear light; colours outside are sRGB.

The light is fixed to the world (it does not turn with the camera), white, from above, the right and the front. Normals
must already be turned to the viewer, which is what makes shading two-sided.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rl3d.colour import linear_to_srgb, srgb_to_linear
from rl3d.errors import ConfigError, nearest

SHADINGS = ("unlit", "half_lambert", "lambert")

# The lighting of the embedded prior's training images: albedo * (0.55 + 0.45 * (0.5 + 0.5 n.l)).
HALF_LAMBERT_LIGHT = tuple(c / math.hypot(0.35, 0.8, 0.5) for c in (0.35, 0.8, 0.5))  # unit, towards the light
HALF_LAMBERT_AMBIENT = 0.55
HALF_LAMBERT_DIFFUSE = 0.45

LAMBERT_LIGHT = HALF_LAMBERT_LIGHT
LAMBERT_AMBIENT = 0.3
LAMBERT_DIFFUSE = 0.7


def half_lambert(normals: Tensor) -> Tensor:
    """Soft light that wraps around the object (Valve's half Lambert without the square); differentiable.

    Args:
        normals: [..., 3] unit, world, turned to the viewer.

    Returns:
        [...] factor in [0.55, 1] on linear albedo.
    """
    cosine = normals @ normals.new_tensor(HALF_LAMBERT_LIGHT)
    return HALF_LAMBERT_AMBIENT + HALF_LAMBERT_DIFFUSE * (0.5 + 0.5 * cosine)


def lambert(normals: Tensor) -> Tensor:
    """Lambert's cosine law with an ambient floor; differentiable. [..., 3] unit normals to [...] in [0.3, 1]."""
    cosine = normals @ normals.new_tensor(LAMBERT_LIGHT)
    return LAMBERT_AMBIENT + LAMBERT_DIFFUSE * cosine.clamp_min(0)


def shade_factor(normals: Tensor, shading: str) -> Tensor:
    """The factor [...] on linear albedo for unit normals [..., 3]; 1 for "unlit".

    Raises:
        ConfigError: `shading` is not one of SHADINGS.
    """
    check_shading(shading)
    if shading == "unlit":
        return torch.ones_like(normals[..., 0])
    return half_lambert(normals) if shading == "half_lambert" else lambert(normals)


def shade(albedo: Tensor, normals: Tensor, shading: str = "half_lambert") -> Tensor:
    """Lit colour [..., 3], sRGB, of an sRGB albedo [..., 3] and unit normals [..., 3]; differentiable in both."""
    if shading == "unlit":
        return albedo
    return linear_to_srgb(srgb_to_linear(albedo) * shade_factor(normals, shading)[..., None])


def check_shading(shading: str) -> None:
    """Raise ConfigError when `shading` is unknown."""
    if shading not in SHADINGS:
        guess = nearest(shading, SHADINGS, 1)
        raise ConfigError(
            f"shading must be one of {', '.join(SHADINGS)}, got {shading!r}"
            + (f"; did you mean {guess[0]!r}?" if guess else "")
        )
