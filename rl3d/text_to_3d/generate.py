"""From a sentence to a checked GLB: sample views, lift, distil, extract, export, look again.

Stages, each resumable: `views i` and `lift i` for every candidate, `choose`, `distill`, `mesh`, `preview`, `score`.
"""

from __future__ import annotations

import math
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.config import resolve
from rl3d.errors import AssetError, ConfigError, InputError, RL3DError, nearest
from rl3d.files import atomic_path
from rl3d.priors import load as load_prior
from rl3d.priors.protocol import Prior, PromptEmbedding
from rl3d.progress import Progress
from rl3d.rewards.calibrated import calibration_warning
from rl3d.rewards.protocol import Reward
from rl3d.runs import Run, read_metrics
from rl3d.scenes.gaussians import Gaussians
from rl3d.text_to_3d import lift
from rl3d.text_to_3d.distill import Anchor, distill_rates, distill_step
from rl3d.text_to_3d.finish import ASSET, FIELD, SPLATS, finish_asset
from rl3d.text_to_3d.leaves import load_memory
from rl3d.text_to_3d.methods import Guide, check_prompt, guide_for, reward_summary
from rl3d.text_to_3d.options import GenerateOptions, method_preset, recorded
from rl3d.text_to_3d.pictures import to_rgba
from rl3d.text_to_3d.report_page import charts, write_page
from rl3d.text_to_3d.scene import SceneState, begin_scene, finished, load_scene
from rl3d.text_to_3d.splats import SplatState
from rl3d.text_to_3d.watch import Watch, guard_for

METRICS = "metrics.jsonl"
RING_STRENGTH = 0.9  # how far a later ring's renders are noised before the prior repaints them


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


