"""Furnishing N rooms side by side: choose a piece, then its place; what breaks a hard rule cannot be chosen.

An episode has as many steps as the room has pieces. The reward of a step is what it adds to the room's objective
(`objective.objective`), so with gamma 1 the return is the finished room's score less the empty one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rl3d.agents.environment import Observation, Step
from rl3d.agents.layout.furniture import KINDS, SNUGS
from rl3d.agents.layout.grid import covered, legal_places, propose
from rl3d.agents.layout.inventory import ROOM_TYPES
from rl3d.agents.layout.objective import TERMS, WEIGHTS, Layouts, objective, poses
from rl3d.agents.layout.rooms import CELL, GRID
from rl3d.agents.layout.tasks import Tasks, sample_tasks
from rl3d.errors import InputError

PLACES = 4 * GRID * GRID
LEAVE = PLACES  # the place that leaves a piece out: for optional pieces, and where nothing else is legal
WAITING, PLACED, LEFT, EMPTY = range(4)  # status of a slot


@dataclass(frozen=True)
class Proposals:
    """Legal places for one piece a row.

    Attributes:
        place: [N, C + 1] int64, the last one LEAVE; PLACES - 1 where there is nothing legal.
        legal: [N, C + 1] bool.
        gaps: [N, C + 1, 4] metres from the piece's middle at its front, right, back and left to the wall.
    """

    place: Tensor
    legal: Tensor
    gaps: Tensor


class SceneLayout:
    """N rooms being furnished. Actions are [N, 2] int64: a slot, and a place as in `grid` or LEAVE.

    Args:
        n: rooms side by side.
        tasks: what episodes are drawn from; None: 512 rooms of `seed`, all on the CPU.
        room: a room type for those 512; None: all six.
        seed: of the tasks and of the draws.

    Raises:
        InputError: an unknown room type.
    """

    def __init__(self, n: int = 1, tasks: Tasks | None = None, *, room: str | None = None, seed: int = 0) -> None:
        self.count = n
        self.tasks = sample_tasks(512, seed, room) if tasks is None else tasks
        self.generator = torch.Generator().manual_seed(seed)
        device = self.tasks.device
        self._flat = torch.tensor([k.flat for k in KINDS], device=device)
        self._snug = torch.tensor([SNUGS.index(k.snug) for k in KINDS], device=device)
        k = self.tasks.kind.shape[1]
        self.task = torch.zeros(n, dtype=torch.int64, device=device)
        self.status = torch.full((n, k), EMPTY, dtype=torch.int64, device=device)
        self.place = torch.zeros(n, k, dtype=torch.int64, device=device)
        self.taken = torch.zeros(n, 2, GRID, GRID, dtype=torch.bool, device=device)  # under solid, under flat pieces
        self.score = torch.zeros(n, device=device)
        self.terms = torch.zeros(n, len(TERMS), device=device)
        self.reset(seed=seed)

    @property
    def device(self) -> torch.device:
        return self.tasks.device

    def reset(self, mask: Tensor | None = None, seed: int | None = None, *, task: Tensor | None = None) -> Observation:
        """Empty rooms in the rows under the mask; of `task` ([N] int64) or drawn."""
        if seed is not None:
            self.generator.manual_seed(seed)
        rows = torch.ones(self.count, dtype=torch.bool, device=self.device) if mask is None else mask
        drawn = torch.randint(len(self.tasks), (self.count,), generator=self.generator).to(self.device)
        self.task = torch.where(rows, drawn if task is None else task, self.task)
        empty = torch.where(self.tasks.kind[self.task] >= 0, WAITING, EMPTY)
        self.status = torch.where(rows[:, None], empty, self.status)
        self.place = torch.where(rows[:, None], torch.zeros_like(self.place), self.place)
        self.taken = torch.where(rows[:, None, None, None], torch.zeros_like(self.taken), self.taken)
        self._evaluate(rows)
        return self.observe()

    def _evaluate(self, rows: Tensor | None = None) -> None:
        """Score and terms as they are now, of some rows."""
        chosen = torch.arange(self.count, device=self.device) if rows is None else rows.nonzero()[:, 0]
        layouts = Layouts(self.task[chosen], self.place[chosen], self.status[chosen] == PLACED)
        score, terms = objective(self.tasks, layouts)
        self.score = self.score.index_put((chosen,), score)
        self.terms = self.terms.index_put((chosen,), torch.stack([terms[name] for name in TERMS], 1))

    @property
    def layouts(self) -> Layouts:
        return Layouts(self.task, self.place, self.status == PLACED)

    def action_mask(self, slot: Tensor | None = None) -> Tensor:
        """What is legal: slots [N, K], or, of a slot a row ([N]), places [N, PLACES + 1] with LEAVE at the end.

        Of pieces that are the same, the first that waits stands for all.
        """
        waiting = self.status == WAITING
        if slot is None:
            kind, metres = self.tasks.kind[self.task], self.tasks.metres[self.task]
            same = (kind[:, :, None] == kind[:, None, :]) & (metres[:, :, None] == metres[:, None, :]).all(-1)
            before = torch.ones_like(same[0]).tril(-1)
            return waiting & ~(same & before & waiting[:, None, :]).any(2)
        places = legal_places(self._blocked(slot), self._of(self.tasks.cells, slot)).flatten(1)
        leave = ~self._of(self.tasks.required, slot) | ~places.any(1)
        return torch.cat([places, leave[:, None]], 1)

    def propose(self, slot: Tensor, count: int, generator: Generator | None = None) -> Proposals:
        """`count` legal places for a slot a row, half of them where such pieces usually stand (`grid.propose`)."""
        n = self.count
        uniform = torch.rand(n, count, generator=generator or self.generator, dtype=torch.float64).to(self.device)
        cells = self._of(self.tasks.cells, slot)
        legal = legal_places(self._blocked(slot), cells)
        kind = self._of(self.tasks.kind, slot).clamp_min(0)
        things = self.taken[:, 0]
        place, found = propose(legal, self.tasks.floor[self.task], things, cells, self._snug[kind], uniform)
        last = torch.full((n, 1), LEAVE, device=self.device)
        leave = ~self._of(self.tasks.required, slot) | ~found
        ok = torch.cat([found[:, None].expand(-1, count), leave[:, None]], 1)
        place = torch.cat([torch.where(place >= 0, place, PLACES - 1), last], 1)
        return Proposals(place, ok, self._gaps(slot, place))

    def _gaps(self, slot: Tensor, place: Tensor) -> Tensor:
        metres = self._of(self.tasks.metres, slot)[:, None].expand(-1, place.shape[1], -1)
        cells = self._of(self.tasks.cells, slot)[:, None].expand(-1, place.shape[1], -1)
        at = poses(place % PLACES, metres, cells)
        i, j, i_end, j_end = at.boxes.unbind(-1)
        middle = (i + i_end) // 2, (j + j_end) // 2
        edges = ((i_end - 1, middle[1]), (middle[0], j_end - 1), (i, middle[1]), (middle[0], j))
        out = []
        for side, (row, column) in enumerate(edges):
            cell = row.clamp(0, GRID - 1), column.clamp(0, GRID - 1)
            out.append(self.tasks.gaps[self.task[:, None], side, cell[0], cell[1]].float() - 1)
        sides = torch.stack(out, -1).clamp_min(0) * CELL  # toward +z, +x, -z, -x
        turn = (at.heading[..., None] + torch.arange(4, device=self.device)) % 4
        return sides.gather(-1, turn)

    def step(self, action: Tensor) -> Step:
        """Place or leave out.

        Raises:
            InputError: an action that is not legal, naming the row: a slot that does not wait, a place that is taken.
        """
        self.put(action[:, 0], action[:, 1])
        before, terms_before = self.score, self.terms
        self._evaluate()
        gain = self.terms - terms_before
        total = sum(WEIGHTS.values())
        terms = {name: WEIGHTS[name] / total * gain[:, i] for i, name in enumerate(TERMS)}
        reward = self.score - before
        over = ~(self.status == WAITING).any(1)
        final = seen = self.observe()
        if bool(over.any()):
            seen = self.reset(over)
        return Step(seen, reward, over, torch.zeros_like(over), final, terms)

    def put(self, slot: Tensor, place: Tensor) -> None:
        """Place (or leave out) a slot a row, without a look at the objective; raises as `step`."""
        index = torch.arange(self.count, device=self.device)
        cells, inside = self.footprint(slot, place)
        self._check(slot, place, cells, inside)
        self.taken[index, self.layer(slot)] |= cells
        placed = place < PLACES
        self.status = self.status.index_put((index, slot), torch.where(placed, PLACED, LEFT))
        self.place = self.place.index_put((index, slot), torch.where(placed, place, 0))

    def lift(self, slot: Tensor) -> None:
        """Take a slot a row up again, placed or left out: it waits."""
        index = torch.arange(self.count, device=self.device)
        cells, _ = self.footprint(slot, self.place[index, slot])
        placed = (self.status[index, slot] == PLACED)[:, None, None]
        self.taken[index, self.layer(slot)] &= ~(cells & placed)
        self.status = self.status.index_put((index, slot), torch.full_like(slot, WAITING))

    def score_candidates(self, slot: Tensor, place: Tensor) -> Tensor:
        """[N, C] the room's objective after putting a slot a row at each of C places. Costs C reward calls a row."""
        n, c = place.shape
        k = self.status.shape[1]
        rows = torch.arange(n, device=self.device).repeat_interleave(c)
        at = slot[rows, None]
        kept = place.flatten()[:, None]
        where = self.place[rows].scatter(1, at, torch.where(kept < PLACES, kept, 0))
        placed = (self.status == PLACED)[rows].scatter(1, at, kept < PLACES)
        assert where.shape == (n * c, k)
        return objective(self.tasks, Layouts(self.task[rows], where, placed))[0].view(n, c)

    def observe(self) -> Observation:
        """The decision that waits in each room.

        Returns:
            room [N, 38]: shape, type, door, windows. kind [N, K] int64, -1: none. metres [N, K, 3]. cells [N, K, 2].
            status [N, K] int64. place [N, K] int64. waiting [N, K] bool, the legal slots (one of equal pieces).
            terms [N, 7]: the objective's terms as they are, for a critic alone.
        """
        t = self.task
        size = self.tasks.size[t]
        shift = 0.5 * size
        door, windows = self.tasks.door[t].clone(), self.tasks.windows[t].clone()
        door[:, :2] -= shift
        windows[..., :2] -= shift[:, None] * windows[..., 5:]
        kinds = torch.nn.functional.one_hot(self.tasks.room_type[t], len(ROOM_TYPES)).float()
        area = self.tasks.area[t][:, None]
        room = torch.cat([size / 3, area / 15, area / size.prod(1, keepdim=True), kinds, door, windows.flatten(1)], 1)
        waiting = self.action_mask()
        return {
            "room": room,
            "size": size,
            "kind": self.tasks.kind[t],
            "metres": self.tasks.metres[t],
            "cells": self.tasks.cells[t],
            "status": self.status,
            "place": self.place,
            "waiting": waiting,
            "terms": self.terms,
        }

    def raster(self) -> Tensor:
        """[N, 5, G, G] float in {0, 1}: floor, door zone, solid pieces, flat pieces, before windows."""
        boxes = self.tasks.window_boxes[self.task]
        window = covered(boxes, self.tasks.windows[self.task][..., 5] > 0, GRID)
        floor, zone = self.tasks.floor[self.task], self.tasks.door_zone[self.task]
        return torch.stack([floor, zone, self.taken[:, 0], self.taken[:, 1], window], 1).float()

    def state_dict(self) -> dict[str, Tensor]:
        names = ("task", "status", "place", "taken", "score", "terms")
        return {**{name: getattr(self, name).clone() for name in names}, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in ("task", "status", "place", "taken", "score", "terms"):
            setattr(self, name, state[name].clone())
        self.generator.set_state(state["generator"])

    def _of(self, table: Tensor, slot: Tensor) -> Tensor:
        """A task's row of a slot: [R, K, ...] -> [N, ...]."""
        return table[self.task, slot]

    def layer(self, slot: Tensor) -> Tensor:
        """[N] int64: 1 for a flat piece, 0 for a solid one; pieces of one layer do not overlap."""
        return self._flat[self._of(self.tasks.kind, slot).clamp_min(0)].long()

    def _blocked(self, slot: Tensor) -> Tensor:
        """[N, G, G] bool: walls, the door's zone, and what lies on the same layer."""
        index = torch.arange(self.count, device=self.device)
        things = self.taken[index, self.layer(slot)]
        return ~self.tasks.floor[self.task] | self.tasks.door_zone[self.task] | things

    def footprint(self, slot: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """([N, G, G] bool cells of a slot a row at a place; [N] bool: all of them are on the grid)."""
        metres, cells = self._of(self.tasks.metres, slot)[:, None], self._of(self.tasks.cells, slot)[:, None]
        boxes = poses(place[:, None] % PLACES, metres, cells).boxes
        inside = (boxes[:, 0, 2:] <= GRID).all(-1) & (place >= 0) & (place < PLACES)
        return covered(boxes, inside[:, None], GRID), inside

    def _check(self, slot: Tensor, place: Tensor, cells: Tensor, inside: Tensor) -> None:
        index = torch.arange(self.count, device=self.device)
        waits = self.status[index, slot.clamp(0, self.status.shape[1] - 1)] == WAITING
        if not bool(waits.all()):
            row = int((~waits).nonzero()[0, 0])
            raise InputError(f"slot {int(slot[row])} of room {row} does not wait for a place; ask action_mask()")
        free = inside & ~(cells & self._blocked(slot)).flatten(1).any(1)
        bad = ~free & (place != LEAVE)
        if bool(bad.any()):
            row = int(bad.nonzero()[0, 0])
            raise InputError(
                f"place {int(place[row])} of slot {int(slot[row])} in room {row} is outside or taken; ask "
                "action_mask(slot)"
            )
