"""The rules on histories made by hand: what must ring, what must not, what is kept and when a run ends."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from rl3d.errors import ConfigError
from rl3d.text_to_3d.alarms import (
    FALL,
    LOST,
    GuardOptions,
    History,
    Look,
    alarms,
    drifts,
    kept,
    liked,
    reward_up_guard_down,
    set_aside,
    spread,
    stopped,
)

CALM = Look(0, None, None, (0.6, 0.1, 0.05), 0.25, 0.0, 0.0, 0.0, (0.05, 0.01, 0.04, 0.06))
UNIT = 0.5


def history(rewards: Sequence[float | None], guards: Sequence[float | None], **changes: Any) -> History:
    looks = [
        replace(CALM, step=10 * i, reward=r, guard=g) for i, (r, g) in enumerate(zip(rewards, guards, strict=True))
    ]
    return History(tuple(looks), UNIT, **changes)


def drifting(name: str, values: Sequence[Any], lifted: bool = True) -> History:
    return History(
        tuple(replace(CALM, step=10 * i, **{name: v}) for i, v in enumerate(values)),
        UNIT,
        lifted,  # type: ignore[arg-type]
    )


def noise(seed: int, count: int, size: float) -> list[float]:
    source = random.Random(seed)
    return [source.gauss(0, size) for _ in range(count)]


UP = [0.3 + 0.02 * i for i in range(12)]
DOWN = [0.6 - 0.02 * i for i in range(12)]


def test_a_reward_that_rises_while_the_guard_falls_rings() -> None:
    jitter = noise(0, 12, 0.002)
    found = alarms(history([a + b for a, b in zip(UP, jitter)], [a + b for a, b in zip(DOWN, reversed(jitter))]))
    assert [alarm.kind for alarm in found] == ["reward up, guard down"]
    (alarm,) = found
    # The guard falls by 0.02 a look; FALL * UNIT = 0.04 are three of them, and 6 looks the least.
    assert alarm.step == 50 and alarm.numbers["fall"] > FALL * UNIT and alarm.numbers["rise"] > 0
    assert alarm.numbers["since"] == 10 and "the guard fell by 0.0" in alarm.message
    # It fell before looks count and stays there: under the start, not under its best since.
    (start,) = alarms(history(UP, [0.6, 0.55, *[0.5] * 10], steps=110))
    assert (start.numbers["since"], start.step) == (0, 80) and start.numbers["fall"] > LOST * UNIT


@pytest.mark.parametrize(
    ("rewards", "guards"),
    [
        (UP, UP),
        (DOWN, DOWN),
        (DOWN, UP),
        (UP, [0.6] * 12),
        (UP, [0.6] * 11 + [0.1]),  # a single look
        (UP[:5], DOWN[:5]),  # too few
        (UP, [0.6 - 0.001 * i for i in range(12)]),  # hardly falls
        ([None] * 12, DOWN),
        (UP, [*DOWN[:6], *[None] * 6]),
    ],
    ids=["both up", "both down", "as it should be", "flat", "one look", "few", "hardly", "no reward", "set aside"],
)
def test_what_is_no_divergence_does_not_ring(rewards: list[float | None], guards: list[float | None]) -> None:
    assert reward_up_guard_down(history(rewards, guards)) is None


def test_noise_alone_rarely_rings() -> None:
    """Runs of 20 looks, a rising reward, a guard that is noise, a tenth of its unit; of 300, 37 rang."""
    rang = sum(bool(alarms(history([0.02 * i for i in range(20)], noise(k, 20, 0.1 * UNIT)))) for k in range(100))
    assert rang <= 24, rang


def test_spread_knows_noise_from_trend() -> None:
    assert spread([0.5 - 0.03 * i for i in range(10)]) == pytest.approx(0, abs=1e-12)
    assert spread(noise(3, 4000, 0.2)) == pytest.approx(0.2, rel=0.05)
    assert spread([0.1, 0.2]) == 0


@pytest.mark.parametrize(
    ("name", "fine", "bad", "kind"),
    [
        ("colour", (0.61, 0.1, 0.06), (0.6, 0.3, 0.05), "colour drift"),
        ("spill", 0.01, 0.2, "background drift"),
        ("border", 0.001, 0.1, "background drift"),
        ("coverage", 0.27, 0.4, "background drift"),
        ("coverage", 0.24, 0.1, "background drift"),
        ("floating", 0.01, 0.3, "floaters"),
        ("faces", (0.04, 0.001, 0.04, 0.06), (0.005, 0.01, 0.04, 0.06), "two faces"),
    ],
)
def test_drifts_ring_when_they_last(name: str, fine: Any, bad: Any, kind: str) -> None:
    start = getattr(CALM, name)
    assert alarms(drifting(name, [start, fine, fine, fine])) == []
    assert alarms(drifting(name, [start, fine, bad, fine, bad, fine])) == []  # one look is no drift
    (alarm,) = alarms(drifting(name, [start, fine, bad, bad, bad]))
    assert (alarm.kind, alarm.step) == (kind, 30) and alarm.numbers["value"] > alarm.numbers["allowed"]
    assert alarms(drifting(name, [start, fine, bad, bad, bad], lifted=False)) == []


def test_opposite_views_that_were_alike_at_the_start_say_nothing() -> None:
    """The second pair of `CALM` is below SIDED: a chair's two sides mirror each other from the beginning."""
    assert alarms(drifting("faces", [CALM.faces, *[(0.05, 0.0, 0.04, 0.06)] * 4])) == []
    assert drifts(drifting("faces", [(0.0, 0.0, 0.0, 0.0)] * 2))["faces"] == 1


