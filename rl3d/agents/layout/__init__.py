"""Room layout: rooms, furniture, the environment, the policy and what it is compared with. See docs/layout.md."""

from rl3d.agents.layout.baselines import anneal, best_of, furnish, greedy, learned, random_masked
from rl3d.agents.layout.env import LEAVE, PLACES, SceneLayout
from rl3d.agents.layout.generate import LayoutOptions, generate, load_policy, score_file
from rl3d.agents.layout.inventory import ROOM_TYPES
from rl3d.agents.layout.objective import TERMS, WEIGHTS, objective
from rl3d.agents.layout.policy import LayoutPolicy
from rl3d.agents.layout.rooms import Opening, Room
from rl3d.agents.layout.tasks import Task, Tasks, pack, sample_tasks

__all__ = [
    "LEAVE",
    "PLACES",
    "ROOM_TYPES",
    "TERMS",
    "WEIGHTS",
    "LayoutOptions",
    "LayoutPolicy",
    "Opening",
    "Room",
    "SceneLayout",
    "Task",
    "Tasks",
    "anneal",
    "best_of",
    "furnish",
    "generate",
    "greedy",
    "learned",
    "load_policy",
    "objective",
    "pack",
    "random_masked",
    "sample_tasks",
    "score_file",
]