def generator_for(seed: int, *keys: int) -> torch.Generator:
    """A CPU generator that depends on the seed and the place in the run, so that resuming changes nothing."""
    mixed = seed
    for key in keys:
        mixed = (mixed * 1_000_003 + key + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(mixed)


def device_of(prior: Prior) -> torch.device:
    """Where the prior's cameras live; the scene lives there too."""
    return prior.cameras(0.0, 0.0).device


def sample_views(
    prior: Prior,
    prompt: PromptEmbedding,
    options: GenerateOptions,
    seed: int,
    report: Callable[[int, int], None],
    judge: Callable[[Tensor], float] | None = None,
) -> tuple[Tensor, Cameras, dict[str, list[float]]]:
    """The first group of views: of `sample.candidates` groups the one whose silhouettes agree best in 3D and that fits
    the prompt best by `judge`, if there is one.

    Returns:
        images [V, 4, H, W] premultiplied RGBA, their cameras, and every group's "agreement" and "similarity".
    """
    o = options.sample
    cameras = prior.cameras(0.0, math.radians(o.elevation)).to(dtype=torch.float32)
    groups: list[Tensor] = []
    scores: dict[str, list[float]] = {"agreement": [], "similarity": []} if judge else {"agreement": []}
    for i in range(o.candidates):
        images = prior.sample(
            prompt,
            cameras,
            steps=o.steps,
            guidance=o.guidance,
            generator=generator_for(seed, 1, i),
            progress=partial(_overall, report, i, o.candidates),
        )[0]
        groups.append(to_rgba(images, prior))
        scores["agreement"].append(round(lift.agreement(groups[-1][:, 3:], cameras), 4))
        if judge:
            scores["similarity"].append(round(judge(groups[-1]), 4))
    liked = scores.get("similarity", [0.0] * len(groups))
    total = [agreed + o.judge_weight * similar for agreed, similar in zip(scores["agreement"], liked)]
    return groups[max(range(len(groups)), key=total.__getitem__)], cameras, scores


def _overall(report: Callable[[int, int], None], i: int, count: int, step: int, steps: int) -> None:
    report(i * steps + step, count * steps)


def next_ring(
    prior: Prior, prompt: PromptEmbedding, state: SplatState, options: GenerateOptions, seed: int, ring: int
) -> tuple[Tensor, Cameras]:
    """Views between the ones there are: the scene's own renders, repainted by the prior (SDEdit)."""
    o = options.sample
    azimuth = math.pi / 4 if ring % 2 else math.pi / 8 * ring
    elevation = min(max(o.elevation + (15.0 if ring % 2 else -15.0), -10.0), 45.0)
    cameras = prior.cameras(azimuth, math.radians(elevation)).to(dtype=torch.float32)
    with torch.no_grad():
        frames = state.render(cameras)
    renders = torch.cat([frames.rgb, frames.alpha], 1)[None]
    images = prior.sample(
        prompt,
        cameras,
        steps=max(1, round(0.7 * o.steps)),
        guidance=o.guidance,
        generator=generator_for(seed, 2, ring),
        start=renders,
        strength=RING_STRENGTH,
    )[0]
    return to_rgba(images, prior), cameras


def lift_views(
    prior: Prior,
    prompt: PromptEmbedding,
    images: Tensor,
    cameras: Cameras,
    options: GenerateOptions,
    seed: int,
    report: Callable[[int, float], None],
) -> tuple[SplatState, Anchor]:
    """Splats fitted to the views, ring by ring; every ring carves the hull again before the fit."""
    o, rates = options.lift, lift.lift_rates(options.lift)
    rings = options.sample.rings if prior.has_alpha else 1
    done = 0
    for ring in range(rings):
        tolerate = ring  # later rings were repainted from a scene that is itself a guess
        tensors = lift.start_from_hull(images, cameras, o, generator_for(seed, 3, ring), tolerate)
        state = SplatState.start(tensors, rates)
        last = ring == rings - 1
        steps = o.steps - done if last else o.steps // (2 * rings)
        lift.fit(state, images, cameras, o, steps, partial(_from, report, done))
        done += steps
        if not last:
            more, where = next_ring(prior, prompt, state, options, seed, ring + 1)
            images, cameras = torch.cat([images, more]), Cameras.cat([cameras, where])
    return state, Anchor(images, cameras)


def _from(report: Callable[[int, float], None], done: int, step: int, loss: float) -> None:
    report(done + step, loss)


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
) -> Result:
    """Make an asset in the run folder `out`.

    Args:
        prompt: what to make.
        options: every stage's options; the defaults take about half a minute on 2 CPU cores.
        prior: None for the embedded model, a path or hub id (see `rl3d.priors.load`), or a prior object.
        reward: for a method that uses one; None takes the embedded reward that the options name.
        resume: go on with the unfinished run in `out`; the result is the one an uninterrupted run would have given.

    Returns:
        The asset's paths, splats and report.

    Raises:
        RL3DError: bad input, see its subclasses; nothing that looks finished is left behind.
    """
    options = options or GenerateOptions()
    progress = progress or Progress(silent=True)
    out = Path(out)
    config = {"prompt": prompt, "prior": prior if isinstance(prior, str | None) else prior.name, **recorded(options)}
    if reward is not None:
        config["reward"] = reward.name
    with Run.open(out, config, sys.argv, resume=resume) as run:
        checkpoints = out / "checkpoints"
        if not run.stages:  # nothing of this run can be there yet; what an earlier one left must not be taken for it
            shutil.rmtree(checkpoints, ignore_errors=True)
        with progress.stage("loading the prior", 1) as stage:
            model = load_prior(prior, device) if prior is None or isinstance(prior, str) else prior
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                embedding = model.encode_prompt(prompt, options.negative_prompt)
            stage.step()
        notes = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        for note in notes:
            progress.note(f"warning: {note}")

        guide = guide_for(options.method, model, reward, device)
        if guide.reward is not None:
            embedded = reward is None and ":" not in options.method.reward.name  # that would be published weights
            warning = calibration_warning(guide.reward, embedded)
            if warning is not None:
                notes.append(warning)
                progress.note(f"warning: {warning}")
        check_prompt(guide, model, embedding)
        guard = guard_for(options, model, prompt, guide, device)
        best, steps = checkpoints / "best.safetensors", options.distill.steps
        watch = Watch(options.guard, model, prompt, guide, guard, progress.note, run.log, best, steps)
        for i in range(options.best_of):
            _draft(run, model, prompt, embedding, options, i, checkpoints, progress)
        chosen = _choose(run, prompt, options, checkpoints, progress)
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
            "config": config,
            "stages": run.stages,
            **({"guard": watched} if watched is not None else {}),
            **report,
        }
        write_page(out, report, charts(watch.history, watched))
        run.finish(report)
    if isinstance(scene, Gaussians):
        return Result(out / ASSET, out / SPLATS, scene, report)
    return Result(out / ASSET, None, None, report, out / FIELD)


def candidate_seed(options: GenerateOptions, i: int) -> int:
    """Candidate 0 uses the seed itself, so that `best_of` 1 and the first of N are the same draft."""
    return options.seed if i == 0 else options.seed * 10_007 + 7919 * i


def view_judge(prompt: str, options: GenerateOptions) -> Callable[[Tensor], float] | None:
    """The reward judge's opinion of views; None where it is not asked, or knows no word that a hub prior may know."""
    if options.sample.candidates == 1 or options.sample.judge_weight == 0:
        return None
    from rl3d.rewards.score import views_scorer

    try:
        return views_scorer(prompt)
    except InputError:
        return None


