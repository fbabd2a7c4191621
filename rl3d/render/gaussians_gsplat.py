"""Gaussian splatting on CUDA through gsplat (Ye et al. 2024, arXiv 2409.06765), an optional package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl3d.backends import WAY_OUT
from rl3d.errors import InputError
from rl3d.render.gaussians_torch import LOW_PASS, NEAR


def load_gsplat() -> Any:
    """The gsplat module; InputError where it does not import."""
    try:
        import gsplat
    except (ImportError, OSError) as error:
        what = str(error).splitlines()[0]
        raise InputError(f'backend "gsplat" is installed but does not import ({what}); {WAY_OUT}') from None
    return gsplat


def splat_gsplat(
    means: Tensor,
    scales: Tensor,
    quaternions: Tensor,
    opacities: Tensor,
    colours: Tensor,
    view: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`rl3d.render.gaussians.splat` over black, by gsplat's kernels; float32 CUDA tensors.

    Differs from the reference in its alpha clamp (0.999) and in the radius at which a Gaussian is cut off, so images
    agree to about one 8-bit level where few opaque Gaussians overlap.

    Returns:
        rgb [V, D, H, W] premultiplied, alpha [V, 1, H, W], depth [V, 1, H, W].
    """
    gsplat = load_gsplat()
    try:
        image, alpha, _ = gsplat.rasterization(
            means,
            quaternions,
            scales,
            opacities,
            colours,
            view,
            intrinsics,
            width,
            height,
            near_plane=NEAR,
            eps2d=LOW_PASS,
            render_mode="RGB+ED",  # ED: expected depth, divided by alpha
            rasterize_mode="classic",
            packed=False,
        )
    except (ImportError, AttributeError) as error:
        # It imports without its kernels. On the first call it tries to build them (ImportError where that fails), or,
        # where there is no compiler, looks them up in None (AttributeError).
        raise InputError(f'backend "gsplat" is installed without working CUDA kernels ({error}); {WAY_OUT}') from error
    rgb, alpha, depth = image[..., :-1], alpha, image[..., -1:]
    depth = torch.where(alpha > 0, depth, torch.zeros_like(depth))
    return rgb.permute(0, 3, 1, 2), alpha.permute(0, 3, 1, 2), depth.permute(0, 3, 1, 2)
