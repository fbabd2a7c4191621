"""`rl3d/PointCompletion-v0` for gymnasium: single and vector, on top of `LatentCompletion`.

An episode is one partial cloud: by default parts of the built-in furniture and the embedded models, so that nothing is
needed; `parts` and `judge` take others. The action is a vector in [-1, 1], the reward what it adds to the objective,
which never sees the missing part. Any learner for continuous actions takes it as it is.

`import rl3d.agents.gym` registers it.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rl3d.agents.completion.env import REACH, STEPS, LatentCompletion, Mode
from rl3d.agents.completion.furniture import furniture_parts
from rl3d.agents.completion.objective import Judge, Parts
from rl3d.agents.completion.picture import NEW, SEEN, panel
from rl3d.agents.environment import Step

LIMIT = 50.0  # of an observation's numbers

Reset = tuple[NDArray[np.float32], dict[str, Any]]


def _environment(count: int, parts: Parts | None, judge: Judge | None, mode: Mode, steps: int) -> LatentCompletion:
    if judge is None:
        from rl3d.agents.completion.complete import load_models

        judge = load_models().judge
    return LatentCompletion(count, furniture_parts(judge) if parts is None else parts, judge, mode, steps, REACH)


def _spaces(env: LatentCompletion) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    box = gymnasium.spaces.Box
    return box(-LIMIT, LIMIT, (env.state_size,), np.float32), box(-1.0, 1.0, (env.action_size,), np.float32)


def _look(state: torch.Tensor) -> NDArray[np.float32]:
    return state.clamp(-LIMIT, LIMIT).numpy().astype(np.float32)


class PointCompletionEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One partial cloud at a time. mode: "shift" moves its latent `steps` times, "pick" draws one anew."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012

    def __init__(
        self,
        parts: Parts | None = None,
        judge: Judge | None = None,
        mode: Mode = "shift",
        steps: int = STEPS,
        render_mode: str | None = None,
    ) -> None:
        self.env = _environment(1, parts, judge, mode, steps)
        self.observation_space, self.action_space = _spaces(self.env)
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        return _look(self.env.reset(seed=seed)["state"])[0], {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        out = self.env.step(torch.as_tensor(np.asarray(action, np.float32))[None])
        info = {"reward_terms": {name: float(value[0]) for name, value in out.terms.items()}}
        return _look(out.final["state"])[0], float(out.reward[0]), bool(out.terminated[0]), False, info

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """[300, 300, 3]: the visible points dark, the cloud that the present latent decodes to orange."""
        seen, cloud = self.env.chosen.points[0], self.env.judge.decode(self.env.code)[0]
        colours = torch.cat([torch.tensor([SEEN]).expand(len(seen), 3), torch.tensor([NEW]).expand(len(cloud), 3)])
        box = torch.full((3,), 0.6)
        return np.asarray(panel(torch.cat([seen, cloud]), colours.float(), 0.6, -box, box))


class PointCompletionVectorEnv(VectorEnv):  # type: ignore[type-arg]
    """N clouds in one batch; a row that ends begins anew in the same step (SAME_STEP), its last look in the info."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        parts: Parts | None = None,
        judge: Judge | None = None,
        mode: Mode = "shift",
        steps: int = STEPS,
    ) -> None:
        self.num_envs = num_envs
        self.env = _environment(num_envs, parts, judge, mode, steps)
        self.single_observation_space, self.single_action_space = _spaces(self.env)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        first = seed[0] if isinstance(seed, list) else seed
        return _look(self.env.reset(seed=first)["state"]), {}

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray, NDArray, NDArray, dict[str, Any]]:
        out: Step = self.env.step(torch.as_tensor(np.asarray(actions, np.float32)))
        over = out.terminated.numpy()
        info: dict[str, Any] = {"reward_terms": {name: value.numpy() for name, value in out.terms.items()}}
        if over.any():
            last = np.empty(self.num_envs, dtype=object)
            ends = _look(out.final["state"])
            for row in np.flatnonzero(over):
                last[row] = ends[row]
            info |= {"final_obs": last, "_final_obs": over.copy()}
        return _look(out.observation["state"]), out.reward.double().numpy(), over, np.zeros_like(over), info
