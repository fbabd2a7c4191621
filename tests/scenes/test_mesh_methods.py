"""Methods of Mesh and PointCloud, welding, surface samples, facts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trimesh
from scene_shapes import cube, face_coloured_cube, icosphere, textured_cube, vertex_coloured_cube

from rl3d.errors import InputError
from rl3d.scenes import Mesh, PointCloud, load_scene, mesh_facts, sample_surface


def soup(mesh: Mesh) -> Mesh:
    """Every triangle with corners of its own."""
    return Mesh(mesh.triangles.reshape(-1, 3), torch.arange(3 * len(mesh.faces)).reshape(-1, 3))


def test_normalised_centres_the_box_and_sets_the_radius() -> None:
    moved = replace(icosphere(), vertices=icosphere().vertices * torch.tensor([1.0, 3.0, 0.5]) + 7)
    loose = replace(moved, vertices=torch.cat([moved.vertices, torch.tensor([[1e6, 0, 0]])]))  # no face uses it
    for mesh in (moved.normalised(0.6), loose.normalised(0.6)):
        torch.testing.assert_close(mesh.bounds.mean(0), torch.zeros(3), rtol=0, atol=1e-6)
        assert float(mesh.triangles.norm(dim=-1).max()) == pytest.approx(0.6, abs=1e-6)


def test_normalised_refuses() -> None:
    with pytest.raises(InputError, match="radius"):
        cube().normalised(0.0)
    with pytest.raises(InputError, match="one place"):
        replace(cube(), vertices=torch.ones(8, 3)).normalised()
    with pytest.raises(InputError, match="without faces"):
        replace(cube(), faces=torch.zeros(0, 3, dtype=torch.int64)).normalised()


def test_areas_and_normals_of_a_cube() -> None:
    torch.testing.assert_close(cube().face_areas, torch.full((12,), 0.5))
    want = torch.tensor([[-1.0, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]]).repeat_interleave(2, 0)
    torch.testing.assert_close(cube().face_normals, want)


def test_weld_joins_a_soup_and_keeps_the_surface() -> None:
    for mesh in (cube(), icosphere()):
        welded = soup(mesh).welded()
        assert len(welded.vertices) == len(mesh.vertices)
        torch.testing.assert_close(welded.triangles, mesh.triangles, rtol=0, atol=0)


def test_weld_tolerance_is_a_distance_and_not_a_grid() -> None:
    """Pairs 0.9e-3 apart at many offsets all meet at a tolerance of 1e-3, pairs 1.1e-3 apart never do."""
    base = torch.arange(50, dtype=torch.float64)[:, None] * torch.tensor([[1.000137, 0, 0]], dtype=torch.float64)
    for gap, count in ((0.9e-3, 50), (1.1e-3, 100)):
        vertices = torch.cat([base, base + torch.tensor([gap, 0, 0], dtype=torch.float64)])
        faces = torch.stack([torch.arange(100), torch.arange(100).roll(1), torch.arange(100).roll(2)], 1)
        assert len(Mesh(vertices, faces).welded(1e-3).vertices) == count


def test_weld_keeps_colour_borders_and_seams() -> None:
    mesh = soup(cube())
    shades = torch.zeros(36, 3)
    shades[:6] = 1.0  # one side white
    assert len(replace(mesh, vertex_colours=shades).welded().vertices) == 8 + 4
    textured = textured_cube()
    apart = replace(textured, vertices=textured.triangles.reshape(-1, 3), faces=torch.arange(36).reshape(-1, 3))
    welded = apart.welded()
    assert len(welded.vertices) == 8 and welded.uvs is textured.uvs
    with pytest.raises(InputError, match="tolerance"):
        cube().welded(-1.0)


def test_weld_passes_gradients() -> None:
    vertices = soup(cube()).vertices.clone().requires_grad_()
    Mesh(vertices, torch.arange(36).reshape(-1, 3)).welded().triangles.sum().backward()
    assert vertices.grad is not None and float(vertices.grad.sum()) == 12 * 9


def test_to_and_detach_keep_everything() -> None:
    mesh = replace(textured_cube(), vertices=textured_cube().vertices.requires_grad_())
    assert not mesh.detach().to("cpu").vertices.requires_grad
    assert mesh.to("meta").face_uvs.device.type == "meta"  # type: ignore[union-attr]


def test_mesh_refuses_wrong_shapes() -> None:
    with pytest.raises(InputError, match=r"face_colours must be \[12, 3\], got \[8, 3\]"):
        replace(cube(), face_colours=torch.zeros(8, 3))
    with pytest.raises(InputError, match="one source"):
        replace(face_coloured_cube(), vertex_colours=torch.zeros(8, 3))


def test_facts_of_a_closed_and_an_open_shape() -> None:
    facts = mesh_facts(soup(icosphere()))
    assert facts["watertight"] and facts["consistent_winding"] and facts["components"] == 1
    assert facts["volume"] == pytest.approx(float(icosphere().to_trimesh().volume))
    assert facts["area"] == pytest.approx(float(icosphere().to_trimesh().area))
    assert facts["extents"] == pytest.approx([2, 2, 2])
    json.dumps(facts, allow_nan=False)
    opened = mesh_facts(replace(cube(), faces=cube().faces[1:]))
    assert (opened["boundary_edges"], opened["watertight"], opened["volume"]) == (3, False, None)


def test_facts_count_what_is_wrong() -> None:
    two = torch.cat([cube().vertices, cube().vertices + 5])
    faces = torch.cat([cube().faces, cube().faces + 8])
    assert mesh_facts(Mesh(two, faces))["components"] == 2
    fin = torch.cat([cube().faces, torch.tensor([[0, 1, 8]])])  # a third face on the edge 0-1, with a corner of its own
    facts = mesh_facts(Mesh(torch.cat([cube().vertices, torch.tensor([[-2.0, -2.0, 0.0]])]), fin))
    assert (facts["non_manifold_edges"], facts["boundary_edges"], facts["watertight"]) == (1, 2, False)
    collapsed = torch.cat([cube().faces, torch.tensor([[0, 0, 1]])])
    facts = mesh_facts(replace(cube(), faces=collapsed))
    assert facts["degenerate_faces"] == 1 and facts["watertight"]
    flipped = cube().faces.clone()
    flipped[0] = flipped[0].flip(0)
    facts = mesh_facts(replace(cube(), faces=flipped))
    assert facts["watertight"] and not facts["consistent_winding"] and facts["volume"] is None
    with pytest.raises(InputError, match="without faces"):
        mesh_facts(replace(cube(), faces=torch.zeros(0, 3, dtype=torch.int64)))


def test_facts_agree_with_trimesh() -> None:
    generator = torch.Generator().manual_seed(0)
    mesh = icosphere(3)
    for _ in range(5):
        mesh = replace(mesh, faces=mesh.faces[torch.rand(len(mesh.faces), generator=generator) > 0.3])
        theirs = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
        ours = mesh_facts(mesh)
        count = trimesh.grouping.group_rows(theirs.edges_sorted, require_count=1)
        assert ours["boundary_edges"] == len(count) and ours["watertight"] == theirs.is_watertight
        assert ours["area"] == pytest.approx(theirs.area, rel=1e-6)


def test_sample_surface_is_uniform_by_area() -> None:
    """20,000 points on a 1 x 1 x 4 box: each side pair's share is its area's within 4 standard deviations (0.014)."""
    box = replace(cube(), vertices=cube().vertices * torch.tensor([1.0, 1.0, 4.0]))
    cloud = sample_surface(box, 20_000, torch.Generator().manual_seed(0))
    assert cloud.normals is not None and cloud.colours is None
    share = cloud.normals.abs().mean(0)
    torch.testing.assert_close(share, torch.tensor([8 / 18, 8 / 18, 2 / 18]), rtol=0, atol=0.014)
    on_surface = (cloud.points.abs() / torch.tensor([0.5, 0.5, 2.0])).amax(1)
    torch.testing.assert_close(on_surface, torch.ones(20_000), rtol=0, atol=1e-5)
    again = sample_surface(box, 20_000, torch.Generator().manual_seed(0))
    assert torch.equal(again.points, cloud.points)


@pytest.mark.parametrize("make", [face_coloured_cube, vertex_coloured_cube, textured_cube])
def test_sample_surface_carries_colours_and_gradients(make: object) -> None:
    mesh: Mesh = make()  # type: ignore[operator]
    mesh = replace(mesh, vertices=mesh.vertices.requires_grad_())
    cloud = sample_surface(mesh, 500, torch.Generator().manual_seed(1))
    assert cloud.colours is not None and cloud.colours.shape == (500, 3)
    assert float(cloud.colours.min()) >= 0 and float(cloud.colours.max()) <= 1 + 1e-6
    cloud.points.sum().backward()
    assert mesh.vertices.grad is not None and float(mesh.vertices.grad.sum()) == pytest.approx(1500, rel=1e-4)


def test_sample_surface_puts_texture_colours_where_they_belong() -> None:
    """A square in the plane z = 0 with uv = (x, 1 - y): the upper left quarter of the square is the top-left texel."""
    base = textured_cube()
    vertices = torch.tensor([[0.0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    cloud = sample_surface(replace(base, vertices=vertices, faces=faces, face_uvs=faces), 2000, torch.Generator())
    assert cloud.colours is not None
    x, y = cloud.points[:, 0], cloud.points[:, 1]
    middle = ((x - 0.25).abs() < 0.02) & ((y - 0.75).abs() < 0.02)  # around the centre of the red texel
    assert middle.any()
    torch.testing.assert_close(cloud.colours[middle].mean(0), torch.tensor([1.0, 0, 0]), rtol=0, atol=0.06)


def test_sample_surface_refuses() -> None:
    with pytest.raises(InputError, match="at least 1"):
        sample_surface(cube(), 0)
    with pytest.raises(InputError, match="degenerate"):
        sample_surface(replace(cube(), vertices=torch.zeros(8, 3)), 10)


def test_point_cloud_round_trip(tmp_path: Path) -> None:
    cloud = sample_surface(face_coloured_cube(), 100, torch.Generator().manual_seed(0))
    cloud.save(tmp_path / "p.ply")
    back = load_scene(tmp_path / "p.ply")
    assert isinstance(back, PointCloud) and len(back) == 100
    assert torch.equal(back.points, cloud.points) and back.normals is not None and back.colours is not None
    torch.testing.assert_close(back.normals, cloud.normals, rtol=0, atol=0)
    torch.testing.assert_close(back.colours, cloud.colours, rtol=0, atol=1e-6)
    assert torch.equal(PointCloud.load(tmp_path / "p.ply").points, cloud.points)
    PointCloud(torch.zeros(1, 3)).save(tmp_path / "q.ply")
    assert PointCloud.load(tmp_path / "q.ply").normals is None


def test_icosphere_of_the_tests_is_a_sphere() -> None:
    assert float(icosphere(3).face_areas.sum()) == pytest.approx(4 * math.pi, rel=0.02)
    assert float(icosphere(3).to_trimesh().volume) > 0
