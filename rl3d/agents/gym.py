"""`rl3d/SceneLayout-v0` for gymnasium: single and vector, on top of `rl3d.agents.layout.SceneLayout`.

`rl3d/PointCompletion-v0` is registered here too; it lives in `rl3d.agents.completion.gym`.

Pieces come in the order of their footprints, the largest first, and an action is the place of the one at hand: one of
4 x 64 x 64 (heading, row, column of its first cell) or, the last action, to leave it out. `action_masks()` says which
are legal, in the form that sb3-contrib's MaskablePPO asks for; an action that is not legal is refused by an error, so
learners without masks need the wrapper's `repair=True`, which takes a legal place in its stead.

`import rl3d.agents.gym` registers both; `gymnasium.make("rl3d.agents.gym:rl3d/SceneLayout-v0")` does both (gymnasium 1
no longer looks for plugins by itself).
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from rl3d.agents.environment import Observation
from rl3d.agents.layout.baselines import largest_first
from rl3d.agents.layout.env import PLACES, SceneLayout
from rl3d.agents.layout.furniture import KINDS
from rl3d.agents.layout.rooms import GRID
from rl3d.agents.layout.tasks import Tasks

ID, COMPLETION_ID = "rl3d/SceneLayout-v0", "rl3d/PointCompletion-v0"
COARSE = 16  # cells a side of what an agent sees of the floor
VECTOR = 41 + len(KINDS) + 3  # the room, and kind and size of the piece at hand


class _Adapter:
    """What the single and the vector environment share."""

    def __init__(self, count: int, room: str | None, tasks: Tasks | None, repair: bool) -> None:
        self.env = SceneLayout(count, tasks, room=room)
        self.repair = repair
        self.seen: Observation = self.env.observe()

    @staticmethod
    def spaces() -> tuple[gymnasium.spaces.Dict, gymnasium.spaces.Discrete]:
        box = gymnasium.spaces.Box
        seen = gymnasium.spaces.Dict(
            {
                "plan": box(0.0, 1.0, (5, COARSE, COARSE), np.float32),
                "piece": box(-20.0, 20.0, (VECTOR,), np.float32),
            }
        )
        return seen, gymnasium.spaces.Discrete(PLACES + 1)

    def look(self) -> dict[str, NDArray[np.float32]]:
        """plan [N, 5, 16, 16]: shares of floor, door zone, solid and flat pieces, before windows; piece [N, ...]."""
        plan = torch.nn.functional.avg_pool2d(self.env.raster(), GRID // COARSE)
        index, slot = torch.arange(self.env.count), self.slot
        kind = torch.nn.functional.one_hot(self.seen["kind"][index, slot].clamp_min(0), len(KINDS)).float()
        piece = torch.cat([self.seen["room"], kind, self.seen["metres"][index, slot]], 1)
        piece = torch.nn.functional.pad(piece, (0, VECTOR - piece.shape[1]))
        return {"plan": plan.numpy(), "piece": piece.clamp(-20, 20).numpy()}

    @property
    def slot(self) -> Tensor:
        return largest_first(self.env, self.seen)

    def masks(self) -> NDArray[np.bool_]:
        """[N, PLACES + 1] bool."""
        return self.env.action_mask(self.slot).numpy()

    def act(self, action: NDArray[np.int64]) -> tuple[Tensor, Tensor, Observation, dict[str, Tensor]]:
        place = torch.as_tensor(np.asarray(action, np.int64)).reshape(self.env.count)
        if self.repair:
            legal = self.env.action_mask(self.slot)
            index = torch.arange(len(place))
            place = torch.where(legal[index, place], place, legal.float().argmax(1))
        step = self.env.step(torch.stack([self.slot, place], 1))
        self.seen = step.observation
        return step.reward, step.terminated, step.final, dict(step.terms)


class SceneLayoutEnv(gymnasium.Env[dict[str, NDArray[np.float32]], np.int64]):
    """One room at a time. room: a type, None: all six. repair: see the module's text."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012

    def __init__(
        self,
        room: str | None = None,
        tasks: Tasks | None = None,
        repair: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.adapter = _Adapter(1, room, tasks, repair)
        self.observation_space, self.action_space = self.adapter.spaces()
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        super().reset(seed=seed)
        self.adapter.seen = self.adapter.env.reset(seed=seed)
        return self._look(), {}

    def step(self, action: np.int64) -> tuple[dict[str, NDArray[np.float32]], float, bool, bool, dict[str, Any]]:
        reward, over, _, terms = self.adapter.act(np.array([action], np.int64))
        info = {"reward_terms": {name: float(value[0]) for name, value in terms.items()}}
        return self._look(), float(reward[0]), bool(over[0]), False, info

    def action_masks(self) -> NDArray[np.bool_]:
        return self.adapter.masks()[0]

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """[64, 64, 3]: floor light, door zone red, pieces blue, rugs sand, before windows green."""
        floor, zone, solid, flat, window = self.adapter.env.raster()[0].bool().numpy()
        picture = np.full((GRID, GRID, 3), 60, np.uint8)
        for cells, colour in ((floor, (225, 220, 210)), (window & floor, (200, 225, 205)), (zone, (235, 190, 180))):
            picture[cells] = colour
        picture[flat], picture[solid] = (215, 195, 160), (70, 110, 160)
        return picture

    def _look(self) -> dict[str, NDArray[np.float32]]:
        return {name: value[0] for name, value in self.adapter.look().items()}


class SceneLayoutVectorEnv(VectorEnv):  # type: ignore[type-arg]
    """N rooms in one batch; a row that ends begins anew in the same step (SAME_STEP), its last look in the info."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(
        self, num_envs: int = 1, room: str | None = None, tasks: Tasks | None = None, repair: bool = False
    ) -> None:
        self.num_envs = num_envs
        self.adapter = _Adapter(num_envs, room, tasks, repair)
        self.single_observation_space, self.single_action_space = self.adapter.spaces()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        first = seed[0] if isinstance(seed, list) else seed
        self.adapter.seen = self.adapter.env.reset(seed=first)
        return self.adapter.look(), {}

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[np.float32]], NDArray, NDArray, NDArray, dict[str, Any]]:
        reward, over, _, terms = self.adapter.act(actions)
        info: dict[str, Any] = {"reward_terms": {name: value.numpy() for name, value in terms.items()}}
        return (
            self.adapter.look(),
            reward.double().numpy(),
            over.numpy(),
            np.zeros(self.num_envs, dtype=bool),
            info,
        )

    def action_masks(self) -> NDArray[np.bool_]:
        return self.adapter.masks()


def register_envs() -> None:
    """Tell gymnasium of the environments; once."""
    if ID not in gymnasium.registry:
        gymnasium.register(
            ID,
            entry_point="rl3d.agents.gym:SceneLayoutEnv",
            vector_entry_point="rl3d.agents.gym:SceneLayoutVectorEnv",
        )
    if COMPLETION_ID not in gymnasium.registry:
        gymnasium.register(
            COMPLETION_ID,
            entry_point="rl3d.agents.completion.gym:PointCompletionEnv",
            vector_entry_point="rl3d.agents.completion.gym:PointCompletionVectorEnv",
        )


register_envs()
