"""Compiled searches in a tree of boxes over triangles, see `rl3d.metrics.tree`. All float64."""

from __future__ import annotations

import numba
import numpy as np

from rl3d.kernels import prange_only

DEEPEST = 64  # boxes on a path, twice as many as a tree of any mesh in memory has
BLOCK = 64  # points that one thread looks up at a time


@numba.njit(inline="always")
def _dot(a, b):  # type: ignore[no-untyped-def]
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@numba.njit(inline="always")
def _minus(a, b):  # type: ignore[no-untyped-def]
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@numba.njit(inline="always")
def _cross(a, b):  # type: ignore[no-untyped-def]
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@numba.njit(inline="always")
def _corner(triangle, k):  # type: ignore[no-untyped-def]
    return triangle[k, 0], triangle[k, 1], triangle[k, 2]


@numba.njit(nogil=True)
def _square_to_triangle(p, triangle):  # type: ignore[no-untyped-def]
    """Squared distance: to the plane where the foot of the perpendicular lies inside, else to the nearest side."""
    a, b, c = _corner(triangle, 0), _corner(triangle, 1), _corner(triangle, 2)
    normal = _cross(_minus(b, a), _minus(c, a))
    best = np.inf
    inside = True
    for k in range(3):
        start = _corner(triangle, k)
        along, out = _minus(_corner(triangle, (k + 1) % 3), start), _minus(p, start)
        if _dot(_cross(along, out), normal) < 0.0:
            inside = False
        length = _dot(along, along)
        t = min(max(_dot(out, along) / length, 0.0), 1.0) if length > 0.0 else 0.0
        foot = (out[0] - t * along[0], out[1] - t * along[1], out[2] - t * along[2])
        best = min(best, _dot(foot, foot))
    size = _dot(normal, normal)
    if inside and size > 0.0:
        return _dot(_minus(p, a), normal) ** 2 / size
    return best


@numba.njit(nogil=True)
def _square_to_box(p, box):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(3):
        out = max(box[0, k] - p[k], p[k] - box[1, k], 0.0)
        total += out * out
    return total


