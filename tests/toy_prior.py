"""A tunable prior with exact answers: each prompt is a Gaussian whose mean a linear layer holds.

Its prediction is the posterior's mean whatever that mean is, so that a tuned one is a generative model again; a random
network is none, and rules that learn from their own clean samples would drift with it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.priors.protocol import PromptEmbedding

VIEWS, SIZE, STD = 2, 4, 0.5
WORDS = ("box", "crate", "barrel", "tree")


class Means(nn.Module):
    """One-hot prompts [B, 4] to means [B, V, 4, S, S]."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(len(WORDS), VIEWS * 4 * SIZE * SIZE, bias=False)
        nn.init.normal_(self.out.weight, std=0.2, generator=torch.Generator().manual_seed(0))
        self.requires_grad_(False)

    def forward(self, prompts: Tensor) -> Tensor:
        return self.out(prompts).unflatten(1, (VIEWS, 4, SIZE, SIZE))


class ToyPrior:
    """`rl3d.priors.protocol.Prior` of N(mean(prompt), STD^2), flow matching: a_t = 1 - t, s_t = t."""

    n_views, image_size, latent_shape = VIEWS, SIZE, (4, SIZE, SIZE)
    has_alpha, background, baked_light = True, 0.0, False
    name, licence = "toy", "Apache-2.0"

    def __init__(self) -> None:
        self.network = Means()

    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> PromptEmbedding:
        known = [w for w in prompt.split() if w in WORDS]
        if not known:
            raise InputError(f"the toy prior knows no word of {prompt!r}")
        hot = torch.eye(len(WORDS))[WORDS.index(known[0])][None]
        return PromptEmbedding(hot, torch.zeros_like(hot), [prompt])

    def cameras(self, azimuth: float | Tensor, elevation: float | Tensor) -> Cameras:
        return Cameras.orbit(torch.as_tensor(azimuth) + torch.tensor([0.0, math.pi]), elevation, 2.7, 0.47, SIZE)

    def to_latents(self, images: Tensor) -> Tensor:
        return 2 * images - 1

    def decode(self, latents: Tensor) -> Tensor:
        return (0.5 * (latents + 1)).clamp(0, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        level = t.reshape(-1, 1, 1, 1, 1)
        return (1 - level) * latents + level * noise

    def times(self, steps: int) -> Tensor:
        return 1 - torch.arange(steps + 1, dtype=torch.float64) / steps

    def predict_x0(
        self, x_t: Tensor, t: Tensor, prompt: PromptEmbedding, cameras: Cameras, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        mean, level = self.network(prompt.positive), t.reshape(-1, 1, 1, 1, 1)
        a = 1 - level
        x0 = mean + a * STD**2 / (a**2 * STD**2 + level**2) * (x_t - a * mean)
        return x0, x0
