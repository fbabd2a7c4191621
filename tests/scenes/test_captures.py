"""COLMAP's folders and transforms.json: round trips of random cameras, their own formulas, quaternion traps, damage."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.scenes import Capture, PointCloud, load_colmap, load_transforms, save_colmap, save_transforms

few = settings(
    deadline=None, max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
POINT = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)


@st.composite
def captures(draw: st.DrawFn) -> Capture:
    """One to four cameras with any rotation and any lens, in float64."""
    count = draw(st.integers(1, 4))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rotation = torch.linalg.qr(torch.randn(count, 3, 3, generator=g, dtype=torch.float64))[0]
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]  # -1 only turns all three axes round
    view = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    view[:, :3, :3], view[:, :3, 3] = rotation, torch.randn(count, 3, generator=g, dtype=torch.float64)
    k = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    lens = 10 + 90 * torch.rand(count, 4, generator=g, dtype=torch.float64)
    k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2] = lens.unbind(1)
    cameras = Cameras(view, k, draw(st.integers(1, 500)), draw(st.integers(1, 500)))
    names = tuple(draw(st.sampled_from(["a.png", "sub/b.jpg", "ü.png"])) + str(i) for i in range(count))
    colours = torch.randint(0, 256, (3, 3), generator=g) / 255.0
    points = PointCloud(torch.randn(3, 3, generator=g, dtype=torch.float64), colours=colours.double())
    return Capture(cameras, names, points)


def assert_same(a: Cameras, b: Cameras, tolerance: float = 1e-12) -> None:
    assert (a.height, a.width) == (b.height, b.width)
    torch.testing.assert_close(a.view, b.view, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(a.intrinsics, b.intrinsics, atol=0, rtol=0)


@few
@given(captures(), st.booleans())
def test_colmap_there_and_back(tmp_path: Path, capture: Capture, binary: bool) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    save_colmap(capture, tmp_path, binary)
    back = load_colmap(tmp_path, torch.float64)
    assert back.names == capture.names
    assert_same(back.cameras, capture.cameras)
    assert back.points is not None and capture.points is not None and capture.points.colours is not None
    assert torch.equal(back.points.points, capture.points.points)
    torch.testing.assert_close(back.points.colours, capture.points.colours, atol=1e-7, rtol=0)  # float32 colours / 255


def quaternion_rotate(q: list[float], p: list[float]) -> np.ndarray:
    """q p q* by Hamilton's product, q = (w, x, y, z); no matrix in between."""

    def times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        scalar = a[0] * b[0] - a[1:] @ b[1:]
        return np.array([scalar, *(a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:]))])

    unit = np.array(q) / np.linalg.norm(q)
    return times(times(unit, np.array([0.0, *p])), unit * [1, -1, -1, -1])[1:]


@few
@given(captures())
def test_colmap_projects_to_our_pixels(tmp_path: Path, capture: Capture) -> None:
    """COLMAP's own formula on the text that was written: x = f X / Z + c of q p q* + t."""
    save_colmap(capture, tmp_path, binary=False)
    lenses = {}
    for line in (tmp_path / "cameras.txt").read_text().splitlines()[1:]:
        number, model, _, _, *values = line.split()
        assert model == "PINHOLE"
        lenses[number] = [float(v) for v in values]
    rows = (tmp_path / "images.txt").read_text().splitlines()[1::2]
    pixels, _ = capture.cameras.project(POINT)
    for row, pixel in zip(rows, pixels[:, 0].tolist(), strict=True):
        words = row.split(maxsplit=9)
        q, t = [float(w) for w in words[1:5]], [float(w) for w in words[5:8]]
        assert q[0] >= 0 and math.hypot(*q) == pytest.approx(1)
        x, y, z = quaternion_rotate(q, POINT[0].tolist()) + t
        fx, fy, cx, cy = lenses[words[8]]
        assert [fx * x / z + cx, fy * y / z + cy] == pytest.approx(pixel, rel=1e-9)


QUARTER = math.sqrt(0.5)


