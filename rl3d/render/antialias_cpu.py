"""Compiled silhouette antialiasing on the CPU, forward and backward; `antialias_torch` says what it computes.

Finding the silhouette edges is parallel over rows of pixels. Only pixels on silhouettes are blended, a number that
grows with the picture's side, so that is done by one thread in the order of the pixels: results do not depend on the
number of threads. Geometry is float64, colours are float32.
"""

from __future__ import annotations

import numba
import numpy as np

from rl3d.kernels import prange_only
from rl3d.render.antialias_torch import MAX_STEPS, SLACK
from rl3d.render.mesh_torch import NEAR


@numba.njit(nogil=True)
def _places(bits):  # type: ignore[no-untyped-def]
    """The first vertex with the same coordinates as each of bits [N, 3] uint64, by a hash table."""
    n = bits.shape[0]
    size = 16
    while size < 2 * n:
        size *= 2
    table = np.full(size, -1, dtype=np.int64)
    out = np.empty(n, dtype=np.int64)
    mask, factor = np.uint64(size - 1), np.uint64(0x9E3779B97F4A7C15)
    for i in range(n):
        h = bits[i, 0] * factor
        h = ((h ^ (h >> np.uint64(29))) + bits[i, 1]) * factor
        h = ((h ^ (h >> np.uint64(29))) + bits[i, 2]) * factor
        slot = np.int64((h >> np.uint64(20)) & mask)
        while True:
            j = table[slot]
            if j < 0:
                table[slot] = out[i] = i
                break
            if bits[i, 0] == bits[j, 0] and bits[i, 1] == bits[j, 1] and bits[i, 2] == bits[j, 2]:
                out[i] = j
                break
            slot = (slot + 1) % size
    return out


