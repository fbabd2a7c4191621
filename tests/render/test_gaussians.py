"""The compiled splatting kernels against their twin, and the behaviour at the edges."""

from __future__ import annotations

import math
import sys
import types
from dataclasses import replace

import numba
import pytest
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render.gaussians import render_gaussians, splat
from rl3d.scenes import Gaussians

Scene = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def random_scene(n: int, scale: float, seed: int, channels: int = 3, opaque: bool = False) -> Scene:
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    return (
        uniform(-0.5, 0.5, n, 3),
        scale * uniform(0.3, 1.3, n, 3),
        torch.randn(n, 4, generator=generator),
        torch.ones(n) if opaque else uniform(0.02, 0.97, n),
        uniform(0, 1, n, channels),
    )


def ring(views: int, size: int | tuple[int, int], fov: float = 0.47, distance: float = 2.7) -> Cameras:
    return Cameras.orbit(torch.arange(views) * 2.0 + 0.4, 0.3, distance, fov, size)


def compare(scene: Scene, cameras: Cameras, seed: int, image_bound: float, gradient_bound: float) -> None:
    """Images and vector-Jacobian products of the kernels against the twin in float64."""
    generator = torch.Generator().manual_seed(seed)
    size = (cameras.height, cameras.width)
    leaves = [t.detach().requires_grad_() for t in scene]
    images = splat(*leaves, cameras.view, cameras.intrinsics, *size, 0.3)
    cotangents = [torch.randn(i.shape, generator=generator) for i in images]
    gradients = torch.autograd.grad(images, leaves, cotangents)
    oracle = [t.detach().double().requires_grad_() for t in scene]
    expected = splat(*oracle, cameras.view.double(), cameras.intrinsics.double(), *size, 0.3, "torch")
    wanted = torch.autograd.grad(expected, oracle, [c.double() for c in cotangents])
    assert expected[1].max() > 0.1, "the scene is not seen"
    for name, a, b in zip(("rgb", "alpha", "depth"), images, expected):
        assert (a - b).abs().max() < image_bound, name
    for name, a, b in zip(("means", "scales", "quaternions", "opacities", "colours"), gradients, wanted):
        assert (a - b).norm() < gradient_bound * b.norm() + 1e-6, (name, float((a - b).norm() / b.norm()))


# Bounds: over 25 seeds of these scenes the worst image differed by 3e-6 (depth, metres) and the worst gradient by 2e-5
# of its norm (float32 against float64).
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("n", "views", "size", "scale", "fov", "distance"),
    [
        (12, 2, 24, 0.15, 0.47, 2.7),
        (60, 3, (21, 33), 0.10, 0.30, 2.7),  # a narrow view: many splats partly outside
        (150, 2, (33, 17), 0.06, 1.20, 0.5),  # the camera among the splats: some behind it, some huge
        (300, 1, 24, 0.30, 0.47, 2.7),  # deep stacks: pixels close early
    ],
)
def test_kernels_equal_the_twin(
    n: int, views: int, size: int | tuple[int, int], scale: float, fov: float, distance: float, seed: int
) -> None:
    compare(random_scene(n, scale, seed), ring(views, size, fov, distance), seed, 1e-5, 2e-4)


def test_kernels_equal_the_twin_for_fully_opaque_splats() -> None:
    # Every centre is beyond the alpha clamp, where no gradient passes.
    compare(random_scene(200, 0.1, 5, opaque=True), ring(2, 32), 5, 1e-5, 2e-4)


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_kernels_equal_the_twin_for_any_number_of_channels(channels: int) -> None:
    compare(random_scene(40, 0.1, 1, channels), ring(2, (19, 26)), 1, 1e-5, 2e-4)


def test_kernels_equal_the_twin_for_colours_of_each_view() -> None:
    means, scales, quaternions, opacities, _ = random_scene(40, 0.1, 2)
    colours = torch.rand(3, 40, 3, generator=torch.Generator().manual_seed(0))
    compare((means, scales, quaternions, opacities, colours), ring(3, 20), 2, 1e-5, 2e-4)


def test_kernels_equal_the_twin_off_centre() -> None:
    cameras = ring(1, (24, 20))
    intrinsics = cameras.intrinsics.clone()
    intrinsics[0] = torch.tensor([[60.0, 0.0, 3.0], [0.0, 30.0, 18.0], [0.0, 0.0, 1.0]])
    compare(random_scene(60, 0.1, 3), replace(cameras, intrinsics=intrinsics), 3, 1e-5, 2e-4)


