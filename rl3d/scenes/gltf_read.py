"""glTF 2.0 and GLB reading (Khronos specification 2.0.1): every triangle of the scene with its transforms and colours.

Materials: base colour only (factor and texture, KHR_texture_transform, the older specular-glossiness diffuse).
Not read: skins, morph targets, animation, opacity, other maps.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import urllib.parse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rl3d.colour import linear_to_srgb, srgb_to_linear
from rl3d.errors import InputError
from rl3d.scenes.checks import looks_like, read_bytes
from rl3d.scenes.raw import Material, RawMesh

_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_MAX_BLANK = 1 << 24  # items of an accessor that no bytes stand behind
_CODECS = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")


class GltfFile:
    """The JSON tree of a file, with its buffers and pictures read on demand and kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree, self.binary = _split(read_bytes(path), path)
        self._buffers: dict[int, bytes] = {}
        self._images: dict[int, NDArray[np.uint8] | None] = {}
        self._tinted: dict[tuple[int, tuple[float, ...]], NDArray[np.uint8]] = {}
        version = str(self.tree.get("asset", {}).get("version", ""))
        if not version.startswith("2"):
            raise InputError(f"{path}: glTF version {version or 'missing'}, 2.x is read; re-export it as glTF 2.0")
        codec = [c for c in self.tree.get("extensionsUsed", []) if c in _CODECS]
        if codec:
            raise InputError(
                f"{path} is compressed with {codec[0]}, which is not read; re-export it without compression"
            )

    def accessor(self, index: int) -> NDArray:
        """[count, width] values of an accessor; normalised integers become floats in [0, 1] or [-1, 1]."""
        info = self.tree["accessors"][index]
        count, width, kind = int(info["count"]), _WIDTHS[info["type"]], np.dtype(_COMPONENTS[info["componentType"]])
        if count < 0 or ("bufferView" not in info and count > _MAX_BLANK):
            raise InputError(f"{self.path}: an accessor of {count} items cannot be; the file is damaged")
        if "bufferView" in info:
            values = self._items(info["bufferView"], info.get("byteOffset", 0), count, width, kind)
        else:
            values = np.zeros((count, width), kind)
        if "sparse" in info:
            sparse = info["sparse"]
            n, where, what = int(sparse["count"]), sparse["indices"], sparse["values"]
            index_kind = np.dtype(_COMPONENTS[where["componentType"]])
            rows = self._items(where["bufferView"], where.get("byteOffset", 0), n, 1, index_kind)[:, 0]
            values[rows] = self._items(what["bufferView"], what.get("byteOffset", 0), n, width, kind)
        if info.get("normalized") and kind.kind in "iu":
            return np.maximum(values.astype(np.float64) / np.iinfo(kind).max, -1.0)
        return values

    def _items(self, view_index: int, offset: int, count: int, width: int, kind: np.dtype) -> NDArray:
        view = self.tree["bufferViews"][view_index]
        data = self._view_bytes(view_index)
        size = width * kind.itemsize
        stride = int(view.get("byteStride") or size)
        if count == 0:
            return np.zeros((0, width), kind)
        if offset < 0 or stride < size or offset + (count - 1) * stride + size > len(data):
            raise InputError(f"{self.path}: an accessor reaches beyond its buffer; the file is truncated, get it again")
        raw = np.frombuffer(data, np.uint8)[offset:]
        rows = np.lib.stride_tricks.as_strided(raw, (count, size), (stride, 1), writeable=False)
        return np.ascontiguousarray(rows).view(kind).reshape(count, width).copy()

    def _view_bytes(self, index: int) -> bytes:
        view = self.tree["bufferViews"][index]
        start, length = int(view.get("byteOffset", 0)), int(view["byteLength"])
        data = self._buffer(int(view["buffer"]))
        if start < 0 or length < 0 or start + length > len(data):
            raise InputError(
                f"{self.path}: a buffer view reaches beyond its buffer; the file is truncated, get it again"
            )
        return data[start : start + length]

    def _buffer(self, index: int) -> bytes:
        if index not in self._buffers:
            uri = self.tree["buffers"][index].get("uri")
            data = self.binary if uri is None else self._resource(uri)
            if data is None:
                raise InputError(f"{self.path}: its buffer {str(uri)[:80]!r} is missing; keep the .bin file beside it")
            self._buffers[index] = data
        return self._buffers[index]

    def _resource(self, uri: str) -> bytes | None:
        """Bytes of a data URI or of a file beside this one; None where there is no such file."""
        if uri.startswith("data:"):
            return base64.b64decode(uri.split(",", 1)[1])
        if "://" in uri:
            raise InputError(f"{self.path} refers to {uri[:80]!r}; nothing is fetched from the network, embed it")
        beside = self.path.parent / urllib.parse.unquote(uri)
        return beside.read_bytes() if beside.is_file() else None

    def image(self, index: int) -> NDArray[np.uint8] | None:
        """[H, W, 3] sRGB of a picture; None, with a warning, where an external file is missing."""
        if index not in self._images:
            info = self.tree["images"][index]
            data = self._view_bytes(info["bufferView"]) if "bufferView" in info else self._resource(info["uri"])
            if data is None:
                warnings.warn(
                    f"{self.path}: texture {info['uri']!r} is missing, its colours are left out", stacklevel=2
                )
                self._images[index] = None
            else:
                self._images[index] = decode_image(data, self.path)
        return self._images[index]

    def material(self, index: int) -> tuple[Material, dict[str, Any]]:
        """Base colour as a `Material`, and the texture's reference (texCoord, transform), {} where it has none."""
        info = self.tree["materials"][index]
        pbr = info.get("pbrMetallicRoughness", {})
        old = info.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness", {})
        factor = pbr.get("baseColorFactor", old.get("diffuseFactor"))
        reference = pbr.get("baseColorTexture", old.get("diffuseTexture")) or {}
        image = None
        if reference:
            texture = self.tree["textures"][reference["index"]]
            source = texture.get("extensions", {}).get("EXT_texture_webp", {}).get("source", texture.get("source"))
            if source is None:
                warnings.warn(f"{self.path}: a texture has no PNG, JPEG or WebP picture, it is left out", stacklevel=2)
            else:
                image = self.image(source)
        if factor is None:
            return Material(None, image), reference
        linear = tuple(float(c) for c in factor[:3])
        if image is not None and linear != (1.0, 1.0, 1.0):
            image = self._tint(image, linear)
        srgb = linear_to_srgb(torch.tensor(linear, dtype=torch.float64).clamp(0, 1)).tolist()
        return Material((srgb[0], srgb[1], srgb[2]), image), reference

    def _tint(self, image: NDArray[np.uint8], linear: tuple[float, ...]) -> NDArray[np.uint8]:
        """Multiply a picture by a linear-light factor, as the specification asks."""
        key = (id(image), linear)
        if key not in self._tinted:
            light = srgb_to_linear(torch.from_numpy(image.astype(np.float32) / 255)) * torch.tensor(linear)
            self._tinted[key] = (linear_to_srgb(light).clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()
        return self._tinted[key]


def decode_image(data: bytes, path: Path) -> NDArray[np.uint8]:
    """[H, W, 3] uint8 sRGB, row 0 on top; alpha is dropped.

    Raises:
        InputError: the bytes are not a whole picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: a texture cannot be decoded ({error}); re-export it with PNG textures") from error


def _split(data: bytes, path: Path) -> tuple[dict[str, Any], bytes | None]:
    """The JSON tree and the binary chunk of a GLB, or the tree of a .gltf."""
    binary: bytes | None = None
    if data[:4] == b"glTF":
        if len(data) < 20:
            raise InputError(f"{path} is truncated: {len(data)} bytes are no GLB; get it again")
        version, length = struct.unpack_from("<II", data, 4)
        if version != 2:
            raise InputError(f"{path}: GLB version {version}, 2 is read; re-export it as glTF 2.0")
        if length > len(data):
            raise InputError(f"{path} is truncated: {len(data)} of {length} bytes; download or copy it again")
        text, at = b"", 12
        while at + 8 <= length:
            size, kind = struct.unpack_from("<II", data, at)
            chunk = data[at + 8 : at + 8 + size]
            if len(chunk) < size:
                raise InputError(f"{path} is truncated inside a chunk; download or copy it again")
            if kind == 0x4E4F534A and not text:
                text = chunk
            elif kind == 0x004E4942 and binary is None:
                binary = chunk
            at += 8 + size
    elif path.suffix.lower() == ".gltf" and data.lstrip()[:1] == b"{":
        text = data
    else:
        raise InputError(f"{path} is not a glTF file: it looks like {looks_like(data)}; check what the file really is")
    try:
        tree = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: its glTF JSON cannot be read ({error}); the file is truncated or damaged") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: its glTF JSON is not an object; the file is damaged")
    return tree, binary


def read_gltf(path: Path) -> RawMesh:
    """All triangles of the default scene in world coordinates.

    COLOR_0 is decoded from linear light and multiplied by the material's factor; a texture takes precedence over it.

    Raises:
        InputError: the file is not whole glTF 2.0, or uses a codec that is not read.
        Other exceptions on a damaged tree: `load_mesh` turns them into InputError.
    """
    file = GltfFile(path)
    tree = file.tree
    vertices: list[NDArray] = []
    faces: list[NDArray] = []
    uvs: list[NDArray] = []
    has_uv: list[NDArray] = []
    colours: list[NDArray | None] = []
    face_material: list[NDArray] = []
    materials = [file.material(i) for i in range(len(tree.get("materials", [])))]
    total = 0
    for mesh_index, matrix in _placed_meshes(tree, path):
        for primitive in tree["meshes"][mesh_index]["primitives"]:
            mode = primitive.get("mode", 4)
            if mode not in (4, 5, 6):  # points and lines have no surface
                continue
            attributes = primitive["attributes"]
            local = file.accessor(attributes["POSITION"])[:, :3].astype(np.float64)
            index = file.accessor(primitive["indices"])[:, 0] if "indices" in primitive else np.arange(len(local))
            triangles = _triangles(index.astype(np.int64), mode)
            if len(triangles) and triangles.max() >= len(local):
                raise InputError(f"{path}: a face points outside its {len(local)} vertices; the file is damaged")
            if np.linalg.det(matrix[:3, :3]) < 0:
                triangles = triangles[:, ::-1]  # a mirroring node turns the winding over
            number = primitive.get("material", -1)
            material, reference = materials[number] if number >= 0 else (Material(), {})
            coordinates = _coordinates(file, attributes, reference, len(local))
            vertices.append(local @ matrix[:3, :3].T + matrix[:3, 3])
            faces.append(triangles + total)
            uvs.append(np.zeros((len(local), 2)) if coordinates is None else coordinates)
            has_uv.append(np.full(len(triangles), coordinates is not None))
            colours.append(_vertex_colours(file, attributes, material, len(local)))
            face_material.append(np.full(len(triangles), number))
            total += len(local)
    if not faces:
        raise InputError(f"{path} has no triangles ({len(tree.get('meshes', []))} meshes); export it with its surface")
    all_faces = np.concatenate(faces)
    return RawMesh(
        vertices=np.concatenate(vertices),
        faces=all_faces,
        uvs=np.concatenate(uvs),
        face_uvs=np.where(np.concatenate(has_uv)[:, None], all_faces, -1),
        materials=[m for m, _ in materials],
        face_material=np.concatenate(face_material),
        vertex_colours=_joined_colours(colours, face_material, vertices, materials),
    )


def _placed_meshes(tree: dict[str, Any], path: Path) -> list[tuple[int, NDArray[np.float64]]]:
    """(mesh, world matrix) of every node of the default scene, depth first."""
    nodes = tree.get("nodes", [])
    if "scenes" in tree:
        roots = tree["scenes"][tree.get("scene", 0)].get("nodes", [])
    else:
        children = {c for node in nodes for c in node.get("children", [])}
        roots = [i for i in range(len(nodes)) if i not in children]
    placed = []
    stack = [(i, np.eye(4)) for i in reversed(roots)]
    seen: set[int] = set()
    while stack:
        index, parent = stack.pop()
        if index in seen:
            raise InputError(f"{path}: node {index} appears twice in the scene; the file is damaged, re-export it")
        seen.add(index)
        node = nodes[index]
        world = parent @ _node_matrix(node)
        if "mesh" in node:
            placed.append((int(node["mesh"]), world))
        stack += [(c, world) for c in reversed(node.get("children", []))]
    return placed


def _node_matrix(node: dict[str, Any]) -> NDArray[np.float64]:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = np.array(node.get("rotation", [0, 0, 0, 1]), np.float64)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * np.array(node.get("scale", [1, 1, 1]), np.float64)
    matrix[:3, 3] = node.get("translation", [0, 0, 0])
    return matrix


def _triangles(index: NDArray[np.int64], mode: int) -> NDArray[np.int64]:
    if mode == 4:
        return index[: len(index) // 3 * 3].reshape(-1, 3)
    if mode == 6:
        return np.stack([np.full(max(len(index) - 2, 0), index[0] if len(index) else 0), index[1:-1], index[2:]], 1)
    strip = np.stack([index[:-2], index[1:-1], index[2:]], 1)
    strip[1::2] = strip[1::2, [1, 0, 2]]  # every second triangle of a strip is wound the other way
    return strip


def _coordinates(
    file: GltfFile, attributes: dict[str, int], reference: dict[str, Any], count: int
) -> NDArray[np.float64] | None:
    """[count, 2] texture coordinates of a primitive after KHR_texture_transform; None where there are none."""
    transform = reference.get("extensions", {}).get("KHR_texture_transform", {})
    name = f"TEXCOORD_{transform.get('texCoord', reference.get('texCoord', 0))}"
    if not reference or name not in attributes:
        return None
    uv = file.accessor(attributes[name]).astype(np.float64)
    if uv.shape != (count, 2) or not np.isfinite(uv).all():
        raise InputError(f"{file.path}: {name} does not fit its {count} vertices; the file is damaged, re-export it")
    angle = float(transform.get("rotation", 0.0))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (uv * transform.get("scale", [1, 1])) @ turn.T + transform.get("offset", [0, 0])


def _vertex_colours(
    file: GltfFile, attributes: dict[str, int], material: Material, count: int
) -> NDArray[np.float64] | None:
    """[count, 3] sRGB of COLOR_0 times the material's factor; None where it has none or all are white."""
    if "COLOR_0" not in attributes:
        return None
    linear = file.accessor(attributes["COLOR_0"])[:, :3].astype(np.float64)
    if linear.shape != (count, 3) or not np.isfinite(linear).all():
        raise InputError(f"{file.path}: COLOR_0 does not fit its {count} vertices; the file is damaged, re-export it")
    if (linear >= 1.0).all():
        return None
    light = torch.from_numpy(linear)
    if material.colour is not None:
        light = light * srgb_to_linear(torch.tensor(material.colour, dtype=torch.float64))
    return linear_to_srgb(light.clamp(0, 1)).numpy()


def _joined_colours(
    colours: list[NDArray | None],
    face_material: list[NDArray],
    vertices: list[NDArray],
    materials: list[tuple[Material, dict[str, Any]]],
) -> NDArray[np.float64] | None:
    """[N, 3] over all primitives, plain ones with their material's colour; None where no primitive has COLOR_0."""
    if all(c is None for c in colours):
        return None
    parts = []
    for colour, numbers, local in zip(colours, face_material, vertices):
        if colour is None:
            number = int(numbers[0]) if len(numbers) else -1
            plain = materials[number][0].colour if number >= 0 else None
            colour = np.tile(plain or (1.0, 1.0, 1.0), (len(local), 1))
        parts.append(colour)
    return np.concatenate(parts)
