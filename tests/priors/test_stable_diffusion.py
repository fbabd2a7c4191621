from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

from rl3d.cameras import Cameras, camera_rows
from rl3d.errors import AssetError, InputError
from rl3d.priors import join_prompts, load
from rl3d.priors.pipeline_folder import NoiseSchedule, load_schedule
from rl3d.priors.stable_diffusion import StableDiffusionPrior
from rl3d.view_words import BACK, FRONT, OVERHEAD, SIDE, view_indices


@pytest.fixture(scope="module")
def prior(sd_folder: Path) -> StableDiffusionPrior:
    loaded = load(str(sd_folder))
    assert isinstance(loaded, StableDiffusionPrior)
    return loaded


@pytest.fixture(scope="module")
def v_prior(sd_v_folder: Path) -> StableDiffusionPrior:
    loaded = load(str(sd_v_folder))
    assert isinstance(loaded, StableDiffusionPrior)
    return loaded


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_facts(prior: StableDiffusionPrior, v_prior: StableDiffusionPrior) -> None:
    assert (prior.n_views, prior.image_size, prior.has_alpha, prior.background) == (1, 16, False, 1.0)
    assert prior.licence == "openrail"
    assert prior.parts.schedule.prediction == "epsilon" and v_prior.parts.schedule.prediction == "v_prediction"
    assert len(prior.cameras(0.3, 0.2)) == 1
    assert not any(p.requires_grad for p in prior.unet.parameters())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_true_output_gives_back_x0(prediction: str) -> None:
    alphas = torch.linspace(0.999, 0.005, 1000)
    schedule = NoiseSchedule(alphas, prediction)
    x0, eps, t = noise(3, 2, 4, 8, 8), noise(3, 2, 4, 8, 8, seed=1), torch.tensor([0.01, 0.5, 0.98])
    a, s = schedule.signal_and_noise(t)
    output = {"epsilon": eps, "v_prediction": a * eps - s * x0, "sample": x0}[prediction]
    # float32 cancellation over a = 0.16 at t = 0.98: measured 7e-7
    torch.testing.assert_close(schedule.x0(output, a * x0 + s * eps, t), x0, atol=1e-5, rtol=0)


def test_continuous_time_maps_onto_the_schedule(sd_folder: Path, sd_v_folder: Path) -> None:
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler

    schedule = load_schedule(sd_folder)
    assert schedule.timesteps(torch.tensor([1e-6, 0.001, 0.5, 1.0])).tolist() == [0, 0, 499, 999]
    reference = PNDMScheduler.from_pretrained(str(sd_folder / "scheduler"))
    torch.testing.assert_close(schedule.alphas_cumprod, reference.alphas_cumprod)
    assert float(load_schedule(sd_v_folder).alphas_cumprod[-1]) == 0  # zero terminal SNR


