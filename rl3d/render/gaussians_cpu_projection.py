"""The compiled splatter's ends: project and bin the Gaussians; gather gradients and carry them back to the Gaussians.

Scalars are float64 inside, so that a needle's covariance keeps its determinant; what is stored is float32.
A (Gaussian, tile) pair that is drawn is called an "entry".
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from rl3d.kernels import prange_only
from rl3d.render import gaussians_torch as reference

TILE = 8  # pixels along an edge

_NEAR = reference.NEAR
_LOW_PASS = reference.LOW_PASS
_MARGIN = reference.FRUSTUM_MARGIN
_ALPHA_MIN = reference.ALPHA_MIN


class Plan(NamedTuple):
    """What the forward pass leaves for the backward pass: the projection and the binning."""

    projected: NDArray[
        np.float32
    ]  # [V, N, 8]: centre x, y; conic xx, xy, yy; opacity; depth; half height of the visible ellipse
    entry_offset: NDArray[np.int64]  # [V, N + 1] into the entries, per Gaussian in its own order
    tile_offset: NDArray[np.int64]  # [V * tiles + 1] into the next two
    tile_gaussian: NDArray[np.int32]  # [E] Gaussians per tile, nearest first
    tile_entry: NDArray[np.int64]  # [E] their entries


@numba.njit(error_model="numpy")
def _rotation(quaternions, i):  # type: ignore[no-untyped-def]
    """The unit quaternion, 1 / its former length, and its rotation matrix, row by row."""
    w, x, y, z = (
        np.float64(quaternions[i, 0]),
        np.float64(quaternions[i, 1]),
        np.float64(quaternions[i, 2]),
        np.float64(quaternions[i, 3]),
    )
    s = 1.0 / np.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * s, x * s, y * s, z * s
    r = (
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    )
    return (w, x, y, z, s), r


@numba.njit(error_model="numpy")
def _camera_point(means, i, view, v):  # type: ignore[no-untyped-def]
    mx, my, mz = np.float64(means[i, 0]), np.float64(means[i, 1]), np.float64(means[i, 2])
    return (
        view[v, 0, 0] * mx + view[v, 0, 1] * my + view[v, 0, 2] * mz + view[v, 0, 3],
        view[v, 1, 0] * mx + view[v, 1, 1] * my + view[v, 1, 2] * mz + view[v, 1, 3],
        view[v, 2, 0] * mx + view[v, 2, 1] * my + view[v, 2, 2] * mz + view[v, 2, 3],
    )


@numba.njit(error_model="numpy")
def _ray_slopes(x, y, z, intrinsics, v, height, width):  # type: ignore[no-untyped-def]
    """x/z and y/z clamped to the enlarged frustum, and whether each one was inside."""
    fx, fy, cx, cy = intrinsics[v, 0, 0], intrinsics[v, 1, 1], intrinsics[v, 0, 2], intrinsics[v, 1, 2]
    px, py = _MARGIN * 0.5 * width / fx, _MARGIN * 0.5 * height / fy
    u, w = x / z, y / z
    cu = min(max(u, -cx / fx - px), (width - cx) / fx + px)
    cw = min(max(w, -cy / fy - py), (height - cy) / fy + py)
    return cu, cw, cu == u, cw == w


@numba.njit(error_model="numpy")
def _spread(scales, i, r, view, v, fx, fy, z, u, w):  # type: ignore[no-untyped-def]
    """Rows of J W R S, the 2 x 3 root of the 2D covariance, and U = W R S (row by row)."""
    s0, s1, s2 = np.float64(scales[i, 0]), np.float64(scales[i, 1]), np.float64(scales[i, 2])
    a0, a1, a2, b0, b1, b2, c0, c1, c2 = r
    w00, w01, w02 = view[v, 0, 0], view[v, 0, 1], view[v, 0, 2]
    w10, w11, w12 = view[v, 1, 0], view[v, 1, 1], view[v, 1, 2]
    w20, w21, w22 = view[v, 2, 0], view[v, 2, 1], view[v, 2, 2]
    u00, u01, u02 = (
        (w00 * a0 + w01 * b0 + w02 * c0) * s0,
        (w00 * a1 + w01 * b1 + w02 * c1) * s1,
        (w00 * a2 + w01 * b2 + w02 * c2) * s2,
    )
    u10, u11, u12 = (
        (w10 * a0 + w11 * b0 + w12 * c0) * s0,
        (w10 * a1 + w11 * b1 + w12 * c1) * s1,
        (w10 * a2 + w11 * b2 + w12 * c2) * s2,
    )
    u20, u21, u22 = (
        (w20 * a0 + w21 * b0 + w22 * c0) * s0,
        (w20 * a1 + w21 * b1 + w22 * c1) * s1,
        (w20 * a2 + w21 * b2 + w22 * c2) * s2,
    )
    jx, jxz, jy, jyz = fx / z, -fx * u / z, fy / z, -fy * w / z
    top = (jx * u00 + jxz * u20, jx * u01 + jxz * u21, jx * u02 + jxz * u22)
    bottom = (jy * u10 + jyz * u20, jy * u11 + jyz * u21, jy * u12 + jyz * u22)
    return top, bottom, (u00, u01, u02, u10, u11, u12, u20, u21, u22)


@numba.njit(error_model="numpy")
def _tile_rows(p, tiles_y):  # type: ignore[no-untyped-def]
    """The rows of tiles [first, last) that the box around the visible ellipse touches; nothing: (0, 0)."""
    first = np.ceil(max(np.float64(p[1]) - np.float64(p[7]) - 0.51, 0.0))  # rows of pixels, centres at +0.5
    last = np.floor(min(np.float64(p[1]) + np.float64(p[7]) - 0.49, tiles_y * TILE - 1.0))
    if not first <= last:
        return 0, 0
    return int(first) // TILE, int(last) // TILE + 1


@numba.njit(error_model="numpy")
def _tile_span(row, p, reach, tiles_x):  # type: ignore[no-untyped-def]
    """The tiles [first, last) of one row of tiles that the ellipse (d^T conic d <= reach) touches; nothing: (0, 0)."""
    mx, my, a, b, c = np.float64(p[0]), np.float64(p[1]), np.float64(p[2]), np.float64(p[3]), np.float64(p[4])
    determinant = a * c - b * b
    half_y = np.sqrt(reach * a / determinant)
    low = max(row * TILE + 0.49 - my, -half_y)
    high = min(row * TILE + TILE - 0.49 - my, half_y)
    if not low <= high:
        return 0, 0
    # The rightmost point of the ellipse, moved along it into the strip of pixel centres [low, high]; left: mirrored.
    tip = -b / c * np.sqrt(reach * c / determinant)
    y = min(max(tip, low), high)
    right = (-b * y + np.sqrt(max(reach * a - determinant * y * y, 0.0))) / a
    y = min(max(-tip, low), high)
    left = (-b * y - np.sqrt(max(reach * a - determinant * y * y, 0.0))) / a
    first = np.ceil(max(mx + left - 0.51, 0.0))  # columns of pixels
    last = np.floor(min(mx + right - 0.49, tiles_x * TILE - 1.0))
    if not first <= last:
        return 0, 0
    return int(first) // TILE, int(last) // TILE + 1


@numba.njit(error_model="numpy")
def _reach(opacity):  # type: ignore[no-untyped-def]
    """The squared Mahalanobis distance at which alpha falls to ALPHA_MIN, with slack for the float32 of the loops."""
    return 2 * np.log(np.float64(opacity) / _ALPHA_MIN) + 1e-3


@numba.njit(error_model="numpy")
def _project_one(means, scales, quaternions, opacities, view, intrinsics, i, v, height, width, out):  # type: ignore[no-untyped-def]
    """Project Gaussian i into view v; False where it is not drawn."""
    out[6] = 0.0
    if not opacities[i] >= _ALPHA_MIN:
        return False
    x, y, z = _camera_point(means, i, view, v)
    if not z >= _NEAR:
        return False
    fx, fy, cx, cy = intrinsics[v, 0, 0], intrinsics[v, 1, 1], intrinsics[v, 0, 2], intrinsics[v, 1, 2]
    u, w, _, _ = _ray_slopes(x, y, z, intrinsics, v, height, width)
    _, r = _rotation(quaternions, i)
    top, bottom, _ = _spread(scales, i, r, view, v, fx, fy, z, u, w)
    xx = top[0] * top[0] + top[1] * top[1] + top[2] * top[2] + _LOW_PASS
    yy = bottom[0] * bottom[0] + bottom[1] * bottom[1] + bottom[2] * bottom[2] + _LOW_PASS
    xy = top[0] * bottom[0] + top[1] * bottom[1] + top[2] * bottom[2]
    determinant = xx * yy - xy * xy
    if not (determinant > 0 and np.isfinite(determinant)):
        return False
    out[0] = fx * x / z + cx
    out[1] = fy * y / z + cy
    out[2] = yy / determinant
    out[3] = -xy / determinant
    out[4] = xx / determinant
    out[5] = opacities[i]
    out[6] = z
    out[7] = np.sqrt(_reach(opacities[i]) * yy)
    # The conic is rounded to float32 here; a needle's may lose its positive determinant.
    return np.float64(out[2]) * np.float64(out[4]) > np.float64(out[3]) * np.float64(out[3])


@numba.njit(nogil=True)
def _sort_by_depth(projected, offset):  # type: ignore[no-untyped-def]
    """Indices of one view's Gaussians that have entries, nearest first, ties by index: radix sort of the float bits."""
    n = 0
    for i in range(projected.shape[0]):
        if offset[i + 1] > offset[i]:
            n += 1
    keys, other_keys = np.empty(n, np.uint32), np.empty(n, np.uint32)
    order, other = np.empty(n, np.int32), np.empty(n, np.int32)
    n = 0
    for i in range(projected.shape[0]):
        if offset[i + 1] > offset[i]:
            keys[n] = np.float32(projected[i, 6]).view(np.uint32)
            order[n] = i
            n += 1
    counts = np.empty(2049, np.int64)
    for shift in (0, 11, 22):
        counts[:] = 0
        for i in range(n):
            counts[((keys[i] >> np.uint32(shift)) & np.uint32(2047)) + 1] += 1
        for i in range(2048):
            counts[i + 1] += counts[i]
        for i in range(n):
            digit = (keys[i] >> np.uint32(shift)) & np.uint32(2047)
            j = counts[digit]
            counts[digit] = j + 1
            other_keys[j] = keys[i]
            other[j] = order[i]
        keys, other_keys = other_keys, keys
        order, other = other, order
    return order


