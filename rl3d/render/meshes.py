"""Rendering triangle meshes in stages: rasterize -> interpolate -> texture -> shade -> antialias -> filter, composite.

Every stage is a pure function of tensors. Which face a pixel sees is a constant to the gradient of all stages but
`antialias`, which makes the picture continuous, hence differentiable, in the place of silhouettes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from rl3d.cameras import Cameras
from rl3d.colour import linear_to_srgb, srgb_to_linear
from rl3d.errors import InputError
from rl3d.render.antialias import antialias as antialias_silhouettes
from rl3d.render.frames import Frames
from rl3d.render.rasterize import Fragments, check_indices, interpolate, rasterize, rows_of
from rl3d.render.shading import check_shading, shade_factor
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.texture import DEFAULT_GREY, sample_bilinear, tiles

__all__ = [
    "Fragments",
    "face_normals",
    "interpolate",
    "rasterize",
    "render_mesh",
    "sample_texture",
    "surface_colours",
    "vertex_normals",
]


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
    a, b, c = rows_of(vertices, faces).unbind(1)
    return normalize(torch.linalg.cross(b - a, c - a), dim=-1, eps=1e-20)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [N, 3], the area-weighted mean of the faces around; 0 for unused vertices; differentiable."""
    a, b, c = rows_of(vertices, faces).unbind(1)
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
    antialias: bool = True,
) -> Frames:
    """Render a mesh; see `rl3d.render.render`, which checks the arguments and is the public way in.

    With `supersample` k every pixel is the mean of k x k samples: colour is averaged premultiplied and in linear light
    (as an exposure would), divided by the coverage, encoded to sRGB and only then composited over the background in
    sRGB, which is what image viewers do with alpha and how the embedded prior's training images were made. Depth is the
    mean over the covered samples, the normal their normalised mean.

    Args:
        background: [3] sRGB.
        smooth: shade with interpolated vertex normals instead of flat faces.
        antialias: blend the samples across silhouettes, in the space in which they are averaged (sRGB for k = 1).
    """
    check_shading(shading)
    _check_texture(mesh)
    fine = cameras if supersample == 1 else cameras.resized((cameras.height * supersample, cameras.width * supersample))
    fragments = rasterize(mesh.vertices, mesh.faces, fine, backend)
    covered = (fragments.face_id >= 0)[..., None].to(mesh.vertices.dtype)  # [V, H, W, 1], of samples
    normal: Tensor | None = None
    sides = None
    if normals or shading != "unlit":
        sides = _seen_sides(mesh, fine, fragments)
        if normals or smooth:
            normal = _turned_normals(mesh, fragments, sides, smooth, backend)
    linear = supersample > 1
    if shading == "unlit" or sides is None:
        colour = surface_colours(mesh, fragments, linear, backend)
    elif mesh.face_colours is not None and not smooth and 2 * len(mesh.faces) < covered.numel():
        # Fewer sides of faces than samples: light them instead.
        lit = srgb_to_linear(mesh.face_colours) * _side_factors(mesh, shading).reshape(2, -1, 1)
        lit = (lit if linear else linear_to_srgb(lit)).flatten(0, 1)
        colour = rows_of(torch.cat([lit, lit.new_zeros(1, 3)]), sides)
    else:
        colour = surface_colours(mesh, fragments, True, backend)
        if smooth and normal is not None:
            colour = colour * shade_factor(normal, shading)[..., None]
        else:
            factors = _side_factors(mesh, shading)
            colour = colour * rows_of(torch.cat([factors, factors.new_ones(1)])[:, None], sides)
        colour = colour if linear else linear_to_srgb(colour)
    frames = _resolve(
        colour, covered, fragments, normal if normals else None, mesh, fine, supersample, antialias, backend
    )
    return replace(frames, rgb=frames.rgb + (1 - frames.alpha) * background.to(frames.rgb)[:, None, None])


def surface_colours(mesh: Mesh, fragments: Fragments, linear: bool = False, backend: str | None = None) -> Tensor:
    """Albedo [..., 3] of the visible points from whichever source of colour the mesh has; differentiable in it.

    A texture whose uvs all lie in [0, 1] is clamped at its border; others repeat, glTF's default. Colours are blended
    as they are stored, in sRGB. 0 where there is no face.

    Args:
        linear: decode to linear light.
        backend: of `interpolate`.
    """
    ids = fragments.face_id
    if mesh.face_colours is not None:
        table = torch.cat([mesh.face_colours, mesh.face_colours.new_zeros(1, 3)])
        table = srgb_to_linear(table) if linear else table  # fewer faces than pixels
        return rows_of(table, torch.where(ids < 0, len(mesh.faces), ids))
    if mesh.vertex_colours is not None:
        colour = interpolate((mesh.vertex_colours, mesh.faces), fragments, backend)
    elif mesh.texture is not None and mesh.uvs is not None and mesh.face_uvs is not None:
        uv = interpolate((mesh.uvs, mesh.face_uvs), fragments, backend)
        hit = (ids.reshape(-1) >= 0).nonzero()[:, 0]  # look-ups are dear: none for the background
        seen = sample_bilinear(mesh.texture, uv.reshape(-1, 2).index_select(0, hit), repeat=tiles(mesh.uvs))
        colour = seen.new_zeros(ids.numel(), 3).index_copy(0, hit, seen).reshape(*ids.shape, 3)
    else:
        grey = mesh.vertices.new_tensor(DEFAULT_GREY)
        return (srgb_to_linear(grey) if linear else grey) * (ids >= 0)[..., None].expand(*ids.shape, 3)
    return srgb_to_linear(colour) if linear else colour


