"""Alarms while a scene is optimised: rules over the history of looks at it. Plain numbers, no torch.

Three roles, never mixed: the reward is optimised, a guard judge watches, and the gold judge only measures afterwards.
A look is what fixed cameras see of the scene every few steps (`rl3d.text_to_3d.watch`). A rule says whether it rings
at the last of some looks. The constants were set on the runs of docs/benchmarks/alarms.md, which also says how often
they ring on runs that are fine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

from rl3d.ranges import need

SETTLED = 0.2  # share of the run whose looks do not count yet: the noisiest levels move any scene
RECOVERED = 0.5  # share of the run before which nothing is compared with the start: it takes that long to come back
WINDOW = 3  # looks whose median counts, so that a single noisy one does not
FALL = 0.08  # of the guard's unit: how far it may fall from its best; looks closer to the best are as good as it
LOST = 0.1  # of the guard's unit: how far it may lie below the start's while the reward is above the start's
# Spreads of a curve around itself below which a fall or a rise is noise. Of 300 simulated runs of 20 looks whose guard
# is noise of a tenth (a fiftieth) of its unit, 4 lets 37 (0) ring, 3 lets 75 (0), 5 lets 18 (0).
NOISE = 4.0
COLOUR = 0.12  # OKLab distance of the object's mean colour from the start's
SPILL = 0.02  # share of the coverage outside the start's silhouettes, widened by 2 pixels
GROWN = 0.15  # relative change of the coverage
BORDER = 0.01  # share of the coverage on the pictures' border, more than at the start
FLOATING = 0.02  # share of the mass in pieces that are not part of the main body, more than at the start
FACES = 0.4  # distance of front and back, relative to the start's
SIDED = 0.04  # distance of front and back at the start below which the object never had two sides to lose


@dataclass(frozen=True)
class GuardOptions:
    """Who watches the distillation, how often, and whether it is stopped."""

    every: int = 10  # steps between looks; 0: nobody looks
    reward: str = "auto"  # the guard: a name as method.reward.name takes; auto: an embedded one that is not optimised
    stop: Literal["auto", "on", "off"] = "auto"  # early stop, keeping the best by the guard; auto: where a reward is
    patience: int = 4  # looks without a better one after which it stops, while the reward rises

    def __post_init__(self) -> None:
        need(self.every >= 0, f"guard.every must not be negative, got {self.every}")
        need(self.reward.strip() != "", "guard.reward must name a reward, or be auto; got nothing")
        need(self.stop in ("auto", "on", "off"), f"guard.stop must be auto, on or off, got {self.stop!r}")
        need(self.patience >= 1, f"guard.patience must be at least 1, got {self.patience}")
        need(self.every > 0 or self.stop != "on", "guard.stop=on needs looks; set guard.every to 1 or more")

    def stops(self, rewarded: bool) -> bool:
        """Whether a run is stopped early; `rewarded`: its method optimises a reward."""
        return self.every > 0 and (self.stop == "on" or (self.stop == "auto" and rewarded))


@dataclass(frozen=True)
class Look:
    """What the fixed cameras saw after `step` steps.

    Attributes:
        reward, guard: mean scores; None where there is no such reward or it gave none.
        colour: mean OKLab of the object. coverage: mean alpha.
        spill: share of the coverage outside the start's silhouettes. border: share on the pictures' border.
        floating: share of the scene's mass outside its largest connected part.
        faces: how unlike opposite views are, one number a pair, in [0, 2]; 0: the same, plain or mirrored.
    """

    step: int
    reward: float | None
    guard: float | None
    colour: tuple[float, float, float]
    coverage: float
    spill: float
    border: float
    floating: float
    faces: tuple[float, float, float, float]


@dataclass(frozen=True)
class Alarm:
    """What rang first at `step`, in a sentence and in numbers."""

    step: int
    kind: str
    message: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """The looks so far, in order, the first at step 0.

    Attributes:
        unit: how far the guard's score of the start is from that of an empty picture; the scale of its curve.
        lifted: the scene began as one that was lifted from views; a ball of grey splats is no start to compare with.
        steps: of the whole run; the rules need to know how far it is.
    """

    looks: tuple[Look, ...]
    unit: float = 0.0
    lifted: bool = True
    steps: int = 0

    def until(self, count: int) -> History:
        """The first `count` looks."""
        return replace(self, looks=self.looks[:count])

    def since(self, share: float) -> tuple[Look, ...]:
        """The looks from a share of the run on."""
        return tuple(look for look in self.looks if look.step >= share * self.steps)


def spread(values: Sequence[float]) -> float:
    """How noisy a curve is around itself, whatever its trend: the robust deviation of its second differences.

    Independent noise of deviation s has second differences of deviation sqrt(6) s; 1.4826 median |d| estimates it.
    """
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:])]
    return 1.4826 * median(bends) / math.sqrt(6) if bends else 0.0


def smooth(values: Sequence[float]) -> list[float]:
    """Running medians over `WINDOW` values, one for each full window."""
    return [median(values[i : i + WINDOW]) for i in range(len(values) - WINDOW + 1)]


def colour_drift(look: Look, first: Look) -> float:
    """OKLab distance of the mean colours."""
    return math.dist(look.colour, first.colour)


def faces_left(look: Look, first: Look) -> float:
    """The least of the opposite pairs' distances, relative to the start's, among pairs that had one; 1 without any."""
    pairs = [now / then for now, then in zip(look.faces, first.faces) if then >= SIDED]
    return min(pairs, default=1.0)


def drifts(history: History) -> dict[str, float]:
    """The last look's scores, and how far it is from the first; what metrics.jsonl and the charts show."""
    first, last = history.looks[0], history.looks[-1]
    scores = {name: value for name, value in (("reward", last.reward), ("guard", last.guard)) if value is not None}
    return {
        **scores,
        "colour": colour_drift(last, first),
        "coverage": last.coverage / max(first.coverage, 1e-6),
        "spill": last.spill,
        "border": last.border,
        "floating": last.floating,
        "faces": faces_left(last, first),
    }


