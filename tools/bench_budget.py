"""Equal time for every row of the benchmark: how many distillation steps, or candidates, fit into the same seconds.

CPU seconds of one thread, which a busy machine does not change much. What all rows share (mesh, pictures, scores) is
not counted. Measured once per folder, on one prompt, and kept in budget.json: all runs of a row have one length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rl3d.errors import InputError
from rl3d.priors.protocol import Prior
from rl3d.randomness import generator_for
from rl3d.reconstruct.splats import SplatState
from rl3d.text_to_3d.distill import Anchor, distill_rates, distill_step
from rl3d.text_to_3d.drafts import lift_views, sample_views, view_judge
from rl3d.text_to_3d.methods import guide_for
from rl3d.text_to_3d.options import GenerateOptions
from rl3d.text_to_3d.scene import begin_scene

PROMPT = "a green tree"
STEPS = 12  # of a measured distillation, from its beginning to its end, so that every part of a schedule counts


@dataclass(frozen=True)
class Cost:
    """CPU seconds of one candidate's views and lift, and of a mean distillation step."""

    draft: float
    step: float


def cost_of(options: GenerateOptions, prior: Prior, drafts: dict[Any, Any]) -> Cost:
    """What a row costs; `drafts` keeps what rows share."""
    embedding = prior.encode_prompt(PROMPT, options.negative_prompt)
    key = (options.sample, options.lift, options.negative_prompt)
    if key not in drafts:
        began = time.process_time()
        judge = view_judge(PROMPT, options)
        images, cameras, _ = sample_views(prior, embedding, options, 0, lambda step, steps: None, judge)
        lifted = lift_views(prior, embedding, images, cameras, options, 0, lambda step, loss: None)
        drafts[key] = time.process_time() - began, lifted
    seconds, (lifted, anchor) = drafts[key]
    return Cost(seconds, _step_seconds(options, prior, embedding, lifted, anchor))


def _step_seconds(options: GenerateOptions, prior: Prior, embedding: Any, lifted: SplatState, anchor: Anchor) -> float:
    if options.distill.steps == 0:
        return 0.0
    distill = replace(options.distill, steps=STEPS)
    rates = distill_rates(distill)
    guide = guide_for(options.method, prior)
    for warm in (True, False):  # kernels compile and memory is found in the first round
        state = begin_scene(SplatState.start(lifted.tensors, rates), options.method, rates)
        guide.memory = {}
        began, steps = time.process_time(), 2 if warm else STEPS
        while state.step < steps:
            distill_step(state, prior, embedding, anchor, distill, generator_for(0, 4, state.step), guide)
    return (time.process_time() - began) / STEPS


def fitted(name: str, options: GenerateOptions, cost: Cost, seconds: float) -> GenerateOptions:
    """The row's options at the price of `seconds`: more or fewer steps, or, where `best_of` is over 1, candidates.

    Raises:
        InputError: not even one step, or one candidate, fits.
    """
    if options.best_of > 1:
        count = int((seconds - options.distill.steps * cost.step) / cost.draft)
        fits, changed = count >= 1, replace(options, best_of=max(count, 1))
    else:
        count = int((seconds - cost.draft) / cost.step) if cost.step > 0 else 1
        fits, changed = count >= 1, replace(options, distill=replace(options.distill, steps=max(count, 1)))
    if not fits:
        least = cost.draft + (options.distill.steps if options.best_of > 1 else 1) * cost.step
        raise InputError(f"--budget {seconds:g}: row {name} takes at least {least:.0f} CPU seconds; give more")
    return options if options.best_of == 1 and cost.step == 0 else changed


def budgeted(
    methods: Mapping[str, GenerateOptions],
    seconds: float,
    known: Mapping[str, Any] | None,
    measure: Callable[[GenerateOptions], Cost],
) -> tuple[dict[str, GenerateOptions], dict[str, Any]]:
    """Every row's options at equal time, and the record of what they rest on.

    Args:
        known: an earlier record; its rows are kept, and new ones are measured beside one of them, so that a machine
            that is busier now does not shorten them.

    Raises:
        InputError: the earlier record is of other seconds, or a row does not fit.
    """
    if known and known["seconds"] != seconds:
        raise InputError(f"--budget {seconds:g}: these runs have {known['seconds']:g}; give that, or another --out")
    rows, changed = dict(known["rows"]) if known else {}, {}
    anchor = next((name for name in methods if name in rows and rows[name]["step_seconds"]), None)
    slower = (1.0, 1.0)  # what the machine takes now for the same draft and step
    if anchor is not None and set(methods) - set(rows):
        now = measure(methods[anchor])
        slower = now.draft / rows[anchor]["draft_seconds"], now.step / rows[anchor]["step_seconds"]
    for name, options in methods.items():
        if name not in rows:
            cost = measure(options)
            each = {"draft_seconds": cost.draft / slower[0], "step_seconds": cost.step / slower[1]}
            rows[name] = {key: round(value, 4) for key, value in each.items()}
        cost = Cost(rows[name]["draft_seconds"], rows[name]["step_seconds"])
        changed[name] = fitted(name, options, cost, seconds)
        rows[name] |= {"steps": changed[name].distill.steps, "best_of": changed[name].best_of}
    return changed, {"seconds": seconds, "rows": rows}
