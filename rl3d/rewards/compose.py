"""Several rewards as one: standardised, summed, multiplied, or one under the constraint of another.

Every result is a Reward: its name says what it is made of, its range follows from the parts' ranges, it has gradients
where all parts have them, it wants the number of views that the parts agree on, and it lists the parts' licences.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rewards.protocol import FunctionReward, Reward, RewardInput

FLOOR = 1e-6  # a factor of a geometric mean counts at least this, so that its logarithm is finite


@dataclass(frozen=True)
class Statistics:
    """Count, mean and spread of scores; the state of a running standardisation, passed in and out by the caller.

    A reward in a distillation is a fixed function, since a scale that drifts would make a resumed run another run.
    So measure first, `standardised` then.

    Attributes:
        count: of scores so far. mean: theirs. squares: the sum of their squared distances from the mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Population standard deviation; 0 before there are two different scores."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def updated(self, scores: Tensor) -> Statistics:
        """With more scores of any shape (Chan et al. 1979: exact to rounding, in any order and grouping).

        Raises:
            InputError: a score is not finite.
        """
        values = scores.detach().double().cpu().flatten()
        if not bool(torch.isfinite(values).all()):
            raise InputError("scores to standardise with must be finite, got NaN or infinity among them")
        if len(values) == 0:
            return self
        count, mean = self.count + len(values), float(values.mean())
        apart = mean - self.mean
        squares = self.squares + float(((values - mean) ** 2).sum()) + apart**2 * self.count * len(values) / count
        return Statistics(count, self.mean + apart * len(values) / count, squares)


def standardised(
    reward: Reward, statistics: Statistics | None = None, *, mean: float | None = None, std: float | None = None
) -> FunctionReward:
    """(r - mean) / std, so that rewards of different scales can be added; by measured statistics, or given numbers.

    Raises:
        InputError: no reward; both or neither of statistics and numbers; a spread that is not positive.
    """
    _check_parts([reward])
    if statistics is not None and mean is None and std is None:
        centre, spread = statistics.mean, statistics.std
    elif statistics is None and mean is not None and std is not None:
        centre, spread = float(mean), float(std)
    else:
        raise InputError(f"standardise {reward.name!r} with statistics, or with mean and std; give one of the two")
    if not (math.isfinite(centre) and math.isfinite(spread) and spread > 0):
        raise InputError(
            f"the std of reward {reward.name!r} must be positive, got {spread:g} (a constant ranks nothing)"
        )
    low, high = reward.range
    return FunctionReward(
        lambda x: (reward(x) - centre) / spread,
        f"standardised {reward.name}",
        reward.views,
        reward.differentiable,
        ((low - centre) / spread, (high - centre) / spread),
        reward.licence,
    )


def weighted_sum(rewards: Sequence[Reward], weights: Sequence[float]) -> FunctionReward:
    """sum_i w_i r_i. A negative weight turns a reward into a cost.

    Raises:
        InputError: no rewards, weights that are not as many finite numbers, or all zero; views that disagree.
    """
    _check_parts(rewards)
    _check_weights(rewards, weights)
    ends = [sorted((w * r.range[0], w * r.range[1])) for r, w in zip(rewards, weights) if w]

    def total(x: RewardInput) -> Tensor:
        return torch.stack([w * reward(x) for reward, w in zip(rewards, weights)]).sum(0)

    name = " + ".join(f"{w:g} {r.name}" for r, w in zip(rewards, weights))
    return _joined(total, f"({name})", rewards, (sum(low for low, _ in ends), sum(high for _, high in ends)))


