"""A point autoencoder: PointNet's encoder to a global feature vector (GFV), a perceptron to a cloud of fixed size.

Trained on complete surfaces alone (Achlioptas et al. 2018, 1707.02392; RL-GAN-Net, 1904.12304), so that what it decodes
looks like a whole object. The encoder takes any number of points; their order and repetition do not matter.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from rl3d.agents.completion.clouds import chamfer
from rl3d.model_files import read_weights, readable, write_weights


@dataclass(frozen=True)
class AutoencoderConfig:
    """Attributes:
    gfv: size of the latent. points: of a decoded cloud. each: widths of the layers on each point. after: width of the
        layer between the maximum over points and the GFV. decoder: widths of its hidden layers.
    """

    gfv: int = 128
    points: int = 2048
    each: tuple[int, ...] = (64, 128, 256)
    after: int = 256
    decoder: tuple[int, ...] = (512, 320)


def perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Autoencoder(nn.Module):
    """Clouds live in a frame of half a metre around the origin: longest side at most 1, +Y up.

    The mean and the spread of the GFVs of complete clouds are kept beside the weights; `normal` and `plain` go between
    a GFV and its whitened form, in which every direction that complete shapes differ in has unit variance.
    """

    mean: Tensor
    basis: Tensor
    spread: Tensor

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or AutoencoderConfig()
        self.each = perceptron(3, *c.each)
        self.to_gfv = perceptron(c.each[-1], c.after, c.gfv)
        self.decoder = perceptron(c.gfv, *c.decoder, 3 * c.points)
        self.register_buffer("mean", torch.zeros(c.gfv))
        self.register_buffer("basis", torch.eye(c.gfv))  # rows: principal directions, the widest first
        self.register_buffer("spread", torch.ones(c.gfv))  # std along each

    def encode(self, points: Tensor) -> Tensor:
        """[B, N, 3] -> GFV [B, G]."""
        return self.to_gfv(self.each(points).amax(1))

    def decode(self, gfv: Tensor) -> Tensor:
        """[B, G] -> [B, P, 3]."""
        return self.decoder(gfv).unflatten(1, (-1, 3))

    def forward(self, points: Tensor) -> Tensor:
        return self.decode(self.encode(points))

    @torch.no_grad()
    def fit_whitening(self, gfv: Tensor) -> None:
        """Mean, principal directions and spreads of GFVs [S, G] of complete clouds."""
        self.mean.copy_(gfv.mean(0))
        variance, directions = torch.linalg.eigh(torch.cov((gfv - self.mean).double().T))
        self.basis.copy_(directions.flip(1).T)
        # A direction in which shapes hardly differ must not blow up what lies off it.
        self.spread.copy_(variance.flip(0).clamp_min(0).sqrt().clamp_min(0.02 * float(variance.max().sqrt())))

    def normal(self, gfv: Tensor) -> Tensor:
        """[B, G] whitened."""
        return (gfv - self.mean) @ self.basis.T / self.spread

    def plain(self, normal: Tensor) -> Tensor:
        """[B, G], the inverse of `normal`."""
        return (normal * self.spread) @ self.basis + self.mean

    def save(self, folder: Path) -> None:
        """Weights in half precision and their configuration; each file atomically."""
        write_weights(folder, self, asdict(self.config), torch.half)

    @staticmethod
    def load(folder: Path) -> Autoencoder:
        """Raises:
        AssetError: files that are missing or of another kind.
        """
        with readable(f"the point autoencoder in {folder}"):
            config, tensors = read_weights(folder)
            config |= {name: tuple(config[name]) for name in ("each", "decoder")}
            model = Autoencoder(AutoencoderConfig(**config))
            model.load_state_dict(tensors)
        return model.eval().requires_grad_(False)


def reconstruction(model: Autoencoder, seen: Tensor, truth: Tensor) -> Tensor:
    """The loss: mean CD-l1 between a decoded cloud and another draw from the same surface, truth [B, M, 3]."""
    with torch.autocast(seen.device.type, torch.bfloat16):
        each = model.each(seen).amax(1)
    return chamfer(model.decode(model.to_gfv(each.float())), truth).mean()
