"""Rewards of a shape by formula: depth-normal consistency, symmetry, connectedness, stability on the ground.

No weights, no prompt. Each is a pure function and, in `REWARDS`, a Reward by name. None of them looks at the images:
gradients reach the mesh's vertices or the rendered depths and normals, so that of the methods DreamCS alone, which
judges a mesh, can use them. One of them alone rewards emptiness or a plain ball; combine it with a reward that reads
the prompt (`rl3d.rewards.compose`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor
from torch.nn.functional import normalize

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render.render import render
from rl3d.rewards.protocol import RewardInput, check_scores
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.weld import position_groups


def normals_from_depth(depths: Tensor, cameras: Cameras) -> Tensor:
    """[V, 3, H, W] world-space unit normals of the surface that camera-space z depths [V, 1, H, W] (metres) describe.

    The slope along a row or a column is the smaller of the two differences with the neighbours: at an edge of the
    object that side counts which lies on the same surface. Turned to the camera. Differentiable almost everywhere.
    """
    z = depths[:, 0]
    focal_x, focal_y = cameras.intrinsics[:, 0, 0], cameras.intrinsics[:, 1, 1]
    columns, rows = (torch.arange(n, dtype=z.dtype, device=z.device) + 0.5 for n in (z.shape[2], z.shape[1]))
    x = (columns - cameras.intrinsics[:, 0, 2:3]) / focal_x[:, None]  # [V, W]
    y = (rows - cameras.intrinsics[:, 1, 2:3]) / focal_y[:, None]  # [V, H]
    points = torch.stack([x[:, None, :] * z, y[:, :, None] * z, z], 1)  # [V, 3, H, W], camera space
    normal = torch.linalg.cross(_smaller_difference(points, 3), _smaller_difference(points, 2), dim=1)
    away = (normal * points).sum(1, keepdim=True) > 0
    normal = normalize(torch.where(away, -normal, normal), dim=1, eps=1e-20)
    return torch.einsum("vji,vjhw->vihw", cameras.view[:, :3, :3], normal)


def _smaller_difference(points: Tensor, axis: int) -> Tensor:
    """Forward or backward difference along an axis, whichever changes depth (channel 2) less; 0 at the border."""
    step = points.diff(dim=axis)
    nothing = torch.full_like(step.narrow(axis, 0, 1), torch.inf)
    forward, backward = torch.cat([step, nothing], axis), torch.cat([nothing, step], axis)
    return torch.where(forward[:, 2:].abs() <= backward[:, 2:].abs(), forward, backward)


def depth_normal_consistency(normals: Tensor, depths: Tensor, alphas: Tensor, cameras: Cameras) -> Tensor:
    """[B] in [-1, 1]: the mean inner product of rendered normals with those of the rendered depth (DNC of Nabla-R2D3).

    The mean over the solid pixels of a view (alpha over 0.99, with their neighbours), then over the views; a view
    without such pixels counts 0. Differentiable to normals and depths.

    Args:
        normals: [B, V, 3, H, W] world-space unit vectors. depths: [B, V, 1, H, W] camera-space z, metres.
        alphas: [B, V, 1, H, W]. cameras: V shared by all, or B * V.
    """
    batch, views = normals.shape[:2]
    seen_by = cameras if len(cameras) == batch * views else Cameras.cat([cameras] * batch)
    solid = (alphas > 0.99).flatten(0, 1)[:, 0]
    inner = torch.zeros_like(solid)
    inner[:, 1:-1, 1:-1] = (
        solid[:, 1:-1, 1:-1] & solid[:, :-2, 1:-1] & solid[:, 2:, 1:-1] & solid[:, 1:-1, :-2] & solid[:, 1:-1, 2:]
    )
    filled = torch.where(solid[:, None], depths.flatten(0, 1), 1.0)  # what is outside never counts; 0 has no normal
    found = normals_from_depth(filled, seen_by)
    agreement = (found * normals.flatten(0, 1)).sum(1) * inner
    return (agreement.sum((1, 2)) / inner.sum((1, 2)).clamp_min(1)).unflatten(0, (batch, views)).mean(1)


def silhouette_symmetry(alphas: Tensor) -> Tensor:
    """[B] in [0, 1]: how far silhouettes [B, V, 1, H, W] cover their own mirror images, intersection over union.

    The cameras must stand in the mirror plane, straight before or above the object, it in the middle of the picture.
    An empty view counts 0. Differentiable.
    """
    mirrored = alphas.flip(-1)
    both = torch.minimum(alphas, mirrored).sum((2, 3, 4))
    either = torch.maximum(alphas, mirrored).sum((2, 3, 4))
    return (both / either.clamp_min(1e-6)).mean(1)


def mirror_symmetry(mesh: Mesh, size: int = 64) -> Tensor:
    """A scalar in [0, 1]: `silhouette_symmetry` of a mesh, left to right (x), seen from the front and from above.

    Differentiable to the vertices through the silhouettes.
    """
    if len(mesh.faces) == 0:
        return mesh.vertices.new_zeros(())
    low, high = mesh.bounds.detach()
    x, y, z = (0.5 * (low + high)).tolist()
    reach = max(0.5 * float((high - low).norm()), 1e-9)
    fov = 0.02  # nearly parallel rays
    elevation = torch.tensor([0.0, math.pi / 2 - 1e-3])
    cameras = Cameras.orbit(torch.zeros(2), elevation, reach / math.sin(fov / 2), fov, size, (x, y, z))
    frames = render(mesh, cameras.to(mesh.device, mesh.vertices.dtype))
    return silhouette_symmetry(frames.alpha[None])[0].clamp(0, 1)


def part_areas(mesh: Mesh, tolerance: float = 1e-6) -> np.ndarray:
    """Square metres of the parts of a mesh that share no vertex (within `tolerance` metres), largest first.

    Parts that only push into each other are separate.
    """
    if len(mesh.faces) == 0:
        return np.zeros(0)
    group = position_groups(mesh.vertices.detach().cpu().double().numpy(), tolerance)
    faces = group[mesh.faces.cpu().numpy()]
    start, end = faces[:, [0, 1]].reshape(-1), faces[:, [1, 2]].reshape(-1)
    links = coo_array((np.ones(len(start), np.int8), (start, end)), shape=(group.max() + 1,) * 2)
    label = connected_components(links, directed=False)[1][faces[:, 0]]
    areas = np.bincount(label, weights=mesh.face_areas.detach().cpu().double().numpy())
    return np.sort(areas[np.unique(label)])[::-1]


def connectedness(mesh: Mesh) -> float:
    """In [0, 1]: the largest part's share of the surface; 1 for one part, 0 for an empty mesh. No gradients."""
    areas = part_areas(mesh)
    return float(areas[0] / areas.sum()) if len(areas) and areas.sum() > 0 else 0.0