@pytest.mark.parametrize("which", ["prior", "v_prior"])
def test_predicts_like_the_diffusers_parts(which: str, request: pytest.FixtureRequest) -> None:
    """Guidance done by hand, one row at a time, with the pipeline's own scheduler for x0."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    prior: StableDiffusionPrior = request.getfixturevalue(which)
    prompt = prior.encode_prompt("a red barrel", "blurry")
    cameras, t = prior.cameras(0.0, 0.1), torch.tensor([0.3, 0.7])
    x_t = noise(2, 1, 4, 8, 8)
    guided, text = prior.predict_x0(x_t, t, prompt, cameras, guidance=7.5)

    tokens = prior.parts.tokenizer(
        ["a red barrel, front view", "blurry"], padding="max_length", max_length=40, return_tensors="pt"
    )
    states = prior.parts.text_encoder(tokens.input_ids)[0]
    zero_snr = which == "v_prior"
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        rescale_betas_zero_snr=zero_snr,
        prediction_type=prior.parts.schedule.prediction,
    )
    scheduler.set_timesteps(1000)
    for row, step in enumerate((299, 699)):
        x = x_t[row]
        outputs = [prior.unet(x, step, encoder_hidden_states=state[None]).sample for state in states]
        expected = [scheduler.step(o, step, x).pred_original_sample for o in outputs]
        mixed = scheduler.step(outputs[1] + 7.5 * (outputs[0] - outputs[1]), step, x).pred_original_sample
        # batched against single rows in float32: measured 3e-6 and 3e-5 (the guidance multiplies by 7.5)
        torch.testing.assert_close(text[row], expected[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(guided[row], mixed, atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("which", ["prior", "v_prior"])
def test_guidance_one_is_the_text_prediction(which: str, request: pytest.FixtureRequest) -> None:
    prior: StableDiffusionPrior = request.getfixturevalue(which)
    prompt, cameras = prior.encode_prompt("a barrel"), prior.cameras(0.0, 0.1)
    x_t, t = noise(1, 1, 4, 8, 8), torch.tensor([0.5])
    plain, text = prior.predict_x0(x_t, t, prompt, cameras)
    assert plain is text
    almost, text_again = prior.predict_x0(x_t, t, prompt, cameras, guidance=1.0 + 1e-6)
    torch.testing.assert_close(text_again, text, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(almost, text, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(prior.predict_x0(x_t, t, prompt, cameras, guidance=20.0)[0], text, atol=1e-4)


def test_prompts_and_views_keep_their_rows(prior: StableDiffusionPrior) -> None:
    """A batch of 2 prompts x 3 cameras equals six single calls: nothing leaks between rows."""
    cameras = Cameras.orbit(torch.tensor([0.0, math.pi / 2, math.pi]), 0.1, 1.85, 0.7, 16)
    prompts = [prior.encode_prompt("a red barrel", "dull"), prior.encode_prompt("xyz", "grey")]
    x_t, t = noise(2, 3, 4, 8, 8), torch.tensor([0.4, 0.6])
    together = prior.predict_x0(x_t, t, join_prompts(prompts), cameras, guidance=5.0)
    for row in range(2):
        for view in range(3):
            single = prior.predict_x0(
                x_t[row : row + 1, view : view + 1], t[row : row + 1], prompts[row], cameras[view], guidance=5.0
            )
            for joint, alone in zip(together, single):
                torch.testing.assert_close(joint[row, view], alone[0, 0], atol=3e-4, rtol=1e-3)
    per_object = Cameras.cat([cameras, cameras[[2, 1, 0]]])
    turned = prior.predict_x0(x_t, t, join_prompts(prompts), per_object)[0]
    torch.testing.assert_close(turned[0], prior.predict_x0(x_t, t, join_prompts(prompts), cameras)[0][0])
    assert not torch.allclose(turned[1, 0], prior.predict_x0(x_t, t, join_prompts(prompts), cameras)[0][1, 0])


def test_directions() -> None:
    azimuths = torch.tensor([0.0, 44.0, 46.0, 134.0, 136.0, 180.0, -90.0, -170.0, 0.0]).deg2rad()
    elevations = torch.tensor([0.0] * 7 + [59.0, 61.0]).deg2rad()
    expected = [FRONT, FRONT, SIDE, SIDE, BACK, BACK, SIDE, BACK, OVERHEAD]
    assert view_indices(Cameras.orbit(azimuths, elevations)).tolist() == expected


def test_encode_and_decode_are_differentiable(prior: StableDiffusionPrior) -> None:
    images = torch.rand(1, 2, 3, 24, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    latents = prior.to_latents(images)
    assert latents.shape == (1, 2, 4, 8, 8)
    torch.testing.assert_close(latents, prior.to_latents(images))  # the mean: no hidden randomness
    decoded = prior.decode(latents)
    assert decoded.shape == (1, 2, 3, 16, 16) and bool(((decoded >= 0) & (decoded <= 1)).all())
    (gradient,) = torch.autograd.grad(decoded.square().sum(), images)
    assert bool(gradient.isfinite().all()) and float(gradient.abs().amax((0, 2, 3, 4)).min()) > 0
    # Against the autoencoder itself, on the range it was trained on.
    exact = torch.rand(1, 1, 3, 16, 16)
    reference = prior.parts.vae.encode(2 * exact[0] - 1).latent_dist.mean * prior.parts.vae.config.scaling_factor
    torch.testing.assert_close(prior.to_latents(exact)[0], reference)


def test_gradient_reaches_x_t_only_when_wanted(prior: StableDiffusionPrior) -> None:
    x_t, t = noise(1, 1, 4, 8, 8).requires_grad_(), torch.tensor([0.5])
    prompt, cameras = prior.encode_prompt("a barrel"), prior.cameras(0.0, 0.0)
    with torch.no_grad():
        assert not prior.predict_x0(x_t, t, prompt, cameras, 3.0)[0].requires_grad
    (gradient,) = torch.autograd.grad(prior.predict_x0(x_t, t, prompt, cameras, 3.0)[0].sum(), x_t)
    assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("which", ["prior", "v_prior"])
def test_sampling(which: str, request: pytest.FixtureRequest) -> None:
    prior: StableDiffusionPrior = request.getfixturevalue(which)
    seen: list[tuple[int, int]] = []

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        prompt, cameras = prior.encode_prompt("a barrel"), prior.cameras(0.0, 0.0)
        return prior.sample(
            prompt, cameras, steps=3, guidance=2.0, generator=generator, progress=lambda i, n: seen.append((i, n))
        )

    first = draw(0)
    assert first.shape == (1, 1, 3, 16, 16) and bool(first.isfinite().all())
    assert seen == [(1, 3), (2, 3), (3, 3)]
    torch.testing.assert_close(first, draw(0))
    assert not torch.equal(first, draw(1))


def test_half_precision_keeps_latents_in_float32(sd_folder: Path) -> None:
    half = load(str(sd_folder), dtype=torch.bfloat16)
    full = load(str(sd_folder))
    x_t, t = noise(1, 1, 4, 8, 8), torch.tensor([0.2])
    results = [p.predict_x0(x_t, t, p.encode_prompt("a barrel"), p.cameras(0.0, 0.0), 3.0)[1] for p in (half, full)]
    assert results[0].dtype == torch.float32
    torch.testing.assert_close(results[0], results[1], atol=0.05, rtol=0)  # measured 0.0094: bfloat16 has 8 bits
    assert half.to_latents(torch.rand(1, 1, 3, 16, 16)).dtype == torch.float32


def test_wrong_tensors(prior: StableDiffusionPrior) -> None:
    with pytest.raises(InputError, match=r"takes RGB images .* got \[1, 1, 4, 16, 16\]"):
        prior.to_latents(torch.zeros(1, 1, 4, 16, 16))
    with pytest.raises(InputError, match="3 cameras for 2 x 2 images; pass 2 or 4"):
        camera_rows(Cameras.orbit(torch.zeros(3)), 2, 2)
    with pytest.raises(InputError, match="the prompt is empty"):
        prior.encode_prompt("  ")
    with pytest.raises(InputError, match="reads at most 38; shorten"):
        prior.encode_prompt("barrel " * 40)
    with pytest.raises(InputError, match="at least 1, got 0"):
        generator = torch.Generator()
        prior.sample(prior.encode_prompt("a"), prior.cameras(0.0, 0.0), steps=0, guidance=1.0, generator=generator)


def test_broken_folders(sd_folder: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(sd_folder, tmp_path / name))

    folder = broken("truncated")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(AssetError, match="unet cannot be loaded as UNet2DConditionModel"):
        load(str(folder))

    folder = broken("pickled")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(folder / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(AssetError, match=r"holds only pickled weights .* never opens"):
        load(str(folder))

    folder = broken("no-weights")
    (folder / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(AssetError, match=r"text_encoder holds no \*\.safetensors"):
        load(str(folder))

    folder = broken("foreign")
    shutil.copy(
        sd_folder / "vae" / "diffusion_pytorch_model.safetensors", folder / "text_encoder" / "model.safetensors"
    )
    with pytest.raises(AssetError, match=r"lacks .* tensors of a CLIPTextModel"):
        load(str(folder))

    folder = broken("prediction")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', '"flow"'))
    with pytest.raises(AssetError, match="prediction_type 'flow'"):
        load(str(folder))

    folder = broken("fp16-only")
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (folder / part / f"{stem}.safetensors").rename(folder / part / f"{stem}.fp16.safetensors")
    assert load(str(folder)).image_size == 16
