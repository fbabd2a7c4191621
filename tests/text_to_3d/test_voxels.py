"""Voxel scenes and DreamCS: what is made of splats, checkpoints, and a reward that reaches the surface."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_mixtures import scored_by, seeded
from tiny_world import random_prior, random_rewardcs

from rl3d.cameras import Cameras
from rl3d.errors import AssetError, ConfigError, InputError
from rl3d.priors.embedded import EmbeddedPrior
from rl3d.reconstruct.leaves import load_memory
from rl3d.reconstruct.lift import silhouette_iou
from rl3d.reconstruct.splats import SplatState
from rl3d.rewards.protocol import RewardInput
from rl3d.text_to_3d.distill import distill_rates, distill_step
from rl3d.text_to_3d.method_options import DreamCSOptions, MethodOptions, RewardOptions
from rl3d.text_to_3d.methods import Guide, guide_for
from rl3d.text_to_3d.options import DistillOptions
from rl3d.text_to_3d.scene import begin_scene, finished, load_scene
from rl3d.text_to_3d.schedule import Schedule
from rl3d.text_to_3d.voxels import VoxelState, voxels_from_splats

DISTILL = DistillOptions(steps=4, lr_means=4e-3)
RATES = distill_rates(DISTILL)
RESOLUTION = 24


@pytest.fixture(scope="module")
def prior() -> EmbeddedPrior:
    return random_prior()


@pytest.fixture(scope="module")
def ball() -> SplatState:
    """Solid red splats on a sphere of radius 0.35 m."""
    direction = torch.nn.functional.normalize(torch.randn(900, 3, generator=seeded(0)), dim=-1)
    quaternions = torch.zeros(900, 4)
    quaternions[:, 0] = 1
    tensors = {
        "means": 0.35 * direction,
        "log_scales": torch.full((900, 3), math.log(0.03)),
        "quaternions": quaternions,
        "opacity_logits": torch.full((900,), 4.0),
        "colours": torch.tensor([0.8, 0.2, 0.1]).expand(900, 3),
    }
    return SplatState.start(tensors, RATES)


def method(**changes: object) -> MethodOptions:
    reward = RewardOptions(weight=Schedule(((0.0, 0.5),)), cap=10.0)
    options = MethodOptions(
        name="dreamcs", scene="sdf", voxels=RESOLUTION, reward=reward, dreamcs=DreamCSOptions(resolution=RESOLUTION)
    )
    return replace(options, **changes)  # type: ignore[arg-type]


def size(x: RewardInput) -> torch.Tensor:
    """The mesh's mean distance from the origin; the views only so far as they exist."""
    assert x.mesh is not None and x.normals is not None and x.depths is not None
    return torch.stack([m.vertices.norm(dim=1).mean() for m in x.mesh])


@pytest.mark.parametrize("kind", ["sdf", "density"])
def test_voxels_look_like_the_splats(ball: SplatState, kind: str) -> None:
    cameras = Cameras.orbit(torch.tensor([0.3, 2.0]), 0.3, 2.7, 0.47, 32)
    state = VoxelState.start(kind, voxels_from_splats(ball, kind, 32), RATES)
    with torch.no_grad():
        ours, theirs = state.render(cameras), ball.render(cameras)
    assert silhouette_iou(ours.alpha, theirs.alpha) > 0.85
    inside = (ours.alpha > 0.9) & (theirs.alpha > 0.9)
    assert float(((ours.rgb - theirs.rgb).abs() * inside).sum() / (3 * inside.sum())) < 0.1
    if kind == "sdf":
        radius = state.mesh(32).vertices.norm(dim=1)
        assert float(radius.mean().detach()) == pytest.approx(0.37, abs=0.04)  # the splats reach a little further


def test_splats_without_a_surface_are_refused(ball: SplatState) -> None:
    faint = SplatState.start({**ball.tensors, "opacity_logits": torch.full((900,), -6.0)}, RATES)
    with pytest.raises(InputError, match="no surface"):
        voxels_from_splats(faint, "sdf", 16)


def steps(state: VoxelState, guide: Guide, prior: EmbeddedPrior, until: int) -> list[dict[str, float]]:
    prompt = prior.encode_prompt("a red box")
    rows = []
    while state.step < until:
        rows.append(distill_step(state, prior, prompt, None, DISTILL, seeded(state.step), guide))
    return rows


