"""Point clouds in batches: turning, what corruptions take away, and how far two clouds are from each other.

A corruption is a mask [B, N] of the points that stay, so that it is exact and composes; `resampled` makes a cloud of a
fixed size of what stays. All randomness comes from a generator that is passed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Generator, Tensor

from rl3d.errors import InputError
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.point_cloud import sample_surface

CORNERS = torch.tensor(
    [[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)]
)  # ShapeNet-55's views
LAYER = 64  # directions of a layer of `peel`


def turned(points: Tensor, heading: Tensor) -> Tensor:
    """[B, N, 3] turned by heading [B] radians about +Y, +Z towards +X."""
    c, s = heading.cos()[:, None], heading.sin()[:, None]
    x, y, z = points.unbind(-1)
    return torch.stack([c * x + s * z, y, c * z - s * x], -1)


@dataclass(frozen=True)
class Frame:
    """How clouds lie in the autoencoder's frame: turned about +Y, then scaled, then shifted.

    Attributes:
        heading: [B] radians. scale: [B]. shift: [B, 3].
    """

    heading: Tensor
    scale: Tensor
    shift: Tensor

    def into(self, points: Tensor) -> Tensor:
        """[B, N, 3] of an object's coordinates into the frame."""
        return turned(points, self.heading) * self.scale[:, None, None] + self.shift[:, None]

    def back(self, points: Tensor) -> Tensor:
        """[B, N, 3] out of the frame."""
        return turned((points - self.shift[:, None]) / self.scale[:, None, None], -self.heading)

    def of(self, rows: Tensor) -> Frame:
        return Frame(self.heading[rows], self.scale[rows], self.shift[rows])


def random_frame(batch: int, generator: Generator | None = None) -> Frame:
    """Any quarter turn and up to 10 degrees more; for half of the rows a smaller scale (to 0.75) and a shift (to
    0.08), as where nobody knows the frame of a part."""
    heading = torch.pi / 2 * torch.randint(4, (batch,), generator=generator)
    heading = heading + math.radians(10) * (2 * torch.rand(batch, generator=generator) - 1)
    loose = torch.randint(2, (batch,), generator=generator)
    scale = 1 - 0.25 * loose * torch.rand(batch, generator=generator)
    shift = 0.08 * loose[:, None] * (2 * torch.rand(batch, 3, generator=generator) - 1)
    return Frame(heading, scale, shift)


def view_crop(points: Tensor, viewpoint: Tensor, share: Tensor | float) -> Tensor:
    """[B, N] bool, False for the share of points that is nearest to the viewpoint [B, 3] (ShapeNet-55's protocol)."""
    return ~_lowest((points - viewpoint[:, None]).square().sum(-1), share)


def ball_crop(points: Tensor, centre: Tensor, share: Tensor | float) -> Tensor:
    """[B, N] bool, False for the share of points nearest to one of them: centre [B] int64 (RL-GAN-Net's protocol)."""
    at = points[torch.arange(len(points), device=points.device), centre]
    return view_crop(points, at, share)


def peel(points: Tensor, share: Tensor | float, generator: Generator | None = None) -> Tensor:
    """[B, N] bool, False for the outermost share: layer by layer whatever reaches farthest in one of 64 directions.

    After QINet's onion peeling, whose details are unpublished; these are convex layers, by their support.
    """
    batch, count = points.shape[:2]
    keep = torch.ones(batch, count, dtype=torch.bool, device=points.device)
    left = _number(share, batch, count, points.device)
    while bool((left > 0).any()):
        direction = torch.randn(3, LAYER, generator=generator).to(points)
        top = (points @ direction).masked_fill(~keep[..., None], -math.inf).argmax(1)  # [B, 64]
        layer = torch.zeros_like(keep).scatter(1, top, True)
        order = torch.rand(batch, count, generator=generator).to(points.device).masked_fill(~layer, 2.0)
        gone = layer & (_ranks(order) < left[:, None])
        keep &= ~gone
        left = left - gone.sum(1)
    return keep


def thinned(points: Tensor, share: Tensor | float, generator: Generator | None = None) -> Tensor:
    """[B, N] bool, False for a share drawn at random."""
    return ~_lowest(torch.rand(points.shape[:2], generator=generator).to(points.device), share)


def jittered(points: Tensor, std: Tensor | float, generator: Generator | None = None) -> Tensor:
    """[B, N, 3] with Gaussian noise of a std a row, in the points' unit."""
    wide = torch.as_tensor(std, dtype=points.dtype, device=points.device).expand(len(points))
    return points + wide[:, None, None] * torch.randn(points.shape, generator=generator).to(points)


def resampled(points: Tensor, keep: Tensor, count: int, generator: Generator | None = None) -> Tensor:
    """[B, count, 3] of the points that stay: each once before any twice, in random order."""
    held = keep.sum(1)
    if int(held.min()) < 1:
        raise InputError(f"row {int(held.argmin())} has no point left to draw from; take less away")
    order = torch.rand(points.shape[:2], generator=generator).to(points.device).masked_fill(~keep, 2.0).argsort(1)
    index = torch.arange(count, device=points.device)[None] % held[:, None]
    return points.gather(1, order.gather(1, index)[..., None].expand(-1, -1, 3))


