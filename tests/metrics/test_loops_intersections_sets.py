from __future__ import annotations

import numpy as np
import pytest
from metric_shapes import Shape, both, cube, grid, sphere, turned

from rl3d.errors import InputError
from rl3d.metrics import edge_loops, pair_quads, self_intersecting, set_scores, surface
from rl3d.metrics.sets import coverage, distance_matrix, minimum_matching_distance, one_nearest_neighbour_accuracy


def torus(around: int, across: int) -> Shape:
    a, b = np.meshgrid(np.arange(around) * 2 * np.pi / around, np.arange(across) * 2 * np.pi / across, indexing="ij")
    radius = 1 + 0.4 * np.cos(b)
    vertices = np.stack([radius * np.cos(a), radius * np.sin(a), 0.4 * np.sin(b)], -1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(around), np.arange(across), indexing="ij")
    a, b = i * across + j, (i + 1) % around * across + j
    c, d = (i + 1) % around * across + (j + 1) % across, i * across + (j + 1) % across
    return vertices, np.stack([a, b, c, a, c, d], -1).reshape(-1, 3)


def test_loops_by_hand() -> None:
    ring = edge_loops(surface(*torus(24, 16)))  # 24 closed loops of 16 edges and 16 of 24
    assert (ring.count, ring.average, ring.fracture_ratio) == (40, 2 * 24 * 16 / 40, 0)
    cubes = edge_loops(surface(*cube()))  # three quads a corner: no edge goes on, and none is broken
    assert (cubes.count, cubes.average, cubes.fracture_ratio) == (12, 1, 0)
    sheet = edge_loops(surface(*grid(10)))  # 11 lines of 10 edges each way, the four borders among them
    assert (sheet.count, sheet.average, sheet.fracture_ratio) == (22, 10, 0)
    nothing = edge_loops(surface(np.zeros((0, 3)), np.zeros((0, 3), int)))
    assert (nothing.count, nothing.average, nothing.fracture_ratio) == (0, 0, 1)


def test_a_missing_pair_breaks_the_loops_through_its_corners() -> None:
    """A square of a sheet cut along both diagonals has four triangles around a new vertex, none of them in a quad."""
    vertices, faces = grid(5)
    middle = 2 * (2 * 5 + 2)  # its two triangles: square (2, 2)
    a, b, c, d = (2 * 6 + 2, 3 * 6 + 2, 3 * 6 + 3, 2 * 6 + 3)
    vertices = np.concatenate([vertices, [[2.5, 2.5, 0.8]]])  # raised, so that no two of the four are flat
    faces = np.concatenate(
        [np.delete(faces, [middle, middle + 1], 0), [[a, b, 36], [b, c, 36], [c, d, 36], [d, a, 36]]]
    )
    s = surface(vertices, faces)
    assert len(pair_quads(s).faces) == 24
    loops = edge_loops(s)
    # the four corners are faults; each of their 4 edges ends there: 16 of the 2 * 60 ends of sides
    assert loops.fracture_ratio == pytest.approx(16 / 120)
    # 12 lines, the 4 borders whole; each of the 4 lines through the square is cut at 2 corners into 3
    assert (loops.count, loops.average) == (12 + 4 * 2, 60 / 20)


def test_two_cubes_in_each_other_by_hand() -> None:
    apart = both(cube(), (cube()[0] + [1.5, 0, 0], cube()[1]))
    inside = both(cube(), (cube()[0] * 0.5, cube()[1]))
    assert not self_intersecting(surface(*apart)).any() and not self_intersecting(surface(*inside)).any()
    through = both(cube(), (cube()[0] * [0.2, 3, 0.2] + [0.1, 0, 0.03], cube()[1]))
    flags = self_intersecting(surface(*turned(through)))
    # the bar goes through the top and the bottom (sides -Y and +Y: faces 4 to 7 of the cube) with its four long sides
    assert sorted(set(np.flatnonzero(flags)) & set(range(12))) == [4, 5, 6, 7]
    assert sorted(set(np.flatnonzero(flags)) - set(range(12))) == [12, 13, 14, 15, 20, 21, 22, 23]


def test_contact_is_none_but_an_overlap_in_one_plane_is() -> None:
    on_top = both(cube(), (cube()[0] * 0.4 + [0.13, 0.7, 0.08], cube()[1]))
    flags = self_intersecting(surface(*turned(on_top)))
    assert flags[:12].sum() == 2 and flags[12:].sum() == 2  # the two lids, not the walls that stand on one
    beside = both(grid(2), (grid(2)[0] + [2, 0.5, 0], grid(2)[1]))  # along a common line in one plane
    assert not self_intersecting(surface(*beside)).any()


