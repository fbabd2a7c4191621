"""The multiplier: by hand, inside its limits whatever comes, rising while violated; tau follows."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl3d.errors import InputError
from rl3d.rl import ConstraintOptions, ConstraintState, constrained_advantages, updated

OPTIONS = ConstraintOptions()


def test_by_hand() -> None:
    """First mean 2: tau 2, short 0. Then mean 1: tau 0.99 * 2 + 0.01 = 1.99, short 0.99, lambda 0.1 * 0.99 = 0.099.

    Then mean 3: tau 0.99 * 1.99 + 0.03 = 2.0001, short -0.9999, lambda 0.099 - 0.01 * 0.9999 = 0.089001.
    """
    state = updated(OPTIONS, ConstraintState(), 2.0)
    assert (state.tau, state.multiplier) == (2.0, 0.0)
    state = updated(OPTIONS, state, 1.0)
    assert (state.tau, state.multiplier) == (pytest.approx(1.99), pytest.approx(0.099))
    state = updated(OPTIONS, state, 3.0)
    assert (state.tau, state.multiplier) == (pytest.approx(2.0001), pytest.approx(0.089001))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.floats(-100, 100), st.floats(0, 5))
def test_the_multiplier_stays_within_its_limits(means: list[float], tau: float, start: float) -> None:
    state = ConstraintState(tau, start)
    for mean in means:
        before, state = state, updated(OPTIONS, state, mean)
        assert 0 <= state.multiplier <= 5
        assert state.tau is not None and before.tau is not None
        short = state.tau - mean
        if short > 1e-9 and before.multiplier < 5:
            assert state.multiplier > before.multiplier  # violated: rises
        if short < -1e-9 and before.multiplier > 0:
            assert state.multiplier < before.multiplier  # held: falls


def test_it_reaches_both_limits_and_falls_slower_than_it_rises() -> None:
    fixed = ConstraintOptions(decay=1.0)
    state = ConstraintState(tau=1.0)
    for _ in range(60):
        state = updated(fixed, state, 0.0)
    assert state == ConstraintState(1.0, 5.0)
    risen = updated(fixed, ConstraintState(1.0, 1.0), 0.0).multiplier - 1
    fallen = 1 - updated(fixed, ConstraintState(1.0, 1.0), 2.0).multiplier
    assert risen == pytest.approx(0.1) and fallen == pytest.approx(0.01)
    for _ in range(600):
        state = updated(fixed, state, 2.0)
    assert state == ConstraintState(1.0, 0.0)


def test_the_state_survives_json() -> None:
    state = updated(OPTIONS, updated(OPTIONS, ConstraintState(), 0.1), 0.05)
    back = ConstraintState(**json.loads(json.dumps(asdict(state))))
    assert updated(OPTIONS, back, 0.07) == updated(OPTIONS, state, 0.07)


def test_advantages_by_hand() -> None:
    """(1 + 3 * 2) / 4 = 1.75 and (-1 + 3 * 0) / 4 = -0.25; without a multiplier the quality alone."""
    quality, consistency = torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.0])
    assert constrained_advantages(quality, consistency, 3.0).tolist() == [1.75, -0.25]
    assert constrained_advantages(quality, consistency, 0.0).tolist() == [1, -1]
    assert not constrained_advantages(quality.requires_grad_(), consistency, 1.0).requires_grad


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="must be finite, got nan"):
        updated(OPTIONS, ConstraintState(), math.nan)
    with pytest.raises(InputError, match="must not be negative, got -1"):
        constrained_advantages(torch.zeros(1), torch.zeros(1), -1.0)
    with pytest.raises(InputError, match=r"consistency must have the shape \[2\]"):
        constrained_advantages(torch.zeros(2), torch.zeros(2, 1), 1.0)
    with pytest.raises(InputError, match=r"decay in \[0, 1\]"):
        ConstraintOptions(decay=1.5)
