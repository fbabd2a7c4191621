"""Rendering triangle meshes in stages: rasterize -> interpolate -> texture -> shade -> antialias -> filter, composite.

Every stage is a pure function of tensors. Which face a pixel sees is a constant to the gradient of all stages but
`antialias`, which makes the picture continuous, hence differentiable, in the place of silhouettes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from rl3d.cameras import Cameras
from rl3d.colour import linear_to_srgb, srgb_to_linear
from rl3d.errors import InputError
from rl3d.render.antialias import adjacent_edges
from rl3d.render.antialias import antialias as antialias_silhouettes
from rl3d.render.environment_light import check_environment, environment_factor
from rl3d.render.frames import Frames
from rl3d.render.rasterize import Fragments, check_indices, interpolate, own_backend, rasterize, rows_of
from rl3d.render.shading import check_shading, shade_factor
from rl3d.render.textures import mip_levels, sample_texture
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.texture import DEFAULT_GREY, tiles

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
    cull_backfaces: bool = False,
    environment: Tensor | None = None,
    mipmaps: bool = False,
) -> Frames:
    """Render a mesh; see `rl3d.render.render`, which checks the arguments and is the public way in.

    With `supersample` k every pixel is the mean of k x k samples: colour is averaged premultiplied and in linear light
    (as an exposure would), divided by the coverage, encoded to sRGB and only then composited over the background in
    sRGB, which is what image viewers do with alpha and how the embedded prior's training images were made. Depth is the
    mean over the covered samples, the normal their normalised mean. Samples are antialiased in the space in which they
    are averaged; for k = 1 that is sRGB.

    Args:
        background: [3] sRGB.
    """
    return render_group(
        [mesh],
        cameras,
        background,
        MeshOptions(shading, supersample, normals, smooth, backend, antialias, cull_backfaces, environment, mipmaps),
    )


@dataclass(frozen=True)
class MeshOptions:
    """How meshes are rendered; the fields are the arguments of `rl3d.render.render`."""

    shading: str = "unlit"
    supersample: int = 1
    normals: bool = False
    smooth: bool = False
    backend: str | None = None
    antialias: bool = True
    cull_backfaces: bool = False
    environment: Tensor | None = None
    mipmaps: bool = False

    @property
    def lit(self) -> bool:
        return self.shading != "unlit" or self.environment is not None

    def light(self, normals: Tensor) -> Tensor:
        """Factors [..., 1 or 3] on linear albedo for unit normals [..., 3]."""
        if self.environment is not None:
            return environment_factor(normals, self.environment)
        return shade_factor(normals, self.shading)[..., None]


def render_group(meshes: Sequence[Mesh], cameras: Cameras, background: Tensor, options: MeshOptions) -> Frames:
    """Render B meshes with V cameras each, in one go.

    Args:
        meshes: on one device, of one dtype. cameras: B V, those of the first mesh first.
        background: [3] sRGB.

    Returns:
        Frames of B V images.
    """
    check_shading(options.shading)
    if options.environment is not None:
        check_environment(options.environment)
        if options.shading != "unlit":
            raise InputError(f"a scene takes an environment or shading {options.shading!r}, not both")
    for mesh in meshes:
        _check_texture(mesh)
    k = options.supersample
    fine = cameras if k == 1 else cameras.resized((cameras.height * k, cameras.width * k))
    mesh, ranges = _joined(meshes, len(cameras) // len(meshes))
    fragments = rasterize(mesh.vertices, mesh.faces, fine, options.backend, options.cull_backfaces, ranges)
    colour, normal = _lit_colours(meshes, mesh, fine, fragments, options)
    frames = _resolve(colour, normal, fragments, meshes, mesh, fine, options)
    return replace(frames, rgb=frames.rgb + (1 - frames.alpha) * background.to(frames.rgb)[:, None, None])


def _joined(meshes: Sequence[Mesh], views: int) -> tuple[Mesh, tuple[Tensor, Tensor] | None]:
    """One table of all vertices and faces, and the rows of it that every view sees (see `rasterize`).

    Colours are joined where all meshes have vertex colours, or all have face colours.
    """
    if len(meshes) == 1:
        return meshes[0], None
    for m in meshes:
        check_indices("faces", m.faces, len(m.vertices), "vertices")  # in the joined table they would meet another mesh
    ends = torch.tensor([[len(m.vertices), len(m.faces)] for m in meshes]).cumsum(0)
    starts = torch.cat([ends.new_zeros(1, 2), ends[:-1]])
    rows = torch.stack([starts, ends], 1).repeat_interleave(views, 0)  # [B V, 2, 2]
    faces = torch.cat([m.faces + start for m, start in zip(meshes, starts[:, 0].tolist())])
    colours: dict[str, Tensor] = {}
    for name in ("vertex_colours", "face_colours"):
        given = [getattr(m, name) for m in meshes]
        if all(c is not None for c in given):
            colours[name] = torch.cat(given)
    joined = Mesh(torch.cat([m.vertices for m in meshes]), faces, **colours)
    return joined, (rows[:, :, 0].contiguous(), rows[:, :, 1].contiguous())


def _albedo(
    meshes: Sequence[Mesh], mesh: Mesh, cameras: Cameras, fragments: Fragments, linear: bool, options: MeshOptions
) -> Tensor:
    """[B V, H, W, 3] of the joined mesh; where the meshes' sources of colour differ, mesh by mesh."""
    if len(meshes) == 1 or mesh.vertex_colours is not None or mesh.face_colours is not None:
        return surface_colours(
            mesh, fragments, linear, own_backend(options.backend), cameras if options.mipmaps else None
        )
    views = len(cameras) // len(meshes)
    parts, first = [], 0
    for b, one in enumerate(meshes):
        these = slice(b * views, (b + 1) * views)
        ids = fragments.face_id[these]
        seen = Fragments(torch.where(ids < 0, ids, ids - first), fragments.bary[these], fragments.depth[these])
        eyes = cameras[these] if options.mipmaps else None
        parts.append(surface_colours(one, seen, linear, own_backend(options.backend), eyes))
        first += len(one.faces)
    return torch.cat(parts)


