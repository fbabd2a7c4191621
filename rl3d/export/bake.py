"""Colours for a mesh from rendered views of the scene that it came from: a texture, or one colour a vertex.

Each surface point takes the mean, in linear light, of the views that see it, weighted by (n.v)^sharpness. A view sees a
point when the mesh's own depth, rasterized for the same camera, agrees around its projection; so a colour never bleeds
over an occlusion edge. Points that no view sees take the colour of the nearest point that one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, minimum_filter
from scipy.spatial import cKDTree
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.colour import linear_to_srgb, srgb_to_linear
from rl3d.errors import InputError
from rl3d.export.unwrap import Unwrapping
from rl3d.kernels import prange_only
from rl3d.render.mesh_cpu import rasterize_views
from rl3d.render.shading import half_lambert
from rl3d.scenes.mesh import Mesh

if TYPE_CHECKING:
    from rl3d.render.frames import Frames

Array = np.ndarray[Any, np.dtype[Any]]


def vertex_normals(mesh: Mesh) -> Array:
    """[N, 3] float64 unit normals, faces weighted by area; where they cancel, +Y."""
    vertices, faces = mesh.vertices.detach().cpu().numpy().astype(np.float64), mesh.faces.cpu().numpy()
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    total = np.stack([np.bincount(faces.ravel(), normal[:, k].repeat(3), len(vertices)) for k in range(3)], 1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 1e-12, total / np.maximum(length, 1e-12), [0.0, 1.0, 0.0])


@numba.njit(cache=True, nogil=True)
def _texel_map(uvs, face_uvs, height, width):  # type: ignore[no-untyped-def]
    """Which face, and where on it, each texel centre shows: face [H, W] int32 (-1: none), bary [H, W, 3]."""
    face = np.full((height, width), -1, dtype=np.int32)
    bary = np.zeros((height, width, 3), dtype=np.float32)
    for f in range(face_uvs.shape[0]):
        x0, y0 = uvs[face_uvs[f, 0], 0] * width, uvs[face_uvs[f, 0], 1] * height
        x1, y1 = uvs[face_uvs[f, 1], 0] * width, uvs[face_uvs[f, 1], 1] * height
        x2, y2 = uvs[face_uvs[f, 2], 0] * width, uvs[face_uvs[f, 2], 1] * height
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < 1e-12:
            continue
        for py in range(max(0, int(min(y0, y1, y2) - 0.5)), min(height, int(max(y0, y1, y2) + 0.5) + 1)):
            for px in range(max(0, int(min(x0, x1, x2) - 0.5)), min(width, int(max(x0, x1, x2) + 0.5) + 1)):
                x, y = px + 0.5, py + 0.5
                w0 = ((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) / area
                w1 = ((x2 - x) * (y0 - y) - (x0 - x) * (y2 - y)) / area
                w2 = 1.0 - w0 - w1
                if w0 >= -1e-6 and w1 >= -1e-6 and w2 >= -1e-6:
                    face[py, px] = f
                    bary[py, px, 0], bary[py, px, 1], bary[py, px, 2] = w0, w1, w2
    return face, bary


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def _gather(points, normals, view, fx, fy, cx, cy, eye, colour, alpha, nearest, tolerance, sharpness):  # type: ignore[no-untyped-def]
    """Weighted sum of what the views see at each point: colour [P, 3] (linear, weighted) and weight [P]."""
    n_views, height, width = alpha.shape
    total = np.zeros((points.shape[0], 3))
    weights = np.zeros(points.shape[0])
    for i in numba.prange(points.shape[0]):
        px, py, pz = points[i, 0], points[i, 1], points[i, 2]
        for v in range(n_views):
            z = view[v, 2, 0] * px + view[v, 2, 1] * py + view[v, 2, 2] * pz + view[v, 2, 3]
            if z <= 1e-3:
                continue
            dx, dy, dz = eye[v, 0] - px, eye[v, 1] - py, eye[v, 2] - pz
            facing = normals[i, 0] * dx + normals[i, 1] * dy + normals[i, 2] * dz
            if facing <= 0.0:
                continue
            facing /= np.sqrt(dx * dx + dy * dy + dz * dz)
            x = view[v, 0, 0] * px + view[v, 0, 1] * py + view[v, 0, 2] * pz + view[v, 0, 3]
            y = view[v, 1, 0] * px + view[v, 1, 1] * py + view[v, 1, 2] * pz + view[v, 1, 3]
            ix = fx[v] * x / z + cx[v] - 0.5
            iy = fy[v] * y / z + cy[v] - 0.5
            if ix < 0.0 or iy < 0.0 or ix > width - 1.0 or iy > height - 1.0:
                continue
            x0, y0 = min(int(ix), width - 2), min(int(iy), height - 2)
            ax, ay = ix - x0, iy - y0
            # A pixel's depth may differ by what the surface's slope makes of its size; more is another surface.
            slack = tolerance + 2.5 * z / fx[v] * np.sqrt(max(1.0 / max(facing * facing, 1e-2) - 1.0, 0.0))
            seen = True
            covered = 1.0
            for q in range(4):
                yq, xq = y0 + q // 2, x0 + q % 2
                if nearest[v, yq, xq] < z - slack:
                    seen = False
                    break
                covered = min(covered, alpha[v, yq, xq])
            if not seen or covered < 0.05:
                continue
            w = facing**sharpness * covered * covered
            for q in range(4):
                yq, xq = y0 + q // 2, x0 + q % 2
                share = w * (ax if q % 2 else 1.0 - ax) * (ay if q // 2 else 1.0 - ay)
                for c in range(3):
                    total[i, c] += share * colour[v, yq, xq, c]
            weights[i] += w
    return total, weights


def gather_colours(
    mesh: Mesh,
    points: Array,
    normals: Array,
    frames: Frames,
    cameras: Cameras,
    *,
    tolerance: float = 0.015,
    sharpness: float = 4.0,
) -> tuple[Array, float]:
    """Linear-light colours of points on `mesh` from views of the scene.

    Args:
        points, normals: [P, 3], on the mesh's surface, unit normals.
        frames: premultiplied sRGB (rendered over black) and alpha.
        tolerance: metres that the mesh may lie off the rendered scene.
        sharpness: exponent on n.v; larger trusts the view that faces the surface most.

    Returns:
        [P, 3] float64 in [0, 1], linear, and the share of points that some view saw.

    Raises:
        InputError: no view sees any of the points.
    """
    if len(cameras) != len(frames.rgb) or (cameras.height, cameras.width) != tuple(frames.rgb.shape[2:]):
        raise InputError(
            f"baking got {len(frames.rgb)} frames of {list(frames.rgb.shape[2:])} and {len(cameras)} cameras of "
            f"{[cameras.height, cameras.width]}; render the frames with these cameras"
        )
    alpha = frames.alpha.detach().cpu().float()
    straight = (frames.rgb.detach().cpu().float() / alpha.clamp_min(1e-3)).clamp(0, 1)
    colour = srgb_to_linear(straight).permute(0, 2, 3, 1).contiguous().numpy()
    view = cameras.view.detach().cpu().float().contiguous().numpy()
    intrinsics = cameras.intrinsics.detach().cpu().float().contiguous().numpy()
    vertices = mesh.vertices.detach().cpu().float().contiguous().numpy()
    _, _, depth = rasterize_views(
        vertices, mesh.faces.cpu().contiguous().numpy(), view, intrinsics, cameras.height, cameras.width
    )
    # The nearest surface in 3 x 3 pixels: a pixel beside an occluder is mixed with its colour.
    nearest = minimum_filter(np.where(depth > 0, depth, np.float32(np.inf)), size=(1, 3, 3))
    fx, fy, cx, cy = (np.ascontiguousarray(intrinsics[:, r, c]) for r, c in ((0, 0), (1, 1), (0, 2), (1, 2)))
    eye = cameras.centres.detach().cpu().numpy().astype(np.float64)
    points, normals = np.ascontiguousarray(points, np.float64), np.ascontiguousarray(normals, np.float64)
    total, weight = _gather(
        points,
        normals,
        view,
        fx,
        fy,
        cx,
        cy,
        eye,
        colour,
        alpha[:, 0].contiguous().numpy(),
        nearest,
        tolerance,
        sharpness,
    )
    seen = weight > 1e-6
    if not seen.any():
        raise InputError("no view sees the surface: the cameras look past the mesh or the frames are empty")
    out = total / np.maximum(weight, 1e-12)[:, None]
    if not seen.all():
        _, beside = cKDTree(points[seen]).query(points[~seen])
        out[~seen] = out[seen][beside]
    return out, float(seen.mean())


def delit(linear: Array, normals: Array) -> Array:
    """Divide the prior images' half-Lambert shading out of linear colours [P, 3] with unit normals; in [0, 1]."""
    factor = half_lambert(torch.from_numpy(np.ascontiguousarray(normals, np.float64))).numpy()
    return np.clip(linear / factor[:, None], 0.0, 1.0)


