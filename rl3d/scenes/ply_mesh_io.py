"""Meshes and point clouds in PLY files: vertex and face colours, textures in MeshLab's way."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rl3d.errors import InputError
from rl3d.files import atomic_path, atomic_write_bytes
from rl3d.scenes import ply
from rl3d.scenes.checks import read_bytes
from rl3d.scenes.gltf_read import decode_image
from rl3d.scenes.gltf_write import encode_png
from rl3d.scenes.raw import Material, RawMesh
from rl3d.scenes.texture import to_bytes

if TYPE_CHECKING:
    from rl3d.scenes.mesh import Mesh

_RGB = ("red", "green", "blue")
_UV_NAMES = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"))


def read_ply_mesh(path: Path) -> RawMesh:
    """Polygons (as fans), vertex or face colours, and `comment TextureFile` with texcoords a face or s, t a vertex.

    Raises:
        InputError: not PLY, truncated, no faces.
    """
    data = read_bytes(path)
    return parse_ply_mesh(data, ply.parse_header(data, path), path)


def parse_ply_mesh(data: bytes, header: ply.Header, path: Path) -> RawMesh:
    """As `read_ply_mesh`, for bytes already read."""
    names = header.properties("face")
    key = next((k for k in ("vertex_indices", "vertex_index") if k in names), None)
    if key is None or header.count("face") == 0:
        raise InputError(
            f"{path} has no faces ({header.count('vertex')} vertices); "
            "load it with rl3d.scenes.load_scene as splats or points, or export it with its triangles"
        )
    elements = ply.read_elements(data, header, path)
    vertex, face = elements["vertex"], elements["face"]
    vertices = _columns(vertex, ("x", "y", "z"))
    if vertices is None:
        raise InputError(f"{path}: PLY vertices without x, y and z; re-export it")
    polygons = face[key]
    if not isinstance(polygons, ply.Ragged):
        raise InputError(f"{path}: PLY property {key} is not a list; re-export it")
    corner, of_face = _fans(polygons.lengths)  # [F, 3] positions in the flat list, [F] polygon of each triangle
    faces = polygons.values.astype(np.int64)[corner]
    face_rgb = _rgb(face)
    vertex_uv = next((uv for pair in _UV_NAMES if (uv := _columns(vertex, pair)) is not None), None)
    texture = next((c.split(None, 1)[1] for c in header.comments if c.startswith("TextureFile ")), None)
    uvs = face_uvs = None
    corner_uv = face.get("texcoord")
    if isinstance(corner_uv, ply.Ragged) and (corner_uv.lengths == 2 * polygons.lengths).all():
        uvs, face_uvs = corner_uv.values.astype(np.float64).reshape(-1, 2), corner
    elif vertex_uv is not None:
        uvs, face_uvs = vertex_uv, faces
    if uvs is not None:
        uvs = np.stack([uvs[:, 0], 1.0 - uvs[:, 1]], 1)  # PLY's v runs up, as OpenGL's
    return RawMesh(
        vertices=vertices,
        faces=faces,
        uvs=uvs,
        face_uvs=face_uvs,
        materials=_material(path, texture) if uvs is not None and texture is not None else [],
        face_material=np.zeros(len(faces), np.int64) if uvs is not None and texture is not None else None,
        vertex_colours=_rgb(vertex),
        face_colours=None if face_rgb is None else face_rgb[of_face],
        polygon=of_face,
    )


def _material(path: Path, texture: str) -> list[Material]:
    picture = path.parent / texture
    if not picture.is_file():
        warnings.warn(f"{path}: its texture {texture!r} is missing, its colours are left out", stacklevel=2)
        return [Material()]
    return [Material(None, decode_image(read_bytes(picture), picture))]


def _columns(element: dict[str, NDArray | ply.Ragged], names: tuple[str, ...]) -> NDArray[np.float64] | None:
    """[N, len(names)] or None where a property is missing."""
    columns = [element.get(n) for n in names]
    if any(c is None or isinstance(c, ply.Ragged) for c in columns):
        return None
    return np.stack([np.asarray(c, np.float64) for c in columns], 1)


def _rgb(element: dict[str, NDArray | ply.Ragged]) -> NDArray[np.float64] | None:
    """[N, 3] sRGB in [0, 1]: integers are bytes, floats are taken as they are."""
    for names in (_RGB, ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b")):
        shades = _columns(element, names)
        if shades is not None:
            first = element[names[0]]
            assert isinstance(first, np.ndarray)
            return shades / np.iinfo(first.dtype).max if first.dtype.kind in "iu" else shades
    return None


def _fans(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Triangle fans of polygons that lie one after the other in a flat list."""
    start = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    triangles = np.maximum(lengths - 2, 0)
    of_face = np.repeat(np.arange(len(lengths)), triangles)
    step = np.arange(len(of_face)) - np.repeat(np.cumsum(triangles) - triangles, triangles)
    first = start[of_face]
    return np.stack([first, first + step + 1, first + step + 2], 1), of_face


