"""render(): colour sources, shading, antialiased coverage, backgrounds, gradients and errors, for meshes and splats."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.colour import linear_to_srgb, srgb_to_linear
from rl3d.errors import ConfigError, InputError
from rl3d.render import render
from rl3d.render.meshes import DEFAULT_GREY, render_mesh
from rl3d.render.shading import half_lambert
from rl3d.scenes.gaussians import Gaussians
from rl3d.scenes.mesh import Mesh

SQUARE = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])  # in the plane z = 0, front to +Z
SQUARE_FACES = torch.tensor([[0, 1, 2], [0, 2, 3]])


def filling(size: int | tuple[int, int] = 4, azimuth: float = 0.0) -> Cameras:
    """A camera on +Z at distance 2 whose image a side of SQUARE fills exactly: f = height."""
    return Cameras.orbit(azimuth, 0.0, 2.0, 2 * math.atan(0.5), size)


def square(**colour: Tensor) -> Mesh:
    return Mesh(SQUARE, SQUARE_FACES, **colour)


def rippled(count: int = 7, **colour: Tensor) -> Mesh:
    """A height field of 2 (count - 1)^2 faces that bends both ways."""
    steps = torch.linspace(-0.8, 0.8, count)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    vertices = torch.stack([x, y, 0.3 * torch.sin(3 * x) * torch.cos(2 * y)], -1).reshape(-1, 3)
    corner = (torch.arange(count - 1)[:, None] * count + torch.arange(count - 1)).reshape(-1, 1)
    faces = torch.cat([corner + torch.tensor([0, 1, count + 1]), corner + torch.tensor([0, count + 1, count])])
    return Mesh(vertices, faces, **colour)


def test_frames_have_their_shapes_and_a_square_fills_them() -> None:
    frames = render(square(), filling((4, 4))[[0, 0]], normals=True)
    assert frames.rgb.shape == (2, 3, 4, 4) and frames.alpha.shape == frames.depth.shape == (2, 1, 4, 4)
    torch.testing.assert_close(frames.rgb, torch.full_like(frames.rgb, DEFAULT_GREY))
    assert bool((frames.alpha == 1).all())
    torch.testing.assert_close(frames.depth, torch.full_like(frames.depth, 2.0))
    assert frames.normal is not None
    torch.testing.assert_close(frames.normal, torch.tensor([0.0, 0, 1])[None, :, None, None].expand(2, 3, 4, 4))
    assert render(square(), filling()).normal is None


def test_face_colours() -> None:
    """The diagonal runs from the bottom left: face 0 below it, face 1 above."""
    colours = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
    rgb = render(square(face_colours=colours), filling(5)).rgb[0]
    torch.testing.assert_close(rgb[:, 4, 3], colours[0])
    torch.testing.assert_close(rgb[:, 0, 1], colours[1])


def test_vertex_colours_by_hand() -> None:
    """Red grows with x and green with y: the centre of column j of 4 is at (j + 0.5) / 4."""
    colours = torch.cat([(SQUARE[:, :2] + 1) / 2, torch.zeros(4, 1)], 1)
    rgb = render(square(vertex_colours=colours), filling()).rgb[0]
    ramp = torch.tensor([0.125, 0.375, 0.625, 0.875])
    torch.testing.assert_close(rgb[0], ramp.expand(4, 4))
    torch.testing.assert_close(rgb[1], ramp.flip(0)[:, None].expand(4, 4))  # row 0 is the top, where y is high


def test_a_texture_lands_upright_and_unmirrored() -> None:
    """A 4 x 4 picture on the square, pixel for texel: uv (0, 0) is the picture's top-left, at the vertex (-1, 1)."""
    texture = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(0))
    uvs = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]])
    mesh = square(texture=texture, uvs=uvs, face_uvs=SQUARE_FACES)
    torch.testing.assert_close(render(mesh, filling()).rgb[0], texture.permute(2, 0, 1), atol=2e-6, rtol=0)
    # At twice the size the outer pixels lie beyond the outer texels' centres: the border must not bleed round.
    border = render(mesh, filling(8)).rgb[0]
    torch.testing.assert_close(border[:, 0, 0], texture[0, 0], atol=2e-6, rtol=0)
    torch.testing.assert_close(border[:, 7, 7], texture[3, 3], atol=2e-6, rtol=0)
    # uvs beyond 1 tile the picture.
    tiled = square(texture=texture, uvs=2 * uvs, face_uvs=SQUARE_FACES)
    rgb = render(tiled, filling(8)).rgb[0]
    torch.testing.assert_close(rgb, texture.permute(2, 0, 1).repeat(1, 2, 2), atol=4e-6, rtol=0)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_shading_is_two_sided_and_fixed_to_the_world(backend: str) -> None:
    """From the front the normal is +Z, from behind it is turned to -Z, whatever the winding says."""
    cameras = Cameras.cat([filling(), filling(azimuth=math.pi)])
    for faces in (SQUARE_FACES, SQUARE_FACES.flip(1)):
        frames = render(Mesh(SQUARE, faces), cameras, shading="half_lambert", normals=True, backend=backend)
        normals = torch.tensor([[0.0, 0, 1], [0, 0, -1]])
        assert frames.normal is not None
        torch.testing.assert_close(frames.normal[:, :, 2, 2], normals)
        linear = srgb_to_linear(torch.tensor(DEFAULT_GREY)) * half_lambert(normals)
        torch.testing.assert_close(frames.rgb[:, 0, 2, 2], linear_to_srgb(linear))