@pytest.mark.parametrize("sign", [1, -1, 2.5])
@pytest.mark.parametrize(
    ("q", "seen"),
    [  # (w, x, y, z); where the rotation takes the world's +X: right-handed quarter and half turns
        ((1, 0, 0, 0), (1, 0, 0)),
        ((QUARTER, 0, 0, QUARTER), (0, 1, 0)),  # about +Z: x -> y
        ((QUARTER, 0, QUARTER, 0), (0, 0, -1)),  # about +Y: x -> -z
        ((0, 0, 1, 0), (-1, 0, 0)),  # w = 0: half a turn, where a careless inverse divides by zero
    ],
)
def test_quaternions_are_w_first_right_handed_and_of_any_sign_and_length(
    tmp_path: Path, q: tuple[float, ...], seen: tuple[float, ...], sign: float
) -> None:
    (tmp_path / "cameras.txt").write_text("# c\n7 SIMPLE_PINHOLE 40 30 50 20 15\n")
    text = " ".join(str(sign * c) for c in q)
    (tmp_path / "images.txt").write_text(f"# c\n3 {text} 0.5 0 2 7 a b.png\n\n")
    capture = load_colmap(tmp_path)
    assert capture.names == ("a b.png",) and capture.points is None
    x_axis = capture.cameras.view[0, :3, 0]
    torch.testing.assert_close(x_axis, torch.tensor(seen, dtype=torch.float32), atol=1e-6, rtol=0)
    torch.testing.assert_close(capture.cameras.view[0, :3, 3], torch.tensor([0.5, 0, 2]))
    save_colmap(replace(capture, names=("ab.png",)), tmp_path / "again", binary=False)
    words = (tmp_path / "again" / "images.txt").read_text().splitlines()[1].split()
    assert [float(w) for w in words[1:5]] == pytest.approx(q, abs=1e-6)  # back in the half with w >= 0


def test_a_binary_model_byte_by_byte(tmp_path: Path) -> None:
    """As COLMAP writes it: unordered ids, 2D points and tracks to be passed over, a straight SIMPLE_RADIAL."""
    cameras = struct.pack("<Q", 1) + struct.pack("<IiQQ4d", 9, 2, 40, 30, 50.0, 20.0, 15.0, 0.0)
    images = struct.pack("<Q", 2)
    for number, x, name in ((5, 1.0, b"late.png"), (2, 0.0, b"early.png")):
        images += struct.pack("<I7dI", number, 1, 0, 0, 0, x, 0, 2, 9) + name + b"\0"
        images += struct.pack("<Q2dq2dq", 2, 1.5, 2.5, -1, 3.5, 4.5, 77)
    points = struct.pack("<Q", 1) + struct.pack("<Q3d3BdQ4I", 77, 1, 2, 3, 255, 0, 51, 0.5, 2, 5, 1, 2, 1)
    for name, data in (("cameras", cameras), ("images", images), ("points3D", points)):
        (tmp_path / f"{name}.bin").write_bytes(data)
    capture = load_colmap(tmp_path)
    assert capture.names == ("early.png", "late.png")
    assert capture.cameras.view[:, 0, 3].tolist() == [0.0, 1.0]
    assert capture.cameras.intrinsics[1].tolist() == [[50, 0, 20], [0, 50, 15], [0, 0, 1]]
    assert (capture.cameras.width, capture.cameras.height) == (40, 30)
    assert capture.points is not None and capture.points.points.tolist() == [[1, 2, 3]]
    torch.testing.assert_close(capture.points.colours, torch.tensor([[1.0, 0, 0.2]]))
    for name, data in (("cameras", cameras), ("images", images), ("points3D", points)):
        for cut in (4, len(data) - 5):
            (tmp_path / f"{name}.bin").write_bytes(data[:cut])
            with pytest.raises(InputError, match=rf"{name}\.bin is truncated"):
                load_colmap(tmp_path)
        (tmp_path / f"{name}.bin").write_bytes(data)
    absurd = images[: 8 + 64 + 9 - 1 + 1] + struct.pack("<Q", 2**60)
    (tmp_path / "images.bin").write_bytes(absurd)
    with pytest.raises(InputError, match="truncated"):
        load_colmap(tmp_path)


@pytest.mark.parametrize(
    ("lens", "words"),
    [
        ("1 SIMPLE_RADIAL 40 30 50 20 15 0.1", "SIMPLE_RADIAL with distortion"),
        ("1 OPENCV 40 30 50 50 20 15 0 0 0.1 0", "image_undistorter"),
        ("1 OPENCV_FISHEYE 40 30 50 50 20 15 0 0 0 0", "OPENCV_FISHEYE"),
        ("1 PINHOLE 40 30 50 20 15", "'PINHOLE' with 3 parameters"),
        ("1 PINHOLE 40 30 0 50 20 15", "focal length must be positive"),
        ("1 NONSENSE 40 30 50", "NONSENSE"),
        ("2 PINHOLE 40 30 50 50 20 15", "camera that is not there"),
        ("1 PINHOLE 40 x 50 50 20 15", "truncated or not COLMAP's"),
        ("1 PINHOLE 40 30 50 50 20 15\n2 PINHOLE 41 30 50 50 20 15", "share one image size"),
    ],
)
def test_unusable_models_are_refused(tmp_path: Path, lens: str, words: str) -> None:
    (tmp_path / "cameras.txt").write_text(lens + "\n")
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a.png\n\n" + "2 1 0 0 0 0 0 0 2 b.png\n\n" * ("41" in lens))
    with pytest.raises(InputError, match=words) as error:
        load_colmap(tmp_path)
    assert "\n" not in str(error.value)


