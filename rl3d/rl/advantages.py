"""How much better a sample is than others of its prompt: standardised rewards, with a report of what has no signal.

All arithmetic is float64; the result has the rewards' dtype, no gradient, and is a constant to every rule. Standard
deviations are those of the population (divided by K).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rl.tensors import finite, positive, same_shape


@dataclass(frozen=True)
class Advantages:
    """Standardised rewards and where they came from.

    Attributes:
        values: in the rewards' shape and dtype, no gradient.
        mean, std: float64, of each group [G]; from a buffer, of each sample's prompt [B]. The std before the floor.
        silent: bool, as `std`: spread at or below the floor, so that the group has no signal worth a step.
        borrowed: bool, as `std`: standardised by the whole batch for want of rewards of its own prompt.
        clipped: share of the values that the limit cut, a float64 scalar.
    """

    values: Tensor
    mean: Tensor
    std: Tensor
    silent: Tensor
    borrowed: Tensor
    clipped: Tensor

    @property
    def silent_share(self) -> float:
        """Share of groups without signal, in [0, 1]; a run that learns nothing shows here first."""
        return float(self.silent.double().mean())


def group_advantages(
    rewards: Tensor,
    *,
    floor: float = 1e-6,
    scale: Literal["group", "batch"] = "group",
    limit: float | None = None,
) -> Advantages:
    """A = (r - mean_group) / max(std, floor) (GRPO, Shao et al. 2024, arXiv 2402.03300, section 4.1.2).

    Args:
        rewards: [G, K], K samples of each of G prompts.
        floor: least std, in the reward's units: the reward's own noise. A group below it is `silent`; its advantages
            shrink instead of blowing noise up to unit size, and are exactly 0 where all rewards are equal.
        scale: divide by each group's std, or by the std of all rewards of the batch (Flow-GRPO's global std, arXiv
            2505.05470), which does not weigh a prompt more for having a small spread.
        limit: |A| at most this, None: no limit. Carve3D and DDPO use 5, MVC-ZigAL 10.

    Raises:
        InputError: not [G, K]; groups of one sample (nothing to compare with: use a buffer); NaN or infinity, naming
            group and sample; a floor or limit that is not positive.
    """
    if rewards.ndim != 2 or rewards.numel() == 0:
        raise InputError(f"rewards must be [groups, samples], got {list(rewards.shape)}")
    if rewards.shape[1] == 1:
        raise InputError(
            f"{len(rewards)} groups of one sample each have no spread (group 0 is the first); draw two or more samples "
            "a prompt, or keep a RewardBuffer"
        )
    if scale not in ("group", "batch"):
        raise InputError(f"scale must be group or batch, got {scale!r}")
    positive(floor=floor)
    finite("the reward", rewards, ("group", "sample"))
    r = rewards.detach().double()
    mean, std = r.mean(1), r.std(1, correction=0)
    equal = r.amax(1) == r.amin(1)  # exact zeros, where the mean of equal numbers is off by a rounding
    std = torch.where(equal, torch.zeros_like(std), std)
    centred = torch.where(equal[:, None], torch.zeros_like(r), r - mean[:, None])
    divisor = std[:, None] if scale == "group" else r.std(correction=0)
    values, clipped = _limited(centred / divisor.clamp_min(floor), limit)
    borrowed = torch.zeros_like(equal)
    return Advantages(_like(values, rewards), mean, std, std <= floor, borrowed, clipped)


@dataclass(frozen=True)
class DecoupledAdvantages:
    """Several rewards, standardised each for itself.

    Attributes:
        values: [G, K], the weighted sum, no gradient.
        parts: each reward's own advantages, for the log.
        clipped: share of the values that the limit cut.
    """

    values: Tensor
    parts: Mapping[str, Advantages]
    clipped: Tensor

    @property
    def silent(self) -> Tensor:
        """[G] bool: groups in which no reward has a signal."""
        return torch.stack([part.silent for part in self.parts.values()]).all(0)


def decoupled_advantages(
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float],
    *,
    floors: Mapping[str, float],
    rescale: bool = False,
    limit: float | None = None,
) -> DecoupledAdvantages:
    """A = sum_n w_n A_n with A_n standardised per reward and group (MixGRPO, arXiv 2507.21802; GDPO, arXiv 2601.05242).

    A sum of raw rewards is dominated by the one with the largest spread; here each has its weight's share.

    Args:
        rewards: by name, each [G, K]. weights, floors: one for each; see `group_advantages`.
        rescale: GDPO's last step, standardise the sum over the whole batch, so that its size does not depend on how
            many rewards there are.
        limit: on |A| after all that.

    Raises:
        InputError: as `group_advantages`, naming the reward; other names in weights or floors; other shapes.
    """
    if not rewards or set(weights) != set(rewards) or set(floors) != set(rewards):
        raise InputError(
            f"every reward needs a weight and a floor: rewards {sorted(rewards)}, weights {sorted(weights)}, floors "
            f"{sorted(floors)}"
        )
    same_shape(**dict(rewards))
    parts: dict[str, Advantages] = {}
    for name, r in rewards.items():
        try:
            parts[name] = group_advantages(r, floor=floors[name])
        except InputError as error:
            raise InputError(f"reward {name!r}: {error}") from None
    total = torch.stack([weights[name] * part.values.double() for name, part in parts.items()]).sum(0)
    if rescale:
        total = (total - total.mean()) / total.std(correction=0).clamp_min(1e-6)
    values, clipped = _limited(total, limit)
    return DecoupledAdvantages(_like(values, next(iter(rewards.values()))), parts, clipped)


def carve3d_advantages(z_reward: Tensor, z_kl: Tensor, *, alpha: float = 0.2, limit: float = 5.0) -> Tensor:
    """A = z(r) - alpha z(k), |A| <= limit (Carve3D, Xie et al. 2024, arXiv 2312.13980).

    k = mean_t[log p_theta - log p_ref] on the sampled path, standardised like the reward. Near the reference all k are
    nearly 0 and their std too: give z(k) a floor (`group_advantages(k, floor=...)`) of the size from which a
    difference of k matters, or rounding becomes a penalty of unit size.

    Args:
        z_reward, z_kl: the same shape. alpha: weight of the KL penalty.
    """
    same_shape(z_reward=z_reward, z_kl=z_kl)
    values, _ = _limited(z_reward.detach().double() - alpha * z_kl.detach().double(), limit)
    return _like(values, z_reward)


@dataclass(frozen=True)
class RewardBuffer:
    """The last rewards of each prompt, oldest first; a value that is passed in and out, saved as tensors.

    Attributes:
        rewards: [P, C] float64 on the CPU, C the capacity; unused places are 0.
        count: [P] int64, places in use.
    """

    rewards: Tensor
    count: Tensor

    def __post_init__(self) -> None:
        if self.rewards.ndim != 2 or self.count.shape != self.rewards.shape[:1]:
            raise InputError(
                f"a buffer holds rewards [P, C] and count [P], got {list(self.rewards.shape)} and "
                f"{list(self.count.shape)}"
            )
        if self.rewards.dtype != torch.float64 or self.count.dtype != torch.int64:
            raise InputError(
                f"a buffer holds float64 and int64 tensors, got {self.rewards.dtype} and {self.count.dtype}"
            )
        if bool(((self.count < 0) | (self.count > self.rewards.shape[1])).any()):
            raise InputError("a buffer's count must lie between 0 and its capacity; a broken file?")

    @staticmethod
    def empty(prompts: int, capacity: int) -> RewardBuffer:
        """For P prompts; Carve3D keeps about three epochs of a prompt's samples, DDPO 16 to 32."""
        if prompts < 1 or capacity < 2:
            raise InputError(f"a buffer needs prompts and a capacity of at least 2, got {prompts} and {capacity}")
        return RewardBuffer(
            torch.zeros(prompts, capacity, dtype=torch.float64), torch.zeros(prompts, dtype=torch.int64)
        )

    def tensors(self) -> dict[str, Tensor]:
        """For a safetensors file; `RewardBuffer(**tensors)` is the way back."""
        return {"rewards": self.rewards, "count": self.count}