def brute(shape: Shape) -> np.ndarray:
    """By the sides of one triangle through the other, for triangles in general position: orientation signs alone."""
    vertices, faces = shape
    t = vertices[faces]

    def volume(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
        return np.einsum("...i,...i->...", np.cross(b - a, c - a), d - a)

    def pierces(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        hit = np.zeros(np.broadcast_shapes(one.shape[:-2], other.shape[:-2]), bool)
        a, b, c = (other[..., k, :] for k in range(3))
        for k in range(3):
            p, q = one[..., k, :], one[..., (k + 1) % 3, :]
            sides = [np.sign(volume(p, q, x, y)) for x, y in ((a, b), (b, c), (c, a))]
            straddles = np.sign(volume(a, b, c, p)) * np.sign(volume(a, b, c, q)) < 0
            hit |= straddles & (sides[0] == sides[1]) & (sides[1] == sides[2])
        return hit

    one, other = t[:, None], t[None, :]
    shared = (faces[:, None, :, None] == faces[None, :, None, :]).any((2, 3))
    return ((pierces(one, other) | pierces(other, one)) & ~shared).any(1)


@pytest.mark.parametrize("seed", range(3))
def test_intersections_agree_with_brute_force(seed: int) -> None:
    """Random triangles, and three crumpled spheres in each other."""
    random = np.random.default_rng(seed)
    loose = random.uniform(-1, 1, (150, 1, 3)) + random.normal(0, 0.25, (150, 3, 3))
    loose = loose.reshape(-1, 3), np.arange(450).reshape(-1, 3)
    spheres = [(sphere(60)[0] * random.uniform(0.7, 1.1, (60, 1)) + 0.4 * random.normal(size=3), sphere(60)[1])]
    spheres += [(turned(spheres[0], k)[0] + 0.4 * random.normal(size=3), sphere(60)[1]) for k in (1, 2)]
    for shape in (loose, both(*spheres)):
        s = surface(*shape)
        expected = brute((s.vertices, s.faces))
        assert 20 < expected.sum() < len(s.faces)
        assert (self_intersecting(s) == expected).all()


def test_set_scores_by_hand() -> None:
    # on a line: generated at 0, 1 and 10; references at 0.4, 2 and 3
    generated, references = np.array([0.0, 1.0, 10.0]), np.array([0.4, 2.0, 3.0])

    def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return distance_matrix(a, b, lambda x, y: abs(x - y))

    across = between(generated, references)
    assert coverage(across) == pytest.approx(2 / 3)  # nearest of 0 and of 1: 0.4; of 10: 3
    assert minimum_matching_distance(across) == pytest.approx((0.4 + 1.0 + 2.0) / 3)
    # nearest: 0 -> 0.4, 1 -> 0.4, 10 -> 3, 0.4 -> 0, 2 -> 1 or 3 (a tie), 3 -> 2: only the last is of its own set
    assert one_nearest_neighbour_accuracy(
        between(generated, generated), across, between(references, references)
    ) == pytest.approx(1 / 6)
    scores = set_scores(between(generated, generated), across, between(references, references))
    assert (scores.cov, scores.one_nna) == (pytest.approx(2 / 3), pytest.approx(1 / 6))


def test_sets_that_are_the_same_or_apart() -> None:
    points = np.random.default_rng(0).normal(size=(200, 2))

    def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.linalg.norm(a[:, None] - b[None], axis=2)

    one, other = points[:100], points[100:]
    alike = set_scores(between(one, one), between(one, other), between(other, other))
    assert 0.35 < alike.one_nna < 0.65 and alike.cov > 0.4  # 0.5 expected, the standard deviation is 0.035
    apart = set_scores(between(one, one), between(one, other + 9), between(other, other))
    assert apart.one_nna == 1 and apart.cov < 0.1
    collapsed = np.repeat(one[:1], 100, 0)  # the same shape a hundred times
    lonely = set_scores(between(collapsed, collapsed), between(collapsed, other), between(other, other))
    assert lonely.cov == 0.01 and lonely.one_nna > 0.9


def test_wrong_matrices() -> None:
    with pytest.raises(InputError, match="NaN"):
        coverage(np.array([[0.0, np.nan]]))
    with pytest.raises(InputError, match="rows and columns"):
        minimum_matching_distance(np.zeros((0, 3)))
    with pytest.raises(InputError, match=r"must be \[2, 2\] and \[3, 3\]"):
        set_scores(np.zeros((3, 3)), np.zeros((2, 3)), np.zeros((3, 3)))
