"""The optimised scene and its checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from rl3d.cameras import Cameras
from rl3d.errors import AssetError
from rl3d.reconstruct.leaves import Rates
from rl3d.reconstruct.lift import start_from_ball
from rl3d.reconstruct.options import LiftOptions
from rl3d.reconstruct.splats import NAMES, SplatState
from rl3d.render import render

RATES = Rates(2e-3, 1e-2, 2e-2, 5e-2)
CAMERAS = Cameras.orbit(torch.tensor([0.0, 1.5]), 0.3, 2.7, 0.47, 16)


def fresh(count: int = 60) -> SplatState:
    ball = start_from_ball(LiftOptions(gaussians=count), torch.Generator().manual_seed(0), "cpu")
    return SplatState.start(ball, RATES)


def descend(state: SplatState, steps: int) -> SplatState:
    for _ in range(steps):
        frames = state.render(CAMERAS)
        target = 0.8 if state.step % 2 else 0.1
        state.descend(((frames.rgb - target) ** 2).mean() + frames.alpha.mean(), rate=1.0 - 0.05 * state.step)
        if state.step == 3:
            state.relocate(torch.Generator().manual_seed(state.step))
    return state


def same(a: SplatState, b: SplatState) -> bool:
    return all(torch.equal(a.tensors[k], b.tensors[k]) for k in NAMES)


def test_going_on_from_a_file_is_going_on(tmp_path: Path) -> None:
    whole = descend(fresh(), 6)
    first = descend(fresh(), 4)
    first.save(tmp_path / "a.safetensors", candidate=1)
    second = SplatState.load(tmp_path / "a.safetensors", RATES)
    assert second.step == 4 and same(first, second)
    descend(second, 2)
    assert second.step == 6 and same(second, whole)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_state_that_never_moved_can_be_saved(tmp_path: Path) -> None:
    fresh().save(tmp_path / "a.safetensors")
    again = SplatState.load(tmp_path / "a.safetensors", RATES)
    assert again.step == 0 and same(again, fresh()) and same(descend(again, 2), descend(fresh(), 2))


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign", "adam"])
def test_a_broken_checkpoint_is_one_line(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "a.safetensors"
    if damage != "missing":
        descend(fresh(), 1).save(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "foreign":
        save_file({"x": torch.zeros(2)}, path)
    elif damage == "adam":
        kept = {k: v for k, v in load_file(path).items() if k != "adam.means.step"}
        save_file(kept, path, {"facts": '{"step": 1}'})
    with pytest.raises(AssetError, match="cannot read the checkpoint") as error:
        SplatState.load(path, RATES)
    assert "\n" not in str(error.value)


def test_descending_keeps_splats_sane() -> None:
    state = fresh()
    with torch.no_grad():
        state.tensors["log_scales"][0] = 5.0
        state.tensors["opacity_logits"][1] = 50.0
    rates = [group["lr"] for group in state.optimizer.param_groups]
    state.descend(state.render(CAMERAS).rgb.mean(), rate=0.1)
    after = {k: v.detach() for k, v in state.tensors.items()}
    assert float(after["log_scales"].max()) <= -2.1 and float(after["opacity_logits"].max()) <= 6
    assert float(after["colours"].min()) >= 0 and float(after["colours"].max()) <= 1
    assert [group["lr"] for group in state.optimizer.param_groups] == rates  # the scale was for this step only


def test_the_rate_scales_the_step() -> None:
    moved = []
    for rate in (1.0, 0.25):
        state = fresh()
        before = state.tensors["means"].detach().clone()
        state.descend(state.render(CAMERAS).rgb.mean(), rate=rate)
        moved.append((state.tensors["means"].detach() - before).abs().max())
    assert float(moved[0]) == pytest.approx(RATES.means, rel=0.02)  # Adam's first step is the rate itself
    assert float(moved[1]) == pytest.approx(0.25 * RATES.means, rel=0.02)


def test_relocating_moves_the_faded_onto_the_visible() -> None:
    state = descend(fresh(), 1)
    with torch.no_grad():
        state.tensors["opacity_logits"][:20] = -6.0
        state.tensors["opacity_logits"][20:] = -8.0
        state.tensors["opacity_logits"][50] = 2.0  # the only one that is visible: host of all others
    place = state.tensors["means"][50].detach().clone()
    scale = float(state.tensors["log_scales"][50].detach().exp().max())
    moved = state.relocate(torch.Generator().manual_seed(0))
    assert moved == 59 and len(state.tensors["means"]) == 60
    assert all(bool(torch.isfinite(t).all()) for t in state.tensors.values())
    assert float((state.tensors["means"].detach() - place).abs().max()) < 6 * scale
    # 60 copies that let through (1 - o) together would have 1 - (1 - o)^(1/60) = 0.035 each; 0.05 is the least.
    assert torch.allclose(state.tensors["opacity_logits"].sigmoid(), torch.tensor(0.05), atol=1e-5)
    moments = state.optimizer.state[state.tensors["means"]]
    rest = torch.arange(60) != 50
    assert float(moments["exp_avg"][rest].abs().max()) == 0 and float(moments["exp_avg"][50].abs().max()) > 0
    descend(state, 1)  # and the optimizer still fits


def test_a_relocated_pair_lets_as_much_light_through_as_its_host() -> None:
    state = fresh(2)
    with torch.no_grad():
        state.tensors["opacity_logits"][0], state.tensors["opacity_logits"][1] = -8.0, 1.0
    light = 1 - float(state.tensors["opacity_logits"][1].detach().sigmoid())
    assert state.relocate(torch.Generator().manual_seed(0)) == 1
    assert float((1 - state.tensors["opacity_logits"].detach().sigmoid()).prod()) == pytest.approx(light, rel=1e-5)


@pytest.mark.parametrize("logit", [3.0, -8.0])
def test_nothing_is_relocated_when_all_or_none_are_faded(logit: float) -> None:
    state = fresh()
    with torch.no_grad():
        state.tensors["opacity_logits"].fill_(logit)
    before = {k: v.detach().clone() for k, v in state.tensors.items()}
    assert state.relocate(torch.Generator()) == 0
    assert all(torch.equal(before[k], state.tensors[k]) for k in NAMES)


def test_the_scene_is_what_the_state_renders() -> None:
    state = descend(fresh(), 2)
    with torch.no_grad():
        state.tensors["opacity_logits"][:5] = -6.0
        ours = state.render(CAMERAS)
        scene = state.gaussians()
        assert len(scene) == 55 and not scene.means.requires_grad
        theirs = render(scene, CAMERAS)
    # Five splats of opacity 0.0025 are left out.
    assert torch.allclose(ours.rgb, theirs.rgb, atol=0.01) and torch.allclose(ours.alpha, theirs.alpha, atol=0.01)


def test_the_scene_lives_in_its_own_precision() -> None:
    """Cameras of another precision are brought to the scene's, not the other way round."""
    state = fresh()
    wide = SplatState.start({k: v.detach().double() for k, v in state.tensors.items()}, RATES)
    assert state.render(CAMERAS.to(dtype=torch.float64)).rgb.dtype == torch.float32
    assert wide.render(CAMERAS).rgb.dtype == torch.float64


