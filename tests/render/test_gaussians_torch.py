"""The plain-torch splatting: against numbers worked out by hand, closed forms and finite differences, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.render.gaussians import splat
from rl3d.render.gaussians_torch import LOW_PASS, composite, project
from rl3d.scenes.gaussians import rotations

F64 = torch.float64


def tiny_scene(n: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=F64)

    return (
        uniform(-0.3, 0.3, n, 3),
        uniform(0.1, 0.3, n, 3),
        torch.randn(n, 4, generator=generator, dtype=F64),
        uniform(0.3, 0.9, n),
        uniform(0.1, 0.9, n, 3),
    )


def camera(size: tuple[int, int], views: int = 1) -> Cameras:
    return Cameras.orbit(torch.arange(views, dtype=F64) * 1.3 + 0.2, 0.3, 2.0, 0.7, size)


@pytest.mark.parametrize("seed", [0, 1])
def test_gradcheck_to_the_scene_and_to_the_cameras(seed: int) -> None:
    cameras = camera((5, 6), views=2)
    scene = [t.requires_grad_() for t in tiny_scene(3, seed)]
    view, intrinsics = cameras.view.requires_grad_(), cameras.intrinsics.requires_grad_()

    def render(*inputs: Tensor) -> tuple[Tensor, ...]:
        return splat(*inputs, 5, 6, 0.2, "torch")

    assert torch.autograd.gradcheck(render, (*scene, view, intrinsics), atol=1e-6, rtol=1e-4)


def test_gradcheck_where_the_jacobian_is_clamped_at_the_frustum() -> None:
    # Centres half outside a narrow image, wide enough to be seen: u is clamped, its gradient goes to z alone.
    means, scales, quaternions, opacities, colours = tiny_scene(2, 3)
    means = means + torch.tensor([1.4, 0.0, 0.0], dtype=F64)
    cameras = Cameras.orbit(torch.zeros(1, dtype=F64), 0.0, 2.0, 0.7, 6)
    scene = [t.requires_grad_() for t in (means, scales * 3, quaternions, opacities, colours)]

    def render(*inputs: Tensor) -> tuple[Tensor, ...]:
        return splat(*inputs, cameras.view, cameras.intrinsics, 6, 6, 0.0, "torch")

    x, _, z = (cameras.view[0, :3, :3] @ means.detach().T + cameras.view[0, :3, 3:]).unbind(0)
    assert (x / z > 1.3 * math.tan(0.35)).all() and render(*scene)[1].max() > 0.05
    assert torch.autograd.gradcheck(render, scene, atol=1e-6, rtol=1e-4)


def test_compositing_by_hand() -> None:
    # Three splats centred on the point: weights 0.5, 0.5 * 0.4 = 0.2, 0.5 * 0.6 * 0.99 = 0.297 (clamped from 1).
    centres, conics = torch.zeros(4, 2, dtype=F64), torch.tensor([[1.0, 0.0, 1.0]], dtype=F64).expand(4, 3)
    opacities = torch.tensor([0.5, 0.4, 1.0, 0.003], dtype=F64)  # the last one is below 1 / 255
    image, alpha = composite(centres, conics, opacities, torch.eye(4, dtype=F64), torch.zeros(1, 2, dtype=F64))
    torch.testing.assert_close(image[:, 0], torch.tensor([0.5, 0.2, 0.297, 0.0], dtype=F64))
    torch.testing.assert_close(alpha[0], torch.tensor(0.997, dtype=F64))


def test_a_pixel_closes_before_the_splat_that_would_take_it_below_the_limit() -> None:
    # Transmittance 1, 0.02, 2e-4; the third splat would leave 2e-6 and is not drawn, nor is what comes after it.
    opacities = torch.tensor([0.98, 0.99, 0.99, 0.1], dtype=F64)
    centres, conics = torch.zeros(4, 2, dtype=F64), torch.tensor([[1.0, 0.0, 1.0]], dtype=F64).expand(4, 3)
    image, _ = composite(centres, conics, opacities, torch.eye(4, dtype=F64), torch.zeros(1, 2, dtype=F64))
    torch.testing.assert_close(image[:, 0], torch.tensor([0.98, 0.02 * 0.99, 0.0, 0.0], dtype=F64))


def test_an_isotropic_gaussian_on_the_axis_has_the_closed_form() -> None:
    cameras = Cameras.orbit(torch.zeros(1, dtype=F64), 0.0, 2.0, 0.7, 9)
    one = torch.ones(1, dtype=F64)
    quaternion = torch.tensor([[0.3, -2.0, 0.5, 1.0]], dtype=F64)  # a sphere does not see its rotation
    rgb, alpha, depth = splat(
        torch.zeros(1, 3, dtype=F64), 0.1 * one.expand(1, 3), quaternion, 0.8 * one,
        torch.tensor([[1.0, 0.5, 0.0]], dtype=F64), cameras.view, cameras.intrinsics, 9, 9, 0.25,
    )  # fmt: skip
    variance = (0.1 * float(cameras.intrinsics[0, 0, 0]) / 2.0) ** 2 + LOW_PASS
    offset = torch.arange(9, dtype=F64) - 4
    expected = 0.8 * torch.exp(-0.5 * (offset[:, None] ** 2 + offset**2) / variance)
    expected = torch.where(expected >= 1 / 255, expected, 0.0)
    torch.testing.assert_close(alpha[0, 0], expected)
    torch.testing.assert_close(rgb[0, 1], 0.5 * expected + 0.25 * (1 - expected))
    torch.testing.assert_close(depth[0, 0], torch.where(expected > 0, 2.0, 0.0).to(F64))


def test_projection_agrees_with_sampled_points() -> None:
    # A small Gaussian: project 200,000 samples of it through the pinhole and compare the moments.
    means, scales, quaternions, _, _ = tiny_scene(1, 7)
    scales = scales * 0.05
    cameras = camera((40, 60))
    p = project(means, scales, quaternions, cameras.view, cameras.intrinsics, 40, 60)
    noise = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    points = means + (noise * scales) @ rotations(quaternions)[0].T
    seen = points @ cameras.view[0, :3, :3].T + cameras.view[0, :3, 3]
    pixels = (seen @ cameras.intrinsics[0].T)[:, :2] / seen[:, 2:]
    a, b, c = p.conics[0, 0]
    covariance = torch.linalg.inv(torch.stack([torch.stack([a, b]), torch.stack([b, c])])) - LOW_PASS * torch.eye(2)
    # Measured: 0.3 % in the covariance (sampling: 1 / sqrt(200,000) = 0.2 %), 1e-3 px in the centre.
    torch.testing.assert_close(torch.cov(pixels.T), covariance, rtol=0.02, atol=0.02 * float(covariance.max()))
    torch.testing.assert_close(pixels.mean(0), p.centres[0, 0], rtol=0, atol=0.02)


def test_tiles_do_not_show() -> None:
    cameras = camera((23, 37))
    from rl3d.render.gaussians_torch import splat_torch

    scene = tiny_scene(20, 5)
    whole = splat_torch(*scene, cameras.view, cameras.intrinsics, 23, 37, tile=64)
    tiled = splat_torch(*scene, cameras.view, cameras.intrinsics, 23, 37, tile=5)
    for a, b in zip(whole, tiled):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