def geometric_mean(rewards: Sequence[Reward], weights: Sequence[float] | None = None) -> FunctionReward:
    """prod_i r_i^(w_i / sum w): high only where all are high; equal weights by default.

    A factor below 1e-6 counts as that and has no gradient.

    Raises:
        InputError: as `weighted_sum`; a weight that is not positive; a reward whose range reaches below 0.
    """
    _check_parts(rewards)
    weights = [1.0] * len(rewards) if weights is None else list(weights)
    _check_weights(rewards, weights)
    if min(weights) <= 0:
        raise InputError(f"the weights of a geometric mean must be positive, got {weights}")
    for reward in rewards:
        if reward.range[0] < 0:
            low, high = reward.range
            raise InputError(
                f"a geometric mean needs scores from 0, {reward.name!r} has the range [{low:g}, {high:g}]; use a "
                "weighted_sum"
            )
    shares = [w / sum(weights) for w in weights]

    def product(x: RewardInput) -> Tensor:
        return torch.stack([s * reward(x).clamp_min(FLOOR).log() for reward, s in zip(rewards, shares)]).sum(0).exp()

    def end(k: int) -> float:
        return math.prod(max(r.range[k], FLOOR) ** s for r, s in zip(rewards, shares))

    return _joined(product, f"geometric mean of {' and '.join(r.name for r in rewards)}", rewards, (end(0), end(1)))


def constrained(reward: Reward, to: Reward, at_least: float, penalty: float | None = None) -> FunctionReward:
    """Maximise A subject to B >= tau: A where B holds; below, something that every step towards tau improves.

    Without `penalty`, min A - (tau - B): any asset that holds beats any that does not, and those that do not are
    ordered by how far they are off. With it, A - penalty * (tau - B), a hinge that A can outweigh.

    Args:
        reward: A. to: B. at_least: tau. penalty: in units of A per unit of B.

    Raises:
        InputError: tau outside B's range; a penalty that is not positive; none, and A has no lowest score; views that
            disagree.
    """
    _check_parts([reward, to])
    (low, high), (b_low, b_high) = reward.range, to.range
    if not b_low < at_least <= b_high:
        raise InputError(f"at_least must lie in the range ({b_low:g}, {b_high:g}] of {to.name!r}, got {at_least:g}")
    if penalty is not None and not (math.isfinite(penalty) and penalty > 0):
        raise InputError(f"penalty must be positive, got {penalty!r}")
    if penalty is None and not math.isfinite(low):
        raise InputError(f"{reward.name!r} has no lowest score to fall back to; give a penalty, or another range")

    def judged(x: RewardInput) -> Tensor:
        a, b = reward(x), to(x)
        short = (at_least - b).clamp_min(0)
        return torch.where(b >= at_least, a, low - short) if penalty is None else a - penalty * short

    worst = low - (penalty or 1.0) * (at_least - b_low)
    return _joined(judged, f"({reward.name} with {to.name} >= {at_least:g})", [reward, to], (worst, high))


def _check_parts(rewards: Sequence[Reward]) -> None:
    if len(rewards) == 0:
        raise InputError("a composition needs at least one reward, got none")
    for reward in rewards:
        if not isinstance(reward, Reward):
            raise InputError(f"a part is a reward, see rl3d.reward and rl3d.rewards.load; got {type(reward).__name__}")


def _check_weights(rewards: Sequence[Reward], weights: Sequence[float]) -> None:
    if len(weights) != len(rewards) or not all(math.isfinite(w) for w in weights) or not any(weights):
        raise InputError(f"{len(rewards)} rewards need as many finite weights, not all 0; got {list(weights)}")


def _joined(
    function: Callable[[RewardInput], Tensor], name: str, rewards: Sequence[Reward], bounds: tuple[float, float]
) -> FunctionReward:
    wanted = sorted({r.views for r in rewards if r.views is not None})
    if len(wanted) > 1:
        said = ", ".join(f"{r.name!r} {r.views}" for r in rewards if r.views is not None)
        raise InputError(f"rewards that need different numbers of views cannot be one: {said}")
    licences = sorted({r.licence for r in rewards} - {"none"})
    return FunctionReward(
        function,
        name,
        wanted[0] if wanted else None,
        all(r.differentiable for r in rewards),
        bounds,
        ", ".join(licences) or "none",
    )


def contains(optimised: Reward, guard: Reward) -> bool:
    """Whether the optimised reward is the guard, or is made of it: the names of compositions say what they hold."""
    return optimised is guard or bool(re.search(rf"(?<!\w){re.escape(guard.name)}(?!\w)", optimised.name))
