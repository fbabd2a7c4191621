"""What a good room is: seven terms in [0, 1], each a mean over what the inventory asks for, and their weighted mean.

What was not placed counts 0 in every term that is about it, so leaving out never pays. Hard rules (inside, no overlap,
the door free) are no terms: the masks keep them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl3d.agents.layout.furniture import KINDS, NAMES, PAIRS, RELATIONS, USES
from rl3d.agents.layout.grid import FRONT, walkable
from rl3d.agents.layout.rooms import CELL, GRID
from rl3d.agents.layout.tasks import Tasks

TERMS = ("placed", "wall", "pair", "reach", "walk", "window", "symmetry")
WEIGHTS = {"placed": 4.0, "wall": 1.5, "pair": 2.5, "reach": 1.5, "walk": 1.0, "window": 0.5, "symmetry": 0.5}
TALL = 1.2  # metres


@dataclass(frozen=True)
class Layouts:
    """M layouts of K slots.

    Attributes:
        task: [M] int64, which task each is of. place: [M, K] int64, see `grid`. placed: [M, K] bool.
    """

    task: Tensor
    place: Tensor
    placed: Tensor


@dataclass(frozen=True)
class Poses:
    """Where pieces stand, [M, K] each, metres; only meaningful where placed.

    Attributes:
        heading: int64. x, z: centre. half: [M, K, 2] half extents along x and z. front: [M, K, 2] unit vector.
        boxes: [M, K, 4] int64 cells of the footprint.
    """

    heading: Tensor
    x: Tensor
    z: Tensor
    half: Tensor
    front: Tensor
    boxes: Tensor

    def taken(self, index: Any) -> Poses:
        """Some of them, as a tensor is indexed along the leading axes."""
        return Poses(**{name: value[index] for name, value in vars(self).items()})

    def unsqueezed(self) -> Poses:
        """[P] as [P, 1]."""
        return self.taken(np.s_[:, None])


def poses(place: Tensor, metres: Tensor, cells: Tensor) -> Poses:
    """Centres and boxes of pieces at places: flush with the back of their footprint, in its middle across.

    Args:
        place: [M, K]. metres: [M, K, 3]. cells: [M, K, 2].
    """
    heading, rest = place // (GRID * GRID), place % (GRID * GRID)
    i, j = rest // GRID, rest % GRID
    turned = heading % 2 == 1
    columns = torch.where(turned, cells[..., 1], cells[..., 0])
    rows = torch.where(turned, cells[..., 0], cells[..., 1])
    half = 0.5 * torch.where(turned[..., None], metres[..., [1, 0]], metres[..., :2])
    front = torch.tensor(FRONT, device=place.device)[heading]
    slack = 0.5 * (cells[..., 1] * CELL - metres[..., 1])  # of the depth, all of it before the front
    x = (j + 0.5 * columns) * CELL - front[..., 0] * slack
    z = (i + 0.5 * rows) * CELL - front[..., 1] * slack
    return Poses(heading, x, z, half, front, torch.stack([i, j, i + rows, j + columns], -1))


@dataclass(frozen=True)
class Relative:
    """How each of A pieces stands to each of B, [M, A, B] each; metres, gaps between edges (negative: they overlap).

    Attributes:
        u, v: A's centre in B's frame: along B's right-left, and forward. ahead, aside: B's centre in A's frame.
        gap_u, gap_v: along B's axes. gap_ahead, gap_aside: along A's. edge: between the boxes, 0 where they touch.
        same, cross: cosine and sine of the turn between the headings. backs: of A's back before B's.
        distance: between centres. half_across: A's half width.
    """

    u: Tensor
    v: Tensor
    ahead: Tensor
    aside: Tensor
    gap_u: Tensor
    gap_v: Tensor
    gap_ahead: Tensor
    gap_aside: Tensor
    edge: Tensor
    same: Tensor
    cross: Tensor
    backs: Tensor
    distance: Tensor
    half_across: Tensor


def relative(a: Poses, b: Poses) -> Relative:
    """Of pieces [M, A] to pieces [M, B]."""
    apart_x, apart_z = a.x[:, :, None] - b.x[:, None, :], a.z[:, :, None] - b.z[:, None, :]  # from B to A
    ax, az = a.front[:, :, None, 0], a.front[:, :, None, 1]
    bx, bz = b.front[:, None, :, 0], b.front[:, None, :, 1]
    v = apart_x * bx + apart_z * bz
    gap_x = apart_x.abs() - a.half[:, :, None, 0] - b.half[:, None, :, 0]
    gap_z = apart_z.abs() - a.half[:, :, None, 1] - b.half[:, None, :, 1]
    turned_a, turned_b = ax.abs() > 0.5, bx.abs() > 0.5
    half_a_v = torch.where(turned_b, a.half[:, :, None, 0], a.half[:, :, None, 1])
    half_b_v = torch.where(turned_b, b.half[:, None, :, 0], b.half[:, None, :, 1])
    return Relative(
        u=apart_x * bz - apart_z * bx,
        v=v,
        ahead=-(apart_x * ax + apart_z * az),
        aside=apart_z * ax - apart_x * az,
        gap_u=torch.where(turned_b, gap_z, gap_x),
        gap_v=torch.where(turned_b, gap_x, gap_z),
        gap_ahead=torch.where(turned_a, gap_x, gap_z),
        gap_aside=torch.where(turned_a, gap_z, gap_x),
        edge=torch.hypot(gap_x.clamp_min(0), gap_z.clamp_min(0)),
        same=ax * bx + az * bz,
        cross=ax * bz - az * bx,
        backs=v - half_a_v + half_b_v,
        distance=torch.hypot(apart_x, apart_z),
        half_across=torch.where(turned_a, a.half[:, :, None, 1], a.half[:, :, None, 0]).expand_as(v),
    )


def objective(tasks: Tasks, layouts: Layouts) -> tuple[Tensor, dict[str, Tensor]]:
    """(score [M] in [0, 1], terms by name, each [M] in [0, 1]). This is what one reward call costs."""
    kind = tasks.kind[layouts.task]  # [M, K]
    there, placed = kind >= 0, layouts.placed
    at = poses(layouts.place, tasks.metres[layouts.task], tasks.cells[layouts.task])
    tables = kind_tables(kind.device)
    safe = kind.clamp_min(0)
    solid = placed & ~tables.flat[safe]
    share, sides = walkable(tasks.floor, tasks.seed, layouts.task, at.boxes, solid)
    required = tasks.required[layouts.task]
    weight = there * (1.0 + required)
    pair, wanted, mirror, mirrored = wanted_pairs(safe, there, placed, at, tables)
    terms = {
        "placed": _mean(placed.float(), weight),
        "wall": _mean(against_wall(tasks, layouts.task, at) * placed, there & tables.wall[safe]),
        "pair": _mean(pair, wanted.float()),
        "reach": _mean(reachable(sides, at.heading, tables.use[safe]) * placed, there & (tables.use[safe] > 0)),
        "walk": share,
        "window": _windows(tasks, layouts, at, solid),
        "symmetry": _mean(mirror, mirrored.float()),
    }
    total = sum(WEIGHTS.values())
    return torch.stack([WEIGHTS[name] / total * value for name, value in terms.items()]).sum(0), terms


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """[M, K] -> [M], 1 where nothing has weight."""
    w = weight.float()
    total = w.sum(1)
    return torch.where(total > 0, (values * w).sum(1) / total.clamp_min(1e-9), torch.ones_like(total))


@dataclass(frozen=True)
class KindTables:
    """Properties of kinds as tensors: wall, flat, tall [T] bool, use [T] int64, relation [T, T] int64 (-1: none)."""

    wall: Tensor
    flat: Tensor
    use: Tensor
    relation: Tensor


_CACHE: dict[str, KindTables] = {}


def kind_tables(device: torch.device) -> KindTables:
    if str(device) not in _CACHE:
        relation = torch.full((len(KINDS), len(KINDS)), -1)
        for what, how, others in PAIRS:
            for other in others:
                relation[NAMES.index(what), NAMES.index(other)] = RELATIONS.index(how)
        _CACHE[str(device)] = KindTables(
            torch.tensor([k.wall for k in KINDS], device=device),
            torch.tensor([k.flat for k in KINDS], device=device),
            torch.tensor([USES.index(k.use) for k in KINDS], device=device),
            relation.to(device),
        )
    return _CACHE[str(device)]


def against_wall(tasks: Tasks, task: Tensor, at: Poses) -> Tensor:
    """[M, K]: exp(-gap / 0.2 m) from the middle of the back to the wall behind it."""
    back = (at.heading + 2) % 4
    i = torch.where(back == 0, at.boxes[..., 2] - 1, torch.where(back == 2, at.boxes[..., 0], _middle(at.boxes, 0)))
    j = torch.where(back == 1, at.boxes[..., 3] - 1, torch.where(back == 3, at.boxes[..., 1], _middle(at.boxes, 1)))
    gap = tasks.gaps[task[:, None], back, i.clamp(0, GRID - 1), j.clamp(0, GRID - 1)].float() - 1
    return torch.exp(-gap.clamp_min(0) * CELL / 0.2)


def _middle(boxes: Tensor, axis: int) -> Tensor:
    return (boxes[..., axis] + boxes[..., axis + 2]) // 2


def reachable(sides: Tensor, heading: Tensor, use: Tensor) -> Tensor:
    """[M, K]: along how much of its using side a person can come to stand; half of it is enough."""

    def side(turn: int) -> Tensor:
        return (2 * sides.gather(-1, ((heading + turn) % 4)[..., None])[..., 0]).clamp_max(1)

    front, right, back, left = (side(turn) for turn in range(4))
    either = torch.maximum(left, right)
    anywhere = torch.maximum(torch.maximum(front, back), either)
    out = torch.zeros_like(front)
    for name, value in (("front", front), ("side", either), ("both", 0.5 * (left + right)), ("any", anywhere)):
        out = torch.where(use == USES.index(name), value, out)  # type: ignore[arg-type]
    return out


def _windows(tasks: Tasks, layouts: Layouts, at: Poses, solid: Tensor) -> Tensor:
    """[M]: the mean over windows of the share before which no tall piece stands; 1 without windows."""
    tall = solid & (tasks.metres[layouts.task][..., 2] > TALL)
    zones = tasks.window_boxes[layouts.task]  # [M, W, 4]
    low = torch.maximum(zones[:, :, None, :2], at.boxes[:, None, :, :2])
    high = torch.minimum(zones[:, :, None, 2:], at.boxes[:, None, :, 2:])
    overlap = (high - low).clamp_min(0).prod(-1) * tall[:, None]
    area = (zones[..., 2:] - zones[..., :2]).prod(-1)
    return _mean(1 - (overlap.sum(2) / area.clamp_min(1)).clamp_max(1), tasks.windows[layouts.task][..., 5])


def wanted_pairs(
    kind: Tensor, there: Tensor, placed: Tensor, at: Poses, tables: KindTables
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(score, whether it is wanted, mirror score, whether a mirror is wanted), each [M, K]."""
    k = kind.shape[1]
    relation = tables.relation[kind[:, :, None], kind[:, None, :]]  # [M, A, B]
    relation = torch.where(there[:, :, None] & there[:, None, :], relation, -1)
    relation = relation.masked_fill(torch.eye(k, dtype=torch.bool, device=kind.device), -1)
    wanted = (relation >= 0).any(2)
    scores, u, v = pair_scores(relation, at)
    scores = scores * (placed[:, :, None] & placed[:, None, :])
    best, partner = scores.max(2)
    # A mirror is wanted of pieces of one kind that stand beside or around another: across B's axis, or the other one.
    twin = (kind[:, :, None] == kind[:, None, :]) & there[:, :, None] & there[:, None, :]
    twin = twin & ~torch.eye(k, dtype=torch.bool, device=kind.device)
    paired = [RELATIONS.index("beside"), RELATIONS.index("around")]
    mirrored = twin.any(2) & ((relation == paired[0]) | (relation == paired[1])).any(2)
    own_u, own_v = (w.gather(2, partner[..., None])[..., 0] for w in (u, v))
    same = twin & (partner[:, :, None] == partner[:, None, :])
    across = (own_u[:, :, None] + own_u[:, None, :]).abs() + (own_v[:, :, None] - own_v[:, None, :]).abs()
    along = (own_u[:, :, None] - own_u[:, None, :]).abs() + (own_v[:, :, None] + own_v[:, None, :]).abs()
    around = (relation == paired[1]).any(2)[:, :, None]
    apart = torch.where(around, torch.minimum(across, along), across)
    mirror = (torch.exp(-apart / 0.2) * same * best[:, :, None] * best[:, None, :]).amax(2)
    return best, wanted, mirror, mirrored


