"""What every latent diffusion model in the hub's format shares: text and image encoding, the x0 form, DDIM.

Networks run in half precision on a GPU; latents and schedule arithmetic stay in float32. Weights are frozen. Rows of a
network's batch are ordered "(b f)": all views of object 0, then all views of object 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rl3d.cameras import Cameras, camera_rows
from rl3d.errors import InputError
from rl3d.priors.pipeline_folder import Components
from rl3d.priors.protocol import PromptEmbedding

# Framing of an asset of bounding-sphere radius 0.6: its silhouette spans 95% of the image, like the embedded prior's.
CANONICAL_DISTANCE = 1.85
CANONICAL_FOV = 0.7


def encode_texts(parts: Components, texts: list[str]) -> Tensor:
    """Texts to the last hidden states [N, L, D] of the text encoder.

    Raises:
        InputError: a text is longer than the encoder reads.
    """
    limit = min(parts.text_encoder.config.max_position_embeddings, parts.tokenizer.model_max_length)
    for text, ids in zip(texts, parts.tokenizer(texts, verbose=False).input_ids):
        if len(ids) > limit:
            raise InputError(
                f"the prompt has {len(ids) - 2} tokens, {parts.name} reads at most {limit - 2}; shorten {text[:50]!r}"
            )
    ids = parts.tokenizer(texts, padding="max_length", max_length=limit, return_tensors="pt").input_ids
    with torch.no_grad():
        return parts.text_encoder(ids.to(parts.device)).last_hidden_state


def ddim(
    predict: Callable[[Tensor, Tensor], Tensor],
    levels: Callable[[Tensor], tuple[Tensor, Tensor]],
    noise: Tensor,
    steps: int,
    progress: Any = None,
    start: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Deterministic DDIM (Song et al. 2021, eq. 12 with sigma 0) in the x0 form, from t = strength to 0 in even steps.

    Args:
        predict: (x_t, t [B]) to x0.
        levels: t [B] to (a_t, s_t), broadcastable to x_t.
        noise: [B, V, c, h, w] standard normal.
        progress: called as progress(step, steps) after each step.
        start: [B, V, c, h, w] clean latents to begin from, noised to the level `strength` (SDEdit); None: pure noise.
    """
    if steps < 1:
        raise InputError(f"the number of sampling steps must be at least 1, got {steps}")
    if not 0 < strength <= 1:
        raise InputError(f"strength must lie in (0, 1], got {strength}")
    x = noise
    if start is not None:
        if start.shape != noise.shape:
            raise InputError(f"start must be {list(noise.shape)} in the model's space, got {list(start.shape)}")
        a, s = levels(torch.full((len(noise),), strength, dtype=noise.dtype, device=noise.device))
        x = a * start + s * noise
    for step in range(steps):
        t = torch.full((len(noise),), strength * (1 - step / steps), dtype=noise.dtype, device=noise.device)
        x0 = predict(x, t)
        if step + 1 < steps:
            a, s = levels(t)
            a_next, s_next = levels(t - strength / steps)
            x = a_next * x0 + s_next * (x - a * x0) / s
        else:
            x = x0
        if progress is not None:
            progress(step + 1, steps)
    return x


def rows(conditioning: Tensor, batch: int) -> Tensor:
    """Prompt conditioning [B or 1, ...] as [B, ...]; one prompt serves the whole batch."""
    if len(conditioning) not in (1, batch):
        raise InputError(f"{len(conditioning)} prompts cannot serve a batch of {batch}; pass 1 or {batch}")
    return conditioning.expand(batch, *conditioning.shape[1:])


