"""Renders as a prior's images, and a prior's images as what a reward sees."""

from __future__ import annotations

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.priors.protocol import Prior
from rl3d.render.frames import Frames
from rl3d.render.render import render
from rl3d.rewards.protocol import RewardInput
from rl3d.scenes.mesh import Mesh

BACKGROUND = 1.0  # sRGB grey level behind what rewards see


def prior_images(frames: Frames, prior: Prior) -> Tensor:
    """Frames over black as the images [V, C, H, W] that the prior works on; differentiable."""
    if prior.has_alpha:
        return torch.cat([frames.rgb, frames.alpha], 1)
    return frames.rgb + (1 - frames.alpha) * prior.background


def to_rgba(images: Tensor, prior: Prior) -> Tensor:
    """The prior's images [..., C, H, W] as premultiplied float32 RGBA; a plain background is keyed out by colour.

    Differentiable.
    """
    images = images.float()
    if prior.has_alpha:
        return images
    alpha = ((images - prior.background).abs().amax(-3, keepdim=True) * 8 - 0.3).clamp(0, 1)
    return torch.cat([images - (1 - alpha) * prior.background, alpha], -3).clamp(0, 1)


def reward_input(
    images: Tensor,
    prior: Prior,
    cameras: Cameras,
    prompts: list[str],
    depths: Tensor | None = None,
    normals: Tensor | None = None,
) -> RewardInput:
    """The prior's images [N, V, C, H, W] of N assets, over white, as a reward sees them; differentiable to the images.

    Args:
        cameras: V, or N * V in the order of the images. prompts: one an asset. depths, normals: as in `RewardInput`.
    """
    rgba = to_rgba(images, prior)
    rgb, alpha = rgba[:, :, :3], rgba[:, :, 3:]
    return RewardInput(
        rgb + (1 - alpha) * BACKGROUND,
        alpha,
        cameras,
        prompts,
        normals=normals,
        depths=depths,
        background=BACKGROUND,
    )


def mesh_input(mesh: Mesh, cameras: Cameras, prompts: list[str], pictures: bool = True) -> RewardInput:
    """One mesh, and its renders over white with normals and depths, as a reward sees them; differentiable to both.

    Args:
        cameras: V. prompts: one.
        pictures: False renders nothing, for a reward of the mesh alone: the images are a pixel of background each.
    """
    if not pictures:
        images = mesh.vertices.new_full((1, len(cameras), 3, 1, 1), BACKGROUND)
        alphas = torch.zeros_like(images[:, :, :1])
        return RewardInput(images, alphas, cameras, prompts, mesh=[mesh], background=BACKGROUND)
    frames = render(mesh, cameras, background=BACKGROUND, normals=True)
    assert frames.normal is not None  # asked for
    return RewardInput(
        frames.rgb[None],
        frames.alpha[None],
        cameras,
        prompts,
        normals=frames.normal[None],
        depths=frames.depth[None],
        mesh=[mesh],
        background=BACKGROUND,
    )
