"""What keeps a run honest: checks before a step, limits during it, and rules for when to stop, as pure functions.

No guard knows the gold judge. It measures afterwards and has no part in any decision here; what watches a run is a
guard judge, a third one that is neither optimised nor reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rl.tensors import at_least_float32, positive, same_shape


def check_replay(log_probs: Tensor, log_probs_old: Tensor, tolerance: float = 1e-6) -> float:
    """Before the first update of a batch the replayed log-probs are those of the sampling: every ratio is 1.

    Where they are not, another precision, guidance, noise, batch order or step was replayed, and every ratio rule
    learns from that difference. Run it on the first batch of every run.

    Returns:
        The largest |ratio - 1|.

    Raises:
        InputError: shapes, or a ratio further from 1 than `tolerance` (float32), naming where.
    """
    same_shape(log_probs=log_probs, log_probs_old=log_probs_old)
    apart = torch.expm1(log_probs.detach().double() - log_probs_old.detach().double()).abs().flatten()
    apart = torch.where(apart.isnan(), torch.full_like(apart, math.inf), apart)
    worst, where = apart.max(0)
    if not float(worst) <= tolerance:
        place = [int(i) for i in torch.unravel_index(where, log_probs.shape)]
        raise InputError(
            f"the replay differs from the sampling: |ratio - 1| is {float(worst):.3g} at {place}, more than "
            f"{tolerance:g}; compare precision, guidance, stored noise, batch order and steps of both"
        )
    return float(worst)


def within_budget(kl: float, budget: float) -> bool:
    """Whether a step may be made: KL to the frozen reference, measured BEFORE it, is at most the budget; NaN is not.

    A check after the step keeps the weights that broke it.
    """
    return kl <= budget


def norm_hinge(prediction: Tensor, prediction_reference: Tensor, margin: float = 0.0) -> Tensor:
    """mean_i max(0, |v_theta| / |v_ref| - 1 - margin)^2; differentiable to `prediction`.

    Fine-tuning with NFT, AWM or DPO inflates the norm of predictions by 5 to 15 percent, which costs picture quality
    and carries no reward; a hinge that acts only above the reference's norm takes it back (NormGuard, Pan et al. 2026,
    arXiv 2606.27771). The abstract gives the idea; this closed form, squared and relative, is ours.

    Args:
        prediction, prediction_reference: [B, ...].

    Raises:
        InputError: shapes; a reference prediction of norm 0.
    """
    same_shape(prediction=prediction, prediction_reference=prediction_reference)
    norm, reference = (
        at_least_float32(v).reshape(len(v), -1).norm(dim=1) for v in (prediction, prediction_reference.detach())
    )
    if not bool((reference > 0).all()):
        raise InputError("the reference predicts exactly 0 for some sample; the hinge needs a norm to compare with")
    return (norm / reference - 1 - margin).clamp_min(0).square().mean()


@dataclass(frozen=True)
class GradientReport:
    """What `clip_gradients` saw.

    Attributes:
        norm: of all gradients together, before. scale: what they were multiplied with.
        finite: False: NaN or infinity among them; nothing was changed, and the step must not be made.
    """

    norm: float
    scale: float
    finite: bool


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float) -> GradientReport:
    """Scale the .grad of all parameters, in place, so that their joint norm is at most `limit`.

    Raises:
        InputError: a limit that is not positive; no parameter has a gradient (a graph that was cut).
    """
    positive(limit=limit)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        raise InputError("no parameter has a gradient; was the loss computed under no_grad, or the policy detached?")
    squares = [g.double().square().sum().to(gradients[0].device) for g in gradients]  # float32 overflows from 1e19
    norm = math.sqrt(float(torch.stack(squares).sum()))
    if not math.isfinite(norm):
        return GradientReport(norm, 1.0, False)
    scale = min(1.0, limit / norm) if norm > 0 else 1.0
    if scale < 1:
        for g in gradients:
            g.mul_(scale)
    return GradientReport(norm, scale, True)


@dataclass(frozen=True)
class StopOptions:
    """When a run has to stop. Every limit needs a number for the model and reward at hand, so none has a default.

    Attributes:
        kl: largest KL to the frozen reference.
        silent: largest share of prompt groups without signal, in [0, 1].
        fall: how far the guard judge may lie below its best, in its units, while the reward does not fall.
        patience: rounds in a row for which one of these must hold. Broken steps have it too.
    """

    kl: float
    silent: float
    fall: float
    patience: int = 3

    def __post_init__(self) -> None:
        positive(kl=self.kl, fall=self.fall)
        if not (0 <= self.silent <= 1 and self.patience >= 1):
            raise InputError(
                f"stopping needs silent in [0, 1] and patience from 1, got {self.silent} and {self.patience}"
            )


@dataclass(frozen=True)
class Round:
    """What one round of training showed.

    Attributes:
        kl: to the frozen reference, mean. silent: share of groups without signal. reward: mean of the optimised one.
        guard: mean of the guard judge; None: it did not look this round.
        broken: loss or gradient was not finite, and the step was left out.
    """

    kl: float
    silent: float
    reward: float
    guard: float | None = None
    broken: bool = False

    def __post_init__(self) -> None:
        for name, value in (("reward", self.reward), ("guard", self.guard), ("silent", self.silent)):
            if value is not None and not math.isfinite(value):
                raise InputError(f"the {name} of a round must be finite, got {value}; a broken step says so in broken")


@dataclass(frozen=True)
class StopState:
    """Plain numbers, for a JSON file.

    Attributes:
        rounds: seen so far. over, silent, broken, fallen: rounds in a row in which each rule rang.
        best_guard: the guard's best, None before its first look. reward_then: the reward in that round.
        best_round: its number, whose checkpoint to keep.
    """

    rounds: int = 0
    over: int = 0
    silent: int = 0
    broken: int = 0
    fallen: int = 0
    best_guard: float | None = None
    reward_then: float = 0.0
    best_round: int = 0


def watched(options: StopOptions, state: StopState, seen: Round) -> tuple[StopState, str | None]:
    """The state after a round, and why the run has to stop, or None.

    A round without a look of the guard neither counts for nor against `fallen`. KL that is NaN is over its limit.
    """
    state = replace(
        state,
        rounds=state.rounds + 1,
        over=state.over + 1 if not within_budget(seen.kl, options.kl) else 0,
        silent=state.silent + 1 if seen.silent > options.silent else 0,
        broken=state.broken + 1 if seen.broken else 0,
    )
    if seen.guard is not None:
        if state.best_guard is None or seen.guard > state.best_guard:
            state = replace(state, best_guard=seen.guard, reward_then=seen.reward, best_round=state.rounds, fallen=0)
        else:
            fell = seen.guard <= state.best_guard - options.fall and seen.reward >= state.reward_then
            state = replace(state, fallen=state.fallen + 1 if fell else 0)
    return state, _reason(options, state, seen)


def _reason(options: StopOptions, state: StopState, seen: Round) -> str | None:
    n = options.patience
    if state.broken >= n:
        return f"the loss or gradient was not finite for {state.broken} rounds in a row"
    if state.over >= n:
        return f"KL to the reference was above {options.kl:g} for {state.over} rounds in a row, last {seen.kl:.4g}"
    if state.fallen >= n:
        return (
            f"the guard judge lies {options.fall:g} or more below its best of round {state.best_round} for "
            f"{state.fallen} looks, while the reward does not fall: the reward is being gamed"
        )
    if state.silent >= n:
        return f"more than {options.silent:.0%} of the groups had no signal for {state.silent} rounds in a row"
    return None
