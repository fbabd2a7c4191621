"""What a reward is: a callable from views and prompts to one score an asset, that says what it needs and gives."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.scenes.mesh import Mesh


@dataclass(frozen=True)
class RewardInput:
    """B assets as rewards see them: V views each.

    Attributes:
        images: [B, V, 3, H, W] float, sRGB in [0, 1], over `background`.
        alphas: [B, V, 1, H, W] coverage in [0, 1].
        cameras: V cameras shared by all assets, or B * V of them, or None where nobody knows.
        prompts: B sentences.
        normals: [B, V, 3, H, W] world-space unit normals, or None.
        depths: [B, V, 1, H, W] camera-space z in metres, 0 where alpha is 0, or None.
        mesh: B meshes, or None.
        background: sRGB grey level or colour behind `images`; white unless said otherwise.

    Raises:
        InputError: shapes that do not fit each other, named by field.
    """

    images: Tensor
    alphas: Tensor
    cameras: Cameras | None
    prompts: list[str]
    normals: Tensor | None = None
    depths: Tensor | None = None
    mesh: list[Mesh] | None = None
    background: float | tuple[float, float, float] = 1.0

    def __post_init__(self) -> None:
        if self.images.ndim != 5 or self.images.shape[2] != 3 or not self.images.is_floating_point():
            raise InputError(
                f"RewardInput.images must be float [B, V, 3, H, W], got {list(self.images.shape)} {self.images.dtype}"
            )
        b, v, _, h, w = self.images.shape
        for name, channels in (("alphas", 1), ("normals", 3), ("depths", 1)):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != (b, v, channels, h, w):
                raise InputError(
                    f"RewardInput.{name} must be {[b, v, channels, h, w]} like images, got {list(value.shape)}"
                )
        if isinstance(self.prompts, str) or len(self.prompts) != b:
            came = repr(self.prompts) if isinstance(self.prompts, str) else f"{len(self.prompts)} of them"
            raise InputError(f"RewardInput.prompts must be a list of {b} sentences, one an asset; got {came}")
        if self.cameras is not None and len(self.cameras) not in (v, b * v):
            raise InputError(f"RewardInput.cameras must be {v} or {b * v} cameras, got {len(self.cameras)}")
        if self.mesh is not None and len(self.mesh) != b:
            raise InputError(f"RewardInput.mesh must hold {b} meshes, got {len(self.mesh)}")

    def premultiplied(self) -> Tensor:
        """[B, V, 4, H, W] RGBA without the background, colour premultiplied by alpha; differentiable."""
        background = torch.as_tensor(self.background).to(self.images).expand(3)[:, None, None]
        return torch.cat([self.images - (1 - self.alphas) * background, self.alphas], 2)


@runtime_checkable
class Reward(Protocol):
    """Scores assets; higher is better.

    Attributes:
        name: for reports. views: how many views an asset it wants; None takes any number.
        differentiable: gradients reach `images` (a geometric reward's: what it needs).
        range: (lowest, highest) possible score. licence: of its weights; "none" for a formula.
    """

    @property
    def name(self) -> str: ...
    @property
    def views(self) -> int | None: ...
    @property
    def differentiable(self) -> bool: ...
    @property
    def range(self) -> tuple[float, float]: ...
    @property
    def licence(self) -> str: ...

    def __call__(self, x: RewardInput) -> Tensor:
        """Scores [B]."""
        ...


def check_scores(
    scores: Tensor, x: RewardInput, name: str, differentiable: bool, bounds: tuple[float, float]
) -> Tensor:
    """The scores, unless they break the promise of reward `name`.

    Raises:
        InputError: not [B], not finite (the first offending prompt is named), outside `bounds`, or a constant to the
            gradient although the images ask for one and the reward says it is differentiable.
    """
    batch = len(x.prompts)
    if not isinstance(scores, Tensor) or tuple(scores.shape) != (batch,):
        came = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(f"reward {name!r} must return a tensor of shape [{batch}], one score an asset; got {came}")
    values = scores.detach()
    wrong = ~torch.isfinite(values)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise InputError(f"reward {name!r} gave {float(values[i])} for asset {i} ({x.prompts[i]!r}); scores are finite")
    slack = 1e-5 * max(1.0, *(abs(b) for b in bounds if math.isfinite(b)), 1.0)
    wrong = (values < bounds[0] - slack) | (values > bounds[1] + slack)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise InputError(
            f"reward {name!r} gave {float(values[i]):g} for asset {i} ({x.prompts[i]!r}), outside its range "
            f"[{bounds[0]:g}, {bounds[1]:g}]; declare another range"
        )
    if differentiable and torch.is_grad_enabled() and x.images.requires_grad and not scores.requires_grad:
        raise InputError(
            f"reward {name!r} says it is differentiable, but its scores do not depend on the images' gradient; "
            "declare differentiable=False or remove the detach"
        )
    return scores


@dataclass(frozen=True)
class FunctionReward:
    """A function as a Reward; made by `reward`. Its scores are checked on every call."""

    function: Callable[[RewardInput], Tensor]
    name: str
    views: int | None
    differentiable: bool
    range: tuple[float, float]
    licence: str

    def __call__(self, x: RewardInput) -> Tensor:
        if self.views is not None and x.images.shape[1] != self.views:
            raise InputError(f"reward {self.name!r} needs {self.views} views an asset, got {x.images.shape[1]}")
        return check_scores(self.function(x), x, self.name, self.differentiable, self.range)


def reward(
    views: int | None = 4,
    differentiable: bool = True,
    range: tuple[float, float] = (-math.inf, math.inf),
    licence: str = "none",
    name: str | None = None,
) -> Callable[[Callable[[RewardInput], Tensor]], FunctionReward]:
    """Turn a function of a RewardInput into a Reward.

        @rl3d.reward(views=4, differentiable=True)
        def redness(x: rl3d.RewardInput) -> torch.Tensor:
            return x.images[:, :, 0].mean((1, 2, 3)) - x.images[:, :, 1:].mean((1, 2, 3, 4))

    Args:
        views: how many views it needs; None takes any number. differentiable: gradients reach the images.
        range: (lowest, highest) possible score. licence: of weights inside. name: default: the function's.

    Raises:
        InputError: the decorator was used without parentheses, or views or range make no sense.
    """
    if callable(views):
        raise InputError("write @reward() with parentheses, e.g. @reward(views=4)")
    if views is not None and (isinstance(views, bool) or not isinstance(views, int) or views < 1):
        raise InputError(f"views must be a whole number from 1, or None for any, got {views!r}")
    if len(range) != 2 or not range[0] < range[1]:
        raise InputError(f"range must be (lowest, highest), got {range!r}")

    def wrap(function: Callable[[RewardInput], Tensor]) -> FunctionReward:
        if not callable(function) or len(inspect.signature(function).parameters) < 1:
            raise InputError(f"a reward is a function of one RewardInput, got {function!r}")
        called: str = name or str(getattr(function, "__name__", type(function).__name__))
        return FunctionReward(function, called, views, differentiable, (float(range[0]), float(range[1])), licence)

    return wrap
