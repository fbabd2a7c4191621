from __future__ import annotations

import getpass
import json
import math
import platform
from pathlib import Path

import pytest

from rl3d import runs
from rl3d.environment import PeakMemory, environment, peak_memory_mib
from rl3d.errors import ConfigError, InputError
from rl3d.runs import Run, check_config, check_out, clear, discard_barren, finished_stages, read_metrics, status

CONFIG = {"prompt": "a red barrel", "lift": {"steps": 10, "span": (0.1, 0.2)}}
COMMAND = ["/somewhere/bin/rl3d", "generate", "a red barrel"]


def begin(folder: Path, **kwargs: bool) -> Run:
    return Run.open(folder, CONFIG, COMMAND, **kwargs)


def test_a_run_from_beginning_to_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert status(folder) == "empty"
    with begin(folder) as run:
        assert status(folder) == "unfinished"
        with run.stage("sample") as facts:
            facts["views"] = 4
            run.log("sample", 1, loss=0.5)
        run.log("lift", 1, loss=math.nan, text="x")
        run.finish({"score": 0.5})
    assert status(folder) == "finished"
    assert json.loads((folder / "config.json").read_text())["lift"] == {"steps": 10, "span": [0.1, 0.2]}
    assert (folder / "command.txt").read_text() == "rl3d generate 'a red barrel'\n"
    assert json.loads((folder / "report.json").read_text()) == {"score": 0.5}
    stage = json.loads((folder / "state.json").read_text())["stages"]["sample"]
    assert stage["views"] == 4 and stage["seconds"] >= 0 and stage["peak_memory_mib"] > 1
    rows = read_metrics(folder / "metrics.jsonl")
    assert [(r["stage"], r["step"], r["loss"]) for r in rows] == [("sample", 1, 0.5), ("lift", 1, "nan")]


def test_a_stage_that_fails_is_not_done(tmp_path: Path) -> None:
    with begin(tmp_path) as run, pytest.raises(ValueError, match="oh"), run.stage("lift"):
        raise ValueError("oh")
    with begin(tmp_path, resume=True) as run:
        assert not run.is_done("lift")