def test_bad_poses_folders_and_captures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sparse" / "0").mkdir(parents=True)
    with pytest.raises(InputError, match="check the path"):
        load_colmap(tmp_path)
    cameras = Cameras.orbit(torch.tensor([0.0, 1.0]), size=8)
    save_colmap(Capture(cameras), tmp_path / "sparse" / "0")
    with pytest.raises(InputError, match=r"try .*sparse/0"):
        load_colmap(tmp_path)
    assert load_colmap(tmp_path / "sparse" / "0").names == ("0000.png", "0001.png")
    (tmp_path / "cameras.txt").write_text("1 PINHOLE 40 30 50 50 20 15\n")
    for pose, words in (("0 0 0 0 0 0 0", "zeros"), ("1e-300 0 0 0 0 0 0", "zeros"), ("1 0 0 0 nan 0 0", "not finite")):
        (tmp_path / "images.txt").write_text(f"1 {pose} 1 a.png\n\n")
        with pytest.raises(InputError, match=words):
            load_colmap(tmp_path)
    (tmp_path / "images.txt").write_text("# none\n")
    with pytest.raises(InputError, match="no registered images"):
        load_colmap(tmp_path)
    mirrored = replace(cameras, view=cameras.view * torch.tensor([-1.0, 1, 1, 1])[:, None])
    with pytest.raises(InputError, match="mirrored"):
        save_colmap(Capture(mirrored), tmp_path)
    skewed = replace(cameras, intrinsics=cameras.intrinsics + torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 0, 0]]))
    with pytest.raises(InputError, match="no skew"):
        save_colmap(Capture(skewed), tmp_path)
    with pytest.raises(InputError, match="control characters"):
        save_colmap(Capture(cameras, ("a.png", "b\n.png")), tmp_path)
    with pytest.raises(InputError, match=r"cuts names at blanks.*'a b\.png'; write the binary one"):
        save_colmap(Capture(cameras, ("a b.png", "c.png")), tmp_path, binary=False)
    with pytest.raises(InputError, match="2 cameras needs as many names, got 1"):
        Capture(cameras, ("a.png",))


@pytest.mark.parametrize("binary", [True, False])
def test_colmap_itself_reads_what_we_write(tmp_path: Path, binary: bool) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed: COLMAP itself was NOT asked")
    cameras = Cameras.orbit(torch.tensor([0.1, 1.5, 4.0], dtype=torch.float64), 0.3, 2.2, 0.7, (120, 160))
    k = cameras.intrinsics.clone()
    k[1, 0, 2], k[2, 1, 1] = k[1, 0, 2] + 3, k[2, 1, 1] * 1.1
    cameras = replace(cameras, intrinsics=k)
    names = ("b.png", "sub/ü.png", "with blank.png" if binary else "c.png")
    points = PointCloud(torch.rand(5, 3, dtype=torch.float64) - 0.5, colours=torch.rand(5, 3, dtype=torch.float64))
    save_colmap(Capture(cameras, names, points), tmp_path, binary)
    theirs = pycolmap.Reconstruction(str(tmp_path))
    assert [theirs.images[i].name for i in (1, 2, 3)] == list(names)
    pixels, _ = cameras.project(points.points)
    for i, image in theirs.images.items():
        lens, pose = theirs.cameras[image.camera_id], image.cam_from_world()
        seen = np.array([lens.img_from_cam(pose * p) for p in points.points.numpy()]).reshape(-1, 2)
        np.testing.assert_allclose(seen, pixels[i - 1].numpy(), atol=1e-9)
    assert points.colours is not None
    for i, point in theirs.points3D.items():
        np.testing.assert_array_equal(point.xyz, points.points[i - 1].numpy())
        np.testing.assert_allclose(point.color / 255, points.colours[i - 1].numpy(), atol=0.51 / 255)


