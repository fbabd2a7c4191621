"""MVDream's guard against the over-saturation of classifier-free guidance (Shi et al. 2023, arXiv 2308.16512, 3.3).

    x0~ = rho f x0_cfg + (1 - rho) x0_cfg,   f = std(x0_text) / std(x0_cfg)

The released code's rho is 0.5. A pixel model's empty background is not zero but -1, so the rescale acts around each
group's mean instead of around zero.
"""

from __future__ import annotations

from torch import Tensor


def rescale_cfg(x0_cfg: Tensor, x0_text: Tensor, rho: float) -> Tensor:
    """x0~ per group: [B, V, c, h, w] each."""
    dims = (1, 2, 3, 4)
    mean = x0_cfg.mean(dims, keepdim=True)
    f = x0_text.std(dims, keepdim=True) / x0_cfg.std(dims, keepdim=True).clamp_min(1e-6)
    return mean + (rho * f + (1 - rho)) * (x0_cfg - mean)
