"""Compiled gradients of rasterization and interpolation on the CPU.

Sums over pixels are split into a number of parts that depends on the sizes alone, each summed in the order of its
pixels, and the parts are added in order: results do not depend on the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np

from rl3d.kernels import prange_only
from rl3d.render.mesh_cpu import camera_point


@numba.njit(nogil=True)
def _row_gradient(face_id, grad_bary, grad_depth, vertices, faces, view, k, row, out):  # type: ignore[no-untyped-def]
    """Add the gradient of one row of pixels [W] to out [N, 3] float64.

    With corners p_i = (X_i - x Z_i, Y_i - y Z_i) sheared along the pixel's ray, e_0 = p_1 x p_2 and so on,
    bary = e / sum(e) and z = sum(bary_i Z_i).
    """
    ry = (row + 0.5 - k[1, 2]) / k[1, 1]
    last = np.int64(-1)
    x0 = y0 = z0 = x1 = y1 = z1 = x2 = y2 = z2 = 0.0
    # Sums over the run of pixels that see one face: camera-space gradients of its corners.
    s = np.zeros(9)
    for column in range(face_id.shape[0] + 1):
        f = np.int64(face_id[column]) if column < face_id.shape[0] else np.int64(-1)
        if f != last:
            if last >= 0:
                for i in range(3):
                    j = faces[last, i]
                    for d in range(3):
                        out[j, d] += s[3 * i] * view[0, d] + s[3 * i + 1] * view[1, d] + s[3 * i + 2] * view[2, d]
                for i in range(9):
                    s[i] = 0.0
            if f >= 0:
                x0, y0, z0 = camera_point(view, vertices, faces[f, 0])
                x1, y1, z1 = camera_point(view, vertices, faces[f, 1])
                x2, y2, z2 = camera_point(view, vertices, faces[f, 2])
            last = f
        if f < 0:
            continue
        rx = (column + 0.5 - k[0, 2]) / k[0, 0]
        ax, ay = x0 - rx * z0, y0 - ry * z0
        bx, by = x1 - rx * z1, y1 - ry * z1
        cx, cy = x2 - rx * z2, y2 - ry * z2
        e0, e1, e2 = bx * cy - cx * by, cx * ay - ax * cy, ax * by - bx * ay
        total = e0 + e1 + e2
        if total == 0.0:
            continue
        scale = 1.0 / total
        w0, w1, w2 = e0 * scale, e1 * scale, e2 * scale
        gz = np.float64(grad_depth[column])
        g0, g1, g2 = grad_bary[column, 0] + gz * z0, grad_bary[column, 1] + gz * z1, grad_bary[column, 2] + gz * z2
        mean = g0 * w0 + g1 * w1 + g2 * w2
        g0, g1, g2 = (g0 - mean) * scale, (g1 - mean) * scale, (g2 - mean) * scale
        gax, gay = g1 * -cy + g2 * by, g1 * cx - g2 * bx
        gbx, gby = g0 * cy - g2 * ay, g2 * ax - g0 * cx
        gcx, gcy = g1 * ay - g0 * by, g0 * bx - g1 * ax
        s[0] += gax
        s[1] += gay
        s[2] += gz * w0 - rx * gax - ry * gay
        s[3] += gbx
        s[4] += gby
        s[5] += gz * w1 - rx * gbx - ry * gby
        s[6] += gcx
        s[7] += gcy
        s[8] += gz * w2 - rx * gcx - ry * gcy


@numba.njit(nogil=True)
def _add_parts(parts, first, last, out):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        for d in range(parts.shape[2]):
            total = 0.0
            for part in range(parts.shape[0]):
                total += parts[part, i, d]
            out[i, d] = total


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def rasterize_backward(face_id, grad_bary, grad_depth, vertices, faces, view, intrinsics):  # type: ignore[no-untyped-def]
    """Gradient [N, 3] float32 to vertices of cotangents of barycentrics [V, H, W, 3] and depth [V, H, W]."""
    n_views, height, width = face_id.shape
    n = vertices.shape[0]
    rows = n_views * height
    count = max(1, min(32, rows, rows * width // max(n, 1)))
    parts = np.zeros((count, n, 3))
    for part in numba.prange(count):
        for line in range(part, rows, count):
            v, row = line // height, line % height
            _row_gradient(
                face_id[v, row],
                grad_bary[v, row],
                grad_depth[v, row],
                vertices,
                faces,
                view[v],
                intrinsics[v],
                row,
                parts[part],
            )
    out = np.empty((n, 3), dtype=np.float32)
    for block in numba.prange((n + 4095) // 4096):
        _add_parts(parts, block * 4096, min(n, block * 4096 + 4096), out)
    return out


@numba.njit(nogil=True)
def _interpolate(face_id, bary, values, indices, first, last, out):  # type: ignore[no-untyped-def]
    for p in range(first, last):
        f = face_id[p]
        if f < 0:
            for d in range(values.shape[1]):
                out[p, d] = 0.0
            continue
        a, b, c = indices[f, 0], indices[f, 1], indices[f, 2]
        w0, w1, w2 = bary[p, 0], bary[p, 1], bary[p, 2]
        for d in range(values.shape[1]):
            out[p, d] = w0 * values[a, d] + w1 * values[b, d] + w2 * values[c, d]


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def interpolate_forward(face_id, bary, values, indices):  # type: ignore[no-untyped-def]
    """Values [N, D] at P points: face_id [P] int64, bary [P, 3], indices [F, 3] -> [P, D], 0 where face_id is -1."""
    n = face_id.shape[0]
    out = np.empty((n, values.shape[1]), dtype=np.float32)
    for block in numba.prange((n + 4095) // 4096):
        _interpolate(face_id, bary, values, indices, block * 4096, min(n, block * 4096 + 4096), out)
    return out


@numba.njit(nogil=True)
def _interpolate_backward(face_id, bary, values, indices, cotangent, first, last, grad_bary, sums):  # type: ignore[no-untyped-def]
    for p in range(first, last):
        f = face_id[p]
        if f < 0:
            grad_bary[p, 0] = grad_bary[p, 1] = grad_bary[p, 2] = 0.0
            continue
        a, b, c = indices[f, 0], indices[f, 1], indices[f, 2]
        w0, w1, w2 = bary[p, 0], bary[p, 1], bary[p, 2]
        g0 = g1 = g2 = np.float32(0.0)
        for d in range(values.shape[1]):
            g = cotangent[p, d]
            g0 += g * values[a, d]
            g1 += g * values[b, d]
            g2 += g * values[c, d]
            sums[a, d] += w0 * g
            sums[b, d] += w1 * g
            sums[c, d] += w2 * g
        grad_bary[p, 0], grad_bary[p, 1], grad_bary[p, 2] = g0, g1, g2


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def interpolate_backward(face_id, bary, values, indices, cotangent):  # type: ignore[no-untyped-def]
    """Gradients to bary [P, 3] and values [N, D] of cotangents [P, D]."""
    points, n = face_id.shape[0], values.shape[0]
    count = max(1, min(32, points // max(n, 1)))
    parts = np.zeros((count, n, values.shape[1]))
    grad_bary = np.empty((points, 3), dtype=np.float32)
    for part in numba.prange(count):
        first, last = part * points // count, (part + 1) * points // count
        _interpolate_backward(face_id, bary, values, indices, cotangent, first, last, grad_bary, parts[part])
    out = np.empty((n, values.shape[1]), dtype=np.float32)
    for block in numba.prange((n + 4095) // 4096):
        _add_parts(parts, block * 4096, min(n, block * 4096 + 4096), out)
    return grad_bary, out
