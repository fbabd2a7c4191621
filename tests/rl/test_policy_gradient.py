"""Policy gradients by hand, against finite differences, and where their gradients are equal or gone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rl import as_floats, clipped_surrogate, dpok, grpo, k3, reinforce


def gradient(loss: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(loss, at)[0]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_surrogate_by_hand() -> None:
    """clip 0.2. Ratios 1.5, 0.5, 1.5, 0.5 with A = 1, 1, -2, -2 give max(-A rho, -A clip(rho)):

    max(-1.5, -1.2) = -1.2; max(-0.5, -0.8) = -0.5; max(3, 2.4) = 3; max(1, 1.6) = 1.6. Mean 2.9 / 4 = 0.725.
    Gradients to log p are -A rho / 4 where not cut: 0, -0.125, 0.75, 0.
    """
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5], dtype=torch.float64)
    lp = ratios.log().requires_grad_()
    loss, numbers = clipped_surrogate(lp, torch.zeros(4).double(), torch.tensor([1.0, 1, -2, -2]).double(), clip=0.2)
    assert loss.item() == pytest.approx(0.725)
    assert gradient(loss, lp).tolist() == pytest.approx([0, -0.125, 0.75, 0])
    seen = as_floats(numbers, "policy/")
    assert seen["policy/ratio_mean"] == pytest.approx(1) and seen["policy/ratio_deviation"] == pytest.approx(0.5)
    assert seen["policy/clip_fraction"] == 1 and seen["policy/cut_fraction"] == 0.5
    one = torch.ones(4).double()  # asked to rise, only the ratio above the range is cut
    assert float(clipped_surrogate(lp[[0, 1, 1, 1]], 0 * lp, one, clip=0.2)[1].cut_fraction) == 0.25
    # k3 of KL(old || theta) with u = -log rho: rho - 1 - log rho; mean = -(log 1.5 + log 0.5) / 2
    assert seen["policy/approx_kl"] == pytest.approx(-(math.log(1.5) + math.log(0.5)) / 2)


def test_at_ratio_one_the_surrogate_has_the_gradient_of_reinforce() -> None:
    lp, advantages = drawn(6, 5).requires_grad_(), drawn(6, 5, seed=1)
    loss, numbers = clipped_surrogate(lp, lp, advantages, clip=1e-4)
    one, other = gradient(loss, lp), gradient(reinforce(lp, advantages), lp)
    assert torch.allclose(one, other, rtol=1e-12) and one.abs().max() > 1e-3
    assert float(numbers.ratio_deviation) == 0 and float(numbers.clip_fraction) == 0
    # GRPO with one advantage a sample, no KL and full rows is the same again
    wide = advantages[:, :1].expand(6, 5)
    both = grpo(lp, lp, advantages[:, 0], torch.zeros_like(lp), clip=1e-4, beta=0.0)[0]
    assert torch.allclose(gradient(both, lp), gradient(reinforce(lp, wide), lp), rtol=1e-12)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {  # of log_probs, old, advantages and kl [B, T]
    "reinforce": lambda lp, old, a, kl: reinforce(lp, a),
    "surrogate": lambda lp, old, a, kl: clipped_surrogate(lp, old, a, clip=0.5)[0],
    "dpok": lambda lp, old, a, kl: dpok(lp, a[:, 0], kl, alpha=1.0, beta=1.0),
    "grpo": lambda lp, old, a, kl: grpo(lp, old, a[:, 0], kl, clip=0.5, beta=1.0)[0],
}


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_but_the_policy_and_its_kl_get_gradients(name: str) -> None:
    lp, old, a, kl = (drawn(3, 4, seed=s).requires_grad_() for s in range(4))
    LOSSES[name](lp, old, a, kl).backward()
    assert lp.grad is not None and old.grad is None and a.grad is None
    assert (kl.grad is not None) == (name in ("dpok", "grpo"))


def test_gradcheck() -> None:
    """Float64 finite differences of every loss, away from the kinks at 1 +- clip."""
    lp, old, a = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1), drawn(3, seed=2)
    reference = drawn(3, 4, seed=3)
    wide = a[:, None].expand(3, 4)
    assert ((lp - old).detach().exp() - 1).abs().sub(0.3).abs().min() > 1e-3
    assert torch.autograd.gradcheck(lambda x: reinforce(x, wide), lp)
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate(x, old, wide, clip=0.3)[0], lp)
    assert torch.autograd.gradcheck(lambda x: dpok(x, a, k3(x, reference), alpha=2.0, beta=0.5), lp)
    assert torch.autograd.gradcheck(lambda x: grpo(x, old, a, k3(x, reference), clip=0.3, beta=0.5)[0], lp)


def test_dpok_by_hand() -> None:
    """alpha 2, beta 0.5: -2 * 3 * (-1 - 2) + 0.5 * (1 + 1) = 19 and -2 * -1 * (0 - 1) + 0.5 * 4 = 0."""
    lp, kl = torch.tensor([[-1.0, -2.0], [0.0, -1.0]]), torch.tensor([[1.0, 1.0], [4.0, 0.0]])
    assert float(dpok(lp, torch.tensor([3.0, -1.0]), kl, alpha=2.0, beta=0.5)) == pytest.approx(9.5)


def test_grpo_counts_samples_equally_and_ppo_tokens() -> None:
    """At ratio 1 a token has the value -A. A = [3, 0]; the first sample has 1 token of 3, the second all 3.

    GRPO: (-3 + 0) / 2 = -1.5. The masked surrogate: -3 / 4 tokens = -0.75.
    """
    lp, a = torch.zeros(2, 3), torch.tensor([3.0, 0.0])
    mask = torch.tensor([[True, False, False], [True, True, True]])
    assert float(grpo(lp, lp, a, torch.zeros_like(lp), clip=0.2, beta=0.0, mask=mask)[0]) == pytest.approx(-1.5)
    wide = a[:, None].expand(2, 3)
    assert float(clipped_surrogate(lp, lp, wide, clip=0.2, mask=mask)[0]) == pytest.approx(-0.75)


def test_the_kl_of_grpo_pulls_back() -> None:
    """beta 1, A = 0: the gradient is k3's alone, (1 - exp(-u)) / T, positive where p_theta > p_ref."""
    lp = torch.tensor([[0.0, 0.0]], requires_grad=True)
    reference = torch.tensor([[-1.0, 1.0]])
    loss, _ = grpo(lp, lp.detach(), torch.zeros(1), k3(lp, reference), clip=0.2, beta=1.0)
    wanted = [(1 - math.exp(-1)) / 2, (1 - math.exp(1)) / 2]
    assert gradient(loss, lp)[0].tolist() == pytest.approx(wanted)


