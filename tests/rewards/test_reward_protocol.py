"""What a Reward promises, and that breaking the promise is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import rl3d
from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.rewards import JudgeReward, Reward, RewardInput, load, reward
from rl3d.rewards.judges import Judge, JudgeConfig, build_model


def views(batch: int = 2, count: int = 4, size: int = 8, **more: object) -> RewardInput:
    images = torch.rand(batch, count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return RewardInput(images, torch.ones(batch, count, 1, size, size), None, ["red barrel"] * batch, **more)  # type: ignore[arg-type]


@reward(views=4, differentiable=True)
def redness(x: RewardInput) -> Tensor:
    return x.images[:, :, 0].mean((1, 2, 3)) - x.images[:, :, 1:].mean((1, 2, 3, 4))


def test_the_decorator_of_the_manual() -> None:
    assert rl3d.reward is reward
    assert isinstance(redness, Reward) and (redness.name, redness.views, redness.licence) == ("redness", 4, "none")
    images = torch.zeros(2, 4, 3, 8, 8)
    images[1, :, 0] = 1
    x = RewardInput(images.requires_grad_(), torch.ones(2, 4, 1, 8, 8), None, ["a", "b"])
    scores = redness(x)
    assert scores.tolist() == [0, 1]  # red 1 minus the mean of green and blue, 0
    scores.sum().backward()
    assert images.grad is not None and torch.allclose(images.grad[:, :, 0], torch.tensor(1 / 256))  # 4 x 8 x 8 pixels


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (lambda x: x.images.mean(), {}, r"'bad' must return .* \[2\].*got \[\]"),
        (lambda x: 3.0, {}, "got float"),
        (lambda x: torch.tensor([0.0, torch.nan]), {"differentiable": False}, "'bad' gave nan for asset 1"),
        (lambda x: torch.tensor([0.0, 2.0]), {"range": (0, 1), "differentiable": False}, r"outside its range \[0, 1\]"),
        (lambda x: x.images.detach().mean((1, 2, 3, 4)), {}, "do not depend on the images' gradient"),
        (lambda x: x.images.mean((1, 2, 3, 4)), {"views": 6}, "needs 6 views an asset, got 4"),
    ],
)
def test_a_broken_promise_names_the_reward(function, options, message) -> None:  # type: ignore[no-untyped-def]
    x = views()
    x.images.requires_grad_()
    with pytest.raises(InputError, match=message):
        reward(name="bad", **options)(function)(x)


def test_decorator_misuse() -> None:
    with pytest.raises(InputError, match="parentheses"):
        reward(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="views must be"):
        reward(views=0)
    with pytest.raises(InputError, match="range must be"):
        reward(range=(1, 0))


def test_input_shapes_are_checked_by_field() -> None:
    images, alphas = torch.rand(2, 4, 3, 8, 8), torch.ones(2, 4, 1, 8, 8)
    for field, call in {
        "images": lambda: RewardInput(images[0], alphas, None, ["a", "b"]),
        "alphas": lambda: RewardInput(images, alphas[:, :2], None, ["a", "b"]),
        "prompts": lambda: RewardInput(images, alphas, None, "ab"),  # type: ignore[arg-type]
        "cameras": lambda: RewardInput(images, alphas, Cameras.orbit(torch.zeros(3)), ["a", "b"]),
        "depths": lambda: RewardInput(images, alphas, None, ["a", "b"], depths=images),
        "mesh": lambda: RewardInput(images, alphas, None, ["a", "b"], mesh=[]),
    }.items():
        with pytest.raises(InputError, match=rf"RewardInput\.{field}"):
            call()


def test_the_background_is_taken_out_again() -> None:
    rgba = torch.rand(1, 4, 4, 8, 8)
    rgba[:, :, :3] *= rgba[:, :, 3:]
    colour = (0.2, 0.5, 1.0)
    over = rgba[:, :, :3] + (1 - rgba[:, :, 3:]) * torch.tensor(colour)[:, None, None]
    x = RewardInput(over, rgba[:, :, 3:], None, ["a"], background=colour)
    assert torch.allclose(x.premultiplied(), rgba, atol=1e-6)  # float32 rounding


def test_the_gold_judge_is_no_reward() -> None:
    with pytest.raises(InputError, match="only measures"):
        load("gold")
    config = JudgeConfig("gold", 3, 16, (8, 8), 16, embedding=8, heads=2)
    gold = Judge("gold", build_model(config).eval().requires_grad_(False), {"<pad>": 0, "<null>": 1, "red": 2}, ())
    with pytest.raises(InputError, match="only measures"):
        JudgeReward(gold)
    images = torch.rand(1, 4, 4, 16, 16, requires_grad=True)
    assert not gold.similarity(images, ["red"]).requires_grad
    with pytest.raises(InputError, match="'judge'"):
        load("juge")
