"""Rendering triangle meshes in stages: rasterize -> interpolate -> texture -> shade -> filter and composite.

Every stage is a pure function of tensors. Visibility is hard: which face a pixel sees is a constant to the gradient, so
colours, textures, depth, normals and barycentrics are differentiable, silhouettes are not. A stage that antialiases
silhouettes differentiably belongs between `shade` and `_filter` in `render_mesh`; it needs `Fragments` and the colours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from rl3d.backends import MESHES, check_backend
from rl3d.cameras import Cameras
from rl3d.colour import linear_to_srgb, srgb_to_linear
from rl3d.errors import InputError
from rl3d.render.frames import Frames
from rl3d.render.mesh_torch import barycentrics, visible_faces
from rl3d.render.shading import check_shading, shade_factor
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.texture import DEFAULT_GREY, sample_bilinear, tiles

BACKENDS = ("cpu", "torch")


@dataclass(frozen=True)
class Fragments:
    """What each pixel sees of a mesh.

    Attributes:
        face_id: [...] int64, the visible face or -1; [V, H, W] out of `rasterize`.
        bary: [..., 3] perspective-correct barycentrics of the pixel centre, 0 where there is no face.
        depth: [...] camera-space z in metres, 0 where there is no face.
    """

    face_id: Tensor
    bary: Tensor
    depth: Tensor


def rasterize(vertices: Tensor, faces: Tensor, cameras: Cameras, backend: str | None = None) -> Fragments:
    """Find the nearest face behind every pixel centre; both sides of a face are seen, z < 1e-4 m is not.

    Differentiable: `bary` and `depth` with respect to `vertices` and the cameras, for fixed visibility.

    Args:
        vertices: [N, 3] float, world. faces: [F, 3] int64.
        cameras: V cameras; cast to the dtype of `vertices`.
        backend: "cpu" (compiled; CPU and float32), "torch" (brute force, anywhere), None: "cpu" where it can; or an
            optional package by name, see `rl3d.backends`.

    Raises:
        InputError: vertices that are not finite, face indices out of range, or tensors on different devices.
    """
    _check_geometry(vertices, faces, cameras)
    fits_kernel = vertices.device.type == "cpu" and vertices.dtype == torch.float32
    if backend not in (None, *BACKENDS):  # an optional package, only when asked for by name
        check_backend(backend, MESHES, vertices.device.type, str(vertices.dtype).removeprefix("torch."))
        return import_module(f"rl3d.render.meshes_{backend}").rasterize(vertices, faces, cameras)
    if backend == "cpu" and not fits_kernel:
        raise InputError(f'backend "cpu" takes float32 tensors on the CPU, got {vertices.dtype} on {vertices.device}')
    view, intrinsics = cameras.view.to(vertices.dtype), cameras.intrinsics.to(vertices.dtype)
    wants_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (vertices, view, intrinsics))
    if fits_kernel and backend != "torch":
        from rl3d.render.mesh_cpu import rasterize_views  # numba compiles and loads on first use

        arrays = (t.detach().contiguous().numpy() for t in (vertices, faces, view, intrinsics))
        face_id, bary, depth = map(torch.from_numpy, rasterize_views(*arrays, cameras.height, cameras.width))
        if not wants_gradient:
            return Fragments(face_id.long(), bary, depth)
        face_id = face_id.long()
    else:
        face_id = visible_faces(vertices, faces, view, intrinsics, cameras.height, cameras.width)
    return Fragments(face_id, *barycentrics(vertices, faces, view, intrinsics, face_id))


def interpolate(attributes: Tensor | tuple[Tensor, Tensor], fragments: Fragments) -> Tensor:
    """Attributes of the visible points; differentiable in the attributes and `fragments.bary`.

    Args:
        attributes: [F, 3, D] one value a face corner, or ([N, D], indices [F, 3] int64) one value a vertex.
        fragments: any leading shape.

    Returns:
        [..., D], 0 where there is no face.
    """
    # One table of whole faces makes one contiguous read a pixel.
    table = attributes[0][attributes[1]] if isinstance(attributes, tuple) else attributes  # [F, 3, D]
    if table.shape[0] == 0:
        return table.new_zeros(*fragments.face_id.shape, table.shape[-1])
    c0, c1, c2 = _rows(table.flatten(1), fragments.face_id.clamp_min(0)).chunk(3, -1)  # [..., D]
    b0, b1, b2 = fragments.bary.unsqueeze(-1).unbind(-2)  # [..., 1], 0 where nothing is seen
    return b0 * c0 + b1 * c1 + b2 * c2


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """table[index] for a [N, D] table and any shape of index; several times faster than indexing on a CPU."""
    return table.index_select(0, index.reshape(-1)).reshape(*index.shape, table.shape[1])


def sample_texture(texture: Tensor, uv: Tensor, wrap: str = "clamp") -> Tensor:
    """Bilinear lookup; differentiable in the texture, and in `uv` between texel centres.

    Args:
        texture: [H, W, C], texel (row i, column j) has its centre at uv = ((j + 0.5) / W, (i + 0.5) / H).
        uv: [..., 2], (0, 0) the top-left corner of the picture, v down (glTF).
        wrap: what lies beyond the border: "clamp" (the border texels go on) or "repeat" (the picture again).

    Returns:
        [..., C] in the units of `texture`.
    """
    if wrap not in ("clamp", "repeat"):
        raise InputError(f"wrap must be 'clamp' or 'repeat', got {wrap!r}")
    return sample_bilinear(texture, uv, repeat=wrap == "repeat")


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [F, 3] of counter-clockwise faces; 0 for faces without an area; differentiable."""
    a, b, c = vertices[faces].unbind(1)
    return normalize(torch.linalg.cross(b - a, c - a), dim=-1, eps=1e-20)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [N, 3], the area-weighted mean of the faces around; 0 for unused vertices; differentiable."""
    a, b, c = vertices[faces].unbind(1)
    twice_area = torch.linalg.cross(b - a, c - a)  # [F, 3]
    total = torch.zeros_like(vertices).index_add(0, faces.reshape(-1), twice_area.repeat_interleave(3, 0))
    return normalize(total, dim=-1, eps=1e-20)


def render_mesh(
    mesh: Mesh,
    cameras: Cameras,
    background: Tensor,
    shading: str = "unlit",
    supersample: int = 1,
    normals: bool = False,
    smooth: bool = False,
    backend: str | None = None,
) -> Frames:
    """Render a mesh; see `rl3d.render.render`, which checks the arguments and is the public way in.

    With `supersample` k every pixel is the mean of k x k samples: colour is averaged premultiplied and in linear light
    (as an exposure would), divided by the coverage, encoded to sRGB and only then composited over the background in
    sRGB, which is what image viewers do with alpha and how the embedded prior's training images were made. Depth is the
    mean over the covered samples, the normal their normalised mean.

    Args:
        background: [3] sRGB.
        smooth: shade with interpolated vertex normals instead of flat faces.
    """
    check_shading(shading)
    _check_texture(mesh)
    fine = cameras if supersample == 1 else cameras.resized((cameras.height * supersample, cameras.width * supersample))
    fragments = rasterize(mesh.vertices, mesh.faces, fine, backend)
    # From here on only covered samples are computed, as flat [P] fragments.
    shape = fragments.face_id.shape
    hit = (fragments.face_id.reshape(-1) >= 0).nonzero()[:, 0]  # [P]
    seen = Fragments(
        fragments.face_id.reshape(-1).index_select(0, hit),
        fragments.bary.reshape(-1, 3).index_select(0, hit),
        fragments.depth.reshape(-1).index_select(0, hit),
    )
    colour = surface_colours(mesh, seen)  # [P, 3] sRGB
    normal: Tensor | None = None
    if normals or shading != "unlit":
        of_view = torch.div(hit, shape[1] * shape[2], rounding_mode="floor")
        normal = _turned_normals(mesh, fine, seen, of_view, smooth)  # [P, 3]
    if shading != "unlit" or supersample > 1:
        colour = srgb_to_linear(colour)
        if shading != "unlit" and normal is not None:
            colour = colour * shade_factor(normal, shading)[:, None]
        if supersample == 1:
            colour = linear_to_srgb(colour)

    def image(values: Tensor) -> Tensor:  # [P, D] -> [V, D, H, W], 0 where nothing is seen
        flat = values.new_zeros(shape[0] * shape[1] * shape[2], values.shape[1]).index_copy(0, hit, values)
        return flat.reshape(*shape, -1).permute(0, 3, 1, 2).contiguous()

    frames = Frames(
        image(colour),
        (fragments.face_id >= 0)[:, None].to(mesh.vertices.dtype),
        fragments.depth[:, None],
        image(normal) if normals and normal is not None else None,
    )
    if supersample > 1:
        frames = _filter(frames, supersample)
    return replace(frames, rgb=frames.rgb + (1 - frames.alpha) * background.to(frames.rgb)[:, None, None])


def surface_colours(mesh: Mesh, fragments: Fragments) -> Tensor:
    """Albedo [..., 3], sRGB, of the visible points from whichever source of colour the mesh has; differentiable in it.

    A texture whose uvs all lie in [0, 1] is clamped at its border; others repeat, glTF's default.
    """
    if mesh.vertex_colours is not None:
        return interpolate((mesh.vertex_colours, mesh.faces), fragments)
    if mesh.face_colours is not None:
        if mesh.face_colours.shape[0] == 0:
            return mesh.face_colours.new_zeros(*fragments.face_id.shape, 3)
        return _rows(mesh.face_colours, fragments.face_id.clamp_min(0))
    if mesh.texture is not None and mesh.uvs is not None and mesh.face_uvs is not None:
        uv = interpolate((mesh.uvs, mesh.face_uvs), fragments)
        return sample_bilinear(mesh.texture, uv, repeat=tiles(mesh.uvs))
    return mesh.vertices.new_full((*fragments.face_id.shape, 3), DEFAULT_GREY)


def _turned_normals(mesh: Mesh, cameras: Cameras, fragments: Fragments, of_view: Tensor, smooth: bool) -> Tensor:
    """Unit world normals [P, 3] of fragments [P] seen by cameras `of_view` [P], on the viewer's side of the face."""
    if fragments.face_id.shape[0] == 0:
        return mesh.vertices.new_zeros(0, 3)
    flat = face_normals(mesh.vertices, mesh.faces)
    with torch.no_grad():  # [V, F]: does the eye stand on the side that the normal points away from?
        heights = cameras.centres.to(flat.dtype) @ flat.T - (flat * mesh.vertices[mesh.faces[:, 0]]).sum(1)
        turned = (heights < 0).reshape(-1).index_select(0, of_view * flat.shape[0] + fragments.face_id)  # [P]
    if smooth:
        per_vertex = vertex_normals(mesh.vertices, mesh.faces)
        normal = normalize(interpolate((per_vertex, mesh.faces), fragments), dim=-1, eps=1e-20)
        return torch.where(turned[:, None], -normal, normal)
    return _rows(torch.cat([flat, -flat]), fragments.face_id + flat.shape[0] * turned)


