"""Drawing view groups and keeping what a replay needs: states, where each noisy step landed, and its log-density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.multiview.sampler_options import SamplerOptions
from rl3d.multiview.samplers import Levels, Step, predict_step
from rl3d.priors.protocol import Prior, PromptEmbedding, device_of
from rl3d.rl import gaussian_log_prob


@dataclass(frozen=True)
class Path:
    """B view groups drawn together; replayed together too, since other batch sizes round differently.

    Attributes:
        prompt, cameras: of the B rows; B * V cameras.
        options: the sampler's.
        levels: of the K noisy steps that were kept.
        states, landed: [K, B, V, c, h, w] before and after each of them.
        log_p: [K, B] of the policy that drew them.
        clean: [B, V, c, h, w] at t = 0.
    """

    prompt: PromptEmbedding
    cameras: Cameras
    options: SamplerOptions
    levels: tuple[Levels, ...]
    states: Tensor
    landed: Tensor
    log_p: Tensor
    clean: Tensor

    def __len__(self) -> int:
        return len(self.clean)


def noise_for(generators: Sequence[torch.Generator], shape: Sequence[int], like: Tensor) -> Tensor:
    """[B, *shape] of standard normals, each row from its own generator: who draws a row does not change it."""
    rows = [torch.randn(*shape, generator=g, device=g.device) for g in generators]
    return torch.stack(rows).to(like)


@torch.no_grad()
def rollout(
    prior: Prior,
    prompt: PromptEmbedding,
    cameras: Cameras,
    options: SamplerOptions,
    generators: Sequence[torch.Generator],
    *,
    keep: Sequence[int] | None = None,
    start: Tensor | None = None,
) -> Path:
    """Draw one view group a generator.

    Args:
        prompt: of B rows. cameras: B * V.
        generators: one a row, see `noise_for`.
        keep: indices of the steps that are noisy and kept (MixGRPO's window, Li et al. 2025, arXiv 2507.21802); None:
            all but the last.
        start: [B, V, c, h, w] noise to begin from instead of the generators' own (the same for all of a group in
            DanceGRPO).

    Raises:
        InputError: the numbers of prompts, cameras and generators do not fit, or `keep` names no noisy step.
    """
    b, v = len(generators), prior.n_views
    if len(prompt.prompts) != b or len(cameras) != b * v:
        raise InputError(f"{b} rows need {b} prompts and {b * v} cameras, got {len(prompt.prompts)}, {len(cameras)}")
    times = prior.times(options.steps).tolist()
    chosen = range(options.steps - 1) if keep is None else sorted(set(keep))
    if not all(0 <= i < options.steps - 1 for i in chosen):
        raise InputError(f"steps to keep must lie in [0, {options.steps - 2}], got {list(chosen)}")
    shape = (v, *prior.latent_shape)
    own = torch.zeros((), device=device_of(prior))
    x = noise_for(generators, shape, own) if start is None else start.to(own.device)
    levels, states, landed, log_p = [], [], [], []
    for i, (t, u) in enumerate(pairwise(times)):
        here = Levels.of(prior, t, u, x)
        step = predict_step(prior, x, here, prompt, cameras, options, noisy=i in chosen)
        if step.std == 0:
            x = step.mean
            continue
        moved = step.mean + step.std * noise_for(generators, shape, step.mean)
        levels.append(here)
        states.append(x)
        landed.append(moved)
        log_p.append(gaussian_log_prob(moved, step.mean, step.std))
        x = moved
    nothing = x.new_zeros((0, *x.shape))
    return Path(
        prompt,
        cameras,
        options,
        tuple(levels),
        torch.stack(states) if states else nothing,
        torch.stack(landed) if landed else nothing,
        torch.stack(log_p) if log_p else x.new_zeros(0, b),
        x,
    )


def replay(prior: Prior, path: Path, k: int) -> tuple[Tensor, Step]:
    """(log-density [B] of what the k-th kept step did, the step) under the prior as it is now; differentiable."""
    step = predict_step(prior, path.states[k], path.levels[k], path.prompt, path.cameras, path.options)
    return gaussian_log_prob(path.landed[k], step.mean, step.std), step


@torch.no_grad()
def zigzagged(
    prior: Prior, noise: Tensor, prompt: PromptEmbedding, cameras: Cameras, options: SamplerOptions, low: float = 1.0
) -> Tensor:
    """Noise that knows more of the prompt: one step down with the sampler's guidance, and back up with `low`.

    The first step of ZMV-Sampling (Zhang et al. 2025, arXiv 2505.20107), without its low-to-high middle steps.

    Args:
        noise: [B, V, c, h, w].
    """
    t, u = prior.times(options.steps).tolist()[:2]
    levels = Levels.of(prior, t, u, noise)
    down = predict_step(prior, noise, levels, prompt, cameras, options, noisy=False).mean
    x0, _ = prior.predict_x0(down, torch.full((len(down),), u, device=down.device), prompt, cameras, low)
    eps = (down - levels.a_u * x0) / levels.s_u
    return levels.a_t * x0 + levels.s_t * eps
