"""Benchmark of room layout: the policy beside random, greedy and annealed rooms at equal reward calls, on unseen rooms.

    python tools/bench_layout.py runs/bench_layout --policy runs/layout/policy --rooms 100
    python tools/bench_layout.py runs/bench_layout --policy runs/layout/policy --page docs/benchmarks/layout.md

Each row is kept in the folder when it is done; a second call makes what is missing. Times are CPU seconds of one
thread. The rooms are drawn from a seed that training refuses; nothing is tuned on them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_tables import cluster_bootstrap

from rl3d.agents.layout.baselines import Chooser, Furnished, anneal, best_of, greedy, learned, random_masked
from rl3d.agents.layout.env import SceneLayout
from rl3d.agents.layout.generate import POLISH
from rl3d.agents.layout.inventory import ROOM_TYPES
from rl3d.agents.layout.objective import poses
from rl3d.agents.layout.policy import LayoutPolicy
from rl3d.agents.layout.scene import measures
from rl3d.agents.layout.tasks import Tasks, pack, sample_task, sample_tasks
from rl3d.agents.layout.train import TEST_SEED
from rl3d.agents.ppo import PPO, PPOOptions
from rl3d.files import atomic_write_text, write_json

COLUMNS = (
    ("score", "score", 3),
    ("rules", "rules kept", 2),
    ("navigability", "navigable", 3),
    ("accessibility", "accessible", 2),
    ("placed", "placed", 3),
    ("objects", "pieces", 1),
    ("collisions", "collisions", 0),
    ("outside", "outside", 0),
    ("door", "in the door", 0),
)
SPEEDS = (1, 16, 64, 256)


@dataclass(frozen=True)
class Row:
    """A way to furnish, and what it is called in the table."""

    key: str
    name: str
    make: Callable[[SceneLayout, torch.Tensor, torch.Generator], Furnished]


def rows(policy: LayoutPolicy) -> list[Row]:
    """All of the table; those of one budget stand together."""
    draw = learned(policy)
    return [
        Row("random-1", "random-masked, 1 room", lambda e, t, g: best_of(1, e, t, random_masked, g)),
        Row("policy-1", "policy, 1 room", lambda e, t, g: best_of(1, e, t, draw, g)),
        Row("policy-mode", "policy, likeliest choices", lambda e, t, g: best_of(1, e, t, learned(policy, True), g)),
        Row("policy-16", "policy, best of 16", lambda e, t, g: best_of(16, e, t, draw, g)),
        Row("random-64", "random-masked, best of 64", lambda e, t, g: best_of(64, e, t, random_masked, g)),
        Row("greedy-12", "greedy, 12 places a piece", lambda e, t, g: best_of(1, e, t, greedy(12), g, 12)),
        Row("anneal-64", "annealing, 64 calls", lambda e, t, g: anneal(e, t, 64, g)),
        Row("policy-64", "policy, best of 64", lambda e, t, g: best_of(64, e, t, draw, g)),
        Row("polish-64", "policy, best of 16, 48 calls of polish", lambda e, t, g: polished(draw, 16, 48, e, t, g)),
        Row("polish-216", "policy, best of 16, 200 calls of polish", lambda e, t, g: polished(draw, 16, 200, e, t, g)),
        Row("greedy-64", "greedy, 64 places a piece", lambda e, t, g: best_of(1, e, t, greedy(64), g, 64)),
        Row("anneal-384", "annealing, 384 calls", lambda e, t, g: anneal(e, t, 384, g)),
    ]


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
    """All rooms with one way; a second time those of the first 60, for how much two rooms of one task differ."""
    env = SceneLayout(len(tasks), tasks)
    index = torch.arange(len(tasks))
    generator = torch.Generator().manual_seed(0)
    began = time.process_time()
    found = row.make(env, index, generator)
    seconds = time.process_time() - began
    few = index[: min(60, len(tasks))]
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


def gym_step() -> float:
    """CPU seconds of a step of one room in gymnasium's SyncVectorEnv of 8, with the legal action from the mask."""
    import gymnasium

    from rl3d.agents.gym import SceneLayoutEnv

    tasks = sample_tasks(256, 3)
    env = gymnasium.vector.SyncVectorEnv([lambda: SceneLayoutEnv(tasks=tasks) for _ in range(8)])
    env.reset(seed=0)
    random = np.random.default_rng(0)

    def legal() -> np.ndarray:
        return np.array([int(random.choice(np.flatnonzero(e.unwrapped.action_masks()))) for e in env.envs])

    env.step(legal())
    spent, steps = 0.0, 12
    for _ in range(steps):
        action = legal()
        began = time.process_time()
        env.step(action)
        spent += time.process_time() - began
    return spent / (8 * steps)