def test_a_reward_on_the_mesh_moves_the_surface(ball: SplatState, prior: EmbeddedPrior) -> None:
    """Against the same seeds with the opposite reward, the mesh ends larger."""
    found = []
    for sign in (1.0, -1.0):
        state = begin_scene(ball, method(), RATES)
        assert isinstance(state, VoxelState)
        reward = scored_by(lambda x, s=sign: s * size(x), differentiable=True)
        rows = steps(state, guide_for(method(), prior, reward), prior, 4)
        assert all(row["faces"] > 100 and row["balance"] > 0 and "reward" in row for row in rows)
        found.append(float(state.mesh(RESOLUTION).vertices.norm(dim=1).mean().detach()))
    assert found[0] > found[1] + 1e-3, found


@pytest.mark.parametrize("name", ["depth_normal", "symmetry", "stability"])
def test_geometric_rewards_reach_the_surface(name: str, ball: SplatState, prior: EmbeddedPrior) -> None:
    options = method(reward=RewardOptions(name=name, weight=Schedule(((0.0, 0.5),)), cap=10.0))
    state = begin_scene(ball, options, RATES)
    assert isinstance(state, VoxelState)
    rows = steps(state, guide_for(options, prior), prior, 2)
    assert all(row["balance"] > 0 and math.isfinite(row["balance"]) and "reward" in row for row in rows)


def test_rewardcs_reaches_the_surface_and_nothing_is_rendered_for_it(
    ball: SplatState, prior: EmbeddedPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("it looks at no picture")

    monkeypatch.setattr("rl3d.rewards.pictures.render", refuse)
    found = []
    for sign in (1, -1):  # the same seeds with the opposite reward
        state, reward = begin_scene(ball, method(), RATES), random_rewardcs()
        assert isinstance(state, VoxelState)
        reward.model.score.weight.mul_(sign)
        rows = steps(state, guide_for(method(), prior, reward), prior, 2)
        assert all(row["balance"] > 0 and "reward" in row for row in rows)
        found.append(state.tensors["values"].detach())
    assert not torch.equal(*found)


@pytest.mark.parametrize("scene", ["sdf", "field"])
def test_a_killed_run_resumes_to_the_same_field(
    ball: SplatState, prior: EmbeddedPrior, tmp_path: Path, scene: str
) -> None:
    options = method() if scene == "sdf" else MethodOptions(scene="field", voxels=RESOLUTION)

    def guide() -> Guide:
        return guide_for(options, prior, scored_by(size, differentiable=True) if scene == "sdf" else None)

    whole, one = begin_scene(ball, options, RATES), guide()
    rows = steps(whole, one, prior, 4)  # type: ignore[arg-type]
    first, two = begin_scene(ball, options, RATES), guide()
    head = steps(first, two, prior, 2)  # type: ignore[arg-type]
    first.save(tmp_path / "a.safetensors", two.memory)
    resumed, three = load_scene(tmp_path / "a.safetensors", options, RATES, torch.device("cpu")), guide()
    three.memory = load_memory(tmp_path / "a.safetensors")
    assert head + steps(resumed, three, prior, 4) == rows  # type: ignore[arg-type]
    assert all(torch.equal(v, resumed.tensors[k]) for k, v in whole.tensors.items())
    assert not any(v.requires_grad for v in finished(resumed).parameters().values())  # type: ignore[union-attr]
    with pytest.raises(AssetError, match="cannot read the checkpoint"):
        VoxelState.load(tmp_path / "b.safetensors", RATES)


def test_an_empty_mesh_leaves_the_distillation_alone(ball: SplatState, prior: EmbeddedPrior) -> None:
    state = begin_scene(ball, method(), RATES)
    with torch.no_grad():
        state.tensors["values"].fill_(0.5)
    rows = steps(state, guide_for(method(), prior, scored_by(size, differentiable=True)), prior, 1)  # type: ignore[arg-type]
    assert rows[0]["faces"] == 0 and "balance" not in rows[0]


def test_dreamcs_needs_a_surface(ball: SplatState, prior: EmbeddedPrior) -> None:
    with pytest.raises(ConfigError, match=r"set method\.scene=sdf, or take --method dreamcs"):
        MethodOptions(name="dreamcs")
    for values in ({"voxels": 4}, {"dreamcs": {"resolution": 4}}):
        with pytest.raises(ConfigError, match="must lie in"):
            DreamCSOptions(4) if "dreamcs" in values else MethodOptions(**values)  # type: ignore[arg-type]
