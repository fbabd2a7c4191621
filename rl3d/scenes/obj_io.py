"""Wavefront OBJ with MTL and PNG: reading and writing. Seams, face order and n-gons (as fans) survive."""

from __future__ import annotations

import re
import warnings
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rl3d.errors import InputError
from rl3d.files import atomic_path
from rl3d.scenes.checks import read_bytes, text_of
from rl3d.scenes.gltf_read import decode_image
from rl3d.scenes.gltf_write import encode_png, picture_of
from rl3d.scenes.raw import Material, RawMesh

if TYPE_CHECKING:
    from rl3d.scenes.mesh import Mesh


def read_obj(path: Path) -> RawMesh:
    """Vertices (with the `v x y z r g b` extension), texture coordinates, polygons and their materials.

    `map_Kd` is the texture and then `Kd` is ignored, as Blender reads it; a plain `Kd` is taken as sRGB. A missing MTL
    or picture is a warning, since the shape is whole without it.

    Raises:
        InputError: binary content, a line that is no number, an index out of range (with its line).
    """
    text = text_of(read_bytes(path), path, "OBJ").replace("\\\n", " ")
    vertices: list[list[float]] = []
    coordinates: list[list[float]] = []
    faces: list[tuple[int, int, int]] = []
    face_uvs: list[tuple[int, int, int]] = []
    face_material: list[int] = []
    polygon: list[int] = []
    materials: dict[str, Material] = {}
    names: list[str] = []
    current = -1
    known = 0
    for number, line in enumerate(text.splitlines(), 1):
        key, _, rest = line.strip().partition(" ")
        words = rest.split()
        try:
            if key == "v":
                vertices.append([float(w) for w in words])
                if len(words) < 3:
                    raise ValueError(f"{len(words)} coordinates, expected 3")
            elif key == "vt":
                coordinates.append([float(words[0]), float(words[1]) if len(words) > 1 else 0.0])
            elif key == "f":
                corners = [_corner(word, len(vertices), len(coordinates)) for word in words]
                if len(corners) < 3:
                    raise ValueError(f"a face of {len(corners)} corners")
                for b, c in pairwise(corners[1:]):
                    faces.append((corners[0][0], b[0], c[0]))
                    face_uvs.append((corners[0][1], b[1], c[1]))
                    face_material.append(current)
                    polygon.append(number)
            elif key == "mtllib":
                materials |= _read_mtl(path, rest.strip())
            elif key == "usemtl":
                if rest.strip() not in names:
                    names.append(rest.strip())
                current = names.index(rest.strip())
            known += key in {"v", "vt", "vn", "f", "o", "g", "s", "usemtl", "mtllib"}
        except (ValueError, IndexError) as error:
            shown = line.strip()[:60]
            raise InputError(
                f"{path}, line {number}: {shown!r} is not understood ({error}); re-export the OBJ"
            ) from error
    if not known:
        raise InputError(f"{path} is not an OBJ file: no line of it is OBJ; check what the file really is")
    if not faces:
        raise InputError(f"{path} has no faces ({len(vertices)} vertices); export it with its triangles")
    width = min(len(v) for v in vertices) if vertices else 3
    table = np.array([v[:6] if width >= 6 else v[:3] for v in vertices], np.float64)
    colours = table[:, 3:6] if width >= 6 else None
    if colours is not None and colours.max(initial=0.0) > 1.0:
        colours = colours / 255.0  # some scanners write bytes
    uvs = np.array(coordinates, np.float64).reshape(-1, 2)
    if not np.isfinite(uvs).all():
        raise InputError(f"{path}: texture coordinates are NaN or infinite; re-export the OBJ")
    uvs[:, 1] = 1.0 - uvs[:, 1]  # OBJ's v runs up from the bottom
    return RawMesh(
        vertices=table[:, :3],
        faces=np.array(faces, np.int64),
        uvs=uvs if len(uvs) else None,
        face_uvs=np.array(face_uvs, np.int64) if len(uvs) else None,
        materials=[materials.get(n, Material()) for n in names],
        face_material=np.array(face_material, np.int64),
        vertex_colours=colours,
        polygon=np.array(polygon, np.int64),
    )


