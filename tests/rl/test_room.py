"""The room as a whole: what it imports, what it shows, and its log lines."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch

import rl3d.rl
from rl3d.errors import InputError
from rl3d.rl import as_floats, group_advantages
from rl3d.rl.tensors import finite, masked_mean, row_mean, same_shape

ROOM = Path(rl3d.rl.__file__).parent


def test_it_knows_nothing_of_the_rest_of_the_house() -> None:
    found = set()
    for path in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                found.add(node.module)
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
    ours = {name for name in found if name.startswith("rl3d")}
    assert "rl3d.rl.tensors" in ours  # the walk sees them
    assert {name for name in ours if not name.startswith("rl3d.rl.")} == {"rl3d.errors"}


def test_every_rule_has_a_row_in_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rl.md").read_text(encoding="utf-8")
    functions = [name for name in rl3d.rl.__all__ if name[0].islower()]
    assert len(functions) > 25
    assert [name for name in functions if f"`{name}`" not in page and f".{name}`" not in page] == [
        "exponential_weights",
        "matching_log_probs",
        "optimality",
        "squared_error",
    ]  # parts of rules that have one


def test_scalars_are_logged_and_tensors_left_out() -> None:
    floats = as_floats(group_advantages(torch.tensor([[0.0, 1.0], [2.0, 2.0]]), limit=0.5), "reward/")
    assert floats == {"reward/clipped": 0.5}


def test_means_by_hand() -> None:
    """Rows [1, 2, 4] under [1, 1, 0] and [5, 6, 7] under nothing: 1.5 and 0; over all that counts (1 + 2) / 2."""
    values = torch.tensor([[1.0, 2.0, 4.0], [5.0, 6.0, 7.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert row_mean(values, mask).tolist() == [1.5, 0]
    assert row_mean(values).tolist() == pytest.approx([7 / 3, 6])
    assert masked_mean(values, mask).item() == 1.5


def test_messages_name_what_was_wrong() -> None:
    with pytest.raises(InputError, match=r"b must have the shape \[2\] of a, got \[2, 1\]; expand it first"):
        same_shape(a=torch.zeros(2), b=torch.zeros(2, 1))
    with pytest.raises(InputError, match=r"the score of prompt 1, view 0 is nan \(2 of 4 are not finite\)"):
        finite("the score", torch.tensor([[0.0, 1.0], [math.nan, math.inf]]), ("prompt", "view"))
