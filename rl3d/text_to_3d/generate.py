"""From a sentence to a checked GLB: sample views, lift, distil, extract, export, look again.

Stages, each resumable: `views i` and `lift i` for every candidate, `choose`, `distill`, `mesh`, `preview`, `score`.
"""

from __future__ import annotations

import math
import shutil
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rl3d.config import resolve
from rl3d.errors import ConfigError, InputError, nearest
from rl3d.priors import load as load_prior
from rl3d.priors.protocol import Prior, PromptEmbedding, device_of
from rl3d.progress import Progress
from rl3d.randomness import generator_for
from rl3d.reconstruct.leaves import load_memory
from rl3d.reconstruct.splats import SplatState
from rl3d.rewards.calibrated import calibration_warning
from rl3d.rewards.protocol import Reward
from rl3d.runs import Run, read_metrics
from rl3d.scenes.gaussians import Gaussians
from rl3d.text_to_3d.distill import Anchor, distill_rates, distill_step
from rl3d.text_to_3d.drafts import (
    candidate_seed,
    choose,
    draft_all,
    help_drafts,
    load_views,
)
from rl3d.text_to_3d.finish import ASSET, FIELD, SPLATS, finish_asset
from rl3d.text_to_3d.methods import Guide, check_prompt, guide_for, reward_summary
from rl3d.text_to_3d.options import GenerateOptions, method_preset, recorded
from rl3d.text_to_3d.report_page import charts, write_page
from rl3d.text_to_3d.scene import SceneState, begin_scene, finished, load_scene
from rl3d.text_to_3d.watch import Watch, guard_for
from rl3d.workers import ALONE, Worker

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Result:
    """What `generate` leaves: paths in the run folder, the scene and the report.

    `splats` and `gaussians` are None where voxels were distilled (`method.scene`); then there is `field`.
    """

    asset: Path
    splats: Path | None
    gaussians: Gaussians | None
    report: dict[str, Any]
    field: Path | None = None


@dataclass(frozen=True)
class Models:
    """What many prompts share: the prior, the method's guide with its reward, and what there is to warn of."""

    prior: Prior
    guide: Guide
    warnings: list[str]


def generate(
    prompt: str,
    options: GenerateOptions | None = None,
    out: str | Path = "runs/asset",
    *,
    prior: str | Prior | None = None,
    reward: Reward | None = None,
    device: str = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
    worker: Worker = ALONE,
) -> Result:
    """Make an asset in the run folder `out`.

    Args:
        prompt: what to make.
        options: every stage's options; the defaults take about 40 seconds on 2 CPU cores.
        prior: None for the embedded model, a path or hub id (see `rl3d.priors.load`), or a prior object.
        reward: for a method that uses one; None takes the embedded reward that the options name.
        resume: go on with the unfinished run in `out`; the result is the one an uninterrupted run would have given.
        worker: the first of several processes, the others of which run `help_generate`: they share the drafts.

    Returns:
        The asset's paths, splats and report.

    Raises:
        RL3DError: bad input, see its subclasses; nothing that looks finished is left behind.
    """
    options = options or GenerateOptions()
    progress = progress or Progress(silent=True)
    with Run.open(out, run_config(prompt, options, prior, reward), sys.argv, resume=resume) as run:
        models = load_models(options, prior, reward, device, progress)
        return make_asset(run, prompt, options, models, progress, worker)


