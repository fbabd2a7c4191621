"""Gaussian splatting in plain torch: the readable reference of the compiled kernels, on any device and dtype.

Semantics: 3D Gaussian Splatting (Kerbl et al. 2023, arXiv 2308.04079) with the EWA projection of Zwicker et al. 2001,
as gsplat's "classic" mode does it: Gaussians are projected to 2D, dilated by a low-pass filter, sorted by the depth of
their centres, and composited front to back at every pixel centre. Differentiable to every float argument, cameras
included; the sort, the culling and the cut-offs are held fixed, as in every splatting renderer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.scenes.gaussians import rotations

NEAR = 0.01  # a Gaussian whose centre is nearer than this camera-space z is not drawn, metres
LOW_PASS = 0.3  # added to the diagonal of the 2D covariance, square pixels
FRUSTUM_MARGIN = 0.3  # the Jacobian is evaluated at most this share of tan(fov / 2) outside the image
ALPHA_MAX = 0.99  # one Gaussian never hides more (Kerbl et al.; gsplat has 0.999)
ALPHA_MIN = 1.0 / 255.0  # a smaller contribution is skipped
TRANSMITTANCE_MIN = 1e-4  # a pixel is closed before the Gaussian that would take it below this


@dataclass(frozen=True)
class Projection:
    """N Gaussians as V cameras see them.

    Attributes:
        centres: [V, N, 2] pixels, (x, y).
        conics: [V, N, 3] the inverse 2D covariance (xx, xy, yy), 1 / square pixels, low-pass included.
        depths: [V, N] camera-space z of the centres.
        visible: [V, N] bool, in front of the near plane; the other values of an invisible Gaussian mean nothing.
    """

    centres: Tensor
    conics: Tensor
    depths: Tensor
    visible: Tensor


def project(
    means: Tensor, scales: Tensor, quaternions: Tensor, view: Tensor, intrinsics: Tensor, height: int, width: int
) -> Projection:
    """The EWA projection: a 3D Gaussian to a 2D one through the camera's Jacobian at its centre (Zwicker 2001, eq. 31).

    Args:
        means: [N, 3] world, metres. scales: [N, 3] standard deviations, metres. quaternions: [N, 4] (w, x, y, z).
        view: [V, 4, 4] OpenCV world-to-camera. intrinsics: [V, 3, 3] pixels, no skew.
        height, width: image size in pixels; they bound where the Jacobian is evaluated.

    Returns:
        The projection, differentiable to every tensor argument.
    """
    rotation = view[:, :3, :3]
    camera = torch.einsum("vij,nj->vni", rotation, means) + view[:, None, :3, 3]  # [V, N, 3]
    visible = camera[..., 2] >= NEAR
    x, y, z = camera.unbind(-1)
    z = torch.where(visible, z, torch.ones_like(z))
    fx, fy = intrinsics[:, None, 0, 0], intrinsics[:, None, 1, 1]  # [V, 1]
    cx, cy = intrinsics[:, None, 0, 2], intrinsics[:, None, 1, 2]
    centres = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)

    # Far outside the image the linearisation explodes: evaluate it at the border of an enlarged frustum instead.
    margin_x, margin_y = FRUSTUM_MARGIN * 0.5 * width / fx, FRUSTUM_MARGIN * 0.5 * height / fy
    u = (x / z).clamp(-cx / fx - margin_x, (width - cx) / fx + margin_x)
    v = (y / z).clamp(-cy / fy - margin_y, (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [torch.stack([fx / z, zero, -fx * u / z], -1), torch.stack([zero, fy / z, -fy * v / z], -1)], -2
    )  # [V, N, 2, 3] pixels per metre
    axes = rotations(quaternions) * scales[:, None, :]  # [N, 3, 3], columns: the scaled axes in the world
    spread = jacobian @ rotation[:, None] @ axes  # [V, N, 2, 3]
    covariance = spread @ spread.transpose(-1, -2)
    xx, xy, yy = covariance[..., 0, 0] + LOW_PASS, covariance[..., 0, 1], covariance[..., 1, 1] + LOW_PASS
    determinant = xx * yy - xy * xy
    # Only rounding can make it fall short of LOW_PASS**2: a needle of many pixels in float32.
    visible = visible & (determinant > 0)
    determinant = torch.where(visible, determinant, torch.ones_like(determinant))
    conics = torch.stack([yy, -xy, xx], -1) / determinant[..., None]
    return Projection(centres, conics, camera[..., 2], visible)


def composite(
    centres: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, pixels: Tensor
) -> tuple[Tensor, Tensor]:
    """Blend depth-sorted 2D Gaussians front to back at given points (Kerbl et al. 2023, eq. 3).

    Args:
        centres: [n, 2], conics: [n, 3], opacities: [n], features: [n, D], nearest first.
        pixels: [P, 2] points (x, y).

    Returns:
        premultiplied features [D, P] and coverage [P]; differentiable to every float argument.
    """
    dx, dy = (pixels - centres[:, None]).unbind(-1)  # [n, P]
    a, b, c = conics[:, :, None].unbind(1)  # [n, 1]
    power = -0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy
    alpha = (opacities[:, None] * power.exp()).clamp(max=ALPHA_MAX)
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, torch.zeros_like(alpha))
    log_after = torch.log1p(-alpha).cumsum(0)  # logarithms: a product of many small factors would underflow
    log_before = torch.cat([torch.zeros_like(log_after[:1]), log_after[:-1]])
    weights = torch.where(log_after.exp() >= TRANSMITTANCE_MIN, log_before.exp() * alpha, torch.zeros_like(alpha))
    return features.T @ weights, weights.sum(0)


def splat_torch(
    means: Tensor,
    scales: Tensor,
    quaternions: Tensor,
    opacities: Tensor,
    colours: Tensor,
    view: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    tile: int = 32,
) -> tuple[Tensor, Tensor, Tensor]:
    """`rl3d.render.gaussians.splat` over black; the image is composited in square tiles of `tile` pixels.

    Returns:
        rgb [V, D, H, W] premultiplied, alpha [V, 1, H, W], depth [V, 1, H, W].
    """
    p = project(means, scales, quaternions, view, intrinsics, height, width)
    colours = colours.expand(view.shape[0], *colours.shape[-2:])  # [V, N, D]
    features = torch.cat([colours, p.depths[..., None]], -1)
    xs = torch.arange(width, dtype=means.dtype, device=means.device) + 0.5
    ys = torch.arange(height, dtype=means.dtype, device=means.device) + 0.5
    with torch.no_grad():  # the box around the contour where a Gaussian falls below ALPHA_MIN
        reach = 2 * (opacities / ALPHA_MIN).clamp_min(1e-12).log()  # [N] squared Mahalanobis distance, < 0: nowhere
        determinant = p.conics[..., 0] * p.conics[..., 2] - p.conics[..., 1] ** 2
        variances = p.conics[..., [2, 0]] / determinant[..., None]
        half = (reach.clamp_min(0)[:, None] * variances).sqrt() + 1e-3  # [V, N, 2] pixels
        low, high = p.centres - half, p.centres + half
        drawn = p.visible & (reach >= 0)
    views = []
    for v in range(view.shape[0]):
        bands = []
        for top in range(0, height, tile):
            blocks = []
            for left in range(0, width, tile):
                bottom, right = min(top + tile, height), min(left + tile, width)
                with torch.no_grad():
                    hit = drawn[v] & (low[v, :, 0] < right) & (high[v, :, 0] > left)
                    index = (hit & (low[v, :, 1] < bottom) & (high[v, :, 1] > top)).nonzero()[:, 0]
                    index = index[p.depths[v, index].argsort(stable=True)]
                y, x = torch.meshgrid(ys[top:bottom], xs[left:right], indexing="ij")
                pixels = torch.stack([x.reshape(-1), y.reshape(-1)], -1)
                image, alpha = composite(
                    p.centres[v, index], p.conics[v, index], opacities[index], features[v, index], pixels
                )
                blocks.append(torch.cat([image, alpha[None]]).reshape(-1, bottom - top, right - left))
            bands.append(torch.cat(blocks, 2))
        views.append(torch.cat(bands, 1))
    frames = torch.stack(views)  # [V, D + 2, H, W]
    rgb, depth, alpha = frames[:, :-2], frames[:, -2:-1], frames[:, -1:]
    covered = alpha > 0
    depth = torch.where(covered, depth / torch.where(covered, alpha, torch.ones_like(alpha)), torch.zeros_like(depth))
    return rgb, alpha, depth
