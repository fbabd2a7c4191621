"""What a completion is worth without knowing the missing part: four terms, none of which sees it.

- visible: mean distance from the visible points to the completed cloud. One-sided: the symmetric Chamfer distance that
  RL-GAN-Net's released code rewards (to the decoded input) punishes every point put where nothing was seen. In training
  the agent is shown a part of the visible points alone, so that it is paid for what it adds and gets right (the layers
  that QINet's onion peeling takes off and asks back).
- latent: squared distance of the latent from where it began, E(P_in).
- critic: how much the latent looks like a complete object's (`LatentGan.score`).
- norm: how far the latent lies beyond the shell in which whitened latents of complete clouds lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.agents.completion.autoencoder import Autoencoder
from rl3d.agents.completion.clouds import distances
from rl3d.agents.completion.latent_gan import LatentGan

TERMS = ("visible", "latent", "critic", "norm")
WORST = 10.0  # the critic counts from -WORST to 0: past the mean of complete clouds there is nothing to gain


@dataclass(frozen=True)
class Weights:
    """Attributes:
    visible: per unit of length; the frame's longest side is 1. latent, norm: per mean square of a whitened latent.
    critic: per unit of `LatentGan.score`.
    """

    visible: float = 20.0
    latent: float = 0.1
    critic: float = 0.1
    norm: float = 0.2


@dataclass(frozen=True)
class Parts:
    """S partial clouds to complete.

    Attributes:
        points: [S, M, 3] what is visible, in the autoencoder's frame; what rewards count.
        start: [S, G] whitened GFVs of what the agent is shown, normal(E(P_in)): all of it, or in training less.
    """

    points: Tensor
    start: Tensor

    def __len__(self) -> int:
        return len(self.points)

    def of(self, rows: Tensor) -> Parts:
        return Parts(self.points[rows], self.start[rows])


@torch.no_grad()
def parts_of(autoencoder: Autoencoder, points: Tensor, shown: Tensor | None = None, chunk: int = 64) -> Parts:
    """Of partial clouds [S, M, 3], of which the agent is shown all, or `shown` [S, K, 3]."""
    given = points if shown is None else shown
    start = [autoencoder.normal(autoencoder.encode(some)) for some in given.split(chunk)]
    return Parts(points, torch.cat(start))


@dataclass(frozen=True)
class Judge:
    """The models and weights that score a latent."""

    autoencoder: Autoencoder
    gan: LatentGan
    weights: Weights = Weights()

    def decode(self, code: Tensor) -> Tensor:
        """[B, P, 3] of whitened latents [B, G]; a decoder call a row."""
        return self.autoencoder.decode(self.autoencoder.plain(code))

    def terms(self, parts: Parts, code: Tensor, cloud: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted terms, each [B], higher is better; differentiable to `code`. `cloud`: its decoding, if there."""
        cloud = self.decode(code) if cloud is None else cloud
        w = self.weights
        return {
            "visible": -w.visible * distances(parts.points, cloud).mean(1),
            "latent": -w.latent * (code - parts.start).square().mean(1),
            "critic": w.critic * self.gan.score(code).clamp(-WORST, 0.0),
            "norm": -w.norm * (code.square().mean(1) - 1).relu(),
        }


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """[B], the objective."""
    return torch.stack([terms[name] for name in TERMS]).sum(0)
