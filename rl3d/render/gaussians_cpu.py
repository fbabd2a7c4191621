"""Compiled Gaussian splatting on the CPU, forward and backward; `gaussians_torch` says what it computes.

`gaussians_cpu_projection` projects every Gaussian in every view, sorts by depth and bins into 8 x 8 pixel tiles; here
the tiles are composited. A (Gaussian, tile) pair is an "entry"; the backward pass writes a row of gradients per entry,
which are then summed per Gaussian in a fixed order, so the result does not depend on the number of threads.

The pixel loops run over a contiguous range of rows of one tile, in float32, with every array inside one workspace at
constant offsets and unsigned indices: that is what lets LLVM vectorise them.

Compiled code is cached per file: after a change of a constant in `gaussians_torch`, touch the two kernel files.
"""

from __future__ import annotations

import numba
import numpy as np

from rl3d.kernels import prange_only
from rl3d.render import gaussians_torch as reference
from rl3d.render.gaussians_cpu_projection import TILE

PIXELS = TILE * TILE
# Reordering sums is safe: they are not compensated. NaN and infinity keep their meaning. Callees with these flags are
# force-inlined: else the process that compiles one runs a copy optimised by itself, which sums in another order than
# the copy that its caller keeps on disk.
FAST = {"contract", "reassoc", "nsz", "arcp"}

_ALPHA_MAX = np.float32(reference.ALPHA_MAX)
_ALPHA_MIN = np.float32(reference.ALPHA_MIN)
_T_MIN = np.float32(reference.TRANSMITTANCE_MIN)
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_LOG2E = np.float32(1.4426950408889634)
_EXP_MIN = np.float32(-126.0)
# Workspace offsets, in pixels of a tile: coordinates, transmittance, three colours, depth, coverage (or what is left).
_X, _Y, _T = np.uint64(0), np.uint64(PIXELS), np.uint64(2 * PIXELS)
_R, _G, _B = np.uint64(3 * PIXELS), np.uint64(4 * PIXELS), np.uint64(5 * PIXELS)
_Z, _A, _Q = np.uint64(6 * PIXELS), np.uint64(7 * PIXELS), np.uint64(8 * PIXELS)
_SLOTS = 9


@numba.njit(inline="always")
def _exp(x):  # type: ignore[no-untyped-def]
    """exp of a float32 x <= 0, relative error 4e-7: a polynomial for 2**f on (-1, 0] and the exponent's bits."""
    y = max(x * _LOG2E, _EXP_MIN)
    n = np.int32(y)
    f = y - np.float32(n)
    r = np.float32(0.0009381165) * f + np.float32(0.0091868744)
    r = r * f + np.float32(0.055278135)
    r = r * f + np.float32(0.24017159)
    r = r * f + np.float32(0.69314217)
    r = r * f + _ONE
    return r * np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)


@numba.njit(inline="always")
def _pixel_rows(p, y0):  # type: ignore[no-untyped-def]
    """The range of a tile's pixels whose rows the Gaussian's box touches, y0 the tile's first row of pixels."""
    top = p[1] - np.float32(y0)
    first = np.int64(np.ceil(min(max(top - p[7] - np.float32(0.51), _ZERO), np.float32(TILE))))
    last = np.int64(np.floor(min(max(top + p[7] + np.float32(0.51), _ZERO), np.float32(TILE))))
    return np.uint64(first * TILE), np.uint64(max(last, first) * TILE)


@numba.njit(nogil=True)
def _open_tile(ws, x0, y0, height, width):  # type: ignore[no-untyped-def]
    """Coordinates and transmittance of a fresh tile; returns how many of its pixels are outside the image (closed)."""
    outside = _ZERO
    for j in range(TILE):
        for i in range(TILE):
            p = j * TILE + i
            inside = y0 + j < height and x0 + i < width
            ws[p] = np.float32(x0 + i) + _HALF
            ws[PIXELS + p] = np.float32(y0 + j) + _HALF
            ws[2 * PIXELS + p] = _ONE if inside else -_ONE
            outside += _ZERO if inside else _ONE
    return outside


