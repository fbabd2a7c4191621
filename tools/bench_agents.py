"""Benchmark of the learners: rl3d's PPO and TD3 beside those of stable-baselines3 and sb3-contrib, at equal steps.

    python tools/bench_agents.py runs/bench_agents
    python tools/bench_agents.py runs/bench_agents --page docs/benchmarks/agents.md

Both sides get the same settings, networks and environment steps, and are judged in the same unseen episodes, after the
last step of training. Each run is kept in the folder when it is done; a second call makes what is missing. Times are
CPU seconds of one thread. Needs the extras `agents` and `test`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from bench_tables import cluster_bootstrap
from classic_control import CartPole, Pendulum
from numpy.typing import NDArray
from torch import Tensor

from rl3d.agents import PPO, CategoricalPolicy, GaussianPolicy, PPOOptions, Step
from rl3d.agents.gym import SceneLayoutEnv, SceneLayoutVectorEnv
from rl3d.agents.layout.env import PLACES, SceneLayout
from rl3d.agents.layout.policy import LayoutPolicy
from rl3d.agents.layout.tasks import Tasks, sample_tasks
from rl3d.agents.td3 import Replay, TD3Options, explore, td3_state, td3_update
from rl3d.files import atomic_write_text, write_json

EPISODES = 50  # unseen ones that judge a run
UNSEEN = 10_000  # the first of their seeds; training has the seeds 0, 1, ...
ROOM = "bedroom"
Returns = list[float]
Act = Callable[[NDArray], Any]  # an observation -> an action


@dataclass(frozen=True)
class OnPolicy:
    """Attributes:
    envs: side by side. hidden: of the two layers of actor and critic, on both sides.
    """

    envs: int
    options: PPOOptions
    hidden: int = 64

    @property
    def steps(self) -> int:
        return self.envs * self.options.steps * self.options.updates

    def theirs(self) -> dict[str, Any]:
        """The same for stable-baselines3, whose value loss lacks the factor 1/2 of `rl.value_loss`."""
        o = self.options
        assert o.entropy == 0  # theirs stays, ours falls to 0
        return {
            "learning_rate": (lambda left: left * o.rate) if o.schedule == "linear" else o.rate,
            "n_steps": o.steps,
            "batch_size": self.envs * o.steps // o.minibatches,
            "n_epochs": o.epochs,
            "gamma": o.gamma,
            "gae_lambda": o.lam,
            "clip_range": o.clip,
            "clip_range_vf": o.value_clip,
            "ent_coef": 0.0,
            "vf_coef": 0.5 * o.value_weight,
            "max_grad_norm": o.gradient,
            "target_kl": o.target_kl,
            "policy_kwargs": {"net_arch": [self.hidden, self.hidden]},
        }


@dataclass(frozen=True)
class OffPolicy:
    """Attributes:
    steps: of one environment. begin: steps of uniform actions before the first update. noise: std, actions in [-1, 1].
    """

    steps: int
    begin: int
    options: TD3Options
    batch: int = 256
    noise: float = 0.1
    hidden: int = 128


# Near those of rl-baselines3-zoo, half of its CartPole steps, Pendulum without gSDE. value_weight 1: SB3's vf_coef 0.5.
CARTPOLE = OnPolicy(
    8,
    PPOOptions(
        steps=32,
        epochs=20,
        minibatches=1,
        rate=1e-3,
        updates=196,
        gamma=0.98,
        lam=0.8,
        value_weight=1.0,
        target_kl=None,
    ),
)
PENDULUM = OnPolicy(
    16,
    PPOOptions(
        steps=256,
        epochs=10,
        minibatches=16,
        rate=1e-3,
        schedule="constant",
        updates=24,
        gamma=0.9,
        value_weight=1.0,
        target_kl=None,
    ),
)
SWING = OffPolicy(10_000, 1_000, TD3Options(gamma=0.98))
LAYOUT = OnPolicy(
    8, PPOOptions(steps=32, minibatches=4, rate=1e-3, updates=12, gamma=1.0, value_weight=1.0, target_kl=None)
)


def episodes(name: str, act: Act, count: int) -> Returns:
    """Returns of unseen episodes of gymnasium's own environment."""
    env, found = gymnasium.make(name), []
    for i in range(count):
        seen, _ = env.reset(seed=UNSEEN + i)
        total, over = 0.0, False
        while not over:
            seen, reward, terminated, truncated, _ = env.step(act(seen))
            total, over = total + float(reward), terminated or truncated
        found.append(total)
    return found