def _filter(frames: Frames, k: int) -> Frames:
    """Box-filter k x k samples of linear, premultiplied frames into pixels with premultiplied sRGB colour."""
    alpha = avg_pool2d(frames.alpha, k)
    coverage = alpha.clamp_min(0.5 / (k * k))  # at least one sample where it counts; keeps 0 / 0 out of the gradient
    rgb = linear_to_srgb(avg_pool2d(frames.rgb, k) / coverage) * alpha
    depth = avg_pool2d(frames.depth, k) / coverage
    normal = None if frames.normal is None else normalize(avg_pool2d(frames.normal, k), dim=1, eps=1e-20)
    return Frames(rgb, alpha, depth, normal)


def _check_geometry(vertices: Tensor, faces: Tensor, cameras: Cameras) -> None:
    if vertices.device != cameras.device or vertices.device != faces.device:
        raise InputError(
            f"vertices are on {vertices.device}, faces on {faces.device}, cameras on {cameras.device}; "
            "move them to one device with .to(device)"
        )
    bad = int((~torch.isfinite(vertices)).any(1).sum())
    if bad:
        raise InputError(
            f"{bad} of {vertices.shape[0]} vertices are not finite (NaN or infinity); remove or repair them"
        )
    if not bool(torch.isfinite(cameras.view).all() and torch.isfinite(cameras.intrinsics).all()):
        raise InputError("the cameras hold values that are not finite (NaN or infinity)")
    _check_indices("faces", faces, vertices.shape[0], "vertices")


def _check_texture(mesh: Mesh) -> None:
    if mesh.texture is None or mesh.uvs is None or mesh.face_uvs is None:
        return
    if mesh.texture.ndim != 3 or mesh.texture.shape[2] != 3 or 0 in mesh.texture.shape:
        raise InputError(f"Mesh.texture must be [H, W, 3], got {list(mesh.texture.shape)}")
    if mesh.face_uvs.shape != mesh.faces.shape:
        raise InputError(f"Mesh.face_uvs must be {list(mesh.faces.shape)}, got {list(mesh.face_uvs.shape)}")
    bad = int((~torch.isfinite(mesh.uvs)).any(1).sum())
    if bad:
        raise InputError(f"{bad} of {mesh.uvs.shape[0]} uvs are not finite (NaN or infinity); unwrap the mesh again")
    _check_indices("face_uvs", mesh.face_uvs, mesh.uvs.shape[0], "uvs")


def _check_indices(name: str, indices: Tensor, count: int, of: str) -> None:
    if indices.numel() == 0:
        return
    low, high = (int(t) for t in indices.aminmax())
    if low < 0 or high >= count:
        raise InputError(f"{name} index {of} from {low} to {high}, but there are {count} {of}; indices start at 0")
