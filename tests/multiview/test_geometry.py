"""How a round is cut: properties over many rounds, the measurement behind it, and what a run says of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny_rounds import PROMPTS, TINY, adapter, dark, rounds
from toy_prior import ToyPrior

from rl3d.errors import InputError
from rl3d.multiview import memory
from rl3d.multiview.algorithms import rule_for
from rl3d.multiview.geometry import cut
from rl3d.multiview.loop import finetune
from rl3d.multiview.options import ALGORITHMS
from rl3d.multiview.policy import Policy
from rl3d.progress import Progress


def test_any_round_is_cut_into_the_fewest_micro_batches_that_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        draw = lambda high: int(torch.randint(1, high, (), generator=generator))  # noqa: E731
        together, prompts, processes, at_most, one, budget = draw(3), draw(12), draw(6), draw(40), draw(50), draw(900)
        group = together * draw(9)
        found = cut(prompts, group, processes, at_most, together=together, sample_bytes=one, budget=budget)
        m, limit = found.micro_batch, min(at_most, budget // one)
        assert found.rows == -(-prompts // processes) * group and found.samples == prompts * group
        assert m % together == 0 and 0 < m <= found.rows
        assert m <= limit or m == together  # one unit is always tried
        assert found.micros == -(-found.rows // m)
        allowed = [k for k in range(together, found.rows + 1, together) if k <= limit] or [together]
        fewest = min(-(-found.rows // k) for k in allowed)
        assert found.micros == fewest  # no fewer would fit,
        assert m == min(k for k in allowed if -(-found.rows // k) == fewest)  # nor smaller ones do
        more = cut(prompts, group, processes, at_most, together=together, sample_bytes=one, budget=2 * budget)
        assert more.micros <= found.micros
        assert (found.busy, found.processes) == (min(prompts, processes), processes)


def test_without_a_measurement_the_option_alone_counts() -> None:
    assert cut(3, 8, 1, 4).micro_batch == 4 == cut(3, 8, 1, 4, sample_bytes=5).micro_batch
    assert cut(3, 8, 1, 4, sample_bytes=0, budget=10).micro_batch == 4  # nothing measured is nothing needed


def test_it_is_said_in_words() -> None:
    assert cut(3, 8, 1, 5).text() == (
        "24 samples a round: 5 micro-batches of up to 5 view groups on each of 1 processes"
    )
    found = cut(3, 8, 4, 4, sample_bytes=3 << 20, budget=2 << 30).text()
    assert found == (
        "24 samples a round: 2 micro-batches of up to 4 view groups on each of 3 processes, 1 of 4 processes idle (set "
        "prompts_per_round higher); a sample keeps 3.0 MiB, 2.0 GiB may be used"
    )


def test_what_a_graph_keeps_is_counted_once_and_let_go() -> None:
    """exp keeps its result (4000 bytes), the product of it with itself the same storage: 4000; two in turn: no more."""
    x = torch.randn(1000, requires_grad=True)

    def one() -> None:
        y = x.exp()
        (y * y).sum().backward()

    assert memory.peak_bytes(one, torch.device("cpu")) == 4000
    assert memory.peak_bytes(lambda: (one(), one()), torch.device("cpu")) == 4000
    weight = torch.randn(1000, requires_grad=True)
    product = lambda: (x * weight).sum().backward()  # noqa: E731
    assert memory.peak_bytes(product, torch.device("cpu")) == 8000
    assert memory.peak_bytes(product, torch.device("cpu"), [weight]) == 4000


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_sample_is_measured_and_nothing_learned(algorithm: str) -> None:
    options = replace(TINY, algorithm=algorithm)
    policy, rule = Policy.of(ToyPrior(), options), rule_for(options, dark)
    before, state = policy.values(), torch.get_rng_state()
    start = rule.start(policy)
    found = memory.sample_bytes(policy, rule, start, policy.prior.encode_prompt(PROMPTS[0]), options)
    assert found > 0
    assert all(torch.equal(before[k], v) and v.grad is None for k, v in policy.parameters.items())
    assert torch.equal(state, torch.get_rng_state())


def test_little_memory_makes_small_micro_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, rule = Policy.of(ToyPrior(), TINY), rule_for(TINY, dark)
    prompt = policy.prior.encode_prompt(PROMPTS[0])
    one = memory.sample_bytes(policy, rule, rule.start(policy), prompt, TINY)
    plain = finetune(ToyPrior(), dark, PROMPTS, replace(TINY, micro_batch=2), tmp_path / "plain")
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(2.5 * one / memory.SHARE))
    notes: list[str] = []
    monkeypatch.setattr(Progress, "note", lambda self, text: notes.append(text))
    out = finetune(ToyPrior(), dark, PROMPTS, TINY, tmp_path / "run")
    assert [row["micro_batch"] for row in rounds(tmp_path / "run")] == [2, 2] and adapter(out) == adapter(plain)
    assert any("4 micro-batches of up to 2 view groups" in note and "a sample keeps" in note for note in notes)


def test_a_sample_that_does_not_fit_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, rule = Policy.of(ToyPrior(), TINY), rule_for(TINY, dark)
    prompt = policy.prior.encode_prompt(PROMPTS[0])

    def none(*_: object) -> int:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(memory, "sample_bytes", none)
    with pytest.raises(InputError, match="one view group at a time"):
        memory.solved(policy, rule, rule.start(policy), prompt, TINY, Accelerator(cpu=True))


def test_the_report_says_where_the_time_went(tmp_path: Path) -> None:
    finetune(ToyPrior(), dark, PROMPTS, TINY, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["shares"]) == {"rollout", "reward", "update"}
    assert sum(report["shares"].values()) == pytest.approx(1) and min(report["shares"].values()) >= 0
    whole = sum(report[f"seconds_{part}"] for part in report["shares"])
    assert report["shares"]["update"] == pytest.approx(report["seconds_update"] / whole)
    for row in rounds(tmp_path / "run"):
        spent = row["seconds_rollout"] + row["seconds_reward"] + row["seconds_update"]
        assert spent == pytest.approx(8 / row["samples_per_second"]) and row["seconds_reward_hidden"] >= 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"update {report['shares']['update']:.0%}" in page and "seconds reward hidden" in page
