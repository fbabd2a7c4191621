"""Training the reconstructor: stopping and going on gives the same weights; what comes out is a reconstructor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_world import load_tool, write_assets

from rl3d.data.asset_set import load_asset_set, read_records
from rl3d.data.batches import ViewBatches
from rl3d.data.views import ViewSpec, build_view_cache
from rl3d.reconstruct import load_reconstructor, look

SIZES = {"image_size": 16, "width": 16, "depth": 1, "heads": 2, "features": 4, "hidden": 8, "gaussians": 60, "grid": 16}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("train_reconstructor")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(assets, cache)"""
    folder = tmp_path_factory.mktemp("data")
    assets = write_assets(folder / "assets")
    spec = ViewSpec(size=16, sets=3, supersample=2)
    build_view_cache(load_asset_set(assets), spec, folder / "cache", progress=False)
    return assets, folder / "cache"


def train(tool: ModuleType, data: tuple[Path, Path], out: Path, steps: int, *more: str) -> dict[str, torch.Tensor]:
    words = ["train_reconstructor", *map(str, data), "--out", str(out), "--steps", str(steps), "--batch", "2"]
    words += ["--model", json.dumps(SIZES), "--threads", "1", "--warmup", "2", "--eval-assets", "2", *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        tool.main()
    return load_file(out / "checkpoint.safetensors")


def test_two_and_two_steps_are_four(tool: ModuleType, data: tuple[Path, Path], tmp_path: Path) -> None:
    whole = train(tool, data, tmp_path / "whole", 4)
    train(tool, data, tmp_path / "parts", 2)
    parts = train(tool, data, tmp_path / "parts", 4)
    assert whole.keys() == parts.keys() and any(k.startswith("opt.") for k in whole)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    rows = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["assets"]) for row in rows] == [(2, 4), (4, 8)]
    wanted = {
        f"{split}_{what}_{where}"
        for split in ("train", "val")
        for what in ("psnr", "iou")
        for where in ("given", "novel")
    }
    assert wanted <= rows[0].keys() and all(rows[0][k] > 0 for k in wanted)


def test_training_lowers_the_loss(tool: ModuleType, data: tuple[Path, Path], tmp_path: Path) -> None:
    train(tool, data, tmp_path, 1, "--ema", "0")
    train(tool, data, tmp_path, 30, "--ema", "0", "--lr", "5e-3")
    first, last = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert last["train_psnr_given"] > first["train_psnr_given"] + 1, (first, last)
    assert last["train_psnr_novel"] > first["train_psnr_novel"] + 1


def test_what_is_saved_loads(
    tool: ModuleType, data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = train(tool, data, tmp_path / "run", 2)
    train(tool, data, tmp_path / "run", 2)
    assert "is at step 2 already" in capsys.readouterr().out
    train(tool, data, tmp_path / "run", 2, "--save", str(tmp_path / "model"))
    loaded = load_reconstructor(tmp_path / "model")
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, checkpoint[f"ema.{name}"].half().float())
    with pytest.raises(SystemExit, match="is no training run"):
        train(tool, data, tmp_path / "none", 2, "--save", str(tmp_path / "model"))


def test_both_sets_show_the_same_assets_in_the_same_colours(tool: ModuleType, data: tuple[Path, Path]) -> None:
    """Other cameras, one object: the means of its colours are near each other, also where it was painted anew."""
    source = ViewBatches(data[1], read_records(data[0]), "train", 1.0)
    (images, _), (others, _) = tool.draw(source, 6, np.random.default_rng(0))
    for a, b in zip(images, others):
        mean = [(x[:, :3].sum((0, 2, 3)) / x[:, 3].sum()) for x in (a, b)]
        assert float((mean[0] - mean[1]).abs().max()) < 0.12  # other sides are in view; measured 0.03
    assert not torch.equal(images, others)
    given, cameras, targets, at = tool.example(source, 3, np.random.default_rng(1), False)
    assert given.shape == (3, 4, 4, 16, 16) and targets.shape == (3, 4, 4, 16, 16)
    assert (len(cameras), len(at)) == (12, 12)


def test_targets_are_what_their_cameras_see(tool: ModuleType, data: tuple[Path, Path]) -> None:
    """A target of the given set is one of the given views, and its camera is that view's."""
    source = ViewBatches(data[1], read_records(data[0]), "train", 0.0)
    given, cameras, targets, at = tool.example(source, 3, np.random.default_rng(2), False)
    for i in range(3):
        for j in range(2):
            k = [torch.equal(view, targets[i, j]) for view in given[i]].index(True)
            assert torch.equal(cameras.view[4 * i + k], at.view[4 * i + j])


def test_spoiling_leaves_most_assets_alone(tool: ModuleType) -> None:
    images = torch.rand(40, 4, 1, 8, 8).expand(-1, -1, 4, -1, -1).contiguous()
    spoilt = tool.spoil(images, np.random.default_rng(0))
    changed = [not torch.equal(a, b) for a, b in zip(images, spoilt)]
    assert 4 <= sum(changed) <= 20  # 12 of 40 expected
    assert float(spoilt.min()) >= 0 and float(spoilt.max()) <= 1
    assert bool((spoilt[:, :, :3] <= spoilt[:, :, 3:]).all())


def test_an_untrained_run_shows_scenes(tool: ModuleType, data: tuple[Path, Path], tmp_path: Path) -> None:
    train(tool, data, tmp_path / "run", 1, "--save-every", "0")
    train(tool, data, tmp_path / "run", 1, "--save", str(tmp_path / "model"))
    source = ViewBatches(data[1], read_records(data[0]), "val", 0.0)
    given, cameras, targets, at = tool.example(source, 2, np.random.default_rng(0), False)
    shown = look(load_reconstructor(tmp_path / "model")(given, cameras), at)
    assert shown.shape == targets.shape and float((shown - targets).abs().mean()) < 0.3