def centre_of_mass(mesh: Mesh) -> Tensor:
    """[3] of the solid where the faces enclose a volume, of the surface where they hardly do; differentiable."""
    a, b, c = mesh.triangles.unbind(1)
    origin = a.mean(0).detach()
    volumes = ((a - origin) * torch.linalg.cross(b - origin, c - origin)).sum(1) / 6
    centres = (a + b + c) / 3
    low, high = mesh.bounds.detach()
    if float(volumes.detach().sum()) > 1e-4 * float((high - low).prod()):
        return (volumes[:, None] * (0.75 * centres + 0.25 * origin)).sum(0) / volumes.sum()
    areas = mesh.face_areas
    return (areas[:, None] * centres).sum(0) / areas.sum().clamp_min(1e-20)


def stability(mesh: Mesh, sole: float = 0.02) -> Tensor:
    """A scalar in [-1, 1]: the angle by which the object can be tilted before it topples, over 90 degrees.

    With c the centre of mass, h its height over the ground and d its horizontal distance from the edge of the support
    polygon (positive inside), 2 atan2(d, h) / pi. Negative: it topples by itself; -1 for an empty mesh. The support
    polygon is the hull of the vertices within `sole` of the object's height over its lowest point. Uniform density.
    Differentiable to the vertices almost everywhere.
    """
    if len(mesh.faces) == 0:
        return mesh.vertices.new_full((), -1.0)
    corners = mesh.triangles.reshape(-1, 3)
    floor, top = mesh.bounds[:, 1].detach()
    foot = corners[corners[:, 1] <= floor + sole * (top - floor) + 1e-9][:, [0, 2]]
    centre = centre_of_mass(mesh)
    margin = _margin(centre[[0, 2]], foot)
    return 2 / math.pi * torch.atan2(margin, (centre[1] - floor).clamp_min(1e-9))


