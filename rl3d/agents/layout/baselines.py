"""Ways to furnish rooms, the learned one and what it has to beat, each with the reward calls it took.

A reward call is one look at the objective of one room, in whatever state. All of them draw places from the same
proposals (`SceneLayout.propose`), and choose among the same legal ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rl3d.agents.environment import Observation
from rl3d.agents.layout.env import PLACED, PLACES, WAITING, SceneLayout
from rl3d.agents.layout.objective import Layouts, objective
from rl3d.agents.layout.policy import LayoutPolicy
from rl3d.errors import InputError

Chooser = Callable[[SceneLayout, Observation, Generator], Tensor]  # -> actions [N, 2]


@dataclass(frozen=True)
class Furnished:
    """N finished rooms. score: [N]. calls: [N] reward calls that each took, the last look counted."""

    layouts: Layouts
    score: Tensor
    calls: Tensor

    def better(self, other: Furnished) -> Furnished:
        """Of each room the better one, at the price of both."""
        mine = self.score >= other.score
        wide = mine[:, None]
        a, b = self.layouts, other.layouts
        layouts = Layouts(a.task, torch.where(wide, a.place, b.place), torch.where(wide, a.placed, b.placed))
        return Furnished(layouts, torch.where(mine, self.score, other.score), self.calls + other.calls)


def furnish(env: SceneLayout, task: Tensor, choose: Chooser, generator: Generator, calls: int = 0) -> Furnished:
    """One episode of each task [N]; the objective is asked at its end alone, so `terms` tell the chooser nothing.

    Args:
        calls: reward calls of one choice.
    """
    seen = env.reset(task=task)
    place, status = env.place.clone(), env.status.clone()
    spent = torch.zeros(env.count, dtype=torch.int64)
    open_rows = torch.ones(env.count, dtype=torch.bool, device=env.device)
    while bool(open_rows.any()):
        spent += calls * open_rows.cpu()
        action = choose(env, seen, generator)
        env.put(action[:, 0], action[:, 1])
        place = torch.where(open_rows[:, None], env.place, place)
        status = torch.where(open_rows[:, None], env.status, status)
        over = ~(env.status == WAITING).any(1)
        open_rows = open_rows & ~over
        if bool(open_rows.any()):
            seen = env.reset(over) if bool(over.any()) else env.observe()  # a finished row needs something to do
    layouts = Layouts(task, place, status == PLACED)
    score, _ = objective(env.tasks, layouts)
    return Furnished(layouts, score, spent + 1)


def random_masked(env: SceneLayout, seen: Observation, generator: Generator) -> Tensor:
    """A piece at random, at a place at random of all that are legal."""
    slot = torch.multinomial(seen["waiting"].cpu().float(), 1, generator=generator)[:, 0].to(env.device)
    proposed = env.propose(slot, 4, generator)  # the last of four is from all legal places
    place = torch.where(proposed.legal[:, 3], proposed.place[:, 3], proposed.place[:, 4])
    return torch.stack([slot, place], 1)


def largest_first(env: SceneLayout, seen: Observation) -> Tensor:
    """[N]: the waiting slot of the largest footprint."""
    area = seen["metres"][..., 0] * seen["metres"][..., 1]
    return area.masked_fill(~seen["waiting"], -1.0).argmax(1)


def greedy(count: int) -> Chooser:
    """The largest piece, at the best of `count` proposed places; as many reward calls a piece."""

    def choose(env: SceneLayout, seen: Observation, generator: Generator) -> Tensor:
        slot = largest_first(env, seen)
        proposed = env.propose(slot, count, generator)
        scores = env.score_candidates(slot, proposed.place).masked_fill(~proposed.legal, -1.0)
        return torch.stack([slot, proposed.place.gather(1, scores.argmax(1)[:, None])[:, 0]], 1)

    return choose


def learned(policy: LayoutPolicy, best: bool = False) -> Chooser:
    """The policy's draw, or its likeliest choice; no reward call unless the policy searches for places (RLSS)."""

    def choose(env: SceneLayout, seen: Observation, generator: Generator) -> Tensor:
        return policy.act(seen, env, generator, best=best).action

    return choose


def best_of(
    count: int, env: SceneLayout, task: Tensor, choose: Chooser, generator: Generator, calls: int = 0
) -> Furnished:
    """The best of `count` episodes of each task."""
    if count < 1:
        raise InputError(f"best_of needs a count from 1, got {count}")
    found = furnish(env, task, choose, generator, calls)
    for _ in range(count - 1):
        found = found.better(furnish(env, task, choose, generator, calls))
    return found


def anneal(
    env: SceneLayout,
    task: Tensor,
    budget: int,
    generator: Generator,
    *,
    start: Furnished | None = None,
    hot: float = 0.03,
    cold: float = 0.001,
) -> Furnished:
    """Simulated annealing with `budget` reward calls a room: move one piece at a time.

    A move takes a piece up and puts it down at one of its proposed places; worse rooms are kept with probability
    exp(gain / T), T falling from `hot` to `cold` (in units of the objective) by the same factor each move.

    Args:
        start: rooms to begin with, whose calls are counted too; None: random ones.
    """
    if start is None:
        start, budget = furnish(env, task, random_masked, generator), budget - 1
    env.reset(task=task)
    there = env.tasks.kind[task] >= 0
    for k in range(there.shape[1]):  # the start again, piece by piece; empty slots have nothing to put
        _put_where(env, there[:, k], k, start.layouts)
    current, best = start.score.clone(), start
    for move in range(budget):
        temperature = hot * (cold / hot) ** (move / max(budget - 1, 1))
        slot = torch.multinomial(there.float().cpu(), 1, generator=generator)[:, 0].to(env.device)
        before = env.state_dict()
        env.lift(slot)
        proposed = env.propose(slot, 4, generator)
        which = torch.randint(4, (env.count, 1), generator=generator).to(env.device)
        which = torch.where(proposed.legal.gather(1, which), which, 4)
        place = proposed.place.gather(1, which)[:, 0]
        env.put(slot, place)
        layouts = env.layouts
        score, _ = objective(env.tasks, layouts)
        u = torch.rand(env.count, generator=generator).to(env.device)
        keep = torch.log(u.clamp_min(1e-12)) * temperature < score - current
        current = torch.where(keep, score, current)
        best = best.better(Furnished(layouts, score, torch.ones_like(best.calls)))
        for name in ("status", "place", "taken"):
            new, old = getattr(env, name), before[name]
            setattr(env, name, torch.where(keep.view(-1, *[1] * (new.ndim - 1)), new, old))
    return best


def _put_where(env: SceneLayout, rows: Tensor, slot: int, layouts: Layouts) -> None:
    """Set one slot of some rows as it is in the layouts."""
    index = torch.full((env.count,), slot, device=env.device)
    placed = layouts.placed[:, slot] & rows
    place = torch.where(placed, layouts.place[:, slot], PLACES)
    cells, _ = env.footprint(index, place)
    env.taken[torch.arange(env.count, device=env.device), env.layer(index)] |= cells
    env.place[:, slot] = torch.where(placed, place, env.place[:, slot])
    status = torch.where(placed, PLACED, PLACED + 1)
    env.status[:, slot] = torch.where(rows, status, env.status[:, slot])
