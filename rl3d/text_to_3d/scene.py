"""What a scene is while it is optimised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.render.frames import Frames


class SceneState(Protocol):
    """Leaf tensors, their optimizer and the steps taken; `rl3d.text_to_3d.splats.SplatState` is one."""

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
