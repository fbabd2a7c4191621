"""The grid's answers: compiled kernels against plain torch against loops."""

from __future__ import annotations

import torch
from torch import Tensor

from rl3d.agents.layout import grid
from rl3d.agents.layout.rooms import GRID
from rl3d.agents.layout.tasks import sample_tasks

TASKS = sample_tasks(6, 11)
G = torch.Generator().manual_seed(0)
CELLS = torch.tensor([[16, 20], [5, 4], [1, 1], [15, 6], [9, 10], [4, 7]])
BLOCKED = ~TASKS.floor | TASKS.door_zone | (torch.rand(6, GRID, GRID, generator=G) < 0.002)


def test_legal_places_are_those_where_every_cell_is_free() -> None:
    legal = grid.legal_places(BLOCKED, CELLS)
    assert torch.equal(legal, grid.legal_places_torch(BLOCKED, CELLS))
    some = torch.randint(4 * GRID * GRID, (6, 300), generator=G)
    for n in range(6):
        for place in [*some[n].tolist(), *legal[n].flatten().nonzero()[::50, 0].tolist()]:
            heading, i, j = place // GRID**2, place // GRID % GRID, place % GRID
            width, depth = CELLS[n].tolist()
            rows, columns = (width, depth) if heading % 2 else (depth, width)
            inside = i + rows <= GRID and j + columns <= GRID
            free = inside and not bool(BLOCKED[n, i : i + rows, j : j + columns].any())
            assert bool(legal[n].flatten()[place]) == free
    assert 0.05 < float(legal.float().mean()) < 0.5  # both answers are there


def things() -> Tensor:
    items = torch.zeros(6, GRID, GRID, dtype=torch.bool)
    items[:, 8:14, 10:20] = True
    return items & TASKS.floor


def test_proposals_are_legal_usual_and_the_same_on_both_ways() -> None:
    items = things()
    legal = grid.legal_places(BLOCKED | items, CELLS)
    uniform = torch.rand(6, 64, generator=G, dtype=torch.float64)
    for snug in range(4):
        kind = torch.full((6,), snug)
        places, found = grid.propose(legal, TASKS.floor, items, CELLS, kind, uniform)
        again, found_too = grid.propose_torch(legal, TASKS.floor, items, CELLS, kind, uniform)
        assert torch.equal(places, again) and torch.equal(found, found_too) and bool(found.all())
        assert bool(legal.flatten(1).gather(1, places).all())
    # pieces for walls: all of the first three quarters have wall behind the whole back
    places, _ = grid.propose(legal, TASKS.floor, items, CELLS, torch.zeros(6, dtype=torch.int64), uniform)
    for n, place in [(row, p) for row in range(6) for p in places[row, :48].tolist()]:
        heading, i, j = place // GRID**2, place // GRID % GRID, place % GRID
        width, depth = CELLS[n].tolist()
        rows, columns = (width, depth) if heading % 2 else (depth, width)
        room = torch.nn.functional.pad(TASKS.floor[n], (1, 1, 1, 1))  # shifted by one cell
        i, j = i + 1, j + 1
        back = [
            room[i - 1, j : j + columns],
            room[i : i + rows, j - 1],
            room[i + rows, j : j + columns],
            room[i : i + rows, j + columns],
        ]
        assert not bool(back[heading].any())


def test_nothing_legal_says_so() -> None:
    full = torch.zeros(2, 4, GRID, GRID, dtype=torch.bool)
    arguments = (TASKS.floor[:2], TASKS.floor[:2], CELLS[:2], torch.zeros(2, dtype=torch.int64))
    uniform = torch.rand(2, 8, dtype=torch.float64)
    for ask in (grid.propose, grid.propose_torch):
        places, found = ask(full, *arguments, uniform)
        assert not bool(found.any()) and bool((places == -1).all())


def test_walkable_is_what_a_slow_flood_finds() -> None:
    boxes = torch.tensor([[[6, 0, 16, 12], [20, 14, 24, 30]]]).expand(6, 2, 4).contiguous()
    solid = torch.ones(6, 2, dtype=torch.bool)
    room = torch.arange(6)
    share, sides = grid.walkable(TASKS.floor, TASKS.seed, room, boxes, solid)
    other = grid.walkable_torch(TASKS.floor, TASKS.seed, room, boxes, solid)
    assert torch.equal(share, other[0]) and torch.equal(sides, other[1])
    for n in range(6):
        free = TASKS.floor[n] & ~grid.covered(boxes[n : n + 1], solid[n : n + 1], GRID)[0]
        stand = {
            (i, j)
            for i in range(2, GRID - 2)
            for j in range(2, GRID - 2)
            if bool(free[i - 2 : i + 3, j - 2 : j + 3].all())
        }
        reached, front = set(), [tuple(TASKS.seed[n].tolist())]
        while front:
            i, j = front.pop()
            if (i, j) in stand and (i, j) not in reached:
                reached.add((i, j))
                front += [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
        assert float(share[n]) == torch.tensor(len(reached) / max(len(stand), 1)).item()
        south = [(18, j) in reached for j in range(12)]  # two free cells between the box's end 16 and a person
        assert float(sides[n, 0, 0]) == torch.tensor(sum(south) / 12).item()
