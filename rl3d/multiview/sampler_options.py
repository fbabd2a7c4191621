"""How rollouts are drawn; see `rl3d.multiview.samplers`. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from rl3d.errors import ConfigError

KINDS = ("ddim", "lcm", "flow_sde", "dance_sde")


@dataclass(frozen=True)
class SamplerOptions:
    """A stochastic sampler and its settings."""

    kind: str = "ddim"
    steps: int = 12
    noise: float = 1.0  # see rl3d.multiview.samplers
    guidance: float = 1.0  # classifier-free guidance scale; 1 switches it off and halves the cost
    guide_above: float = 0.0  # noise level down to which guidance acts

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"sampler.kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.steps < 2:
            raise ConfigError(f"sampler.steps must be at least 2, got {self.steps}: the last one has no noise")
        if self.noise < 0 or (self.kind == "ddim" and self.noise > 1):
            raise ConfigError(f"sampler.noise must be positive, and at most 1 for ddim; got {self.noise}")
