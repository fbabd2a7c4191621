"""Agents that act in 3D: batched environments, a compact PPO and TD3 for them, and room layout.

`rl3d.agents.layout` furnishes rooms. docs/agents.md shows how to train on an environment of your own.
"""

from rl3d.agents.environment import Decision, Environment, Policy, Step
from rl3d.agents.policies import BetaPolicy, CategoricalPolicy, GaussianPolicy
from rl3d.agents.ppo import PPO, PPOOptions

__all__ = [
    "PPO",
    "BetaPolicy",
    "CategoricalPolicy",
    "Decision",
    "Environment",
    "GaussianPolicy",
    "PPOOptions",
    "Policy",
    "Step",
]
