"""Which of a shape's candidates is better: dominance over several metrics (Mesh-RFT, Huang et al. 2025, 2505.16761).

A pair is kept only where one side wins on every metric; a global score would let a good one pay for a bad one. BER is 0
for every closed mesh, so that a strict test would drop all pairs of closed ones: ties are allowed on it, and the others
decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rl3d.errors import ConfigError, InputError, way_out
from rl3d.ranges import need

# By name: whether more is better.
METRICS: dict[str, bool] = {"ber": False, "ts": True, "hd": False, "cd": False}


@dataclass(frozen=True)
class PairRule:
    """When a candidate is preferred, and how many pairs a shape gives.

    Attributes:
        metrics: the winner is better on all of them. ties: those on which being equal is enough.
        margin: by which share of the two's mean size the winner is better, where it has to be.
        band: faces a candidate may have, as shares of the target; outside, it is no winner. Topology can be gamed by
            coarse boxes and distances by very fine meshes.
        most: pairs a shape, those with the largest gaps; 0: all.
    """

    metrics: tuple[str, ...] = ("ber", "ts", "hd")
    ties: tuple[str, ...] = ("ber",)
    margin: float = 0.0
    band: tuple[float, float] = (0.5, 1.5)
    most: int = 0

    def __post_init__(self) -> None:
        for name in (*self.metrics, *self.ties):
            if name not in METRICS:
                raise ConfigError(f"unknown metric {name!r}; {way_out(name, METRICS)}")
        need(bool(set(self.metrics) - set(self.ties)), "at least one metric must not allow ties")
        need(0 <= self.margin < 1, f"margin must lie in [0, 1), got {self.margin}")
        need(0 <= self.band[0] < self.band[1], f"band must be two rising shares of the target, got {self.band}")
        need(self.most >= 0, f"most must not be negative, got {self.most}")


def gain(a: float, b: float, more: bool) -> float:
    """By how much a is better than b, as a share of their mean size; a score that is not finite is the worst.

    >>> gain(1.0, 3.0, more=False), gain(2.0, math.inf, more=False)
    (1.0, inf)
    """
    fine = math.isfinite(a), math.isfinite(b)
    if not all(fine):
        return 0.0 if fine[0] == fine[1] else math.inf if fine[0] else -math.inf
    size = 0.5 * (abs(a) + abs(b))
    return 0.0 if a == b else (a - b if more else b - a) / size


def better(a: Mapping[str, float], b: Mapping[str, float], rule: PairRule) -> float | None:
    """The smallest gain of a over b among the metrics that must be won, or None where a does not dominate b."""
    gains = {name: gain(a[name], b[name], METRICS[name]) for name in rule.metrics}
    if any(gains[name] < 0 for name in rule.metrics):
        return None
    strict = [gains[name] for name in rule.metrics if name not in rule.ties]
    return min(strict) if min(strict) > rule.margin else None


def dominance(
    scores: Sequence[Mapping[str, float]], faces: Sequence[int], target: int, rule: PairRule
) -> list[tuple[int, int]]:
    """(winner, loser) among the candidates of one shape, the clearest first.

    Args:
        scores: by metric, of each candidate; a failed one has worst scores (inf, or -inf where more is better).
        faces: of each. target: asked of all.

    Raises:
        InputError: numbers that differ, a metric without a score.
    """
    if len(scores) != len(faces):
        raise InputError(f"one face count a candidate, got {len(faces)} for {len(scores)}")
    for name in rule.metrics:
        if any(name not in s for s in scores):
            raise InputError(f"a candidate has no score {name!r}; score all by the metrics of the rule")
    low, high = rule.band[0] * target, rule.band[1] * target
    found = []
    for winner in range(len(scores)):
        if not low <= faces[winner] <= high:
            continue
        for loser in range(len(scores)):
            by = better(scores[winner], scores[loser], rule) if loser != winner else None
            if by is not None:
                found.append((by, winner, loser))
    found.sort(key=lambda entry: (-entry[0], entry[1:]))
    return [(w, l) for _, w, l in found][: rule.most or None]
