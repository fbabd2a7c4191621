"""Running moments against those of everything at once."""

from __future__ import annotations

import pytest
import torch

from rl3d.errors import InputError
from rl3d.rl import ReturnScale, RunningMoments


def test_batches_give_the_moments_of_everything() -> None:
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 5
    moments = RunningMoments.empty(2)
    for part in x.split([1, 9, 20]):
        moments = moments.seen(part)
    assert torch.allclose(moments.mean, x.mean(0)) and torch.allclose(moments.variance, x.var(0, correction=0))
    assert float(moments.count) == 30
    assert moments.normalised(x).mean().abs() < 1e-9
    assert moments.normalised(x * 1e6, limit=4.0).abs().max() == 4.0


def test_nothing_seen_leaves_values_alone() -> None:
    assert RunningMoments.empty(1).normalised(torch.tensor([[0.5]])).item() == 0.5


def test_returns_begin_anew_where_an_episode_ended() -> None:
    """gamma .5, rewards 1: row 0 ends after its first step, so its running return is 0, then 1; row 1 has 1, 1.5."""
    scale = ReturnScale.empty(2)
    ones = torch.ones(2)
    scale = scale.seen(ones, torch.tensor([True, False]), 0.5)
    assert scale.running.tolist() == [0.0, 1.0]
    scale = scale.seen(ones, torch.tensor([False, False]), 0.5)
    assert scale.running.tolist() == [1.0, 1.5]
    seen = torch.tensor([1.0, 1.0, 1.0, 1.5], dtype=torch.float64)
    assert scale.moments.std.item() == pytest.approx(seen.std(correction=0).item())
    assert scale.scaled(torch.tensor([0.1])).item() == pytest.approx(0.1 / seen.std(correction=0).item())


def test_errors() -> None:
    with pytest.raises(InputError, match="batch must be"):
        RunningMoments.empty(2).seen(torch.zeros(3))
    with pytest.raises(InputError, match="not finite"):
        RunningMoments.empty(1).seen(torch.tensor([[float("inf")]]))
