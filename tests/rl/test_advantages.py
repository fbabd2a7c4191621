"""Advantages by hand, groups without signal, bad rewards by name, and buffers that equal one pass over everything."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl3d.errors import InputError
from rl3d.rl import (
    RewardBuffer,
    buffer_advantages,
    carve3d_advantages,
    decoupled_advantages,
    group_advantages,
    pushed,
)


def test_two_groups_by_hand() -> None:
    """[1, 2, 3]: mean 2, variance (1 + 0 + 1) / 3 = 2/3. [0, 0, 6]: mean 2, variance (4 + 4 + 16) / 3 = 8."""
    a = group_advantages(torch.tensor([[1.0, 2, 3], [0, 0, 6]]))
    assert a.mean.tolist() == [2, 2]
    assert a.std.tolist() == pytest.approx([math.sqrt(2 / 3), math.sqrt(8)])
    assert a.values[0].tolist() == pytest.approx([-1 / math.sqrt(2 / 3), 0, 1 / math.sqrt(2 / 3)])
    assert a.values[1].tolist() == pytest.approx([-2 / math.sqrt(8), -2 / math.sqrt(8), 4 / math.sqrt(8)])
    assert a.values.dtype == torch.float32 and a.mean.dtype == torch.float64
    assert not a.silent.any() and not a.borrowed.any() and float(a.clipped) == 0


def test_the_batch_scale_divides_by_one_std() -> None:
    """All six of [1, 3], [0, 10]: mean 3.5, squares 6.25 + 0.25 + 12.25 + 42.25 = 61, variance 61 / 4."""
    a = group_advantages(torch.tensor([[1.0, 3], [0, 10]]), scale="batch")
    s = math.sqrt(61 / 4)
    assert a.values.flatten().tolist() == pytest.approx([-1 / s, 1 / s, -5 / s, 5 / s])


def test_the_limit_cuts_and_counts() -> None:
    """Nine zeros and a one: mean 0.1, variance 0.09, so the one has z = 0.9 / 0.3 = 3 and the zeros -1/3."""
    rewards = torch.tensor([[0.0] * 9 + [1.0]])
    a = group_advantages(rewards, limit=2)
    assert a.values[0].tolist() == pytest.approx([-1 / 3] * 9 + [2])
    assert float(a.clipped) == pytest.approx(0.1)


def test_groups_without_signal_are_named_and_still() -> None:
    """0.1 three times has a mean that is off by a rounding; divided by a floor of 1e-6 it would not be 0."""
    rewards = torch.tensor([[0.1, 0.1, 0.1], [1.0, 2.0, 3.0], [5.0, 5.0 + 1e-4, 5.0]], dtype=torch.float64)
    a = group_advantages(rewards, floor=1e-3)
    assert a.silent.tolist() == [True, False, True] and a.silent_share == pytest.approx(2 / 3)
    assert a.values[0].tolist() == [0, 0, 0]
    # the third group's differences are noise below the floor: (1e-4 * 2/3) / 1e-3, not sqrt(2) as at a floor of 0
    assert a.values[2].tolist() == pytest.approx([-1 / 30, 2 / 30, -1 / 30], rel=1e-6)


def test_equal_rewards_of_any_size_are_silent() -> None:
    """The mean of seven times 1e12 + 0.1 is off by 1e-4, which would be a std above the floor."""
    rewards = torch.full((1, 7), 1e12 + 0.1, dtype=torch.float64)
    assert float((rewards.mean() - rewards[0, 0]).abs()) > 1e-5
    a = group_advantages(rewards)
    assert a.silent.tolist() == [True] and a.std.tolist() == [0] and a.values[0].tolist() == [0] * 7


def test_float64_inside() -> None:
    """Float32 sums of a thousand rewards around 1e4 lose the differences of 1e-3 that float64 keeps."""
    rewards = 1e4 + torch.arange(1024).reshape(1, -1) % 2 * 0.001
    a = group_advantages(rewards.float())
    low, high = float(rewards.float().min()), float(rewards.float().max())
    assert high > low  # still two values in float32, a spacing of 0.00098
    assert a.values.unique().tolist() == pytest.approx([-1, 1], abs=1e-6)


def test_no_gradient_comes_through() -> None:
    rewards = torch.tensor([[1.0, 2.0]], requires_grad=True)
    assert not group_advantages(rewards).values.requires_grad


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        (torch.tensor([[1.0, 2.0], [3.0, math.nan]]), "group 1, sample 1 is nan"),
        (torch.tensor([[1.0, -math.inf], [3.0, 2.0]]), "group 0, sample 1 is -inf"),
        (torch.tensor([[1.0], [2.0]]), "2 groups of one sample"),
        (torch.tensor([1.0, 2.0]), r"\[groups, samples\], got \[2\]"),
        (torch.zeros(0, 3), r"got \[0, 3\]"),
    ],
)
def test_bad_rewards_are_named(rewards: torch.Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said):
        group_advantages(rewards)


def test_bad_options_are_named() -> None:
    rewards = torch.tensor([[1.0, 2.0]])
    with pytest.raises(InputError, match="floor must be positive"):
        group_advantages(rewards, floor=0)
    with pytest.raises(InputError, match="limit must be positive"):
        group_advantages(rewards, limit=-1)
    with pytest.raises(InputError, match="scale must be group or batch"):
        group_advantages(rewards, scale="prompt")  # type: ignore[arg-type]


def test_rewards_of_any_scale_have_the_same_say() -> None:
    """Opposite rewards, one a thousand times larger: decoupled they cancel, summed raw the large one wins alone."""
    small, large = torch.tensor([[0.0, 1, 2]]), torch.tensor([[2000.0, 1000, 0]])
    a = decoupled_advantages({"s": small, "l": large}, {"s": 1.0, "l": 1.0}, floors={"s": 1e-6, "l": 1e-3})
    assert a.values[0].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert group_advantages(small + large).values[0].tolist() == pytest.approx([1.2247, 0, -1.2247], abs=1e-3)
    twice = decoupled_advantages({"s": small, "l": large}, {"s": 2.0, "l": 1.0}, floors={"s": 1e-6, "l": 1e-3})
    assert twice.values[0].tolist() == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)], abs=1e-6)


def test_gdpo_rescales_the_sum() -> None:
    """z of [0, 1] is [-1, 1]. Two equal rewards sum to [-2, 2], over the batch std 2: [-1, 1] again."""
    r = torch.tensor([[0.0, 1.0]])
    options = {"weights": {"a": 1.0, "b": 1.0}, "floors": {"a": 1e-6, "b": 1e-6}}
    assert decoupled_advantages({"a": r, "b": r}, **options).values.tolist() == [[-2, 2]]
    assert decoupled_advantages({"a": r, "b": r}, **options, rescale=True).values.tolist() == [[-1, 1]]
    cut = decoupled_advantages({"a": r, "b": r}, **options, limit=1.5)
    assert cut.values.tolist() == [[-1.5, 1.5]] and float(cut.clipped) == 1


def test_a_group_is_silent_only_where_every_reward_is() -> None:
    a, b = torch.tensor([[1.0, 1], [1, 1]]), torch.tensor([[0.0, 1], [2, 2]])
    both = decoupled_advantages({"a": a, "b": b}, {"a": 1.0, "b": 1.0}, floors={"a": 1e-6, "b": 1e-6})
    assert both.parts["a"].silent.tolist() == [True, True] and both.silent.tolist() == [False, True]


def test_decoupled_errors_name_the_reward() -> None:
    good, bad = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, math.nan]])
    with pytest.raises(InputError, match="reward 'mrc': the reward of group 0, sample 1 is nan"):
        decoupled_advantages({"clip": good, "mrc": bad}, {"clip": 1.0, "mrc": 1.0}, floors={"clip": 1, "mrc": 1})
    with pytest.raises(InputError, match="every reward needs a weight and a floor"):
        decoupled_advantages({"clip": good}, {"clap": 1.0}, floors={"clip": 1})


def test_carve3d_by_hand() -> None:
    """1 - 0.2 * 2 = 0.6; 7 - 0.2 * (-1) = 7.2, cut to 5."""
    a = carve3d_advantages(torch.tensor([1.0, 7.0]), torch.tensor([2.0, -1.0]))
    assert a.tolist() == pytest.approx([0.6, 5.0])


def test_the_floor_keeps_the_penalty_off_near_the_reference() -> None:
    """k of 1e-9 is rounding: z(k) is of unit size without a floor, and nothing with one."""
    k = torch.tensor([[1e-9, 3e-9, 2e-9]], dtype=torch.float64)
    assert group_advantages(k, floor=1e-30).values.abs().max() > 1
    assert group_advantages(k, floor=1e-5).values.abs().max() < 1e-3


# The buffer


def random_rounds(rounds: int, prompts: int, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randint(prompts, (batch,), generator=generator), torch.randn(batch, generator=generator))
        for _ in range(rounds)
    ]


def test_a_buffer_equals_one_pass_over_everything() -> None:
    rounds = random_rounds(5, 3, 16)
    buffer = RewardBuffer.empty(3, 200)
    for prompts, rewards in rounds:
        buffer = pushed(buffer, prompts, rewards)
    all_prompts, all_rewards = (torch.cat(x) for x in zip(*rounds))
    prompts, rewards = rounds[-1]
    a = buffer_advantages(buffer, prompts, rewards, min_count=2, limit=None)
    for p, r, value in zip(prompts, rewards, a.values):
        mine = all_rewards[all_prompts == p].double()
        assert float(value) == pytest.approx(float((r - mine.mean()) / mine.std(correction=0)), abs=1e-6)


def test_the_oldest_rewards_leave_first() -> None:
    rounds = random_rounds(6, 2, 8)
    buffer = RewardBuffer.empty(2, 5)
    for prompts, rewards in rounds:
        before = buffer
        buffer = pushed(buffer, prompts, rewards)
        assert buffer is not before
    all_prompts, all_rewards = (torch.cat(x) for x in zip(*rounds))
    for p in (0, 1):
        assert buffer.rewards[p].tolist() == all_rewards[all_prompts == p][-5:].double().tolist()


def test_pushing_changes_no_buffer_in_place() -> None:
    empty = RewardBuffer.empty(1, 3)
    pushed(empty, torch.tensor([0]), torch.tensor([1.0]))
    assert empty.count.tolist() == [0] and empty.rewards.tolist() == [[0, 0, 0]]


def test_a_prompt_with_few_rewards_borrows_from_the_batch() -> None:
    """Prompt 0 has [0, 2]: mean 1, std 1. Prompt 1 has one reward; the batch [2, 8] has mean 5 and std 3."""
    buffer = pushed(RewardBuffer.empty(2, 10), torch.tensor([0]), torch.tensor([0.0]))
    prompts, rewards = torch.tensor([0, 1]), torch.tensor([2.0, 8.0])
    buffer = pushed(buffer, prompts, rewards)
    a = buffer_advantages(buffer, prompts, rewards, min_count=2)
    assert a.borrowed.tolist() == [False, True]
    assert a.values.tolist() == pytest.approx([1, 1]) and a.std.tolist() == pytest.approx([1, 3])
    with pytest.raises(InputError, match=r"prompt 1 has 1 rewards of the 2"):
        buffer_advantages(buffer, torch.tensor([1]), torch.tensor([8.0]), min_count=2)


def test_a_buffer_survives_a_file(tmp_path: Path) -> None:
    buffer = RewardBuffer.empty(3, 4)
    for prompts, rewards in random_rounds(2, 3, 6):
        buffer = pushed(buffer, prompts, rewards)
    save_file(buffer.tensors(), tmp_path / "buffer.safetensors")
    back = RewardBuffer(**load_file(tmp_path / "buffer.safetensors"))
    prompts, rewards = random_rounds(3, 3, 6)[-1]
    one, other = pushed(buffer, prompts, rewards), pushed(back, prompts, rewards)
    assert torch.equal(one.rewards, other.rewards) and torch.equal(one.count, other.count)


def test_bad_buffers_and_pushes_are_named() -> None:
    buffer = RewardBuffer.empty(2, 4)
    with pytest.raises(InputError, match=r"lie in \[0, 2\), got 0 to 2"):
        pushed(buffer, torch.tensor([0, 2]), torch.tensor([1.0, 1.0]))
    with pytest.raises(InputError, match="the reward of sample 1 is nan"):
        pushed(buffer, torch.tensor([0, 1]), torch.tensor([1.0, math.nan]))
    with pytest.raises(InputError, match="prompts must have the shape"):
        pushed(buffer, torch.tensor([0]), torch.tensor([1.0, 2.0]))
    with pytest.raises(InputError, match=r"min_count must lie in \[2, capacity 4\]"):
        buffer_advantages(buffer, torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), min_count=5)
    with pytest.raises(InputError, match="a broken file"):
        RewardBuffer(buffer.rewards, torch.tensor([5, 0]))
    with pytest.raises(InputError, match="float64 and int64"):
        RewardBuffer(buffer.rewards.float(), buffer.count)
