"""Reading and writing meshes: the format by the file's suffix, every error in one line.

glTF, OBJ, PLY, STL and OFF are read by this package's own readers: they keep what was written (float32 bits, face
order, uv seams, linear vertex colours) and refuse what is damaged, where general readers drop a broken texture in
silence or fail on mixed polygons.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from rl3d.errors import InputError, nearest
from rl3d.files import atomic_write_bytes
from rl3d.scenes.checks import check_geometry
from rl3d.scenes.gltf_read import read_gltf
from rl3d.scenes.gltf_write import encode_glb
from rl3d.scenes.obj_io import read_obj, write_obj
from rl3d.scenes.ply_mesh_io import read_ply_mesh, write_ply_mesh
from rl3d.scenes.raw import RawMesh, bake
from rl3d.scenes.stl_off_io import encode_off, encode_stl, read_off, read_stl
from rl3d.scenes.usd_write import USD_SUFFIXES, write_usd

if TYPE_CHECKING:
    from rl3d.scenes.mesh import Mesh

_READERS: dict[str, Callable[[Path], RawMesh]] = {
    ".glb": read_gltf,
    ".gltf": read_gltf,
    ".obj": read_obj,
    ".ply": read_ply_mesh,
    ".stl": read_stl,
    ".off": read_off,
}
_WRITERS: dict[str, Callable[[Mesh, Path], None]] = {
    ".glb": lambda mesh, path: atomic_write_bytes(path, encode_glb(mesh)),
    ".obj": write_obj,
    ".ply": write_ply_mesh,
    ".stl": lambda mesh, path: atomic_write_bytes(path, encode_stl(mesh)),
    ".off": lambda mesh, path: atomic_write_bytes(path, encode_off(mesh)),
    **dict.fromkeys(USD_SUFFIXES, write_usd),
}
MESH_SUFFIXES = tuple(_READERS)
Read = TypeVar("Read")


def _pick(path: Path, table: dict[str, Callable], verb: str) -> Callable:
    suffix = path.suffix.lower()
    if suffix in table:
        return table[suffix]
    close = nearest(suffix, table, 1)
    hint = f"did you mean {close[0]}?" if close else "use .glb"
    raise InputError(
        f"cannot {verb} {path.name!r}: meshes are {' '.join(table)}, got {suffix or 'no suffix'!r}; {hint}"
    )


def load_mesh(path: str | Path) -> Mesh:
    """Read a mesh file: GLB, glTF, OBJ, PLY, STL or OFF.

    All triangles of the scene in world coordinates (glTF node transforms applied, polygons as fans), in the file's own
    axes and units, not welded. Several materials become one colour source, see `rl3d.scenes.raw.bake`. A file that
    refers to a missing texture is read without it, with a warning.

    Returns:
        float32 on the CPU.

    Raises:
        InputError: missing, empty, truncated or other file; no faces; NaN, infinite or absurd vertices; bad indices.
    """
    return _read(path, bake)


def load_polygons(path: str | Path) -> RawMesh:
    """The shape in a mesh file with its polygons, without making one colour source of its materials.

    Raises:
        InputError: as `load_mesh`.
    """

    def checked(raw: RawMesh, where: str) -> RawMesh:
        check_geometry(raw.vertices, raw.faces, where)
        return raw

    return _read(path, checked)


def _read(path: str | Path, finish: Callable[[RawMesh, str], Read]) -> Read:
    path = Path(path)
    reader = _pick(path, _READERS, "read")
    try:
        return finish(reader(path), str(path))
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file provokes: a wrong type in the JSON, a missing key, ...
        what = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise InputError(f"{path} is damaged or not a {path.suffix.lower()} mesh ({what}); re-export it") from error


def save_mesh(mesh: Mesh, path: str | Path, crease: float | None = None) -> None:
    """Write a mesh file, atomically: GLB, OBJ (+ MTL + PNG), PLY (+ PNG), STL (no colours), OFF or USD (by usd-core).

    Args:
        crease: radians; GLB and USD get normals that are smooth across edges that turn by less. None: no normals, which
            viewers show as flat faces. Other formats take no normals.

    Raises:
        InputError: unknown suffix, unusable geometry, NaN colours or uvs, a folder that cannot be written.
    """
    path = Path(path)
    writer = _pick(path, _WRITERS, "write")
    check_geometry(mesh.vertices.detach().cpu().double().numpy(), mesh.faces.cpu().numpy(), "the mesh")
    for name in ("vertex_colours", "face_colours", "texture", "uvs"):
        value = getattr(mesh, name)
        if value is not None and not bool(torch.isfinite(value).all()):
            raise InputError(f"the mesh has NaN or infinite {name}; nothing was written to {path}")
    if crease is not None and path.suffix.lower() == ".glb":
        atomic_write_bytes(path, encode_glb(mesh, crease))
    elif path.suffix.lower() in USD_SUFFIXES:
        write_usd(mesh, path, crease)
    else:
        writer(mesh, path)
