"""A tiny world of completion: boxes, a small autoencoder, a latent GAN and their judge, untrained but not trivial."""

from __future__ import annotations

import pytest
import torch

from rl3d.agents.completion.autoencoder import Autoencoder, AutoencoderConfig
from rl3d.agents.completion.latent_gan import LatentGan, LatentGanConfig
from rl3d.agents.completion.objective import Judge, Parts, parts_of


@pytest.fixture(scope="session")
def judge() -> Judge:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(gfv=8, points=64, each=(16, 16), after=16, decoder=(16,)))
    gan = LatentGan(LatentGanConfig(gfv=8, noise=3, hidden=16))
    with torch.no_grad():
        whole = torch.rand(64, 100, 3) - 0.5
        autoencoder.fit_whitening(autoencoder.encode(whole * (0.5 + torch.rand(64, 1, 3))))
        gan.fit_zero(torch.randn(64, 8))
    return Judge(autoencoder.eval().requires_grad_(False), gan.eval().requires_grad_(False))


@pytest.fixture(scope="session")
def parts(judge: Judge) -> Parts:
    points = torch.rand(6, 32, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    return parts_of(judge.autoencoder, points * torch.tensor([1.0, 0.5, 1.0]))
