r"""Benchmark of room layout: the policy beside random, greedy and annealed rooms at equal reward calls, unseen rooms.

    python tools/bench_layout.py runs/bench_layout --policy assets/layout --rlss runs/layout_rlss/policy --rooms 100
    python tools/bench_layout.py runs/bench_layout --policy assets/layout --rlss runs/layout_rlss/policy \
        --picture docs/images/layout_rows.png --page docs/benchmarks/layout.md

Each row is kept in the folder when it is done; a second call makes what is missing. Times are CPU seconds of one
thread. The rooms are drawn from a seed that training refuses; nothing is tuned on them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_layout_page import page
from PIL import Image

from rl3d.agents.layout.baselines import Chooser, Furnished, anneal, best_of, greedy, learned, random_masked
from rl3d.agents.layout.env import SceneLayout
from rl3d.agents.layout.generate import POLISH, LayoutOptions, furnish_task, make_task
from rl3d.agents.layout.inventory import ROOM_TYPES
from rl3d.agents.layout.objective import poses
from rl3d.agents.layout.picture import plan
from rl3d.agents.layout.policy import LayoutPolicy
from rl3d.agents.layout.scene import furnished_room, measures, parts, whole
from rl3d.agents.layout.tasks import Tasks, pack, sample_task, sample_tasks
from rl3d.agents.layout.train import TEST_SEED
from rl3d.agents.ppo import PPO, PPOOptions
from rl3d.files import atomic_write_text, write_json
from rl3d.preview import view_sheet

SPEEDS = (1, 16, 64, 256)


@dataclass(frozen=True)
class Row:
    """A way to furnish, and what it is called in the table."""

    key: str
    name: str
    make: Callable[[SceneLayout, torch.Tensor, torch.Generator], Furnished]
    most: int | None = None  # rooms of each type, where all would take too long


def rows(policy: LayoutPolicy, rlss: LayoutPolicy | None = None) -> list[Row]:
    """All of the table; those of one budget stand together. rlss: a policy of `rl3d layout train --where greedy`."""
    draw = learned(policy)
    searched = (
        [] if rlss is None else [Row(f"rlss-{n}", f"RLSS, {n} places a piece", rlss_of(rlss, n)) for n in (12, 64)]
    )
    return [
        Row("random-1", "random-masked, 1 room", lambda e, t, g: best_of(1, e, t, random_masked, g)),
        Row("policy-1", "policy, 1 room", lambda e, t, g: best_of(1, e, t, draw, g)),
        Row("policy-mode", "policy, likeliest choices", lambda e, t, g: best_of(1, e, t, learned(policy, True), g)),
        Row("policy-16", "policy, best of 16", lambda e, t, g: best_of(16, e, t, draw, g)),
        Row("random-64", "random-masked, best of 64", lambda e, t, g: best_of(64, e, t, random_masked, g)),
        Row("greedy-12", "greedy, 12 places a piece", lambda e, t, g: best_of(1, e, t, greedy(12), g, 12)),
        *searched[:1],
        Row("anneal-64", "annealing, 64 calls", lambda e, t, g: anneal(e, t, 64, g)),
        Row("policy-64", "policy, best of 64", lambda e, t, g: best_of(64, e, t, draw, g)),
        Row("polish-64", "policy, best of 16, 48 calls of polish", lambda e, t, g: polished(draw, 16, 48, e, t, g)),
        Row("polish-216", "policy, best of 16, 200 calls of polish", lambda e, t, g: polished(draw, 16, 200, e, t, g)),
        Row("greedy-64", "greedy, 64 places a piece", lambda e, t, g: best_of(1, e, t, greedy(64), g, 64)),
        *searched[1:],
        Row("anneal-384", "annealing, 384 calls", lambda e, t, g: anneal(e, t, 384, g)),
        Row("anneal-1200", "annealing, 1,200 calls", lambda e, t, g: anneal(e, t, 1200, g), most=10),
        Row("anneal-12000", "annealing, 12,000 calls", lambda e, t, g: anneal(e, t, 12_000, g), most=10),
    ]


def rlss_of(policy: LayoutPolicy, places: int) -> Callable[[SceneLayout, torch.Tensor, torch.Generator], Furnished]:
    """One room of a policy that picks the piece, at the best of `places` proposed places, a reward call each."""
    searching = copy.copy(policy)
    searching.proposals = places
    assert searching.where == "greedy"
    return lambda e, t, g: best_of(1, e, t, learned(searching), g, places)


def polished(
    draw: Chooser, tries: int, moves: int, env: SceneLayout, task: torch.Tensor, generator: torch.Generator
) -> Furnished:
    """What `rl3d layout generate` does."""
    start = best_of(tries, env, task, draw, generator)
    return anneal(env, task, moves, generator, start=start, hot=POLISH, cold=0.1 * POLISH)


def test_rooms(per_type: int) -> Tasks:
    """The unseen rooms, `per_type` of each type."""
    return pack([sample_task(TEST_SEED, i) for i in range(per_type * len(ROOM_TYPES))])


def run_row(row: Row, tasks: Tasks) -> dict[str, Any]:
    """All rooms with one way; a tenth of them a second time, for how much two rooms of one task differ."""
    env = SceneLayout(len(tasks), tasks)
    index = torch.arange(len(tasks))
    generator = torch.Generator().manual_seed(0)
    began = time.process_time()
    found = row.make(env, index, generator)
    seconds = time.process_time() - began
    few = index[: max(len(ROOM_TYPES), len(tasks) // 10)]
    again = row.make(SceneLayout(len(few), tasks), few, generator)
    first, second = (poses(f.layouts.place[few], tasks.metres[few], tasks.cells[few]) for f in (found, again))
    both = found.layouts.placed[few] & again.layouts.placed[few]
    elsewhere = (torch.hypot(first.x - second.x, first.z - second.z) > 0.5) | (first.heading != second.heading)
    differ = float((elsewhere & both).sum() / both.sum().clamp_min(1))
    numbers = {name: value.tolist() for name, value in measures(tasks, found.layouts).items()}
    return {
        "name": row.name,
        "calls": float(found.calls.double().mean()),
        "cpu_ms": 1000 * seconds / len(tasks),
        "diversity": differ,
        "rooms": len(tasks),
        "types": tasks.room_type.tolist(),
        "measures": numbers,
    }


def speed(policy: LayoutPolicy) -> list[dict[str, float]]:
    """CPU seconds of an environment step, of the policy's choice and of the update, by batch size."""
    tasks = sample_tasks(256, 3)
    out = []
    for n in SPEEDS:
        env = SceneLayout(n, tasks)
        learner = PPO(
            env, LayoutPolicy(policy.hidden, policy.proposals), PPOOptions(steps=16, minibatches=4, gamma=1.0)
        )
        learner.update()
        seen, generator = env.observe(), torch.Generator().manual_seed(0)
        steps = max(8, 256 // n)
        acting = stepping = 0.0
        for _ in range(steps):
            began = time.process_time()
            action = learner.policy.act(seen, env, generator).action
            acting += time.process_time() - began
            began = time.process_time()
            seen = env.step(action).observation
            stepping += time.process_time() - began
        learner.observation = seen
        rollout, _ = learner._collect()
        began = time.process_time()
        learner._learn(rollout)
        learning = (time.process_time() - began) / (16 * n)
        out.append({"n": n, "env": stepping / (steps * n), "policy": acting / (steps * n), "update": learning})
    return out


def wrapped_steps() -> dict[str, float]:
    """CPU seconds of a step of one room through the gymnasium adapter, with legal actions: one by one in gymnasium's
    SyncVectorEnv and stable-baselines3's DummyVecEnv of 8, and in the adapter's own batch of 256."""
    import gymnasium
    from stable_baselines3.common.vec_env import DummyVecEnv

    from rl3d.agents.gym import SceneLayoutEnv, SceneLayoutVectorEnv

    tasks, random = sample_tasks(256, 3), np.random.default_rng(0)
    singles = [lambda: SceneLayoutEnv(tasks=tasks) for _ in range(8)]

    def timed(step: Callable[[np.ndarray], Any], masks: Callable[[], Any], count: int, steps: int) -> float:
        spent = 0.0
        for k in range(steps + 1):
            actions = np.array([int(random.choice(np.flatnonzero(mask))) for mask in masks()])
            began = time.process_time()
            step(actions)
            spent += (time.process_time() - began) * (k > 0)  # the first loads kernels
        return spent / (count * steps)

    sync, dummy, batch = (
        gymnasium.vector.SyncVectorEnv(singles),
        DummyVecEnv(singles),
        SceneLayoutVectorEnv(256, None, tasks),
    )
    for env in (sync, dummy, batch):
        env.reset()
    return {
        "sync": timed(sync.step, lambda: [e.unwrapped.action_masks() for e in sync.envs], 8, 12),
        "dummy": timed(dummy.step, lambda: dummy.env_method("action_masks"), 8, 12),
        "batch": timed(batch.step, batch.action_masks, 256, 4),
    }


def room_times(policy: LayoutPolicy, seeds: int = 4) -> list[dict[str, float]]:
    """CPU milliseconds of one room as `rl3d layout generate` furnishes it (best of 32), `seeds` rooms of each type.

    The best of three passes; without loading the policy, and without writing files and pictures.
    """
    out = []
    for room in ROOM_TYPES:
        for seed in range(seeds):
            options = LayoutOptions(room=room, seed=seed)
            times = []
            for _ in range(3):
                began = time.process_time()
                furnish_task(make_task(options)[0], options, policy)
                times.append(1000 * (time.process_time() - began))
            out.append({"type": float(ROOM_TYPES.index(room)), "ms": min(times)})
    return out


def picture(every: list[Row], tasks: Tasks, out: Path) -> None:
    """The plans of the first unseen room of each type (columns), by four ways to furnish (rows)."""
    index, count = torch.arange(len(ROOM_TYPES)), len(ROOM_TYPES)
    by_key = {row.key: row for row in every}
    tiles, labels = [], []
    with tempfile.TemporaryDirectory() as folder:
        for key in ("random-64", "greedy-64", "anneal-384", "policy-64"):
            found = by_key[key].make(SceneLayout(count, tasks), index, torch.Generator().manual_seed(0))
            for k in range(count):
                room = furnished_room(sample_task(TEST_SEED, k), tasks, found.layouts, k)
                path = plan(room, whole(parts(room)), Path(folder) / "plan.png", size=220)
                tiles.append(torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255)
                labels.append(f"{by_key[key].name}: {float(found.score[k]):.3f}")
    view_sheet(tiles, out, columns=count, labels=labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--rooms", type=int, default=100, help="of each type")
    parser.add_argument("--only", nargs="*", help="rows to make now (default: all that are missing)")
    parser.add_argument("--rlss", type=Path, help="a policy of rl3d layout train --where greedy, for rows of its own")
    parser.add_argument("--picture", type=Path, help="write the plans of some rooms")
    parser.add_argument("--page", type=Path, help="write the page")
    args = parser.parse_args()
    policy = LayoutPolicy.load(args.policy)
    every = rows(policy, None if args.rlss is None else LayoutPolicy.load(args.rlss))
    for row in every:
        path = args.folder / f"{row.key}.json"
        if path.is_file() or (args.only is not None and row.key not in args.only):
            continue
        result = run_row(row, test_rooms(args.rooms if row.most is None else min(row.most, args.rooms)))
        write_json(path, result)
        print(row.name, f"score {np.mean(result['measures']['score']):.4f}", f"{result['cpu_ms']:.0f} ms", flush=True)
    for key, make in (
        ("speed", lambda: speed(policy)),
        ("wrapped", wrapped_steps),
        ("room", lambda: room_times(policy)),
    ):
        path = args.folder / f"{key}.json"
        if not path.is_file() and (args.only is None or key in args.only):
            write_json(path, make())
    if args.picture is not None:
        picture(every, test_rooms(1), args.picture)
    if args.page is not None:
        results: dict[str, Any] = {"order": [row.key for row in every]}
        for path in args.folder.glob("*.json"):
            results[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        shown = None if args.picture is None else os.path.relpath(args.picture, args.page.parent)
        atomic_write_text(args.page, page(results, shown))


if __name__ == "__main__":
    main()
