"""The view cache: what it stores is what the renderer shows, in any colour."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import BLUE, GREY, RED, box, cone

from rl3d.cameras import Cameras
from rl3d.colour import srgb_to_linear
from rl3d.data import views as views_module
from rl3d.data.asset_set import load_asset_set, read_records
from rl3d.data.batches import ViewBatches, word_ids
from rl3d.data.captions import HELD_OUT_PAIRS, SYNONYMS, split_words
from rl3d.data.views import (
    ViewSpec,
    build_view_cache,
    cameras_of,
    face_geometry,
    main_colour,
    orbit_sets,
    render_view_sets,
    to_images,
)
from rl3d.errors import InputError
from rl3d.render import render
from rl3d.scenes import Mesh

SPEC = ViewSpec(size=32, sets=2)


def stored_views(mesh: Mesh, cameras: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    """([1, V, 5, H, W] as stored, [1, 3] linear main colour)."""
    assert mesh.face_colours is not None
    arrays = mesh.vertices.numpy(), mesh.faces.numpy(), mesh.face_colours.numpy()
    stored = torch.from_numpy(render_view_sets(*arrays, cameras, SPEC))[None]
    _, mean, _ = main_colour(arrays[2], face_geometry(*arrays[:2])[1])
    return stored, torch.from_numpy(mean)[None]


@pytest.fixture(scope="module")
def cameras() -> Cameras:
    return Cameras.orbit(torch.arange(4) * (math.pi / 2) + 0.3, 0.4, 2.7, 0.47, SPEC.size)


@pytest.mark.parametrize("target", [BLUE, (0.95, 0.9, 0.2), (0.1, 0.1, 0.1)])
def test_recolouring_is_painting(cameras: Cameras, target: tuple[float, float, float]) -> None:
    """Painted after the fact and painted before rendering agree within 8 bits.

    Stored are sqrt(rgb), off by half a step, so 1 / 255 in linear light at most, and the weight, off by half a step.
    Twice the first and once the second make 0.01 at worst; measured 0.0055 in linear light.
    """
    mesh = cone(8, RED, GREY, 1.0)
    mesh = replace(mesh, vertices=mesh.vertices * 0.9)
    assert mesh.face_colours is not None
    stored, main = stored_views(mesh, cameras)
    is_red = (mesh.face_colours == torch.tensor(RED)).all(1, keepdim=True)
    assert torch.allclose(main, srgb_to_linear(torch.tensor(RED)), atol=1e-5)
    painted = replace(mesh, face_colours=torch.where(is_red, torch.tensor(target), mesh.face_colours))
    ours = to_images(stored, main, srgb_to_linear(torch.tensor(target))[None])
    want = to_images(*stored_views(painted, cameras))
    assert torch.equal(ours[:, :, 3], want[:, :, 3])

    def linear(x: torch.Tensor) -> torch.Tensor:
        return srgb_to_linear(x[:, :, :3] / x[:, :, 3:].clamp_min(1 / 255)) * x[:, :, 3:]

    assert float((linear(ours) - linear(want)).abs().max()) < 0.01
    unchanged = to_images(stored, main, main)
    assert torch.equal(unchanged, to_images(stored, main))


def test_the_cache_shows_what_the_renderer_shows(cameras: Cameras) -> None:
    """The compiled k x k average in linear light against rl3d.render's."""
    mesh = box((0.7, 0.5, 0.4), RED, BLUE, GREY, GREY, (0.9, 0.9, 0.2), (0.3, 0.6, 0.3))
    ours = to_images(*stored_views(mesh, cameras))[0]
    frames = render(mesh, cameras, shading="half_lambert", supersample=SPEC.supersample, antialias=False)
    want = torch.cat([frames.rgb, frames.alpha], 1)
    # Measured at most 0.0022, alpha 0.0020: half a step of 8 bits.
    assert float((ours - want).abs().max()) < 0.004
    assert float(ours[:, 3].mean()) > 0.1


def test_orbit_parameters_round_trip() -> None:
    spec = replace(SPEC, sets=5, distance=(2.2, 3.2))
    cameras, params = orbit_sets(spec, np.random.default_rng(0))
    again = cameras_of(params, spec.views, spec.fov_y, spec.size)
    assert len(cameras) == 20 and torch.equal(cameras.view, again.view)
    eye = cameras.centres.double()
    azimuth = torch.atan2(eye[:, 0], eye[:, 2]).unflatten(0, (5, 4))
    elevation, distance = torch.asin(eye[:, 1] / eye.norm(dim=1)), eye.norm(dim=1)
    want = torch.from_numpy(params).double()
    turn = azimuth - want[:, :1] - torch.arange(4) * (math.pi / 2)
    assert float(torch.sin(turn / 2).abs().max()) < 1e-5
    assert float((elevation.unflatten(0, (5, 4)) - want[:, 1:2]).abs().max()) < 1e-5
    assert float((distance.unflatten(0, (5, 4)) - want[:, 2:]).abs().max()) < 1e-5
    assert float(params[:, 1].min()) >= math.radians(-10) and float(params[:, 1].max()) <= math.radians(45)