def test_smooth_shading_interpolates_normals() -> None:
    """Flat normals are one a face; smooth ones are unit, close to them, and vary within a face."""
    mesh, cameras, black = rippled(), filling(32, 0.5), torch.zeros(3)
    flat = render_mesh(mesh, cameras, black, normals=True).normal
    smooth = render_mesh(mesh, cameras, black, normals=True, smooth=True).normal
    assert flat is not None and smooth is not None
    seen = flat.norm(dim=1) > 0
    torch.testing.assert_close(smooth.norm(dim=1)[seen], torch.ones(int(seen.sum())))
    assert 0.9 < float((flat * smooth).sum(1)[seen].min()) < 0.999
    assert len(torch.unique(smooth.permute(0, 2, 3, 1)[seen], dim=0)) > 5 * 72


@pytest.mark.parametrize("k", [2, 4])
def test_supersampled_alpha_of_half_covered_pixels(k: int) -> None:
    """The square moved by half a pixel: the first column is half covered and has half of the colour."""
    mesh = Mesh(SQUARE + torch.tensor([0.25, 0, 0]), SQUARE_FACES)  # a pixel of 4 is 0.5 wide
    frames = render(mesh, filling(), supersample=k, normals=True)
    alpha = torch.tensor([0.5, 1, 1, 1]).expand(1, 1, 4, 4)
    torch.testing.assert_close(frames.alpha, alpha)
    torch.testing.assert_close(frames.rgb, DEFAULT_GREY * alpha.expand(1, 3, 4, 4))
    torch.testing.assert_close(frames.depth, torch.full((1, 1, 4, 4), 2.0))
    assert frames.normal is not None
    torch.testing.assert_close(frames.normal.norm(dim=1), torch.ones(1, 4, 4))
    over = render(mesh, filling(), supersample=k, background=torch.tensor([0.0, 1.0, 0.5])).rgb
    torch.testing.assert_close(over[0, :, 0, 0], 0.5 * DEFAULT_GREY + 0.5 * torch.tensor([0.0, 1.0, 0.5]))
    # Without either, coverage is all or nothing.
    assert set(render(mesh, filling(), antialias=False).alpha.unique().tolist()) <= {0.0, 1.0}


def test_supersampling_averages_light_not_code_values() -> None:
    """Black and white halves of a pixel make linear 0.5, which is sRGB 0.7354."""
    colours = torch.tensor([[0.0, 0, 0], [1, 1, 1]])
    left = torch.tensor([[-1.0, -1, 0], [0, -1, 0], [0, 1, 0], [-1, 1, 0]])
    both = torch.cat([left, left + torch.tensor([1.0, 0, 0])])
    mesh = Mesh(both, torch.cat([SQUARE_FACES, SQUARE_FACES + 4]), face_colours=colours.repeat_interleave(2, 0))
    rgb = render(mesh, filling(1), supersample=2).rgb
    torch.testing.assert_close(rgb, torch.full_like(rgb, 0.7354), atol=1e-4, rtol=0)


