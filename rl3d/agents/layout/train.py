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
from rl3d.assets import model_folder
from rl3d.progress import Progress
from rl3d.runs import Run

TEST_SEED = 1_000_003  # of rooms that only tools/bench_layout.py sees
EMBEDDED = "embedded"  # a name, not a folder: the policy that ships


@dataclass(frozen=True)
class TrainOptions:
    """Attributes:
    rooms: different rooms to train on. envs: side by side. seed: of rooms, weights and draws; not TEST_SEED.
    hidden, proposals, where: of the policy. save_every: updates between checkpoints.
    begin: a folder of weights to begin with, or EMBEDDED, which bring their own `hidden` and `proposals`; None: from
        nothing. A rate of half the usual one keeps what they know.
    """

    rooms: int = 1536
    envs: int = 64
    seed: int = 1
    hidden: int = 48
    proposals: int = 48
    where: Literal["policy", "greedy"] = "policy"
    save_every: int = 10
    begin: str | None = None
    ppo: PPOOptions = field(
        default_factory=lambda: PPOOptions(
            steps=16, epochs=3, minibatches=4, rate=2.5e-3, updates=160, gamma=1.0, entropy=0.004, target_kl=0.03
        )
    )


def fresh_policy(options: TrainOptions) -> LayoutPolicy:
    """What training begins with: new weights, or those of `options.begin`.

    Raises:
        AssetError: there are none in that folder, or they are broken.
    """
    if options.begin is None:
        return LayoutPolicy(options.hidden, options.proposals, options.where)
    policy = LayoutPolicy.load(model_folder("layout") if options.begin == EMBEDDED else Path(options.begin))
    policy.where = options.where
    return policy.train()


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
        InputError, ConfigError: as `rl3d.runs.Run.open`. AssetError: see `fresh_policy`.
    """
    progress = progress or Progress(silent=True)
    folder = Path(out)
    with Run.open(folder, asdict(options), command, resume=resume) as run:
        if run.finished:
            return folder / "policy"
        torch.manual_seed(options.seed)
        policy = fresh_policy(options)
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
