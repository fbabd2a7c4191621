"""Two real processes under `accelerate launch`, on one thread each, with a tiny prior in a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tiny_world import random_prior

from rl3d.runs import finished_stages, status

ROOT = Path(__file__).parents[2]
TINY = """
seed: 1
sample: {steps: 1, candidates: 2, rings: 1}
lift: {steps: 8, gaussians: 300, grid: 16}
distill: {steps: 0}
mesh: {resolution: 16, views: 4, render_size: 32, faces: 120, texture: 32}
preview: {frames: 8, size: 24}
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
LAUNCH = (
    "-m accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of all runs here."""
    folder = tmp_path_factory.mktemp("tiny")
    random_prior().save_pretrained(folder / "prior")
    (folder / "tiny.yaml").write_text(TINY)
    return ["--config", str(folder / "tiny.yaml"), "--prior", str(folder / "prior")]


def launched(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *LAUNCH.split(), "-m", "rl3d", "generate", *words]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def test_drafts_of_two_workers_are_those_of_one(rl3d: Callable, words: list[str], tmp_path: Path) -> None:
    asked = ["a red box", "--best-of", "4", *words]
    done = launched(*asked, "--out", str(tmp_path / "two"))
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'two' / 'asset.glb'}\n"), done.stderr
    assert rl3d("generate", *asked, "--quiet", "--out", str(tmp_path / "one")).code == 0
    names = ["asset.glb", "asset.ply", "views.png", *(f"checkpoints/lift-{i}.safetensors" for i in range(4))]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    choices = [json.loads((tmp_path / run / "report.json").read_text())["stages"]["choose"] for run in ("one", "two")]
    assert choices[0]["scores"] == choices[1]["scores"] and choices[0]["chosen"] == choices[1]["chosen"]
    shown = [line for line in done.stderr.splitlines() if line.startswith("views")]
    assert 0 < len({line.split()[1] for line in shown}) < 4  # the first worker did not make all four


def killed_in_the_middle(out: Path, words: list[str]) -> None:
    """A batch whose only process is killed when it has finished a stage of its first prompt."""
    command = [sys.executable, "-m", "rl3d", "generate", *words, "--quiet", "--out", str(out)]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE) as child:
        while child.poll() is None and not finished_stages(out / "a-red-box"):
            time.sleep(0.01)
        child.kill()
    assert child.returncode == -signal.SIGKILL


def test_two_workers_share_prompts_and_go_on_after_a_kill(rl3d: Callable, words: list[str], tmp_path: Path) -> None:
    out, file = tmp_path / "batch", tmp_path / "prompts.txt"
    file.write_text("# props\na red box\nzeppelin\n\na small green tree\na blue chest\n")
    killed_in_the_middle(out, ["--prompts", str(file), *words])
    assert status(out / "a-red-box") == "unfinished" and (out / "a-red-box.lock").exists()

    done = launched("--prompts", str(file), *words, "--out", str(out))
    made = [str(out / name / "asset.glb") for name in ("a-red-box", "a-small-green-tree", "a-blue-chest")]
    assert (done.returncode, done.stdout.split()) == (1, made), done.stderr  # one of the prompts failed
    assert done.stderr.count("rl3d: failed: 'zeppelin': the prior prior knows no word") == 1
    assert "worker 1: [" in done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["done"], summary["failed"], summary["waiting"]) == (3, 1, 0)
    assert not list(out.glob("*.lock")) and Image.open(out / "sheet.png").width > 256

    before = [Path(name).stat().st_mtime_ns for name in made]
    again = rl3d("generate", "--prompts", str(file), *words, "--quiet", "--out", str(out))
    assert (again.code, again.out.split()) == (1, made)
    assert again.err.startswith("rl3d: failed: 'zeppelin'") and again.err.count("\n") == 1
    assert [Path(name).stat().st_mtime_ns for name in made] == before
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["skipped"], summary["failed"]) == (3, 1)
