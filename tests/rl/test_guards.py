"""Guards: the replay check, the budget before a step, the hinge, gradient norms, and when a run has to stop."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch

from rl3d.errors import InputError
from rl3d.rl import (
    GradientReport,
    Round,
    StopOptions,
    StopState,
    check_replay,
    clip_gradients,
    norm_hinge,
    watched,
    within_budget,
)


def test_a_replay_that_is_exact_passes_and_one_in_half_precision_does_not() -> None:
    lp = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert check_replay(lp, lp.clone()) == 0
    assert check_replay(lp, lp + 1e-7 * torch.ones_like(lp)) < 1e-6
    with pytest.raises(InputError, match="replay differs"):
        check_replay(lp, lp.bfloat16().float())
    broken = lp.clone()
    broken[2, 3] += 0.5  # 1 - exp(-0.5) = 0.393
    with pytest.raises(InputError, match=r"is 0\.393 at \[2, 3\]"):
        check_replay(lp, broken)
    broken[2, 3] = math.nan
    with pytest.raises(InputError, match=r"is inf at \[2, 3\]"):
        check_replay(lp, broken)


def test_the_budget_is_a_limit_that_nan_does_not_pass() -> None:
    assert within_budget(1e-4, 1e-4) and within_budget(-1e-9, 1e-4)
    assert not within_budget(1.1e-4, 1e-4) and not within_budget(math.nan, 1e-4) and not within_budget(math.inf, 1e-4)


def test_the_hinge_by_hand() -> None:
    """Norms 10, 5, 2.5 against 5: ratios 2, 1, 0.5, excess 1, 0, 0; mean of squares 1/3. With a margin 0.5: 0.25/3."""
    v = torch.tensor([[6.0, 8.0], [3.0, 4.0], [1.5, 2.0]], requires_grad=True)
    reference = torch.tensor([[3.0, 4.0]] * 3)
    loss = norm_hinge(v, reference)
    assert loss.item() == pytest.approx(1 / 3) and norm_hinge(v, reference, 0.5).item() == pytest.approx(0.25 / 3)
    (g,) = torch.autograd.grad(loss, v)
    # d/dv (|v|/5 - 1)^2 / 3 = 2/3 * 1 * v / (|v| 5) = 2/15 [0.6, 0.8]; none below the reference
    assert g[0].tolist() == pytest.approx([0.08, 8 / 75]) and g[1:].abs().max() == 0
    with pytest.raises(InputError, match="predicts exactly 0"):
        norm_hinge(v, torch.zeros(3, 2))


def test_the_hinge_against_finite_differences() -> None:
    v = 2 * torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reference = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert (norm_hinge(v, reference)) > 0.01
    assert torch.autograd.gradcheck(lambda x: norm_hinge(x, reference), v.requires_grad_())


def with_gradient(*values: float) -> torch.Tensor:
    p = torch.zeros(len(values), requires_grad=True)
    p.grad = torch.tensor(values)
    return p


def test_gradients_are_clipped_together_and_reported() -> None:
    """|(3, 0, 4)| = 5, to 1: a fifth."""
    one, other, idle = with_gradient(3.0, 0.0), with_gradient(4.0), torch.zeros(1, requires_grad=True)
    assert clip_gradients([one, other, idle], 1.0) == GradientReport(5.0, 0.2, True)
    assert one.grad.tolist() == pytest.approx([0.6, 0]) and other.grad.tolist() == pytest.approx([0.8])
    assert clip_gradients([one, other], 10.0).scale == 1
    assert one.grad.tolist() == pytest.approx([0.6, 0])  # below the limit: as it was


def test_large_gradients_do_not_overflow_and_broken_ones_are_left_alone() -> None:
    large = with_gradient(3e30, 4e30)
    assert clip_gradients([large], 1.0).norm == pytest.approx(5e30)
    assert large.grad.tolist() == pytest.approx([0.6, 0.8])
    good, bad = with_gradient(3.0), with_gradient(math.nan)
    report = clip_gradients([good, bad], 1.0)
    assert not report.finite and math.isnan(report.norm) and good.grad.tolist() == [3]
    assert not clip_gradients([with_gradient(math.inf)], 1.0).finite
    with pytest.raises(InputError, match="no parameter has a gradient"):
        clip_gradients([torch.zeros(1, requires_grad=True)], 1.0)
    assert clip_gradients([with_gradient(0.0)], 1.0) == GradientReport(0.0, 1.0, True)


OPTIONS = StopOptions(kl=0.1, silent=0.5, fall=0.2, patience=2)
FINE = Round(kl=0.01, silent=0.0, reward=1.0)


def run(rounds: list[Round], options: StopOptions = OPTIONS) -> tuple[StopState, list[str | None]]:
    state, reasons = StopState(), []
    for seen in rounds:
        state, reason = watched(options, state, seen)
        reasons.append(reason)
    return state, reasons


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (Round(0.2, 0.0, 1.0), "KL to the reference was above 0.1 for 2 rounds in a row, last 0.2"),
        (Round(math.nan, 0.0, 1.0), "KL to the reference was above"),
        (Round(0.0, 0.6, 1.0), "more than 50% of the groups had no signal"),
        (Round(0.0, 0.0, 1.0, broken=True), "loss or gradient was not finite for 2 rounds"),
    ],
)
def test_a_rule_rings_after_its_patience_and_not_before(bad: Round, said: str) -> None:
    _, reasons = run([FINE, bad, FINE, bad, bad])
    assert reasons[:4] == [None] * 4 and reasons[4] is not None and said in reasons[4]


def test_the_guard_judge_rings_where_it_falls_while_the_reward_rises() -> None:
    def seen(reward: float, guard: float | None) -> Round:
        return Round(0.0, 0.0, reward, guard)

    state, reasons = run([seen(1, 0.5), seen(2, 0.6), seen(3, 0.45), seen(4, 0.3), seen(5, None), seen(6, 0.35)])
    assert reasons[:5] == [None] * 5 and reasons[5] is not None and "best of round 2 for 2 looks" in reasons[5]
    assert (state.best_guard, state.best_round) == (0.6, 2)
    # a fall together with the reward is a bad round and no game; one inside `fall` is noise; a new best starts over
    assert run([seen(1, 0.6), seen(0.5, 0.3), seen(0.4, 0.2)])[1] == [None] * 3
    assert run([seen(1, 0.6), seen(2, 0.45), seen(3, 0.45)])[1] == [None] * 3
    assert run([seen(1, 0.6), seen(2, 0.3), seen(3, 0.7), seen(4, 0.4)])[1] == [None] * 4


def test_the_state_survives_json() -> None:
    rounds = [Round(0.2, 0.6, 1.0, 0.5), Round(0.01, 0.6, 1.0, 0.4), FINE]
    state = StopState()
    for seen in rounds:
        state, _ = watched(OPTIONS, state, seen)
        state = StopState(**json.loads(json.dumps(asdict(state))))
    assert state == run(rounds)[0] and state.rounds == 3


def test_bad_rounds_and_options_are_named() -> None:
    with pytest.raises(InputError, match="the guard of a round must be finite, got nan"):
        Round(0.0, 0.0, 1.0, math.nan)
    with pytest.raises(InputError, match="kl must be positive"):
        StopOptions(kl=0, silent=0.5, fall=0.2)
    with pytest.raises(InputError, match=r"patience from 1, got 0\.5 and 0"):
        StopOptions(kl=1, silent=0.5, fall=0.2, patience=0)
