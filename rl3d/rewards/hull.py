"""Agreement of silhouettes with known cameras: what of each view's mask does the visual hull of all views explain?

The visual hull (Laurentini 1994) is what lies inside every view's silhouette. Consistent views carve nothing out of
each other, so the hull's projections cover the masks; inconsistent ones do. It sees outlines alone: colours, inner
edges and concavities do not exist for it, a ball is perfect, and so is any shape painted in any way. Four views around
the object leave a loose hull, which notices little beyond height, place and scale; more views, and views from above,
say more.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.rewards.gates import GateOptions, all_open, gates
from rl3d.rewards.geometry import GeometricReward
from rl3d.rewards.protocol import RewardInput

GRID = 48  # voxels a side of the cube that holds an asset
FAINT = 0.05  # voxels below this are outside, whatever the gradient would like


def cameras_by_view(cameras: Cameras, batch: int, views: int) -> list[Cameras]:
    """One entry for cameras [V] that all assets share, else B of them.

    Raises:
        InputError: neither V nor B * V cameras.
    """
    if len(cameras) == views:
        return [cameras]
    if len(cameras) != batch * views:
        raise InputError(f"{batch} assets of {views} views need {views} or {batch * views} cameras, got {len(cameras)}")
    return [cameras[slice(i * views, (i + 1) * views)] for i in range(batch)]


def explained(alphas: Tensor, cameras: Cameras, grid: int = GRID) -> Tensor:
    """[B, V, 1, H, W] in [0, 1]: what of the silhouettes the visual hull of all views projects to.

    A voxel counts with the smallest of the alphas that it projects to; a pixel, with the highest of the voxels within a
    pixel of it, and never above its own alpha. Differentiable to alphas almost everywhere.

    Args:
        alphas: [B, V, 1, H, W] in [0, 1]. cameras: V shared by all, or B * V; the object in the canonical cube.
        grid: voxels a side.
    """
    from rl3d.reconstruct.lift import grid_points, keep_thin, project, sample_images  # brings compiled kernels

    batch, views, _, height, width = alphas.shape
    points = grid_points(grid, alphas.device).reshape(-1, 3).to(alphas.dtype)
    parts = []
    for i, own in enumerate(cameras_by_view(cameras, batch, views)):
        mine = alphas if len(own) == len(cameras) else alphas[i : i + 1]
        xy, _ = project(points, own.to(alphas.device, alphas.dtype))  # [V, P, 2]
        masks = keep_thin(mine[:, :, 0].transpose(0, 1))  # [V, B, H, W]
        inside = sample_images(masks, xy).amin(0).T  # [B, P]
        which, voxel = torch.nonzero(inside.detach() > FAINT, as_tuple=True)
        value = inside[which, voxel]
        pixel = ((xy[:, voxel] + 1) * xy.new_tensor([width, height]) / 2).floor().long()  # [V, K, 2]
        column, row = pixel[..., 0].clamp(0, width - 1), pixel[..., 1].clamp(0, height - 1)
        view = torch.arange(views, device=alphas.device)[:, None]
        where = ((which * views + view) * height + row) * width + column  # [V, K]
        flat = torch.zeros(len(mine) * views * height * width, dtype=alphas.dtype, device=alphas.device)
        flat = flat.scatter_reduce(0, where.flatten(), value.expand(views, -1).flatten(), "amax")
        parts.append(F.max_pool2d(flat.view(len(mine) * views, 1, height, width), 3, stride=1, padding=1))
    return torch.minimum(torch.cat(parts).view_as(alphas), alphas)


def shares_volume(alphas: Tensor, cameras: Cameras, grid: int = GRID) -> Tensor:
    """[B] bool: some point lies inside all silhouettes of [B, V, 1, H, W]."""
    return (explained(alphas, cameras, grid) > 0.5).flatten(1).any(1)


def hull_agreement(alphas: Tensor, cameras: Cameras, grid: int = GRID) -> Tensor:
    """[B] in [0, 1]: mean intersection over union of masks and of their own hull's projections; see `explained`.

    An empty view counts 0, and empties the hull of all the others. The hull lies inside the masks by construction, so
    the union is the mask. Differentiable to alphas.
    """
    covered = explained(alphas, cameras, grid).sum((2, 3, 4))
    return (covered / alphas.sum((2, 3, 4)).clamp_min(1e-6)).mean(1)


def _score(x: RewardInput, options: GateOptions) -> Tensor:
    assert x.cameras is not None  # in `needs`
    return hull_agreement(x.alphas, x.cameras) * all_open(gates(x, options))


# The worst score, 0, where a gate is closed. Differentiable to the alphas.
HULL = GeometricReward(partial(_score, options=GateOptions()), "hull", ("cameras",), True, (0.0, 1.0))