def _lit_colours(
    meshes: Sequence[Mesh], mesh: Mesh, cameras: Cameras, fragments: Fragments, options: MeshOptions
) -> tuple[Tensor, Tensor | None]:
    """Colours [B V, H, W, 3] of samples, linear if they will be averaged, else sRGB; and normals if asked for."""
    linear = options.supersample > 1
    if not (options.lit or options.normals):
        return _albedo(meshes, mesh, cameras, fragments, linear, options), None
    flat = face_normals(mesh.vertices, mesh.faces)
    sides = _seen_sides(mesh, flat.detach(), cameras, fragments)
    normal: Tensor | None = None
    if options.normals or (options.lit and options.smooth):
        normal = _turned_normals(mesh, flat, fragments, sides, options)
    shown = normal if options.normals else None
    if not options.lit:
        return _albedo(meshes, mesh, cameras, fragments, linear, options), shown
    if options.smooth and normal is not None:
        colour = _albedo(meshes, mesh, cameras, fragments, True, options) * options.light(normal)
    else:
        factors = options.light(torch.cat([flat, -flat]))  # [2 F, 1 or 3]
        if mesh.face_colours is not None and 2 * len(flat) < sides.numel():
            # Fewer sides of faces than samples: light them instead.
            lit = srgb_to_linear(mesh.face_colours).repeat(2, 1) * factors
            lit = lit if linear else linear_to_srgb(lit)
            return rows_of(torch.cat([lit, lit.new_zeros(1, 3)]), sides), shown
        factor = rows_of(torch.cat([factors, factors.new_ones(1, factors.shape[1])]), sides)
        colour = _albedo(meshes, mesh, cameras, fragments, True, options) * factor
    return colour if linear else linear_to_srgb(colour), shown


