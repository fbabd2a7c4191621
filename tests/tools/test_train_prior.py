"""Training the prior: stopping and going on gives the same weights; what comes out is a prior."""

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

from rl3d.data.asset_set import load_asset_set
from rl3d.data.views import ViewSpec, build_view_cache
from rl3d.priors.embedded import load_embedded
from rl3d.priors.multiview_model import MultiViewTransformer, attention

MODEL = json.dumps({"width": 32, "depth": 1, "heads": 2, "stem_channels": 16})


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("train_prior")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(assets, cache)"""
    folder = tmp_path_factory.mktemp("data")
    assets = write_assets(folder / "assets")
    spec = ViewSpec(size=16, sets=2, supersample=2)
    build_view_cache(load_asset_set(assets), spec, folder / "cache", progress=False)
    return assets, folder / "cache"


def train(tool: ModuleType, data: tuple[Path, Path], out: Path, steps: int, *more: str) -> dict[str, torch.Tensor]:
    words = ["train_prior", *map(str, data), "--out", str(out), "--steps", str(steps), "--batch", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*words, "--model", MODEL, "--threads", "1", "--warmup", "4", *more])
        tool.main()
    return load_file(out / "checkpoint.safetensors")


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_three_and_three_steps_are_six(
    tool: ModuleType, data: tuple[Path, Path], tmp_path: Path, optimizer: str
) -> None:
    whole = train(tool, data, tmp_path / "whole", 6, "--optimizer", optimizer)
    train(tool, data, tmp_path / "parts", 3, "--optimizer", optimizer)
    assert json.loads((tmp_path / "parts" / "state.json").read_text())["step"] == 3
    parts = train(tool, data, tmp_path / "parts", 6, "--optimizer", optimizer)
    assert whole.keys() == parts.keys() and any(k.startswith("opt.") for k in whole)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    state = json.loads((tmp_path / "parts" / "state.json").read_text())
    assert (state["step"], state["objects"]) == (6, 24)
    rows = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6] and all(row["loss"] > 0 for row in rows)


def test_every_other_step_is_coarse(tool: ModuleType, data: tuple[Path, Path], tmp_path: Path) -> None:
    """Stopped between a coarse step and a fine one: the same weights, and a prior that knows the border."""
    whole = train(tool, data, tmp_path / "whole", 6, "--coarse-above", "0.7")
    train(tool, data, tmp_path / "parts", 3, "--coarse-above", "0.7")
    parts = train(tool, data, tmp_path / "parts", 6)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    state = json.loads((tmp_path / "parts" / "state.json").read_text())
    assert (state["objects"], state["smaller"]) == (3 * 12 + 3 * 4, 3 * 12)
    assert load_tool("export_prior").prior_of_run(tmp_path / "parts").coarse_above == 0.7
    with pytest.raises(SystemExit, match="must lie between 0 and 1"):
        train(tool, data, tmp_path / "a", 1, "--coarse-above", "1.5")
    with pytest.raises(SystemExit, match="8 pixels, halved, are no multiple"):
        train(tool, data, tmp_path / "b", 1, "--coarse-above", "0.7", "--size", "8")


def test_noise_levels_stay_within_their_bounds(tool: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for low, high in ((0.0, 1.0), (0.75, 1.0), (0.0, 0.75)):
        t = tool.noise_levels(4000, 1.4, 1.5, rng, low, high)
        assert low <= float(t.min()) and float(t.max()) <= high
        inside = torch.sigmoid(1.4 + 1.5 * torch.randn(100_000, generator=torch.Generator().manual_seed(0)))
        inside = inside[(inside > low) & (inside < high)]
        assert float(t.median()) == pytest.approx(float(inside.median()), abs=0.02)


def test_a_run_that_has_its_steps_is_left_alone(
    tool: ModuleType, data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = train(tool, data, tmp_path, 2)
    after = train(tool, data, tmp_path, 2)
    assert "is at step 2 already" in capsys.readouterr().out
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_the_weights_know_their_step(tool: ModuleType, data: tuple[Path, Path], tmp_path: Path) -> None:
    """Killed between the two files of a save: the older state.json must not make it repeat steps."""
    train(tool, data, tmp_path / "a", 2)
    state = (tmp_path / "a" / "state.json").read_text()
    train(tool, data, tmp_path / "a", 4)
    (tmp_path / "a" / "state.json").write_text(state)
    parts = train(tool, data, tmp_path / "a", 5)
    whole = train(tool, data, tmp_path / "b", 5)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_other_captions_are_refused(tool: ModuleType, data: tuple[Path, Path], tmp_path: Path) -> None:
    train(tool, data, tmp_path, 1)
    state = json.loads((tmp_path / "state.json").read_text())
    state["vocabulary"] = [*state["vocabulary"][:-1], "zeppelin"]
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(SystemExit, match="its vocabulary differs"):
        train(tool, data, tmp_path, 2)


def test_training_lowers_the_loss(tool: ModuleType, data: tuple[Path, Path], tmp_path: Path) -> None:
    train(tool, data, tmp_path, 1, "--ema", "0")
    train(tool, data, tmp_path, 25, "--ema", "0", "--lr", "3e-3")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["train_x0_mse_0.6"] < 0.7 * rows[0]["train_x0_mse_0.6"], rows


def test_a_run_becomes_a_prior(tool: ModuleType, data: tuple[Path, Path], tmp_path: Path) -> None:
    export = load_tool("export_prior")
    weights = train(tool, data, tmp_path / "run", 2)
    prior = export.prior_of_run(tmp_path / "run")
    averaged = prior.model.state_dict()
    assert all(torch.equal(averaged[k], weights[f"ema.{k}"].to(averaged[k].dtype)) for k in averaged)
    prior.save_pretrained(tmp_path / "prior")
    again = load_embedded(tmp_path / "prior")
    prompt = again.encode_prompt("a red barrel")
    assert prompt.positive[0, 2] == again.vocabulary.index["barrel"]
    export.draw_grid(again, tmp_path / "grid.png", ("a red barrel", "a tree"), 1, 2.0, 0)
    assert (tmp_path / "grid.png").stat().st_size > 100


def test_a_run_can_start_from_a_saved_prior_of_other_words(
    tool: ModuleType, data: tuple[Path, Path], tmp_path: Path
) -> None:
    train(tool, data, tmp_path / "a", 2)
    exporter = load_tool("export_prior")
    prior = exporter.prior_of_run(tmp_path / "a")
    prior.save_pretrained(tmp_path / "saved")
    words = prior.vocabulary.words
    index = {w: i for i, w in enumerate(["<pad>", "<null>", "a word of its own", *words[2:]])}
    torch.manual_seed(0)
    model = type(prior.model)(**{**dict(prior.model.config), "vocabulary": len(index)})
    (tmp_path / "saved" / "training.json").write_text('{"step": 2, "log": []}')
    weights, old, totals = tool.saved_weights(tmp_path / "saved")
    assert (old, totals["step"]) == (words, 2)
    loaded = tool.initial_weights(weights, old, index, model)
    assert torch.equal(loaded["words.weight"][3:], prior.model.words.weight[2:])
    assert torch.equal(loaded["words.weight"][2], model.words.weight[2])
    assert all(torch.equal(loaded[k], v) for k, v in prior.model.state_dict().items() if k != "words.weight")


def test_attention_is_the_same_where_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 2, 4, 10, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, k = (torch.nn.functional.rms_norm(x, (16,)) for x in (q, k))
    flash = attention(q, k, v)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(attention(q, k, v), flash, rtol=1e-6, atol=1e-6)  # its weights are float32


def test_init_goes_on_counting(tool: ModuleType, data: tuple[Path, Path], tmp_path: Path) -> None:
    train(tool, data, tmp_path / "a", 2)
    card = load_tool("prior_card")
    load_tool("export_prior").prior_of_run(tmp_path / "a").save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "training.json").write_text(json.dumps(card.history(tmp_path / "a")))
    train(tool, data, tmp_path / "b", 5, "--init", str(tmp_path / "saved"))
    state = json.loads((tmp_path / "b" / "state.json").read_text())
    assert (state["step"], state["objects"]) == (5, 20)
    rows = [json.loads(line)["step"] for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    assert rows == [2, 5]


def test_a_small_run_sees_pooled_views(tool: ModuleType, data: tuple[Path, Path]) -> None:
    records = tool.read_records(data[0])
    source = tool.ViewBatches(data[1], records, "train", 0.0)
    drawn = source.draw(2, tool.np.random.default_rng(0))
    whole, words, _ = tool.prepared(source, drawn, {}, 16, 2)
    small, same, rays = tool.prepared(source, drawn, {}, 8, 1)
    assert small.shape == (2, 4, 4, 8, 8) and torch.equal(words, same)
    assert torch.allclose(small[1, 2, :, 3, 5], whole[1, 2, :, 6:8, 10:12].mean((1, 2)), atol=1e-6)
    ahead = source.cameras(drawn[2]).rays()[1].mean((1, 2))  # the middle of the picture, where the only patch is
    assert torch.allclose(rays[:, :, 0, :3].flatten(0, 1), torch.nn.functional.normalize(ahead, dim=-1), atol=1e-5)


def test_a_small_run_starts_a_large_one(tool: ModuleType, data: tuple[Path, Path], tmp_path: Path) -> None:
    """Place embeddings are spread out, all else is taken over; the average begins anew, log and counts go on."""
    small = ["--size", "8", "--ema", "0.5"]
    train(tool, data, tmp_path / "small", 3, *small)
    assert json.loads((tmp_path / "small" / "state.json").read_text())["model"]["image_size"] == 8
    before = train(tool, data, tmp_path / "small", 5)  # resumes at its own size
    after = train(tool, data, tmp_path / "large", 6, "--init", str(tmp_path / "small"), "--lr", "0")
    assert torch.equal(after["model.places"], before["ema.places"].expand(4, -1))
    names = [k for k in before if k.startswith("ema.") and k != "ema.places"]
    assert all(torch.equal(after[k.replace("ema.", "model.")], before[k]) for k in names)
    state = json.loads((tmp_path / "large" / "state.json").read_text())
    assert (state["step"], state["objects"], state["smaller"], state["average_from"]) == (6, 24, 20, 5)
    assert state["model"]["image_size"] == 16
    rows = [json.loads(row) for row in (tmp_path / "large" / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["size"]) for row in rows] == [(3, 8), (5, 8), (6, 16)]
    shown = load_tool("prior_card").history(tmp_path / "large")  # errors of another size are another measure
    assert ([row["step"] for row in shown["log"]], shown["smaller"]) == ([6], 20)


def test_places_are_interpolated_over_the_picture(tool: ModuleType) -> None:
    """Patch 8: 2 x 2 places at 16 pixels become 4 x 4 at 32; a ramp to the right stays one, rows stay apart."""
    small = tiny_transformer(16)
    ramp = torch.tensor([0.0, 1.0, 10.0, 11.0])[:, None].expand(4, 32)
    saved = {**small.state_dict(), "places": ramp}
    places = tool.initial_weights(saved, [], {}, tiny_transformer(32))["places"].reshape(4, 4, 32)[..., 0]
    steps = torch.tensor([0.0, 0.25, 0.75, 1.0])
    assert torch.allclose(places, 10 * steps[:, None] + steps)


def tiny_transformer(size: int, width: int = 32) -> MultiViewTransformer:
    return MultiViewTransformer(image_size=size, width=width, depth=1, heads=2, vocabulary=5, stem_channels=16)


def test_weights_of_another_model_are_refused(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"--init has another model: .* give --model the same width"):
        tool.initial_weights(tiny_transformer(16, 64).state_dict(), ["a"], {"a": 0}, tiny_transformer(16))


@pytest.mark.parametrize("size, text", [("5", "the cache has 16"), ("4", "no multiple of the patch of 8")])
def test_sizes_that_do_not_fit_are_refused(
    tool: ModuleType, data: tuple[Path, Path], tmp_path: Path, size: str, text: str
) -> None:
    with pytest.raises(SystemExit, match=text):
        train(tool, data, tmp_path, 1, "--size", size)


def test_a_run_keeps_its_size(tool: ModuleType, data: tuple[Path, Path], tmp_path: Path) -> None:
    train(tool, data, tmp_path, 1, "--size", "8")
    with pytest.raises(SystemExit, match="was trained at 8"):
        train(tool, data, tmp_path, 2, "--size", "16")
