"""Cameras that belong to pictures: what structure from motion hands over, and the files of `transforms.json`.

COLMAP's folders are read and written in `rl3d.scenes.colmap`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.files import write_json
from rl3d.scenes.checks import read_bytes, text_of
from rl3d.scenes.point_cloud import PointCloud


@dataclass(frozen=True)
class Capture:
    """V cameras and the pictures that they took.

    Attributes:
        cameras: V cameras; the world's axes and unit are those of the file that they came from.
        names: V names of the pictures as the file has them, or none at all.
        points: what was triangulated, or None.
    """

    cameras: Cameras
    names: tuple[str, ...] = ()
    points: PointCloud | None = None

    def __post_init__(self) -> None:
        if self.names and len(self.names) != len(self.cameras):
            raise InputError(f"a capture of {len(self.cameras)} cameras needs as many names, got {len(self.names)}")


def load_transforms(path: str | Path, dtype: torch.dtype = torch.float32) -> Capture:
    """Read a `transforms.json` of nerfstudio, instant-ngp or the NeRF data sets, see `Cameras.from_transforms`.

    Our world is y-up: the file's (x, y, z) becomes (x, z, -y). A file without `w` and `h` takes the size of its first
    picture (`file_path`, .png where it has no suffix). `ply_file_path` and `applied_transform` are not looked at.

    Raises:
        InputError: missing or other file, no frames, missing or unusable values, distortion, sizes that differ.
    """
    path = Path(path)
    content = _parse(path)
    frames = content.get("frames")
    if not isinstance(frames, list) or not all(isinstance(f, dict) for f in frames) or not frames:
        raise InputError(f"{path} holds no list of 'frames'; is it a transforms.json?")
    names = [f.get("file_path") for f in frames]
    if ("w" not in content or "h" not in content) and not all("w" in f and "h" in f for f in frames):
        content |= _size_of_first_picture(path, names[0])
    try:
        cameras = Cameras.from_transforms(content, dtype)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (TypeError, ValueError, ArithmeticError, IndexError, RuntimeError) as error:  # other kinds, other shapes
        raise InputError(f"{path}: unusable numbers in the frames ({' '.join(str(error).split())[:100]})") from error
    if not bool(torch.isfinite(cameras.view).all() and torch.isfinite(cameras.intrinsics).all()):
        raise InputError(f"{path} holds NaN or infinity in its cameras; write it again")
    return Capture(cameras, tuple(str(n) for n in names) if all(n is not None for n in names) else ())


def save_transforms(capture: Capture, path: str | Path) -> None:
    """Write a `transforms.json` for nerfstudio and instant-ngp, atomically, see `Cameras.to_transforms`; no points."""
    write_json(path, capture.cameras.to_transforms(capture.names or None))


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text_of(read_bytes(path), path, "JSON"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error.msg} in line {error.lineno}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, expected an object with 'frames'")
    return content


def _size_of_first_picture(path: Path, name: Any) -> dict[str, int]:
    from PIL import Image

    picture = path.parent / f"{name}"
    picture = picture if picture.suffix else picture.with_name(picture.name + ".png")
    try:
        with Image.open(picture) as image:
            return {"w": image.width, "h": image.height}
    except OSError:
        raise InputError(f"{path} lacks w and h, and its first picture {picture} cannot be read") from None
