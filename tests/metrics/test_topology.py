from __future__ import annotations

import numpy as np
import pytest
import torch
from metric_shapes import both, cube, grid, soup, sphere, turned

from rl3d.errors import InputError
from rl3d.metrics import surface, topology
from rl3d.scenes import Mesh


def test_a_cube_by_hand() -> None:
    t = topology(surface(*cube()))
    assert (t.faces, t.vertices, t.edges, t.components, t.euler) == (12, 8, 18, 1, 2)
    assert (t.ber, t.non_manifold_ratio, t.degenerate_ratio, t.duplicate_ratio, t.winding_ratio) == (0, 0, 0, 0, 1)
    assert t.watertight and t.manifold and t.winding_consistent


def test_boundary_edge_ratio_by_hand() -> None:
    vertices, faces = cube()
    assert topology(surface(vertices, faces[1:])).ber == 3 / 18  # one triangle less: its three edges
    assert topology(surface(vertices, faces[2:])).ber == 4 / 17  # a square less: its diagonal goes too
    assert topology(surface(*grid(10))).ber == 40 / 320
    assert topology(surface([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.array([[0, 1, 2]]))).ber == 1


@pytest.mark.parametrize("copies", ["flipped", "tripled", "turned corners"])
def test_saying_faces_again_changes_nothing_but_the_ratio_of_duplicates(copies: str) -> None:
    vertices, faces = grid(10)
    again = {"flipped": [faces, faces[:, ::-1]], "tripled": [faces] * 3, "turned corners": [faces, faces[:, [1, 2, 0]]]}
    said = again[copies]
    once, often = topology(surface(vertices, faces)), topology(surface(vertices, np.concatenate(said)))
    assert (often.ber, often.edges, often.counted_faces) == (once.ber, once.edges, once.faces)
    assert often.duplicate_ratio == pytest.approx(1 - 1 / len(said))


def test_vertices_are_welded_first_at_any_scale() -> None:
    for scale in (1e-6, 1.0, 1e6):
        vertices, faces = soup(cube())
        noise = 1e-7 * np.random.default_rng(0).uniform(-1, 1, vertices.shape)
        t = topology(surface(scale * (vertices + noise), faces))
        assert (t.ber, t.vertices, t.manifold) == (0, 8, True), scale
    apart = topology(surface(*both(cube(), (cube()[0] + [1.00001, 0, 0], cube()[1]))))  # 7e-6 of the diagonal
    assert (apart.components, apart.vertices, apart.manifold) == (2, 16, True)


def test_three_sheets_on_an_edge_are_not_manifold() -> None:
    vertices = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [-1, 1, 0], [-1, -1, 0]], float)
    t = topology(surface(vertices, np.array([[0, 1, 2], [0, 1, 3], [0, 1, 4]])))
    assert (t.non_manifold_ratio, t.ber, t.edge_manifold, t.manifold) == (1 / 7, 6 / 7, False, False)


def test_two_cubes_that_share_a_corner_have_a_vertex_with_two_fans() -> None:
    vertices, faces = both(cube(), (cube()[0] + 1.0, cube()[1]))
    t = topology(surface(vertices, faces))
    assert (t.vertices, t.components, t.ber) == (15, 1, 0)
    assert t.edge_manifold and t.watertight and not t.vertex_manifold and not t.manifold


def test_winding() -> None:
    vertices, faces = sphere(40)
    assert topology(surface(vertices, faces)).winding_ratio == 1
    flipped = faces.copy()
    flipped[0] = flipped[0, ::-1]
    t = topology(surface(vertices, flipped))
    assert not t.winding_consistent and t.watertight and t.manifold
    assert t.winding_ratio == 1 - 3 / t.edges
    assert topology(surface(vertices, faces[:, ::-1])).winding_consistent  # inside out is consistent


def test_collapsed_and_flat_faces_are_degenerate() -> None:
    vertices, faces = cube()
    vertices = np.concatenate([vertices, [[0.5, 0.5, 0.0]]])
    more = np.array([[0, 0, 1], [6, 7, 8]])  # a repeated corner; 8 is the middle of the edge from 6 to 7
    t = topology(surface(vertices, np.concatenate([faces, more])))
    assert t.degenerate_ratio == 2 / 14
    assert t.counted_faces == 13  # the flat one counts, since such faces close T-junctions; the collapsed one does not


def test_nothing_has_the_worst_of_everything() -> None:
    t = topology(surface(np.zeros((0, 3)), np.zeros((0, 3), int)))
    assert (t.ber, t.non_manifold_ratio, t.degenerate_ratio) == (1, 1, 1)
    assert not (t.watertight or t.manifold or t.winding_consistent)
    point = topology(surface(np.ones((3, 3)), np.array([[0, 1, 2]])))  # three vertices in one place
    assert (point.ber, point.degenerate_ratio, point.counted_faces) == (1, 1, 0)


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        ([[0, 0, np.nan], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], "1 of 3 vertices are NaN or infinite"),
        ([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 3]], "1 faces point outside its 3 vertices"),
        ([[0, 0, 0], [1e12, 0, 0], [0, 1, 0]], [[0, 1, 2]], "the limit is 1e9"),
        ([[0, 0], [1, 0], [0, 1]], [[0, 1, 2]], "vertices must be [N, 3], got [3, 2]"),
        ([[0, 0, 0]], [[0.0, 0.0, 0.0]], "faces must be [F, 3] integers"),
    ],
)
def test_what_is_no_mesh_is_refused(vertices: list, faces: list, message: str) -> None:
    with pytest.raises(InputError) as error:
        surface(np.array(vertices), np.array(faces), name="x.obj")
    assert str(error.value).startswith("x.obj: ") and message in str(error.value)


def test_agrees_with_trimesh() -> None:
    import trimesh

    vertices, faces = sphere(300, seed=1)
    for name, kept in (("closed", faces), ("holes", np.delete(faces, [3, 100, 101, 250], 0)), ("half", faces[::2])):
        other = trimesh.Trimesh(*turned((vertices, kept)), process=False)
        t = topology(surface(other.vertices, other.faces))
        counts = np.bincount(other.edges_unique_inverse)
        assert t.ber == (counts == 1).mean(), name
        assert (t.edges, t.watertight) == (len(other.edges_unique), other.is_watertight), name
        assert (t.winding_consistent, t.euler) == (other.is_winding_consistent, other.euler_number), name


def test_a_mesh_of_tensors_is_taken() -> None:
    vertices, faces = cube()
    mesh = Mesh(torch.tensor(vertices, dtype=torch.float32, requires_grad=True), torch.tensor(faces))
    assert topology(mesh) == topology(surface(vertices, faces))