def _seen_sides(mesh: Mesh, cameras: Cameras, fragments: Fragments) -> Tensor:
    """[V, H, W] int64: f where face f is seen from the side of its normal, F + f from the other, 2 F for nothing."""
    count = len(mesh.faces)
    ids = fragments.face_id
    if count == 0:
        return torch.zeros_like(ids)
    with torch.no_grad():
        flat = face_normals(mesh.vertices, mesh.faces)
        heights = cameras.centres.to(flat.dtype) @ flat.T - (flat * mesh.vertices[mesh.faces[:, 0]]).sum(1)  # [V, F]
        side = torch.where(heights < 0, count, 0) + torch.arange(count, device=ids.device)
        of_view = torch.arange(len(cameras), device=ids.device)[:, None, None] * count
        seen = side.reshape(-1).index_select(0, (ids.clamp_min(0) + of_view).reshape(-1)).reshape(ids.shape)
        return torch.where(ids < 0, 2 * count, seen)


def _side_factors(mesh: Mesh, shading: str) -> Tensor:
    """[2 F] of both sides of the flat faces, in the order of `_seen_sides`."""
    flat = face_normals(mesh.vertices, mesh.faces)
    return shade_factor(torch.cat([flat, -flat]), shading)


def _turned_normals(mesh: Mesh, fragments: Fragments, sides: Tensor, smooth: bool, backend: str | None) -> Tensor:
    """Unit world normals [V, H, W, 3] on the viewer's side of the face, 0 where nothing is seen."""
    if smooth:
        per_vertex = vertex_normals(mesh.vertices, mesh.faces)
        normal = normalize(interpolate((per_vertex, mesh.faces), fragments, backend), dim=-1, eps=1e-20)
        return torch.where((sides >= len(mesh.faces))[..., None], -normal, normal)
    flat = face_normals(mesh.vertices, mesh.faces)
    return rows_of(torch.cat([flat, -flat, flat.new_zeros(1, 3)]), sides)


def _resolve(
    colour: Tensor,
    covered: Tensor,
    fragments: Fragments,
    normal: Tensor | None,
    mesh: Mesh,
    cameras: Cameras,
    k: int,
    antialias: bool,
    backend: str | None,
) -> Frames:
    """Antialias samples [V, k H, k W, D] and box-filter k x k of them into pixels with premultiplied sRGB colour.

    Depth and normal of a pixel are those of its covered samples; where none of its samples is covered, those of the
    surface that reaches into it.
    """
    parts = [colour, covered, fragments.depth[..., None], *([] if normal is None else [normal])]
    centres, depth, *turned = [_pooled(t, k) for t in parts[1:]]
    if antialias:
        samples = antialias_silhouettes(
            torch.cat(parts, -1), fragments, mesh.vertices, mesh.faces, cameras, None, backend
        )
        rgb, alpha, *reaching = _pooled(samples, k).split([t.shape[-1] for t in parts], 1)
    else:
        rgb, alpha = _pooled(colour, k), centres
    coverage = alpha.clamp_min(1e-6)  # keeps 0 / 0 out of the gradient
    if k > 1:
        rgb = linear_to_srgb(rgb / coverage) * alpha
    depth = depth / centres.clamp_min(0.5 / (k * k))
    if antialias:
        depth = torch.where(centres > 0, depth, reaching[0] / coverage)
        turned = [torch.where(centres > 0, *pair) for pair in zip(turned, reaching[1:])]
    return Frames(
        rgb.contiguous(), alpha.contiguous(), depth, normalize(turned[0], dim=1, eps=1e-20) if turned else None
    )


def _pooled(samples: Tensor, k: int) -> Tensor:
    """[V, k H, k W, D] -> [V, D, H, W]."""
    image = samples.permute(0, 3, 1, 2)
    return avg_pool2d(image, k) if k > 1 else image


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
    check_indices("face_uvs", mesh.face_uvs, mesh.uvs.shape[0], "uvs")
