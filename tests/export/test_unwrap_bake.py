from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rl3d.errors import InputError
from rl3d.export import ExportOptions, Unwrapping, bake_texture, bake_vertices, unwrap
from rl3d.export.asset import fusion_cameras
from rl3d.export.bake import delit, gather_colours, vertex_normals
from rl3d.render import Frames, render, shade
from rl3d.scenes import Mesh


@pytest.fixture(scope="module")
def unwrapping(box: Mesh) -> Unwrapping:
    found = unwrap(box, resolution=96)
    assert isinstance(found, Unwrapping), found
    return found


def test_unwrapping_keeps_faces_and_does_not_overlap(box: Mesh, unwrapping: Unwrapping) -> None:
    assert unwrapping.face_uvs.shape == box.faces.shape
    assert float(unwrapping.uvs.min()) >= 0 and float(unwrapping.uvs.max()) <= 1
    corners = unwrapping.uvs[unwrapping.face_uvs]
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = 0.5 * (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs()
    assert (area > 0).all() and float(area.sum()) <= 1
    # Every texel centre lies in at most one face (up to shared edges).
    y, x = np.meshgrid((np.arange(64) + 0.5) / 64, (np.arange(64) + 0.5) / 64, indexing="ij")
    hits = np.zeros((64, 64), int)
    for p, q, r in corners.numpy():
        w = [(v[0] - u[0]) * (y - u[1]) - (v[1] - u[1]) * (x - u[0]) for u, v in ((p, q), (q, r), (r, p))]
        hits += (np.stack(w) > 1e-6).all(0) | (np.stack(w) < -1e-6).all(0)
    assert hits.max() == 1


def test_unwrapping_repeats_itself(box: Mesh, unwrapping: Unwrapping) -> None:
    again = unwrap(box, resolution=96)
    assert isinstance(again, Unwrapping) and torch.equal(again.uvs, unwrapping.uvs)


def test_too_slow_says_so(box: Mesh) -> None:
    assert unwrap(box, timeout=0.001) == f"unwrapping {len(box.faces)} faces took more than 0.001 s"
    with pytest.raises(InputError, match="timeout > 0"):
        unwrap(box, timeout=0)


def test_failure_of_the_process_is_one_line() -> None:
    broken = Mesh(torch.full((3, 3), float("nan")), torch.tensor([[0, 1, 7]]))  # an index out of range
    said = unwrap(broken)
    assert isinstance(said, str) and "\n" not in said


def test_baked_colours_are_the_scene_s(
    box: Mesh, unwrapping: Unwrapping, box_frames: Frames, options: ExportOptions
) -> None:
    textured, facts = bake_texture(box, unwrapping, box_frames, fusion_cameras(options), size=96)
    assert textured.texture is not None and textured.texture.shape == (96, 96, 3)
    assert facts["texels_seen"] > 0.95 and 0.3 < facts["texels_used"] < 1
    # Two colours and what filtering makes between them; the gutter repeats them, so no black anywhere.
    assert float(textured.texture.sum(-1).min()) > 1.1  # both colours sum to 1.2
    cameras = fusion_cameras(options)[[1, 9]]
    got, want = render(textured, cameras), render(box, cameras)
    inside = (want.alpha > 0).expand_as(want.rgb)
    # Measured: 0.011, all at the border of the two colours.
    assert float((got.rgb - want.rgb).abs()[inside].mean()) < 0.03


def test_vertex_colours_when_there_is_no_texture(box: Mesh, box_frames: Frames, options: ExportOptions) -> None:
    coloured, facts = bake_vertices(box, box_frames, fusion_cameras(options))
    assert coloured.vertex_colours is not None and facts["vertices_seen"] > 0.8
    right = box.vertices[:, 0] > 0.25
    assert torch.allclose(coloured.vertex_colours[right], torch.tensor([0.8, 0.2, 0.2]), atol=0.05)


def test_hidden_points_take_the_nearest_seen_colour(ball: Mesh, options: ExportOptions) -> None:
    cameras = fusion_cameras(options)[[0]]  # one view: the back is never seen
    frames = render(ball, cameras, supersample=2)
    linear, seen = gather_colours(ball, ball.vertices.numpy(), vertex_normals(ball), frames, cameras)
    assert 0.25 < seen < 0.6 and np.isfinite(linear).all()
    right = ball.vertices[:, 0].numpy() > 0.2
    assert (linear[right, 0] > linear[right, 2]).all()  # red stays red round the back


def test_occluders_do_not_bleed(options: ExportOptions) -> None:
    # A red wall behind a blue one; from the front only the margin of the red one shows.
    def wall(z: float, half: float) -> torch.Tensor:
        return torch.tensor([[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]])

    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    both = Mesh(
        torch.cat([wall(-0.2, 0.4), wall(0.2, 0.2)]),
        torch.cat([faces, faces + 4]),
        face_colours=torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]]),
    )
    cameras = fusion_cameras(options)
    frames = render(both, cameras, supersample=2)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-0.38, 0.38, 20)] * 2, indexing="xy"), -1).reshape(-1, 2)
    points = torch.cat([grid, torch.full((400, 1), -0.2)], 1).numpy()
    normals = np.tile([0.0, 0.0, 1.0], (400, 1))
    linear, seen = gather_colours(both, points, normals, frames, cameras)
    assert seen > 0.5
    assert linear[:, 2].max() < 0.02 and linear[:, 0].min() > 0.9


def test_delit_undoes_the_prior_s_light() -> None:
    normals = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    albedo = torch.full((50, 3), 0.5)
    lit = shade(albedo.double(), normals.double())
    linear = torch.where(lit <= 0.04045, lit / 12.92, ((lit + 0.055) / 1.055) ** 2.4).numpy()
    assert np.allclose(delit(linear, normals.numpy()), ((0.5 + 0.055) / 1.055) ** 2.4, atol=1e-6)


def test_no_view_of_the_surface_is_an_error(ball: Mesh, ball_frames: Frames, options: ExportOptions) -> None:
    away = fusion_cameras(options)
    empty = Frames(ball_frames.rgb * 0, ball_frames.alpha * 0, ball_frames.depth * 0)
    with pytest.raises(InputError, match="no view sees the surface"):
        bake_vertices(ball, empty, away)
    with pytest.raises(InputError, match="2 cameras"):
        bake_vertices(ball, ball_frames, away[:2])


def test_vertex_normals_of_a_ball(ball: Mesh) -> None:
    cosine = (vertex_normals(ball) * torch.nn.functional.normalize(ball.vertices.double(), dim=1).numpy()).sum(1)
    assert cosine.min() > math.cos(math.radians(3))
