"""LGM-format weights: the published layout, its activations, whose world it is, and files. Weights are tiny."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from rl3d.cameras import Cameras
from rl3d.errors import AssetError, InputError
from rl3d.reconstruct import LGM, leave_one_out, load_lgm
from rl3d.reconstruct.lgm import LGMConfig, LGMModel, config_of, first_camera_frame, multiplied, splats
from rl3d.rewards import MRC, MRCOptions
from rl3d.scenes.gaussians import Gaussians, rotations

TINY = LGMConfig((32, 32, 64), (False, False, True), (64, 32), (True, False), blocks=1)


@pytest.fixture(scope="module")
def lgm() -> LGM:
    torch.manual_seed(0)
    model = LGMModel(TINY).eval().requires_grad_(False)
    return LGM(model, image_size=16)


def ring(start: float = 0.0, distance: float = 1.5, elevation: float = 0.0, views: int = 4) -> Cameras:
    turns = torch.arange(views) * (2 * math.pi / views) + start
    return Cameras.orbit(turns, elevation, distance, math.radians(49.1), 16)


def covariances(scene: Gaussians) -> Tensor:
    """[N, 3, 3]"""
    axes = rotations(scene.quaternions) * scene.scales[:, None]
    return axes @ axes.transpose(1, 2)


def test_the_published_big_model_has_the_published_size() -> None:
    """The hub's half-precision file has 830 MB and 65,536 splats come out of four views of 256 pixels."""
    down, up = (64, 128, 256, 512, 1024, 1024), (1024, 1024, 512, 256, 128)
    with torch.device("meta"):
        model = LGMModel(LGMConfig(down, (False,) * 3 + (True,) * 3, up, (True,) * 3 + (False,) * 2))
        assert model(torch.zeros(1, 4, 9, 256, 256)).shape == (1, 65_536, 14)
    assert sum(p.numel() for p in model.parameters()) == 415_042_848  # two bytes each: 830 MB
    assert config_of(model.state_dict()) == model.config


def test_its_tensors_have_the_published_names(lgm: LGM) -> None:
    names = {k: tuple(v.shape) for k, v in lgm.model.state_dict().items()}
    expected = {
        "conv.weight": (14, 14, 1, 1),
        "unet.conv_in.weight": (32, 9, 3, 3),
        "unet.down_blocks.0.nets.0.conv1.weight": (32, 32, 3, 3),
        "unet.down_blocks.0.downsample.weight": (32, 32, 3, 3),
        "unet.down_blocks.2.nets.0.shortcut.weight": (64, 32, 1, 1),
        "unet.down_blocks.2.attns.0.norm.weight": (64,),
        "unet.down_blocks.2.attns.0.attn.qkv.weight": (192, 64),
        "unet.down_blocks.2.attns.0.attn.proj.bias": (64,),
        "unet.mid_block.nets.1.norm2.weight": (64,),
        "unet.mid_block.attns.0.attn.proj.weight": (64, 64),
        "unet.up_blocks.0.nets.0.conv1.weight": (64, 128, 3, 3),
        "unet.up_blocks.0.nets.1.conv1.weight": (64, 96, 3, 3),  # the finer level's 32 beside its own 64
        "unet.up_blocks.0.upsample.bias": (64,),
        "unet.norm_out.weight": (32,),
        "unet.conv_out.weight": (14, 32, 3, 3),
    }
    assert {k: names.get(k) for k in expected} == expected
    assert not any("attns.0" in k for k in names if k.startswith("unet.down_blocks.0"))
    assert not any("downsample" in k for k in names if k.startswith("unet.down_blocks.2"))


def test_activations_by_hand() -> None:
    raw = torch.tensor([[0.5, -2.0, 3.0, 0.0, 0.0, 1.0, -1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 100.0, -100.0]])
    scene = splats(raw, torch.eye(3), torch.tensor(1.0), torch.zeros(3))
    assert torch.allclose(scene.means, torch.tensor([[0.5, -1.0, 1.0]]))
    assert float(scene.opacities[0]) == 0.5
    assert torch.allclose(scene.scales, 0.1 * F.softplus(torch.tensor([[0.0, 1.0, -1.0]])))
    assert torch.allclose(scene.quaternions, torch.tensor([[1.0, 0, 0, 0]]))
    assert torch.allclose(scene.colours, torch.tensor([[0.5, 1.0, 0.0]]), atol=1e-6)


