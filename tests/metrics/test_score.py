"""Every known way to cheat a single number ends in the worst of all three."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from metric_shapes import Shape, both, box, cube, grid, soup, sphere

from rl3d.errors import InputError
from rl3d.metrics import (
    Gates,
    MeshScore,
    face_quality,
    load_surface,
    reference,
    score_file,
    score_mesh,
    surface,
    topology,
    topology_score,
    worst_score,
)


def score(shape: Shape, against: Shape | None = None, **kwargs: int) -> MeshScore:
    return score_mesh(surface(*shape), None if against is None else reference(surface(*against)), **kwargs)


def worst(found: MeshScore, gate: str) -> bool:
    return (found.ber, found.ts) == (1, 0) and found.hausdorff in (None, 1) and any(gate in f for f in found.failed)


def column(n: int = 24, rings: int = 12) -> Shape:
    """An open tube of squares with a waist, to be cheated about."""
    angle, height = np.meshgrid(np.arange(n) * 2 * np.pi / n, np.linspace(-1, 1, rings), indexing="ij")
    radius = 0.35 + 0.3 * height**2
    vertices = np.stack([radius * np.cos(angle), height, radius * np.sin(angle)], -1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(n), np.arange(rings - 1), indexing="ij")
    a, b = i * rings + j, (i + 1) % n * rings + j
    return vertices, np.stack([a, a + 1, b, b, a + 1, b + 1], -1).reshape(-1, 3)


def test_a_sound_mesh_passes_with_what_was_measured() -> None:
    found = score(column(), column())
    assert found.passed and found.hausdorff == pytest.approx(0, abs=1e-12)
    assert found.ber == found.topology.ber == 48 / 816  # two rims of 24 among 24 * (12 + 11 + 11) edges
    assert found.ts == found.quads.ts > 0.7
    assert found.self_intersection_ratio == 0


@pytest.mark.parametrize("again", ["flipped", "tripled"])
def test_hack_faces_said_again(again: str) -> None:
    vertices, faces = column()
    more = [faces, faces[:, ::-1]] if again == "flipped" else [faces] * 3
    found = score((vertices, np.concatenate(more)), column())
    assert worst(found, "duplicates")
    assert found.topology.ber == 48 / 816  # and not the 0 that counting the copies would give


def test_hack_soup() -> None:
    """Singles of its own triangles: every distance is small, none is connected."""
    vertices, faces = soup(column())
    apart = vertices + np.repeat(np.random.default_rng(0).normal(0, 0.003, (len(faces), 3)), 3, 0)
    found = score((apart, faces), column())
    assert found.topology.ber == 1 and found.geometry is not None and found.geometry.hausdorff < 0.02
    assert worst(found, "soup")
    assert score(soup(column()), column()).passed  # corners in the same places are the same corners


def test_hack_flat_box() -> None:
    """Twelve triangles with the box's own size: BER 0 and TS near 100, without the waist."""
    found = score(box(1.3, 2.0, 1.3), column())
    assert found.topology.ber == 0 and found.quads.ts > 0.85
    assert worst(found, "face count") and worst(found, "distance")
    assert worst(score(box(1.3, 2.0, 1.3), column(), faces=0), "distance")  # also where any number of faces goes


def test_hack_one_flat_sheet() -> None:
    assert worst(score((grid(16)[0] / 8 - 1, grid(16)[1]), column()), "distance")


def test_hack_needles() -> None:
    vertices, faces = cube()
    thin = score((vertices * [1, 1e-3, 1], faces))
    assert thin.topology.needle_ratio == 8 / 12 and worst(thin, "needles")
    flat = score((vertices * [1, 0, 0], faces))
    assert flat.topology.degenerate_ratio == 1 and worst(flat, "needles")
    fan = np.array([[0, 0, 0], *([np.cos(a), np.sin(a), 0] for a in np.linspace(0, 2 * np.pi, 721)[:-1])])
    spokes = np.array([[0, i + 1, (i + 1) % 720 + 1] for i in range(720)])  # half a degree each
    assert worst(score((fan, spokes)), "needles")


def test_hack_copies_beside_the_shape() -> None:
    """A shape five times, each next to the last, is within any distance, but not within the face count."""
    vertices, faces = column()
    moves = [(vertices + 0.002 * k, faces) for k in range(5)]
    found = score(both(*moves), column())
    assert found.geometry is not None and found.geometry.hausdorff < 0.02
    assert worst(found, "face count")


