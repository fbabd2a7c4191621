"""Options of the mesh renderer: culling, environment light, mip-mapped textures, and batches of meshes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.colour import linear_to_srgb, srgb_to_linear
from rl3d.errors import ConfigError, InputError
from rl3d.render import (
    MeshOptions,
    constant_environment,
    environment_factor,
    interpolate,
    mip_levels,
    mip_pyramid,
    project_environment,
    rasterize,
    render,
    render_batch,
    sample_texture,
)
from rl3d.scenes.gaussians import Gaussians
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.texture import DEFAULT_GREY

BACKENDS = ("cpu", "torch")
SQUARE = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])  # in the plane z = 0, front to +Z
QUAD = torch.tensor([[0, 1, 2], [0, 2, 3]])
UVS = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]])
CUBE_CORNERS = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
CUBE_QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
CUBE_FACES = torch.tensor([f for a, b, c, d in CUBE_QUADS for f in ((a, b, c), (a, c, d))])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def filling(size: int = 4, azimuth: float = 0.0) -> Cameras:
    """A camera on +Z at distance 2 whose image a side of SQUARE fills exactly."""
    return Cameras.orbit(azimuth, 0.0, 2.0, 2 * math.atan(0.5), size)


# Back faces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_culling_leaves_out_faces_seen_from_behind(backend: str) -> None:
    cameras = Cameras.cat([filling(8), filling(8, math.pi)])
    alpha = render(Mesh(SQUARE, QUAD), cameras, cull_backfaces=True, backend=backend).alpha
    assert alpha.flatten(1).amin(1).tolist() == [1, 0] and alpha.flatten(1).amax(1).tolist() == [1, 0]
    turned = render(Mesh(SQUARE, QUAD.flip(1)), cameras, cull_backfaces=True, backend=backend).alpha
    assert turned.flatten(1).amin(1).tolist() == [0, 1]
    # From inside, a closed cube is all back faces, also those that the near plane cuts.
    inside = Cameras.orbit(torch.tensor([0.3, 2.0]), 0.2, 0.2, 1.2, 9)
    assert float(render(Mesh(CUBE_CORNERS, CUBE_FACES), inside, cull_backfaces=True, backend=backend).alpha.max()) == 0
    flipped = Mesh(CUBE_CORNERS, CUBE_FACES.flip(1))
    assert float(render(flipped, inside, cull_backfaces=True, backend=backend).alpha.min()) == 1


def test_culling_does_not_change_a_closed_mesh_seen_from_outside() -> None:
    cameras = Cameras.orbit(torch.tensor([0.3, 2.0]), 0.4, 2.5, 0.7, 24)
    mesh = Mesh(CUBE_CORNERS, CUBE_FACES, face_colours=random(12, 3))
    for options in ({}, {"shading": "lambert", "supersample": 2}):
        a, b = (render(mesh, cameras, cull_backfaces=cull, **options) for cull in (False, True))
        assert torch.equal(a.rgb, b.rgb) and torch.equal(a.alpha, b.alpha)


# Environment ----------------------------------------------------------------------------------------------------------


def test_an_environment_that_is_linear_in_the_direction_by_hand() -> None:
    """L = 1 + a.d: degree 0 keeps its weight, degree 1 is multiplied by 2/3, so the factor is 1 + 2/3 a.n. Measured:
    1.4e-4 apart, the projection's rows of pixels.
    """
    a = torch.tensor([0.3, -0.5, 0.4], dtype=torch.float64)
    height, width = 64, 128
    polar = (torch.arange(height, dtype=torch.float64)[:, None] + 0.5) * math.pi / height
    azimuth = (torch.arange(width, dtype=torch.float64)[None] + 0.5) * 2 * math.pi / width - math.pi
    x, y, z = polar.sin() * azimuth.sin(), polar.cos().expand(height, width), polar.sin() * azimuth.cos()
    image = (1 + a[0] * x + a[1] * y + a[2] * z)[..., None].expand(-1, -1, 3)
    normals = torch.nn.functional.normalize(random(20, 3, dtype=torch.float64) - 0.5, dim=1)
    got = environment_factor(normals, project_environment(image))
    torch.testing.assert_close(got, (1 + 2 / 3 * (normals @ a))[:, None].expand(-1, 3), atol=3e-4, rtol=0)


def test_nine_coefficients_hold_the_light_of_any_environment() -> None:
    """Against the integral of max(0, n.d) L / pi over a picture of 8 x 16 random patches. Measured: 3.9% of the mean at
    most, 1.2% on average (the paper: 9% and about 1%).
    """
    patches = random(8, 16, 3, seed=3, dtype=torch.float64) ** 3
    image = patches.repeat_interleave(8, 0).repeat_interleave(8, 1)
    height, width = 64, 128
    polar = (torch.arange(height, dtype=torch.float64)[:, None] + 0.5) * math.pi / height
    azimuth = (torch.arange(width, dtype=torch.float64)[None] + 0.5) * 2 * math.pi / width - math.pi
    x, y, z = polar.sin() * azimuth.sin(), polar.cos().expand(height, width), polar.sin() * azimuth.cos()
    directions = torch.stack([x, y, z], -1)
    area = polar.sin() * (math.pi / height) * (2 * math.pi / width)
    normals = torch.nn.functional.normalize(random(30, 3, seed=1, dtype=torch.float64) - 0.5, dim=1)
    cosine = torch.einsum("nk,hwk->nhw", normals, directions).clamp_min(0)
    exact = torch.einsum("nhw,hwc->nc", cosine * area / math.pi, image)
    got = environment_factor(normals, project_environment(image))
    error = (got - exact).abs() / exact.mean()
    assert float(error.max()) < 0.06 and float(error.mean()) < 0.02


def test_the_picture_lies_round_the_world_as_it_says() -> None:
    """The middle column is +Z, a quarter to its right +X, the top +Y."""
    image = torch.zeros(3, 8, 16, 3)
    image[0, 3:5, 7:9] = image[1, 3:5, 11:13] = image[2, 0] = 10.0
    axes = torch.eye(3)
    for picture, axis in zip(image, (2, 0, 1)):
        factor = environment_factor(torch.cat([axes, -axes]), project_environment(picture))[:, 0]
        assert int(factor.argmax()) == axis and float(factor[axis]) > 10 * float(factor[axis + 3])


def test_gradcheck_of_the_environment() -> None:
    normals = torch.nn.functional.normalize(random(6, 3, dtype=torch.float64) - 0.5, dim=1).requires_grad_()
    image = random(4, 8, 3, dtype=torch.float64).requires_grad_()
    coefficients = project_environment(image).detach().requires_grad_()
    assert torch.autograd.gradcheck(environment_factor, (normals, coefficients))
    assert torch.autograd.gradcheck(project_environment, image)


@pytest.mark.parametrize("source", ["face", "vertex"])
def test_rendering_in_an_environment(source: str) -> None:
    """White light from everywhere shows the albedo; a coloured one multiplies it in linear light; smooth is smooth."""
    count = len(CUBE_FACES) if source == "face" else len(CUBE_CORNERS)
    mesh = Mesh(CUBE_CORNERS, CUBE_FACES, **{f"{source}_colours": random(count, 3)})
    cameras = Cameras.orbit(torch.tensor([0.3]), 0.4, 2.5, 0.7, 16)
    plain = render(mesh, cameras, antialias=False).rgb
    white = render(mesh, cameras, antialias=False, environment=constant_environment()).rgb
    torch.testing.assert_close(white, plain, atol=2e-6, rtol=0)
    tint = torch.tensor([0.5, 1.0, 0.25])
    tinted = render(mesh, cameras, antialias=False, environment=constant_environment(tint)).rgb
    expected = linear_to_srgb(srgb_to_linear(plain) * tint[:, None, None])
    torch.testing.assert_close(tinted, expected, atol=2e-6, rtol=0)
    light = project_environment(random(4, 8, 3, seed=2)).requires_grad_()
    flat, smooth = (render(mesh, cameras, environment=light, smooth=s).rgb for s in (False, True))
    assert float((flat - smooth).detach().abs().max()) > 0.01
    (gradient,) = torch.autograd.grad(flat.sum() + smooth.sum(), light)
    assert bool(gradient.abs().gt(0).all())


def test_unusable_lights_are_errors() -> None:
    mesh, cameras, light = Mesh(SQUARE, QUAD), filling(), constant_environment()
    with pytest.raises(InputError, match=r"must be \[9, 3\] finite coefficients .* got \[3, 9\]"):
        render(mesh, cameras, environment=light.T)
    with pytest.raises(InputError, match="finite coefficients"):
        render(mesh, cameras, environment=light / 0)
    with pytest.raises(InputError, match="an environment or shading 'lambert', not both"):
        render(mesh, cameras, environment=light, shading="lambert")
    with pytest.raises(InputError, match=r"\[H, W, 3\], linear RGB, got \[3, 4, 4\]"):
        project_environment(torch.zeros(3, 4, 4))
    splat = Gaussians(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 4), torch.zeros(1), torch.zeros(1, 1, 3))
    with pytest.raises(InputError, match="got an environment"):
        render(splat, cameras, environment=light)


# Mip maps -------------------------------------------------------------------------------------------------------------


def test_a_pyramid_by_hand() -> None:
    """[[0, 1], [2, 4]] beside [[4, 4], [4, 4]]: means 7/4 and 4, then 23/8. Odd sides end in 1 x 1 too."""
    texture = torch.tensor([[0.0, 1, 4, 4], [2, 4, 4, 4]])[..., None]
    pyramid = mip_pyramid(texture)
    assert [t.squeeze(-1).tolist() for t in pyramid[1:]] == [[[1.75, 4.0]], [[2.875]]]
    assert [tuple(t.shape) for t in mip_pyramid(torch.zeros(5, 3, 2))] == [(5, 3, 2), (2, 1, 2), (1, 1, 2)]
    assert len(mip_pyramid(torch.zeros(1, 1, 3))) == 1


def test_whole_levels_are_bilinear_and_halves_are_between() -> None:
    texture, uv = random(8, 4, 3), random(50, 2, seed=1) * 1.4 - 0.2
    pyramid = mip_pyramid(texture)
    for wrap in ("clamp", "repeat"):
        whole = [sample_texture(t, uv, wrap) for t in pyramid]
        for i, expected in enumerate(whole):
            got = sample_texture(texture, uv, wrap, torch.full((50,), float(i)))
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
        half = sample_texture(texture, uv, wrap, torch.full((50,), 1.5))
        torch.testing.assert_close(half, 0.5 * (whole[1] + whole[2]), atol=1e-6, rtol=0)
        beyond = sample_texture(texture, uv, wrap, torch.full((50,), 99.0))
        torch.testing.assert_close(beyond, whole[-1], atol=1e-6, rtol=0)
    one = sample_texture(texture[:1, :1], uv, level=torch.zeros(50))
    torch.testing.assert_close(one, texture[0, 0].expand(50, 3))
    with pytest.raises(InputError, match="one number a look-up"):
        sample_texture(texture, uv, level=torch.zeros(49))


def test_gradcheck_of_trilinear_sampling() -> None:
    texture = random(5, 4, 2, dtype=torch.float64).requires_grad_()
    uv = (random(9, 2, seed=1, dtype=torch.float64) * 1.4 - 0.2).requires_grad_()
    level = (2.4 * random(9, seed=2, dtype=torch.float64)).requires_grad_()
    for wrap in ("clamp", "repeat"):
        assert torch.autograd.gradcheck(lambda t, c, m, w=wrap: sample_texture(t, c, w, m), (texture, uv, level))


def test_levels_are_the_footprints_of_pixels() -> None:
    """The change of uv per pixel against finite differences: the principal point moved by 0.001 px. Measured on a
    tilted square: 3e-8 levels apart. From the front, 64 texels on 8 pixels are level 3 exactly.
    """
    mesh = Mesh(SQUARE, QUAD)
    size = (64, 32)
    front = filling(8)
    level = mip_levels(SQUARE, QUAD, front, rasterize(SQUARE, QUAD, front), UVS, QUAD, size)
    torch.testing.assert_close(level, torch.full((1, 8, 8), 3.0), atol=1e-5, rtol=0)
    tilted = Cameras.orbit(torch.tensor([0.9], dtype=torch.float64), 0.5, 3.0, 0.9, 12)
    vertices, uvs = mesh.vertices.double(), UVS.double()

    def uv_at(dx: float, dy: float) -> tuple[Tensor, Tensor]:
        k = tilted.intrinsics.clone()
        k[:, 0, 2] -= dx
        k[:, 1, 2] -= dy
        fragments = rasterize(vertices, QUAD, Cameras(tilted.view, k, 12, 12))
        return interpolate((uvs, QUAD), fragments) * torch.tensor(size).flip(0), fragments.face_id

    step = 1e-3
    _, ids = uv_at(0, 0)
    right, below = ((uv_at(*s)[0] - uv_at(*(-t for t in s))[0]) / (2 * step) for s in ((step, 0.0), (0.0, step)))
    expected = torch.maximum(right.norm(dim=-1), below.norm(dim=-1)).log2().clamp_min(0)
    got = mip_levels(vertices, QUAD, tilted, rasterize(vertices, QUAD, tilted), uvs, QUAD, size)
    inner = ids >= 0
    for dx, dy in ((step, 0.0), (-step, 0.0), (0.0, step), (0.0, -step)):
        inner &= uv_at(dx, dy)[1] >= 0
    assert int(inner.sum()) > 20 and float(got[inner].max() - got[inner].min()) > 0.5
    torch.testing.assert_close(got[inner], expected[inner], atol=1e-4, rtol=0)
    assert bool((got[ids < 0] == 0).all())


@pytest.mark.parametrize("supersample", [1, 2])
def test_a_checkerboard_far_away_is_grey(supersample: int) -> None:
    """64 x 64 black and white texels on 5 x 5 pixels; the gradient spreads over all texels."""
    board = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2)[..., None].expand(64, 64, 3).float()
    board = board.clone().requires_grad_()
    mesh = Mesh(SQUARE, QUAD, texture=board, uvs=UVS, face_uvs=QUAD)
    aliased, smooth = (render(mesh, filling(5), mipmaps=m, supersample=supersample).rgb for m in (False, True))
    torch.testing.assert_close(smooth, torch.full_like(smooth, 0.5), atol=1e-5, rtol=0)
    assert float((aliased - 0.5).detach().abs().max()) > 0.1
    for picture, share in ((aliased, 0.2), (smooth, 1.0)):
        (gradient,) = torch.autograd.grad(picture.sum(), board)
        reached = float((gradient != 0).float().mean())
        assert reached == 1 if share == 1 else reached < share


# Batches --------------------------------------------------------------------------------------------------------------


def crowd(grad: bool = False) -> list[Mesh]:
    """Meshes of different sizes and sources of colour, some in the same place."""
    texture = random(4, 4, 3)
    meshes = [
        Mesh(CUBE_CORNERS.clone(), CUBE_FACES, vertex_colours=random(8, 3)),
        Mesh(0.7 * SQUARE, QUAD, texture=texture, uvs=UVS, face_uvs=QUAD),
        Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)),
        Mesh(CUBE_CORNERS + 0.1, CUBE_FACES, face_colours=random(12, 3, seed=1)),
        Mesh(CUBE_CORNERS.clone(), CUBE_FACES[:7]),
    ]
    return [replace(m, vertices=m.vertices.requires_grad_()) for m in meshes] if grad else meshes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", ["mixed", "vertex colours", "face colours"])
def test_a_batch_is_what_single_calls_give(backend: str, which: str) -> None:
    """Pictures and gradients, with one set of cameras for all and with one for each."""
    meshes = crowd(grad=True)
    if which != "mixed":
        name = which.replace(" ", "_")
        rows = {"vertex_colours": "vertices", "face_colours": "faces"}[name]
        meshes = [Mesh(m.vertices, m.faces, **{name: random(len(getattr(m, rows)), 3)}) for m in meshes]
    shared = Cameras.orbit(torch.tensor([0.3, 2.0]), torch.tensor([0.4, -0.3]), 2.5, 0.7, 16)
    own = [Cameras.orbit(torch.tensor([0.3 + b]), 0.2, 2.5, 0.7, 16) for b in range(len(meshes))]
    options = MeshOptions(shading="half_lambert", normals=True, backend=backend, supersample=2, mipmaps=True)
    for cameras, each in ((shared, [shared] * len(meshes)), (own, own)):
        batch = render_batch(meshes, cameras, background=0.3, options=options)
        assert batch.rgb.shape == (len(meshes), len(each[0]), 3, 16, 16) and batch.normal is not None
        weights = random(*batch.rgb.shape, seed=9)
        loss = (batch.rgb * weights).sum() + batch.depth.sum()
        together = torch.autograd.grad(loss, [m.vertices for m in meshes])
        for b, mesh in enumerate(meshes):
            one = render(
                mesh,
                each[b],
                background=0.3,
                shading="half_lambert",
                normals=True,
                supersample=2,
                backend=backend,
                mipmaps=True,
            )
            assert one.normal is not None
            for name in ("rgb", "alpha", "depth", "normal"):
                torch.testing.assert_close(getattr(batch, name)[b], getattr(one, name), atol=1e-6, rtol=0)
            if len(mesh.faces):
                (alone,) = torch.autograd.grad((one.rgb * weights[b]).sum() + one.depth.sum(), mesh.vertices)
                torch.testing.assert_close(together[b], alone, atol=1e-3, rtol=1e-5)


def test_a_batch_of_vertices_over_shared_faces() -> None:
    sizes = torch.linspace(0.5, 1.5, 4)
    vertices = (sizes[:, None, None] * CUBE_CORNERS).requires_grad_()
    base = Mesh(CUBE_CORNERS, CUBE_FACES)
    frames = render_batch([replace(base, vertices=v) for v in vertices], Cameras.orbit(0.4, 0.3, 3.0, 0.7, 32))
    covered = frames.alpha.sum((1, 2, 3, 4))
    assert bool((covered[1:] > 1.2 * covered[:-1]).all())
    assert frames.rgb.shape == (4, 1, 3, 32, 32)
    (gradient,) = torch.autograd.grad(covered.sum(), vertices)
    assert bool((gradient * CUBE_CORNERS).sum((1, 2)).gt(0).all())  # larger covers more
    assert float((frames.rgb / frames.alpha.clamp_min(1e-6)).detach().max()) == pytest.approx(DEFAULT_GREY, abs=1e-5)


def test_batches_that_do_not_fit_are_errors() -> None:
    meshes, cameras = crowd(), filling()
    with pytest.raises(InputError, match="one device and dtype, got none"):
        render_batch([], cameras)
    with pytest.raises(InputError, match=r"got torch\.float32 on cpu, torch\.float64 on cpu"):
        render_batch([meshes[0], Mesh(SQUARE.double(), QUAD)], cameras)
    with pytest.raises(InputError, match=r"got 5 meshes and 2 Cameras of lengths \[1\]"):
        render_batch(meshes, [cameras, cameras])
    with pytest.raises(ConfigError, match="shading must be one of"):
        render_batch(meshes, cameras, options=MeshOptions(shading="phong"))
    with pytest.raises(InputError, match="supersample must be"):
        render_batch(meshes, cameras, options=MeshOptions(supersample=0))
    with pytest.raises(InputError, match="from 1 to 4, but there are 4 vertices"):
        render_batch([Mesh(SQUARE, QUAD + 1), meshes[0]], cameras)
    broken = Mesh(SQUARE * math.nan, QUAD)
    with pytest.raises(InputError, match="4 of 28 vertices are not finite"):
        render_batch([meshes[0], broken, meshes[3], meshes[4]], cameras)
