from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rl3d.errors import InputError
from rl3d.runs import Run, status
from rl3d.text_to_3d.batch import Outcome
from rl3d.workers import ALONE, Worker


@dataclass(frozen=True)
class Result:
    asset: Path


class Fake:
    """Stands in for the pipeline: begins a run, remembers what it was called with, writes an asset."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        self.stages_before_error = 0

    def generate(self, prompt: str, options: Any, out: Path, **kwargs: Any) -> Result:
        self.calls.append({"prompt": prompt, "options": options, "out": out, **kwargs})
        with Run.open(out, {"prompt": prompt}, ["rl3d"], resume=kwargs["resume"]) as run:
            logging.getLogger("rl3d.kernels").info("compiling kernels")
            with kwargs["progress"].stage("sample", 2) as stage:
                stage.step(2)
            if self.error is not None and not self.stages_before_error:
                raise self.error
            with run.stage("sample"):
                pass
            if self.error is not None:
                raise self.error
            (out / "asset.glb").write_bytes(b"glTF")
            run.finish({})
        return Result(out / "asset.glb")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    module = ModuleType("rl3d.text_to_3d.generate")
    module.generate = fake.generate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rl3d.text_to_3d.generate", module)
    return fake


def test_the_path_on_stdout_and_progress_on_stderr(rl3d: Callable, fake: Fake, tmp_path: Path) -> None:
    done = rl3d("generate", "  a small wooden barrel ", "--out", str(tmp_path / "run"))
    assert (done.code, done.out) == (0, f"{tmp_path / 'run' / 'asset.glb'}\n")
    assert "sample 0/2" in done.err
    assert done.err.startswith("compiling kernels\n")
    call = fake.calls[0]
    assert call["prompt"] == "a small wooden barrel"
    assert (call["prior"], call["device"], call["resume"]) == (None, "cpu", False)
    quiet = rl3d("generate", "a barrel", "--quiet", "--out", str(tmp_path / "quiet"))
    assert quiet.err == ""


def test_preset_config_flags_and_overrides_in_that_order(rl3d: Callable, fake: Fake, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 1\nlift: {steps: 11, grid: 32}\n")
    words = [
        "--preset",
        "draft",
        "--config",
        str(file),
        "--seed",
        "2",
        "--best-of",
        "3",
        "--negative-prompt",
        "on: fire",
    ]
    words += ["--set", "lift.grid=40", "--set", "distill.steps=5", "--prior", "my/model@main", "--device", "cpu"]
    assert rl3d("generate", "a chest", "--out", str(tmp_path / "run"), *words).code == 0
    options = fake.calls[0]["options"]
    assert (options.seed, options.best_of, options.negative_prompt) == (2, 3, "on: fire")
    assert (options.lift.steps, options.lift.grid, options.distill.steps) == (11, 40, 5)
    assert options.sample.steps == 12  # the draft preset's
    assert fake.calls[0]["prior"] == "my/model@main"


def test_a_method_brings_its_preset_over_the_quality_preset(rl3d: Callable, fake: Fake, tmp_path: Path) -> None:
    words = ["--method", "dreamdpo", "--set", "method.dreamdpo.tau=0.3"]
    assert rl3d("generate", "a chest", "--out", str(tmp_path / "run"), *words).code == 0
    options = fake.calls[0]["options"]
    assert (options.method.name, options.method.dreamdpo.tau) == ("dreamdpo", 0.3)
    assert (options.distill.guidance, options.distill.rescale) == (7.5, 0.0)


def test_the_default_folder_is_named_after_prompt_and_seed(
    rl3d: Callable, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert rl3d("generate", "A red/blue chest!", "--seed", "7").out == "runs/a-red-blue-chest-seed7/asset.glb\n"
    assert rl3d("generate", "椅子").out == "runs/asset-seed0/asset.glb\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([""], "the prompt is empty"),
        (["   "], "the prompt is empty"),
        (["x" * 501], "the prompt has 501 characters; at most 500"),
        (["a\nb"], "line breaks or control characters"),
        (["a\udc80"], "not valid UTF-8"),
        (["a", "--seed", "-1"], "--seed must lie between 0 and 9223372036854775807, got -1"),
        (["a", "--seed", str(2**63)], "--seed must lie between"),
        (["a", "--best-of", "0"], "--best-of must lie between 1 and 64, got 0"),
        (["a", "--preset", "drafft"], "unknown preset 'drafft'; did you mean 'draft'?"),
        (["a", "--preset", "./none.yaml"], "cannot read the configuration none.yaml"),
        (["a", "--config", "none.yaml"], "no such file: --config none.yaml"),
        (["a", "--set", "lift.stesp=3"], "unknown configuration key 'lift.stesp'"),
        (["a", "--set", "seed=-3"], "seed must not be negative"),
        (["a", "--method", "dreamdpp"], "unknown method 'dreamdpp'; did you mean 'dreamdpo'?"),
        (["a", "--method", "sds", "--preset", "draft"], "--method sds has no effect: distill.steps is 0"),
        (["a", "--method", "sds", "--set", "distill.rescale=0.5"], "method sds has no rescale"),
        (["a", "--method", "dreamdpo", "--set", "method.dreamdpo.tau=-1"], "method.dreamdpo.tau must not be negative"),
        (["a", "--set", "lift.grid=huge"], "lift.grid must be a whole number, got 'huge'"),
        (["a", "--device", "gpu"], "unknown --device 'gpu'; known: cpu, cuda"),
        (["a", "--device", "cuda:99"], "--device cuda:99:"),
        (["a", "--prompts", "p.txt"], "give either --prompts FILE or a PROMPT; see rl3d generate --help"),
        (["--prompts", "none.txt"], "no such file: --prompts none.txt"),
        (["--prompts", "."], "--prompts . is a folder; give a text file"),
        (["--prompts", "/dev/null"], "--prompts /dev/null holds no prompt"),
        (["--prompts", sys.executable], "is not UTF-8 text"),
        (["a", "--out", "/dev/null"], "is a file; give a folder"),
        (["a", "--out", "/dev/null/run"], "cannot write --out /dev/null/run"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    rl3d: Callable, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = rl3d("generate", *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert fake.calls == []
    assert list(tmp_path.iterdir()) == []


def test_many_prompts_on_stdout_and_in_the_exit_code(
    rl3d: Callable, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    outcomes = [Outcome(*words) for words in (("a chest", "a-chest", "done"), ("a box", "a-box", "skipped"))]

    def generate_batch(prompts: list[str], options: Any, out: Path, **kwargs: Any) -> list[Outcome]:
        calls.append({"prompts": prompts, "options": options, "out": out, **kwargs})
        for outcome in outcomes:
            if outcome.error is not None:
                kwargs["on_failure"](outcome, ZeroDivisionError("oops"))
        return outcomes

    module = ModuleType("rl3d.text_to_3d.batch")
    module.generate_batch, module.Outcome = generate_batch, Outcome  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rl3d.text_to_3d.batch", module)
    monkeypatch.chdir(tmp_path)
    Path("My prompts.txt").write_text("a chest\na box\n")
    words = ["generate", "--prompts", "My prompts.txt", "--seed", "3", "--best-of", "2", "--prior", "my/model"]
    done = rl3d(*words)
    out = "runs/my-prompts-seed3"
    assert (done.code, done.out) == (0, f"{out}/a-chest/asset.glb\n{out}/a-box/asset.glb\n")
    assert calls[0]["prompts"] == ["a chest", "a box"] and calls[0]["out"] == Path(out)
    assert (calls[0]["options"].seed, calls[0]["options"].best_of, calls[0]["prior"]) == (3, 2, "my/model")
    assert (calls[0]["overwrite"], calls[0]["worker"], calls[0]["device"]) == (False, ALONE, "cpu")

    outcomes.append(Outcome("a tree", "a-tree", "failed", "oops"))
    done = rl3d(*words, "--out", "mine", "--overwrite", "--quiet")
    assert (done.code, done.out) == (1, "mine/a-chest/asset.glb\nmine/a-box/asset.glb\n")
    assert done.err == "rl3d: failed: 'a tree': oops\n" and calls[1]["overwrite"] is True
    assert "ZeroDivisionError" in rl3d(*words, "--debug").err


@pytest.mark.parametrize(
    ("index", "error", "code", "message"),
    [
        (
            0,
            KeyboardInterrupt(),
            130,
            "rl3d: interrupted: go on with: rl3d generate --prompts p.txt --out batch --resume\n",
        ),
        (0, InputError("no such prior"), 2, "rl3d: error: no such prior\n"),
        (1, KeyboardInterrupt(), 130, ""),  # the first worker says it for all
        (1, InputError("no such\nprior"), 0, "rl3d: worker 1 has stopped: no such prior\n"),  # and goes on alone
        (1, MemoryError("too much"), 0, "rl3d: worker 1 has stopped: too much\n"),
    ],
)
def test_a_worker_that_stops_ends_the_others_only_if_it_is_the_first(
    rl3d: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    index: int,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def generate_batch(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("rl3d.text_to_3d.batch.generate_batch", generate_batch)
    monkeypatch.setattr("rl3d.workers.current", lambda: Worker(index, 2, index))
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a chest")
    Path("batch").mkdir()
    done = rl3d("generate", "--prompts", "p.txt", "--out", "batch")
    assert (done.code, done.out, done.err) == (code, "", message)


def test_a_launcher_that_begins_one_process_only_is_named(
    rl3d: Callable, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    done = rl3d("generate", "a chest", "--quiet", "--out", str(tmp_path / "run"))
    assert done.code == 0 and done.err.startswith("rl3d: warning: accelerate launch started one process only")
    assert "--multi_gpu" in done.err and done.err.count("\n") == 1


def test_a_refused_run_leaves_nothing_behind(rl3d: Callable, fake: Fake, tmp_path: Path) -> None:
    fake.error = InputError("no word of the prompt is known")
    done = rl3d("generate", "zzz", "--quiet", "--out", str(tmp_path / "run"))
    assert (done.code, done.err) == (2, "rl3d: error: no word of the prompt is known\n")
    assert list(tmp_path.iterdir()) == []


def test_an_error_after_a_finished_stage_keeps_the_work(rl3d: Callable, fake: Fake, tmp_path: Path) -> None:
    fake.error = InputError("the disk is full")
    fake.stages_before_error = 1
    assert rl3d("generate", "a chest", "--out", str(tmp_path / "run")).code == 2
    assert status(tmp_path / "run") == "unfinished"


def test_interrupted_resumed_finished_overwritten(rl3d: Callable, fake: Fake, tmp_path: Path) -> None:
    out = str(tmp_path / "my run")
    command = ["generate", "a chest", "--quiet", "--out", out]
    fake.error = KeyboardInterrupt()
    done = rl3d(*command)
    assert done.code == 130
    assert done.err == f"rl3d: interrupted: go on with: rl3d generate 'a chest' --quiet --out '{out}' --resume\n"

    fake.error = None
    refused = rl3d(*command)
    assert refused.code == 2 and "holds an unfinished run; add --resume" in refused.err
    assert rl3d(*command, "--resume").code == 0
    assert fake.calls[-1]["resume"] is True
    assert status(out) == "finished"

    refused = rl3d(*command)
    assert refused.code == 2 and "holds a finished run; choose another folder or add --overwrite" in refused.err
    assert rl3d(*command, "--overwrite").code == 0


def test_no_hint_where_there_is_nothing_to_resume(
    rl3d: Callable, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["rl3d.text_to_3d.generate"], "generate", interrupted)
    assert rl3d("generate", "a chest", "--out", str(tmp_path / "run")).err == "rl3d: interrupted\n"
