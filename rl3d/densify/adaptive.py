"""Adaptive density control of 3D Gaussian Splatting (Kerbl et al. 2023, arXiv 2308.04079, section 5.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rl3d.densify.rows import OPAQUE, Moments, check_schedule, normal, take
from rl3d.errors import InputError
from rl3d.scenes.gaussians import Gaussians, rotations


@dataclass(frozen=True)
class AdaptiveControl:
    """Knobs of adaptive density control; the defaults are those of Kerbl et al. for a scene of radius `extent`.

    Attributes:
        start, stop, every: steps from which, before which and how often to densify and prune.
        gradient: mean norm above which a Gaussian is densified; 2e-4 suits `accumulate` with cameras.
        extent: radius of the scene, metres; sizes below are shares of it.
        split_size: a Gaussian whose largest standard deviation is above is split, a smaller one is cloned.
        split_shrink: the children's standard deviations are divided by it.
        prune_opacity, prune_size: fainter and larger Gaussians go; size counts after the first opacity reset.
        prune_screen: the same for the size in the pictures, 3 standard deviations as a share of a picture's longer
            side, where `accumulate` has cameras; 0.15 is usual, infinity (the default) prunes none.
        reset_every: steps between opacity resets (0: never). reset_opacity: the most that is left by one.
        correct_opacity: a clone and its original get 1 - sqrt(1 - opacity), so that together they hide what one did.
        budget: Gaussians at most; those with the largest gradients come first.
    """

    start: int = 500
    stop: int = 15_000
    every: int = 100
    gradient: float = 2e-4
    extent: float = 1.0
    split_size: float = 0.01
    split_shrink: float = 1.6
    prune_opacity: float = 0.005
    prune_size: float = 0.1
    prune_screen: float = math.inf
    reset_every: int = 3000
    reset_opacity: float = 0.01
    correct_opacity: bool = False
    budget: int = 1_000_000

    def __post_init__(self) -> None:
        check_schedule(self.start, self.every, self.budget)
        if not (0 <= self.prune_opacity < 1 and 0 < self.reset_opacity < 1 and self.extent > 0):
            raise InputError(
                "AdaptiveControl needs prune_opacity in [0, 1), reset_opacity in (0, 1) and extent > 0, got "
                f"{self.prune_opacity}, {self.reset_opacity} and {self.extent}"
            )
        if self.reset_every > 0 and self.reset_opacity <= self.prune_opacity:
            raise InputError(
                f"reset_opacity {self.reset_opacity} must be above prune_opacity {self.prune_opacity}, "
                "or each reset prunes everything"
            )


def densify(
    policy: AdaptiveControl,
    mean: Tensor,
    screen: Tensor,
    step: int,
    gaussians: Gaussians,
    moments: Moments,
    generator: torch.Generator,
) -> tuple[Gaussians, Moments, dict[str, int]]:
    """Clone and split, then prune: the order of Kerbl et al.

    Args:
        mean: [N] the mean norm of the gradients. screen: [N] the largest size in a picture, see `DensifyState`.
    """
    hot = (mean > policy.gradient).nonzero()[:, 0]
    room = max(policy.budget - len(gaussians), 0)  # a clone and a split add one each
    if len(hot) > room:
        hot = hot[mean[hot].argsort(descending=True, stable=True)[:room]].sort().values
    large = gaussians.scales[hot].amax(1) > policy.split_size * policy.extent
    clone, split = hot[~large], hot[large]

    kept = torch.ones(len(gaussians), dtype=torch.bool, device=gaussians.device)
    kept[split] = False
    source = torch.cat([kept.nonzero()[:, 0], clone, split, split])  # which Gaussian each new row comes from
    fresh = torch.arange(len(source), device=source.device) >= int(kept.sum())
    if policy.correct_opacity and len(clone):
        logits = gaussians.opacity_logits.clone()
        logits[clone] = torch.logit(1 - (1 - logits[clone].sigmoid().clamp_max(OPAQUE)).sqrt())
        gaussians = replace(gaussians, opacity_logits=logits)
    out, rows = take(gaussians, moments, source, fresh)
    screen = screen[source]
    if len(split):
        children = torch.arange(len(source) - 2 * len(split), len(source), device=source.device)
        means, log_scales = out.means.clone(), out.log_scales.clone()
        offset = normal((len(children), 3), generator, means) * out.scales[children]
        means[children] += torch.einsum("nij,nj->ni", rotations(out.quaternions[children]), offset)
        log_scales[children] -= math.log(policy.split_shrink)
        screen[children] /= policy.split_shrink
        out = replace(out, means=means, log_scales=log_scales)

    gone = out.opacities < policy.prune_opacity
    if policy.reset_every and step > policy.reset_every:
        gone |= (out.scales.amax(1) > policy.prune_size * policy.extent) | (screen > policy.prune_screen)
    pruned = int(gone.sum())
    if pruned == len(out):
        raise InputError(
            f"all {len(out)} Gaussians would be pruned (opacity under {policy.prune_opacity} or too large); "
            "the optimisation has diverged, lower its rates"
        )
    if pruned:
        out, rows = take(out, rows, (~gone).nonzero()[:, 0])
    return out, rows, {"cloned": len(clone), "split": len(split), "pruned": pruned}


def reset_opacities(
    policy: AdaptiveControl, gaussians: Gaussians, moments: Moments
) -> tuple[Gaussians, Moments, dict[str, int]]:
    """Opacities of at most `reset_opacity`, without their moments: what the pictures need has to come back."""
    most = math.log(policy.reset_opacity / (1 - policy.reset_opacity))
    gaussians = replace(gaussians, opacity_logits=gaussians.opacity_logits.clamp_max(most))
    rows = {k: torch.zeros_like(v) if k.startswith("opacity_logits.") else v for k, v in moments.items()}
    return gaussians, rows, {"reset": len(gaussians)}