def corrupted(
    points: Tensor, count: int, generator: Generator | None = None, gone: tuple[float, float] = (0.2, 0.75)
) -> Tensor:
    """[B, count, 3]: of each cloud a random part, by view, ball or layers, with a share between the two of `gone` gone.

    A quarter is noisy (std to 0.01), a quarter sparse (half to a sixteenth of what was left).
    """
    batch = len(points)

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(batch, generator=generator)).to(points)

    share, which = uniform(*gone), torch.randint(5, (batch,), generator=generator).to(points.device)
    from_where = torch.randn(batch, 3, generator=generator).to(points)
    viewpoint = math.sqrt(3) * from_where / from_where.norm(dim=1, keepdim=True)
    centre = torch.randint(points.shape[1], (batch,), generator=generator).to(points.device)
    keep = torch.where((which < 2)[:, None], view_crop(points, viewpoint, share), ball_crop(points, centre, share))
    layers = (which == 4).nonzero()[:, 0]
    if len(layers):
        keep[layers] = peel(points[layers], share[layers], generator)
    part = resampled(points, keep, count, generator)
    noisy, sparse = uniform(0, 1) < 0.25, uniform(0, 1) < 0.25
    part = jittered(part, torch.where(noisy, uniform(0, 0.01), torch.zeros_like(share)), generator)
    less = torch.where(sparse, 1 - 2 ** uniform(-4, -1), torch.zeros_like(share))
    return resampled(part, thinned(part, less, generator), count, generator)


def surface_points(meshes: list[Mesh], count: int, generator: Generator | None = None) -> Tensor:
    """[S, count, 3] uniform by area."""
    return torch.stack([sample_surface(mesh, count, generator).points for mesh in meshes])


def nearest(source: Tensor, target: Tensor) -> Tensor:
    """[B, N] int64: of each source point [B, N, 3] the nearest of target [B, M, 3]. No gradients.

    On the CPU by a k-d tree a cloud (2,048 points both ways in 3 ms, a distance matrix takes 12), else by distances.
    """
    if source.device.type != "cpu":
        return torch.stack([torch.cdist(a, b).argmin(1) for a, b in zip(source.detach(), target.detach())])
    pairs = zip(source.detach().double().numpy(), target.detach().double().numpy())
    return torch.from_numpy(np.stack([cKDTree(b).query(a)[1] for a, b in pairs]).astype(np.int64))


def distances(source: Tensor, target: Tensor) -> Tensor:
    """[B, N] from each source point to the nearest target point; differentiable to both clouds."""
    at = nearest(source, target)[..., None].expand(-1, -1, 3)
    return torch.linalg.vector_norm(source - target.gather(1, at), dim=-1)


def chamfer(prediction: Tensor, truth: Tensor) -> Tensor:
    """[B] CD-l1: the mean over both directions of the mean distance. Differentiable."""
    return 0.5 * (distances(prediction, truth).mean(1) + distances(truth, prediction).mean(1))


def accuracy(prediction: Tensor, truth: Tensor, threshold: float = 0.01) -> dict[str, Tensor]:
    """What a completion is worth against the truth, each [B]: `rl3d.metrics.Geometry`'s formulas, between points.

    Returns:
        cd_l1: mean over both directions of the mean distance. cd_l2: the sum of both directions' mean squared
        distances (PoinTr's). f1: harmonic mean of the shares within the threshold. missing: mean distance from the
        truth to the prediction, excess: the other way.
    """
    there, back = distances(prediction, truth), distances(truth, prediction)
    precision, recall = (there <= threshold).double().mean(1), (back <= threshold).double().mean(1)
    return {
        "cd_l1": 0.5 * (there.mean(1) + back.mean(1)),
        "cd_l2": there.square().mean(1) + back.square().mean(1),
        "f1": (2 * precision * recall / (precision + recall).clamp_min(1e-12)).float(),
        "missing": back.mean(1),
        "excess": there.mean(1),
    }


def _number(share: Tensor | float, batch: int, count: int, device: torch.device) -> Tensor:
    """[B] int64, round(share N); at least one point stays.

    Raises:
        InputError: a share outside [0, 1).
    """
    wide = torch.as_tensor(share, dtype=torch.float64, device=device).expand(batch)
    if not bool(((wide >= 0) & (wide < 1)).all()):
        raise InputError(f"the share of points to take away must lie in [0, 1), got {share}")
    return (wide * count).round().long().clamp_max(count - 1)


def _ranks(key: Tensor) -> Tensor:
    """[B, N] int64, 0 for the smallest of a row."""
    return torch.empty_like(key, dtype=torch.int64).scatter_(
        1, key.argsort(dim=1, stable=True), torch.arange(key.shape[1], device=key.device).expand_as(key)
    )


def _lowest(key: Tensor, share: Tensor | float) -> Tensor:
    return _ranks(key) < _number(share, key.shape[0], key.shape[1], key.device)[:, None]
