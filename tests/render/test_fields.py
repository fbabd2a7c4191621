"""Rendering fields: analytic pictures, twin and kernels, occupancy, chunks, edges, and learning from views."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render import Frames, OccupancyGrid, render, render_field, update_occupancy
from rl3d.render.fields import intersect_box, march
from rl3d.scenes import Dense, Field, Gaussians, HashGrid, Triplane
from rl3d.scenes.field import DENSITY_SCALE, DENSITY_SHIFT


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ring(views: int, size: int | tuple[int, int] = 16, distance: float = 2.7) -> Cameras:
    return Cameras.orbit(torch.arange(views) * 2.0 + 0.4, 0.3, distance, 0.47, size)


def fog(density: float, colour: tuple[float, float, float] = (0.9, 0.5, 0.2)) -> Field:
    """The same density, 1/m, and sRGB colour everywhere in the cube of radius 0.5."""
    grid = torch.zeros(4, 2, 2, 2)
    grid[0] = math.log(math.expm1(density / DENSITY_SCALE)) - DENSITY_SHIFT
    grid[1:] = torch.logit(torch.tensor(colour))[:, None, None, None]
    return Field.blob(Dense(grid), radius=0.5, bias_height=0.0)


def some_fields() -> list[Field]:
    g = generator()
    return [
        Field.blob(Dense(3 + torch.randn(4, 9, 9, 9, generator=g)), bias_height=4.0),
        Field.blob(Triplane.random(6, 12, spread=1.0, generator=g), hidden=(8,), sh_count=4, generator=g),
        Field.sphere(HashGrid.random(3, 3, 17, 2, 8, spread=1.0, generator=g), hidden=(8,), beta=0.05, generator=g),
    ]


def test_fog_dims_as_beer_and_lambert_say() -> None:
    camera = Cameras.orbit(0.0, 0.0, 2.0, 0.2, 1)  # one ray through the middle of the cube: 1 m of fog from z = 1.5
    frames = render_field(fog(2.0), camera, 0.3, occupancy=OccupancyGrid.full(fog(2.0)))
    alpha = 1 - math.exp(-2.0)
    assert abs(float(frames.alpha) - alpha) < 1e-5
    want = torch.tensor([0.9, 0.5, 0.2]) * alpha + 0.3 * (1 - alpha)
    torch.testing.assert_close(frames.rgb.flatten(), want, atol=1e-5, rtol=0)
    # Mean depth of what stops light before 1 m: 1.5 + 1/2 - e^-2 / (1 - e^-2); the midpoint rule is 1e-5 off.
    depth = 1.5 + 0.5 - math.exp(-2.0) / alpha
    assert abs(float(frames.depth) - depth) < 1e-4


def test_a_sphere_is_seen_where_it_is() -> None:
    field = Field.sphere(Dense.zeros(4, 3), bias_radius=0.4, beta=0.003)
    frames = render_field(field, Cameras.orbit(0.7, 0.3, 2.0, 0.5, 33), normals=True, samples=512)
    assert abs(float(frames.alpha[0, 0, 16, 16]) - 1) < 1e-3 and float(frames.alpha[0, 0, 0, 0]) < 1e-6
    # The surface of a density is soft: half a beta, and half a step of 4 mm.
    assert abs(float(frames.depth[0, 0, 16, 16]) - 1.6) < 5e-3
    assert frames.normal is not None
    towards = torch.nn.functional.normalize(Cameras.orbit(0.7, 0.3, 2.0).centres[0], dim=0)
    assert float(frames.normal[0, :, 16, 16] @ towards) > 0.999
    # Its disc: tan of the half angle asin(r / 2) over tan(0.25), squared, times pi / 4. Rays that graze a soft sphere
    # go a long way through its outer 3 beta, 0.01 m.
    low, high = ((math.tan(math.asin(r / 2)) / math.tan(0.25)) ** 2 * math.pi / 4 for r in (0.4, 0.415))
    assert low < float(frames.alpha.mean()) < high


@pytest.mark.parametrize("index", [0, 1, 2])
def test_kernels_equal_the_twin(index: int) -> None:
    field, cameras = some_fields()[index], ring(2, 12)
    cotangents = [torch.randn(2, c, 12, 12, generator=generator(c)) for c in (3, 1, 1)]

    def both(dtype: torch.dtype, backend: str) -> list[Tensor]:
        own, leaves = field.to(dtype=dtype).leaves()
        everywhere = OccupancyGrid.full(own, 4)
        f = render_field(own, cameras.to(dtype=dtype), 0.3, False, backend, occupancy=everywhere, samples=40)
        images = [f.rgb, f.alpha, f.depth]
        loss = torch.stack([(i * c.to(dtype)).sum() for i, c in zip(images, cotangents)]).sum()
        return [i.detach() for i in (*images, *torch.autograd.grad(loss, leaves))]

    # Float32 against float64, rays included: measured 5e-7 of the norm for images, 1.3e-5 for gradients.
    for place, (got, want) in enumerate(zip(both(torch.float32, "cpu"), both(torch.float64, "torch"))):
        assert float((got - want).norm() / want.norm()) < (5e-6 if place < 3 else 5e-5)


def test_normals_of_the_kernels_equal_the_twins() -> None:
    field = Field.sphere(Dense(0.004 * torch.randn(4, 9, 9, 9, generator=generator())), bias_radius=0.4)

    def both(backend: str) -> list[Tensor]:
        own, leaves = field.leaves()
        f = render_field(own, ring(2, 12), 0.0, True, backend, samples=40)
        assert f.normal is not None
        seen = f.normal * f.alpha  # where little is seen, the direction is not well defined
        (slope,) = torch.autograd.grad((seen * torch.linspace(-1, 1, 12)).sum(), leaves[:1])
        return [seen.detach(), slope]

    # Both in float32: normals jump at the cells' borders, so other rays give others. Measured 1e-7 and 7e-7; 5e-3 where
    # rounding drops a sample at the transmittance of 1e-4.
    for got, want in zip(both("cpu"), both("torch")):
        assert float(want.norm()) > 1 and float((got - want).norm() / want.norm()) < 1e-2


def test_gradients_by_finite_differences() -> None:
    field = some_fields()[0].to(dtype=torch.float64)
    cameras = ring(1, (3, 2)).to(dtype=torch.float64)
    grid = torch.nn.functional.avg_pool3d(field.parameters()["encoding.grid"][None], 4, 3)[0].requires_grad_()

    def image(values: Tensor) -> tuple[Tensor, ...]:
        f = render_field(field.with_parameters({"encoding.grid": values}), cameras, 0.2, True, samples=16)
        assert f.normal is not None
        return f.rgb, f.alpha, f.depth, f.normal

    assert torch.autograd.gradcheck(image, (grid,))


def test_empty_cells_change_little_and_pieces_change_nothing() -> None:
    for field in some_fields():
        cameras = ring(1, 12)
        whole = render_field(field, cameras, occupancy=OccupancyGrid.full(field))
        skipped = render_field(field, cameras, occupancy=update_occupancy(OccupancyGrid.full(field, 24), field))
        # Left out: cells under 0.5 / m, most of them at 0.02 / m for at most 2 m. Measured: 0.07 at most, 0.03 in mean.
        assert float((whole.alpha - skipped.alpha).abs().max()) < 0.1
        assert float((whole.alpha - skipped.alpha).abs().mean()) < 0.05
        own, leaves = field.leaves()

        def run(chunk: int, own: Field = own, leaves: list[Tensor] = leaves) -> list[Tensor | None]:
            f = render_field(own, ring(1, 12), chunk=chunk)
            gradients = torch.autograd.grad(f.rgb.square().sum() + f.depth.sum(), leaves, allow_unused=True)
            return [f.rgb, f.depth, *gradients]

        for a, b in zip(run(1 << 20), run(500)):
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, atol=1e-5 * (1 + float(a.detach().abs().max())), rtol=1e-4)


def test_stopping_early_changes_nothing() -> None:
    # 30 % a sample: closed after 26 samples of some 75, in the second round, which has 48.
    field = fog(0.3 * 75)
    own, leaves = field.leaves()
    frames = render_field(own, ring(1, 4), occupancy=OccupancyGrid.full(own), samples=128)
    assert float(frames.alpha.detach().max()) > 0.9999
    frames.rgb.sum().backward()
    assert all(bool(torch.isfinite(t.grad).all()) for t in leaves if t.grad is not None)


def test_jitter_is_the_generators_and_right_on_average() -> None:
    field, cameras = some_fields()[0], ring(1, 8)
    a, b = (render_field(field, cameras, samples=24, generator=generator(3)).rgb for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, render_field(field, cameras, samples=24, generator=generator(4)).rgb)
    assert torch.equal(render_field(field, cameras).rgb, render_field(field, cameras).rgb)
    fine = render_field(field, cameras, samples=400).rgb
    mean = torch.stack([render_field(field, cameras, samples=24, generator=generator(i)).rgb for i in range(40)]).mean(
        0
    )
    assert float((mean - fine).abs().mean()) < 0.002  # measured 8e-4; the middles of 24 bins are 3e-3 off


def test_rays_meet_the_box() -> None:
    box = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])
    origins = torch.tensor([[0.0, 0, 3], [0, 0, 0], [0, 5, 3], [1, 0, 3], [0, 0, 3]])
    directions = torch.tensor([[0.0, 0, -1], [1, 0, 0], [0, 0, -1], [0, 0, -1], [0, 0, 1]])
    near, far = intersect_box(origins, directions, box)
    # Through; from inside; past it; along a side; away from it.
    assert near.tolist()[:2] == [2, 0] and far.tolist()[:2] == [4, 1]
    assert (far - near).tolist()[2] == 0 and (far - near).tolist()[4] == 0 and bool(torch.isfinite(far).all())


def test_the_compiled_march_equals_its_twin() -> None:
    field = some_fields()[0]
    occupied = torch.rand(5, 7, 9, generator=generator()) > 0.6
    grid = OccupancyGrid(occupied.double(), occupied, field.box.double())
    origins, directions = (t.reshape(-1, 3) for t in ring(2, 20, 1.0).rays())
    got = march(origins, directions, OccupancyGrid(occupied.float(), occupied, field.box), generator=None)
    want = march(origins.double(), directions.double(), grid, generator=None)
    # The two differ where a distance in float32 or float64 falls on another side of a cell's border.
    assert abs(len(got.distances) - len(want.distances)) < 0.002 * len(want.distances) and len(want.distances) > 9000
    assert float((got.offsets.diff() - want.offsets.diff()).abs().max()) <= 2
    for samples in (got, want):
        first = samples.distances[samples.offsets[:-1][samples.offsets.diff() > 0]]
        assert int((samples.distances.diff() < 0).sum()) <= len(first)  # rising within each ray


def test_edges_are_defined() -> None:
    field = some_fields()[0]
    nothing = OccupancyGrid.full(field, 4)
    nothing = OccupancyGrid(nothing.density, torch.zeros_like(nothing.occupied), nothing.box)
    own, _ = field.leaves()
    frames = render_field(own, ring(2, 5), 0.25, True, occupancy=nothing)
    assert bool((frames.rgb == 0.25).all()) and float(frames.alpha.max()) == float(frames.depth.max()) == 0
    assert not frames.rgb.requires_grad  # nothing was asked
    inside = render_field(field, Cameras.orbit(0.0, 0.1, 0.2, 1.5, 6), normals=True)
    away = render_field(field, Cameras.orbit(0.0, 0.1, 9.0, 0.01, 1, target=(5.0, 0.0, 0.0)))
    single = render_field(field, ring(1, 1), samples=1)
    for f in (inside, single, away):
        assert bool(torch.isfinite(f.rgb).all()) and bool(torch.isfinite(f.depth).all())
    assert float(inside.alpha.max()) > 0.5 and float(away.alpha) == 0 and single.rgb.shape == (1, 3, 1, 1)
    empty = update_occupancy(
        OccupancyGrid.full(field, 4), field.with_parameters({"encoding.grid": torch.full((4, 2, 2, 2), -1e4)})
    )
    assert empty.share == 0


def test_cameras_get_the_gradient_of_a_small_step() -> None:
    # A sphere in the middle of the box, so that where rays enter matters little: the picture of a smooth colour ramp
    # slides as the camera moves. Central differences: measured 1.6 % off.
    grid = torch.zeros(4, 3, 3, 3)
    grid[1] = torch.linspace(-3, 3, 3)
    field = Field.sphere(Dense(grid), bias_radius=0.3, beta=0.03).to(dtype=torch.float64)
    cameras = ring(1, 6).to(dtype=torch.float64)
    step = torch.zeros_like(cameras.view)
    step[:, 0, 3] = 1.0

    def loss(amount: Tensor) -> Tensor:
        moved = Cameras(cameras.view + amount * step, cameras.intrinsics, 6, 6)
        everywhere = OccupancyGrid.full(field, 1)
        frames = render_field(field, moved, occupancy=everywhere, samples=400)
        return (frames.rgb * torch.linspace(0, 1, 6).to(frames.rgb)).sum()

    amount = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(amount), amount)
    with torch.no_grad():
        wanted = (loss(torch.tensor(0.01)) - loss(torch.tensor(-0.01))) / 0.02
    assert abs(float(slope / wanted) - 1) < 0.03, (slope, wanted)
    single = Cameras(ring(1, 4).view.requires_grad_(), ring(1, 4).intrinsics, 4, 4)
    assert render_field(some_fields()[0], single, samples=8).rgb.requires_grad


def test_boxes_need_not_be_cubes() -> None:
    box = torch.tensor([[-0.6, -0.2, -0.3], [0.5, 0.3, 0.4]])
    grid = fog(40.0).parameters()["encoding.grid"]
    field = Field(Dense(grid), box)
    frames = render_field(field, Cameras.orbit(0.0, 0.0, 3.0, 0.6, 60), samples=200)
    seen = (frames.alpha[0, 0] > 0.5).nonzero()
    # The front side, z = 0.4, at distance 2.6 with a focal length of 30 / tan 0.3: 1.1 m is 41.0 px, 0.5 m is 18.6 px.
    height, width = (seen.amax(0) - seen.amin(0) + 1).tolist()
    assert abs(width - 41) <= 1 and abs(height - 18.6) <= 1
    assert abs(float(frames.depth[0, 0, 28, 28]) - 2.625) < 0.01  # 1 / 40 m into the fog


def test_errors_are_one_line() -> None:
    field, cameras = some_fields()[0], ring(1, 4)
    broken = field.with_parameters({"encoding.grid": torch.full((4, 2, 2, 2), math.nan)})
    for make in (
        lambda: render(broken, cameras),
        lambda: render(field, cameras, shading="lambert"),
        lambda: render(field, cameras, backend="gsplat"),
        lambda: render_field(field, cameras, samples=0),
        lambda: render_field(field, cameras, chunk=0),
        lambda: render_field(field, cameras[[]]),
        lambda: render_field(field, Cameras(cameras.view * math.nan, cameras.intrinsics, 4, 4)),
        lambda: render_field(field.with_parameters({"encoding.grid": torch.zeros(4, 2, 2, 2).double()}), cameras),
        lambda: render_field(field.to(dtype=torch.float64), cameras, backend="cpu"),
        lambda: OccupancyGrid.full(field, 0),
    ):
        with pytest.raises(InputError) as error:
            make()
        assert "\n" not in str(error.value)


def test_render_takes_fields() -> None:
    field, cameras = some_fields()[0], ring(2, 6)
    plain = render(field, cameras, background=(0.1, 0.2, 0.3), normals=True)
    assert plain.rgb.shape == (2, 3, 6, 6) and plain.normal is not None and plain.normal.shape == (2, 3, 6, 6)
    fine = render(field, cameras, background=(0.1, 0.2, 0.3), supersample=3)
    assert fine.rgb.shape == plain.rgb.shape and float((fine.rgb - plain.rgb).abs().mean()) < 0.05


def target_views(size: int = 24) -> tuple[Cameras, Frames]:
    """Twelve views of a few coloured splats."""
    g = generator(5)
    means = torch.randn(24, 3, generator=g) * 0.15
    scene = Gaussians(
        means,
        torch.full((24, 3), math.log(0.07)),
        torch.tensor([1.0, 0, 0, 0]).expand(24, 4),
        torch.full((24,), 2.0),
        torch.randn(24, 1, 3, generator=g),
    )
    azimuth, height = torch.arange(12) * 2.4, torch.tensor([-0.3, 0.3, 0.9])[torch.arange(12) % 3]
    cameras = Cameras.orbit(azimuth, height, 2.7, 0.47, size)
    return cameras, render(scene, cameras)


def test_a_field_learns_a_scene_from_its_views() -> None:
    cameras, target = target_views()
    field, leaves = Field.blob(Dense.zeros(4, 16), bias_height=10.0, bias_radius=0.3).leaves()
    optimizer = torch.optim.Adam(leaves, lr=0.4, betas=(0.9, 0.99))
    occupancy, g = OccupancyGrid.full(field, 16), generator()
    for step in range(40):
        if step % 10 == 9:
            occupancy = update_occupancy(occupancy, field, g)
        pick = torch.randperm(11, generator=g)[:3]  # the last view is held out
        seen = render_field(field, cameras[pick], occupancy=occupancy, samples=40, generator=g)
        loss = (seen.rgb - target.rgb[pick]).square().mean() + (seen.alpha - target.alpha[pick]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def psnr(views: list[int]) -> float:
        frames = render_field(field.detach(), cameras[views], samples=40)
        return -10 * math.log10(float((frames.rgb - target.rgb[views]).square().mean()))

    # Measured 32.5 and 31.8 dB; the start has 17.5.
    assert psnr(list(range(11))) > 29
    assert psnr([11]) > 27
