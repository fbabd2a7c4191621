"""A latent GAN: WGAN-GP (1704.00028) on whitened GFVs of complete clouds, after RL-GAN-Net (1904.12304).

The generator is what `pick` chooses its input of; the critic says how much a latent looks like a complete object's. The
critic is a mean of differences from real latents away: scores are in units of the whitened latent's distance.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from rl3d.agents.completion.autoencoder import perceptron
from rl3d.model_files import read_weights, readable, write_weights

PENALTY = 10.0  # lambda of the gradient penalty


@dataclass(frozen=True)
class LatentGanConfig:
    """gfv: size of the latent. noise: of the generator's input, in [-1, 1]^noise. hidden: width of both networks."""

    gfv: int = 128
    noise: int = 32
    hidden: int = 256


class LatentGan(nn.Module):
    """Whitened latents in and out."""

    real: Tensor

    def __init__(self, config: LatentGanConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or LatentGanConfig()
        self.generator = perceptron(c.noise, c.hidden, c.hidden, c.gfv)
        self.critic = perceptron(c.gfv, c.hidden, c.hidden, 1)
        self.register_buffer("real", torch.zeros(()))  # mean score of complete clouds

    def generate(self, noise: Tensor) -> Tensor:
        """[B, noise] in [-1, 1] -> [B, G]."""
        return self.generator(noise)

    def score(self, normal: Tensor) -> Tensor:
        """[B], 0 where complete clouds are on average, lower is less like one; differentiable."""
        return self.critic(normal)[:, 0] - self.real

    @torch.no_grad()
    def fit_zero(self, normal: Tensor) -> None:
        """Move the zero of `score` to the mean over latents of complete clouds."""
        self.real.copy_(self.critic(normal)[:, 0].mean())

    def save(self, folder: Path) -> None:
        """Weights in half precision and their configuration; each file atomically."""
        write_weights(folder, self, asdict(self.config), torch.half)

    @staticmethod
    def load(folder: Path) -> LatentGan:
        """Raises:
        AssetError: files that are missing or of another kind.
        """
        with readable(f"the latent GAN in {folder}"):
            config, tensors = read_weights(folder)
            model = LatentGan(LatentGanConfig(**config))
            model.load_state_dict(tensors)
        return model.eval().requires_grad_(False)


def uniform_noise(model: LatentGan, count: int, generator: Generator | None = None) -> Tensor:
    """[count, noise] in [-1, 1]."""
    return 2 * torch.rand(count, model.config.noise, generator=generator) - 1


def critic_loss(model: LatentGan, real: Tensor, fake: Tensor, generator: Generator | None = None) -> Tensor:
    """E D(fake) - E D(real) + lambda E (|grad D(x)| - 1)^2, x between the two; latents [B, G] each."""
    mix = torch.rand(len(real), 1, generator=generator).to(real)
    between = (mix * real + (1 - mix) * fake.detach()).requires_grad_(True)
    (slope,) = torch.autograd.grad(model.critic(between).sum(), between, create_graph=True)
    penalty = (slope.norm(dim=1) - 1).square().mean()
    return model.critic(fake.detach()).mean() - model.critic(real).mean() + PENALTY * penalty


def generator_loss(model: LatentGan, noise: Tensor) -> Tensor:
    """-E D(G(z))."""
    return -model.critic(model.generate(noise)).mean()
