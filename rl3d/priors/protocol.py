"""What a prior is to the rest of the house: encode a prompt, bring renders to the model's space, predict x0, decode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rl3d.cameras import Cameras


@dataclass(frozen=True)
class PromptEmbedding:
    """A prompt (or a batch of them) ready for the model; opaque to everybody but the prior that made it.

    Attributes:
        positive, negative: the prior's own conditioning, any nested structure of tensors with leading batch B.
        prompts: the B texts, for rewards and logs.
    """

    positive: Any
    negative: Any
    prompts: list[str]


class Prior(Protocol):
    """A generative image model that can tell how a group of views should look.

    Attributes:
        n_views: views denoised jointly (1 for a plain text-to-image model).
        image_size: height and width of the images it works on, pixels.
        latent_shape: (c, h, w) of a view in the diffusion space.
        has_alpha: True when images are RGBA (premultiplied sRGB + alpha), False for RGB over `background`.
        background: grey level [0, 1] behind the object when `has_alpha` is False.
        baked_light: True when the images carry the half-Lambert light of `rl3d.render.shading`, which an export can
            divide out again.
        name, licence: for reports.
    """

    n_views: int
    image_size: int
    latent_shape: tuple[int, int, int]
    has_alpha: bool
    background: float
    baked_light: bool
    name: str
    licence: str

    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> PromptEmbedding:
        """Text to conditioning. Raises InputError for a prompt that the model cannot know anything about."""
        ...

    def cameras(self, azimuth: float | Tensor, elevation: float | Tensor) -> Cameras:
        """The model's own canonical cameras [n_views]: base `azimuth` and `elevation` in radians, equal spacing."""
        ...

    def to_latents(self, images: Tensor) -> Tensor:
        """[B, V, C, H, W] in [0, 1] to the diffusion space [B, V, c, h, w]; differentiable."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Diffusion space [B, V, c, h, w] to images [B, V, C, H, W] in [0, 1]; differentiable."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = a_t x + s_t eps for t [B] in (0, 1), 1 = pure noise; differentiable."""
        ...

    def times(self, steps: int) -> Tensor:
        """[steps + 1] falling noise levels at which the model likes to be sampled, from (nearly) 1 to 0, float64."""
        ...

    def predict_x0(
        self, x_t: Tensor, t: Tensor, prompt: PromptEmbedding, cameras: Cameras, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """One batched forward.

        Returns:
            (x0 with classifier-free guidance, x0 of the text-only prediction), both [B, V, c, h, w]. They are the same
            tensor when guidance is 1. No gradient flows unless the caller enabled it.
        """
        ...

    def sample(
        self,
        prompt: PromptEmbedding,
        cameras: Cameras,
        *,
        steps: int,
        guidance: float,
        generator: torch.Generator,
        progress: Any = None,
        start: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Images [B, V, C, H, W] in [0, 1] from noise; `progress(step, steps)` is called after each step.

        With `start` (images of the same shape) from those instead, noised to the level `strength` in (0, 1] (SDEdit,
        Meng et al. 2021, arXiv 2108.01073).
        """
        ...


def levels_of(prior: Prior, t: float, like: Tensor) -> tuple[float, float]:
    """a_t and s_t of a prior, read off what it does to a one and a zero."""
    one = torch.ones(1, 1, 1, 1, 1, dtype=like.dtype, device=like.device)
    level = torch.full((1,), t, device=like.device)
    zero = torch.zeros_like(one)
    return float(prior.add_noise(one, zero, level)), float(prior.add_noise(zero, one, level))


def device_of(prior: Prior) -> torch.device:
    """Where the prior's cameras live; its samples and the scenes made of them live there too."""
    return prior.cameras(0.0, 0.0).device
