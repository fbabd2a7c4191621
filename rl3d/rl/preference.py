"""Learning from pairs: a winner and a loser of one prompt, against a frozen reference. All losses are minimised.

Every rule here is -log sigma of how much the policy, compared with the reference, prefers the winner: log 2 where the
policy is the reference. beta goes with the size of what is compared. Means over dims want a beta of hundreds or
thousands, sums over dims or over thousands of tokens a small one: 10 000 tokens that each gained 0.01 nat are 100, and
at beta 0.1 the pair is past saturation. Watch `PreferenceNumbers.margin`.

Only the policy's values get gradients. Winner and loser are samples, constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rl3d.errors import InputError
from rl3d.rl.tensors import positive, row_mean, row_sum, same_shape


@dataclass(frozen=True)
class PreferenceNumbers:
    """What to log of a step; scalar tensors without gradients.

    Attributes:
        margin: mean of the logit; beyond about 10 the pairs are saturated. accuracy: share with a logit above 0.
        winner, loser: mean implicit reward of each side (log-ratio to the reference in units of the logit). A winner
            below 0 has become LESS likely: the pair is won by pushing the loser down further (likelihood displacement).
    """

    margin: Tensor
    accuracy: Tensor
    winner: Tensor
    loser: Tensor


def diffusion_dpo(
    errors_w: Tensor, errors_l: Tensor, reference_w: Tensor, reference_l: Tensor, *, beta: float
) -> tuple[Tensor, PreferenceNumbers]:
    """L = -log sigma(-(beta/2) [(e_w - e_w_ref) - (e_l - e_l_ref)]) (Diffusion-DPO, Wallace et al. 2023, 2311.12908).

    e is the squared error of the prediction, mean over dims, of a noised sample; winner and loser share level AND
    noise. beta is the released code's, which belongs to the mean over dims: 5000 there for SD 1.5.

    Args:
        errors_w, errors_l: [B] of the policy. reference_w, reference_l: [B] of the reference.

    Raises:
        InputError: shapes; a beta that is not positive.
    """
    same_shape(errors_w=errors_w, errors_l=errors_l, reference_w=reference_w, reference_l=reference_l)
    positive(beta=beta)
    return _loss(
        -0.5 * beta * (errors_w - reference_w.detach()),
        -0.5 * beta * (errors_l - reference_l.detach()),
    )


def d3po(
    log_probs_w: Tensor, log_probs_l: Tensor, reference_w: Tensor, reference_l: Tensor, *, beta: float, clip: float
) -> tuple[Tensor, PreferenceNumbers]:
    """L = mean_t -log sigma(beta [log clip(rho_w) - log clip(rho_l)]), rho = pi_theta / pi_ref (D3PO, 2311.13231).

    DPO on the density of each denoising step. rho is clipped to [1 - clip, 1 + clip], 0.1 in the paper. TRAP: unlike
    PPO's, this clip does not look at the direction. A step of the winner whose ratio fell below the range has no
    gradient any more that would bring it back, just as one that rose above it; once outside, only weights shared with
    other steps move it. Watch the margin, and keep the range wide for the learning rate.

    Args:
        log_probs_w, ...: [B, T] or any equal shape, mean over dims.

    Raises:
        InputError: shapes; a beta that is not positive; a clip outside (0, 1).
    """
    same_shape(log_probs_w=log_probs_w, log_probs_l=log_probs_l, reference_w=reference_w, reference_l=reference_l)
    positive(beta=beta)
    if not 0 < clip < 1:
        raise InputError(f"D3PO's clip must lie in (0, 1), got {clip!r}")
    low, high = math.log1p(-clip), math.log1p(clip)
    return _loss(
        beta * (log_probs_w - reference_w.detach()).clamp(low, high),
        beta * (log_probs_l - reference_l.detach()).clamp(low, high),
    )


def token_dpo(
    log_probs_w: Tensor,
    log_probs_l: Tensor,
    reference_w: Tensor,
    reference_l: Tensor,
    *,
    beta: float,
    mask_w: Tensor | None = None,
    mask_l: Tensor | None = None,
    reduce: Literal["sum", "mean"] = "sum",
) -> tuple[Tensor, PreferenceNumbers]:
    """L = -log sigma(beta [sum_t l_t(y_w) - sum_t l_t(y_l)]), l = log pi_theta - log pi_ref (DPO, 2305.18290 eq. 7).

    With masks from `mesh_rft_masks` this is Mesh-RFT's M-DPO; with both sides cut to one window, QuadGPT's tDPO. The
    context is never masked, only the sum: compute log-probs of whole sequences.

    Args:
        log_probs_w, reference_w: [B, T_w]. log_probs_l, reference_l: [B, T_l]; the lengths may differ.
        mask_w, mask_l: bool, True where a token counts, which padding must not. What is masked has no gradient, and may
            be -inf (a token that the grammar forbids).
        reduce: "sum" is the papers'. "mean" divides by the number of tokens that count (LN-DPO, arXiv 2407.15229), so
            that a long winner and a short loser weigh the same; beta is then of the order of their length times larger.

    A side without any token that counts gives 0: a loser without a bad face leaves a pure push of the winner.

    Raises:
        InputError: shapes; masks that are not bool; a beta that is not positive.
    """
    same_shape(log_probs_w=log_probs_w, reference_w=reference_w)
    same_shape(log_probs_l=log_probs_l, reference_l=reference_l)
    if log_probs_w.ndim != 2 or len(log_probs_w) != len(log_probs_l):
        raise InputError(
            f"pairs are log-probs [B, T_w] and [B, T_l], got {list(log_probs_w.shape)} and {list(log_probs_l.shape)}"
        )
    if reduce not in ("sum", "mean"):
        raise InputError(f"reduce must be sum or mean, got {reduce!r}")
    positive(beta=beta)
    total = row_sum if reduce == "sum" else row_mean
    return _loss(
        beta * total(log_probs_w - reference_w.detach(), mask_w),  # beta L+
        beta * total(log_probs_l - reference_l.detach(), mask_l),  # beta L-
    )


def mesh_rft_masks(good_w: Tensor, good_l: Tensor, real_w: Tensor, real_l: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens count in M-DPO: good faces of the winner, BAD faces of the loser (Mesh-RFT, arXiv 2505.16761).

    Args:
        good_w, good_l: phi, bool [B, T_w] and [B, T_l], True on tokens of faces of high quality.
        real_w, real_l: bool, False on padding, which the inversion would otherwise let in.

    Raises:
        InputError: shapes, or tensors that are not bool.
    """
    same_shape(good_w=good_w, real_w=real_w)
    same_shape(good_l=good_l, real_l=real_l)
    for mask in (good_w, good_l, real_w, real_l):
        if mask.dtype != torch.bool:  # ~ on whole numbers is not "not"
            raise InputError(f"masks are boolean tensors, got {mask.dtype}")
    return good_w & real_w, ~good_l & real_l


def _loss(winner: Tensor, loser: Tensor) -> tuple[Tensor, PreferenceNumbers]:
    logit = winner - loser
    seen = logit.detach()
    numbers = PreferenceNumbers(seen.mean(), (seen > 0).to(seen).mean(), winner.detach().mean(), loser.detach().mean())
    return -logsigmoid(logit).mean(), numbers
