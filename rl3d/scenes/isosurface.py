"""The zero level of a grid of signed distances as a mesh: differentiable tetrahedra, and marching cubes for files.

Values are given at samples [D, H, W] along z, y and x, as in `rl3d.scenes.grids.Dense`. Inside is where they are below
0 (exactly 0 is outside). Faces are counter-clockwise seen from outside. A surface that leaves the grid is open there.
`rl3d.scenes.dual_marching_cubes` has the other differentiable extraction.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from rl3d.errors import InputError
from rl3d.scenes.field import DENSITY_SCALE, Field, check_field, potential, query
from rl3d.scenes.mesh import Mesh

Array = np.ndarray[Any, np.dtype[Any]]
METHODS = ("tetrahedra", "flexicubes")
_CHUNK = 1 << 16  # points asked at once without gradients


def grid_points(box: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """[D, H, W, 3] positions (x, y, z) of the samples over a box [2, 3]: its border and inside it."""
    axes = [torch.linspace(0, 1, n, dtype=box.dtype, device=box.device) for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return box[0] + torch.stack([x, y, z], -1) * (box[1] - box[0])


def corner_steps(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """[8] what to add to a sample's flat index for corner c of its cube; bits of c: x, y, z."""
    return torch.tensor(
        [(c & 1) + shape[2] * (c >> 1 & 1) + shape[2] * shape[1] * (c >> 2) for c in range(8)], device=device
    )


def check_grid(values: Tensor, points: Tensor) -> None:
    """Refuse grids that have no cell, other shapes or numbers that are not finite.

    Raises:
        InputError: as said.
    """
    if values.ndim != 3 or min(values.shape) < 2 or tuple(points.shape) != (*values.shape, 3):
        raise InputError(
            "iso-surfacing needs values [D, H, W] with 2 samples or more and points [D, H, W, 3], got "
            f"{list(values.shape)} and {list(points.shape)}"
        )
    if not bool(torch.isfinite(values.detach()).all() and torch.isfinite(points.detach()).all()):
        raise InputError("iso-surfacing got values or points that are NaN or infinite; has the field diverged?")


def active_cubes(values: Tensor) -> Tensor:
    """[M] flat indices of the first samples of the cubes that have corners on both sides."""
    inside = values.detach() < 0
    near, far = slice(None, -1), slice(1, None)
    corners = torch.stack(
        [inside[z, y, x] for z in (near, far) for y in (near, far) for x in (near, far)]
    )  # [8, D - 1, H - 1, W - 1]
    mixed = corners.any(0) & ~corners.all(0)
    return pad(mixed, (0, 1, 0, 1, 0, 1)).flatten().nonzero()[:, 0]


