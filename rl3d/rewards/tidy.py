"""A reward of views by formula: silhouettes in one piece, without holes or fog, and colours without noise.

It knows no prompt and no object. It sees what the embedded judge does not (`rl3d rewards check judge`: noise, floaters
and holes go unpunished) and is there to watch over it while it is optimised; alone it would reward a plain ball. Pixels
alone, so that any scene has it; what hides behind the object is not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes, label
from torch import Tensor
from torch.nn.functional import avg_pool2d, unfold

from rl3d.rewards.compose import geometric_mean
from rl3d.rewards.protocol import FunctionReward, RewardInput

SOLID = 0.5  # alpha from which a pixel belongs to the silhouette
CORNERS = np.ones((3, 3), dtype=int)  # pixels that touch at a corner are one piece


def in_one_piece(alphas: Tensor) -> Tensor:
    """[B] in [0, 1]: the largest connected piece's share of each silhouette [B, V, 1, H, W], mean over views.

    An empty view counts 0. No gradients.
    """
    return _per_view(alphas, lambda solid: _largest(solid) / max(int(solid.sum()), 1))


def without_holes(alphas: Tensor) -> Tensor:
    """[B] in [0, 1]: the silhouette's share of itself with its holes filled, mean over views. Empty: 0. No gradients.

    The gap between a chair's slats is a hole too; compare an object with itself.
    """
    return _per_view(alphas, lambda solid: int(solid.sum()) / max(int(binary_fill_holes(solid).sum()), 1))


def _largest(solid: np.ndarray) -> int:
    pieces, count = label(solid, CORNERS)
    return int(np.bincount(pieces.ravel())[1:].max()) if count else 0


def _per_view(alphas: Tensor, formula: Callable[[np.ndarray], float]) -> Tensor:
    solid = (alphas.detach() > SOLID).cpu().numpy()[:, :, 0]
    return torch.tensor([[formula(view) for view in views] for views in solid]).mean(1).to(alphas)


def opaque(alphas: Tensor) -> Tensor:
    """[B] in [0, 1]: 1 - the mean of 4 alpha (1 - alpha), weighted by alpha; 0 where all is half transparent, or empty.

    Silhouettes' own borders are half covered: compare an object with itself.
    """
    there = alphas.sum((1, 2, 3, 4))
    fog = (4 * alphas**2 * (1 - alphas)).sum((1, 2, 3, 4)) / there.clamp_min(1e-6)
    return torch.where(there > 1e-3, 1 - fog, 0.0).clamp(0, 1)


def calm(images: Tensor, alphas: Tensor) -> Tensor:
    """[B] in (0, 1]: exp(-d / 0.05), d the mean distance of an inner pixel's colour from the median of its 3x3 pixels.

    Args:
        images: [B, V, 3, H, W] sRGB. alphas: [B, V, 1, H, W].
    """
    flat = images.flatten(0, 1)
    around = unfold(flat, 3, padding=1).unflatten(1, (3, 9)).median(2).values.unflatten(2, flat.shape[-2:])
    inner = (1 - avg_pool2d(1 - alphas.flatten(0, 1), 3, 1, 1) * 9).clamp_min(0) > 0.9
    distance = ((flat - around).abs().mean(1, keepdim=True) * inner).unflatten(0, images.shape[:2])
    count = inner.unflatten(0, images.shape[:2]).sum((1, 2, 3, 4))
    return (-distance.sum((1, 2, 3, 4)) / count.clamp_min(1) / 0.05).exp()


def _reward(formula: Callable[[RewardInput], Tensor], name: str) -> FunctionReward:
    return FunctionReward(formula, name, None, False, (0.0, 1.0), "none")


TIDY = replace(
    geometric_mean(
        [
            _reward(lambda x: in_one_piece(x.alphas), "one piece"),
            _reward(lambda x: without_holes(x.alphas), "no holes"),
            _reward(lambda x: opaque(x.alphas), "opaque"),
            _reward(lambda x: calm(x.images, x.alphas), "calm"),
        ]
    ),
    name="tidy views",
)
