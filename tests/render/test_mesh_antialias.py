"""Silhouette antialiasing: arithmetic, areas, kernel against twin, gradients against finite differences, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import pytest
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render import Fragments, Frames, adjacent_edges, antialias, rasterize, render
from rl3d.render.antialias_torch import adjacent_edges as adjacent_edges_torch
from rl3d.render.antialias_torch import antialias_torch
from rl3d.scenes.mesh import Mesh

BACKENDS = ("cpu", "torch")
QUAD = torch.tensor([[0, 1, 2], [0, 2, 3]])
CUBE_CORNERS = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
CUBE_QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
CUBE_FACES = torch.tensor([f for a, b, c, d in CUBE_QUADS for f in ((a, b, c), (a, c, d))])


def straight(size: int = 8) -> Cameras:
    """A camera at the origin that looks along +Z, +Y down; at z = 1 a unit is a pixel, the top-left corner is 0, 0."""
    intrinsics = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]])
    return Cameras(torch.eye(4)[None], intrinsics, size, size)


def rectangle(left: float, top: float, right: float, bottom: float, z: float = 1.0) -> Tensor:
    """Corners in pixels of `straight`, at depth z."""
    return z * torch.tensor([[left, top, 1], [right, top, 1], [right, bottom, 1], [left, bottom, 1]])


def sphere(rings: int, radius: float = 0.5) -> Mesh:
    """A closed sphere of 4 rings (rings - 1) triangles."""
    theta = torch.linspace(0, math.pi, rings + 1)[1:-1]
    phi = torch.arange(2 * rings) * (math.pi / rings)
    t, p = torch.meshgrid(theta, phi, indexing="ij")
    points = torch.stack([t.sin() * p.cos(), t.cos(), t.sin() * p.sin()], -1).reshape(-1, 3)
    vertices = radius * torch.cat([points, torch.tensor([[0.0, 1, 0], [0, -1, 0]])])
    n, count = 2 * rings, len(points)
    faces = []
    for j in range(n):
        k = (j + 1) % n
        faces += [(count, k, j), (count + 1, count - n + j, count - n + k)]
        for i in range(rings - 2):
            a, b, c, d = i * n + j, i * n + k, (i + 1) * n + j, (i + 1) * n + k
            faces += [(a, b, c), (b, d, c)]
    return Mesh(vertices, torch.tensor(faces))


def soup(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random triangles that pierce each other."""
    generator = torch.Generator().manual_seed(seed)
    centres = 0.6 * (2 * torch.rand(count, 1, 3, generator=generator) - 1)
    corners = centres + 0.3 * torch.randn(count, 3, 3, generator=generator)
    return corners.reshape(-1, 3), torch.arange(3 * count).reshape(-1, 3)


def alpha_of(vertices: Tensor, faces: Tensor, cameras: Cameras, backend: str | None = None) -> Tensor:
    return render(Mesh(vertices, faces), cameras, backend=backend).alpha[:, 0]


