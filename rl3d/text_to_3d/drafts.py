"""Drafts: a candidate's first views from the prior, splats lifted from them, and the choice among candidates."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import AssetError, InputError, RL3DError
from rl3d.files import atomic_path, file_lock
from rl3d.priors.protocol import Prior, PromptEmbedding, device_of
from rl3d.progress import Progress
from rl3d.randomness import generator_for
from rl3d.reconstruct import lift
from rl3d.reconstruct.feedforward import FeedForward, load_reconstructor
from rl3d.reconstruct.splats import SplatState
from rl3d.rewards.pictures import to_rgba
from rl3d.runs import Run, finished_stages
from rl3d.text_to_3d.distill import Anchor
from rl3d.text_to_3d.options import GenerateOptions
from rl3d.workers import Worker

POLL = 0.2  # seconds between looks at drafts that other workers make
RING_STRENGTH = 0.9  # how far a later ring's renders are noised before the prior repaints them


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
    """Splats fitted to the views, ring by ring; every ring starts again, from the hull or a network, before the fit."""
    o, rates = options.lift, lift.lift_rates(options.lift)
    network = reconstructor_of(options, images.device)
    rings = options.sample.rings if prior.has_alpha else 1
    done = 0
    for ring in range(rings):
        tolerate = ring  # later rings were repainted from a scene that is itself a guess
        if network is None:
            tensors = lift.start_from_hull(images, cameras, o, generator_for(seed, 3, ring), tolerate)
        else:
            tensors = start_from_network(network, images, cameras)
        state = SplatState.start(tensors, rates)
        last = ring == rings - 1
        steps = o.steps - done if last else o.steps // (2 * rings)
        lift.fit(state, images, cameras, o, steps, partial(_from, report, done))
        done += steps
        if not last:
            more, where = next_ring(prior, prompt, state, options, seed, ring + 1)
            images, cameras = torch.cat([images, more]), Cameras.cat([cameras, where])
    return state, Anchor(images, cameras)


def reconstructor_of(options: GenerateOptions, device: torch.device) -> FeedForward | None:
    """The network that `lift.reconstructor` names; None for the hull.

    Raises:
        AssetError: it is not embedded, or its files are missing or broken.
    """
    kind, _, folder = options.lift.reconstructor.partition(":")
    return None if kind == "hull" else load_reconstructor(folder or None, device)


@torch.no_grad()
def start_from_network(network: FeedForward, images: Tensor, cameras: Cameras) -> dict[str, Tensor]:
    """The splats that a network makes of views [V, 4, H, W], as the fit's first state.

    Raises:
        NoSharedVolume: the views share no volume.
    """
    (scene,) = network(images[None].clamp(0, 1), cameras)
    kept = ("means", "log_scales", "quaternions", "opacity_logits")
    return {**{name: getattr(scene, name) for name in kept}, "colours": scene.colours.clamp(0, 1)}


def _from(report: Callable[[int, float], None], done: int, step: int, loss: float) -> None:
    report(done + step, loss)


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


def draft(
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
                save_views(views_file, images, cameras)
    if not run.is_done(f"lift {i}"):
        with run.stage(f"lift {i}") as facts, progress.stage(f"lift {i}", options.lift.steps) as stage:

            def report(step: int, loss: float) -> None:
                stage.at(step, loss=loss)
                if step % 10 == 0:
                    run.log(f"lift {i}", step, loss=loss)

            if has_views:
                images, cameras = load_views(views_file, place)
                state, anchor = lift_views(prior, embedding, images, cameras, options, seed, report)
                # Not into the views' own file: an interruption right here must find that as it was.
                save_views(checkpoints / f"anchor-{i}.safetensors", anchor.images, anchor.cameras)
            else:
                tensors = lift.start_from_ball(options.lift, generator_for(seed, 3), place)
                state = SplatState.start(tensors, lift.lift_rates(options.lift))
            state.save(lift_file)
            facts["gaussians"] = len(state.gaussians())


def draft_all(
    run: Run,
    prior: Prior,
    prompt: str,
    embedding: PromptEmbedding,
    options: GenerateOptions,
    checkpoints: Path,
    progress: Progress,
    worker: Worker,
) -> None:
    """Every candidate's draft. Those that other workers made are taken into the run; what they leave is made here.

    A draft depends on its seed alone, so it does not matter who makes it. Whoever does holds its lock: one that is free
    and not done belongs to nobody, or to a process that has ended.
    """
    left = list(range(options.best_of))
    if worker.count == 1 or len(left) == 1:
        for i in left:
            draft(run, prior, prompt, embedding, options, i, checkpoints, progress)
        return
    worker.meet()
    while left:
        for i in left:
            with file_lock(_draft_lock(checkpoints, i)) as mine:
                if mine:
                    theirs = _draft_folder(checkpoints, i)
                    run.adopt(theirs)
                    shutil.rmtree(theirs, ignore_errors=True)
                    draft(run, prior, prompt, embedding, options, i, checkpoints, progress)
                    left.remove(i)
                    break
        else:
            time.sleep(POLL)


def help_drafts(
    out: Path,
    config: dict[str, Any],
    prior: Prior,
    prompt: str,
    embedding: PromptEmbedding,
    options: GenerateOptions,
    progress: Progress,
) -> None:
    """What workers but the first do in `draft_all`: each draft that nobody has taken, in a run folder of its own.

    One that fails is left to the first worker, which owns the run in `out` and so its errors.
    """
    checkpoints = out / "checkpoints"
    for i in range(options.best_of):
        with file_lock(_draft_lock(checkpoints, i)) as mine:
            if not mine or f"lift {i}" in finished_stages(out):
                continue
            try:
                with Run.open(_draft_folder(checkpoints, i), config, sys.argv, resume=True) as run:
                    draft(run, prior, prompt, embedding, options, i, checkpoints, progress)
            except RL3DError as error:
                progress.note(f"draft {i} is left to the first worker: {error}")


def _draft_lock(checkpoints: Path, i: int) -> Path:
    return checkpoints / f"draft-{i}.lock"


def _draft_folder(checkpoints: Path, i: int) -> Path:
    return checkpoints / f"draft-{i}"


def choose(run: Run, prompt: str, options: GenerateOptions, checkpoints: Path, progress: Progress) -> int:
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


def save_views(path: Path, images: Tensor, cameras: Cameras) -> None:
    tensors = {"images": images, "view": cameras.view, "intrinsics": cameras.intrinsics}
    with atomic_path(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)


def load_views(path: Path, device: torch.device) -> tuple[Tensor, Cameras]:
    try:
        tensors = load_file(path, device=str(device))
        images = tensors["images"]
        return images, Cameras(tensors["view"], tensors["intrinsics"], images.shape[-2], images.shape[-1])
    except Exception as error:
        raise AssetError(f"cannot read {path}: {error}; start the run anew with --overwrite") from error