def ppo_ours(name: str, run: OnPolicy, seed: int, count: int) -> tuple[Returns, float]:
    """(returns of unseen episodes, CPU seconds of the training)."""
    torch.manual_seed(seed)
    env = CartPole(run.envs) if name == "CartPole-v1" else Pendulum(run.envs)
    fresh = CategoricalPolicy(4, 2, run.hidden) if name == "CartPole-v1" else GaussianPolicy(3, 1, run.hidden)
    learner = PPO(env, fresh, run.options, seed)
    began = time.process_time()
    for _ in range(run.options.updates):
        learner.update()
    seconds = time.process_time() - began

    def act(seen: NDArray) -> Any:
        with torch.no_grad():
            action = fresh.distribution({"state": torch.from_numpy(seen)[None]}).mode()[0]
        return int(action) if name == "CartPole-v1" else action.numpy()

    return episodes(name, act, count), seconds


def ppo_theirs(name: str, run: OnPolicy, seed: int, count: int) -> tuple[Returns, float]:
    from stable_baselines3 import PPO as PPO3
    from stable_baselines3.common.env_util import make_vec_env

    model: Any = PPO3("MlpPolicy", make_vec_env(name, run.envs, seed), seed=seed, device="cpu", **run.theirs())
    seconds = learned(model, run.steps)
    return episodes(name, lambda seen: model.predict(seen, deterministic=True)[0], count), seconds


def learned(model: Any, steps: int) -> float:
    """CPU seconds of the training."""
    began = time.process_time()
    model.learn(steps)
    assert model.num_timesteps == steps
    return time.process_time() - began


def td3_ours(name: str, run: OffPolicy, seed: int, count: int) -> tuple[Returns, float]:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    env, state, replay = Pendulum(1), td3_state(3, 1, run.options, run.hidden), Replay(run.steps)
    seen = env.reset(seed=seed)["state"]
    began = time.process_time()
    for i in range(run.steps):
        uniform = 2 * torch.rand(1, 1, generator=generator) - 1
        action = uniform if i < run.begin else explore(state, seen, run.noise, generator)
        step = env.step(2 * action)
        replay.push(seen, action, step.reward, step.final["state"], step.terminated)
        seen = step.observation["state"]
        if i >= run.begin:
            td3_update(state, replay.sample(run.batch, generator), run.options, generator)
    seconds = time.process_time() - began

    def act(seen: NDArray) -> NDArray:
        with torch.no_grad():
            return 2 * state.actor(torch.from_numpy(seen)[None])[0].numpy()

    return episodes(name, act, count), seconds


def td3_theirs(name: str, run: OffPolicy, seed: int, count: int) -> tuple[Returns, float]:
    from stable_baselines3 import TD3
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise

    o = run.options
    assert o.actor_rate == o.critic_rate and o.critics == 2
    model: Any = TD3(
        "MlpPolicy",
        make_vec_env(name, 1, seed),
        learning_rate=o.actor_rate,
        buffer_size=run.steps,
        learning_starts=run.begin,
        batch_size=run.batch,
        tau=o.tau,
        gamma=o.gamma,
        action_noise=NormalActionNoise(np.zeros(1), np.full(1, run.noise)),
        policy_delay=o.delay,
        target_policy_noise=o.smooth,
        target_noise_clip=o.limit,
        policy_kwargs={"net_arch": [run.hidden, run.hidden]},
        seed=seed,
        device="cpu",
    )
    seconds = learned(model, run.steps)
    return episodes(name, lambda seen: model.predict(seen, deterministic=True)[0], count), seconds


class Flat:
    """Room layout as the gymnasium adapter shows it, for rl3d's PPO: plan and piece in one vector, masked places."""

    def __init__(self, count: int, tasks: Tasks) -> None:
        self.count = count
        self.vector = SceneLayoutVectorEnv(count, tasks=tasks)

    def _seen(self, seen: Mapping[str, NDArray]) -> dict[str, Tensor]:
        both = np.concatenate([seen["piece"], seen["plan"].reshape(self.count, -1)], 1)
        return {"state": torch.from_numpy(both), "mask": torch.from_numpy(self.vector.action_masks())}

    def reset(self, mask: Tensor | None = None, seed: int | None = None) -> dict[str, Tensor]:
        assert mask is None
        return self._seen(self.vector.reset(seed=seed)[0])

    def step(self, action: Tensor) -> Step:
        seen, reward, over, cut, _ = self.vector.step(action.numpy())
        after = self._seen(seen)  # nothing is cut, so nobody asks for the last look
        return Step(after, torch.from_numpy(reward).float(), torch.from_numpy(over), torch.from_numpy(cut), after, {})


def training_rooms() -> Tasks:
    return sample_tasks(512, 7, ROOM)


def unseen_rooms() -> Tasks:
    return sample_tasks(512, UNSEEN, ROOM)