def test_hack_many_sheets_on_the_same_edges() -> None:
    """Fins close every boundary edge to a non-manifold one instead."""
    vertices, faces = grid(6)
    tips = vertices[faces].mean(1) + np.array([0, 0, 0.3])
    fins = [[a, b, len(vertices) + i] for i, f in enumerate(faces) for a, b in ((f[0], f[1]), (f[1], f[2]))]
    assert worst(score((np.concatenate([vertices, tips]), np.concatenate([faces, fins]))), "non-manifold")


def test_few_faces_and_nothing_are_worst() -> None:
    vertices, faces = grid(1)
    assert worst(score((vertices, faces)), "faces: 2 count, at least 4")
    assert worst(score((np.zeros((0, 3)), np.zeros((0, 3), int)), cube()), "faces")
    found = worst_score("the tokens end in the middle of a face", compared=True)
    assert worst(found, "tokens end")
    assert found.topology == topology(surface(np.zeros((0, 3)), np.zeros((0, 3), int)))


def test_the_number_of_faces_asked_for() -> None:
    assert score(sphere(100), faces=196).passed  # 2 n - 4
    assert worst(score(sphere(100), faces=800), "face count: 196, asked for 800")
    assert worst(score(sphere(100), faces=48), "face count")
    assert score(sphere(100), faces=784).passed and score(sphere(100), faces=49).passed  # the limits themselves
    with pytest.raises(InputError, match="must not be negative"):
        score(cube(), faces=-1)
    with pytest.raises(InputError, match="most_hausdorff must not be negative"):
        Gates(most_hausdorff=-1)
    assert score_mesh(surface(*cube()), gates=Gates(least_faces=13)).failed


def test_a_score_is_json() -> None:
    for found in (score(column(), column()), score(cube()), worst_score("x", True)):
        assert json.loads(json.dumps(found.as_json(), allow_nan=False))["failed"] == list(found.failed)


def write_obj(path: Path, vertices: np.ndarray, polygons: list) -> Path:
    lines = ["v " + " ".join(map(str, v)) for v in vertices]
    lines += ["f " + " ".join(str(i + 1) for i in polygon) for polygon in polygons]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_polygons_of_a_file_are_kept(tmp_path: Path) -> None:
    """A strip of three squares as one square, one square, and two triangles along the worse diagonal of the last."""
    vertices = np.array([[x, y, 0] for x in range(4) for y in range(2)], float)
    vertices[7] += [1.5, 0, 0]  # a skewed last quad: its corners are too far from right angles to be found
    triangles = [[0, 2, 3], [0, 3, 1], [2, 4, 5], [2, 5, 3], [4, 6, 7], [4, 7, 5]]
    plain = load_surface(write_obj(tmp_path / "triangles.obj", vertices, triangles))
    assert plain.polygon is None and topology_score(plain).quads == 2
    squares = load_surface(write_obj(tmp_path / "quads.obj", vertices, [[0, 2, 3, 1], [2, 4, 5, 3], [4, 6, 7, 5]]))
    assert squares.polygon is not None and topology_score(squares).quads == 3
    assert len(face_quality(squares)) == 6
    ply = "ply\nformat ascii 1.0\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\n"
    ply += "element face 3\nproperty list uchar int vertex_indices\nend_header\n"
    ply += "\n".join(" ".join(map(str, v)) for v in vertices) + "\n4 0 2 3 1\n4 2 4 5 3\n4 4 6 7 5\n"
    (tmp_path / "quads.ply").write_text(ply)
    off = "OFF\n8 3 0\n" + ply.split("end_header\n")[1]
    (tmp_path / "quads.off").write_text(off)
    for name in ("quads.ply", "quads.off"):
        assert topology_score(load_surface(tmp_path / name)) == topology_score(squares), name


def test_files_that_hold_no_mesh_are_worst(tmp_path: Path) -> None:
    for name, text, why in (
        ("empty.obj", "", "is empty (0 bytes)"),
        ("points.obj", "v 0 0 0\nv 1 0 0\n", "has no faces"),
        ("nan.obj", "v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "1 of 3 vertices are NaN or infinite"),
        ("far.obj", "v 0 0 0\nv 1e12 0 0\nv 0 1 0\nf 1 2 3\n", "the limit is 1e9"),
        ("bad.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "line 4"),
        ("single.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "faces: 1 count"),
        ("cut.glb", "glTF", "cut.glb"),
    ):
        (tmp_path / name).write_text(text)
        found = score_file(tmp_path / name, reference(surface(*cube())))
        assert worst(found, why), (name, found.failed)
        assert len(found.failed[0].splitlines()) == 1
