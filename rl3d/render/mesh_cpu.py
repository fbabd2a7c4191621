"""Compiled mesh rasterization on the CPU: z-buffered hard visibility with perspective-correct barycentrics.

Faces are drawn from both sides. The arithmetic is float64 inside: a corner just in front of the eye projects millions
of pixels away, where float32 edge functions have no digits left. A pixel centre that lies exactly on an edge belongs to
both faces (the nearer one, then the lower index, is kept), and the edge function of (a, b) is the exact negative of
that of (b, a), so that a closed surface has no pinholes.
"""

from __future__ import annotations

import numba
import numpy as np

NEAR = 1e-4  # camera-space z below which nothing is drawn, metres


@numba.njit(cache=True, nogil=True)
def _clip_face(cam, faces, f, corners):  # type: ignore[no-untyped-def]
    """Write the part of face `f` with z >= NEAR into `corners` [4, 3]; returns its number of corners: 0, 3 or 4."""
    n = 0
    for k in range(3):
        a, b = faces[f, k], faces[f, (k + 1) % 3]
        if cam[a, 2] >= NEAR:
            for d in range(3):
                corners[n, d] = cam[a, d]
            n += 1
        if (cam[a, 2] >= NEAR) != (cam[b, 2] >= NEAR):
            if a > b:  # the neighbour across this edge must find the same point to the last bit
                a, b = b, a
            t = (NEAR - cam[a, 2]) / (cam[b, 2] - cam[a, 2])
            corners[n, 0] = cam[a, 0] + t * (cam[b, 0] - cam[a, 0])
            corners[n, 1] = cam[a, 1] + t * (cam[b, 1] - cam[a, 1])
            corners[n, 2] = NEAR
            n += 1
    return n


@numba.njit(cache=True, nogil=True)
def _draw_triangle(x0, y0, iz0, x1, y1, iz1, x2, y2, iz2, f, face_id, inverse_z):  # type: ignore[no-untyped-def]
    """Z-test face `f` on the pixels of a screen triangle (corners in pixels, iz = 1/z) with a positive area."""
    height, width = face_id.shape
    first_row = max(0, int(np.ceil(max(min(y0, y1, y2), -1.0) - 0.5)))
    last_row = min(height - 1, int(np.floor(min(max(y0, y1, y2), height + 1.0) - 0.5)))
    left = max(0, int(np.ceil(max(min(x0, x1, x2), -1.0) - 0.5)))
    right = min(width - 1, int(np.floor(min(max(x0, x1, x2), width + 1.0) - 0.5)))
    if left > right:
        return
    inv_area = 1.0 / ((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0))
    slope0, slope1, slope2 = y1 - y2, y2 - y0, y0 - y1  # d(edge function)/dx
    x = left + 0.5
    for row in range(first_row, last_row + 1):
        dy0, dy1, dy2 = y0 - (row + 0.5), y1 - (row + 0.5), y2 - (row + 0.5)
        # Where the three edges cross this row, a pixel generously: the exact test below decides.
        lo, hi = float(left), float(right)
        for edge, slope in (
            ((x1 - x) * dy2 - (x2 - x) * dy1, slope0),
            ((x2 - x) * dy0 - (x0 - x) * dy2, slope1),
            ((x0 - x) * dy1 - (x1 - x) * dy0, slope2),
        ):
            if slope > 0.0:
                lo = max(lo, left - edge / slope - 1.0)
            elif slope < 0.0:
                hi = min(hi, left - edge / slope + 1.0)
        for column in range(int(min(lo, width)), int(max(hi, -1.0)) + 1):
            dx0, dx1, dx2 = x0 - (column + 0.5), x1 - (column + 0.5), x2 - (column + 0.5)
            w0 = dx1 * dy2 - dx2 * dy1
            w1 = dx2 * dy0 - dx0 * dy2
            w2 = dx0 * dy1 - dx1 * dy0
            if w0 >= 0.0 and w1 >= 0.0 and w2 >= 0.0:
                # Rounded before the comparison, so that of two coincident faces the first one wins everywhere.
                nearness = np.float32((w0 * iz0 + w1 * iz1 + w2 * iz2) * inv_area)
                if nearness > inverse_z[row, column]:
                    inverse_z[row, column] = nearness
                    face_id[row, column] = f


