"""Rules on the forward process: noise clean samples again, and learn from the prediction's error. Any sampler will do.

Predictions and targets are tensors [B, ...] of one kind, whatever the model predicts: velocity, noise or x0, all affine
in each other at one level. A rule's loss in another kind differs by a factor per level. Errors are means over dims.
Noise, level and everything else that a prediction depends on must be the same for theta, the old policy and the
reference. Only theta's prediction gets gradients. All losses are minimised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rl.policy_gradient import PolicyNumbers, clipped_surrogate
from rl3d.rl.tensors import at_least_float32, mean_over_dims, positive, same_shape

LEAST = 1e-5  # of NFT's weight w, as in the released code
HUBER = 1e-10  # keeps the slope of AWM's power finite at an error of 0, as in the released code


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """mean over dims of (prediction - target)^2, [B], at least float32; differentiable to `prediction` alone.

    Between policy and reference it is their KL up to a factor per level, the regulariser of all rules here (1e-4 times
    it in DiffusionNFT).
    """
    same_shape(prediction=prediction, target=target)
    return mean_over_dims((at_least_float32(prediction) - at_least_float32(target.detach())) ** 2)


@dataclass(frozen=True)
class NFTNumbers:
    """What to log of a step; scalar tensors without gradients.

    Attributes:
        moved: root mean square of prediction - prediction_old. positive, negative: mean squared error of v+ and v-.
        drive: mean of |2 r - 1|, in [0, 1]: how much the step asks for. The loss does not say: see `nft`.
    """

    moved: Tensor
    positive: Tensor
    negative: Tensor
    drive: Tensor


def optimality(advantages: Tensor, limit: float) -> Tensor:
    """r = clip(A / (2 A_max) + 1/2, 0, 1), the probability with which NFT takes a sample for a good one."""
    positive(limit=limit)
    return (advantages.detach() / (2 * limit) + 0.5).clamp(0, 1)


def nft(
    prediction: Tensor, prediction_old: Tensor, target: Tensor, r: Tensor, *, beta: float, adaptive: bool = True
) -> tuple[Tensor, NFTNumbers]:
    """Negative-aware fine-tuning (DiffusionNFT, arXiv 2509.16117):

        L = (1/beta) mean_i[r |v+ - v|^2 / w+ + (1 - r) |v- - v|^2 / w-]
        v+ = (1 - beta) v_old + beta v_theta,   v- = (1 + beta) v_old - beta v_theta

    TRAP: at v_theta = v_old both errors are equal, so the VALUE does not depend on r, as if there were no reward; the
    gradient to v_theta is (2/D)(2r - 1)(v_old - v)/w a sample (D dims), as long as v_old is a constant, which is seen
    to here. Judge it by `drive` and by rewards, not by its curve.

    Args:
        prediction: v_theta [B, ...]. prediction_old: of the policy that drew the samples (an EMA). target: v.
        r: [B] in [0, 1], see `optimality`. The released code multiplies the loss by A_max.
        beta: 1, or 0.1 for a gentler start, in the paper.
        adaptive: w = mean |v+- - v| of the sample, a constant to the gradient, in which the paper's predictions are x0;
            False: w = 1.

    Raises:
        InputError: shapes; a beta that is not positive.
    """
    same_shape(prediction=prediction, prediction_old=prediction_old, target=target)
    positive(beta=beta)
    v, v_old = at_least_float32(prediction), at_least_float32(prediction_old.detach())
    plus = (1 - beta) * v_old + beta * v
    minus = (1 + beta) * v_old - beta * v
    error_plus, error_minus = squared_error(plus, target), squared_error(minus, target)
    same_shape(errors=error_plus, r=r)
    w_plus, w_minus = (_weight(p, target) if adaptive else torch.ones_like(error_plus) for p in (plus, minus))
    r = r.detach().to(error_plus)
    loss = (r * error_plus / w_plus + (1 - r) * error_minus / w_minus) / beta
    numbers = NFTNumbers(
        (v.detach() - v_old).square().mean().sqrt(),
        error_plus.detach().mean(),
        error_minus.detach().mean(),
        (2 * r - 1).abs().mean(),
    )
    return loss.mean(), numbers


@torch.no_grad()
def _weight(prediction: Tensor, target: Tensor) -> Tensor:
    return mean_over_dims((prediction - at_least_float32(target)).abs()).clamp_min(LEAST)


def matching_log_probs(prediction: Tensor, target: Tensor, weight: Tensor | float = 1.0, power: float = 1.0) -> Tensor:
    """AWM's stand-in for a log-prob: -w e with the matching error e, or -(w/p) e^p with a power (arXiv 2509.25050).

    Args:
        prediction, target: [B, ...]. weight: a number or [B], of the level (the released code's default: t).
        power: p; 1 is the paper's, 0.25 the released code's default ("ghuber"), which evens out the levels.

    Returns:
        [B], differentiable to `prediction`.
    """
    positive(power=power)
    error = squared_error(prediction, target)
    if isinstance(weight, Tensor) and weight.ndim:
        same_shape(error=error, weight=weight)
    if power == 1.0:
        return -weight * error
    return -weight / power * ((error + HUBER) ** power - HUBER**power)


def awm(log_probs: Tensor, log_probs_old: Tensor, advantages: Tensor, *, clip: float) -> tuple[Tensor, PolicyNumbers]:
    """Advantage weighted matching (arXiv 2509.25050): the clipped surrogate on `matching_log_probs`.

    On-policy its gradient is that of mean(A w e): the pre-training loss, weighted by the advantage, which may be
    negative. Pushing away from a sample has no end, so without the clip, or without a `squared_error` to an EMA of the
    policy, it diverges.

    Args:
        log_probs: [B] of theta. log_probs_old: [B] of the sampling policy with the SAME noise and level.
        advantages: [B]. clip: of the ratio.
    """
    return clipped_surrogate(log_probs, log_probs_old, advantages, clip=clip)


def exponential_weights(rewards: Tensor, beta: float) -> Tensor:
    """w = exp(beta r) / mean over the group (Peters & Schaal 2007; RWR in DDPO, arXiv 2305.13301).

    Args:
        rewards: [G, K]. beta: inverse temperature, per unit of reward.

    Returns:
        [G, K], non-negative, mean 1 in each group, no gradient, in the rewards' dtype.

    Raises:
        InputError: not [G, K]; NaN or infinity; a beta that is not positive.
    """
    if rewards.ndim != 2 or rewards.numel() == 0:
        raise InputError(f"rewards must be [groups, samples], got {list(rewards.shape)}")
    positive(beta=beta)
    if not bool(torch.isfinite(rewards).all()):
        raise InputError("rewards to weigh samples with must be finite, got NaN or infinity among them")
    weights = torch.softmax(beta * rewards.detach().double(), 1) * rewards.shape[1]
    return weights.to(rewards.dtype)


def reward_weighted_regression(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """L = mean_i w_i e_i with the matching error e: plain supervision on the better samples.

    Lee et al. 2023 (arXiv 2302.12192) with w = r in [0, 1]; DDPO's baseline RWR with `exponential_weights`.

    Args:
        prediction, target: [B, ...]. weights: [B], not negative.

    Raises:
        InputError: shapes; a negative weight or NaN (advantages belong into `awm`).
    """
    error = squared_error(prediction, target)
    same_shape(error=error, weights=weights)
    if not bool((weights >= 0).all()):
        raise InputError("weights of a regression must not be negative; for advantages use awm or nft")
    return (weights.detach().to(error) * error).mean()
