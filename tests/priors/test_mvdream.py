from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from rl3d.cameras import Cameras, camera_rows
from rl3d.errors import AssetError, InputError
from rl3d.priors import join_prompts, load
from rl3d.priors.mvdream import MVDreamPrior, camera_vectors
from rl3d.priors.mvdream_unet import MultiViewUNet, MultiViewUNetConfig


@pytest.fixture(scope="module")
def prior(mvdream_folder: Path) -> MVDreamPrior:
    loaded = load(str(mvdream_folder))  # its code file ends the process if it is run
    assert isinstance(loaded, MVDreamPrior)
    return loaded


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_facts(prior: MVDreamPrior) -> None:
    assert (prior.n_views, prior.image_size, prior.has_alpha, prior.background) == (4, 16, False, 0.5)
    assert prior.licence == "openrail"
    cameras = prior.cameras(0.0, 0.2)
    assert len(cameras) == 4 and (cameras.height, cameras.width) == (16, 16)


def test_released_size_has_the_released_tensors() -> None:
    """The public fp16 file is 1.74 GB, so 867.6 million numbers; SD 2.1 has 686 tensors, the camera MLP 4."""
    with torch.device("meta"):
        unet = MultiViewUNet(MultiViewUNetConfig())
    state = unet.state_dict()
    assert len(state) == 690
    assert sum(p.numel() for p in state.values()) == 867_572_164
    # Names and shapes known from the checkpoints' layout, one of each kind.
    known = {
        "time_embed.0.weight": (1280, 320),
        "camera_embed.0.weight": (1280, 16),
        "camera_embed.2.bias": (1280,),
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight": (1280, 1024),
        "input_blocks.11.0.out_layers.3.weight": (1280, 1280, 3, 3),
        "middle_block.1.proj_in.weight": (1280, 1280),
        "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight": (2560, 320),
        "output_blocks.11.1.transformer_blocks.0.attn1.to_out.0.bias": (320,),
        "out.2.weight": (4, 320, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in known} == known


def diffusers_name(name: str) -> str:
    """The name in a diffusers U-Net of two levels and one block each for a name in the original layout."""
    places = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "input_blocks.1.0": "down_blocks.0.resnets.0",
        "input_blocks.1.1": "down_blocks.0.attentions.0",
        "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks.3.0": "down_blocks.1.resnets.0",
        "input_blocks.3.1": "down_blocks.1.attentions.0",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "output_blocks.0.0": "up_blocks.0.resnets.0",
        "output_blocks.0.1": "up_blocks.0.attentions.0",
        "output_blocks.1.0": "up_blocks.0.resnets.1",
        "output_blocks.1.1": "up_blocks.0.attentions.1",
        "output_blocks.1.2.conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks.2.0": "up_blocks.1.resnets.0",
        "output_blocks.2.1": "up_blocks.1.attentions.0",
        "output_blocks.3.0": "up_blocks.1.resnets.1",
        "output_blocks.3.1": "up_blocks.1.attentions.1",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    inside = {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    }
    place = max((key for key in places if name.startswith(key + ".")), key=len)
    rest = name.removeprefix(place)
    for original, renamed in inside.items():
        rest = rest.replace("." + original, "." + renamed)
    return places[place] + rest


def test_one_view_without_camera_is_stable_diffusion(prior: MVDreamPrior, tiny: ModuleType) -> None:
    """The same weights in the diffusers U-Net, an independent implementation, give the same output."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    reference = UNet2DConditionModel(**tiny.unet_arguments(), use_linear_projection=True).eval()
    state = {
        diffusers_name(name): value
        for name, value in prior.unet.state_dict().items()
        if not name.startswith("camera_embed")
    }
    reference.load_state_dict(state, strict=True)
    x, context, steps = noise(3, 4, 8, 8), noise(3, 40, 32, seed=1), torch.tensor([0, 250, 999])
    ours = prior.unet(x, steps, context, None, 1)
    theirs = reference(x, steps, encoder_hidden_states=context).sample
    assert float(ours.std()) > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)  # measured 0; float32 sums may be ordered otherwise


def test_camera_vectors_of_the_orbit() -> None:
    """By hand: front camera at +Z looks along the model's -X; azimuth grows towards the model's +Y."""
    vectors = camera_vectors(Cameras.orbit(torch.tensor([0.0, math.pi / 2]), 0.0, 3.0)).reshape(2, 4, 4)
    front = [[0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]  # right = +Y, up = +Z, backward = eye = +X
    right = [[-1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 1]]  # right = -X, up = +Z, backward = eye = +Y
    torch.testing.assert_close(vectors, torch.tensor([front, right], dtype=torch.float32), atol=1e-6, rtol=0)


def test_camera_vectors_of_a_raised_camera() -> None:
    """eye = (cos e cos a, cos e sin a, sin e) in the z-up world; every rotation proper, every eye of unit length."""
    azimuth, elevation = torch.tensor([0.3, 2.0, -1.2]), torch.tensor([0.5, -0.2, 0.1])
    vectors = camera_vectors(Cameras.orbit(azimuth, elevation, torch.tensor([1.0, 2.0, 5.0]))).reshape(3, 4, 4)
    eye = torch.stack([elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], -1)
    torch.testing.assert_close(vectors[:, :3, 3], eye, atol=1e-6, rtol=0)
    torch.testing.assert_close(vectors[:, :3, 2], eye, atol=1e-6, rtol=0)  # backward axis: it looks at the origin
    torch.testing.assert_close(torch.linalg.det(vectors[:, :3, :3]), torch.ones(3))
    assert bool((vectors[:, 2, 1] > 0).all())  # up has an upward part
    assert float(vectors[:, 2, 0].abs().max()) < 1e-6  # right is level


def test_shared_cameras_are_tiled_not_repeated(prior: MVDreamPrior) -> None:
    cameras = prior.cameras(0.4, 0.2)
    tiled = camera_rows(cameras, 3, 4).view.unflatten(0, (3, 4))
    for row in range(3):
        torch.testing.assert_close(tiled[row], cameras.view)


@pytest.mark.parametrize("shared", [True, False])
def test_prompts_and_views_never_mix(prior: MVDreamPrior, shared: bool) -> None:
    """A batch of two prompts with guidance equals two single calls, whether they share cameras or not."""
    prompts = [prior.encode_prompt("red", "dull"), prior.encode_prompt("xyz", "q")]
    sets = [prior.cameras(0.0, 0.1), prior.cameras(0.0 if shared else 0.7, 0.1 if shared else 0.4)]
    cameras = sets[0] if shared else Cameras.cat(sets)
    x_t, t = noise(2, 4, 4, 8, 8), torch.tensor([0.3, 0.8])
    together = prior.predict_x0(x_t, t, join_prompts(prompts), cameras, guidance=4.0)
    for row in range(2):
        alone = prior.predict_x0(x_t[row : row + 1], t[row : row + 1], prompts[row], sets[row], guidance=4.0)
        for joint, single in zip(together, alone):
            torch.testing.assert_close(joint[row], single[0], atol=3e-4, rtol=1e-3)  # measured 3e-5
    other = x_t.clone()
    other[1] += 1
    changed = prior.predict_x0(other, t, join_prompts(prompts), cameras, guidance=4.0)[0]
    torch.testing.assert_close(changed[0], together[0][0], atol=1e-4, rtol=1e-3)


def test_views_of_one_object_do_see_each_other(prior: MVDreamPrior) -> None:
    prompt, cameras, t = prior.encode_prompt("red"), prior.cameras(0.0, 0.1), torch.tensor([0.5])
    x_t = noise(1, 4, 4, 8, 8)
    before = prior.predict_x0(x_t, t, prompt, cameras)[0]
    other = x_t.clone()
    other[0, 3] += 1
    assert float((prior.predict_x0(other, t, prompt, cameras)[0][0, 0] - before[0, 0]).abs().max()) > 1e-3


def test_swapping_views_with_their_cameras_swaps_the_result(prior: MVDreamPrior) -> None:
    prompt, cameras, t = prior.encode_prompt("red"), prior.cameras(0.0, 0.1), torch.tensor([0.5])
    x_t, order = noise(1, 4, 4, 8, 8), [2, 0, 3, 1]
    before = prior.predict_x0(x_t, t, prompt, cameras)[0]
    both = prior.predict_x0(x_t[:, order], t, prompt, cameras[order])[0]
    torch.testing.assert_close(both, before[:, order], atol=1e-4, rtol=1e-3)
    only_images = prior.predict_x0(x_t[:, order], t, prompt, cameras)[0]
    assert not torch.allclose(only_images, before[:, order], atol=1e-3)


def test_sample_and_guidance_one(prior: MVDreamPrior) -> None:
    prompt, cameras = join_prompts([prior.encode_prompt("red"), prior.encode_prompt("xyz")]), prior.cameras(0.0, 0.1)
    images = prior.sample(prompt, cameras, steps=2, guidance=3.0, generator=torch.Generator().manual_seed(0))
    assert images.shape == (2, 4, 3, 16, 16) and bool(((images >= 0) & (images <= 1)).all())
    plain, text = prior.predict_x0(noise(2, 4, 4, 8, 8), torch.tensor([0.5, 0.5]), prompt, cameras)
    assert plain is text


def test_errors(prior: MVDreamPrior, mvdream_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="denoises 4 views jointly, got 2"):
        two = prior.cameras(0.0, 0.0)[[0, 1]]
        prior.predict_x0(noise(1, 2, 4, 8, 8), torch.tensor([0.5]), prior.encode_prompt("red"), two)

    def broken(name: str) -> Path:
        return Path(shutil.copytree(mvdream_folder, tmp_path / name))

    def change(folder: Path, **values: object) -> None:
        path = folder / "unet" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    folder = broken("image-conditioned")
    change(folder, ip_dim=16)
    with pytest.raises(AssetError, match="ImageDream"):
        load(str(folder))
    folder = broken("unknown-option")
    change(folder, resblock_updown=True)
    with pytest.raises(AssetError, match="sets resblock_updown"):
        load(str(folder))
    folder = broken("wider")
    change(folder, model_channels=64)
    with pytest.raises(AssetError, match=r"does not fit its config\.json"):
        load(str(folder))
    folder = broken("truncated")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(AssetError, match="truncated or foreign"):
        load(str(folder))
    folder = broken("pickled")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(AssetError, match="pickled"):
        load(str(folder))
