"""Compiled silhouette antialiasing on the CPU, forward and backward; `antialias_torch` says what it computes.

Finding the silhouette edges is parallel over rows of pixels. Only pixels on silhouettes are blended, a number that
grows with the picture's side, so that is done by one thread in the order of the pixels: results do not depend on the
number of threads. Geometry is float64, colours are float32.
"""

from __future__ import annotations

import numba
import numpy as np

from rl3d.render.antialias_torch import MAX_STEPS
from rl3d.render.mesh_torch import NEAR


@numba.njit(cache=True, nogil=True)
def neighbours_of(faces, n_vertices):  # type: ignore[no-untyped-def]
    """As `antialias_torch.face_neighbours`, int32, by sorting edges into buckets of their lower vertex."""
    n_faces = faces.shape[0]
    out = np.full((n_faces, 3), -1, dtype=np.int32)
    start = np.zeros(n_vertices + 1, dtype=np.int64)
    for f in range(n_faces):
        for k in range(3):
            start[min(faces[f, k], faces[f, (k + 1) % 3]) + 1] += 1
    for i in range(n_vertices):
        start[i + 1] += start[i]
    high = np.empty(3 * n_faces, dtype=np.int64)  # the edge's other vertex
    slot = np.empty(3 * n_faces, dtype=np.int64)  # 3 f + k
    place = start[:-1].copy()
    for f in range(n_faces):
        for k in range(3):
            a, b = faces[f, k], faces[f, (k + 1) % 3]
            low = min(a, b)
            high[place[low]], slot[place[low]] = max(a, b), 3 * f + k
            place[low] += 1
    for i in range(n_vertices):
        first, last = start[i], start[i + 1]
        if last - first > 48:
            order = np.argsort(high[first:last]) + first
            high[first:last], slot[first:last] = high[order], slot[order]
        else:
            for j in range(first + 1, last):
                h, s, q = high[j], slot[j], j
                while q > first and high[q - 1] > h:
                    high[q], slot[q] = high[q - 1], slot[q - 1]
                    q -= 1
                high[q], slot[q] = h, s
        j = first
        while j < last:
            q = j + 1
            while q < last and high[q] == high[j]:
                q += 1
            if q - j == 2 and high[j] != i and slot[j] // 3 != slot[j + 1] // 3:
                out[slot[j] // 3, slot[j] % 3] = slot[j + 1] // 3
                out[slot[j + 1] // 3, slot[j + 1] % 3] = slot[j] // 3
            j = q
    return out


@numba.njit(nogil=True, inline="always")
def _camera_point(view, vertices, i, axis):  # type: ignore[no-untyped-def]
    """(u, v, z) of a vertex in the camera; u is x for axis 0 and y for axis 1."""
    x, y, z = np.float64(vertices[i, 0]), np.float64(vertices[i, 1]), np.float64(vertices[i, 2])
    cx = view[0, 0] * x + view[0, 1] * y + view[0, 2] * z + view[0, 3]
    cy = view[1, 0] * x + view[1, 1] * y + view[1, 2] * z + view[1, 3]
    cz = view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + view[2, 3]
    if axis == 0:
        return cx, cy, cz
    return cy, cx, cz


@numba.njit(nogil=True, error_model="numpy")
def _follow(work, f, u0, v0, sign, fu, fv, axis, view, vertices, faces, neighbours):  # type: ignore[no-untyped-def]
    """From inside face `f` along the row v0 until its sheet ends: (slot 3 f + k of the silhouette edge or -1, last
    face or -1). See `antialias_torch._follow`.
    """
    u, v, z, side = work[0], work[1], work[2], work[3]
    for k in range(3):
        u[k], v[k], z[k] = _camera_point(view, vertices, faces[f, k], axis)
        side[k] = v[k] - v0 * z[k]
    entered = -1
    for _ in range(MAX_STEPS):
        k, t, best = -1, np.inf, -np.inf
        for i in range(3):
            j = (i + 1) % 3
            if i == entered or (side[i] >= 0) == (side[j] >= 0):
                continue
            over = side[i] * z[j] - side[j] * z[i]
            at, score = np.inf, 0.0
            if over / (side[i] - side[j]) >= NEAR:
                at = sign * ((side[i] * u[j] - side[j] * u[i]) / over - u0) * fu
                score = at
            if score > best:
                k, t, best = i, at, score
        if k < 0:
            return np.int64(-1), np.int64(-1)
        if t > 1:
            return np.int64(-1), np.int64(f)
        j, m = (k + 1) % 3, (k + 2) % 3
        du, dv, dz = u[j] - u[k], v[j] - v[k], z[j] - z[k]
        pu, pv, pz = v[k] * dz - z[k] * dv, z[k] * du - u[k] * dz, u[k] * dv - v[k] * du
        beyond = neighbours[f, k]
        silhouette = beyond < 0
        if not silhouette:
            a, b = faces[f, k], faces[f, j]
            third = 0
            while faces[beyond, third] == a or faces[beyond, third] == b:
                third += 1
            nu, nv, nz = _camera_point(view, vertices, faces[beyond, third], axis)
            this_side = pu * (u[m] - u[k]) + pv * (v[m] - v[k]) + pz * (z[m] - z[k])
            that_side = pu * (nu - u[k]) + pv * (nv - v[k]) + pz * (nz - z[k])
            silhouette = not (this_side * that_side < 0)
            if not silhouette:
                # The corners of the next face in its own order; two of them are known.
                at_a = 0
                for i in range(3):
                    if i != third and faces[beyond, i] == a:
                        at_a = i
                ua, va, za, sa = u[k], v[k], z[k], side[k]
                ub, vb, zb, sb = u[j], v[j], z[j], side[j]
                at_b = 3 - third - at_a
                u[third], v[third], z[third], side[third] = nu, nv, nz, nv - v0 * nz
                u[at_a], v[at_a], z[at_a], side[at_a] = ua, va, za, sa
                u[at_b], v[at_b], z[at_b], side[at_b] = ub, vb, zb, sb
                f, entered = np.int64(beyond), (third + 1) % 3
        if silhouette:
            steep, flat = abs(pu) / fu, abs(pv) / fv
            if steep > flat or (axis == 0 and steep == flat):
                return np.int64(3 * f + k), np.int64(-1)
            return np.int64(-1), np.int64(-1)
    return np.int64(-1), np.int64(-1)


@numba.njit(nogil=True, error_model="numpy")
def _search_row(face_id, depth, vertices, faces, neighbours, view, intrinsics, v, row, out):  # type: ignore[no-untyped-def]
    """Both passes of one row of pixels: out[axis, column] = 2 slot + (is the second pixel the near one), or -1."""
    height, width = face_id.shape[1], face_id.shape[2]
    work = np.empty((4, 3))
    for axis in range(2):
        fu, fv = intrinsics[v, axis, axis], intrinsics[v, 1 - axis, 1 - axis]
        cu, cv = intrinsics[v, axis, 2], intrinsics[v, 1 - axis, 2]
        for column in range(width):
            row2, column2 = (row, column + 1) if axis == 0 else (row + 1, column)
            if row2 >= height or column2 >= width:
                continue
            f, g = face_id[v, row, column], face_id[v, row2, column2]
            if f == g:
                continue
            if axis == 0:
                first, second, rest = column + 0.5, column2 + 0.5, row + 0.5
            else:
                first, second, rest = row + 0.5, row2 + 0.5, column + 0.5
            first, second, v0 = (first - cu) / fu, (second - cu) / fu, (rest - cv) / fv
            swapped = f < 0 or (g >= 0 and depth[v, row2, column2] < depth[v, row, column])
            near, other = (g, f) if swapped else (f, g)
            start, sign = (second, -1.0) if swapped else (first, 1.0)
            slot, end = _follow(work, near, start, v0, sign, fu, fv, axis, view[v], vertices, faces, neighbours)
            if slot < 0 and end != other and other >= 0:
                swapped = not swapped
                start, sign = (second, -1.0) if swapped else (first, 1.0)
                slot, end = _follow(work, other, start, v0, sign, fu, fv, axis, view[v], vertices, faces, neighbours)
            if slot >= 0:
                out[axis, column] = 2 * slot + swapped


@numba.njit(cache=True, parallel=True, nogil=True)
def search(face_id, depth, vertices, faces, neighbours, view, intrinsics, threads):  # type: ignore[no-untyped-def]
    """Silhouette edges between pixels and their right and lower neighbours.

    Args:
        face_id: [V, H, W] int32 or int64. depth: [V, H, W] float32. view, intrinsics: float64.

    Returns:
        [V H, 2, W] int64: 2 (3 f + k) + (1 if the second pixel sees the edge's surface), or -1.
    """
    n_views, height, width = face_id.shape
    rows = n_views * height
    out = np.full((rows, 2, width), -1, dtype=np.int64)
    share = (rows + threads - 1) // threads
    for i in numba.prange(share * threads):
        job = (i % share) * threads + i // share
        if job < rows:
            v, row = job // height, job % height
            _search_row(face_id, depth, vertices, faces, neighbours, view, intrinsics, v, row, out[job])
    return out


@numba.njit(nogil=True, error_model="numpy")
def _crossing(near, far, a, b, vertices, view, intrinsics, height, width, axis):  # type: ignore[no-untyped-def]
    """What the position of one crossing is made of: t, u, v0, the homogeneous divisor, and both points."""
    v, pixel = near // (height * width), near % (height * width)
    row, column = pixel // width, pixel % width
    fu, fv = intrinsics[v, axis, axis], intrinsics[v, 1 - axis, 1 - axis]
    cu, cv = intrinsics[v, axis, 2], intrinsics[v, 1 - axis, 2]
    at, rest = (column, row) if axis == 0 else (row, column)
    u0, v0 = (at + 0.5 - cu) / fu, (rest + 0.5 - cv) / fv
    ua, va, za = _camera_point(view[v], vertices, a, axis)
    ub, vb, zb = _camera_point(view[v], vertices, b, axis)
    sa, sb = va - v0 * za, vb - v0 * zb
    over = sa * zb - sb * za
    u = (sa * ub - sb * ua) / over
    scale = fu if far > near else -fu
    return (u - u0) * scale, scale, u, v0, over, ua, za, sa, ub, zb, sb


@numba.njit(cache=True, nogil=True)
def collect(found, axis, vertices, faces, view, intrinsics, height, width):  # type: ignore[no-untyped-def]
    """The crossings of one pass in the order of pixels.

    Args:
        found: [V H, 2, W] out of `search`.

    Returns:
        pairs [K, 6] int64: near, far, the edge's vertices a, b, and the pixels that are blended into and out of;
        share [K] float32.
    """
    count = 0
    for row in range(found.shape[0]):
        for column in range(width):
            count += found[row, axis, column] >= 0
    pairs, share = np.empty((count, 6), dtype=np.int64), np.empty(count, dtype=np.float32)
    k = 0
    for row in range(found.shape[0]):
        for column in range(width):
            code = found[row, axis, column]
            if code < 0:
                continue
            near = row * width + column
            far = near + (1 if axis == 0 else width)
            if code % 2:
                near, far = far, near
            f, slot = code // 6, code // 2 % 3
            a, b = faces[f, slot], faces[f, (slot + 1) % 3]
            t = _crossing(near, far, a, b, vertices, view, intrinsics, height, width, axis)[0]
            t = min(max(t, 0.0), 1.0)
            pairs[k, 0], pairs[k, 1], pairs[k, 2], pairs[k, 3] = near, far, a, b
            pairs[k, 4], pairs[k, 5] = (far, near) if t > 0.5 else (near, far)
            share[k] = abs(t - 0.5)
            k += 1
    return pairs, share


@numba.njit(cache=True, nogil=True)
def blend(image, pairs, share):  # type: ignore[no-untyped-def]
    """Blend in place; image [P, D] float32. Returns the differences [K, D] that the shares multiply."""
    difference = np.empty((pairs.shape[0], image.shape[1]), dtype=np.float32)
    for k in range(pairs.shape[0]):
        for d in range(image.shape[1]):
            difference[k, d] = image[pairs[k, 5], d] - image[pairs[k, 4], d]
    for k in range(pairs.shape[0]):
        for d in range(image.shape[1]):
            image[pairs[k, 4], d] += share[k] * difference[k, d]
    return difference


@numba.njit(cache=True, nogil=True)
def blend_backward(cotangent, pairs, share, difference):  # type: ignore[no-untyped-def]
    """Turn the cotangent [P, D] of the blended image into that of the image, in place; returns that of the shares."""
    moved = np.empty((pairs.shape[0], cotangent.shape[1]), dtype=np.float32)
    out = np.zeros(pairs.shape[0])
    for k in range(pairs.shape[0]):
        for d in range(cotangent.shape[1]):
            out[k] += np.float64(cotangent[pairs[k, 4], d]) * difference[k, d]
            moved[k, d] = share[k] * cotangent[pairs[k, 4], d]
    for k in range(pairs.shape[0]):
        for d in range(cotangent.shape[1]):
            cotangent[pairs[k, 5], d] += moved[k, d]
            cotangent[pairs[k, 4], d] -= moved[k, d]
    return out


@numba.njit(cache=True, nogil=True)
def positions_backward(cotangent, pairs, vertices, view, intrinsics, height, width, axis, out):  # type: ignore[no-untyped-def]
    """Add the gradient to vertices, out [N, 3] float64, of cotangents [K] of the shares.

    A crossing at u = (s_a b_u - s_b a_u) / o with s = v - v0 z and o = s_a b_z - s_b a_z moves by
    du = (-s_b da_u + (b_u - u b_z) da_v + s_a db_u - (a_u - u a_z) db_v) / o, and a step dz is one of -(u, v0) dz.
    """
    for k in range(pairs.shape[0]):
        near, far, a, b = pairs[k, 0], pairs[k, 1], pairs[k, 2], pairs[k, 3]
        _, scale, u, v0, over, ua, za, sa, ub, zb, sb = _crossing(
            near, far, a, b, vertices, view, intrinsics, height, width, axis
        )
        g = cotangent[k] * scale / over
        if pairs[k, 4] == near:
            g = -g
        v = near // (height * width)
        gau, gav = -g * sb, g * (ub - u * zb)
        gbu, gbv = g * sa, -g * (ua - u * za)
        first, second = (0, 1) if axis == 0 else (1, 0)  # the camera's axes of u and v
        for d in range(3):
            along = view[v, first, d] - u * view[v, 2, d]
            across = view[v, second, d] - v0 * view[v, 2, d]
            out[a, d] += gau * along + gav * across
            out[b, d] += gbu * along + gbv * across
