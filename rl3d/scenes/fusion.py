"""Rendered depth and silhouettes of many views, fused into one signed distance grid; the grid's surface as a mesh.

Two kinds of evidence meet in each voxel:

- depth: the projective truncated signed distance of Curless and Levoy (SIGGRAPH 1996), averaged over the views with a
  weight that falls with grazing angle and with depth behind the surface, so that the far side of a thin wall does not
  push the near side away;
- silhouettes: the signed distance to the visual hull (Laurentini 1994). The image-space distance to a silhouette, in
  metres at the voxel's depth, bounds the distance to the hull from one view; the hull is the largest over the views.
  We take the `carve_votes`-th largest, so that a hole in one noisy view carves nothing.

The fused value is the larger of the two: a voxel is inside where no evidence says that it is empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.kernels import prange_only
from rl3d.scenes.isosurface import zero_level
from rl3d.scenes.mesh import Mesh

if TYPE_CHECKING:  # the layer of rendering lies above this one; only its result's type is named here
    from rl3d.render.frames import Frames

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class TsdfGrid:
    """A grid of truncated signed distances.

    Attributes:
        values: [X, Y, Z] float32 in [-1, 1], units of `truncation`; negative inside, +1 on the border's far side.
        origin: [3] float64, world position of voxel centre (0, 0, 0), metres.
        spacing: metres between voxel centres, the same along the three axes.
        truncation: metres that the value 1 stands for.
    """

    values: Array
    origin: Array
    spacing: float
    truncation: float


def silhouette_distance(alpha: Array, threshold: float = 0.5) -> Array:
    """Signed distance in pixels to the contour `alpha == threshold`, positive outside.

    Args:
        alpha: [V, H, W] float32 in [0, 1].

    Returns:
        [V, H, W] float32. Beside the contour a pixel's own coverage is its distance, at most half a pixel (sub-pixel
        where the edge is antialiased, and steadier on thin parts than interpolation between neighbours); further off,
        the nearest pixel on the other side carries its offset on.
    """
    out = np.empty(alpha.shape, dtype=np.float32)
    edge = np.clip(threshold - alpha, -0.5, 0.5)
    far = float(sum(alpha.shape[1:]))
    for v, inside in enumerate(alpha >= threshold):
        if inside.all() or not inside.any():
            out[v] = -far if inside.all() else far
            continue
        d_out, to_inside = distance_transform_edt(~inside, return_indices=True)
        d_in, to_outside = distance_transform_edt(inside, return_indices=True)
        outer = np.where(d_out <= 1.0, edge[v], d_out + edge[v][tuple(to_inside)])
        inner = np.where(d_in <= 1.0, edge[v], edge[v][tuple(to_outside)] - d_in)
        out[v] = np.where(inside, inner, outer)
    return out


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def _depth_confidence(depth, fx, fy):  # type: ignore[no-untyped-def]
    """cos^2 of the angle between surface and ray from depth differences: [V, H, W]; 0 where there is no depth."""
    n_views, height, width = depth.shape
    out = np.zeros_like(depth)
    for v in numba.prange(n_views):
        for y in range(height):
            for x in range(width):
                z = depth[v, y, x]
                if z <= 0.0:
                    continue
                # The smaller of the two one-sided differences, so that an occlusion edge does not count as a slope.
                gx = gy = np.inf
                if x > 0 and depth[v, y, x - 1] > 0.0:
                    gx = abs(z - depth[v, y, x - 1])
                if x < width - 1 and depth[v, y, x + 1] > 0.0:
                    gx = min(gx, abs(z - depth[v, y, x + 1]))
                if y > 0 and depth[v, y - 1, x] > 0.0:
                    gy = abs(z - depth[v, y - 1, x])
                if y < height - 1 and depth[v, y + 1, x] > 0.0:
                    gy = min(gy, abs(z - depth[v, y + 1, x]))
                slope_x = 0.0 if np.isinf(gx) else gx * fx[v] / z
                slope_y = 0.0 if np.isinf(gy) else gy * fy[v] / z
                out[v, y, x] = max(1.0 / (1.0 + slope_x * slope_x + slope_y * slope_y), 0.02)
    return out


@numba.njit(cache=True, parallel=prange_only(), nogil=True)
def _fuse(origin, spacing, shape, view, fx, fy, cx, cy, silhouette, depth, weight, truncation, votes, offset):  # type: ignore[no-untyped-def]
    """Fill the grid; see the module's docstring. All images [V, H, W] float32, `silhouette` in pixels."""
    n_views, height, width = depth.shape
    values = np.ones((shape[0], shape[1], shape[2]), dtype=np.float32)
    for column in numba.prange(shape[0] * shape[1]):
        i, j = column // shape[1], column % shape[1]
        px = origin[0] + i * spacing
        py = origin[1] + j * spacing
        largest = np.empty(votes, dtype=np.float64)
        for k in range(shape[2]):
            pz = origin[2] + k * spacing
            largest[:] = -np.inf
            total = total_weight = 0.0
            seen = 0
            carved = False
            for v in range(n_views):
                z = view[v, 2, 0] * px + view[v, 2, 1] * py + view[v, 2, 2] * pz + view[v, 2, 3]
                if z <= 1e-3:
                    continue
                x = view[v, 0, 0] * px + view[v, 0, 1] * py + view[v, 0, 2] * pz + view[v, 0, 3]
                y = view[v, 1, 0] * px + view[v, 1, 1] * py + view[v, 1, 2] * pz + view[v, 1, 3]
                ix = fx[v] * x / z + cx[v] - 0.5  # in units of pixel centres
                iy = fy[v] * y / z + cy[v] - 0.5
                if ix < 0.0 or iy < 0.0 or ix > width - 1.0 or iy > height - 1.0:
                    continue  # out of the picture: this view has nothing to say
                x0, y0 = min(int(ix), width - 2), min(int(iy), height - 2)
                ax, ay = ix - x0, iy - y0
                s = (1.0 - ay) * ((1.0 - ax) * silhouette[v, y0, x0] + ax * silhouette[v, y0, x0 + 1]) + ay * (
                    (1.0 - ax) * silhouette[v, y0 + 1, x0] + ax * silhouette[v, y0 + 1, x0 + 1]
                )
                s = s * z / fx[v]  # metres at the voxel's depth
                seen += 1
                # Insert into the sorted list of the largest distances, largest first.
                for q in range(votes):
                    if s > largest[q]:
                        for r in range(votes - 1, q, -1):
                            largest[r] = largest[r - 1]
                        largest[q] = s
                        break
                if largest[votes - 1] >= truncation:
                    carved = True
                    break
                if s > 0.0:
                    continue
                d00, d01 = depth[v, y0, x0], depth[v, y0, x0 + 1]
                d10, d11 = depth[v, y0 + 1, x0], depth[v, y0 + 1, x0 + 1]
                low, high = min(d00, d01, d10, d11), max(d00, d01, d10, d11)
                yn, xn = y0 + int(ay + 0.5), x0 + int(ax + 0.5)
                if low <= 0.0 or high - low > truncation:  # an edge: never a depth that lies on neither surface
                    d = depth[v, yn, xn]
                    if d <= 0.0:
                        continue
                else:
                    d = (1.0 - ay) * ((1.0 - ax) * d00 + ax * d01) + ay * ((1.0 - ax) * d10 + ax * d11)
                t = (d - z - offset) / truncation
                if t <= -1.0:
                    continue  # behind what this view sees
                w = weight[v, yn, xn]
                if t < 0.0:
                    w *= 1.0 + t
                total += w * min(t, 1.0)
                total_weight += w
            if carved or 4 * seen < n_views:
                continue
            # Where fewer views look, fewer must agree.
            value = largest[(votes * seen - 1) // n_views] / truncation
            if total_weight > 1e-3:
                value = max(value, total / total_weight)
            values[i, j, k] = min(1.0, max(-1.0, value))
    return values


def _spread_order(count: int) -> Array:
    """0..count-1 so that neighbours in the order are far apart: empty voxels then meet an outside view early."""
    stride = max(1, round(count * 0.6180339887))
    while np.gcd(stride, count) != 1:
        stride += 1
    return (np.arange(count) * stride) % count


def fuse_tsdf(
    frames: Frames,
    cameras: Cameras,
    *,
    resolution: int = 128,
    radius: float = 0.62,
    truncation: float = 3.0,
    alpha_threshold: float = 0.5,
    carve_votes: int = 4,
    offset: float | None = None,
    tight: bool = True,
) -> TsdfGrid:
    """Fuse rendered depth and alpha into a signed distance grid. Not differentiable.

    Args:
        frames: V views; `alpha` and `depth` are read, both [V, 1, H, W].
        cameras: the V cameras that the frames were rendered with.
        resolution: voxels along the longest side of the grid.
        radius: half the side of the cube around the origin that is searched, metres.
        truncation: in voxels; larger is smoother and loses thin walls.
        alpha_threshold: coverage that counts as inside a silhouette.
        carve_votes: views of all that must agree before a voxel is carved by silhouettes; in proportion where only some
            see it. What fewer than a quarter of the views see is empty.
        offset: metres that depth is moved towards the camera; None: half a voxel. Without any, the two sides of a sheet
            cancel and it vanishes; silhouettes keep the rest from growing. Splats need more: their depth is that of
            their centres, and they cover more than that (`rl3d.export.asset.calibrated_offset` measures how much).
        tight: fit the grid to the visual hull's bounding box first, which spends the voxels where the object is.

    Raises:
        InputError: sizes that do not fit each other, an unusable option, or no view with a silhouette.
    """
    n_views, height, width = frames.alpha.shape[0], frames.alpha.shape[2], frames.alpha.shape[3]
    if len(cameras) != n_views or (cameras.height, cameras.width) != (height, width):
        raise InputError(
            f"fuse_tsdf got {n_views} frames of {height} x {width} but {len(cameras)} cameras of "
            f"{cameras.height} x {cameras.width}; render the frames with these cameras"
        )
    if resolution < 8 or truncation < 1 or not 1 <= carve_votes <= n_views or min(height, width) < 2:
        raise InputError(
            f"fuse_tsdf needs resolution >= 8, truncation >= 1 voxel, 1 <= carve_votes <= views and images of 2 x 2 "
            f"or more, got {resolution}, {truncation}, {carve_votes} of {n_views}, {height} x {width}"
        )
    alpha = frames.alpha[:, 0].detach().cpu().numpy().astype(np.float32)
    depth = frames.depth[:, 0].detach().cpu().numpy().astype(np.float32)
    if not (np.isfinite(alpha).all() and np.isfinite(depth).all()):
        raise InputError("the frames' alpha or depth holds NaN or infinity; the scene has diverged")
    if not (alpha >= alpha_threshold).any():
        raise InputError(
            f"the scene has no surface: no pixel of {n_views} views reaches alpha {alpha_threshold} "
            f"(the highest is {alpha.max():.3f})"
        )
    order = _spread_order(n_views)
    view = cameras.view.detach().cpu().numpy().astype(np.float64)[order]
    intrinsics = cameras.intrinsics.detach().cpu().numpy().astype(np.float64)[order]
    fx, fy, cx, cy = (np.ascontiguousarray(intrinsics[:, r, c]) for r, c in ((0, 0), (1, 1), (0, 2), (1, 2)))
    silhouette = silhouette_distance(alpha, alpha_threshold)[order]
    depth = np.where(alpha >= 0.5 * alpha_threshold, depth, 0.0).astype(np.float32)[order]
    weight = _depth_confidence(depth, fx, fy)

    def fuse(low: Array, high: Array, spacing: float) -> TsdfGrid:
        shape = tuple(int(n) for n in np.ceil((high - low) / spacing - 1e-6).astype(int) + 1)
        reach, forward = truncation * spacing, 0.5 * spacing if offset is None else offset
        values = _fuse(
            low, spacing, shape, view, fx, fy, cx, cy, silhouette, depth, weight, reach, carve_votes, forward
        )
        return TsdfGrid(values, low, spacing, reach)

    low, high = np.full(3, -radius), np.full(3, radius)
    if tight:
        coarse = fuse(low, high, 2 * radius / 39)
        # Up to a voxel off the surface, so that parts thinner than a coarse voxel stay in the box.
        cells = np.argwhere(coarse.values < 1.0 / truncation)
        if len(cells):
            low = np.maximum(low, coarse.origin + coarse.spacing * (cells.min(0) - 1.5))
            high = np.minimum(high, coarse.origin + coarse.spacing * (cells.max(0) + 1.5))
    return fuse(low, high, float((high - low).max()) / (resolution - 1))


def extract_surface(
    grid: TsdfGrid, *, smoothing: int = 6, min_component: float = 0.02, device: torch.device | str = "cpu"
) -> Mesh:
    """The zero level of a grid as a closed, outward-facing mesh in world space, float32.

    Marching cubes (Lewiner et al. 2003), then parts whose area is below `min_component` of the largest part's and
    inward-facing shells (closed cavities, which nobody can see) are dropped, then `smoothing` rounds of Taubin.

    Raises:
        InputError: the grid has no surface.
    """
    if not (grid.values < 0).any():
        raise InputError(
            "the scene has no surface: nothing is inside all silhouettes; more opaque splats, a finer grid or a lower "
            "alpha threshold would help"
        )
    vertices, faces = zero_level(grid.values, grid.origin, grid.spacing)
    vertices, faces = keep_components(vertices, faces, min_component)
    vertices = taubin(vertices, faces, smoothing)
    return Mesh(torch.from_numpy(vertices.astype(np.float32)).to(device), torch.from_numpy(faces).to(device))


def keep_components(vertices: Array, faces: Array, min_share: float) -> tuple[Array, Array]:
    """Drop connected parts that face inwards or whose area is below `min_share` of the largest outward part's.

    Args:
        vertices: [N, 3]. faces: [F, 3] int64 over shared vertices, counter-clockwise from outside.

    Raises:
        InputError: no part faces outwards.
    """
    n = len(vertices)
    links = (np.ones(3 * len(faces)), (faces.ravel(), np.roll(faces, -1, 1).ravel()))
    count, label = connected_components(coo_matrix(links, shape=(n, n)), directed=False)
    part = label[faces[:, 0]]
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    area = np.bincount(part, 0.5 * np.linalg.norm(normal, axis=1), minlength=count)
    volume = np.bincount(part, np.einsum("ij,ij->i", a, np.cross(b, c)) / 6, minlength=count)
    outward = volume > 0
    if not outward.any():
        raise InputError("the scene has no surface: what was found encloses no volume")
    faces = faces[(outward & (area >= min_share * area[outward].max()))[part]]
    used, flat = np.unique(faces, return_inverse=True)
    return vertices[used], flat.reshape(-1, 3).astype(np.int64)


def taubin(vertices: Array, faces: Array, rounds: int, shrink: float = 0.5, grow: float = 0.53) -> Array:
    """Taubin's smoothing without shrinkage (SIGGRAPH 1995): a Laplacian step of +`shrink`, then one of -`grow`."""
    if rounds < 1:
        return vertices
    i = np.concatenate([faces, faces[:, ::-1]]).ravel()
    j = np.concatenate([np.roll(faces, -1, 1), np.roll(faces[:, ::-1], -1, 1)]).ravel()
    adjacency = coo_matrix((np.ones(len(i)), (i, j)), shape=(len(vertices),) * 2).tocsr()
    adjacency.data[:] = 1.0
    degree = np.maximum(np.asarray(adjacency.sum(1)), 1.0)
    for _ in range(rounds):
        for step in (shrink, -grow):
            vertices = vertices + step * (adjacency @ vertices / degree - vertices)
    return vertices
