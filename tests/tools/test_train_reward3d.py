"""Training Reward3D-mini: known orders, the loss, resuming, candidates of the prior, and what is written at the end."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_world import load_tool, random_prior, write_assets

from rl3d.data.asset_set import load_asset_set, read_records
from rl3d.data.batches import ViewBatches
from rl3d.data.captions import build_vocabulary, held_out
from rl3d.data.views import ViewSpec, build_view_cache
from rl3d.errors import InputError
from rl3d.rewards import Reward3D, load
from rl3d.rewards.judges import Judge, JudgeConfig, build_model, save_judge

MODEL = json.dumps({"width": 16, "heads": 2, "blocks": 1})


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("train_reward3d")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(assets, cache, judge)"""
    folder = tmp_path_factory.mktemp("data")
    assets = write_assets(folder / "assets")
    spec = ViewSpec(size=32, sets=3, supersample=2)
    build_view_cache(load_asset_set(assets), spec, folder / "cache", progress=False)
    words = build_vocabulary([r for r in read_records(assets) if r.split == "train"])
    torch.manual_seed(0)
    model = build_model(JudgeConfig("reward", len(words), 32, (8, 16, 16), 16, embedding=8))
    save_judge(Judge("reward", model, {w: i for i, w in enumerate(words)}, ()), folder / "judge")
    return assets, folder / "cache", folder / "judge"


@pytest.fixture
def run(tool: ModuleType, data: tuple[Path, Path, Path]) -> Callable[..., None]:
    def call(out: Path, *more: str) -> None:
        assets, cache, judge = map(str, data)
        words = ["train_reward3d", assets, cache, "--out", str(out), "--judge", judge, "--model", MODEL]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*words, "--batch", "4", "--threads", "1", "--warmup", "2", *more])
            tool.main()

    return call


def source_of(data: tuple[Path, Path, Path], split: str) -> ViewBatches:
    return ViewBatches(data[1], read_records(data[0]), split, 0.5)


def test_the_loss_by_hand(tool: ModuleType) -> None:
    """Real 2, mild 0, worse 1: -log sigma of 2, 1 and -1; the last pair has the wrong order."""
    scores = torch.tensor([[2.0, 0.0, 1.0]])
    pairs = sys.modules["reward3d_pairs"].known_order([2])
    assert pairs == [(0, 1), (0, 2), (1, 2)]
    loss, hits = tool.ranking_loss(scores, pairs, torch.ones(3, 1, dtype=torch.bool))
    expected = [-math.log(1 / (1 + math.exp(-gap))) for gap in (2.0, 1.0, -1.0)]
    assert float(loss) == pytest.approx(sum(expected) / 3) and hits[:, 0].tolist() == [True, True, False]
    loss, _ = tool.ranking_loss(scores, pairs, torch.tensor([[True], [False], [False]]))
    assert float(loss) == pytest.approx(expected[0])
    assert sys.modules["reward3d_pairs"].known_order([1, 2]) == [(0, 1), (0, 2), (0, 3), (2, 3)]
    assert tool.by_kind([(0, 1), (0, 2), (0, 3), (2, 3)], {"blur": 1, "holes": 2}) == {"blur": [0], "holes": [1, 2]}


def test_every_kind_changes_what_it_says(tool: ModuleType, data: tuple[Path, Path, Path]) -> None:
    pairs, source = sys.modules["reward3d_pairs"], source_of(data, "train")
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    real = pairs.draw_real(source, source.keep, rng, 0.5)
    for i, colour, caption in zip(real.assets, real.colours, real.captions):
        assert not held_out(colour, source.records[i]) and caption.split()[0] == colour
    for kind, make in pairs.MAKERS.items():
        forms = make(source, real, rng, generator)
        for form in forms:
            assert form.shape == real.images.shape and form.min() >= 0 and form.max() <= 1 + 1e-6, kind
            assert (form[:, :, :3] <= form[:, :, 3:] + 1e-4).all(), kind
        if kind not in ("janus", "seen_again", "blank_view", "floaters", "holes", "mixed_views", "wrong_noun"):
            gaps = [(form - real.images).square().mean() for form in forms]
            assert gaps[0] > 0 and (len(gaps) == 1 or gaps[0] < gaps[1]), kind
    silhouettes = pairs.painted(source, real, rng)[:, :, 3]
    assert torch.equal(silhouettes, real.images[:, :, 3])  # the same mesh
    assert not pairs.visible(real.images, real.images).any()
    assert pairs.visible(real.images, torch.zeros_like(real.images)).all()


