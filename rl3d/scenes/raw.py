"""What the file readers hand over, and how several materials become the one colour source of a `Mesh`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rl3d.scenes.checks import check_geometry
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.texture import palette, sample_nearest

MAX_ATLAS_TEXELS = 1 << 25  # 0.4 GB as float32; larger sets of pictures are halved until they fit
_EDGE = 1e-4  # uv beyond [0, 1] by less is rounding, not tiling


@dataclass(frozen=True)
class Material:
    """A surface: a plain sRGB colour in [0, 1] (None: the format's default, white) and maybe a picture [H, W, 3]."""

    colour: tuple[float, float, float] | None = None
    image: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class RawMesh:
    """Triangles as a file holds them. Colours are sRGB in [0, 1], uvs run down from the top-left (glTF).

    Attributes:
        vertices: [N, 3] float64. faces: [F, 3] int64.
        uvs: [T, 2] and face_uvs: [F, 3] int64 (-1 where a face has none), or None.
        materials: the list that face_material [F] points into (-1: none).
        vertex_colours: [N, 3]. face_colours: [F, 3].
        polygon: [F] int64 which polygon of the file a triangle comes from, or None where the format has triangles only.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    uvs: NDArray[np.float64] | None = None
    face_uvs: NDArray[np.int64] | None = None
    materials: list[Material] = field(default_factory=list)
    face_material: NDArray[np.int64] | None = None
    vertex_colours: NDArray[np.float64] | None = None
    face_colours: NDArray[np.float64] | None = None
    polygon: NDArray[np.int64] | None = None


def bake(raw: RawMesh, where: str) -> Mesh:
    """One `Mesh` with one colour source, float32 on the CPU, from whatever the file had.

    The rules, first match wins (F faces, each with one material):
    1. one picture covers every face: it is the texture; where each face sits on a single texel (a palette), the faces
       get those texels as `face_colours` instead, which is the same picture and welds and renders faster;
    2. some faces have pictures: all pictures are stacked top to bottom into one atlas, under them a palette for the
       faces without. A face whose uvs tile (span more than one picture) has no place in an atlas: then every face gets
       the colour at its centre;
    3. vertex colours, 4. face colours, 5. plain materials as face colours, 6. nothing.

    Raises:
        InputError: unusable geometry, see `check_geometry`.
    """
    check_geometry(raw.vertices, raw.faces, where)
    vertices = torch.from_numpy(np.ascontiguousarray(raw.vertices, dtype=np.float32))
    faces = torch.from_numpy(np.ascontiguousarray(raw.faces, dtype=np.int64))
    material = np.full(len(faces), -1) if raw.face_material is None else raw.face_material
    pictures = [m.image for m in raw.materials]
    has_picture = np.array([p is not None for p in pictures] + [False])[material]  # index -1 is the last: no material
    if raw.face_uvs is not None:
        has_picture &= (raw.face_uvs >= 0).all(1)
    if has_picture.any() and raw.uvs is not None and raw.face_uvs is not None:
        corner_uvs = _into_first_tile(raw.uvs[np.where(raw.face_uvs >= 0, raw.face_uvs, 0)])  # [F, 3, 2]
        used = np.unique(material[has_picture])
        same = all(pictures[k] is pictures[used[0]] for k in used)
        if same and has_picture.all():
            image = pictures[used[0]]
            assert image is not None
            if (np.ptp(corner_uvs, axis=1) < 1e-6).all():
                texels = sample_nearest(torch.from_numpy(image.copy()), torch.from_numpy(corner_uvs[:, 0]))
                return Mesh(vertices, faces, face_colours=texels.float() / 255)
            return _textured(vertices, faces, image, corner_uvs)
        plain = _plain_colours(raw, material)
        tiled = ((corner_uvs < -_EDGE) | (corner_uvs > 1 + _EDGE)).any((1, 2)) & has_picture
        if tiled.any():
            return Mesh(
                vertices, faces, face_colours=_centre_colours(pictures, material, has_picture, corner_uvs, plain)
            )
        return _atlas(vertices, faces, pictures, material, has_picture, corner_uvs, plain)
    if raw.vertex_colours is not None:
        return Mesh(vertices, faces, vertex_colours=_tensor(raw.vertex_colours))
    if raw.face_colours is not None:
        return Mesh(vertices, faces, face_colours=_tensor(raw.face_colours))
    if any(raw.materials[k].colour is not None for k in np.unique(material[material >= 0])):
        return Mesh(vertices, faces, face_colours=_tensor(_plain_colours(raw, material)))
    return Mesh(vertices, faces)


def _tensor(values: NDArray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _into_first_tile(corner_uvs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move faces that lie whole in another tile of a repeating picture into [0, 1]; others stay. [F, 3, 2]."""
    outside = ((corner_uvs < -_EDGE) | (corner_uvs > 1 + _EDGE)).any(1)  # [F, 2]
    shift = np.where(outside, np.floor(corner_uvs.min(1) + _EDGE), 0.0)
    return corner_uvs - shift[:, None, :]


def _textured(
    vertices: torch.Tensor, faces: torch.Tensor, image: NDArray[np.uint8], corner_uvs: NDArray[np.float64]
) -> Mesh:
    uvs, index = np.unique(corner_uvs.reshape(-1, 2).astype(np.float32), axis=0, return_inverse=True)
    texture = torch.from_numpy(image.astype(np.float32) / 255)
    face_uvs = torch.from_numpy(index.reshape(-1, 3).astype(np.int64))
    return Mesh(vertices, faces, texture=texture, uvs=torch.from_numpy(uvs), face_uvs=face_uvs)


def _plain_colours(raw: RawMesh, material: NDArray[np.int64]) -> NDArray[np.float64]:
    """[F, 3] colour of every face without its picture: its own, its corners' mean, its material's, or white."""
    if raw.face_colours is not None:
        return raw.face_colours
    if raw.vertex_colours is not None:
        return raw.vertex_colours[raw.faces].mean(1)
    table = np.array([(1.0, 1.0, 1.0) if m.colour is None else m.colour for m in raw.materials] + [(1.0, 1.0, 1.0)])
    return table[material]


def _centre_colours(
    pictures: list[NDArray[np.uint8] | None],
    material: NDArray[np.int64],
    has_picture: NDArray[np.bool_],
    corner_uvs: NDArray[np.float64],
    plain: NDArray[np.float64],
) -> torch.Tensor:
    colours = _tensor(plain)
    for k in np.unique(material[has_picture]):
        image = pictures[k]
        assert image is not None
        chosen = has_picture & (material == k)
        centres = torch.from_numpy(corner_uvs[chosen].mean(1))
        colours[torch.from_numpy(chosen)] = sample_nearest(torch.from_numpy(image.copy()), centres).float() / 255
    return colours


def _atlas(
    vertices: torch.Tensor,
    faces: torch.Tensor,
    pictures: list[NDArray[np.uint8] | None],
    material: NDArray[np.int64],
    has_picture: NDArray[np.bool_],
    corner_uvs: NDArray[np.float64],
    plain: NDArray[np.float64],
) -> Mesh:
    """Stack the pictures (shared ones once) and a palette of the plain colours; remap the uvs into the stack."""
    blocks: list[NDArray[np.uint8]] = []
    block_of_picture: dict[int, int] = {}  # id of a picture -> its place in the stack
    block = np.zeros(len(faces), np.int64)
    for k in np.unique(material[has_picture]):
        image = pictures[k]
        assert image is not None
        if id(image) not in block_of_picture:
            block_of_picture[id(image)] = len(blocks)
            blocks.append(image)
        block[has_picture & (material == k)] = block_of_picture[id(image)]
    while sum(b.shape[0] for b in blocks) * max(b.shape[1] for b in blocks) > MAX_ATLAS_TEXELS:
        blocks = [np.asarray(Image.fromarray(b).reduce(2)) if min(b.shape[:2]) > 1 else b for b in blocks]
    local = np.clip(corner_uvs, 0.0, 1.0)
    if not has_picture.all():
        picture, centres, index = palette((np.clip(plain[~has_picture], 0, 1) * 255 + 0.5).astype(np.uint8))
        local[~has_picture] = centres[index][:, None, :]
        block[~has_picture] = len(blocks)
        blocks.append(picture)
    size = np.array([(b.shape[1], b.shape[0]) for b in blocks], np.float64)  # [B, 2] width, height
    total = np.array([size[:, 0].max(), size[:, 1].sum()])
    start = np.stack([np.zeros(len(blocks)), np.concatenate([[0.0], np.cumsum(size[:, 1])[:-1]])], 1)
    own = size[block][:, None, :]
    texel = np.clip(local * own, 0.5, own - 0.5)  # half a texel in, so that filtering never reads the neighbour
    stack = [np.pad(b, ((0, 0), (0, int(total[0]) - b.shape[1]), (0, 0)), mode="edge") for b in blocks]
    return _textured(vertices, faces, np.concatenate(stack), (start[block][:, None, :] + texel) / total)
