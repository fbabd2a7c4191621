from __future__ import annotations

import numpy as np
import pytest
from metric_shapes import Shape, box, cube, grid, soup, sphere, turned

from rl3d.errors import InputError
from rl3d.metrics import Geometry, Protocol, compare, reference, sample_points, surface
from rl3d.metrics.geometry import sharp_edges
from rl3d.metrics.tree import build, nearest


def moved(shape: Shape, by: list[float], scale: float = 1.0) -> Shape:
    return shape[0] * scale + by, shape[1]


def test_nearest_is_exact() -> None:
    """Against the distance to every triangle of a dense set of points on it, which can only be larger."""
    vertices, faces = sphere(60, seed=0)
    triangles = vertices[faces]
    points = np.random.default_rng(1).uniform(-1.5, 1.5, (200, 3))
    distance, at = nearest(build(triangles), points)
    u, v = (x.ravel() for x in np.meshgrid(np.linspace(0, 1, 81), np.linspace(0, 1, 81)))
    weights = np.stack([1 - u - v, u, v], 1)[u + v <= 1]
    dense = np.einsum("wi,fij->fwj", weights, triangles)
    brute = np.array([np.linalg.norm(dense - p, axis=2).min() for p in points])
    # between points 1/80 of a side (up to 0.8) apart: at most 0.01 too far, and only where the surface is close
    assert (distance <= brute + 1e-12).all() and (brute - distance).max() < 0.01
    own = np.array([np.linalg.norm(dense[f] - p, axis=1).min() for f, p in zip(at, points)])
    assert np.abs(own - brute).max() < 1e-3


def test_nearest_of_one_triangle_by_hand() -> None:
    triangle = np.array([[[0, 0, 0], [2, 0, 0], [0, 2, 0]]], float)
    points = np.array([[0.5, 0.5, 3], [-3, -4, 0], [1, -2, 0], [2, 2, 0], [0.5, 0.5, 0]], float)
    distance, at = nearest(build(triangle), points)
    assert distance == pytest.approx([3, 5, 2, 2**0.5, 0]) and (at == 0).all()


def test_a_mesh_is_no_distance_from_itself_however_it_is_cut() -> None:
    g = compare(surface(*grid(8)), surface(*grid(8)))
    assert (g.hausdorff, g.chamfer_l1, g.chamfer_l2, g.edge_chamfer) == (0, 0, 0, 0)
    assert (g.f_score, g.normal_consistency, g.signed_normal_consistency) == (1, 1, 1)
    coarse = grid(1)[0] * 8, grid(1)[1]
    g = compare(surface(*grid(8)), surface(*coarse))
    assert g.hausdorff < 1e-12 and g.chamfer_l1 < 1e-12 and g.f_score == 1 and g.edge_chamfer < 1e-12


def test_parallel_sheets_by_hand() -> None:
    """A sheet of side 10 above another by 0.5: every distance is 0.5 / 10."""
    g = compare(surface(*moved(grid(10), [0, 0, 0.5])), surface(*grid(10)))
    assert g.hausdorff == pytest.approx(0.05) and g.chamfer_l1 == pytest.approx(0.05)
    assert g.chamfer_l2 == pytest.approx(0.05**2) and g.edge_chamfer == pytest.approx(0.05)
    assert (g.precision, g.recall, g.f_score) == (0, 0, 0)
    near = compare(surface(*moved(grid(10), [0, 0, 0.5])), reference(surface(*grid(10)), Protocol(threshold=0.051)))
    assert (near.precision, near.recall, near.f_score) == (1, 1, 1)


def test_hausdorff_sees_both_directions_and_corners_without_area() -> None:
    half = cube()[0], cube()[1][:6]
    for one, other in ((half, cube()), (cube(), half)):
        assert compare(surface(*one), surface(*other)).hausdorff == pytest.approx(0.5, abs=0.01)
    spike = np.concatenate([cube()[0], [[0.0, 1.5, 0.0], [1e-5, 0.5, 0.0], [0, 0.5, 0]]])
    thin = compare(surface(spike, np.concatenate([cube()[1], [[8, 9, 10]]])), surface(*cube()))
    assert thin.hausdorff == pytest.approx(1.0) and thin.chamfer_l1 < 1e-4  # no sample falls on it


