"""Regression on reward differences: minima, the pessimistic clip in both directions, and cases by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rl import as_floats, prdp, rebel, zigal


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rebel_by_hand() -> None:
    """D = (-1 + 2) - (-3 + 2.5) = 1.5; (1.5 / 0.5 - 1)^2 = 4; slopes 2 * 2 / 0.5 = 8 and -8."""
    a, b = torch.tensor([-1.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    loss, numbers = rebel(a, b, torch.tensor([-2.0]), torch.tensor([-2.5]), torch.tensor([1.0]), eta=0.5)
    assert loss.item() == pytest.approx(4)
    assert [g.item() for g in torch.autograd.grad(loss, [a, b])] == pytest.approx([8, -8])
    assert as_floats(numbers) == pytest.approx({"residual": 2, "target": 1, "clip_fraction": 0, "cut_fraction": 0})


def test_the_minimum_of_rebel_is_the_mirror_step() -> None:
    """log p = log p_old + eta r - log Z: the normaliser cancels in the difference, and the loss is 0."""
    old_a, old_b, r_a, r_b = (drawn(6, seed=s) for s in range(4))
    loss, _ = rebel(old_a + 0.3 * r_a - 0.7, old_b + 0.3 * r_b - 0.7, old_a, old_b, r_a - r_b, eta=0.3)
    assert loss.item() < 1e-25


def test_the_minimum_of_prdp_is_relative_to_the_reference() -> None:
    """sum_t log p/p_ref = r/beta - log Z, reached from an old policy that is not the reference, inside the clip."""
    ref_a, ref_b, old_a, old_b = (drawn(6, 4, seed=s) for s in range(4))
    r_a, r_b = drawn(6, seed=5), drawn(6, seed=6)
    a, b = (ref + (r / 2.0 - 0.1)[:, None] / 4 for ref, r in ((ref_a, r_a), (ref_b, r_b)))
    loss, numbers = prdp(a, b, old_a, old_b, ref_a, ref_b, r_a - r_b, beta=2.0, clip=100.0)
    assert loss.item() < 1e-25 and float(numbers.clip_fraction) == 0


def test_prdp_by_hand() -> None:
    """Two steps, p_ref = p_old = 0: a moved by [0.3, 0.1], b by [0, -0.1]; clip 0.2. D = 0.5, D_clip = 0.4.

    Target 2/2 = 1: errors 0.25 and 0.36, the larger is the clipped one, whose gradient goes through the steps that are
    inside the range only: d/d(a_1) = 2 * (0.4 - 1) = -1.2 for the second step, 0 for the first.
    """
    a, b = torch.tensor([[0.3, 0.1]], requires_grad=True), torch.tensor([[0.0, -0.1]], requires_grad=True)
    z = torch.zeros(1, 2)
    loss, numbers = prdp(a, b, z, z, z, z, torch.tensor([2.0]), beta=2.0, clip=0.2)
    assert loss.item() == pytest.approx(0.36)
    ga, gb = torch.autograd.grad(loss, [a, b])
    assert ga[0].tolist() == pytest.approx([0, -1.2]) and gb[0].tolist() == pytest.approx([1.2, 1.2])
    assert float(numbers.clip_fraction) == pytest.approx(0.25) and float(numbers.cut_fraction) == 1


def test_prdp_clips_both_samples() -> None:
    """b moved by [-0.3, -0.1], clip 0.2: D_clip = 0.3, target 1: (0.3 - 1)^2 = 0.49, larger than (0.4 - 1)^2."""
    z = torch.zeros(1, 2)
    loss, _ = prdp(z, torch.tensor([[-0.3, -0.1]]), z, z, z, z, torch.tensor([2.0]), beta=2.0, clip=0.2)
    assert loss.item() == pytest.approx(0.49)


def test_zigal_stops_where_it_went_the_right_way_and_only_there() -> None:
    """A = 1, clip 1e-4. D = 2e-3 (towards A, beyond the clip): D_clip = 2e-4 is further off, constant: no gradient.

    D = -2e-3 (away): the plain error is larger and pulls back, slope 2 (D - A). D = 1e-4 (inside): slope 2 (D - A).
    """
    a = torch.tensor([1e-3, -1e-3, 5e-5], dtype=torch.float64, requires_grad=True)
    b = -a.detach()
    z, one = torch.zeros(3).double(), torch.ones(3).double()
    loss, numbers = zigal(a, b, z, z, one, clip=1e-4)
    (g,) = torch.autograd.grad(loss, a)
    assert g.tolist() == pytest.approx([0, 2 * (-2e-3 - 1) / 3, 2 * (1e-4 - 1) / 3], rel=1e-12)
    assert float(numbers.clip_fraction) == pytest.approx(2 / 3) and float(numbers.cut_fraction) == pytest.approx(1 / 3)
    assert loss.item() == pytest.approx(((2e-4 - 1) ** 2 + (-2e-3 - 1) ** 2 + (1e-4 - 1) ** 2) / 3)


def test_at_the_start_zigal_pushes_by_the_advantage() -> None:
    """At p = p_old D = 0: the slope of a is -2 A / n, that of a policy gradient up to the 2."""
    a, target = drawn(2, 3, 4).requires_grad_(), drawn(2, 3, 4, seed=1)
    loss, _ = zigal(a, a.detach(), a.detach(), a.detach(), target, clip=1e-4)
    assert torch.allclose(torch.autograd.grad(loss, a)[0], -2 * target / 24)


def prdp_of_one_step(a: Tensor, b: Tensor, d: Tensor) -> Tensor:
    a, b = a[:, None], b[:, None]
    old = a.detach(), b.detach()
    return prdp(a, b, *old, *old, d, beta=2.0, clip=0.1)[0]


SWAPPED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "rebel": lambda a, b, d: rebel(a, b, a.detach(), b.detach(), d, eta=0.5)[0],
    "prdp": prdp_of_one_step,
    "zigal": lambda a, b, d: zigal(a, b, a.detach(), b.detach(), d, clip=0.1)[0],
}


@pytest.mark.parametrize("rule", SWAPPED.values(), ids=SWAPPED.keys())
def test_the_names_of_a_pair_do_not_matter(rule: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Loss(a, b, d) = loss(b, a, -d), and a reversed difference reverses the gradient at the old policy."""
    a, b, d = drawn(4).requires_grad_(), drawn(4, seed=1).requires_grad_(), drawn(4, seed=2)
    one = torch.autograd.grad(rule(a, b, d), [a, b])
    same = torch.autograd.grad(rule(b, a, -d), [a, b])
    other = torch.autograd.grad(rule(a, b, -d), [a, b])
    for x, y, z in zip(one, same, other):
        assert torch.allclose(x, y) and torch.allclose(x, -z) and x.abs().max() > 0.01


