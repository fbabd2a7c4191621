"""Lift a few views to 3D: visual hull, splats on its surface, a fit through the renderer.

All images here are RGBA [V, 4, H, W]: premultiplied sRGB + alpha in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.reconstruct.leaves import Rates
from rl3d.reconstruct.options import LiftOptions
from rl3d.reconstruct.splats import SplatState, smallest_scale

LINING = 0.25  # share of the splats that start one voxel under the surface
CROWD = 3  # splats a surface voxel at most: more of them hide each other, and what is hidden learns nothing
RADIUS = 0.62  # half the side of the cube that holds every asset, metres


class NoSharedVolume(InputError):
    """Views whose silhouettes meet nowhere: no solid casts them."""


def grid_points(resolution: int, device: torch.device, radius: float = RADIUS) -> Tensor:
    """Centres [G, G, G, 3] (x, y, z order) of a cube of voxels around the origin, metres."""
    axis = (torch.arange(resolution, device=device) + 0.5) / resolution * 2 * radius - radius
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)


def project(points: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """World points [P, 3] to normalised image coordinates [V, P, 2] in [-1, 1] (grid_sample) and depth [V, P]."""
    in_camera = points @ cameras.view[:, :3, :3].transpose(1, 2) + cameras.view[:, None, :3, 3]
    pixels = in_camera @ cameras.intrinsics.transpose(1, 2)
    xy = pixels[..., :2] / pixels[..., 2:].clamp_min(1e-6)
    size = xy.new_tensor([cameras.width, cameras.height])
    return 2 * xy / size - 1, in_camera[..., 2]


def sample_images(images: Tensor, xy: Tensor) -> Tensor:
    """Bilinear values [V, P, C] of images [V, C, H, W] at normalised coordinates [V, P, 2]; 0 outside."""
    return F.grid_sample(images, xy[:, None], align_corners=False)[:, :, 0].transpose(1, 2)


def thin_parts(alpha: Tensor) -> Tensor:
    """How much of silhouettes [V, 1, H, W] an opening by 3 x 3 pixels takes away: what is narrower than 3 pixels."""
    eroded = -F.max_pool2d(-F.pad(alpha, [1] * 4), 3, stride=1)
    return (alpha - F.max_pool2d(eroded, 3, stride=1, padding=1)).clamp_min(0)


def keep_thin(alpha: Tensor) -> Tensor:
    """Silhouettes [V, 1, H, W] whose thin parts are widened by a pixel and made solid.

    A blade that covers a third of a pixel is still there; without this, voxels of a pixel's size would miss it.
    """
    return torch.maximum(alpha, (2 * F.max_pool2d(thin_parts(alpha), 3, stride=1, padding=1)).clamp(max=1))


def visual_hull(alpha: Tensor, cameras: Cameras, resolution: int, tolerate: int = 0) -> Tensor:
    """How much each voxel lies inside all silhouettes (Laurentini 1994).

    Args:
        alpha: [V, 1, H, W] in [0, 1].
        tolerate: views that may disagree: the (tolerate + 1)-th smallest alpha counts.

    Returns:
        [G, G, G] in [0, 1]; above 0.5 is inside.
    """
    points = grid_points(resolution, alpha.device).reshape(-1, 3)
    xy, _ = project(points, cameras)
    values = sample_images(alpha, xy)[..., 0]  # [V, P]
    inside = values.sort(0).values[min(tolerate, len(values) - 1)]
    return inside.reshape(resolution, resolution, resolution)


def hull_silhouettes(hull: Tensor, cameras: Cameras, samples: int = 64) -> Tensor:
    """The silhouettes [V, 1, H, W] that a hull [G, G, G] casts: its maximum along each ray."""
    origins, directions = cameras.rays()
    middle = cameras.centres.norm(dim=1)[:, None, None, None, None]
    offsets = torch.linspace(-RADIUS * math.sqrt(3), RADIUS * math.sqrt(3), samples, device=hull.device)
    points = origins[..., None, :] + directions[..., None, :] * (middle + offsets[:, None])  # [V, H, W, S, 3]
    # grid_sample wants (z, y, x) volumes addressed as (x, y, z); ours is indexed [x, y, z], so the axes are reversed.
    where = (points / RADIUS).flip(-1).flatten(1, 3)[:, None, None]
    volume = hull[None, None].expand(len(cameras), -1, -1, -1, -1)
    values = F.grid_sample(volume, where, align_corners=False)[:, 0, 0, 0]
    return values.unflatten(1, (cameras.height, cameras.width, samples)).amax(-1)[:, None]


def silhouette_iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two stacks of silhouettes at alpha 0.5; 0 when both are empty."""
    a, b = a > 0.5, b > 0.5
    return float((a & b).sum() / (a | b).sum().clamp_min(1))


