"""Yes/no questions as a reward: what a vision-language judge answers, counted (DreamDPO, arXiv 2502.04370)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rewards.protocol import FunctionReward, RewardInput

Judge = Callable[[RewardInput, str], Tensor | Sequence[bool]]


def yes_no(judge: Judge, questions: Sequence[str], views: int | None = None, licence: str = "none") -> FunctionReward:
    """A reward that is the number of questions to which `judge` says yes; not differentiable.

    Args:
        judge: gets the views and one question, gives B answers, one an asset: true or false, or 0 or 1.
        questions: such as "Is the barrel red?"; one point each.
        views, licence: as in `rl3d.reward`.

    Raises:
        InputError: no questions; later, an answer that is neither yes nor no, or not one an asset.
    """
    asked = tuple(questions)
    if isinstance(questions, str) or not asked:
        raise InputError(f"yes_no needs a list of questions, got {questions!r}")

    def count(x: RewardInput) -> Tensor:
        points = torch.zeros(len(x.prompts))
        for question in asked:
            answers = torch.as_tensor(judge(x, question)).to("cpu", torch.float32)
            if tuple(answers.shape) != tuple(points.shape) or not bool(((answers == 0) | (answers == 1)).all()):
                came = answers.tolist()
                raise InputError(
                    f"a yes/no judge gives {len(points)} answers, true or false, to {question!r}; got {came}"
                )
            points += answers
        return points

    return FunctionReward(count, "yes_no", views, False, (0.0, float(len(asked))), licence)
