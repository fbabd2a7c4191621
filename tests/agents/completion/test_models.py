"""The autoencoder and the latent GAN: order of points, whitening, files, and losses that fall."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rl3d.agents.completion.autoencoder import Autoencoder, AutoencoderConfig, reconstruction
from rl3d.agents.completion.latent_gan import LatentGan, LatentGanConfig, critic_loss, generator_loss, uniform_noise
from rl3d.agents.completion.objective import Judge
from rl3d.errors import AssetError


def test_the_encoder_knows_no_order_and_no_repetition(judge: Judge) -> None:
    points = torch.rand(2, 20, 3)
    order = torch.randperm(20)
    code = judge.autoencoder.encode(points)
    assert torch.allclose(judge.autoencoder.encode(points[:, order]), code, atol=1e-6)
    assert torch.allclose(judge.autoencoder.encode(torch.cat([points, points[:, :5]], 1)), code, atol=1e-6)


def test_whitened_latents_have_unit_spread_and_lead_back() -> None:
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(gfv=4, points=8, each=(8,), after=8, decoder=(8,)))
    gfv = torch.randn(4000, 4) * torch.tensor([1.0, 2.0, 0.5, 0.3]) + 3
    model.fit_whitening(gfv)
    normal = model.normal(gfv)
    assert torch.allclose(torch.cov(normal.T), torch.eye(4), atol=1e-3) and normal.mean(0).abs().max() < 1e-4
    assert torch.allclose(model.plain(normal), gfv, atol=1e-4)


def test_it_learns_to_reconstruct() -> None:
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(gfv=8, points=64, each=(16, 32), after=32, decoder=(32,)))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        cloud = (torch.rand(8, 96, 3) - 0.5) * torch.tensor([1.0, 0.1, 0.6])
        loss = reconstruction(model, cloud[:, :32], cloud[:, 32:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]  # 0.04 is what two draws of 64 points of this plate differ by


def test_the_gan_moves_towards_the_real_latents() -> None:
    torch.manual_seed(0)
    gan, g = LatentGan(LatentGanConfig(gfv=4, noise=2, hidden=32)), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(gan.parameters(), lr=2e-3, betas=(0.5, 0.9))
    centre = torch.tensor([2.0, -1.0, 0.0, 0.0])

    def far() -> float:
        return float((gan.generate(uniform_noise(gan, 256, g)).detach().mean(0) - centre).norm())

    before = far()
    for step in range(150):
        real = centre + 0.1 * torch.randn(64, 4, generator=g)
        made = gan.generate(uniform_noise(gan, 64, g))
        loss = critic_loss(gan, real, made, g)
        if step % 3 == 2:
            gan.critic.requires_grad_(False)
            loss = loss + generator_loss(gan, uniform_noise(gan, 64, g))
            gan.critic.requires_grad_(True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert far() < 0.4 * before
    gan.fit_zero(real)
    assert float(gan.score(real).mean().detach()) == pytest.approx(0, abs=1e-5)
    assert float(gan.score(-real).mean().detach()) < 0


def test_files_keep_the_models(judge: Judge, tmp_path: Path) -> None:
    judge.autoencoder.save(tmp_path / "a")
    judge.gan.save(tmp_path / "g")
    points, code = torch.rand(2, 20, 3), torch.randn(2, 8)
    again, gan = Autoencoder.load(tmp_path / "a"), LatentGan.load(tmp_path / "g")
    # half precision: 11 bits of every weight
    assert torch.allclose(again(points), judge.autoencoder(points), atol=5e-3)
    assert torch.allclose(gan.score(code), judge.gan.score(code), atol=5e-3)
    with pytest.raises(AssetError, match="the point autoencoder in"):
        Autoencoder.load(tmp_path / "nothing")