def _margin(point: Tensor, foot: Tensor) -> Tensor:
    """Signed distance of a point [2] from the convex hull of points [N, 2]; positive inside."""
    flat = foot.detach().cpu().double().numpy()
    try:
        order = ConvexHull(flat).vertices  # counter-clockwise
    except (QhullError, ValueError):  # a point or a line carries nothing: its two ends are the whole hull
        line = flat @ (np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][0])
        order = np.array([line.argmin(), line.argmax()])
    start = foot[torch.as_tensor(order.copy(), device=foot.device)]
    edge = start.roll(-1, 0) - start
    along = ((point - start) * edge).sum(1) / (edge**2).sum(1).clamp_min(1e-20)
    nearest = start + along.clamp(0, 1)[:, None] * edge
    distance = ((point - nearest) ** 2).sum(1).clamp_min(1e-20).sqrt().min()
    offset = point - start
    inside = len(order) > 2 and bool((edge[:, 0] * offset[:, 1] - edge[:, 1] * offset[:, 0] >= 0).all())
    return distance if inside else -distance


@dataclass(frozen=True)
class GeometricReward:
    """A formula as a Reward.

    Attributes:
        formula: scores [B] of a RewardInput that has what is needed. needs: fields of RewardInput.
        differentiable: to `needs`, not to the images.
    """

    formula: Callable[[RewardInput], Tensor]
    name: str
    needs: tuple[str, ...]
    differentiable: bool
    range: tuple[float, float]
    views: int | None = None
    licence: str = "none"

    def __call__(self, x: RewardInput) -> Tensor:
        """Scores [B].

        Raises:
            InputError: a field that it needs is None; or the images alone ask for gradients.
        """
        missing = [field for field in self.needs if getattr(x, field) is None]
        if missing:
            raise InputError(f"reward {self.name!r} looks at {' and '.join(missing)}, which are not known here")
        return check_scores(self.formula(x), x, self.name, self.differentiable, self.range)


def _of_views(x: RewardInput) -> Tensor:
    assert x.normals is not None and x.depths is not None and x.cameras is not None  # in `needs`
    return depth_normal_consistency(x.normals, x.depths, x.alphas, x.cameras)


def _of_mesh(formula: Callable[[Mesh], Tensor | float]) -> Callable[[RewardInput], Tensor]:
    def scores(x: RewardInput) -> Tensor:
        assert x.mesh is not None  # in `needs`
        return torch.stack([torch.as_tensor(formula(mesh)).to(x.images) for mesh in x.mesh])

    return scores


REWARDS = {
    reward.name: reward
    for reward in (
        GeometricReward(_of_views, "depth_normal", ("normals", "depths", "cameras"), True, (-1.0, 1.0)),
        GeometricReward(_of_mesh(mirror_symmetry), "symmetry", ("mesh",), True, (0.0, 1.0)),
        GeometricReward(_of_mesh(connectedness), "connectedness", ("mesh",), False, (0.0, 1.0)),
        GeometricReward(_of_mesh(stability), "stability", ("mesh",), True, (-1.0, 1.0)),
    )
}
