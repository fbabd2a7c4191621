"""What value-based policy gradients need of a rollout: generalised advantages, and the loss of a value function."""

from __future__ import annotations

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rl.tensors import finite, positive, same_shape


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """A_t = delta_t + gamma lam (1 - done) A_t+1, delta_t = r_t + gamma (1 - terminated) V(s_t+1) - V(s_t).

    Schulman et al. 2016 (arXiv 1506.02438, eq. 16). An episode that was cut off (`truncated`) goes on in its
    value, one that ended (`terminated`) does not; the sum of both stops at either. Each of the N environments has its
    own ends.

    Args:
        rewards, values: [T, N], V of the observation that step t acted on.
        next_values: [T, N], V of the observation that step t led to, before any reset: of a row that ended, its final
            observation and not the first of the next episode.
        terminated, truncated: [T, N] bool.
        gamma, lam: in [0, 1].

    Returns:
        (advantages, returns) [T, N], returns = advantages + values. Without gradients.

    Raises:
        InputError: shapes; rewards or values that are not finite, naming step and environment; gamma or lam outside
            [0, 1].
    """
    same_shape(rewards=rewards, values=values, next_values=next_values, terminated=terminated, truncated=truncated)
    if rewards.ndim != 2 or rewards.numel() == 0:
        raise InputError(f"a rollout is [steps, environments], got {list(rewards.shape)}")
    if terminated.dtype != torch.bool or truncated.dtype != torch.bool:
        raise InputError(f"ends are boolean tensors, got {terminated.dtype} and {truncated.dtype}")
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise InputError(f"gamma and lam must lie in [0, 1], got {gamma} and {lam}")
    for name, numbers in (("the reward", rewards), ("the value", values), ("the next value", next_values)):
        finite(name, numbers, ("step", "environment"))
    delta = rewards + gamma * next_values * ~terminated - values
    goes_on = gamma * lam * ~(terminated | truncated)
    advantages = torch.empty_like(delta)
    running = torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        running = delta[t] + goes_on[t] * running
        advantages[t] = running
    return advantages, advantages + values


def value_loss(values: Tensor, values_old: Tensor, returns: Tensor, *, clip: float | None = None) -> Tensor:
    """L = mean(max((V - R)^2, (V_clip - R)^2)) / 2, V_clip = V_old + clip(V - V_old, -c, c); without a clip, plain.

    Differentiable to `values`. The clip is that of the PPO implementations (arXiv 2005.12729, section 3); it often
    does not help, hence None.

    Args:
        values, values_old, returns: the same shape, any. clip: c, in the units of the returns.

    Raises:
        InputError: shapes; a clip that is not positive.
    """
    same_shape(values=values, values_old=values_old, returns=returns)
    squared = (values - returns.detach()) ** 2
    if clip is not None:
        positive(clip=clip)
        old = values_old.detach()
        squared = torch.maximum(squared, (old + (values - old).clamp(-clip, clip) - returns.detach()) ** 2)
    return 0.5 * squared.mean()


def standardised(advantages: Tensor, floor: float = 1e-8) -> Tensor:
    """(A - mean) / max(std, floor) over the whole tensor, without gradient: of a minibatch, as PPO does."""
    a = advantages.detach()
    return (a - a.mean()) / a.std(correction=0).clamp_min(floor)