def pushed(buffer: RewardBuffer, prompts: Tensor, rewards: Tensor) -> RewardBuffer:
    """The buffer with more rewards, the oldest of a full prompt dropped.

    Args:
        prompts: [B] whole numbers in [0, P). rewards: [B], in the order in which they came.

    Raises:
        InputError: shapes, a prompt outside the buffer, or a reward that is not finite.
    """
    index, r = _checked(buffer, prompts, rewards)
    table, count = buffer.rewards.clone(), buffer.count.clone()
    for p in index.unique().tolist():
        kept = torch.cat([table[p, : count[p]], r[index == p]])[-table.shape[1] :]
        table[p, : len(kept)], count[p] = kept, len(kept)
    return RewardBuffer(table, count)


def buffer_advantages(
    buffer: RewardBuffer,
    prompts: Tensor,
    rewards: Tensor,
    *,
    min_count: int,
    floor: float = 1e-6,
    limit: float | None = 5.0,
) -> Advantages:
    """Rewards standardised by what the buffer knows of each prompt (DDPO, arXiv 2305.13301, section 5; Carve3D).

    Push the new rewards first: both papers count them in. A prompt with fewer than `min_count` rewards is standardised
    by the whole batch instead, as in DDPO, and says so in `borrowed`; Carve3D only fills its buffer in the first epoch.

    Args:
        prompts, rewards: [B]. min_count: 16 in DDPO, 25 in Carve3D. floor, limit: as in `group_advantages`.

    Raises:
        InputError: as `pushed`; a min_count below 2 or above the capacity; a batch of one that has to be borrowed from.
    """
    index, r = _checked(buffer, prompts, rewards)
    if not 2 <= min_count <= buffer.rewards.shape[1]:
        raise InputError(f"min_count must lie in [2, capacity {buffer.rewards.shape[1]}], got {min_count}")
    positive(floor=floor)
    count = buffer.count[index]
    borrowed = count < min_count
    if len(r) == 1 and bool(borrowed):
        raise InputError(
            f"prompt {int(index)} has {int(count)} rewards of the {min_count} it needs, and a batch of one has no "
            "spread to borrow; fill the buffer first"
        )
    mean, std = _moments(buffer)
    mean = torch.where(borrowed, r.mean(), mean[index])
    std = torch.where(borrowed, r.std(correction=0) if len(r) > 1 else r.new_zeros(()), std[index])
    values, clipped = _limited((r - mean) / std.clamp_min(floor), limit)
    return Advantages(_like(values, rewards), mean, std, std <= floor, borrowed, clipped)


