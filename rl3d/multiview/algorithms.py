"""Which rule each algorithm is."""

from __future__ import annotations

from collections.abc import Callable

from rl3d.multiview.backprop_rules import DRaFT, ReFL
from rl3d.multiview.forward_rules import AWM, NFT, DiffusionDPO, RewardWeighted
from rl3d.multiview.options import FinetuneOptions
from rl3d.multiview.path_rules import D3PO, DPOK, GRPO, Clipped
from rl3d.multiview.policy import Rule
from rl3d.multiview.zigal import ZigAL
from rl3d.rewards.protocol import Reward

RULES: dict[str, Callable[[FinetuneOptions], Rule]] = {
    "carve3d": Clipped,
    "ddpo": Clipped,
    "dpok": DPOK,
    "grpo": GRPO,
    "d3po": D3PO,
    "nft": NFT,
    "awm": AWM,
    "rwr": RewardWeighted,
    "diffusion-dpo": DiffusionDPO,
    "zigal": ZigAL,
}
OF_A_GRADIENT: dict[str, Callable[[FinetuneOptions, Reward], Rule]] = {"refl": ReFL, "draft": DRaFT}


def rule_for(options: FinetuneOptions, reward: Reward) -> Rule:
    """The rule of `options.algorithm`.

    Raises:
        ConfigError: it follows the reward's gradient, and that reward has none.
    """
    if options.algorithm in OF_A_GRADIENT:
        return OF_A_GRADIENT[options.algorithm](options, reward)
    return RULES[options.algorithm](options)
