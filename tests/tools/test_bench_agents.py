"""The benchmark of the learners: both sides train on every task, with the same settings, and the page compares them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import load_tool

from rl3d import rl

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("bench_agents")


def small(run: Any, envs: int = 2) -> Any:
    """One update of 2 x 8 steps."""
    return replace(run, envs=envs, hidden=8, options=replace(run.options, steps=8, epochs=1, minibatches=1, updates=1))


@pytest.fixture(scope="module")
def every(tool: ModuleType) -> list[Any]:
    swing = replace(tool.SWING, steps=24, begin=16, batch=8, hidden=8)
    return tool.cells(small(tool.CARTPOLE), small(tool.PENDULUM), swing, small(tool.LAYOUT))


def test_every_learner_trains_and_is_judged(every: list[Any]) -> None:
    for cell in every:
        returns, seconds = cell.train(0, 2)
        assert len(returns) == 2 and np.isfinite(returns).all() and seconds > 0, cell.key
        if cell.key.startswith("layout"):
            assert all(0 < r <= 1 for r in returns)
        elif cell.task.startswith("CartPole"):
            assert all(1 <= r <= 500 for r in returns)
        else:
            assert all(-200 * 17 < r < 0 for r in returns)


def test_a_learner_is_judged_in_the_same_episodes_each_time(tool: ModuleType) -> None:
    first = tool.episodes("Pendulum-v1", lambda seen: np.zeros(1, np.float32), 3)
    assert first == tool.episodes("Pendulum-v1", lambda seen: np.zeros(1, np.float32), 3)
    assert len(set(first)) == 3


def test_both_sides_have_the_same_loss_and_minibatches(tool: ModuleType) -> None:
    theirs = tool.PENDULUM.theirs()
    assert theirs["batch_size"] == 256 and theirs["learning_rate"] == 1e-3
    values, returns = torch.tensor([1.0, 4.0]), torch.tensor([3.0, 1.0])
    ours = tool.PENDULUM.options.value_weight * rl.value_loss(values, values, returns)
    assert float(ours) == pytest.approx(theirs["vf_coef"] * float(torch.nn.functional.mse_loss(values, returns)))
    falling = tool.CARTPOLE.theirs()["learning_rate"]
    assert falling(1.0) == tool.CARTPOLE.options.rate and falling(0.25) == 0.25 * tool.CARTPOLE.options.rate
    o = tool.CARTPOLE.options
    assert tool.CARTPOLE.steps == 8 * o.steps * o.updates
    for run in (tool.CARTPOLE, tool.PENDULUM, tool.LAYOUT):
        ours_net = tool.CategoricalPolicy(4, 2, run.hidden).actor
        assert [m.out_features for m in ours_net if isinstance(m, torch.nn.Linear)][:-1] == run.theirs()[
            "policy_kwargs"
        ]["net_arch"]


def test_differences_draw_the_seeds_again(tool: ModuleType) -> None:
    m, low, high = tool.difference([[2.0, 4.0], [3.0]], [[1.0], [1.0], [1.0]])
    assert (m, low, high) == (2.0, 2.0, 2.0)  # both of ours have a mean of 3
    m, low, high = tool.difference([[1.0], [3.0]], [[1.0], [3.0]])
    assert m == 0.0 and (low, high) == (-2.0, 2.0)  # all of one side at 1, of the other at 3: a chance of 1/16 each


def test_the_page_and_what_is_kept(
    tool: ModuleType, every: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []

    def cell(key: str, name: str, value: float) -> Any:
        def train(seed: int, count: int) -> tuple[list[float], float]:
            trained.append((key, seed))
            return [value + seed] * count, 2.0 if key.endswith("ours") else 6.0

        return tool.Cell(key, "CartPole-v1", name, 2, 1000, train)

    fake = [cell("cartpole-ours", "rl3d PPO", 400.0), cell("cartpole-sb3", "SB3 PPO", 300.0)]
    monkeypatch.setattr(tool, "cells", lambda: fake)
    monkeypatch.setattr("sys.argv", ["bench_agents", str(tmp_path), "--seeds", "1"])
    tool.main()
    monkeypatch.setattr("sys.argv", ["bench_agents", str(tmp_path), "--page", str(tmp_path / "page.md")])
    tool.main()
    assert trained == [("cartpole-ours", 0), ("cartpole-sb3", 0), ("cartpole-ours", 1), ("cartpole-sb3", 1)]
    text = (tmp_path / "page.md").read_text()
    assert "| CartPole-v1 | rl3d PPO | 2 | 1,000 | 400.5 [400.0, 401.0] | 400.0, 401.0 | 2.00 |" in text
    assert "| CartPole-v1: rl3d PPO less SB3 PPO | +100.0 [+99.0, +101.0] | 3.0 |" in text
    assert f"{tool.EPISODES} episodes" in text and "stable-baselines3 2" in text
