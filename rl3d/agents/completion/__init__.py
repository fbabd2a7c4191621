"""Point-cloud completion: clouds and corruptions, models, the environment, the agent and its selector.

See docs/completion.md.
"""

from rl3d.agents.completion.agent import ShiftAgent, best_of, hill_climb
from rl3d.agents.completion.complete import Completed, CompletionOptions, complete, complete_file, load_models
from rl3d.agents.completion.env import LatentCompletion
from rl3d.agents.completion.furniture import furniture_parts
from rl3d.agents.completion.objective import TERMS, Judge, Parts, Weights, parts_of
from rl3d.agents.completion.select import accepted, evidence, select

__all__ = [
    "TERMS",
    "Completed",
    "CompletionOptions",
    "Judge",
    "LatentCompletion",
    "Parts",
    "ShiftAgent",
    "Weights",
    "accepted",
    "best_of",
    "complete",
    "complete_file",
    "evidence",
    "furniture_parts",
    "hill_climb",
    "load_models",
    "parts_of",
    "select",
]
