"""Compiled mesh rasterization on the CPU: z-buffered hard visibility with perspective-correct barycentrics.

Faces are drawn from both sides unless back faces are culled. The arithmetic is float64 inside: a corner just in front
of the eye projects millions of pixels away, where float32 edge functions have no digits left. A pixel centre that lies
exactly on an edge belongs to both faces (the nearer one, then the lower index, is kept), and the edge function of
(a, b) is the exact negative of that of (b, a), so that a closed surface has no pinholes.

The work is split into bands of rows of one view. Every pixel sees the faces in the order of their indices, whatever
band it lies in: results do not depend on the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np

from rl3d.kernels import prange_only
from rl3d.render.mesh_torch import NEAR

BLOCK = 4096  # vertices or faces that one thread prepares at a time
PREPARED = 1 << 21  # vertices or faces of all views that are prepared in memory at once: about 80 MB


@numba.njit(nogil=True)
def _clip_face(cam, ids, corners):  # type: ignore[no-untyped-def]
    """Write the part of a face [3, 3] with z >= NEAR into `corners` [4, 3]; returns its number of corners: 0, 3 or 4.

    `ids` are the vertices of the face: neighbours must cut a shared edge at the same point to the last bit.
    """
    n = 0
    for k in range(3):
        a, b = k, (k + 1) % 3
        if cam[a, 2] >= NEAR:
            for d in range(3):
                corners[n, d] = cam[a, d]
            n += 1
        if (cam[a, 2] >= NEAR) != (cam[b, 2] >= NEAR):
            if ids[a] > ids[b]:
                a, b = b, a
            t = (NEAR - cam[a, 2]) / (cam[b, 2] - cam[a, 2])
            corners[n, 0] = cam[a, 0] + t * (cam[b, 0] - cam[a, 0])
            corners[n, 1] = cam[a, 1] + t * (cam[b, 1] - cam[a, 1])
            corners[n, 2] = NEAR
            n += 1
    return n


@numba.njit(nogil=True)
def _draw_triangle(x0, y0, iz0, x1, y1, iz1, x2, y2, iz2, f, first, face_id, inverse_z):  # type: ignore[no-untyped-def]
    """Z-test face `f` on the pixels of a screen triangle (corners in pixels, iz = 1/z) with a positive area.

    face_id, inverse_z [rows, W] are a band whose top row is `first`.
    """
    height, width = face_id.shape
    low, high = np.float64(first) - 1.0, first + height + 1.0
    first_row = max(first, int(np.ceil(max(min(y0, y1, y2), low) - 0.5)))
    last_row = min(first + height - 1, int(np.floor(min(max(y0, y1, y2), high) - 0.5)))
    left = max(0, int(np.ceil(max(min(x0, x1, x2), -1.0) - 0.5)))
    right = min(width - 1, int(np.floor(min(max(x0, x1, x2), width + 1.0) - 0.5)))
    if left > right:
        return
    inv_area = 1.0 / ((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0))
    slope0, slope1, slope2 = y1 - y2, y2 - y0, y0 - y1  # d(edge function)/dx
    x = left + 0.5
    for row in range(first_row, last_row + 1):
        dy0, dy1, dy2 = y0 - (row + 0.5), y1 - (row + 0.5), y2 - (row + 0.5)
        begin, end = left, right
        if right - left > 3:
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
            begin, end = int(min(lo, width)), int(max(hi, -1.0))
        for column in range(begin, end + 1):
            dx0, dx1, dx2 = x0 - (column + 0.5), x1 - (column + 0.5), x2 - (column + 0.5)
            w0 = dx1 * dy2 - dx2 * dy1
            w1 = dx2 * dy0 - dx0 * dy2
            w2 = dx0 * dy1 - dx1 * dy0
            if w0 >= 0.0 and w1 >= 0.0 and w2 >= 0.0:
                # Rounded before the comparison, so that of two coincident faces the first one wins everywhere.
                nearness = np.float32((w0 * iz0 + w1 * iz1 + w2 * iz2) * inv_area)
                if nearness > inverse_z[row - first, column]:
                    inverse_z[row - first, column] = nearness
                    face_id[row - first, column] = f


@numba.njit(nogil=True)
def camera_point(view, vertices, i):  # type: ignore[no-untyped-def]
    """x, y, z of a vertex in the axes of a camera, float64."""
    x, y, z = np.float64(vertices[i, 0]), np.float64(vertices[i, 1]), np.float64(vertices[i, 2])
    return (
        view[0, 0] * x + view[0, 1] * y + view[0, 2] * z + view[0, 3],
        view[1, 0] * x + view[1, 1] * y + view[1, 2] * z + view[1, 3],
        view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + view[2, 3],
    )


@numba.njit(nogil=True)
def _project(vertices, view, k, first, last, base, screen):  # type: ignore[no-untyped-def]
    """screen[i - base] = x, y in pixels and 1 / z of vertices `first` to `last`; 1 / z is 0 before the near plane."""
    for i in range(first, last):
        x, y, z = camera_point(view, vertices, i)
        row = screen[i - base]
        if z >= NEAR:
            iz = 1.0 / z
            row[0], row[1], row[2] = k[0, 0] * x * iz + k[0, 2], k[1, 1] * y * iz + k[1, 2], iz
        else:
            row[2] = 0.0


@numba.njit(nogil=True)
def _rows_of_faces(faces, first, last, base, screen, height, width, cull, rows):  # type: ignore[no-untyped-def]
    """rows[f - face base] = first and last row of pixels that a face may cover; last < first where it covers none."""
    for f in range(first, last):
        a, b, c = faces[f, 0] - base, faces[f, 1] - base, faces[f, 2] - base
        out = rows[f - first]
        in_front = (screen[a, 2] > 0.0) + (screen[b, 2] > 0.0) + (screen[c, 2] > 0.0)
        out[0], out[1] = 0, -1
        if in_front == 3:
            x0, y0, x1, y1, x2, y2 = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1], screen[c, 0], screen[c, 1]
            area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
            if area > (np.inf if cull else 1e-12) or area < -1e-12:
                left = np.ceil(max(min(x0, x1, x2), -1.0) - 0.5)
                right = np.floor(min(max(x0, x1, x2), width + 1.0) - 0.5)
                if left <= right:
                    out[0] = max(0, int(np.ceil(max(min(y0, y1, y2), -1.0) - 0.5)))
                    out[1] = min(height - 1, int(np.floor(min(max(y0, y1, y2), height + 1.0) - 0.5)))
        elif in_front > 0:
            out[1] = height - 1  # cut by the near plane: clipped when it is drawn


@numba.njit(nogil=True)
def _draw_band(faces, f0, f1, base, screen, rows, vertices, view, k, cull, first, face_id):  # type: ignore[no-untyped-def]
    """Nearest face of every pixel of a band [rows, W] that starts at row `first`, among faces f0 to f1."""
    inverse_z = np.zeros(face_id.shape, dtype=np.float32)
    cam, corners = np.empty((3, 3)), np.empty((4, 3))
    x, y, iz = np.empty(4), np.empty(4), np.empty(4)
    last = first + face_id.shape[0] - 1
    for f in range(f0, f1):
        if rows[f - f0, 1] < first or rows[f - f0, 0] > last:
            continue
        n = 3
        clipped = False
        for i in range(3):
            corner = screen[faces[f, i] - base]
            x[i], y[i], iz[i] = corner[0], corner[1], corner[2]
            clipped |= corner[2] == 0.0
        if clipped:
            for i in range(3):
                cam[i, 0], cam[i, 1], cam[i, 2] = camera_point(view, vertices, faces[f, i])
            n = _clip_face(cam, faces[f], corners)
            for i in range(n):
                iz[i] = 1.0 / corners[i, 2]
                x[i] = k[0, 0] * corners[i, 0] * iz[i] + k[0, 2]
                y[i] = k[1, 1] * corners[i, 1] * iz[i] + k[1, 2]
        for p in range(1, n - 1):  # the polygon as a fan
            q = p + 1
            area = (x[p] - x[0]) * (y[q] - y[0]) - (x[q] - x[0]) * (y[p] - y[0])
            if area > 1e-12 and not cull:
                _draw_triangle(x[0], y[0], iz[0], x[p], y[p], iz[p], x[q], y[q], iz[q], f, first, face_id, inverse_z)
            elif area < -1e-12:  # counter-clockwise as seen by the eye, since y runs down: a front face
                _draw_triangle(x[0], y[0], iz[0], x[q], y[q], iz[q], x[p], y[p], iz[p], f, first, face_id, inverse_z)


@numba.njit(nogil=True)
def _resolve_band(vertices, faces, view, k, first, face_id, bary, depth):  # type: ignore[no-untyped-def]
    """Barycentrics and depth of the visible faces of a band (see mesh_torch.barycentrics for the formula)."""
    last = np.int64(-1)
    x0 = y0 = z0 = x1 = y1 = z1 = x2 = y2 = z2 = 0.0
    for row in range(face_id.shape[0]):
        for column in range(face_id.shape[1]):
            f = np.int64(face_id[row, column])
            if f < 0:
                bary[row, column, 0] = bary[row, column, 1] = bary[row, column, 2] = 0.0
                depth[row, column] = 0.0
                continue
            if f != last:
                x0, y0, z0 = camera_point(view, vertices, faces[f, 0])
                x1, y1, z1 = camera_point(view, vertices, faces[f, 1])
                x2, y2, z2 = camera_point(view, vertices, faces[f, 2])
                last = f
            rx, ry = (column + 0.5 - k[0, 2]) / k[0, 0], (first + row + 0.5 - k[1, 2]) / k[1, 1]
            # Corners relative to the pixel's ray: edge functions without cancellation.
            ax, ay = x0 - rx * z0, y0 - ry * z0
            bx, by = x1 - rx * z1, y1 - ry * z1
            gx, gy = x2 - rx * z2, y2 - ry * z2
            w0, w1, w2 = bx * gy - gx * by, gx * ay - ax * gy, ax * by - bx * ay
            if w0 + w1 + w2 < 0.0:
                w0, w1, w2 = -w0, -w1, -w2
            w0, w1, w2 = max(w0, 0.0), max(w1, 0.0), max(w2, 0.0)  # the pixel is inside, rounding says otherwise
            scale = 1.0 / max(w0 + w1 + w2, 1e-300)
            w0, w1, w2 = w0 * scale, w1 * scale, w2 * scale
            bary[row, column, 0], bary[row, column, 1], bary[row, column, 2] = w0, w1, w2
            depth[row, column] = w0 * z0 + w1 * z1 + w2 * z2


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def _rasterize(vertices, faces, view, intrinsics, vertex_range, face_range, height, width, cull, threads):  # type: ignore[no-untyped-def]
    n_views = view.shape[0]
    face_id = np.full((n_views, height, width), -1, dtype=np.int32)
    bary = np.empty((n_views, height, width, 3), dtype=np.float32)
    depth = np.empty((n_views, height, width), dtype=np.float32)
    most_vertices = most_faces = 1
    for v in range(n_views):
        most_vertices = max(most_vertices, vertex_range[v, 1] - vertex_range[v, 0])
        most_faces = max(most_faces, face_range[v, 1] - face_range[v, 0])
    group = max(1, min(n_views, PREPARED // max(most_vertices, most_faces)))
    screen = np.empty((group, most_vertices, 3))
    rows = np.empty((group, most_faces, 2), dtype=np.int32)
    vertex_blocks, face_blocks = (most_vertices + BLOCK - 1) // BLOCK, (most_faces + BLOCK - 1) // BLOCK
    for start in range(0, n_views, group):
        views = min(group, n_views - start)
        for job in numba.prange(views * vertex_blocks):
            v, block = job // vertex_blocks, job % vertex_blocks
            base, stop = vertex_range[start + v]
            first = base + block * BLOCK
            last = min(stop, first + BLOCK)
            _project(vertices, view[start + v], intrinsics[start + v], first, last, base, screen[v])
        for job in numba.prange(views * face_blocks):
            v, block = job // face_blocks, job % face_blocks
            base, stop = face_range[start + v]
            first = min(stop, base + block * BLOCK)
            last = min(stop, first + BLOCK)
            lines = rows[v, first - base : last - base]
            _rows_of_faces(faces, first, last, vertex_range[start + v, 0], screen[v], height, width, cull, lines)
        # Several bands a thread even out their loads; bands of few rows would only read the list of faces more often.
        bands = max(1, min((4 * threads + views - 1) // views, height // 8))
        count = views * bands
        share = (count + threads - 1) // threads
        for i in numba.prange(share * threads):
            job = (i % share) * threads + i // share  # neighbours go to different threads: their loads are alike
            if job < count:
                v, band = job // bands, job % bands
                w = start + v
                first, last = band * height // bands, (band + 1) * height // bands
                ids = face_id[w, first:last]
                f0, f1 = face_range[w]
                base = vertex_range[w, 0]
                _draw_band(faces, f0, f1, base, screen[v], rows[v], vertices, view[w], intrinsics[w], cull, first, ids)
                _resolve_band(
                    vertices, faces, view[w], intrinsics[w], first, ids, bary[w, first:last], depth[w, first:last]
                )
    return face_id, bary, depth


def rasterize_views(vertices, faces, view, intrinsics, height, width, cull=False, ranges=None):  # type: ignore[no-untyped-def]
    """All views of one mesh, or of several in one table. Inputs are trusted: finite vertices, indices in range.

    Args:
        vertices: [N, 3] float32, world. faces: [F, 3] int64. view: [V, 4, 4], intrinsics: [V, 3, 3], float.
        cull: leave faces out that are seen from behind.
        ranges: (vertices [V, 2], faces [V, 2]) int64, the rows from .. to (exclusive) that each view sees; None: all.

    Returns:
        face_id [V, H, W] int32 (-1: nothing), bary [V, H, W, 3] float32, depth [V, H, W] float32 (0: nothing).
    """
    view = np.ascontiguousarray(view, dtype=np.float64)
    intrinsics = np.ascontiguousarray(intrinsics, dtype=np.float64)
    if ranges is None:
        ranges = (np.tile([0, len(vertices)], (len(view), 1)), np.tile([0, len(faces)], (len(view), 1)))
    return _rasterize(vertices, faces, view, intrinsics, *ranges, height, width, bool(cull), numba.get_num_threads())
