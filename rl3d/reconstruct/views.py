"""Views as reconstructors take them: their checks, and what each view's place shows when it was left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rl3d.cameras import Cameras, camera_rows
from rl3d.errors import InputError
from rl3d.reconstruct.lift import NoSharedVolume
from rl3d.reconstruct.protocol import Reconstructor
from rl3d.render import render
from rl3d.scenes.field import Field
from rl3d.scenes.gaussians import Gaussians
from rl3d.scenes.mesh import Mesh


def check_views(images: Tensor, cameras: Cameras, name: str, least: int = 2) -> Cameras:
    """The cameras [B * V] of views that `name` can read.

    Raises:
        InputError: not float [B, V, 4, H, W] in [0, 1], fewer than `least` views, or cameras of another number or size.
    """
    if images.ndim != 5 or images.shape[2] != 4 or not images.is_floating_point() or images.numel() == 0:
        raise InputError(f"{name} takes float views [B, V, 4, H, W], got {list(images.shape)} {images.dtype}")
    b, v, _, h, w = images.shape
    if v < least:
        raise InputError(f"{name} takes at least {least} views an asset, got {v}")
    if (cameras.height, cameras.width) != (h, w):
        raise InputError(
            f"{name} got views of {h} x {w} pixels and cameras of {cameras.height} x {cameras.width}; resize one"
        )
    low, high = (float(x) for x in torch.aminmax(images.detach()))
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN fails too
        raise InputError(f"{name} takes premultiplied RGBA in [0, 1], got {low:g} to {high:g}; clamp it first")
    return camera_rows(cameras, b, v).to(images.device, images.dtype)


def leave_one_out(images: Tensor, cameras: Cameras, reconstructor: Reconstructor) -> Tensor:
    """What the scene out of all views but one shows at the camera of that one, for every view.

    A reconstructor that fits each view by itself explains any views at their own cameras; none explains a view that it
    has not seen unless the others agree with it. Where the others of an asset share no volume there is no scene, and
    the place stays empty (all zeros).

    Args:
        images: [B, V, 4, H, W] premultiplied sRGB + alpha in [0, 1], V one more than `reconstructor` needs.
        cameras: V cameras that all assets share, or B * V of them.

    Returns:
        [B, V, 4, H, W] premultiplied sRGB + alpha, in [0, 1]; differentiable to the images if the reconstructor is.

    Raises:
        InputError: see `Reconstructor`.
    """
    every = check_views(images, cameras, "leave_one_out", least=3)
    b, v = images.shape[:2]
    number = torch.arange(b * v, device=images.device).reshape(b, v)
    others = [[i for i in range(v) if i != left_out] for left_out in range(v)]
    subsets = number[:, others]  # [B, V, V - 1], the views that stay for each that is left out
    chosen = images.flatten(0, 1)[subsets].flatten(0, 1)  # [B * V, V - 1, 4, H, W]
    scenes = _scenes(chosen, every[subsets.flatten()], reconstructor)
    shown = look(scenes, every)  # [B * V, 1, 4, H, W]
    return shown.unflatten(0, (b, v))[:, :, 0]


def look(scenes: Sequence[Gaussians | Field | Mesh | None], cameras: Cameras) -> Tensor:
    """B scenes from K cameras each: [B, K, 4, H, W] premultiplied sRGB + alpha in [0, 1].

    At the cameras that scenes were made from, this is what is left of the views. Differentiable to the scenes.

    Args:
        scenes: None shows nothing. cameras: B * K of them, asset by asset (see `rl3d.cameras.camera_rows`).

    Raises:
        InputError: no scene, or another number of cameras.
    """
    b = len(scenes)
    if not b or not len(cameras) or len(cameras) % b:
        raise InputError(f"{b} scenes cannot be seen from {len(cameras)} cameras; give as many cameras to each")
    shown = []
    for scene, rows in zip(scenes, torch.arange(len(cameras)).chunk(b)):
        here = cameras[rows]
        if scene is None:
            shown.append(here.view.new_zeros(len(here), 4, here.height, here.width))
            continue
        frames = render(scene, here)
        shown.append(torch.cat([frames.rgb, frames.alpha], 1).clamp(0, 1))
    return torch.stack(shown)


def _scenes(images: Tensor, cameras: Cameras, reconstructor: Reconstructor) -> list[Gaussians | Field | Mesh | None]:
    """One scene for each asset, None where its views share no volume; all at once unless there is such a one."""
    try:
        return [*reconstructor(images, cameras)]
    except NoSharedVolume:
        if len(images) == 1:
            return [None]
    v = images.shape[1]
    return [
        scene
        for i, views in enumerate(images)
        for scene in _scenes(views[None], cameras[slice(i * v, (i + 1) * v)], reconstructor)
    ]
