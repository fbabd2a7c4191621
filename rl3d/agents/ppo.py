"""PPO (Schulman et al. 2017, arXiv 1707.06347) on batched tensor environments, with `rl3d.rl`'s losses.

What makes or breaks it (the 37 details of the ICLR 2022 blog post, and what the released code of layout and motion
papers got wrong) is stated where it happens, and tested in tests/agents/test_ppo.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rl3d import rl
from rl3d.agents.environment import Environment, Observation, Step
from rl3d.errors import InputError
from rl3d.files import atomic_path, write_json
from rl3d.model_files import readable
from rl3d.rl.tensors import positive

REPLAY_TOLERANCE = 1e-4  # of |ratio - 1|, float32 in batches of another size


@dataclass(frozen=True)
class PPOOptions:
    """Attributes:
    steps: T, decisions of each environment in a rollout; episodes carry over from one to the next.
    epochs, minibatches: of an update; N T must be divisible, so that every minibatch has the size it says.
    rate: Adam's. schedule: "constant", "linear" to 0 over `updates`, or "adaptive" to `target_kl`.
    updates: of the whole run, for the linear schedule and the fall of `entropy` to 0.
    gamma, lam: of `rl.gae`. Where the reward is the step's gain of an objective, gamma must be 1.
    clip: of the ratio. value_clip: of the value, None: none. value_weight, entropy: weights in the loss.
    gradient: largest norm. target_kl: an update stops before a step at 1.5 times this; None: never.
    normalise_observations: the tensor "state" by its running moments. normalise_rewards: by the std of returns.
    """

    steps: int = 32
    epochs: int = 4
    minibatches: int = 4
    rate: float = 3e-4
    schedule: Literal["constant", "linear", "adaptive"] = "linear"
    updates: int = 1000
    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float | None = None
    value_weight: float = 0.5
    entropy: float = 0.0
    gradient: float = 0.5
    target_kl: float | None = 0.02
    normalise_observations: bool = False
    normalise_rewards: bool = False

    def __post_init__(self) -> None:
        positive(steps=self.steps, epochs=self.epochs, minibatches=self.minibatches, updates=self.updates)
        positive(rate=self.rate, clip=self.clip, gradient=self.gradient)
        if self.schedule == "adaptive" and self.target_kl is None:
            raise InputError("an adaptive rate needs a target_kl to adapt to")


@dataclass(frozen=True)
class Rollout:
    """T steps of N environments; tensors [T, N, ...]."""

    kept: dict[str, Tensor]
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    returns: Tensor

    def flat(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(kept, the rest), all [T N, ...] in one order: what is permuted, is permuted together."""
        rest = {name: tensor.flatten(0, 1) for name, tensor in vars(self).items() if name != "kept"}
        return {name: tensor.flatten(0, 1) for name, tensor in self.kept.items()}, rest