def test_needles_and_dust_equal_the_twin() -> None:
    # Axes from 1e-6 to 1: the 2D covariances are as ill-conditioned as they come. Measured: 1e-5 and 1e-4.
    means, scales, quaternions, opacities, colours = random_scene(30, 0.1, 4)
    scales = scales * torch.tensor([1e-5, 1.0, 5.0])[torch.arange(90).reshape(30, 3) % 3]
    compare((means, scales, quaternions, opacities * 0.3, colours), ring(2, 40), 4, 1e-4, 2e-3)


def test_a_small_step_changes_the_loss_as_the_gradient_says() -> None:
    # Kernel against itself, no twin: central differences along the gradient. The loss is smooth but for the 1/255
    # contour, hence 2 %; measured 0.2 %.
    cameras = ring(2, 32)
    scene = random_scene(30, 0.12, 6)

    def loss(leaves: list[Tensor]) -> Tensor:
        rgb, alpha, depth = splat(*leaves, cameras.view, cameras.intrinsics, 32, 32)  # type: ignore[misc]
        return (rgb**2).double().sum() + alpha.double().sum() + 0.1 * (depth * alpha).double().sum()

    for k in range(5):
        leaves = [t.clone().requires_grad_(i == k) for i, t in enumerate(scene)]
        (gradient,) = torch.autograd.grad(loss(leaves), leaves[k])
        step = 2e-3 * gradient / gradient.norm()
        with torch.no_grad():
            ahead = loss([t + step if i == k else t for i, t in enumerate(scene)])
            back = loss([t - step if i == k else t for i, t in enumerate(scene)])
        expected = 2 * 2e-3 * gradient.norm()
        assert abs(float((ahead - back) / expected) - 1) < 0.02, k


def test_results_are_bitwise_equal_twice_and_on_one_thread() -> None:
    cameras = ring(2, (50, 40))

    def run() -> list[Tensor]:
        leaves = [t.requires_grad_() for t in random_scene(500, 0.06, 7)]
        images = splat(*leaves, cameras.view, cameras.intrinsics, 50, 40)  # type: ignore[misc]
        gradients = torch.autograd.grad(sum((i**2).sum() for i in images), leaves)
        return [*images, *gradients]

    first, second = run(), run()
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        third = run()
    finally:
        numba.set_num_threads(threads)
    for a, b, c in zip(first, second, third):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_no_gaussians_show_the_background(backend: str) -> None:
    cameras = ring(2, (6, 9))
    leaves = [t.requires_grad_() for t in random_scene(0, 0.1, 0)]
    background = torch.tensor([0.1, 0.2, 0.3])
    rgb, alpha, depth = splat(*leaves, cameras.view, cameras.intrinsics, 6, 9, background, backend)  # type: ignore[misc]
    assert torch.equal(rgb, background[:, None, None].expand(2, 3, 6, 9))
    assert not alpha.any() and not depth.any()
    if rgb.requires_grad:
        (rgb.sum() + alpha.sum() + depth.sum()).backward()
        assert leaves[0].grad is not None and leaves[0].grad.shape == (0, 3)


def test_one_gaussian_on_one_pixel() -> None:
    cameras = Cameras.orbit(torch.zeros(1), 0.0, 2.0, 0.5, 1)
    scene = (torch.zeros(1, 3), torch.full((1, 3), 0.5), torch.tensor([[2.0, 0, 0, 0]]), torch.full((1,), 0.6),
             torch.tensor([[1.0, 0.5, 0.25]]))  # fmt: skip
    rgb, alpha, depth = splat(*scene, cameras.view, cameras.intrinsics, 1, 1)
    torch.testing.assert_close(rgb.flatten(), torch.tensor([0.6, 0.3, 0.15]))
    torch.testing.assert_close(alpha.flatten(), torch.tensor([0.6]))
    torch.testing.assert_close(depth.flatten(), torch.tensor([2.0]))


def test_the_nearer_splat_hides_the_farther_one_from_both_sides() -> None:
    cameras = Cameras.orbit(torch.tensor([0.0, math.pi]), 0.0, 2.0, 0.5, 9)
    means = torch.tensor([[0, 0, 0.3], [0, 0, -0.3]])
    scene = (means, torch.full((2, 3), 0.1), torch.tensor([[1.0, 0, 0, 0]]).expand(2, 4), torch.full((2,), 0.9),
             torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))  # fmt: skip
    rgb, _, depth = splat(*scene, cameras.view, cameras.intrinsics, 9, 9)
    torch.testing.assert_close(rgb[:, :, 4, 4], torch.tensor([[0.9, 0.09, 0], [0.09, 0.9, 0]]))
    torch.testing.assert_close(depth[:, 0, 4, 4], torch.full((2,), (0.9 * 1.7 + 0.09 * 2.3) / 0.99))


