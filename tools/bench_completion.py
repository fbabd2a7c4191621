"""Benchmark of point-cloud completion on unseen shapes: autoencoder, latent search, the agent, and its selector.

    python tools/bench_completion.py DATA runs/bench_completion
    python tools/bench_completion.py DATA runs/bench_completion --page docs/benchmarks/completion.md

DATA is the folder of captioned meshes that the models were trained on; the val split alone is read, nothing is tuned on
it. Each task is kept in the folder when it is done; a second call makes what is missing. Times are CPU seconds of one
thread. Lengths are in units of the shape's longest side (of a sphere of radius 0.6 around it where that is smaller).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from completion_page import page
from torch import Tensor
from train_completion import meshes_of

from rl3d.agents.completion.agent import ShiftAgent, best_of, hill_climb
from rl3d.agents.completion.clouds import (
    CORNERS,
    accuracy,
    ball_crop,
    distances,
    resampled,
    surface_points,
    turned,
    view_crop,
)
from rl3d.agents.completion.complete import SEEN, CompletionOptions, Models, complete, joined, load_models
from rl3d.agents.completion.objective import Parts, parts_of, total
from rl3d.agents.completion.picture import NEW, panel, save_grid
from rl3d.agents.completion.select import NEAR, select
from rl3d.agents.completion.views import random_looks
from rl3d.data.asset_set import load_asset_set
from rl3d.files import atomic_write_text, write_json
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.point_cloud import PointCloud

TRUTH, INPUT = 8192, 2048
VIEWS = (0, 3, 5, 6)  # every other corner of the cube
SEEN_IN, GREY = (52, 84, 122), (110, 110, 110)


@dataclass(frozen=True)
class Task:
    """Cases of one kind: `part` makes inputs [S, INPUT, 3] of wholes [S, TRUTH, 3] for one of `rounds`."""

    key: str
    name: str
    rounds: int
    part: Callable[[Tensor, list[Mesh], int, torch.Generator], Tensor]


def _viewed(share: float) -> Callable[[Tensor, list[Mesh], int, torch.Generator], Tensor]:
    def part(whole: Tensor, meshes: list[Mesh], k: int, generator: torch.Generator) -> Tensor:
        return resampled(whole, view_crop(whole, CORNERS[VIEWS[k]].expand(len(whole), 3), share), INPUT, generator)

    return part


def _balled(share: float) -> Callable[[Tensor, list[Mesh], int, torch.Generator], Tensor]:
    def part(whole: Tensor, meshes: list[Mesh], k: int, generator: torch.Generator) -> Tensor:
        centre = torch.randint(whole.shape[1], (len(whole),), generator=generator)
        return resampled(whole, ball_crop(whole, centre, share), INPUT, generator)

    return part


def _looked(whole: Tensor, meshes: list[Mesh], k: int, generator: torch.Generator) -> Tensor:
    return torch.cat([random_looks(mesh, 1, INPUT, generator) for mesh in meshes])


TASKS = [
    *(Task(f"view{p}", f"view crop, {p} % gone", len(VIEWS), _viewed(p / 100)) for p in (25, 50, 75)),
    *(Task(f"ball{p}", f"ball crop, {p} % gone", 1, _balled(p / 100)) for p in (20, 30, 40, 50, 60, 70)),
    Task("look", "one depth view", 2, _looked),
]


def measured(cloud: Tensor, whole: Tensor) -> dict[str, list[float]]:
    return {k: [round(v, 6) for v in values.tolist()] for k, values in accuracy(cloud, whole).items()}


def latents(
    models: Models, td3: ShiftAgent | None, given: Tensor, generator: torch.Generator, long: bool
) -> tuple[Parts, dict[str, Tensor], dict[str, float]]:
    """The inputs' parts, each method's latents [S, G], and CPU milliseconds a shape. long: with the search of 64."""
    judge, calls = models.judge, models.agent.config.steps + 1
    began = time.process_time()
    parts = parts_of(judge.autoencoder, given[:, :SEEN])
    encode = time.process_time() - began
    makers: dict[str, Callable[[], Tensor]] = {
        "autoencoder": lambda: parts.start,
        "search": lambda: hill_climb(judge, parts, calls, generator),
        "generator": lambda: best_of(judge, parts, calls, generator),
        "agent": lambda: models.agent.path(judge, parts)[-1],
    }
    if td3 is not None:
        makers["td3"] = lambda: td3.path(judge, parts)[-1]
    if long:
        makers["search64"] = lambda: hill_climb(judge, parts, 64, generator)
    codes, spent = {}, {}
    for name, make in makers.items():
        began = time.process_time()
        codes[name] = make()
        spent[name] = 1000 * (time.process_time() - began + encode) / len(given)
    return parts, codes, spent


@torch.no_grad()
def run_task(task: Task, meshes: list[Mesh], models: Models, td3: ShiftAgent | None) -> dict[str, Any]:
    """All methods on the same inputs: per method and measure one value a case, cases of a shape `rounds` apart."""
    judge, calls = models.judge, models.agent.config.steps + 1
    out: dict[str, Any] = {"shapes": len(meshes), "rounds": task.rounds, "calls": calls, "methods": {}, "cpu_ms": {}}
    accept: list[float] = []
    better: list[float] = []
    for k in range(task.rounds):
        generator = torch.Generator().manual_seed(1000 + k)
        whole = surface_points(meshes, TRUTH, generator)
        given = task.part(whole, meshes, k, generator)
        parts, codes, spent = latents(models, td3, given, generator, long=task.key in ("view50", "look"))
        for name, ms in spent.items():
            out["cpu_ms"].setdefault(name, []).append(ms)
        clouds = {name: judge.decode(code) for name, code in codes.items()}
        kept = select(judge, parts, codes["agent"])
        clouds["selected"] = judge.decode(kept.code)
        clouds["input"] = given
        whole_clouds = {name: list(cloud) for name, cloud in clouds.items()}
        for name in ("autoencoder", "selected", "agent"):
            whole_clouds[f"{name}_joined"] = [_with_input(g, c) for g, c in zip(given, clouds[name])]
        for name, made in whole_clouds.items():
            for cloud, truth in zip(made, whole):
                for measure, values in measured(cloud[None], truth[None]).items():
                    out["methods"].setdefault(name, {}).setdefault(measure, []).extend(values)
        accept += kept.share.tolist()
        better += (total(judge.terms(parts, codes["agent"])) > total(judge.terms(parts, codes["search"]))).tolist()
    out["followed"] = accept
    out["objective_above_search"] = sum(better) / len(better)
    return out


def _with_input(given: Tensor, cloud: Tensor) -> Tensor:
    """[N, 3] the input's points and, where there are none, decoded ones: what `rl3d complete` writes."""
    return torch.cat([given, cloud[distances(cloud[None], given[None])[0] > NEAR]])