def test_the_references_own_size_is_the_unit() -> None:
    """The prediction is never fitted: half the size is wrong by a quarter of the side on every face."""
    for scale in (1e-3, 1.0, 1e3):
        g = compare(surface(*moved(cube(), [0, 0, 0], 0.5 * scale)), surface(*moved(cube(), [0, 0, 0], scale)))
        assert g.hausdorff == pytest.approx(0.25 * 3**0.5) and 0.25 < g.chamfer_l1 < 0.3
    huge = compare(surface(*moved(cube(), [0, 0, 0], 1000.0)), surface(*cube()))
    assert (huge.hausdorff, huge.precision) == (1, 0) and huge.chamfer_l1 > 0.9
    away = compare(surface(*moved(cube(), [1e6, 0, 0])), surface(*cube()))
    assert (away.hausdorff, away.chamfer_l1, away.chamfer_l2, away.f_score) == (1, 1, 1, 0)


def test_normals() -> None:
    vertices, faces = cube()
    inside_out = compare(surface(vertices, faces[:, ::-1]), surface(vertices, faces))
    assert (inside_out.normal_consistency, inside_out.signed_normal_consistency) == (1, -1)
    assert compare(surface(*sphere(500)), surface(*box(1.5, 1.5, 1.5))).normal_consistency < 0.95


def test_edge_chamfer_sees_rounded_corners() -> None:
    assert len(sharp_edges(surface(*cube()))) == 12  # no diagonals
    assert len(sharp_edges(surface(*sphere(500)))) == 0
    vertices, faces = cube()
    faces[3] = faces[3, ::-1]  # wound the other way: no other fold
    assert len(sharp_edges(surface(vertices, faces))) == 12
    round_one = surface(*sphere(500))
    assert compare(round_one, surface(*cube())).edge_chamfer == 1
    assert compare(round_one, round_one).edge_chamfer == 0


def test_the_same_seed_gives_the_same_points_and_soup_the_same_distances() -> None:
    s = surface(*sphere(50))
    a, b, c = (sample_points(s, 1000, seed) for seed in (0, 0, 1))
    assert (a.points == b.points).all() and not (a.points == c.points).any()
    assert compare(s, surface(*cube())) == compare(surface(*sphere(50)), surface(*cube()))
    split = compare(surface(*soup(sphere(50))), surface(*cube()))
    assert split.chamfer_l1 == pytest.approx(compare(s, surface(*cube())).chamfer_l1, rel=1e-12)


def test_points_are_uniform_by_area() -> None:
    """Of 4,000 points on two squares of areas 1 and 9, a tenth fall on the smaller, give or take one."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [5, 0, 0], [8, 0, 0], [8, 3, 0], [0, 1, 0], [5, 3, 0]], float)
    faces = np.array([[0, 1, 2], [0, 2, 6], [3, 4, 5], [3, 5, 7]])
    samples = sample_points(surface(vertices, faces), 4000)
    small = samples.points[:, 0] < 2
    assert abs(small.sum() - 400) <= 1
    assert samples.points[small].mean(0) == pytest.approx([0.5, 0.5, 0], abs=0.05)  # 0.015 expected of each
    assert np.bincount(samples.faces) == pytest.approx([200, 200, 1800, 1800], abs=1)
    assert (samples.normals == [0, 0, 1]).all()


def test_twice_the_points_change_little() -> None:
    """What the protocol's 10,000 points leave to chance: 0.16 % of Chamfer measured, the worst of four seeds."""
    a, b = surface(*turned(sphere(300, seed=4))), surface(*box(1.2, 1.6, 1.4))
    few = compare(a, reference(b))
    many = compare(a, reference(b, Protocol(points=100_000, seed=1)))
    assert few.chamfer_l1 == pytest.approx(many.chamfer_l1, rel=5e-3)
    assert few.hausdorff == pytest.approx(many.hausdorff, rel=1e-3)


def test_nothing_is_the_worst_and_a_reference_of_nothing_an_error() -> None:
    nothing = surface(np.zeros((0, 3)), np.zeros((0, 3), int))
    flat = surface(np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]], float), np.array([[0, 1, 2]]))
    for mesh in (nothing, flat):
        assert compare(mesh, surface(*cube())) == Geometry()
        with pytest.raises(InputError, match="no face with an area"):
            reference(mesh)
        with pytest.raises(InputError, match="no surface"):
            sample_points(mesh, 10)
    with pytest.raises(InputError, match="at least 1 point"):
        Protocol(points=0)
    with pytest.raises(InputError, match="threshold"):
        Protocol(threshold=0)
