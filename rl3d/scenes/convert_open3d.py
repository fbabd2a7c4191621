"""To and from Open3D (an optional package), for its registration, reconstruction and viewers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from rl3d.errors import InputError
from rl3d.scenes.gltf_write import picture_of
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.point_cloud import PointCloud
from rl3d.scenes.raw import Material, RawMesh, bake

if TYPE_CHECKING:
    import open3d


def _open3d() -> Any:
    try:
        import open3d
    except (ImportError, OSError) as error:  # OSError: a shared library of the system is missing
        what = str(error).splitlines()[0]
        raise InputError(f"this needs the package open3d ({what}); pip install open3d-cpu (or open3d)") from None
    return open3d


@overload
def to_open3d(scene: Mesh) -> open3d.geometry.TriangleMesh: ...
@overload
def to_open3d(scene: PointCloud) -> open3d.geometry.PointCloud: ...
def to_open3d(scene: Mesh | PointCloud) -> Any:
    """The same scene as open3d.geometry.TriangleMesh or PointCloud, in float64.

    Colours stay sRGB in [0, 1]. A texture becomes 8 bits, with one uv a face corner; face colours, which Open3D does
    not have, become a palette picture.

    Raises:
        InputError: Open3D is not installed, or the scene is another kind.
    """
    o3d = _open3d()
    if isinstance(scene, PointCloud):
        cloud = o3d.geometry.PointCloud(_vectors(o3d, scene.points))
        if scene.normals is not None:
            cloud.normals = _vectors(o3d, scene.normals)
        if scene.colours is not None:
            cloud.colors = _vectors(o3d, scene.colours)
        return cloud
    if not isinstance(scene, Mesh):
        raise InputError(f"to_open3d takes a Mesh or a PointCloud, got {type(scene).__name__}")
    faces = scene.faces.cpu().numpy().astype(np.int32)
    mesh = o3d.geometry.TriangleMesh(_vectors(o3d, scene.vertices), o3d.utility.Vector3iVector(faces))
    if scene.vertex_colours is not None:
        mesh.vertex_colors = _vectors(o3d, scene.vertex_colours)
    picture = picture_of(scene)
    if picture is not None:  # Open3D's pictures have row 0 at v = 0, as ours, while its v runs up
        image, uvs, face_uvs = picture
        mesh.textures = [o3d.geometry.Image(np.ascontiguousarray(image))]
        mesh.triangle_uvs = o3d.utility.Vector2dVector(uvs[face_uvs].reshape(-1, 2))
        mesh.triangle_material_ids = o3d.utility.IntVector(np.zeros(len(faces), np.int32))
    return mesh


def from_open3d(source: Any) -> Mesh | PointCloud:
    """A Mesh or PointCloud, float32 on the CPU, from an Open3D one (open3d.geometry or open3d.t.geometry).

    Several textures become one colour source, see `rl3d.scenes.raw.bake`. Vertex normals are not kept.

    Raises:
        InputError: another kind of object, no triangles or points, NaN vertices, bad indices.
    """
    if hasattr(source, "to_legacy"):
        source = _legacy(source)
    if hasattr(source, "triangles"):
        return _mesh(source)
    if not hasattr(source, "points") or not hasattr(source, "normals"):
        raise InputError(f"from_open3d takes a TriangleMesh or a PointCloud of Open3D, got {type(source).__name__}")
    points = _array(source.points)
    if len(points) == 0 or not np.isfinite(points).all():
        raise InputError(f"the Open3D point cloud has {len(points)} points, all must be finite and there must be one")

    def tensor(values: NDArray[np.float64] | None) -> torch.Tensor | None:
        return None if values is None else torch.from_numpy(values.astype(np.float32))

    return PointCloud(
        torch.from_numpy(points.astype(np.float32)),
        tensor(_array(source.normals) if source.has_normals() else None),
        tensor(_array(source.colors) if source.has_colors() else None),
    )


def _legacy(source: Any) -> Any:
    """A tensor-based geometry as a plain one; Open3D's own conversion leaves the picture out."""
    legacy = source.to_legacy()
    if hasattr(source, "has_valid_material") and source.has_valid_material():
        maps = source.material.texture_maps
        if "albedo" in maps and "texture_uvs" in source.triangle:
            legacy.textures = [maps["albedo"].to_legacy().flip_vertical()]  # here row 0 is at v = 1
    return legacy


def _mesh(source: Any) -> Mesh:
    faces = np.asarray(source.triangles).astype(np.int64).reshape(-1, 3)
    uvs = _array(source.triangle_uvs, 2) if source.has_triangle_uvs() else None
    textures = [_picture(image) for image in source.textures]
    which = np.asarray(source.triangle_material_ids, np.int64)
    if len(which) != len(faces):
        which = np.zeros(len(faces), np.int64)
    if not textures or uvs is None:
        textures, which = [None], np.zeros(len(faces), np.int64)
    which = np.where((which >= 0) & (which < len(textures)), which, -1)
    return bake(
        RawMesh(
            _array(source.vertices),
            faces,
            uvs=uvs,
            face_uvs=None if uvs is None else np.arange(len(uvs)).reshape(-1, 3),
            materials=[Material(None, image) for image in textures],
            face_material=which,
            vertex_colours=_array(source.vertex_colors) if source.has_vertex_colors() else None,
        ),
        "the Open3D mesh",
    )


def _picture(image: Any) -> NDArray[np.uint8] | None:
    """[H, W, 3] bytes of an open3d.geometry.Image of 1, 3 or 4 channels, bytes or floats; None where it is empty."""
    if image.is_empty():
        return None
    pixels = np.asarray(image)
    if pixels.dtype.kind == "f":
        pixels = np.clip(pixels * 255 + 0.5, 0, 255)
    elif pixels.dtype == np.uint16:
        pixels = pixels // 257
    pixels = np.atleast_3d(pixels).astype(np.uint8)
    return np.ascontiguousarray(pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels[:, :, :3])


def _vectors(o3d: Any, values: torch.Tensor) -> Any:
    return o3d.utility.Vector3dVector(values.detach().cpu().double().numpy())


def _array(vector: Any, width: int = 3) -> NDArray[np.float64]:
    return np.array(vector, dtype=np.float64).reshape(-1, width)  # a copy: the vector's memory is Open3D's
