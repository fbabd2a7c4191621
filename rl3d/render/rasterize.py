"""Which face every pixel sees, and attributes of the visible points: the first two stages of the mesh renderer.

Visibility is hard: which face a pixel sees is a constant to the gradient. Silhouettes get theirs in `antialias`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl3d.backends import MESHES, check_backend
from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render.mesh_torch import barycentrics, visible_faces

BACKENDS = ("cpu", "torch")


@dataclass(frozen=True)
class Fragments:
    """What each pixel sees of a mesh.

    Attributes:
        face_id: [...] int64, the visible face or -1; [V, H, W] out of `rasterize`.
        bary: [..., 3] perspective-correct barycentrics of the pixel centre, 0 where there is no face.
        depth: [...] camera-space z in metres, 0 where there is no face.
    """

    face_id: Tensor
    bary: Tensor
    depth: Tensor

    @staticmethod
    def nothing(vertices: Tensor, cameras: Cameras) -> Fragments:
        """What cameras see of a mesh without faces, on the device and in the dtype of `vertices`."""
        depth = vertices.new_zeros(len(cameras), cameras.height, cameras.width)
        return Fragments(torch.full_like(depth, -1).long(), depth.new_zeros(*depth.shape, 3), depth)


class _RasterizeCPU(torch.autograd.Function):
    """The compiled kernels as one node of the autograd graph."""

    @staticmethod
    def forward(
        ctx: Any,
        vertices: Tensor,
        faces: Tensor,
        view: Tensor,
        intrinsics: Tensor,
        height: int,
        width: int,
        cull: bool,
        ranges: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        from rl3d.render.mesh_cpu import rasterize_views  # numba compiles and loads on first use

        points, corners = (t.detach().contiguous().numpy() for t in (vertices, faces))
        pose, lens = (t.detach().double().contiguous().numpy() for t in (view, intrinsics))
        rows = None if ranges is None else tuple(t.numpy() for t in ranges)
        seen = rasterize_views(points, corners, pose, lens, height, width, cull, rows)
        ids, bary, depth = map(torch.from_numpy, seen)
        face_id = ids.long()
        ctx.mark_non_differentiable(face_id)
        ctx.save_for_backward(vertices, faces)
        ctx.cameras, ctx.face_id = (pose, lens), ids.numpy()
        return face_id, bary, depth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        from rl3d.render.mesh_cpu_backward import rasterize_backward

        _, grad_bary, grad_depth = cotangents
        gradients = (grad_bary.contiguous().numpy(), grad_depth.contiguous().numpy())
        mesh = (t.detach().contiguous().numpy() for t in ctx.saved_tensors)
        to_vertices = torch.from_numpy(rasterize_backward(ctx.face_id, *gradients, *mesh, *ctx.cameras))
        return (to_vertices, *[None] * 7)


class _InterpolateCPU(torch.autograd.Function):
    """The compiled interpolation of vertex attributes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bary: Tensor, indices: Tensor, face_id: Tensor) -> Tensor:
        from rl3d.render.mesh_cpu_backward import interpolate_forward

        ctx.save_for_backward(values, bary, indices, face_id)
        out = interpolate_forward(*_flat(face_id, bary), *(t.detach().contiguous().numpy() for t in (values, indices)))
        return torch.from_numpy(out).reshape(*face_id.shape, values.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        from rl3d.render.mesh_cpu_backward import interpolate_backward

        values, bary, indices, face_id = ctx.saved_tensors
        tables = (t.detach().contiguous().numpy() for t in (values, indices))
        cotangent = cotangents[0].reshape(-1, values.shape[1]).contiguous().numpy()
        grad_bary, grad_values = interpolate_backward(*_flat(face_id, bary), *tables, cotangent)
        return torch.from_numpy(grad_values), torch.from_numpy(grad_bary).reshape(bary.shape), None, None


def _flat(face_id: Tensor, bary: Tensor) -> tuple[Any, Any]:
    return face_id.contiguous().numpy().reshape(-1), bary.detach().contiguous().numpy().reshape(-1, 3)


def fits_kernels(tensor: Tensor) -> bool:
    """Whether the compiled kernels take this tensor."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def choose_backend(backend: str | None, vertices: Tensor, view: Tensor, intrinsics: Tensor) -> str:
    """ "cpu" or "torch"; None becomes "cpu" where vertices and cameras allow it.

    Raises:
        InputError: an unknown backend, or "cpu" for tensors or gradients that it does not serve.
    """
    if backend is not None:
        check_backend(backend, MESHES, vertices.device.type, str(vertices.dtype).removeprefix("torch."))
        if backend not in BACKENDS:
            raise InputError(f'backend "{backend}" only rasterizes; pass "cpu", "torch" or None here')
    moving = torch.is_grad_enabled() and (view.requires_grad or intrinsics.requires_grad)
    if backend == "cpu" and moving:
        raise InputError('the "cpu" kernels have no gradient to the cameras; detach them or pass backend="torch"')
    return backend or ("cpu" if fits_kernels(vertices) and not moving else "torch")


def own_backend(backend: str | None) -> str | None:
    """The backend of the stages after rasterization: those of optional packages are this package's own."""
    return backend if backend in BACKENDS else None


def rasterize(
    vertices: Tensor,
    faces: Tensor,
    cameras: Cameras,
    backend: str | None = None,
    cull_backfaces: bool = False,
    ranges: tuple[Tensor, Tensor] | None = None,
) -> Fragments:
    """Find the nearest face behind every pixel centre; z < 1e-4 m is not seen.

    Differentiable: `bary` and `depth` with respect to `vertices`, for fixed visibility; to the cameras too, with
    backend "torch" or None.

    Args:
        vertices: [N, 3] float, world. faces: [F, 3] int64.
        cameras: V cameras; cast to the dtype of `vertices`.
        backend: "cpu" (compiled; CPU and float32), "torch" (brute force, anywhere), None: "cpu" where it can. Where
            the cameras want gradients, None still finds the faces with the compiled kernel. Or an optional package by
            name, see `rl3d.backends`: it draws both sides of one mesh.
        cull_backfaces: leave out faces whose clockwise side the eye sees; else both sides are drawn.
        ranges: for several meshes in one table, (vertices [V, 2], faces [V, 2]) int64 on the CPU: the rows from .. to
            (exclusive) that each view sees. None: every view sees all.

    Raises:
        InputError: vertices that are not finite, face indices out of range, tensors on different devices, an unusable
            backend.
    """
    check_geometry(vertices, faces, cameras)
    view, intrinsics = cameras.view.to(vertices.dtype), cameras.intrinsics.to(vertices.dtype)
    size = (cameras.height, cameras.width)
    if backend not in (None, *BACKENDS):  # an optional package, only when asked for by name
        check_backend(str(backend), MESHES, vertices.device.type, str(vertices.dtype).removeprefix("torch."))
        if cull_backfaces or ranges is not None:
            raise InputError(f'backend "{backend}" draws both sides of one mesh here; pass "cpu", "torch" or None')
        return import_module(f"rl3d.render.meshes_{backend}").rasterize(vertices, faces, cameras)  # type: ignore[no-any-return]
    chosen = choose_backend(backend, vertices, view, intrinsics)
    if chosen == "cpu":
        return Fragments(*_RasterizeCPU.apply(vertices, faces, view, intrinsics, *size, cull_backfaces, ranges))
    if backend is None and fits_kernels(vertices):
        with torch.no_grad():
            face_id, _, _ = _RasterizeCPU.apply(vertices, faces, view, intrinsics, *size, cull_backfaces, ranges)
    else:
        rows = None if ranges is None else ranges[1]
        face_id = visible_faces(vertices, faces, view, intrinsics, *size, cull=cull_backfaces, ranges=rows)
    return Fragments(face_id, *barycentrics(vertices, faces, view, intrinsics, face_id))


def interpolate(attributes: Tensor | tuple[Tensor, Tensor], fragments: Fragments, backend: str | None = None) -> Tensor:
    """Attributes of the visible points; differentiable in the attributes and `fragments.bary`.

    Args:
        attributes: [F, 3, D] one value a face corner, or ([N, D], indices [F, 3] int64) one value a vertex.
        fragments: any leading shape.
        backend: "cpu" (compiled; CPU and float32), "torch" (anywhere), None: "cpu" where it can.

    Returns:
        [..., D], 0 where there is no face.
    """
    if not isinstance(attributes, tuple):
        count = attributes.shape[0]
        corners = torch.arange(3 * count, device=attributes.device).reshape(count, 3)
        attributes = (attributes.flatten(0, 1), corners)
    values, indices = attributes
    if indices.shape[0] == 0:
        return values.new_zeros(*fragments.face_id.shape, values.shape[-1])
    if backend != "torch" and fits_kernels(values) and fits_kernels(fragments.bary):
        return _InterpolateCPU.apply(values, fragments.bary, indices, fragments.face_id)
    # One table of whole faces makes one contiguous read a pixel.
    table = rows_of(values, indices).flatten(1)  # [F, 3 D]
    c0, c1, c2 = rows_of(table, fragments.face_id.clamp_min(0)).chunk(3, -1)  # [..., D]
    b0, b1, b2 = fragments.bary.unsqueeze(-1).unbind(-2)  # [..., 1], 0 where nothing is seen
    return b0 * c0 + b1 * c1 + b2 * c2


def rows_of(table: Tensor, index: Tensor) -> Tensor:
    """table[index] for a [N, D] table and any shape of index; several times faster than indexing on a CPU."""
    return table.index_select(0, index.reshape(-1)).reshape(*index.shape, table.shape[1])


def check_geometry(vertices: Tensor, faces: Tensor, cameras: Cameras) -> None:
    """Raise InputError for tensors on different devices, values that are not finite or faces that index nothing."""
    if vertices.device != cameras.device or vertices.device != faces.device:
        raise InputError(
            f"vertices are on {vertices.device}, faces on {faces.device}, cameras on {cameras.device}; "
            "move them to one device with .to(device)"
        )
    if not bool(torch.isfinite(vertices.detach()).all()):
        bad = int((~torch.isfinite(vertices)).any(1).sum())
        raise InputError(
            f"{bad} of {vertices.shape[0]} vertices are not finite (NaN or infinity); remove or repair them"
        )
    if not bool(torch.isfinite(cameras.view).all() and torch.isfinite(cameras.intrinsics).all()):
        raise InputError("the cameras hold values that are not finite (NaN or infinity)")
    check_indices("faces", faces, vertices.shape[0], "vertices")


def check_indices(name: str, indices: Tensor, count: int, of: str) -> None:
    """Raise InputError if some index lies outside [0, count)."""
    if indices.numel() == 0:
        return
    low, high = (int(t) for t in indices.aminmax())
    if low < 0 or high >= count:
        raise InputError(f"{name} index {of} from {low} to {high}, but there are {count} {of}; indices start at 0")
