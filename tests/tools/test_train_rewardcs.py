"""Training RewardCS-mini: the shapes, resuming, what a few steps teach, and what is written at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_world import load_tool, write_assets

from rl3d.data.colours import WORDS as COLOURS
from rl3d.errors import InputError
from rl3d.rewards import RewardCS, load

MODEL = json.dumps({"points": 64, "patches": 8, "neighbours": 6, "width": 16, "heads": 2, "blocks": 1, "embedding": 8})


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("train_rewardcs")


@pytest.fixture(scope="module")
def data(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(assets, cache), with small grids"""
    folder = tmp_path_factory.mktemp("data")
    parts = sys.modules["rewardcs_shapes"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(parts.FUSED, "resolution", 24)
        patch.setitem(parts.HULL, "resolution", 12)
        parts.Shapes(write_assets(folder / "assets"), folder / "cache")
    return folder / "assets", folder / "cache"


@pytest.fixture(autouse=True)
def small(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = sys.modules["rewardcs_shapes"]
    monkeypatch.setitem(parts.FUSED, "resolution", 24)
    monkeypatch.setitem(parts.HULL, "resolution", 12)


@pytest.fixture
def run(tool: ModuleType, data: tuple[Path, Path]) -> Callable[..., None]:
    def call(out: Path, *more: str) -> None:
        words = ["train_rewardcs", *map(str, data), "--out", str(out), "--model", MODEL]
        with pytest.MonkeyPatch.context() as patch:
            counts = ["--clouds", "40", "--preferred", "3", "--dispreferred", "5", "--threads", "1", "--warmup", "2"]
            patch.setattr(sys, "argv", [*words, *counts, *more])
            tool.main()

    return call


def test_shapes_are_fused_once_and_near_their_meshes(data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = sys.modules["rewardcs_shapes"]
    before = (data[1] / "grids.npy").stat().st_mtime_ns
    shapes = parts.Shapes(*data)
    assert (data[1] / "grids.npy").stat().st_mtime_ns == before
    assert shapes.grids.shape == (6, 24, 24, 24) and shapes.faithful.sum() >= 4
    for asset in np.flatnonzero(shapes.faithful):
        plain, fused = (shapes.shape(int(asset), f) for f in (False, True))
        assert plain.grid is None and fused.grid is not None
        # A voxel is 0.054 metres; the largest here is 0.014.
        assert parts.gap(plain.mesh, fused.mesh) < parts.FAITHFUL
        assert parts.gap(plain.mesh, plain.mesh) < parts.VISIBLE
    monkeypatch.setitem(parts.FUSED, "views", 8)  # other options: made anew
    parts.Shapes(*data)
    assert (data[1] / "grids.npy").stat().st_mtime_ns > before
    monkeypatch.setitem(parts.FUSED, "views", 16)
    parts.Shapes(*data)


def test_every_kind_of_damage_is_made_and_judged(data: tuple[Path, Path]) -> None:
    parts = sys.modules["rewardcs_shapes"]
    shapes, rng = parts.Shapes(*data), np.random.default_rng(0)
    made = set()
    for asset in shapes.split("train"):
        shape = shapes.shape(int(asset), True)
        for kind in parts.MAKERS:
            if kind in parts.ON_GRIDS and shape.grid is None:
                continue
            found = parts.damaged(shape, kind, rng)
            if found is not None:
                made.add(kind)
                assert 0 < found[1] <= 1 and len(found[0].faces) > 0 and bool(found[0].vertices.isfinite().all())
    assert made >= set(parts.MAKERS) - {"two_faced", "four_faced", "smoothed"}  # boxes and drums have two fronts
    crate = shapes.shape(0, False)
    assert shapes.records[0].noun_words == ("crate",) and parts.damaged(crate, "two_faced", rng) is None
    with pytest.raises(InputError, match="fused shapes"):
        parts.MAKERS["coarse"](crate, rng)
    other = parts.other_noun(shapes, 0, shapes.split("train"), rng)
    assert not set(shapes.records[other].noun_words) & {"crate"}


def test_a_bank_grows_and_batches_hold_what_they_say(tool: ModuleType, data: tuple[Path, Path], tmp_path: Path) -> None:
    shapes, Bank = sys.modules["rewardcs_shapes"].Shapes(*data), sys.modules["rewardcs_bank"].Bank
    few = Bank(shapes, tmp_path, 20, 32, "train")
    more = Bank(shapes, tmp_path, 60, 32, "train")
    whole = Bank(shapes, tmp_path / "at once", 60, 32, "train")
    rows = np.arange(20)
    assert torch.equal(few.clouds(rows), more.clouds(rows)) and few.kinds.tolist() == more.kinds[:20].tolist()
    assert torch.equal(whole.clouds(np.arange(60)), more.clouds(np.arange(60)))
    preferred = torch.from_numpy(more.kinds == "")
    assert int(preferred.sum()) == 24 and more.marks[preferred].tolist() == [1.0] * 24
    assert bool((more.marks[~preferred] <= 0.5).all()) and float(more.marks.min()) >= 0
    assert {shapes.records[i].split for i in more.captions} == {"train"}
    rows, clouds, captions = tool.draw_batch(more, shapes.records, (4, 12), np.random.default_rng(0))
    assert clouds.shape == (16, 32, 6) and len(captions) == 16
    assert (more.kinds[rows[:4]] == "").all() and (more.kinds[rows[4:]] != "").all()
    assert not set(tool.vocabulary_of(shapes.records)) & set(COLOURS)
    one = more.clouds(np.zeros(1, np.int64))
    # Stored as 16 and 8 bits: 0.03 millimetres, and 0.004 a coordinate of the normals.
    assert torch.allclose(one[..., 3:].norm(dim=2), torch.ones(1, 32), atol=0.01)
    turned = tool.varied(one, np.random.default_rng(1))
    reach = [cloud[0, :, :3].norm(dim=1).sort().values for cloud in (turned, one)]
    ratio = reach[0] / reach[1]
    assert 0.94 <= float(ratio[0]) <= 1.03 and torch.allclose(ratio, ratio[:1], atol=1e-4)
    heights = [cloud[0, :, 1].sort().values for cloud in (turned, one)]
    assert torch.allclose(heights[0], ratio[0] * heights[1], atol=1e-5)


def test_three_and_three_steps_are_six(run: Callable[..., None], tmp_path: Path) -> None:
    """To the bit."""
    run(tmp_path / "whole", "--steps", "6")
    run(tmp_path / "parts", "--steps", "3")
    run(tmp_path / "parts", "--steps", "6")
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and any(k.startswith("opt.") for k in whole)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    state = json.loads((tmp_path / "parts" / "state.json").read_text())
    assert (state["step"], state["shapes"]) == (6, 48)


def test_training_teaches_a_plain_kind(run: Callable[..., None], tmp_path: Path, data: tuple[Path, Path]) -> None:
    """Shrunk shapes alone are dispreferred: 40 steps bring every one of them under the preferred."""
    parts, bank = sys.modules["rewardcs_shapes"], sys.modules["rewardcs_bank"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank, "MAKERS", {"scaled_down": parts.MAKERS["scaled_down"]})
        patch.setattr(bank, "NOUN_SHARE", 0.0)
        bank.Bank(parts.Shapes(*data), data[1] / "train_48", 40, 48, "train")
    sizes = json.dumps({**json.loads(MODEL), "points": 48})
    run(tmp_path, "--steps", "40", "--lr", "5e-3", "--model", sizes)
    run(tmp_path, "--steps", "44", "--model", sizes)
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert row["preferred_above"]["scaled_down"] > 0.9, row


def test_the_finished_reward_is_measured_and_installed(run: Callable[..., None], tmp_path: Path) -> None:
    run(tmp_path / "run", "--steps", "2")
    run(tmp_path / "run", "--evaluate", "--assets", str(tmp_path / "assets" / "rewardcs"))
    row = json.loads((tmp_path / "assets" / "rewardcs" / "evaluation.json").read_text())["val"]
    assert row["assets"] == 2 and row["known"] == 1  # of "blue chest" and "stone tower" training words know one
    found = row["pairs"]["scaled_down"]
    assert {"rewardcs", "judge", "connectedness", "symmetry", "stability", "gain", "pairs", "visible"} == found.keys()
    assert found["connectedness"][0] == 0.5  # a tie
    card = (tmp_path / "assets" / "rewardcs" / "README.md").read_text()
    assert "| scaled_down, fused | " in card and "Apache-2.0" in card and str(tmp_path) not in card
    manifest = json.loads((tmp_path / "assets" / "MANIFEST.json").read_text())["models"]["rewardcs"]
    assert {"config.json", "model.safetensors", "vocabulary.json", "README.md"} <= manifest["files"].keys()
    assert isinstance(load("rewardcs-mini", folder=tmp_path / "assets" / "rewardcs"), RewardCS)
