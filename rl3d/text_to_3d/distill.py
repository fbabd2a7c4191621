"""Score distillation in x0 form from random orbits (MVDream, Shi et al. 2023, arXiv 2308.16512, section 3 and 4).

One step: render V views x of a random orbit, noise them to a level t that is annealed over the run, let the prior say
how the clean views x0 should look, and pull the render towards them:

    L = 1/2 |x - sg(x0~)|^2,   x0~ = rho f x0_cfg + (1 - rho) x0_cfg,   f = std(x0_text) / std(x0_cfg)

The released code's rho is 0.5. The prior here is a pixel model, whose empty background is not zero but -1, so the
rescale acts around each group's mean instead of around zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.priors.protocol import Prior, PromptEmbedding
from rl3d.render.frames import Frames
from rl3d.text_to_3d.options import DistillOptions
from rl3d.text_to_3d.splats import Rates, SplatState, smallest_scale


@dataclass(frozen=True)
class Anchor:
    """Views [V, 4, H, W] (premultiplied sRGB + alpha) that the scene keeps being fitted to, and their cameras."""

    images: Tensor
    cameras: Cameras


def level_range(options: DistillOptions, progress: float) -> tuple[float, float]:
    """Noise levels (low, high) at `progress` in [0, 1] of the run, annealed linearly."""
    return tuple(a + (b - a) * progress for a, b in (options.t_min, options.t_max))  # type: ignore[return-value]


def prior_images(frames: Frames, prior: Prior) -> Tensor:
    """Frames over black as the images [V, C, H, W] that the prior works on; differentiable."""
    if prior.has_alpha:
        return torch.cat([frames.rgb, frames.alpha], 1)
    return frames.rgb + (1 - frames.alpha) * prior.background


def rescale_cfg(x0_cfg: Tensor, x0_text: Tensor, rho: float) -> Tensor:
    """MVDream's guard against over-saturation, per group: [B, V, c, h, w] each."""
    dims = (1, 2, 3, 4)
    mean = x0_cfg.mean(dims, keepdim=True)
    f = x0_text.std(dims, keepdim=True) / x0_cfg.std(dims, keepdim=True).clamp_min(1e-6)
    return mean + (rho * f + (1 - rho)) * (x0_cfg - mean)


def x0_target(
    prior: Prior,
    latents: Tensor,
    prompt: PromptEmbedding,
    cameras: Cameras,
    t: Tensor,
    noise: Tensor,
    options: DistillOptions,
) -> Tensor:
    """x0~ of renders `latents` [B, V, c, h, w] at noise levels `t` [B]; no gradient."""
    with torch.no_grad():
        x_t = prior.add_noise(latents, noise, t)
        x0_cfg, x0_text = prior.predict_x0(x_t, t, prompt, cameras, options.guidance)
        return rescale_cfg(x0_cfg, x0_text, options.rescale)


def random_orbits(prior: Prior, options: DistillOptions, generator: torch.Generator) -> Cameras:
    """`batch` groups of the prior's cameras at random azimuth and elevation."""
    groups = []
    for _ in range(options.batch):
        azimuth, height = torch.rand(2, generator=generator).tolist()
        low, high = options.elevation
        groups.append(prior.cameras(2 * math.pi * azimuth, math.radians(low + (high - low) * height)))
    return Cameras.cat(groups)


def distill_step(
    state: SplatState,
    prior: Prior,
    prompt: PromptEmbedding,
    anchor: Anchor | None,
    options: DistillOptions,
    generator: torch.Generator,
) -> dict[str, float]:
    """One optimisation step; returns numbers for the log.

    The generator's state at the call decides the orbit and the noise, so a step can be repeated exactly.
    """
    cameras = random_orbits(prior, options, generator)
    frames, layers = state.render_layers(cameras)
    images = prior_images(frames, prior).unflatten(0, (options.batch, -1))
    x = prior.to_latents(images)
    low, high = level_range(options, state.step / max(options.steps, 1))
    level = low + (high - low) * float(torch.rand((), generator=generator))
    t = torch.full((options.batch,), level, device=x.device)
    noise = torch.randn(x.shape, generator=generator).to(x)
    x0 = x0_target(prior, x.detach(), prompt, cameras, t, noise, options)
    if prior.has_alpha:
        x0 = x0.clamp(-1, 1)
    loss = 0.5 * ((x - x0) ** 2).mean()
    numbers = {"t": level, "distance": float(loss.detach()), "layers": float(layers.detach().mean())}
    loss = loss + options.layers_weight * layers.mean()
    if anchor is not None and options.anchor_weight > 0:
        seen = state.render(anchor.cameras)
        kept = ((torch.cat([seen.rgb, seen.alpha], 1) - anchor.images) ** 2).mean()
        numbers["anchor"] = float(kept.detach())
        loss = loss + options.anchor_weight * kept
    state.descend(loss, 1.0 - 0.7 * state.step / max(options.steps, 1), smallest_scale(cameras))
    return numbers


def distill_rates(options: DistillOptions) -> Rates:
    return Rates(options.lr_means, options.lr_scales, options.lr_colours, options.lr_opacities)
