"""Training HFDream and MVReward: their pairs, resuming, that they learn what they are shown, and what is written."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_world import load_tool, write_assets

from rl3d.data.asset_set import load_asset_set, read_records
from rl3d.data.batches import ViewBatches
from rl3d.data.captions import build_vocabulary
from rl3d.data.views import ViewSpec, build_view_cache
from rl3d.rewards import HFDream, MVReward, Reward3D, load
from rl3d.rewards.judges import Judge, JudgeConfig, build_model, save_judge
from rl3d.rewards.reward3d import Reward3DConfig, Reward3DModel, save_reward3d

MODEL = json.dumps({"width": 16, "heads": 2, "blocks": 1})


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("train_view_heads")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, Path]:
    """(assets, cache, judge, reward3d)"""
    folder = tmp_path_factory.mktemp("data")
    assets = write_assets(folder / "assets")
    spec = ViewSpec(size=32, sets=3, supersample=2)
    build_view_cache(load_asset_set(assets), spec, folder / "cache", progress=False)
    words = build_vocabulary([r for r in read_records(assets) if r.split == "train"])
    torch.manual_seed(0)
    model = build_model(JudgeConfig("reward", len(words), 32, (8, 16, 16), 16, embedding=8))
    index = {w: i for i, w in enumerate(words)}
    save_judge(Judge("reward", model, index, ()), folder / "judge")
    torch.manual_seed(1)
    begun = Reward3DModel(Reward3DConfig(model.config, width=16, heads=2, blocks=1))
    save_reward3d(Reward3D(begun, index, 0.0, 1.0), folder / "reward3d")
    return assets, folder / "cache", folder / "judge", folder / "reward3d"


@pytest.fixture
def run(tool: ModuleType, data: tuple[Path, Path, Path, Path]) -> Callable[..., None]:
    def call(head: str, out: Path, *more: str) -> None:
        assets, cache, judge, reward3d = map(str, data)
        words = ["train_view_heads", assets, cache, "--head", head, "--out", str(out), "--judge", judge]
        words += ["--reward3d", reward3d]
        with pytest.MonkeyPatch.context() as patch:
            given = ["--model", MODEL, "--batch", "4", "--threads", "1", "--warmup", "2", *more]
            patch.setattr(sys, "argv", [*words, *given])
            tool.main()

    return call


def test_turned_views_stand_where_others_should(tool: ModuleType, data: tuple[Path, Path, Path, Path]) -> None:
    pairs, source = sys.modules["reward3d_pairs"], ViewBatches(data[1], read_records(data[0]), "train", 0.0)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    real = pairs.draw_real(source, source.keep, rng, 0.0)
    (turned,) = pairs.TURNS["turned"](source, real, rng, generator)
    assert any(torch.equal(turned, real.images.roll(k, 1)) for k in (1, -1))
    (opposite,) = pairs.TURNS["opposite"](source, real, rng, generator)
    assert torch.equal(opposite[:, 0], real.images[:, 2])
    for kind, make in pairs.CONSISTENCY.items():
        forms = make(source, real, rng, generator)
        gaps = [float((form - real.images).square().mean()) for form in forms]
        assert gaps[0] > 0 and gaps == sorted(gaps), kind


@pytest.mark.parametrize("head", ["hfdream", "mvreward"])
def test_three_and_three_steps_are_six(run: Callable[..., None], tmp_path: Path, head: str) -> None:
    run(head, tmp_path / "whole", "--steps", "6")
    run(head, tmp_path / "parts", "--steps", "3")
    run(head, tmp_path / "parts", "--steps", "6")
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and any(k.startswith("opt.") for k in whole)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    state = json.loads((tmp_path / "parts" / "state.json").read_text())
    assert (state["step"], state["assets"], state["head"]) == (6, 24, head)


def test_hfdream_learns_the_sides_of_a_box(
    run: Callable[..., None], tmp_path: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six colours on six sides: after 60 steps nearly every view has more than an even share for its own direction."""
    monkeypatch.setattr(tool, "EMPTY", 0.0)

    def sides(source, assets, rng, recolour):  # type: ignore[no-untyped-def]
        turn = torch.from_numpy(rng.uniform(-math.pi, math.pi, len(assets)))[:, None]
        azimuths = turn + torch.arange(4) * (math.pi / 2)
        images = torch.ones(len(assets), 4, 4, 32, 32)
        images[:, :, 0] = (0.5 + 0.5 * azimuths.cos())[..., None, None]
        images[:, :, 1] = (0.5 + 0.5 * azimuths.sin())[..., None, None]
        return type("Real", (), {"images": images, "azimuths": azimuths})

    monkeypatch.setattr(tool, "draw_real", sides)
    monkeypatch.setattr(tool, "seen_alike", lambda images, angles, rng: (images, angles))
    run("hfdream", tmp_path, "--steps", "60", "--lr", "1e-2")
    run("hfdream", tmp_path, "--steps", "61", "--lr", "1e-2")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["right"]["above even"] > 0.9 and rows[-1]["loss"] < -0.5


def test_mvreward_ranks_what_it_was_shown(
    run: Callable[..., None], tmp_path: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One plain kind alone; 40 steps bring its loss from log 2 to under half of that."""
    monkeypatch.setattr(tool, "PREFERENCE", {"blank_view": tool.PREFERENCE["blank_view"]})
    run("mvreward", tmp_path, "--steps", "1", "--kinds", "1")
    run("mvreward", tmp_path, "--steps", "40", "--kinds", "1", "--lr", "5e-3")
    run("mvreward", tmp_path, "--steps", "41", "--kinds", "1")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert abs(rows[0]["loss"] - math.log(2)) < 0.3 and rows[-1]["loss"] < 0.35


@pytest.mark.parametrize("head", ["hfdream", "mvreward"])
def test_evaluation_writes_weights_card_and_numbers(run: Callable[..., None], tmp_path: Path, head: str) -> None:
    assets = tmp_path / "assets" / head
    run(head, tmp_path / "run", "--steps", "2")
    run(head, tmp_path / "run", "--evaluate", "--assets", str(assets))
    row = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    pairs = row["val"]["pairs"]
    assert {head, "judge", "gain", "pairs", "visible"} == pairs["exchanged_views"].keys()
    assert ("opposite" in pairs) == (head == "hfdream") and ("wrong_noun" not in pairs)
    if head == "hfdream":
        assert row["val"]["quarter"]["all"]["views"] == 8  # 2 val assets of 4 views
    reward = load(f"{head}:{assets}")
    assert isinstance(reward, HFDream if head == "hfdream" else MVReward)
    card = (assets / "README.md").read_text()
    assert f'load("{head}")' in card and "| exchanged_views |" in card and "{" not in card
    manifest = json.loads((tmp_path / "assets" / "MANIFEST.json").read_text())
    assert set(manifest["models"][head]["files"]) == {
        "README.md",
        "config.json",
        "evaluation.json",
        "model.safetensors",
    }
