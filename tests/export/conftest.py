"""Small known solids and their pictures."""

from __future__ import annotations

import pytest
import torch
import trimesh

from rl3d.export import ExportOptions
from rl3d.export.asset import fusion_cameras
from rl3d.render import Frames, render
from rl3d.scenes import Mesh

SMALL = ExportOptions(resolution=40, views=16, image_size=64, faces=600, texture=96, elevations=(-0.3, 0.2, 0.8))


def solid(shape: trimesh.Trimesh) -> Mesh:
    """Red where x > 0, blue elsewhere, sRGB 0.8 / 0.2."""
    vertices = torch.tensor(shape.vertices, dtype=torch.float32)
    faces = torch.tensor(shape.faces, dtype=torch.int64)
    right = vertices[faces].mean(1)[:, :1] > 0
    colours = torch.where(right, torch.tensor([0.8, 0.2, 0.2]), torch.tensor([0.2, 0.2, 0.8]))
    return Mesh(vertices, faces, face_colours=colours)


@pytest.fixture(scope="session")
def options() -> ExportOptions:
    return SMALL


@pytest.fixture(scope="session")
def ball() -> Mesh:
    return solid(trimesh.creation.icosphere(subdivisions=3, radius=0.5))


@pytest.fixture(scope="session")
def box() -> Mesh:
    shape = trimesh.creation.box((0.6, 0.4, 0.8)).subdivide()
    return solid(shape)


@pytest.fixture(scope="session")
def ball_frames(ball: Mesh) -> Frames:
    return render(ball, fusion_cameras(SMALL), supersample=2)


@pytest.fixture(scope="session")
def box_frames(box: Mesh) -> Frames:
    return render(box, fusion_cameras(SMALL), supersample=2)