def test_behind_the_camera_and_inside_a_gaussian() -> None:
    cameras = Cameras.orbit(torch.zeros(1), 0.0, 2.0, 0.7, 16)
    means = torch.tensor([[0, 0, 5.0], [0, 0, 2.0], [0, 0, 1.98], [0, 0, 1.9]])  # behind, at, just before, before
    leaves = [means, torch.tensor([[0.5, 0.4, 0.3]]).expand(4, 3), torch.tensor([[1.0, 0.2, 0, 0]]).expand(4, 4),
              torch.full((4,), 0.5), torch.eye(4)[:, :3]]  # fmt: skip
    leaves = [t.clone().requires_grad_() for t in leaves]
    images = splat(*leaves, cameras.view, cameras.intrinsics, 16, 16)  # type: ignore[misc]
    gradients = torch.autograd.grad(sum(i.sum() for i in images), leaves)
    assert all(i.isfinite().all() for i in images) and all(g.isfinite().all() for g in gradients)
    assert not gradients[4][:2].any() and gradients[4][2:].any(1).all()  # the first two are culled
    assert not images[0][0, 0].any()


def test_absurd_magnitudes_do_not_crash() -> None:
    cameras = ring(1, 16)
    means, scales, quaternions, opacities, colours = random_scene(6, 0.1, 0)
    means = means * torch.tensor([1.0, 1e3, 1e10, 1e20, 1e38, 1.0])[:, None]
    scales = scales * torch.tensor([1e30, 1e10, 1e10, 1e20, 1.0, 0.0])[:, None]
    leaves = [t.clone().requires_grad_() for t in (means, scales, quaternions * 1e-10, opacities, colours)]
    images = splat(*leaves, cameras.view, cameras.intrinsics, 16, 16)  # type: ignore[misc]
    gradients = torch.autograd.grad(sum(i.sum() for i in images), leaves)
    assert all(i.isfinite().all() for i in images) and all(g.isfinite().all() for g in gradients)


def test_the_background_is_composited_and_differentiable() -> None:
    cameras = ring(2, 12)
    scene = random_scene(20, 0.1, 8)
    black, alpha, _ = splat(*scene, cameras.view, cameras.intrinsics, 12, 12)
    background = torch.tensor([0.2, 0.5, 0.9], requires_grad=True)
    rgb, _, _ = splat(*scene, cameras.view, cameras.intrinsics, 12, 12, background)
    torch.testing.assert_close(rgb, black + (1 - alpha) * background[:, None, None])
    (gradient,) = torch.autograd.grad(rgb.sum(), background)
    torch.testing.assert_close(gradient, (1 - alpha).sum().expand(3))


@pytest.mark.parametrize("name", ["means", "scales", "quaternions", "opacities", "colours"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_named(name: str, bad: float) -> None:
    cameras = ring(1, 8)
    names = ["means", "scales", "quaternions", "opacities", "colours"]
    scene = list(random_scene(5, 0.1, 0))
    scene[names.index(name)].view(-1)[3] = bad
    with pytest.raises(InputError, match=name):
        splat(*scene, cameras.view, cameras.intrinsics, 8, 8)  # type: ignore[misc]


def test_other_bad_inputs() -> None:
    cameras = ring(1, 8)
    scene = random_scene(5, 0.1, 0)
    means, scales, quaternions, opacities, colours = scene
    view, intrinsics = cameras.view, cameras.intrinsics
    with pytest.raises(InputError, match="backend 'fast'"):
        splat(*scene, view, intrinsics, 8, 8, backend="fast")
    with pytest.raises(InputError, match="opacities must lie"):
        splat(means, scales, quaternions, opacities * 4, colours, view, intrinsics, 8, 8)
    with pytest.raises(InputError, match="quaternion"):
        splat(means, scales, quaternions * 0, opacities, colours, view, intrinsics, 8, 8)
    with pytest.raises(InputError, match=r"colours must be \[5, 3\]"):
        splat(means, scales, quaternions, opacities, colours[:4], view, intrinsics, 8, 8)
    with pytest.raises(InputError, match="float64"):
        splat(means.double(), scales, quaternions, opacities, colours, view, intrinsics, 8, 8)
    with pytest.raises(InputError, match="float32"):
        splat(*(t.double() for t in (*scene, view, intrinsics)), 8, 8, backend="cpu")  # type: ignore[arg-type,misc]
    with pytest.raises(InputError, match="no gradient to the cameras"):
        splat(*scene, view.clone().requires_grad_(), intrinsics, 8, 8)
    with pytest.raises(InputError, match="no camera"):
        splat(*scene, view[:0], intrinsics[:0], 8, 8)


def test_gsplat_is_used_only_when_asked_for_and_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = ring(1, 8)

    def broken(*_: object, **__: object) -> None:
        raise AttributeError("'NoneType' object has no attribute 'projection'")

    def ask() -> None:
        splat(*random_scene(5, 0.1, 0), cameras.view, cameras.intrinsics, 8, 8, backend="gsplat")

    monkeypatch.setitem(sys.modules, "gsplat", None)  # not installed
    with pytest.raises(InputError, match="needs the package gsplat"):
        ask()
    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=broken))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a CUDA device"):
        ask()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match="takes float32 tensors on a CUDA device"):
        ask()
    splat(*random_scene(5, 0.1, 0), cameras.view, cameras.intrinsics, 8, 8)  # installed, and yet not chosen


