"""To and from trimesh, for everything that trimesh does and this package does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rl3d.colour import linear_to_srgb
from rl3d.errors import InputError
from rl3d.scenes.gltf_write import picture_of
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.point_cloud import PointCloud
from rl3d.scenes.raw import Material, RawMesh, bake
from rl3d.scenes.texture import to_bytes

if TYPE_CHECKING:
    import trimesh


def to_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    """The same surface as trimesh.Trimesh, unprocessed; colours become 8-bit, texture seams split vertices."""
    import trimesh
    from PIL import Image

    vertices, faces = mesh.vertices.detach().cpu().double().numpy(), mesh.faces.cpu().numpy()
    if mesh.texture is not None:
        picture = picture_of(mesh)
        assert picture is not None
        image, uvs, face_uvs = picture
        pairs = np.stack([faces.reshape(-1), face_uvs.reshape(-1)], 1)
        unique, index = np.unique(pairs, axis=0, return_inverse=True)
        uv = uvs[unique[:, 1]] * [1.0, -1.0] + [0.0, 1.0]  # trimesh's v runs up
        material = trimesh.visual.material.PBRMaterial(
            baseColorTexture=Image.fromarray(image), metallicFactor=0.0, roughnessFactor=1.0, doubleSided=True
        )
        visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
        return trimesh.Trimesh(vertices[unique[:, 0]], index.reshape(-1, 3), visual=visual, process=False)
    result = trimesh.Trimesh(vertices, faces, process=False)
    if mesh.face_colours is not None:
        result.visual = trimesh.visual.ColorVisuals(result, face_colors=to_bytes(mesh.face_colours))
    elif mesh.vertex_colours is not None:
        result.visual = trimesh.visual.ColorVisuals(result, vertex_colors=to_bytes(mesh.vertex_colours))
    return result


def from_trimesh(source: trimesh.Trimesh | trimesh.Scene) -> Mesh:
    """All triangles of a trimesh object, a scene's transforms applied; materials as in `rl3d.scenes.raw.bake`.

    Raises:
        InputError: no triangles, NaN vertices, bad indices.
    """
    import trimesh

    parts: list[tuple[Any, np.ndarray]] = []
    if isinstance(source, trimesh.Scene):
        for node in source.graph.nodes_geometry:
            matrix, name = source.graph[node]
            parts.append((source.geometry[name], np.asarray(matrix)))
    else:
        parts.append((source, np.eye(4)))
    parts = [(part, matrix) for part, matrix in parts if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    if not parts:
        raise InputError("the trimesh object holds no triangles")
    return bake(_concatenate([_raw(part, matrix) for part, matrix in parts]), "the trimesh object")


def points_to_trimesh(cloud: PointCloud) -> trimesh.PointCloud:
    """The same points as trimesh.PointCloud, colours in 8 bits; normals have no place there."""
    import trimesh

    colours = None if cloud.colours is None else to_bytes(cloud.colours)
    return trimesh.PointCloud(cloud.points.detach().cpu().double().numpy(), colors=colours)


def points_from_trimesh(source: trimesh.PointCloud) -> PointCloud:
    """A PointCloud, float32 on the CPU; colours where the trimesh one has as many as points.

    Raises:
        InputError: another kind of object, no points, NaN.
    """
    import trimesh

    if not isinstance(source, trimesh.PointCloud):
        raise InputError(f"expected a trimesh.PointCloud, got {type(source).__name__}")
    points = np.asarray(source.vertices, np.float32).reshape(-1, 3)
    if len(points) == 0 or not np.isfinite(points).all():
        raise InputError(f"the trimesh point cloud has {len(points)} points, all must be finite and there must be one")
    colours = np.asarray(source.colors)
    coloured = colours.ndim == 2 and len(colours) == len(points)
    return PointCloud(
        torch.from_numpy(points.copy()),
        colours=torch.from_numpy(colours[:, :3].astype(np.float32) / 255) if coloured else None,
    )


def _raw(part: Any, matrix: np.ndarray) -> RawMesh:
    faces = np.asarray(part.faces, np.int64)
    if np.linalg.det(matrix[:3, :3]) < 0:
        faces = faces[:, ::-1]
    vertices = np.asarray(part.vertices, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    visual = part.visual
    if visual.kind == "texture":
        uv = None if visual.uv is None else np.asarray(visual.uv, np.float64) * [1.0, -1.0] + [0.0, 1.0]
        return RawMesh(
            vertices,
            faces,
            uvs=uv,
            face_uvs=None if uv is None else faces,
            materials=[_material(visual.material)],
            face_material=np.zeros(len(faces), np.int64),
        )
    if visual.kind == "face":
        return RawMesh(vertices, faces, face_colours=visual.face_colors[:, :3] / 255.0)
    if visual.kind == "vertex":
        return RawMesh(vertices, faces, vertex_colours=visual.vertex_colors[:, :3] / 255.0)
    return RawMesh(vertices, faces)


def _material(material: Any) -> Material:
    """PBR factors are linear light in bytes, simple ones (OBJ) are sRGB."""
    picture = getattr(material, "baseColorTexture", None)
    picture = getattr(material, "image", None) if picture is None else picture
    image = None if picture is None else np.asarray(picture.convert("RGB"))
    factor = getattr(material, "baseColorFactor", None)
    if factor is not None:
        linear = torch.tensor(np.asarray(factor)[:3] / 255.0, dtype=torch.float64)
        r, g, b = linear_to_srgb(linear).tolist()
        return Material((r, g, b), image)
    diffuse = getattr(material, "diffuse", None)
    if diffuse is None:
        return Material(None, image)
    r, g, b = (float(c) / 255.0 for c in np.asarray(diffuse)[:3])
    return Material((r, g, b), image)


def _concatenate(parts: list[RawMesh]) -> RawMesh:
    """One RawMesh of several; where their colour sources differ, plain colours become face colours."""
    if len(parts) == 1:
        return parts[0]
    materials = [m for p in parts for m in p.materials]
    vertex_start = np.cumsum([0, *(len(p.vertices) for p in parts[:-1])])
    uv_start = np.cumsum([0, *(0 if p.uvs is None else len(p.uvs) for p in parts[:-1])])
    material_start = np.cumsum([0, *(len(p.materials) for p in parts[:-1])])
    missing = [np.full((len(p.faces), 3), -1, np.int64) for p in parts]
    uvs = [p.uvs for p in parts if p.uvs is not None]
    flat = [p for p in parts if p.vertex_colours is not None or p.face_colours is not None]
    every_vertex = [p.vertex_colours for p in parts if p.vertex_colours is not None]
    return RawMesh(
        vertices=np.concatenate([p.vertices for p in parts]),
        faces=np.concatenate([p.faces + s for p, s in zip(parts, vertex_start)]),
        uvs=np.concatenate(uvs) if uvs else None,
        face_uvs=np.concatenate(
            [none if p.face_uvs is None else p.face_uvs + s for p, s, none in zip(parts, uv_start, missing)]
        )
        if uvs
        else None,
        materials=materials,
        face_material=np.concatenate(
            [
                np.full(len(p.faces), -1) if p.face_material is None else p.face_material + s
                for p, s in zip(parts, material_start)
            ]
        ),
        vertex_colours=np.concatenate(every_vertex) if len(every_vertex) == len(parts) else None,
        face_colours=np.concatenate([_face_colours(p) for p in parts])
        if flat and len(every_vertex) < len(parts)
        else None,
    )


def _face_colours(part: RawMesh) -> np.ndarray:
    """[F, 3] plain colours of one part, white where it has none."""
    if part.face_colours is not None:
        return part.face_colours
    if part.vertex_colours is not None:
        return part.vertex_colours[part.faces].mean(1)
    colour = part.materials[0].colour if part.materials else None
    return np.tile(colour or (1.0, 1.0, 1.0), (len(part.faces), 1))