@numba.njit(error_model="numpy")
def _list_tiles(p, tiles_x, tiles_y, entry, entry_tile):  # type: ignore[no-untyped-def]
    """How many tiles a projected Gaussian touches; with an array of entries, also writes them from `entry` on."""
    count = 0
    reach = _reach(p[5])
    row0, row1 = _tile_rows(p, tiles_y)
    for row in range(row0, row1):
        first, last = _tile_span(row, p, reach, tiles_x)
        if entry_tile.shape[0] > 0:
            for column in range(first, last):
                entry_tile[entry + count + column - first] = row * tiles_x + column
        count += last - first
    return count


@numba.njit(nogil=True)
def _sort_entries(projected, offset, entry_tile, tile_offset, tile_gaussian, tile_entry):  # type: ignore[no-untyped-def]
    """One view's entries by tile, nearest first; `tile_offset` [tiles + 1] is filled but for its last place."""
    tiles = tile_offset.shape[0] - 1
    position = np.zeros(tiles + 1, np.int64)
    for e in range(offset[0], offset[-1]):
        position[entry_tile[e] + 1] += 1
    position[0] = offset[0]
    for tile in range(tiles):
        position[tile + 1] += position[tile]
        tile_offset[tile] = position[tile]
    order = _sort_by_depth(projected, offset)
    for j in range(order.shape[0]):
        for e in range(offset[order[j]], offset[order[j] + 1]):
            place = position[entry_tile[e]]
            tile_gaussian[place] = order[j]
            tile_entry[place] = e
            position[entry_tile[e]] = place + 1


