"""Training the prior: stopping and going on gives the same weights; what comes out is a prior."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from tiny_world import load_tool, write_assets

from rl3d.data.asset_set import load_asset_set
from rl3d.data.views import ViewSpec, build_view_cache
from rl3d.priors.embedded import load_embedded
from rl3d.priors.multiview_model import attention

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
    loaded = tool.initial_weights(tmp_path / "saved", index, model)
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
