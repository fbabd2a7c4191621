"""Training the mesh language model: it learns, resumes exactly, and what it ships."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from tiny_world import load_tool, write_assets

from rl3d.assets import embedded_models, find_fault
from rl3d.mesh_tokens.model import load_mesh_lm

MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "anchors": 8,
    "neighbours": 8,
    "cloud_layers": 1,
    "cloud_points": 64,
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("train_mesh_lm")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp("data"))


@pytest.fixture
def run(tool: ModuleType, data: Path) -> Callable[..., None]:
    def call(out: Path, *more: str) -> None:
        words = ["train_mesh_lm", str(data), "--out", str(out), "--model", json.dumps(MODEL), "--bins", "16"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*words, "--tokens", "400", "--threads", "1", "--warmup", "2", *more])
            tool.main()

    return call


def test_a_resumed_run_is_the_uninterrupted_one(run: Callable[..., None], tmp_path: Path) -> None:
    run(tmp_path / "whole", "--steps", "4")
    run(tmp_path / "parts", "--steps", "2")
    run(tmp_path / "parts", "--steps", "4")
    run(tmp_path / "parts", "--steps", "4")  # it is there already
    whole, parts = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and any(k.startswith("opt.momentum_buffer.") for k in whole)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    rows = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[-1]["meshes"] > rows[0]["meshes"] and rows[-1]["val_bits_per_face"] > 0


def test_it_learns_the_shapes_and_ships(
    run: Callable[..., None], tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """60 steps: measured 2.85 nats a token at the start (17 bits of noise) and 1.0 in the end."""
    out, assets = tmp_path / "run", tmp_path / "assets" / "mesh_lm"
    run(out, "--steps", "60", "--lr", "0.01", "--ema", "0.8")
    last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    assert last["train_loss"] < 2.0
    few = ["--eval-assets", "2", "--sample", '{"max_faces": 20}']
    run(out, "--evaluate", "--assets", str(assets), *few)
    row = json.loads((assets / "evaluation.json").read_text())
    for split in ("val", "train"):
        found = row[split]["by"]
        assert found["bins"]["failures"] == 0 and found["bins"]["cd_median"] < 0.05 and found["bins"]["faces"] == 1
        assert all(found[by]["samples"] == 2 for by in found)
    models = embedded_models(assets.parent)
    assert find_fault(models["mesh_lm"], assets.parent) is None
    assert "Mesh language model" in (assets / "README.md").read_text()
    model = load_mesh_lm(assets)
    averaged = load_file(out / "checkpoint.safetensors")["ema.model.blocks.0.qkv.weight"]
    assert torch.equal(model.model.blocks[0].qkv.weight, averaged.bfloat16().float())


def test_distances_by_hand(tool: ModuleType) -> None:
    """Two parallel unit squares 0.5 apart: every distance is at least 0.5, and little more."""
    card = sys.modules["mesh_lm_card"]
    square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    flat, above = card.Mesh(square, faces), card.Mesh(square + torch.tensor([0, 0, 0.5]), faces)
    assert card.distances(flat, above) == pytest.approx((0.5, 0.5), abs=0.002)
    assert card.distances(flat, flat) == (0.0, 0.0)
    assert card.distances(card.Mesh(square, faces[:0]), flat)[0] == float("inf")


def test_failures_count_as_infinitely_far(tool: ModuleType) -> None:
    card = sys.modules["mesh_lm_card"]
    rows = [{"cd": c, "hd": 2 * c, "faces": 8.0, "asked": 10.0} for c in (0.1, 0.2, 0.3)]
    one = card.summary(rows, ["", "it has no end", ""])
    assert (one["failures"], one["cd_median"], one["cd_mean"], one["faces"]) == (1, 0.3, 0.2, 0.8)
    assert card.summary(rows, ["no", "no", ""])["cd_median"] is None


def test_other_captions_need_another_folder(
    run: Callable[..., None], data: Path, tmp_path: Path, tool: ModuleType
) -> None:
    run(tmp_path / "run", "--steps", "1")
    state = tmp_path / "run" / "state.json"
    state.write_text(state.read_text().replace('"barrel"', '"butt"'))
    with pytest.raises(SystemExit, match="other captions"):
        run(tmp_path / "run", "--steps", "2")
