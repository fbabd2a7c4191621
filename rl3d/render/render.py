"""One renderer for every kind of scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render.frames import Frames
from rl3d.render.meshes import MeshOptions, render_group
from rl3d.render.shading import check_shading
from rl3d.scenes.field import Field
from rl3d.scenes.gaussians import Gaussians
from rl3d.scenes.mesh import Mesh


def render(
    scene: Mesh | Gaussians | Field,
    cameras: Cameras,
    *,
    background: float | Sequence[float] | Tensor = 0.0,
    shading: str = "unlit",
    supersample: int = 1,
    normals: bool = False,
    backend: str | None = None,
    antialias: bool = True,
    smooth: bool = False,
    cull_backfaces: bool = False,
    environment: Tensor | None = None,
    mipmaps: bool = False,
) -> Frames:
    """Render a scene with V cameras.

    Differentiable in all tensors of Gaussians and of a Field; in a mesh's colours and texture, and in its vertices
    through silhouettes, depth, normals, shading and interpolation. Linear in `background`.

    Args:
        scene: a Mesh, Gaussians or a Field, on the device of the cameras; its dtype is the result's.
        cameras: V cameras.
        background: sRGB grey level, or colour [3], behind the scene.
        shading: "unlit", "half_lambert" (the embedded prior's light) or "lambert", see rl3d.render.shading; flat and
            two-sided. Gaussians and fields carry their light in their colours and take "unlit" only.
        supersample: k renders k x k samples a pixel and box-filters them.
        normals: also return world-space normals.
        backend: "cpu" (compiled kernels; float32 on the CPU), "torch" (plain, any device and dtype), or an optional
            package by name, see `rl3d.backends`; None: "cpu" where it can, else "torch". Gradients to the cameras need
            "torch" or None.
        antialias: blend a mesh's samples across its silhouettes (`rl3d.render.antialias`): smooth outlines that have
            gradients. False: a sample's coverage is 0 or 1, and vertices have gradients inside faces only.
        smooth: a mesh is lit by interpolated vertex normals instead of flat faces, and `Frames.normal` holds those.
        cull_backfaces: leave out a mesh's faces that are seen from their clockwise side; else both sides are drawn.
        environment: [9, 3] light from around instead of `shading`, see rl3d.render.environment_light; differentiable.
        mipmaps: look a mesh's texture up in a mip pyramid by each sample's footprint; else bilinearly.

    Returns:
        Frames: rgb [V, 3, H, W] sRGB over the background, alpha, depth, normal. Colours are not clamped.

    Raises:
        InputError: a scene of another kind, a diverged field, vertices that are not finite, indices out of range,
            tensors on different devices, an unusable background, supersample or backend.
        ConfigError: unknown shading.
    """
    check_shading(shading)
    _check_supersample(supersample)
    if isinstance(scene, Mesh):
        colour = background_colour(background, scene.vertices)
        options = MeshOptions(
            shading, supersample, normals, smooth, backend, antialias, cull_backfaces, environment, mipmaps
        )
        return render_group([scene], cameras, colour, options)
    if isinstance(scene, Gaussians):
        if shading != "unlit" or environment is not None:
            given = "an environment" if environment is not None else repr(shading)
            raise InputError(f"Gaussians carry their light in their colours; shading must be 'unlit', got {given}")
        from rl3d.render.gaussians import render_gaussians  # brings compiled kernels

        colour = background_colour(background, scene.means)
        if supersample == 1:
            return render_gaussians(scene, cameras, colour, normals, backend)
        fine = cameras.resized((cameras.height * supersample, cameras.width * supersample))
        return _filter(render_gaussians(scene, fine, colour, normals, backend), supersample)
    if isinstance(scene, Field):
        if shading != "unlit":
            raise InputError(f"a Field carries its light in its colours; shading must be 'unlit', got {shading!r}")
        from rl3d.render.fields import render_field

        colour = background_colour(background, scene.box)
        fine = cameras.resized((cameras.height * supersample, cameras.width * supersample))
        frames = render_field(scene, fine, colour, normals, backend)
        return frames if supersample == 1 else _filter(frames, supersample)
    raise InputError(f"render takes a Mesh, Gaussians or a Field, got {type(scene).__name__}")


def render_batch(
    meshes: Sequence[Mesh],
    cameras: Cameras | Sequence[Cameras],
    *,
    background: float | Sequence[float] | Tensor = 0.0,
    options: MeshOptions | None = None,
) -> Frames:
    """Render B meshes of any topologies and sources of colour with V cameras each, all cores at work on all of them.

    A batch of vertices [B, N, 3] over one mesh's faces is `[replace(mesh, vertices=v) for v in vertices]`.

    Args:
        meshes: B, on one device and of one dtype.
        cameras: V that see every mesh, or B times V, of one image size.
        background: as in `render`.
        options: the other arguments of `render`.

    Returns:
        Frames with leading axes [B, V]: rgb [B, V, 3, H, W] and so on; the same pictures and gradients as B calls of
        `render`.

    Raises:
        InputError: as `render`; no meshes, meshes of different devices or dtypes, cameras that do not fit.
    """
    options = options or MeshOptions()
    _check_supersample(options.supersample)
    kinds = {(m.device, m.vertices.dtype) for m in meshes}
    if len(kinds) != 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds)) or "none"
        raise InputError(f"render_batch takes meshes of one device and dtype, got {found}")
    if isinstance(cameras, Cameras):
        views = len(cameras)
        every = Cameras.cat([cameras] * len(meshes))
    else:
        counts = {len(c) for c in cameras}
        if len(cameras) != len(meshes) or len(counts) != 1:
            raise InputError(
                f"render_batch takes Cameras for all, or as many of one length as meshes; got {len(meshes)} meshes and "
                f"{len(cameras)} Cameras of lengths {sorted(counts)}"
            )
        views = counts.pop()
        every = Cameras.cat(list(cameras))
    colour = background_colour(background, meshes[0].vertices)
    frames = render_group(meshes, every, colour, options)
    images = {name: t.unflatten(0, (len(meshes), views)) for name, t in vars(frames).items() if t is not None}
    return Frames(**images)


def _check_supersample(supersample: object) -> None:
    if isinstance(supersample, bool) or not isinstance(supersample, int) or supersample < 1:
        raise InputError(f"supersample must be a whole number from 1, got {supersample!r}")


def background_colour(background: Any, like: Tensor) -> Tensor:
    """[3] sRGB in the dtype and on the device of `like`, out of a number, three numbers or a tensor of either.

    Raises:
        InputError: another shape, or values that are not finite.
    """
    try:
        colour = torch.as_tensor(background).to(device=like.device, dtype=like.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"background must be a grey level or three sRGB numbers, got {background!r}") from error
    if colour.shape not in ((), (1,), (3,)) or not bool(torch.isfinite(colour).all()):
        raise InputError(f"background must be a grey level or three sRGB numbers, got {background!r}")
    return colour.expand(3)


def _filter(frames: Frames, k: int) -> Frames:
    """Box-filter splat frames in sRGB, the space in which splats blend; depth and normals are weighted by alpha."""
    alpha = avg_pool2d(frames.alpha, k)
    weight = torch.where(alpha > 0, alpha, 1)
    normal = None
    if frames.normal is not None:
        normal = normalize(avg_pool2d(frames.normal * frames.alpha, k), dim=1, eps=1e-20)
    depth = avg_pool2d(frames.depth * frames.alpha, k) / weight
    return replace(frames, rgb=avg_pool2d(frames.rgb, k), alpha=alpha, depth=depth, normal=normal)
