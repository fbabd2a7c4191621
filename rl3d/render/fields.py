"""Rendering fields: rays meet the box, march through occupied cells, ask the field, and are composited.

Volume rendering after Max 1995 and Mildenhall et al. 2020 (NeRF); skipping empty cells and stopping early after Müller
et al. 2022 (instant-ngp). Where the samples lie is a constant to the gradient; their colours, densities and normals
are differentiable to the field's parameters.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render.compositing import TRANSMITTANCE_MIN, composite
from rl3d.render.frames import Frames
from rl3d.render.occupancy import OccupancyGrid, update_occupancy
from rl3d.scenes.field import Field, check_field, density, gradient, potential

SAMPLES = 128  # across the box's diagonal
_RAYS = 1 << 16  # marched at once
_ROUND = 24  # samples a ray takes before asking whether it goes on; then twice as many, and so on


class Samples(NamedTuple):
    """Packed samples of R rays: distances [S] from the eye, offsets [R + 1], and each ray's sample length [R]."""

    distances: Tensor
    offsets: Tensor
    steps: Tensor


def intersect_box(origins: Tensor, directions: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays [R, 3] enter and leave a box [2, 3]: distances [R], not before 0; equal where they miss it."""
    tiny = torch.finfo(directions.dtype).tiny ** 0.5
    safe = torch.where(directions.abs() < tiny, torch.where(directions < 0, -tiny, tiny), directions)
    a, b = (box[0] - origins) / safe, (box[1] - origins) / safe
    near = torch.minimum(a, b).amax(-1).clamp_min(0)
    far = torch.maximum(a, b).amin(-1)
    return near, torch.maximum(near, far)


@torch.no_grad()
def march(
    origins: Tensor,
    directions: Tensor,
    occupancy: OccupancyGrid,
    samples: int = SAMPLES,
    generator: torch.Generator | None = None,
    backend: str | None = None,
) -> Samples:
    """Equal bins between a ray's two ends in the box, one sample in each, those in empty cells left out.

    Args:
        origins, directions: [R, 3], directions of unit length.
        samples: bins across the box's diagonal.
        generator: places the samples at one random position in the bins of each ray; None: in their middles.
        backend: as in `rl3d.render.compositing.composite`.
    """
    origins, directions = origins.detach(), directions.detach()
    near, far = intersect_box(origins, directions, occupancy.box)
    diagonal = float(torch.linalg.vector_norm(occupancy.box[1] - occupancy.box[0]))
    bins = torch.ceil((far - near) * (samples / diagonal) - 1e-4).long()
    shift = torch.full_like(near, 0.5)
    if generator is not None:
        shift = torch.rand(len(near), generator=generator, dtype=near.dtype).to(near.device)
    steps = (far - near) / bins.clamp_min(1)
    fits = origins.device.type == "cpu" and origins.dtype == torch.float32
    if fits and backend != "torch":
        from rl3d.render.compositing_cpu import march_cpu  # brings compiled kernels

        rays = [t.contiguous().numpy() for t in (origins, directions, near, far - near, bins, shift)]
        box = occupancy.box.double().numpy()
        distances, offsets = map(torch.from_numpy, march_cpu(*rays, box[0], box[1], occupancy.occupied.numpy()))
        return Samples(distances, offsets, steps)
    return Samples(*march_torch(origins, directions, near, bins, shift, steps, occupancy), steps)


def march_torch(
    origins: Tensor, directions: Tensor, near: Tensor, bins: Tensor, shift: Tensor, steps: Tensor, grid: OccupancyGrid
) -> tuple[Tensor, Tensor]:
    """The twin of the compiled march: distances [S] and offsets [R + 1]."""
    k = torch.arange(int(bins.max()) if len(bins) else 0, device=near.device)
    sizes = torch.tensor(grid.occupied.shape, device=near.device).flip(0)  # x, y, z
    found, counts = [near.new_zeros(0)], [bins.new_zeros(1)]
    for rays in torch.arange(len(near), device=near.device).split(4096):
        distances = near[rays, None] + (k + shift[rays, None]) * steps[rays, None]
        points = origins[rays, None] + distances[..., None] * directions[rays, None]
        cell = ((points - grid.box[0]) / (grid.box[1] - grid.box[0]) * sizes).long()
        x, y, z = cell.clamp_min(0).minimum(sizes - 1).unbind(-1)
        kept = grid.occupied[z, y, x] & (k < bins[rays, None])
        found.append(distances[kept])
        counts.append(kept.sum(1))
    return torch.cat(found), torch.cat(counts).cumsum(0)


def render_field(
    field: Field,
    cameras: Cameras,
    background: float | Tensor = 0.0,
    normals: bool = False,
    backend: str | None = None,
    *,
    occupancy: OccupancyGrid | None = None,
    samples: int = SAMPLES,
    generator: torch.Generator | None = None,
    chunk: int = 1 << 19,
) -> Frames:
    """Render a field with V cameras.

    Args:
        background: sRGB, a number or a tensor that broadcasts to [V, 3].
        normals: also blend the directions in which the density falls, or the distance grows.
        backend: "cpu" (compiled kernels; float32 on the CPU), "torch" (plain, any device and dtype), None: "cpu"
            where it can.
        occupancy: which cells to visit; None: all of them, or, where a picture asks for more samples than four looks
            at every cell of a fresh grid of 64^3, those that such a grid calls occupied.
        samples: across the box's diagonal; a ray's step is at most the diagonal / `samples`.
        generator: jitters the samples (see `march`) for training; None: a deterministic picture.
        chunk: samples that are asked at once. Pictures with more are rendered piece by piece; with gradients on, each
            piece is computed again in the backward pass, so that memory stays bounded (Chen et al. 2016).

    Returns:
        Frames; rgb, alpha, depth and normal are differentiable to the field's parameters, and rgb and alpha to the
        cameras as far as the samples move with their rays (where rays enter and leave the box is a constant).

    Raises:
        InputError: a field or camera that is not finite, other devices, no cameras, samples or chunk below 1, an
            unusable backend.
    """
    check_field(field)
    if cameras.device != field.device:
        raise InputError(f"the cameras are on {cameras.device}, the field is on {field.device}; move one of them")
    if len(cameras) == 0 or samples < 1 or chunk < 1:
        raise InputError(
            f"render_field needs cameras, samples >= 1 and chunk >= 1, got {len(cameras)}, {samples}, {chunk}"
        )
    if not bool(torch.isfinite(cameras.view.detach()).all() & torch.isfinite(cameras.intrinsics.detach()).all()):
        raise InputError("a camera's view or intrinsics hold NaN or infinity")
    cameras = cameras.to(dtype=field.dtype)
    origins, directions = (t.reshape(-1, 3) for t in cameras.rays())  # [R, 3]
    forward = cameras.view[:, 2, :3].repeat_interleave(cameras.height * cameras.width, 0)
    slant = (directions * forward).sum(-1)  # camera-space z / distance
    if occupancy is None:
        occupancy = OccupancyGrid.full(field)
        if samples * len(origins) > 4 * occupancy.occupied.numel():
            occupancy = update_occupancy(occupancy, field)
    width = 7 if normals else 4
    blocks = []
    for o, d, s in zip(origins.split(_RAYS), directions.split(_RAYS), slant.split(_RAYS)):
        marched = march(o, d, occupancy, samples, generator, backend)
        pieces = _pieces(marched.offsets, chunk)
        again = len(pieces) > 1 and torch.is_grad_enabled() and not normals
        for first, last in pieces:
            part = Samples(
                marched.distances[marched.offsets[first] : marched.offsets[last]],
                marched.offsets[first : last + 1] - marched.offsets[first],
                marched.steps[first:last],
            )
            arguments = (field, o[first:last], d[first:last], s[first:last], part, normals, backend)
            blocks.append(checkpoint(_shade, *arguments, use_reentrant=False) if again else _shade(*arguments))
    image = torch.cat(blocks)  # [R, width + 1]: rgb, z, normal, coverage
    image = image.reshape(len(cameras), cameras.height, cameras.width, width + 1).permute(0, 3, 1, 2)
    rgb, depth, alpha = image[:, :3], image[:, 3:4], image[:, -1:]
    covered = alpha > 0
    depth = torch.where(covered, depth / torch.where(covered, alpha, 1), 0)
    normal = None
    if normals:
        normal = normalize(image[:, 4:7], dim=1, eps=1e-20)
        rays = directions.reshape(len(cameras), cameras.height, cameras.width, 3).permute(0, 3, 1, 2)
        normal = torch.where((normal.detach() * rays).sum(1, keepdim=True) > 0, -normal, normal)
    behind = torch.as_tensor(background, dtype=field.dtype, device=field.device).expand(len(cameras), 3)
    return Frames(rgb + (1 - alpha) * behind[:, :, None, None], alpha.contiguous(), depth, normal)


def _pieces(offsets: Tensor, chunk: int) -> list[tuple[int, int]]:
    """Ranges of rays with at most `chunk` samples each (a ray is never split)."""
    bounds, rays = [0], len(offsets) - 1
    while bounds[-1] < rays:
        limit = offsets[bounds[-1]] + chunk
        last = int(torch.searchsorted(offsets, limit, right=True)) - 1
        bounds.append(min(max(last, bounds[-1] + 1), rays))
    return list(pairwise(bounds))


def _shade(
    field: Field,
    origins: Tensor,
    directions: Tensor,
    slant: Tensor,
    marched: Samples,
    normals: bool,
    backend: str | None,
) -> Tensor:
    """[R, D + 1] composited (colour, z, normal) and coverage of R rays.

    Rays go in rounds of a few samples; one that is opaque takes no further part.
    """
    offsets = marched.offsets
    counts, starts = offsets.diff(), offsets[:-1]
    alive, done, size = (counts > 0).nonzero()[:, 0], 0, _ROUND
    passed = torch.zeros_like(slant)  # optical thickness so far
    indices, thicknesses, features = [offsets[:0]], [slant[:0]], [slant.new_zeros(0, 7 if normals else 4)]
    while len(alive):
        take = (counts[alive] - done).clamp(max=size)
        ray = alive.repeat_interleave(take)
        within = torch.arange(len(ray), device=ray.device) - (take.cumsum(0) - take).repeat_interleave(take)
        index = starts[ray] + done + within
        distance = marched.distances[index]
        towards = directions.index_select(0, ray)
        points = origins.index_select(0, ray) + distance[:, None] * towards
        value, colour = potential(field, points, towards, backend)
        thickness = density(field, points, value) * marched.steps[ray]
        parts = [colour, (distance * slant[ray])[:, None]]
        if normals:
            slope = gradient(field, points, backend)
            parts.append(normalize(slope if field.kind == "sdf" else -slope, dim=1, eps=1e-20))
        indices.append(index)
        thicknesses.append(thickness)
        features.append(torch.cat(parts, 1))
        passed.index_add_(0, ray, thickness.detach())
        done, size = done + size, 2 * size
        alive = alive[(counts[alive] > done) & (passed[alive] <= -math.log(TRANSMITTANCE_MIN))]
    index = torch.cat(indices)
    slot = torch.full_like(marched.distances, -1, dtype=torch.long)  # where the rounds put each sample; -1: nowhere
    slot[index] = torch.arange(len(index), device=index.device)
    asked = slot >= 0
    order = slot[asked]
    thickness, feature = torch.cat(thicknesses).index_select(0, order), torch.cat(features).index_select(0, order)
    taken = torch.cat([offsets[:1], asked.cumsum(0)])[offsets]
    blended, coverage = composite(thickness, feature, taken, backend)
    return torch.cat([blended, coverage[:, None]], 1)
