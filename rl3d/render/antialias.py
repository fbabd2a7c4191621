"""Silhouette antialiasing: the stage that makes a mesh's outlines smooth and differentiable; see `antialias_torch`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render.antialias_torch import adjacent_edges as adjacent_edges_torch
from rl3d.render.antialias_torch import antialias_torch
from rl3d.render.rasterize import Fragments, choose_backend


class _AntialiasCPU(torch.autograd.Function):
    """The compiled kernels as one node of the autograd graph."""

    @staticmethod
    def forward(
        ctx: Any,
        colours: Tensor,
        vertices: Tensor,
        face_id: Tensor,
        depth: Tensor,
        faces: Tensor,
        adjacent: Tensor,
        view: Tensor,
        intrinsics: Tensor,
    ) -> Tensor:
        from numba import get_num_threads

        from rl3d.render import antialias_cpu as kernels  # numba compiles and loads on first use

        arrays = [t.detach().contiguous().numpy() for t in (face_id, depth, vertices, faces, adjacent)]
        cameras = [t.detach().double().contiguous().numpy() for t in (view, intrinsics)]
        found = kernels.search(*arrays, *cameras, get_num_threads())
        out = colours.detach().clone(memory_format=torch.contiguous_format)
        image = out.numpy().reshape(-1, colours.shape[3])
        size = colours.shape[1:3]
        ctx.passes = []
        for axis in (0, 1):
            pairs, share = kernels.collect(found, axis, arrays[2], arrays[3], *cameras, *size)
            ctx.passes.append((axis, pairs, share, kernels.blend(image, pairs, share)))
        ctx.save_for_backward(vertices)
        ctx.cameras, ctx.size = cameras, size
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        from rl3d.render import antialias_cpu as kernels

        out = cotangents[0].clone(memory_format=torch.contiguous_format)
        image = out.numpy().reshape(-1, out.shape[3])
        vertices = ctx.saved_tensors[0].detach().contiguous().numpy()
        gradient = np.zeros((len(vertices), 3))
        for axis, pairs, share, difference in reversed(ctx.passes):
            of_share = kernels.blend_backward(image, pairs, share, difference)
            if ctx.needs_input_grad[1]:
                kernels.positions_backward(of_share, pairs, vertices, *ctx.cameras, *ctx.size, axis, gradient)
        to_vertices = torch.from_numpy(gradient).float() if ctx.needs_input_grad[1] else None
        return out if ctx.needs_input_grad[0] else None, to_vertices, None, None, None, None, None, None


def adjacent_edges(vertices: Tensor, faces: Tensor) -> Tensor:
    """Which edges of other faces each edge of a face coincides with: what `antialias` needs to know of connectivity.

    Args:
        vertices: [N, 3]; those of exactly equal coordinates count as one, so that files' split vertices are joined.
        faces: [F, 3] int64. Edge k of face f, from corner k to corner k + 1, has the number 3 f + k.

    Returns:
        [F, 3] int32 on the device of `faces`: the number of the next edge that joins the same two places, in a cycle
        through all of them; -1 at a boundary, and for faces that use a place twice.
    """
    if faces.device.type != "cpu":
        return adjacent_edges_torch(vertices, faces).int()
    from rl3d.render import antialias_cpu as kernels

    bits = (vertices.detach().double() + 0.0).contiguous().numpy().view(np.uint64)  # + 0: -0 is 0
    return torch.from_numpy(kernels.adjacent_edges(bits, faces.contiguous().numpy()))


def antialias(
    colours: Tensor,
    fragments: Fragments,
    vertices: Tensor,
    faces: Tensor,
    cameras: Cameras,
    adjacent: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Blend neighbouring pixels by how much of them a silhouette between their centres leaves to either.

    `antialias_torch` says exactly how. Only pixels beside real silhouettes change: a closed mesh shows no seams. For
    each of them the result is continuous in the place of the silhouette, so that losses pull outlines and occluding
    edges into place.

    Args:
        colours: [V, H, W, D] of any kind, premultiplied (0 where nothing is seen), alpha among them if it is wanted.
        fragments: what `rasterize` found for the same vertices, faces and cameras.
        vertices: [N, 3] float, world. faces: [F, 3] int64.
        adjacent: [F, 3] out of `adjacent_edges`, for meshes rendered many times; None: computed.
        backend: "cpu" (compiled; CPU and float32), "torch" (anywhere), None: "cpu" where it can, "torch" where the
            cameras want gradients.

    Returns:
        [V, H, W, D], convex combinations of the pixels' colours; differentiable to `colours` and `vertices`, with
        backend "torch" to the cameras too.

    Raises:
        InputError: shapes that do not fit, an unknown or unusable backend.
    """
    if colours.ndim != 4 or colours.shape[:3] != fragments.face_id.shape:
        raise InputError(
            f"antialias takes colours [V, H, W, D] and fragments [V, H, W] of the same images, got "
            f"{list(colours.shape)} and {list(fragments.face_id.shape)}"
        )
    view, intrinsics = cameras.view.to(vertices.dtype), cameras.intrinsics.to(vertices.dtype)
    fitting = {choose_backend(backend, t, view, intrinsics) for t in (vertices, colours)}
    if adjacent is None:
        adjacent = adjacent_edges(vertices, faces)
    if "torch" in fitting or faces.shape[0] == 0:
        seen = (fragments.face_id, fragments.depth)
        return antialias_torch(colours, *seen, vertices, faces, view, intrinsics, adjacent.long())
    return _AntialiasCPU.apply(colours, vertices, fragments.face_id, fragments.depth, faces, adjacent, view, intrinsics)
