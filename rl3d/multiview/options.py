"""Options of `rl3d finetune multiview`: frozen dataclasses whose comments say what each does. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from rl3d.errors import ConfigError, way_out
from rl3d.multiview.sampler_options import SamplerOptions
from rl3d.ranges import need, need_not_negative

ALGORITHMS = {
    "carve3d": "REINFORCE on the sampled path, KL to the base in the advantage (Carve3D)",
    "ddpo": "clipped importance-sampled policy gradient on the sampled path (DDPO)",
    "dpok": "policy gradient with the exact KL to the base in the loss (DPOK)",
    "grpo": "group-relative advantages on a window of steps (Flow-GRPO, DanceGRPO)",
    "nft": "negative-aware fine-tuning on clean samples (DiffusionNFT)",
    "awm": "advantage-weighted matching on clean samples (AWM)",
    "rwr": "reward-weighted regression on clean samples",
    "diffusion-dpo": "preference pairs of clean samples (Diffusion-DPO)",
    "d3po": "preference pairs of sampled paths (D3PO)",
    "zigal": "reward differences of standard and zigzag paths (MV-ZigAL; MVC-ZigAL with --constraint)",
    "refl": "the reward's own gradient through one predicted x0 (ReFL, as MVReward and HFDream tune)",
    "draft": "the reward's own gradient through the last steps (DRaFT, AlignProp)",
}


@dataclass(frozen=True)
class AdapterOptions:
    """The low-rank adapter that is trained, and how."""

    rank: int = 8
    alpha: float = 8.0  # the update is scaled by alpha / rank
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    eps: float = 1e-8
    clip: float = 1.0  # of the gradient's norm

    def __post_init__(self) -> None:
        need(self.rank >= 1, f"adapter.rank must be at least 1, got {self.rank}")
        need(self.alpha > 0, f"adapter.alpha must be positive, got {self.alpha}")
        need(self.lr > 0, f"adapter.lr must be positive, got {self.lr}")
        need(self.clip > 0, f"adapter.clip must be positive, got {self.clip}")
        need_not_negative(self, "adapter", "weight_decay")
        need(all(0 <= b < 1 for b in self.betas), f"adapter.betas must lie in [0, 1), got {list(self.betas)}")


@dataclass(frozen=True)
class PathOptions:
    """Rules on the density of sampled steps: carve3d, ddpo, dpok, grpo, d3po."""

    window: int = 0  # noisy steps a round, consecutive; 0: all of them
    clip: float = 1e-4  # of the ratio; log-densities are means over dimensions, hence so small
    kl: float = 0.0  # dpok's and grpo's weight of the exact Gaussian KL to the base
    alpha: float = 0.2  # carve3d's weight of the standardised KL in the advantage
    kl_floor: float = 1e-5  # carve3d: a spread of KL under it is not blown up to unit size
    beta: float = 0.1  # d3po's
    ratio_clip: float = 0.1  # d3po's range of the ratio to the base

    def __post_init__(self) -> None:
        need(self.window >= 0, f"path.window must not be negative, got {self.window}")
        for name in ("clip", "kl_floor", "beta"):
            need(getattr(self, name) > 0, f"path.{name} must be positive, got {getattr(self, name)}")
        need_not_negative(self, "path", "kl", "alpha")
        need(0 < self.ratio_clip < 1, f"path.ratio_clip must lie in (0, 1), got {self.ratio_clip}")


@dataclass(frozen=True)
class ForwardOptions:
    """Rules on clean samples that are noised again: nft, awm, rwr, diffusion-dpo."""

    draws: int = 2  # noise levels a sample and step
    beta: float = 1.0  # nft's; rwr's inverse temperature, a standard deviation of the reward; diffusion-dpo's
    kl: float = 1e-3  # weight of the squared distance of the predictions to the base's
    clip: float = 1e-3  # awm's, of the ratio
    power: float = 1.0  # awm's, of the matching error
    old_decay: float = 0.9  # of the average that nft samples from: min(old_slope * step, old_decay)
    old_slope: float = 0.05

    def __post_init__(self) -> None:
        need(self.draws >= 1, f"forward.draws must be at least 1, got {self.draws}")
        for name in ("beta", "clip", "power"):
            need(getattr(self, name) > 0, f"forward.{name} must be positive, got {getattr(self, name)}")
        need(0 <= self.old_decay < 1, f"forward.old_decay must lie in [0, 1), got {self.old_decay}")
        need_not_negative(self, "forward", "kl", "old_slope")


@dataclass(frozen=True)
class BackpropOptions:
    """Rules that follow a differentiable reward's gradient: refl, draft."""

    levels: tuple[float, float] = (0.0, 0.6)  # refl: range of noise levels of the step whose x0 is judged
    steps: int = 2  # draft: how many last steps the gradient passes
    random: bool = True  # draft: 1 to `steps` of them, drawn for each micro-batch (AlignProp)
    kl: float = 1e-2  # weight of the squared distance of the predictions to the base's

    def __post_init__(self) -> None:
        low, high = self.levels
        need(0 <= low < high <= 1, f"backprop.levels must be an ordered pair in [0, 1], got {list(self.levels)}")
        need(self.steps >= 1, f"backprop.steps must be at least 1, got {self.steps}")
        need_not_negative(self, "backprop", "kl")