def crossing(at_a: Tensor, at_b: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[E, 3] where the value is 0 between points a and b [E, 3] with values at_a and at_b [E] of unlike sign."""
    gap = at_a - at_b
    flat = gap.abs() < 1e-12  # two values that nearly touch 0: the middle, rather than an endless slope
    share = torch.where(flat, 0.5, at_a / torch.where(flat, 1, gap))
    return a + share[:, None] * (b - a)


_PATHS = [tuple(1 << axis for axis in order) for order in permutations(range(3))]
# A cube is six tetrahedra along its diagonal (Freudenthal); neighbours agree on their shared faces. Corners by bits.
_TETRAHEDRA = [(0, p[0], p[0] | p[1], 7) for p in _PATHS]
_MIRRORED = [order in ((0, 2, 1), (1, 0, 2), (2, 1, 0)) for order in permutations(range(3))]
_TET_EDGES = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def _tetrahedron_table() -> list[list[list[int]]]:
    """[16][2][3] edges of the up to two triangles for each set of inside corners (bits), -1: none.

    The winding is read off the tetrahedron (0, x, xy, xyz): normals must point from inside to outside.
    """
    place = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]], float)
    middle = np.array([(place[a] + place[b]) / 2 for a, b in _TET_EDGES])
    table = []
    for code in range(16):
        inner = [v for v in range(4) if code >> v & 1]
        outer = [v for v in range(4) if not code >> v & 1]

        def edge(a: int, b: int) -> int:
            return _TET_EDGES.index((min(a, b), max(a, b)))

        if len(inner) in (1, 3):
            (alone,), rest = (inner, outer) if len(inner) == 1 else (outer, inner)
            triangles = [[edge(alone, other) for other in rest]]
        elif len(inner) == 2:
            (a, b), (c, d) = inner, outer
            triangles = [[edge(a, c), edge(a, d), edge(b, d)], [edge(a, c), edge(b, d), edge(b, c)]]
        else:
            triangles = []
        for triangle in triangles:
            p, q, r = middle[triangle]
            out = place[outer].mean(0) - place[inner].mean(0)
            if np.cross(q - p, r - p) @ out < 0:
                triangle.reverse()
        table.append(triangles + [[-1] * 3] * (2 - len(triangles)))
    return table


_TABLE = _tetrahedron_table()


def marching_tetrahedra(values: Tensor, points: Tensor) -> Mesh:
    """The zero level by tetrahedra, as in DMTet (Shen et al. 2021, arXiv 2111.04276).

    Every closed surface is watertight and manifold, whatever the signs. Vertices lie on the tetrahedra's edges, at
    (x_a s_b - x_b s_a) / (s_b - s_a).

    Args:
        values: [D, H, W] signed distances, negative inside. points: [D, H, W, 3] the samples' positions: those of
            `grid_points`, perhaps deformed by less than half a cell.

    Returns:
        A mesh without colours, differentiable to values and points; no vertices and faces where all signs agree.

    Raises:
        InputError: shapes, or numbers that are not finite.
    """
    check_grid(values, points)
    device = values.device
    steps = corner_steps(tuple(values.shape), device)
    cubes = active_cubes(values)  # [M]
    corners = torch.tensor(_TETRAHEDRA, device=device)  # [6, 4]
    flat, places = values.reshape(-1), points.reshape(-1, 3)
    inside = flat.detach()[cubes[:, None, None] + steps[corners]] < 0  # [M, 6, 4]
    code = (inside * torch.tensor([1, 2, 4, 8], device=device)).sum(-1)  # [M, 6]
    triangles = torch.tensor(_TABLE, device=device)[code]  # [M, 6, 2, 3] edges of the tetrahedron
    mirrored = torch.tensor(_MIRRORED, device=device)[None, :, None, None]
    triangles = torch.where(mirrored, triangles.flip(-1), triangles)
    ends = torch.tensor(_TET_EDGES, device=device)
    low, high = corners[:, ends[:, 0]], corners[:, ends[:, 1]]  # [6, 6] corners of the cube
    names = (cubes[:, None, None] + steps[low]) * 8 + (high ^ low)  # [M, 6, 6] the same edge, the same name
    kept = triangles[..., 0] >= 0  # [M, 6, 2]
    picked = names[:, :, None].expand(-1, -1, 2, -1).gather(3, triangles.clamp_min(0))  # [M, 6, 2, 3]
    edges, faces = torch.unique(picked[kept], return_inverse=True)  # [E], [F, 3]
    a = edges // 8
    b = a + steps[edges % 8]
    return Mesh(crossing(flat[a], flat[b], places[a], places[b]), faces.reshape(-1, 3))


def field_grid(
    field: Field, resolution: int, level: float = DENSITY_SCALE, closed: bool = True
) -> tuple[Tensor, Tensor]:
    """Values [D, H, W] with their zero level on a field's surface, and points [D, H, W, 3], over its box.

    Args:
        resolution: samples along the box's longest side.
        level: density that counts as solid, 1/m; for kind "density" alone.
        closed: lift the border above 0, so that the surface does not leave the box.

    Raises:
        InputError: a diverged field, a resolution below 3, a level that is not positive.
    """
    check_field(field)
    if resolution < 3 or not level > 0:
        raise InputError(f"iso-surfacing needs resolution >= 3 and level > 0, got {resolution} and {level}")
    side = (field.box[1] - field.box[0]).detach()
    cell = float(side.max()) / (resolution - 1)
    nx, ny, nz = (max(3, round(s / cell) + 1) for s in side.tolist())
    points = grid_points(field.box.detach(), (nz, ny, nx))
    flat = points.reshape(-1, 3)
    parts = [flat] if torch.is_grad_enabled() else flat.split(_CHUNK)
    values = torch.cat([potential(field, p)[0] for p in parts]).reshape(nz, ny, nx)
    if field.kind == "density":
        values = float(np.log(np.expm1(level / DENSITY_SCALE))) - values
    if closed:
        border = torch.ones_like(values, dtype=torch.bool)
        border[1:-1, 1:-1, 1:-1] = False
        values = torch.where(border, values.clamp_min(cell), values)
    return values, points


def extract_mesh(
    field: Field, resolution: int = 64, method: str = "tetrahedra", level: float = DENSITY_SCALE, closed: bool = True
) -> Mesh:
    """A field's surface with vertex colours (sRGB), differentiable to the field's parameters.

    Args:
        resolution, level, closed: as in `field_grid`.
        method: "tetrahedra" (watertight and manifold) or "flexicubes" (fewer and better shaped faces).

    Returns:
        The mesh; without vertices where the field has no surface.

    Raises:
        InputError: as `field_grid`, or an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    values, points = field_grid(field, resolution, level, closed)
    if method == "tetrahedra":
        mesh = marching_tetrahedra(values, points)
    else:
        from rl3d.scenes.dual_marching_cubes import flexicubes

        mesh = flexicubes(values, points)[0]
    _, colours = query(field, mesh.vertices)
    return Mesh(mesh.vertices, mesh.faces, vertex_colours=colours)


def zero_level(values: Array, origin: Array, spacing: float | tuple[float, float, float]) -> tuple[Array, Array]:
    """Marching cubes (Lewiner et al. 2003) on a grid [X, Y, Z], closed at its border.

    Args:
        values: float32, somewhere below 0. origin: [3] position of sample (0, 0, 0). spacing: between samples, metres.

    Returns:
        vertices [N, 3] float64, faces [F, 3] int64, counter-clockwise from outside.
    """
    from skimage.measure import marching_cubes as lewiner

    padded = np.pad(values, 1, constant_values=max(1.0, float(values.max())))
    step = np.broadcast_to(np.asarray(spacing, float), 3)
    vertices, faces, _, _ = lewiner(padded, 0.0, spacing=tuple(step), gradient_direction="descent")
    return vertices.astype(np.float64) + (origin - step), faces.astype(np.int64)


@torch.no_grad()
def marching_cubes(field: Field, resolution: int = 128, level: float = DENSITY_SCALE) -> Mesh:
    """A field's surface by marching cubes, with vertex colours; for files, not differentiable.

    Raises:
        InputError: as `field_grid`, or no surface.
    """
    values, points = field_grid(field, resolution, level, closed=False)
    if not bool((values < 0).any()):
        raise InputError("the field has no surface: its distance or its density's level is never crossed in the box")
    spacing = tuple(
        float(s) for s in (points[-1, -1, -1] - points[0, 0, 0]) / (points.new_tensor(points.shape[2::-1]) - 1)
    )
    grid = values.permute(2, 1, 0).cpu().numpy()
    vertices, faces = zero_level(grid, points[0, 0, 0].cpu().double().numpy(), spacing)  # type: ignore[arg-type]
    where = torch.from_numpy(vertices).to(field.device, field.dtype)
    colours = torch.cat([query(field, p)[1] for p in where.split(_CHUNK)])
    return Mesh(where, torch.from_numpy(faces).to(field.device), vertex_colours=colours)