class PPO:
    """An environment, a policy and what has been learned of both so far; `update` is one rollout and its epochs.

    Args:
        policy: an nn.Module with the readings of `rl3d.agents.Policy`, on the environment's device.
        seed: of the draws and the order of minibatches; the environment has its own.
    """

    def __init__(self, env: Environment, policy: nn.Module, options: PPOOptions, seed: int = 0) -> None:
        samples = env.count * options.steps
        if samples % options.minibatches:
            raise InputError(
                f"{env.count} environments x {options.steps} steps do not divide into {options.minibatches} minibatches"
            )
        self.env, self.options = env, options
        self.policy: Any = policy
        self.optimiser = torch.optim.Adam(policy.parameters(), lr=options.rate, eps=1e-5)
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = 0
        self.rate = options.rate
        self.observation: Observation = env.reset(seed=seed)
        device = next(iter(self.observation.values())).device
        self.scale = rl.ReturnScale.empty(env.count, device)
        self.moments: rl.RunningMoments | None = None
        if options.normalise_observations:
            self.moments = rl.RunningMoments.empty(*self.observation["state"].shape[1:], device=device)
        self._returns = torch.zeros(env.count, dtype=torch.float64, device=device)
        self._lengths = torch.zeros(env.count, dtype=torch.int64, device=device)
        self._terms: dict[str, Tensor] = {}

    def update(self) -> dict[str, float]:
        """One rollout of T N decisions and the update from it; numbers for the log."""
        rollout, numbers = self._collect()
        numbers |= self._learn(rollout)
        self.updates += 1
        return numbers

    def normalised(self, observation: Observation) -> Observation:
        if self.moments is None:
            return observation
        return {**observation, "state": self.moments.normalised(observation["state"])}

    @torch.no_grad()
    def _collect(self) -> tuple[Rollout, dict[str, float]]:
        rows: list[tuple[dict[str, Tensor], Tensor, Tensor, Tensor]] = []
        rewards, ends, cuts, next_values = [], [], [], []
        finished = _Finished()
        for _ in range(self.options.steps):
            if self.moments is not None:
                self.moments = self.moments.seen(self.observation["state"])
            decision = self.policy.act(self.normalised(self.observation), self.env, self.generator)
            rows.append((decision.kept, decision.action, decision.log_prob, decision.value))
            step = self.env.step(decision.action)
            self._count(step, finished)
            reward = step.reward
            if self.options.normalise_rewards:
                self.scale = self.scale.seen(reward, step.done, self.options.gamma)
                reward = self.scale.scaled(reward)
            # V of what the step led to: of a row that was cut off, its own last observation, not the next episode's
            value = self.policy.value(self.normalised(step.final if bool(step.truncated.any()) else step.observation))
            rewards.append(reward)
            ends.append(step.terminated)
            cuts.append(step.truncated)
            next_values.append(value)
            self.observation = step.observation
        kept = {name: torch.stack([row[0][name] for row in rows]) for name in rows[0][0]}
        action = torch.stack([row[1] for row in rows])
        log_prob, value = torch.stack([row[2] for row in rows]), torch.stack([row[3] for row in rows])
        advantage, returns = rl.gae(
            torch.stack(rewards),
            value,
            torch.stack(next_values),
            torch.stack(ends),
            torch.stack(cuts),
            gamma=self.options.gamma,
            lam=self.options.lam,
        )
        return Rollout(kept, action, log_prob, value, advantage, returns), finished.means()

    def _count(self, step: Step, finished: _Finished) -> None:
        self._returns += step.reward
        self._lengths += 1
        for name, term in step.terms.items():
            self._terms[name] = self._terms.get(name, torch.zeros_like(term)) + term
        done = step.done
        if bool(done.any()):
            finished.add({"return": self._returns, "length": self._lengths, **self._terms}, done)
            self._returns[done] = 0
            self._lengths[done] = 0
            self._terms = {name: term.masked_fill(done, 0) for name, term in self._terms.items()}

    def _learn(self, rollout: Rollout) -> dict[str, float]:
        o = self.options
        kept, rest = rollout.flat()
        samples = len(rest["action"])
        size = samples // o.minibatches
        left = 1 - self.updates / o.updates
        if o.schedule == "linear":
            self.rate = o.rate * max(left, 0.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        seen: list[dict[str, float]] = []
        stopped = False
        for _ in range(o.epochs):
            order = torch.randperm(samples, generator=self.generator)  # without replacement, anew each epoch
            for chosen in order.split(size):
                chosen = chosen.to(rest["action"].device)
                part = {name: tensor[chosen] for name, tensor in rest.items()}
                lp, entropy, value = self.policy.evaluate(
                    {name: tensor[chosen] for name, tensor in kept.items()}, part["action"]
                )
                if not seen:
                    rl.check_replay(lp, part["log_prob"], REPLAY_TOLERANCE)
                advantage = rl.standardised(part["advantage"])  # per minibatch
                surrogate, numbers = rl.clipped_surrogate(lp, part["log_prob"], advantage, clip=o.clip)
                if o.target_kl is not None and not rl.within_budget(float(numbers.approx_kl), 1.5 * o.target_kl):
                    stopped = True
                    break
                fit = rl.value_loss(value, part["value"], part["returns"], clip=o.value_clip)
                bonus = o.entropy * max(left, 0.0)
                loss = surrogate + o.value_weight * fit - bonus * entropy.mean()
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                report = rl.clip_gradients(self.policy.parameters(), o.gradient)
                if not report.finite:
                    raise InputError(f"the gradient of update {self.updates} is not finite; lower the rate")
                self.optimiser.step()
                more = {"entropy": float(entropy.detach().mean()), "value_loss": float(fit.detach())}
                seen.append({**rl.as_floats(numbers), "gradient": report.norm, **more})
            if stopped:
                break
        mean = {name: sum(row[name] for row in seen) / len(seen) for name in seen[0]}
        if o.schedule == "adaptive" and o.target_kl is not None:
            kl = mean["approx_kl"]
            self.rate *= 1 / 1.5 if kl > 2 * o.target_kl else 1.5 if kl < 0.5 * o.target_kl else 1.0
            self.rate = min(max(self.rate, 1e-5), 1e-2)
        spread = rollout.returns.var(correction=0)
        explained = 1 - float((rollout.returns - rollout.value).var(correction=0) / spread.clamp_min(1e-12))
        return {**mean, "steps": float(len(seen)), "rate": self.rate, "explained_variance": explained}

    def save(self, folder: str | Path) -> None:
        """Everything that decides what comes next, as `ppo.safetensors` and `ppo.json`; each file atomically."""
        tensors = {f"policy.{k}": v for k, v in self.policy.state_dict().items()}
        tensors |= {f"env.{k}": v for k, v in self.env.state_dict().items()}
        tensors |= {f"observation.{k}": v for k, v in self.observation.items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        for name, moments in (("moments", self.moments), ("scale", self.scale.moments)):
            if moments is not None:
                tensors |= {f"{name}.{k}": v for k, v in vars(moments).items()}
        tensors |= {"running": self.scale.running, "returns": self._returns, "lengths": self._lengths}
        tensors |= {f"terms.{k}": v for k, v in self._terms.items()} | {"generator": self.generator.get_state()}
        plain = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
        with atomic_path(Path(folder) / "ppo.safetensors") as temporary:
            save_file(plain, temporary, {"updates": str(self.updates), "rate": repr(self.rate)})
        write_json(Path(folder) / "ppo.json", asdict(self.options))

    def load(self, folder: str | Path) -> None:
        """Go on where `save` was; of the same environment, policy and options.

        Raises:
            AssetError: the file is missing or broken. InputError: it was saved with other options.
        """
        from safetensors import safe_open

        path = Path(folder) / "ppo.safetensors"
        with readable(f"the training state {path}"):
            begun = json.loads((Path(folder) / "ppo.json").read_text(encoding="utf-8"))
            tensors = load_file(path)
            with safe_open(path, "pt") as file:
                facts = dict(file.metadata())
            changed = [key for key, value in asdict(self.options).items() if begun.get(key) != value]
            if changed:
                raise InputError(
                    f"{folder} was begun with {changed[0]} = {begun.get(changed[0])!r}; resume with the same options"
                )
            self._restore(tensors, facts)

    def _restore(self, tensors: dict[str, Tensor], facts: Mapping[str, str]) -> None:
        device = self._returns.device

        def under(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) + 1 :]: v.to(device) for k, v in tensors.items() if k.startswith(prefix + ".")}

        self.policy.load_state_dict(under("policy"))
        self.env.load_state_dict(under("env"))
        self.observation = under("observation")
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under("adam").items():
            i, key = name.split(".", 1)
            state.setdefault(int(i), {})[key] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        if self.moments is not None:
            self.moments = rl.RunningMoments(**under("moments"))
        self.scale = rl.ReturnScale(rl.RunningMoments(**under("scale")), tensors["running"].to(device))
        self._returns, self._lengths = tensors["returns"].to(device), tensors["lengths"].to(device)
        self._terms = under("terms")
        self.generator.set_state(tensors["generator"])
        self.updates, self.rate = int(facts["updates"]), float(facts["rate"])


class _Finished:
    """Sums over the episodes that ended in a rollout."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, values: Mapping[str, Tensor], done: Tensor) -> None:
        self.count += int(done.sum())
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value[done].double().sum())

    def means(self) -> dict[str, float]:
        """By name, "episodes" beside them; nothing but that where none ended."""
        return {"episodes": float(self.count), **{k: v / self.count for k, v in self.sums.items()}}
