"""From views to splats: hull, silhouettes, agreement, fit."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_world import BLUE, BROWN, GREEN, GREY, RED, YELLOW, box
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.reconstruct import lift
from rl3d.reconstruct.options import LiftOptions
from rl3d.reconstruct.splats import NAMES, SplatState
from rl3d.render import render
from rl3d.scenes import Mesh

SIZE = 32


def orbit(count: int, elevation: float = 0.35, start: float = 0.0, size: int = SIZE) -> Cameras:
    return Cameras.orbit(torch.arange(count) * (2 * math.pi / count) + start, elevation, 2.7, 0.47, size)


def rgba(mesh: Mesh, cameras: Cameras) -> Tensor:
    frames = render(mesh, cameras, supersample=3, antialias=False)  # samples as in the prior's training images
    return torch.cat([frames.rgb, frames.alpha], 1)


@pytest.fixture(scope="module")
def ell() -> Mesh:
    """Lies off every symmetry: long to +x, a tower at its end, a foot to +z."""
    parts = [box((0.9, 0.15, 0.15), RED), box((0.15, 0.55, 0.15), BLUE), box((0.15, 0.15, 0.5), GREEN)]
    moves = [(0.0, -0.2, 0.0), (0.37, 0.0, 0.0), (-0.35, -0.2, 0.22)]
    vertices = torch.cat([p.vertices + torch.tensor(m) for p, m in zip(parts, moves)])
    faces = torch.cat([p.faces + 8 * i for i, p in enumerate(parts)])
    return Mesh(vertices, faces, face_colours=torch.cat([p.face_colours for p in parts if p.face_colours is not None]))


def test_projection_is_the_cameras_own() -> None:
    cameras = Cameras.orbit(torch.tensor([0.3, 2.0]), 0.4, 2.7, 0.47, (24, 40))
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    xy, depth = lift.project(points, cameras)
    pixels, z = cameras.project(points)
    assert torch.allclose((xy + 1) / 2 * torch.tensor([40.0, 24.0]), pixels, atol=1e-4)
    assert torch.allclose(depth, z, atol=1e-6)


def test_sampling_reads_pixel_centres() -> None:
    images = torch.rand(2, 4, 8, 8)
    xy = torch.tensor([[2 * 5.5 / 8 - 1, 2 * 2.5 / 8 - 1], [-3.0, 0.0]]).expand(2, 2, 2)
    values = lift.sample_images(images, xy)
    assert torch.allclose(values[:, 0], images[:, :, 2, 5], atol=1e-6) and float(values[:, 1].abs().max()) == 0


def test_the_hull_of_a_box() -> None:
    """Seen along its axes from far away, a box is its own hull."""
    extents = (0.8, 0.4, 0.6)
    far = Cameras.orbit(torch.arange(4) * (math.pi / 2), 0.0, 27.0, 0.047, 64)
    hull = lift.visual_hull(rgba(box(extents, RED), far)[:, 3:], far, 48)
    inside = hull > 0.5
    volume = float(inside.float().mean()) * (2 * lift.RADIUS) ** 3
    assert volume == pytest.approx(0.8 * 0.4 * 0.6, rel=0.06)  # measured +4 %; a voxel is 0.026
    cells = torch.nonzero(inside).float()
    size = (cells.amax(0) - cells.amin(0) + 1) / 48 * 2 * lift.RADIUS
    assert size.tolist() == pytest.approx(extents, abs=0.03)


def test_the_hull_of_a_sphere_holds_the_sphere() -> None:
    cameras = orbit(8, 0.3)
    origins, directions = cameras.rays()
    nearest = torch.linalg.cross(origins, directions).norm(dim=-1)
    alpha = (nearest < 0.4).float()[:, None]
    inside = lift.visual_hull(alpha, cameras, 40) > 0.5
    radii = lift.grid_points(40, alpha.device).norm(dim=-1)
    assert float(inside[radii < 0.37].float().mean()) == 1.0
    ratio = float(inside.float().mean()) * (2 * lift.RADIUS) ** 3 / (4 / 3 * math.pi * 0.4**3)
    assert 0.95 < ratio < 1.1  # what 8 views of one elevation leave over; measured 1.017


def test_tolerated_views_may_be_blank(ell: Mesh) -> None:
    cameras = orbit(6)
    alpha = rgba(ell, cameras)[:, 3:].clone()
    alpha[2] = 0
    assert float(lift.visual_hull(alpha, cameras, 24).max()) == 0
    assert float((lift.visual_hull(alpha, cameras, 24, tolerate=1) > 0.5).sum()) > 50


def test_a_hull_casts_the_silhouettes_of_the_object(ell: Mesh) -> None:
    """Catches swapped axes: views that took no part in carving, of an object without any symmetry."""
    cameras = orbit(8)
    hull = lift.visual_hull(rgba(ell, cameras)[:, 3:], cameras, 48)
    others = orbit(5, 0.1, start=0.2)
    cast = lift.hull_silhouettes(hull, others)
    true = rgba(ell, others)[:, 3:]
    assert cast.shape == true.shape
    iou = lift.silhouette_iou(cast, true)
    assert iou > 0.85, iou  # measured 0.898; permuted 0.11 to 0.25, mirrored 0.27 to 0.66
    for axes in [(2, 1, 0), (1, 0, 2), (0, 2, 1)]:
        assert lift.silhouette_iou(lift.hull_silhouettes(hull.permute(axes), others), true) < iou - 0.2
    for axis in range(3):
        assert lift.silhouette_iou(lift.hull_silhouettes(hull.flip(axis), others), true) < iou - 0.1


def test_one_voxel_lands_where_the_camera_projects_it() -> None:
    cameras = orbit(3, 0.2, start=0.5, size=64)
    hull = torch.zeros(20, 20, 20)
    hull[15, 4, 11] = 1
    point = lift.grid_points(20, hull.device)[15, 4, 11]
    cast = lift.hull_silhouettes(hull, cameras, samples=128)
    pixels, _ = cameras.project(point[None])
    for image, (x, y) in zip(cast[:, 0], pixels[:, 0].tolist()):
        rows, columns = torch.nonzero(image > 0.3).float().mean(0) + 0.5
        assert abs(float(columns) - x) < 1 and abs(float(rows) - y) < 1


def test_agreement_tells_true_views_from_others(ell: Mesh) -> None:
    cameras = orbit(4)
    alpha = rgba(ell, cameras)[:, 3:]
    true = lift.agreement(alpha, cameras)
    swapped = lift.agreement(alpha[[1, 0, 2, 3]], cameras)
    blank = alpha.clone()
    blank[3] = 0
    assert true > 0.95  # measured 0.985, swapped 0.24
    assert swapped < 0.5 and lift.agreement(blank, cameras) == 0
    assert lift.agreement(torch.zeros_like(alpha), cameras) == 0


def test_silhouette_iou_by_hand() -> None:
    a, b = torch.tensor([1.0, 1, 0, 0]), torch.tensor([1.0, 0, 1, 0])
    assert lift.silhouette_iou(a, b) == pytest.approx(1 / 3)
    assert lift.silhouette_iou(a, a) == 1 and lift.silhouette_iou(0 * a, 0 * b) == 0


def test_splats_start_on_the_surface_in_the_colours_of_the_views() -> None:
    mesh = box((0.7, 0.5, 0.6), RED)
    cameras = orbit(8)
    options = LiftOptions(gaussians=400, grid=40)
    tensors = lift.start_from_hull(rgba(mesh, cameras), cameras, options, torch.Generator().manual_seed(0))
    assert set(tensors) == set(NAMES) and all(len(t) == 400 for t in tensors.values())
    again = lift.start_from_hull(rgba(mesh, cameras), cameras, options, torch.Generator().manual_seed(0))
    assert all(torch.equal(tensors[k], again[k]) for k in tensors)
    outside = tensors["means"].abs() - torch.tensor([0.35, 0.25, 0.3])
    assert float(outside.amax(1).abs().mean()) < 0.07  # a hull of 8 views is a little larger than the box
    assert float((tensors["colours"] - torch.tensor(RED)).abs().median()) < 0.02


def test_real_views_lift_to_an_object_that_looks_right_from_elsewhere() -> None:
    mesh = box((0.7, 0.5, 0.6), RED, BLUE, GREY, YELLOW, GREEN, BROWN)
    cameras = orbit(8)
    images = rgba(mesh, cameras)
    options = LiftOptions(gaussians=800, grid=40, steps=60)
    start = lift.start_from_hull(images, cameras, options, torch.Generator().manual_seed(0))
    state = SplatState.start(start, lift.lift_rates(options))
    unseen = orbit(4, 0.2, start=0.39)
    want = rgba(mesh, unseen)

    def psnr() -> float:
        with torch.no_grad():
            frames = state.render(unseen)
        return -10 * math.log10(float((frames.rgb - want[:, :3]).square().mean()))

    before, losses = psnr(), []
    lift.fit(state, images, cameras, options, options.steps, lambda step, loss: losses.append((step, loss)))
    assert [step for step, _ in losses] == list(range(1, 61)) and losses[-1][1] < 0.3 * losses[0][1]
    after = psnr()
    # Measured: 13.9 dB at the start, 23.0 after 60 steps.
    assert after > 21 and after > before + 2, (before, after)


def test_blank_views_are_refused() -> None:
    with pytest.raises(InputError, match="share no volume"):
        lift.start_from_hull(torch.zeros(4, 4, SIZE, SIZE), orbit(4), LiftOptions(grid=16), torch.Generator())


def test_faint_views_are_lifted_by_their_densest_part() -> None:
    images = 0.3 * rgba(box((0.6, 0.6, 0.6), RED), orbit(4))
    tensors = lift.start_from_hull(images, orbit(4), LiftOptions(grid=24, gaussians=50), torch.Generator())
    assert float(tensors["means"].mean(0).abs().max()) < 0.1 and float(tensors["colours"][:, 0].median()) > 0.6


@pytest.mark.parametrize("count", [1, 2, 300])
def test_any_number_of_splats(count: int) -> None:
    images = rgba(box((0.6, 0.6, 0.6), RED), orbit(4))
    tensors = lift.start_from_hull(images, orbit(4), LiftOptions(grid=16, gaussians=count), torch.Generator())
    assert len(tensors["means"]) == count and all(bool(torch.isfinite(t).all()) for t in tensors.values())


def test_the_ball() -> None:
    options = LiftOptions(gaussians=500)
    tensors = lift.start_from_ball(options, torch.Generator().manual_seed(0), "cpu")
    radii = tensors["means"].norm(dim=1)
    assert set(tensors) == set(NAMES) and float(radii.max()) <= 0.4
    assert float(radii.mean()) == pytest.approx(0.3, abs=0.015)  # 3/4 of the radius for an even ball
    state = SplatState.start(tensors, lift.lift_rates(options))
    with torch.no_grad():
        frames = state.render(orbit(2))
    assert float(frames.alpha[:, :, 16, 16].min()) > 0.5 and float(frames.alpha[:, :, 0, 0].max()) < 0.05
    middle = frames.rgb[:, :, 16, 16] / frames.alpha[:, 0, 16, 16, None]
    assert float((middle - 0.5).abs().max()) < 0.1


def test_image_loss_by_hand() -> None:
    images = torch.zeros(1, 4, 1, 2)
    images[:, 3] = 1
    rgb, alpha = torch.full((1, 3, 1, 2), 0.5), torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    # colour: 0.25; alpha: mean of 1 and 0
    assert float(lift.image_loss(rgb, alpha, images, 2.0)) == pytest.approx(0.25 + 2.0 * 0.5)


def test_thin_parts_by_hand() -> None:
    """A 4-pixel block keeps its shape; a faint line 1 pixel wide becomes 3 wide and solid."""
    alpha = torch.zeros(1, 1, 12, 12)
    alpha[0, 0, 1:5, 1:5] = 1
    assert float(lift.thin_parts(alpha).max()) == 0 and torch.equal(lift.keep_thin(alpha), alpha)
    alpha[0, 0, :, 9] = 0.3
    kept = lift.keep_thin(alpha)[0, 0]
    assert torch.allclose(kept[:, 8:11], torch.tensor(0.6)) and torch.equal(kept[:, :8], alpha[0, 0, :, :8])
    solid = torch.ones(1, 1, 6, 6)  # the image's border is not an edge of the object
    assert float(lift.thin_parts(solid)[0, 0, 1:-1, 1:-1].max()) == 0


def test_a_rod_no_pixel_of_which_is_full_is_lifted_solid() -> None:
    """Seen at four times the resolution it is there from end to end, opaque, and nothing is beside it."""
    rod = box((0.024, 1.0, 0.024), BROWN)
    cameras = orbit(4, size=64)
    images = rgba(rod, cameras)
    assert 0.3 < float(images[:, 3].amax()) < 0.8
    assert lift.agreement(images[:, 3:], cameras) > 0.9
    options = LiftOptions(steps=100, gaussians=800, grid=64)
    start = lift.start_from_hull(images, cameras, options, torch.Generator().manual_seed(0))
    state = lift.fit(SplatState.start(start, lift.lift_rates(options)), images, cameras, options, options.steps)
    elsewhere = orbit(3, start=0.6, size=256)
    seen = state.render(elsewhere).alpha.detach()
    truth = rgba(rod, elsewhere)[:, 3:]
    rows = truth.amax(3) > 0.5  # [V, 1, H]
    # Measured: 0.94 with the haze term, 0.1 without.
    assert float((seen.amax(3) > 0.5)[rows].float().mean()) > 0.85
    stray = (seen > 0.5) & (torch.nn.functional.max_pool2d(truth, 9, stride=1, padding=4) < 0.5)
    assert float(stray.float().sum() / (seen > 0.5).float().sum()) < 0.05
