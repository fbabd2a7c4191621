"""The loop that preference and online alignment share: steps that can be interrupted, and a folder at the end.

Several processes (`accelerate launch`) share every step's work and end with the weights of one, to rounding: the
gradients are summed, the first process writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from rl3d import runs
from rl3d.errors import InputError
from rl3d.hub import no_progress_bars
from rl3d.mesh_tokens.model import MeshLM
from rl3d.reconstruct.leaves import read_leaves, readable, restore_moments, save_leaves
from rl3d.runs import opened_by_first
from rl3d.workers import share_gradients

CHECKPOINT = "align.safetensors"
Numbers = Mapping[str, float]
Report = Callable[[int, int, Numbers], None]


class Pace(Protocol):
    """What the loop reads of a method's options."""

    @property
    def lr(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def clip_norm(self) -> float: ...
    @property
    def save_every(self) -> int: ...


def tune(
    model: MeshLM,
    pace: Pace,
    gradients: Callable[[int], Numbers],
    config: Mapping[str, Any],
    report: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]],
    out: str | Path,
    *,
    resume: bool,
    progress: Report,
    accelerator: Accelerator,
) -> Path:
    """Move all weights of `model` by AdamW.

    Args:
        gradients: adds this process's part of the gradients of step i to the weights and gives its part of what is
            logged, under the same names in every process; it must depend on i and the weights alone.
        config: what decides the result. report: report.json out of the rows of metrics.jsonl.
        progress: called by the first process after every step with its number, of how many, and what is logged.

    Returns:
        The folder of the tuned model, in the format of transformers.

    Raises:
        InputError: a gradient that is not finite; a folder that cannot be written or holds another run.
        ConfigError: a run of another configuration is to be resumed. AssetError: its checkpoint cannot be read.
    """
    out = Path(out)
    leaves = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(leaves.values(), lr=pace.lr, betas=(0.9, 0.98), weight_decay=0.0)
    with opened_by_first(out, config, resume, accelerator) as run:
        if runs.status(out) == "finished":
            return out / "model"
        state = out / CHECKPOINT
        step = _restored(state, leaves, optimizer) if state.exists() else 0
        if run is not None:
            run.rewind("align", step)
        while step < pace.steps:
            for group in optimizer.param_groups:
                group["lr"] = pace.lr * min(1.0, (step + 1) / max(1, pace.warmup))
            optimizer.zero_grad(set_to_none=True)
            numbers = _summed(gradients(step), accelerator)
            share_gradients(leaves.values(), accelerator)
            norm = float(torch.nn.utils.clip_grad_norm_(leaves.values(), pace.clip_norm))
            if not math.isfinite(norm):
                raise InputError(f"the gradient is not finite at step {step}; lower the rate or beta and begin anew")
            optimizer.step()
            step += 1
            numbers["gradient_norm"] = norm
            if run is not None:
                run.log("align", step, **numbers)
                progress(step, pace.steps, numbers)
                if step % pace.save_every == 0 or step == pace.steps:
                    save_leaves(state, leaves, optimizer, {"step": step})
        if run is not None:
            with no_progress_bars():
                model.save_pretrained(out / "model", safe_serialization=True)
            run.finish(report(runs.read_metrics(out / "metrics.jsonl")))
            state.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return out / "model"


def _summed(numbers: Numbers, accelerator: Accelerator) -> dict[str, float]:
    """The sum of all processes' parts."""
    if accelerator.num_processes == 1:
        return dict(numbers)
    names = sorted(numbers)
    mine = torch.tensor([numbers[name] for name in names], dtype=torch.float64, device=accelerator.device)
    return dict(zip(names, accelerator.reduce(mine, "sum").tolist()))


def _restored(path: Path, leaves: Mapping[str, Tensor], optimizer: torch.optim.AdamW) -> int:
    with readable(path):
        tensors, facts = read_leaves(path, "cpu")
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(tensors[name])
        restore_moments(optimizer, leaves, tensors)
        return int(facts["step"])
