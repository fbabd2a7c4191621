"""An analytic prior: Gaussian mixtures in image space, with the exact posterior mean E[x0 | x_t] and score. For tests.

p(x | y) = sum_k w_k N(mu_k, sigma_k^2 I) over whole groups of views; x_t = a_t x + s_t eps with
a_t = cos(pi t / 2), s_t = sin(pi t / 2). Everything is float64 and differentiable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError, nearest
from rl3d.priors.latent_diffusion import ddim, rows
from rl3d.priors.protocol import PromptEmbedding


@dataclass(frozen=True)
class Mixture:
    """A mixture of K isotropic Gaussians over groups of V images.

    Attributes:
        weights: [K] positive, normalised on use.
        means: [K, V, C, H, W] images in [0, 1].
        sigmas: [K] positive standard deviations.
    """

    weights: Tensor
    means: Tensor
    sigmas: Tensor

    def __post_init__(self) -> None:
        count = len(self.weights)
        if self.means.ndim != 5 or len(self.means) != count or self.sigmas.shape != (count,):
            raise InputError(
                f"a mixture needs weights [K], means [K, V, C, H, W], sigmas [K]; got {list(self.weights.shape)}, "
                f"{list(self.means.shape)}, {list(self.sigmas.shape)}"
            )
        if not bool((self.weights > 0).all() and (self.sigmas > 0).all()):
            raise InputError("a mixture's weights and sigmas must be positive")

    def double(self) -> tuple[Tensor, Tensor, Tensor]:
        """(log weights [1, K], means [1, K, V, C, H, W], sigmas [1, K]) in float64, weights summing to 1."""
        weights = self.weights.double()
        return (weights / weights.sum()).log()[None], self.means.double()[None], self.sigmas.double()[None]


def levels(t: Tensor) -> tuple[Tensor, Tensor]:
    """a_t = cos(pi t / 2) and s_t = sin(pi t / 2) of t [B], each [B, 1, 1, 1, 1], float64."""
    angle = t.double()[:, None, None, None, None] * (math.pi / 2)
    return angle.cos(), angle.sin()


def component_logits(x_t: Tensor, t: Tensor, mixture: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """log w_k N(x_t; a mu_k, v_k I) [B, K], x_t - a mu_k [B, K, V, C, H, W], and v_k = a^2 sigma_k^2 + s^2 [B, K]."""
    log_weights, means, sigmas = (rows(part, len(x_t)) for part in mixture)
    a, s = levels(t)
    difference = x_t.double()[:, None] - a[:, None] * means
    variance = (a.reshape(-1, 1) * sigmas) ** 2 + s.reshape(-1, 1) ** 2
    squared = difference.flatten(2).square().sum(-1)
    dimensions = x_t[0].numel()
    logits = log_weights - 0.5 * squared / variance - 0.5 * dimensions * (2 * math.pi * variance).log()
    return logits, difference, variance


def log_density(x_t: Tensor, t: Tensor, mixture: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """log p_t(x_t) [B] of the noised mixture; its gradient is the score."""
    return component_logits(x_t, t, mixture)[0].logsumexp(1)


def posterior_mean(x_t: Tensor, t: Tensor, mixture: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """E[x0 | x_t] [B, V, C, H, W]: each component's Gaussian conditional mean, weighted by its responsibility."""
    logits, difference, variance = component_logits(x_t, t, mixture)
    _, means, sigmas = (rows(part, len(x_t)) for part in mixture)
    a, _ = levels(t)
    gain = a.reshape(-1, 1) * sigmas**2 / variance  # [B, K]
    conditional = means + gain[:, :, None, None, None, None] * difference
    return (logits.softmax(1)[:, :, None, None, None, None] * conditional).sum(1)


