"""Watching a scene while it is optimised: who guards, a look every few steps, and the state that is kept.

A look takes no part in the optimisation: no gradients, and the step's random numbers stay as they are. The history is
part of the guide's memory, which the checkpoints hold, so that a resumed run goes on with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import max_pool2d

from rl3d.errors import AssetError, ConfigError, InputError
from rl3d.priors.protocol import Prior
from rl3d.reconstruct.leaves import Rates
from rl3d.render.frames import Frames
from rl3d.rewards.compose import contains
from rl3d.rewards.embedded import load
from rl3d.rewards.geometry import GeometricReward
from rl3d.rewards.pictures import BACKGROUND, mesh_input
from rl3d.rewards.protocol import Reward, RewardInput, check_scores
from rl3d.rewards.reward_cs import RewardCS
from rl3d.rewards.tidy import TIDY
from rl3d.text_to_3d import looks
from rl3d.text_to_3d.alarms import (
    RULES,
    SETTLED,
    GuardOptions,
    History,
    Look,
    alarms,
    drifts,
    kept,
    liked,
    set_aside,
    stopped,
)
from rl3d.text_to_3d.methods import Guide
from rl3d.text_to_3d.options import GenerateOptions
from rl3d.text_to_3d.scene import SceneState, finished, load_scene

ROWS, UNIT, ALLOWED = "guard.rows", "guard.unit", "guard.allowed"  # in the guide's memory
# What "auto" takes; not reward3d, which began as the judge and shares its blind spots.
EMBEDDED = ("judge",)
WITH_A_MESH = (*EMBEDDED, "rewardcs-mini")  # where the scene has one
OF_MESHES = GeometricReward | RewardCS


@dataclass(frozen=True)
class Chosen:
    """A guard, and why it is this one."""

    reward: Reward
    why: str


def guard_for(options: GenerateOptions, prior: Prior, prompt: str, guide: Guide, device: str) -> Chosen | None:
    """Who guards: the reward that is named, or an embedded one that is not optimised and knows the prompt.

    Where there is none, `rl3d.rewards.tidy` does, a formula.

    Returns:
        None where nobody looks: no distillation, or guard.every is 0.

    Raises:
        InputError: the gold judge, no reward of that name, or one that cannot judge the prompt.
        ConfigError: the guard is the optimised reward, is made of it, or looks at a mesh that the scene does not have.
        AssetError: its files are missing or broken.
    """
    named, reward = options.guard.reward, guide.reward
    if options.guard.every == 0 or options.distill.steps == 0:
        return None
    if named != "auto":
        guard = load(named, device)
        if reward is not None and (contains(reward, guard) or contains(guard, reward)):
            raise ConfigError(
                f"guard.reward {named!r} is what is optimised ({reward.name}); a guard that rises with the "
                "reward sees no hack; name another one, or leave it auto"
            )
        if isinstance(guard, OF_MESHES) and options.method.scene != "sdf":
            raise ConfigError(
                f"guard.reward {named!r} looks at {' and '.join(guard.needs)}; set method.scene=sdf, or name "
                "a reward of images"
            )
        _try_prompt(guard, prior, prompt)
        return Chosen(guard, "as asked")
    for name in WITH_A_MESH if options.method.scene == "sdf" else EMBEDDED:
        try:
            guard = load(name, device)
            if reward is None or not contains(reward, guard):
                _try_prompt(guard, prior, prompt)
                return Chosen(guard, "an embedded reward that is not optimised")
        except (AssetError, InputError):  # it does not ship, or knows no word of the prompt
            continue
    return Chosen(
        TIDY, "a formula without weights: no embedded reward is left that is not optimised and knows the prompt"
    )


def _try_prompt(guard: Reward, prior: Prior, prompt: str) -> None:
    """Raises what the guard says of a prompt that it cannot judge."""
    if isinstance(guard, RewardCS):
        guard.word_ids([prompt])
    elif not isinstance(guard, GeometricReward):
        _score(guard, [_blank(prior, guard, prompt)])


@torch.no_grad()
def _score(reward: Reward, inputs: Sequence[RewardInput]) -> float:
    """The mean score; what the reward draws from torch's own generators is put back.

    Raises:
        InputError: it breaks its promise, see `check_scores`; or whatever a user's own code raises.
    """
    devices = sorted({x.images.device for x in inputs if x.images.is_cuda}, key=str)
    with torch.random.fork_rng(devices):
        scores = [check_scores(reward(x), x, reward.name, False, reward.range) for x in inputs]
    return float(torch.cat(scores).double().mean())


def _blank(prior: Prior, guard: Reward, prompt: str) -> RewardInput:
    """One group of empty views."""
    views = guard.views or looks.VIEWS
    cameras = looks.ring(prior, views)[:views]
    images = torch.full((1, views, 3, cameras.height, cameras.width), BACKGROUND, device=cameras.device)
    return RewardInput(images, torch.zeros_like(images[:, :, :1]), cameras, [prompt], background=BACKGROUND)


@dataclass
class Watch:
    """Looks at a scene every few steps; its history lies in the guide's memory.

    Attributes:
        guard: None where nobody looks. note: says a line to the user. log: writes a row of metrics.jsonl.
        best: where the state that the guard likes best is saved. steps: of the whole run.
    """

    options: GuardOptions
    prior: Prior
    prompt: str
    guide: Guide
    guard: Chosen | None
    note: Callable[[str], None]
    log: Callable[..., None]
    best: Path
    steps: int
    rang: set[str] | None = None

    @property
    def history(self) -> History:
        """What was seen so far, out of the guide's memory."""
        memory = self.guide.memory
        rows = memory[ROWS].tolist() if ROWS in memory else []
        unit, lifted = float(memory.get(UNIT, 0.0)), self.prior.n_views > 1
        return History(tuple(map(_look, rows)), unit, lifted, self.steps)

    @property
    def start(self) -> Path:
        """Where the state of the first look is saved."""
        return self.best.with_name("start.safetensors")

    @property
    def stops(self) -> bool:
        """Whether this run may be stopped, and keeps the best by the guard."""
        return self.guard is not None and self.options.stops(self.guide.method.reward)

    @property
    def stopped(self) -> str | None:
        """Why the run should end here, or None."""
        return stopped(self.history, self.options.patience) if self.stops else None

    @torch.no_grad()
    def look(self, state: SceneState) -> None:
        """Look if it is time, at the last step too, and save a state that is to be kept."""
        if self.guard is None or not (state.step % self.options.every == 0 or state.step == self.steps):
            return
        before = self.history
        if before.looks and before.looks[-1].step >= state.step:  # a resumed run
            return
        if self.rang is None:
            self.rang = {alarm.kind for alarm in alarms(before)}
        memory = self.guide.memory
        frames = state.render(looks.ring(self.prior))
        if not before.looks:
            memory[ALLOWED] = (max_pool2d(frames.alpha, 5, 1, 2) > 0.1).to(torch.uint8)
        guard = reward = failure = None
        if set_aside(before) is None:
            guard, failure = self._try(self.guard.reward, lambda x: self._inputs(x, state, frames))
        if not before.looks:
            memory[UNIT] = torch.tensor(self._unit(guard), dtype=torch.float64)
        if self.guide.reward is not None:
            reward, _ = self._try(self.guide.reward, lambda x: self._inputs(x, state, frames))
        spilled = (frames.alpha * (1 - memory[ALLOWED].to(frames.alpha))).sum() / frames.alpha.sum().clamp_min(1e-6)
        seen = Look(
            state.step,
            reward,
            guard,
            looks.mean_colour(frames),
            float(frames.alpha.mean()),
            float(spilled),
            looks.border_share(frames.alpha),
            looks.floating_share(finished(state)),
            looks.face_distances(frames),
        )
        row = torch.tensor([_row(seen)], dtype=torch.float64)
        memory[ROWS] = torch.cat([memory[ROWS], row]) if before.looks else row
        history = self.history
        if self.stops and not before.looks:
            state.save(self.start, memory)
        elif self.stops and state.step >= SETTLED * self.steps and liked(history) == len(history.looks) - 1:
            state.save(self.best, memory)
        self.log("guard", state.step, **drifts(history), **({"guard_error": failure} if failure else {}))
        if failure:
            self.note(f"warning: {_aside(self.guard.reward.name, state.step, failure)}")
        for alarm in (rule(history) for rule in RULES):
            if alarm is not None and alarm.kind not in self.rang:
                self.rang.add(alarm.kind)
                self.note(f"alarm: {alarm.kind} at step {alarm.step}: {alarm.message}")

    def keep(self, state: SceneState, rates: Rates, device: torch.device) -> SceneState:
        """The state that the asset is made of: the kept one where the run may be stopped, else the last, `state`.

        Raises:
            AssetError: its checkpoint is missing, truncated, or of another step.
        """
        history = self.history
        if not self.stops or not history.looks or set_aside(history) is not None:
            return state
        step = history.looks[kept(history)].step
        if step == state.step:
            return state
        file = self.start if step == history.looks[0].step else self.best
        best = load_scene(file, self.guide.options, rates, device)
        if best.step != step:
            raise AssetError(f"{file} holds step {best.step}, not {step}; begin anew with --overwrite")
        return best

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """For report.json under "guard", from the rows of metrics.jsonl; None where nobody looked."""
        history = self.history
        if self.guard is None or not history.looks:
            return None
        seen, aside = history.looks, set_aside(history)
        found = {
            "about": self._about(),
            "reward": self.guide.reward.name if self.guide.reward is not None else None,
            "guard": self.guard.reward.name,
            "licence": self.guard.reward.licence,
            "why": self.guard.why,
            "stop": self.stops,
            "looks": len(seen),
            "first": drifts(history.until(1)),
            "last": drifts(history),
            "kept_step": seen[kept(history)].step if self.stops else seen[-1].step,
            "stopped_at": seen[-1].step if self.stopped is not None else None,
            "stopped_because": self.stopped,
            "set_aside_at": aside,
            "alarms": [asdict(alarm) for alarm in alarms(history)],
        }
        known = {look.step: look.guard for look in seen if look.guard is not None}
        found["best_step"] = max(known, key=known.__getitem__) if known else None
        if aside is not None:
            reason = next((str(row["guard_error"]) for row in rows if "guard_error" in row), "it gave no score")
            found["warning"] = _aside(self.guard.reward.name, aside, reason)
        return found

    def _about(self) -> str:
        assert self.guard is not None
        reward = self.guide.reward
        optimised = f"{reward.name} was optimised" if reward is not None else "no reward was optimised"
        end = "the best by the guard was kept" if self.stops else "the last state was kept, whatever the guard said"
        return (
            f"Three roles: {optimised}; {self.guard.reward.name} watched ({self.guard.why}); the gold judge measured "
            f"afterwards. {end[0].upper()}{end[1:]}."
        )

    def _try(self, reward: Reward, inputs: Callable[[Reward], list[RewardInput]]) -> tuple[float | None, str | None]:
        """The reward's mean score, or None and why there is none; it may be anybody's code."""
        try:
            return _score(reward, inputs(reward)), None
        except Exception as error:
            return None, " ".join(f"{type(error).__name__}: {error}".split())[:200]

    def _inputs(self, reward: Reward, state: SceneState, frames: Frames) -> list[RewardInput]:
        """Both groups of the ring as the reward sees them: of the surface where it is judged, else of the renders."""
        views, method = reward.views or looks.VIEWS, self.guide.options
        cameras = looks.ring(self.prior, views)
        groups = [cameras[:views], cameras[views:]]
        if method.name == "dreamcs" or isinstance(reward, OF_MESHES):
            mesh = state.mesh(method.dreamcs.resolution)  # type: ignore[attr-defined]  # an sdf scene has one
            return [mesh_input(mesh, group, [self.prompt]) for group in groups]
        if views != looks.VIEWS:
            frames = state.render(cameras)
        images = frames.rgb + (1 - frames.alpha) * BACKGROUND
        parts = zip(images.split(views), frames.alpha.split(views), frames.depth.split(views), groups)
        return [
            RewardInput(rgb[None], alpha[None], group, [self.prompt], depths=depth[None], background=BACKGROUND)
            for rgb, alpha, depth, group in parts
        ]

    def _unit(self, first: float | None) -> float:
        """How far the guard's first score is from that of nothing; half its range where nothing has no score."""
        assert self.guard is not None
        guard = self.guard.reward
        if first is None:
            return 0.0
        nothing, _ = self._try(guard, lambda x: [_blank(self.prior, x, self.prompt)])
        return abs(first - nothing) if nothing is not None else 0.5 * (guard.range[1] - guard.range[0])


def _aside(name: str, step: int, reason: str) -> str:
    return f"guard {name!r} was set aside at step {step} ({reason}); from there nothing is stopped and the last is kept"


def _row(look: Look) -> list[float]:
    scores = [math.nan if score is None else score for score in (look.reward, look.guard)]
    return [look.step, *scores, *look.colour, look.coverage, look.spill, look.border, look.floating, *look.faces]


def _look(row: list[float]) -> Look:
    reward, guard = (None if math.isnan(score) else score for score in row[1:3])
    lightness, a, b, coverage, spill, border, floating = row[3:10]
    pairs = row[10], row[11], row[12], row[13]
    return Look(int(row[0]), reward, guard, (lightness, a, b), coverage, spill, border, floating, pairs)
