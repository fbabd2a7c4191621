"""`rl3d mesh align` and `grpo` through the real command: killed and resumed, by two processes, and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_mesh_lm import tiny_condition, tiny_model
from tiny_world import write_assets

from rl3d.data.asset_set import load_asset_set
from rl3d.mesh_tokens.batches import PLAIN, MeshBatches
from rl3d.mesh_tokens.model import MeshLM
from rl3d.mesh_tokens.pair_files import Candidate, Pair, PairSet, Shape, write_pair_set
from rl3d.mesh_tokens.sampling import SampleOptions, sample
from rl3d.runs import read_metrics

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
LAUNCH = (
    "-m accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 "
)


def learnt(model: MeshLM, folder: Path, steps: int = 80) -> None:
    """Train on the smallest meshes of a folder as they are."""
    assets = load_asset_set(folder)
    words_of = {word: i for i, word in enumerate(model.config.words)}
    batches = MeshBatches(assets, "train", model.config.tokenizer, words_of, 20, 32, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        batch = batches.make(batches.keep[:6], PLAIN, np.random.default_rng(step))
        labels = batch.tokens.masked_fill(batch.tokens == model.config.pad_token_id, -100)
        optimizer.zero_grad()
        model(batch.tokens, labels, **batch.condition.tensors()).loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, assets/ and pairs/ of sequences of different lengths."""
    folder = tmp_path_factory.mktemp("world")
    model = tiny_model()
    write_assets(folder / "assets")
    learnt(model, folder / "assets")  # candidates of a random model all fail, which teaches GRPO nothing
    model.save_pretrained(folder / "model")
    drawn = sample(model, tiny_condition(1), 24, SampleOptions(temperature=1.0, top_p=1.0, max_faces=24), 0)
    tokens = [row.astype(np.int32) for row in drawn.sequences()]
    decoded = [model.config.tokenizer.decode(row) for row in tokens]
    fine = [i for i, why in enumerate(drawn.failures) if not why and not decoded[i].failure][:8]
    assert len(fine) == 8 and len({len(tokens[i]) for i in fine}) > 2
    rng = np.random.default_rng(0)
    qualities = [rng.random(decoded[i].face_count).astype(np.float32) for i in fine]
    candidates = {str(k): Candidate("a", tokens[i], q, {"hd": 0.1}) for k, (i, q) in enumerate(zip(fine, qualities))}
    pairs = tuple(Pair(str(k), str(k + 4)) for k in range(4))
    shapes = {"a": Shape(rng.random((16, 6), np.float32), "a box", 12)}
    write_pair_set(folder / "pairs", PairSet(shapes, candidates, pairs, {"kind": "adjacent", "bins": 16}))
    return folder


def words(world: Path, action: str, out: Path, steps: int = 6) -> list[str]:
    """Of a short run that saves after every step."""
    source = {"align": "pairs", "grpo": "assets"}[action]
    own = {"align": ["pairs=4", "micro_batch=2"], "grpo": ["shapes=2", "group=6", "max_faces=24"]}[action]
    settings = [*own, f"steps={steps}", "save_every=1", "lr=1e-3", "warmup=1"]
    sets = [word for setting in settings for word in ("--set", setting)]
    return ["mesh", action, str(world / source), "--model", str(world / "model"), "--out", str(out), *sets]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


@pytest.mark.parametrize("action", ["align", "grpo"])
def test_a_killed_run_goes_on_to_the_same_weights(action: str, world: Path, rl3d: Callable, tmp_path: Path) -> None:
    done = rl3d(*words(world, action, tmp_path / "whole", 6))
    assert (done.code, done.out.strip()) == (0, str(tmp_path / "whole" / "model")), done.err
    command = [sys.executable, "-m", "rl3d", *words(world, action, tmp_path / "parts", 6)]
    run = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    metrics, end = tmp_path / "parts" / "metrics.jsonl", time.monotonic() + 120
    while run.poll() is None and time.monotonic() < end and len(read_metrics(metrics)) < 2:
        time.sleep(0.01)
    run.kill()
    run.communicate()
    assert run.returncode == -9 and not (tmp_path / "parts" / "model").exists()
    refused = rl3d(*words(world, action, tmp_path / "parts", 6))
    assert refused.code == 2 and "--resume" in refused.err
    again = rl3d(*words(world, action, tmp_path / "parts", 6), "--resume")
    assert again.code == 0, again.err
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    start = load_file(world / "model/model.safetensors")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not all(torch.equal(whole[name], start[name]) for name in whole)
    assert [row["step"] for row in read_metrics(metrics)] == list(range(1, 7))


@pytest.mark.parametrize("action", ["align", "grpo"])
def test_two_processes_end_where_one_does(action: str, world: Path, tmp_path: Path) -> None:
    for launch, name in (([], "one"), (LAUNCH.split(), "two")):
        command = [sys.executable, *launch, "-m", "rl3d", *words(world, action, tmp_path / name, 4), "--quiet"]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.strip() == str(tmp_path / name / "model")
    one, two, start = weights(tmp_path / "one"), weights(tmp_path / "two"), load_file(world / "model/model.safetensors")

    def far(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return float(torch.cat([(a[name] - b[name]).flatten() for name in a]).norm())

    # As a whole: Adam blows the rounding of single gradients near 0 up to whole steps. Measured 2e-4 and 0.
    assert far(one, start) > 0.01 and far(one, two) < 2e-3 * far(one, start)
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert rows[0][0].keys() == rows[1][0].keys()
    for key in {"align": ("preference", "nll", "tokens_loser"), "grpo": ("loss", "failed", "hd")}[action]:
        assert rows[0][0][key] == pytest.approx(rows[1][0][key], rel=1e-3, abs=1e-4), key


def test_nothing_of_the_libraries_leaks(world: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rl3d", *words(world, "align", tmp_path / "run", 1), "--quiet"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_bad_input_is_one_line(world: Path, rl3d: Callable, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words_, said in (
        (["align", str(world / "pairs"), "--preset", "mpdo"], "mdpo"),
        (["align", str(world / "pairs"), "--set", "bta=1"], "beta"),
        (["align", str(world / "nothing")], "is no folder"),
        (["align", str(world / "pairs"), "--resume", "--overwrite"], "not allowed"),
        (["grpo", str(world / "nothing")], "nothing"),
        (["grpo", str(world / "assets"), "--set", "group=1"], "group"),
        (["grpo", str(world / "assets"), "--shapes", "0"], "--shapes"),
    ):
        done = rl3d("mesh", *words_, "--out", str(out), "--model", str(world / "model"))
        assert done.code == 2 and len(done.err.strip().splitlines()) == 1 and said in done.err, (words_, done.err)
        assert not out.exists()
    (tmp_path / "set").mkdir()
    for file in (world / "pairs").iterdir():
        (tmp_path / "set" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "set" / "pairs.jsonl").write_text(json.dumps({"winner": "0", "loser": "99", "by": "human"}))
    done = rl3d("mesh", "align", str(tmp_path / "set"), "--out", str(out), "--model", str(world / "model"))
    assert done.code == 2 and "no candidate '99'" in done.err and not out.exists()
