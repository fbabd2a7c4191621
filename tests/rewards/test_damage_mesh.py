"""Damaged shapes are what they say, on a box and on the props."""

from __future__ import annotations

import pytest
import torch

from rl3d.errors import InputError
from rl3d.rewards import damage_mesh
from rl3d.rewards.check_assets import box, check_assets, joined
from rl3d.scenes import Mesh
from rl3d.scenes.facts import mesh_facts

RED = (0.8, 0.2, 0.2)


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def area(mesh: Mesh) -> float:
    return float(mesh.face_areas.sum())


def test_a_box_is_cut_in_half() -> None:
    """2 x 2 x 2 around the origin, cut at z = 0: the front, four half sides, no back: 4 + 4 * 2."""
    half = damage_mesh.clipped(box((0, 0, 0), (2, 2, 2), RED), torch.tensor([0.0, 0.0, 1.0]))
    assert area(half) == pytest.approx(12) and float(half.vertices[:, 2].min()) >= -1e-6
    assert half.face_colours is not None and bool((half.face_colours == torch.tensor(RED)).all())
    assert float(half.face_normals[:, 2].min()) > -1e-6  # nothing was turned around
    with pytest.raises(InputError, match="nothing is left"):
        damage_mesh.clipped(box((0, 0, -3), (1, 1, 1), RED), torch.tensor([0.0, 0.0, 1.0]))


def test_two_and_four_faces() -> None:
    """A box with a nose has two, then four; both stay closed and face outwards."""
    nosed = joined(box((0, 0, 0), (0.6, 0.6, 0.6), RED), box((0, 0, 0.4), (0.1, 0.1, 0.2), RED))
    two, four = damage_mesh.two_faced(nosed), damage_mesh.four_faced(nosed)
    assert two.bounds[:, 2].tolist() == pytest.approx([-0.5, 0.5]) and float(two.bounds[1, 0]) == pytest.approx(0.3)
    for axis in (0, 2):
        assert four.bounds[:, axis].tolist() == pytest.approx([-0.5, 0.5], abs=1e-6)
    for made, noses in ((two, 2), (four, 4)):
        facts = mesh_facts(made, 1e-5)
        assert facts["watertight"] and facts["consistent_winding"]
        # Each nose reaches 0.1 out of the box, and its other half lies inside, shell in shell: 0.1 * 0.1 * 0.2.
        assert facts["volume"] == pytest.approx(0.6**3 + noses * 0.1 * 0.1 * 0.2, rel=1e-4)


def test_shares_sizes_and_distances() -> None:
    mesh = box((0, 0, 0), (1, 1, 1), RED)
    assert area(damage_mesh.divided(mesh)) == pytest.approx(6)
    table = check_assets()[0].mesh
    left = area(damage_mesh.holes(table, seed(), 0.25)) / area(table)
    assert 0.65 < left < 0.85
    pierced = damage_mesh.punctured(mesh, seed(), 3, 0.15)
    # Three discs of 0.15, whole or around an edge; pieces count by their middles.
    assert 6 - 3.6 * 3.15 * 0.15**2 < area(pierced) < 6 - 1.5 * 3.14 * 0.15**2
    with_boxes = damage_mesh.floaters(mesh, seed(), 5, (0.05, 0.1), (0.9, 1.0))
    assert mesh_facts(with_boxes)["components"] == 6
    distance = with_boxes.vertices[8:].reshape(5, 8, 3).mean(1).norm(dim=1)
    assert float(distance.min()) >= 0.9 and float(distance.max()) <= 1.0
    assert damage_mesh.stretched(mesh, (1, 0.5, 2)).bounds[1].tolist() == [0.5, 0.25, 1.0]
    leant = damage_mesh.leaning(mesh, 0.5)
    assert float(leant.vertices[mesh.vertices[:, 1] > 0][:, 0].max()) == pytest.approx(1.0)


def test_rough_is_as_rough_as_asked_and_stays_closed() -> None:
    mesh = box((0, 0, 0), (1, 1, 1), RED)
    rough = damage_mesh.rough(mesh, seed(), 0.02, 0.2, waves=200)
    same = damage_mesh.rough(mesh, seed(), 0.0, 0.2)
    assert len(rough.faces) == len(same.faces) and area(same) == pytest.approx(6, rel=1e-5)
    moved = (rough.vertices - same.vertices).square().mean().sqrt()
    assert float(moved) == pytest.approx(0.02, rel=0.15)  # 0.0193; one draw of 200 waves
    facts = mesh_facts(rough, 1e-5)
    assert facts["components"] == 1 and facts["consistent_winding"]


def test_meshes_without_colours_stay_without() -> None:
    bare = Mesh(box((0, 0, 0), (1, 1, 1), RED).vertices, box((0, 0, 0), (1, 1, 1), RED).faces)
    for made in (damage_mesh.floaters(bare, seed()), damage_mesh.four_faced(bare), damage_mesh.holes(bare, seed())):
        assert made.face_colours is None and len(made.faces) > 0
