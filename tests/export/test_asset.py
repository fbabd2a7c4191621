from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rl3d.errors import InputError
from rl3d.export import ExportOptions, check_cameras, check_export, export_asset, scene_to_mesh
from rl3d.render import Frames, render
from rl3d.scenes import Dense, Field, Gaussians, Mesh, mesh_facts


def test_whole_way_and_check(box: Mesh, options: ExportOptions, tmp_path: Path) -> None:
    stages: list[str] = []
    mesh, report = export_asset(box, tmp_path / "box.glb", options, on_stage=stages.append)
    assert stages == ["render", "fuse", "extract", "simplify", "unwrap", "bake", "save", "check"]
    assert set(report["seconds"]) == set(stages)
    facts = mesh_facts(mesh)
    assert facts["watertight"] and facts["consistent_winding"] and facts["faces"] <= options.faces + 2
    check = report["check"]
    # Measured at 40 voxels: IoU 0.971, PSNR 27.
    assert check["iou"] > 0.94 and check["psnr"] > 22 and check["passed"] and report["warnings"] == []
    assert report["colour"] == "texture" and len(check["per_view"]["iou"]) == 8
    json.dumps(report, allow_nan=False)  # plain values


def test_splats_become_a_mesh_of_their_size(ball: Mesh, options: ExportOptions, tmp_path: Path) -> None:
    points = ball.vertices
    splats = Gaussians(
        points,
        torch.full_like(points, -3.2),
        torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(len(points), 4),
        torch.full((len(points),), 4.0),
        torch.full((len(points), 1, 3), 0.5),
    )
    _, report = export_asset(splats, tmp_path / "ball.glb", options)
    assert report["check"]["iou"] > 0.95, report  # measured 0.983; 0.84 without the calibrated offset


def test_a_field_becomes_a_mesh_of_its_size_and_colours(options: ExportOptions, tmp_path: Path) -> None:
    grid = torch.zeros(4, 9, 9, 9)
    grid[1] = torch.linspace(-3, 3, 9)  # red to the right
    field = Field.sphere(Dense(grid), bias_radius=0.4, beta=0.005)
    mesh, report = export_asset(field, tmp_path / "field.glb", options)
    # Measured: IoU 0.990, PSNR 32.
    assert report["check"]["iou"] > 0.96 and report["check"]["psnr"] > 27 and report["warnings"] == []
    assert mesh_facts(mesh)["watertight"]


def test_same_scene_same_file(ball: Mesh, options: ExportOptions, tmp_path: Path) -> None:
    for name in ("a.glb", "b.glb"):
        export_asset(ball, tmp_path / name, options)
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()


def test_slow_unwrapping_falls_back_and_says_so(ball: Mesh, options: ExportOptions) -> None:
    mesh, report = scene_to_mesh(ball, replace(options, unwrap_timeout=0.001))
    assert mesh.vertex_colours is not None and report["colour"] == "vertices"
    assert "took more than 0.001 s; the mesh has vertex colours" in report["warnings"][0]


def test_vertex_colours_on_request_warn_of_nothing(ball: Mesh, options: ExportOptions) -> None:
    mesh, report = scene_to_mesh(ball, replace(options, texture=0))
    assert mesh.texture is None and report["warnings"] == []


def test_delit_asset_matches_under_the_light(ball: Mesh, options: ExportOptions, tmp_path: Path) -> None:
    # The scene carries its light in its colours; the delit mesh gets it back from the renderer.
    centres = torch.nn.functional.normalize(ball.vertices[ball.faces].mean(1), dim=-1)
    from rl3d.render import shade

    assert ball.face_colours is not None
    lit = replace(ball, face_colours=shade(ball.face_colours, centres))
    mesh, report = export_asset(lit, tmp_path / "lit.glb", replace(options, delight=True))
    assert report["check"]["shading"] == "half_lambert"
    assert report["check"]["psnr"] > 22  # measured 27
    assert mesh.texture is not None
    top = float(mesh.texture.max())
    assert abs(top - 0.8) < 0.06  # the albedo, not the darker lit colour


def test_check_sees_a_wrong_mesh(ball: Mesh, box: Mesh, tmp_path: Path) -> None:
    cameras = check_cameras(64)
    frames = render(ball, cameras, supersample=2)
    box.save(tmp_path / "box.glb")
    ball.save(tmp_path / "ball.glb")
    wrong = check_export(tmp_path / "box.glb", frames, cameras)
    assert not wrong["passed"] and "silhouette" in wrong["warnings"][0] and wrong["iou"] < 0.8
    right = check_export(tmp_path / "ball.glb", frames, cameras)
    # The file keeps 8 bits of colour: measured 66 dB.
    assert right["passed"] and right["iou"] == 1.0 and right["psnr"] > 45
    assert right["psnr_full"] >= right["psnr"]


def test_check_by_hand(tmp_path: Path) -> None:
    # A black sheet fills every pixel; the scene says: half of them red. Union: all; both: half.
    sheet = Mesh(
        torch.tensor([[-9.0, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]]),
        torch.tensor([[0, 1, 2], [0, 2, 3]]),
        face_colours=torch.zeros(2, 3),
    )
    sheet.save(tmp_path / "sheet.glb")
    cameras = check_cameras(16, views=1)
    alpha = torch.zeros(1, 1, 16, 16)
    alpha[..., :8] = 1
    rgb = torch.cat([alpha, torch.zeros(1, 2, 16, 16)], 1)
    check = check_export(tmp_path / "sheet.glb", Frames(rgb, alpha, alpha), cameras)
    assert check["iou"] == 0.5
    # mean squared error: 1 in one of 3 channels in half of the pixels = 1/6, 10 log10(6) = 7.7815 dB
    assert check["psnr"] == pytest.approx(7.7815, abs=1e-3) and check["psnr_full"] == pytest.approx(7.7815, abs=1e-3)


def test_errors(ball: Mesh, options: ExportOptions, tmp_path: Path) -> None:
    nothing = replace(ball, vertices=ball.vertices + 50)
    with pytest.raises(InputError, match="the scene has no surface"):
        export_asset(nothing, tmp_path / "x.glb", options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="one view an elevation"):
        ExportOptions(views=2)
    with pytest.raises(InputError, match="faces >= 4"):
        ExportOptions(faces=1)
    cameras = check_cameras(64)
    with pytest.raises(InputError, match="8 frames"):
        check_export(tmp_path / "x.glb", render(ball, cameras), cameras[:2])