@numba.njit(cache=True, parallel=prange_only(), nogil=True, error_model="numpy")
def plan(means, scales, quaternions, opacities, view, intrinsics, height, width):  # type: ignore[no-untyped-def]
    """Project and bin all Gaussians in all views.

    Args:
        means [N, 3], scales [N, 3], quaternions [N, 4], opacities [N]: float32. view [V, 4, 4], intrinsics [V, 3, 3]:
            float64.

    Returns:
        the fields of `Plan`.
    """
    n, views = means.shape[0], view.shape[0]
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    tiles = tiles_x * tiles_y
    projected = np.empty((views, n, 8), np.float32)
    entry_offset = np.zeros((views, n + 1), np.int64)
    nothing = np.empty(0, np.int32)
    for k in numba.prange(views * n):
        v, i = k // n, k % n
        if _project_one(means, scales, quaternions, opacities, view, intrinsics, i, v, height, width, projected[v, i]):
            entry_offset[v, i + 1] = _list_tiles(projected[v, i], tiles_x, tiles_y, 0, nothing)
    total = 0
    for v in range(views):
        for i in range(n + 1):
            total += entry_offset[v, i]
            entry_offset[v, i] = total
    entry_tile = np.empty(total, np.int32)
    for k in numba.prange(views * n):
        v, i = k // n, k % n
        e = entry_offset[v, i]
        if entry_offset[v, i + 1] > e:
            _list_tiles(projected[v, i], tiles_x, tiles_y, e, entry_tile)
    tile_offset = np.zeros(views * tiles + 1, np.int64)
    tile_offset[views * tiles] = total
    tile_gaussian = np.empty(total, np.int32)
    tile_entry = np.empty(total, np.int64)
    for v in numba.prange(views):
        offsets = tile_offset[v * tiles : (v + 1) * tiles + 1]
        _sort_entries(projected[v], entry_offset[v], entry_tile, offsets, tile_gaussian, tile_entry)
    return projected, entry_offset, tile_offset, tile_gaussian, tile_entry


