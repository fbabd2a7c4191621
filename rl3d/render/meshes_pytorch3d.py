"""Mesh rasterization by PyTorch3D (Ravi et al. 2020, arXiv 2007.08501), an optional package: CPU and CUDA, float32."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from rl3d.backends import WAY_OUT
from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render.mesh_torch import NEAR
from rl3d.render.rasterize import Fragments


def load_pytorch3d() -> tuple[Any, Any]:
    """The modules pytorch3d.renderer and pytorch3d.structures; InputError where they do not import."""
    try:
        renderer, structures = import_module("pytorch3d.renderer"), import_module("pytorch3d.structures")
    except (ImportError, OSError) as error:  # OSError: its compiled part was built for another torch
        what = str(error).splitlines()[0]
        raise InputError(f'backend "pytorch3d" is installed but does not import ({what}); {WAY_OUT}') from None
    return renderer, structures


def rasterize(vertices: Tensor, faces: Tensor, cameras: Cameras) -> Fragments:
    """`rl3d.render.rasterize` by `MeshRasterizer`: hard, one face a pixel, perspective-correct barycentrics.

    Args:
        vertices: [N, 3] float32. faces: [F, 3]. cameras: V cameras on the same device.

    Returns:
        Fragments, differentiable to the vertices and the cameras as PyTorch3D's are. Faces are cut at z = 1e-4 m.
        Where two faces are equally near it may choose another than "torch" does.
    """
    renderer, structures = load_pytorch3d()
    views, height, width = len(cameras), cameras.height, cameras.width
    if faces.shape[0] == 0:
        return Fragments.nothing(vertices, cameras)
    arguments = cameras.to(dtype=vertices.dtype).to_pytorch3d()
    rasterizer = renderer.MeshRasterizer(
        cameras=renderer.PerspectiveCameras(**arguments, in_ndc=False, device=vertices.device),
        raster_settings=renderer.RasterizationSettings(
            image_size=(height, width),
            blur_radius=0.0,
            faces_per_pixel=1,
            perspective_correct=True,
            clip_barycentric_coords=False,
            cull_backfaces=False,
            z_clip_value=NEAR,
        ),
    )
    seen = rasterizer(structures.Meshes(verts=[vertices] * views, faces=[faces] * views))
    face_id = seen.pix_to_face[..., 0].long()  # [V, H, W], counted through the whole batch: view v begins at v F
    hit = face_id >= 0
    first = faces.shape[0] * torch.arange(views, device=face_id.device)[:, None, None]
    bary, depth = seen.bary_coords[..., 0, :], seen.zbuf[..., 0]  # -1 where there is no face
    return Fragments(
        torch.where(hit, face_id - first, -1),
        torch.where(hit[..., None], bary, torch.zeros_like(bary)),
        torch.where(hit, depth, torch.zeros_like(depth)),
    )