@pytest.mark.parametrize("text", [True, False])
def test_we_read_what_colmap_itself_writes(tmp_path: Path, text: bool) -> None:
    """A synthetic model with tracks and unmatched 2D points: our projections are the pixels that COLMAP observed."""
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed: COLMAP itself was NOT asked")
    options = pycolmap.SyntheticDatasetOptions()
    options.camera_model_id = pycolmap.CameraModelId.SIMPLE_PINHOLE
    options.camera_params = [1280.0, 512.0, 384.0]
    options.num_points3D = 20
    theirs = pycolmap.synthesize_dataset(options)
    (theirs.write_text if text else theirs.write_binary)(str(tmp_path))
    capture = load_colmap(tmp_path, torch.float64)
    assert capture.points is not None and len(capture.points) == 20 and len(capture.cameras) == 10
    order = {number: row for row, number in enumerate(sorted(theirs.points3D))}
    pixels, _ = capture.cameras.project(capture.points.points)
    checked = 0
    for image in theirs.images.values():
        view = capture.names.index(image.name)
        for point in image.points2D:
            if point.has_point3D():
                np.testing.assert_allclose(pixels[view, order[point.point3D_id]].numpy(), point.xy, atol=1e-6)
                checked += 1
    assert checked == 200


# transforms.json


@few
@given(captures())
def test_transforms_there_and_back(tmp_path: Path, capture: Capture) -> None:
    save_transforms(capture, tmp_path / "transforms.json")
    back = load_transforms(tmp_path / "transforms.json", torch.float64)
    assert back.names == capture.names
    assert_same(back.cameras, capture.cameras)


@few
@given(captures())
def test_transforms_project_to_our_pixels(tmp_path: Path, capture: Capture) -> None:
    """nerfstudio's own formula: the pose's inverse takes a z-up world to +X right, +Y up, -Z forward."""
    save_transforms(capture, tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text())
    x, y, z = POINT[0].tolist()
    pixels, _ = capture.cameras.project(POINT)
    for frame, pixel in zip(content["frames"], pixels[:, 0].tolist(), strict=True):
        x_c, y_c, z_c, _ = np.linalg.solve(np.array(frame["transform_matrix"]), [x, -z, y, 1])
        u = frame["fl_x"] * x_c / -z_c + frame["cx"]
        v = frame["fl_y"] * -y_c / -z_c + frame["cy"]
        assert [u, v] == pytest.approx(pixel, rel=1e-9)


def test_transforms_of_the_nerf_data_sets_take_the_size_of_a_picture(tmp_path: Path) -> None:
    frames = [{"file_path": "./train/r_0", "transform_matrix": torch.eye(4).tolist()}]
    (tmp_path / "t.json").write_text(json.dumps({"camera_angle_x": math.pi / 2, "frames": frames}))
    with pytest.raises(InputError, match=r"lacks w and h, and its first picture .*r_0\.png cannot be read"):
        load_transforms(tmp_path / "t.json")
    (tmp_path / "train").mkdir()
    Image.new("RGB", (100, 80)).save(tmp_path / "train" / "r_0.png")
    capture = load_transforms(tmp_path / "t.json")
    assert (capture.cameras.width, capture.cameras.height) == (100, 80) and capture.names == ("./train/r_0",)
    torch.testing.assert_close(capture.cameras.intrinsics[0], torch.tensor([[50.0, 0, 50], [0, 50, 40], [0, 0, 1]]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON: .* in line 1"),
        ("[1]", "holds a JSON list"),
        ("{}", "no list of 'frames'"),
        ('{"frames": [3]}', "no list of 'frames'"),
        ('{"w": 4, "h": 4, "fl_x": 2, "frames": [{}]}', "lacks transform_matrix"),
        ('{"w": 4, "h": 4, "fl_x": "two", "frames": [{"transform_matrix": [[1]]}]}', "unusable numbers"),
        ('{"w": 4, "h": 4, "fl_x": 2, "frames": [{"transform_matrix": [[1, 0], [0, 1]]}]}', "unusable numbers"),
        ('{"w": "x", "h": 4, "fl_x": 2, "frames": [{"transform_matrix": 1}]}', "unusable numbers"),
        (
            '{"w": 4, "h": 4, "fl_x": NaN, "frames": [{"transform_matrix": '
            "[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}]}",
            "NaN or infinity",
        ),
    ],
)
def test_unusable_transforms_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(InputError, match=words) as error:
        load_transforms(tmp_path / "t.json")
    assert "\n" not in str(error.value) and "t.json" in str(error.value)


def test_a_missing_transforms_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_transforms(tmp_path / "transforms.json")
