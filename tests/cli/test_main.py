from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rl3d as package
from rl3d.cli import doctor
from rl3d.cli.main import COMMANDS
from rl3d.errors import InputError

ROOT = Path(package.__file__).resolve().parents[1]


def python(code: str, *arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **kwargs)


@pytest.mark.parametrize("words", [["--help"], *[[name, "--help"] for name in COMMANDS], ["--version"]])
def test_help_does_not_import_torch(words: list[str]) -> None:
    code = """
import sys
from rl3d.cli.main import main
assert main(sys.argv[1:]) == 0
heavy = {"torch", "numpy", "numba", "diffusers", "transformers", "trimesh", "scipy", "tqdm"} & set(sys.modules)
assert not heavy, heavy
"""
    done = python(code, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout and not done.stderr


def test_help_is_quick() -> None:
    # 0.09 s measured here (python itself 0.02 s); half a second is the promise. The best of three, for busy machines.
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "rl3d", "--help"], cwd=ROOT, check=True, capture_output=True)
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.5


def test_importing_the_package_does_not_import_torch() -> None:
    done = python("import sys, rl3d; rl3d.__version__; dir(rl3d); assert not {'torch', 'numpy'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_bad_input_is_refused_before_torch(tmp_path: Path) -> None:
    code = """
import sys
from rl3d.cli.main import main
out = sys.argv[1]
for words in (["generate", ""], ["generate", "x", "--seed", "-1"], ["generate", "x", "--set", "stesp=1"],
              ["render", out + "/none.glb"], ["score", "x", out + "/none.glb"]):
    assert main(words) == 2, words
assert "torch" not in sys.modules
"""
    done = python(code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 5


def test_help_lists_every_command(rl3d: Callable) -> None:
    done = rl3d("--help")
    assert done.code == 0
    assert all(name in done.out for name in COMMANDS)
    assert rl3d().code == 0  # bare rl3d is a question, not a mistake
    version = rl3d("--version")
    assert (version.code, version.out) == (0, f"rl3d {package.__version__}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generat"], "unknown command 'generat'; did you mean 'generate'?"),
        (
            ["xyz"],
            "unknown command 'xyz'; known: generate, finetune, complete, layout, render, score, mesh, rewards, doctor",
        ),
        (["doctor", "--jsno"], "unknown option --jsno; did you mean --json?"),
        (["--verion"], "unknown option --verion; did you mean --version?"),
        (["generate"], "PROMPT; see rl3d generate --help"),
        (["generate", "a", "red", "chest"], "unexpected argument 'red'; put a text of several words in quotes"),
        (["generate", "a", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["generate", "a", "--resume", "--overwrite"], "not allowed with argument"),
        (["score", "a chest"], "FILE; see rl3d score --help"),
    ],
)
def test_wrong_words_are_one_line(rl3d: Callable, words: list[str], message: str) -> None:
    done = rl3d(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("rl3d: error: ")
    assert done.err.count("\n") == 1
    assert message in done.err


def raising(error: BaseException) -> Callable[..., int]:
    def run(_: object) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no\nlines"), 2, "rl3d: error: no lines"),
        (MemoryError(), 1, "rl3d: error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), 1, "rl3d: error: out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "rl3d: error: out of memory"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.glb"),
            1,
            "rl3d: error: no space left on the disk for x.glb",
        ),
        (KeyboardInterrupt(), 130, "rl3d: interrupted"),
        (ZeroDivisionError("oops"), 1, "rl3d: error: internal error: ZeroDivisionError: oops; please report it"),
    ],
)
def test_errors_are_one_line_and_a_code(
    rl3d: Callable, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr(doctor, "run", raising(error))
    done = rl3d("doctor")
    assert done.code == code
    assert done.err.startswith(message)
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("words", [["--debug", "doctor"], ["doctor", "--debug"]])
def test_debug_shows_the_traceback(rl3d: Callable, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(doctor, "run", raising(ZeroDivisionError("oops")))
    done = rl3d(*words)
    assert done.code == 1
    assert "Traceback" in done.err and "please report" in done.err
    monkeypatch.setenv("RL3D_DEBUG", "1")
    assert "Traceback" in rl3d("doctor").err


def test_sigterm_cleans_up_and_exits_143(rl3d: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned = []

    def run(_: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            cleaned.append(True)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(doctor, "run", run)
    done = rl3d("doctor")
    assert (done.code, done.err, cleaned) == (143, "rl3d: terminated\n", [True])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_closed_pipe_is_quiet() -> None:
    code = """
import sys
from rl3d.cli import doctor
from rl3d.cli.main import main
def run(args):
    for _ in range(100000):
        print("many lines of output")
    return 0
doctor.run = run
sys.exit(main(["doctor"]))
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait(60) == 141


def test_openmp_waits_passively_unless_told_otherwise(rl3d: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    rl3d("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert 0 < int(os.environ["GOMP_SPINCOUNT"]) < 100_000  # not at all halves the speed of a run alone
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    rl3d("--version")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE" and "GOMP_SPINCOUNT" not in os.environ
