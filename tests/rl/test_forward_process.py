"""Forward-process rules: NFT's value and gradient where they part ways, AWM on-policy, weights, finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rl import (
    awm,
    exponential_weights,
    group_advantages,
    matching_log_probs,
    nft,
    optimality,
    reinforce,
    reward_weighted_regression,
    squared_error,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_optimality_by_hand() -> None:
    """A_max 5: -10 -> 0 (clipped), -5 -> 0, 0 -> 1/2, 2.5 -> 3/4, 10 -> 1."""
    assert optimality(torch.tensor([-10.0, -5, 0, 2.5, 10]), 5.0).tolist() == [0, 0, 0.5, 0.75, 1]


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_nft_at_the_old_policy_has_a_value_without_reward_and_a_gradient_with_it(beta: float) -> None:
    """The trap: with w = 1 the value is mean |v - target|^2 / beta for every r, the gradient (2/D)(2r - 1)(v - target).

    Times beta this is the 2 beta (2r - 1)(v_theta - v) of the loss without its factor 1/beta.
    """
    v_old, target = drawn(3, 4), drawn(3, 4, seed=1)
    values, gradients = [], []
    for r in (torch.zeros(3), torch.tensor([0.2, 0.5, 0.9]), torch.ones(3)):
        v = v_old.clone().requires_grad_()
        loss, numbers = nft(v, v_old, target, r, beta=beta, adaptive=False)
        values.append(loss.item())
        gradients.append(torch.autograd.grad(loss, v)[0])
        wanted = 2 / 4 * (2 * r[:, None].double() - 1) * (v_old - target) / 3
        assert torch.allclose(gradients[-1], wanted, atol=1e-7)  # r is float32
        assert float(numbers.drive) == pytest.approx(float((2 * r - 1).abs().mean()))
    assert values == pytest.approx([float((v_old - target).square().mean()) / beta] * 3)
    assert torch.allclose(gradients[0], -gradients[2]) and gradients[0].abs().max() > 0.1
    assert gradients[1][1].abs().max() < 1e-7  # r = 1/2 asks for nothing


def test_nft_detaches_the_old_policy_even_if_the_caller_forgot() -> None:
    """If gradients also flowed through v_old = v_theta, both terms would be of v alone and the reward would cancel."""
    v, target = drawn(2, 3).requires_grad_(), drawn(2, 3, seed=1)
    good = torch.autograd.grad(nft(v, v, target, torch.ones(2), beta=1.0)[0], v)[0]
    bad = torch.autograd.grad(nft(v, v, target, torch.zeros(2), beta=1.0)[0], v)[0]
    assert torch.allclose(good, -bad) and good.abs().max() > 0.05


def test_the_adaptive_weight_divides_by_the_mean_error_and_has_no_gradient() -> None:
    """One sample, D 2, v = v_old = [2, 4], target 0: e = (4 + 16)/2 = 10, w = 3. Value 10/3, gradient v/w (r = 1)."""
    v = torch.tensor([[2.0, 4.0]], requires_grad=True)
    loss, _ = nft(v, v, torch.zeros(1, 2), torch.ones(1), beta=1.0)
    assert loss.item() == pytest.approx(10 / 3)
    assert torch.autograd.grad(loss, v)[0].tolist()[0] == pytest.approx([2 / 3, 4 / 3])


def test_nft_by_hand_away_from_the_old_policy() -> None:
    """beta 0.5, v_old 1, v 3, target 0: v+ = 2, v- = 1.5 - 1.5 = 0; r = 0.75: (0.75 * 4 + 0.25 * 0)/0.5 = 6."""
    loss, numbers = nft(
        torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.zeros(1, 1), torch.tensor([0.75]), beta=0.5, adaptive=False
    )
    assert loss.item() == pytest.approx(6)
    assert float(numbers.positive) == pytest.approx(4) and float(numbers.negative) == pytest.approx(0)
    assert float(numbers.moved) == pytest.approx(2)


def test_gradcheck() -> None:
    v, v_old, target = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1), drawn(3, 4, seed=2)
    r, w = torch.tensor([0.1, 0.6, 1.0]).double(), torch.tensor([0.5, 1.0, 2.0]).double()
    assert torch.autograd.gradcheck(lambda x: nft(x, v_old, target, r, beta=0.3, adaptive=False)[0], v)
    assert torch.autograd.gradcheck(lambda x: squared_error(x, target), v)
    assert torch.autograd.gradcheck(lambda x: matching_log_probs(x, target, w, power=0.25), v)
    assert torch.autograd.gradcheck(lambda x: reward_weighted_regression(x, target, w), v)


def test_matching_log_probs_by_hand() -> None:
    """e = (9 + 16 ... )/2: [3, 4] against 0 is 12.5; -2 * 12.5 = -25; with the power 0.25: -2/0.25 * 12.5^0.25."""
    v, zero = torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 2).double()
    assert float(matching_log_probs(v, zero, 2.0)) == pytest.approx(-25)
    wanted = -8 * (12.5**0.25 - (1e-10) ** 0.25)
    assert float(matching_log_probs(v, zero, 2.0, power=0.25)) == pytest.approx(wanted)
    exact = zero.clone().requires_grad_()
    (g,) = torch.autograd.grad(matching_log_probs(exact, zero, power=0.25).sum(), exact)
    assert g.tolist() == [[0, 0]]  # and not NaN


def test_awm_on_policy_is_the_matching_error_weighted_by_the_advantage() -> None:
    v, target, a = drawn(5, 3).requires_grad_(), drawn(5, 3, seed=1), drawn(5, seed=2)
    lp = matching_log_probs(v, target)
    one = torch.autograd.grad(awm(lp, lp, a, clip=1e-3)[0], v, retain_graph=True)[0]
    two = torch.autograd.grad(reinforce(lp, a), v)[0]
    by_hand = a[:, None] * 2 * (v.detach() - target) / 3 / 5  # mean_i A_i e_i
    assert torch.allclose(one, two) and torch.allclose(one, by_hand)


def test_exponential_weights_by_hand() -> None:
    """exp(0) and exp(log 3): shares 1/4 and 3/4, times two samples. Rewards of 1000 do not overflow."""
    w = exponential_weights(torch.tensor([[0.0, math.log(3)], [1000.0, 1000.0]]), 1.0)
    assert w.flatten().tolist() == pytest.approx([0.5, 1.5, 1.0, 1.0])
    with pytest.raises(InputError, match="NaN or infinity"):
        exponential_weights(torch.tensor([[0.0, math.nan]]), 1.0)
    with pytest.raises(InputError, match=r"\[groups, samples\], got \[2\]"):
        exponential_weights(torch.zeros(2), 1.0)


def test_weighted_regression_by_hand_and_without_negative_weights() -> None:
    """e = [1, 4], w = [2, 0.5]: (2 + 2) / 2 = 2."""
    v, target = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    assert reward_weighted_regression(v, target, torch.tensor([2.0, 0.5])).item() == pytest.approx(2)
    advantages = group_advantages(torch.tensor([[1.0, 2.0]])).values[0]
    for weights in (advantages, torch.tensor([1.0, math.nan])):
        with pytest.raises(InputError, match="must not be negative"):
            reward_weighted_regression(v, target, weights)


def test_bad_input_is_named() -> None:
    v = torch.zeros(2, 3)
    with pytest.raises(InputError, match=r"r must have the shape \[2\] of errors, got \[2, 1\]"):
        nft(v, v, v, torch.zeros(2, 1), beta=1.0)
    with pytest.raises(InputError, match=r"target must have the shape \[2, 3\]"):
        nft(v, v, torch.zeros(2, 1), torch.zeros(2), beta=1.0)
    with pytest.raises(InputError, match="beta must be positive"):
        nft(v, v, v, torch.zeros(2), beta=0)
    with pytest.raises(InputError, match=r"weight must have the shape \[2\] of error"):
        matching_log_probs(v, v, torch.ones(2, 1))
    with pytest.raises(InputError, match="power must be positive"):
        matching_log_probs(v, v, power=0)
