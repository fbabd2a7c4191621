"""The gymnasium adapter: its own checks, and stable-baselines3 unchanged. Needs the `agents` and `test` extras."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from rl3d.agents.gym import ID, SceneLayoutEnv, SceneLayoutVectorEnv  # noqa: E402
from rl3d.agents.layout import PLACES, sample_tasks  # noqa: E402

TASKS = sample_tasks(6, 3, "bathroom")


def legal(mask: np.ndarray, random: np.random.Generator) -> int:
    return int(random.choice(np.flatnonzero(mask)))


def test_the_checkers_have_no_complaint() -> None:
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(ID, tasks=TASKS, repair=True).unwrapped, skip_render_check=True)
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    check_env_sb3(SceneLayoutEnv(tasks=TASKS, repair=True), warn=False)


def test_masks_lead_to_finished_rooms_and_others_are_refused() -> None:
    env, random = SceneLayoutEnv(tasks=TASKS, render_mode="rgb_array"), np.random.default_rng(0)
    env.reset(seed=0)
    steps, over, gained = 0, False, 0.0
    while not over:
        mask = env.action_masks()
        assert mask.shape == (PLACES + 1,) and mask.any()
        _, reward, over, cut, info = env.step(np.int64(legal(mask, random)))
        assert reward == pytest.approx(sum(info["reward_terms"].values()), abs=1e-5) and not cut
        steps, gained = steps + 1, gained + reward
    assert 2 <= steps <= 12 and gained > 0
    assert env.render().shape == (64, 64, 3)
    with pytest.raises(Exception, match="outside or taken"):
        env.step(np.int64(np.flatnonzero(~env.action_masks()[:PLACES])[0]))


def test_the_vector_is_the_single_one_many_times() -> None:
    env = gymnasium.make_vec(ID, num_envs=3, vectorization_mode="vector_entry_point", tasks=TASKS)
    assert isinstance(env.unwrapped, SceneLayoutVectorEnv)
    seen, _ = env.reset(seed=1)
    assert env.observation_space.contains(seen)
    random = np.random.default_rng(0)
    ended = np.zeros(3, bool)
    for _ in range(8):
        actions = np.array([legal(mask, random) for mask in env.unwrapped.action_masks()])
        seen, reward, over, cut, _ = env.step(actions)
        assert reward.shape == (3,) and over.dtype == bool and not cut.any()
        ended |= over
    assert ended.any() and env.observation_space.contains(seen)


def test_maskable_ppo_learns_on_it_unchanged() -> None:
    contrib = pytest.importorskip("sb3_contrib")
    model: Any = contrib.MaskablePPO(
        "MultiInputPolicy", SceneLayoutEnv(tasks=TASKS), n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu"
    )
    model.learn(32)
    assert model.num_timesteps == 32
