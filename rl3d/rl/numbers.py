"""From a rule's numbers to a log line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import Tensor


def as_floats(numbers: Any, prefix: str = "") -> dict[str, float]:
    """The fields of a rule's frozen dataclass by name, as floats; tensors that are not scalars are left out.

    The rules return scalar tensors without gradients, so that a step on a GPU does not wait for its log; this waits.
    """
    values = ((f.name, getattr(numbers, f.name)) for f in fields(numbers))
    return {prefix + name: float(v) for name, v in values if not isinstance(v, Tensor) or v.ndim == 0}
