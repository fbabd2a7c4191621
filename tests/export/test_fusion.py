from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rl3d.errors import InputError
from rl3d.export.asset import ExportOptions, calibrated_offset, fusion_cameras
from rl3d.render import Frames, render
from rl3d.scenes import Gaussians, Mesh, mesh_facts
from rl3d.scenes.fusion import TsdfGrid, extract_surface, fuse_tsdf, keep_components, silhouette_distance, taubin


def test_silhouette_distance_of_a_half_plane() -> None:
    alpha = np.zeros((1, 4, 8), np.float32)
    alpha[..., 4:] = 1.0
    # The contour runs between the centres of columns 3 and 4.
    want = np.broadcast_to([3.5, 2.5, 1.5, 0.5, -0.5, -1.5, -2.5, -3.5], (4, 8))
    assert np.allclose(silhouette_distance(alpha)[0], want)
    alpha[..., 3] = 0.3  # antialiased: the contour is 0.2 pixels from the centre of column 3
    want = np.broadcast_to([3.5, 2.5, 1.5, 0.2, -0.5, -1.8, -2.8, -3.8], (4, 8))
    assert np.allclose(silhouette_distance(alpha)[0], want)


def test_silhouette_distance_of_empty_and_full_pictures() -> None:
    got = silhouette_distance(np.stack([np.zeros((4, 4)), np.ones((4, 4))]).astype(np.float32))
    assert (got[0] >= 4).all() and (got[1] <= -4).all()


def test_ball_comes_back_at_its_radius(ball_frames: Frames, options: ExportOptions) -> None:
    grid = fuse_tsdf(ball_frames, fusion_cameras(options), resolution=40, offset=0.0)
    mesh = extract_surface(grid)
    radius = mesh.vertices.norm(dim=1)
    # Measured: mean 0.4945, spread 0.0041; a voxel is 0.026.
    assert abs(float(radius.mean()) - 0.5) < 0.012 and float(radius.std()) < 0.01
    facts = mesh_facts(mesh)
    assert facts["watertight"] and facts["components"] == 1 and facts["volume"] > 0


def test_offset_moves_the_surface_out_until_the_silhouettes_hold_it(
    ball_frames: Frames, options: ExportOptions
) -> None:
    cameras = fusion_cameras(options)
    radii = [
        float(extract_surface(fuse_tsdf(ball_frames, cameras, resolution=40, offset=o)).vertices.norm(dim=1).mean())
        for o in (0.0, 0.01, 0.2)
    ]
    assert radii[0] < radii[1] <= radii[2] < 0.53  # the hull of 16 views lies a little outside the ball


def test_thin_sheet_survives_the_default_offset(options: ExportOptions) -> None:
    sheet = Mesh(
        torch.tensor([[-0.4, -0.4, 0.0], [0.4, -0.4, 0.0], [0.4, 0.4, 0.0], [-0.4, 0.4, 0.0]]),
        torch.tensor([[0, 1, 2], [0, 2, 3]]),
    )
    cameras = fusion_cameras(options)
    frames = render(sheet, cameras, supersample=2)
    extents = torch.diff(extract_surface(fuse_tsdf(frames, cameras, resolution=40)).bounds, dim=0)[0]
    assert extents[0] > 0.7 and extents[1] > 0.7 and 0.005 < extents[2] < 0.08


def test_a_hole_in_one_view_carves_nothing(ball_frames: Frames, options: ExportOptions) -> None:
    cameras = fusion_cameras(options)
    alpha = ball_frames.alpha.clone()
    alpha[3, :, 20:40, 20:40] = 0.0
    holed = Frames(ball_frames.rgb, alpha, ball_frames.depth * (alpha > 0))
    kept = extract_surface(fuse_tsdf(holed, cameras, resolution=40, carve_votes=2))
    carved = extract_surface(fuse_tsdf(holed, cameras, resolution=40, carve_votes=1))
    assert mesh_facts(kept)["volume"] > 0.95 * mesh_facts(extract_surface(fuse_tsdf(ball_frames, cameras)))["volume"]
    assert mesh_facts(carved)["volume"] < 0.9 * mesh_facts(kept)["volume"]