def _moments(buffer: RewardBuffer) -> tuple[Tensor, Tensor]:
    """Mean and std [P] of what each prompt has; 0 where it has nothing."""
    used = torch.arange(buffer.rewards.shape[1]) < buffer.count[:, None]
    count = buffer.count.clamp_min(1)
    mean = torch.where(used, buffer.rewards, 0.0).sum(1) / count
    apart = torch.where(used, buffer.rewards - mean[:, None], 0.0)
    return mean, (apart.square().sum(1) / count).sqrt()


def _checked(buffer: RewardBuffer, prompts: Tensor, rewards: Tensor) -> tuple[Tensor, Tensor]:
    if rewards.ndim != 1 or rewards.numel() == 0 or prompts.is_floating_point():
        raise InputError(
            f"a buffer takes prompts [B] as whole numbers and rewards [B], got {list(prompts.shape)} of "
            f"{prompts.dtype} and {list(rewards.shape)}"
        )
    same_shape(rewards=rewards, prompts=prompts)
    index, r = prompts.cpu().long(), rewards.detach().double().cpu()
    if bool(((index < 0) | (index >= len(buffer.count))).any()):
        raise InputError(f"prompts must lie in [0, {len(buffer.count)}), got {int(index.min())} to {int(index.max())}")
    finite("the reward", r, ("sample",))
    return index, r


def _limited(values: Tensor, limit: float | None) -> tuple[Tensor, Tensor]:
    """Values within the limit, and the share that was not."""
    if limit is None:
        return values, values.new_zeros(())
    if not (math.isfinite(limit) and limit > 0):
        raise InputError(f"limit must be positive and finite, or None, got {limit!r}")
    return values.clamp(-limit, limit), (values.abs() > limit).double().mean()


def _like(values: Tensor, rewards: Tensor) -> Tensor:
    """In the rewards' dtype and on their device; whole numbers become the default float."""
    dtype = rewards.dtype if rewards.is_floating_point() else torch.get_default_dtype()
    return values.to(rewards.device, dtype)
