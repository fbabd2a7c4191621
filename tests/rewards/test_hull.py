"""Silhouettes that agree, those that do not, and what outlines cannot see."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render.render import render
from rl3d.rewards import Reward, RewardInput, damage, load
from rl3d.rewards.check_assets import check_assets
from rl3d.rewards.hull import explained, hull_agreement, shares_volume

SIZE = 48


def ring(views: int = 4, elevation: float = 0.3) -> Cameras:
    return Cameras.orbit(torch.arange(views) * (2 * math.pi / views), elevation, 2.7, 0.47, SIZE)


def views_of(index: int, cameras: Cameras) -> Tensor:
    """[1, V, 4, S, S] premultiplied views of a prop."""
    frames = render(check_assets()[index].mesh, cameras, shading="half_lambert", supersample=2)
    return torch.cat([frames.rgb, frames.alpha], 1)[None].clamp(0, 1)


def as_input(rgba: Tensor, cameras: Cameras | None) -> RewardInput:
    return RewardInput(
        rgba[:, :, :3] + 1 - rgba[:, :, 3:], rgba[:, :, 3:], cameras, ["thing"] * len(rgba), background=1.0
    )


def test_one_object_explains_its_own_silhouettes() -> None:
    cameras = ring()
    rgba = torch.cat([views_of(i, cameras) for i in (0, 3, 7)])
    scores = hull_agreement(rgba[:, :, 3:], cameras)
    assert scores.min() > 0.99  # 0.9958 to 1.0000: table, barrel, car
    together = hull_agreement(rgba[:, :, 3:], Cameras.cat([cameras] * 3))
    assert torch.allclose(together, scores, atol=1e-6)
    for i in range(3):
        assert torch.allclose(hull_agreement(rgba[i : i + 1, :, 3:], cameras)[0], scores[i], atol=1e-6)


def test_every_outline_fault_costs() -> None:
    cameras = ring()
    honest, other = views_of(1, cameras), views_of(0, cameras)  # a chair, a table
    generator = torch.Generator().manual_seed(0)
    reward = load("hull")
    score = reward(as_input(honest, cameras)).item()
    shifted = honest.clone()
    shifted[:, 0] = honest[:, 0].roll(SIZE // 8, -1)
    faults = {
        "blank view": damage.blank_view(honest, generator),
        "repeated": honest[:, :1].expand_as(honest),
        "mixed": damage.mixed_views(honest, other),
        "specks": damage.floaters(honest, generator),
        "exchanged": honest[:, [1, 0, 2, 3]],
        "shifted": shifted,
        "nothing": torch.zeros_like(honest),
    }
    found = {name: reward(as_input(rgba, cameras)).item() for name, rgba in faults.items()}
    assert all(value < score - 0.02 for value in found.values()), (score, found)
    assert found["blank view"] == found["repeated"] == found["nothing"] == 0  # gates


def test_it_is_blind_to_colour_and_to_what_is_consistent() -> None:
    """The documented weakness: any paint, and an object turned as a whole, score the same."""
    cameras = ring()
    honest = views_of(7, cameras)
    painted = honest.clone()
    painted[:, :, :3] = honest[:, :, 3:] * torch.rand(1, 4, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    agreement = [hull_agreement(v[:, :, 3:], cameras).item() for v in (honest, painted, honest.roll(1, 1))]
    assert agreement[0] == agreement[1] and agreement[2] == pytest.approx(agreement[0], abs=1e-5)


def test_a_slab_explains_half_of_a_twice_as_high_one() -> None:
    """Two parallel opposite cameras: view 0 shows rows 12 to 35, view 1 rows 18 to 29, mirror images in the rows."""
    cameras = Cameras.orbit(torch.tensor([0.0, math.pi]), 0.0, 50.0, 2 * math.atan(0.6 / 50), SIZE)
    alphas = torch.zeros(1, 2, 1, SIZE, SIZE)
    alphas[0, 0, 0, 12:36, 12:36] = 1
    alphas[0, 1, 0, 18:30, 12:36] = 1
    seen = explained(alphas, cameras, 96)[0, :, 0]
    assert bool((seen <= alphas[0, :, 0]).all())
    # 12 of view 0's 24 rows, and up to two on either side: the pixel of tolerance, and a soft one. Measured 15.3.
    assert 12 <= seen[0, :, 24].sum() <= 16 and bool((seen[1, 18:30, 13:35] > 0.5).all())
    # Without tolerance (12 / 24 + 1) / 2. Measured 0.81.
    assert 0.75 <= hull_agreement(alphas, cameras, 96).item() < 0.84


def test_gradients_reach_the_alphas() -> None:
    cameras = ring()
    rgba = views_of(0, cameras)
    alphas = (0.9 * rgba[:, :, 3:]).requires_grad_()
    hull_agreement(alphas, cameras).sum().backward()
    assert alphas.grad is not None and bool(torch.isfinite(alphas.grad).all()) and bool(alphas.grad.any())
    # Outside the object of view 0, more coverage is not explained by the others: it costs.
    corner = alphas.grad[0, 0, 0, 2, 2]
    assert corner < 0


def test_shared_volume() -> None:
    cameras = ring(2)  # from opposite sides
    alphas = torch.zeros(1, 2, 1, SIZE, SIZE)
    alphas[0, 0, 0, 30:40, 5:12] = 1
    alphas[0, 1, 0, 30:40, 36:43] = 1
    assert shares_volume(alphas, cameras).item()  # mirror images of each other
    alphas[0, 1] = alphas[0, 1].flip(-1)
    assert not shares_volume(alphas, cameras).item()


def test_as_a_reward() -> None:
    reward = load("hull")
    assert isinstance(reward, Reward) and reward.differentiable and reward.range == (0.0, 1.0)
    with pytest.raises(InputError, match="'hull' looks at cameras"):
        reward(as_input(views_of(0, ring()), None))