@pytest.fixture(scope="module")
def cache(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    build_view_cache(load_asset_set(assets), SPEC, folder, progress=False)
    return folder


def test_a_cache_is_what_its_parts_say(assets: Path, cache: Path) -> None:
    loaded, spec = load_asset_set(assets), json.loads((cache / "spec.json").read_text())
    assert spec["words"] == ["brown", "red", "green", "pink", "blue", "grey"]
    stored, params = np.load(cache / "views.npy"), np.load(cache / "params.npy")
    assert stored.shape == (6, 2, 4, 5, 32, 32) and params.shape == (6, 2, 3)
    cameras = cameras_of(params[1], 4, SPEC.fov_y, SPEC.size)
    again = render_view_sets(*loaded.mesh(1), cameras, SPEC).reshape(stored.shape[1:])
    assert np.array_equal(stored[1], again)
    assert len(np.unique(params[..., 0])) == 12  # no two assets share cameras


def test_an_interrupted_build_leaves_nothing_that_looks_finished(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, records = load_asset_set(assets), read_records(assets)
    calls = []

    def fail_second(*arguments: object) -> np.ndarray:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.zeros((8, 5, 32, 32), np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(views_module, "render_view_sets", fail_second)
        with pytest.raises(KeyboardInterrupt):
            build_view_cache(loaded, SPEC, tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="is no finished view cache"):
        ViewBatches(tmp_path, records, "train", 0.5)
    # Over an older cache: once the views are new, the old description is gone.
    build_view_cache(loaded, replace(SPEC, size=8, supersample=1), tmp_path, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_view_cache(loaded, SPEC, tmp_path, progress=False)
    with pytest.raises(InputError, match="is no finished view cache"):
        ViewBatches(tmp_path, records, "train", 0.5)


def test_batches(assets: Path, cache: Path) -> None:
    records = read_records(assets)
    batches = ViewBatches(cache, records, "train", 0.5)
    images, captions, params, chosen = batches.draw(16, np.random.default_rng(0))
    assert images.shape == (16, 4, 4, 32, 32) and len(captions) == 16 and params.shape == (16, 3)
    assert float(images.min()) >= 0 and float(images.max()) <= 1 and bool((images[:, :, :3] <= images[:, :, 3:]).all())
    assert set(chosen) <= {0, 1, 2, 3}
    assert len(batches.cameras(params)) == 64
    again = batches.draw(16, np.random.default_rng(0))
    assert torch.equal(images, again[0]) and captions == again[1]
    plain = ViewBatches(cache, records, "val", 0.0).make(np.array([4]), np.array([1]), np.random.default_rng(0))
    stored = torch.from_numpy(np.load(cache / "views.npy")[4, 1])[None]
    assert torch.equal(plain[0], to_images(stored, torch.from_numpy(np.load(cache / "main.npy")[4:5])))


def test_recoloured_images_have_the_colour_that_the_caption_names(assets: Path, cache: Path) -> None:
    batches = ViewBatches(cache, read_records(assets), "train", 1.0)
    reddish = {"red": 0, "blue": 2, "green": 1}
    rng, seen = np.random.default_rng(0), 0
    for _ in range(40):
        images, captions, _, chosen = batches.make(np.array([0] * 4), np.array([0] * 4), rng)  # a crate of one colour
        mean = images[:, :, :3].sum((1, 3, 4)) / images[:, :, 3].sum((1, 2, 3))[:, None]
        for colour, caption in zip(mean, captions):
            for word in set(split_words(caption)) & set(reddish):
                seen += 1
                assert int(colour.argmax()) == reddish[word], (caption, colour)
    assert seen > 10 and len(chosen) == 4


def test_held_out_pairs_are_never_drawn(assets: Path, cache: Path) -> None:
    """Neither by recolouring nor as found: the pink couch is always shown in another colour."""
    meanings = {noun: {noun, *SYNONYMS.get(noun, ())} for _, noun in HELD_OUT_PAIRS}
    records = read_records(assets)
    for recolour in (0.0, 0.35, 1.0):
        batches, rng = ViewBatches(cache, records, "train", recolour), np.random.default_rng(1)
        couches = 0
        for _ in range(60):
            images, captions, _, chosen = batches.draw(16, rng)
            for image, caption, i in zip(images, captions, chosen):
                words = set(split_words(caption))
                for colour, noun in HELD_OUT_PAIRS:
                    assert not (colour in words and words & meanings[noun]), caption
                if i == 3:
                    couches += 1
                    assert "pink" not in words
                    painted = image[:, :3].sum((0, 2, 3)) / image[:, 3].sum()
                    found = torch.tensor([0.92, 0.47, 0.67])
                    assert float((painted / painted.norm() - found / found.norm()).abs().max()) > 0.02
        assert couches > 50


def test_another_asset_set_or_an_empty_split_is_refused(assets: Path, cache: Path) -> None:
    records = read_records(assets)
    with pytest.raises(InputError, match="holds 6 assets, the captions 5"):
        ViewBatches(cache, records[:5], "train", 0.0)
    with pytest.raises(InputError, match=r"no asset of .* is in the split 'test'"):
        ViewBatches(cache, records, "test", 0.0)


def test_word_ids() -> None:
    index = {"<pad>": 0, "<null>": 1, "a": 2, "red": 3, "box": 4}
    ids = word_ids(["A red BOX", "a zeppelin box", "zeppelin", " ".join(["box"] * 20)], index, 4)
    assert ids.tolist() == [[2, 3, 4, 0], [2, 4, 0, 0], [1, 0, 0, 0], [4, 4, 4, 4]]