# What it computes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_coverage_of_a_rectangle_by_hand(backend: str) -> None:
    """Left edge at 1.3: the centre 1.5 is covered, t = 0.2, so 0.5 - 0.2 stays free. Right edge at 5.2: 5.5 is not
    covered, t = 0.7 from 4.5, so pixel 5 gets 0.2. The top at 2.6 is 0.9 above the centre of pixel 3, so pixel 2 gets
    0.4; the bottom at 4.9 leaves pixel 4 with 0.9. Columns come second: in column 1 they carry 0.7 on; in column 5,
    where no centre is covered, there is nothing to compare.
    """
    alpha = alpha_of(rectangle(1.3, 2.6, 5.2, 4.9), QUAD, straight(), backend)
    expected = torch.zeros(8, 8)
    expected[2] = torch.tensor([0, 0.4 * 0.7, 0.4, 0.4, 0.4, 0, 0, 0])
    expected[3] = torch.tensor([0, 0.7, 1, 1, 1, 0.2, 0, 0])
    expected[4] = torch.tensor([0, 0.9 * 0.7, 0.9, 0.9, 0.9, 0.2, 0, 0])
    torch.testing.assert_close(alpha[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_occluder_is_blended_with_what_it_hides(backend: str) -> None:
    """White in front (edge at 3.2 by its depth of 1) of a black wall at depth 2: pixel 3 is 0.2 white, alpha stays 1.
    The wall is in the table first, so that order does not help."""
    vertices = torch.cat([rectangle(-9, -9, 20, 20, 2.0), rectangle(-9, -9, 3.2, 20, 1.0)])
    colours = torch.tensor([[0.0] * 3] * 2 + [[1.0] * 3] * 2)
    frames = render(
        Mesh(vertices, torch.cat([QUAD, QUAD + 4]), face_colours=colours), straight(6), normals=True, backend=backend
    )
    expected = torch.tensor([1, 1, 1, 0.2, 0, 0]).expand(1, 3, 6, 6)
    torch.testing.assert_close(frames.rgb, expected, atol=1e-6, rtol=0)
    assert bool((frames.alpha == 1).all())
    # Depth and normals are those of the pixels' centres.
    torch.testing.assert_close(frames.depth[0, 0, 0], torch.tensor([1.0, 1, 1, 2, 2, 2]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_fringe_pixels_have_the_depth_and_normal_of_the_surface(backend: str) -> None:
    """Pixel 5 is covered by 0.2 but not in its centre; it has no depth of its own."""
    frames = render(
        Mesh(rectangle(1.3, 2.6, 5.2, 4.9), QUAD), straight(), normals=True, backend=backend, shading="lambert"
    )
    seen = frames.alpha > 0
    torch.testing.assert_close(frames.depth, seen.float(), atol=1e-6, rtol=0)
    assert frames.normal is not None
    torch.testing.assert_close(frames.normal[:, 2:], -seen.float(), atol=1e-6, rtol=0)


def test_coverage_sums_to_the_area_of_a_turned_square() -> None:
    """Measured over 40 angles: within 0.74 px of 400 and 0.12 in the mean, where hard pixels miss up to 6 and 1.1 px.
    Edges are exact, corners are not.
    """
    errors = []
    for k in range(40):
        angle = torch.tensor(0.04 * k)
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
        corners = 10 * torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]) @ turn.T + torch.tensor([16.1, 16.4])
        alpha = alpha_of(torch.cat([corners, torch.ones(4, 1)], 1), QUAD, straight(32))
        errors.append(float(alpha.sum()) - 400)
    assert max(abs(e) for e in errors) < 1 and sum(abs(e) for e in errors) / 40 < 0.2


def test_silhouettes_of_faces_smaller_than_a_pixel_are_found() -> None:
    """A sphere of 15,128 faces on 24 x 24 pixels: its silhouette lies on slivers that no pixel centre sees. Against 16
    x 16 samples a pixel; measured 0.014 at most and 0.0007 in the mean (a hard alpha: 0.49 and 0.026).
    """
    ball, cameras = sphere(62), Cameras.orbit(0.4, 0.3, 2.2, 0.55, 24)
    alpha = render(ball, cameras).alpha
    exact = render(ball, cameras, supersample=16, antialias=False).alpha
    assert float((alpha - exact).abs().max()) < 0.03
    assert float((alpha - exact).abs().mean()) < 0.0015
    partial = (exact > 0.1) & (exact < 0.9)
    assert int(partial.sum()) > 30 and bool(((alpha > 0) & (alpha < 1))[partial].all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_mesh_has_no_seams(backend: str) -> None:
    """A cube with a colour a face: pixels whose four neighbours are covered too are as without antialiasing."""
    colours = torch.rand(12, 3, generator=torch.Generator().manual_seed(0))
    cube = Mesh(CUBE_CORNERS, CUBE_FACES, face_colours=colours)
    cameras = Cameras.orbit(torch.tensor([0.6, 2.0]), torch.tensor([0.5, -0.3]), 2.5, 0.7, 32)
    hard, soft = (render(cube, cameras, antialias=a, backend=backend) for a in (False, True))
    inside = hard.alpha.clone()
    for axis in (2, 3):
        for step in (-1, 1):
            inside = inside * hard.alpha.roll(step, axis)
    same = (inside > 0).expand_as(hard.rgb)
    assert int(same.sum()) > 500 and len(torch.unique(hard.rgb.permute(0, 2, 3, 1)[same[:, 0]], dim=0)) > 6
    assert torch.equal(hard.rgb[same], soft.rgb[same])
    assert not torch.equal(hard.rgb, soft.rgb)


@pytest.mark.parametrize("backend", BACKENDS)
def test_winding_does_not_matter(backend: str) -> None:
    """A cube with half of its faces turned round has the same silhouette."""
    cameras = Cameras.orbit(torch.tensor([0.6]), 0.5, 2.5, 0.7, 16)
    mixed = CUBE_FACES.clone()
    mixed[::2] = mixed[::2].flip(1)
    expected = alpha_of(CUBE_CORNERS, CUBE_FACES, cameras, backend)
    torch.testing.assert_close(alpha_of(CUBE_CORNERS, mixed, cameras, backend), expected, rtol=0, atol=1e-6)


def test_blends_are_convex() -> None:
    """Thin piercing triangles, many of them narrower than a pixel: alpha and colours stay in [0, 1]."""
    vertices, faces = soup(200, 4)
    colours = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    cameras = Cameras.orbit(torch.tensor([0.2, 3.0]), 0.2, 2.5, 0.7, 24)
    frames = render(Mesh(vertices, faces, face_colours=colours), cameras)
    assert float(frames.alpha.min()) >= 0 and float(frames.alpha.max()) <= 1 + 1e-6
    assert float(frames.rgb.min()) >= 0 and float(frames.rgb.max()) <= 1 + 1e-6
    partial = (frames.alpha > 0) & (frames.alpha < 1)
    assert int(partial.sum()) > 50


# Connectivity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", [adjacent_edges, adjacent_edges_torch])
def test_adjacent_edges_by_hand(search: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Edge k of face f is 3 f + k. 1-2 is edge 1 and edge 3; 2-3 is met by edges 5, 6 and 9, in a cycle; the last face
    uses 5 twice. Vertex 6 lies where vertex 2 is.
    """
    places = torch.tensor([[1.0, 0, 0], [2, 0, 0], [-0.0, 0, 3], [4, 1, 0], [5, 5, 0], [6, 0, 2], [0.0, 0, 3]])
    faces = torch.tensor([[0, 1, 2], [2, 1, 3], [6, 3, 4], [3, 2, 5], [5, 5, 0]])
    expected = [[-1, 3, -1], [1, -1, 6], [9, -1, -1], [5, -1, -1], [-1, -1, -1]]
    assert search(places, faces).tolist() == expected
    assert search(places, torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3)


def test_adjacent_edges_of_kernel_and_twin_agree() -> None:
    """Random faces (many edges met thrice), a closed sphere, and a fan of 200 faces around one vertex."""
    generator = torch.Generator().manual_seed(0)
    ball, line = sphere(6), torch.arange(202.0)[:, None].expand(202, 3)
    rim = torch.arange(1, 202)
    fan = torch.stack([torch.zeros(200, dtype=torch.int64), rim[:-1], rim[1:]], 1)
    shuffled = fan[torch.randperm(200, generator=generator)]
    random = torch.randint(0, 12, (80, 3), generator=generator)
    for vertices, faces in ((line, random), (line % 7, random), (ball.vertices, ball.faces), (line, shuffled)):
        assert torch.equal(adjacent_edges(vertices, faces).long(), adjacent_edges_torch(vertices, faces))
    closed = adjacent_edges(ball.vertices, ball.faces).long()
    again = closed.reshape(-1)[closed]
    assert int(closed.min()) >= 0 and torch.equal(again.reshape(-1), torch.arange(again.numel()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_split_vertices_are_joined(backend: str) -> None:
    """A sphere whose faces all have their own corners, as STL files do, has the silhouette of the sphere."""
    ball, cameras = sphere(12), Cameras.orbit(torch.tensor([0.4]), 0.3, 2.2, 0.55, 16)
    loose = Mesh(ball.triangles.reshape(-1, 3), torch.arange(ball.faces.numel()).reshape(-1, 3))
    whole, split = (render(m, cameras, backend=backend).alpha for m in (ball, loose))
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-6)


# Kernel and twin ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", ["soup", "sphere", "inside"])
def test_kernel_agrees_with_its_twin(scene: str) -> None:
    """Values and vector-Jacobian products. Measured: values equal to the last bit, gradients to 1e-7 of the largest."""
    cameras = Cameras.orbit(torch.tensor([0.1, 1.9]), torch.tensor([0.3, -0.5]), 2.5, 0.7, 32)
    if scene == "sphere":
        ball = sphere(12)
        vertices, faces = ball.vertices, ball.faces
    else:
        vertices, faces = soup(60, 7)
    if scene == "inside":
        cameras = Cameras.orbit(torch.linspace(0, 6, 6), 0.2, 0.1, 1.4, 24)
    fragments = rasterize(vertices, faces, cameras)
    generator = torch.Generator().manual_seed(1)
    colours, weights = torch.rand(2, *fragments.face_id.shape, 4, generator=generator)
    results = []
    for backend in BACKENDS:
        v, c = vertices.clone().requires_grad_(), colours.clone().requires_grad_()
        out = antialias(c, fragments, v, faces, cameras, backend=backend)
        (out * weights).sum().backward()
        results.append((out.detach(), v.grad, c.grad))
    (a, va, ca), (b, vb, cb) = results
    assert int((a != colours).any(-1).sum()) > 60
    assert va is not None and vb is not None and float(vb.abs().max()) > 0.5
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    torch.testing.assert_close(ca, cb, rtol=0, atol=1e-5)
    torch.testing.assert_close(va, vb, rtol=0, atol=1e-5 * float(vb.abs().max()))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    vertices, faces = soup(80, 3)
    cameras = Cameras.orbit(torch.tensor([0.1, 1.9, 4.0]), 0.3, 2.5, 0.7, 40)
    colours = torch.rand(len(vertices), 3, generator=torch.Generator().manual_seed(0))
    before = numba.get_num_threads()
    results = []
    try:
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            v, c = vertices.clone().requires_grad_(), colours.clone().requires_grad_()
            frames = render(Mesh(v, faces, vertex_colours=c), cameras, shading="half_lambert")
            (frames.rgb.square().sum() + frames.depth.sum()).backward()
            results.append((frames.rgb.detach(), frames.alpha.detach(), v.grad, c.grad))
    finally:
        numba.set_num_threads(before)
    for one, two in zip(*results):
        assert one is not None and two is not None and torch.equal(one, two)


# Gradients ------------------------------------------------------------------------------------------------------------


def test_gradcheck_of_the_twin() -> None:
    """To colours, vertices and cameras, at fixed fragments: two cubes, one before the other."""
    cameras = Cameras.orbit(torch.tensor([0.5], dtype=torch.float64), 0.4, 2.5, 0.7, 7)
    vertices = torch.cat([CUBE_CORNERS, 0.4 * CUBE_CORNERS + torch.tensor([0.3, 0.4, 0.8])]).double()
    faces = torch.cat([CUBE_FACES, CUBE_FACES + 8])
    fragments = rasterize(vertices, faces, cameras)
    colours = torch.rand(1, 7, 7, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def blended(c: Tensor, v: Tensor, view: Tensor, k: Tensor) -> Tensor:
        return antialias_torch(c, fragments.face_id, fragments.depth, v, faces, view, k)

    inputs = tuple(t.clone().requires_grad_() for t in (colours, vertices, cameras.view, cameras.intrinsics))
    assert torch.autograd.gradcheck(blended, inputs)
    changed = blended(colours, vertices, cameras.view, cameras.intrinsics) != colours
    assert int(changed.sum()) > 12


def slope(loss: Callable[[Tensor], Tensor], at: float, step: float = 1e-5) -> tuple[float, float]:
    """Derivative of a loss at a number: by autograd, and by central differences."""
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(x), x)
    there, back = (float(loss(torch.tensor(at + s, dtype=torch.float64))) for s in (step, -step))
    return float(gradient), (there - back) / (2 * step)


def weighted(frames: Frames) -> Tensor:
    """A loss that looks at every pixel differently."""
    image = torch.cat([frames.rgb, frames.alpha], 1)
    weights = torch.rand(image.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return (weights * image).sum()


@pytest.mark.parametrize("at", [0.0, 0.12, 0.31, 0.47, 0.5001, 0.77])
def test_a_moving_square_by_finite_differences(at: float) -> None:
    """Its silhouette sweeps over the background; the only gradient there is comes from antialiasing."""
    cameras = straight(8).to(dtype=torch.float64)
    square = rectangle(1.3, 1.9, 5.2, 5.6).double()

    def loss(x: Tensor) -> Tensor:
        moved = square + torch.stack([x, -0.3 * x, 0 * x])
        return weighted(render(Mesh(moved, QUAD), cameras))

    got, want = slope(loss, at)
    assert abs(want) > 0.01
    assert got == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("supersample", [1, 2])
def test_an_occluder_slides_over_a_picture(supersample: int) -> None:
    """A tilted triangle before a vertex-coloured wall: edges move over colours that change."""
    cameras = straight(8).to(dtype=torch.float64)
    wall = rectangle(-9, -9, 20, 20, 2.0)
    blade = torch.tensor([[1.2, 1.0, 1.0], [6.1, 3.2, 1.1], [2.4, 6.3, 0.9]])
    faces = torch.cat([QUAD, torch.tensor([[4, 5, 6]])])
    colours = torch.rand(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        moved = blade.double() + x * torch.tensor([0.8, 0.5, 0.02], dtype=torch.float64)
        mesh = Mesh(torch.cat([wall.double(), moved]), faces, vertex_colours=colours)
        return weighted(render(mesh, cameras, supersample=supersample))

    got, want = slope(loss, 0.06)
    assert abs(want) > 0.05
    assert got == pytest.approx(want, rel=1e-4)


def test_a_moving_camera() -> None:
    """A cube seen by a camera that walks sideways and zooms, in float64 and (same gradient) in float32 by default."""
    colours = torch.rand(8, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    start = Cameras.orbit(torch.tensor([0.5], dtype=torch.float64), 0.4, 2.5, 0.7, 12)

    def loss(x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        step = torch.zeros(1, 4, 4, dtype=torch.float64)
        step[0, 0, 3], step[0, 1, 3] = 1.0, 0.4
        zoom = 1 + 0.5 * x * torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64)
        cameras = Cameras(start.view + x * step, start.intrinsics * zoom, 12, 12)
        cube = Mesh(CUBE_CORNERS.to(dtype), CUBE_FACES, vertex_colours=colours.to(dtype))
        return weighted(render(cube, cameras.to(dtype=dtype), shading="half_lambert"))

    got, want = slope(loss, 0.013)
    assert abs(want) > 1
    assert got == pytest.approx(want, rel=1e-4)
    x = torch.tensor(0.013, dtype=torch.float64, requires_grad=True)
    (single,) = torch.autograd.grad(loss(x, torch.float32), x)
    assert float(single) == pytest.approx(want, rel=1e-4)


def test_vertices_changed_before_the_backward_pass_are_an_error() -> None:
    vertices = (1.0 * CUBE_CORNERS).requires_grad_()
    frames = render(Mesh(vertices, CUBE_FACES), Cameras.orbit(torch.tensor([0.5]), size=8))
    with torch.no_grad():
        vertices += 0.1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        frames.alpha.sum().backward()


def test_gradients_of_everything_to_the_vertices() -> None:
    """gradcheck through render(): colours, shading, depth, normals and silhouettes of a cube and a floating face."""
    vertices = torch.cat([CUBE_CORNERS, torch.tensor([[-0.2, 0.2, 0.9], [0.5, 0.1, 0.8], [0.1, 0.6, 0.85]])]).double()
    faces = torch.cat([CUBE_FACES, torch.tensor([[8, 9, 10]])])
    colours = torch.rand(11, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cameras = Cameras.orbit(torch.tensor([0.5], dtype=torch.float64), 0.4, 2.5, 0.7, 7)

    def picture(v: Tensor) -> tuple[Tensor, ...]:
        frames = render(Mesh(v, faces, vertex_colours=colours), cameras, shading="half_lambert", normals=True)
        assert frames.normal is not None
        return frames.rgb, frames.alpha, frames.depth, frames.normal

    assert torch.autograd.gradcheck(picture, vertices.requires_grad_(), fast_mode=True)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_edges_through_the_near_plane(backend: str) -> None:
    """A floor under the camera (+Y is down here) that goes on behind it, with a side edge in the picture: finite
    gradients, and an edge that is blended.
    """
    vertices = torch.tensor([[-50.0, 1, -50], [0.3, 1, -50], [0.3, 1, 50], [-50, 1, 50]]).requires_grad_()
    k = torch.tensor([[[8.0, 0, 8], [0, 8, 8], [0, 0, 1]]])
    frames = render(Mesh(vertices, QUAD), Cameras(torch.eye(4)[None], k, 16, 16), normals=True, backend=backend)
    partial = (frames.alpha > 0) & (frames.alpha < 1)
    assert int(partial.sum()) >= 8
    assert frames.normal is not None
    (weighted(frames) + frames.depth.sum() + frames.normal.sum()).backward()
    assert vertices.grad is not None and bool(torch.isfinite(vertices.grad).all())
    # The side edge is x = 0.3 y on the floor: half way across it, all rows see it move.
    assert float(vertices.grad[1:3, 0].abs().min()) > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1, 2, (1, 9), (9, 1)])
def test_tiny_pictures(backend: str, size: int | tuple[int, int]) -> None:
    vertices, faces = soup(20, 1)
    vertices.requires_grad_()
    cameras = Cameras.orbit(torch.tensor([0.3]), 0.1, 2.5, 0.7, size)
    frames = render(Mesh(vertices, faces), cameras, backend=backend)
    frames.alpha.sum().backward()
    assert vertices.grad is not None and bool(torch.isfinite(vertices.grad).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_faces_without_area_and_coincident_faces(backend: str) -> None:
    """Slivers, points and doubled faces beside real ones: finite, and the doubled cube looks like the cube."""
    vertices = torch.cat([CUBE_CORNERS, torch.tensor([[0.0, 0, 0.9], [0.1, 0, 0.9], [0.2, 0, 0.9]])])
    odd = torch.tensor([[8, 9, 10], [8, 8, 9], [9, 9, 9], [0, 0, 1], [0, 4, 8]])
    faces = torch.cat([odd, CUBE_FACES, CUBE_FACES])
    cameras = Cameras.orbit(torch.tensor([0.5]), 0.4, 2.5, 0.7, 24)
    v = vertices.clone().requires_grad_()
    frames = render(Mesh(v, faces), cameras, shading="lambert", backend=backend)
    frames.rgb.square().sum().backward()
    assert v.grad is not None and bool(torch.isfinite(v.grad).all())
    doubled = alpha_of(CUBE_CORNERS, torch.cat([CUBE_FACES, CUBE_FACES]), cameras, backend)
    torch.testing.assert_close(doubled, alpha_of(CUBE_CORNERS, CUBE_FACES, cameras, backend), atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_camera_inside_a_mesh_sees_no_silhouette(backend: str) -> None:
    cameras = Cameras.orbit(torch.tensor([0.3, 2.0]), 0.2, 0.2, 1.2, 16)
    vertices = CUBE_CORNERS.clone().requires_grad_()
    frames = render(Mesh(vertices, CUBE_FACES), cameras, backend=backend)
    assert bool((frames.alpha == 1).all())
    frames.depth.sum().backward()
    assert vertices.grad is not None and bool(torch.isfinite(vertices.grad).all())


def test_errors_say_what_is_wrong() -> None:
    cameras = Cameras.orbit(torch.tensor([0.3]), size=4)
    fragments = rasterize(CUBE_CORNERS, CUBE_FACES, cameras)
    with pytest.raises(InputError, match=r"got \[1, 4, 5, 3\] and \[1, 4, 4\]"):
        antialias(torch.zeros(1, 4, 5, 3), fragments, CUBE_CORNERS, CUBE_FACES, cameras)
    with pytest.raises(InputError, match="unknown backend 'cuda'"):
        antialias(torch.zeros(1, 4, 4, 3), fragments, CUBE_CORNERS, CUBE_FACES, cameras, backend="cuda")
    with pytest.raises(InputError, match="float32 tensors on the CPU, got float64"):
        antialias(torch.zeros(1, 4, 4, 3).double(), fragments, CUBE_CORNERS, CUBE_FACES, cameras, backend="cpu")
    wide = antialias(torch.zeros(1, 4, 4, 3).double(), fragments, CUBE_CORNERS, CUBE_FACES, cameras)
    assert wide.dtype == torch.float64
    moving = Cameras(cameras.view.requires_grad_(), cameras.intrinsics, 4, 4)
    for call in (
        lambda: rasterize(CUBE_CORNERS, CUBE_FACES, moving, "cpu"),
        lambda: render(Mesh(CUBE_CORNERS, CUBE_FACES), moving, backend="cpu"),
        lambda: antialias(torch.zeros(1, 4, 4, 3), fragments, CUBE_CORNERS, CUBE_FACES, moving, backend="cpu"),
    ):
        with pytest.raises(InputError, match="no gradient to the cameras"):
            call()
    with torch.no_grad():
        assert isinstance(rasterize(CUBE_CORNERS, CUBE_FACES, moving, "cpu"), Fragments)
