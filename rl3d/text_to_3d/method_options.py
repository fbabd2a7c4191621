"""Options of the distillation methods, one frozen dataclass a paper. The command line reads them without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from rl3d.text_to_3d.ranges import need, need_not_negative, need_share
from rl3d.text_to_3d.schedule import Schedule

MethodName = Literal["mvdream", "sds", "dreamreward", "dreamdpo", "rewardsds"]
METHOD_NAMES: tuple[str, ...] = get_args(MethodName)


@dataclass(frozen=True)
class RewardOptions:
    """The reward of the methods that use one, and how strongly its gradient pulls."""

    name: str = "judge"  # an embedded reward, see rl3d.rewards.load; the gold judge is refused
    # Norm of the reward's gradient on the render, as a share of the distillation's; no reward before there is a shape.
    weight: Schedule = field(default_factory=lambda: Schedule(((0.2, 0.0), (0.5, 0.3))))
    cap: float = 0.9  # the reward's gradient stops where the score reaches this (in the reward's own units)
    balance: Literal["norm", "none"] = "norm"  # "none": `weight` multiplies the reward's gradient as it is, lambda_r
    window: int = 50  # steps over which norms and gaps are averaged

    def __post_init__(self) -> None:
        values = self.weight.values
        if self.balance == "norm":
            message = "method.reward.weight is a share in [0, 1] of the distillation, which a reward never replaces"
            need(all(0 <= v <= 1 for v in values), f"{message}; got {list(values)}")
        need(all(v >= 0 for v in values), f"method.reward.weight must not be negative, got {list(values)}")
        need(self.window >= 1, f"method.reward.window must be at least 1, got {self.window}")


@dataclass(frozen=True)
class DreamRewardOptions:
    """DreamFL (Ye et al. 2024, arXiv 2403.14613)."""

    x0_below: float = 0.3  # noise level up to which the predicted clean views are judged; above it, the render

    def __post_init__(self) -> None:
        need_share(self, "method.dreamreward", "x0_below")


@dataclass(frozen=True)
class DreamDPOOptions:
    """DreamDPO (Zhou et al. 2025, arXiv 2502.04370)."""

    tau: float = 0.1  # the loser pushes where the scores' gap is GREATER than this
    scale: Literal["std", "none"] = "std"  # "std": tau counts in root mean square gaps of late; "none": in scores

    def __post_init__(self) -> None:
        need_not_negative(self, "method.dreamdpo", "tau")


@dataclass(frozen=True)
class RewardSDSOptions:
    """RewardSDS (Chachy et al. 2025, arXiv 2503.09601)."""

    candidates: int = 4  # noises a step
    weighting: Literal["softmax", "best_worst", "top2_bottom2"] = "top2_bottom2"
    temperature: float = 1.0  # of the softmax over standardised scores
    until: float = 0.7  # share of the run after which one noise is enough
    denoise: int = 1  # DDIM steps from a candidate to what is scored; 1 scores the prediction x0 itself

    def __post_init__(self) -> None:
        least = 4 if self.weighting == "top2_bottom2" else 2
        message = f"method.rewardsds.candidates must be at least {least} for {self.weighting}, got {self.candidates}"
        need(self.candidates >= least, message)
        need(self.temperature > 0, f"method.rewardsds.temperature must be positive, got {self.temperature}")
        need(self.denoise >= 1, f"method.rewardsds.denoise must be at least 1, got {self.denoise}")
        need_share(self, "method.rewardsds", "until")


@dataclass(frozen=True)
class MethodOptions:
    """Which method distils, and its settings; those of the other methods have no effect."""

    name: MethodName = "mvdream"
    # The step's weight in x0 form: 1, (1 - abar) a / s ("sds", threestudio's w(t) = 1 - abar) or a / s (w = 1).
    weighting: Literal["x0", "sds", "uniform"] = "x0"
    batch: Schedule | None = None  # view groups a step over the run, instead of distill.batch
    resolution: Schedule | None = None  # share of the prior's image size that is rendered, then enlarged to it
    reward: RewardOptions = field(default_factory=RewardOptions)
    dreamreward: DreamRewardOptions = field(default_factory=DreamRewardOptions)
    dreamdpo: DreamDPOOptions = field(default_factory=DreamDPOOptions)
    rewardsds: RewardSDSOptions = field(default_factory=RewardSDSOptions)

    def __post_init__(self) -> None:
        need(self.name in METHOD_NAMES, f"method.name must be one of {', '.join(METHOD_NAMES)}, got {self.name!r}")
        for value in self.batch.values if self.batch else ():
            need(value >= 1, f"method.batch must be at least 1 everywhere, got {value}")
        for value in self.resolution.values if self.resolution else ():
            need(0.125 <= value <= 1, f"method.resolution must lie in [0.125, 1] everywhere, got {value}")
