"""Random numbers that depend on the seed and the place in the run alone: resuming or sharing changes nothing."""

from __future__ import annotations

import torch


def seed_for(seed: int, *keys: int) -> int:
    """A seed of its own for every place, named by whole numbers."""
    mixed = seed
    for key in keys:
        mixed = (mixed * 1_000_003 + key + 1) % (2**63 - 1)
    return mixed


def generator_for(seed: int, *keys: int) -> torch.Generator:
    """A CPU generator of `seed_for`."""
    return torch.Generator().manual_seed(seed_for(seed, *keys))
