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
    # From here on only covered samples are computed, as flat [P] fragments.
    shape = fragments.face_id.shape
    hit = (fragments.face_id.reshape(-1) >= 0).nonzero()[:, 0]  # [P]
    seen = Fragments(
        fragments.face_id.reshape(-1).index_select(0, hit),
        fragments.bary.reshape(-1, 3).index_select(0, hit),
        fragments.depth.reshape(-1).index_select(0, hit),
    )
    linear = shading != "unlit" or supersample > 1
    colour = surface_colours(mesh, seen, linear, backend)  # [P, 3]
    normal: Tensor | None = None
    if normals or shading != "unlit":
        of_view = torch.div(hit, shape[1] * shape[2], rounding_mode="floor")
        normal = _turned_normals(mesh, fine, seen, of_view, smooth, backend)  # [P, 3]
    if normal is not None and shading != "unlit":
        colour = colour * shade_factor(normal, shading)[:, None]
    if linear and supersample == 1:
        colour = linear_to_srgb(colour)
    samples = [colour, torch.ones_like(seen.depth)[:, None], seen.depth[:, None]]
    if normals and normal is not None:
        samples.append(normal)
    values = torch.cat(samples, 1)
    image = values.new_zeros(shape.numel(), values.shape[1]).index_copy(0, hit, values).reshape(*shape, -1)
    blended = image
    if antialias:
        blended = antialias_silhouettes(image, fragments, mesh.vertices, mesh.faces, fine, None, backend)
    frames = _filter(image.permute(0, 3, 1, 2), blended.permute(0, 3, 1, 2), supersample)
    return replace(frames, rgb=frames.rgb + (1 - frames.alpha) * background.to(frames.rgb)[:, None, None])


def surface_colours(mesh: Mesh, fragments: Fragments, linear: bool = False, backend: str | None = None) -> Tensor:
    """Albedo [..., 3] of the visible points from whichever source of colour the mesh has; differentiable in it.

    A texture whose uvs all lie in [0, 1] is clamped at its border; others repeat, glTF's default. Colours are blended
    as they are stored, in sRGB.

    Args:
        linear: decode to linear light.
        backend: of `interpolate`.
    """
    shape = (*fragments.face_id.shape, 3)
    if mesh.face_colours is not None:
        if mesh.face_colours.shape[0] == 0:
            return mesh.face_colours.new_zeros(shape)
        table = srgb_to_linear(mesh.face_colours) if linear else mesh.face_colours  # fewer faces than pixels
        return rows_of(table, fragments.face_id.clamp_min(0))
    if mesh.vertex_colours is not None:
        colour = interpolate((mesh.vertex_colours, mesh.faces), fragments, backend)
    elif mesh.texture is not None and mesh.uvs is not None and mesh.face_uvs is not None:
        uv = interpolate((mesh.uvs, mesh.face_uvs), fragments, backend)
        colour = sample_bilinear(mesh.texture, uv, repeat=tiles(mesh.uvs))
    else:
        grey = mesh.vertices.new_tensor(DEFAULT_GREY)
        return (srgb_to_linear(grey) if linear else grey).expand(shape)
    return srgb_to_linear(colour) if linear else colour


def _turned_normals(
    mesh: Mesh, cameras: Cameras, fragments: Fragments, of_view: Tensor, smooth: bool, backend: str | None
) -> Tensor:
    """Unit world normals [P, 3] of fragments [P] seen by cameras `of_view` [P], on the viewer's side of the face."""
    if fragments.face_id.shape[0] == 0:
        return mesh.vertices.new_zeros(0, 3)
    flat = face_normals(mesh.vertices, mesh.faces)
    with torch.no_grad():  # [V, F]: does the eye stand on the side that the normal points away from?
        heights = cameras.centres.to(flat.dtype) @ flat.T - (flat * mesh.vertices[mesh.faces[:, 0]]).sum(1)
        turned = (heights < 0).reshape(-1).index_select(0, of_view * flat.shape[0] + fragments.face_id)  # [P]
    if smooth:
        per_vertex = vertex_normals(mesh.vertices, mesh.faces)
        normal = normalize(interpolate((per_vertex, mesh.faces), fragments, backend), dim=-1, eps=1e-20)
        return torch.where(turned[:, None], -normal, normal)
    return rows_of(torch.cat([flat, -flat]), fragments.face_id + flat.shape[0] * turned)


def _filter(samples: Tensor, blended: Tensor, k: int) -> Frames:
    """Box-filter k x k samples into pixels with premultiplied sRGB colour.

    Args:
        samples: [V, 5 or 8, k H, k W] premultiplied colour (linear for k > 1), coverage, depth and normal of the sample
            centres. blended: the same after antialiasing. Depth and normal of a pixel are those of its covered centres;
            where it has none, those of the surface that reaches into it.
    """
    if k > 1:
        samples, blended = avg_pool2d(samples, k), blended if blended is samples else avg_pool2d(blended, k)
    alpha = blended[:, 3:4]
    coverage = alpha.clamp_min(1e-6)  # keeps 0 / 0 out of the gradient
    rgb = blended[:, :3]
    if k > 1:
        rgb = linear_to_srgb(rgb / coverage) * alpha
    centres = samples[:, 3:4]
    inside = centres > 0
    depth = torch.where(inside, samples[:, 4:5] / centres.clamp_min(0.5 / (k * k)), blended[:, 4:5] / coverage)
    normal = None
    if samples.shape[1] > 5:
        normal = normalize(torch.where(inside, samples[:, 5:], blended[:, 5:]), dim=1, eps=1e-20)
    return Frames(rgb.contiguous(), alpha.contiguous(), depth, normal)


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
