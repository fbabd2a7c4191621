"""TD3 and DDPG: the targets by hand, and a bandit that they must solve."""

from __future__ import annotations

import pytest
import torch

from rl3d.agents.td3 import DDPG, Replay, TD3Options, explore, td3_state, td3_update
from rl3d.errors import InputError


def test_the_target_is_the_smaller_critic_and_stops_at_an_end() -> None:
    """gamma .5, critics that say 2 and 6 ahead: y = 1 + .5 x 2 = 2, and 1 where the episode ended."""
    torch.manual_seed(0)
    options = TD3Options(gamma=0.5, smooth=0.0, delay=10)
    state = td3_state(1, 1, options)
    for critic, says in zip(state.target_critics, (6.0, 2.0)):
        for p in critic.parameters():
            torch.nn.init.zeros_(p)
        torch.nn.init.constant_(critic[-1].bias, says)  # type: ignore[index]
    for critic in state.critics:
        for p in critic.parameters():
            torch.nn.init.zeros_(p)
    zero = torch.zeros(2, 1)
    batch = {
        "state": zero,
        "action": zero,
        "reward": torch.ones(2),
        "next": zero,
        "terminated": torch.tensor([False, True]),
    }
    numbers = td3_update(state, batch, options)
    assert numbers["critic_loss"] == pytest.approx(2 * (2.0**2 + 1.0**2) / 2)  # both critics say 0
    assert "actor_loss" not in numbers  # delayed


@pytest.mark.parametrize("options", [TD3Options(gamma=0.0), DDPG])
def test_it_solves_a_bandit(options: TD3Options) -> None:
    """The state names the best action; -(a - s)^2. 300 steps."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    state, replay = td3_state(1, 1, options, hidden=32), Replay(2000)
    for _ in range(300):
        s = 1.6 * torch.rand(16, 1, generator=g) - 0.8
        a = explore(state, s, 0.4, g)
        replay.push(s, a, -((a - s)[:, 0] ** 2), s, torch.ones(16, dtype=torch.bool))
        batch = replay.sample(64, g)
        assert len(batch["reward"]) == 64
        td3_update(state, batch, options, g)
    s = torch.linspace(-0.8, 0.8, 9)[:, None]
    with torch.no_grad():
        assert float((state.actor(s) - s).abs().mean()) < 0.15


def test_the_replay_keeps_the_last() -> None:
    replay = Replay(4)
    with pytest.raises(InputError, match="empty"):
        replay.sample(1)
    for i in range(3):
        one = torch.full((2, 1), float(i))
        replay.push(one, one, one[:, 0], one, torch.zeros(2, dtype=torch.bool))
    assert sorted(replay.rows["reward"].tolist()) == [1.0, 1.0, 2.0, 2.0]
