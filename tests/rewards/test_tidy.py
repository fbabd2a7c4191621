"""Each formula of tidy views on pictures made by hand, and that the whole sees what the judge's calibration misses."""

from __future__ import annotations

import pytest
import torch

from rl3d.rewards.protocol import RewardInput
from rl3d.rewards.tidy import TIDY, calm, in_one_piece, opaque, without_holes


def square(size: int = 24) -> torch.Tensor:
    """[1, 1, 1, S, S] with a solid block of 12 x 12 in the middle."""
    alpha = torch.zeros(1, 1, 1, size, size)
    alpha[..., 6:18, 6:18] = 1
    return alpha


def score(alpha: torch.Tensor, colour: torch.Tensor | float = 0.4) -> float:
    images = colour * alpha + (1 - alpha) + torch.zeros(1, 1, 3, *alpha.shape[-2:])
    return float(TIDY(RewardInput(images, alpha, None, ["a box"])))


def test_pieces_by_hand() -> None:
    alpha = square()
    assert float(in_one_piece(alpha)) == 1
    alpha[..., 0:4, 0:4] = 1  # 16 beside 144
    assert float(in_one_piece(alpha)) == pytest.approx(144 / 160)
    alpha[..., 4:6, 4:6] = 1  # a bridge over corners
    assert float(in_one_piece(alpha)) == 1
    assert float(in_one_piece(torch.zeros_like(alpha))) == 0


def test_holes_by_hand() -> None:
    alpha = square()
    assert float(without_holes(alpha)) == 1
    alpha[..., 10:12, 10:14] = 0
    assert float(without_holes(alpha)) == pytest.approx(136 / 144)
    assert float(without_holes(torch.zeros_like(alpha))) == 0


def test_fog_by_hand() -> None:
    assert float(opaque(square())) == 1
    assert float(opaque(0.5 * square())) == 0
    assert float(opaque(0.75 * square())) == pytest.approx(0.25)  # 1 - 4 * 0.75 * 0.25
    assert float(opaque(0 * square())) == 0


def test_noise_by_hand() -> None:
    images = torch.full((1, 1, 3, 24, 24), 0.4)
    assert float(calm(images, square())) == 1
    images[..., ::2, ::2] += 0.2  # a quarter of the pixels; medians stay at 0.4
    assert float(calm(images, square())) == pytest.approx(float(torch.tensor(-0.05 / 0.05).exp()), rel=0.01)


def test_the_whole_falls_with_what_the_judge_does_not_punish() -> None:
    generator = torch.Generator().manual_seed(0)
    best = score(square())
    apart, holed = square(), square()
    apart[..., 0:4, 0:4] = 1
    holed[..., 8:11, 8:11] = 0
    noisy = 0.4 + 0.15 * torch.randn(1, 1, 3, 24, 24, generator=generator)
    assert best == pytest.approx(1, abs=1e-4)
    assert all(bad < best - 0.01 for bad in (score(apart), score(holed), score(0.7 * square()), score(square(), noisy)))
    assert score(0 * square()) < 0.05
    assert TIDY.range == (pytest.approx(1e-6), 1) and TIDY.licence == "none" and TIDY.views is None