def test_torn_meshes_are_the_same_views_with_less(
    tool: ModuleType, data: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    pairs, source = sys.modules["reward3d_pairs"], source_of(data, "train")
    cache = Path(shutil.copytree(data[1], tmp_path / "torn"))
    real = pairs.draw_real(source, source.keep, np.random.default_rng(0), 0.5)
    views = np.load(cache / "views.npy")
    views[:, :, :, :, :8] = 0
    np.save(cache / "views.npy", views)
    torn = ViewBatches(cache, source.records, "train", 0.0)
    make = pairs.torn_from(torn)
    (form,) = make(source, real, np.random.default_rng(0), torch.Generator())
    assert torch.equal(form[..., 8:, :], real.images[..., 8:, :]) and not form[..., :8, :].any()
    torn.params = torn.params + 1
    with pytest.raises(InputError, match="other views"):
        make(source, real, np.random.default_rng(0), torch.Generator())


def test_a_mesh_is_torn_into_pieces(tool: ModuleType, data: tuple[Path, Path, Path]) -> None:
    build = load_tool("build_views")
    whole = load_asset_set(data[0])
    torn = build.torn(whole)
    for i in range(len(whole)):
        (v, f, c), (tv, tf, tc) = whole.mesh(i), torn.mesh(i)
        share = len(tf) / (4 * len(f))
        assert 0.4 < share < 1 and len(tc) == len(tf) and tf.max() == len(tv) - 1
        assert (tv.min(0) >= v.min(0) - 1e-6).all() and (tv.max(0) <= v.max(0) + 1e-6).all()
        assert {tuple(x) for x in tc} <= {tuple(x) for x in c}


def test_a_front_is_seen_again_from_near_by(tool: ModuleType, data: tuple[Path, Path, Path]) -> None:
    pairs, source = sys.modules["reward3d_pairs"], source_of(data, "train")
    rng = np.random.default_rng(0)
    real = pairs.draw_real(source, source.keep, rng, 0.0)
    again = pairs.seen_again(source, real, torch.zeros(len(source.keep), dtype=torch.int64), rng)
    assert torch.equal(again[:, [0, 1, 3]], real.images[:, [0, 1, 3]])
    others = {float(x) % (2 * math.pi) for x in source.params[real.assets[0], :, 0]}
    assert len(others) == 3  # another set is another angle, so the copy is not exact
    assert not any(torch.equal(a[2], r[0]) for a, r in zip(again, real.images))


def test_all_candidates_of_a_prompt_are_changed_alike(tool: ModuleType) -> None:
    one = torch.rand(2, 1, 4, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    one[:, :, :, :3] *= one[:, :, :, 3:]
    angles = (torch.arange(4) * (math.pi / 2)).expand(2, 4)
    flipped, counts = set(), set()
    for seed in range(24):
        images, turned = tool.seen_alike(one, angles, np.random.default_rng(seed))
        assert images.shape[2] == turned.shape[1]
        flipped.add(bool((turned < 0).any()))
        counts.add(images.shape[2])
    assert flipped == {True, False} and counts == {2, 3, 4}


def test_three_and_three_steps_are_six(run: Callable[..., None], tmp_path: Path) -> None:
    run(tmp_path / "whole", "--steps", "6")
    run(tmp_path / "parts", "--steps", "3")
    run(tmp_path / "parts", "--steps", "6")
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and any(k.startswith("opt.") for k in whole)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    state = json.loads((tmp_path / "parts" / "state.json").read_text())
    assert (state["step"], state["prompts"]) == (6, 24)


def test_training_ranks_what_it_was_shown(
    run: Callable[..., None], tmp_path: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One plain kind alone; 40 steps bring its loss from log 2 to under half of that."""
    monkeypatch.setattr(tool, "MAKERS", {"blank_view": tool.MAKERS["blank_view"]})
    run(tmp_path, "--steps", "1", "--kinds", "1")
    run(tmp_path, "--steps", "40", "--kinds", "1", "--lr", "5e-3")
    run(tmp_path, "--steps", "41", "--kinds", "1")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.35 and rows[-1]["loss"] < rows[0]["loss"], rows


def test_the_finished_reward_is_measured_and_installed(
    run: Callable[..., None], tmp_path: Path, data: tuple[Path, Path, Path]
) -> None:
    run(tmp_path / "run", "--steps", "2")
    run(tmp_path / "run", "--evaluate", "--assets", str(tmp_path / "assets" / "reward3d"))
    row = json.loads((tmp_path / "assets" / "reward3d" / "evaluation.json").read_text())
    for split, assets in (("val", 2), ("train", 4)):
        assert row[split]["assets"] == assets
        noun = row[split]["pairs"]["wrong_noun"]
        assert noun["reward3d"][1] <= noun["reward3d"][0] <= noun["reward3d"][2] and 0 <= noun["reward3d"][0] <= 1
    assert {"blur", "blur, worse", "blur, order", "janus, worse"} <= row["val"]["pairs"].keys()
    card = (tmp_path / "assets" / "reward3d" / "README.md").read_text()
    assert "| wrong_noun | " in card and "--steps" not in card and "Apache-2.0" in card
    manifest = json.loads((tmp_path / "assets" / "MANIFEST.json").read_text())["models"]["reward3d"]
    assert {"config.json", "model.safetensors", "vocabulary.json", "README.md"} <= manifest["files"].keys()
    assert isinstance(load("reward3d", folder=tmp_path / "assets" / "reward3d"), Reward3D)


def test_real_training_renders_have_mean_0_and_deviation_1(
    run: Callable[..., None], tmp_path: Path, data: tuple[Path, Path, Path]
) -> None:
    run(tmp_path, "--steps", "2")
    run(tmp_path, "--evaluate")
    reward, pairs = load("reward3d", folder=tmp_path / "reward3d"), sys.modules["reward3d_pairs"]
    source = source_of(data, "train")
    real = pairs.draw_real(source, source.keep, np.random.default_rng(12), 0.5)
    assert isinstance(reward, Reward3D)
    scores = reward.score(real.images, real.captions, real.azimuths)
    assert float(scores.mean()) == pytest.approx(0, abs=0.02) and float(scores.std()) == pytest.approx(1, abs=0.02)


def test_the_priors_candidates_are_made_once_and_trained_on(
    run: Callable[..., None], tmp_path: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = sys.modules["reward3d_candidates"]
    monkeypatch.setattr(tool, "load_embedded", lambda folder: random_prior(32))
    monkeypatch.setattr(maker, "LIFT", maker.LiftOptions(steps=7, gaussians=100, grid=16))
    monkeypatch.setattr(maker, "SAMPLING", {"steps": 1, "guidance": 1.0})
    path = tmp_path / "candidates.safetensors"
    run(tmp_path, "--make-candidates", "2")
    few = load_file(path)
    run(tmp_path, "--make-candidates", "3")
    more = load_file(path)
    assert few["views"].shape == (3, 4, 4, 4, 32, 32) and few["views"].dtype == torch.uint8  # 2 train, 1 val
    assert len(more["views"]) == 4 and torch.equal(more["views"][:3], few["views"])
    pairs = sys.modules["reward3d_pairs"]
    assert (len(pairs.Candidates(path, "train")), len(pairs.Candidates(path, "val"))) == (3, 1)
    images, azimuths, captions = pairs.Candidates(path, "train").group(np.arange(3))
    gaps = (images[:, 1:2] - images[:, 2:]).square().mean((2, 3, 4, 5))
    assert azimuths.shape == (3, 4) and len(captions) == 3
    assert gaps[:, 0].mean() < gaps[:, 1].mean()  # the longer lift is nearer to the sample that it was fitted to
    run(tmp_path, "--steps", "2", "--prior-share", "1")
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert set(row["real_above"]) == {"sample", "lift"}
    run(tmp_path, "--evaluate")
    row = json.loads((tmp_path / "evaluation.json").read_text())
    # Two steps more of a lift are nothing to see, so "lift, order" may be left out.
    assert {"sample", "lift", "lift, worse"} <= row["train"]["pairs"].keys()
