"""Policy gradients: REINFORCE, the clipped surrogate of PPO and DDPO, DPOK and GRPO.

Log-probs are of samples that were drawn before: constants x, and log p_theta(x) as a function of theta. All losses are
minimised. Only `log_probs` (and `kl`, where it is an argument) get gradients; everything else is a constant.

Two conventions of log-prob meet here. Over latents it is the mean over dims (`rl3d.rl.kl.gaussian_log_prob`): ratios
stay within 1e-3 of 1, clip ranges are 1e-5 to 1e-3, and PPO's 0.2 would never clip. Over actions and tokens it is the
log-probability itself, and 0.1 to 0.2 is usual. So `clip` has no default.

The advantage's size only counts relative to the learning rate; a ratio of 1 at the first update is to be checked with
`rl3d.rl.guards.check_replay`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rl.kl import k3
from rl3d.rl.tensors import masked_mean, positive, row_mean, same_shape, under_mask


@dataclass(frozen=True)
class PolicyNumbers:
    """What to log of a step; scalar tensors without gradients, see `rl3d.rl.as_floats`.

    Attributes:
        ratio_mean: of p_theta / p_old; drifts below 1 at low noise before anything else shows (GRPO-Guard).
        ratio_deviation: the largest |ratio - 1|; 0 at the first update, or the replay is broken.
        clip_fraction: share with |ratio - 1| > clip. cut_fraction: share that has no gradient for it, which is those
            that moved beyond the range in the direction that the advantage asked for.
        approx_kl: k3 estimate of KL(old || theta), in units of the log-probs.
    """

    ratio_mean: Tensor
    ratio_deviation: Tensor
    clip_fraction: Tensor
    cut_fraction: Tensor
    approx_kl: Tensor


def reinforce(log_probs: Tensor, advantages: Tensor, mask: Tensor | None = None) -> Tensor:
    """L = -mean(A log p_theta) (Williams 1992); its gradient at p_old = p_theta is that of `clipped_surrogate`.

    On-policy only: one optimiser step per batch of samples. Carve3D trains so, with `carve3d_advantages` as A.

    Args:
        log_probs, advantages: the same shape, any. mask: the same shape, True where a step or token counts.

    Raises:
        InputError: shapes, or a mask under which nothing counts.
    """
    same_shape(log_probs=log_probs, advantages=advantages)
    return -masked_mean(advantages.detach() * under_mask(log_probs, mask), mask)


def clipped_surrogate(
    log_probs: Tensor, log_probs_old: Tensor, advantages: Tensor, *, clip: float, mask: Tensor | None = None
) -> tuple[Tensor, PolicyNumbers]:
    """L = mean max(-A rho, -A clip(rho, 1 - c, 1 + c)), rho = p_theta / p_old (PPO, arXiv 1707.06347 eq. 7; DDPO).

    Args:
        log_probs, log_probs_old, advantages: the same shape, any: [B], [B, T] steps, [B, T, V] views.
        clip: c, see the module's text. mask: as in `reinforce`.

    Raises:
        InputError: as `reinforce`; a clip that is not positive.
    """
    loss = _surrogate(log_probs, log_probs_old, advantages.detach(), clip, mask)
    return masked_mean(loss, mask), _numbers(log_probs, log_probs_old, advantages, clip, mask)


def dpok(log_probs: Tensor, rewards: Tensor, kl: Tensor, *, alpha: float, beta: float) -> Tensor:
    """L = mean_i[-alpha r_i sum_t log p_theta(x_t-1|x_t) + beta sum_t KL_t] (DPOK, Fan et al. 2023, arXiv 2305.16381).

    On-policy. KL is the exact one of each Gaussian step to the PRE-TRAINED model, `gaussian_kl(mu, mu_pre, s, keep=2)`;
    a "KL" over a batch of log-probs, as one public baseline of this name has it, is something else. The paper learns a
    baseline for r; a standardised reward serves the same end.

    Args:
        log_probs, kl: [B, T]. rewards: [B].

    Raises:
        InputError: shapes.
    """
    same_shape(log_probs=log_probs, kl=kl)
    same_shape(log_probs_of_a_step=log_probs[..., 0], rewards=rewards)
    return (-alpha * rewards.detach() * log_probs.sum(-1) + beta * kl.sum(-1)).mean()


def grpo(
    log_probs: Tensor,
    log_probs_old: Tensor,
    advantages: Tensor,
    kl: Tensor,
    *,
    clip: float,
    beta: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, PolicyNumbers]:
    """L = mean_i mean_t[max(-A_i rho_it, -A_i clip(rho_it)) + beta KL_it] (GRPO, arXiv 2402.03300 eq. 3).

    Each sample counts the same, however many tokens it has (the 1/|o_i| of the paper), which `clipped_surrogate` with a
    mask does not do. Flow-GRPO (arXiv 2505.05470) is this with steps for tokens.

    Args:
        log_probs, log_probs_old: [..., T]. advantages: [...], see `group_advantages`.
        kl: [..., T], differentiable: `k3(log_probs, reference, mask)` for tokens, `gaussian_kl(..., keep=2)` for steps.
        mask: [..., T] bool; a sample without any token adds nothing to the sum, and counts in the mean.

    Raises:
        InputError: shapes; a clip that is not positive.
    """
    same_shape(log_probs=log_probs, kl=kl)
    if advantages.shape != log_probs.shape[:-1]:
        raise InputError(
            f"GRPO has one advantage a sample, {list(log_probs.shape[:-1])} for log_probs {list(log_probs.shape)}, got "
            f"{list(advantages.shape)}"
        )
    wide = advantages.detach().unsqueeze(-1).expand_as(log_probs)
    loss = _surrogate(log_probs, log_probs_old, wide, clip, mask) + beta * kl
    return row_mean(loss, mask).mean(), _numbers(log_probs, log_probs_old, wide, clip, mask)


def _surrogate(
    log_probs: Tensor, log_probs_old: Tensor, advantages: Tensor, clip: float, mask: Tensor | None
) -> Tensor:
    same_shape(log_probs=log_probs, log_probs_old=log_probs_old, advantages=advantages)
    positive(clip=clip)
    rho = torch.exp(under_mask(log_probs - log_probs_old.detach(), mask))  # before exp, whose slope at -inf is NaN
    return torch.maximum(-advantages * rho, -advantages * rho.clamp(1 - clip, 1 + clip))


@torch.no_grad()
def _numbers(
    log_probs: Tensor, log_probs_old: Tensor, advantages: Tensor, clip: float, mask: Tensor | None
) -> PolicyNumbers:
    rho = torch.exp(log_probs - log_probs_old)
    apart = rho - 1
    cut = ((apart > clip) & (advantages > 0)) | ((apart < -clip) & (advantages < 0))
    return PolicyNumbers(
        ratio_mean=masked_mean(rho, mask),
        ratio_deviation=under_mask(apart.abs(), mask).max(),
        clip_fraction=masked_mean((apart.abs() > clip).to(rho), mask),
        cut_fraction=masked_mean(cut.to(rho), mask),
        approx_kl=masked_mean(k3(log_probs_old, log_probs), mask),
    )
