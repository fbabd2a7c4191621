"""What the gradients of the mesh renderer are for: small inverse problems through `render`, solved by Adam."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.render import Frames, render
from rl3d.scenes.mesh import Mesh

CUBE_CORNERS = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
CUBE_QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
CUBE_FACES = torch.tensor([f for a, b, c, d in CUBE_QUADS for f in ((a, b, c), (a, c, d))])


def descend(loss: Callable[[], Tensor], leaves: list[Tensor], steps: int, rate: float) -> tuple[float, float]:
    """Adam with a rate that falls to a tenth; returns the first and the last loss."""
    optimiser = torch.optim.Adam(leaves, lr=rate)
    falling = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.1 ** (1 / steps))
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        losses.append(float(value.detach()))
        optimiser.step()
        falling.step()
    return losses[0], losses[-1]


def difference(a: Frames, b: Frames) -> Tensor:
    return (a.rgb - b.rgb).square().mean() + (a.alpha - b.alpha).square().mean()


def rotation(axis_angle: Tensor) -> Tensor:
    """[3, 3] of a rotation vector."""
    x, y, z = axis_angle
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3))


def test_a_pose_is_recovered_from_one_picture() -> None:
    """A coloured box turned by 0.35 rad and moved by 0.17 m, seen once at 48 x 48 pixels. Measured: the loss falls to
    1/1800 of its start.
    """
    colours = torch.rand(6, 3, generator=torch.Generator().manual_seed(3)).repeat_interleave(2, 0)
    corners = CUBE_CORNERS * torch.tensor([0.9, 0.6, 0.4])
    cameras = Cameras.orbit(torch.tensor([0.5]), 0.4, 2.7, 0.6, 48)
    turn, shift = torch.tensor([0.1, 0.3, -0.15]), torch.tensor([0.1, -0.08, 0.12])

    def picture(r: Tensor, t: Tensor) -> Frames:
        return render(Mesh(corners @ rotation(r).T + t, CUBE_FACES, face_colours=colours), cameras)

    target = picture(turn, shift)
    r, t = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    first, last = descend(lambda: difference(picture(r, t), target), [r, t], 120, 0.03)
    assert last < first / 500
    assert float((r.detach() - turn).norm()) < 0.02 and float((t.detach() - shift).norm()) < 0.01


def test_a_camera_is_recovered_from_one_picture() -> None:
    """The same through the cameras' gradients: where it stands and its field of view. Measured: to 1/175."""
    colours = torch.rand(6, 3, generator=torch.Generator().manual_seed(3)).repeat_interleave(2, 0)
    mesh = Mesh(CUBE_CORNERS, CUBE_FACES, face_colours=colours)

    def picture(p: Tensor) -> Frames:
        return render(mesh, Cameras.orbit(p[:1], p[1:2], p[2:3], p[3:], 32))

    truth = torch.tensor([0.6, 0.4, 2.7, 0.65])
    target = picture(truth)
    p = (truth + torch.tensor([0.2, -0.15, 0.2, 0.0])).requires_grad_()
    first, last = descend(lambda: difference(picture(p), target), [p], 60, 0.03)
    assert last < first / 50
    assert float((p.detach() - truth)[:2].abs().max()) < 0.03


def test_a_texture_is_recovered() -> None:
    """8 x 8 texels of a box's sides from four views, starting grey. Measured: the loss falls to 1/3500."""
    uvs = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]])
    face_uvs = torch.tensor([[0, 1, 2], [0, 2, 3]]).repeat(6, 1)
    cameras = Cameras.orbit(torch.arange(4) * (math.pi / 2) + 0.4, 0.5, 2.7, 0.6, 32)

    def picture(texture: Tensor) -> Frames:
        mesh = Mesh(CUBE_CORNERS, CUBE_FACES, texture=texture, uvs=uvs, face_uvs=face_uvs)
        return render(mesh, cameras, shading="half_lambert", mipmaps=True)

    truth = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(0))
    target = picture(truth)
    texture = torch.full((8, 8, 3), 0.5, requires_grad=True)
    first, last = descend(lambda: difference(picture(texture), target), [texture], 60, 0.1)
    assert last < first / 500
    assert float((texture.detach() - truth).abs().max()) < 0.1


def test_a_shape_is_recovered_from_silhouettes() -> None:
    """A sphere becomes a bent, squashed one by six outlines alone: nothing but antialiasing carries a gradient.

    Steps are smoothed over the surface (vertices = start + K offsets, K two rounds of neighbour means), since outlines
    move only the vertices that lie on them. Measured: the loss falls to 1/208 of its start.
    """
    rings = 10
    theta = torch.linspace(0, math.pi, rings + 1)[1:-1]
    phi = torch.arange(2 * rings) * (math.pi / rings)
    t, p = torch.meshgrid(theta, phi, indexing="ij")
    points = torch.stack([t.sin() * p.cos(), t.cos(), t.sin() * p.sin()], -1).reshape(-1, 3)
    start = 0.5 * torch.cat([points, torch.tensor([[0.0, 1, 0], [0, -1, 0]])])
    n, count = 2 * rings, len(points)
    faces = []
    for j in range(n):
        k = (j + 1) % n
        faces += [(count, k, j), (count + 1, count - n + j, count - n + k)]
        for i in range(rings - 2):
            faces += [(i * n + j, i * n + k, (i + 1) * n + j), (i * n + k, (i + 1) * n + k, (i + 1) * n + j)]
    table = torch.tensor(faces)
    near = torch.eye(len(start))
    near[table.reshape(-1), table.roll(1, 1).reshape(-1)] = 1
    near[table.roll(1, 1).reshape(-1), table.reshape(-1)] = 1
    smoothing = torch.linalg.matrix_power(near / near.sum(1, keepdim=True), 2)
    azimuth = torch.arange(6) * (math.pi / 6)
    cameras = Cameras.orbit(azimuth, torch.tensor([0.0, 0.7, -0.6, 0.3, -0.2, 0.9]), 2.7, 0.6, 32)

    def outline(vertices: Tensor) -> Tensor:
        return render(Mesh(vertices, table), cameras).alpha

    bent = start * torch.tensor([1.2, 0.8, 0.9])
    bent = bent + 0.15 * torch.stack([torch.sin(3 * start[:, 1]), 0 * start[:, 0], start[:, 0].square()], 1)
    target = outline(bent)
    offsets = torch.zeros_like(start, requires_grad=True)
    loss = lambda: (outline(start + smoothing @ offsets) - target).square().mean()  # noqa: E731
    first, last = descend(loss, [offsets], 80, 0.02)
    assert last < first / 60
    found = (start + smoothing @ offsets).detach()
    hard_found, hard_target = (render(Mesh(v, table), cameras, antialias=False).alpha > 0 for v in (found, bent))
    assert float((hard_found & hard_target).sum() / (hard_found | hard_target).sum()) > 0.97