def test_gradcheck_and_constants() -> None:
    a, b, old_a, old_b, ref_a, ref_b = (drawn(3, 4, seed=s).requires_grad_() for s in range(6))
    d = drawn(3, seed=7)
    wide = d[:, None].expand(3, 4)
    losses = {
        "rebel": lambda x, y: rebel(x, y, old_a, old_b, wide, eta=0.5)[0],
        "prdp": lambda x, y: prdp(x, y, old_a, old_b, ref_a, ref_b, d, beta=2.0, clip=0.3)[0],
        "zigal": lambda x, y: zigal(x, y, old_a, old_b, wide, clip=0.3)[0],
    }
    for loss in losses.values():
        assert torch.autograd.gradcheck(loss, (a, b))
        loss(a, b).backward()
    assert all(x.grad is None for x in (old_a, old_b, ref_a, ref_b)) and a.grad is not None


def test_bad_input_is_named() -> None:
    one, two = torch.zeros(1), torch.zeros(1, 2)
    with pytest.raises(InputError, match=r"difference must have the shape \[1\]"):
        rebel(one, one, one, one, two, eta=1)
    with pytest.raises(InputError, match="eta must be positive"):
        rebel(one, one, one, one, one, eta=0)
    with pytest.raises(InputError, match=r"difference must have the shape \[1\] of one_step, got \[1, 2\]"):
        prdp(two, two, two, two, two, two, two, beta=1, clip=1)
    with pytest.raises(InputError, match=r"target must have the shape \[1, 2\]"):
        zigal(two, two, two, two, one, clip=1)
    with pytest.raises(InputError, match="clip must be positive"):
        zigal(one, one, one, one, one, clip=0)
