"""Properties of the camera model, and every convention there and back."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl3d.cameras import Cameras
from rl3d.errors import InputError

angle = st.floats(-6.0, 6.0)
few = settings(deadline=None, max_examples=25, derandomize=True)


@st.composite
def orbits(draw: st.DrawFn) -> Cameras:
    """One to three float64 cameras around a random target."""
    count = draw(st.integers(1, 3))

    def many(low: float, high: float) -> torch.Tensor:
        return torch.tensor([draw(st.floats(low, high)) for _ in range(count)], dtype=torch.float64)

    return Cameras.orbit(
        many(-6, 6),
        many(-1.4, 1.4),
        many(0.5, 5),
        many(0.2, 1.5),
        (draw(st.integers(1, 9)), draw(st.integers(1, 9))),
        (draw(st.floats(-1, 1)), draw(st.floats(-1, 1)), draw(st.floats(-1, 1))),
    )


def assert_same(a: Cameras, b: Cameras, tolerance: float = 1e-12) -> None:
    assert (a.height, a.width) == (b.height, b.width)
    torch.testing.assert_close(a.view, b.view, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(a.intrinsics, b.intrinsics, atol=tolerance * 100, rtol=tolerance)


@few
@given(angle, st.floats(-1.4, 1.4), st.floats(0.5, 5), st.floats(-1, 1))
def test_orbit_looks_at_its_target_from_its_distance(az: float, el: float, distance: float, shift: float) -> None:
    target = (shift, -shift, 2 * shift)
    cameras = Cameras.orbit(torch.tensor([az], dtype=torch.float64), el, distance, 0.7, (48, 64), target)
    point = torch.tensor([target], dtype=torch.float64)
    pixel, z = cameras.project(point)
    torch.testing.assert_close(pixel, torch.tensor([[[32.0, 24.0]]], dtype=torch.float64))
    torch.testing.assert_close(z, torch.tensor([[distance]], dtype=torch.float64))
    # A point straight above the target is drawn above it (smaller y) and no further to either side.
    above, _ = cameras.project(point + torch.tensor([[0, 0.1, 0]], dtype=torch.float64))
    assert above[0, 0, 1] < 24
    torch.testing.assert_close(above[0, 0, 0].item(), 32.0)


def test_azimuth_0_sees_the_front_and_turns_towards_plus_x() -> None:
    cameras = Cameras.orbit(torch.tensor([0.0, math.pi / 2]), 0.0, 2.0)
    torch.testing.assert_close(cameras.centres, torch.tensor([[0.0, 0, 2], [2, 0, 0]]), atol=1e-6, rtol=0)
    pixel, _ = cameras.project(torch.tensor([[0.1, 0, 0], [0, 0, 0.1]]))
    assert pixel[0, 0, 0] > 128  # from the front +X is on the right
    assert pixel[1, 1, 0] < 128  # from +X the front (+Z) is on the left
    torch.testing.assert_close(Cameras.orbit(0, 0.5).centres[0, 1].item(), 2.2 * math.sin(0.5))


def test_elevation_lifts_the_eye() -> None:
    assert Cameras.orbit(0.3, 0.5, 2.0).centres[0, 1].item() == pytest.approx(2.0 * math.sin(0.5), abs=1e-6)


@few
@given(orbits())
def test_rays_go_through_the_points_that_project_to_their_pixels(cameras: Cameras) -> None:
    origins, directions = cameras.rays()
    assert directions.shape == (len(cameras), cameras.height, cameras.width, 3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones_like(directions[..., 0]))
    torch.testing.assert_close(origins[:, 0, 0], cameras.centres)
    y, x = torch.meshgrid(torch.arange(cameras.height) + 0.5, torch.arange(cameras.width) + 0.5, indexing="ij")
    for i in range(len(cameras)):
        pixel, z = cameras[i].project((origins + 1.7 * directions)[i].reshape(-1, 3))
        torch.testing.assert_close(pixel[0], torch.stack([x, y], -1).reshape(-1, 2).double())
        assert bool((z > 0).all())


@few
@given(orbits(), st.integers(1, 200), st.integers(1, 200))
def test_resized_keeps_the_frustum(cameras: Cameras, height: int, width: int) -> None:
    point = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)
    before, z = cameras.project(point)
    other = cameras.resized((height, width))
    after, z_after = other.project(point)
    scale = torch.tensor([width / cameras.width, height / cameras.height], dtype=torch.float64)
    torch.testing.assert_close(after, before * scale)
    torch.testing.assert_close(z_after, z)
    assert_same(other.resized((cameras.height, cameras.width)), cameras)


@few
@given(orbits())
def test_poses_invert_views(cameras: Cameras) -> None:
    torch.testing.assert_close(cameras.poses @ cameras.view, torch.eye(4, dtype=torch.float64).expand_as(cameras.view))
    torch.testing.assert_close(cameras.poses[:, :3, 3], cameras.centres)


@few
@given(orbits())
def test_opengl_there_and_back(cameras: Cameras) -> None:
    assert_same(Cameras.from_opengl(*cameras.to_opengl(), (cameras.height, cameras.width)), cameras)


@few
@given(orbits())
def test_opengl_clip_space_lands_on_our_pixels(cameras: Cameras) -> None:
    view, projection = cameras.to_opengl(0.01, 50.0)
    point = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)
    clip = (projection @ view @ torch.cat([point, torch.ones(1, 1, dtype=torch.float64)], 1).T)[:, :, 0]  # [V, 4]
    ndc = clip[:, :3] / clip[:, 3:]
    pixel, z = cameras.project(point)
    torch.testing.assert_close((ndc[:, 0] + 1) / 2 * cameras.width, pixel[:, 0, 0])
    torch.testing.assert_close((1 - ndc[:, 1]) / 2 * cameras.height, pixel[:, 0, 1])
    torch.testing.assert_close(clip[:, 3], z[:, 0])  # w is the depth in front of the camera
    if bool((z > 0.01).all()):
        assert bool((ndc[:, 2].abs() <= 1).all())


@few
@given(orbits())
def test_pytorch3d_there_and_back(cameras: Cameras) -> None:
    assert_same(Cameras.from_pytorch3d(**cameras.to_pytorch3d()), cameras)


@few
@given(orbits())
def test_pytorch3d_screen_projection_is_ours(cameras: Cameras) -> None:
    """PyTorch3D's own formula: x_camera = x R + T, +X left and +Y up, screen x = principal_x - focal_x X / Z."""
    given_ = cameras.to_pytorch3d()
    point = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    x, y, z = (torch.einsum("j,vji->vi", point, given_["R"]) + given_["T"]).unbind(1)
    screen = given_["principal_point"] - given_["focal_length"] * torch.stack([x / z, y / z], 1)
    torch.testing.assert_close(screen, cameras.project(point[None])[0][:, 0])


