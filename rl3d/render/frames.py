"""What a renderer returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Frames:
    """Rendered images of V cameras; `render_batch` puts an axis of B scenes before V.

    Attributes:
        rgb: [V, 3, H, W] sRGB, composited over the background that was asked for (black: premultiplied colour).
        alpha: [V, 1, H, W] coverage in [0, 1].
        depth: [V, 1, H, W] camera-space z of the visible surface (splats and fields: expected depth, divided by alpha;
            a mesh: that of the covered samples, or of the surface that reaches into the pixel); 0 where alpha is 0.
        normal: [V, 3, H, W] world-space unit normals turned to the camera, 0 where alpha is 0; None if not asked for.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    normal: Tensor | None = None