@pytest.mark.parametrize("background", [0.25, (0.25, 0.25, 0.25), torch.tensor(0.25), torch.tensor([0.25, 0.25, 0.25])])
def test_backgrounds(background: float | tuple[float, ...] | Tensor) -> None:
    mesh = Mesh(SQUARE * 0.5, SQUARE_FACES)
    frames = render(mesh, filling(8), background=background)
    assert int(frames.alpha.sum()) == 16
    expected = torch.where(frames.alpha > 0, DEFAULT_GREY, 0.25).expand(1, 3, 8, 8)
    torch.testing.assert_close(frames.rgb, expected)


@pytest.mark.parametrize("supersample", [1, 2])
def test_no_faces_leave_the_background(supersample: int) -> None:
    nothing = torch.zeros(0, 3, dtype=torch.int64)
    uvs = torch.zeros(0, 2)
    for mesh in (
        Mesh(torch.zeros(0, 3), nothing),
        Mesh(SQUARE, nothing, vertex_colours=SQUARE.abs()),
        Mesh(SQUARE, nothing, face_colours=torch.zeros(0, 3)),
        Mesh(SQUARE, nothing, texture=torch.rand(2, 2, 3), uvs=uvs, face_uvs=nothing),
    ):
        frames = render(mesh, filling(), background=0.3, shading="lambert", normals=True, supersample=supersample)
        torch.testing.assert_close(frames.rgb, torch.full((1, 3, 4, 4), 0.3))
        assert frames.normal is not None
        assert not any(bool(t.any()) for t in (frames.alpha, frames.depth, frames.normal))


@pytest.mark.parametrize("shading", ["unlit", "half_lambert", "lambert"])
def test_backends_render_the_same_picture(shading: str) -> None:
    """Measured: equal to the last bit, since all after the face ids is shared or float64."""
    mesh = rippled(vertex_colours=torch.rand(49, 3, generator=torch.Generator().manual_seed(0)))
    cameras = Cameras.orbit(torch.tensor([0.3, 2.0, 4.5]), 0.4, 2.5, 0.7, 32)
    a, b = (render(mesh, cameras, shading=shading, supersample=2, normals=True, backend=k) for k in ("cpu", "torch"))
    for name in ("rgb", "alpha", "depth", "normal"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=2e-6, rtol=0)


@pytest.mark.parametrize("supersample", [1, 2])
def test_gradients_to_vertex_colours_against_finite_differences(supersample: int) -> None:
    mesh = rippled(5)
    mesh = Mesh(mesh.vertices.double(), mesh.faces)
    cameras = Cameras.orbit(torch.tensor([0.4], dtype=torch.float64), 0.3, 2.5, 0.7, 6)
    colours = 0.2 + 0.6 * torch.rand(25, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def picture(c: Tensor) -> Tensor:
        lit = Mesh(mesh.vertices, mesh.faces, vertex_colours=c)
        return render(lit, cameras, shading="half_lambert", supersample=supersample, background=0.4).rgb

    assert torch.autograd.gradcheck(picture, colours.requires_grad_())


def test_gradients_to_a_texture_and_to_face_colours() -> None:
    texture = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    uvs = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]], dtype=torch.float64)
    vertices, cameras = SQUARE.double(), filling(5).to(dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda t: render(Mesh(vertices, SQUARE_FACES, texture=t, uvs=uvs, face_uvs=SQUARE_FACES), cameras).rgb, texture
    )
    colours = torch.full((2, 3), 0.5, requires_grad=True)
    render(square(face_colours=colours), filling(4)).rgb.sum().backward()
    # 16 pixels; the diagonal through 4 centres belongs to the first face.
    torch.testing.assert_close(colours.grad, torch.tensor([[10.0] * 3, [6.0] * 3]))


