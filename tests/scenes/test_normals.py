import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from rl3d.scenes.mesh import Mesh
from rl3d.scenes.normals import corner_normals


def test_a_cube_is_sharp_below_its_edges_angle_and_round_above() -> None:
    cube = trimesh.creation.box()
    faces = np.asarray(cube.faces)
    flat = corner_normals(cube.vertices, faces, math.radians(80))
    assert np.allclose(flat, cube.face_normals[:, None], atol=1e-12)
    smooth = corner_normals(cube.vertices, faces, math.radians(100))
    # Three sides meet in a corner with areas 1/2 or 1 (one or two triangles), so no component may vanish.
    assert np.allclose(np.linalg.norm(smooth, axis=-1), 1) and (np.abs(smooth) > 0.2).all()


def test_a_sphere_is_smooth_and_seams_do_not_show() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=3)
    split = sphere.vertices[sphere.faces].reshape(-1, 3)  # every corner a vertex of its own
    faces = np.arange(len(split)).reshape(-1, 3)
    normals = corner_normals(split, faces, math.radians(60))
    radial = split[faces] / np.linalg.norm(split[faces], axis=-1, keepdims=True)
    assert np.einsum("fkd,fkd->fk", normals, radial).min() > 0.999  # measured 0.9997


def test_degenerate_faces_give_unit_normals() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 1, 0]], dtype=float)
    normals = corner_normals(vertices, np.array([[0, 1, 2], [0, 1, 3]]), 0.5)
    assert np.allclose(np.linalg.norm(normals, axis=-1), 1)


@pytest.mark.parametrize("colour", ["vertex", "face", "none"])
def test_glb_normals_sit_on_their_vertices(tmp_path: Path, colour: str) -> None:
    sphere = trimesh.creation.icosphere(subdivisions=2)
    vertices = torch.tensor(np.asarray(sphere.vertices), dtype=torch.float32)
    faces = torch.tensor(np.asarray(sphere.faces))
    extra = {
        "vertex": {"vertex_colours": vertices * 0.5 + 0.5},
        "face": {"face_colours": torch.rand(len(faces), 3, generator=torch.Generator().manual_seed(0))},
        "none": {},
    }[colour]
    mesh = Mesh(vertices, faces, **extra)
    mesh.save(tmp_path / "s.glb", crease=1.0)
    data = (tmp_path / "s.glb").read_bytes()
    length = struct.unpack("<I", data[12:16])[0]
    tree, binary = json.loads(data[20 : 20 + length]), data[28 + length :]
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]

    def column(name: str) -> np.ndarray:
        accessor = tree["accessors"][attributes[name]]
        offset = tree["bufferViews"][accessor["bufferView"]]["byteOffset"]
        return np.frombuffer(binary, "<f4", 3 * accessor["count"], offset).reshape(-1, 3)

    # Measured 0.020: the triangles around a vertex of an icosphere are not of one area.
    assert np.abs(column("NORMAL") - column("POSITION")).max() < 0.03
    back = Mesh.load(tmp_path / "s.glb")
    assert torch.equal(back.triangles, mesh.triangles)
    if colour == "vertex":
        assert back.vertex_colours is not None and mesh.vertex_colours is not None
        difference = back.vertex_colours[back.faces] - mesh.vertex_colours[mesh.faces]
        assert float(difference.abs().max()) < 1e-5
