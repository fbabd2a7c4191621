"""What fixed cameras see of a scene: measures without weights, for `rl3d.text_to_3d.watch`. No gradients, no chance."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.ndimage import label
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from rl3d.cameras import Cameras
from rl3d.data.colours import srgb_to_oklab
from rl3d.priors.protocol import Prior
from rl3d.render.frames import Frames
from rl3d.render.occupancy import OccupancyGrid, update_occupancy
from rl3d.scenes.field import Field
from rl3d.scenes.gaussians import Gaussians

VIEWS = 4  # a group; what the embedded judges were trained on
GROUPS = ((0.0, 0.2), (math.pi / 4, 0.45))  # azimuth and elevation of each group's first view, radians
OPPOSITE = ((0, 2), (1, 3), (4, 6), (5, 7))  # pairs of the ring's views
CELL = 0.05  # metres; parts with an empty cell between them are separate


def ring(prior: Prior, views: int = VIEWS) -> Cameras:
    """Two groups of `views` cameras around the object, half a step apart and at two heights; always the same."""
    turn = 2 * math.pi / views
    groups = [(azimuth * VIEWS / views + turn * i, height) for azimuth, height in GROUPS for i in range(views)]
    return Cameras.cat([prior.cameras(azimuth, height)[:1] for azimuth, height in groups]).to(dtype=torch.float32)


def mean_colour(frames: Frames) -> tuple[float, float, float]:
    """OKLab of what is seen, weighted by alpha."""
    alpha = frames.alpha[:, 0].cpu().double().numpy()
    straight = (frames.rgb / frames.alpha.clamp_min(1e-3)).clamp(0, 1).permute(0, 2, 3, 1).cpu().double().numpy()
    lightness, a, b = (srgb_to_oklab(straight) * alpha[..., None]).sum((0, 1, 2)) / max(alpha.sum(), 1e-6)
    return float(lightness), float(a), float(b)


def border_share(alpha: Tensor) -> float:
    """Share of the coverage [V, 1, H, W] on the two outermost pixels of the pictures."""
    inner = alpha[..., 2:-2, 2:-2].sum()
    return float((1 - inner / alpha.sum().clamp_min(1e-6)).clamp_min(0))


def face_distances(frames: Frames) -> tuple[float, float, float, float]:
    """How unlike the ring's opposite views are: |f - b|^2 / (|f|^2 + |b|^2) of 16 x 16 colours and alphas, in [0, 2].

    b plain or mirrored, whichever is closer. It compares pixels: a face that is shown twice at another place is missed.
    """
    small = adaptive_avg_pool2d(torch.cat([frames.rgb, frames.alpha], 1), 16)

    def distance(front: Tensor, back: Tensor) -> float:
        return float(((front - back) ** 2).sum() / ((front**2).sum() + (back**2).sum()).clamp_min(1e-9))

    found = [min(distance(small[i], small[j]), distance(small[i], small[j].flip(-1))) for i, j in OPPOSITE]
    return found[0], found[1], found[2], found[3]


def floating_share(scene: Gaussians | Field) -> float:
    """Share of the mass that is not connected with the largest part, in [0, 1]; 0 for an empty scene.

    As `rl3d.rewards.geometry.connectedness` asks of a mesh, of cells of `CELL` metres: parts are separate that have an
    empty cell between them. The mass of a splat is its opacity times its area, that of a field its density.
    """
    if isinstance(scene, Gaussians):
        points = scene.means.detach()
        area = scene.log_scales.detach().exp().sort(1).values[:, 1:].prod(1)
        mass = scene.opacities.detach() * area
        keep = scene.opacities.detach() > 0.1
        points, mass = points[keep], mass[keep]
    else:
        density = update_occupancy(OccupancyGrid.full(scene), scene).density
        cell = (scene.box[1] - scene.box[0]) / torch.tensor(density.shape, device=density.device).flip(0)
        solid = density * cell.mean() > 0.1  # hides a tenth of what is behind it
        points, mass = scene.box[0] + solid.nonzero().flip(1) * cell, density[solid].clamp(max=1 / float(cell.mean()))
    if len(points) == 0:
        return 0.0
    where = torch.floor(points.cpu().double() / CELL).long()
    where = where - where.min(0).values
    reach = where.max(0).values.clamp(max=200)  # a splat that has flown away must not ask for gigabytes
    grid = np.zeros([int(n) + 1 for n in reach])
    np.add.at(grid, tuple(torch.minimum(where, reach).numpy().T), mass.cpu().double().numpy())
    parts, count = label(grid > 0, np.ones((3, 3, 3)))
    weights = np.bincount(parts.ravel(), grid.ravel(), count + 1)[1:]
    return float(1 - weights.max() / weights.sum()) if weights.sum() > 0 else 0.0
