"""GLB writing (glTF 2.0): one mesh, one material, everything embedded; opens in Blender and in game engines."""

from __future__ import annotations

import io
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rl3d.colour import srgb_to_linear
from rl3d.scenes.normals import corner_normals
from rl3d.scenes.texture import palette, tiles, to_bytes

if TYPE_CHECKING:
    from rl3d.scenes.mesh import Mesh

_NEAREST = {"magFilter": 9728, "minFilter": 9728, "wrapS": 33071, "wrapT": 33071}  # palettes must not blend
_SMOOTH = {"magFilter": 9729, "minFilter": 9987}  # bilinear with mip levels


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """A picture [H, W, 3] as PNG; the same picture gives the same bytes."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def picture_of(mesh: Mesh) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.int64]] | None:
    """(picture [H, W, 3], uvs [T, 2], face_uvs [F, 3]) of a textured or face-coloured mesh, None for others."""
    if mesh.texture is not None and mesh.uvs is not None and mesh.face_uvs is not None:
        uvs = mesh.uvs.detach().cpu().double().numpy()
        return to_bytes(mesh.texture), uvs, mesh.face_uvs.cpu().numpy()
    if mesh.face_colours is not None:
        picture, uvs, index = palette(to_bytes(mesh.face_colours))
        return picture, uvs, index[:, None].repeat(3, 1)
    return None


def encode_glb(mesh: Mesh, crease: float | None = None) -> bytes:
    """A mesh as GLB bytes.

    Without `crease` the file has no normals and viewers shade each face flat. With it (radians) normals are smooth
    across edges that turn by less; vertices are split where they differ.

    Texture: an embedded PNG as baseColorTexture, vertices split along uv seams (weld by position after loading).
    Face colours: a palette picture of 4x4 texels a colour, so that they show in every viewer. Vertex colours: COLOR_0
    in linear light, as the specification asks. Metallic 0, roughness 1, double sided. Colours are rounded to 8 bits,
    vertex colours stay float32.
    """
    vertices = mesh.vertices.detach().cpu().float().numpy()
    faces = mesh.faces.cpu().numpy()
    material: dict[str, Any] = {"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}
    tree: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "rl3d"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "asset"}],
        "materials": [{**material, "doubleSided": True, "name": "surface"}],
    }
    columns: dict[str, NDArray] = {"POSITION": vertices}
    keys = [faces.reshape(-1)]  # what a corner is made of: corners that share all of it share a vertex of the file
    png = None
    picture = picture_of(mesh)
    if picture is not None:
        image, uvs, face_uvs = picture
        keys.append(face_uvs.reshape(-1))
        columns["TEXCOORD_0"] = uvs.astype(np.float32)
        png = encode_png(image)
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
        tree["textures"] = [{"source": 0, "sampler": 0}]
        wrap = 10497 if mesh.uvs is not None and tiles(mesh.uvs) else 33071  # repeat, or clamp to the edge
        tree["samplers"] = [{**_SMOOTH, "wrapS": wrap, "wrapT": wrap} if mesh.texture is not None else _NEAREST]
    if crease is not None:
        normals, which = np.unique(
            corner_normals(vertices, faces, crease).reshape(-1, 3).round(5), axis=0, return_inverse=True
        )
        keys.append(which.reshape(-1))
        columns["NORMAL"] = (normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float32)
    if len(keys) > 1:
        unique, index = np.unique(np.stack(keys, 1), axis=0, return_inverse=True)
        faces = index.reshape(-1, 3)
        columns = {name: values[unique[:, i]] for i, (name, values) in enumerate(columns.items())}
    if mesh.vertex_colours is not None:
        linear = srgb_to_linear(mesh.vertex_colours.detach().cpu().double().clamp(0, 1)).to(torch.float32).numpy()
        columns["COLOR_0"] = linear if len(keys) == 1 else linear[unique[:, 0]]

    chunks: list[bytes] = []
    views: list[dict[str, int]] = []

    def view(data: bytes, target: int | None = None) -> int:
        views.append({"buffer": 0, "byteOffset": sum(map(len, chunks)), "byteLength": len(data)})
        if target is not None:
            views[-1]["target"] = target
        chunks.append(data + b"\0" * (-len(data) % 4))
        return len(views) - 1

    index_type, index_code = ("<u2", 5123) if len(columns["POSITION"]) < 65535 else ("<u4", 5125)
    flat = np.ascontiguousarray(faces.reshape(-1), index_type)
    accessors: list[dict[str, Any]] = [
        {"bufferView": view(flat.tobytes(), 34963), "componentType": index_code, "count": flat.size, "type": "SCALAR"}
    ]
    attributes = {}
    for name, values in columns.items():
        attributes[name] = len(accessors)
        data = np.ascontiguousarray(values, "<f4")
        accessor = {"bufferView": view(data.tobytes(), 34962), "componentType": 5126, "count": len(data)}
        accessors.append({**accessor, "type": f"VEC{data.shape[1]}"})
        if name == "POSITION":
            accessors[-1] |= {"min": data.min(0).tolist(), "max": data.max(0).tolist()}
    if png is not None:
        tree["images"] = [{"bufferView": view(png), "mimeType": "image/png"}]
    primitive = {"attributes": attributes, "indices": 0, "mode": 4, "material": 0}
    tree["meshes"] = [{"name": "asset", "primitives": [primitive]}]
    tree["accessors"], tree["bufferViews"] = accessors, views
    binary = b"".join(chunks)
    tree["buffers"] = [{"byteLength": len(binary)}]
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + len(binary)
    header = struct.pack("<4sII", b"glTF", 2, total)
    return (
        header + struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(binary), 0x004E4942) + binary
    )
