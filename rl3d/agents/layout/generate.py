"""From a room type and a size to a furnished room on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rl3d.agents.layout import picture, scene
from rl3d.agents.layout.baselines import Furnished, anneal, best_of, furnish, greedy, learned
from rl3d.agents.layout.env import SceneLayout
from rl3d.agents.layout.folder import Model, sizes_from
from rl3d.agents.layout.furniture import NAMES
from rl3d.agents.layout.grid import legal_places
from rl3d.agents.layout.inventory import AREAS, Piece, parse_inventory, room_type, sample_inventory
from rl3d.agents.layout.policy import LayoutPolicy
from rl3d.agents.layout.rooms import Room, sample_room
from rl3d.agents.layout.tasks import Task, Tasks, pack
from rl3d.assets import model_folder
from rl3d.errors import InputError
from rl3d.randomness import seed_for

POLISH = 0.003  # temperature, in units of the objective: hardly ever takes a worse room
By = Literal["policy", "greedy", "anneal"]


@dataclass(frozen=True)
class LayoutOptions:
    """Attributes:
    size: (width, depth) in metres; None: drawn. items: what to place, see `parse_inventory`; None: drawn.
    door: its width in metres; None: usual. l_shaped: cut a corner out, None: sometimes where no size is given.
    by: who furnishes. tries: rooms to choose from (policy), places a piece (greedy), or reward calls (anneal).
    polish: moves of a cold annealing after the policy, a reward call each; it can only improve the room.
    policy: a folder of `rl3d layout train`; None: the embedded one.
    """

    room: str = "bedroom"
    size: tuple[float, float] | None = None
    items: str | None = None
    door: float | None = None
    l_shaped: bool | None = None
    by: By = "policy"
    tries: int = 32
    polish: int = 0
    seed: int = 0
    policy: Path | None = None


def load_policy(folder: Path | None = None) -> LayoutPolicy:
    """The embedded policy, or one of `rl3d layout train`.

    Raises:
        AssetError: it is not there, or broken.
    """
    return LayoutPolicy.load(model_folder("layout") if folder is None else folder)


def make_task(
    options: LayoutOptions, models: Mapping[int, list[Model]] | None = None
) -> tuple[Task, list[Model | None]]:
    """The room and its inventory, and the mesh of each piece (None: built in).

    Raises:
        InputError: unknown room type or piece, a room that is too small for its door or for its inventory.
    """
    kind = room_type(options.room)
    random = np.random.default_rng(seed_for(options.seed, 0))
    chance = {True: 1.0, False: 0.0, None: 0.25 if options.size is None else 0.0}[options.l_shaped]
    room: Room = sample_room(random, options.size, area=AREAS[kind], door=options.door, l_shaped=chance)
    pieces = sample_inventory(kind, room.area, random) if options.items is None else parse_inventory(options.items)
    first = {p.kind: int(random.integers(1000)) for p in pieces}  # pieces of a kind share their mesh, as chairs do
    sized, used = [], []
    for piece in pieces:
        size, model = sizes_from(models or {}, piece.kind, piece.size, first[piece.kind])
        sized.append(Piece(piece.kind, size, piece.required))
        used.append(model)
    task = Task(kind, room, tuple(sized))
    _check_fits(task, pack([task]))
    return task, used


def _check_fits(task: Task, tasks: Tasks) -> None:
    """Every required piece has a place in the empty room."""
    blocked = ~tasks.floor | tasks.door_zone
    for k, piece in enumerate(task.pieces):
        if piece.required and not bool(legal_places(blocked, tasks.cells[:, k]).any()):
            width, depth, _ = piece.size
            raise InputError(
                f"the inventory cannot fit: a {NAMES[piece.kind]} of {width:.2f} x {depth:.2f} m has no place in a "
                f"room of {task.room.width:g} x {task.room.depth:g} m with its door free; take a larger room"
            )


def furnish_task(task: Task, options: LayoutOptions, policy: LayoutPolicy | None = None) -> tuple[Tasks, Furnished]:
    """Furnish one room.

    Args:
        policy: one that is loaded already; None: as the options say.

    Raises:
        InputError: a required piece found no place in any try.
    """
    tasks = pack([task])
    generator = torch.Generator().manual_seed(seed_for(options.seed, 1))
    if options.by == "policy":
        draw = learned(load_policy(options.policy) if policy is None else policy)
        many = SceneLayout(options.tries, tasks)
        found = furnish(many, torch.zeros(options.tries, dtype=torch.int64), draw, generator)
        best = int(found.score.argmax())
        rows = type(found.layouts)(**{name: value[best : best + 1] for name, value in vars(found.layouts).items()})
        found = Furnished(rows, found.score[best : best + 1], found.calls.sum(0, keepdim=True))
        if options.polish:
            one, index = SceneLayout(1, tasks), torch.zeros(1, dtype=torch.int64)
            found = anneal(one, index, options.polish, generator, start=found, hot=POLISH, cold=0.1 * POLISH)
    else:
        env, index = SceneLayout(1, tasks), torch.zeros(1, dtype=torch.int64)
        if options.by == "greedy":
            found = best_of(1, env, index, greedy(options.tries), generator, options.tries)
        else:
            found = anneal(env, index, options.tries, generator)
    lost = [NAMES[p.kind] for k, p in enumerate(task.pieces) if p.required and not bool(found.layouts.placed[0, k])]
    if lost:
        raise InputError(
            f"the inventory cannot fit: no place was left for {', '.join(lost)} in {options.tries} tries; take a "
            "larger room, fewer pieces, or more --tries"
        )
    return tasks, found


def generate(
    options: LayoutOptions, out: str | Path, models: Mapping[int, list[Model]] | None = None
) -> dict[str, Any]:
    """Write OUT (a GLB scene of named nodes), and beside it .json (the room, its report), .png (plan), -view.png.

    Returns:
        The report, as it is in the JSON under "report".

    Raises:
        InputError: see `make_task` and `furnish_task`; a file that cannot be written.
    """
    path = Path(out)
    began = time.perf_counter()
    task, used = make_task(options, models)
    tasks, found = furnish_task(task, options)
    seconds = time.perf_counter() - began
    room = scene.furnished_room(task, tasks, found.layouts, 0, used)
    numbers = {name: round(float(value[0]), 4) for name, value in scene.measures(tasks, found.layouts).items()}
    meshes = scene.parts(room)
    everything = scene.whole(meshes)
    built = sorted({s.name for s in room.standing if s.model is None})
    report = {
        **numbers,
        "by": options.by,
        "tries": options.tries,
        "polish": options.polish if options.by == "policy" else 0,
        "reward_calls": int(found.calls[0]),
        "seed": options.seed,
        "seconds": round(seconds, 3),
        "built_in": built if models else "all",
    }
    scene.save_glb(meshes, path)
    picture.plan(room, everything, path.with_suffix(".png"))
    picture.look_in(room, everything, path.with_name(f"{path.stem}-view.png"))
    scene.save_room(room, path.with_suffix(".json"), {"report": report})
    return report


def score_file(path: str | Path) -> dict[str, float]:
    """The numbers of a room file (.json, or the .glb beside which it lies).

    Raises:
        InputError: see `scene.load_room`.
    """
    path = Path(path)
    room = scene.load_room(path.with_suffix(".json") if path.suffix.lower() == ".glb" else path)
    tasks, layouts = scene.as_layouts(room)
    return {name: round(float(value[0]), 4) for name, value in scene.measures(tasks, layouts).items()}
