from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.priors import GaussianMixturePrior, Mixture, join_prompts
from rl3d.priors.mixture import levels, log_density, posterior_mean


def flat(grey: float, channels: int = 3, size: int = 4) -> Tensor:
    return torch.full((2, channels, size, size), grey)  # [V, C, H, W]


def mixture(*greys: float, sigma: float = 0.05, channels: int = 3) -> Mixture:
    means = torch.stack([flat(grey, channels) for grey in greys])
    return Mixture(torch.arange(1.0, len(greys) + 1), means, torch.full((len(greys),), sigma))


@pytest.fixture
def prior() -> GaussianMixturePrior:
    return GaussianMixturePrior({"dark": mixture(0.1, 0.2), "light": mixture(0.8, 0.9)}, mixture(0.2, 0.9, sigma=0.2))


def noisy(batch: int = 3) -> Tensor:
    return torch.rand(batch, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_limits_of_the_posterior_mean(prior: GaussianMixturePrior) -> None:
    x, prompt = noisy(), prior.encode_prompt("dark")
    cameras = prior.cameras(0.0, 0.2)
    almost_clean, _ = prior.predict_x0(x, torch.full((3,), 1e-7), prompt, cameras)
    # The pull to the nearest mean is (s / sigma)^2 |x - mu| < 1e-11 at this t.
    torch.testing.assert_close(almost_clean, x, atol=1e-10, rtol=0)
    pure_noise, _ = prior.predict_x0(x, torch.ones(3), prompt, cameras)
    mean = 0.1 / 3 + 0.2 * 2 / 3  # weights 1 : 2
    torch.testing.assert_close(pure_noise, torch.full_like(x, mean), atol=1e-8, rtol=0)  # means are given in float32


@pytest.mark.parametrize("t", [0.05, 0.5, 0.97])
def test_posterior_mean_is_tweedie_of_the_score(prior: GaussianMixturePrior, t: float) -> None:
    # x0 = (x_t + s^2 grad log p_t) / a (Efron 2011); two different routes through the algebra.
    levels_t = torch.full((3,), t, dtype=torch.float64)
    components = prior.encode_prompt("light").positive
    x = noisy().requires_grad_()
    (score,) = torch.autograd.grad(log_density(x, levels_t, components).sum(), x)
    a, s = levels(levels_t)
    torch.testing.assert_close(posterior_mean(x, levels_t, components), (x + s**2 * score) / a, atol=1e-8, rtol=0)


def test_density_of_one_component_is_a_normal() -> None:
    single = Mixture(torch.ones(1), torch.full((1, 1, 3, 1, 1), 0.3), torch.tensor([0.2])).double()
    x, t = torch.full((1, 1, 3, 1, 1), 0.7, dtype=torch.float64), torch.tensor([0.4])
    a, s = (float(level) for level in levels(t))
    normal = torch.distributions.Normal(a * float(single[1].mean()), math.hypot(a * float(single[2]), s))
    torch.testing.assert_close(log_density(x, t, single), 3 * normal.log_prob(torch.tensor([0.7], dtype=torch.float64)))


def test_guidance_mixes_prompt_and_unconditional(prior: GaussianMixturePrior) -> None:
    x, t, cameras = noisy(), torch.full((3,), 0.6), prior.cameras(0.0, 0.2)
    prompt = prior.encode_prompt("dark")
    plain, text = prior.predict_x0(x, t, prompt, cameras, guidance=1.0)
    assert plain is text
    nothing, text_again = prior.predict_x0(x, t, prompt, cameras, guidance=0.0)
    torch.testing.assert_close(text_again, text)
    torch.testing.assert_close(nothing, posterior_mean(x, t, prior.unconditional.double()))
    strong, _ = prior.predict_x0(x, t, prompt, cameras, guidance=3.0)
    torch.testing.assert_close(strong, nothing + 3 * (text - nothing))
    negative = prior.encode_prompt("dark", "light")
    away, _ = prior.predict_x0(x, t, negative, cameras, guidance=3.0)
    assert away.mean() < text.mean()


def test_sampling_lands_on_modes() -> None:
    tight = {"dark": mixture(0.1, 0.5, sigma=0.01), "light": mixture(0.6, 0.9, sigma=0.01)}
    prior = GaussianMixturePrior(tight, mixture(0.5))
    prompts = join_prompts([prior.encode_prompt("dark")] * 8 + [prior.encode_prompt("light")] * 8)
    images = prior.sample(
        prompts, prior.cameras(0.0, 0.0), steps=60, guidance=1.0, generator=torch.Generator().manual_seed(1)
    )
    assert images.shape == (16, 2, 3, 4, 4)
    modes = torch.tensor([[0.1, 0.5]] * 8 + [[0.6, 0.9]] * 8, dtype=torch.float64)
    nearest_mode = (images.mean((1, 2, 3, 4))[:, None] - modes).abs().min(1).values
    assert float(nearest_mode.max()) < 0.005  # measured 0.0007; one sigma is 0.01
    fine = prior.sample(
        prompts, prior.cameras(0.0, 0.0), steps=1000, guidance=1.0, generator=torch.Generator().manual_seed(1)
    )
    # Few steps narrow the components (0.0035 at 60); in the limit the samples have their width: measured 0.0094.
    assert abs(float(fine.flatten(1).std(1).mean()) - 0.01) < 0.001


def test_rgba_and_errors(prior: GaussianMixturePrior) -> None:
    rgba = GaussianMixturePrior({"x": mixture(0.5, channels=4)}, mixture(0.5, channels=4))
    assert rgba.has_alpha and not prior.has_alpha
    with pytest.raises(InputError, match="share one image shape"):
        GaussianMixturePrior({"x": mixture(0.5, channels=4)}, mixture(0.5))
    with pytest.raises(InputError, match="does not know the prompt 'drak'; it knows dark"):
        prior.encode_prompt("drak")
    with pytest.raises(InputError, match="takes images"):
        prior.to_latents(torch.zeros(1, 2, 4, 4, 4))
    with pytest.raises(InputError, match="must be positive"):
        Mixture(torch.ones(1), flat(0.5)[None], torch.zeros(1))
    with pytest.raises(InputError, match="3 prompts cannot serve a batch of 2"):
        triple = join_prompts([prior.encode_prompt("dark")] * 3)
        prior.predict_x0(noisy(2), torch.full((2,), 0.5), triple, prior.cameras(0.0, 0.0))
