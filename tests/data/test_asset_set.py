"""Folders of meshes with captions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_world import BROWN, GREEN, RED

from rl3d.data.asset_set import canonical, load_asset_set, read_records
from rl3d.errors import InputError


def test_meshes_of_every_format_arrive_with_their_colours(assets: Path) -> None:
    loaded = load_asset_set(assets)
    assert len(loaded) == 6 and [r.colour for r in loaded.records[:3]] == ["brown", "red", "green"]
    vertices, faces, colours = loaded.mesh(0)
    assert (len(faces), vertices.dtype, faces.dtype) == (12, np.float32, np.int64)
    for index, (main, other) in {0: (BROWN, BROWN), 1: (RED, (0.51, 0.52, 0.53)), 2: (GREEN, BROWN)}.items():
        _, _, colours = loaded.mesh(index)
        distance = np.minimum(np.abs(colours - main).max(1), np.abs(colours - other).max(1))
        assert distance.max() < 0.003  # 8 bits in a file: half a step is 0.002
        assert (np.abs(colours - main).max(1) < 0.003).any()
    for i in range(6):
        vertices, faces, _ = loaded.mesh(i)
        assert faces.max() < len(vertices)
        assert np.linalg.norm(vertices, axis=1).max() <= 0.6001
        assert np.abs(vertices.min(0) + vertices.max(0)).max() < 1e-6


def test_canonical_size_by_hand() -> None:
    # A rod of length 2: longest side 1, reach 0.5, inside 0.6. A cube: half diagonal sqrt(3) / 2, shrunk to 0.6.
    rod = canonical(np.array([[0.0, 5, 0], [2, 5, 0]]))
    assert np.allclose(rod, [[-0.5, 0, 0], [0.5, 0, 0]])
    cube = canonical(np.array([[0.0, 0, 0], [3, 3, 3]]))
    assert np.allclose(np.linalg.norm(cube, axis=1), 0.6)


def test_the_packed_arrays_are_the_meshes(assets: Path, tmp_path: Path) -> None:
    loaded = load_asset_set(assets)
    counts = {"vertex_counts": np.diff(loaded.vertex_starts), "face_counts": np.diff(loaded.face_starts)}
    (tmp_path / "captions.jsonl").write_text((assets / "captions.jsonl").read_text())
    packed = {
        "vertices": np.rint(loaded.vertices * 4096).astype(np.int16),
        "faces": loaded.faces.astype(np.int32),
        "face_colours": np.rint(loaded.face_colours * 255).astype(np.uint8),
    }
    np.savez(tmp_path / "compact.npz", **packed, **counts)
    again = load_asset_set(tmp_path)
    assert np.abs(again.vertices - loaded.vertices).max() < 1e-3 and np.array_equal(again.faces, loaded.faces)
    lines = (assets / "captions.jsonl").read_text().splitlines()
    (tmp_path / "captions.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match=r"holds 6 meshes, captions\.jsonl 5 lines"):
        load_asset_set(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no captions.jsonl"),
        ("", "is empty"),
        ('{"file": "a.glb", "caption": "a"}\n{"file', "line 2 is not JSON"),
        ('{"file": "a.glb"}', 'must be an object with the texts "file" and "caption"'),
        ("[1, 2]", "must be an object"),
        (json.dumps({"file": "a.glb", "caption": "?!"}), "has no word"),
    ],
)
def test_bad_captions_are_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "captions.jsonl").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_records(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_mesh_is_named(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text('{"file": "gone.glb", "caption": "box"}')
    with pytest.raises(InputError, match=r"gone\.glb"):
        load_asset_set(tmp_path)
