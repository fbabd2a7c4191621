"""GAE and the value loss by hand."""

from __future__ import annotations

import pytest
import torch

from rl3d.errors import InputError
from rl3d.rl import gae, standardised, value_loss


def test_gae_by_hand_with_an_end_and_a_cut() -> None:
    """gamma .5, lam .5, three steps of two environments, values 1, next values 2, rewards 1.

    delta is 1 + .5 x 2 - 1 = 1 where an episode goes on or is cut, 1 - 1 = 0 where it ended.
    Row 0 ends at step 1: A2 = 1; A1 = 0; A0 = 1 + .25 x 0 = 1.
    Row 1 is cut at step 1: A2 = 1; A1 = 1 (bootstrapped, and the chain stops); A0 = 1 + .25 x 1 = 1.25.
    """
    ones, none = torch.ones(3, 2), torch.zeros(3, 2, dtype=torch.bool)
    ended, cut = none.clone(), none.clone()
    ended[1, 0], cut[1, 1] = True, True
    advantages, returns = gae(ones, ones, 2 * ones, ended, cut, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[1.0, 1.25], [0.0, 1.0], [1.0, 1.0]]
    assert torch.equal(returns, advantages + 1)


def test_lambda_one_is_the_return_and_lambda_zero_one_step() -> None:
    g = torch.Generator().manual_seed(0)
    r, v = (torch.rand(5, 3, generator=g, dtype=torch.float64) for _ in range(2))
    following = torch.cat([v[1:], torch.rand(1, 3, generator=g, dtype=torch.float64)])
    none = torch.zeros(5, 3, dtype=torch.bool)
    _, returns = gae(r, v, following, none, none, gamma=0.9, lam=1.0)
    discounted = sum(0.9**t * r[t] for t in range(5)) + 0.9**5 * following[-1]
    assert torch.allclose(returns[0], discounted)
    advantages, _ = gae(r, v, following, none, none, gamma=0.9, lam=0.0)
    assert torch.allclose(advantages, r + 0.9 * following - v)


def test_value_loss_by_hand() -> None:
    """Old 0, new 1, return 2, clip .5: max((1 - 2)^2, (.5 - 2)^2) = 2.25, halved 1.125; without the clip .5."""
    new, old, target = (torch.full((1,), x, requires_grad=x == 1.0) for x in (1.0, 0.0, 2.0))
    assert value_loss(new, old, target, clip=0.5).item() == pytest.approx(1.125)
    plain = value_loss(new, old, target)
    assert plain.item() == pytest.approx(0.5)
    assert torch.autograd.grad(plain, new)[0].item() == pytest.approx(-1.0)


def test_standardised_has_mean_0_and_std_1_and_survives_equal_numbers() -> None:
    a = standardised(torch.tensor([1.0, 2.0, 6.0]))
    assert a.mean().item() == pytest.approx(0, abs=1e-6) and a.std(correction=0).item() == pytest.approx(1)
    assert standardised(torch.ones(4)).tolist() == [0, 0, 0, 0]


def test_errors_name_what_is_wrong() -> None:
    ones, none = torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool)
    with pytest.raises(InputError, match=r"terminated must have the shape"):
        gae(ones, ones, ones, none[0], none, gamma=0.9, lam=0.9)
    with pytest.raises(InputError, match="the reward of step 1, environment 0 is nan"):
        gae(torch.tensor([[0.0, 0.0], [float("nan"), 0.0]]), ones, ones, none, none, gamma=0.9, lam=0.9)
    with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
        gae(ones, ones, ones, none, none, gamma=1.1, lam=0.9)
    with pytest.raises(InputError, match="boolean"):
        gae(ones, ones, ones, none, ones, gamma=0.9, lam=0.9)
