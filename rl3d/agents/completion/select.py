"""Accept or refuse the agent's completion, by evidence that needs no missing part.

What can honestly be promised without the truth: the kept cloud is, by every piece of evidence that there is, at least
as good as the autoencoder's. The evidence is

- visible: mean distance from the visible points to the cloud (one-sided);
- whole: the latent critic's score, how much the latent looks like a complete object's;
- through: where the viewpoint is known, the share of the cloud that stands between it and a point that it saw, which
  is space known to be free.

Whether the kept cloud is also nearer to the truth is measured in docs/benchmarks/completion.md, not promised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rl3d.agents.completion.clouds import distances, nearest
from rl3d.agents.completion.objective import Judge, Parts

ANGLE, MARGIN = 0.03, 0.04  # radians beside a line of sight, lengths before what it ended at


@dataclass(frozen=True)
class Evidence:
    """What speaks for B completions, each [B]. visible, through: lower is better; whole: higher is better."""

    visible: Tensor
    whole: Tensor
    through: Tensor


@torch.no_grad()
def evidence(judge: Judge, parts: Parts, code: Tensor, cloud: Tensor, viewpoint: Tensor | None = None) -> Evidence:
    """Of latents [B, G] and their clouds [B, P, 3]; viewpoint [B, 3] in the same frame, where it is known."""
    visible = distances(parts.points, cloud).mean(1)
    free = torch.zeros_like(visible) if viewpoint is None else seen_through(parts.points, cloud, viewpoint)
    return Evidence(visible, judge.gan.score(code), free)


def seen_through(visible: Tensor, cloud: Tensor, viewpoint: Tensor) -> Tensor:
    """[B] share of the cloud [B, P, 3] that hides a visible point [B, M, 3] from the viewpoint [B, 3]."""
    rays, to_cloud = visible - viewpoint[:, None], cloud - viewpoint[:, None]
    at = nearest(normalize(to_cloud, dim=-1), normalize(rays, dim=-1))[..., None].expand(-1, -1, 3)
    ray = rays.gather(1, at)
    beside = (normalize(to_cloud, dim=-1) - normalize(ray, dim=-1)).norm(dim=-1) < ANGLE
    before = to_cloud.norm(dim=-1) < ray.norm(dim=-1) - MARGIN
    return (beside & before).float().mean(1)


def accepted(before: Evidence, after: Evidence) -> Tensor:
    """[B] bool: no piece of evidence is worse after than before."""
    return (after.visible <= before.visible) & (after.whole >= before.whole) & (after.through <= before.through)
