"""Online alignment of the mesh model by GRPO, on the metrics that make pairs offline.

Draw a group of candidates of each shape, score them, standardise every metric in its group and sum:

    A_i = sum_n w_n (s_in - mean_n) / max(std_n, floor)
    L   = mean_i mean_t [max(-A_i rho_it, -A_i clip(rho_it)) + beta KL_it]        (GRPO, arXiv 2402.03300 eq. 3)

Candidates are drawn with temperature 1 from the grammar's whole support, so that rho is 1 where a step begins. One that
failed has the worst scores and learns from them like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rl3d.errors import InputError
from rl3d.mesh_tokens.align_options import OnlineOptions
from rl3d.mesh_tokens.align_page import Looks, online_charts, write_page
from rl3d.mesh_tokens.candidates import condition_of, draw_group
from rl3d.mesh_tokens.model import MeshLM
from rl3d.mesh_tokens.pair_files import Shape
from rl3d.mesh_tokens.pairs import METRICS
from rl3d.mesh_tokens.sampling import SampleOptions, Samples, sequence_log_probs
from rl3d.mesh_tokens.tuning import Report, tune
from rl3d.metrics import reference
from rl3d.randomness import generator_for, seed_for
from rl3d.rl import as_floats, decoupled_advantages, grpo, k3
from rl3d.scenes.mesh import Mesh


def align_online(
    model: MeshLM,
    shapes: Mapping[str, Shape],
    references: Mapping[str, Mesh],
    options: OnlineOptions,
    out: str | Path,
    *,
    resume: bool = False,
    progress: Report = lambda step, of, numbers: None,
    accelerator: Accelerator | None = None,
) -> Path:
    """Tune all weights of `model`, in place; see `tuning.tune` for the rest.

    Args:
        shapes: to draw candidates of. references: the mesh of each, in the box of its points.

    Raises:
        InputError: no shapes, or one without a mesh; fewer shapes a step than processes.
    """
    accelerator = accelerator or Accelerator(cpu=model.device.type == "cpu")
    index, count = accelerator.process_index, accelerator.num_processes
    missing = [name for name in shapes if name not in references]
    if not shapes or missing:
        raise InputError(f"online alignment needs shapes with their meshes; {missing[:1] or 'there is none'}")
    if min(options.shapes, len(shapes)) < count:
        raise InputError(f"{min(options.shapes, len(shapes))} shapes a step cannot be shared by {count} processes")
    base = copy.deepcopy(model).requires_grad_(False)
    looks = Looks.of(model, shapes.values())

    def finished(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        made = {"shapes": len(shapes), "last": dict(rows[-1]), "options": asdict(options)}
        charts = online_charts(rows, [name for name, _ in options.weights])
        write_page(Path(out), f"Online alignment on {len(shapes)} shapes", made, charts, looks.after(model))
        return made

    config = {"online": asdict(options), "shapes": list(shapes)}
    return tune(
        model,
        options,
        lambda step: gradients(model, base, shapes, references, options, step, index, count),
        config,
        finished,
        out,
        resume=resume,
        progress=progress,
        accelerator=accelerator,
    )


def gradients(
    model: MeshLM,
    base: MeshLM,
    shapes: Mapping[str, Shape],
    references: Mapping[str, Mesh],
    options: OnlineOptions,
    step: int,
    index: int = 0,
    count: int = 1,
) -> dict[str, float]:
    """Draw a step's groups and add their gradients to the weights; the numbers to log.

    Of process `index` of `count`: its groups alone, and its part of the numbers.
    """
    order = torch.randperm(len(shapes), generator=generator_for(options.seed, 0, step))[: options.shapes].tolist()
    turns = list(enumerate(list(shapes)[i] for i in order))[index::count]
    how = SampleOptions(temperature=1.0, top_p=1.0, max_faces=options.max_faces)  # the policy itself
    groups, scores, failed = [], [], 0
    for place, name in turns:
        seed, target = seed_for(options.seed, 1, step, place), reference(references[name])
        drawn, found = draw_group(model, name, shapes[name], target, options.group, how, seed)
        failed += sum(c.failed for c in found)
        groups.append(drawn)
        scores.append([c.scores for c in found])
    rewards = {
        name: torch.tensor([[s[name] if METRICS[name] else -s[name] for s in group] for group in scores])
        for name, _ in options.weights
    }
    floors = dict.fromkeys(rewards, options.floor)
    advantages = decoupled_advantages(rewards, dict(options.weights), floors=floors)
    shown: dict[str, float] = {}
    for (_, name), drawn, a in zip(turns, groups, advantages.values):
        for key, value in _group_gradients(model, base, drawn, shapes[name], a, options, len(order)).items():
            shown[key] = shown.get(key, 0.0) + value
    shown |= {name: float(r.abs().mean()) * len(turns) / len(order) for name, r in rewards.items()}
    return {**shown, "failed": failed / (len(order) * options.group)}


def _group_gradients(
    model: MeshLM, base: MeshLM, drawn: Samples, shape: Shape, advantages: Tensor, options: OnlineOptions, groups: int
) -> dict[str, float]:
    shown: dict[str, float] = {}
    for begin in range(0, options.group, options.micro_batch):
        part = slice(begin, begin + options.micro_batch)
        longest = int(drawn.lengths[part].max())
        tokens = drawn.tokens[part, :longest].to(model.device)
        condition = condition_of([shape] * len(tokens), model.config).to(model.device)
        with torch.no_grad():
            theirs, _ = sequence_log_probs(base, tokens, condition)
        log_probs, real = sequence_log_probs(model, tokens, condition)
        old = drawn.log_probs[part, : longest - 1].to(model.device)
        kl = k3(log_probs, theirs, real)
        loss, numbers = grpo(
            log_probs,
            old,
            advantages[part].float().to(model.device),
            kl,
            clip=options.clip,
            beta=options.beta,
            mask=real,
        )
        share = len(tokens) / options.group / groups
        (loss * share).backward()
        found = {**as_floats(numbers), "kl": float(kl.detach().sum() / real.sum()), "loss": float(loss.detach())}
        for key, value in found.items():
            shown[key] = shown.get(key, 0.0) + share * value
    return shown
