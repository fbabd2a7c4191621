"""What is asked of a room's grid, in plain torch on any device; on the CPU compiled kernels answer the same.

Grids are [.., G, G] of cells of 10 cm, rows are z. Everything outside a grid is wall. A footprint of (across, back to
front) cells at heading 0 (front toward +z) covers rows = depth and columns = width; headings 1 and 3 swap them. A place
is (heading * G + row) * G + column of the footprint's first cell: a whole number in [0, 4 G G).

Headings here count as a turn about +Y does: 0 faces +z, 1 faces +x, 2 faces -z, 3 faces -x.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

ROBOT = 2  # cells that the body of a walker takes on each side of its centre: 0.2 m, as in SceneEval
MARGIN = 6  # cells around a grid that the sums below may reach into

# For each heading the unit vector (x, z) of the front.
FRONT = ((0.0, 1.0), (1.0, 0.0), (0.0, -1.0), (-1.0, 0.0))


def summed(cells: Tensor, outside: float) -> Tensor:
    """[N, G + 2 M + 1, G + 2 M + 1] int32: entry (i, j) is the sum over rows < i and columns < j of the padded grid."""
    wide = pad(cells.float(), (MARGIN,) * 4, value=outside)
    return pad(wide.cumsum(1).cumsum(2), (1, 0, 1, 0)).to(torch.int32)


def box_sums(table: Tensor, row: Tensor, column: Tensor, row_end: Tensor, column_end: Tensor) -> Tensor:
    """Sums over rectangles, [N, ...] of indices into the grid (from -MARGIN; ends exclusive), as int32 [N, ...]."""
    side = table.shape[1]
    flat = table.flatten(1)
    shape = row.shape

    def at(i: Tensor, j: Tensor) -> Tensor:
        i, j = ((v + MARGIN).clamp(0, side - 1) for v in (i, j))
        return flat.gather(1, (i * side + j).flatten(1)).view(shape)

    return at(row_end, column_end) - at(row, column_end) - at(row_end, column) + at(row, column)


def legal_places(blocked: Tensor, cells: Tensor) -> Tensor:
    """Whether a footprint at each place covers free cells alone; exact.

    Args:
        blocked: [N, G, G] bool. cells: [N, 2] int64, a piece's width and depth in cells.

    Returns:
        [N, 4, G, G] bool.
    """
    if blocked.device.type == "cpu":
        from rl3d.agents.layout.grid_cpu import legal_places_cpu

        return legal_places_cpu(blocked, cells)
    return legal_places_torch(blocked, cells)


def legal_places_torch(blocked: Tensor, cells: Tensor) -> Tensor:
    """`legal_places` in plain torch."""
    n, g = blocked.shape[:2]
    table = summed(blocked, 1.0)
    i, j = _corners(n, g, blocked.device)
    both = []
    for rows, columns in ((cells[:, 1], cells[:, 0]), (cells[:, 0], cells[:, 1])):
        ends = i + rows[:, None, None], j + columns[:, None, None]
        inside = (ends[0] <= g) & (ends[1] <= g)
        both.append((box_sums(table, i, j, *ends) == 0) & inside)
    return torch.stack([both[0], both[1], both[0], both[1]], 1)


def propose(
    legal: Tensor, floor: Tensor, items: Tensor, cells: Tensor, snug: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Places to choose from: half of them where such a piece usually stands, a quarter there beside another piece.

    Args:
        legal: [N, 4, G, G]. floor: [N, G, G] bool, cells inside the room. items: [N, G, G] bool, cells under pieces.
        cells: [N, 2]. snug: [N] int64, index into `furniture.SNUGS`: which places are usual.
        uniform: [N, C] in [0, 1), float64; places are drawn with replacement.

    Returns:
        (places [N, C] int64, -1 where nothing is legal; any [N] bool: something is).
    """
    if legal.device.type == "cpu":
        from rl3d.agents.layout.grid_cpu import propose_cpu

        return propose_cpu(legal, floor, items, cells, snug, uniform)
    return propose_torch(legal, floor, items, cells, snug, uniform)


def strata(count: int) -> tuple[int, int]:
    """Of C places, how many come from (usual and beside another piece, usual); the rest from all legal ones."""
    return count // 4, count // 4 + count // 2


