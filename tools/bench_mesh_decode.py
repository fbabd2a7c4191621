"""Measure mesh decoding: tokens a second with and without the cache, and memory by the number of faces.

    python tools/bench_mesh_decode.py [--model FOLDER] [--rows 1 8] [--tokens 1000] [--faces 500 2000]

Rows never end: the end sign is left out. "naive" is one pass over the whole sequence, condition and all, for every
token; it is timed at every 50th length, and their mean stands for all. Times are CPU seconds of this process, so that a
busy machine changes little. "peak" is how far resident memory rises above what the loaded model takes, in a process
of its own for each figure: sampling one mesh of that many faces, and its log-probabilities in one pass.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rl3d.mesh_tokens.condition import Condition
from rl3d.mesh_tokens.model import MeshLM, MeshLMConfig, load_mesh_lm
from rl3d.mesh_tokens.sampling import SampleOptions, sample, sequence_log_probs


class Endless:
    """A model that never writes its end sign; stops after `limit` tokens, by writing nothing else."""

    def __init__(self, model: MeshLM, limit: float = math.inf) -> None:
        self.model, self.config, self.lm_head = model, model.config, model.lm_head
        self.left = limit

    def __call__(self, *args: Any, **kwargs: Any) -> SimpleNamespace:
        logits = self.model(*args, **kwargs).logits.clone()
        self.left -= 1
        signs = self.config.tokenizer.vocabulary
        logits[..., signs.end] = -1e9 if self.left > 0 else 1e9
        return SimpleNamespace(logits=logits)


def build(folder: Path | None) -> MeshLM:
    """The model of `folder`, or one of the default size with random weights: they are as fast."""
    torch.manual_seed(0)
    return (MeshLM(MeshLMConfig()) if folder is None else load_mesh_lm(folder)).eval()


def cloud(model: MeshLM) -> Condition:
    points = torch.rand(1, model.config.cloud_points, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    return Condition(points, torch.nn.functional.normalize(points, dim=-1), faces=torch.tensor([400]))


@torch.no_grad()
def cached_seconds(model: MeshLM, rows: int, tokens: int) -> tuple[float, int]:
    """CPU seconds of sampling, and the tokens that all rows have together."""
    options = SampleOptions(temperature=1.0, top_p=1.0, max_faces=10**6)
    start = time.process_time()
    made = sample(Endless(model, tokens), cloud(model), rows, options, seed=0)  # type: ignore[arg-type]
    return time.process_time() - start, int((made.lengths - 1).sum())


@torch.no_grad()
def naive_seconds(model: MeshLM, rows: int, tokens: int, every: int = 50) -> float:
    """CPU seconds of `tokens` passes over 1, 2, ... tokens, from every 50th of them."""
    condition = cloud(model).rows(torch.zeros(rows, dtype=torch.int64))
    ids = torch.randint(0, model.config.bins, (rows, tokens), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = model.config.bos_token_id
    seconds = []
    for length in range(every // 2, tokens, every):
        start = time.process_time()
        model(ids[:, :length], logits_to_keep=1, **condition.tensors())
        seconds.append(time.process_time() - start)
    return sum(seconds) / len(seconds) * tokens


def rise(work: Callable[[], object]) -> float:
    """MiB that `work` adds to resident memory at its highest, in a process that had no higher peak before."""

    def status(name: str) -> int:  # KiB (Linux). The mark cannot be set back on every machine, hence the new process
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
        return int(line.split()[1])

    before = status("VmRSS")
    work()
    return (status("VmHWM") - before) / 1024


@torch.no_grad()
def peak(model: MeshLM, what: str, faces: int) -> dict[str, float]:
    """Rise of the resident memory in MiB, with the tokens of the mesh."""
    options = SampleOptions(temperature=1.0, top_p=1.0, max_faces=faces)
    if what == "sample":
        made: list[int] = []

        def work() -> None:
            found = sample(Endless(model), cloud(model), 1, options, seed=0)  # type: ignore[arg-type]
            made.append(int(found.lengths))

        mib, tokens = rise(work), made[0]
    else:  # a mesh's length without its memory: a strip's tokens
        signs = model.config.tokenizer.vocabulary
        body = torch.randint(0, signs.bins, (1, 9 + 3 * (faces - 1)), generator=torch.Generator().manual_seed(0))
        row = torch.cat([torch.tensor([[signs.begin]]), body, torch.tensor([[signs.end]])], 1)
        mib, tokens = rise(lambda: sequence_log_probs(model, row, cloud(model))), row.shape[1]
    return {"faces": faces, "tokens": tokens, "mib": round(mib, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--faces", type=int, nargs="*", default=[500, 2000])
    parser.add_argument("--peak", nargs=2, metavar=("sample|log_probs", "FACES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = build(args.model)
    if args.peak:
        print(json.dumps(peak(model, args.peak[0], int(args.peak[1]))))
        return
    for rows in args.rows:
        cached_seconds(model, rows, 20)  # warms up
        seconds, made = cached_seconds(model, rows, args.tokens)
        naive = naive_seconds(model, rows, args.tokens)
        speed = {"rows": rows, "tokens": made, "cached_seconds": round(seconds, 2), "naive_seconds": round(naive, 2)}
        speed |= {"tokens_per_second": round(made / seconds, 1), "times": round(naive / seconds, 1)}
        print(json.dumps(speed), flush=True)
    for what in ("sample", "log_probs"):
        for faces in args.faces:
            command = [sys.executable, __file__, "--peak", what, str(faces)]
            command += ["--model", str(args.model)] if args.model else []
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(json.dumps({"peak": what, **json.loads(done.stdout)}), flush=True)


if __name__ == "__main__":
    main()
