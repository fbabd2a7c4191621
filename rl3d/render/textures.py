"""Texture look-ups of the mesh renderer: bilinear, and trilinear in a mip pyramid by the footprint of a pixel.

A texture that shrinks on the screen is looked up between texels that lie far apart, and shimmers. A mip pyramid
(Williams 1983, "Pyramidal parametrics") holds its means over 2 x 2, 4 x 4 ... texels; a pixel is looked up between the
two levels whose texels are about as large as its footprint.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render.mesh_torch import camera_vertices
from rl3d.render.rasterize import Fragments, rows_of
from rl3d.scenes.texture import sample_bilinear


def sample_texture(texture: Tensor, uv: Tensor, wrap: str = "clamp", level: Tensor | None = None) -> Tensor:
    """Bilinear or, with `level`, trilinear look-up; differentiable in the texture, and in `uv` between texel centres.

    Args:
        texture: [H, W, C], texel (row i, column j) has its centre at uv = ((j + 0.5) / W, (i + 0.5) / H).
        uv: [..., 2], (0, 0) the top-left corner of the picture, v down (glTF).
        wrap: what lies beyond the border: "clamp" (the border texels go on) or "repeat" (the picture again).
        level: [...] place in the mip pyramid, 0 the texture itself, 1 its means over 2 x 2; see `mip_levels`.

    Returns:
        [..., C] in the units of `texture`.
    """
    if wrap not in ("clamp", "repeat"):
        raise InputError(f"wrap must be 'clamp' or 'repeat', got {wrap!r}")
    if level is None:
        return sample_bilinear(texture, uv, repeat=wrap == "repeat")
    if level.shape != uv.shape[:-1]:
        raise InputError(f"level must have one number a look-up, {list(uv.shape[:-1])}, got {list(level.shape)}")
    return sample_trilinear(mip_pyramid(texture), uv, level, wrap == "repeat")


def mip_pyramid(texture: Tensor) -> list[Tensor]:
    """[H, W, C], its means over 2 x 2 texels, over 4 x 4, ... down to one texel; differentiable.

    Odd sides are halved downwards; their means overlap.
    """
    levels = [texture]
    while max(levels[-1].shape[:2]) > 1:
        height, width = levels[-1].shape[:2]
        size = (max(1, height // 2), max(1, width // 2))
        levels.append(adaptive_avg_pool2d(levels[-1].permute(2, 0, 1), size).permute(1, 2, 0))
    return levels


def sample_trilinear(pyramid: list[Tensor], uv: Tensor, level: Tensor, repeat: bool) -> Tensor:
    """Blend the bilinear look-ups of the two levels around `level` [...], which is clamped to the pyramid.

    Returns:
        [..., C]; differentiable to the pyramid, to `uv`, and to `level` between whole numbers.
    """
    sizes = torch.tensor([t.shape[:2] for t in pyramid], device=uv.device)  # [L, 2]
    table = torch.cat([t.flatten(0, 1) for t in pyramid])
    offsets = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)])
    level = level.clamp(0, len(pyramid) - 1)
    lower = level.detach().floor().clamp(max=max(len(pyramid) - 2, 0)).long()
    looked_up = []
    for which in (lower, (lower + 1).clamp(max=len(pyramid) - 1)):
        height, width = sizes[which].unbind(-1)  # [...]
        x, y = uv[..., 0] * width - 0.5, uv[..., 1] * height - 0.5
        left, top = x.detach().floor(), y.detach().floor()
        columns, rows = torch.stack([left, left + 1]).long(), torch.stack([top, top + 1]).long()
        if repeat:
            columns, rows = columns % width, rows % height
        else:
            columns, rows = (
                torch.minimum(columns.clamp_min(0), width - 1),
                torch.minimum(rows.clamp_min(0), height - 1),
            )
        index = offsets[which] + rows[:, None] * width + columns  # [2, 2, ...]
        texels = rows_of(table, index)
        upper, under = torch.lerp(texels[:, 0], texels[:, 1], (x - left)[..., None])
        looked_up.append(torch.lerp(upper, under, (y - top)[..., None]))
    return torch.lerp(looked_up[0], looked_up[1], (level - lower)[..., None])


@torch.no_grad()
def mip_levels(
    vertices: Tensor,
    faces: Tensor,
    cameras: Cameras,
    fragments: Fragments,
    uvs: Tensor,
    face_uvs: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """Where in a mip pyramid the pixels of a textured mesh are looked up: log2 of their footprints' longer sides.

    With corners sheared along a pixel's ray (see `mesh_torch`), the edge functions e_i are linear in the ray's x and y,
    so d(bary)/dx = (de/dx - bary sum(de/dx)) / sum(e) is exact, and so is d(uv)/dx. Not differentiable.

    Args:
        fragments: [V, H, W] of `cameras`. size: (height, width) of the texture in texels.

    Returns:
        [V, H, W], clamped at 0 from below (a magnified texture); 0 where there is no face.
    """
    ids = fragments.face_id
    n_views, height, width = ids.shape
    hit = (ids.reshape(-1) >= 0).nonzero()[:, 0]
    of_view = torch.div(hit, height * width, rounding_mode="floor")
    face = ids.reshape(-1)[hit]
    in_camera = camera_vertices(vertices.double(), cameras.view.double())
    corners = in_camera[of_view[:, None], faces[face]]  # [P, 3, 3]
    k = cameras.intrinsics.double()[of_view]
    row = torch.div(hit % (height * width), width, rounding_mode="floor")
    x = (hit % width + 0.5 - k[:, 0, 2]) / k[:, 0, 0]
    y = (row + 0.5 - k[:, 1, 2]) / k[:, 1, 1]
    z = corners[..., 2]
    px, py = corners[..., 0] - x[:, None] * z, corners[..., 1] - y[:, None] * z  # [P, 3]
    (px1, px2), (py1, py2), (z1, z2) = ((t.roll(-1, 1), t.roll(-2, 1)) for t in (px, py, z))
    total = (px1 * py2 - px2 * py1).sum(1, keepdim=True)
    bary = (px1 * py2 - px2 * py1) / total
    texels = uvs.double()[face_uvs[face]] * torch.tensor([size[1], size[0]], dtype=torch.float64, device=uvs.device)
    lengths = []
    for slope, focal in ((z2 * py1 - z1 * py2, k[:, 0, 0]), (z1 * px2 - z2 * px1, k[:, 1, 1])):
        change = (slope - bary * slope.sum(1, keepdim=True)) / total / focal[:, None]  # d(bary) per pixel
        lengths.append((change[..., None] * texels).sum(1).norm(dim=1))
    level = torch.maximum(*lengths).clamp_min(1.0).log2()
    level = torch.where(torch.isfinite(level), level, 0.0)  # faces seen edge-on
    out = torch.zeros(ids.numel(), dtype=vertices.dtype, device=vertices.device)
    return out.index_copy(0, hit, level.to(out)).reshape(n_views, height, width)
