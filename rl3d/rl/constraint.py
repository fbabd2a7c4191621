"""Maximise one reward while another keeps its level: a multiplier as explicit state (MVC-ZigAL, arXiv 2505.20107).

    max E[R]  subject to  E[C] >= tau
    tau <- 0.99 tau + 0.01 mean(C), from the first mean on: a curriculum that asks for what was reached so far
    lambda <- clip(lambda + a (tau - mean(C)), 0, 5), a = 0.1 while violated, 0.01 otherwise

Unequal steps, because one of 0.1 both ways oscillates; a tau that follows, because a fixed one is too loose or too
tight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from rl3d.errors import InputError
from rl3d.rl.tensors import same_shape


@dataclass(frozen=True)
class ConstraintOptions:
    """How a constraint is held; the defaults are the paper's, for a reward C with a spread of the order of 1.

    Attributes:
        decay: of tau's moving average; 1 holds tau where it was set.
        rise, fall: step of the multiplier while violated, and while not.
        limit: the multiplier's largest value.
    """

    decay: float = 0.99
    rise: float = 0.1
    fall: float = 0.01
    limit: float = 5.0

    def __post_init__(self) -> None:
        if not (0 <= self.decay <= 1 and self.rise > 0 and self.fall > 0 and self.limit > 0):
            raise InputError(
                "a constraint needs decay in [0, 1] and positive rise, fall and limit, got "
                f"{self.decay}, {self.rise}, {self.fall} and {self.limit}"
            )


@dataclass(frozen=True)
class ConstraintState:
    """Plain numbers, for a JSON file.

    Attributes:
        tau: the level asked for; None: the first mean sets it. multiplier: lambda, in [0, limit].
    """

    tau: float | None = None
    multiplier: float = 0.0


def updated(options: ConstraintOptions, state: ConstraintState, mean: float) -> ConstraintState:
    """The state after a round whose samples had this mean of C (over all processes).

    Raises:
        InputError: a mean that is not finite.
    """
    if not math.isfinite(mean):
        raise InputError(f"the mean of a constraint's reward must be finite, got {mean}")
    tau = mean if state.tau is None else options.decay * state.tau + (1 - options.decay) * mean
    short = tau - mean
    step = options.rise if short > 0 else options.fall
    return ConstraintState(tau, min(max(state.multiplier + step * short, 0.0), options.limit))


def constrained_advantages(quality: Tensor, consistency: Tensor, multiplier: float) -> Tensor:
    """A = (A_R + lambda A_C) / (1 + lambda), the same shapes, both standardised; no gradient.

    Divided by 1 + lambda so that a large multiplier changes the direction of a step and not its size.

    Raises:
        InputError: shapes; a negative multiplier.
    """
    same_shape(quality=quality, consistency=consistency)
    if not multiplier >= 0:
        raise InputError(f"a multiplier must not be negative, got {multiplier!r}")
    return (quality.detach() + multiplier * consistency.detach()) / (1 + multiplier)
