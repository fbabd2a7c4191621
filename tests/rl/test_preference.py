"""Preference losses: log 2 at the reference, odd under swapping, masks that let nothing through, and cases by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rl import d3po, diffusion_dpo, mesh_rft_masks, token_dpo

Pair = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
RULES: dict[str, Pair] = {
    "diffusion_dpo": lambda w, l, rw, rl: diffusion_dpo(w, l, rw, rl, beta=3.0)[0],
    "d3po": lambda w, l, rw, rl: d3po(w, l, rw, rl, beta=3.0, clip=0.9)[0],
    "token_dpo": lambda w, l, rw, rl: token_dpo(w[:, None], l[:, None], rw[:, None], rl[:, None], beta=3.0)[0],
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_log_2_at_the_reference(rule: Pair) -> None:
    w, l = drawn(5), drawn(5, seed=1)
    assert float(rule(w, l, w, l)) == pytest.approx(math.log(2))
    assert float(rule(w + 0.1, l, w, l)) != pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.parametrize("name", RULES)
def test_a_swapped_pair_turns_the_gradient_round(name: str) -> None:
    """At the reference the slopes are -beta/2 and beta/2 a pair (for errors the other way round, halved)."""
    rule, (rw, rl) = RULES[name], (drawn(4), drawn(4, seed=1))
    w, l = rw.clone().requires_grad_(), rl.clone().requires_grad_()
    one = torch.autograd.grad(rule(w, l, rw, rl), [w, l])
    other = torch.autograd.grad(rule(l, w, rl, rw), [w, l])
    for a, b in zip(one, other):
        assert torch.allclose(a, -b, rtol=1e-12)
    slope = 3.0 / 4 if name == "diffusion_dpo" else -3.0 / 2
    assert one[0].tolist() == pytest.approx([slope / 4] * 4) and one[1].tolist() == pytest.approx([-slope / 4] * 4)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_gradcheck_and_a_constant_reference(rule: Pair) -> None:
    w, l, rw, rl = (drawn(3, seed=s).requires_grad_() for s in range(4))
    assert torch.autograd.gradcheck(lambda a, b: rule(a, b, rw, rl), (w, l))
    rule(w, l, rw, rl).backward()
    assert rw.grad is None and rl.grad is None


def test_diffusion_dpo_by_hand() -> None:
    """-(10/2) [(0.4 - 0.5) - (0.9 - 0.6)] = 2; -log sigma(2) = log(1 + e^-2) = 0.126928."""
    values = [torch.tensor([v]) for v in (0.4, 0.9, 0.5, 0.6)]
    loss, numbers = diffusion_dpo(*values, beta=10.0)
    assert loss.item() == pytest.approx(0.126928, abs=1e-6)
    assert float(numbers.margin) == pytest.approx(2) and float(numbers.accuracy) == 1
    assert float(numbers.winner) == pytest.approx(0.5) and float(numbers.loser) == pytest.approx(-1.5, abs=1e-6)


def test_the_clip_of_d3po_stops_both_directions() -> None:
    """The trap: steps whose ratio is 1.5 and 0.5 have no gradient at a clip of 0.1, the second though it got worse."""
    w = torch.tensor([[math.log(1.5), math.log(0.5), math.log(1.05)]], requires_grad=True)
    zero = torch.zeros(1, 3)
    loss, _ = d3po(w, zero, zero, zero, beta=1.0, clip=0.1)
    (g,) = torch.autograd.grad(loss, w)
    assert g[0, :2].tolist() == [0, 0] and float(g[0, 2]) < -0.1
    # and the clipped value is log(1.1): -log sigma(log 1.1) = log(1 + 1 / 1.1)
    one = d3po(w[:, :1], zero[:, :1], zero[:, :1], zero[:, :1], beta=1.0, clip=0.1)[0]
    assert one.item() == pytest.approx(math.log(1 + 1 / 1.1))


def test_token_dpo_by_hand() -> None:
    """l(w) = [1, -0.5, 2], mask [1, 1, 0]: L+ = 0.5. l(l) = [0.2, 0.4], mask [0, 1]: L- = 0.4. beta 2: logit 0.2.

    -log sigma(0.2) = log(1 + e^-0.2) = 0.598139. By means: 0.25 - 0.4 = -0.15, logit -0.3, log(1 + e^0.3) = 0.854355.
    """
    w, l = torch.tensor([[1.0, -0.5, 2.0]]), torch.tensor([[0.2, 0.4]])
    masks = {"mask_w": torch.tensor([[True, True, False]]), "mask_l": torch.tensor([[False, True]])}
    zeros = torch.zeros_like(w), torch.zeros_like(l)
    loss, numbers = token_dpo(w, l, *zeros, beta=2.0, **masks)
    assert loss.item() == pytest.approx(0.598139, abs=1e-6) and float(numbers.margin) == pytest.approx(0.2)
    mean, numbers = token_dpo(w, l, *zeros, beta=2.0, reduce="mean", **masks)
    assert mean.item() == pytest.approx(0.854355, abs=1e-6) and float(numbers.accuracy) == 0
    assert float(numbers.winner) == pytest.approx(0.5) and float(numbers.loser) == pytest.approx(0.8)


def test_masked_tokens_have_no_gradient_even_at_minus_infinity() -> None:
    w = torch.tensor([[-1.0, -math.inf]], requires_grad=True)
    l = torch.tensor([[-math.inf, -1.0]], requires_grad=True)
    for reduce in ("sum", "mean"):
        loss, _ = token_dpo(
            w,
            l,
            w.detach().clone(),
            l.detach().clone(),
            beta=1.0,
            mask_w=torch.tensor([[True, False]]),
            mask_l=torch.tensor([[False, True]]),
            reduce=reduce,  # type: ignore[arg-type]
        )
        assert loss.item() == pytest.approx(math.log(2))
        gw, gl = torch.autograd.grad(loss, [w, l])
        assert gw.tolist() == [[-0.5, 0]] and gl.tolist() == [[0, 0.5]]


def test_a_loser_without_bad_faces_leaves_a_push_of_the_winner() -> None:
    w, l = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 3, requires_grad=True)
    good_w, good_l = torch.tensor([[True, False]]), torch.ones(1, 3, dtype=torch.bool)
    mask_w, mask_l = mesh_rft_masks(good_w, good_l, torch.ones_like(good_w), torch.ones_like(good_l))
    for reduce in ("sum", "mean"):
        loss, _ = token_dpo(
            w, l, w.detach(), l.detach(), beta=1.0, mask_w=mask_w, mask_l=mask_l, reduce=reduce  # type: ignore[arg-type]
        )  # fmt: skip
        gw, gl = torch.autograd.grad(loss, [w, l])
        assert gw.tolist() == [[-0.5, 0]] and gl.tolist() == [[0, 0, 0]]


def test_mesh_rft_masks_are_inverted_for_the_loser_but_not_on_padding() -> None:
    good_w, real_w = torch.tensor([[True, False, True]]), torch.tensor([[True, True, False]])
    good_l, real_l = torch.tensor([[True, False, False]]), torch.tensor([[True, True, False]])
    mask_w, mask_l = mesh_rft_masks(good_w, good_l, real_w, real_l)
    assert mask_w.tolist() == [[True, False, False]] and mask_l.tolist() == [[False, True, False]]
    with pytest.raises(InputError, match=r"boolean tensors, got torch\.int64"):
        mesh_rft_masks(good_w, good_l.long(), real_w, real_l)


def test_without_masks_every_token_counts() -> None:
    w, l = drawn(2, 4), drawn(2, 4, seed=1)
    zero, full = torch.zeros_like(w), torch.ones(2, 4, dtype=torch.bool)
    plain = token_dpo(w, l, zero, zero, beta=0.7)[0]
    masked = token_dpo(w, l, zero, zero, beta=0.7, mask_w=full, mask_l=full)[0]
    by_hand = -torch.nn.functional.logsigmoid(0.7 * (w.sum(1) - l.sum(1))).mean()
    assert plain.item() == pytest.approx(by_hand.item()) and masked.item() == pytest.approx(by_hand.item())
    averaged = token_dpo(w, l, zero, zero, beta=4 * 0.7, reduce="mean")[0]
    assert averaged.item() == pytest.approx(by_hand.item())


def test_bad_input_is_named() -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    with pytest.raises(InputError, match=r"errors_l must have the shape \[1\] of errors_w, got \[2\]"):
        diffusion_dpo(one, two, one, one, beta=1)
    with pytest.raises(InputError, match="beta must be positive"):
        diffusion_dpo(one, one, one, one, beta=0)
    with pytest.raises(InputError, match=r"clip must lie in \(0, 1\), got 1.0"):
        d3po(one, one, one, one, beta=1, clip=1.0)
    with pytest.raises(InputError, match=r"\[B, T_w\] and \[B, T_l\], got \[1, 2\] and \[2, 2\]"):
        token_dpo(torch.zeros(1, 2), torch.zeros(2, 2), torch.zeros(1, 2), torch.zeros(2, 2), beta=1)
    with pytest.raises(InputError, match="reduce must be sum or mean"):
        token_dpo(*[torch.zeros(1, 2)] * 4, beta=1, reduce="max")  # type: ignore[arg-type]
