"""What rewards with published weights share: preparing renders, bounded memory, one score out of several views."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rl3d.errors import AssetError, InputError
from rl3d.rewards.protocol import RewardInput, check_scores

Pool = Literal["mean", "max", "min"]
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda scores: scores.mean(1),
    "max": lambda scores: scores.amax(1),
    "min": lambda scores: scores.amin(1),
}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP; BLIP and Qwen-VL use the same
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class TruncatedPromptWarning(UserWarning):
    """A prompt is longer than a reward's text encoder reads; the rest has no say."""


@dataclass(frozen=True)
class Preparation:
    """How an encoder wants its pictures.

    Attributes:
        size: pixels a side. mean, std: per channel, for sRGB in [0, 1].
        fit: "crop": the shorter side becomes `size`, the middle is kept (CLIP, BLIP); "pad": the longer side becomes
            `size`, the rest is black (HPSv2). Square renders do not feel the difference.
    """

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    fit: Literal["crop", "pad"] = "crop"

    def __call__(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W], sRGB in [0, 1], as the encoder's input [N, 3, size, size]; differentiable."""
        h, w = images.shape[-2:]
        if self.fit == "crop":
            side = min(h, w)
            scaled = (self.size * h // side, self.size * w // side)  # rounds down, as Pillow and torchvision do
            top, left = (scaled[0] - self.size) // 2, (scaled[1] - self.size) // 2
            images = resize(images, scaled)[..., top : top + self.size, left : left + self.size]
        else:
            scaled = (round(self.size * h / max(h, w)), round(self.size * w / max(h, w)))
            up, before = (self.size - scaled[0]) // 2, (self.size - scaled[1]) // 2
            rest = (self.size - scaled[1] - before, self.size - scaled[0] - up)
            images = F.pad(resize(images, scaled), (before, rest[0], up, rest[1]))
        return normalise(images, self.mean, self.std)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic, antialiased, as Pillow does it but for rounding to bytes. Images [N, 3, H, W] in [0, 1]; differentiable.

    Columns first, then rows; what overshoots [0, 1] is cut off after each.
    """
    for goal in ((images.shape[-2], size[1]), size):
        if tuple(images.shape[-2:]) != goal:
            images = F.interpolate(images, size=goal, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return images


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images [N, 3, H, W] minus mean over standard deviation, per channel."""
    column = torch.tensor([mean, std], dtype=images.dtype, device=images.device)[:, :, None, None]
    return (images - column[0]) / column[1]


def read_normalisation(config: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a preprocessor_config.json, CLIP's where it is silent."""
    mean, std = tuple(config.get("image_mean", CLIP_MEAN)), tuple(config.get("image_std", CLIP_STD))
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise AssetError(f"preprocessor_config.json: image_mean {list(mean)} and image_std {list(std)} are not of RGB")
    return mean, std


def in_chunks(encode: Callable[[Tensor, list[str]], Tensor], images: Tensor, prompts: list[str], size: int) -> Tensor:
    """encode(images [N, ...], N prompts) -> [N, ...], at most `size` rows at a time.

    With gradients, a chunk's activations are recomputed on the way back rather than kept, so that memory is that of
    one chunk either way.
    """
    parts = [slice(i, i + size) for i in range(0, len(prompts), size)]
    if len(parts) > 1 and torch.is_grad_enabled() and images.requires_grad:
        return torch.cat([checkpoint(encode, images[p], prompts[p], use_reentrant=False) for p in parts])
    return torch.cat([encode(images[p], prompts[p]) for p in parts])


@dataclass(frozen=True)
class ViewReward:
    """A reward whose network looks at one view and one sentence at a time.

    Attributes:
        encode: images [N, 3, H, W] and N sentences to [N] scores or [N, D] features, float32.
        fuse: [B, V] or [B, V, D] of those to the assets' scores [B].
        sentences: the V sentences of every asset [B * V]; None gives each view its asset's prompt.
        chunk: views at a time; bounds the memory.
    """

    encode: Callable[[Tensor, list[str]], Tensor]
    fuse: Callable[[Tensor], Tensor]
    name: str
    licence: str
    range: tuple[float, float]
    views: int | None = None
    differentiable: bool = True
    sentences: Callable[[RewardInput], list[str]] | None = None
    chunk: int = 8

    def __call__(self, x: RewardInput) -> Tensor:
        batch, views = x.images.shape[:2]
        if self.views is not None and views != self.views:
            raise InputError(f"reward {self.name!r} needs {self.views} views an asset, got {views}")
        prompts = self.sentences(x) if self.sentences else [p for p in x.prompts for _ in range(views)]
        encoded = in_chunks(self.encode, x.images.flatten(0, 1), prompts, self.chunk)
        return check_scores(self.fuse(encoded.unflatten(0, (batch, views))), x, self.name, True, self.range)


def tokens(tokenizer: Any, prompt: str, limit: int, name: str) -> list[int]:
    """The prompt's tokens with the special ones, cut at `limit` with a warning; the last one is the tokenizer's end."""
    ids: list[int] = tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
    if len(ids) > limit:
        warnings.warn(
            f"reward {name!r} reads {limit} tokens, the prompt has {len(ids)}: the rest has no say ({prompt!r})",
            TruncatedPromptWarning,
            stacklevel=3,
        )
        ids = [*ids[: limit - 1], ids[-1]]
    return ids
