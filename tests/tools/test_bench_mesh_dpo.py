"""The benchmark of mesh alignment: rows, records that are not made twice, the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tiny_mesh_lm import tiny_model
from tiny_world import load_tool, write_assets

from rl3d.mesh_tokens.model import MeshLM
from rl3d.metrics import score_mesh


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("bench_mesh_dpo")


def test_rows_records_and_page(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    data = write_assets(tmp_path / "assets")
    words = ["bench_mesh_dpo", str(data), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    words += ["--train-shapes", "2", "--val-shapes", "2", "--seeds", "1", "--max-faces", "20"]
    words += ["--rows", "pretrained", "best-of-8", "grpo", "--online", '{"steps": 1, "group": 2, "max_faces": 8}']
    monkeypatch.setattr(sys, "argv", [*words, "--page", str(tmp_path / "page.md")])
    tool.main()
    found = json.loads((tmp_path / "page.json").read_text())["rows"]
    assert list(found) == ["pretrained", "best-of-8", "grpo"]
    for row, records in found.items():
        assert all(np.isfinite([r[name] for name in tool.MEASURES]).all() for r in records), row
    page = (tmp_path / "page.md").read_text()
    assert page.count("| grpo |") == 2 and str(tmp_path) not in page and (tmp_path / "bench_page.png").exists()

    def never(*_: object) -> MeshLM:
        raise AssertionError("a finished row is not made again")

    monkeypatch.setattr(tool, "tuned", never)
    tool.main()
    assert (tmp_path / "page.md").read_text() == page


def test_the_best_has_the_best_mean_rank(tool: ModuleType) -> None:
    from tiny_mesh_pairs import box

    from rl3d.metrics import reference, worst_score

    target = reference(box(9).mesh())
    good, worst = score_mesh(box(9).mesh(), target), worst_score("nothing", True)
    assert tool.best([worst, good, worst]) == 1 and tool.best([good, good]) == 0


def test_gains_are_paired(tool: ModuleType) -> None:
    base = [{"shape": s, "seed": 0, "hd": v} for s, v in (("a", 0.2), ("b", 0.6))]
    mine = [{"shape": s, "seed": 0, "hd": v - 0.1} for s, v in (("b", 0.6), ("a", 0.2))]
    assert tool.gain(mine, base, "hd") == pytest.approx((-0.1, -0.1, -0.1))