def help_generate(
    prompt: str,
    options: GenerateOptions,
    out: str | Path,
    *,
    worker: Worker,
    prior: str | Prior | None = None,
    reward: Reward | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> None:
    """What workers but the first do while that one runs `generate` with the same arguments: their share of the drafts.

    Raises:
        RL3DError: the prior cannot be loaded, or knows no word of the prompt; the first worker then says so too.
    """
    if options.best_of == 1:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first worker tells them
        model = _load_prior(prior, device)
        embedding = model.encode_prompt(prompt, options.negative_prompt)
    if worker.meet():
        config = run_config(prompt, options, prior, reward)
        help_drafts(Path(out), config, model, prompt, embedding, options, progress or Progress(silent=True))


def run_config(
    prompt: str, options: GenerateOptions, prior: str | Prior | None, reward: Reward | None
) -> dict[str, Any]:
    """What decides the asset, as plain values for the run's config.json."""
    name = prior if isinstance(prior, str | None) else prior.name
    config = {"prompt": prompt, "prior": name, **recorded(options)}
    return config if reward is None else {**config, "reward": reward.name}


def load_models(
    options: GenerateOptions, prior: str | Prior | None, reward: Reward | None, device: str, progress: Progress
) -> Models:
    """The models that `generate` needs, whatever the prompt; its arguments and errors."""
    with progress.stage("loading the prior", 1) as stage:
        model = _load_prior(prior, device)
        stage.step()
    guide = guide_for(options.method, model, reward, device)
    notes = []
    if guide.reward is not None:
        embedded = reward is None and ":" not in options.method.reward.name  # that would be published weights
        warning = calibration_warning(guide.reward, embedded)
        if warning is not None:
            notes.append(warning)
            progress.note(f"warning: {warning}")
    return Models(model, guide, notes)


def _load_prior(prior: str | Prior | None, device: str) -> Prior:
    return load_prior(prior, device) if prior is None or isinstance(prior, str) else prior


def make_asset(
    run: Run, prompt: str, options: GenerateOptions, models: Models, progress: Progress, worker: Worker = ALONE
) -> Result:
    """Every stage of `generate` that the run has not finished yet."""
    out, model, guide = run.folder, models.prior, replace(models.guide, memory={})
    checkpoints = out / "checkpoints"
    if not run.stages:  # nothing of this run can be there yet; what an earlier one left must not be taken for it
        shutil.rmtree(checkpoints, ignore_errors=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        embedding = model.encode_prompt(prompt, options.negative_prompt)
    notes = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    for note in notes:
        progress.note(f"warning: {note}")
    notes += models.warnings
    check_prompt(guide, model, embedding)
    guard = guard_for(options, model, prompt, guide, str(device_of(model)))
    best, steps = checkpoints / "best.safetensors", options.distill.steps
    watch = Watch(options.guard, model, prompt, guide, guard, progress.note, run.log, best, steps)
    draft_all(run, model, prompt, embedding, options, checkpoints, progress, worker)
    chosen = choose(run, prompt, options, checkpoints, progress)
    state = _distill(run, model, embedding, options, guide, watch, chosen, checkpoints, progress)
    scene = finished(state)
    if isinstance(scene, Gaussians) and len(scene) == 0:
        raise InputError("the optimisation ended with an empty scene; try another --seed or fewer distill.steps")
    if "warning" in run.stages.get("choose", {}):
        notes.append(run.stages["choose"]["warning"])
    report = finish_asset(run, scene, prompt, options, out, progress, shaded=model.baked_light)
    watched = watch.summary(read_metrics(out / METRICS))
    if watched is not None and "warning" in watched:
        notes.append(watched["warning"])
    report = {
        "prompt": prompt,
        "seed": options.seed,
        "prior": {"name": model.name, "licence": model.licence},
        "method": {**guide.facts(), **reward_summary(_distill_rows(out))},
        "warnings": notes + report.pop("warnings"),
        "config": run.config,
        "stages": run.stages,
        **({"guard": watched} if watched is not None else {}),
        **report,
    }
    write_page(out, report, charts(watch.history, watched))
    run.finish(report)
    if isinstance(scene, Gaussians):
        return Result(out / ASSET, out / SPLATS, scene, report)
    return Result(out / ASSET, None, None, report, out / FIELD)


def _distill(
    run: Run,
    prior: Prior,
    prompt: PromptEmbedding,
    options: GenerateOptions,
    guide: Guide,
    watch: Watch,
    chosen: int,
    checkpoints: Path,
    progress: Progress,
) -> SceneState:
    """The chosen candidate after score distillation, from its last checkpoint if there is one."""
    o, file, place = options.distill, checkpoints / "distill.safetensors", device_of(prior)
    if file.exists() or (run.is_done("distill") and o.steps > 0):
        state = load_scene(file, guide.options, distill_rates(o), place)
        guide.memory = load_memory(file, place)
    else:
        lifted = SplatState.load(checkpoints / f"lift-{chosen}.safetensors", distill_rates(o), place)
        if o.steps == 0:
            return lifted
        state = begin_scene(lifted, guide.options, distill_rates(o))
    if run.is_done("distill"):
        return watch.keep(state, distill_rates(o), place)
    anchor = None
    if prior.n_views > 1 and prior.has_alpha:
        anchor = Anchor(*load_views(checkpoints / f"anchor-{chosen}.safetensors", place))
    seed = candidate_seed(options, chosen)
    for rows in ("distill", "guard"):
        run.rewind(rows, state.step or -1)
    with run.stage("distill"), progress.stage("distill", o.steps, done=state.step) as stage:
        watch.look(state)
        stopped = watch.stopped
        while state.step < o.steps and not stopped:
            generator = generator_for(seed, 4, state.step)
            numbers = distill_step(state, prior, prompt, anchor, o, generator, guide)
            if not math.isfinite(numbers["distance"]):
                raise InputError(f"the distillation diverged at step {state.step}; lower distill.guidance or the rates")
            if state.step % 50 == 0:
                numbers["relocated"] = state.relocate(generator)
            run.log("distill", state.step, **numbers)
            stage.at(state.step, **numbers)
            watch.look(state)
            stopped = watch.stopped
            if state.step % o.save_every == 0 or state.step == o.steps or stopped:
                state.save(file, guide.memory)
    return watch.keep(state, distill_rates(o), place)


def _distill_rows(out: Path) -> list[Mapping[str, Any]]:
    return [row for row in read_metrics(out / METRICS) if row["stage"] == "distill"]


def text_to_3d(
    prompt: str,
    *,
    seed: int = 0,
    out: str | Path = "runs/asset",
    prior: str | Prior | None = None,
    method: str | None = None,
    reward: Reward | None = None,
    device: str = "cpu",
    **changes: Any,
) -> Result:
    """`generate` in one call: `changes` are fields of `GenerateOptions`, `method` a distillation method by name.

    Raises:
        RL3DError: as `generate`; ConfigError for a field that does not exist.
    """
    known = [field.name for field in fields(GenerateOptions)]
    for name in changes.keys() - set(known):
        close = ", ".join(nearest(name, known) or known)
        raise ConfigError(f"text_to_3d has no option {name!r}; did you mean {close}?")
    options = resolve(GenerateOptions, method_preset(method)) if method else GenerateOptions()
    options = replace(options, seed=seed, **changes)
    return generate(prompt, options, out, prior=prior, reward=reward, device=device)
