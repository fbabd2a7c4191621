"""Colours of a mesh's surface: texture look-ups, one colour a face, palettes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from rl3d.scenes.mesh import Mesh

PALETTE_BLOCK = 4  # texels a colour and side: filters and mip levels that reach one texel far stay inside the colour
DEFAULT_GREY = 0.7  # sRGB albedo of a surface without any colour


def tiles(uvs: Tensor) -> bool:
    """Whether some coordinates [..., 2] leave [0, 1], so that the picture has to repeat; else its border is clamped."""
    return bool(((uvs < 0) | (uvs > 1)).any())


def sample_bilinear(texture: Tensor, uv: Tensor, repeat: bool = False) -> Tensor:
    """Look a picture up at continuous coordinates; texel centres lie at (i + 0.5) / size.

    Args:
        texture: [H, W, C], blended as it is stored (sRGB for ours).
        uv: [..., 2] glTF convention, (0, 0) = top-left corner.
        repeat: what lies beyond the border: the picture again, or (False) its border texels.

    Returns:
        [..., C]; differentiable to both arguments.
    """
    height, width = texture.shape[:2]
    x, y = uv[..., 0] * width - 0.5, uv[..., 1] * height - 0.5
    left, top = x.detach().floor(), y.detach().floor()
    fx, fy = (x - left)[..., None], (y - top)[..., None]
    columns = torch.stack([left, left + 1]).long()
    rows = torch.stack([top, top + 1]).long()
    if repeat:
        columns, rows = columns % width, rows % height
    else:
        columns, rows = columns.clamp(0, width - 1), rows.clamp(0, height - 1)
    index = rows[:, None] * width + columns  # [2, 2, ...]; index_select is several times faster than indexing on a CPU
    texels = texture.flatten(0, 1).index_select(0, index.reshape(-1)).reshape(*index.shape, texture.shape[2])
    upper, lower = torch.lerp(texels[:, 0], texels[:, 1], fx)
    return torch.lerp(upper, lower, fy)


def sample_nearest(texture: Tensor, uv: Tensor) -> Tensor:
    """The texel that holds each coordinate: texture [H, W, C], uv [..., 2] -> [..., C]; outside it repeats."""
    height, width = texture.shape[:2]
    x = torch.floor(uv[..., 0] * width).long() % width
    y = torch.floor(uv[..., 1] * height).long() % height
    return texture[y, x]


def surface_colours(mesh: Mesh, face: Tensor, barycentric: Tensor) -> Tensor:
    """sRGB colours of surface points.

    Args:
        mesh: any colour source; `DEFAULT_GREY` where it has none.
        face: [K] int64 face of each point. barycentric: [K, 3] weights of its corners.

    Returns:
        [K, 3]; differentiable to the mesh's colours.
    """
    if mesh.face_colours is not None:
        return mesh.face_colours[face]
    weights = barycentric.unsqueeze(-1)
    if mesh.vertex_colours is not None:
        return (mesh.vertex_colours[mesh.faces[face]] * weights).sum(1)
    if mesh.texture is not None and mesh.uvs is not None and mesh.face_uvs is not None:
        return sample_bilinear(mesh.texture, (mesh.uvs[mesh.face_uvs[face]] * weights).sum(1), tiles(mesh.uvs))
    return mesh.vertices.new_full((len(face), 3), DEFAULT_GREY)


def face_centre_colours(mesh: Mesh) -> Tensor:
    """[F, 3] sRGB colour at every face's centre; white where the mesh has no colour."""
    face = torch.arange(len(mesh.faces), device=mesh.device)
    return surface_colours(mesh, face, mesh.vertices.new_full((len(face), 3), 1 / 3))


def to_bytes(colours: Tensor) -> NDArray[np.uint8]:
    """Colours in [0, 1] of any shape as 8 bits; values outside are clipped, as every picture format does."""
    return (colours.detach().cpu().float().clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()


def palette(colours: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.int64]]:
    """Pack colours into a picture, a block of 4x4 texels each.

    Args:
        colours: [F, 3].

    Returns:
        picture [H, W, 3], uvs [K, 2] (block centres) of the K different colours, index [F] into them.
    """
    unique, index = np.unique(colours, axis=0, return_inverse=True)
    columns = math.ceil(math.sqrt(len(unique)))
    rows = math.ceil(len(unique) / columns)
    cells = np.zeros((rows * columns, 3), np.uint8)
    cells[: len(unique)] = unique
    picture = cells.reshape(rows, columns, 3).repeat(PALETTE_BLOCK, 0).repeat(PALETTE_BLOCK, 1)
    place = np.arange(len(unique))
    uvs = np.stack([(place % columns + 0.5) / columns, (place // columns + 0.5) / rows], 1)
    return picture, uvs, index.reshape(-1)
