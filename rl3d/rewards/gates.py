"""Gates before a reward of consistency: views that show nothing, too much, a part, or one picture again and again.

Every such reward has degenerate optima (Carve3D's scores a blank view as perfect), and a gate takes one of them away.
A gate is a pure function that says of each asset whether it is open; a closed one costs the reward's worst score and
never raises, so that a policy that draws a blank view is paid for it and a training run goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rl3d.errors import InputError
from rl3d.rewards.protocol import RewardInput

COVERED = 0.5  # alpha from which a pixel belongs to the object
THUMBNAIL = 8  # rows and columns of the pictures that `views_differ` compares


@dataclass(frozen=True)
class GateOptions:
    """What passes.

    Attributes:
        least, most: share of the picture that the object covers in every view.
        border: share of the picture's outermost pixels that it may cover in any view.
        apart: the least that one view differs from another, see `views_differ`. 0 lets an object pass that looks the
            same from all sides, as a solid of revolution in light from all around does. Of 640 view sets of the
            training split, lit from one side, 2 are nearer than the default.
    """

    least: float = 0.002
    most: float = 0.8
    border: float = 0.2
    apart: float = 0.003

    def __post_init__(self) -> None:
        if not 0 < self.least < self.most <= 1:
            raise InputError(f"gates need 0 < least < most <= 1 of the picture, got {self.least} and {self.most}")
        if not (0 <= self.border <= 1 and 0 <= self.apart < 1):
            raise InputError(f"border must lie in [0, 1] and apart in [0, 1), got {self.border} and {self.apart}")


def non_empty(alphas: Tensor) -> Tensor:
    """[B] bool: every view of [B, V, 1, H, W] has a covered pixel."""
    return (alphas > COVERED).flatten(2).any(2).all(1)


def area_in_range(alphas: Tensor, least: float, most: float) -> Tensor:
    """[B] bool: in every view of [B, V, 1, H, W] the covered share of the picture lies in [least, most]."""
    share = (alphas > COVERED).flatten(2).float().mean(2)
    return ((share >= least) & (share <= most)).all(1)


def inside_picture(alphas: Tensor, border: float) -> Tensor:
    """[B] bool: of no view of [B, V, 1, H, W] more than a share `border` of the outermost pixels is covered."""
    solid = alphas[:, :, 0] > COVERED
    rim = torch.ones(solid.shape[-2:], dtype=torch.bool, device=alphas.device)
    rim[1:-1, 1:-1] = False
    return (solid[:, :, rim].float().mean(2) <= border).all(1)


def views_differ(rgba: Tensor, apart: float) -> Tensor:
    """[B] bool: of [B, V, 4, H, W] premultiplied views some two differ by `apart` or more; always with one view.

    Compared as thumbnails, in which white noise of 0.02 on each copy of a 64-pixel view is averaged away; copies with
    noise of 0.05 pass, and so do four views of an asset that has its front on all four sides, which are consistent and
    differ by their light: this is not a test for Janus.
    """
    if rgba.shape[1] == 1:
        return torch.ones(len(rgba), dtype=torch.bool, device=rgba.device)
    small = interpolate(rgba.flatten(0, 1), (THUMBNAIL, THUMBNAIL), mode="area").unflatten(0, rgba.shape[:2])
    return view_distances(small).flatten(1).amax(1) >= apart


def view_distances(rgba: Tensor) -> Tensor:
    """[B, V, V]: mean absolute difference of views [B, V, 4, H, W] where either of the two is covered, in [0, 1]."""
    a, b = rgba[:, :, None], rgba[:, None]
    either = torch.maximum(a[:, :, :, 3:], b[:, :, :, 3:])
    return ((a - b).abs() * either).mean(3).sum((3, 4)) / either[:, :, :, 0].sum((3, 4)).clamp_min(1e-6)


@torch.no_grad()
def gates(x: RewardInput, options: GateOptions | None = None) -> dict[str, Tensor]:
    """Name of each gate -> [B] bool, true where it is open."""
    options = options or GateOptions()
    return {
        "every view shows something": non_empty(x.alphas),
        "area in range": area_in_range(x.alphas, options.least, options.most),
        "inside the picture": inside_picture(x.alphas, options.border),
        "views differ": views_differ(x.premultiplied(), options.apart),
    }


def all_open(found: dict[str, Tensor]) -> Tensor:
    """[B] bool of what `gates` gives: every gate is open."""
    return torch.stack(list(found.values())).all(0)


def closed_names(found: dict[str, Tensor]) -> list[tuple[str, ...]]:
    """For each of B assets the names of the gates that are closed, for a log."""
    count = len(next(iter(found.values())))
    return [tuple(name for name, is_open in found.items() if not bool(is_open[i])) for i in range(count)]
