"""What the rewards of consistency take from the fit of splats to views: visual hulls, and the fit as a reconstructor.

The one place that knows where these live.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.scenes.field import Field
from rl3d.scenes.gaussians import Gaussians
from rl3d.text_to_3d.lift import RADIUS as RADIUS
from rl3d.text_to_3d.lift import fit, lift_rates, start_from_hull
from rl3d.text_to_3d.lift import grid_points as grid_points
from rl3d.text_to_3d.lift import keep_thin as keep_thin
from rl3d.text_to_3d.lift import project as project
from rl3d.text_to_3d.lift import sample_images as sample_images
from rl3d.text_to_3d.options import LiftOptions
from rl3d.text_to_3d.splats import SplatState


@dataclass(frozen=True)
class HullFit:
    """Splats on the views' visual hull, fitted to them for a few steps: a Reconstructor without weights.

    All views move one scene, so it is `shared`; no gradients come back. The same views give the same scene.

    Attributes:
        steps: of the fit; 0 leaves the hull coloured by the views that face it. gaussians: at most. grid: voxels a side
            of the hull. seed: of the splats' places.
    """

    steps: int = 0
    gaussians: int = 1500
    grid: int = 40
    seed: int = 0
    licence: str = "none"
    shared: bool = True
    differentiable: bool = False

    @property
    def name(self) -> str:
        return f"hull fit of {self.steps} steps"

    def __call__(self, images: Tensor, cameras: Cameras) -> list[Gaussians | Field]:
        """One scene an asset; see `rl3d.reconstruct.Reconstructor`."""
        batch, views = images.shape[:2]
        if len(cameras) not in (views, batch * views):
            raise InputError(f"{batch} assets of {views} views need {views} or {batch * views} cameras")
        shared = len(cameras) == views
        options = LiftOptions(steps=self.steps, gaussians=self.gaussians, grid=self.grid)
        scenes: list[Gaussians | Field] = []
        for i, seen in enumerate(images.detach()):
            own = cameras if shared else cameras[slice(i * views, (i + 1) * views)]
            with torch.enable_grad():
                start = start_from_hull(seen, own, options, torch.Generator().manual_seed(self.seed))
                state = fit(SplatState.start(start, lift_rates(options)), seen, own, options, self.steps)
            scenes.append(state.gaussians())
        return scenes
