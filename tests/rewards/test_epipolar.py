"""Sampson's error by hand and against finite geometry, pairs, matches, and what the reward refuses to judge."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render.render import render
from rl3d.rewards import Reward, RewardInput, load
from rl3d.rewards.check_assets import box, joined
from rl3d.rewards.epipolar import (
    Epipolar,
    fundamental_matrix,
    keypoints,
    matched,
    near_pairs,
    sampson_error,
)
from rl3d.scenes.mesh import Mesh


def ring(views: int, elevation: float = 0.4, size: int = 96) -> Cameras:
    return Cameras.orbit(torch.arange(views) * (2 * math.pi / views), elevation, 2.7, 0.47, size)


def test_a_level_shift_by_hand() -> None:
    """Two cameras side by side (K = 1, R = 1, t = (1, 0, 0)): F = [t]x, lines are rows."""
    f = torch.tensor([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
    x1 = torch.tensor([[3.0, 5.0], [3.0, 5.0], [0.0, 0.0]], dtype=torch.float64)
    x2 = torch.tensor([[9.0, 5.0], [-2.0, 7.0], [4.0, -3.0]], dtype=torch.float64)
    # x2^T F x1 = y1 - y2; both lines have slope (0, 1): |y1 - y2| / sqrt(2).
    assert sampson_error(f, x1, x2).tolist() == pytest.approx([0, 2 / math.sqrt(2), 3 / math.sqrt(2)])


def test_the_fundamental_matrix_of_known_points() -> None:
    generator = torch.Generator().manual_seed(0)
    points = 0.4 * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    first = Cameras.orbit(torch.tensor([0.1, 0.0]).double(), torch.tensor([0.3, 0.0]), 2.7, 0.5, (64, 96))
    second = Cameras.orbit(torch.tensor([0.7, 0.5]).double(), torch.tensor([-0.1, 0.4]), 2.2, 0.8, (64, 96))
    f = fundamental_matrix(first, second)
    x1, x2 = first.project(points)[0], second.project(points)[0]
    for k in range(2):
        assert sampson_error(f[k], x1[k], x2[k]).max() < 1e-9
        assert torch.allclose(f[k].det(), torch.zeros((), dtype=torch.float64), atol=1e-12)
        epipole = first[k].project(second[k].centres)[0][0, 0]  # the second camera's eye in the first picture
        assert (f[k] @ torch.cat([epipole, torch.ones(1)])).norm() < 1e-9
    back = fundamental_matrix(second, first)[0]
    assert torch.allclose(back, f[0].T, atol=1e-9) or torch.allclose(back, -f[0].T, atol=1e-9)


def test_sampsons_error_is_the_distance_to_the_nearest_true_match_to_first_order() -> None:
    """Against a search over pixel pairs that fulfil the constraint exactly: Newton projection in four dimensions."""
    cameras = ring(8).to(dtype=torch.float64)
    f = fundamental_matrix(cameras[[0]], cameras[[1]])[0]
    points = 0.3 * torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = cameras[[0, 1]].project(points)[0]
    x1, x2 = seen[0], seen[1] + 0.5 * torch.randn(20, 2, generator=torch.Generator().manual_seed(2)).double()
    x = torch.cat([x1, x2], 1)

    def constraint(pair: Tensor) -> Tensor:
        one = torch.ones(1, dtype=torch.float64)
        return torch.cat([pair[2:], one]) @ f @ torch.cat([pair[:2], one])

    distances = []
    for start in x:
        pair = start.clone()
        for _ in range(20):  # the foot of the perpendicular: along the gradient at the foot itself
            slope = torch.func.grad(constraint)(pair)
            pair = start - slope * ((slope @ (start - pair) + constraint(pair)) / (slope @ slope))
        assert abs(float(constraint(pair))) < 1e-12
        distances.append(float((pair - start).norm()))
    assert sampson_error(f, x1, x2).tolist() == pytest.approx(distances, rel=1e-3)


def test_gradients() -> None:
    cameras = ring(8).to(dtype=torch.float64)
    f = fundamental_matrix(cameras[[0]], cameras[[1]])[0]
    x1 = torch.tensor([[40.0, 41.0], [50.0, 30.0]], dtype=torch.float64, requires_grad=True)
    x2 = torch.tensor([[42.0, 44.0], [48.0, 37.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: sampson_error(f, a, b), (x1, x2))


def test_near_pairs() -> None:
    assert near_pairs(ring(4, 0.0), 60) == []
    assert near_pairs(ring(6, 0.0), 60) == [(0, 1), (0, 5), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert len(near_pairs(ring(8, 0.0), 60)) == 8 and len(near_pairs(ring(8, 0.0), 89.9)) == 8
    # At elevation 60 degrees the views of a ring of four are 41.4 degrees apart: cos = cos^2(60) cos(90) + sin^2(60).
    assert len(near_pairs(ring(4, math.pi / 3), 42)) == 4 and near_pairs(ring(4, math.pi / 3), 41) == []
    same = Cameras.cat([ring(8)[[0]], ring(8)[[0]], ring(8)[[1]]])
    assert near_pairs(same, 60) == [(0, 2), (1, 2)]  # from one place nothing can be checked


def chequered() -> Mesh:
    """A box with many small squares of random grey on its sides: a texture that can be matched."""
    generator = torch.Generator().manual_seed(0)
    parts = [box((0, 0, 0), (0.7, 0.7, 0.7), (0.5, 0.5, 0.5))]
    for _ in range(150):
        place = 0.32 * (2 * torch.rand(3, generator=generator) - 1)
        axis, side = int(torch.randint(3, (), generator=generator)), float(torch.rand((), generator=generator) > 0.5)
        place[axis] = 0.35 * (2 * side - 1)
        size = torch.full((3,), 0.06)
        size[axis] = 0.004
        grey = float(torch.rand((), generator=generator))
        parts.append(box(place.tolist(), size.tolist(), (grey, grey, grey)))
    return joined(*parts)


def views_of(mesh: Mesh, cameras: Cameras) -> RewardInput:
    frames = render(mesh, cameras, background=1.0, supersample=2)
    return RewardInput(frames.rgb[None].clamp(0, 1), frames.alpha[None].clamp(0, 1), cameras, ["a box"])


def test_textured_views_and_what_goes_wrong_with_them() -> None:
    cameras = ring(12, 0.5, 128)[[0, 1, 2, 3]]  # 30 degrees of azimuth from each to the next
    x = views_of(chequered(), cameras)
    reward = Epipolar(views=None, degrees=31)
    terms = reward.terms(x)
    honest = terms.scores.item()
    assert terms.pairs == [(0, 1), (1, 2), (2, 3)] and min(terms.matches[0]) >= 8
    order, exchanged = torch.arange(4), torch.tensor([1, 0, 3, 2])

    def of(images: Tensor, alphas: Tensor) -> float:
        return float(reward(RewardInput(images, alphas, cameras, ["a box"]))[0])

    moved = x.images.clone()
    moved[:, ::2] = x.images[:, ::2].roll(6, -2)
    moved_alphas = x.alphas.clone()
    moved_alphas[:, ::2] = x.alphas[:, ::2].roll(6, -2)
    flat = torch.where(x.alphas > 0.5, 0.5, 1.0).expand_as(x.images)
    blank = x.alphas.clone()
    blank[:, 3] = 0
    scores = {
        "exchanged": of(x.images[:, exchanged], x.alphas[:, exchanged]),
        "moved": of(moved, moved_alphas),
        "repeated": of(x.images[:, 0 * order], x.alphas[:, 0 * order]),
        "flat": of(flat, x.alphas),
        "blank view": of(x.images, blank),
    }
    assert all(score < honest - 0.1 for score in scores.values()), (honest, scores)
    assert scores["repeated"] == scores["blank view"] == -1  # gates


def test_matches_are_mutual_and_too_few_are_the_worst() -> None:
    x = views_of(chequered(), ring(8, 0.5, 128))
    picture = x.images[0, 0].double().mean(0).numpy()
    found = keypoints(picture)
    assert len(found[0]) > 20 and found[0].min() > 0 and found[0].max() < 128
    same = matched(found, found, 0.9)
    assert len(same) > 20 and np.abs(same[:, :2] - same[:, 2:]).max() == 0
    nothing = keypoints(np.ones((64, 64)))
    assert len(nothing[0]) == 0 and len(matched(found, nothing, 0.9)) == 0
    terms = Epipolar(floor=10_000).terms(x)
    assert terms.scores.item() == -1 and min(terms.matches[0]) > 0


def test_it_says_that_it_cannot_judge() -> None:
    mesh = box((0, 0, 0), (0.7, 0.7, 0.7), (0.5, 0.5, 0.5))
    four = views_of(mesh, ring(4, 0.0, 32))
    with pytest.raises(InputError, match="cannot judge these views: no two cameras look within 60 degrees"):
        Epipolar(views=None)(four)
    with pytest.raises(InputError, match="needs 8 views"):
        load("epipolar")(four)
    with pytest.raises(InputError, match="looks at cameras"):
        Epipolar(views=None)(RewardInput(four.images, four.alphas, None, ["a box"]))
    for wrong in ({"degrees": 90.0}, {"floor": 0}, {"cap": 0.0}, {"ratio": 0.0}):
        with pytest.raises(InputError):
            Epipolar(**wrong)  # type: ignore[arg-type]
    reward = load("epipolar")
    assert isinstance(reward, Reward) and not reward.differentiable and reward.range == (-1.0, 0.0)
