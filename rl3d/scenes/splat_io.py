"""3D Gaussian splats in PLY files: the layout of the reference implementation (INRIA) and its variants.

One `vertex` element, float32: x y z, nx ny nz (zeros), f_dc_0..2, f_rest_*, opacity (logit), scale_0..2 (log),
rot_0..3 (w, x, y, z). `f_rest` is channel-major: all coefficients of red, then of green, then of blue.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from rl3d.errors import InputError
from rl3d.files import atomic_write_bytes
from rl3d.scenes import ply
from rl3d.scenes.checks import MAX_COORDINATE, read_bytes
from rl3d.scenes.dot_splat_io import decode_splat, encode_splat

if TYPE_CHECKING:
    from rl3d.scenes.gaussians import Gaussians

_REST_COUNTS = {0: 1, 9: 4, 24: 9, 45: 16}  # f_rest properties -> coefficients a channel (degrees 0, 1, 2, 3)
_GEOMETRY = ("x", "y", "z", "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")


def is_splat_header(header: ply.Header) -> bool:
    """Whether a PLY header describes splats rather than points or a mesh."""
    names = header.properties("vertex")
    return "f_dc_0" in names or {"scale_0", "rot_0", "opacity"} <= names


def load_splats(path: str | Path) -> Gaussians:
    """Read a splat PLY (properties in any order, extra ones ignored, ASCII or binary, degrees 0 to 3) or a .splat.

    Plain `red green blue` (integers as nerfstudio's colour mode writes, or floats in [0, 1]) stand in for f_dc where
    that is missing.

    Returns:
        float32 tensors on the CPU; the bits of a float32 file are kept.

    Raises:
        InputError: missing, empty, truncated or other file; missing properties; NaN, infinity or absurd positions.
    """
    path = Path(path)
    if path.suffix.lower() not in (".ply", ".splat"):
        raise InputError(
            f"Gaussian splats are read from .ply and .splat files, got {path.name!r}; convert it to a splat PLY"
        )
    data = read_bytes(path)
    if path.suffix.lower() == ".splat":
        gaussians = decode_splat(data, path)
        _check(gaussians, str(path))
        return gaussians
    return parse_splats(data, ply.parse_header(data, path), path)


def parse_splats(data: bytes, header: ply.Header, path: Path) -> Gaussians:
    """As `load_splats`, for bytes already read."""
    from rl3d.scenes.gaussians import SH_C0, Gaussians

    names = header.properties("vertex")
    if any(e.name == "chunk" for e in header.elements) and "packed_position" in names:
        raise InputError(f"{path} is a compressed splat PLY; decompress it to the usual layout first")
    missing = [n for n in _GEOMETRY if n not in names]
    coloured = {"f_dc_0", "f_dc_1", "f_dc_2"} <= names
    if not coloured and not {"red", "green", "blue"} <= names:
        missing += [n for n in ("f_dc_0", "f_dc_1", "f_dc_2") if n not in names]
    if missing:
        raise InputError(
            f"{path} is not a splat PLY: properties {', '.join(missing)} are missing; load it as a mesh or points"
        )
    rest = sum(n.startswith("f_rest_") for n in names) if coloured else 0
    if rest not in _REST_COUNTS or any(f"f_rest_{i}" not in names for i in range(rest)):
        raise InputError(
            f"{path} has {rest} f_rest properties, expected 0, 9, 24 or 45 (degrees 0 to 3), numbered from 0"
        )
    if header.count("vertex") == 0:
        raise InputError(f"{path} holds no splats; export a scene that has some")
    vertex = ply.read_elements(data, header, path)["vertex"]
    lists = [k for k, v in vertex.items() if isinstance(v, ply.Ragged)]
    if lists:
        raise InputError(f"{path}: splat properties are single numbers, {lists[0]} is a list; re-export it")

    def columns(*keys: str) -> NDArray[np.float32]:
        return np.stack([np.asarray(vertex[k], dtype=np.float32) for k in keys], 1)  # [N, len(keys)]

    if coloured:
        base = columns("f_dc_0", "f_dc_1", "f_dc_2")
    else:
        red = vertex["red"]
        assert isinstance(red, np.ndarray)
        white = np.iinfo(red.dtype).max if red.dtype.kind in "iu" else 1.0
        base = ((columns("red", "green", "blue") / white - 0.5) / SH_C0).astype(np.float32)
    sh = base[:, None, :]  # [N, 1, 3]
    if rest:
        higher = columns(*(f"f_rest_{i}" for i in range(rest))).reshape(len(sh), 3, rest // 3)  # channel-major
        sh = np.concatenate([sh, higher.transpose(0, 2, 1)], 1)
    gaussians = Gaussians(
        means=torch.from_numpy(columns("x", "y", "z")),
        log_scales=torch.from_numpy(columns("scale_0", "scale_1", "scale_2")),
        quaternions=torch.from_numpy(columns("rot_0", "rot_1", "rot_2", "rot_3")),
        opacity_logits=torch.from_numpy(columns("opacity")[:, 0].copy()),
        sh=torch.from_numpy(np.ascontiguousarray(sh)),
    )
    _check(gaussians, str(path))
    return gaussians


def save_splats(gaussians: Gaussians, path: str | Path) -> None:
    """Write the usual binary little-endian splat PLY, in which float32 values keep their bits, or a .splat; atomically.

    Raises:
        InputError: not a .ply or .splat name, no splats, NaN or infinity, a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".ply", ".splat"):
        raise InputError(f"Gaussian splats are written as .ply or .splat, got {path.name!r}; name it {path.stem}.ply")
    if len(gaussians) == 0:
        raise InputError(f"there are no splats to write to {path}")
    _check(gaussians, "the splats")
    if path.suffix.lower() == ".splat":
        atomic_write_bytes(path, encode_splat(gaussians))
        return

    def array(tensor: torch.Tensor) -> NDArray[np.float32]:
        return tensor.detach().to("cpu", torch.float32).numpy().reshape(len(tensor), -1)

    sh = gaussians.sh.detach()
    parts = {
        ("x", "y", "z"): array(gaussians.means),
        ("nx", "ny", "nz"): np.zeros((len(gaussians), 3), np.float32),
        ("f_dc_0", "f_dc_1", "f_dc_2"): array(sh[:, 0]),
        tuple(f"f_rest_{i}" for i in range(3 * (sh.shape[1] - 1))): array(sh[:, 1:].transpose(1, 2)),
        ("opacity",): array(gaussians.opacity_logits),
        ("scale_0", "scale_1", "scale_2"): array(gaussians.log_scales),
        ("rot_0", "rot_1", "rot_2", "rot_3"): array(gaussians.quaternions),
    }
    rows = np.empty(len(gaussians), dtype=[(name, "<f4") for names in parts for name in names])
    for names, values in parts.items():
        for i, name in enumerate(names):
            rows[name] = values[:, i]
    atomic_write_bytes(path, ply.encode({"vertex": rows}))


def _check(gaussians: Gaussians, where: str) -> None:
    for name in ("means", "log_scales", "quaternions", "opacity_logits", "sh"):
        value = getattr(gaussians, name)
        bad = (~torch.isfinite(value.detach())).reshape(len(value), -1).any(1)
        if bad.any():
            raise InputError(
                f"{where}: {int(bad.sum())} of {len(value)} splats have NaN or infinite {name}; drop them first"
            )
    if gaussians.means.detach().abs().max() > MAX_COORDINATE:
        raise InputError(f"{where}: positions reach beyond {MAX_COORDINATE:.0e} metres; scale the scene down first")
    if bool((gaussians.quaternions.detach().abs().amax(1) == 0).any()):
        raise InputError(f"{where}: some quaternions are all zero, so have no rotation; drop those splats first")
