"""What the renderer keeps for the backward pass grows with primitives and pixels, not with their product or square."""

from __future__ import annotations

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.render import render
from rl3d.render.gaussians_cpu_projection import Plan, plan
from rl3d.scenes import Mesh


def splats(count: int) -> list[Tensor]:
    """A ball of Gaussians that cover about the same in sum, whatever their number."""
    g = torch.Generator().manual_seed(0)
    return [
        0.25 * torch.randn(count, 3, generator=g),
        torch.full((count, 3), 0.018 * (10_000 / count) ** 0.5),
        torch.randn(count, 4, generator=g),
        torch.rand(count, generator=g),
    ]


def plan_of(count: int, pixels: int) -> Plan:
    cameras = Cameras.orbit(torch.tensor([0.3]), 0.35, 2.7, 0.47, pixels)
    arrays = [t.numpy() for t in splats(count)]
    return Plan(*plan(*arrays, cameras.view.double().numpy(), cameras.intrinsics.double().numpy(), pixels, pixels))


def test_the_plan_of_a_splat_is_linear() -> None:
    """Measured at 128 pixels: 4.7 tiles a Gaussian for 10,000, 1.9 for 160,000; 97 and 62 bytes a Gaussian."""
    sizes = {count: sum(a.nbytes for a in plan_of(count, 128)) for count in (10_000, 160_000)}
    assert sizes[160_000] < 16 * sizes[10_000]
    assert sizes[160_000] < 100 * 160_000


def grid(side: int) -> Mesh:
    """A bumpy sheet of 2 (side - 1)^2 faces."""
    x, y = torch.meshgrid(*[torch.linspace(-0.6, 0.6, side)] * 2, indexing="ij")
    vertices = torch.stack([x, y, 0.1 * torch.sin(9 * x) * torch.cos(7 * y)], -1).reshape(-1, 3)
    i = torch.arange(side * side).reshape(side, side)
    a, b, c, d = (t.reshape(-1) for t in (i[:-1, :-1], i[1:, :-1], i[1:, 1:], i[:-1, 1:]))
    faces = torch.cat([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)])
    return Mesh(vertices.requires_grad_(), faces, vertex_colours=torch.rand(side * side, 3))


def kept_by(mesh: Mesh, pixels: int) -> int:
    """Bytes of distinct memory that the graph of one picture holds on to."""
    storages: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    cameras = Cameras.orbit(torch.tensor([0.3]), 0.2, 2.7, 0.6, pixels)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        frames = render(mesh, cameras, shading="lambert", normals=True)
        loss = frames.rgb.sum() + frames.alpha.sum() + frames.depth.sum()
    loss.backward()
    assert mesh.vertices.grad is not None and bool(torch.isfinite(mesh.vertices.grad).all())
    return sum(storages.values())


def test_what_a_mesh_keeps_is_linear_in_faces_and_in_pixels() -> None:
    """Measured: 7 times the memory for 16 times the faces (96 bytes a face), 10 times for 16 times the pixels."""
    few, many = grid(51), grid(201)  # 5,000 and 80,000 faces
    small, large = kept_by(few, 64), kept_by(many, 64)
    assert large < 16 * small
    assert large < 150 * 80_000
    wide = kept_by(few, 256)  # 16 times the pixels
    assert wide < 16 * small


def test_more_faces_than_pixels_and_more_pixels_than_faces() -> None:
    """The sums of the backward pass are cut into parts by pixels a vertex; both ends give finite gradients."""
    for side, pixels in ((201, 4), (2, 256)):
        kept_by(grid(side), pixels)
