"""Reward3D-mini: what its score depends on, its files, and what it refuses. Weights are random."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl3d import rewards
from rl3d.cameras import Cameras
from rl3d.errors import AssetError, InputError
from rl3d.rewards import Reward, Reward3D, RewardInput
from rl3d.rewards.reward3d import (
    LIMIT,
    Reward3DConfig,
    Reward3DModel,
    azimuths_of,
    load_reward3d,
    save_reward3d,
    view_angles,
)

STEP = 1e-3  # along the gradient; float32 scores are good to about 1e-6
PROMPTS = ["a red barrel", "blue car"]


@pytest.fixture
def reward(tiny_judge: Callable) -> Reward3D:
    judge = tiny_judge("reward")
    torch.manual_seed(2)
    model = Reward3DModel(Reward3DConfig(judge.model.config, width=16, heads=2, blocks=2))
    with torch.no_grad():  # what starts at zero would hide the blocks from these tests
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
        for block in model.blocks:  # angles that matter
            block.bias.weight.mul_(20)
    return Reward3D(model.eval().requires_grad_(False), judge.words, 0.5, 2.0)


def over_white(rgba: torch.Tensor, cameras: Cameras | None = None) -> RewardInput:
    return RewardInput(rgba[:, :, :3] + 1 - rgba[:, :, 3:], rgba[:, :, 3:], cameras, PROMPTS[: len(rgba)])


def ring(*degrees: float) -> Cameras:
    return Cameras.orbit(torch.tensor(degrees) * math.pi / 180, 0.3, size=32)


def test_it_is_a_reward_for_any_number_and_size_of_views(reward: Reward3D, random_views: Callable) -> None:
    assert isinstance(reward, Reward) and (reward.name, reward.views, reward.differentiable) == ("reward3d", None, True)
    for views, size in ((2, 32), (4, 20), (6, 32)):
        scores = reward(over_white(random_views(2, views, size)))
        assert scores.shape == (2,) and scores.dtype == torch.float32 and bool((scores.abs() < LIMIT).all())
    with pytest.raises(InputError, match="needs 2 or more"):
        reward(over_white(random_views(2, 1)))
    with pytest.raises(InputError, match="knows no word of 'barel'"):
        reward(RewardInput(torch.ones(1, 2, 3, 8, 8), torch.ones(1, 2, 1, 8, 8), None, ["barel"]))


def test_a_new_model_ranks_as_the_judge_does(tiny_judge: Callable, random_views: Callable) -> None:
    judge = tiny_judge("reward")
    model = Reward3DModel(Reward3DConfig(judge.model.config, width=16, heads=2))
    model.judge.load_state_dict(judge.model.state_dict())
    new = Reward3D(model.eval().requires_grad_(False), judge.words, 0.0, 1.0)
    images = random_views(2)
    raw = new.raw(images, PROMPTS, azimuths_of(None, 2, 4))
    assert torch.allclose(raw, 10 * judge.similarity(images, PROMPTS), atol=1e-5)  # sums in float32


def test_scores_are_standardised_and_bounded(reward: Reward3D, random_views: Callable) -> None:
    images, azimuths = random_views(2), azimuths_of(None, 2, 4)
    z = (reward.raw(images, PROMPTS, azimuths) - 0.5) / 2
    score = reward.score(images, PROMPTS, azimuths)
    assert torch.allclose(score, LIMIT * torch.tanh(z / LIMIT)) and float((score - z).abs().max()) < 0.1


def test_only_angles_between_views_count_and_no_order(reward: Reward3D, random_views: Callable) -> None:
    images = random_views(2)
    score = reward(over_white(images, ring(0, 90, 180, 270)))
    # largest difference over three seeds: 5e-7
    assert torch.allclose(reward(over_white(images, ring(37, 127, 217, 307))), score, atol=1e-4)
    order = [2, 0, 3, 1]
    assert torch.allclose(reward(over_white(images[:, order], ring(180, 0, 270, 90))), score, atol=1e-4)
    assert torch.allclose(reward(over_white(images)), score, atol=1e-4)  # the ring is what it takes without cameras
    assert not torch.allclose(reward(over_white(images, ring(0, 90, 270, 180))), score, atol=1e-3)  # views swapped
    assert not torch.allclose(reward(over_white(images, ring(0, 20, 40, 60))), score, atol=1e-3)


def test_azimuths_come_from_the_cameras() -> None:
    found = azimuths_of(ring(10, 100, -80), 2, 3) * 180 / math.pi
    assert torch.allclose(found, torch.tensor([[10.0, 100, -80]] * 2), atol=1e-3)
    own = azimuths_of(ring(10, 100, 20, 110), 2, 2) * 180 / math.pi
    assert torch.allclose(own, torch.tensor([[10.0, 100], [20, 110]]), atol=1e-3)


def test_angles_between_views_by_hand() -> None:
    angles = view_angles(torch.tensor([[0.0, math.pi / 2]]))[0]
    # from view 0 to view 1 is a quarter turn: cos 0, sin 1; of twice the angle cos -1, sin 0
    assert torch.allclose(angles[0, 1], torch.tensor([1.0, 0, 0, 1, -1, 0]), atol=1e-6)
    assert torch.allclose(angles[1, 0], torch.tensor([1.0, 0, 0, -1, -1, 0]), atol=1e-6)
    assert torch.equal(angles[1, 1], torch.tensor([1.0, 1, 1, 0, 1, 0]))


def test_the_gradient_to_images_and_alphas_is_right(reward: Reward3D, random_views: Callable) -> None:
    x = over_white(random_views(1))
    images, alphas = x.images.clone().requires_grad_(), x.alphas.clone().requires_grad_()
    reward(RewardInput(images, alphas, None, PROMPTS[:1])).sum().backward()
    assert images.grad is not None and alphas.grad is not None
    for leaf, place in ((images, 0), (alphas, 1)):
        assert leaf.grad is not None
        direction, ends = leaf.grad / leaf.grad.norm(), []
        for sign in (1, -1):
            moved = [images.detach(), alphas.detach()]
            moved[place] = moved[place] + sign * STEP * direction
            ends.append(reward(RewardInput(*moved, None, PROMPTS[:1])))
        slope = float((ends[0] - ends[1]) / (2 * STEP))
        assert slope == pytest.approx(float(leaf.grad.norm()), rel=0.05)


def test_files_give_the_same_reward_back(reward: Reward3D, random_views: Callable, tmp_path: Path) -> None:
    save_reward3d(reward, tmp_path, torch.float32)
    loaded = rewards.load("reward3d", folder=tmp_path)
    assert isinstance(loaded, Reward3D) and loaded.words == reward.words
    x = over_white(random_views(2))
    assert torch.equal(loaded(x), reward(x))
    save_reward3d(reward, tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    assert torch.allclose(load_reward3d(folder=tmp_path)(x), reward(x), atol=0.02)


def test_missing_and_broken_files_are_one_clear_error(reward: Reward3D, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"reward3d in .* cannot be loaded"):
        load_reward3d(folder=tmp_path / "nothing")
    save_reward3d(reward, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {**json.loads(json.dumps(asdict(reward.model.config))), "mean": 0.5, "std": 2.0}
    for change in ({"std": 0.0}, {"width": 32}, {"unknown": 1}, {"judge": None}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(AssetError, match="cannot be loaded"):
            load_reward3d(folder=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AssetError, match="cannot be loaded"):
        load_reward3d(folder=tmp_path)


def test_weights_that_do_not_ship_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "MANIFEST.json").write_text('{"models": {}}')
    monkeypatch.setattr("rl3d.assets.packaged_folder", lambda kind: tmp_path)
    with pytest.raises(AssetError, match="no embedded model is called 'reward3d'"):
        rewards.load("reward3d")
