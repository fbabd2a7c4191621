"""What a scene is while it is optimised, and which kinds there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.reconstruct.leaves import Rates
from rl3d.reconstruct.splats import SplatState
from rl3d.render.frames import Frames
from rl3d.scenes.field import Field
from rl3d.scenes.gaussians import Gaussians
from rl3d.text_to_3d.method_options import MethodOptions


class SceneState(Protocol):
    """Leaf tensors, their optimizer and the steps taken.

    `rl3d.reconstruct.splats.SplatState` is one, `rl3d.text_to_3d.voxels.VoxelState` another; the latter also has a
    `mesh(resolution)` with gradients.
    """

    tensors: dict[str, Tensor]
    step: int

    def render(self, cameras: Cameras) -> Frames:
        """Premultiplied sRGB, alpha and depth, differentiable to the leaves."""
        ...

    def render_layers(self, cameras: Cameras) -> tuple[Frames, Tensor]:
        """As `render`, and the scene's own geometry term, whose mean joins the loss; differentiable."""
        ...

    def descend(self, loss: Tensor, rate: float = 1.0, floor: float = 2e-3) -> None:
        """One optimizer step with the rates scaled by `rate`; `floor`: metres, the smallest detail worth keeping."""
        ...

    def relocate(self, generator: torch.Generator) -> int:
        """Put idle parts to use; how many moved."""
        ...

    def save(self, path: Path, memory: Mapping[str, Tensor] | None = None) -> None:
        """Leaves, optimizer, step and a method's memory, atomically."""
        ...


def begin_scene(lifted: SplatState, options: MethodOptions, rates: Rates) -> SceneState:
    """The scene to distil, out of the lifted splats: they themselves, or voxels that look like them.

    Raises:
        InputError: voxels are asked for and the splats have no surface.
    """
    if options.scene == "gaussians":
        return SplatState.start(lifted.tensors, rates)
    from rl3d.text_to_3d.voxels import VoxelState, voxels_from_splats

    kind = "sdf" if options.scene == "sdf" else "density"
    return VoxelState.start(kind, voxels_from_splats(lifted, kind, options.voxels), rates)


def load_scene(path: Path, options: MethodOptions, rates: Rates, device: torch.device) -> SceneState:
    """What a scene's `save` wrote.

    Raises:
        AssetError: the file is missing, truncated or of another kind.
    """
    if options.scene == "gaussians":
        return SplatState.load(path, rates, device)
    from rl3d.text_to_3d.voxels import VoxelState

    return VoxelState.load(path, rates, device)


def finished(state: SceneState) -> Gaussians | Field:
    """The scene as it stands, without gradients."""
    if isinstance(state, SplatState):
        return state.gaussians()
    from rl3d.text_to_3d.voxels import VoxelState

    assert isinstance(state, VoxelState)
    return state.field.detach()
