"""What makes or breaks PPO, one test each; and environments that it must solve in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toys import Corridor, Identity

from rl3d import rl
from rl3d.agents import PPO, BetaPolicy, CategoricalPolicy, Decision, GaussianPolicy, PPOOptions
from rl3d.errors import AssetError, InputError

FAST = PPOOptions(steps=8, rate=3e-3, updates=40)


class Watched(CategoricalPolicy):
    """Remembers what the update asked it."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.asked: list[tuple[dict[str, Tensor], Tensor]] = []
        self.log_probs: list[Tensor] = []

    def evaluate(self, kept: Mapping[str, Tensor], action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.asked.append((dict(kept), action))
        out = super().evaluate(kept, action)
        self.log_probs.append(out[0].detach())
        return out


def test_the_first_ratio_is_one_and_every_minibatch_has_the_size_it_says() -> None:
    torch.manual_seed(0)
    learner = PPO(Identity(16, barred=True), Watched(), replace(FAST, epochs=2, minibatches=4, target_kl=None))
    rollout, _ = learner._collect()
    learner._learn(rollout)
    policy = learner.policy
    assert [len(action) for _, action in policy.asked] == [16 * 8 // 4] * 8
    # every sample once an epoch, with its own state, mask and old log-prob: pools are permuted together
    kept, rest = rollout.flat()
    for epoch in (policy.asked[:4], policy.asked[4:]):
        rows = torch.cat([torch.cat([k["state"], k["mask"].float(), a[:, None].float()], 1) for k, a in epoch])
        every = torch.cat([kept["state"], kept["mask"].float(), rest["action"][:, None].float()], 1)
        assert sorted(rows.tolist()) == sorted(every.tolist())
    first = policy.asked[0]
    old = {
        tuple(s.tolist()): lp for s, lp in zip(torch.cat([kept["state"], rest["action"][:, None]], 1), rest["log_prob"])
    }
    for s, a, lp in zip(first[0]["state"], first[1], policy.log_probs[0]):
        assert float(lp) == pytest.approx(float(old[(*s.tolist(), float(a))]), abs=1e-6)


def test_a_broken_replay_stops_the_run() -> None:
    class Forgetful(CategoricalPolicy):
        def evaluate(self, kept: Mapping[str, Tensor], action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return super().evaluate({"state": kept["state"]}, action)  # the mask is forgotten at the update

    with pytest.raises(InputError, match="the replay differs from the sampling"):
        PPO(Identity(16, barred=True), Forgetful(4, 4), FAST).update()


def test_advantages_are_standardised_per_minibatch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    plain = rl.clipped_surrogate

    def spy(lp: Tensor, old: Tensor, advantages: Tensor, **more: float) -> object:
        seen.append(advantages)
        return plain(lp, old, advantages, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(rl, "clipped_surrogate", spy)
    torch.manual_seed(0)
    PPO(Identity(16), CategoricalPolicy(4, 4), replace(FAST, epochs=1)).update()
    assert len(seen) == 4
    for advantages in seen:
        assert float(advantages.mean()) == pytest.approx(0, abs=1e-5)
        assert float(advantages.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_rows_end_each_for_itself_and_a_cut_bootstraps_from_its_own_last_look() -> None:
    """A policy whose value names the place it sees (V = 1 + place): next values are of the final look."""

    class Sees(CategoricalPolicy):
        def value(self, observation: dict[str, Tensor]) -> Tensor:
            return 1.0 + observation["state"].argmax(1)

        def act(self, observation: dict[str, Tensor], env: object, generator: torch.Generator | None) -> Decision:
            right = torch.ones(len(observation["state"]), dtype=torch.int64)
            return Decision(right, torch.zeros(len(right)), self.value(observation), observation)

    # 3 rows of ages 0, 1, 2 of a limit of 3, in a corridor of 9: row 2 is cut after one step, at place 1.
    env = Corridor(3, length=9, limit=3)
    learner = PPO(env, Sees(9, 2), replace(FAST, steps=2, minibatches=1, gamma=1.0, lam=0.0))
    rollout, _ = learner._collect()
    # lam 0: return = r + V(next look). Row 2, step 0: cut at place 1, V = 2, though it began anew at place 0 (V = 1).
    assert rollout.returns.tolist() == [[2.0, 2.0, 2.0], [3.0, 3.0, 2.0]]
    assert rollout.value.tolist() == [[1.0, 1.0, 1.0], [2.0, 2.0, 1.0]]


def test_a_terminated_row_does_not_bootstrap() -> None:
    env = Corridor(2, length=2, limit=50)  # the first step to the right ends
    learner = PPO(env, CategoricalPolicy(2, 2), replace(FAST, steps=4, minibatches=1, lam=0.0))
    rollout, numbers = learner._collect()
    ended = rollout.action == 1
    assert numbers["episodes"] == float(ended.sum())
    assert torch.equal(rollout.returns[ended], torch.ones(int(ended.sum())))


def test_target_kl_stops_an_update_before_its_steps() -> None:
    torch.manual_seed(0)
    wild = PPO(Identity(16), CategoricalPolicy(4, 4), replace(FAST, rate=0.1, epochs=10, schedule="constant"))
    assert wild.update()["steps"] < 40
    free = PPO(Identity(16), CategoricalPolicy(4, 4), replace(FAST, rate=0.1, epochs=10, target_kl=None))
    assert free.update()["steps"] == 40


def test_rates() -> None:
    torch.manual_seed(0)
    linear = PPO(Identity(16), CategoricalPolicy(4, 4), replace(FAST, updates=4))
    assert [linear.update()["rate"] for _ in range(4)] == pytest.approx([3e-3, 2.25e-3, 1.5e-3, 0.75e-3])
    slow = PPO(Identity(16), CategoricalPolicy(4, 4), replace(FAST, rate=1e-4, schedule="adaptive"))
    slow.update()
    assert slow.rate == pytest.approx(1.5e-4)  # almost no KL: faster
    with pytest.raises(InputError, match="adaptive rate needs a target_kl"):
        PPOOptions(schedule="adaptive", target_kl=None)


def test_batches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="do not divide into 7 minibatches"):
        PPO(Identity(16), CategoricalPolicy(4, 4), replace(FAST, minibatches=7))


@pytest.mark.parametrize("barred", [False, True])
def test_it_solves_the_identity(barred: bool) -> None:
    torch.manual_seed(0)
    learner = PPO(Identity(32, barred=barred), CategoricalPolicy(4, 4), replace(FAST, normalise_rewards=True))
    returns = [learner.update()["return"] for _ in range(FAST.updates)]
    assert returns[0] < 0.5 and returns[-1] > 0.95  # chance is 0.25 and 0.33


@pytest.mark.parametrize("policy, least", [(GaussianPolicy(1, 1, log_std=-1.0), 0.8), (BetaPolicy(1, 1), 0.88)])
def test_it_solves_the_identity_of_real_numbers(policy: torch.nn.Module, least: float) -> None:
    torch.manual_seed(0)
    fresh = type(policy)(1, 1, log_std=-1.0) if isinstance(policy, GaussianPolicy) else BetaPolicy(1, 1)
    learner = PPO(Identity(32, kind="real"), fresh, replace(FAST, normalise_observations=True))
    returns = [learner.update()["return"] for _ in range(FAST.updates)]
    assert returns[-1] > least > returns[0]


def test_it_walks_a_corridor_with_cuts() -> None:
    torch.manual_seed(0)
    learner = PPO(Corridor(16), CategoricalPolicy(4, 2), replace(FAST, updates=20))
    numbers = [learner.update() for _ in range(20)]
    assert numbers[-1]["length"] == pytest.approx(3, abs=0.2) and numbers[-1]["end"] > 0.95


def test_resuming_goes_the_same_way(tmp_path: Path) -> None:
    def fresh() -> PPO:
        torch.manual_seed(0)
        return PPO(Identity(8), CategoricalPolicy(4, 4), replace(FAST, normalise_rewards=True))

    through = fresh()
    for _ in range(2):
        through.update()
    through.save(tmp_path)
    ahead = [through.update() for _ in range(2)]
    again = fresh()
    again.load(tmp_path)
    assert [again.update() for _ in range(2)] == ahead
    with pytest.raises(InputError, match="begun with clip"):
        PPO(Identity(8), CategoricalPolicy(4, 4), replace(FAST, normalise_rewards=True, clip=0.1)).load(tmp_path)
    (tmp_path / "ppo.safetensors").write_bytes(b"torn")
    with pytest.raises(AssetError, match="training state"):
        fresh().load(tmp_path)
