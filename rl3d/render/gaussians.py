"""The renderer of 3D Gaussians: one function of tensors, `splat`, and `render_gaussians` for a scene.

Backends: "cpu" (compiled kernels, float32), "torch" (plain torch, any device and dtype, differentiable cameras) and
"gsplat" (CUDA, only when asked for by name).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from numba import get_num_threads
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl3d.backends import GAUSSIANS, check_backend
from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render import gaussians_cpu, gaussians_cpu_projection
from rl3d.render.frames import Frames
from rl3d.render.gaussians_torch import Projection, project, splat_torch
from rl3d.scenes import spherical_harmonics
from rl3d.scenes.gaussians import Gaussians, rotations

__all__ = ["Projection", "project", "render_gaussians", "splat"]


class _SplatCPU(torch.autograd.Function):
    """The compiled kernels as one node of the autograd graph: over black, colours in groups of three channels."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        scales: Tensor,
        quaternions: Tensor,
        opacities: Tensor,
        colours: Tensor,
        view: Tensor,
        intrinsics: Tensor,
        height: int,
        width: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        arrays = tuple(t.detach().contiguous().numpy() for t in (means, scales, quaternions, opacities))
        cameras = tuple(t.detach().to(torch.float64).contiguous().numpy() for t in (view, intrinsics))
        plan = gaussians_cpu_projection.Plan(*gaussians_cpu_projection.plan(*arrays, *cameras, height, width))
        tint = colours.detach().contiguous().numpy()
        images = gaussians_cpu.forward(
            plan.projected,
            tint,
            plan.tile_offset,
            plan.tile_gaussian,
            height,
            width,
            get_num_threads(),
        )
        rgb, alpha, depth = (torch.from_numpy(image) for image in images)
        ctx.save_for_backward(means, scales, quaternions, opacities, colours, rgb, alpha, depth)
        ctx.cameras, ctx.plan, ctx.size = cameras, plan, (height, width)
        return rgb, alpha, depth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, rgb, alpha, depth = ctx.saved_tensors
        means, scales, quaternions, _, colours = (t.detach().contiguous().numpy() for t in inputs)
        plan: gaussians_cpu_projection.Plan = ctx.plan
        height, width = ctx.size
        entry_gradients, colour_gradients = gaussians_cpu.backward(
            plan.projected,
            colours,
            plan.tile_offset,
            plan.tile_gaussian,
            plan.tile_entry,
            *(t.numpy() for t in (rgb, alpha, depth)),
            *(t.contiguous().numpy() for t in cotangents),
            get_num_threads(),
        )
        gradients = gaussians_cpu_projection.gather(
            means,
            scales,
            quaternions,
            *ctx.cameras,
            height,
            width,
            plan.projected,
            plan.entry_offset,
            entry_gradients,
            colour_gradients,
            colours.shape[0] == 1,
        )
        return (*(torch.from_numpy(g) for g in gradients), None, None, None, None)


