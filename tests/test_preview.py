from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from rl3d.errors import InputError
from rl3d.preview import backdrop, framing, picture, to_uint8, turntable, view_sheet, views
from rl3d.scenes import Dense, Field, Gaussians, Mesh, load_scene


@pytest.fixture(scope="module")
def box() -> Mesh:
    shape = trimesh.creation.box((2.0, 1.0, 1.0))
    colours = torch.tensor([[0.8, 0.1, 0.1]]).expand(12, 3)
    vertices = torch.tensor(shape.vertices, dtype=torch.float32) + torch.tensor([5.0, 0.0, 0.0])
    return Mesh(vertices, torch.tensor(shape.faces, dtype=torch.int64), face_colours=colours)


def test_to_uint8_rounds_and_clamps() -> None:
    got = to_uint8(torch.tensor([-0.5, 0.5, 2.0]).reshape(3, 1, 1))
    assert got.shape == (1, 1, 3) and got[0, 0].tolist() == [0, 128, 255]


def test_framing_holds_any_scene(box: Mesh) -> None:
    where = framing(box)
    assert where.centre == pytest.approx((5, 0, 0)) and where.floor == pytest.approx(-0.5)
    assert where.radius == pytest.approx(1.5**0.5)
    shown = views(box, torch.arange(4) * 1.57, size=48, shadow=0.0)
    difference = (shown - backdrop(48, 48)).abs().amax(1) > 0.05
    assert difference.any(2).any(1).all()  # seen from everywhere
    edge = torch.cat([difference[:, 0], difference[:, -1], difference[:, :, 0], difference[:, :, -1]], 1)
    assert not edge.any()  # and inside the picture


def test_framing_ignores_faint_and_far_splats() -> None:
    generator = torch.Generator().manual_seed(0)
    means = 0.3 * torch.nn.functional.normalize(torch.randn(1000, 3, generator=generator), dim=1)
    means[0] = 50.0  # a floater
    opacity = torch.full((1000,), 3.0)
    means[1], opacity[1] = -80.0, -9.0  # and an invisible one
    splats = Gaussians(means, torch.full((1000, 3), -3.0), torch.ones(1000, 4), opacity, torch.zeros(1000, 1, 3))
    where = framing(splats)
    assert where.radius < 0.5 and max(abs(c) for c in where.centre) < 0.05
    assert views(splats, torch.zeros(1), size=32).shape == (1, 3, 32, 32)


def test_shadow_lies_under_the_scene(box: Mesh) -> None:
    dark, light = (views(box, torch.zeros(1), 0.4, size=64, shadow=s)[0] for s in (0.5, 0.0))
    change = (light - dark).mean(0)  # [H, W]
    assert float(change.min()) > -1e-5 and float(change.max()) > 0.1
    rows = (change > 0.05).nonzero()[:, 0].float()
    assert float(rows.mean()) > 32  # in the lower half


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_turntable_is_an_endless_animation(box: Mesh, tmp_path: Path, suffix: str) -> None:
    out = turntable(box, tmp_path / f"turn{suffix}", frames=5, size=32)
    with Image.open(out) as image:
        assert image.size == (32, 32) and image.n_frames == 5 and image.info.get("loop") == 0
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_png_turntable_is_a_sheet_of_eight(box: Mesh, tmp_path: Path) -> None:
    with Image.open(turntable(box, tmp_path / "turn.png", size=32)) as image:
        assert image.size == (4 * 36 - 4, 2 * 36 - 4)


def test_unknown_suffixes_name_those_that_work(box: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"turn\.avi.*\.webp, \.gif, \.png, \.mp4"):
        turntable(box, tmp_path / "turn.avi")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"imageio.*\.webp, \.gif, \.png"):
        turntable(box, tmp_path / "turn.mp4")
    with pytest.raises(InputError, match=r"\.png, \.webp or \.jpg"):
        picture(box, tmp_path / "a.tiff")
    assert not list(tmp_path.iterdir())


def test_bad_numbers_and_empty_scenes(box: Mesh, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="frames >= 1"):
        turntable(box, tmp_path / "a.webp", frames=0)
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="nothing to show"):
        turntable(empty, tmp_path / "a.webp")
    with pytest.raises(InputError, match="cannot write"):
        (tmp_path / "file").write_text("")
        picture(box, tmp_path / "file" / "a.png", size=16)


def test_view_sheet_places_pictures_and_labels(tmp_path: Path) -> None:
    pictures = torch.stack([torch.full((3, 20, 30), v) for v in (0.0, 0.5, 1.0)])
    path = view_sheet(pictures, tmp_path / "s.png", columns=2, labels=["a", "a label much too long for this", "c"])
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (2 * (20 + 18 + 4) - 4, 2 * 34 - 4, 3)
    assert (sheet[:20, :30] == 0).all() and (sheet[:20, 34:] == 128).all() and (sheet[42:62, :30] == 255).all()
    assert (sheet[20:38, 34:] < 128).any()  # the label's ink
    with pytest.raises(InputError, match="3 pictures needs as many labels, got 1"):
        view_sheet(pictures, path, labels=["a"])
    with pytest.raises(InputError, match="one size"):
        view_sheet([pictures[0], pictures[1][:, :5]], path)
    with pytest.raises(InputError, match="one size"):
        view_sheet([], path)


def test_picture(box: Mesh, tmp_path: Path) -> None:
    with Image.open(picture(box, tmp_path / "p.jpg", size=40)) as image:
        assert image.size == (40, 40)


@pytest.mark.parametrize("kind", ["sdf", "density"])
def test_a_field_from_its_file_turns_in_the_middle_of_the_picture(kind: str, tmp_path: Path) -> None:
    """A ball of 0.2 m off the middle of its box: it fills the picture, whatever the box."""
    shift = torch.tensor([3.0, 1.0, -2.0])
    if kind == "sdf":
        field = Field.sphere(Dense.zeros(4, 3), bias_radius=0.2, beta=0.005)
    else:
        field = Field.blob(Dense.zeros(4, 3), bias_height=40.0, bias_radius=0.1)
    field = replace(field, box=field.box + shift)
    field.save(tmp_path / "ball.safetensors")
    scene = load_scene(tmp_path / "ball.safetensors")
    assert isinstance(scene, Field) and scene.kind == kind
    where = framing(scene)
    cell = 1.24 / 64
    assert where.centre == pytest.approx(shift.tolist(), abs=cell)
    low = 0.2 if kind == "sdf" else 0.1
    assert low < where.radius < 0.3
    shown = views(scene, torch.arange(2) * 1.57, size=32, shadow=0.0)
    difference = (shown - backdrop(32, 32)).abs().amax(1) > 0.05
    assert bool(difference[:, 16, 16].all()) and 0.4 < float(difference.float().mean()) < 0.85
    turntable(scene, tmp_path / "turn.webp", frames=2, size=16)
    with Image.open(tmp_path / "turn.webp") as image:
        assert image.size == (16, 16)


def test_an_empty_field_has_nothing_to_show() -> None:
    with pytest.raises(InputError, match="nothing to show"):
        framing(Field.blob(Dense.zeros(4, 3), bias_height=0.0))
