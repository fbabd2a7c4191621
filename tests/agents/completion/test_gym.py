"""The gymnasium adapter: its own checks, and stable-baselines3's TD3 unchanged. Needs the extra `agents`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")

from rl3d.agents.completion.furniture import furniture_parts  # noqa: E402
from rl3d.agents.completion.gym import PointCompletionEnv, PointCompletionVectorEnv  # noqa: E402
from rl3d.agents.completion.objective import Judge, Parts  # noqa: E402
from rl3d.agents.gym import COMPLETION_ID  # noqa: E402


def test_the_checkers_have_no_complaint(judge: Judge, parts: Parts) -> None:
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in ("shift", "pick"):
            check_env(gymnasium.make(COMPLETION_ID, parts=parts, judge=judge, mode=mode).unwrapped)
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    check_env_sb3(PointCompletionEnv(parts, judge), warn=False)


def test_an_episode_and_its_picture(judge: Judge, parts: Parts) -> None:
    env = PointCompletionEnv(parts, judge, steps=2, render_mode="rgb_array")
    first, _ = env.reset(seed=3)
    again, _ = env.reset(seed=3)
    assert np.array_equal(first, again)
    _, reward, over, cut, info = env.step(np.full(8, 0.5, np.float32))
    assert reward == pytest.approx(sum(info["reward_terms"].values()), abs=1e-5) and not over and not cut
    assert env.render().shape == (300, 300, 3) and len(np.unique(env.render())) > 10
    assert env.step(np.zeros(8, np.float32))[2]


def test_the_vector_is_the_single_one_many_times(judge: Judge, parts: Parts) -> None:
    env = gymnasium.make_vec(
        COMPLETION_ID, num_envs=3, vectorization_mode="vector_entry_point", parts=parts, judge=judge, steps=2
    )
    assert isinstance(env.unwrapped, PointCompletionVectorEnv)
    seen, _ = env.reset(seed=1)
    assert env.observation_space.contains(seen)
    for k in range(4):
        seen, reward, over, cut, info = env.step(np.full((3, 8), 0.2, np.float32))
        assert reward.shape == (3,) and over.tolist() == [k % 2 == 1] * 3 and not cut.any()
        if over.any():
            assert info["final_obs"][0].shape == seen[0].shape and info["final_obs"][0][-1] == 1
            assert seen[0, -1] == 0
    assert env.observation_space.contains(seen)


def test_sb3s_td3_learns_on_it_unchanged(judge: Judge, parts: Parts) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    model: Any = sb3.TD3("MlpPolicy", PointCompletionEnv(parts, judge), learning_starts=4, seed=0, device="cpu")
    model.learn(12)
    assert model.num_timesteps == 12


def test_it_needs_nothing() -> None:
    """The embedded models and the built-in furniture, by its name alone."""
    env = gymnasium.make(f"rl3d.agents.gym:{COMPLETION_ID}")
    seen, _ = env.reset(seed=0)
    assert seen.shape == (261,) and env.action_space.shape == (128,)
    _, reward, over, cut, _ = env.step(np.zeros(128, np.float32))
    assert reward == pytest.approx(0, abs=1e-5) and not over and not cut


def test_parts_of_the_furniture(judge: Judge) -> None:
    parts = furniture_parts(judge)
    assert len(parts) == 4 * 29 and parts.points.abs().max() < 0.75 and parts.start.isfinite().all()
