"""The loop that preference and online alignment share: steps that can be interrupted, and a folder at the end."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.mesh_tokens.model import MeshLM
from rl3d.reconstruct.leaves import read_leaves, readable, restore_moments, save_leaves
from rl3d.runs import Run

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
    report: Callable[[Numbers], Mapping[str, Any]],
    out: str | Path,
    *,
    resume: bool,
    progress: Report,
) -> Path:
    """Move all weights of `model` by AdamW.

    Args:
        gradients: adds the gradients of step i to the weights and gives what is logged; it must depend on i and the
            weights alone. config: what decides the result. report: report.json out of the last step's numbers.
        progress: called after every step with its number, of how many, and what is logged.

    Returns:
        The folder of the tuned model, in the format of transformers.

    Raises:
        InputError: a gradient that is not finite; a folder that cannot be written or holds another run.
        ConfigError: a run of another configuration is to be resumed. AssetError: its checkpoint cannot be read.
    """
    out = Path(out)
    leaves = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(leaves.values(), lr=pace.lr, betas=(0.9, 0.98), weight_decay=0.0)
    with Run.open(out, config, sys.argv, resume=resume) as run:
        if run.finished:
            return out / "model"
        state = out / CHECKPOINT
        step = _restored(state, leaves, optimizer) if state.exists() else 0
        run.rewind("align", step)
        last: Numbers = {}
        while step < pace.steps:
            for group in optimizer.param_groups:
                group["lr"] = pace.lr * min(1.0, (step + 1) / max(1, pace.warmup))
            optimizer.zero_grad(set_to_none=True)
            last = gradients(step)
            norm = float(torch.nn.utils.clip_grad_norm_(leaves.values(), pace.clip_norm))
            if not math.isfinite(norm):
                raise InputError(f"the gradient is not finite at step {step}; lower the rate or beta and begin anew")
            optimizer.step()
            step += 1
            last = {**last, "gradient_norm": norm}
            run.log("align", step, **last)
            progress(step, pace.steps, last)
            if step % pace.save_every == 0 or step == pace.steps:
                save_leaves(state, leaves, optimizer, {"step": step})
        model.save_pretrained(out / "model", safe_serialization=True)
        run.finish(report(last))
        state.unlink(missing_ok=True)
    return out / "model"


def _restored(path: Path, leaves: Mapping[str, Tensor], optimizer: torch.optim.AdamW) -> int:
    with readable(path):
        tensors, facts = read_leaves(path, "cpu")
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(tensors[name])
        restore_moments(optimizer, leaves, tensors)
        return int(facts["step"])
