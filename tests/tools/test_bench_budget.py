"""Rows of the benchmark at equal time, and drafts that rows share."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tiny_options import TINY
from tiny_world import random_prior

from rl3d.errors import InputError
from rl3d.scenes import Mesh
from rl3d.text_to_3d import finish
from rl3d.text_to_3d.generate import generate
from rl3d.text_to_3d.method_options import MethodOptions
from rl3d.text_to_3d.options import DistillOptions, GenerateOptions


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return importlib.import_module("bench_budget")


def test_steps_or_candidates_fill_the_time(tool: ModuleType) -> None:
    cost = tool.Cost(draft=10.0, step=0.1)
    options = GenerateOptions()
    assert tool.fitted("sds", options, cost, 60).distill.steps == 500
    undistilled = replace(options, distill=DistillOptions(steps=0), best_of=2)
    assert tool.fitted("best", undistilled, tool.Cost(10.0, 0.0), 60).best_of == 6
    some = tool.fitted("best", replace(options, best_of=2), cost, 60)
    assert (some.best_of, some.distill.steps) == (int((60 - 0.1 * options.distill.steps) / 10), options.distill.steps)
    lone = replace(undistilled, best_of=1)
    assert tool.fitted("draft", lone, tool.Cost(10.0, 0.0), 60) == lone  # nothing to stretch
    for name, row, price in (("sds", options, cost), ("best", undistilled, tool.Cost(99.0, 0.0))):
        with pytest.raises(InputError, match=f"--budget 10: row {name} takes at least"):
            tool.fitted(name, row, price, 10)


def test_a_budget_is_measured_once(tool: ModuleType) -> None:
    rows, asked = {"a": GenerateOptions(), "b": GenerateOptions(best_of=2)}, []

    def measure(options: GenerateOptions) -> object:
        asked.append(options)
        return tool.Cost(5.0, 0.05)

    changed, record = tool.budgeted(rows, 40.0, None, measure)
    assert changed["a"].distill.steps == record["rows"]["a"]["steps"] == 700 and len(asked) == 2
    again, same = tool.budgeted({**rows, "c": GenerateOptions()}, 40.0, json.loads(json.dumps(record)), measure)
    assert len(asked) == 4 and again["a"] == changed["a"] and same["rows"]["a"] == record["rows"]["a"]
    assert tool.budgeted(again, 40.0, same, measure)[1] == same and len(asked) == 4  # nothing new, nothing measured
    with pytest.raises(InputError, match="--budget 50: these runs have 40"):
        tool.budgeted(rows, 50.0, record, measure)


def test_a_busier_machine_does_not_shorten_a_new_row(tool: ModuleType) -> None:
    rows = {name: GenerateOptions() for name in ("a", "b")}
    _, record = tool.budgeted({"a": rows["a"]}, 40.0, None, lambda options: tool.Cost(5.0, 0.05))
    changed, same = tool.budgeted(rows, 40.0, record, lambda options: tool.Cost(12.0, 0.08))
    assert changed["b"].distill.steps == changed["a"].distill.steps == 700 and same["rows"]["a"] == record["rows"]["a"]


def test_costs_are_of_the_method(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "PROMPT", "a red box")
    prior, drafts = random_prior(), {}
    cheap = tool.cost_of(TINY, prior, drafts)
    dear = tool.cost_of(replace(TINY, distill=replace(TINY.distill, batch=6)), prior, drafts)
    assert len(drafts) == 1 and cheap.draft == dear.draft > 0
    assert dear.step > 1.5 * cheap.step > 0
    assert tool.cost_of(replace(TINY, distill=replace(TINY.distill, steps=0)), prior, drafts).step == 0


def test_a_planted_draft_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = importlib.import_module("bench_text_to_3d")
    verdict = {"reward": {"similarity": 0.5}, "gold": {"similarity": 0.4}, "unknown_words": []}
    monkeypatch.setattr(finish, "score_asset", lambda prompt, mesh: verdict)
    prior = random_prior()
    rows = {
        "base": TINY,
        "ism": replace(TINY, method=MethodOptions(name="ism"), distill=DistillOptions(6, rescale=0.0)),
    }
    rows["other"] = replace(rows["ism"], lift=replace(TINY.lift, steps=9))
    world = SimpleNamespace(methods=rows, out=tmp_path)
    jobs = {name: bench.Job(name, "known", "a red box", 0) for name in rows}
    generate("a red box", rows["base"], jobs["base"].folder(tmp_path), prior=prior)

    folder = jobs["ism"].folder(tmp_path)
    bench.plant_draft(world, jobs["ism"], folder)
    drawn = []
    monkeypatch.setattr(type(prior), "sample", lambda *a, **k: drawn.append(1), raising=False)
    planted = generate("a red box", rows["ism"], folder, prior=prior, resume=True)
    monkeypatch.undo()
    monkeypatch.setattr(finish, "score_asset", lambda prompt, mesh: verdict)
    assert not drawn and {"views 0", "lift 0", "distill"} <= set(planted.report["stages"])
    alone = generate("a red box", rows["ism"], tmp_path / "alone", prior=prior)
    assert alone.gaussians is not None and planted.gaussians is not None
    assert torch.equal(alone.gaussians.means, planted.gaussians.means)
    assert torch.equal(Mesh.load(alone.asset).vertices, Mesh.load(planted.asset).vertices)

    bench.plant_draft(world, jobs["other"], jobs["other"].folder(tmp_path))
    assert not jobs["other"].folder(tmp_path).exists()  # it lifts differently