def point_columns(
    data: bytes, header: ply.Header, path: Path
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """(points [N, 3], normals [N, 3] or None, colours [N, 3] or None) of a PLY without faces.

    Raises:
        InputError: no points, no x, y, z.
    """
    vertex = ply.read_elements(data, header, path).get("vertex", {})
    points = _columns(vertex, ("x", "y", "z"))
    if points is None or len(points) == 0:
        raise InputError(f"{path} holds neither faces nor points; export a scene that has some")
    return points, _columns(vertex, ("nx", "ny", "nz")), _rgb(vertex)


def encode_points(points: NDArray, normals: NDArray | None, colours: NDArray[np.uint8] | None) -> bytes:
    """A point cloud as binary PLY."""
    columns: dict[str, NDArray] = dict(zip("xyz", points.T.astype("<f4")))
    if normals is not None:
        columns |= dict(zip(("nx", "ny", "nz"), normals.T.astype("<f4")))
    if colours is not None:
        columns |= dict(zip(_RGB, colours.T))
    return ply.encode({"vertex": _rows(columns)})


def _rows(columns: dict[str, NDArray]) -> NDArray:
    fields = [(name, c.dtype.str, c.shape[1:]) if c.ndim > 1 else (name, c.dtype.str) for name, c in columns.items()]
    rows = np.empty(len(next(iter(columns.values()))), dtype=np.dtype(fields))
    for name, values in columns.items():
        rows[name] = values
    return rows


def write_ply_mesh(mesh: Mesh, path: Path) -> None:
    """Binary PLY; a texture is written as PNG beside it, with `comment TextureFile` and texcoords a face corner."""
    vertex: dict[str, NDArray] = dict(zip("xyz", mesh.vertices.detach().cpu().float().numpy().T))
    face: dict[str, NDArray] = {"vertex_indices": mesh.faces.cpu().numpy().astype("<i4")}
    if mesh.vertex_colours is not None:
        vertex |= dict(zip(_RGB, to_bytes(mesh.vertex_colours).T))
    if mesh.face_colours is not None:
        face |= dict(zip(_RGB, to_bytes(mesh.face_colours).T))
    if mesh.texture is None or mesh.uvs is None or mesh.face_uvs is None:
        atomic_write_bytes(path, ply.encode({"vertex": _rows(vertex), "face": _rows(face)}))
        return
    uvs = mesh.uvs.detach().cpu().float().numpy()
    corner = np.stack([uvs[:, 0], 1.0 - uvs[:, 1]], 1)[mesh.face_uvs.cpu().numpy()]  # [F, 3, 2], v up
    face["texcoord"] = corner.reshape(-1, 6)
    name = re.sub(r"\s", "_", path.stem) + ".png"
    with atomic_path(path) as temporary, atomic_path(path.parent / name) as picture:
        picture.write_bytes(encode_png(to_bytes(mesh.texture)))
        elements = {"vertex": _rows(vertex), "face": _rows(face)}
        temporary.write_bytes(ply.encode(elements, comments=(f"TextureFile {name}",)))