def test_quaternions_multiply_as_rotations_do() -> None:
    a, b = torch.randn(4, generator=torch.Generator().manual_seed(0)), torch.randn(5, 4)
    product = rotations(multiplied(F.normalize(a, dim=0), b))
    assert torch.allclose(product, rotations(a[None]) @ rotations(b), atol=1e-5)


def test_the_first_camera_stands_where_it_stood_in_training() -> None:
    cameras = Cameras.cat([ring(), ring(0.7, 3.0, 0.4)])
    rotation, scale, shift = first_camera_frame(cameras, 4)
    first = cameras[[0, 4]]
    eye = scale[:, None] * (rotation @ first.centres[..., None])[..., 0] + shift
    assert torch.allclose(eye, torch.tensor([[0.0, 0, 1.5]] * 2), atol=1e-5)
    forward = (rotation @ first.view[:, 2, :3, None])[..., 0]
    assert torch.allclose(forward, torch.tensor([[0.0, 0, -1]] * 2), atol=1e-6)
    assert torch.allclose(rotation[0], torch.eye(3), atol=1e-6) and torch.allclose(shift[0], torch.zeros(3), atol=1e-6)


def test_a_turned_and_larger_world_gives_turned_and_larger_splats(lgm: LGM, random_views: Callable) -> None:
    """The same pictures from cameras that are turned by 40 degrees and stand twice as far away."""
    images, angle = random_views(1), math.radians(40)
    (here,), (there,) = lgm(images, ring()), lgm(images, ring(angle, 3.0))
    turn = torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    assert len(here) == 4 * 8 * 8  # 16 pixels, two ways down and one up
    assert torch.allclose(there.means, 2 * here.means @ turn.T, atol=1e-4)
    assert torch.allclose(covariances(there), 4 * turn @ covariances(here) @ turn.T, atol=1e-5)
    assert torch.allclose(there.colours, here.colours, atol=1e-4)
    assert not torch.allclose(lgm(images, ring(elevation=0.5))[0].means, here.means, atol=1e-3)  # rays are seen


def test_views_see_each_other_and_gradients_reach_them(lgm: LGM, random_views: Callable) -> None:
    images = random_views(2).requires_grad_()
    scenes = lgm(images, ring())
    scenes[0].colours[: 8 * 8].sum().backward()  # the splats of the first view
    assert images.grad is not None
    reached = images.grad.abs().amax((2, 3, 4))
    assert bool((reached[0] > 0).all()) and float(reached[1].max()) == 0


def test_each_view_owns_its_splats_so_a_reward_leaves_views_out(lgm: LGM, random_views: Callable) -> None:
    assert not lgm.shared and lgm.differentiable
    with pytest.raises(InputError, match="leave_one_out"):
        MRC(lgm, lambda a, b: (a - b).square().mean((1, 2, 3)), MRCOptions(variant="input"))  # type: ignore[arg-type]
    assert leave_one_out(random_views(1), ring(), lgm).shape == (1, 4, 4, 16, 16)


def test_checkpoints_load_strictly(lgm: LGM, random_views: Callable, tmp_path: Path) -> None:
    weights = {k: v.half() for k, v in lgm.model.state_dict().items()}
    save_file({**weights, "lpips_loss.lin0.weight": torch.zeros(1)}, tmp_path / "model_fp16.safetensors")
    loaded = load_lgm(tmp_path)
    assert loaded.model.config == TINY
    assert all(torch.equal(v, weights[k].float()) for k, v in loaded.model.state_dict().items())
    assert load_lgm(tmp_path / "model_fp16.safetensors").model.config == TINY
    cases = {
        "unet.norm_out.bias is nothing": {k: v for k, v in weights.items() if k != "unet.norm_out.bias"},
        "more is .1., expected nothing": {**weights, "more": torch.zeros(1)},
        "conv.bias is .3., expected .14.": {**weights, "conv.bias": torch.zeros(3)},
        "unet.down_blocks or unet.up_blocks": {"conv.bias": torch.zeros(14)},
    }
    for message, wrong in cases.items():
        save_file(wrong, tmp_path / "model_fp16.safetensors")
        with pytest.raises(AssetError, match=message):
            load_lgm(tmp_path)
    (tmp_path / "model_fp16.safetensors").rename(tmp_path / "model.ckpt")
    with pytest.raises(AssetError, match="never opens"):
        load_lgm(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_lgm("no-such-folder")


def test_bad_views_are_refused(lgm: LGM, random_views: Callable) -> None:
    with pytest.raises(InputError, match="lgm takes at least 2 views"):
        lgm(random_views(1, 1), ring(views=1))