class LatentPrior(ABC):
    """The protocol of `rl3d.priors.protocol.Prior` over latent diffusion components.

    A subclass says which conditioning a row gets and calls its U-Net. `predict_x0` follows torch's gradient mode: call
    it under `torch.no_grad()` unless the gradient through the U-Net is wanted.
    """

    has_alpha = False
    baked_light = False

    def __init__(self, parts: Components, unet: Any, *, n_views: int, image_size: int, background: float) -> None:
        if not 0 <= background <= 1:
            raise InputError(f"background must be a grey level in [0, 1], got {background}")
        self.parts, self.unet = parts, unet
        self.n_views, self.image_size, self.background = n_views, image_size, background
        self.name, self.licence = parts.name, parts.licence
        self.device = parts.device
        self.latent_size = image_size // parts.vae_factor
        self.latent_shape = (int(parts.vae.config.latent_channels), self.latent_size, self.latent_size)

    @abstractmethod
    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> PromptEmbedding:
        """See `rl3d.priors.protocol.Prior`."""

    @abstractmethod
    def _positive(self, prompt: PromptEmbedding, cameras: Cameras, batch: int, views: int) -> Tensor:
        """Text conditioning [B * V, L, D] in "(b f)" order."""

    @abstractmethod
    def _network(self, x: Tensor, steps: Tensor, context: Tensor, cameras: Cameras, views: int) -> Tensor:
        """The U-Net's output for rows x [N, c, h, w], steps [N], context [N, L, D], cameras [N]."""

    def cameras(self, azimuth: float | Tensor, elevation: float | Tensor) -> Cameras:
        """`n_views` cameras from a base azimuth and elevation in radians, evenly spaced around the asset."""
        spacing = torch.arange(self.n_views, dtype=torch.float32, device=self.device) * (2 * torch.pi / self.n_views)
        turn = torch.as_tensor(azimuth, dtype=torch.float32, device=self.device) + spacing
        return Cameras.orbit(turn, elevation, CANONICAL_DISTANCE, CANONICAL_FOV, self.image_size)

    def to_latents(self, images: Tensor) -> Tensor:
        """RGB [B, V, 3, H, W] in [0, 1], sRGB, over `background`, to [B, V, c, h, w]; differentiable, deterministic."""
        if images.ndim != 5 or images.shape[2] != 3:
            raise InputError(f"{self.name} takes RGB images [B, V, 3, H, W], got {list(images.shape)}")
        flat = images.flatten(0, 1).to(self.device)
        if flat.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            flat = F.interpolate(flat.float(), size, mode="bilinear", antialias=True, align_corners=False)
        # The posterior's mean: sampling it would only add noise to the render's gradient.
        mean = self.parts.vae.encode((2 * flat - 1).to(self.parts.dtype)).latent_dist.mean
        return (mean.float() * self.parts.vae.config.scaling_factor).unflatten(0, images.shape[:2])

    def decode(self, latents: Tensor) -> Tensor:
        """[B, V, c, h, w] to RGB [B, V, 3, H, W], clamped to [0, 1], sRGB; differentiable inside the clamp."""
        flat = latents.flatten(0, 1) / self.parts.vae.config.scaling_factor
        images = self.parts.vae.decode(flat.to(self.parts.dtype)).sample.float()
        return (images / 2 + 0.5).clamp(0, 1).unflatten(0, latents.shape[:2])

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = a_t x + s_t eps for latents [B, V, c, h, w] and t [B] in (0, 1); differentiable."""
        a, s = self.parts.schedule.signal_and_noise(t)
        return a * latents + s * noise

    def times(self, steps: int) -> Tensor:
        """See `Prior.times`; even steps, as in `ddim`."""
        return 1 - torch.arange(steps + 1, dtype=torch.float64, device=self.device) / steps

    @property
    def network(self) -> torch.nn.Module:
        """What an adapter may be put on, see `rl3d.priors.adapters`."""
        return self.unet

    def predict_x0(
        self, x_t: Tensor, t: Tensor, prompt: PromptEmbedding, cameras: Cameras, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """(x0 with classifier-free guidance, x0 of the text-only prediction), both [B, V, c, h, w] float32.

        One forward of B * V rows, or of 2 * B * V when guidance differs from 1.

        Args:
            x_t: [B, V, c, h, w] float32.
            t: [B] or [1] in (0, 1), one noise level for all views of an object.
            cameras: [V], shared by the batch, or [B * V] in "(b f)" order.
        """
        batch, views = x_t.shape[:2]
        placed = camera_rows(cameras, batch, views)
        context = self._positive(prompt, placed, batch, views)
        t = t.to(x_t.device).expand(batch)
        x, steps = x_t.flatten(0, 1), self.parts.schedule.timesteps(t).repeat_interleave(views)
        if guidance != 1:
            negative = rows(prompt.negative, batch).repeat_interleave(views, 0)
            context, x, steps = torch.cat([context, negative]), torch.cat([x, x]), steps.repeat(2)
            placed = Cameras.cat([placed, placed])
        output = self._network(x.to(self.parts.dtype), steps, context, placed, views).float()
        text = self.parts.schedule.x0(output[: batch * views].view_as(x_t), x_t, t)
        if guidance == 1:
            return text, text
        null = self.parts.schedule.x0(output[batch * views :].view_as(x_t), x_t, t)
        return null + guidance * (text - null), text

    @torch.no_grad()
    def sample(
        self,
        prompt: PromptEmbedding,
        cameras: Cameras,
        *,
        steps: int = 50,
        guidance: float = 7.5,
        generator: torch.Generator,
        progress: Any = None,
        start: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Images [B, V, 3, H, W] in [0, 1] for B prompts by DDIM, from noise or from `start` (see `Prior.sample`)."""
        shape = (len(prompt.prompts), self.n_views, *self.latent_shape)
        noise = torch.randn(shape, generator=generator, device=generator.device)
        latents = ddim(
            lambda x, t: self.predict_x0(x, t, prompt, cameras, guidance)[0],
            self.parts.schedule.signal_and_noise,
            noise.to(self.device),
            steps,
            progress,
            None if start is None else self.to_latents(start.to(self.device)).to(noise.dtype),
            strength,
        )
        return self.decode(latents)


def check_prompt(prompt: str) -> str:
    """The prompt without outer blanks; InputError when nothing is left."""
    if not prompt.strip():
        raise InputError("the prompt is empty; describe the object, for example 'a small wooden barrel'")
    return prompt.strip()