def propose_torch(
    legal: Tensor, floor: Tensor, items: Tensor, cells: Tensor, snug: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """`propose` in plain torch."""
    usual, beside = _usual(floor, items, cells, snug)
    usual = usual & legal
    beside = beside & usual
    every = legal.flatten(1)
    first, second = strata(uniform.shape[1])
    out = torch.full(uniform.shape, -1, dtype=torch.int64, device=legal.device)
    any_usual, any_beside = usual.flatten(1).any(1)[:, None], beside.flatten(1).any(1)[:, None]
    usual_set = torch.where(any_usual, usual.flatten(1), every)
    beside_set = torch.where(any_beside, beside.flatten(1), usual_set)
    for chosen, part in (
        (beside_set, slice(0, first)),
        (usual_set, slice(first, second)),
        (every, slice(second, None)),
    ):
        order = chosen.long().cumsum(1)
        rank = (uniform[:, part] * order[:, -1:]).floor().long() + 1
        out[:, part] = torch.searchsorted(order, rank.contiguous())
    found = every.any(1)
    return torch.where(found[:, None], out, -1), found


def _usual(floor: Tensor, items: Tensor, cells: Tensor, snug: Tensor) -> tuple[Tensor, Tensor]:
    """([N, 4, G, G], the same): where such a piece usually stands, and where it stands within 20 cm of another."""
    n, g = floor.shape[:2]
    walls, things = summed(~floor, 1.0), summed(items, 0.0)
    i, j = _corners(n, g, floor.device)
    kind = snug[:, None, None]
    usual, beside = [], []
    for heading in range(4):
        rows, columns = (cells[:, 1 - heading % 2, None, None], cells[:, heading % 2, None, None])
        box = (i, j, i + rows, j + columns)
        back, front = strip(box, heading, back=True, depth=1), strip(box, heading, back=False, depth=2)
        width = cells[:, 0, None, None]
        near = (i - 4, j - 4, box[2] + 4, box[3] + 4)
        at_wall = box_sums(walls, *back) == width
        facing = 2 * box_sums(things, *front) >= width  # half of the front's width, once
        close = box_sums(things, *near) > 0
        usual.append(
            torch.where(kind == 0, at_wall, torch.where(kind == 1, facing, torch.where(kind == 2, close, True)))
        )
        beside.append(box_sums(things, i - 2, j - 2, box[2] + 2, box[3] + 2) > 0)
    return torch.stack(usual, 1), torch.stack(beside, 1)


def strip(
    box: tuple[Tensor, Tensor, Tensor, Tensor], heading: int, *, back: bool, depth: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rectangle of `depth` cells just behind (or before) a box that faces `heading`."""
    i, j, i_end, j_end = box
    side = (heading + 2) % 4 if back else heading
    if side == 0:  # toward +z
        return i_end, j, i_end + depth, j_end
    if side == 1:  # +x
        return i, j_end, i_end, j_end + depth
    if side == 2:
        return i - depth, j, i, j_end
    return i, j - depth, i_end, j


def walkable(floor: Tensor, seed: Tensor, room: Tensor, boxes: Tensor, solid: Tensor) -> tuple[Tensor, Tensor]:
    """Where a person of 0.2 m radius gets to from the door.

    Args:
        floor: [R, G, G] bool. seed: [R, 2] int64, a cell (row, column) inside the door. room: [M] int64, which of the
            R rooms each of M layouts is of.
        boxes: [M, K, 4] int64, first row and column, end row and column of each piece. solid: [M, K] bool, counts.

    Returns:
        (share [M] float, of the cells where a person could stand, that can be reached from the door; sides [M, K, 4]
        float, of each piece's side toward +z, +x, -z, -x the share along which a person can come to stand).
    """
    if floor.device.type == "cpu":
        from rl3d.agents.layout.grid_cpu import walkable_cpu

        return walkable_cpu(floor, seed, room, boxes, solid)
    return walkable_torch(floor, seed, room, boxes, solid)


def walkable_torch(floor: Tensor, seed: Tensor, room: Tensor, boxes: Tensor, solid: Tensor) -> tuple[Tensor, Tensor]:
    """`walkable` in plain torch."""
    g = floor.shape[1]
    blocked = ~floor[room] | covered(boxes, solid, g)
    stand = max_pool2d(pad(blocked.float(), (ROBOT,) * 4, value=1.0)[:, None], 2 * ROBOT + 1, 1)[:, 0] == 0
    reached = torch.zeros_like(stand)
    index = torch.arange(len(room), device=floor.device)
    start = seed[room]
    reached[index, start[:, 0], start[:, 1]] = stand[index, start[:, 0], start[:, 1]]
    while True:
        grown = _spread(_spread(reached, stand, 1), stand, 2)
        if bool((grown == reached).all()):
            break
        reached = grown
    share = reached.flatten(1).sum(1) / stand.flatten(1).sum(1).clamp_min(1)
    table = summed(reached, 0.0)
    i, j, i_end, j_end = boxes.unbind(-1)
    south, north, east, west = i_end + ROBOT, i - ROBOT - 1, j_end + ROBOT, j - ROBOT - 1
    lines = (
        (south, j, south + 1, j_end),
        (i, east, i_end, east + 1),
        (north, j, north + 1, j_end),
        (i, west, i_end, west + 1),
    )
    sides = [box_sums(table, *line) / ((line[2] - line[0]) * (line[3] - line[1])).clamp_min(1) for line in lines]
    return share.float(), torch.stack(sides, -1).float()


def covered(boxes: Tensor, counts: Tensor, side: int) -> Tensor:
    """[M, side, side] bool: cells under any of the boxes [M, K, 4] that count ([M, K] bool)."""
    at = torch.arange(side, device=boxes.device)
    rows = (at >= boxes[..., 0, None]) & (at < boxes[..., 2, None]) & counts[..., None]
    columns = (at >= boxes[..., 1, None]) & (at < boxes[..., 3, None])
    return torch.einsum("mki,mkj->mij", rows.float(), columns.float()) > 0


def _spread(reached: Tensor, free: Tensor, axis: int) -> Tensor:
    """Every free run of cells along the axis that holds a reached cell, whole."""
    side = free.shape[1]
    run = (~free).long().cumsum(axis)  # cells of one run share a number
    other = torch.arange(side, device=free.device)
    line = other[None, :, None] if axis == 2 else other[None, None, :]
    key = (line * (side + 1) + run).flatten(1)
    touched = torch.zeros(len(free), side * (side + 1), device=free.device)
    touched.scatter_reduce_(1, key, (reached & free).flatten(1).float(), "amax")
    return (touched.gather(1, key).view(free.shape) > 0) & free


def _corners(n: int, g: int, device: torch.device) -> tuple[Tensor, Tensor]:
    at = torch.arange(g, device=device)
    return at[None, :, None].expand(n, g, g), at[None, None, :].expand(n, g, g)
