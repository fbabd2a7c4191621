"""The benchmark of mesh decoding: its rows do not end, and its figures are of what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_mesh_lm import tiny_model
from tiny_world import load_tool

from rl3d.mesh_tokens.sampling import SampleOptions, sample


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("bench_mesh_decode")


def test_rows_go_on_to_their_limit(tool: ModuleType) -> None:
    model = tiny_model()
    options = SampleOptions(temperature=1.0, top_p=1.0, max_faces=10**6)
    made = sample(tool.Endless(model, 100), tool.cloud(model), 3, options, seed=0)
    # The end comes with the first whole face or vertex after 100 steps.
    assert all(100 <= length <= 120 for length in made.lengths.tolist())
    assert not any(made.failures)


def test_times_of_both_loops(tool: ModuleType) -> None:
    model = tiny_model()
    seconds, made = tool.cached_seconds(model, 2, 60)
    assert made >= 120 and 0 < seconds < 30
    assert 0 < tool.naive_seconds(model, 2, 60, every=20) < 60


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory as Linux tells it")
def test_memory_is_that_of_the_call(tool: ModuleType) -> None:
    folder = Path(str(tool.__file__)).parent
    code = f"import sys; sys.path.append({str(folder)!r}); import torch, bench_mesh_decode as b;"
    code += "print(b.rise(lambda: torch.ones(64 << 20, dtype=torch.uint8).max()))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=True)
    assert 60 < float(done.stdout) < 80  # 64 MiB, gone before the call's end
    found = tool.peak(tiny_model(), "log_probs", 50)
    assert found["tokens"] == 1 + 9 + 3 * 49 + 1 and found["mib"] >= 0


def test_the_command_prints_a_line_a_figure(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model().save_pretrained(tmp_path)
    words = ["bench_mesh_decode", "--model", str(tmp_path), "--rows", "1", "--tokens", "50", "--faces"]
    monkeypatch.setattr(sys, "argv", words)
    tool.main()
    assert '"times":' in capsys.readouterr().out
