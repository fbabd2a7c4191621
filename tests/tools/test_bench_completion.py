"""The benchmark of completion on two boxes with untrained models: every task's numbers, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import bench_completion
import pytest
import torch
from completion_page import gain_of, no_worse, page

from rl3d.agents.completion.agent import AgentConfig, ShiftAgent
from rl3d.agents.completion.autoencoder import Autoencoder, AutoencoderConfig
from rl3d.agents.completion.complete import Models
from rl3d.agents.completion.latent_gan import LatentGan, LatentGanConfig
from rl3d.agents.completion.objective import Judge
from rl3d.rewards.check_assets import box


def test_tasks_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_completion, "TRUTH", 512)
    monkeypatch.setattr(bench_completion, "INPUT", 128)
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(gfv=8, points=64, each=(8,), after=8, decoder=(8,)))
    judge = Judge(autoencoder, LatentGan(LatentGanConfig(gfv=8, noise=2, hidden=8)))
    models = Models(judge, ShiftAgent(AgentConfig(gfv=8, hidden=8)), None)
    meshes = [box((0, 0, 0), (1, h, 0.5), (0.5, 0.5, 0.5)) for h in (0.3, 0.8)]
    results = {}
    for task in bench_completion.TASKS:
        if task.key in ("view50", "ball20", "look"):
            results[task.key] = bench_completion.run_task(task, meshes, models, None)
    row = results["view50"]
    assert len(row["methods"]["agent"]["cd_l1"]) == 2 * 4 and row["calls"] == 3 and "search64" in row["methods"]
    assert row["methods"]["input"]["excess"] < row["methods"]["input"]["missing"]
    kept = row["methods"]["selected"]["cd_l1"]
    for i, share in enumerate(row["followed"]):
        if share in (0.0, 1.0):
            assert kept[i] == row["methods"]["agent" if share else "autoencoder"]["cd_l1"][i]
    assert gain_of(row, "agent", "agent") == (0.0, 0.0, 0.0) and no_worse(row, "agent", "agent") == 1.0
    results["unknown"] = bench_completion.run_unknown_frame(meshes[:1], models)
    results["floor"] = bench_completion.floor(meshes)
    text = page(json.loads(json.dumps(results)))
    assert "View crop, 50 % gone" in text and "Frame unknown" in text and "nan" not in text
    bench_completion.draw([meshes[0]] * 10, models, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
