"""Small hand-made shapes for the tests of this folder."""

from __future__ import annotations

import numpy as np
import torch

from rl3d.scenes import Mesh

# Unit cube: 8 corners, counter-clockwise from outside, two triangles a side in the order -X +X -Y +Y -Z +Z.
CORNERS = [[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]
SIDES = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]


def cube() -> Mesh:
    faces = [t for a, b, c, d in SIDES for t in ([a, b, c], [a, c, d])]
    return Mesh(torch.tensor(CORNERS), torch.tensor(faces))


def face_coloured_cube() -> Mesh:
    """Six colours, exact in 8 bits."""
    six = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30], [128, 127, 126], [250, 200, 3]])
    return Mesh(cube().vertices, cube().faces, face_colours=six.repeat_interleave(2, 0) / 255)


def vertex_coloured_cube() -> Mesh:
    shades = torch.arange(24).reshape(8, 3) * 11 % 256
    return Mesh(cube().vertices, cube().faces, vertex_colours=shades / 255)


def textured_cube() -> Mesh:
    """Every side shows the whole picture, whose four corner texels differ: red, green over blue, yellow."""
    texture = torch.tensor([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]]) / 255
    uvs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    face_uvs = torch.tensor([[0, 1, 2], [0, 2, 3]] * 6)
    return Mesh(cube().vertices, cube().faces, texture=texture, uvs=uvs, face_uvs=face_uvs)


def icosphere(levels: int = 2) -> Mesh:
    """Unit sphere from an octahedron, 8 * 4^levels faces."""
    vertices = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], float)
    faces = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
    for _ in range(levels):
        a, b, c = vertices[faces].transpose(1, 0, 2)
        corners = np.stack([a, (a + b) / 2, (c + a) / 2, b, (b + c) / 2, c], 1).reshape(-1, 3)
        corners /= np.linalg.norm(corners, axis=1, keepdims=True)
        local = np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5], [1, 4, 2]])
        corners, inverse = np.unique(corners.round(12), axis=0, return_inverse=True)
        faces = inverse.reshape(-1)[(np.arange(len(a))[:, None, None] * 6 + local).reshape(-1, 3)]
        vertices = corners
    return Mesh(torch.from_numpy(vertices).float(), torch.from_numpy(faces))