def test_the_best_by_the_guard_is_kept_and_the_latest_among_equals() -> None:
    small = 0.5 * FALL * UNIT
    assert kept(history(UP[:5], [0.1, 0.5, 0.9, 0.3, 0.2])) == 2
    assert kept(history(UP[:5], [0.1, 0.5, 0.9, 0.9 - small, 0.2])) == 3
    assert kept(history(UP[:5], [0.5, 0.5 - small, 0.5, 0.5 + small, 0.5])) == 4
    assert kept(history(UP[:5], [0.9, 0.5, 0.4, None, None])) == 4  # nobody knows any more: the last
    # Many small steps down do not add up: the best so far is what counts.
    assert kept(history(UP[:5], [0.9, 0.9 - small, 0.9 - 3 * small, 0.9 - 4 * small, 0.1])) == 1


def test_the_start_is_kept_where_nothing_comes_near_it_again() -> None:
    """LOST * UNIT = 0.05 below it for three looks in the second half; a guard that has come back forgives the dip."""
    lost = history(UP, [0.6, 0.55, *[0.5] * 10], steps=110)
    assert kept(lost) == 0 and liked(lost) == 11 and kept(lost.until(8)) == 7
    back = history(UP, [0.6, 0.5, *[0.4] * 6, 0.5, 0.57, 0.58, 0.58], steps=110)
    assert kept(back) == 11


def test_a_run_ends_when_the_guard_sees_nothing_better_while_the_reward_rises() -> None:
    worse = [0.5, 0.6, 0.55, 0.54, 0.55, 0.54]
    assert stopped(history(UP[:5], worse[:5]), 4) is None
    reason = stopped(history(UP[:6], worse), 4)
    assert reason == "the guard has seen nothing better than step 10 for 4 looks"
    assert stopped(history(DOWN[:6], worse), 4) is None  # the reward does not rise: it is no hack of it
    assert stopped(history([None] * 6, worse), 4) == reason  # without a reward, patience alone
    assert stopped(history(UP[:6], [*worse[:5], None]), 4) is None
    assert stopped(History(()), 4) is None
    assert "while the guard fell" in str(stopped(history(UP, DOWN), 100))


def test_the_first_looks_do_not_count() -> None:
    """Any scene moves at the noisiest levels: nothing rings, nothing is kept, no best is remembered from there."""
    dip = [0.58, 0.7, 0.3, 0.5, 0.52, 0.54, 0.55, 0.55, 0.56, 0.56]
    assert stopped(history(UP[:10], dip), 4) is not None and kept(history(UP[:10], dip)) == 1
    later = history(UP[:10], dip, steps=150)
    assert alarms(later) == [] and stopped(later, 4) is None and kept(later) == 9
    assert [kept(later.until(n)) for n in (1, 3, 5)] == [0, 2, 4]
    moved = drifting("colour", [CALM.colour, *[(0.9, 0.1, 0.05)] * 3, *[CALM.colour] * 3])
    assert alarms(moved) and alarms(replace(moved, steps=60)) == []


def test_a_guard_is_set_aside_for_good() -> None:
    assert set_aside(history(UP[:4], [0.5, None, 0.5, 0.5])) == 10
    assert set_aside(history(UP[:4], [0.5] * 4)) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"every": -1}, "guard.every"),
        ({"patience": 0}, "guard.patience"),
        ({"stop": "maybe"}, "guard.stop must be auto, on or off"),
        ({"reward": " "}, "guard.reward"),
        ({"every": 0, "stop": "on"}, "set guard.every"),
    ],
)
def test_bad_options_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        GuardOptions(**values)
    assert "\n" not in str(error.value)


def test_runs_stop_by_default_only_where_a_reward_is_optimised() -> None:
    assert GuardOptions().stops(True) and not GuardOptions().stops(False)
    assert GuardOptions(stop="on").stops(False) and not GuardOptions(stop="off").stops(True)
    assert not GuardOptions(every=0).stops(True)