def test_gradients_to_vertices_against_finite_differences() -> None:
    """Depth, normals, shading and interpolated colours at fixed visibility: cameras inside a box, so that no silhouette
    moves through a pixel centre within the finite step.
    """
    corners = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=torch.float64)
    quads = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    faces = torch.tensor([f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))])
    colours = torch.rand(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cameras = Cameras.orbit(torch.tensor([0.4, 2.2], dtype=torch.float64), 0.3, 0.3, 1.1, 3)

    def everything(vertices: Tensor) -> tuple[Tensor, ...]:
        mesh = Mesh(vertices, faces, vertex_colours=colours)
        frames = render(mesh, cameras, shading="half_lambert", normals=True)
        assert frames.normal is not None
        return frames.rgb, frames.depth, frames.normal

    assert torch.autograd.gradcheck(everything, corners.requires_grad_())


def test_gradients_are_finite_where_nothing_is_seen() -> None:
    """Empty, half-covered and black pixels under supersampling: no 0 / 0."""
    mesh = rippled(vertex_colours=torch.zeros(49, 3).requires_grad_())
    mesh = Mesh(mesh.vertices.requires_grad_(), mesh.faces, vertex_colours=mesh.vertex_colours)
    frames = render(mesh, Cameras.orbit(0.3, size=16), shading="lambert", supersample=3, normals=True)
    assert frames.normal is not None
    (frames.rgb.sum() + frames.depth.sum() + frames.normal[:, 0].sum()).backward()
    for leaf in (mesh.vertices, mesh.vertex_colours):
        assert leaf is not None and leaf.grad is not None
        assert bool(torch.isfinite(leaf.grad).all()) and bool(leaf.grad.any())


def test_float64_scenes_give_float64_frames() -> None:
    frames = render(Mesh(SQUARE.double(), SQUARE_FACES), filling(), shading="lambert", supersample=2, normals=True)
    assert {t.dtype for t in (frames.rgb, frames.alpha, frames.depth)} == {torch.float64}


def test_wrong_arguments_say_what_is_right() -> None:
    mesh, cameras = square(), filling()
    with pytest.raises(ConfigError, match="did you mean 'half_lambert'"):
        render(mesh, cameras, shading="half-lambert")
    for bad in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="supersample must be a whole number from 1"):
            render(mesh, cameras, supersample=bad)  # type: ignore[arg-type]
    for background in ("white", (1, 2), torch.zeros(4), math.nan):
        with pytest.raises(InputError, match="background must be"):
            render(mesh, cameras, background=background)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown backend 'gsplat' for meshes"):
        render(mesh, cameras, backend="gsplat")
    with pytest.raises(InputError, match="takes a Mesh, Gaussians or a Field, got dict"):
        render({}, cameras)  # type: ignore[arg-type]
    vertices = SQUARE.clone()
    vertices[2] = math.nan
    with pytest.raises(InputError, match="1 of 4 vertices are not finite"):
        render(Mesh(vertices, SQUARE_FACES), cameras)
    uvs = torch.zeros(3, 2)
    with pytest.raises(InputError, match="face_uvs index uvs from 0 to 3, but there are 3 uvs"):
        render(square(texture=torch.zeros(2, 2, 3), uvs=uvs, face_uvs=SQUARE_FACES), cameras)
    with pytest.raises(InputError, match="uvs are not finite"):
        render(square(texture=torch.zeros(2, 2, 3), uvs=uvs / 0, face_uvs=SQUARE_FACES % 3), cameras)


def blob() -> Gaussians:
    """One round, nearly opaque, orange splat of 0.2 m in the middle."""
    return Gaussians(
        torch.zeros(1, 3),
        torch.full((1, 3), math.log(0.2)),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.tensor([6.0]),
        torch.tensor([[[1.0, 0.2, -1.5]]]),
    )


def test_gaussians_go_through_the_same_door() -> None:
    cameras = filling(33)
    frames = render(blob(), cameras, background=1.0, normals=True, backend="torch")
    assert frames.rgb.shape == (1, 3, 33, 33)
    assert float(frames.alpha[0, 0, 16, 16]) > 0.98 and float(frames.alpha[0, 0, 0, 0]) < 0.01
    torch.testing.assert_close(frames.depth[0, 0, 16, 16].item(), 2.0, atol=0.05, rtol=0)
    torch.testing.assert_close(frames.rgb[0, :, 0, 0], torch.ones(3), atol=0.01, rtol=0)
    with pytest.raises(InputError, match="carry their light"):
        render(blob(), cameras, shading="lambert")


def test_supersampled_gaussians_are_block_means() -> None:
    """A splat is smooth: the mean over a pixel is near its centre's value. Measured: rgb 0.005,
    alpha 0.008 apart.
    """
    once, twice = (render(blob(), filling(32), background=0.2, supersample=k, backend="torch") for k in (1, 2))
    torch.testing.assert_close(twice.alpha, once.alpha, atol=0.02, rtol=0)
    torch.testing.assert_close(twice.rgb, once.rgb, atol=0.02, rtol=0)
    seen = once.alpha > 0.1
    torch.testing.assert_close(twice.depth[seen], once.depth[seen], atol=0.02, rtol=0)


def test_importing_the_renderer_does_not_load_the_compiler() -> None:
    code = "import sys, rl3d.render, rl3d.render.render; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