@few
@given(orbits())
def test_transforms_there_and_back_through_json(cameras: Cameras) -> None:
    text = json.dumps(cameras.to_transforms([f"{i}.png" for i in range(len(cameras))]))
    assert_same(Cameras.from_transforms(json.loads(text), torch.float64), cameras)


def test_transforms_world_is_z_up() -> None:
    """From the front (+Z here) at height: nerfstudio's camera stands on -Y, and its third axis points at the eye."""
    cameras = Cameras.orbit(torch.tensor([0.0], dtype=torch.float64), 0.5, 2.0)
    pose = torch.tensor(cameras.to_transforms()["frames"][0]["transform_matrix"], dtype=torch.float64)
    eye = 2.0 * torch.tensor([0, -math.cos(0.5), math.sin(0.5)], dtype=torch.float64)
    torch.testing.assert_close(pose[:3, 3], eye)
    torch.testing.assert_close(pose[:3, 2], eye / 2)
    torch.testing.assert_close(pose[:3, 0], torch.tensor([1.0, 0, 0], dtype=torch.float64))


def test_transforms_of_the_nerf_data_sets() -> None:
    """Only camera_angle_x and a matrix; a 90 degree lens on 100 pixels has a focal length of 50."""
    matrix = torch.eye(4).tolist()
    cameras = Cameras.from_transforms(
        {"camera_angle_x": math.pi / 2, "w": 100, "h": 80, "frames": [{"transform_matrix": matrix}]}
    )
    expected = torch.tensor([[50.0, 0, 50], [0, 50, 40], [0, 0, 1]])
    torch.testing.assert_close(cameras.intrinsics[0], expected)
    torch.testing.assert_close(cameras.centres[0], torch.zeros(3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frames": []}, "no frames"),
        ({"k1": 0.1}, "distortion"),
        ({"w": None}, "lacks w"),
        ({"fl_x": None}, "fl_x or camera_angle_x"),
        ({"frames": [{"transform_matrix": (2 * torch.eye(4)).tolist()}]}, "scaled"),
    ],
)
def test_unusable_transforms_are_refused(change: dict[str, object], words: str) -> None:
    good = Cameras.orbit(torch.tensor([0.0, 1.0])).to_transforms()
    good |= {"fl_x": 100.0}
    for frame in good["frames"]:
        frame.pop("fl_x")
    broken = {k: v for k, v in {**good, **change}.items() if v is not None}
    with pytest.raises(InputError, match=words):
        Cameras.from_transforms(broken)


@few
@given(orbits())
def test_gltf_there_and_back_through_json(cameras: Cameras) -> None:
    nodes, lenses = json.loads(json.dumps(cameras.to_gltf()))
    nodes = [{"name": "not a camera"}, *nodes]
    assert_same(Cameras.from_gltf(nodes, lenses, (cameras.height, cameras.width), torch.float64), cameras)


def test_gltf_matrix_is_column_major_camera_to_world() -> None:
    nodes, lenses = Cameras.orbit(0.0, 0.0, 2.0, 0.7, (64, 128)).to_gltf()
    assert nodes[0]["matrix"] == pytest.approx([1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 2, 1], abs=1e-6)
    assert lenses[0]["perspective"]["yfov"] == pytest.approx(0.7)
    assert lenses[0]["perspective"]["aspectRatio"] == pytest.approx(2.0)


def test_gltf_refuses_an_off_centre_lens() -> None:
    cameras = Cameras.orbit(0.0)
    shifted = Cameras(cameras.view, cameras.intrinsics + torch.tensor([[0.0, 0, 3], [0, 0, 0], [0, 0, 0]]), 256, 256)
    with pytest.raises(InputError, match="off by 3 px"):
        shifted.to_gltf()


def test_bad_cameras_are_refused() -> None:
    with pytest.raises(InputError, match="degrees"):
        Cameras.orbit(0.0, 30.0)
    with pytest.raises(InputError, match=r"\[V, 4, 4\]"):
        Cameras(torch.eye(4), torch.eye(3), 4, 4)
    with pytest.raises(InputError, match="1 x 1"):
        Cameras.orbit(0.0, size=0)
    with pytest.raises(InputError, match="different image sizes"):
        Cameras.cat([Cameras.orbit(0.0, size=4), Cameras.orbit(0.0, size=8)])
    with pytest.raises(InputError, match="near"):
        Cameras.orbit(0.0).to_opengl(1.0, 1.0)


def test_gradients_reach_the_angles() -> None:
    azimuth = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    points = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: Cameras.orbit(a, 0.3).project(points)[0], azimuth)
