from __future__ import annotations

import io
import logging
import sys

import pytest

from rl3d.progress import Progress


def test_lines_name_stage_steps_rate_and_time_left() -> None:
    stream = io.StringIO()
    with Progress(stream, interval=0.0).stage("lift", 4) as stage:
        stage.step(loss=0.123456)
        stage.at(3, loss=0.5)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "lift 0/4"
    assert lines[1].startswith("lift 1/4   25%")
    assert "ETA 0:00" in lines[1] and "loss=0.1235" in lines[1] and "steps/s" in lines[1]
    assert lines[2].startswith("lift 3/4   75%")
    assert lines[3].startswith("lift done in 0:00  loss=0.5")


def test_few_lines_between_intervals() -> None:
    stream = io.StringIO()
    with Progress(stream, interval=3600).stage("sample", 1000) as stage:
        for _ in range(1000):
            stage.step()
    assert len(stream.getvalue().splitlines()) == 2


def test_a_resumed_stage_counts_only_its_own_rate() -> None:
    with Progress(silent=True).stage("distill", 100, done=90) as stage:
        assert stage.seconds_left is None
        stage.step()
        assert stage.done == 91
        # One step was done here, so the nine that are left take nine times as long as it did.
        assert stage.seconds_left is not None
        assert stage.seconds_left <= 9 * stage.seconds + 1e-6


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(silent=True)
    progress.note("nothing")
    with progress.stage("lift", 2) as stage:
        stage.step()
    assert capsys.readouterr() == ("", "")


def test_an_error_in_a_stage_comes_through_without_a_done_line() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="inside"), Progress(stream).stage("lift", 2):
        raise ValueError("inside")
    assert "done" not in stream.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress().stage("lift", 2) as stage:
        stage.step(loss=1.0)
        stage.step(loss=0.5)
    assert "lift" in stream.getvalue() and "2/2" in stream.getvalue()


def test_a_loggers_lines_become_notes_while_asked_for() -> None:
    stream = io.StringIO()
    logger = logging.getLogger("rl3d.some")
    with Progress(stream).notes_of("rl3d.some"):
        logger.info("compiling %d kernels", 3)
        logger.debug("not this")
    logger.info("nor this")
    assert stream.getvalue() == "compiling 3 kernels\n"
    with Progress(stream, silent=True).notes_of("rl3d.some"):
        logger.warning("nor that")
    assert stream.getvalue() == "compiling 3 kernels\n"
    assert (logger.level, logger.handlers) == (logging.NOTSET, [])


def test_aside_there_are_notes_alone() -> None:
    stream = io.StringIO()
    progress = Progress(stream, interval=0.0, aside="worker 1: ")
    with progress.stage("lift", 4) as stage:
        stage.step()
        progress.note("warning: an unknown word")
    assert stream.getvalue() == "worker 1: warning: an unknown word\n"
    quiet = Progress(stream, silent=True, aside="worker 1: ")
    quiet.note("nothing")
    assert stream.getvalue().count("\n") == 1
