"""COLMAP's sparse models both ways: cameras, images and points3D, as text or binary.

A world point stays where COLMAP has it: its world is whatever the reconstruction chose (often y down, never metric),
and nothing here turns or scales it. COLMAP's camera axes (+X right, +Y down, +Z forward) and pixels (the centre of the
top-left one is (0.5, 0.5)) are ours already. Poses are quaternions (w, x, y, z) and translations, world to camera.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.files import atomic_write_bytes
from rl3d.scenes.capture import Capture
from rl3d.scenes.checks import read_bytes, text_of
from rl3d.scenes.point_cloud import PointCloud
from rl3d.scenes.texture import to_bytes

# name -> (number in the binary format, parameters); lenses that bend light are listed to be named in the error
_MODELS = {
    "SIMPLE_PINHOLE": (0, 3),
    "PINHOLE": (1, 4),
    "SIMPLE_RADIAL": (2, 4),
    "RADIAL": (3, 5),
    "OPENCV": (4, 8),
    "OPENCV_FISHEYE": (5, 8),
    "FULL_OPENCV": (6, 12),
    "FOV": (7, 5),
    "SIMPLE_RADIAL_FISHEYE": (8, 4),
    "RADIAL_FISHEYE": (9, 5),
    "THIN_PRISM_FISHEYE": (10, 12),
    "RAD_TAN_THIN_PRISM_FISHEYE": (11, 16),
}
_ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")  # f cx cy ...; the others begin with fx fy cx cy
_PERSPECTIVE = (*_ONE_FOCAL, "PINHOLE", "OPENCV", "FULL_OPENCV")  # pinholes where the rest is zero

_Lenses = dict[int, tuple[int, int, list[float]]]  # camera id -> (width, height, [fx, fy, cx, cy])
_Image = tuple[int, list[float], int, str]  # image id, [qw qx qy qz tx ty tz], camera id, name


def load_colmap(folder: str | Path, dtype: torch.dtype = torch.float32) -> Capture:
    """Read a sparse model: the folder with cameras, images and maybe points3D, as .bin or (where there is none) .txt.

    Returns:
        Cameras and names in the order of the image ids, points with colours, all on the CPU.

    Raises:
        InputError: no model there, a damaged file, a lens with distortion, image sizes that differ.
    """
    folder = Path(folder)
    binary = (folder / "cameras.bin").exists()
    if not binary and not (folder / "cameras.txt").exists():
        deeper = next((p.parent for p in sorted(folder.glob("**/cameras.*")) if p.suffix in (".bin", ".txt")), None)
        raise InputError(
            f"{folder} holds neither cameras.bin nor cameras.txt; " + (f"try {deeper}" if deeper else "check the path")
        )
    suffix = ".bin" if binary else ".txt"
    path = folder / f"cameras{suffix}"
    try:
        lenses = _binary_lenses(path) if binary else _text_lenses(path)
        path = folder / f"images{suffix}"
        images = sorted(_binary_images(path) if binary else _text_images(path))
        path = folder / f"points3D{suffix}"
        points = None
        if path.exists():
            points = _points(list(_binary_points(path) if binary else _text_points(path)), path, dtype)
    except (struct.error, ValueError, IndexError, KeyError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        raise InputError(f"{path} is truncated or not COLMAP's ({what}); export the model again") from error
    return Capture(_cameras(images, lenses, folder, dtype), tuple(name for *_, name in images), points)


def save_colmap(capture: Capture, folder: str | Path, binary: bool = True) -> None:
    """Write cameras, images and points3D (empty where there are no points), each file atomically.

    Every distinct lens becomes a PINHOLE camera. Image ids count from 1; without names the pictures are 0000.png and
    so on. There are no feature matches to write, so tracks and reprojection errors are empty and 0.

    Raises:
        InputError: a view that is no rotation and translation, a skewed lens, a name with line breaks or (text) blanks.
    """
    cameras, folder = capture.cameras, Path(folder)
    pose = cameras.view.detach().cpu().double().numpy()
    k = cameras.intrinsics.detach().cpu().double().numpy()
    off = np.abs(pose[:, :3, :3] @ pose[:, :3, :3].transpose(0, 2, 1) - np.eye(3)).max(initial=0.0)
    if not off < 1e-3 or not (np.linalg.det(pose[:, :3, :3]) > 0).all():
        raise InputError(f"COLMAP's poses are rotations and translations; a view is off by {off:g} or mirrored")
    if np.abs(k[:, 0, 1]).max(initial=0.0) > 0:
        raise InputError("COLMAP's PINHOLE camera has no skew; intrinsics[:, 0, 1] must be 0")
    names = capture.names or tuple(f"{i:04d}.png" for i in range(len(cameras)))
    if bad := [n for n in names if not n or not n.isprintable()]:
        raise InputError(f"picture name {bad[0]!r} is empty or holds control characters; rename it")
    if not binary and (bad := [n for n in names if " " in n]):
        raise InputError(f"COLMAP's text format cuts names at blanks, such as {bad[0]!r}; write the binary one")
    pinholes, lens_of = np.unique(k[:, [0, 1, 0, 1], [0, 1, 2, 2]], axis=0, return_inverse=True)
    quaternions = _quaternions(pose[:, :3, :3])
    rows = [
        (i + 1, *quaternions[i].tolist(), *pose[i, :3, 3].tolist(), int(lens_of.reshape(-1)[i]) + 1, name)
        for i, name in enumerate(names)
    ]
    lenses = [(i + 1, cameras.width, cameras.height, *p) for i, p in enumerate(pinholes.tolist())]
    xyz, rgb = np.zeros((0, 3)), np.zeros((0, 3), np.uint8)
    if capture.points is not None:
        xyz = capture.points.points.detach().cpu().double().numpy()
        colours = capture.points.colours
        rgb = np.zeros((len(xyz), 3), np.uint8) if colours is None else to_bytes(colours)
    points = [(i + 1, *p, *c) for i, (p, c) in enumerate(zip(xyz.tolist(), rgb.tolist()))]
    files: dict[str, bytes]
    if binary:
        files = {
            "cameras.bin": b"".join(struct.pack("<IiQQ4d", c[0], 1, *c[1:]) for c in lenses),
            "images.bin": b"".join(
                struct.pack("<I7dI", *r[:-1]) + r[-1].encode("utf-8", "surrogateescape") + b"\0" + bytes(8)
                for r in rows
            ),
            "points3D.bin": b"".join(struct.pack("<Q3d3BdQ", *p, 0.0, 0) for p in points),
        }
        for (name, body), count in zip(files.items(), (len(lenses), len(rows), len(points))):
            atomic_write_bytes(folder / name, struct.pack("<Q", count) + body)
        return
    texts = {
        "cameras.txt": ("CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]", [(c[0], "PINHOLE", *c[1:]) for c in lenses]),
        "images.txt": (
            "IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME, and a line of POINTS2D[] as (X, Y, POINT3D_ID)",
            [(*r[:-1], f"{r[-1]}\n") for r in rows],
        ),
        "points3D.txt": ("POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]", [(*p, 0.0) for p in points]),
    }
    for name, (header, table) in texts.items():  # repr of a float is exact
        text = "".join(" ".join(map(str, row)) + "\n" for row in table)
        atomic_write_bytes(folder / name, f"# {header}\n{text}".encode("utf-8", "surrogateescape"))


def _quaternions(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """[V, 3, 3] -> [V, 4] (w, x, y, z) with w >= 0; scipy has w last."""
    if len(rotations) == 0:
        return np.zeros((0, 4))
    return Rotation.from_matrix(rotations).as_quat(canonical=True)[:, [3, 0, 1, 2]]


def _cameras(images: list[_Image], lenses: _Lenses, folder: Path, dtype: torch.dtype) -> Cameras:
    if not images:
        raise InputError(f"{folder} holds no registered images; the reconstruction failed")
    lost = [f"{name} -> {lens}" for _, _, lens, name in images if lens not in lenses]
    if lost:
        raise InputError(f"{folder}: {len(lost)} images name a camera that is not there ({lost[0]}); export it again")
    sizes = sorted({lenses[lens][:2] for _, _, lens, _ in images})
    if len(sizes) > 1:
        raise InputError(
            f"{folder}: cameras must share one image size, got (width, height) {sizes}; resize or split it"
        )
    poses = np.array([pose for _, pose, _, _ in images], np.float64)  # [V, 7]
    length = np.abs(poses[:, :4]).max(1)
    bad = int((~np.isfinite(poses).all(1) | ~((length > 1e-100) & (length < 1e100))).sum())  # squares stay finite
    if bad:
        raise InputError(f"{folder}: {bad} of {len(images)} poses are not finite or have a quaternion of zeros")
    view = np.tile(np.eye(4), (len(images), 1, 1))
    view[:, :3, :3] = Rotation.from_quat(poses[:, [1, 2, 3, 0]]).as_matrix()  # normalises
    view[:, :3, 3] = poses[:, 4:]
    fx, fy, cx, cy = np.array([lenses[lens][2] for _, _, lens, _ in images]).T
    intrinsics = np.tile(np.eye(3), (len(images), 1, 1))
    intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 0, 2], intrinsics[:, 1, 2] = fx, fy, cx, cy
    width, height = sizes[0]
    return Cameras(torch.from_numpy(view).to(dtype), torch.from_numpy(intrinsics).to(dtype), height, width)


def _pinhole(model: str, parameters: list[float], path: Path) -> list[float]:
    """[fx, fy, cx, cy] of a lens that bends no light."""
    if model not in _MODELS or len(parameters) != _MODELS[model][1]:
        raise ValueError(f"camera model {model!r} with {len(parameters)} parameters")
    start = 3 if model in _ONE_FOCAL else 4
    if model not in _PERSPECTIVE or any(parameters[start:]):
        raise InputError(
            f"{path}: camera model {model} with distortion {parameters[start:]} is no pinhole; "
            "run colmap image_undistorter first"
        )
    if not (np.isfinite(parameters).all() and min(parameters[: start - 2]) > 0):
        raise InputError(f"{path}: camera parameters {parameters} are not usable; the focal length must be positive")
    return parameters[:1] + parameters[:start] if model in _ONE_FOCAL else parameters[:4]


def _points(rows: list[tuple[float, ...]], path: Path, dtype: torch.dtype) -> PointCloud | None:
    """Rows of id, x, y, z, r, g, b in the order of the ids."""
    table = np.array(sorted(rows), np.float64).reshape(-1, 7)
    if not np.isfinite(table).all():
        raise InputError(f"{path}: some points are NaN or infinite; export the model again")
    if not len(table):
        return None
    points, colours = torch.from_numpy(table[:, 1:4]), torch.from_numpy(table[:, 4:] / 255.0)
    return PointCloud(points.to(dtype), colours=colours.to(dtype))


# Text -----------------------------------------------------------------------------------------------------------------


def _lines(path: Path, kind: str) -> list[str]:
    return [x for x in text_of(read_bytes(path), path, kind).split("\n") if not x.startswith("#")]


def _text_lenses(path: Path) -> _Lenses:
    lenses: _Lenses = {}
    for line in _lines(path, "COLMAP's cameras"):
        if words := line.split():
            parameters = [float(w) for w in words[4:]]
            lenses[int(words[0])] = (int(words[2]), int(words[3]), _pinhole(words[1], parameters, path))
    return lenses


def _text_images(path: Path) -> Iterator[_Image]:
    """Two lines an image; the second, its 2D points, may be empty, so empty lines count after a first one."""
    lines = iter(_lines(path, "COLMAP's images"))
    for line in lines:
        if line.strip():
            words = line.strip().split(None, 9)  # a name may hold spaces
            yield int(words[0]), [float(w) for w in words[1:8]], int(words[8]), words[9]
            next(lines, None)


def _text_points(path: Path) -> Iterator[tuple[float, ...]]:
    for line in _lines(path, "COLMAP's points"):
        if words := line.split():
            yield (int(words[0]), *(float(w) for w in words[1:4]), *(int(w) for w in words[4:7]))


# Binary, little-endian ------------------------------------------------------------------------------------------------


def _unpack(stream: io.BytesIO, form: str) -> tuple:
    return struct.unpack("<" + form, stream.read(struct.calcsize("<" + form)))


def _binary_lenses(path: Path) -> _Lenses:
    stream, lenses = io.BytesIO(read_bytes(path)), {}
    names = {number: name for name, (number, _) in _MODELS.items()}
    for _ in range(_unpack(stream, "Q")[0]):
        lens, model, width, height = _unpack(stream, "IiQQ")
        if model not in names:
            raise ValueError(f"camera model number {model}")
        parameters = list(_unpack(stream, f"{_MODELS[names[model]][1]}d"))
        lenses[lens] = (width, height, _pinhole(names[model], parameters, path))
    return lenses


def _binary_images(path: Path) -> Iterator[_Image]:
    data = read_bytes(path)
    stream = io.BytesIO(data)
    for _ in range(_unpack(stream, "Q")[0]):
        image, *pose, lens = _unpack(stream, "I7dI")
        end = data.index(b"\0", stream.tell())
        name = stream.read(end - stream.tell()).decode("utf-8", "surrogateescape")
        stream.seek(end + 1)
        _skip(stream, 24 * _unpack(stream, "Q")[0], len(data))
        yield image, list(pose), lens, name


def _binary_points(path: Path) -> Iterator[tuple[float, ...]]:
    data = read_bytes(path)
    stream = io.BytesIO(data)
    for _ in range(_unpack(stream, "Q")[0]):
        *row, _, track = _unpack(stream, "Q3d3BdQ")
        _skip(stream, 8 * track, len(data))
        yield tuple(row)


def _skip(stream: io.BytesIO, count: int, size: int) -> None:
    if stream.tell() + count > size:
        raise ValueError("the data end too early")
    stream.seek(count, io.SEEK_CUR)
