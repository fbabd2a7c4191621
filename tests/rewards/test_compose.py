"""Compositions by hand, with their gradients, and what cannot be put together."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rewards import (
    Reward,
    RewardInput,
    Statistics,
    constrained,
    geometric_mean,
    reward,
    standardised,
    weighted_sum,
)


def brightness(low: float = 0.0, high: float = 1.0, **more: object) -> Reward:
    """The images' mean: A."""
    return reward(range=(low, high), views=None, name="bright", **more)(lambda x: x.images.mean((1, 2, 3, 4)))  # type: ignore[arg-type]


def coverage(**more: object) -> Reward:
    """The alphas' mean: B."""
    found = lambda x: x.alphas.mean((1, 2, 3, 4)) + 0 * x.images.sum((1, 2, 3, 4))  # noqa: E731
    return reward(range=(0, 1), name="cover", **{"views": None, **more})(found)  # type: ignore[arg-type]


def seen(a: list[float], b: list[float]) -> RewardInput:
    """One asset a pair of scores: A is the first number, B the second."""
    ones = torch.ones(len(a), 2, 1, 2, 2)
    level = lambda v: torch.tensor(v).view(-1, 1, 1, 1, 1) * ones  # noqa: E731
    return RewardInput(level(a).expand(-1, -1, 3, -1, -1).clone(), level(b), None, ["x"] * len(a))


def test_a_weighted_sum() -> None:
    both = weighted_sum([brightness(), coverage()], [2.0, -0.5])
    assert isinstance(both, Reward) and both.name == "(2 bright + -0.5 cover)"
    assert both.range == (-0.5, 2.0) and both.views is None and both.differentiable
    assert both(seen([0.5, 1.0], [1.0, 0.0])).tolist() == [0.5, 2.0]  # 2 * 0.5 - 0.5, 2 * 1
    open_ended = weighted_sum([brightness(-math.inf, math.inf), coverage()], [0.0, 1.0])
    assert open_ended.range == (0, 1)  # 0 times infinity is nothing


def test_gradients_are_the_parts_gradients() -> None:
    x = seen([0.25], [0.64])
    x.images.requires_grad_()
    both = geometric_mean([brightness(), coverage()])
    score = both(x)
    assert score.item() == pytest.approx(math.sqrt(0.25 * 0.64))
    score.sum().backward()
    # d sqrt(a b) / da = sqrt(b / a) / 2 = 0.8, shared by 24 numbers
    assert x.images.grad is not None and torch.allclose(x.images.grad, torch.full_like(x.images, 0.8 / 24))


def test_a_geometric_mean_is_low_where_one_is() -> None:
    both = geometric_mean([brightness(), coverage()], [3, 1])
    assert both(seen([1.0, 1.0, 0.0], [1.0, 0.0625, 1.0])).tolist() == pytest.approx([1.0, 0.5, 1e-6**0.75])
    assert both.range[1] == 1
    with pytest.raises(InputError, match=r"needs scores from 0, 'bright' has the range \[-1, 1\]"):
        geometric_mean([brightness(-1), coverage()])
    with pytest.raises(InputError, match="must be positive"):
        geometric_mean([brightness(), coverage()], [1, -1])


def test_a_constraint_comes_first() -> None:
    both = constrained(brightness(), coverage(), at_least=0.5)
    scores = both(seen([0.1, 0.9, 0.9, 0.2], [0.5, 0.25, 0.0, 0.75]))
    assert scores.tolist() == pytest.approx([0.1, -0.25, -0.5, 0.2])
    assert both.range == (-0.5, 1.0)
    x = seen([0.1, 0.9], [0.75, 0.25])
    x.alphas.requires_grad_()
    both(x).sum().backward()
    assert x.alphas.grad is not None  # B pulls where it does not hold: 1 shared by 8 pixels; nowhere else
    assert torch.allclose(x.alphas.grad[1], torch.tensor(1 / 8)) and not x.alphas.grad[0].any()
    hinge = constrained(brightness(-math.inf, math.inf), coverage(), at_least=0.5, penalty=4.0)
    assert hinge(seen([0.1, 0.9], [0.6, 0.25])).tolist() == pytest.approx([0.1, -0.1])  # 0.9 - 4 * 0.25


def test_running_statistics_are_those_of_all_scores() -> None:
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    statistics = Statistics()
    for part in scores.split([1, 20, 0, 29]):
        statistics = statistics.updated(part)
    assert statistics.count == 50
    assert statistics.mean == pytest.approx(float(scores.mean()), rel=1e-12)
    assert statistics.std == pytest.approx(float(scores.std(correction=0)), rel=1e-12)
    plain = standardised(brightness(), Statistics().updated(torch.tensor([0.25, 0.75])))
    assert plain(seen([0.5, 1.0], [1, 1])).tolist() == [0, 2] and plain.range == (-2, 2)  # mean 0.5, std 0.25
    assert standardised(brightness(), mean=0.5, std=0.25)(seen([1.0], [1])).tolist() == [2]


def test_properties_come_from_the_parts() -> None:
    whole = weighted_sum([brightness(licence="MIT"), coverage(views=2, licence="Apache-2.0")], [1, 1])
    assert whole.views == 2 and whole.licence == "Apache-2.0, MIT"
    blind = reward(range=(0, 1), differentiable=False, name="blind")(lambda x: torch.ones(len(x.prompts)))
    assert not weighted_sum([brightness(), blind], [1, 1]).differentiable
    nested = weighted_sum([whole, constrained(brightness(), coverage(), 0.5)], [1, 1])
    assert nested.range == (-0.5, 3.0) and nested.views == 2


def _nothing(x: RewardInput) -> Tensor:
    return x.images.mean((1, 2, 3, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: weighted_sum([], []), "at least one reward"),
        (lambda: weighted_sum([_nothing], [1]), "a part is a reward.*got function"),
        (lambda: weighted_sum([brightness()], [1, 2]), "as many finite weights"),
        (lambda: weighted_sum([brightness()], [math.nan]), "as many finite weights"),
        (lambda: weighted_sum([coverage(views=2), coverage(views=4)], [1, 1]), "'cover' 2, 'cover' 4"),
        (lambda: constrained(brightness(), coverage(), 1.5), r"range \(0, 1\] of 'cover', got 1.5"),
        (lambda: constrained(brightness(-math.inf, math.inf), coverage(), 0.5), "no lowest score"),
        (lambda: constrained(brightness(), coverage(), 0.5, penalty=0.0), "penalty must be positive"),
        (lambda: standardised(brightness()), "one of the two"),
        (lambda: standardised(brightness(), Statistics(), mean=0, std=1), "one of the two"),
        (lambda: standardised(brightness(), mean=0.0, std=0.0), "must be positive, got 0"),
        (lambda: Statistics().updated(torch.tensor([math.nan])), "must be finite"),
    ],
)
def test_what_cannot_be_put_together_is_named(build, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        build()