def test_the_variance_of_layers_by_hand() -> None:
    """Two flat sheets 0.2 m apart, the nearer half opaque: depths +-0.1 with weights 0.5 and 0.5, variance 0.01."""
    n = 21
    axis = torch.linspace(-0.3, 0.3, n)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    flat = torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)
    means = torch.cat([flat + torch.tensor([0, 0, z]) for z in (0.1, -0.1)])
    count = len(flat)
    tensors = {
        "means": means,
        "log_scales": torch.full((2 * count, 3), math.log(0.05)),
        "quaternions": torch.tensor([1.0, 0, 0, 0]).expand(2 * count, 4),
        "opacity_logits": torch.cat([torch.full((count,), -2.9), torch.full((count,), 5.0)]),
        "colours": torch.rand(2 * count, 3),
    }
    tensors["log_scales"][:, 2] = math.log(2e-3)
    state = SplatState.start(tensors, Rates(0, 0, 0, 0))
    cameras = Cameras.orbit(torch.tensor([0.0]), 0.0, 2.7, 0.47, 32)
    frames, layers = state.render_layers(cameras)
    plain = state.render(cameras)
    assert torch.allclose(frames.rgb, plain.rgb, atol=1e-6) and torch.allclose(frames.alpha, plain.alpha, atol=1e-6)
    assert torch.allclose(frames.depth, plain.depth, atol=1e-5)
    # w of the front sheet from the mean depth: z = 2.7 - 0.1 (2 w - 1); the variance is then 4 w (1 - w) 0.1^2.
    w = 0.5 + (2.7 - float(plain.depth[0, 0, 16, 16].detach())) / 0.2
    assert 0.2 < w < 0.8
    assert float(layers[0, 0, 16, 16].detach()) == pytest.approx(0.04 * w * (1 - w), rel=1e-3)
    assert float(layers[0, 0, 0, 0].detach()) == 0  # nothing there
    (gradient,) = torch.autograd.grad(layers.mean(), state.tensors["means"])
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient[:count, 2].mean()) > 0 > float(gradient[count:, 2].mean())  # it pulls them together
