"""The ends of every kind of scene through `render`: one pixel, 4096 pixels, an eye inside, nothing there, not finite.

A defined picture and finite gradients, or an error of one line.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render import Frames, render
from rl3d.scenes import Dense, Field, Gaussians, Mesh

Scene = Mesh | Gaussians | Field
KINDS = ("mesh", "gaussians", "density field", "sdf field")


def scene_of(kind: str) -> tuple[Scene, list[Tensor]]:
    """A scene about the origin, 0.5 m to each side, and the leaves that gradients reach."""
    g = torch.Generator().manual_seed(0)
    if kind == "mesh":  # an octahedron
        vertices = (0.5 * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, -1, 0], [0, 0, -1]])).clone()
        faces = torch.tensor([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]])
        leaves = [vertices.requires_grad_(), torch.rand(6, 3, generator=g).requires_grad_()]
        return Mesh(leaves[0], faces, vertex_colours=leaves[1]), leaves
    if kind == "gaussians":
        n = 40
        tensors = [
            0.2 * torch.randn(n, 3, generator=g),
            torch.full((n, 3), math.log(0.1)),
            torch.randn(n, 4, generator=g),
            torch.randn(n, generator=g) + 1,
            torch.randn(n, 1, 3, generator=g),
        ]
        leaves = [t.requires_grad_() for t in tensors]
        return Gaussians(*leaves), leaves
    encoding = Dense(0.3 * torch.randn(4, 4, 4, 4, generator=g))
    return (Field.blob(encoding) if kind == "density field" else Field.sphere(encoding)).leaves()


def look(size: int | tuple[int, int], distance: float = 2.5) -> Cameras:
    """Two cameras; a picture that is not square sees the same angle in both directions."""
    height, width = (size, size) if isinstance(size, int) else size
    view = Cameras.orbit(torch.tensor([0.3, 1.9]), 0.35, distance, 0.6).view
    lens = torch.tensor([[width * 1.6, 0, width / 2], [0, height * 1.6, height / 2], [0, 0, 1]])
    return Cameras(view, lens.expand(2, 3, 3), height, width)


def total(frames: Frames) -> Tensor:
    return frames.rgb.sum() + frames.alpha.sum() + frames.depth.sum()


def check_finite(frames: Frames, leaves: list[Tensor]) -> None:
    assert all(bool(torch.isfinite(t).all()) for t in (frames.rgb, frames.alpha, frames.depth))
    for gradient in torch.autograd.grad(total(frames), leaves, allow_unused=True):
        assert gradient is None or bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, (1, 4096), (4096, 1)])
def test_one_pixel_and_4096(kind: str, size: int | tuple[int, int]) -> None:
    scene, leaves = scene_of(kind)
    frames = render(scene, look(size))
    check_finite(frames, leaves)
    row = frames.alpha.detach().reshape(2, -1)
    middle, end = row[:, row.shape[1] // 2], row[:, 0]
    assert float(middle.min()) > 0.3
    if size != 1:
        assert float(end.max()) < 0.3  # 0.21 of the Gaussians, whose dots are a pixel across at least


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", [1e-3, 0.1])
def test_an_eye_inside(kind: str, distance: float) -> None:
    scene, leaves = scene_of(kind)
    frames = render(scene, look(16, distance))
    check_finite(frames, leaves)
    if kind != "gaussians":  # of which those before the eye's near plane are left out
        assert float(frames.alpha.detach().min()) > 0.4
    assert float(frames.depth.detach().min()) >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_sight_is_the_background_and_gradients_are_zero(kind: str) -> None:
    scene, leaves = scene_of(kind)
    turned = look(8)
    away = replace(turned, view=torch.diag(torch.tensor([-1.0, 1, -1, 1])) @ turned.view)
    frames = render(scene, away, background=(0.1, 0.2, 0.3))
    torch.testing.assert_close(frames.rgb, torch.tensor([0.1, 0.2, 0.3])[:, None, None].expand(2, 3, 8, 8))
    assert not frames.alpha.any() and not frames.depth.any()
    if frames.rgb.requires_grad:
        for gradient in torch.autograd.grad(total(frames), leaves, allow_unused=True):
            assert gradient is None or not gradient.any()


def test_scenes_of_no_primitives() -> None:
    no_mesh = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    no_splats = Gaussians(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 1, 3))
    for scene in (no_mesh, no_splats):
        frames = render(scene, look((3, 5)), background=0.5)
        assert bool((frames.rgb == 0.5).all()) and not frames.alpha.any() and not frames.depth.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_an_error(kind: str, bad: float) -> None:
    scene, leaves = scene_of(kind)
    camera = look(4)
    broken = camera.view.clone()
    broken[1, 0, 3] = bad
    with pytest.raises(InputError, match=r"finite|NaN or infinity"):
        render(scene, replace(camera, view=broken))
    with torch.no_grad():
        leaves[0].view(-1)[2] = bad
    with pytest.raises(InputError, match=r"finite|NaN or infinity"):
        render(scene, camera)


def test_faces_and_gaussians_without_extent() -> None:
    """Zero-area faces show nothing; a Gaussian of no size is the low-pass filter's dot."""
    mesh, (vertices, colours) = scene_of("mesh")
    assert isinstance(mesh, Mesh)
    flat = replace(mesh, faces=torch.tensor([[0, 0, 1], [2, 2, 2], [0, 3, 0]]))
    frames = render(flat, look(9), shading="lambert", normals=True)
    assert not frames.alpha.any() and bool(torch.isfinite(frames.rgb).all())
    both = replace(mesh, faces=torch.cat([flat.faces, mesh.faces]))
    frames = render(both, look(9), shading="lambert", normals=True)
    check_finite(frames, [vertices, colours])
    torch.testing.assert_close(frames.alpha, render(mesh, look(9)).alpha)
    splats, leaves = scene_of("gaussians")
    assert isinstance(splats, Gaussians)
    dots = replace(splats, log_scales=torch.full((40, 3), -200.0))  # exp is 0
    frames = render(dots, look(33))
    check_finite(frames, [leaf for leaf in leaves if leaf is not splats.log_scales])
    assert 0.05 < float((frames.alpha > 0.02).float().mean()) < 0.7
