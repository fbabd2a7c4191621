"""The batched CartPole and Pendulum are gymnasium's: the same states, rewards and ends from the same actions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classic_control import CartPole, Pendulum

gymnasium = pytest.importorskip("gymnasium")


@pytest.mark.parametrize("make, name", [(CartPole, "CartPole-v1"), (Pendulum, "Pendulum-v1")])
def test_the_dynamics_are_gymnasiums(make: type, name: str) -> None:
    rows, random = 4, np.random.default_rng(0)
    env, single = make(rows), [gymnasium.make(name).unwrapped for _ in range(rows)]
    env.reset(seed=1)
    for row, other in enumerate(single):
        other.reset(seed=row)
        other.state = env.state[row].numpy().copy()
    ended = 0
    for _ in range(60):
        if make is CartPole:
            actions = random.integers(2, size=rows)
            given = list(actions)
        else:
            actions = random.uniform(-3, 3, (rows, 1))  # beyond the limit of 2 too
            given = list(actions)
        step = env.step(torch.from_numpy(actions))
        for row, other in enumerate(single):
            seen, reward, over, _, _ = other.step(given[row])
            # float64 on both sides, float32 at the end: apart by at most one rounding (6e-8 of 8)
            np.testing.assert_allclose(step.final["state"][row].numpy(), seen, rtol=0, atol=1e-6)
            assert float(step.reward[row]) == pytest.approx(float(reward), abs=1e-5)
            assert bool(step.terminated[row]) == over and not bool(step.truncated[row])
            if over:
                ended += 1
                other.reset(seed=0)
                other.state = env.state[row].numpy().copy()
    assert ended > 0 if make is CartPole else ended == 0


@pytest.mark.parametrize("make, name", [(CartPole, "CartPole-v1"), (Pendulum, "Pendulum-v1")])
def test_episodes_begin_and_are_cut_as_gymnasiums(make: type, name: str) -> None:
    other = gymnasium.make(name)
    env = make(2000)
    env.reset(seed=0)
    theirs = np.stack([(other.reset(seed=i), np.array(other.unwrapped.state))[1] for i in range(400)])
    mine = env.state.numpy()
    for values in (mine, theirs):
        assert np.abs(values).max(0) == pytest.approx(np.abs(mine).max(0), rel=0.03)  # uniform, of one width
        assert values.mean(0) == pytest.approx(np.zeros(mine.shape[1]), abs=0.15 * np.abs(mine).max())
    assert other.spec is not None and other.spec.max_episode_steps == env.limit
    env.age[0] = env.limit - 1
    step = env.step(torch.zeros(2000, dtype=torch.int64) if make is CartPole else torch.zeros(2000, 1))
    assert bool(step.truncated[0]) and int(step.truncated.sum()) == 1 and not bool(step.terminated[0])
    assert int(env.age[0]) == 0 and not torch.equal(step.observation["state"][0], step.final["state"][0])