def _draft(
    run: Run,
    prior: Prior,
    prompt: str,
    embedding: PromptEmbedding,
    options: GenerateOptions,
    i: int,
    checkpoints: Path,
    progress: Progress,
) -> None:
    """Candidate i's views and lifted splats, as files."""
    views_file, lift_file = checkpoints / f"views-{i}.safetensors", checkpoints / f"lift-{i}.safetensors"
    place = device_of(prior)
    seed, has_views = candidate_seed(options, i), prior.n_views > 1
    if not run.is_done(f"views {i}"):
        with run.stage(f"views {i}") as facts, progress.stage(f"views {i}", options.sample.steps) as stage:
            if has_views:
                images, cameras, scores = sample_views(
                    prior,
                    embedding,
                    options,
                    seed,
                    lambda step, steps: stage.at(step, steps),
                    view_judge(prompt, options),
                )
                facts.update(scores)
                _save_views(views_file, images, cameras)
    if not run.is_done(f"lift {i}"):
        with run.stage(f"lift {i}") as facts, progress.stage(f"lift {i}", options.lift.steps) as stage:

            def report(step: int, loss: float) -> None:
                stage.at(step, loss=loss)
                if step % 10 == 0:
                    run.log(f"lift {i}", step, loss=loss)

            if has_views:
                images, cameras = _load_views(views_file, place)
                state, anchor = lift_views(prior, embedding, images, cameras, options, seed, report)
                # Not into the views' own file: an interruption right here must find that as it was.
                _save_views(checkpoints / f"anchor-{i}.safetensors", anchor.images, anchor.cameras)
            else:
                tensors = lift.start_from_ball(options.lift, generator_for(seed, 3), place)
                state = SplatState.start(tensors, lift.lift_rates(options.lift))
            state.save(lift_file)
            facts["gaussians"] = len(state.gaussians())


def _choose(run: Run, prompt: str, options: GenerateOptions, checkpoints: Path, progress: Progress) -> int:
    """The candidate that the reward judge likes best; the gold judge has no say.

    A prompt that the judge does not know, which a hub prior may well know, leaves the first candidate and a warning.
    """
    if options.best_of == 1:
        return 0
    if not run.is_done("choose"):
        from rl3d.rewards.score import draft_score

        with run.stage("choose") as facts, progress.stage("choose", options.best_of) as stage:
            scores: list[float] = []
            facts["chosen"], facts["scores"] = 0, scores
            for i in range(options.best_of):
                state = SplatState.load(checkpoints / f"lift-{i}.safetensors", lift.lift_rates(options.lift))
                try:
                    scores.append(round(draft_score(prompt, state.gaussians()), 5))
                except RL3DError as error:
                    facts["warning"] = f"the candidates were not judged, the first is taken: {error}"
                    progress.note(f"warning: {facts['warning']}")
                    break
                stage.step(score=scores[-1])
            else:
                facts["chosen"] = max(range(len(scores)), key=scores.__getitem__)
    return int(run.stages["choose"]["chosen"])


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
        anchor = Anchor(*_load_views(checkpoints / f"anchor-{chosen}.safetensors", place))
    seed = candidate_seed(options, chosen)
    for rows in ("distill", "guard"):
        run.rewind(rows, state.step or -1)
    with run.stage("distill"), progress.stage("distill", o.steps, done=state.step) as stage:
        watch.look(state)
        while state.step < o.steps and not watch.stopped:
            generator = generator_for(seed, 4, state.step)
            numbers = distill_step(state, prior, prompt, anchor, o, generator, guide)
            if not math.isfinite(numbers["distance"]):
                raise InputError(f"the distillation diverged at step {state.step}; lower distill.guidance or the rates")
            if state.step % 50 == 0:
                numbers["relocated"] = state.relocate(generator)
            run.log("distill", state.step, **numbers)
            stage.at(state.step, **numbers)
            watch.look(state)
            if state.step % o.save_every == 0 or state.step == o.steps or watch.stopped:
                state.save(file, guide.memory)
    return watch.keep(state, distill_rates(o), place)


def _distill_rows(out: Path) -> list[Mapping[str, Any]]:
    return [row for row in read_metrics(out / METRICS) if row["stage"] == "distill"]


def _save_views(path: Path, images: Tensor, cameras: Cameras) -> None:
    tensors = {"images": images, "view": cameras.view, "intrinsics": cameras.intrinsics}
    with atomic_path(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)


def _load_views(path: Path, device: torch.device) -> tuple[Tensor, Cameras]:
    try:
        tensors = load_file(path, device=str(device))
        images = tensors["images"]
        return images, Cameras(tensors["view"], tensors["intrinsics"], images.shape[-2], images.shape[-1])
    except Exception as error:
        raise AssetError(f"cannot read {path}: {error}; start the run anew with --overwrite") from error


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
