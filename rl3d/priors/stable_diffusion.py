"""Any diffusers text-to-image pipeline of the Stable Diffusion 1.x / 2.x family as a single-view prior.

The model knows no cameras, so the prompt says where the viewer stands (DreamFusion, Poole et al. 2022, arXiv
2209.14988, section 3.2: "front view", "side view", "back view", "overhead view").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import AssetError
from rl3d.hub import default_dtype, from_folder
from rl3d.priors.latent_diffusion import LatentPrior, check_prompt, encode_texts, rows
from rl3d.priors.pipeline_folder import Components, load_components
from rl3d.priors.protocol import PromptEmbedding
from rl3d.view_words import VIEW_SUFFIXES, view_indices


class StableDiffusionPrior(LatentPrior):
    """A text-to-image model; each view is denoised on its own, with the prompt of its direction.

    Args:
        parts, unet: frozen components; `unet` is a diffusers UNet2DConditionModel.
        background: grey level the renders are composited over; the model itself paints any background.
        view_prompts: False leaves the prompt as it is for every camera.
    """

    def __init__(self, parts: Components, unet: Any, *, background: float = 1.0, view_prompts: bool = True) -> None:
        size = unet.config.sample_size
        side = min(size) if isinstance(size, list | tuple) else size
        super().__init__(parts, unet, n_views=1, image_size=side * parts.vae_factor, background=background)
        self.view_prompts = view_prompts

    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> PromptEmbedding:
        """positive [1, 4, L, D] (one text a direction, or [1, 1, L, D] without view prompts), negative [1, L, D].

        Raises:
            InputError: the prompt is empty or longer than the text encoder reads.
        """
        text = check_prompt(prompt)
        texts = [text + suffix for suffix in VIEW_SUFFIXES] if self.view_prompts else [text]
        encoded = encode_texts(self.parts, [*texts, negative_prompt])
        return PromptEmbedding(encoded[None, :-1], encoded[-1:], [text])

    def _positive(self, prompt: PromptEmbedding, cameras: Cameras, batch: int, views: int) -> Tensor:
        per_view = rows(prompt.positive, batch).repeat_interleave(views, 0)  # [B * V, 4 or 1, L, D]
        if per_view.shape[1] == 1:
            return per_view[:, 0]
        return per_view[torch.arange(batch * views, device=per_view.device), view_indices(cameras).to(per_view.device)]

    def _network(self, x: Tensor, steps: Tensor, context: Tensor, cameras: Cameras, views: int) -> Tensor:
        return self.unet(x, steps, encoder_hidden_states=context, return_dict=False)[0]


def load_stable_diffusion(
    folder: Path, device: torch.device, dtype: torch.dtype | None = None, *, name: str = "", background: float = 1.0
) -> StableDiffusionPrior:
    """A pipeline folder (model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/) as a prior.

    Raises:
        AssetError: a part is missing, truncated, pickled, or its U-Net wants more than text (inpainting, depth).
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    chosen = default_dtype(device, dtype)
    parts = load_components(folder, device, chosen, name or folder.name)
    unet = from_folder(UNet2DConditionModel, folder / "unet", device, chosen, "--prior")
    channels, latent = unet.config.in_channels, parts.vae.config.latent_channels
    if channels != latent or unet.config.class_embed_type or unet.config.addition_embed_type:
        raise AssetError(
            f"{parts.name} is not a plain text-to-image model (its U-Net takes {channels} channels for {latent} latent "
            "ones, or extra conditions); choose a text-to-image --prior of the Stable Diffusion 1.x or 2.x family"
        )
    width, expected = parts.text_encoder.config.hidden_size, unet.config.cross_attention_dim
    if width != expected:
        raise AssetError(f"{parts.name}: the text encoder is {width} wide, the U-Net wants {expected}; mixed folders?")
    return StableDiffusionPrior(parts, unet, background=background)
