"""Options of the distillation methods, one frozen dataclass a paper. The command line reads them without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from rl3d.ranges import need, need_not_negative, need_share
from rl3d.text_to_3d.schedule import Schedule

MethodName = Literal["mvdream", "sds", "dreamreward", "dreamdpo", "rewardsds", "ism", "vsd", "dreamcs"]
METHOD_NAMES: tuple[str, ...] = get_args(MethodName)


@dataclass(frozen=True)
class RewardOptions:
    """The reward of the methods that use one, and how strongly its gradient pulls."""

    name: str = "judge"  # or FAMILY:PATH_OR_ID, see rl3d.rewards.load; the gold judge is refused
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
class ISMOptions:
    """ISM (LucidDreamer, Liang et al. 2023, arXiv 2311.11284)."""

    gap: Schedule = field(default_factory=lambda: Schedule(((0.0, 0.1), (0.3, 0.08))))  # delta_T, at most half of t
    inversion_steps: int = 3  # predictions on the way from the render to x_s
    first: float = 0.1  # noise level at which the inversion begins

    def __post_init__(self) -> None:
        values = list(self.gap.values)
        need(all(0 < v < 1 for v in values), f"method.ism.gap must lie in (0, 1) everywhere, got {values}")
        need(self.inversion_steps >= 1, f"method.ism.inversion_steps must be at least 1, got {self.inversion_steps}")
        need(0 < self.first < 1, f"method.ism.first must lie in (0, 1), got {self.first}")


@dataclass(frozen=True)
class VSDOptions:
    """VSD (ProlificDreamer, Wang et al. 2023, arXiv 2305.16213)."""

    rank: int = 4  # of the adapter
    rate: float = 1e-3  # Adam's, for the adapter
    steps: int = 1  # of the adapter per step of the scene

    def __post_init__(self) -> None:
        need(self.rank >= 1, f"method.vsd.rank must be at least 1, got {self.rank}")
        need(0 < self.rate < 1, f"method.vsd.rate must lie in (0, 1), got {self.rate}")
        need(self.steps >= 1, f"method.vsd.steps must be at least 1, got {self.steps}")


@dataclass(frozen=True)
class DreamCSOptions:
    """DreamCS (Zou et al. 2025, arXiv 2506.09814)."""

    resolution: int = 48  # samples a side of the iso-surface's grid

    def __post_init__(self) -> None:
        message = f"method.dreamcs.resolution must lie in [8, 256], got {self.resolution}"
        need(8 <= self.resolution <= 256, message)


@dataclass(frozen=True)
class MethodOptions:
    """Which method distils, and its settings; those of the other methods have no effect."""

    name: MethodName = "mvdream"
    # The step's weight in x0 form: 1, (1 - abar) a / s ("sds", threestudio's w(t) = 1 - abar) or a / s (w = 1).
    weighting: Literal["x0", "sds", "uniform"] = "x0"
    batch: Schedule | None = None  # view groups a step over the run, instead of distill.batch
    resolution: Schedule | None = None  # share of the prior's image size that is rendered, then enlarged to it
    scene: Literal["gaussians", "field", "sdf"] = "gaussians"  # what is distilled: splats, or voxels made of them
    voxels: int = 64  # samples a side of a field or sdf scene
    reward: RewardOptions = field(default_factory=RewardOptions)
    dreamreward: DreamRewardOptions = field(default_factory=DreamRewardOptions)
    dreamdpo: DreamDPOOptions = field(default_factory=DreamDPOOptions)
    rewardsds: RewardSDSOptions = field(default_factory=RewardSDSOptions)
    ism: ISMOptions = field(default_factory=ISMOptions)
    vsd: VSDOptions = field(default_factory=VSDOptions)
    dreamcs: DreamCSOptions = field(default_factory=DreamCSOptions)

    def __post_init__(self) -> None:
        need(self.name in METHOD_NAMES, f"method.name must be one of {', '.join(METHOD_NAMES)}, got {self.name!r}")
        need(8 <= self.voxels <= 256, f"method.voxels must lie in [8, 256], got {self.voxels}")
        surface = self.name != "dreamcs" or self.scene == "sdf"
        need(surface, "method dreamcs judges a surface; set method.scene=sdf, or take --method dreamcs, which does")
        for value in self.batch.values if self.batch else ():
            need(value >= 1, f"method.batch must be at least 1 everywhere, got {value}")
        for value in self.resolution.values if self.resolution else ():
            need(0.125 <= value <= 1, f"method.resolution must lie in [0.125, 1] everywhere, got {value}")
