from __future__ import annotations

import json
import sys

import bench_mesh_metrics
import pytest

from rl3d.metrics import surface, topology


def test_the_balls_are_closed() -> None:
    for bumps in (0.0, 0.05):
        t = topology(surface(*bench_mesh_metrics.ball(500, bumps)))
        assert t.watertight and t.manifold and t.winding_consistent and t.euler == 2
        assert abs(t.faces - 500) < 50


def test_a_small_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench_mesh_metrics.py", "--faces", "200", "--repeats", "1", "--no-peers"]
    monkeypatch.setattr(sys, "argv", [*words, "--json"])
    bench_mesh_metrics.main()
    report = json.loads(capsys.readouterr().out)
    assert set(report["milliseconds"]) == {"rl3d"}
    assert all(ms >= 0 for ms in report["milliseconds"]["rl3d"].values())
    monkeypatch.setattr(sys, "argv", words)
    bench_mesh_metrics.main()
    assert "score with reference" in capsys.readouterr().out
