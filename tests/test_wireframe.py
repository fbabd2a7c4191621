"""Wireframe pictures: lines where edges are, hidden ones left out, inner sides told apart."""

from __future__ import annotations

import pytest
import torch

from rl3d.errors import InputError
from rl3d.scenes.mesh import Mesh
from rl3d.wireframe import BACK, wireframe

FRONT = torch.tensor([0.0])


def square(z: float = 0.0) -> Mesh:
    """Two triangles that face +z, with the diagonal between (-1, -1) and (1, 1)."""
    corners = torch.tensor([[-1.0, -1, z], [1, -1, z], [1, 1, z], [-1, 1, z]])
    return Mesh(vertices=corners, faces=torch.tensor([[0, 1, 2], [0, 2, 3]]))


def test_the_diagonal_is_dark_and_the_faces_are_not() -> None:
    (image,) = wireframe(square(), FRONT, 0.0, size=128)
    grey = image.mean(0)
    assert grey[63, 64] < 0.4 and grey[40, 87] < 0.4  # on the diagonal
    assert grey[50, 40] > 0.6 and grey[80, 90] > 0.6  # inside either face
    assert grey[88, 40] < 0.95


def test_hidden_lines_do_not_show() -> None:
    near, far = square(0.3), square(-0.3)
    corners = torch.cat([near.vertices, far.vertices.flip(0)])  # its diagonal runs the other way
    both = Mesh(vertices=corners, faces=torch.cat([near.faces, near.faces.flip(1) + 4]))
    (alone,), (image,) = (wireframe(m, FRONT, 0.0, size=128) for m in (near, both))
    assert (image - alone).abs()[:, 30:98, 30:98].mean() < 0.06
    assert image.mean(0)[50, 78] > 0.6  # where the far diagonal would be


def test_inner_sides_are_reddish_and_colours_are_taken() -> None:
    (behind,) = wireframe(square(), torch.tensor([torch.pi]), 0.0, size=64)
    assert behind[0, 26, 22] - behind[2, 26, 22] > 0.6 * (BACK[0] - BACK[2])
    (painted,) = wireframe(square(), FRONT, 0.0, size=64, colours=torch.tensor([[0.0, 1, 0], [0, 0, 1]]))
    assert painted[1, 40, 44] > 0.5 and painted[2, 40, 44] < 0.2
    with pytest.raises(InputError, match="one a face"):
        wireframe(square(), FRONT, colours=torch.zeros(3, 3))