@numba.njit(cache=True, nogil=True)
def adjacent_edges(bits, faces):  # type: ignore[no-untyped-def]
    """As `antialias_torch.adjacent_edges`, int32, by sorting edges into buckets of their lower vertex.

    Args:
        bits: [N, 3] uint64 views of float64 coordinates without negative zeros.
    """
    n_vertices, n_faces = bits.shape[0], faces.shape[0]
    place = _places(bits)
    out = np.full((n_faces, 3), -1, dtype=np.int32)
    start = np.zeros(n_vertices + 1, dtype=np.int64)
    for f in range(n_faces):
        a, b, c = place[faces[f, 0]], place[faces[f, 1]], place[faces[f, 2]]
        if a != b and b != c and c != a:
            start[min(a, b) + 1] += 1
            start[min(b, c) + 1] += 1
            start[min(c, a) + 1] += 1
    for i in range(n_vertices):
        start[i + 1] += start[i]
    # An edge's other vertex and its number in one integer; both stay below 2^31.
    stride = np.int64(3 * n_faces)
    keys = np.empty(start[n_vertices], dtype=np.int64)
    free = start[:-1].copy()
    for f in range(n_faces):
        a, b, c = place[faces[f, 0]], place[faces[f, 1]], place[faces[f, 2]]
        if a != b and b != c and c != a:
            for k in range(3):
                a, b = place[faces[f, k]], place[faces[f, (k + 1) % 3]]
                low = min(a, b)
                keys[free[low]] = max(a, b) * stride + 3 * f + k
                free[low] += 1
    for i in range(n_vertices):
        first, last = start[i], start[i + 1]
        # Shell's sort: np.sort would take as long to compile as all the rest of this kernel.
        gap = 1
        while 3 * gap < last - first:
            gap = 3 * gap + 1
        while gap > 0:
            for j in range(first + gap, last):
                key, q = keys[j], j
                while q >= first + gap and keys[q - gap] > key:
                    keys[q] = keys[q - gap]
                    q -= gap
                keys[q] = key
            gap //= 3
        j = first
        while j < last:
            q = j + 1
            while q < last and keys[q] // stride == keys[j] // stride:
                q += 1
            if q - j > 1:
                for m in range(j, q):
                    number = keys[m] % stride
                    out[number // 3, number % 3] = keys[m + 1 if m + 1 < q else j] % stride
            j = q
    return out


@numba.njit(nogil=True)
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
def _cross(pu, pz, ps, qu, qz, qs, u0, scale):  # type: ignore[no-untyped-def]
    """Where an edge p q with sides ps, qs crosses a row: t, infinite where that is behind the eye."""
    over = ps * qz - qs * pz
    if over / (ps - qs) >= NEAR:
        return ((ps * qu - qs * pu) / over - u0) * scale
    return np.inf


@numba.njit(nogil=True, error_model="numpy")
def _follow(f, u0, v0, scale, steepness, axis, view, vertices, faces, adjacent):  # type: ignore[no-untyped-def]
    """From inside face `f` along the row v0 until its sheet ends: (number 3 f + k of the silhouette edge or -1, last
    face or -1). See `antialias_torch._follow`.

    Args:
        scale: + or - focal length: pixels ahead per unit of u. steepness: focal length of v over that of u.
    """
    au, av, az = _camera_point(view, vertices, faces[f, 0], axis)
    bu, bv, bz = _camera_point(view, vertices, faces[f, 1], axis)
    cu, cv, cz = _camera_point(view, vertices, faces[f, 2], axis)
    sa, sb, sc = av - v0 * az, bv - v0 * bz, cv - v0 * cz
    k, t, best = -1, np.inf, -np.inf
    for i in range(3):
        # Turned by one corner at the end of the loop: a, b are corners i, i + 1.
        if (sa >= 0) != (sb >= 0):
            at = _cross(au, az, sa, bu, bz, sb, u0, scale)
            score = 0.0 if at == np.inf else at
            if score > best:
                k, t, best = i, at, score
        au, av, az, sa, bu, bv, bz, sb, cu, cv, cz, sc = bu, bv, bz, sb, cu, cv, cz, sc, au, av, az, sa
    if k < 0:
        return np.int64(-1), np.int64(-1)
    for _ in range(k):
        au, av, az, sa, bu, bv, bz, sb, cu, cv, cz, sc = bu, bv, bz, sb, cu, cv, cz, sc, au, av, az, sa
    number = np.int64(3 * f + k)
    # The segment leaves a face through the edge a b, whose third corner is c.
    for _ in range(MAX_STEPS):
        if t > 1:
            return np.int64(-1), number // 3
        du, dv, dz = bu - au, bv - av, bz - az
        pu, pv, pz = av * dz - az * dv, az * du - au * dz, au * dv - av * du
        candidate = np.int64(adjacent[number // 3, number % 3])
        onward = np.int64(-1)
        while candidate >= 0 and candidate != number:
            g, m = candidate // 3, candidate % 3
            nu, nv, nz = _camera_point(view, vertices, faces[g, (m + 2) % 3], axis)
            sn = nv - v0 * nz
            with_a = (sa >= 0) != (sn >= 0)
            if with_a:
                at = _cross(nu, nz, sn, au, az, sa, u0, scale)
            else:
                at = _cross(bu, bz, sb, nu, nz, sn, u0, scale)
            if at == np.inf:
                this_side = pu * (cu - au) + pv * (cv - av) + pz * (cz - az)
                that_side = pu * (nu - au) + pv * (nv - av) + pz * (nz - az)
                ahead = this_side * that_side < 0
            else:
                ahead = at >= t - SLACK
            if ahead:
                # The new exit joins the third corner of g with a or b: it is edge m + 2 if that is g's corner m.
                first_u, first_v, first_z = _camera_point(view, vertices, faces[g, m], axis)
                a_is_first = first_u == au and first_v == av and first_z == az
                onward = 3 * g + (m + (2 if with_a == a_is_first else 1)) % 3
                if with_a:
                    cu, cv, cz, sc = bu, bv, bz, sb
                    bu, bv, bz, sb = nu, nv, nz, sn
                else:
                    cu, cv, cz, sc = au, av, az, sa
                    au, av, az, sa = nu, nv, nz, sn
                t = at
                break
            candidate = np.int64(adjacent[g, m])
        if onward < 0:
            steep, flat = abs(pu) * steepness, abs(pv)
            if steep > flat or (axis == 0 and steep == flat):
                return number, np.int64(-1)
            return np.int64(-1), np.int64(-1)
        number = onward
    return np.int64(-1), np.int64(-1)


@numba.njit(nogil=True, error_model="numpy")
def _search_row(face_id, depth, vertices, faces, adjacent, view, intrinsics, v, row, out):  # type: ignore[no-untyped-def]
    """Both passes of one row of pixels: out[axis, column] = 2 slot + (is the second pixel the near one), or -1."""
    height, width = face_id.shape[1], face_id.shape[2]
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
            start, scale = (second, -fu) if swapped else (first, fu)
            slot, end = _follow(near, start, v0, scale, fv / fu, axis, view[v], vertices, faces, adjacent)
            if slot < 0 and end != other and other >= 0:
                swapped = not swapped
                start, scale = (second, -fu) if swapped else (first, fu)
                slot, end = _follow(other, start, v0, scale, fv / fu, axis, view[v], vertices, faces, adjacent)
            if slot >= 0:
                out[axis, column] = 2 * slot + swapped


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def search(face_id, depth, vertices, faces, adjacent, view, intrinsics, threads):  # type: ignore[no-untyped-def]
    """Silhouette edges between pixels and their right and lower adjacent.

    Args:
        face_id: [V, H, W] int32 or int64. depth: [V, H, W] float32. view, intrinsics: float64.

    Returns:
        [V H, 2, W] int32: 2 (3 f + k) + (1 if the second pixel sees the edge's surface), or -1.
    """
    n_views, height, width = face_id.shape
    rows = n_views * height
    out = np.full((rows, 2, width), -1, dtype=np.int32)
    share = (rows + threads - 1) // threads
    for i in numba.prange(share * threads):
        job = (i % share) * threads + i // share
        if job < rows:
            v, row = job // height, job % height
            _search_row(face_id, depth, vertices, faces, adjacent, view, intrinsics, v, row, out[job])
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
        found: [V H, 2, W] int32 out of `search`.

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
            code = np.int64(found[row, axis, column])
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
