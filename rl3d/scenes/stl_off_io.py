"""STL (binary and ASCII) and OFF (with COFF vertex colours and face colours)."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rl3d.errors import InputError
from rl3d.scenes.checks import looks_like, read_bytes, text_of
from rl3d.scenes.raw import RawMesh
from rl3d.scenes.texture import face_centre_colours, to_bytes

if TYPE_CHECKING:
    from rl3d.scenes.mesh import Mesh

_STL = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_VERTEX = re.compile(r"vertex\s+(\S+)\s+(\S+)\s+(\S+)", re.IGNORECASE)


def read_stl(path: Path) -> RawMesh:
    """Three new vertices a triangle, as STL stores them (weld afterwards); normals and attributes are ignored.

    Raises:
        InputError: truncated, or neither binary nor ASCII STL.
    """
    data = read_bytes(path)
    count = int.from_bytes(data[80:84], "little") if len(data) >= 84 else 0
    ascii_start = data[:512].lstrip().lower().startswith(b"solid")
    if len(data) >= 84 and len(data) == 84 + 50 * count:  # a binary header may begin with "solid" too: size decides
        corners = np.frombuffer(data, _STL, count, 84)["corners"].reshape(-1, 3)
    elif ascii_start and b"\0" not in data[:512]:
        text = text_of(data, path, "STL")
        if "endsolid" not in text.lower():
            raise InputError(f"{path} is truncated: the STL text has no endsolid; export or download it again")
        try:
            corners = np.array(_VERTEX.findall(text), np.float64).reshape(-1, 3)
        except ValueError as error:
            raise InputError(f"{path}: an STL vertex is not three numbers ({error}); re-export it") from error
        if len(corners) % 3:
            raise InputError(f"{path}: {len(corners)} STL vertices are no whole triangles; the file is damaged")
    elif len(data) >= 84 and looks_like(data) == "unknown binary data":
        raise InputError(
            f"{path} is truncated or no STL: its header promises {count} triangles ({84 + 50 * count} bytes), "
            f"it has {len(data)} bytes; get it again"
        )
    else:
        raise InputError(f"{path} is not an STL file: it looks like {looks_like(data)}; check what the file really is")
    return RawMesh(corners.astype(np.float64), np.arange(len(corners), dtype=np.int64).reshape(-1, 3))


def encode_stl(mesh: Mesh) -> bytes:
    """Binary STL; the format holds no colours."""
    corners = mesh.vertices.detach().cpu().float().numpy()[mesh.faces.cpu().numpy()]  # [F, 3, 3]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    rows = np.zeros(len(corners), _STL)
    rows["normal"] = np.divide(normal, length, out=np.zeros_like(normal), where=length > 0)
    rows["corners"] = corners
    return b"rl3d".ljust(80, b" ") + len(rows).to_bytes(4, "little") + rows.tobytes()


def read_off(path: Path) -> RawMesh:
    """OFF and COFF, one row a line; n-gons become fans. Face colours are used where every face has one.

    Raises:
        InputError: not OFF, truncated, or not numbers (with the row).
    """
    text = text_of(read_bytes(path), path, "OFF")
    lines = [words for line in text.splitlines() if (words := line.partition("#")[0].split())]
    head = re.fullmatch(r"(C?)OFF", lines[0][0]) if lines else None
    if head is None:
        raise InputError(
            f"{path} is not an OFF file: it does not begin with OFF or COFF; check what the file really is"
        )
    lines = [lines[0][1:], *lines[1:]] if len(lines[0]) > 1 else lines[1:]
    at = 0
    vertices: list[list[float]] = []
    faces: list[tuple[int, int, int]] = []
    colours: list[list[float]] = []
    polygon: list[int] = []
    try:
        n_vertices, n_faces = int(lines[0][0]), int(lines[0][1])
        if n_vertices < 0 or n_faces < 0 or len(lines) - 1 < n_vertices + n_faces:
            raise InputError(
                f"{path} is truncated: its header promises {n_vertices} vertices and {n_faces} faces, "
                f"{len(lines) - 1} rows follow; get it again"
            )
        for at in range(1, 1 + n_vertices):
            vertices.append([float(w) for w in lines[at]])
        for at in range(1 + n_vertices, 1 + n_vertices + n_faces):
            corners = [int(w) for w in lines[at][1 : 1 + int(lines[at][0])]]
            if len(corners) != int(lines[at][0]):
                raise ValueError(f"{len(corners)} of {lines[at][0]} corners")
            extra = lines[at][1 + len(corners) :]
            for b, c in pairwise(corners[1:]):
                faces.append((corners[0], b, c))
                polygon.append(at)
                if len(extra) >= 3:
                    colours.append(_colour(extra))
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: OFF row {at} is not understood ({error}); re-export it") from error
    width = min((len(v) for v in vertices), default=3)
    if width < 3:
        raise InputError(f"{path}: an OFF vertex has {width} coordinates, expected 3; re-export it")
    vertex_colours = None
    if head[1] and width >= 6:
        shades = np.array([v[3:6] for v in vertices])
        vertex_colours = shades / 255.0 if shades.max(initial=0.0) > 1.0 else shades
    return RawMesh(
        np.array([v[:3] for v in vertices], np.float64).reshape(-1, 3),
        np.array(faces, np.int64).reshape(-1, 3),
        vertex_colours=vertex_colours,
        face_colours=np.array(colours) if colours and len(colours) == len(faces) else None,
        polygon=np.array(polygon, np.int64),
    )


def _colour(words: list[str]) -> list[float]:
    """OFF colours are bytes where written as integers, else floats in [0, 1]."""
    scale = 1.0 if any("." in w for w in words[:3]) else 255.0
    return [float(w) / scale for w in words[:3]]


def encode_off(mesh: Mesh) -> bytes:
    """OFF with face colours, COFF with vertex colours; a texture is reduced to the colour at each face's centre."""
    vertices = [" ".join(f"{x:.9g}" for x in row) for row in mesh.vertices.detach().cpu().double().tolist()]
    faces = [f"3 {a} {b} {c}" for a, b, c in mesh.faces.cpu().tolist()]
    shades: NDArray[np.uint8] | None = None
    head = "OFF"
    if mesh.vertex_colours is not None:
        head = "COFF"
        shades = to_bytes(mesh.vertex_colours)
        vertices = [f"{row} {r} {g} {b} 255" for row, (r, g, b) in zip(vertices, shades.tolist())]
    elif mesh.face_colours is not None or mesh.texture is not None:
        shades = to_bytes(face_centre_colours(mesh))
        faces = [f"{row} {r} {g} {b}" for row, (r, g, b) in zip(faces, shades.tolist())]
    return "\n".join([head, f"{len(vertices)} {len(faces)} 0", *vertices, *faces, ""]).encode()
