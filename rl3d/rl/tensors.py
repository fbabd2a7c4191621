"""What the update rules share: shape checks that explain a broadcast before it happens, and means under a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rl3d.errors import InputError


def same_shape(**tensors: Tensor) -> None:
    """All have the shape of the first.

    Raises:
        InputError: naming the first that has not. [B, 1] against [B] would silently become [B, B].
    """
    (first, model), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != model.shape:
            raise InputError(
                f"{name} must have the shape {list(model.shape)} of {first}, got {list(tensor.shape)}; expand it first"
            )


def positive(**values: float) -> None:
    """All are finite and above 0.

    Raises:
        InputError: naming the first that is not.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be positive and finite, got {value!r}")


def finite(name: str, values: Tensor, axes: Sequence[str]) -> None:
    """No NaN or infinity.

    Args:
        axes: what each dimension of `values` counts, for the message: ("group", "sample").

    Raises:
        InputError: naming the first that is not finite, and how many there are.
    """
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        places = bad.nonzero().tolist()
        where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, places[0]))
        raise InputError(
            f"{name} of {where} is {float(values[tuple(places[0])])} ({len(places)} of {values.numel()} are not "
            "finite); drop those samples, or give them the reward's worst score, before the update"
        )


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def mean_over_dims(values: Tensor, keep: int = 1) -> Tensor:
    """The mean over all dimensions after the first `keep`: [B, ...] -> [B]; [B] stays [B]."""
    return values.flatten(keep).mean(-1) if values.ndim > keep else values


def under_mask(values: Tensor, mask: Tensor | None) -> Tensor:
    """`values` where `mask`, else 0 with no gradient, also where the value is infinite or NaN."""
    if mask is None:
        return values
    same_shape(values=values, mask=mask)
    if mask.dtype != torch.bool:
        raise InputError(f"a mask is a boolean tensor, got {mask.dtype}")
    return torch.where(mask, values, torch.zeros_like(values))


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of all values that count, a scalar.

    Raises:
        InputError: a mask of another shape or type, or under which nothing counts.
    """
    if mask is None:
        return values.mean()
    total = under_mask(values, mask).sum()
    if not bool(mask.any()):
        raise InputError("the mask leaves nothing to take a mean of; skip such a batch")
    return total / mask.sum()


def row_sum(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """[..., T] -> [...]: the sum of what counts in each row."""
    return under_mask(values, mask).sum(-1)


def row_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """[..., T] -> [...]: the mean of what counts in each row; 0 in a row where nothing counts."""
    count = values.shape[-1] if mask is None else mask.sum(-1).clamp_min(1)
    return row_sum(values, mask) / count