def first_episodes(env: Any, begin: Any, act: Callable[[Any], tuple[Any, Tensor, Tensor]]) -> Returns:
    """Returns of each row's first episode; `act` takes what is seen to (what is seen next, reward, done)."""
    total, still = torch.zeros(env.count, dtype=torch.float64), torch.ones(env.count, dtype=torch.bool)
    seen = begin
    while bool(still.any()):
        seen, reward, done = act(seen)
        total += torch.where(still, reward.double(), 0.0)
        still &= ~done
    return total.tolist()


def drawn_rooms(policy: Any, judge: Any) -> Returns:
    """Returns of one unseen room a row, by drawn actions."""
    generator = torch.Generator().manual_seed(UNSEEN)

    def act(seen: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        step = judge.step(policy.act(seen, judge, generator).action)
        return step.observation, step.reward, step.done

    return first_episodes(judge, judge.reset(seed=UNSEEN), act)


def layout_ours(run: OnPolicy, seed: int, count: int) -> tuple[Returns, float]:
    torch.manual_seed(seed)
    env = Flat(run.envs, training_rooms())
    size = env.reset()["state"].shape[1]
    policy = CategoricalPolicy(size, PLACES + 1, run.hidden)
    learner = PPO(env, policy, run.options, seed)  # type: ignore[arg-type]
    began = time.process_time()
    for _ in range(run.options.updates):
        learner.update()
    seconds = time.process_time() - began
    return drawn_rooms(policy, Flat(count, unseen_rooms())), seconds


def layout_theirs(run: OnPolicy, seed: int, count: int) -> tuple[Returns, float]:
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    tasks = training_rooms()
    envs = DummyVecEnv([lambda: SceneLayoutEnv(tasks=tasks) for _ in range(run.envs)])
    model: Any = MaskablePPO("MultiInputPolicy", envs, seed=seed, device="cpu", **run.theirs())
    seconds = learned(model, run.steps)
    judge = Flat(count, unseen_rooms())
    torch.manual_seed(UNSEEN)

    def act(seen: dict[str, NDArray]) -> tuple[dict[str, NDArray], Tensor, Tensor]:
        action, _ = model.predict(seen, action_masks=judge.vector.action_masks())
        following, reward, over, _, _ = judge.vector.step(action)
        return following, torch.from_numpy(reward), torch.from_numpy(over)

    return first_episodes(judge, judge.vector.reset(seed=UNSEEN)[0], act), seconds


def layout_proposals(run: OnPolicy, seed: int, count: int) -> tuple[Returns, float]:
    """The layout policy itself, which also picks the piece, and looks at proposed places."""
    torch.manual_seed(seed)
    policy = LayoutPolicy()
    learner = PPO(SceneLayout(run.envs, training_rooms()), policy, run.options, seed)
    began = time.process_time()
    for _ in range(run.options.updates):
        learner.update()
    seconds = time.process_time() - began
    return drawn_rooms(policy, SceneLayout(count, unseen_rooms())), seconds


@dataclass(frozen=True)
class Cell:
    """One learner on one task. train: (seed, unseen episodes) -> (their returns, CPU seconds of the training)."""

    key: str
    task: str
    learner: str
    seeds: int
    steps: int
    train: Callable[[int, int], tuple[Returns, float]]


def cells(
    cartpole: OnPolicy = CARTPOLE, pendulum: OnPolicy = PENDULUM, swing: OffPolicy = SWING, layout: OnPolicy = LAYOUT
) -> list[Cell]:
    """All of the table; rl3d's row stands before the one it is compared with."""
    cart, swung = "CartPole-v1", "Pendulum-v1"
    rooms = f"{ROOM}s, places of the gymnasium adapter"
    return [
        Cell("cartpole-ours", cart, "rl3d PPO", 5, cartpole.steps, lambda s, n: ppo_ours(cart, cartpole, s, n)),
        Cell("cartpole-sb3", cart, "SB3 PPO", 5, cartpole.steps, lambda s, n: ppo_theirs(cart, cartpole, s, n)),
        Cell("pendulum-ours", swung, "rl3d PPO", 3, pendulum.steps, lambda s, n: ppo_ours(swung, pendulum, s, n)),
        Cell("pendulum-sb3", swung, "SB3 PPO", 3, pendulum.steps, lambda s, n: ppo_theirs(swung, pendulum, s, n)),
        Cell("td3-ours", swung, "rl3d TD3", 3, swing.steps, lambda s, n: td3_ours(swung, swing, s, n)),
        Cell("td3-sb3", swung, "SB3 TD3", 3, swing.steps, lambda s, n: td3_theirs(swung, swing, s, n)),
        Cell("layout-ours", rooms, "rl3d PPO", 3, layout.steps, lambda s, n: layout_ours(layout, s, n)),
        Cell("layout-sb3", rooms, "sb3-contrib MaskablePPO", 3, layout.steps, lambda s, n: layout_theirs(layout, s, n)),
        Cell(
            "layout-proposals",
            f"{ROOM}s, pieces and proposed places",
            "rl3d PPO",
            3,
            layout.steps,
            lambda s, n: layout_proposals(layout, s, n),
        ),
    ]


PAIRS = (
    ("cartpole-ours", "cartpole-sb3"),
    ("pendulum-ours", "pendulum-sb3"),
    ("td3-ours", "td3-sb3"),
    ("layout-ours", "layout-sb3"),
)


def difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean of ours less theirs, and its 95 % interval when the seeds of both sides are drawn again."""
    random = np.random.default_rng(0)
    a, b = (np.array([np.mean(run) for run in side]) for side in (ours, theirs))
    drawn = [side[random.integers(len(side), size=(10_000, len(side)))].mean(1) for side in (a, b)]
    low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
    return float(a.mean() - b.mean()), float(low), float(high)


def page(results: Mapping[str, Sequence[Mapping[str, Any]]], every: Sequence[Cell]) -> str:
    """The benchmark's page, Markdown."""
    done = [(cell, results[cell.key]) for cell in every if results.get(cell.key)]
    digits = {cell.key: 3 if cell.key.startswith("layout") else 1 for cell in every}
    lines = [
        "# Benchmark: the learners",
        "",
        "Written by `tools/bench_agents.py`; do not edit. Equal settings, networks and environment steps on both "
        "sides; means over unseen episodes after the last step of training, with 95 % intervals of a bootstrap over "
        "seeds (with 3 seeds, hardly more than their range). CartPole and Pendulum are judged by the likeliest action, "
        "in gymnasium's own environments; there rl3d trains on batched torch copies of them, stable-baselines3 on "
        "gymnasium's. Rooms are judged by drawn actions; the return is the finished room's score less the empty one's. "
        "CPU time is that of training, one thread, on a machine that was busy with other work, so only rough.",
        "",
        "| task | learner | seeds | steps | return | by seed | CPU ms a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell, runs in done:
        d = digits[cell.key]
        found = cluster_bootstrap([run["returns"] for run in runs])
        assert found is not None
        by_seed = ", ".join(f"{np.mean(run['returns']):.{d}f}" for run in runs)
        cost = 1000 * np.mean([run["cpu_seconds"] / run["steps"] for run in runs])
        mean = f"{found[0]:.{d}f}" + (f" [{found[1]:.{d}f}, {found[2]:.{d}f}]" if len(runs) > 1 else "")
        lines.append(
            f"| {cell.task} | {cell.learner} | {len(runs)} | {runs[0]['steps']:,} | {mean} | {by_seed} | {cost:.2f} |"
        )
    lines += ["", "| | difference of the return | CPU time, theirs / ours |", "|---|---|---|"]
    by_key = {cell.key: (cell, runs) for cell, runs in done}
    for first, second in PAIRS:
        if first in by_key and second in by_key:
            (ours, a), (theirs, b) = by_key[first], by_key[second]
            m, low, high = difference([run["returns"] for run in a], [run["returns"] for run in b])
            d = digits[first]
            faster = np.mean([run["cpu_seconds"] for run in b]) / np.mean([run["cpu_seconds"] for run in a])
            name = f"{ours.task}: {ours.learner} less {theirs.learner}"
            interval = f" [{low:+.{d}f}, {high:+.{d}f}]" if min(len(a), len(b)) > 1 else ""
            lines.append(f"| {name} | {m:+.{d}f}{interval} | {faster:.1f} |")
    packages = done[0][1][0]["packages"]
    lines += [
        "",
        f"Each run is judged by {len(done[0][1][0]['returns'])} episodes. "
        + ", ".join(f"{name} {version}" for name, version in packages.items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "gymnasium", "stable-baselines3", "sb3-contrib")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", help="rows to make now (default: all)")
    parser.add_argument("--seeds", type=int, help="at most so many a row")
    parser.add_argument("--page", type=Path, help="write the page")
    args = parser.parse_args()
    every = cells()
    results: dict[str, list[dict[str, Any]]] = {}
    for cell in every:
        for seed in range(cell.seeds):
            path = args.folder / f"{cell.key}-{seed}.json"
            wanted = (args.only is None or cell.key in args.only) and (args.seeds is None or seed < args.seeds)
            if wanted and not path.is_file():
                returns, seconds = cell.train(seed, EPISODES)
                made = {"returns": returns, "cpu_seconds": seconds, "steps": cell.steps, "packages": versions()}
                write_json(path, made)
                print(f"{cell.key} {seed}: {np.mean(returns):.3f} in {seconds:.0f} CPU s", flush=True)
            if path.is_file():
                results.setdefault(cell.key, []).append(json.loads(path.read_text(encoding="utf-8")))
    if args.page is not None:
        atomic_write_text(args.page, page(results, every))


if __name__ == "__main__":
    main()
