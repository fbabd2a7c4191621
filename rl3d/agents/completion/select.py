"""How far to follow the agent, by evidence that needs no missing part.

What can honestly be promised without the truth: the kept cloud is, by every piece of evidence that there is, at least
as good as the autoencoder's. The evidence is

- visible: mean distance from the visible points to the cloud (one-sided);
- near: of the cloud's points that lie near visible ones, their mean distance from these: what is put where something
  was seen must lie on it;
- whole: the latent critic's score, how much the latent looks like a complete object's;
- through: where the viewpoint is known, the share of the cloud that stands between it and a point that it saw, which
  is space known to be free.

Of the way from the autoencoder's latent to the agent's the selector takes the farthest of four stops with nothing
against it, or none. Whether the kept cloud is also nearer to the truth is measured in docs/benchmarks/completion.md,
not promised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rl3d.agents.completion.clouds import distances, nearest
from rl3d.agents.completion.objective import Judge, Parts

ANGLE, MARGIN = 0.03, 0.04  # radians beside a line of sight, lengths before what it ended at
NEAR = 0.08  # of a visible point, in units of the frame
STOPS = (1.0, 0.75, 0.5, 0.25)  # shares of the agent's way


@dataclass(frozen=True)
class Evidence:
    """What speaks for B completions, each [B]. whole: higher is better; the others: lower is better."""

    visible: Tensor
    near: Tensor
    whole: Tensor
    through: Tensor

    def where(self, rows: Tensor, other: Evidence) -> Evidence:
        """This in the rows [B] bool, the other elsewhere."""
        return Evidence(**{k: torch.where(rows, v, getattr(other, k)) for k, v in vars(self).items()})


@torch.no_grad()
def evidence(judge: Judge, parts: Parts, code: Tensor, cloud: Tensor, viewpoint: Tensor | None = None) -> Evidence:
    """Of latents [B, G] and their clouds [B, P, 3]; viewpoint [B, 3] in the same frame, where it is known."""
    visible = distances(parts.points, cloud).mean(1)
    away = distances(cloud, parts.points)
    beside = away < NEAR
    near = (away * beside).sum(1) / beside.sum(1).clamp_min(1)
    free = torch.zeros_like(visible) if viewpoint is None else seen_through(parts.points, cloud, viewpoint)
    return Evidence(visible, near, judge.gan.score(code), free)


def seen_through(visible: Tensor, cloud: Tensor, viewpoint: Tensor) -> Tensor:
    """[B] share of the cloud [B, P, 3] that hides a visible point [B, M, 3] from the viewpoint [B, 3]."""
    return hiding(visible, cloud, viewpoint).float().mean(1)


def hiding(visible: Tensor, cloud: Tensor, viewpoint: Tensor) -> Tensor:
    """[B, P] bool: which points of the cloud stand between the viewpoint and a visible point."""
    rays, to_cloud = visible - viewpoint[:, None], cloud - viewpoint[:, None]
    at = nearest(normalize(to_cloud, dim=-1), normalize(rays, dim=-1))[..., None].expand(-1, -1, 3)
    ray = rays.gather(1, at)
    beside = (normalize(to_cloud, dim=-1) - normalize(ray, dim=-1)).norm(dim=-1) < ANGLE
    return beside & (to_cloud.norm(dim=-1) < ray.norm(dim=-1) - MARGIN)


def accepted(before: Evidence, after: Evidence) -> Tensor:
    """[B] bool: no piece of evidence is worse after than before."""
    lower = (after.visible <= before.visible) & (after.near <= before.near) & (after.through <= before.through)
    return lower & (after.whole >= before.whole)


@dataclass(frozen=True)
class Kept:
    """What the selector took. code: [B, G]. share: [B] of the agent's way, 0: the autoencoder's own. before, after: the
    evidence for the autoencoder's and for the kept one."""

    code: Tensor
    share: Tensor
    before: Evidence
    after: Evidence


@torch.no_grad()
def select(judge: Judge, parts: Parts, code: Tensor, viewpoint: Tensor | None = None) -> Kept:
    """The farthest stop on the way from E(P) to latents [B, G] that has no evidence against it. A decoder call a stop
    and row, and one for E(P)."""
    before = after = evidence(judge, parts, parts.start, judge.decode(parts.start), viewpoint)
    kept, share = parts.start, torch.zeros(len(code))
    for stop in STOPS:
        tried = parts.start + stop * (code - parts.start)
        found = evidence(judge, parts, tried, judge.decode(tried), viewpoint)
        take = (share == 0) & accepted(before, found)
        kept, share = torch.where(take[:, None], tried, kept), torch.where(take, stop, share)
        after = found.where(take, after)
    return Kept(kept, share, before, after)
