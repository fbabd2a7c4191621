"""The Cauchy-Schwarz divergence: zero, symmetric, never negative, and right on two points."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl3d.errors import InputError
from rl3d.rewards.divergence import cauchy_schwarz_divergence, median_distance


def points(count: int, seed: int, width: int = 5) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_points_by_hand() -> None:
    """k(x, x) = k(y, y) = 1 and k(x, y) = exp(-d^2 / (2 h^2)): D = d^2 / h^2."""
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert float(cauchy_schwarz_divergence(x, y, 2.0)) == pytest.approx(25 / 4)
    assert float(cauchy_schwarz_divergence(x, 1e4 * y, 2.0)) == pytest.approx(25e8 / 4)  # no underflow


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6), st.floats(0.05, 20), st.floats(-3, 3))
def test_never_negative_and_symmetric(m: int, n: int, seed: int, h: float, shift: float) -> None:
    x, y = points(m, seed), points(n, seed + 1) + shift
    d = float(cauchy_schwarz_divergence(x, y, h))
    assert d >= -1e-12 and d == pytest.approx(float(cauchy_schwarz_divergence(y, x, h)), abs=1e-12)


def test_equal_sets_have_none() -> None:
    x = points(20, 0)
    assert abs(float(cauchy_schwarz_divergence(x, x[torch.randperm(20)]))) < 1e-12
    assert abs(float(cauchy_schwarz_divergence(x, x.repeat(3, 1)))) < 1e-12  # the same density, another count
    assert float(cauchy_schwarz_divergence(x, x + 0.5)) > 1e-3


def test_sets_that_descend_it_meet() -> None:
    x, y = points(15, 0).requires_grad_(), points(12, 1) + 2
    optimizer = torch.optim.Adam([x], lr=0.1)
    first = float(cauchy_schwarz_divergence(x, y, 1.5).detach())
    for _ in range(60):
        optimizer.zero_grad()
        cauchy_schwarz_divergence(x, y, 1.5).backward()
        optimizer.step()
    assert float(cauchy_schwarz_divergence(x, y, 1.5).detach()) < 0.1 * first  # measured 0.055


def test_the_median_sets_the_bandwidth() -> None:
    assert float(median_distance(torch.tensor([[0.0], [1.0], [3.0]]))) == 2
    assert float(median_distance(torch.zeros(3, 2))) == 1
    assert float(cauchy_schwarz_divergence(torch.zeros(2, 3), torch.zeros(4, 3))) == 0


def test_bad_input() -> None:
    x = points(3, 0)
    for bad, message in (
        (points(3, 0, width=4), "must be"),
        (x[:0], "must be"),
        (x[0], "must be"),
        (x * torch.nan, "NaN or infinity"),
    ):
        with pytest.raises(InputError, match=message):
            cauchy_schwarz_divergence(x, bad)
    with pytest.raises(InputError, match="bandwidth must be positive"):
        cauchy_schwarz_divergence(x, x, 0.0)
