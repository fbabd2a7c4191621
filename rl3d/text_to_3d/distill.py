"""One step of score distillation from a random orbit, whatever the method: render, ask the method, descend.

V views of a random orbit are noised to a level t that is annealed over the run; the method says where they should go
(`rl3d.text_to_3d.engine`); the scene follows, held by its anchor views and its own geometry term.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.priors.protocol import Prior, PromptEmbedding
from rl3d.reconstruct.leaves import Rates
from rl3d.reconstruct.splats import smallest_scale
from rl3d.rewards.pictures import prior_images
from rl3d.text_to_3d.engine import Shot, balanced
from rl3d.text_to_3d.methods import Guide
from rl3d.text_to_3d.options import DistillOptions
from rl3d.text_to_3d.scene import SceneState


@dataclass(frozen=True)
class Anchor:
    """Views [V, 4, H, W] (premultiplied sRGB + alpha) that the scene keeps being fitted to, and their cameras."""

    images: Tensor
    cameras: Cameras


def level_range(options: DistillOptions, progress: float) -> tuple[float, float]:
    """Noise levels (low, high) at `progress` in [0, 1] of the run, annealed linearly."""
    return tuple(a + (b - a) * progress for a, b in (options.t_min, options.t_max))  # type: ignore[return-value]


def random_orbits(prior: Prior, options: DistillOptions, generator: torch.Generator) -> Cameras:
    """`batch` groups of the prior's cameras at random azimuth and elevation."""
    groups = []
    for _ in range(options.batch):
        azimuth, height = torch.rand(2, generator=generator).tolist()
        low, high = options.elevation
        groups.append(prior.cameras(2 * math.pi * azimuth, math.radians(low + (high - low) * height)))
    return Cameras.cat(groups)


def distill_step(
    state: SceneState,
    prior: Prior,
    prompt: PromptEmbedding,
    anchor: Anchor | None,
    options: DistillOptions,
    generator: torch.Generator,
    guide: Guide | None = None,
) -> dict[str, float]:
    """One optimisation step; returns numbers for the log.

    The generator's state at the call and the guide's memory decide the orbit and the noise, so a step can be repeated
    exactly.

    Args:
        guide: the method; None: MVDream's. Its memory moves on with the step.
    """
    guide = guide or Guide()
    method = guide.options
    progress = state.step / max(options.steps, 1)
    if method.batch is not None:
        options = replace(options, batch=round(method.batch.at(progress)))
    cameras = random_orbits(prior, options, generator)
    seen_by = cameras
    if method.resolution is not None:
        seen_by = cameras.resized(max(8, round(method.resolution.at(progress) * prior.image_size)))
    frames, layers = state.render_layers(seen_by)
    images = prior_images(frames, prior)
    if images.shape[-1] != cameras.width:
        images = F.interpolate(images, (cameras.height, cameras.width), mode="bilinear", align_corners=False)
    images = images.unflatten(0, (options.batch, -1))  # [B, V, C, H, W]
    leaf = images.detach().requires_grad_(True)
    x = prior.to_latents(leaf)
    low, high = level_range(options, progress)
    level = low + (high - low) * float(torch.rand((), generator=generator))
    depths = frames.depth.detach().unflatten(0, (options.batch, -1)) if seen_by is cameras else None
    guidance = guide.method.step(
        Shot(
            prior,
            prompt,
            cameras,
            leaf.detach(),
            x.detach(),
            level,
            progress,
            options,
            method,
            guide.reward,
            generator,
            depths,
            getattr(state, "mesh", None) if method.scene == "sdf" else None,
            guide.memory,
        )
    )
    distance = 0.5 * ((x - guidance.target) ** 2).mean()
    numbers = {"t": level, "distance": float(distance.detach()), "layers": float(layers.detach().mean())}
    (gradient,) = torch.autograd.grad(distance, leaf)
    memory = {**guide.memory, **guidance.memory}
    if guidance.push is not None:
        scale = x.numel()  # the mean over elements divides G by their number
        factor, means = balanced(gradient * scale, guidance.push, guidance.strength, method.reward, memory)
        memory |= means
        gradient = gradient + factor / scale * guidance.push
        numbers["balance"] = factor
    loss = (images * gradient).sum()
    if guidance.scene_loss is not None:
        leaves = list(state.tensors.values())
        pull, push = (_flat_gradient(part, leaves) for part in (loss * x.numel(), guidance.scene_loss))
        factor, means = balanced(pull, push, guidance.strength, method.reward, memory)
        memory |= means
        loss = loss + factor / x.numel() * guidance.scene_loss
        numbers["balance"] = factor
    numbers |= guidance.numbers
    loss = loss + options.layers_weight * layers.mean()
    if anchor is not None and options.anchor_weight > 0:
        seen = state.render(anchor.cameras)
        kept = ((torch.cat([seen.rgb, seen.alpha], 1) - anchor.images) ** 2).mean()
        numbers["anchor"] = float(kept.detach())
        loss = loss + options.anchor_weight * kept
    state.descend(loss, 1.0 - 0.7 * progress, smallest_scale(cameras))
    guide.memory = memory
    return numbers


def _flat_gradient(loss: Tensor, leaves: list[Tensor]) -> Tensor:
    """The gradient of a loss by all leaves as one vector; the graph stays."""
    slopes = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    flat = [torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, slopes)]
    vector = torch.cat([part.flatten() for part in flat])
    if not bool(torch.isfinite(vector).all()):
        raise InputError("a gradient on the scene is not finite; lower method.reward.weight, or check the reward")
    return vector


def distill_rates(options: DistillOptions) -> Rates:
    return Rates(options.lr_means, options.lr_scales, options.lr_colours, options.lr_opacities)
