"""Fine-tuning of multi-view diffusion on rewards: rollouts that can be replayed, rules, guards, one loop.

The names load on first use, so that `rl3d finetune --help` does not pay for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl3d.multiview.loop import finetune as finetune
    from rl3d.multiview.options import FinetuneOptions as FinetuneOptions
    from rl3d.multiview.rollouts import Path as Path
    from rl3d.multiview.rollouts import replay as replay
    from rl3d.multiview.rollouts import rollout as rollout
    from rl3d.multiview.sampler_options import SamplerOptions as SamplerOptions

_HOME = {
    "FinetuneOptions": "options",
    "Path": "rollouts",
    "SamplerOptions": "sampler_options",
    "finetune": "loop",
    "replay": "rollouts",
    "rollout": "rollouts",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"rl3d.multiview.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rl3d.multiview' has no attribute {name!r}")
