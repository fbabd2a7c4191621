"""How far a policy is from another: estimates from samples, and the exact value for Gaussian steps.

With u = log p_theta(x) - log p_ref(x) at samples x of p_theta (Schulman 2020, "Approximating KL divergence"), as
values all three estimate KL(theta || ref):

| name | value | unbiased | as a loss, its expected gradient on-policy is that of |
|---|---|---|---|
| k1 | u | yes | nothing: E[grad log p_theta] = 0, pure noise |
| k2 | u^2 / 2 | no (second order) | KL(theta || ref) |
| k3 | exp(-u) - 1 + u >= 0 | yes | KL(ref || theta), the other direction |

So k1 belongs into rewards or advantages (as a number, `carve3d_advantages`), never into an on-policy loss. Where a step
is Gaussian, `gaussian_kl` is exact and has less variance than any of them.

Measure to the frozen reference. To the policy that drew the samples it is about 0 on-policy, whatever happens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rl.tensors import at_least_float32, mean_over_dims, same_shape, under_mask


def k1(log_probs: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """log p_theta - log p_ref, in the inputs' shape; differentiable to log_probs, but see the table: not as a loss.

    0 without gradient where a mask (bool, the same shape) is False, also where both are -inf.
    """
    same_shape(log_probs=log_probs, reference=reference)
    return under_mask(log_probs - reference.detach(), mask)


def k2(log_probs: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """(log p_theta - log p_ref)^2 / 2, in the inputs' shape; differentiable to log_probs; mask as in `k1`."""
    return 0.5 * k1(log_probs, reference, mask) ** 2


def k3(log_probs: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """exp(-u) - 1 + u >= 0, in the inputs' shape; differentiable to log_probs; mask as in `k1`.

    GRPO's penalty (arXiv 2402.03300 eq. 4). Infinite where p_ref is more than e^88 times p_theta (float32).
    """
    u = k1(log_probs, reference, mask)
    return torch.expm1(-u) + u


def gaussian_kl(mean: Tensor, mean_reference: Tensor, std: Tensor | float, keep: int = 1) -> Tensor:
    """KL of two Gaussians of the same std: mean over dims of (mu - mu_ref)^2 / (2 s^2); differentiable to `mean`.

    The mean over dims, not the sum, goes with log-probs that are means over dims (`gaussian_log_prob`), so that a
    weight means the same at every resolution. For a step of length dt of an SDE the std is s sqrt(|dt|); the released
    Flow-GRPO code leaves |dt| out, so its weights do not carry over.

    Args:
        mean, mean_reference: [B, ...] means of one step.
        std: of the step, a number or in the shape of the leading `keep` dimensions.
        keep: leading dimensions that are not averaged, 2 for [B, T, ...].

    Raises:
        InputError: shapes, or a std that is not positive (the last step of DDIM has none: leave it out).
    """
    same_shape(mean=mean, mean_reference=mean_reference)
    apart = at_least_float32(mean) - at_least_float32(mean_reference.detach())
    return mean_over_dims(apart**2, keep) / (2 * _checked_std(std, mean, keep) ** 2)


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor | float, keep: int = 1) -> Tensor:
    """The mean over dims of log N(x; mean, std^2), at least float32; differentiable to `mean`, not to x.

    Because of the mean, ratios are within 1e-5 to 1e-3 of 1 and clip ranges are of that size.

    Args:
        x, mean: [B, ...]. std, keep: as in `gaussian_kl`.

    Returns:
        [B], or the leading `keep` dimensions.

    Raises:
        InputError: as `gaussian_kl`.
    """
    same_shape(x=x, mean=mean)
    s = _checked_std(std, mean, keep)
    squared = mean_over_dims((at_least_float32(x.detach()) - at_least_float32(mean)) ** 2, keep)
    return -squared / (2 * s**2) - torch.log(s) - 0.5 * math.log(2 * math.pi)


def _checked_std(std: Tensor | float, mean: Tensor, keep: int) -> Tensor:
    s = torch.as_tensor(std, dtype=at_least_float32(mean).dtype, device=mean.device)
    if s.ndim and s.shape != mean.shape[:keep]:
        raise InputError(f"std must be a number or {list(mean.shape[:keep])}, got {list(s.shape)}")
    if not bool((s > 0).all()):
        raise InputError(f"std must be positive, got {float(s.min()):g}; leave out steps without noise")
    return s
