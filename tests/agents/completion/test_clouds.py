"""Corruptions take away what they say and keep the rest; distances against brute force."""

from __future__ import annotations

import math

import pytest
import torch

from rl3d.agents.completion import clouds
from rl3d.errors import InputError


def cloud(batch: int = 3, count: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, count, 3, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_the_view_crop_takes_the_nearest_to_the_viewpoint(share: float) -> None:
    points = cloud()
    viewpoint = clouds.CORNERS[:3]
    keep = clouds.view_crop(points, viewpoint, share)
    assert (~keep).sum(1).tolist() == [round(40 * share)] * 3
    far = (points - viewpoint[:, None]).norm(dim=2)
    for row in range(3):
        if share:
            assert far[row][~keep[row]].max() <= far[row][keep[row]].min()


def test_the_ball_crop_takes_the_neighbours_of_its_point() -> None:
    points, centre = cloud(), torch.tensor([0, 7, 39])
    keep = clouds.ball_crop(points, centre, torch.tensor([0.2, 0.5, 0.7]))
    assert (~keep).sum(1).tolist() == [8, 20, 28]
    for row, at in enumerate(centre.tolist()):
        assert not keep[row, at]
        far = (points[row] - points[row, at]).norm(dim=1)
        assert far[~keep[row]].max() <= far[keep[row]].min()


def test_peeling_takes_the_outer_layer_before_what_lies_inside() -> None:
    """A cube's corners around a smaller cloud; 64 directions meet all eight corners."""
    g = torch.Generator().manual_seed(0)
    points = torch.cat([0.5 * clouds.CORNERS.expand(2, -1, -1), 0.4 * cloud(2, 8)], 1)
    half = clouds.peel(points, 0.5, g)
    assert not half[:, :8].any() and half[:, 8:].all()
    more = clouds.peel(points, torch.tensor([0.25, 0.75]), g)
    assert (~more).sum(1).tolist() == [4, 12] and more[0, 8:].all() and not more[1, :8].any()


def test_thinning_noise_and_resampling() -> None:
    g = torch.Generator().manual_seed(0)
    points = cloud(2, 1000)
    assert (~clouds.thinned(points, 0.9, g)).sum(1).tolist() == [900, 900]
    moved = clouds.jittered(points, torch.tensor([0.0, 0.01]), g) - points
    assert moved[0].abs().max() == 0 and moved[1].std() == pytest.approx(0.01, rel=0.05)
    keep = torch.zeros(2, 1000, dtype=torch.bool)
    keep[:, :8] = True
    drawn = clouds.resampled(points, keep, 12, g)
    for row in range(2):  # all eight, four of them twice
        match = (drawn[row][:, None] == points[row, None, :8]).all(-1)
        assert match.any(1).all() and sorted(match.sum(0).tolist()) == [1] * 4 + [2] * 4
    with pytest.raises(InputError, match="no point left"):
        clouds.resampled(points, torch.zeros_like(keep), 4, g)
    with pytest.raises(InputError, match="share"):
        clouds.thinned(points, 1.0, g)


def test_random_parts_are_parts() -> None:
    """Without noise every point of a part is one of the whole's."""
    whole = cloud(12, 200)
    part = clouds.corrupted(whole, 64, torch.Generator().manual_seed(0))
    assert part.shape == (12, 64, 3)
    away = clouds.distances(part, whole)
    assert (away.amax(1) == 0).sum() >= 6 and away.max() < 0.06
    assert (clouds.distances(whole, part).amax(1) > 0.1).all()  # something is missing


def test_turning_is_a_rotation_about_y() -> None:
    points = cloud(2)
    quarter = clouds.turned(points, torch.tensor([math.pi / 2, 0.0]))
    assert torch.allclose(quarter[0], torch.stack([points[0, :, 2], points[0, :, 1], -points[0, :, 0]], 1), atol=1e-6)
    assert torch.equal(quarter[1], points[1])


def test_distances_and_scores_against_brute_force() -> None:
    a, b = cloud(2, 30, 1).double(), cloud(2, 50, 2).double()
    matrix = torch.cdist(a, b)
    assert torch.allclose(clouds.distances(a, b), matrix.amin(2))
    there, back = matrix.amin(2), matrix.amin(1)
    assert torch.allclose(clouds.chamfer(a, b), 0.5 * (there.mean(1) + back.mean(1)))
    found = clouds.accuracy(a, b, 0.2)
    assert torch.allclose(found["cd_l2"], there.square().mean(1) + back.square().mean(1))
    p, r = (there <= 0.2).double().mean(1), (back <= 0.2).double().mean(1)
    assert torch.allclose(found["f1"].double(), 2 * p * r / (p + r), atol=1e-6)
    assert torch.allclose(found["missing"], back.mean(1)) and torch.allclose(found["excess"], there.mean(1))
    assert clouds.accuracy(a, a)["f1"].tolist() == [1.0, 1.0] and float(clouds.chamfer(a, a).abs().max()) == 0


def test_the_chamfer_distance_has_the_right_gradient() -> None:
    a, b = cloud(1, 6, 3).double().requires_grad_(), cloud(1, 5, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(clouds.chamfer, (a, b))
