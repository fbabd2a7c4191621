"""Point clouds to and from trimesh; meshes and point clouds to and from Open3D, where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from scene_shapes import cube, face_coloured_cube, textured_cube, vertex_coloured_cube

from rl3d.errors import InputError
from rl3d.scenes import Mesh, PointCloud
from rl3d.scenes.convert_open3d import to_open3d
from rl3d.scenes.texture import surface_colours


@pytest.fixture(scope="session")
def open3d() -> ModuleType:
    return pytest.importorskip("open3d", reason="Open3D is not installed: its conversions were NOT tested")


def cloud(normals: bool = True, colours: bool = True) -> PointCloud:
    g = torch.Generator().manual_seed(0)
    points = torch.randn(5, 3, generator=g)
    unit = torch.nn.functional.normalize(torch.randn(5, 3, generator=g), dim=1)
    return PointCloud(
        points, unit if normals else None, torch.randint(0, 256, (5, 3), generator=g) / 255.0 if colours else None
    )


def test_points_to_trimesh_and_back() -> None:
    theirs = cloud().to_trimesh()
    assert isinstance(theirs, trimesh.PointCloud)
    back = PointCloud.from_trimesh(theirs)
    assert torch.equal(back.points, cloud().points) and back.normals is None
    torch.testing.assert_close(back.colours, cloud().colours)
    assert PointCloud.from_trimesh(cloud(colours=False).to_trimesh()).colours is None
    with pytest.raises(InputError, match=r"expected a trimesh\.PointCloud, got Trimesh"):
        PointCloud.from_trimesh(cube().to_trimesh())
    with pytest.raises(InputError, match="must be finite"):
        PointCloud.from_trimesh(trimesh.PointCloud(np.full((1, 3), np.nan)))


def test_a_missing_open3d_is_one_line_that_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    for scene in (cube(), cloud()):
        with pytest.raises(InputError, match=r"package open3d .*pip install open3d-cpu") as error:
            scene.to_open3d()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("normals", [True, False])
@pytest.mark.parametrize("colours", [True, False])
def test_points_to_open3d_and_back(open3d: ModuleType, normals: bool, colours: bool) -> None:
    theirs = cloud(normals, colours).to_open3d()
    assert isinstance(theirs, open3d.geometry.PointCloud)
    for source in (theirs, open3d.t.geometry.PointCloud.from_legacy(theirs)):
        back = PointCloud.from_open3d(source)
        for name, value in vars(cloud(normals, colours)).items():
            if value is None:
                assert getattr(back, name) is None
            else:
                torch.testing.assert_close(getattr(back, name), value)


def looks_the_same(a: Mesh, b: Mesh, tolerance: float = 1e-6) -> bool:
    """Equal triangles and equal colours at three points inside each."""
    torch.testing.assert_close(a.triangles, b.triangles)
    face = torch.arange(len(a.faces))
    for weights in ((0.9, 0.05, 0.05), (0.05, 0.9, 0.05), (0.05, 0.05, 0.9)):
        w = torch.tensor(weights).expand(len(face), 3)
        torch.testing.assert_close(surface_colours(a, face, w), surface_colours(b, face, w), atol=tolerance, rtol=0)
    return True


def fine_textured_cube() -> Mesh:
    """16 x 16 texels: four even quarters, so that a filter's half texel does not matter inside a face."""
    mesh = textured_cube()
    assert mesh.texture is not None
    return replace(mesh, texture=mesh.texture.repeat_interleave(8, 0).repeat_interleave(8, 1))


MAKERS = [cube, vertex_coloured_cube, face_coloured_cube, fine_textured_cube]


@pytest.mark.parametrize("make", MAKERS)
def test_meshes_to_open3d_and_back(open3d: ModuleType, make: Callable[[], Mesh]) -> None:
    theirs = make().to_open3d()
    assert isinstance(theirs, open3d.geometry.TriangleMesh) and theirs.is_watertight()
    back = Mesh.from_open3d(theirs)
    assert looks_the_same(back, make())
    assert (back.face_colours is None) == (make().face_colours is None)
    assert (back.texture is None) == (make().texture is None)
    with pytest.raises(InputError, match=r"use PointCloud\.from_open3d"):
        Mesh.from_open3d(cloud().to_open3d())
    with pytest.raises(InputError, match=r"use Mesh\.from_open3d"):
        PointCloud.from_open3d(theirs)


@pytest.mark.parametrize("suffix", [".obj", ".glb"])
def test_open3d_and_we_agree_on_textured_files(open3d: ModuleType, tmp_path: Path, suffix: str) -> None:
    """Both of Open3D's readers, and its writer: three independent judges of which way up a picture is."""
    ours = fine_textured_cube()
    ours.save(tmp_path / f"a{suffix}")
    legacy = open3d.io.read_triangle_mesh(str(tmp_path / f"a{suffix}"))
    assert looks_the_same(Mesh.from_open3d(legacy), ours)
    assert looks_the_same(Mesh.from_open3d(open3d.t.io.read_triangle_mesh(str(tmp_path / f"a{suffix}"))), ours)
    open3d.io.write_triangle_mesh(str(tmp_path / "b.obj"), ours.to_open3d())
    assert looks_the_same(Mesh.load(tmp_path / "b.obj"), ours)


def test_other_objects_are_refused(open3d: ModuleType) -> None:
    with pytest.raises(InputError, match="got LineSet"):
        Mesh.from_open3d(open3d.geometry.LineSet())
    with pytest.raises(InputError, match="has no faces"):
        Mesh.from_open3d(open3d.geometry.TriangleMesh())
    with pytest.raises(InputError, match="has 0 points"):
        PointCloud.from_open3d(open3d.geometry.PointCloud())
    with pytest.raises(InputError, match="takes a Mesh or a PointCloud, got SimpleNamespace"):
        to_open3d(SimpleNamespace())
