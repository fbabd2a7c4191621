"""Every stage of tools/train_completion.py for two steps on three boxes; a resumed stage is an uninterrupted one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl3d.agents.completion.agent import ShiftAgent
from rl3d.agents.completion.implicit import ImplicitDecoder
from rl3d.rewards.check_assets import box


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boxes")
    rows = []
    for i, split in enumerate(["train", "train", "val", "train"]):
        box((0, 0, 0), (1, 0.3 + 0.2 * i, 0.6), (0.5, 0.5, 0.5)).save(folder / f"{i}.glb")
        rows.append(json.dumps({"file": f"{i}.glb", "caption": "a box", "split": split}))
    (folder / "captions.jsonl").write_text("\n".join(rows))
    return folder


def stage(monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, name: str, steps: int = 2) -> None:
    import train_completion

    words = [str(data), "--out", str(out), "--stage", name, "--steps", str(steps), "--batch", "4"]
    monkeypatch.setattr(sys, "argv", ["train_completion.py", *words])
    train_completion.main()


def test_all_stages(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train_completion.SURFACE", 1024 + 512)
    stage(monkeypatch, data, tmp_path, "bank")
    assert len(load_file(tmp_path / "bank.safetensors")["surface"]) == 3  # the val box is not there
    for name in ("autoencoder", "gan", "agent", "td3", "implicit"):
        stage(monkeypatch, data, tmp_path, name)
    out = capsys.readouterr().out
    assert out.count('"held out": "agent"') == 2  # after the agent's stage and after TD3's
    assert ShiftAgent.load(tmp_path / "agent" / "model").config.gfv == 128
    ImplicitDecoder.load(tmp_path / "implicit" / "model")


@pytest.mark.parametrize("name", ["autoencoder", "gan"])
def test_a_resumed_stage_is_an_uninterrupted_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The rate depends on the whole number of steps, so the interruption is an exception at the third step."""
    import train_completion

    monkeypatch.setattr(train_completion, "SURFACE", 1024 + 512)
    for folder in ("whole", "parts"):
        stage(monkeypatch, data, tmp_path / folder, "bank")
        if name == "gan":
            stage(monkeypatch, data, tmp_path / folder, "autoencoder")
    stage(monkeypatch, data, tmp_path / "whole", name, 4)
    real = train_completion.generator_for

    def stops(seed: int, *keys: int) -> torch.Generator:
        if keys == (2,):
            raise KeyboardInterrupt
        return real(seed, *keys)

    monkeypatch.setattr(train_completion.time, "monotonic", iter(range(0, 10**6, 300)).__next__)  # saves every step
    with monkeypatch.context() as context:
        context.setattr(train_completion, "generator_for", stops)
        with pytest.raises(KeyboardInterrupt):
            stage(context, data, tmp_path / "parts", name, 4)
    stage(monkeypatch, data, tmp_path / "parts", name, 4)
    one, other = (load_file(tmp_path / f / name / "checkpoint.safetensors") for f in ("whole", "parts"))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
