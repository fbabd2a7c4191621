"""Training the layout policy: PPO on rooms of all types, in a run folder that can be gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

from rl3d.agents.layout.env import SceneLayout
from rl3d.agents.layout.policy import LayoutPolicy
from rl3d.agents.layout.tasks import sample_tasks
from rl3d.agents.ppo import PPO, PPOOptions
from rl3d.progress import Progress
from rl3d.runs import Run

TEST_SEED = 1_000_003  # of rooms that only tools/bench_layout.py sees


@dataclass(frozen=True)
class TrainOptions:
    """Attributes:
    rooms: different rooms to train on. envs: side by side. seed: of rooms, weights and draws; not TEST_SEED.
    hidden, proposals, where: of the policy. save_every: updates between checkpoints.
    """

    rooms: int = 1536
    envs: int = 64
    seed: int = 1
    hidden: int = 48
    proposals: int = 48
    where: Literal["policy", "greedy"] = "policy"
    save_every: int = 10
    ppo: PPOOptions = field(
        default_factory=lambda: PPOOptions(
            steps=16, epochs=3, minibatches=4, rate=2.5e-3, updates=160, gamma=1.0, entropy=0.004, target_kl=0.03
        )
    )


def train(
    options: TrainOptions,
    out: str | Path,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Path:
    """Train; the policy is in the run folder's `policy`, written at every checkpoint.

    Raises:
        InputError, ConfigError: as `rl3d.runs.Run.open`.
    """
    progress = progress or Progress(silent=True)
    folder = Path(out)
    with Run.open(folder, asdict(options), command, resume=resume) as run:
        if run.finished:
            return folder / "policy"
        torch.manual_seed(options.seed)
        policy = LayoutPolicy(options.hidden, options.proposals, options.where)
        env = SceneLayout(options.envs, sample_tasks(options.rooms, options.seed), seed=options.seed)
        learner = PPO(env, policy, options.ppo, options.seed)
        state = folder / "checkpoints"
        if resume and (state / "ppo.safetensors").is_file():
            learner.load(state)
            run.rewind("train", learner.updates)
        numbers: dict[str, float] = {}
        with run.stage("train"), progress.stage("train", options.ppo.updates, learner.updates) as stage:
            while learner.updates < options.ppo.updates:
                numbers = learner.update()
                run.log("train", learner.updates, **numbers)
                stage.at(learner.updates, score_gained=round(numbers.get("return", 0.0), 4))
                if learner.updates % options.save_every == 0 or learner.updates == options.ppo.updates:
                    learner.save(state)
                    policy.save(folder / "policy")
        run.finish(
            {"updates": learner.updates, "decisions": learner.updates * options.envs * options.ppo.steps, **numbers}
        )
    return folder / "policy"
