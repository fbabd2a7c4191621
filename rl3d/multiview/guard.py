"""Who guards a fine-tuning run: a reward that is not optimised. The gold judge never does, it only measures."""

from __future__ import annotations

from rl3d.errors import ConfigError, InputError, RL3DError
from rl3d.multiview.options import FinetuneOptions
from rl3d.rewards.compose import contains
from rl3d.rewards.embedded import load
from rl3d.rewards.protocol import Reward

CANDIDATES = ("judge", "hull")  # the first that is not optimised


def guard_for(options: FinetuneOptions, reward: Reward, device: str) -> Reward | None:
    """The reward that `watch.guard` names, or one that is not optimised; None where nobody looks.

    Raises:
        ConfigError: the guard is the optimised reward, or is made of it.
        RL3DError: no reward of that name, or its files are missing or broken.
    """
    named = options.watch.guard
    if options.watch.every == 0:
        return None
    if named != "auto":
        guard = load(named, device)
        if contains(reward, guard) or contains(guard, reward):
            raise ConfigError(
                f"watch.guard {named!r} is what is optimised ({reward.name}); a guard that rises with the reward sees "
                "no hack; name another one, or leave it auto"
            )
        return guard
    for name in CANDIDATES:
        try:
            guard = load(name, device)
        except RL3DError:
            continue
        if not contains(reward, guard):
            return guard
    raise InputError("no embedded reward is left to guard the run; name one with watch.guard, or set watch.every=0")
