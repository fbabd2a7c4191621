from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from rl3d.errors import InputError
from rl3d.export.simplify import signed_volume, simplify, split_non_manifold, tidy
from rl3d.scenes import Mesh, mesh_facts


def test_tidy_welds_drops_and_orients() -> None:
    box = trimesh.creation.box((1, 1, 1))
    soup = box.vertices[box.faces].reshape(-1, 3)  # three vertices of its own for each face
    faces = np.arange(36).reshape(12, 3)[:, ::-1]  # inside out
    faces = np.concatenate([faces, faces[:2], [[0, 0, 5]]])  # a repeat, a degenerate face
    soup = np.concatenate([soup, [[9, 9, 9.0]]])  # an unused vertex
    vertices, kept = tidy(soup, faces)
    # 9, 9, 9 stretches the box by which "the same place" is measured, no more.
    assert vertices.shape == (8, 3) and kept.shape == (12, 3)
    assert signed_volume(vertices, kept) == pytest.approx(1.0)


def test_tidy_keeps_both_sides_of_a_sheet() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.0]])
    assert len(tidy(vertices, np.array([[0, 1, 2], [0, 2, 1]]))[1]) == 2
    assert len(tidy(vertices, np.array([[0, 1, 2], [1, 2, 0]]))[1]) == 1


@pytest.mark.parametrize("faces", [np.zeros((0, 3), int), np.array([[0, 0, 1]])])
def test_nothing_left_is_an_error(faces: np.ndarray) -> None:
    with pytest.raises(InputError, match="no faces"):
        tidy(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.0]]), faces)


@pytest.mark.parametrize("target", [40, 300])
def test_simplify_reaches_its_target_and_stays_closed(target: int) -> None:
    torus = trimesh.creation.torus(0.4, 0.15, major_sections=48, minor_sections=32)
    mesh = Mesh(torch.tensor(torus.vertices, dtype=torch.float32), torch.tensor(torus.faces, dtype=torch.int64))
    small = simplify(mesh, target)
    facts = mesh_facts(small)
    assert 0.8 * target <= len(small.faces) <= target + 2
    assert facts["watertight"] and facts["consistent_winding"] and facts["degenerate_faces"] == 0
    # Measured: 0.992 of the volume at 300 faces, 0.79 at 40.
    assert facts["volume"] == pytest.approx(torus.volume, rel=0.03 if target == 300 else 0.25)


def test_simplify_leaves_a_small_mesh_alone(box: Mesh) -> None:
    assert len(simplify(box, 4000).faces) == len(box.faces)
    with pytest.raises(InputError, match="at least 4 faces"):
        simplify(box, 3)


def _facts(vertices: np.ndarray, faces: np.ndarray) -> dict:
    return mesh_facts(Mesh(torch.from_numpy(vertices), torch.from_numpy(faces)))


def test_two_boxes_that_touch_in_an_edge_are_parted() -> None:
    box = trimesh.creation.box((1, 1, 1))
    shifted = box.vertices + np.array([1, 1, 0])
    vertices, faces = tidy(np.concatenate([box.vertices, shifted]), np.concatenate([box.faces, box.faces + 8]))
    before = _facts(vertices, faces)
    assert len(vertices) == 14 and before["non_manifold_edges"] == 1
    after = _facts(*split_non_manifold(vertices, faces))
    assert after["watertight"] and after["components"] == 2 and after["vertices"] == 16
    assert after["volume"] == pytest.approx(2.0, rel=0.02)


def test_two_boxes_that_touch_in_a_vertex_are_parted() -> None:
    box = trimesh.creation.box((1, 1, 1))
    both = np.concatenate([box.vertices, box.vertices + 1])
    vertices, faces = tidy(both, np.concatenate([box.faces, box.faces + 8]))
    after = _facts(*split_non_manifold(vertices, faces))
    assert len(vertices) == 15 and after["vertices"] == 16 and after["components"] == 2


def test_a_ring_that_closes_on_its_own_edge_gets_a_midpoint() -> None:
    # Four boxes around a hole, two of which touch in one edge only: both ends of that edge stay one fan each.
    cells = np.zeros((3, 2, 3), bool)
    cells[:, 0, :] = True
    cells[0, 1, 0] = cells[1, 1, 1] = True
    boxes = [trimesh.creation.box((1, 1, 1)).apply_translation(c) for c in np.argwhere(cells)]
    inside = trimesh.util.concatenate(boxes)
    vertices, faces = np.asarray(inside.vertices), np.asarray(inside.faces)
    # Walls between two cells cancel.
    centres = np.round(vertices[faces].mean(1) * 60).astype(int)
    _, which, times = np.unique(centres, axis=0, return_inverse=True, return_counts=True)
    vertices, faces = tidy(vertices, faces[times[which.reshape(-1)] == 1])
    assert _facts(vertices, faces)["non_manifold_edges"] >= 1
    after = _facts(*split_non_manifold(vertices, faces))
    assert after["watertight"] and after["consistent_winding"]
    assert after["volume"] == pytest.approx(cells.sum(), rel=0.02)
