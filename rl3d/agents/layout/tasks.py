"""Rooms with their inventories as tensors: what an environment draws its episodes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from rl3d.agents.layout.furniture import KINDS
from rl3d.agents.layout.inventory import AREAS, ROOM_TYPES, SLOTS, Piece, room_type, sample_inventory
from rl3d.agents.layout.rooms import CELL, Room, sample_room
from rl3d.errors import InputError
from rl3d.randomness import seed_for

WINDOW_REACH = 0.4  # metres before a window that tall pieces should leave free
WINDOWS = 3


@dataclass(frozen=True)
class Task:
    """A room to furnish: its type, its shape, and the pieces."""

    room_type: str
    room: Room
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Tasks:
    """R tasks as tensors on one device. G cells of 10 cm a side, K slots for pieces.

    Attributes:
        room_type: [R] int64, index into ROOM_TYPES. size: [R, 2] width and depth, metres. area: [R].
        floor: [R, G, G] bool. door_zone: [R, G, G] bool, kept free. seed: [R, 2] int64, a cell inside the door zone.
        gaps: [R, 4, G, G] int16, cells of floor from each cell on in direction +z, +x, -z, -x, itself counted.
        door: [R, 5] x, z, one-hot wall would be redundant: x, z, inward (x, z), width.
        windows: [R, 3, 6] x, z, inward (x, z), width, 1 where there is one.
        window_boxes: [R, 3, 4] int64 cells before each window.
        kind: [R, K] int64, -1 in empty slots. metres: [R, K, 3]. cells: [R, K, 2] int64 width and depth.
        required: [R, K] bool.
    """

    room_type: Tensor
    size: Tensor
    area: Tensor
    floor: Tensor
    door_zone: Tensor
    seed: Tensor
    gaps: Tensor
    door: Tensor
    windows: Tensor
    window_boxes: Tensor
    kind: Tensor
    metres: Tensor
    cells: Tensor
    required: Tensor

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def device(self) -> torch.device:
        return self.kind.device

    def to(self, device: torch.device | str) -> Tasks:
        return Tasks(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def cells_of(size: tuple[float, float, float]) -> tuple[int, int]:
    """(width, depth) in cells, rounded up."""
    return int(np.ceil(size[0] / CELL - 1e-6)), int(np.ceil(size[1] / CELL - 1e-6))


def sample_task(seed: int, index: int, room: str | None = None) -> Task:
    """The task `index` of a seed: of one room type, or of all in turn."""
    random = np.random.default_rng(seed_for(seed, index))
    kind = ROOM_TYPES[index % len(ROOM_TYPES)] if room is None else room_type(room)
    shape = sample_room(random, area=AREAS[kind])
    return Task(kind, shape, tuple(sample_inventory(kind, shape.area, random)))


def sample_tasks(count: int, seed: int, room: str | None = None) -> Tasks:
    """`count` tasks as tensors; the same seed gives the same tasks."""
    return pack([sample_task(seed, i, room) for i in range(count)])


def pack(tasks: Sequence[Task]) -> Tasks:
    """Tasks as tensors on the CPU.

    Raises:
        InputError: no task, a task without pieces or with more than SLOTS, or a piece that is larger than its room.
    """
    if not tasks:
        raise InputError("there is no room to furnish")
    rows = [_row(task) for task in tasks]
    return Tasks(**{name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]})


def _row(task: Task) -> dict[str, np.ndarray]:
    room, pieces = task.room, task.pieces
    if not 1 <= len(pieces) <= SLOTS:
        raise InputError(f"a room takes 1 to {SLOTS} pieces, got {len(pieces)}")
    solid = sum(p.size[0] * p.size[1] for p in pieces if not KINDS[p.kind].flat)
    if solid > 0.9 * room.area:
        raise InputError(
            f"the inventory cannot fit: its pieces cover {solid:.1f} of the room's {room.area:.1f} square metres; take "
            "a larger room or fewer pieces"
        )
    floor = room.floor()
    zone = np.zeros_like(floor)
    top, left, bottom, right = room.zone(room.door, room.door.width)
    zone[top:bottom, left:right] = True
    # Runs of floor along each axis, counted from their far end: south, east, north, west.
    gaps = np.stack([_runs(floor[::-1])[::-1], _runs(floor.T[::-1])[::-1].T, _runs(floor), _runs(floor.T).T])
    inward = ((0.0, -1.0), (-1.0, 0.0), (0.0, 1.0), (1.0, 0.0))
    windows, boxes = np.zeros((WINDOWS, 6), np.float32), np.zeros((WINDOWS, 4), np.int64)
    for i, window in enumerate(room.windows):
        windows[i] = (*room.opening_centre(window), *inward[window.wall], window.width, 1.0)
        boxes[i] = room.zone(window, WINDOW_REACH)
    kind = np.full(SLOTS, -1, np.int64)
    metres, cells = np.zeros((SLOTS, 3), np.float32), np.ones((SLOTS, 2), np.int64)
    required = np.zeros(SLOTS, bool)
    for i, piece in enumerate(pieces):
        kind[i], metres[i], cells[i], required[i] = piece.kind, piece.size, cells_of(piece.size), piece.required
    door = (*room.opening_centre(room.door), *inward[room.door.wall], room.door.width)
    return {
        "room_type": np.int64(ROOM_TYPES.index(task.room_type)),  # type: ignore[dict-item]
        "size": np.array([room.width, room.depth], np.float32),
        "area": np.float32(room.area),  # type: ignore[dict-item]
        "floor": floor,
        "door_zone": zone,
        "seed": np.array([(top + bottom) // 2, (left + right) // 2], np.int64),
        "gaps": gaps,
        "door": np.array(door, np.float32),
        "windows": windows,
        "window_boxes": boxes,
        "kind": kind,
        "metres": metres,
        "cells": cells,
        "required": required,
    }


def _runs(floor: np.ndarray) -> np.ndarray:
    """int16: how many cells of floor in a row end at each cell, down the rows."""
    out = np.zeros(floor.shape, np.int16)
    run = np.zeros(floor.shape[1], np.int16)
    for row, cells in enumerate(floor):
        run = np.where(cells, run + 1, 0).astype(np.int16)
        out[row] = run
    return out