def test_tight_grid_spends_its_voxels_on_the_object(box_frames: Frames, options: ExportOptions) -> None:
    cameras = fusion_cameras(options)
    loose = fuse_tsdf(box_frames, cameras, resolution=40, tight=False)
    tight = fuse_tsdf(box_frames, cameras, resolution=40)
    assert tight.spacing < 0.92 * loose.spacing
    assert max(tight.values.shape) == 40 and min(tight.values.shape) < 32  # not a cube: the box is 0.4 high, 0.8 long


def test_calibrated_offset_is_small_for_a_mesh_and_large_for_fat_splats(
    ball: Mesh, ball_frames: Frames, options: ExportOptions
) -> None:
    cameras = fusion_cameras(options)
    points = ball.vertices
    splats = Gaussians(
        points,
        torch.full_like(points, -3.2),  # 0.04 m
        torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(len(points), 4),
        torch.full((len(points),), 4.0),
        torch.zeros(len(points), 1, 3),
    )
    thin = calibrated_offset(ball_frames, cameras, options)
    fat = calibrated_offset(render(splats, cameras), cameras, options)
    # Measured: 0.012 and 0.056; the splats' silhouette is 0.045 m wider than their centres.
    assert 0 < thin < 0.02 and 0.03 < fat < 0.09


def test_fusion_is_deterministic(box_frames: Frames, options: ExportOptions) -> None:
    cameras = fusion_cameras(options)
    first, second = (fuse_tsdf(box_frames, cameras, resolution=24).values for _ in range(2))
    assert np.array_equal(first, second)


def test_empty_scene_is_one_clear_error(ball_frames: Frames, options: ExportOptions) -> None:
    cameras = fusion_cameras(options)
    empty = Frames(torch.zeros_like(ball_frames.rgb), ball_frames.alpha * 0.3, ball_frames.depth)
    with pytest.raises(InputError, match="the scene has no surface: no pixel"):
        fuse_tsdf(empty, cameras)
    with pytest.raises(InputError, match="the scene has no surface"):
        extract_surface(TsdfGrid(np.ones((8, 8, 8), np.float32), np.zeros(3), 0.1, 0.3))


def test_bad_arguments_are_named(ball_frames: Frames, options: ExportOptions) -> None:
    cameras = fusion_cameras(options)
    with pytest.raises(InputError, match="16 frames of 64 x 64 but 3 cameras"):
        fuse_tsdf(ball_frames, cameras[:3])
    with pytest.raises(InputError, match="resolution >= 8"):
        fuse_tsdf(ball_frames, cameras, resolution=2)
    with pytest.raises(InputError, match="NaN or infinity"):
        fuse_tsdf(replace(ball_frames, depth=ball_frames.depth * float("nan")), cameras)


def test_components_cavities_and_dust_go(ball: Mesh) -> None:
    vertices, faces = ball.vertices.double().numpy(), ball.faces.numpy()
    n = len(vertices)
    dust, cavity, second = vertices * 0.02 + 2.0, vertices * 0.5, vertices * 0.5 + 3.0
    every = np.concatenate([vertices, dust, cavity, second])
    parts = np.concatenate([faces, faces + n, faces[:, ::-1] + 2 * n, faces + 3 * n])
    kept, kept_faces = keep_components(every, parts, 0.02)
    assert len(kept_faces) == 2 * len(faces) and kept_faces.max() == len(kept) - 1
    assert np.allclose(kept, np.concatenate([vertices, second]))


def test_taubin_smooths_without_shrinking(ball: Mesh) -> None:
    rng = np.random.default_rng(0)
    clean, faces = ball.vertices.double().numpy(), ball.faces.numpy()
    noisy = clean * (1 + 0.02 * rng.standard_normal((len(clean), 1)))
    smooth = taubin(noisy, faces, 8)
    before, after = (np.linalg.norm(v, axis=1) for v in (noisy, smooth))
    # Measured: the spread falls from 0.0100 to 0.0040, the mean radius by 0.1%.
    assert after.std() < 0.5 * before.std() and abs(after.mean() - before.mean()) < 0.002
    assert np.array_equal(taubin(noisy, faces, 0), noisy)
