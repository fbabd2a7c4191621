"""Which rule each algorithm is."""

from __future__ import annotations

from rl3d.multiview.forward_rules import AWM, NFT, DiffusionDPO, RewardWeighted
from rl3d.multiview.options import FinetuneOptions
from rl3d.multiview.path_rules import D3PO, DPOK, GRPO, Clipped
from rl3d.multiview.policy import Rule

RULES: dict[str, type] = {
    "carve3d": Clipped,
    "ddpo": Clipped,
    "dpok": DPOK,
    "grpo": GRPO,
    "d3po": D3PO,
    "nft": NFT,
    "awm": AWM,
    "rwr": RewardWeighted,
    "diffusion-dpo": DiffusionDPO,
}


def rule_for(options: FinetuneOptions) -> Rule:
    rule: Rule = RULES[options.algorithm](options)
    return rule
