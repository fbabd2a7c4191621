"""Mesh rasterization in plain torch: the readable reference, any device and dtype, and the source of the gradients.

Nothing is clipped and nothing is projected. A pixel's ray is t (x, y, 1) in the camera, x = (column + 0.5 - cx) / fx
and y likewise. Shear the camera space along the ray, p_i = (X_i - x Z_i, Y_i - y Z_i) for the corners i of a face: the
ray becomes the z axis, and it meets the face where the origin lies in the triangle p_0 p_1 p_2. With the edge functions

    e_0 = p_1 x p_2,   e_1 = p_2 x p_0,   e_2 = p_0 x p_1

that is where all e share a sign; there bary = e / sum(e), already perspective-correct, and z = sum(bary_i Z_i), which
is positive in front of the eye even when a corner is behind it. (The homogeneous rasterization of Olano & Greer 1997,
"Triangle Scan Conversion using 2D Homogeneous Coordinates", in coordinates without its cancellation.)
"""

from __future__ import annotations

import torch
from torch import Tensor

NEAR = 1e-4  # camera-space z below which nothing is drawn, metres (as in the compiled kernel)
CHUNK = 1 << 22  # pixel-face pairs that are tested at a time: about 200 MB


def camera_vertices(vertices: Tensor, view: Tensor) -> Tensor:
    """World points [N, 3] in the axes of V cameras, [V, N, 3]; differentiable."""
    return torch.einsum("vij,nj->vni", view[:, :3, :3], vertices) + view[:, None, :3, 3]


def visible_faces(
    vertices: Tensor,
    faces: Tensor,
    view: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    chunk: int = CHUNK,
    cull: bool = False,
    ranges: Tensor | None = None,
) -> Tensor:
    """The nearest face behind every pixel centre, by brute force over all pairs; not differentiable.

    Args:
        vertices: [N, 3] float, world. faces: [F, 3] int64. view: [V, 4, 4]. intrinsics: [V, 3, 3], pixels.
        chunk: pixel-face pairs in memory at once.
        cull: leave faces out that are seen from behind.
        ranges: [V, 2] int64, the faces from .. to (exclusive) that each view sees; None: all.

    Returns:
        [V, H, W] int64 face indices, -1 where there is none; of coincident faces the first.
    """
    n_pixels = height * width
    with torch.no_grad():
        out = torch.full((view.shape[0], n_pixels), -1, dtype=torch.int64, device=vertices.device)
        pixels = torch.arange(n_pixels, device=vertices.device)
        for v in range(view.shape[0]):
            first_face, stop = (0, faces.shape[0]) if ranges is None else ranges[v].tolist()
            corners = camera_vertices(vertices, view[v : v + 1])[0, faces[first_face:stop]][:, None]  # [F, 1, 3, 3]
            x, y = _pixel_rays(pixels, intrinsics[v], width, vertices.dtype)
            best = torch.full_like(x, torch.inf)
            step = max(1, chunk // n_pixels)
            for first in range(0, corners.shape[0], step):
                near, index = _depths(corners[first : first + step], x, y, cull).min(0)
                closer = near < best
                best = torch.where(closer, near, best)
                out[v] = torch.where(closer, index + first_face + first, out[v])
    return out.reshape(-1, height, width)


def barycentrics(
    vertices: Tensor, faces: Tensor, view: Tensor, intrinsics: Tensor, face_id: Tensor
) -> tuple[Tensor, Tensor]:
    """Perspective-correct barycentrics and depth of given visible faces.

    Differentiable with respect to `vertices`, `view` and `intrinsics`, for the visibility that `face_id` fixes. The
    arithmetic is float64, since slivers cancel nearly all digits; gradients at grazing angles are large because the
    true ones are.

    Args:
        face_id: [V, H, W] int64, -1 where there is none.

    Returns:
        bary [V, H, W, 3] and camera-space z [V, H, W] in the dtype of `vertices`; 0 where there is no face.
    """
    n_views, height, width = face_id.shape
    flat = face_id.reshape(-1)
    hit = (flat >= 0).nonzero()[:, 0]  # [P]
    of_view = torch.div(hit, height * width, rounding_mode="floor")
    in_camera = camera_vertices(vertices.double(), view.double())
    corners = in_camera[of_view[:, None], faces[flat[hit]]]  # [P, 3, 3]
    x, y = _pixel_rays(hit % (height * width), intrinsics.double()[of_view], width, torch.float64)
    edges = torch.stack(_edge_functions(corners, x, y), -1)  # [P, 3]
    bary = edges / edges.sum(1, keepdim=True)
    depth = (bary * corners[..., 2]).sum(1)
    all_bary = vertices.new_zeros(flat.shape[0], 3).index_copy(0, hit, bary.to(vertices.dtype))
    all_depth = vertices.new_zeros(flat.shape[0]).index_copy(0, hit, depth.to(vertices.dtype))
    return all_bary.reshape(n_views, height, width, 3), all_depth.reshape(n_views, height, width)


def _pixel_rays(pixels: Tensor, intrinsics: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x, y [P] of the rays (x, y, 1) through the centres of flat pixel indices [P]; intrinsics [3, 3] or [P, 3, 3]."""
    column = (pixels % width).to(dtype) + 0.5
    row = torch.div(pixels, width, rounding_mode="floor").to(dtype) + 0.5
    fx, fy, cx, cy = (intrinsics[..., i, j].to(dtype) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return (column - cx) / fx, (row - cy) / fy


def _edge_functions(corners: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e_0, e_1, e_2 [..., P] of faces [..., (P or 1), 3, 3] at rays (x, y, 1) [P].

    Elementwise on purpose: reduced-precision matmul modes would tear shared edges open.
    """
    (x0, y0), (x1, y1), (x2, y2) = (
        (corners[..., i, 0] - x * corners[..., i, 2], corners[..., i, 1] - y * corners[..., i, 2]) for i in range(3)
    )
    return x1 * y2 - x2 * y1, x2 * y0 - x0 * y2, x0 * y1 - x1 * y0


def _depths(corners: Tensor, x: Tensor, y: Tensor, cull: bool) -> Tensor:
    """Camera z [f, P] where faces [f, 1, 3, 3] meet rays (x, y, 1) [P]; infinite where they do not, or before NEAR."""
    e0, e1, e2 = _edge_functions(corners, x, y)
    total = e0 + e1 + e2
    inside = (e0 <= 0) & (e1 <= 0) & (e2 <= 0)  # counter-clockwise to the eye, since y runs down
    if not cull:
        inside = inside | ((e0 >= 0) & (e1 >= 0) & (e2 >= 0))
    z = (e0 * corners[..., 0, 2] + e1 * corners[..., 1, 2] + e2 * corners[..., 2, 2]) / total
    return torch.where(inside & (total != 0) & (z >= NEAR), z, torch.inf)