def _to_srgb(linear: Array, mesh: Mesh) -> Tensor:
    return linear_to_srgb(torch.from_numpy(linear).clamp(0, 1)).clamp(0, 1).to(mesh.device, torch.float32)


def bake_texture(
    mesh: Mesh,
    unwrapping: Unwrapping,
    frames: Frames,
    cameras: Cameras,
    *,
    size: int = 512,
    delight: bool = False,
    sharpness: float = 4.0,
) -> tuple[Mesh, dict[str, float]]:
    """The mesh with a baked texture [size, size, 3], sRGB, and the shares of texels used and seen.

    Texels between the islands take the nearest island's colour, so that filtering never meets the background.

    Args:
        delight: divide out the half-Lambert shading that the embedded prior's images carry.

    Raises:
        InputError: as `gather_colours`; or an unwrapping that covers no texel.
    """
    face, bary = _texel_map(unwrapping.uvs.cpu().numpy(), unwrapping.face_uvs.cpu().numpy(), size, size)
    used = face >= 0
    if not used.any():
        raise InputError(f"the unwrapping covers no texel of a {size} x {size} texture; take a larger one")
    corners = mesh.faces.cpu().numpy()[face[used]]  # [P, 3]
    weights = bary[used][:, :, None]
    points = (mesh.vertices.detach().cpu().numpy()[corners] * weights).sum(1)
    normals = (vertex_normals(mesh)[corners] * weights).sum(1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    colour, seen = gather_colours(mesh, points, normals, frames, cameras, sharpness=sharpness)
    texture = np.zeros((size, size, 3))
    texture[used] = delit(colour, normals) if delight else colour
    if not used.all():
        y, x = distance_transform_edt(~used, return_distances=False, return_indices=True)
        texture = texture[y, x]
    textured = Mesh(
        mesh.vertices, mesh.faces, texture=_to_srgb(texture, mesh), uvs=unwrapping.uvs, face_uvs=unwrapping.face_uvs
    )
    return textured, {"texels_used": float(used.mean()), "texels_seen": seen}


def bake_vertices(
    mesh: Mesh, frames: Frames, cameras: Cameras, *, delight: bool = False, sharpness: float = 4.0
) -> tuple[Mesh, dict[str, float]]:
    """The mesh with one baked sRGB colour a vertex, and the share seen; what is left when unwrapping fails."""
    normals = vertex_normals(mesh)
    points = mesh.vertices.detach().cpu().numpy()
    colour, seen = gather_colours(mesh, points, normals, frames, cameras, sharpness=sharpness)
    colour = delit(colour, normals) if delight else colour
    return Mesh(mesh.vertices, mesh.faces, vertex_colours=_to_srgb(colour, mesh)), {"vertices_seen": seen}