def agreement(alpha: Tensor, cameras: Cameras, resolution: int = 56) -> float:
    """How well the views' silhouettes agree in 3D: IoU of the alphas and of their own hull's silhouettes, in [0, 1]."""
    alpha = keep_thin(alpha)
    hull = visual_hull(alpha, cameras, resolution)
    return silhouette_iou(hull_silhouettes(hull, cameras), alpha)


def _draw(cells: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` rows of `cells` [N, 3], with replacement."""
    return cells[torch.randint(max(len(cells), 1), (count,), generator=generator).to(cells.device)]


def start_from_hull(
    images: Tensor, cameras: Cameras, options: LiftOptions, generator: torch.Generator, tolerate: int = 0
) -> dict[str, Tensor]:
    """Splats on the surface of the views' visual hull, coloured by the views that face them.

    Raises:
        NoSharedVolume: the views share no volume at all.
    """
    alpha = keep_thin(images[:, 3:].detach())  # where the hull is has no gradient
    hull = visual_hull(alpha, cameras, options.grid, tolerate)
    if not bool((hull > 0.5).any()):
        hull = visual_hull(alpha, cameras, options.grid, len(images) // 2)
    # Faint views of a prior in doubt still have a densest part.
    inside = hull > min(0.5, 0.6 * float(hull.max()))
    if float(hull.max()) < 0.1:
        raise NoSharedVolume(
            "the views share no volume, there is nothing to lift; where they were sampled, try another --seed or prompt"
        )
    padded = F.pad(inside.float()[None, None], [1] * 6)
    crowded = F.avg_pool3d(padded, 3, stride=1)[0, 0] > 0.999  # every neighbour inside too
    core = F.avg_pool3d(F.pad(padded, [1] * 6), 5, stride=1)[0, 0] > 0.999
    surface, lining = torch.nonzero(inside & ~crowded), torch.nonzero(crowded & ~core)
    # A lining under the surface closes gaps between splats, through which the far side would show.
    count = min(options.gaussians, max(CROWD * len(surface), 32))
    within = round(LINING * count) if len(lining) else 0
    cell = torch.cat([_draw(surface, count - within, generator), _draw(lining, within, generator)])
    voxel = 2 * RADIUS / options.grid
    jitter = torch.rand(len(cell), 3, generator=generator).to(cell.device) - 0.5
    means = (cell + 0.5 + jitter) * voxel - RADIUS
    # Outward normals from the blurred hull, to know which views see a voxel.
    blurred = F.avg_pool3d(padded, 5, stride=1, padding=2)[0, 0, 1:-1, 1:-1, 1:-1]
    gradient = torch.stack(torch.gradient(blurred), -1)
    normals = F.normalize(-gradient[cell[:, 0], cell[:, 1], cell[:, 2]], dim=-1, eps=1e-6)
    towards = F.normalize(cameras.centres[:, None] - means, dim=-1)
    facing = (normals * towards).sum(-1).clamp_min(0.02) ** 3  # [V, N]
    xy, _ = project(means, cameras)
    # Premultiplied colours, spread over the silhouettes' borders: a splat just outside takes the colour it borders on.
    soft = F.avg_pool2d(images, 5, stride=1, padding=2)
    seen = sample_images(images + 0.1 * soft, xy)  # [V, N, 4]
    weight = facing * seen[..., 3]
    colours = (facing[..., None] * seen[..., :3]).sum(0) / weight.sum(0)[:, None].clamp_min(1e-4)
    spread = math.sqrt(len(surface) / (count - within)) * voxel
    quaternions = torch.zeros(len(means), 4, device=means.device)
    quaternions[:, 0] = 1
    return {
        "means": means,
        "log_scales": torch.full_like(means, math.log(max(0.7 * spread, 1.5 * smallest_scale(cameras)))),
        "quaternions": quaternions,
        # What some view hardly sees starts faint: opaque splats that have to go would drag their neighbours along.
        "opacity_logits": torch.logit((0.88 * sample_images(images[:, 3:], xy)[..., 0].amin(0)).clamp(0.05, 0.88)),
        "colours": colours.clamp(0, 1),
    }


def start_from_ball(options: LiftOptions, generator: torch.Generator, device: torch.device | str) -> dict[str, Tensor]:
    """A fuzzy grey ball, for priors that have no views to lift."""
    n = options.gaussians
    direction = F.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    means = 0.4 * direction * torch.rand(n, 1, generator=generator) ** (1 / 3)
    quaternions = torch.zeros(n, 4)
    quaternions[:, 0] = 1
    tensors = {
        "means": means,
        "log_scales": torch.full((n, 3), math.log(0.6 * 0.4 * (4.2 / n) ** (1 / 3))),
        "quaternions": quaternions,
        "opacity_logits": torch.full((n,), -1.5),
        "colours": 0.5 + 0.1 * torch.randn(n, 3, generator=generator).clamp(-2, 2),
    }
    return {k: v.to(device) for k, v in tensors.items()}


def image_loss(frames_rgb: Tensor, frames_alpha: Tensor, images: Tensor, alpha_weight: float) -> Tensor:
    """Mean squared colour error plus `alpha_weight` times mean squared alpha error, [V, ...] to a scalar."""
    colour = ((frames_rgb - images[:, :3]) ** 2).mean()
    return colour + alpha_weight * ((frames_alpha - images[:, 3:]) ** 2).mean()


def haze(state: SplatState, thin: Tensor, cameras: Cameras, step: int) -> Tensor:
    """Mean alpha (1 - alpha) of the thin parts of one view, each step another, at twice the resolution; a scalar.

    What covers a third of a pixel can be faint and wide or solid and narrow; the pixels do not tell, a mesh needs the
    latter. Elsewhere it would only blur.

    Args:
        thin: [V, 1, H, W] where `thin_parts` found something, 0 or 1.
    """
    i = step % len(cameras)
    one = Cameras(cameras.view[i : i + 1], cameras.intrinsics[i : i + 1], cameras.height, cameras.width)
    alpha = state.render(one.resized((2 * cameras.height, 2 * cameras.width))).alpha
    return (alpha * (1 - alpha) * F.interpolate(thin[i : i + 1], scale_factor=2)).mean()


def fit(
    state: SplatState,
    images: Tensor,
    cameras: Cameras,
    options: LiftOptions,
    steps: int,
    report: Callable[[int, float], None] | None = None,
) -> SplatState:
    """Move the splats until they look like `images` [V, 4, H, W] from `cameras`."""
    floor = smallest_scale(cameras)
    thin = (F.max_pool2d(thin_parts(images[:, 3:]), 5, stride=1, padding=2) > 0.1).float()
    hazy = options.haze_weight > 0 and bool(thin.any())
    for step in range(steps):
        if options.layers_weight > 0:
            frames, layers = state.render_layers(cameras)
            loss = image_loss(frames.rgb, frames.alpha, images, options.alpha_weight)
            loss = loss + options.layers_weight * layers.mean()
        else:
            frames = state.render(cameras)
            loss = image_loss(frames.rgb, frames.alpha, images, options.alpha_weight)
        opacity = state.tensors["opacity_logits"].sigmoid()
        loss = loss + options.flatness_weight * (opacity * (1 - opacity)).mean()
        if hazy:
            loss = loss + options.haze_weight * haze(state, thin, cameras, step)
        state.descend(loss, 1.0 - 0.8 * step / max(steps, 1), floor)
        if report is not None:
            report(step + 1, float(loss.detach()))
    return state


def lift_rates(options: LiftOptions) -> Rates:
    return Rates(options.lr_means, options.lr_scales, options.lr_colours, options.lr_opacities)
