"""Many prompts with a tiny prior in this process: failures, reruns, other workers that die."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_options import TINY_DRAFT, VERDICT
from tiny_world import random_prior

from rl3d.errors import ConfigError, InputError
from rl3d.files import file_lock
from rl3d.priors.embedded import EmbeddedPrior
from rl3d.runs import read_metrics, status
from rl3d.text_to_3d import batch, finish
from rl3d.text_to_3d.batch import Outcome, generate_batch
from rl3d.text_to_3d.generate import generate
from rl3d.text_to_3d.method_options import MethodOptions
from rl3d.text_to_3d.options import DistillOptions, PreviewOptions
from rl3d.workers import Worker

TINY = replace(TINY_DRAFT, preview=PreviewOptions(frames=4, size=24))
PROMPTS = ["a red box", "zeppelin", "a green tree", "x" * 501, " a red box "]


@pytest.fixture(autouse=True, scope="module")
def judges() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "score_asset", lambda prompt, mesh: dict(VERDICT))
        yield


@pytest.fixture(scope="module")
def prior() -> EmbeddedPrior:
    return random_prior()


@pytest.fixture(scope="module")
def made(prior: EmbeddedPrior, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome], list[str]]:
    """A batch two prompts of which fail: its folder, the outcomes, and what was told of the failures."""
    out, told = tmp_path_factory.mktemp("batches") / "batch", []
    outcomes = generate_batch(
        PROMPTS, TINY, out, prior=prior, on_failure=lambda o, e: told.append(f"{type(e).__name__}: {o.error}")
    )
    return out, outcomes, told


def copied(made: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "copy"))


def statuses(outcomes: list[Outcome]) -> list[str]:
    return [o.status for o in outcomes]


def test_a_failed_prompt_stops_no_other(made: Any) -> None:
    out, outcomes, told = made
    assert [o.prompt for o in outcomes] == [PROMPTS[i] for i in (0, 1, 2, 3)]  # the fifth was the first again
    assert statuses(outcomes) == ["done", "failed", "done", "failed"]
    assert "knows no word of the prompt 'zeppelin'" in outcomes[1].error
    assert outcomes[3].error == "the prompt has 501 characters; at most 500 are read"
    assert sorted(told) == sorted(f"InputError: {outcomes[i].error}" for i in (1, 3))
    for o in (outcomes[0], outcomes[2]):
        report = json.loads((out / o.folder / "report.json").read_text())
        assert o.judges == {"reward": 0.5, "gold": 0.4} and o.warnings == report["warnings"] and o.error is None
        assert o.seconds == pytest.approx(sum(s["seconds"] for s in report["stages"].values()))
    assert sorted(p.name for p in out.iterdir()) == ["a-green-tree", "a-red-box", "sheet.png", "summary.json"]


def test_the_summary_and_the_sheet(made: Any) -> None:
    out, outcomes, _ = made
    summary = json.loads((out / "summary.json").read_text())
    assert summary.pop("prompts") == [asdict(o) for o in outcomes]
    assert summary == {"done": 2, "skipped": 0, "failed": 2, "waiting": 0}
    sheet = Image.open(out / "sheet.png")
    assert sheet.size == (2 * 256 + 4, 256 + 18)  # two assets, with a line of text below
    left, right = sheet.crop((0, 0, 256, 256)), sheet.crop((260, 0, 516, 256))
    assert left.tobytes() != right.tobytes()


def test_an_asset_is_the_one_that_a_run_of_its_own_gives(made: Any, prior: EmbeddedPrior, tmp_path: Path) -> None:
    alone = generate("a green tree", TINY, tmp_path, prior=prior)
    theirs = made[0] / "a-green-tree"
    for name in ("asset.glb", "asset.ply", "config.json"):
        assert (tmp_path / name).read_bytes() == (theirs / name).read_bytes()
    assert alone.report["warnings"] == json.loads((theirs / "report.json").read_text())["warnings"]


def test_a_rerun_skips_what_is_finished_and_tries_again_what_failed(
    made: Any, prior: EmbeddedPrior, tmp_path: Path
) -> None:
    out, told = copied(made, tmp_path), []
    before = (out / "a-red-box" / "asset.glb").stat().st_mtime_ns
    prompts = ["a blue chest", *PROMPTS]  # a new line before the old ones
    outcomes = generate_batch(prompts, TINY, out, prior=prior, on_failure=lambda o, e: told.append(o.prompt))
    assert statuses(outcomes) == ["done", "skipped", "failed", "skipped", "failed"]
    assert sorted(told) == sorted([PROMPTS[1], PROMPTS[3]])
    assert (out / "a-red-box" / "asset.glb").stat().st_mtime_ns == before
    first = {o.prompt: o for o in made[1]}
    assert outcomes[1] == replace(first["a red box"], status="skipped")
    assert Image.open(out / "sheet.png").height == 2 * (256 + 18) + 4  # three assets now


def test_a_rerun_of_finished_prompts_needs_no_prior(made: Any, tmp_path: Path) -> None:
    out = copied(made, tmp_path)
    for name in ("a-red-box", "a-green-tree"):
        config = json.loads((out / name / "config.json").read_text())
        (out / name / "config.json").write_text(json.dumps({**config, "prior": "no/such"}))
    assert statuses(generate_batch(["a red box", "a green tree"], TINY, out, prior="no/such")) == ["skipped"] * 2


def test_other_options_are_refused_before_any_work(made: Any, prior: EmbeddedPrior, tmp_path: Path) -> None:
    out = copied(made, tmp_path)
    summary, other = (out / "summary.json").read_bytes(), replace(TINY, seed=2)
    with pytest.raises(ConfigError, match="a-red-box was begun with seed = 1, now it is 2"):
        generate_batch(["a blue chest", "a red box"], other, out, prior=prior)
    assert not (out / "a-blue-chest").exists() and (out / "summary.json").read_bytes() == summary
    outcomes = generate_batch(["a red box"], other, out, prior=prior, overwrite=True)
    assert statuses(outcomes) == ["done"]
    assert json.loads((out / "a-red-box" / "config.json").read_text())["seed"] == 2


def test_an_error_that_nobody_expected_fails_one_prompt(
    prior: EmbeddedPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = batch.make_asset

    def make_asset(run: Any, prompt: str, *args: Any) -> Any:
        if prompt == "a red box":
            raise ZeroDivisionError("oops")
        return original(run, prompt, *args)

    monkeypatch.setattr(batch, "make_asset", make_asset)
    outcomes = generate_batch(["a red box", "a green tree"], TINY, tmp_path, prior=prior)
    assert statuses(outcomes) == ["failed", "done"] and outcomes[0].error == "ZeroDivisionError: oops"


def test_an_interruption_stops_all_and_a_rerun_goes_on(
    made: Any, prior: EmbeddedPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    out = tmp_path / "batch"
    prompts = ["a green tree", "a red box"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finish, "export_asset", interrupted)
        generate_batch(prompts, TINY, out, prior=prior)
    assert json.loads((out / "summary.json").read_text())["waiting"] == 2
    assert sorted(p.name for p in out.iterdir()) == ["a-green-tree", "summary.json"]  # and no lock
    assert status(out / "a-green-tree") == "unfinished"
    assert statuses(generate_batch(prompts, TINY, out, prior=prior)) == ["done", "done"]
    for name in ("a-green-tree", "a-red-box"):
        assert (out / name / "asset.glb").read_bytes() == (made[0] / name / "asset.glb").read_bytes()


def test_the_first_worker_takes_over_from_one_that_was_killed(
    prior: EmbeddedPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_holder: Callable
) -> None:
    monkeypatch.setattr(Worker, "meet", lambda self: True)
    prompts = ["a red box", "a green tree"]
    with killed_holder(tmp_path / "a-red-box.lock", seconds=2.0):
        outcomes = generate_batch(prompts, TINY, tmp_path, prior=prior, worker=Worker(0, 2))
    assert statuses(outcomes) == ["done", "done"]
    assert not list(tmp_path.glob("*.lock"))


def test_another_worker_takes_what_is_free_and_waits_for_nobody(
    prior: EmbeddedPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper, progress = Worker(1, 2), batch.Progress(silent=True)
    first = batch._Batch(tmp_path, TINY, prior, None, "cpu", progress, None)
    outcomes, _ = first.plan(["a red box", "a green tree"], overwrite=False)
    first.begin(outcomes, overwrite=False)
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "meet", lambda self: False)  # the first has ended: its error is the one to show
        assert generate_batch([], TINY, tmp_path, prior=prior, worker=helper) == []
    monkeypatch.setattr(Worker, "meet", lambda self: True)
    with file_lock(tmp_path / "a-red-box.lock"):
        outcomes = generate_batch([], TINY, tmp_path, prior=prior, worker=helper)
    assert statuses(outcomes) == ["waiting", "done"]
    assert not (tmp_path / "sheet.png").exists()  # the first's business


def test_what_a_method_remembers_does_not_reach_the_next_prompt(prior: EmbeddedPrior, tmp_path: Path) -> None:
    options = replace(TINY, method=MethodOptions(name="dreamreward"), distill=DistillOptions(steps=2))
    generate_batch(["a red box", "a green tree"], options, tmp_path / "batch", prior=prior)
    generate("a green tree", options, tmp_path / "alone", prior=prior)
    files = [tmp_path / "batch" / "a-green-tree", tmp_path / "alone"]
    rows = [[{**row, "seconds": 0} for row in read_metrics(f / "metrics.jsonl")] for f in files]
    assert rows[0] == rows[1] and any("balance" in row for row in rows[0])
    assert files[0].joinpath("asset.glb").read_bytes() == files[1].joinpath("asset.glb").read_bytes()


def test_what_no_batch_can_be_made_of(made: Any, prior: EmbeddedPrior, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no prompt"):
        generate_batch([], TINY, tmp_path / "batch", prior=prior)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        generate_batch(["a red box"], TINY, tmp_path / "file", prior=prior)
    with pytest.raises(InputError, match="--prior 'no-such' does not exist"):
        generate_batch(["a red box"], TINY, tmp_path / "batch", prior="no-such", overwrite=True)
    assert not (tmp_path / "batch").exists()
    with pytest.raises(InputError, match="holds a finished run"):
        generate_batch(["a red box"], TINY, made[0] / "a-red-box", prior=prior)
    out = copied(made, tmp_path)
    (out / "a-red-box" / "report.json").write_text("{")
    with pytest.raises(InputError, match=r"report\.json cannot be read"):
        generate_batch(["a red box"], TINY, out, prior=prior)