class GaussianMixturePrior:
    """The protocol of `rl3d.priors.protocol.Prior` with exact predictions. Diffusion space = image space, float64.

    Args:
        prompts: one mixture a prompt; all of one image shape.
        unconditional: what the empty prompt means, the negative side of classifier-free guidance.
        background: grey level behind RGB images (3 channels); images of 4 channels carry alpha.
    """

    def __init__(self, prompts: dict[str, Mixture], unconditional: Mixture, *, background: float = 1.0) -> None:
        shapes = {tuple(m.means.shape[1:]) for m in (*prompts.values(), unconditional)}
        if len(shapes) != 1:
            raise InputError(f"all mixtures must share one image shape [V, C, H, W], got {sorted(shapes)}")
        self.n_views, channels, self.image_size, width = unconditional.means.shape[1:]
        if channels not in (3, 4) or width != self.image_size:
            raise InputError(f"mixture images must be square RGB or RGBA, got {list(unconditional.means.shape[1:])}")
        self.prompts, self.unconditional = prompts, unconditional
        self.has_alpha, self.background, self.baked_light = channels == 4, background, False
        self.channels, self.latent_shape = channels, (channels, width, width)
        self.name, self.licence = "analytic Gaussian mixture", "Apache-2.0"

    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> PromptEmbedding:
        """The mixtures of both prompts; an empty negative prompt is the unconditional mixture.

        Raises:
            InputError: a prompt without a mixture.
        """
        for text in (prompt, negative_prompt or prompt):
            if text not in self.prompts:
                close = ", ".join(nearest(text, self.prompts) or sorted(self.prompts)[:5])
                raise InputError(f"the mixture prior does not know the prompt {text!r}; it knows {close}")
        negative = self.prompts[negative_prompt] if negative_prompt else self.unconditional
        return PromptEmbedding(self.prompts[prompt].double(), negative.double(), [prompt])

    def cameras(self, azimuth: float | Tensor, elevation: float | Tensor) -> Cameras:
        """Evenly spaced around the asset at the embedded prior's distance and field of view."""
        spacing = torch.arange(self.n_views, dtype=torch.float64) * (2 * math.pi / self.n_views)
        return Cameras.orbit(torch.as_tensor(azimuth) + spacing, elevation, 2.7, 0.47, self.image_size)

    def to_latents(self, images: Tensor) -> Tensor:
        """[B, V, C, H, W] in float64; the identity otherwise."""
        expected = (self.n_views, self.channels, self.image_size, self.image_size)
        if images.shape[1:] != expected:
            raise InputError(f"the mixture prior takes images [B, {expected}], got {list(images.shape)}")
        return images.double()

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(0, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        a, s = levels(t)
        return a * latents + s * noise

    def times(self, steps: int) -> Tensor:
        """See `Prior.times`; even steps."""
        return 1 - torch.arange(steps + 1, dtype=torch.float64) / steps

    def predict_x0(
        self, x_t: Tensor, t: Tensor, prompt: PromptEmbedding, cameras: Cameras, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """(guided, text-only) posterior means [B, V, C, H, W]; `cameras` is not looked at."""
        text = posterior_mean(x_t, t, prompt.positive)
        if guidance == 1:
            return text, text
        null = posterior_mean(x_t, t, prompt.negative)
        return null + guidance * (text - null), text

    @torch.no_grad()
    def sample(
        self,
        prompt: PromptEmbedding,
        cameras: Cameras,
        *,
        steps: int = 50,
        guidance: float = 1.0,
        generator: torch.Generator,
        progress: Any = None,
        start: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Images [B, V, C, H, W] in [0, 1] for B prompts by DDIM, from noise or from `start` (see `Prior.sample`)."""
        shape = (len(prompt.prompts), self.n_views, self.channels, self.image_size, self.image_size)
        noise = torch.randn(shape, dtype=torch.float64, generator=generator)
        begin = None if start is None else self.to_latents(start.double())
        x0 = ddim(
            lambda x, t: self.predict_x0(x, t, prompt, cameras, guidance)[0],
            levels,
            noise,
            steps,
            progress,
            begin,
            strength,
        )
        return self.decode(x0)
