"""Mesh rasterization by nvdiffrast (Laine et al. 2020, arXiv 2011.03277), an optional package: CUDA, float32.

Its licence, NVIDIA's Source Code License, allows non-commercial use only; it is named once a process.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rl3d.backends import BACKENDS, WAY_OUT
from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render.mesh_torch import NEAR, camera_vertices
from rl3d.render.rasterize import Fragments


def load_nvdiffrast() -> Any:
    """The module nvdiffrast.torch; InputError where it does not import."""
    try:
        import nvdiffrast.torch as dr
    except (ImportError, OSError) as error:
        what = str(error).splitlines()[0]
        raise InputError(f'backend "nvdiffrast" is installed but does not import ({what}); {WAY_OUT}') from None
    say_licence()
    return dr


@cache
def say_licence() -> None:
    """Warn of the licence, the first time only."""
    warnings.warn(f"backend nvdiffrast: {BACKENDS['nvdiffrast'].licence} use only", stacklevel=4)


def rasterize(vertices: Tensor, faces: Tensor, cameras: Cameras) -> Fragments:
    """`rl3d.render.rasterize` by nvdiffrast's CUDA rasterizer (0.3.3 or newer takes images of any size).

    Args:
        vertices: [N, 3] float32. faces: [F, 3]. cameras: V cameras on the same device.

    Returns:
        Fragments, differentiable to the vertices and the cameras as nvdiffrast's are. Its depth buffer is linear in
        1 / z between the nearest and the farthest vertex, so of faces that nearly coincide it may choose another.
    """
    return rasterize_by(load_nvdiffrast(), vertices, faces, cameras)


def rasterize_by(dr: Any, vertices: Tensor, faces: Tensor, cameras: Cameras) -> Fragments:
    """As `rasterize`, with the module nvdiffrast.torch given."""
    cameras = cameras.to(dtype=vertices.dtype)
    if faces.shape[0] == 0:
        return Fragments.nothing(vertices, cameras)
    with torch.no_grad():  # tight planes: the buffer's precision falls with far / near
        z = camera_vertices(vertices, cameras.view)[..., 2]
        near = max(0.9 * float(z.min()), NEAR)
        far = max(1.1 * float(z.max()), 2 * near)
    view, projection = cameras.to_opengl(near, far)
    homogeneous = torch.cat([vertices, torch.ones_like(vertices[:, :1])], 1)
    clip = torch.einsum("vij,nj->vni", projection @ view, homogeneous).contiguous()  # [V, N, 4], w is camera z
    triangles = faces.to(torch.int32).contiguous()
    context = dr.RasterizeCudaContext(device=vertices.device)
    raster, _ = dr.rasterize(context, clip, triangles, resolution=[cameras.height, cameras.width])
    depth, _ = dr.interpolate(clip[..., 3:].contiguous(), raster, triangles)
    raster, depth = raster.flip(1), depth.flip(1)[..., 0]  # OpenGL's first row is the lowest
    u, v, _, number = raster.unbind(-1)  # u, v weigh the first two corners; number is the face + 1, 0 for none
    hit = number > 0
    bary = torch.stack([u, v, 1 - u - v], -1)
    return Fragments(
        number.long() - 1,
        torch.where(hit[..., None], bary, torch.zeros_like(bary)),
        torch.where(hit, depth, torch.zeros_like(depth)),
    )
