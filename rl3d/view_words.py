"""Where a viewer stands, in words: "front view", "side view", "back view", "overhead view" (DreamFusion, Poole et al.
2022, arXiv 2209.14988, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rl3d.cameras import Cameras

VIEW_SUFFIXES = (", front view", ", side view", ", back view", ", overhead view")
FRONT, SIDE, BACK, OVERHEAD = range(4)


def view_indices(cameras: Cameras) -> Tensor:
    """Which of `VIEW_SUFFIXES` each of N cameras sees: [N] int64.

    Front within 45 degrees of +Z, back within 45 degrees of -Z, side between, overhead above 60 degrees of elevation.
    """
    eye = cameras.centres  # [N, 3]
    turn = torch.atan2(eye[:, 0], eye[:, 2]).abs()
    elevation = torch.atan2(eye[:, 1], eye[:, [0, 2]].norm(dim=-1))
    index = torch.full_like(turn, SIDE, dtype=torch.long)
    index[turn <= math.pi / 4] = FRONT
    index[turn >= 3 * math.pi / 4] = BACK
    index[elevation > math.pi / 3] = OVERHEAD
    return index