def test_resume_keeps_stages_and_mends_a_torn_line(tmp_path: Path) -> None:
    with begin(tmp_path) as run, run.stage("sample"):
        run.log("sample", 1, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"stage": "lift", "st')  # a kill in the middle of a write
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    with begin(tmp_path, resume=True) as run:
        assert run.is_done("sample") and not run.finished
        run.log("lift", 1, loss=2.0)
    assert [r["stage"] for r in read_metrics(tmp_path / "metrics.jsonl")] == ["sample", "lift"]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(InputError, match="line 2 is not a JSON object"):
        read_metrics(path)
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_rewind_drops_what_will_be_written_again(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        for step in range(1, 6):
            run.log("distill", step)
        run.log("other", 9)
        run.rewind("distill", 3)
        run.log("distill", 4)
    rows = [(r["stage"], r["step"]) for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert rows == [("distill", 1), ("distill", 2), ("distill", 3), ("other", 9), ("distill", 4)]


def test_resume_with_another_configuration_names_the_key(tmp_path: Path) -> None:
    begin(tmp_path).__exit__()
    before = (tmp_path / "config.json").read_bytes()
    other = {"prompt": "a red barrel", "lift": {"steps": 20, "span": [0.1, 0.2]}}
    with pytest.raises(ConfigError, match=r"begun with lift\.steps = 10, now it is 20; resume with the same"):
        Run.open(tmp_path, other, COMMAND, resume=True)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_configuration_is_compared_without_opening_the_run(tmp_path: Path) -> None:
    check_config(tmp_path, CONFIG)
    begin(tmp_path).__exit__()
    check_config(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match="begun with prompt = 'a red barrel', now it is 'a tree'"):
        check_config(tmp_path, {**CONFIG, "prompt": "a tree"})


def test_finished_stages_of_another_run_are_adopted_once(tmp_path: Path) -> None:
    with begin(tmp_path / "theirs") as theirs:
        with theirs.stage("views 1") as facts:
            facts["agreement"] = [0.5]
        with theirs.stage("lift 1"):
            theirs.log("lift 1", 10, loss=0.25)
        with theirs.stage("both"):
            theirs.log("both", 1)
        theirs.log("views 2", 1)  # of a stage that was not finished
    with begin(tmp_path / "ours") as ours:
        ours.log("lift 1", 10, loss=9.0)  # of an attempt that was not finished either
        with ours.stage("both") as facts:
            facts["mine"] = True
        ours.adopt(tmp_path / "nobody's")
        ours.adopt(tmp_path / "theirs")
        ours.adopt(tmp_path / "theirs")
        assert ours.stages["views 1"]["agreement"] == [0.5] and ours.stages["both"]["mine"]
    assert finished_stages(tmp_path / "ours") == ["both", "views 1", "lift 1"]
    rows = read_metrics(tmp_path / "ours" / "metrics.jsonl")
    assert [(r["stage"], r["step"], r["loss"]) for r in rows] == [("lift 1", 10, 0.25)]


def test_a_barren_run_is_discarded_and_no_other(tmp_path: Path) -> None:
    discard_barren(tmp_path / "none")
    begin(tmp_path / "barren").__exit__()
    with begin(tmp_path / "begun") as run, run.stage("views 0"):
        pass
    for folder in tmp_path.iterdir():
        discard_barren(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["begun"]


def test_a_second_run_does_not_take_the_first_ones_place(tmp_path: Path) -> None:
    begin(tmp_path).__exit__()
    with pytest.raises(InputError, match="holds a run already"):
        begin(tmp_path)


def test_a_kill_before_the_first_state_can_be_resumed(tmp_path: Path) -> None:
    begin(tmp_path).__exit__()
    (tmp_path / "state.json").unlink()
    assert status(tmp_path) == "unfinished"
    with begin(tmp_path, resume=True) as run:
        assert run.stages == {}


def test_check_out_changes_nothing(tmp_path: Path) -> None:
    check_out(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_check_out_refuses_what_would_be_lost(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        check_out(tmp_path / "file")
    with pytest.raises(InputError, match="cannot write --out"):
        check_out(tmp_path / "file" / "below")

    begin(tmp_path / "begun").__exit__()
    with pytest.raises(InputError, match="unfinished run; add --resume"):
        check_out(tmp_path / "begun")
    check_out(tmp_path / "begun", resume=True)
    check_out(tmp_path / "begun", overwrite=True)

    with begin(tmp_path / "done") as run:
        run.finish({})
    with pytest.raises(InputError, match="a finished run; choose another folder or add --overwrite"):
        check_out(tmp_path / "done")
    check_out(tmp_path / "done", resume=True)

    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "asset.glb").write_text("precious")
    with pytest.raises(InputError, match="results that no run"):
        check_out(tmp_path / "theirs", resume=True)

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("does not clash")
    check_out(tmp_path / "notes")


def test_check_out_wants_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 3 * 2**20

    monkeypatch.setattr(runs.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(InputError, match="has 3 MiB free"):
        check_out(tmp_path)


def test_clear_keeps_what_is_not_a_runs(tmp_path: Path) -> None:
    begin(tmp_path / "run").__exit__()
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    clear(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]
    (tmp_path / "run" / "notes.txt").unlink()
    clear(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_state_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(InputError, match="not a run's state"):
        check_out(tmp_path)


def test_environment_names_no_host_user_or_path() -> None:
    text = json.dumps(environment())
    assert "numpy" in text and "cpu" in text
    assert str(Path.home()) not in text and str(Path.cwd()) not in text
    for name in (platform.node(), getpass.getuser()):
        assert f'"{name}"' not in text


def test_peak_memory_sees_a_large_block() -> None:
    with PeakMemory() as small:
        pass
    with PeakMemory() as large:
        block = bytearray(b"x") * (200 * 2**20)
    del block
    with PeakMemory() as after:
        pass
    assert large.mib - small.mib > 150
    assert after.mib < large.mib - 100  # the process's high-water mark stays up, this block's peak does not
    assert peak_memory_mib() >= large.mib - 4  # two sources of the kernel, a page or two apart
