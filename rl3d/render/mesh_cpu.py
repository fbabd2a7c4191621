"""Compiled mesh rasterization on the CPU: z-buffered hard visibility with perspective-correct barycentrics."""

from __future__ import annotations

import numba
import numpy as np

NEAR = 1e-4  # camera-space z below which nothing is drawn, metres


@numba.njit(cache=True, fastmath=False, nogil=True)
def _rasterize_view(cam, faces, fx, fy, cx, cy, height, width, face_id, bary, zbuf):  # type: ignore[no-untyped-def]
    """Rasterize camera-space vertices [N, 3] into one view's buffers; faces that cross NEAR are clipped to it."""
    poly = np.empty((4, 6), dtype=np.float32)  # clipped corners: camera xyz + barycentrics over the original face
    for f in range(faces.shape[0]):
        n = 0
        for k in range(3):
            a, b = faces[f, k], faces[f, (k + 1) % 3]
            za, zb = cam[a, 2], cam[b, 2]
            if za >= NEAR:
                for d in range(3):
                    poly[n, d] = cam[a, d]
                    poly[n, 3 + d] = 1.0 if d == k else 0.0
                n += 1
            if (za >= NEAR) != (zb >= NEAR):
                t = (NEAR - za) / (zb - za)
                for d in range(3):
                    poly[n, d] = cam[a, d] + t * (cam[b, d] - cam[a, d])
                    poly[n, 3 + d] = 0.0
                poly[n, 2] = NEAR
                poly[n, 3 + k] = 1.0 - t
                poly[n, 3 + (k + 1) % 3] = t
                n += 1
        for j in range(1, n - 1):  # the polygon as a fan
            x0 = fx * poly[0, 0] / poly[0, 2] + cx
            y0 = fy * poly[0, 1] / poly[0, 2] + cy
            x1 = fx * poly[j, 0] / poly[j, 2] + cx
            y1 = fy * poly[j, 1] / poly[j, 2] + cy
            x2 = fx * poly[j + 1, 0] / poly[j + 1, 2] + cx
            y2 = fy * poly[j + 1, 1] / poly[j + 1, 2] + cy
            area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
            if abs(area) < 1e-12 or not np.isfinite(area):
                continue
            lo_x = max(0, int(np.ceil(max(min(x0, x1, x2), -1.0) - 0.5)))
            hi_x = min(width - 1, int(np.floor(min(max(x0, x1, x2), width + 1.0) - 0.5)))
            lo_y = max(0, int(np.ceil(max(min(y0, y1, y2), -1.0) - 0.5)))
            hi_y = min(height - 1, int(np.floor(min(max(y0, y1, y2), height + 1.0) - 0.5)))
            inv_area = 1.0 / area
            iz0, iz1, iz2 = 1.0 / poly[0, 2], 1.0 / poly[j, 2], 1.0 / poly[j + 1, 2]
            for py in range(lo_y, hi_y + 1):
                y = py + 0.5
                for px in range(lo_x, hi_x + 1):
                    x = px + 0.5
                    w0 = ((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) * inv_area
                    w1 = ((x2 - x) * (y0 - y) - (x0 - x) * (y2 - y)) * inv_area
                    w2 = 1.0 - w0 - w1
                    if w0 < 0.0 or w1 < 0.0 or w2 < 0.0:
                        continue
                    inv_z = w0 * iz0 + w1 * iz1 + w2 * iz2
                    z = 1.0 / inv_z
                    if z < zbuf[py, px]:
                        zbuf[py, px] = z
                        face_id[py, px] = f
                        for d in range(3):
                            bary[py, px, d] = (
                                w0 * iz0 * poly[0, 3 + d] + w1 * iz1 * poly[j, 3 + d] + w2 * iz2 * poly[j + 1, 3 + d]
                            ) * z


@numba.njit(cache=True, parallel=True, nogil=True)
def rasterize_views(vertices, faces, view, intrinsics, height, width):  # type: ignore[no-untyped-def]
    """All views of one mesh, one thread a view.

    Args:
        vertices: [N, 3] float32, world. faces: [F, 3] int64. view: [V, 4, 4], intrinsics: [V, 3, 3] float32.

    Returns:
        face_id [V, H, W] int32 (-1: nothing), bary [V, H, W, 3] float32, depth [V, H, W] float32 (0: nothing).
    """
    n_views = view.shape[0]
    face_id = np.full((n_views, height, width), -1, dtype=np.int32)
    bary = np.zeros((n_views, height, width, 3), dtype=np.float32)
    depth = np.full((n_views, height, width), np.inf, dtype=np.float32)
    for v in numba.prange(n_views):
        cam = np.empty((vertices.shape[0], 3), dtype=np.float32)
        for i in range(vertices.shape[0]):
            for d in range(3):
                cam[i, d] = (
                    view[v, d, 0] * vertices[i, 0]
                    + view[v, d, 1] * vertices[i, 1]
                    + view[v, d, 2] * vertices[i, 2]
                    + view[v, d, 3]
                )
        _rasterize_view(
            cam,
            faces,
            intrinsics[v, 0, 0],
            intrinsics[v, 1, 1],
            intrinsics[v, 0, 2],
            intrinsics[v, 1, 2],
            height,
            width,
            face_id[v],
            bary[v],
            depth[v],
        )
        for y in range(height):
            for x in range(width):
                if face_id[v, y, x] < 0:
                    depth[v, y, x] = 0.0
    return face_id, bary, depth
