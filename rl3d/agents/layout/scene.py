"""A furnished room: its file, its meshes, and its numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl3d.agents.layout.folder import Model, placed_mesh
from rl3d.agents.layout.furniture import KINDS, NAMES, Size, kind_index
from rl3d.agents.layout.grid import walkable
from rl3d.agents.layout.inventory import Piece, room_type
from rl3d.agents.layout.objective import (
    Layouts,
    against_wall,
    kind_tables,
    objective,
    poses,
    reachable,
    relative,
    wanted_pairs,
)
from rl3d.agents.layout.pieces import built_in
from rl3d.agents.layout.rooms import CELL, GRID, Room
from rl3d.agents.layout.shell import shell
from rl3d.agents.layout.tasks import Task, Tasks, cells_of, pack
from rl3d.errors import InputError
from rl3d.files import atomic_write_bytes, write_json
from rl3d.rewards.check_assets import joined
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.texture import face_centre_colours


@dataclass(frozen=True)
class Standing:
    """A piece in its place: x, z of its middle from the north-west corner, metres; heading 0 to 3, see `grid`."""

    piece: Piece
    x: float
    z: float
    heading: int
    model: Model | None = None

    @property
    def name(self) -> str:
        return NAMES[self.piece.kind]


@dataclass(frozen=True)
class FurnishedRoom:
    """A task and what became of it."""

    task: Task
    standing: tuple[Standing, ...]
    missing: tuple[str, ...] = ()


def furnished_room(
    task: Task, tasks: Tasks, layouts: Layouts, row: int, models: Sequence[Model | None] = ()
) -> FurnishedRoom:
    """Row `row` of some layouts, in metres. models: of each piece of the task, or none."""
    index = layouts.task[row : row + 1]
    at = poses(layouts.place[row : row + 1], tasks.metres[index], tasks.cells[index])
    standing, missing = [], []
    for k, piece in enumerate(task.pieces):
        if bool(layouts.placed[row, k]):
            model = models[k] if models else None
            standing.append(Standing(piece, float(at.x[0, k]), float(at.z[0, k]), int(at.heading[0, k]), model))
        else:
            missing.append(NAMES[piece.kind])
    return FurnishedRoom(task, tuple(standing), tuple(missing))


def as_layouts(room: FurnishedRoom) -> tuple[Tasks, Layouts]:
    """The way back: what stands, as tensors of one row; pieces that are missing stay in the inventory.

    Raises:
        InputError: a piece outside the grid, or off the 10 cm raster by more than half a cell.
    """
    pieces = [s.piece for s in room.standing] + [
        Piece(kind_index(n), KINDS[kind_index(n)].sizes[0], False) for n in room.missing
    ]
    tasks = pack([replace(room.task, pieces=tuple(pieces))])
    place = torch.zeros(1, tasks.kind.shape[1], dtype=torch.int64)
    placed = torch.zeros(1, tasks.kind.shape[1], dtype=torch.bool)
    front = ((0, 1), (1, 0), (0, -1), (-1, 0))
    for k, s in enumerate(room.standing):
        width, depth = cells_of(s.piece.size)
        rows, columns = (width, depth) if s.heading % 2 else (depth, width)
        slack = 0.5 * (depth * CELL - s.piece.size[1])
        i = round((s.z + front[s.heading][1] * slack) / CELL - 0.5 * rows)
        j = round((s.x + front[s.heading][0] * slack) / CELL - 0.5 * columns)
        if not (0 <= i <= GRID - rows and 0 <= j <= GRID - columns):
            raise InputError(f"the {s.name} at ({s.x:g}, {s.z:g}) is off the floor plan; move it into the room")
        place[0, k] = (s.heading * GRID + i) * GRID + j
        placed[0, k] = True
    return tasks, Layouts(torch.zeros(1, dtype=torch.int64), place, placed)


def measures(tasks: Tasks, layouts: Layouts) -> dict[str, Tensor]:
    """What is reported of M layouts, each [M] float; collisions and bounds from the boxes in metres, not the grid.

    score, and the objective's terms. collisions: pieces whose box overlaps another's by more than 1 mm (flat ones with
    flat ones). outside: pieces with a corner more than 1 mm off the floor. door: pieces in the door's zone.
    navigability: share of where a person could stand that can be reached from the door. accessibility: share of pieces
    with a using side that have half of it reachable. rules: share of wanted pairs at 0.5 or above and of backs within
    10 cm of their wall. placed: share of pieces.
    """
    score, terms = objective(tasks, layouts)
    kind = tasks.kind[layouts.task].clamp_min(0)
    tables = kind_tables(kind.device)
    flat = tables.flat[kind]
    at = poses(layouts.place, tasks.metres[layouts.task], tasks.cells[layouts.task])
    r = relative(at, at)
    k = kind.shape[1]
    both = layouts.placed[:, :, None] & layouts.placed[:, None, :] & (flat[:, :, None] == flat[:, None, :])
    both = both & ~torch.eye(k, dtype=torch.bool, device=kind.device)
    hit = both & (r.gap_u < -1e-3) & (r.gap_v < -1e-3)
    floor, zone = tasks.floor[layouts.task], tasks.door_zone[layouts.task]
    low = torch.stack([at.x - at.half[..., 0], at.z - at.half[..., 1]], -1) + 1e-3
    high = torch.stack([at.x + at.half[..., 0], at.z + at.half[..., 1]], -1) - 1e-3
    off, in_door = (_touches(cells, low, high) & layouts.placed for cells in (~floor, zone))
    _, sides = walkable(tasks.floor, tasks.seed, layouts.task, at.boxes, layouts.placed & ~flat)
    there = tasks.kind[layouts.task] >= 0
    reach = reachable(sides, at.heading, tables.use[kind]) * layouts.placed
    used = there & (tables.use[kind] > 0)
    pair, wanted, _, _ = wanted_pairs(kind, there, layouts.placed, at, tables)
    walls = there & tables.wall[kind]
    backed = (against_wall(tasks, layouts.task, at) > math.exp(-0.51)) & layouts.placed
    rules = ((pair >= 0.5) & wanted).sum(1) + (backed & walls).sum(1)
    wishes = wanted.sum(1) + walls.sum(1)

    def share(part: Tensor, whole: Tensor) -> Tensor:
        return torch.where(whole > 0, part / whole.clamp_min(1), torch.ones_like(score))

    return {
        "score": score,
        **terms,
        "collisions": hit.any(2).sum(1).float(),
        "outside": off.sum(1).float(),
        "door": (in_door & ~flat).sum(1).float(),
        "navigability": terms["walk"],
        "accessibility": share(((reach >= 0.999) & used).sum(1), used.sum(1)),
        "rules": share(rules, wishes),
        "objects": layouts.placed.sum(1).float(),
        "placed": share(layouts.placed.sum(1), there.sum(1)),
    }


def _touches(cells: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """[M, K] bool: whether a box (low, high [M, K, 2], x and z in metres) touches any of the cells [M, G, G]."""
    edge = torch.arange(GRID, device=cells.device) * CELL
    columns = (edge + CELL > low[..., 0, None]) & (edge < high[..., 0, None])
    rows = (edge + CELL > low[..., 1, None]) & (edge < high[..., 1, None])
    inside = torch.einsum("mki,mkj,mij->mk", rows.float(), columns.float(), cells.float()) > 0
    grid = GRID * CELL
    return inside | (low < -1e-6).any(-1) | (high > grid + 1e-6).any(-1)


def parts(room: FurnishedRoom) -> dict[str, Mesh]:
    """Every part of the scene by name, in the room's frame: its middle is the origin, +Y up, metres."""
    found = shell(room.task.room, room.task.room_type)
    cx, cz = 0.5 * room.task.room.width, 0.5 * room.task.room.depth
    count: dict[str, int] = {}
    for s in room.standing:
        count[s.name] = count.get(s.name, 0) + 1
        mesh = built_in(s.piece.kind, s.piece.size) if s.model is None else placed_mesh(s.model)
        found[f"{s.name} {count[s.name]}"] = replace(mesh, vertices=_turned(mesh.vertices, s, cx, cz))
    return found


