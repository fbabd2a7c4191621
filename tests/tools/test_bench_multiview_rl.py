"""The benchmark of fine-tuning: prompts that do not overlap, rows from records, and a whole tiny run."""

from __future__ import annotations

import json
from pathlib import Path

import bench_multiview_rl as bench
import pytest
import torch
from tiny_world import random_prior


def test_training_prompts_are_not_measured_on() -> None:
    pool = bench.training_pool()
    assert len(set(pool)) == bench.POOL and not set(pool) & set(bench.HELD_OUT)
    assert pool == bench.training_pool()
    assert len(bench.HELD_OUT) == 60


def test_a_row_is_a_mean_over_prompts_with_the_mean_cost_of_a_seed() -> None:
    facts = {m.key: 0.5 for m in bench.MEASURES}
    records = [{"prompt": p, "seed": s, **facts, "mrc": v} for p, s, v in (("a", 0, 0.1), ("a", 1, 0.3), ("b", 0, 0.2))]
    row = bench.row_of("nft", records, 2, [{"samples": 10, "seconds": 4.0}, {"samples": 10, "seconds": 6.0}])
    assert row["mrc"][0] == pytest.approx(0.2) and row["seconds"] == 5 and row["from_base"] is None
    assert "0.2000" in bench.line_of(row) and bench.line_of(row).endswith("| 10 | 5 | – |")


def test_rows_that_do_not_exist_and_missing_data_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, says in (
        (["--rows", "nff"], "unknown row 'nff'"),
        (["--rows", "nft", "sft"], "needs --data and --cache"),
        (["--copies", "0"], "at least 1"),
    ):
        with pytest.raises(SystemExit):
            bench.arguments(["--out", str(tmp_path), *words])
        assert says in capsys.readouterr().err


def test_a_tiny_run_trains_measures_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ["a red box", "a blue crate", "a green barrel", "a red tree"]
    monkeypatch.setattr(bench, "training_pool", lambda count: prompts[:2])
    monkeypatch.setattr(bench, "HELD_OUT", prompts[2:])
    monkeypatch.setattr(bench, "PROMPTS", {"known": [], "unseen": [f"a red noun{i}" for i in range(20)]})
    random_prior(32).save_pretrained(tmp_path / "prior", dtype=torch.float32)
    small = ["rounds=1", "prompts_per_round=1", "group=2", "sampler.steps=2", "watch.every=0", "micro_batch=2"]
    words = ["--out", str(tmp_path / "run"), "--prior", str(tmp_path / "prior"), "--page", str(tmp_path / "page.md")]
    words += ["--rows", "base", "best-of-2", "nft", "--seeds", "1", "--held-out", "2", "--train-prompts", "2"]
    words += [w for change in small for w in ("--set", change)]
    assert bench.main(words) == 0
    rows = json.loads((tmp_path / "page.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["base", "best-of-2", "nft"]
    assert rows[2]["samples"] == 2 and rows[0]["samples"] is None
    assert rows[1]["reward"][0] >= rows[0]["reward"][0] - 1e-9  # the best of two, of which the first is the base's
    page = (tmp_path / "page.md").read_text()
    assert "| nft | 1 |" in page and "Against the base" in page
    assert (tmp_path / "run" / "sheet.png").exists()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "records").iterdir()}
    assert bench.main(words) == 0
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "records").iterdir()}
