"""`rl3d rewards`: the list, a calibration with its exit code, and wrong arguments."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rl3d.rewards.check import Calibration, CaseResult


def test_list(rl3d: Any) -> None:
    done = rl3d("rewards", "list")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == [
        "judge", "depth_normal", "symmetry", "connectedness", "stability", "reward3d", "rewardcs-mini", "hfdream",
        "hull", "mrc", "epipolar",
    ]  # fmt: skip
    rows = json.loads(rl3d("rewards", "list", "--json").out)
    assert all(row["calibrated"] for row in rows) and rows[0]["licence"] == "Apache-2.0"


@pytest.mark.parametrize(("worse", "code", "verdict"), [(0.5, 0, "passes"), (1.5, 1, "fails: floaters")])
def test_check_prints_the_table_and_fails_by_name(
    rl3d: Any, monkeypatch: pytest.MonkeyPatch, worse: float, code: int, verdict: str
) -> None:
    asked: list[Any] = []

    def check(reward: Any, cases: Any) -> Calibration:
        asked.append((reward.name, cases))
        return Calibration(reward.name, (CaseResult("floaters", 1.0, worse, float(worse < 1), 16, True),))

    monkeypatch.setattr("rl3d.rewards.check_reward", check)
    done = rl3d("rewards", "check", "stability", "--case", "floaters")
    assert done.code == code and f"reward 'stability' {verdict}" in done.out
    assert asked == [("stability", ["floaters"])]
    done = rl3d("rewards", "check", "stability", "--json")
    assert done.code == code and json.loads(done.out)["failed"] == (["floaters"] if code else [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check",), "name the reward to check"),
        (("check", "juge"), "did you mean 'judge'"),
        (("check", "gold"), "only measures"),
        (("check", "stability", "--case", "leening"), "known: leaning"),
        (("list", "judge"), "takes no name"),
        (("chek",), "invalid choice"),
    ],
)
def test_wrong_arguments(rl3d: Any, arguments: tuple[str, ...], message: str) -> None:
    done = rl3d("rewards", *arguments)
    assert done.code == 2 and message in done.err and done.out == ""