def cell(values: list[float], digits: int) -> str:
    found = cluster_bootstrap([[value] for value in values])
    assert found is not None
    mean, low, high = found
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def page(results: dict[str, Any]) -> str:
    """The benchmark's page, Markdown."""
    done = [results[key] for key in results["order"] if key in results]
    per_type = done[0]["rooms"] // len(ROOM_TYPES)
    lines = [
        "# Benchmark: room layout",
        "",
        f"{done[0]['rooms']} unseen rooms, {per_type} of each type ({', '.join(ROOM_TYPES)}), drawn from a seed that "
        "training refuses. Means with 95 % bootstrap intervals over rooms. A reward call is one look at the objective "
        "of one room in any state; the policy makes none while it furnishes, so N tries cost N. CPU time is that of "
        "one thread, all rooms in one batch. `score` is the objective itself; the other columns are measured from "
        "boxes in metres (rl3d.agents.layout.scene.measures). `different`: pieces that stand more than 0.5 m away or "
        "another way round in a second draw of the same room.",
        "",
        "| | reward calls | CPU ms a room | different | " + " | ".join(title for _, title, _ in COLUMNS) + " |",
        "|---|---|---|---|" + "---|" * len(COLUMNS),
    ]
    for row in done:
        cells = []
        for key, _, digits in COLUMNS:
            values = row["measures"][key]
            total = digits == 0 or key == "objects"
            if digits == 0:
                cells.append(f"{sum(values):.0f}")
            else:
                cells.append(f"{np.mean(values):.{digits}f}" if total else cell(values, digits))
        lines.append(
            f"| {row['name']} | {row['calls']:.0f} | {row['cpu_ms']:.0f} | {row['diversity']:.2f} | "
            + " | ".join(cells)
            + " |"
        )
    lines += ["", "Differences of the score, room by room (positive: the first is better):", ""]
    lines += ["| | reward calls | difference |", "|---|---|---|"]
    for first, second in (
        ("policy-64", "random-64"),
        ("policy-64", "greedy-12"),
        ("policy-64", "anneal-64"),
        ("polish-64", "policy-64"),
        ("polish-64", "anneal-64"),
        ("policy-64", "greedy-64"),
        ("polish-216", "anneal-384"),
        ("policy-64", "anneal-384"),
        ("policy-1", "anneal-64"),
    ):
        if first in results and second in results:
            a, b = results[first], results[second]
            apart = [x - y for x, y in zip(a["measures"]["score"], b["measures"]["score"])]
            lines.append(f"| {a['name']} less {b['name']} | {a['calls']:.0f} and {b['calls']:.0f} | {cell(apart, 4)} |")
    lines += ["", "Score by room type:", "", "| | " + " | ".join(ROOM_TYPES) + " |", "|---|" + "---|" * len(ROOM_TYPES)]
    for row in done:
        types, score = np.array(row["types"]), np.array(row["measures"]["score"])
        lines.append(
            f"| {row['name']} | " + " | ".join(f"{score[types == i].mean():.3f}" for i in range(len(ROOM_TYPES))) + " |"
        )
    if "speed" in results:
        lines += [
            "",
            "## Environment steps a second",
            "",
            "One thread, by CPU time; shares of one training step (PPO, 4 epochs).",
            "",
        ]
        lines += [
            "| rooms side by side | environment steps/s | with the policy | trained | environment | policy | update |",
            "|---|---|---|---|---|---|---|",
        ]
        for s in results["speed"]:
            whole = s["env"] + s["policy"] + s["update"]
            shares = " | ".join(f"{s[k] / whole:.0%}" for k in ("env", "policy", "update"))
            drawn = 1 / (s["env"] + s["policy"])
            lines.append(f"| {s['n']:.0f} | {1 / s['env']:.0f} | {drawn:.0f} | {1 / whole:.0f} | {shares} |")
        if "gym" in results:
            best = max(1 / s["env"] for s in results["speed"])
            lines += [
                "",
                f"The same rooms one by one in gymnasium's SyncVectorEnv of 8: {1 / results['gym']:.0f} environment "
                f"steps/s; the largest batch makes {best * results['gym']:.0f} times as many.",
            ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--rooms", type=int, default=100, help="of each type")
    parser.add_argument("--only", nargs="*", help="rows to make now (default: all that are missing)")
    parser.add_argument("--page", type=Path, help="write the page")
    args = parser.parse_args()
    policy = LayoutPolicy.load(args.policy)
    every = rows(policy)
    tasks: Tasks | None = None
    for row in every:
        path = args.folder / f"{row.key}.json"
        if path.is_file() or (args.only is not None and row.key not in args.only):
            continue
        tasks = tasks or test_rooms(args.rooms)
        result = run_row(row, tasks)
        write_json(path, result)
        print(row.name, f"score {np.mean(result['measures']['score']):.4f}", f"{result['cpu_ms']:.0f} ms", flush=True)
    for key, make in (("speed", lambda: speed(policy)), ("gym", gym_step)):
        path = args.folder / f"{key}.json"
        if not path.is_file() and (args.only is None or key in args.only):
            write_json(path, make())
    if args.page is not None:
        results: dict[str, Any] = {"order": [row.key for row in every]}
        for path in args.folder.glob("*.json"):
            results[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        atomic_write_text(args.page, page(results))


if __name__ == "__main__":
    main()
