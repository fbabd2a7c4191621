"""HFDream and MVReward: what their scores depend on, their files, and what they refuse. Weights are random."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rl3d import rewards
from rl3d.cameras import Cameras
from rl3d.errors import AssetError, InputError
from rl3d.rewards import HFDream, MVReward, Reward, RewardInput
from rl3d.rewards.calibrated import weights_digest
from rl3d.rewards.hfdream import DIRECTIONS, HFDreamConfig, HFDreamModel, load_hfdream, save_hfdream
from rl3d.rewards.mvreward import MVRewardConfig, MVRewardModel, load_mvreward, save_mvreward
from rl3d.rewards.reward3d import LIMIT

STEP = 1e-3  # along the gradient; float32 scores are good to about 1e-6
Head = HFDream | MVReward
SAVE = {"hfdream": save_hfdream, "mvreward": save_mvreward}
LOAD: dict[str, Callable[..., Head]] = {"hfdream": load_hfdream, "mvreward": load_mvreward}


@pytest.fixture
def head(tiny_judge: Callable) -> Callable[[str], Head]:
    def make(name: str) -> Head:
        judge = tiny_judge("reward").model.config
        torch.manual_seed(2)
        model: HFDreamModel | MVRewardModel
        if name == "hfdream":
            model = HFDreamModel(HFDreamConfig(judge, width=16, heads=2, blocks=1))
        else:
            model = MVRewardModel(MVRewardConfig(judge, width=16, heads=2, blocks=2))
        with torch.no_grad():  # what starts at zero would hide the blocks from these tests
            for tensor in model.parameters():
                tensor.add_(0.1 * torch.randn_like(tensor))
            for block in model.blocks:  # angles that matter
                block.bias.weight.mul_(20)
        model.eval().requires_grad_(False)
        return HFDream(model) if isinstance(model, HFDreamModel) else MVReward(model, 0.5, 2.0)

    return make


def over_white(rgba: torch.Tensor, cameras: Cameras | None = None) -> RewardInput:
    return RewardInput(rgba[:, :, :3] + 1 - rgba[:, :, 3:], rgba[:, :, 3:], cameras, ["no word of it is known"])


def ring(*degrees: float) -> Cameras:
    return Cameras.orbit(torch.tensor(degrees) * math.pi / 180, 0.3, size=32)


@pytest.mark.parametrize("name", ["hfdream", "mvreward"])
def test_it_is_a_reward_for_any_size_of_views_and_any_prompt(head: Callable, random_views: Callable, name: str) -> None:
    reward = head(name)
    assert isinstance(reward, Reward) and (reward.name, reward.views, reward.differentiable) == (name, None, True)
    for views, size in ((2, 32), (4, 20), (6, 32)):
        scores = reward(over_white(random_views(1, views, size)))
        assert scores.shape == (1,) and scores.dtype == torch.float32
    # the ring is what it takes without cameras
    images = random_views(1)
    assert torch.allclose(reward(over_white(images)), reward(over_white(images, ring(0, 90, 180, 270))), atol=1e-5)


@pytest.mark.parametrize("name", ["hfdream", "mvreward"])
def test_the_gradient_to_images_and_alphas_is_right(head: Callable, random_views: Callable, name: str) -> None:
    reward, x = head(name), over_white(random_views(1))
    leaves = [x.images.clone().requires_grad_(), x.alphas.clone().requires_grad_()]
    reward(RewardInput(*leaves, None, x.prompts)).sum().backward()
    for place, leaf in enumerate(leaves):
        assert leaf.grad is not None
        direction, ends = leaf.grad / leaf.grad.norm(), []
        for sign in (1, -1):
            moved = [other.detach() for other in leaves]
            moved[place] = moved[place] + sign * STEP * direction
            ends.append(reward(RewardInput(*moved, None, x.prompts)))
        slope = float((ends[0] - ends[1]) / (2 * STEP))
        assert slope == pytest.approx(float(leaf.grad.norm()), rel=0.05)


def test_densities_over_directions_are_densities(head: Callable, random_views: Callable) -> None:
    reward, images = head("hfdream"), random_views(2, 3)
    start = torch.tensor([[0.1, 1.0, 2.0], [0.4, 5.0, -1.0]])
    steps = torch.arange(DIRECTIONS) * (2 * math.pi / DIRECTIONS)
    p = torch.stack([reward.model(images, start + step) for step in steps]).exp()
    assert torch.allclose(p.mean(0), torch.ones(2, 3), atol=1e-5)  # over one turn, from any start
    assert float(p.std()) > 0.01  # and these say something
    assert torch.allclose(reward.model(images, start + 2 * math.pi), reward.model(images, start), atol=1e-4)
    score = LIMIT * torch.tanh(reward.model(images, start) / LIMIT)
    assert torch.allclose(reward.score(images, start), score.mean(1), atol=1e-6)


def test_hfdream_judges_every_view_by_itself(head: Callable, random_views: Callable) -> None:
    reward, images = head("hfdream"), random_views(1, 4)
    turns = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    alone = torch.stack([reward.score(images[:, i : i + 1], turns[:, i : i + 1]) for i in range(4)], 1)
    assert torch.allclose(reward.by_view(images, turns), alone, atol=1e-5)
    assert not torch.allclose(reward.score(images, turns), reward.score(images.roll(1, 1), turns), atol=1e-3)


def test_a_new_hfdream_knows_nothing(tiny_judge: Callable, random_views: Callable) -> None:
    model = HFDreamModel(HFDreamConfig(tiny_judge("reward").model.config, width=16, heads=2))
    assert torch.allclose(model(random_views(2), torch.rand(2, 4)), torch.zeros(2, 4), atol=1e-6)


def test_mvreward_minds_angles_between_views_and_no_order(head: Callable, random_views: Callable) -> None:
    reward, images = head("mvreward"), random_views(1)
    score = reward(over_white(images, ring(0, 90, 180, 270)))
    # largest difference over three seeds: 4e-7
    assert torch.allclose(reward(over_white(images, ring(37, 127, 217, 307))), score, atol=1e-4)
    order = [2, 0, 3, 1]
    assert torch.allclose(reward(over_white(images[:, order], ring(180, 0, 270, 90))), score, atol=1e-4)
    assert not torch.allclose(reward(over_white(images, ring(0, 90, 270, 180))), score, atol=1e-3)  # views exchanged
    raw = reward.raw(images, torch.tensor([[0.0, 1, 2, 3]]) * math.pi / 2)
    assert torch.allclose(LIMIT * torch.tanh((raw - 0.5) / 2 / LIMIT), score, atol=1e-4)
    with pytest.raises(InputError, match="needs 2 or more"):
        reward(over_white(random_views(1, 1)))


@pytest.mark.parametrize("name", ["hfdream", "mvreward"])
def test_files_give_the_same_reward_back(head: Callable, random_views: Callable, tmp_path: Path, name: str) -> None:
    reward = head(name)
    SAVE[name](reward, tmp_path, torch.float32)
    x = over_white(random_views(1))
    for loaded in (rewards.load(f"{name}:{tmp_path}"), rewards.load(name, folder=tmp_path)):
        assert type(loaded) is type(reward) and torch.equal(loaded(x), reward(x))
        assert weights_digest(loaded) == weights_digest(reward)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"width": 32}, {"unknown": 1}, {"judge": None}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(AssetError, match=f"the {name} in .* cannot be loaded"):
            LOAD[name](folder=tmp_path)
    with pytest.raises(AssetError, match="cannot be loaded"):
        rewards.load(f"{name}:{tmp_path / 'nothing'}")
    with pytest.raises(InputError, match="names no folder"):
        rewards.load(f"{name}:")


def test_a_scale_that_cannot_be_is_refused(head: Callable, tmp_path: Path) -> None:
    save_mvreward(head("mvreward"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "std": 0.0}))
    with pytest.raises(AssetError, match=r"std 0\.0"):
        load_mvreward(folder=tmp_path)
