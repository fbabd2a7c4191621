"""A number that changes over a run, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from rl3d.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """Piecewise linear in the run's progress: `points` are (progress in [0, 1], value), flat before and after them.

    Raises:
        ConfigError: no points, or points that are not in order.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        places = [place for place, _ in self.points]
        ordered = all(a < b for a, b in pairwise(places))
        if not places or not ordered or not (places[0] >= 0 and places[-1] <= 1):
            raise ConfigError(
                "a schedule is a list of [progress, value], progress growing within [0, 1], such as "
                f"[[0.2, 0.0], [0.5, 0.3]]; got {[list(p) for p in self.points]}"
            )

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1] of the run."""
        before = self.points[0]
        for after in self.points:
            if progress <= after[0]:
                span = after[0] - before[0]
                share = (progress - before[0]) / span if span > 0 else 1.0
                return before[1] + share * (after[1] - before[1])
            before = after
        return before[1]

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(value for _, value in self.points)