def _splat_cpu(
    means: Tensor,
    scales: Tensor,
    quaternions: Tensor,
    opacities: Tensor,
    colours: Tensor,
    view: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`splat` over black on the compiled gaussians_cpu."""
    if view.requires_grad or intrinsics.requires_grad:
        raise InputError('the "cpu" kernels have no gradient to the cameras; detach them or pass backend="torch"')
    channels = colours.shape[-1]
    colours = colours if colours.ndim == 3 else colours[None]  # [1 or V, N, D]
    if channels % 3:
        colours = torch.nn.functional.pad(colours, (0, -channels % 3))
    rgb, alpha, depth = _SplatCPU.apply(means, scales, quaternions, opacities, colours, view, intrinsics, height, width)
    return rgb[:, :channels], alpha[:, None], depth[:, None]


def _check(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Shapes, devices, dtypes and finite values; the error names the tensor."""
    means = tensors["means"]
    for name, t in tensors.items():
        if tuple(t.shape) != shapes[name]:
            raise InputError(f"splat: {name} must be {list(shapes[name])}, got {list(t.shape)}")
        if t.dtype != means.dtype or t.device != means.device or not t.is_floating_point():
            raise InputError(
                f"splat: {name} is {t.dtype} on {t.device}, means is {means.dtype} on {means.device}; "
                "all must be of one float type on one device"
            )
        if t.numel():
            low, high = (float(x) for x in torch.aminmax(t.detach()))
            if not (math.isfinite(low) and math.isfinite(high)):
                raise InputError(f"splat: {name} holds NaN or infinity; a diverged optimisation, or a broken file?")
            if name == "opacities" and not (low >= 0 and high <= 1):
                raise InputError(
                    f"splat: opacities must lie in [0, 1], got {low:g} to {high:g}; apply the sigmoid first"
                )
    if means.shape[0] and not bool(tensors["quaternions"].detach().abs().amax(-1).min() > 0):
        raise InputError("splat: a quaternion is all zeros, it must have a length > 0; (1, 0, 0, 0) is no rotation")


def splat(
    means: Tensor,
    scales: Tensor,
    quaternions: Tensor,
    opacities: Tensor,
    colours: Tensor,
    view: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    background: float | Tensor = 0.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render N Gaussians from V cameras; `gaussians_torch` says exactly what is computed.

    Args:
        means: [N, 3] world, metres.
        scales: [N, 3] standard deviations along the local axes, metres, >= 0.
        quaternions: [N, 4] (w, x, y, z), of any length > 0.
        opacities: [N] in [0, 1].
        colours: [N, D] or, for colours that depend on the view, [V, N, D]; D = 3 for sRGB, any D >= 1 otherwise.
        view: [V, 4, 4] OpenCV world-to-camera. intrinsics: [V, 3, 3] pixels, no skew.
        height, width: pixels.
        background: a number, or a tensor that broadcasts to [V, D]: what shows where alpha < 1.
        backend: "cpu", "torch" or "gsplat"; None: "cpu" for float32 tensors on the CPU, "torch" for all others.

    Returns:
        rgb [V, D, H, W] over the background, alpha [V, 1, H, W] in [0, 1], and depth [V, 1, H, W]: the expected
        camera-space z divided by alpha, metres, 0 where alpha is 0. All three are differentiable to the first five
        arguments and the background; with backend "torch" to the cameras too. Results and gradients of "cpu" do not
        depend on the number of threads.

    Raises:
        InputError: wrong shapes, mixed devices or types, NaN or infinity, opacities outside [0, 1], an unknown or
            unusable backend.
    """
    n, views = means.shape[0], view.shape[0]
    channels = colours.shape[-1]
    shapes: dict[str, tuple[int, ...]] = {
        "means": (n, 3),
        "scales": (n, 3),
        "quaternions": (n, 4),
        "opacities": (n,),
        "colours": (views, n, channels) if colours.ndim == 3 else (n, channels),
        "view": (views, 4, 4),
        "intrinsics": (views, 3, 3),
    }
    scene = (means, scales, quaternions, opacities, colours)
    _check(dict(zip(shapes, (*scene, view, intrinsics))), shapes)
    if views == 0:
        raise InputError("splat: there is no camera, view is [0, 4, 4]")
    if height < 1 or width < 1:
        raise InputError(f"splat: the image must have at least 1 x 1 pixel, got {height} x {width}")
    if backend is None:
        backend = "cpu" if means.device.type == "cpu" and means.dtype == torch.float32 else "torch"
    if backend == "cpu":
        if means.device.type != "cpu" or means.dtype != torch.float32:
            raise InputError(f'backend "cpu" takes float32 tensors on the CPU, got {means.dtype} on {means.device}')
        rgb, alpha, depth = _splat_cpu(*scene, view, intrinsics, height, width)
    elif backend == "torch":
        rgb, alpha, depth = splat_torch(*scene, view, intrinsics, height, width)
    else:  # an optional package, only when asked for by name
        check_backend(backend, GAUSSIANS, means.device.type, str(means.dtype).removeprefix("torch."))
        from rl3d.render.gaussians_gsplat import splat_gsplat

        rgb, alpha, depth = splat_gsplat(*scene, view, intrinsics, height, width)
    if isinstance(background, Tensor):
        behind = background.to(rgb).expand(views, channels)[:, :, None, None]
        return rgb + (1 - alpha) * behind, alpha, depth
    return (rgb + (1 - alpha) * background if background else rgb), alpha, depth


def render_gaussians(
    gaussians: Gaussians,
    cameras: Cameras,
    background: float | Tensor = 0.0,
    normals: bool = False,
    backend: str | None = None,
) -> Frames:
    """Render splats with their spherical-harmonic colours (sRGB, clamped at 0 from below as in Kerbl et al. 2023).

    Args:
        background: sRGB, a number or a tensor that broadcasts to [V, 3].
        normals: also blend every Gaussian's shortest axis, turned to the camera, into `Frames.normal`.
        backend: as in `splat`.

    Returns:
        Frames, differentiable to the Gaussians (normals: to their rotations and to what blends them).
    """
    means = gaussians.means
    if gaussians.sh.shape[1] == 1:
        colours = gaussians.colours  # [N, 3]
    else:
        directions = torch.nn.functional.normalize(means - cameras.centres[:, None], dim=-1)  # [V, N, 3]
        colours = 0.5 + spherical_harmonics.evaluate(gaussians.sh, directions)
    colours = colours.clamp_min(0)
    if normals:
        colours = torch.cat([colours.expand(len(cameras), -1, -1), facing_axes(gaussians, cameras)], -1)
        like = torch.as_tensor(background, dtype=means.dtype, device=means.device)
        behind = like.expand(len(cameras), 3)
        background = torch.cat([behind, torch.zeros_like(behind)], -1)
    image, alpha, depth = splat(
        means,
        gaussians.log_scales.exp(),
        gaussians.quaternions,
        gaussians.opacity_logits.sigmoid(),
        colours,
        cameras.view,
        cameras.intrinsics,
        cameras.height,
        cameras.width,
        background,
        backend,
    )
    if not normals:
        return Frames(image, alpha, depth)
    return Frames(image[:, :3], alpha, depth, torch.nn.functional.normalize(image[:, 3:], dim=1))


def facing_axes(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """[V, N, 3] the unit axis of every Gaussian's smallest scale, on the side that looks at each camera's centre."""
    shortest = gaussians.log_scales.argmin(-1)  # [N]
    axes = rotations(gaussians.quaternions)  # [N, 3, 3], columns
    axis = axes.gather(2, shortest[:, None, None].expand(-1, 3, 1))[:, :, 0]  # [N, 3]
    towards = ((cameras.centres[:, None] - gaussians.means) * axis).sum(-1, keepdim=True)  # [V, N, 1]
    return torch.where(towards.detach() < 0, -axis, axis)
