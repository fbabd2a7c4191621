"""Regression on reward differences: the gap of two samples' log-ratios is taught to be the gap of their rewards.

A supervised target, stable where policy gradients are not (PRDP, Deng et al. 2024, arXiv 2402.08714). Two samples a and
b of one prompt; D = (log p - log p_old)(a) - (log p - log p_old)(b). Only the policy's log-probs get gradients. All
losses are minimised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.rl.tensors import positive, same_shape


@dataclass(frozen=True)
class DifferenceNumbers:
    """What to log of a step; scalar tensors without gradients.

    Attributes:
        residual: root mean square of D - target. target: root mean square of the target.
        clip_fraction: share of log-ratios to the old policy outside the clip range.
        cut_fraction: share of pairs (or steps of pairs) where the clipped error is the larger.
    """

    residual: Tensor
    target: Tensor
    clip_fraction: Tensor
    cut_fraction: Tensor


def rebel(
    log_probs_a: Tensor, log_probs_b: Tensor, old_a: Tensor, old_b: Tensor, difference: Tensor, *, eta: float
) -> tuple[Tensor, DifferenceNumbers]:
    """L = mean[(D / eta - (r_a - r_b))^2] (REBEL, Gao et al. 2024, arXiv 2404.16767).

    Its exact minimum is the mirror step p_theta ~ p_old exp(eta r): a small eta is a small step.

    Args:
        log_probs_a, ..., old_b: [B], of whole samples (summed over steps).
        difference: [B], r_a - r_b.

    Raises:
        InputError: shapes; an eta that is not positive.
    """
    same_shape(log_probs_a=log_probs_a, log_probs_b=log_probs_b, old_a=old_a, old_b=old_b, difference=difference)
    positive(eta=eta)
    d = (log_probs_a - old_a.detach()) - (log_probs_b - old_b.detach())
    error = d / eta - difference.detach()
    nothing = torch.zeros_like(error)
    return error.square().mean(), _numbers(error, difference, nothing, nothing)


def prdp(
    log_probs_a: Tensor,
    log_probs_b: Tensor,
    old_a: Tensor,
    old_b: Tensor,
    reference_a: Tensor,
    reference_b: Tensor,
    difference: Tensor,
    *,
    beta: float,
    clip: float,
) -> tuple[Tensor, DifferenceNumbers]:
    """Regress sum_t log(p/p_ref)(a) - sum_t log(p/p_ref)(b) onto (r_a - r_b)/beta (PRDP, arXiv 2402.08714).

    The minimum is the policy that maximises reward - beta KL to the reference. Proximal: per step, log(p/p_ref) may
    leave that of the old policy by at most `clip`, and the larger of both errors counts, so a pair that moved that far
    towards its target has no gradient, and one that moved away keeps it.

    Args:
        log_probs_a, ..., reference_b: [B, T] of each step. difference: [B], r_a - r_b.

    Raises:
        InputError: shapes; a beta or clip that is not positive.
    """
    same_shape(log_probs_a=log_probs_a, log_probs_b=log_probs_b, old_a=old_a, old_b=old_b)
    same_shape(log_probs_a=log_probs_a, reference_a=reference_a, reference_b=reference_b)
    same_shape(one_step=log_probs_a[..., 0], difference=difference)
    positive(beta=beta, clip=clip)
    start = (old_a - reference_a).detach() - (old_b - reference_b).detach()  # log(p_old/p_ref)
    moved_a, moved_b = log_probs_a - old_a.detach(), log_probs_b - old_b.detach()
    d = (start + moved_a - moved_b).sum(-1)
    d_clip = (start + moved_a.clamp(-clip, clip) - moved_b.clamp(-clip, clip)).sum(-1)
    return _pessimistic(d, d_clip, difference / beta, moved_a, moved_b, clip)


def zigal(
    log_probs_a: Tensor, log_probs_b: Tensor, old_a: Tensor, old_b: Tensor, target: Tensor, *, clip: float
) -> tuple[Tensor, DifferenceNumbers]:
    """L = mean max((D - A)^2, (D_clip - A)^2) per step and view (MV-ZigAL, Zhang et al. 2025, arXiv 2505.20107).

    D_clip has each log-ratio clipped to +-clip (1e-4 in the paper, mean over dims). Pessimistic: once D moved towards A
    beyond the clip there is no gradient; while it moves away there is. A is a difference of standardised rewards, of
    the order of 1, and D of 1e-4, so the loss hardly falls; the clip, not the target, ends a step.

    Args:
        log_probs_a, ..., old_b, target: one shape, [B], [B, T] or [B, T, V]; A = A(a) - A(b), expanded over steps (see
            `rl3d.rl.constraint.constrained_advantages` for the two rewards).

    Raises:
        InputError: shapes; a clip that is not positive.
    """
    same_shape(log_probs_a=log_probs_a, log_probs_b=log_probs_b, old_a=old_a, old_b=old_b, target=target)
    positive(clip=clip)
    moved_a, moved_b = log_probs_a - old_a.detach(), log_probs_b - old_b.detach()
    d_clip = moved_a.clamp(-clip, clip) - moved_b.clamp(-clip, clip)
    return _pessimistic(moved_a - moved_b, d_clip, target, moved_a, moved_b, clip)


def _pessimistic(
    d: Tensor, d_clip: Tensor, target: Tensor, moved_a: Tensor, moved_b: Tensor, clip: float
) -> tuple[Tensor, DifferenceNumbers]:
    error, clipped = d - target.detach(), (d_clip - target.detach()).square()
    loss = torch.maximum(error.square(), clipped).mean()
    outside = torch.stack([moved_a, moved_b]).detach().abs() > clip
    return loss, _numbers(error, target, outside, clipped.detach() > error.detach().square())


def _numbers(error: Tensor, target: Tensor, outside: Tensor, cut: Tensor) -> DifferenceNumbers:
    return DifferenceNumbers(
        error.detach().square().mean().sqrt(),
        target.detach().square().mean().sqrt(),
        outside.to(error).mean(),
        cut.to(error).mean(),
    )
