"""Agents that act in 3D: batched environments, a compact PPO and TD3 for them, and room layout.

`rl3d.agents.layout` furnishes rooms. docs/agents.md shows how to train on an environment of your own.
"""

from typing import TYPE_CHECKING, Any

from rl3d.agents.environment import Decision, Environment, Policy, Step
from rl3d.agents.policies import BetaPolicy, CategoricalPolicy, GaussianPolicy
from rl3d.agents.ppo import PPO, PPOOptions

if TYPE_CHECKING:
    from rl3d.agents.layout.env import SceneLayout as SceneLayout

__all__ = [
    "PPO",
    "BetaPolicy",
    "CategoricalPolicy",
    "Decision",
    "Environment",
    "GaussianPolicy",
    "PPOOptions",
    "Policy",
    "SceneLayout",
    "Step",
]


def __getattr__(name: str) -> Any:
    if name == "SceneLayout":  # brings the renderer along
        from rl3d.agents.layout.env import SceneLayout

        return SceneLayout
    raise AttributeError(f"module 'rl3d.agents' has no attribute {name!r}")