@dataclass(frozen=True)
class WatchOptions:
    """Who watches, and when a run ends early."""

    every: int = 10  # rounds between looks at fixed prompts and noise; 0: nobody looks
    guard: str = "auto"  # a reward that is not optimised; auto: the embedded judge, or hull agreement instead of it
    looks: int = 8  # prompts of a look
    kl_budget: float = 0.02  # of the predictions' mean squared distance to the base's; a step beyond it is not taken
    silent: float = 0.9  # share of groups without signal that ends the run
    fall: float = 0.05  # of the guard's units below its best, while the reward does not fall
    patience: int = 3  # rounds or looks in a row

    def __post_init__(self) -> None:
        need(self.every >= 0, f"watch.every must not be negative, got {self.every}")
        need(self.looks >= 1, f"watch.looks must be at least 1, got {self.looks}")
        need(self.kl_budget > 0, f"watch.kl_budget must be positive, got {self.kl_budget}")
        need(0 <= self.silent <= 1, f"watch.silent must lie in [0, 1], got {self.silent}")
        need(self.fall > 0, f"watch.fall must be positive, got {self.fall}")
        need(self.patience >= 1, f"watch.patience must be at least 1, got {self.patience}")


@dataclass(frozen=True)
class FinetuneOptions:
    """Everything that decides a tuned adapter besides the prior, the reward and the prompts."""

    algorithm: str = "nft"
    seed: int = 0
    rounds: int = 60
    prompts_per_round: int = 6  # of a round, over all processes
    group: int = 8  # samples a prompt
    micro_batch: int = 4  # view groups at once, at most, in sampling and in training; fewer where memory is short
    updates: int = 1  # optimizer steps a round, each on all of its samples
    elevation: tuple[float, float] = (20.0, 20.0)  # degrees, range of the cameras' ring
    spread_floor: float = 1e-4  # of the reward: a group whose spread is smaller has no signal
    advantage_limit: float = 5.0  # of |A|
    sampler: SamplerOptions = field(default_factory=lambda: SamplerOptions(guidance=4.0, guide_above=0.75))
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    path: PathOptions = field(default_factory=PathOptions)
    forward: ForwardOptions = field(default_factory=ForwardOptions)
    backprop: BackpropOptions = field(default_factory=BackpropOptions)
    watch: WatchOptions = field(default_factory=WatchOptions)

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ConfigError(f"unknown algorithm {self.algorithm!r}; {way_out(self.algorithm, ALGORITHMS)}")
        need(self.seed >= 0, f"seed must not be negative, got {self.seed}; give 0 or more")
        for name in ("rounds", "prompts_per_round", "micro_batch", "updates"):
            need(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        need(self.group >= 2, f"group must be at least 2, got {self.group}: a sample is judged against others")
        need(self.algorithm != "zigal" or self.group % 2 == 0, f"zigal's group must be even, got {self.group}: pairs")
        low, high = self.elevation
        need(-90 < low <= high < 90, f"elevation must be an ordered pair in (-90, 90), got {list(self.elevation)}")
        need(self.spread_floor > 0, f"spread_floor must be positive, got {self.spread_floor}")
        need(self.advantage_limit > 0, f"advantage_limit must be positive, got {self.advantage_limit}")
        window, steps = self.path.window, self.sampler.steps
        need(window <= steps - 1, f"path.window={window} has no room in sampler.steps={steps}, the last has no noise")