@numba.njit(error_model="numpy")
def _carry_one(  # type: ignore[no-untyped-def]
    i,
    means,
    scales,
    quaternions,
    view,
    intrinsics,
    height,
    width,
    projected,
    entry_offset,
    gradients,
    colour_gradients,
    g_means,
    g_scales,
    g_quaternions,
    g_opacities,
    g_colours,
):
    """The gradients of Gaussian i: the sum of its entries', view by view, through the transposed projection."""
    unit, r = _rotation(quaternions, i)
    qw, qx, qy, qz, inverse_length = unit
    m0, m1, m2 = 0.0, 0.0, 0.0  # dL / dmean
    n00, n01, n02, n10, n11, n12, n20, n21, n22 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0  # dL / d(R S)
    opacity = 0.0
    for v in range(view.shape[0]):
        begin, end = entry_offset[v, i], entry_offset[v, i + 1]
        if begin == end:
            continue
        gx, gy, gxx, gxy, gyy, gz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for e in range(begin, end):
            gx += gradients[e, 0]
            gy += gradients[e, 1]
            gxx += gradients[e, 2]
            gxy += gradients[e, 3]
            gyy += gradients[e, 4]
            opacity += gradients[e, 5]
            gz += gradients[e, 6]
            for d in range(colour_gradients.shape[1]):
                g_colours[v if g_colours.shape[0] > 1 else 0, i, d] += colour_gradients[e, d]
        # The conic C is the inverse of the covariance: dL/dcovariance = -C (dL/dC) C, with symmetric matrices.
        a, b, c = np.float64(projected[v, i, 2]), np.float64(projected[v, i, 3]), np.float64(projected[v, i, 4])
        h = 0.5 * gxy
        k00, k01, k10, k11 = a * gxx + b * h, a * h + b * gyy, b * gxx + c * h, b * h + c * gyy
        cov_xx, cov_xy, cov_yy = -(k00 * a + k01 * b), -(k00 * b + k01 * c), -(k10 * b + k11 * c)
        x, y, z = _camera_point(means, i, view, v)
        fx, fy = intrinsics[v, 0, 0], intrinsics[v, 1, 1]
        u, w, free_u, free_w = _ray_slopes(x, y, z, intrinsics, v, height, width)
        top, bottom, us = _spread(scales, i, r, view, v, fx, fy, z, u, w)
        # covariance = B B^T with B = J U: dL/dB = 2 (dL/dcovariance) B.
        t0, t1, t2 = (
            2 * (cov_xx * top[0] + cov_xy * bottom[0]),
            2 * (cov_xx * top[1] + cov_xy * bottom[1]),
            2 * (cov_xx * top[2] + cov_xy * bottom[2]),
        )
        b0, b1, b2 = (
            2 * (cov_xy * top[0] + cov_yy * bottom[0]),
            2 * (cov_xy * top[1] + cov_yy * bottom[1]),
            2 * (cov_xy * top[2] + cov_yy * bottom[2]),
        )
        j00 = t0 * us[0] + t1 * us[1] + t2 * us[2]  # dL/dJ = (dL/dB) U^T
        j02 = t0 * us[6] + t1 * us[7] + t2 * us[8]
        j11 = b0 * us[3] + b1 * us[4] + b2 * us[5]
        j12 = b0 * us[6] + b1 * us[7] + b2 * us[8]
        cam_x = fx / z * gx
        cam_y = fy / z * gy
        cam_z = gz - (fx * x * gx + fy * y * gy) / (z * z)
        cam_z += (-fx * j00 - fy * j11 + fx * u * j02 + fy * w * j12) / (z * z)
        if free_u:
            cam_x -= fx / (z * z) * j02
            cam_z += fx * x / (z * z * z) * j02
        if free_w:
            cam_y -= fy / (z * z) * j12
            cam_z += fy * y / (z * z * z) * j12
        m0 += view[v, 0, 0] * cam_x + view[v, 1, 0] * cam_y + view[v, 2, 0] * cam_z
        m1 += view[v, 0, 1] * cam_x + view[v, 1, 1] * cam_y + view[v, 2, 1] * cam_z
        m2 += view[v, 0, 2] * cam_x + view[v, 1, 2] * cam_y + view[v, 2, 2] * cam_z
        jx, jxz, jy, jyz = fx / z, -fx * u / z, fy / z, -fy * w / z
        u00, u01, u02 = jx * t0, jx * t1, jx * t2  # dL/dU = J^T (dL/dB)
        u10, u11, u12 = jy * b0, jy * b1, jy * b2
        u20, u21, u22 = jxz * t0 + jyz * b0, jxz * t1 + jyz * b1, jxz * t2 + jyz * b2
        n00 += view[v, 0, 0] * u00 + view[v, 1, 0] * u10 + view[v, 2, 0] * u20
        n01 += view[v, 0, 0] * u01 + view[v, 1, 0] * u11 + view[v, 2, 0] * u21
        n02 += view[v, 0, 0] * u02 + view[v, 1, 0] * u12 + view[v, 2, 0] * u22
        n10 += view[v, 0, 1] * u00 + view[v, 1, 1] * u10 + view[v, 2, 1] * u20
        n11 += view[v, 0, 1] * u01 + view[v, 1, 1] * u11 + view[v, 2, 1] * u21
        n12 += view[v, 0, 1] * u02 + view[v, 1, 1] * u12 + view[v, 2, 1] * u22
        n20 += view[v, 0, 2] * u00 + view[v, 1, 2] * u10 + view[v, 2, 2] * u20
        n21 += view[v, 0, 2] * u01 + view[v, 1, 2] * u11 + view[v, 2, 2] * u21
        n22 += view[v, 0, 2] * u02 + view[v, 1, 2] * u12 + view[v, 2, 2] * u22
    g_means[i, 0], g_means[i, 1], g_means[i, 2] = m0, m1, m2
    g_scales[i, 0] = n00 * r[0] + n10 * r[3] + n20 * r[6]
    g_scales[i, 1] = n01 * r[1] + n11 * r[4] + n21 * r[7]
    g_scales[i, 2] = n02 * r[2] + n12 * r[5] + n22 * r[8]
    s0, s1, s2 = np.float64(scales[i, 0]), np.float64(scales[i, 1]), np.float64(scales[i, 2])
    r00, r01, r02 = n00 * s0, n01 * s1, n02 * s2
    r10, r11, r12 = n10 * s0, n11 * s1, n12 * s2
    r20, r21, r22 = n20 * s0, n21 * s1, n22 * s2
    dw = 2 * (qx * (r21 - r12) + qy * (r02 - r20) + qz * (r10 - r01))
    dx = 2 * (qw * (r21 - r12) + qy * (r01 + r10) + qz * (r02 + r20) - 2 * qx * (r11 + r22))
    dy = 2 * (qw * (r02 - r20) + qx * (r01 + r10) + qz * (r12 + r21) - 2 * qy * (r00 + r22))
    dz = 2 * (qw * (r10 - r01) + qx * (r02 + r20) + qy * (r12 + r21) - 2 * qz * (r00 + r11))
    along = dw * qw + dx * qx + dy * qy + dz * qz  # the quaternion's length does not matter
    g_quaternions[i, 0] = (dw - along * qw) * inverse_length
    g_quaternions[i, 1] = (dx - along * qx) * inverse_length
    g_quaternions[i, 2] = (dy - along * qy) * inverse_length
    g_quaternions[i, 3] = (dz - along * qz) * inverse_length
    g_opacities[i] = opacity


