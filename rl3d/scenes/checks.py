"""What every reader of scene files checks first: the file itself, its content, and the numbers in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rl3d.errors import InputError, nearest

MAX_FILE_BYTES = 1 << 30
MAX_COORDINATE = 1e9  # metres; squares of larger float32 coordinates lose every digit in a camera transform

_MAGIC = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a WebP picture or other RIFF file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (run git lfs pull)"),
    (b"glTF", "a binary glTF file (.glb)"),
    (b"ply", "a PLY file"),
    (b"BLENDER", "a Blender file (export it as GLB)"),
    (b"Kaydara FBX", "an FBX file (convert it to GLB)"),
    (b"<", "HTML or XML"),
    (b"{", "JSON"),
)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: it is missing, a folder, unreadable, empty, or over 1 GiB.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a file")
    if not path.exists():
        raise InputError(f"no such file: {path}{_similar(path)}")
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path} has {size / 2**30:.1f} GiB, the limit is 1 GiB; simplify it first")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    if not data:
        raise InputError(f"{path} is empty (0 bytes); export or download it again")
    return data


def _similar(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist either"
    close = nearest(path.name, (p.name for p in path.parent.iterdir()), 1)
    return f"; did you mean {close[0]}?" if close else "; check the path"


def looks_like(data: bytes) -> str:
    """What the first bytes say the content is, for error messages."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    head = data[:512]
    return "text" if b"\0" not in head and all(c >= 9 for c in head) else "unknown binary data"


def text_of(data: bytes, path: Path, kind: str) -> str:
    """Decode a text format; bytes that are not UTF-8 are kept as surrogates.

    Raises:
        InputError: the content is binary.
    """
    if b"\0" in data:
        raise InputError(f"{path} is not {kind} text: it looks like {looks_like(data)}; check what the file really is")
    return data.decode("utf-8", errors="surrogateescape")


def check_geometry(vertices: NDArray[np.floating], faces: NDArray[np.integer], where: str) -> None:
    """Refuse geometry that no renderer can use.

    Args:
        vertices: [N, 3]. faces: [F, 3]. where: the file's name, or what the mesh is, for the message.

    Raises:
        InputError: no faces, an index out of range, NaN or infinity, coordinates beyond 1e9 metres.
    """
    if len(faces) == 0 or len(vertices) == 0:
        raise InputError(f"{where} has no faces ({len(vertices)} vertices); export it with its triangles")
    if faces.min() < 0 or faces.max() >= len(vertices):
        bad = int(((faces < 0) | (faces >= len(vertices))).any(1).sum())
        raise InputError(
            f"{where}: {bad} faces point outside its {len(vertices)} vertices; the file is damaged, re-export it"
        )
    broken = int((~np.isfinite(vertices)).any(1).sum())
    if broken:
        raise InputError(f"{where}: {broken} of {len(vertices)} vertices are NaN or infinite; repair it in its editor")
    if np.abs(vertices).max() > MAX_COORDINATE:
        raise InputError(
            f"{where}: coordinates reach {np.abs(vertices).max():.1e}, the limit is 1e9; scale it down first"
        )
