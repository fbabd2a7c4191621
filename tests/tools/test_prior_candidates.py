"""The comparison of candidates: what it runs, and that pixels and latents are measured alike."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_world import load_tool, write_assets

from rl3d.data.asset_set import load_asset_set
from rl3d.data.views import ViewSpec, build_view_cache
from rl3d.priors.multiview_model import MultiViewTransformer

TINY = {"width": 32, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def tools() -> dict[str, ModuleType]:
    return {name: load_tool(name) for name in ("train_prior", "prior_latent", "prior_candidates")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(assets, cache)"""
    folder = tmp_path_factory.mktemp("data")
    assets = write_assets(folder / "assets")
    build_view_cache(load_asset_set(assets), ViewSpec(size=16, sets=2, supersample=2), folder / "cache", progress=False)
    return assets, folder / "cache"


def options(tools: dict[str, ModuleType], words: list[str]) -> argparse.Namespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_prior", "DATA", "CACHE", "--out", "RUN", *words])
        return tools["train_prior"].arguments()


def test_candidates_are_runs_that_train_prior_understands(tools: dict[str, ModuleType]) -> None:
    candidates = tools["prior_candidates"].CANDIDATES
    for _, stages in candidates.values():
        assert sum(share for share, _ in stages) == 1
        for _, words in stages:
            found = options(tools, words)
            MultiViewTransformer(**found.model)  # the width is a multiple of the heads, the patch of the cell
    small, large = (options(tools, words) for _, words in candidates["D"][1])
    assert (small.size, large.size) == (32, None) and small.model == large.model


def test_stages_share_the_minutes_and_hand_on_their_weights(
    tools: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, commands = tools["prior_candidates"], []
    args = argparse.Namespace(data=Path("DATA"), cache=Path("CACHE"), out=tmp_path, minutes=10.0, batch=16)
    monkeypatch.setattr(tool, "run", lambda command, log: commands.append(command) or 2.0)
    tool.train_candidate("D", args)
    first, second = (" ".join(command) for command in commands)
    assert f"--out {tmp_path / 'D-1'} " in first and "--minutes 5.0" in first and "--init" not in first
    assert f"--out {tmp_path / 'D-2'} " in second and f"--init {tmp_path / 'D-1'}" in second
    assert json.loads((tmp_path / "D.json").read_text())["cpu_seconds"] == 4
    tool.train_candidate("D", args)
    assert len(commands) == 2  # it was there
    (tmp_path / "A-1").mkdir()
    with pytest.raises(SystemExit, match="was left unfinished"):
        tool.train_candidate("A", args)


def test_a_command_that_fails_stops_the_comparison(tools: dict[str, ModuleType], tmp_path: Path) -> None:
    tool = tools["prior_candidates"]
    assert 0 < tool.run([sys.executable, "-c", "print('well')"], tmp_path / "log") < 10
    assert (tmp_path / "log").read_text() == "well\n"
    with pytest.raises(SystemExit, match=r"failed, see .*log"):
        tool.run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log")


def test_a_pixel_run_is_measured_as_its_log_was(
    tools: dict[str, ModuleType], data: tuple[Path, Path], tmp_path: Path
) -> None:
    words = ["train_prior", *map(str, data), "--out", str(tmp_path / "A-1"), "--steps", "3", "--batch", "4"]
    model = json.dumps({**TINY, "stem_channels": 16})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*words, "--model", model, "--clock", "cpu"])
        tools["train_prior"].main()
    (tmp_path / "A.json").write_text(json.dumps({"run": "A-1", "cpu_seconds": 60.0}))
    args = argparse.Namespace(data=data[0], cache=data[1], out=tmp_path)
    row = tools["prior_candidates"].measure("A", args)
    last = json.loads((tmp_path / "A-1" / "log.jsonl").read_text().splitlines()[-1])
    for t in (0.3, 0.6, 0.9, 0.97):  # both round to 1e-5
        assert row["error"][str(t)] == pytest.approx(last[f"val_x0_mse_{t}"], abs=2.1e-5)
    model = tools["prior_candidates"].load(tmp_path / "A-1")[0].model
    assert (row["objects"], row["parameters"]) == (12, sum(p.numel() for p in model.parameters()))
    cells = tools["prior_candidates"].table([row]).splitlines()[-1].split(" | ")
    assert cells[2:4] == ["1.0", "12"] and cells[-1] == f"{row['error']['1.0']:.4f} |"


def test_a_latent_run_trains_and_is_measured_in_pixels(
    tools: dict[str, ModuleType], data: tuple[Path, Path], tmp_path: Path
) -> None:
    args = argparse.Namespace(
        data=data[0],
        cache=data[1],
        out=tmp_path / "E-1",
        minutes=0.03,
        clock="cpu",
        batch=4,
        threads=1,
        seed=0,
        model=TINY,
    )
    tools["prior_latent"].train(args)
    (tmp_path / "E.json").write_text(json.dumps({"run": "E-1", "cpu_seconds": 60.0}))
    tool = tools["prior_candidates"]
    row = tool.measure("E", argparse.Namespace(data=data[0], cache=data[1], out=tmp_path))
    facts = json.loads((tmp_path / "E-1" / "latent.json").read_text())
    last = facts["log"][-1]
    assert all(row["error"][t] == pytest.approx(last[t], abs=2.1e-5) for t in row["error"])
    # As much signal is less noise for latents; nothing but noise is the same for both.
    assert row["error_at_equal_signal"]["1.0"] == row["error"]["1.0"]
    assert 0 < row["autoencoder_error"] < 2 and row["autoencoder_objects"] >= 8
    assert len(tool.table([row]).splitlines()) == 5


def test_latents_are_normalised_and_the_autoencoder_learns(tools: dict[str, ModuleType]) -> None:
    torch.manual_seed(0)
    codec = tools["prior_latent"].Autoencoder(channels=8, fine=16, coarse=16)
    images = torch.nn.functional.interpolate(torch.rand(8, 4, 4, 4), 32, mode="bilinear").unflatten(0, (2, 4)) * 2 - 1
    latents = codec.encode(images)
    assert latents.shape == (2, 4, 8, 4, 4)
    assert latents.mean((0, 1, 3, 4)).abs().max() < 1e-4 and (latents.std((0, 1, 3, 4)) - 1).abs().max() < 0.01
    optimizer = torch.optim.AdamW(codec.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = ((codec.decode(codec.encode(images)) - images) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.25 * losses[0], losses


def test_equal_signal_is_less_noise_for_fewer_values(tools: dict[str, ModuleType]) -> None:
    """4 x 64 x 64 pixel values against 16 x 8 x 8: sqrt(16384 / 1024) = 4 times smaller odds; t = 0.8 becomes 0.5."""
    model = MultiViewTransformer(image_size=8, channels=16, patch=1, stem_channels=0, vocabulary=5, **TINY)
    assert tools["prior_latent"].Denoiser(model, None).redundancy(64) == 4
    pixels = MultiViewTransformer(image_size=64, vocabulary=5, stem_channels=16, **TINY)
    assert tools["prior_latent"].Denoiser(pixels, None).redundancy(64) == 1