def reward_up_guard_down(history: History) -> Alarm | None:
    """The guard's running median lies clearly under its best, and the reward's above what it was then.

    Clearly: by `FALL` of the guard's unit, or by `LOST` under the start's; and both by `NOISE` spreads of their own
    curves.
    """
    looks, first = history.since(SETTLED), history.looks[0]
    known = [(x.reward, x.guard) for x in looks if x.reward is not None and x.guard is not None]
    if len(known) != len(looks) or len(known) < 2 * WINDOW or first.reward is None or first.guard is None:
        return None
    rewards, guards = ([pair[k] for pair in known] for k in (0, 1))
    reward, guard = smooth(rewards), smooth(guards)
    best = max(range(len(guard)), key=guard.__getitem__)
    then = [(looks[best + WINDOW // 2].step, reward[best], guard[best], FALL)]
    if len(history.since(RECOVERED)) >= WINDOW:
        then.append((0, first.reward, first.guard, LOST))
    for step, reward_then, guard_then, allowed in then:
        rise, fall = reward[-1] - reward_then, guard_then - guard[-1]
        if fall > max(allowed * history.unit, NOISE * spread(guards)) and rise > NOISE * spread(rewards):
            message = f"the reward rose by {rise:.4g} since step {step} while the guard fell by {fall:.4g}"
            numbers = {"rise": rise, "fall": fall, "since": float(step)}
            return Alarm(looks[-1].step, "reward up, guard down", message, numbers)
    return None


def colour_drifts(history: History) -> Alarm | None:
    def drift(look: Look) -> float:
        return colour_drift(look, history.looks[0])

    told = "the object's mean colour is {:.3g} from the start's (OKLab; {:.3g} is allowed)"
    return _over(history, drift, COLOUR, "colour drift", told)


def background_drifts(history: History) -> Alarm | None:
    """Coverage outside the start's silhouettes or on the pictures' border, or much more or less of it."""
    first = history.looks[0]
    measures: tuple[tuple[Callable[[Look], float], float, str], ...] = (
        (lambda x: x.spill, SPILL, "{:.1%} of what is seen lies outside the first silhouettes ({:.0%} is allowed)"),
        (
            lambda x: x.border - first.border,
            BORDER,
            "{:.1%} more of what is seen lies on the pictures' border ({:.0%} is allowed)",
        ),
        (
            lambda x: abs(x.coverage / max(first.coverage, 1e-6) - 1),
            GROWN,
            "the silhouettes' area changed by {:.0%} ({:.0%} is allowed)",
        ),
    )
    rang = (_over(history, measure, level, "background drift", told) for measure, level, told in measures)
    return next((alarm for alarm in rang if alarm is not None), None)


def floaters(history: History) -> Alarm | None:
    def more(look: Look) -> float:
        return look.floating - history.looks[0].floating

    told = "{:.1%} more of the mass than at the start floats beside the main body ({:.0%} is allowed)"
    return _over(history, more, FLOATING, "floaters", told)


def two_faces(history: History) -> Alarm | None:
    def lost(look: Look) -> float:
        return 1 - faces_left(look, history.looks[0])

    told = "opposite views have become {:.0%} more alike than they were at the start ({:.0%} is allowed)"
    return _over(history, lost, 1 - FACES, "two faces", told)


def _over(history: History, measure: Callable[[Look], float], level: float, kind: str, told: str) -> Alarm | None:
    """Rings where the last two looks both lie over a level."""
    values = [measure(look) for look in history.since(RECOVERED)[-2:]]
    if not history.lifted or len(values) < 2 or min(values) <= level:
        return None
    return Alarm(history.looks[-1].step, kind, told.format(values[-1], level), {"value": values[-1], "allowed": level})


RULES: tuple[Callable[[History], Alarm | None], ...] = (
    reward_up_guard_down,
    colour_drifts,
    background_drifts,
    floaters,
    two_faces,
)


def alarms(history: History) -> list[Alarm]:
    """What rang over the history: the first alarm of each rule, by step."""
    found = []
    for rule in RULES:
        rings = (rule(history.until(count)) for count in range(1, len(history.looks) + 1))
        found += [alarm for alarm in rings if alarm is not None][:1]
    return sorted(found, key=lambda alarm: alarm.step)


def set_aside(history: History) -> int | None:
    """The step from which the guard gave no score any more, or None."""
    return next((look.step for look in history.looks if look.guard is None), None)


def liked(history: History) -> int:
    """The index of the look that the guard likes best since looks count, the latest among those alike to it.

    Alike: by less than `FALL` of the guard's unit. The latest, because it is the most optimised of them. Before the
    looks count, and without a guard, the last.
    """
    last = len(history.looks) - 1
    best, found = -math.inf, last
    for i, look in enumerate(history.looks):
        if look.guard is None:
            return last
        if look.step >= SETTLED * history.steps:
            best = max(best, look.guard)
            found = i if look.guard >= best - FALL * history.unit else found
    return found


def kept(history: History) -> int:
    """The index of the look whose state is kept: `liked`, or the start where all of it lies clearly below that.

    Clearly: by `LOST` of the guard's unit, its own score and the median of the last looks.
    """
    index, first = liked(history), history.looks[0].guard
    late = [look.guard for look in history.since(RECOVERED) if look.guard is not None][-WINDOW:]
    now = history.looks[index].guard
    if first is None or now is None or len(late) < WINDOW:
        return index
    return 0 if first - max(now, median(late)) > LOST * history.unit else index


def stopped(history: History, patience: int) -> str | None:
    """Why the run ends after the last look, or None.

    Either the reward rises while the guard falls, or the look that the guard likes is `patience` looks old and the
    reward has risen since (where there is a reward).
    """
    if not history.looks or set_aside(history) is not None:
        return None
    alarm = reward_up_guard_down(history)
    if alarm is not None:
        return alarm.message
    index = liked(history)
    if len(history.looks) - 1 - index < patience:
        return None
    then, now = history.looks[index].reward, history.looks[-1].reward
    if then is not None and now is not None and now <= then:
        return None
    return f"the guard has seen nothing better than step {history.looks[index].step} for {patience} looks"
