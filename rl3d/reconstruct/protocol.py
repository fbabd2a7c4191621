"""What a sparse-view reconstructor is to the rest of the house: a few views with their cameras become a scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.scenes.field import Field
from rl3d.scenes.gaussians import Gaussians
from rl3d.scenes.mesh import Mesh


class Reconstructor(Protocol):
    """Views and cameras to scenes.

    Attributes:
        name, licence: for reports.
        shared: True where all views pass through one bottleneck (a triplane, a hull, one scene that is fitted), so that
            views which disagree cannot all be shown again; False where each view may keep splats of its own
            (pixel-aligned networks), which makes agreement at the input views worthless as a measure.
        differentiable: gradients reach the images.
    """

    @property
    def name(self) -> str: ...
    @property
    def licence(self) -> str: ...
    @property
    def shared(self) -> bool: ...
    @property
    def differentiable(self) -> bool: ...

    def __call__(self, images: Tensor, cameras: Cameras) -> Sequence[Gaussians | Field | Mesh]:
        """One scene for each of B assets.

        Args:
            images: [B, V, 4, H, W] premultiplied sRGB + alpha in [0, 1].
            cameras: V cameras that all assets share, or B * V of them, in the canonical frame.

        Raises:
            InputError: images or cameras of another form, or a number of views that it cannot read.
            NoSharedVolume: (an InputError) the views of an asset meet nowhere; see `rl3d.reconstruct.lift`.
        """
        ...