def surface_colours(
    mesh: Mesh,
    fragments: Fragments,
    linear: bool = False,
    backend: str | None = None,
    mipmaps: Cameras | None = None,
) -> Tensor:
    """Albedo [..., 3] of the visible points from whichever source of colour the mesh has; differentiable in it.

    A texture whose uvs all lie in [0, 1] is clamped at its border; others repeat, glTF's default. Colours are blended
    as they are stored, in sRGB. 0 where there is no face.

    Args:
        linear: decode to linear light.
        backend: of `interpolate`.
        mipmaps: the cameras of the fragments [V, H, W]: look textures up in a mip pyramid. None: bilinear.
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
        level = None
        if mipmaps is not None:
            size = (mesh.texture.shape[0], mesh.texture.shape[1])
            level = mip_levels(mesh.vertices, mesh.faces, mipmaps, fragments, mesh.uvs, mesh.face_uvs, size)
            level = level.reshape(-1).index_select(0, hit)
        wrap = "repeat" if tiles(mesh.uvs) else "clamp"
        seen = sample_texture(mesh.texture, uv.reshape(-1, 2).index_select(0, hit), wrap, level)
        colour = seen.new_zeros(ids.numel(), 3).index_copy(0, hit, seen).reshape(*ids.shape, 3)
    else:
        grey = mesh.vertices.new_tensor(DEFAULT_GREY)
        return (srgb_to_linear(grey) if linear else grey) * (ids >= 0)[..., None].expand(*ids.shape, 3)
    return srgb_to_linear(colour) if linear else colour


@torch.no_grad()
def _seen_sides(mesh: Mesh, flat: Tensor, cameras: Cameras, fragments: Fragments) -> Tensor:
    """[V, H, W] int64: f where face f is seen from the side of its normal flat[f], F + f from the other, 2 F for
    nothing."""
    ids, count = fragments.face_id, len(flat)
    if count == 0:
        return torch.zeros_like(ids)
    offset = -(flat * rows_of(mesh.vertices, mesh.faces[:, 0])).sum(1, keepdim=True)
    plane = rows_of(torch.cat([flat, offset], 1), ids.clamp_min(0))  # [V, H, W, 4]
    eye = torch.cat([cameras.centres, cameras.centres.new_ones(len(cameras), 1)], 1).to(flat)
    behind = (plane.flatten(1, 2) @ eye[:, :, None]).reshape(ids.shape) < 0
    return torch.where(ids < 0, 2 * count, ids + count * behind)


def _turned_normals(mesh: Mesh, flat: Tensor, fragments: Fragments, sides: Tensor, options: MeshOptions) -> Tensor:
    """Unit world normals [V, H, W, 3] on the viewer's side of the face, 0 where nothing is seen."""
    if options.smooth:
        per_vertex = vertex_normals(mesh.vertices, mesh.faces)
        normal = normalize(
            interpolate((per_vertex, mesh.faces), fragments, own_backend(options.backend)), dim=-1, eps=1e-20
        )
        return torch.where((sides >= len(flat))[..., None], -normal, normal)
    return rows_of(torch.cat([flat, -flat, flat.new_zeros(1, 3)]), sides)


def _resolve(
    colour: Tensor,
    normal: Tensor | None,
    fragments: Fragments,
    meshes: Sequence[Mesh],
    mesh: Mesh,
    cameras: Cameras,
    options: MeshOptions,
) -> Frames:
    """Antialias samples [V, k H, k W, D] and box-filter k x k of them into pixels with premultiplied sRGB colour.

    Depth and normal of a pixel are those of its covered samples; where none of its samples is covered, those of the
    surface that reaches into it.
    """
    k = options.supersample
    covered = (fragments.face_id >= 0)[..., None].to(colour.dtype)
    parts = [colour, covered, fragments.depth[..., None], *([] if normal is None else [normal])]
    centres, depth, *turned = [_pooled(t, k) for t in parts[1:]]
    if options.antialias:
        adjacent = _joined_edges(meshes)
        samples = antialias_silhouettes(
            torch.cat(parts, -1), fragments, mesh.vertices, mesh.faces, cameras, adjacent, own_backend(options.backend)
        )
        rgb, alpha, *reaching = _pooled(samples, k).split([t.shape[-1] for t in parts], 1)
    else:
        rgb, alpha = _pooled(colour, k), centres
    coverage = alpha.clamp_min(1e-6)  # keeps 0 / 0 out of the gradient
    if k > 1:
        rgb = linear_to_srgb(rgb / coverage) * alpha
    depth = depth / centres.clamp_min(0.5 / (k * k))
    if options.antialias:
        depth = torch.where(centres > 0, depth, reaching[0] / coverage)
        turned = [torch.where(centres > 0, *pair) for pair in zip(turned, reaching[1:])]
    return Frames(
        rgb.contiguous(), alpha.contiguous(), depth, normalize(turned[0], dim=1, eps=1e-20) if turned else None
    )


def _joined_edges(meshes: Sequence[Mesh]) -> Tensor:
    """`adjacent_edges` of the joined mesh, found mesh by mesh, since meshes may lie in the same place."""
    parts, first = [], 0
    for mesh in meshes:
        edges = adjacent_edges(mesh.vertices, mesh.faces)
        parts.append(torch.where(edges < 0, edges, edges + first) if first else edges)
        first += edges.numel()
    return torch.cat(parts) if len(parts) > 1 else parts[0]


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