@numba.njit(fastmath=FAST, nogil=True, error_model="numpy", forceinline=True)
def _forward_tile(ws, x0, y0, closed, projected, colours, group, gaussians):  # type: ignore[no-untyped-def]
    """Composite a tile's entries into the workspace's R, G, B, Z, A. A negative transmittance marks a closed pixel."""
    for k in range(3 * PIXELS, 8 * PIXELS):
        ws[k] = _ZERO
    for j in range(gaussians.shape[0]):
        g = gaussians[j]
        p = projected[g]
        mx, my, a, b, c, opacity, z = p[0], p[1], p[2], p[3], p[4], p[5], p[6]
        red, green, blue = colours[g, 3 * group], colours[g, 3 * group + 1], colours[g, 3 * group + 2]
        first, last = _pixel_rows(p, y0)
        for q in range(first, last):
            dx, dy = ws[_X + q] - mx, ws[_Y + q] - my
            power = -_HALF * (a * dx * dx + c * dy * dy) - b * dx * dy
            alpha = min(opacity * _exp(min(power, _ZERO)), _ALPHA_MAX)
            t = ws[_T + q]
            after = t * (_ONE - alpha)
            hit = (alpha >= _ALPHA_MIN) & (t > _ZERO)
            stop = hit & (after < _T_MIN)
            w = t * alpha if hit & (after >= _T_MIN) else _ZERO
            ws[_T + q] = (-t if stop else after) if hit else t
            closed += _ONE if stop else _ZERO
            ws[_R + q] += w * red
            ws[_G + q] += w * green
            ws[_B + q] += w * blue
            ws[_Z + q] += w * z
            ws[_A + q] += w
        if closed >= np.float32(PIXELS):
            break