def test_two_hundred_gaussians_learn_an_image() -> None:
    cameras = ring(1, 48)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 48), indexing="ij")
    disc = (x**2 + y**2 < 0.6).float()
    target = torch.stack([disc, disc * (x > 0), disc * (y > 0)])[None]
    means, scales, quaternions, _, _ = random_scene(200, 0.04, 0)
    leaves = [means, scales.log(), quaternions, torch.zeros(200), torch.zeros(200, 3)]
    leaves = [t.clone().requires_grad_() for t in leaves]
    optimizer = torch.optim.Adam([{"params": [t], "lr": lr} for t, lr in zip(leaves, (0.01, 0.03, 0.03, 0.05, 0.05))])
    losses = []
    for _ in range(150):
        means, log_scales, quaternions, logits, colours = leaves
        rgb, alpha, _ = splat(
            means, log_scales.exp(), quaternions, logits.sigmoid(), colours.sigmoid(),
            cameras.view, cameras.intrinsics, 48, 48,
        )  # fmt: skip
        loss = ((rgb - target) ** 2).mean() + ((alpha[:, 0] - disc) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10, (losses[0], losses[-1])


def gaussians(n: int, coefficients: int, seed: int = 0) -> Gaussians:
    means, scales, quaternions, opacities, _ = random_scene(n, 0.1, seed)
    sh = 0.5 * torch.randn(n, coefficients, 3, generator=torch.Generator().manual_seed(seed))
    return Gaussians(means, scales.log(), quaternions, opacities.logit(), sh)


def test_render_gaussians_applies_the_parametrisation() -> None:
    cameras, scene = ring(2, 16), gaussians(20, 1)
    frames = render_gaussians(scene, cameras, 0.5)
    rgb, alpha, depth = splat(
        scene.means, scene.log_scales.exp(), scene.quaternions, scene.opacity_logits.sigmoid(),
        (0.5 + 0.28209479 * scene.sh[:, 0]).clamp_min(0), cameras.view, cameras.intrinsics, 16, 16, 0.5,
    )  # fmt: skip
    torch.testing.assert_close(frames.rgb, rgb)
    assert torch.equal(frames.alpha, alpha) and torch.equal(frames.depth, depth) and frames.normal is None


def test_view_dependent_colour_differs_by_view_and_reaches_its_coefficients() -> None:
    cameras = Cameras.orbit(torch.tensor([0.0, math.pi]), 0.0, 2.0, 0.5, 9)
    sh = torch.zeros(1, 4, 3)
    sh[0, 2] = torch.tensor([0.8, 0.0, -0.8])  # along z: seen from +Z the direction is -Z
    sh.requires_grad_()
    one = Gaussians(torch.zeros(1, 3), torch.full((1, 3), -2.0), torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1), sh)
    frames = render_gaussians(one, cameras)
    colour = frames.rgb[:, :, 4, 4] / frames.alpha[:, :, 4, 4]
    tint = 0.8 * 0.4886025
    torch.testing.assert_close(colour[0], torch.tensor([0.5 - tint, 0.5, 0.5 + tint]))
    torch.testing.assert_close(colour[1], torch.tensor([0.5 + tint, 0.5, 0.5 - tint]))
    frames.rgb[0].sum().backward()
    assert sh.grad is not None and sh.grad[0, 2].all()


def test_normals_are_the_shortest_axes_turned_to_the_camera() -> None:
    cameras = Cameras.orbit(torch.tensor([0.0, math.pi, 0.5]), 0.2, 2.0, 0.5, 15)
    n = 30
    scene = gaussians(n, 4)
    flat = torch.tensor([0.1, 0.1, 0.001]).log().expand(n, 3)  # discs across z
    scene = replace(scene, log_scales=flat, quaternions=torch.tensor([[1.0, 0, 0, 0]]).expand(n, 4))
    frames = render_gaussians(scene, cameras, torch.tensor([1.0, 0.0, 0.0]), normals=True)
    assert frames.normal is not None
    covered = (frames.alpha > 0).expand_as(frames.normal)
    expected = torch.tensor([1.0, -1.0, 1.0])[:, None] * torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(
        frames.normal, torch.where(covered, expected[:, :, None, None], torch.zeros(())), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(frames.rgb, render_gaussians(scene, cameras, torch.tensor([1.0, 0, 0])).rgb)
