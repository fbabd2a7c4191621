"""Each gate closes on its own fault, and a closed one costs without raising."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rewards import RewardInput
from rl3d.rewards.gates import (
    GateOptions,
    all_open,
    area_in_range,
    closed_names,
    gates,
    inside_picture,
    non_empty,
    view_distances,
    views_differ,
)


def square_views(views: int = 4, size: int = 16) -> Tensor:
    """[1, V, 4, S, S]: an opaque 8 x 8 square in the middle, each view another grey."""
    rgba = torch.zeros(1, views, 4, size, size)
    rgba[..., 3, 4:12, 4:12] = 1
    for k in range(views):
        rgba[0, k, :3, 4:12, 4:12] = 0.1 * (k + 1)
    return rgba


def as_input(rgba: Tensor) -> RewardInput:
    images = rgba[:, :, :3] + (1 - rgba[:, :, 3:])
    return RewardInput(images, rgba[:, :, 3:], None, ["thing"] * len(rgba))


def test_honest_views_pass_and_each_fault_closes_its_own_gate() -> None:
    honest = square_views()
    blank = honest.clone()
    blank[:, 2] = 0
    huge = honest.clone()
    huge[:, 1, 3] = 1
    clipped = honest.roll(-4, -1)  # columns 0 to 7: 8 of 60 outermost pixels
    copies = honest[:, :1].expand_as(honest)
    options = GateOptions(border=0.1)
    found = gates(as_input(torch.cat([honest, blank, huge, clipped, copies])), options)
    assert closed_names(found) == [
        (),
        ("every view shows something", "area in range"),
        ("area in range", "inside the picture"),
        ("inside the picture",),
        ("views differ",),
    ]
    assert all_open(found).tolist() == [True, False, False, False, False]


def test_limits_by_hand() -> None:
    rgba = square_views()
    alphas = rgba[:, :, 3:]
    # 64 of 256 pixels are covered.
    assert area_in_range(alphas, 0.25, 0.25).item() and not area_in_range(alphas, 0.26, 1).item()
    assert not area_in_range(alphas, 0.01, 0.24).item()
    clipped = alphas.roll(-4, -1)
    assert inside_picture(clipped, 8 / 60 + 1e-6).item() and not inside_picture(clipped, 8 / 60 - 1e-6).item()
    assert inside_picture(alphas, 0.0).item()
    assert non_empty(alphas).item() and not non_empty(alphas * 0.4).item()  # faint fog shows nothing


def test_view_distances_by_hand() -> None:
    # Grey 0.1 and 0.4 over the same square: three channels of four differ by 0.3.
    assert view_distances(square_views())[0, 0, 3].item() == pytest.approx(0.75 * 0.3)
    assert view_distances(square_views())[0].diagonal().abs().max().item() == 0
    rgba = square_views(2)
    rgba[:, 1] = rgba[:, 0]
    noisy = rgba.clone()
    noisy[:, 1, 0] += 0.004 * rgba[:, 1, 3]  # a quarter of that as a mean over channels
    assert not views_differ(noisy, 0.002).item() and views_differ(noisy, 0.0009).item()
    grain = 0.02 * torch.randn(rgba[:, :, :3].shape, generator=torch.Generator().manual_seed(0)) * rgba[:, :, 3:]
    grainy = torch.cat([rgba[:, :, :3] + grain, rgba[:, :, 3:]], 2)
    # Thumbnails average the noise of 4 pixels here, of 64 in a 64-pixel view: 0.75 * 0.02 * 1.13 / 2 = 0.0085.
    assert view_distances(grainy)[0, 0, 1] > 0.015 and not views_differ(grainy, 0.011).item()
    assert views_differ(noisy, 0.0).item() and views_differ(noisy[:, :1], 0.9).item()


@pytest.mark.parametrize(
    "wrong", [{"least": 0.0}, {"least": 0.9}, {"most": 1.1}, {"border": 1.5}, {"apart": 1.0}, {"apart": -0.1}]
)
def test_unusable_limits(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        GateOptions(**wrong)