def _turned(vertices: Tensor, s: Standing, cx: float, cz: float) -> Tensor:
    sin, cos = ((0.0, 1.0), (1.0, 0.0), (0.0, -1.0), (-1.0, 0.0))[s.heading]
    x, y, z = vertices.unbind(1)
    return torch.stack([x * cos + z * sin + s.x - cx, y, z * cos - x * sin + s.z - cz], 1)


def whole(meshes: Mapping[str, Mesh]) -> Mesh:
    """One mesh with a colour a face, for the renderer."""
    return joined(*[Mesh(m.vertices, m.faces, face_colours=face_centre_colours(m)) for m in meshes.values()])


def save_glb(meshes: Mapping[str, Mesh], path: str | Path) -> None:
    """A scene of named nodes, each with its own mesh; colours a face become vertex colours."""
    import trimesh

    scene = trimesh.Scene()
    for name, mesh in meshes.items():
        scene.add_geometry(mesh.to_trimesh(), node_name=name, geom_name=name)
    atomic_write_bytes(path, bytes(scene.export(file_type="glb")))


def save_room(room: FurnishedRoom, path: str | Path, more: Mapping[str, Any]) -> None:
    """The room as JSON, atomically: what `rl3d layout score` reads."""
    tree = {
        "room_type": room.task.room_type,
        "room": room.task.room.to_json(),
        "furniture": [
            {
                "name": s.name,
                "x": round(s.x, 4),
                "z": round(s.z, 4),
                "turn": 90 * s.heading,
                "size": [round(v, 4) for v in s.piece.size],
                "required": s.piece.required,
                "model": None if s.model is None else s.model.path.name,
            }
            for s in room.standing
        ],
        "missing": list(room.missing),
        **more,
    }
    write_json(path, tree)


def load_room(path: str | Path) -> FurnishedRoom:
    """Read what `save_room` wrote, or what somebody wrote like it; models are not loaded.

    Raises:
        InputError: no such file, no JSON, or entries that are missing or unusable.
    """
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}; give the .json beside a generated .glb") from error
    if (
        not isinstance(tree, dict)
        or not isinstance(tree.get("furniture"), list)
        or not isinstance(tree.get("room"), dict)
    ):
        raise InputError(f"{path} is no room: it needs room_type, room and furniture")
    standing = []
    for number, row in enumerate(tree["furniture"]):
        try:
            kind = kind_index(str(row["name"]))
            width, depth, height = (float(v) for v in row["size"])
            x, z, turn = float(row["x"]), float(row["z"]), int(row["turn"])
            if turn % 90 or not all(map(math.isfinite, (x, z))) or not min(width, depth) > 0 or not height >= 0:
                raise ValueError("turn must be a multiple of 90, x and z finite, sizes positive")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}, piece {number}: needs name, x, z, turn and size (width, depth, height): {error}"
            ) from error
        size: Size = (width, depth, height)
        standing.append(Standing(Piece(kind, size, bool(row.get("required", False))), x, z, turn // 90 % 4))
    missing = tuple(str(name) for name in tree.get("missing", []))
    task = Task(
        room_type(str(tree.get("room_type", ""))), Room.from_json(tree["room"]), tuple(s.piece for s in standing)
    )
    return FurnishedRoom(task, tuple(standing), missing)
