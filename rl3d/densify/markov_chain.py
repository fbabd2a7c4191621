"""3D Gaussian Splatting as Markov Chain Monte Carlo (Kheradmand et al. 2024, arXiv 2404.09591)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rl3d.densify.rows import OPAQUE, Moments, check_schedule, draw, normal, take
from rl3d.errors import InputError
from rl3d.scenes.gaussians import Gaussians, rotations


@dataclass(frozen=True)
class MarkovChain:
    """Knobs of 3DGS-MCMC; the defaults are those of Kheradmand et al.

    Attributes:
        start, stop, every: steps from which, before which and how often to relocate and grow.
        min_opacity: fainter Gaussians are dead and relocated; also the least that a share becomes.
        growth: the number of Gaussians is multiplied by it each time, up to `budget`.
        noise: factor of `with_noise`, on top of the positions' learning rate.
    """

    start: int = 500
    stop: int = 25_000
    every: int = 100
    min_opacity: float = 0.005
    growth: float = 1.05
    budget: int = 1_000_000
    noise: float = 5e5

    def __post_init__(self) -> None:
        check_schedule(self.start, self.every, self.budget)
        if not (0 < self.min_opacity < 1 and self.growth >= 1):
            raise InputError(
                f"MarkovChain needs min_opacity in (0, 1) and growth >= 1, got {self.min_opacity} and {self.growth}"
            )


def shared(opacities: Tensor, log_scales: Tensor, count: Tensor, least: float = 0.005) -> tuple[Tensor, Tensor]:
    """What `count` coincident copies must be to look like one Gaussian (Kheradmand et al. 2024, eq. 9).

    o' = 1 - (1 - o)^(1 / n) hides as much at the centre; the standard deviations are multiplied so that a line through
    the centre collects as much. The paper's double sum over i <= n and k < i of C(i - 1, k) (-1)^k o'^(k + 1) /
    sqrt(k + 1) is the integral of 1 - (1 - o' exp(-x^2 / 2))^n over x, divided by sqrt(2 pi); the sum cancels to
    nothing for many copies, the trapezoid rule here (81 points) is exact to 1e-9 for a million copies.

    Args:
        opacities: [K] in (0, 1). log_scales: [K, 3]. count: [K] whole numbers >= 1.
        least: the copies' opacities are at least this; where it counts they hide more, and are smaller for it.

    Returns:
        The copies' opacities [K] and log scales [K, 3].
    """
    n, whole = count.double(), opacities.double().clamp(max=OPAQUE)
    one = (-torch.expm1(torch.log1p(-whole) / n)).clamp_min(least)  # o'
    across = torch.linspace(0, 12, 81, dtype=torch.float64, device=n.device)  # standard deviations
    profile = -torch.expm1(n[:, None] * torch.log1p(-one[:, None] * torch.exp(-0.5 * across**2)))  # [K, 81]
    collected = torch.trapezoid(profile, across, dim=1) * math.sqrt(2 / math.pi)
    return one.to(opacities), log_scales + (whole / collected).log().to(log_scales)[:, None]


def relocate_and_grow(
    policy: MarkovChain, gaussians: Gaussians, moments: Moments, generator: torch.Generator
) -> tuple[Gaussians, Moments, dict[str, int]]:
    """Dead Gaussians onto living ones, then copies of living ones up to the budget; hosts are drawn by opacity."""
    opacity = gaussians.opacities
    dead = (opacity <= policy.min_opacity).nonzero()[:, 0]
    alive = (opacity > policy.min_opacity).nonzero()[:, 0]
    if len(alive) == 0:
        raise InputError(
            f"all {len(gaussians)} Gaussians have an opacity of at most {policy.min_opacity}; "
            "the optimisation has diverged, lower its rates"
        )
    count = len(gaussians)
    if len(dead):
        hosts = alive[draw(opacity[alive], len(dead), generator)]
        source = torch.arange(count, device=gaussians.device)
        source[dead] = hosts
        gaussians, moments = _copies(policy, gaussians, moments, source)
    added = max(min(policy.budget, int(policy.growth * count)) - count, 0)
    if added:
        hosts = draw(gaussians.opacities, added, generator)
        source = torch.cat([torch.arange(count, device=gaussians.device), hosts])
        gaussians, moments = _copies(policy, gaussians, moments, source)
    return gaussians, moments, {"relocated": len(dead), "added": added}


def _copies(policy: MarkovChain, gaussians: Gaussians, moments: Moments, source: Tensor) -> tuple[Gaussians, Moments]:
    """The rows `source`, where those that are taken more than once share opacity by eq. 9 and start without moments."""
    copies = torch.bincount(source, minlength=len(gaussians))[source]  # [M]
    several = copies > 1
    out, rows = take(gaussians, moments, source, several)
    logits, log_scales = out.opacity_logits.clone(), out.log_scales.clone()
    opacities, log_scales[several] = shared(
        out.opacities[several], log_scales[several], copies[several], policy.min_opacity
    )
    logits[several] = torch.logit(opacities)
    return replace(out, opacity_logits=logits, log_scales=log_scales), rows


@torch.no_grad()
def with_noise(
    policy: MarkovChain, gaussians: Gaussians, learning_rate: float, generator: torch.Generator
) -> Gaussians:
    """Positions after one step of Langevin noise: faint Gaussians wander, opaque ones stay.

    mean += learning_rate * noise * sigmoid(100 (0.005 - opacity)) * covariance @ (standard normal draw).

    Args:
        learning_rate: of the positions at this step, metres.
    """
    faint = torch.sigmoid(100 * (0.005 - gaussians.opacities))
    axes = rotations(gaussians.quaternions) * gaussians.scales[:, None, :]  # covariance = axes axes^T
    draw = normal((len(gaussians), 3), generator, gaussians.means)
    offset = torch.einsum("nij,nkj,nk->ni", axes, axes, draw)
    return replace(gaussians, means=gaussians.means + learning_rate * policy.noise * faint[:, None] * offset)