@numba.njit(cache=True, nogil=True)
def _draw_view(cam, faces, fx, fy, cx, cy, face_id):  # type: ignore[no-untyped-def]
    """Nearest face of every pixel into `face_id`; `cam` [N, 3] are camera-space vertices."""
    inverse_z = np.zeros(face_id.shape, dtype=np.float32)
    corners = np.empty((4, 3))
    x, y, iz = np.empty(4), np.empty(4), np.empty(4)
    for f in range(faces.shape[0]):
        n = _clip_face(cam, faces, f, corners)
        for i in range(n):
            iz[i] = 1.0 / corners[i, 2]
            x[i] = fx * corners[i, 0] * iz[i] + cx
            y[i] = fy * corners[i, 1] * iz[i] + cy
        for j in range(1, n - 1):  # the polygon as a fan
            k = j + 1
            area = (x[j] - x[0]) * (y[k] - y[0]) - (x[k] - x[0]) * (y[j] - y[0])
            if area > 1e-12:
                _draw_triangle(x[0], y[0], iz[0], x[j], y[j], iz[j], x[k], y[k], iz[k], f, face_id, inverse_z)
            elif area < -1e-12:
                _draw_triangle(x[0], y[0], iz[0], x[k], y[k], iz[k], x[j], y[j], iz[j], f, face_id, inverse_z)


@numba.njit(cache=True, nogil=True)
def _resolve_view(cam, faces, fx, fy, cx, cy, face_id, bary, depth):  # type: ignore[no-untyped-def]
    """Barycentrics and depth of the visible faces (see mesh_torch.barycentrics for the formula)."""
    for row in range(face_id.shape[0]):
        for column in range(face_id.shape[1]):
            f = face_id[row, column]
            if f < 0:
                continue
            rx, ry = (column + 0.5 - cx) / fx, (row + 0.5 - cy) / fy
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            # Corners relative to the pixel's ray: edge functions without cancellation.
            ax, ay = cam[a, 0] - rx * cam[a, 2], cam[a, 1] - ry * cam[a, 2]
            bx, by = cam[b, 0] - rx * cam[b, 2], cam[b, 1] - ry * cam[b, 2]
            gx, gy = cam[c, 0] - rx * cam[c, 2], cam[c, 1] - ry * cam[c, 2]
            w0, w1, w2 = bx * gy - gx * by, gx * ay - ax * gy, ax * by - bx * ay
            total = w0 + w1 + w2
            if total < 0.0:
                w0, w1, w2 = -w0, -w1, -w2
            w0, w1, w2 = max(w0, 0.0), max(w1, 0.0), max(w2, 0.0)  # the pixel is inside, rounding says otherwise
            scale = 1.0 / max(w0 + w1 + w2, 1e-300)
            w0, w1, w2 = w0 * scale, w1 * scale, w2 * scale
            bary[row, column, 0], bary[row, column, 1], bary[row, column, 2] = w0, w1, w2
            depth[row, column] = w0 * cam[a, 2] + w1 * cam[b, 2] + w2 * cam[c, 2]


@numba.njit(cache=True, parallel=True, nogil=True)
def rasterize_views(vertices, faces, view, intrinsics, height, width):  # type: ignore[no-untyped-def]
    """All views of one mesh, one thread a view. Inputs are trusted: finite vertices, indices in range.

    Args:
        vertices: [N, 3] float32, world. faces: [F, 3] int64. view: [V, 4, 4], intrinsics: [V, 3, 3] float32.

    Returns:
        face_id [V, H, W] int32 (-1: nothing), bary [V, H, W, 3] float32, depth [V, H, W] float32 (0: nothing).
    """
    n_views = view.shape[0]
    face_id = np.full((n_views, height, width), -1, dtype=np.int32)
    bary = np.zeros((n_views, height, width, 3), dtype=np.float32)
    depth = np.zeros((n_views, height, width), dtype=np.float32)
    for v in numba.prange(n_views):
        cam = np.empty((vertices.shape[0], 3))
        for i in range(vertices.shape[0]):
            for d in range(3):
                cam[i, d] = (
                    np.float64(view[v, d, 0]) * vertices[i, 0]
                    + np.float64(view[v, d, 1]) * vertices[i, 1]
                    + np.float64(view[v, d, 2]) * vertices[i, 2]
                    + np.float64(view[v, d, 3])
                )
        fx, fy = np.float64(intrinsics[v, 0, 0]), np.float64(intrinsics[v, 1, 1])
        cx, cy = np.float64(intrinsics[v, 0, 2]), np.float64(intrinsics[v, 1, 2])
        _draw_view(cam, faces, fx, fy, cx, cy, face_id[v])
        _resolve_view(cam, faces, fx, fy, cx, cy, face_id[v], bary[v], depth[v])
    return face_id, bary, depth
