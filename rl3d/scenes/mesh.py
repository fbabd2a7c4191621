"""Triangle meshes as frozen dataclasses of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.errors import InputError


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh. Colours are sRGB in [0, 1]; at most one of the three colour sources is set.

    Attributes:
        vertices: [N, 3] float, metres, +Y up.
        faces: [F, 3] int64, counter-clockwise seen from outside.
        vertex_colours: [N, 3], interpolated across a face.
        face_colours: [F, 3], one flat colour a face.
        texture: [H, W, 3], row 0 at the top of the picture; needs `uvs` and `face_uvs`.
        uvs: [T, 2], glTF convention: (0, 0) is the top-left corner of the picture, v runs down.
        face_uvs: [F, 3] int64, indices into `uvs`, so that a seam does not split the vertices.
    """

    vertices: Tensor
    faces: Tensor
    vertex_colours: Tensor | None = None
    face_colours: Tensor | None = None
    texture: Tensor | None = None
    uvs: Tensor | None = None
    face_uvs: Tensor | None = None

    def __post_init__(self) -> None:
        if self.vertices.ndim != 2 or self.vertices.shape[1] != 3:
            raise InputError(f"Mesh.vertices must be [N, 3], got {list(self.vertices.shape)}")
        if self.faces.ndim != 2 or self.faces.shape[1] != 3:
            raise InputError(f"Mesh.faces must be [F, 3] triangles, got {list(self.faces.shape)}")
        given = [k for k in ("vertex_colours", "face_colours", "texture") if getattr(self, k) is not None]
        if len(given) > 1:
            raise InputError(f"a Mesh takes one source of colour, got {' and '.join(given)}")
        if self.texture is not None and (self.uvs is None or self.face_uvs is None):
            raise InputError("Mesh.texture needs uvs [T, 2] and face_uvs [F, 3]")

    @property
    def device(self) -> torch.device:
        return self.vertices.device
