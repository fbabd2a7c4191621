"""MRC, multi-view reconstruction consistency (Carve3D, Xie et al. 2024, arXiv 2312.13980), without its known holes.

The views x_v are reconstructed to a scene G, y_v is G seen by the same cameras, and the distance of x_v and y_v is what
could not be one object. As published it pays a policy for what it should not:

- A blank view is reproduced perfectly, and its box is empty: a gate; a closed one costs the worst score.
- All views are one picture: a gate, for exact copies (see `rl3d.rewards.gates`).
- Only the INPUT's box is compared, floaters outside are free: the box of input and render, and an alpha term.
- A reconstructor may keep splats of its own for each view: "leave_one_out" reconstructs from the other views alone, and
  "input" refuses a reconstructor that is not `shared`.
- Views that share no volume make a reconstructor raise: a gate of its own.

Leaving views out needs enough of them: from three of four orthogonal views nobody knows the fourth side's paint, so
that honest views cost something too, and an asset that looks the same from all sides costs least (four fronts are
consistent). Compare scores of one set of cameras only.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rl3d.cameras import Cameras, camera_rows
from rl3d.errors import InputError
from rl3d.rewards.gates import GateOptions, all_open, closed_names, gates
from rl3d.rewards.hull import cameras_by_view, shares_volume
from rl3d.rewards.perceptual import PerceptualDistance
from rl3d.rewards.protocol import RewardInput, check_scores

if TYPE_CHECKING:
    from rl3d.reconstruct.protocol import Reconstructor

_log = logging.getLogger(__name__)
VISIBLE = 0.05  # alpha of a box's pixels; Carve3D takes a colour below 0.95 over white


@dataclass(frozen=True)
class MRCOptions:
    """How views and their reconstruction are compared.

    Attributes:
        variant: "leave_one_out" reconstructs each view from the others; "input", as published, from all of them.
        box: what is compared: "union" of what the view and the render cover, or "input", as published.
        padding: around the squared box, share of the picture's width (5 of Carve3D's 512 pixels), at least a pixel.
        size: pixels to which a box is resized (bicubic).
        alpha_weight: of 1 - IoU of the two silhouettes in the whole picture, beside the distance inside the box.
        gates: None leaves them out, as published.
    """

    variant: Literal["leave_one_out", "input"] = "leave_one_out"
    box: Literal["union", "input"] = "union"
    padding: float = 5 / 512
    size: int = 64
    alpha_weight: float = 1.0
    gates: GateOptions | None = field(default_factory=GateOptions)

    def __post_init__(self) -> None:
        if self.variant not in ("leave_one_out", "input") or self.box not in ("union", "input"):
            raise InputError(
                f"MRC's variant is leave_one_out or input, its box union or input; got {self.variant!r}, {self.box!r}"
            )
        if not (math.isfinite(self.alpha_weight) and self.alpha_weight >= 0 and 0 <= self.padding < 1):
            raise InputError(f"MRC needs alpha_weight from 0 and padding in [0, 1), got {self}")
        if self.size < 8:
            raise InputError(f"MRC's boxes need a size of at least 8 pixels, got {self.size}")


# As published, holes included: for numbers to compare with the paper's.
CARVE3D = MRCOptions("input", "input", alpha_weight=0.0, gates=None)


@dataclass(frozen=True)
class MRCTerms:
    """What a score is made of.

    Attributes:
        scores: [B] in [-1, 0]. distances: [B, V] perceptual, in the boxes. outlines: [B, V] 1 - IoU of silhouettes.
        Both are 1 where a gate is closed. closed: for each asset the names of the closed gates.
    """

    scores: Tensor
    distances: Tensor
    outlines: Tensor
    closed: list[tuple[str, ...]]


def box_of(alpha: Tensor, padding: float) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (the last two behind it) of what a mask [H, W] covers: squared, padded, clamped.

    The whole picture where it covers nothing: an empty picture must not be compared in an empty corner.
    """
    height, width = alpha.shape
    rows, columns = torch.nonzero((alpha > VISIBLE).any(1))[:, 0], torch.nonzero((alpha > VISIBLE).any(0))[:, 0]
    if len(rows) == 0:
        return 0, 0, width, height
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    side = max(bottom - top, right - left)
    pad = max(1, round(padding * width)) if padding > 0 else 0
    top, left = (top + bottom - side) // 2 - pad, (left + right - side) // 2 - pad
    side += 2 * pad
    return max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)


def outline_distance(a: Tensor, b: Tensor) -> Tensor:
    """[N] in [0, 1]: 1 - IoU of alphas [N, 1, H, W] in the whole picture, soft; 1 where both are empty."""
    both, either = torch.minimum(a, b).sum((1, 2, 3)), torch.maximum(a, b).sum((1, 2, 3))
    return 1 - both / either.clamp_min(1e-6)


def view_terms(
    inputs: Tensor, renders: Tensor, distance: PerceptualDistance, options: MRCOptions
) -> tuple[Tensor, Tensor]:
    """Perceptual distance in the boxes [N], at most 1, and outline distance [N], of pictures [N, 4, H, W].

    Premultiplied sRGB + alpha in [0, 1]. Differentiable to both, except through the boxes.
    """
    crops: list[Tensor] = []
    for x, y in zip(inputs, renders):
        seen = x[3] if options.box == "input" else torch.maximum(x[3], y[3])
        left, top, right, bottom = box_of(seen.detach(), options.padding)
        pair = torch.stack([x, y])[:, :, top:bottom, left:right]
        size = (options.size, options.size)
        crops.append(F.interpolate(pair, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1))
    ours, theirs = torch.stack(crops).unbind(1)
    return distance(ours, theirs).clamp(max=1), outline_distance(inputs[:, 3:], renders[:, 3:])