@numba.njit(cache=True, parallel=prange_only(), nogil=True, error_model="numpy")
def gather(  # type: ignore[no-untyped-def]
    means,
    scales,
    quaternions,
    view,
    intrinsics,
    height,
    width,
    projected,
    entry_offset,
    gradients,
    colour_gradients,
    shared_colours,
):
    """Sum the entries' gradients and carry them through the projection.

    Returns:
        gradients [N, 3] means, [N, 3] scales, [N, 4] quaternions, [N] opacities, [1 or V, N, D] colours, float32.
    """
    n, views, channels = means.shape[0], view.shape[0], colour_gradients.shape[1]
    g_means = np.empty((n, 3), np.float32)
    g_scales = np.empty((n, 3), np.float32)
    g_quaternions = np.empty((n, 4), np.float32)
    g_opacities = np.empty(n, np.float32)
    g_colours = np.zeros((1 if shared_colours else views, n, channels), np.float32)
    for i in numba.prange(n):
        _carry_one(
            np.int64(i),  # the index of a prange is unsigned inside it: everything would be compiled for both
            means,
            scales,
            quaternions,
            view,
            intrinsics,
            height,
            width,
            projected,
            entry_offset,
            gradients,
            colour_gradients,
            g_means,
            g_scales,
            g_quaternions,
            g_opacities,
            g_colours,
        )
    return g_means, g_scales, g_quaternions, g_opacities, g_colours