@numba.njit(fastmath=FAST, nogil=True, error_model="numpy", forceinline=True)
def _backward_tile(ws, x0, y0, closed, projected, colours, group, gaussians, entries, gradients, colour_gradients):  # type: ignore[no-untyped-def]
    """Replay a tile front to back with cotangents in R, G, B, Z, A and their remaining sum (of weight * value) in Q.

    With q_i the cotangent of pixel features times entry i's features and w_i = T_i alpha_i its weight,
    dL/dalpha_i = T_i q_i - (sum over j behind i of w_j q_j) / (1 - alpha_i).
    """
    for j in range(entries.shape[0]):
        e = entries[j]
        g = gaussians[j]
        p = projected[g]
        mx, my, a, b, c, opacity, z = p[0], p[1], p[2], p[3], p[4], p[5], p[6]
        red, green, blue = colours[g, 3 * group], colours[g, 3 * group + 1], colours[g, 3 * group + 2]
        first, last = _pixel_rows(p, y0)
        s0, sx, sy, sxx, sxy, syy = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
        sr, sg, sb, sz = _ZERO, _ZERO, _ZERO, _ZERO
        for q in range(first, last):
            dx, dy = ws[_X + q] - mx, ws[_Y + q] - my
            power = -_HALF * (a * dx * dx + c * dy * dy) - b * dx * dy
            raw = opacity * _exp(min(power, _ZERO))
            alpha = min(raw, _ALPHA_MAX)
            t = ws[_T + q]
            after = t * (_ONE - alpha)
            hit = (alpha >= _ALPHA_MIN) & (t > _ZERO)
            stop = hit & (after < _T_MIN)
            w = t * alpha if hit & (after >= _T_MIN) else _ZERO
            ws[_T + q] = (-t if stop else after) if hit else t
            closed += _ONE if stop else _ZERO
            gr, gg, gb, gz = ws[_R + q], ws[_G + q], ws[_B + q], ws[_Z + q]
            value = gr * red + gg * green + gb * blue + gz * z + ws[_A + q]
            behind = ws[_Q + q] - w * value
            ws[_Q + q] = behind
            slope = w * value - alpha * behind / (_ONE - alpha)
            s = slope if (w > _ZERO) & (raw <= _ALPHA_MAX) else _ZERO  # dL / dpower
            s0 += s
            sx += s * dx
            sy += s * dy
            sxx += s * dx * dx
            sxy += s * dx * dy
            syy += s * dy * dy
            sr += w * gr
            sg += w * gg
            sb += w * gb
            sz += w * gz
        out = gradients[e]
        out[0] += a * sx + b * sy
        out[1] += b * sx + c * sy
        out[2] -= _HALF * sxx
        out[3] -= sxy
        out[4] -= _HALF * syy
        out[5] += s0 / opacity
        out[6] += sz
        colour_gradients[e, 3 * group] = sr
        colour_gradients[e, 3 * group + 1] = sg
        colour_gradients[e, 3 * group + 2] = sb
        if closed >= np.float32(PIXELS):
            break


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def forward(projected, colours, tile_offset, tile_gaussian, height, width, threads):  # type: ignore[no-untyped-def]
    """Composite every tile of every view.

    Args:
        colours: [1 or V, N, 3 G] float32, a multiple of three channels.

    Returns:
        premultiplied rgb [V, 3 G, H, W], alpha [V, H, W], depth [V, H, W] (divided by alpha), float32.
    """
    views, groups = projected.shape[0], colours.shape[2] // 3
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    tiles = tiles_x * tiles_y
    rgb = np.empty((views, 3 * groups, height, width), np.float32)
    alpha = np.empty((views, height, width), np.float32)
    depth = np.empty((views, height, width), np.float32)
    share = (views * tiles + threads - 1) // threads
    for k in numba.prange(share * threads):
        job = (k % share) * threads + k // share  # neighbours go to different threads: their loads are alike
        if job < views * tiles:
            v, tile = job // tiles, job % tiles
            x0, y0 = tile % tiles_x * TILE, tile // tiles_x * TILE
            x1, y1 = min(x0 + TILE, width), min(y0 + TILE, height)
            tint = colours[v if colours.shape[0] > 1 else 0]
            gaussians = tile_gaussian[tile_offset[job] : tile_offset[job + 1]]
            ws = np.empty(_SLOTS * PIXELS, np.float32)
            for group in range(groups):
                closed = _open_tile(ws, x0, y0, height, width)
                _forward_tile(ws, x0, y0, closed, projected[v], tint, group, gaussians)
                for y in range(y0, y1):
                    for x in range(x0, x1):
                        p = (y - y0) * TILE + x - x0
                        for d in range(3):
                            rgb[v, 3 * group + d, y, x] = ws[(3 + d) * PIXELS + p]
                        if group == 0:
                            coverage = ws[7 * PIXELS + p]  # not 1 - T: that would lose digits where it is small
                            alpha[v, y, x] = coverage
                            depth[v, y, x] = ws[6 * PIXELS + p] / coverage if coverage > _ZERO else _ZERO
    return rgb, alpha, depth


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def backward(  # type: ignore[no-untyped-def]
    projected,
    colours,
    tile_offset,
    tile_gaussian,
    tile_entry,
    rgb,
    alpha,
    depth,
    grad_rgb,
    grad_alpha,
    grad_depth,
    threads,
):
    """Gradients of every entry: [E, 7] (centre, conic, opacity, depth) and [E, 3 G] (colours); 0 where not reached."""
    views, groups = projected.shape[0], colours.shape[2] // 3
    height, width = alpha.shape[1], alpha.shape[2]
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    tiles = tiles_x * tiles_y
    gradients = np.zeros((tile_entry.shape[0], 7), np.float32)
    colour_gradients = np.zeros((tile_entry.shape[0], 3 * groups), np.float32)
    share = (views * tiles + threads - 1) // threads
    for k in numba.prange(share * threads):
        job = (k % share) * threads + k // share
        if job < views * tiles:
            v, tile = job // tiles, job % tiles
            x0, y0 = tile % tiles_x * TILE, tile // tiles_x * TILE
            x1, y1 = min(x0 + TILE, width), min(y0 + TILE, height)
            tint = colours[v if colours.shape[0] > 1 else 0]
            gaussians = tile_gaussian[tile_offset[job] : tile_offset[job + 1]]
            entries = tile_entry[tile_offset[job] : tile_offset[job + 1]]
            ws = np.zeros(_SLOTS * PIXELS, np.float32)
            for group in range(groups):
                closed = _open_tile(ws, x0, y0, height, width)
                for y in range(y0, y1):
                    for x in range(x0, x1):
                        p = (y - y0) * TILE + x - x0
                        total = _ZERO
                        for d in range(3):
                            cotangent = grad_rgb[v, 3 * group + d, y, x]
                            ws[(3 + d) * PIXELS + p] = cotangent
                            total += cotangent * rgb[v, 3 * group + d, y, x]
                        ws[6 * PIXELS + p] = _ZERO
                        ws[7 * PIXELS + p] = _ZERO
                        coverage = alpha[v, y, x]
                        if group == 0 and coverage > _ZERO:
                            ws[6 * PIXELS + p] = grad_depth[v, y, x] / coverage
                            ws[7 * PIXELS + p] = grad_alpha[v, y, x] - grad_depth[v, y, x] * depth[v, y, x] / coverage
                            total += grad_alpha[v, y, x] * coverage  # the two depth terms cancel
                        ws[8 * PIXELS + p] = total
                _backward_tile(
                    ws, x0, y0, closed, projected[v], tint, group, gaussians, entries, gradients, colour_gradients
                )
    return gradients, colour_gradients
