"""Running means and spreads of observations and returns, as values that go in and come out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rl.tensors import same_shape


@dataclass(frozen=True)
class RunningMoments:
    """Mean and variance of everything seen so far; float64, three tensors for a safetensors file.

    Attributes:
        mean, variance: [...], of the population. count: [], float64.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    @staticmethod
    def empty(*shape: int, device: torch.device | str = "cpu") -> RunningMoments:
        """Nothing seen: `normalised` leaves values as they are."""
        zero = torch.zeros(shape, dtype=torch.float64, device=device)
        return RunningMoments(zero, torch.ones_like(zero), torch.zeros((), dtype=torch.float64, device=device))

    @torch.no_grad()
    def seen(self, batch: Tensor) -> RunningMoments:
        """With a batch [B, ...] more (Chan et al. 1979); the order of batches does not matter beyond rounding.

        Raises:
            InputError: another shape, or values that are not finite.
        """
        if batch.shape[1:] != self.mean.shape or len(batch) == 0:
            raise InputError(f"the batch must be [B, *{list(self.mean.shape)}], got {list(batch.shape)}")
        x = batch.to(self.mean)
        if not bool(torch.isfinite(x).all()):
            raise InputError("an observation or return is not finite; look at the environment before normalising it")
        n = len(x)
        total = self.count + n
        apart = x.mean(0) - self.mean
        mean = self.mean + apart * n / total
        squares = self.variance * self.count + x.var(0, correction=0) * n + apart**2 * self.count * n / total
        return RunningMoments(mean, squares / total, total)

    def normalised(self, x: Tensor, limit: float = 10.0) -> Tensor:
        """(x - mean) / std within [-limit, limit], in the dtype of x [..., *shape]."""
        return ((x - self.mean.to(x)) / self.std.to(x)).clamp(-limit, limit)

    @property
    def std(self) -> Tensor:
        """float64, at least 1e-4."""
        return self.variance.sqrt().clamp_min(1e-4)


@dataclass(frozen=True)
class ReturnScale:
    """Rewards divided by the spread of discounted returns, so that a value function sees numbers of size 1.

    Rewards are not centred: that would change what is best where episodes have different lengths.

    Attributes:
        moments: of the discounted returns, scalars. running: [N], each environment's return so far.
    """

    moments: RunningMoments
    running: Tensor

    @staticmethod
    def empty(count: int, device: torch.device | str = "cpu") -> ReturnScale:
        return ReturnScale(RunningMoments.empty(device=device), torch.zeros(count, dtype=torch.float64, device=device))

    def seen(self, rewards: Tensor, done: Tensor, gamma: float) -> ReturnScale:
        """After one step: R <- gamma R + r, which begins anew in each environment that is done.

        Args:
            rewards: [N]. done: [N] bool, terminated or truncated by this step.
        """
        same_shape(running=self.running, rewards=rewards, done=done)
        running = gamma * self.running + rewards.detach().to(self.running)
        return ReturnScale(self.moments.seen(running), torch.where(done, torch.zeros_like(running), running))

    def scaled(self, rewards: Tensor, limit: float = 10.0) -> Tensor:
        """r / std(R) within [-limit, limit], in the rewards' dtype."""
        return (rewards / self.moments.std.to(rewards)).clamp(-limit, limit)