def _corner(word: str, n_vertices: int, n_coordinates: int) -> tuple[int, int]:
    """(vertex, texture coordinate or -1) of one `v`, `v/vt`, `v//vn` or `v/vt/vn`, from 0."""
    parts = word.split("/")
    uv = _index(parts[1], n_coordinates, "texture coordinates") if len(parts) > 1 and parts[1] else -1
    return _index(parts[0], n_vertices, "vertices"), uv


def _index(text: str, count: int, what: str) -> int:
    value = int(text)
    index = value - 1 if value > 0 else count + value  # negative counts back from the latest
    if value == 0 or not 0 <= index < count:
        raise IndexError(f"index {value} with {count} {what} so far")
    return index


def _read_mtl(obj: Path, name: str) -> dict[str, Material]:
    path = obj.parent / name.replace("\\", "/")
    if not path.is_file():
        warnings.warn(f"{obj}: its material file {name!r} is missing, colours are left out", stacklevel=2)
        return {}
    materials: dict[str, Material] = {}
    current = ""
    for line in text_of(read_bytes(path), path, "MTL").splitlines():
        key, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if key == "newmtl":
            current = rest
            materials[current] = Material()
        elif key == "Kd":
            try:
                r, g, b = (min(max(float(w), 0.0), 1.0) for w in rest.split()[:3])
            except ValueError as error:
                raise InputError(f"{path}: colour {line.strip()[:60]!r} is not three numbers; re-export it") from error
            materials[current] = Material((r, g, b), materials.get(current, Material()).image)
        elif key == "map_Kd" and rest:
            picture = path.parent / rest.replace("\\", "/")
            if not picture.is_file():  # options such as `-s 1 1 1` precede the name
                picture = path.parent / rest.split()[-1].replace("\\", "/")
            if picture.is_file():
                image = decode_image(read_bytes(picture), picture)
                materials[current] = Material(materials.get(current, Material()).colour, image)
            else:
                warnings.warn(f"{obj}: its texture {rest!r} is missing, its colours are left out", stacklevel=2)
    return materials


def write_obj(mesh: Mesh, path: Path) -> None:
    """Write the OBJ, and beside it an MTL and a PNG where the mesh has a texture or face colours (as a palette).

    All files are written whole before any appears; the OBJ appears last. Vertex colours use `v x y z r g b`.
    """
    vertices = mesh.vertices.detach().cpu().double().numpy()
    if mesh.vertex_colours is not None:
        vertices = np.concatenate([vertices, mesh.vertex_colours.detach().cpu().double().clamp(0, 1).numpy()], 1)
    faces = (mesh.faces.cpu().numpy() + 1).tolist()
    rows = ["v " + " ".join(f"{x:.9g}" for x in row) for row in vertices.tolist()]
    picture = picture_of(mesh)
    if picture is None:
        with atomic_path(path) as temporary:
            text = "\n".join(["# rl3d", *rows, *(f"f {a} {b} {c}" for a, b, c in faces), ""])
            temporary.write_bytes(text.encode())
        return
    image, uvs, face_uvs = picture
    stem = re.sub(r"\s", "_", path.stem)  # many readers end a file name at the first blank
    rows += [f"vt {u:.9g} {1.0 - v:.9g}" for u, v in uvs.tolist()]
    rows += [f"f {a}/{i} {b}/{j} {c}/{k}" for (a, b, c), (i, j, k) in zip(faces, (face_uvs + 1).tolist())]
    material = ["newmtl surface", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "illum 1", f"map_Kd {stem}.png", ""]
    beside = path.parent
    with (  # left in reverse order: picture, material, and the OBJ that names them last
        atomic_path(path) as obj,
        atomic_path(beside / f"{stem}.mtl") as mtl,
        atomic_path(beside / f"{stem}.png") as png,
    ):
        png.write_bytes(encode_png(image))
        mtl.write_bytes("\n".join(material).encode("utf-8", errors="surrogateescape"))
        text = "\n".join(["# rl3d", f"mtllib {stem}.mtl", "usemtl surface", *rows, ""])
        obj.write_bytes(text.encode("utf-8", errors="surrogateescape"))