@numba.njit(nogil=True)
def _search(p, where, triangles, boxes, first, node, bound):  # type: ignore[no-untyped-def]
    """(squared distance, triangle) nearest to a point; the distance to triangle `where` bounds the search."""
    leaves = len(first) - 1
    best = _square_to_triangle(p, triangles[where])
    node[0], bound[0], size = 0, 0.0, 1
    while size > 0:
        size -= 1
        if bound[size] >= best:
            continue
        n = node[size]
        if n >= leaves - 1:
            for j in range(first[n - leaves + 1], first[n - leaves + 2]):
                d = _square_to_triangle(p, triangles[j])
                if d < best:
                    best, where = d, j
            continue
        near, far = 2 * n + 1, 2 * n + 2
        d_near, d_far = _square_to_box(p, boxes[near]), _square_to_box(p, boxes[far])
        if d_far < d_near:
            near, far, d_near, d_far = far, near, d_far, d_near
        node[size], bound[size] = far, d_far  # the nearer one last, to be looked at first
        node[size + 1], bound[size + 1] = near, d_near
        size += 2
    return best, where


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def nearest(points, triangles, boxes, first):  # type: ignore[no-untyped-def]
    """([P] squared distance, [P] triangle). Quickest where a point lies near the one before it."""
    count = len(points)
    square, at = np.empty(count), np.empty(count, np.int64)
    for block in numba.prange((count + BLOCK - 1) // BLOCK):
        node, bound = np.empty(DEEPEST, np.int64), np.empty(DEEPEST)
        where = 0
        for i in range(block * BLOCK, min((block + 1) * BLOCK, count)):
            p = (points[i, 0], points[i, 1], points[i, 2])
            square[i], where = _search(p, where, triangles, boxes, first, node, bound)
            at[i] = where
    return square, at


@numba.njit(nogil=True)
def _span(triangle, height, line):  # type: ignore[no-untyped-def]
    """(low, high) along a line in a plane of where a triangle meets the plane; its corners are at `height` over it."""
    low, high = np.inf, -np.inf
    for k in range(3):
        m = (k + 1) % 3
        here = _dot(_corner(triangle, k), line)
        if height[k] == 0.0:
            low, high = min(low, here), max(high, here)
        if height[k] * height[m] < 0.0:
            t = height[k] / (height[k] - height[m])
            met = here + t * (_dot(_corner(triangle, m), line) - here)
            low, high = min(low, met), max(high, met)
    return low, high


@numba.njit(nogil=True)
def _overlap_in_plane(one, other, normal, depth):  # type: ignore[no-untyped-def]
    """Whether no side of either triangle separates two triangles of one plane."""
    for turn in range(2):
        mine = one if turn == 0 else other
        for k in range(3):
            along = _minus(_corner(mine, (k + 1) % 3), _corner(mine, k))
            axis = _cross(normal, along)
            length = np.sqrt(_dot(axis, axis))
            low1, high1, low2, high2 = np.inf, -np.inf, np.inf, -np.inf
            for m in range(3):
                x = _dot(_corner(one, m), axis)
                low1, high1 = min(low1, x), max(high1, x)
                x = _dot(_corner(other, m), axis)
                low2, high2 = min(low2, x), max(high2, x)
            if min(high1, high2) - max(low1, low2) <= depth * length:
                return False
    return True


@numba.njit(nogil=True)
def _normal(triangle):  # type: ignore[no-untyped-def]
    a = _corner(triangle, 0)
    n = _cross(_minus(_corner(triangle, 1), a), _minus(_corner(triangle, 2), a))
    size = np.sqrt(_dot(n, n))
    return n[0] / size, n[1] / size, n[2] / size


@numba.njit(nogil=True)
def _heights(triangle, of, normal, depth):  # type: ignore[no-untyped-def]
    """The three corners' heights over the plane of another triangle, 0 within `depth`."""
    base = _corner(of, 0)
    x = _dot(_minus(_corner(triangle, 0), base), normal)
    y = _dot(_minus(_corner(triangle, 1), base), normal)
    z = _dot(_minus(_corner(triangle, 2), base), normal)
    return x if abs(x) > depth else 0.0, y if abs(y) > depth else 0.0, z if abs(z) > depth else 0.0


@numba.njit(nogil=True)
def _cross_each_other(one, other, depth):  # type: ignore[no-untyped-def]
    """Möller 1997: both straddle the other's plane, and their spans on the line where the planes meet overlap."""
    n2 = _normal(other)
    h1 = _heights(one, other, n2, depth)
    if h1[0] == 0.0 and h1[1] == 0.0 and h1[2] == 0.0:
        return _overlap_in_plane(one, other, n2, depth)
    if min(h1) >= 0.0 or max(h1) <= 0.0:
        return False
    n1 = _normal(one)
    h2 = _heights(other, one, n1, depth)
    if min(h2) >= 0.0 or max(h2) <= 0.0:
        return False
    line = _cross(n1, n2)
    size = np.sqrt(_dot(line, line))
    if size == 0.0:
        return False
    line = (line[0] / size, line[1] / size, line[2] / size)
    low1, high1 = _span(one, h1, line)
    low2, high2 = _span(other, h2, line)
    return min(high1, high2) - max(low1, low2) > depth


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def crossing(triangles, corners, boxes, first, depth):  # type: ignore[no-untyped-def]
    """[T] whether each triangle crosses one with which it shares no vertex; it stops at the first."""
    count = len(triangles)
    flags = np.zeros(count, np.bool_)
    leaves = len(first) - 1
    for i in numba.prange(count):
        low = (
            min(triangles[i, 0, 0], triangles[i, 1, 0], triangles[i, 2, 0]),
            min(triangles[i, 0, 1], triangles[i, 1, 1], triangles[i, 2, 1]),
            min(triangles[i, 0, 2], triangles[i, 1, 2], triangles[i, 2, 2]),
        )
        high = (
            max(triangles[i, 0, 0], triangles[i, 1, 0], triangles[i, 2, 0]),
            max(triangles[i, 0, 1], triangles[i, 1, 1], triangles[i, 2, 1]),
            max(triangles[i, 0, 2], triangles[i, 1, 2], triangles[i, 2, 2]),
        )
        node = np.empty(DEEPEST, np.int64)
        node[0], size = 0, 1
        while size > 0 and not flags[i]:
            size -= 1
            n = node[size]
            box = boxes[n]
            apart = False
            for k in range(3):
                if box[0, k] > high[k] or box[1, k] < low[k]:
                    apart = True
            if apart:
                continue
            if n < leaves - 1:
                node[size], node[size + 1] = 2 * n + 1, 2 * n + 2
                size += 2
                continue
            for j in range(first[n - leaves + 1], first[n - leaves + 2]):
                shared = False
                for k in range(3):
                    for m in range(3):
                        if corners[i, k] == corners[j, m]:
                            shared = True
                if shared:
                    continue
                apart = False
                for k in range(3):
                    if min(triangles[j, 0, k], triangles[j, 1, k], triangles[j, 2, k]) > high[k]:
                        apart = True
                    if max(triangles[j, 0, k], triangles[j, 1, k], triangles[j, 2, k]) < low[k]:
                        apart = True
                if not apart and _cross_each_other(triangles[i], triangles[j], depth):
                    flags[i] = True
                    break
    return flags
