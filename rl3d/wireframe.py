"""Pictures of a mesh with its edges drawn: what an artist looks at to judge topology."""

from __future__ import annotations

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.preview import Framing, backdrop, framing
from rl3d.render.rasterize import rasterize
from rl3d.scenes.mesh import Mesh

LINE = (0.13, 0.14, 0.17)  # sRGB
PLAIN = (0.82, 0.84, 0.88)
BACK = (0.86, 0.55, 0.47)  # inner sides, which only holes show


@torch.no_grad()
def wireframe(
    mesh: Mesh,
    azimuth: Tensor,
    elevation: Tensor | float = 0.3,
    *,
    size: int = 256,
    colours: Tensor | None = None,
    width: float = 0.9,
    supersample: int = 2,
    where: Framing | None = None,
) -> Tensor:
    """Faces lit from the camera with their edges over them, hidden lines removed; inner sides are reddish.

    Args:
        azimuth: [V], radians. elevation: [V] or one number, radians.
        colours: [F, 3] sRGB of the faces; None: one light grey.
        width: of the lines, in pixels. where: the framing; None: of this mesh.

    Returns:
        [V, 3, size, size] sRGB in [0, 1].

    Raises:
        InputError: `colours` of another shape.
    """
    if colours is not None and colours.shape != (len(mesh.faces), 3):
        raise InputError(f"colours must be one a face, [{len(mesh.faces)}, 3], got {list(colours.shape)}")
    cameras = (where or framing(mesh)).orbit(azimuth, elevation, size * supersample).to(mesh.device, torch.float32)
    seen = rasterize(mesh.vertices, mesh.faces, cameras)
    corners = mesh.triangles  # [F, 3, 3]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = torch.nn.functional.normalize(normals, dim=1)
    base = corners.new_tensor(PLAIN).expand(len(corners), 3) if colours is None else colours.to(corners)
    points, _ = cameras.project(mesh.vertices)  # [V, N, 2]
    line, ground = corners.new_tensor(LINE), backdrop(size, size, mesh.device)
    pictures = []
    for v in range(len(cameras)):
        face = seen.face_id[v].clamp_min(0)  # [H, W]
        towards = torch.nn.functional.normalize(cameras.centres[v] - corners.mean(1), dim=1)
        facing = (normals * towards).sum(1)
        shade = (0.55 + 0.45 * facing.abs())[:, None]
        lit = torch.where((facing < 0)[:, None], corners.new_tensor(BACK), base) * shade
        ink = _ink(points[v][mesh.faces], face, 0.5 * width * supersample)
        colour = lit[face] * (1 - ink) + line * ink
        there = (seen.face_id[v] >= 0)[..., None].to(colour)
        fine = torch.cat([colour * there, there], 2).movedim(2, 0)  # [4, H, W]
        small = torch.nn.functional.avg_pool2d(fine, supersample)
        pictures.append(small[:3] + (1 - small[3:]) * ground)
    return torch.stack(pictures).clamp(0, 1)


def _ink(triangles: Tensor, face: Tensor, half: float) -> Tensor:
    """[H, W, 1]: how much of a line covers each pixel: 1 within `half` pixels of an edge of its face.

    Args:
        triangles: [F, 3, 2] pixels. face: [H, W], the face that each pixel sees.
    """
    rows = torch.arange(face.shape[0], device=face.device) + 0.5
    columns = torch.arange(face.shape[1], device=face.device) + 0.5
    pixel = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)[:, :, None]  # [H, W, 1, 2]
    a = triangles[face]  # [H, W, 3, 2]
    b = a.roll(-1, dims=2)
    along, to = b - a, pixel - a
    share = ((to * along).sum(-1) / (along * along).sum(-1).clamp_min(1e-12)).clamp(0, 1)
    distance = (to - share[..., None] * along).norm(dim=-1).amin(-1)
    return (half + 0.5 - distance).clamp(0, 1)[..., None]
