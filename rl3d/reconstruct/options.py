"""Options of the fit of Gaussians to views. Every field's comment says its unit and what it does."""

from __future__ import annotations

from dataclasses import dataclass, field

from rl3d.errors import ConfigError
from rl3d.ranges import need, need_not_negative

STARTS = ("hull", "feedforward")
RATES = ("lr_means", "lr_scales", "lr_colours", "lr_opacities")


@dataclass(frozen=True)
class LiftOptions:
    """Fitting Gaussians to the sampled views, from their visual hull or from what a network makes of them."""

    # What a draft's fit starts from: hull, or feedforward[:FOLDER] of tools/train_reconstructor.py. Not in the repr, by
    # which a calibration names the fit that is inside of a reward: that one always starts from the hull.
    reconstructor: str = field(default="hull", repr=False)
    steps: int = 150  # optimisation steps; each renders all sampled views
    gaussians: int = 3000  # splats placed on the hull; fewer where it is small
    grid: int = 64  # voxels a side of the visual hull
    alpha_weight: float = 2.0  # weight of the silhouette term beside the colour term
    flatness_weight: float = 0.02  # pulls opacity to 0 or 1
    layers_weight: float = 10.0  # of the variance of depth along a ray, per square metre: one opaque surface, no fog
    haze_weight: float = 8.0  # makes parts thinner than 3 pixels solid
    lr_means: float = 2e-3  # metres a step
    lr_scales: float = 1e-2
    lr_colours: float = 2e-2
    lr_opacities: float = 5e-2

    def __post_init__(self) -> None:
        if self.reconstructor.partition(":")[0] not in STARTS or self.reconstructor.startswith("hull:"):
            raise ConfigError(
                f"lift.reconstructor must be hull, feedforward or feedforward:FOLDER, got {self.reconstructor!r}"
            )
        need(self.steps >= 0, f"lift.steps must not be negative, got {self.steps}")
        need(16 <= self.grid <= 256, f"lift.grid must lie in [16, 256], got {self.grid}")
        need(1 <= self.gaussians <= 1_000_000, f"lift.gaussians must lie in [1, 1000000], got {self.gaussians}")
        need_not_negative(self, "lift", "alpha_weight", "flatness_weight", "layers_weight", "haze_weight", *RATES)