def rerendered(images: Tensor, cameras: Cameras, reconstructor: Reconstructor, leave_one_out: bool) -> Tensor:
    """[B, V, 4, H, W]: every view as a reconstruction shows it; of all views, or of the others.

    Args:
        images: [B, V, 4, H, W] premultiplied sRGB + alpha. cameras: V shared by all, or B * V.

    Raises:
        InputError: of the reconstructor; or fewer than three views and one to be left out.
    """
    from rl3d.reconstruct import views  # brings compiled kernels

    if leave_one_out:
        _need_three(images.shape[1])
        return views.leave_one_out(images, cameras, reconstructor)
    return views.look(reconstructor(images, cameras), camera_rows(cameras, *images.shape[:2]))


def _need_three(views: int) -> None:
    if views < 3:
        raise InputError(f"leaving one of {views} views out leaves too few to reconstruct; give three views or more")


@dataclass(frozen=True)
class MRC:
    """-MRC as a Reward in [-1, 0]: 0 where every view is what the reconstruction shows.

    A view costs (distance + alpha_weight * outline) / (1 + alpha_weight); views are averaged. Where a gate is closed,
    or the reconstructor refuses an asset, the score is -1, the worst.

    Attributes:
        reconstructor: views to scenes. distance: of pictures; both are named in `about`.
        view_pixels: views are resized to this many rows before they are reconstructed; None keeps them.

    Raises:
        InputError: variant "input" with a reconstructor that is not `shared`; later, an input without cameras.
    """

    reconstructor: Reconstructor
    distance: PerceptualDistance
    options: MRCOptions = MRCOptions()
    view_pixels: int | None = None
    views: int | None = None
    range: tuple[float, float] = (-1.0, 0.0)

    def __post_init__(self) -> None:
        if self.options.variant == "input" and not self.reconstructor.shared:
            raise InputError(
                f"{self.reconstructor.name!r} may keep what it likes for every view, so that showing the input views "
                "again says nothing; take variant 'leave_one_out'"
            )

    @property
    def name(self) -> str:
        return "mrc" if self.options.variant == "leave_one_out" else "mrc_input"

    @property
    def about(self) -> str:
        """What it was measured with, for a report."""
        return f"{self.name} by {self.reconstructor.name} and {self.distance.name}"

    @property
    def differentiable(self) -> bool:
        return self.reconstructor.differentiable

    @property
    def licence(self) -> str:
        licences = sorted({self.reconstructor.licence, self.distance.licence} - {"none"})
        return ", ".join(licences) or "none"

    def __call__(self, x: RewardInput) -> Tensor:
        """Scores [B]."""
        return check_scores(self.terms(x).scores, x, self.name, self.differentiable, self.range)

    def terms(self, x: RewardInput) -> MRCTerms:
        """The scores and what they are made of; see `MRCTerms`."""
        if x.cameras is None:
            raise InputError(f"reward {self.name!r} looks at cameras, which are not known here")
        if self.options.variant == "leave_one_out":
            _need_three(x.images.shape[1])
        images, cameras = x.premultiplied(), x.cameras
        if self.view_pixels is not None and images.shape[-2] != self.view_pixels:
            size = (self.view_pixels, round(self.view_pixels * images.shape[-1] / images.shape[-2]))
            small = F.interpolate(images.flatten(0, 1), size, mode="bilinear", antialias=True, align_corners=False)
            images, cameras = small.unflatten(0, images.shape[:2]), cameras.resized(size)
        batch, views = images.shape[:2]
        found: dict[str, Tensor] = {}
        passes = torch.ones(batch, dtype=torch.bool, device=images.device)
        if self.options.gates is not None:
            found = gates(x, self.options.gates)
            found["views share volume"] = shares_volume(images[:, :, 3:].detach(), cameras)
            passes = all_open(found)
        worst = 1 + 0 * images.mean((2, 3, 4))  # a constant to the gradient, but in its graph: closed gates never raise
        distances, outlines = worst, worst
        kept, shown = self._rerendered(images, cameras, torch.nonzero(passes)[:, 0].tolist())
        if kept:
            pair = (images[kept].flatten(0, 1), shown.flatten(0, 1))
            near, edges = (t.to(images).view(-1, views) for t in view_terms(*pair, self.distance, self.options))
            index = torch.tensor(kept, device=images.device)
            distances, outlines = distances.index_put((index,), near), outlines.index_put((index,), edges)
        found["reconstructor takes it"] = torch.tensor([i in kept or not bool(passes[i]) for i in range(batch)])
        weight = self.options.alpha_weight
        scores = -((distances + weight * outlines) / (1 + weight)).mean(1)
        return MRCTerms(scores, distances, outlines, closed_names(found))

    def _rerendered(self, images: Tensor, cameras: Cameras, asked: list[int]) -> tuple[list[int], Tensor]:
        """The assets of `asked` that the reconstructor takes, and what it shows of them [K, V, 4, H, W]."""
        own = cameras_by_view(cameras, *images.shape[:2])
        leave_one_out = self.options.variant == "leave_one_out"

        def show(assets: list[int]) -> Tensor:
            theirs = own[0] if len(own) == 1 else Cameras.cat([own[i] for i in assets])
            return rerendered(images[assets], theirs, self.reconstructor, leave_one_out)

        if not asked:
            return [], images[:0]
        try:
            return asked, show(asked)
        except InputError as error:
            if len(asked) == 1:
                # What an asset looks like must not end a run; how often it happens is in the terms.
                _log.warning("%s refuses views, which costs the worst score: %s", self.reconstructor.name, error)
                return [], images[:0]
        parts = [self._rerendered(images, cameras, [i]) for i in asked]
        return [i for kept, _ in parts for i in kept], torch.cat([shown for _, shown in parts])