@torch.no_grad()
def run_unknown_frame(meshes: list[Mesh], models: Models) -> dict[str, Any]:
    """As `rl3d complete` does: half the points gone, the frame of what is left unknown and turned by a random angle."""
    out: dict[str, Any] = {"shapes": len(meshes), "rounds": 1, "methods": {}, "cpu_ms": {}}
    generator = torch.Generator().manual_seed(2000)
    whole = surface_points(meshes, TRUTH, generator)
    keep = view_crop(whole, CORNERS[torch.randint(8, (len(meshes),), generator=generator)], 0.5)
    given = resampled(whole, keep, INPUT, generator)
    followed = 0.0
    ways = {
        "autoencoder": CompletionOptions(by="autoencoder"),
        "agent": CompletionOptions(),
        "always": CompletionOptions(always=True),
    }
    for i in range(len(meshes)):
        heading = 2 * torch.pi * torch.rand(1, generator=generator)
        cloud, truth = turned(given[i : i + 1], heading)[0], turned(whole[i : i + 1], heading)
        for by, options in ways.items():
            began = time.process_time()
            found = complete(models, PointCloud(cloud), options)
            out["cpu_ms"].setdefault(by, []).append(1000 * (time.process_time() - began))
            full, _ = joined(PointCloud(cloud), found, 2 * INPUT, generator)
            for name, made in ((by, found.cloud), (f"{by}_joined", full.points)):
                for measure, values in measured(made[None], truth).items():
                    out["methods"].setdefault(name, {}).setdefault(measure, []).extend(values)
            followed += found.share if by == "agent" else 0.0
        for measure, values in measured(cloud[None], truth).items():
            out["methods"].setdefault("input", {}).setdefault(measure, []).extend(values)
    out["followed"] = followed / len(meshes)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", type=Path, help="default: the embedded ones")
    parser.add_argument("--td3", type=Path, help="an agent of the td3 stage, as one more row")
    parser.add_argument("--shapes", type=int, default=0, help="the first so many val shapes; 0: all")
    parser.add_argument("--page", type=Path, help="write the page and its picture from what is there")
    args = parser.parse_args()
    if args.page is not None:
        results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in args.out.glob("*.json")}
        atomic_write_text(args.page, page(results))
        return
    meshes = meshes_of(load_asset_set(args.data), "val")[: args.shapes or None]
    models = load_models(args.models)
    td3 = None if args.td3 is None else ShiftAgent.load(args.td3)
    args.out.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        path = args.out / f"{task.key}.json"
        if not path.is_file():
            write_json(path, run_task(task, meshes, models, td3))
            print(task.key, flush=True)
    if not (args.out / "floor.json").is_file():
        write_json(args.out / "floor.json", floor(meshes))
    draw(meshes, models, args.out / "completion.png")
    if not (args.out / "unknown.json").is_file():
        write_json(args.out / "unknown.json", run_unknown_frame(meshes[::3], models))


def floor(meshes: list[Mesh]) -> dict[str, Any]:
    """What 2,048 points drawn from the truth's own surface measure."""
    generator = torch.Generator().manual_seed(3000)
    return measured(surface_points(meshes, INPUT, generator), surface_points(meshes, TRUTH, generator))


@torch.no_grad()
def draw(meshes: list[Mesh], models: Models, path: Path) -> None:
    """Ten val shapes, evenly through the list, half gone: input, autoencoder, agent + selector, agent, truth."""
    chosen = [meshes[i * len(meshes) // 10] for i in range(10)]
    generator = torch.Generator().manual_seed(5)
    whole = surface_points(chosen, TRUTH, generator)
    keep = view_crop(whole, CORNERS[torch.arange(10) % 8], 0.5)
    given = resampled(whole, keep, INPUT, generator)
    judge = models.judge
    parts: Parts = parts_of(judge.autoencoder, given[:, :SEEN])
    end = models.agent.path(judge, parts)[-1]
    plain, kept, agent = (judge.decode(c) for c in (parts.start, select(judge, parts, end).code, end))
    low, high = torch.full((3,), -0.42), torch.full((3,), 0.42)
    rows = []
    for clouds, colour in (
        (given, SEEN_IN),
        (plain, GREY),
        (kept, NEW),
        (agent, NEW),
        (whole[:, :INPUT], SEEN_IN),
    ):
        paint = torch.tensor([colour], dtype=torch.float32)
        rows.append([panel(c, paint.expand(len(c), 3), 0.6, low, high, 150) for c in clouds])
    save_grid(rows, path)


if __name__ == "__main__":
    main()