def pair_scores(relation: Tensor, at: Poses) -> tuple[Tensor, Tensor, Tensor]:
    """How well each A stands to each B, [M, A, B] in [0, 1], 0 where there is no relation; and A's centre (u, v).

    u and v are the place of A's centre in B's frame, to B's left-right and forward. Gaps are between edges, metres.

    | relation | 1 where |
    |---|---|
    | beside | A at B's left or right edge, same heading, backs in line (a nightstand) |
    | seat | A before B's front, facing it, in its middle (an office chair) |
    | around | A faces B's edge from any side (a dining chair) |
    | before | A 0.4 m before B's front, in its middle (a coffee table) |
    | across | A and B face each other in line, 1.2 m or more apart (TV and sofa) |
    | toward | A's front points at B, at most 0.8 m away (an armchair) |
    | row | A and B side by side with one heading, or at right angles in a corner (kitchen modules) |
    | near | edges at most 0.2 m apart |
    | under | one middle (a rug) |

    Args:
        relation: [M, A, B] int64, index into RELATIONS, -1: none.
    """
    r = relative(at, at)

    def off(value: Tensor, scale: float) -> Tensor:
        return torch.exp(-value.clamp_min(0) / scale)

    parallel, opposite, sideways = r.same > 0.5, r.same < -0.5, r.same.abs() < 0.5
    aligned = 0.5 + 0.5 * r.same.abs()
    by_name = {
        "beside": off(r.gap_u - 0.05, 0.15) * off(r.backs.abs() - 0.05, 0.3) * parallel,
        "seat": off(r.gap_v - 0.05, 0.2) * off(r.u.abs() - 0.1, 0.3) * opposite * (r.v > 0),
        "around": off(r.gap_ahead - 0.05, 0.15) * off(r.gap_aside + 2 * r.half_across, 0.2) * (r.ahead > 0),
        "before": off((r.gap_v - 0.4).abs() - 0.1, 0.3) * off(r.u.abs() - 0.05, 0.4) * (r.v > 0) * aligned,
        "across": off(1.2 - r.gap_v, 0.4) * off(r.gap_v - 4, 1) * off(r.u.abs() - 0.1, 0.5) * opposite * (r.v > 0),
        "toward": ((1 + r.ahead / r.distance.clamp_min(1e-3)) / 2) ** 2 * off(r.edge - 0.8, 0.6),
        "row": torch.maximum(
            off(r.gap_u, 0.2) * off(r.backs.abs(), 0.2) * parallel,
            off(torch.maximum(r.gap_u, r.gap_v), 0.2) * sideways,
        ),
        "near": off(r.edge - 0.2, 0.4),
        "under": off(r.u.abs(), 0.4) * off(r.v.abs(), 0.4) * aligned,
    }
    score = torch.zeros_like(r.u)
    for index, name in enumerate(RELATIONS):
        score = torch.where(relation == index, by_name[name], score)
    return score, r.u, r.v
