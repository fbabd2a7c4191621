"""Policies' distributions against torch's, and what masks must not let through."""

from __future__ import annotations

import math

import pytest
import torch

from rl3d.errors import InputError
from rl3d.rl import Beta, Gaussian, MaskedCategorical, ObjectThenCell

G = torch.Generator().manual_seed(0)


def test_masked_categorical_is_the_categorical_of_what_is_left() -> None:
    logits = torch.randn(5, 4, generator=G, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, False, True, True]).expand(5, 4)
    drawn = MaskedCategorical(logits, mask)
    left = torch.distributions.Categorical(logits=logits[:, [0, 2, 3]])
    assert torch.allclose(drawn.entropy(), left.entropy())
    assert torch.allclose(drawn.log_prob(torch.full((5,), 3)), left.log_prob(torch.full((5,), 2)))
    assert drawn.log_prob(torch.ones(5, dtype=torch.int64)).tolist() == [-math.inf] * 5
    loss = drawn.entropy().sum() + drawn.log_prob(torch.zeros(5, dtype=torch.int64)).sum()
    gradient = torch.autograd.grad(loss, logits)[0]
    assert torch.isfinite(gradient).all() and (gradient[:, 1] == 0).all() and gradient.abs().max() > 0.1


def test_samples_follow_the_probabilities_and_never_leave_the_mask() -> None:
    """2,000 draws of p = (.2, .8): the share of the second is within 4 standard deviations, 4 x .0089."""
    logits = torch.log(torch.tensor([[0.2, 5.0, 0.8]])).expand(2000, 3)
    mask = torch.tensor([[True, False, True]]).expand(2000, 3)
    drawn = MaskedCategorical(logits, mask).sample(torch.Generator().manual_seed(1))
    assert not bool((drawn == 1).any())
    assert (drawn == 2).float().mean().item() == pytest.approx(0.8, abs=0.036)
    again = MaskedCategorical(logits, mask).sample(torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)


def test_no_action_left_is_an_error_that_names_the_row() -> None:
    mask = torch.tensor([[True, True], [False, False]])
    with pytest.raises(InputError, match="row 1 has no allowed action"):
        MaskedCategorical(torch.zeros(2, 2), mask)


def test_gaussian_and_beta_agree_with_torch() -> None:
    mean, log_std = torch.randn(6, 3, generator=G), torch.randn(3, generator=G)
    ours, theirs = Gaussian(mean, log_std), torch.distributions.Normal(mean, log_std.exp())
    x = ours.sample(torch.Generator().manual_seed(0))
    assert torch.allclose(ours.log_prob(x), theirs.log_prob(x).sum(-1), atol=1e-5)
    assert torch.allclose(ours.entropy(), theirs.entropy().sum(-1), atol=1e-5)
    prior = torch.distributions.Normal(torch.zeros(6, 3), torch.ones(6, 3))
    kl = torch.distributions.kl_divergence(theirs, prior).sum(-1)
    assert torch.allclose(ours.kl_to_prior(), kl, rtol=1e-4, atol=1e-4)
    a, b = 1 + torch.rand(6, 2, generator=G), 1 + 3 * torch.rand(6, 2, generator=G)
    unit, beta = Beta(a, b, -2.0, 2.0), torch.distributions.Beta(a, b)
    y = unit.sample(torch.Generator().manual_seed(0))
    assert bool(((y > -2) & (y < 2)).all())
    expected = (beta.log_prob((y + 2) / 4) - math.log(4)).sum(-1)
    assert torch.allclose(unit.log_prob(y), expected, atol=1e-4)
    assert torch.allclose(unit.entropy(), (beta.entropy() + math.log(4)).sum(-1), atol=1e-4)


def test_object_then_cell_is_one_distribution() -> None:
    """The probabilities of all pairs sum to 1, and a cell that is not legal for its object has none."""
    objects = MaskedCategorical(torch.randn(1, 3, generator=G), torch.tensor([[True, True, False]]))
    logits = torch.randn(3, 4, generator=G)
    legal = torch.tensor([[True, False, True, True], [False, True, True, False], [True, True, True, True]])
    drawn = ObjectThenCell(objects, lambda o: MaskedCategorical(logits[o], legal[o]))
    total = 0.0
    for o in (0, 1):
        for c in range(4):
            p = float(drawn.log_prob_and_entropy(torch.tensor([[o, c]]))[0].exp())
            assert (p == 0) == (not bool(legal[o, c]))
            total += p
    assert total == pytest.approx(1, abs=1e-6)
    action = drawn.sample(torch.Generator().manual_seed(0))
    assert action.shape == (1, 2) and bool(legal[action[0, 0], action[0, 1]])