def test_masked_tokens_have_no_gradient_even_at_minus_infinity() -> None:
    lp = torch.tensor([[-1.0, -2.0, -math.inf]], requires_grad=True)
    old = torch.tensor([[-1.1, -2.0, -math.inf]])
    mask, a = torch.tensor([[True, True, False]]), torch.tensor([[1.0, -1.0, 1.0]])
    losses = {
        "reinforce": reinforce(lp, a, mask),
        "surrogate": clipped_surrogate(lp, old, a, clip=0.2, mask=mask)[0],
        "grpo": grpo(lp, old, a[:, 0], k3(lp, old, mask), clip=0.2, beta=0.1, mask=mask)[0],
    }
    for name, loss in losses.items():
        g = gradient(loss, lp)[0]
        assert math.isfinite(loss.item()), name
        assert g[2] == 0 and bool(torch.isfinite(g).all()) and bool((g[:2] != 0).all()), name


def test_bad_input_is_named() -> None:
    lp = torch.zeros(4)
    with pytest.raises(InputError, match=r"advantages must have the shape \[4\] of log_probs, got \[4, 1\]"):
        clipped_surrogate(lp, lp, torch.zeros(4, 1), clip=0.2)
    with pytest.raises(InputError, match="clip must be positive"):
        clipped_surrogate(lp, lp, lp, clip=0)
    with pytest.raises(InputError, match="leaves nothing"):
        reinforce(lp, lp, torch.zeros(4, dtype=torch.bool))
    with pytest.raises(InputError, match=r"a mask is a boolean tensor, got torch\.float32"):
        reinforce(lp, lp, torch.ones(4))
    with pytest.raises(InputError, match=r"one advantage a sample, \[2\]"):
        grpo(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), clip=0.1, beta=0)
    with pytest.raises(InputError, match=r"rewards must have the shape \[2\]"):
        dpok(torch.zeros(2, 3), torch.zeros(3), torch.zeros(2, 3), alpha=1, beta=1)
