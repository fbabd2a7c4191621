"""Two real processes under `accelerate launch` end with the adapter of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from rl3d.runs import read_metrics

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))), "OMP_NUM_THREADS": "1"}
LAUNCH = (
    "-m accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
)
SCRIPT = """
import sys
from accelerate import Accelerator
from toy_prior import ToyPrior
from rl3d.multiview.loop import finetune
from rl3d.multiview.options import AdapterOptions, FinetuneOptions, WatchOptions
from rl3d.multiview.sampler_options import SamplerOptions
from rl3d.rewards.protocol import reward

@reward(views=None)
def dark(x):
    return 1 - x.images.mean((1, 2, 3, 4))

@reward(views=None)
def bright(x):
    return x.images.mean((1, 2, 3, 4))

accelerator = Accelerator(cpu=True)
for algorithm in ("carve3d", "nft", "diffusion-dpo"):
    options = FinetuneOptions(
        algorithm=algorithm, rounds=3, prompts_per_round=3, group=4, micro_batch=4, sampler=SamplerOptions(steps=4),
        adapter=AdapterOptions(lr=1e-2), watch=WatchOptions(every=2, looks=2, kl_budget=10.0, fall=10.0),
    )
    finetune(
        ToyPrior(), dark, ["a box", "a crate", "a barrel", "a tree"], options, f"{sys.argv[1]}/{algorithm}",
        guard=bright, accelerator=accelerator,
    )
"""


def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    script = tmp_path / "tune.py"
    script.write_text(SCRIPT)
    for words, name in (([], "one"), (LAUNCH.split(), "two")):
        command = [sys.executable, *words, str(script), str(tmp_path / name)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    for algorithm in ("carve3d", "nft", "diffusion-dpo"):
        one, two = (tmp_path / name / algorithm for name in ("one", "two"))
        a, b = (load_file(folder / "last" / "adapter_model.safetensors") for folder in (one, two))
        for name in a:  # sums of gradients in another order: 1e-7 of each step
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)
        reports = [json.loads((folder / "report.json").read_text()) for folder in (one, two)]
        assert reports[0]["best"]["round"] == reports[1]["best"]["round"]
        metrics = [read_metrics(folder / "metrics.jsonl") for folder in (one, two)]
        first, second = ([row["reward"] for row in rows if row["stage"] == "round"] for rows in metrics)
        torch.testing.assert_close(torch.tensor(first), torch.tensor(second), rtol=0, atol=1e-5)
