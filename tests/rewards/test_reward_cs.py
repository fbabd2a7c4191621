"""RewardCS-mini: what its score depends on, its loss, its files, and what it refuses. Weights are random."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_world import random_rewardcs

from rl3d import rewards
from rl3d.errors import AssetError, InputError
from rl3d.rewards import Reward, RewardCS, RewardInput
from rl3d.rewards.calibrated import calibration_warning, weights_digest
from rl3d.rewards.check_assets import check_assets
from rl3d.rewards.reward_cs import (
    LIMIT,
    RewardCSModel,
    choose_surface,
    farthest,
    load_rewardcs,
    rewardcs_loss,
    sample_surface,
    save_rewardcs,
    surface_at,
)
from rl3d.scenes import Mesh


@pytest.fixture
def reward() -> RewardCS:
    return random_rewardcs()


def table() -> Mesh:
    return check_assets()[0].mesh


def seen(*meshes: Mesh, prompts: list[str] | None = None) -> RewardInput:
    count = len(meshes)
    return RewardInput(
        torch.ones(count, 1, 3, 4, 4),
        torch.zeros(count, 1, 1, 4, 4),
        None,
        prompts or ["red crate"] * count,
        mesh=list(meshes),
    )


def test_it_is_a_reward_of_meshes(reward: RewardCS) -> None:
    assert isinstance(reward, Reward) and (reward.name, reward.views) == ("rewardcs-mini", None)
    scores = reward(seen(table(), check_assets()[1].mesh))
    assert scores.shape == (2,) and bool(((scores - 0.5).abs() < LIMIT).all()) and scores[0] != scores[1]
    assert torch.equal(reward(seen(table())), reward(seen(table())))
    with pytest.raises(InputError, match="'rewardcs-mini' looks at mesh, which are not known here"):
        reward(replace(seen(table()), mesh=None))


def test_the_prompts_shape_words_count_and_its_colours_do_not(reward: RewardCS) -> None:
    one, two, three = (reward(seen(table(), prompts=[p])) for p in ("red crate", "blue crate!", "red chest"))
    assert torch.equal(one, two) and not torch.equal(one, three)
    with pytest.raises(InputError, match="'rewardcs-mini' knows no word of 'crete'; nearest known: crate"):
        reward(seen(table(), prompts=["crete"]))
    with pytest.raises(InputError, match="knows no word of 'red'"):
        reward(seen(table(), prompts=["red"]))


def test_the_order_of_vertices_and_colours_do_not_count(reward: RewardCS) -> None:
    mesh = table()
    order = torch.randperm(len(mesh.vertices), generator=torch.Generator().manual_seed(0))
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    other = Mesh(mesh.vertices[order], place[mesh.faces])
    assert torch.equal(reward(seen(other)), reward(seen(mesh)))
    unused = Mesh(torch.cat([mesh.vertices, torch.full((3, 3), 7.0)]), mesh.faces)
    assert torch.equal(reward(seen(unused)), reward(seen(mesh)))


def test_points_are_spread_by_area() -> None:
    """Two squares of areas 1 and 3: a quarter of the points, and three quarters, to within one."""
    low = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    corners = torch.cat([low, low * torch.tensor([3.0, 1, 1]) + torch.tensor([0.0, 0, 5])])
    mesh = Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]))
    points, normals = sample_surface(mesh, 400, 3)
    assert abs(int((points[:, 2] < 1).sum()) - 100) <= 1
    assert torch.allclose(normals, torch.tensor([0.0, 0, 1]))
    first = points[points[:, 2] < 1]
    assert torch.allclose(first.mean(0), torch.tensor([0.5, 0.5, 0]), atol=0.08)  # 100 points: 0.29 / 10 = 0.029
    assert float(points[:, :2].min()) >= 0 and float(points[:, 1].max()) <= 1
    faces, weights = choose_surface(mesh, 400, 3)
    assert torch.equal(surface_at(mesh, faces, weights)[0], points)
    assert torch.allclose(weights.sum(1), torch.ones(400)) and not torch.equal(choose_surface(mesh, 400, 4)[1], weights)


def test_farthest_points_by_hand() -> None:
    """0, 1, 2 and 10 on a line, mean 3.25: 10 first, then 0, then 2."""
    line = torch.tensor([[[x, 0.0, 0.0] for x in (0, 1, 2, 10)]])
    assert farthest(line, 3).tolist() == [[3, 0, 2]]


def test_the_gradient_to_the_vertices_is_right(reward: RewardCS) -> None:
    """Central differences in float64 at a fixed choice of faces; no flat top, whose points would all be the highest."""
    model, mesh = reward.model.double(), table()
    bent = torch.randn(mesh.vertices.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vertices = (mesh.vertices + 0.02 * bent).requires_grad_()
    faces, weights = choose_surface(replace(mesh, vertices=vertices), reward.model.config.points, 0)
    words = reward.word_ids(["crate"])

    def score(v: torch.Tensor) -> torch.Tensor:
        points, normals = surface_at(Mesh(v, mesh.faces), faces, weights.double())
        return model(points[None], normals[None], words)[1][0]

    assert torch.autograd.gradcheck(score, (vertices,), eps=1e-7, atol=1e-5, rtol=1e-4, fast_mode=True)
    (slope,) = torch.autograd.grad(score(vertices), vertices)
    whole = vertices.detach().clone().requires_grad_()
    (own,) = torch.autograd.grad(reward.score([Mesh(whole, mesh.faces)], ["crate"]).sum(), whole)
    assert float(slope.norm()) > 1e-3 and torch.allclose(own, slope)


def test_empty_flat_and_broken_meshes(reward: RewardCS) -> None:
    nothing = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    point = Mesh(torch.zeros(3, 3, requires_grad=True), torch.tensor([[0, 1, 2]]))
    scores = reward(seen(nothing, point, table()))
    assert scores[:2].detach().tolist() == [0.5 - LIMIT] * 2 and float(scores[2].detach()) > 0.5 - LIMIT
    scores.sum().backward()
    assert point.vertices.grad is not None and not bool(point.vertices.grad.any())
    broken = table()
    for bad in (torch.nan, torch.inf):
        vertices = broken.vertices.clone()
        vertices[0, 0] = bad
        with pytest.raises(InputError, match="NaN or infinite"):
            reward(seen(Mesh(vertices, broken.faces)))


def test_a_few_steps_bring_the_preferred_above_the_dispreferred(reward: RewardCS) -> None:
    """Two clusters of clouds, flat and round. The divergence alone knows no direction; the loss does, either way."""
    torch.manual_seed(0)
    points = torch.randn(12, 64, 3)
    points = torch.nn.functional.normalize(points, dim=2) * 0.5
    points[:6, :, 1] *= 0.1
    words = torch.tensor([[4, 0]]).expand(12, 2)
    for flat_is_better in (True, False):
        model = RewardCSModel(reward.model.config)
        preferred = (torch.arange(12) < 6) == flat_is_better
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        first = None
        for _ in range(40):
            embedding, score = model(points, 2 * points, words)
            parts = rewardcs_loss(embedding, score, preferred.float(), preferred, 0.1)
            last = {k: float(v.detach()) for k, v in parts.items()}
            first = first or last
            optimizer.zero_grad()
            parts["loss"].backward()
            optimizer.step()
        assert bool(score[preferred].min() > score[~preferred].max() + 0.5)
        assert last["divergence"] > first["divergence"] and last["mse"] < 0.5 * first["mse"]
        assert last["divergence"] <= 4  # |x - y| <= 2 on the unit sphere


def test_the_loss_by_hand() -> None:
    """One point each at a right angle: D = |x - y|^2 / h^2 = 2; errors 0.5 and 0: a mean square of 0.125."""
    parts = rewardcs_loss(
        torch.eye(2), torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([True, False]), 0.1
    )
    assert float(parts["divergence"]) == pytest.approx(2) and float(parts["mse"]) == pytest.approx(0.125)
    assert float(parts["loss"]) == pytest.approx(0.125 - 0.2)


def test_files_give_the_same_reward_back(reward: RewardCS, tmp_path: Path) -> None:
    save_rewardcs(reward, tmp_path, torch.float32)
    loaded = rewards.load("rewardcs-mini", folder=tmp_path)
    assert isinstance(loaded, RewardCS) and loaded.words == reward.words
    assert torch.equal(loaded(seen(table())), reward(seen(table())))
    assert weights_digest(loaded) == weights_digest(reward)
    save_rewardcs(reward, tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    assert torch.allclose(load_rewardcs(folder=tmp_path)(seen(table())), reward(seen(table())), atol=0.02)
    assert weights_digest(load_rewardcs(folder=tmp_path)) != weights_digest(reward)


def test_missing_and_broken_files_are_one_clear_error(reward: RewardCS, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"rewardcs in .* cannot be loaded"):
        load_rewardcs(folder=tmp_path / "nothing")
    save_rewardcs(reward, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == asdict(reward.model.config)
    for change in ({"vocabulary": 4}, {"width": 32}, {"unknown": 1}, {"blocks": None}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(AssetError, match="cannot be loaded"):
            load_rewardcs(folder=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AssetError, match="cannot be loaded"):
        load_rewardcs(folder=tmp_path)


def test_other_weights_are_not_vouched_for(reward: RewardCS, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({reward.name: {"weights": weights_digest(reward), "failed": []}}), encoding="utf-8")
    assert calibration_warning(reward, True, path) is None
    with torch.no_grad():
        reward.model.score.bias.add_(math.pi)
    with pytest.raises(InputError, match="'rewardcs-mini' was not calibrated with these weights"):
        calibration_warning(reward, True, path)
