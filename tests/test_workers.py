from __future__ import annotations

import pytest
import torch

from rl3d.workers import ALONE, LAUNCHERS, Worker, current, launched_one_of_many


@pytest.fixture(autouse=True)
def not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHERS, "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)


def test_a_process_that_nothing_launched_is_alone() -> None:
    assert current() is ALONE
    assert ALONE.first and ALONE.count == 1 and ALONE.meet()
    assert ALONE.device("cuda") == "cuda"


def test_workers_spread_over_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    workers = [Worker(4 + i, 8, i) for i in range(4)]
    assert [w.device("cuda") for w in workers] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert [w.device(name) for w in workers[:1] for name in ("cpu", "cuda:1", "mps")] == ["cpu", "cuda:1", "mps"]
    assert not workers[0].first


def test_a_launcher_that_begins_one_process_of_many_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launched_one_of_many()
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert not launched_one_of_many()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # `accelerate launch --cpu --num_processes 2`
    assert launched_one_of_many()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not launched_one_of_many()
