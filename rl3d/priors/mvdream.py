"""MVDream-format pipelines as a prior of 4 jointly denoised views (Shi et al. 2023, arXiv 2308.16512).

The folder is a diffusers pipeline whose U-Net is declared as custom code ("mv_unet", "MultiViewUNetModel"). That code
is never run: `rl3d.priors.mvdream_unet` reads the same weights.

Camera convention of the checkpoints: a camera-to-world matrix with OpenGL camera axes (x right, y up, z backward) in a
z-up world, its translation scaled to unit length, flattened row by row to 16 numbers. Assets face +X in that world and
the azimuth grows towards +Y, so rl3d's world (x, y, z), y up, front +Z, becomes (z, x, y).
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import AssetError, InputError
from rl3d.hub import default_dtype, read_json, weight_variant
from rl3d.priors.latent_diffusion import LatentPrior, check_prompt, encode_texts, rows
from rl3d.priors.mvdream_unet import MultiViewUNet, MultiViewUNetConfig
from rl3d.priors.pipeline_folder import Components, load_components
from rl3d.priors.protocol import PromptEmbedding

# What the training captions of the released model end with.
PROMPT_SUFFIX = ", 3d asset"
VIEWS = 4


def camera_vectors(cameras: Cameras) -> Tensor:
    """[V, 16] in the convention of the module's docstring, differentiable."""
    to_z_up = cameras.view.new_tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    opencv_to_opengl = cameras.view.new_tensor([1.0, -1.0, -1.0])
    rotation = to_z_up @ cameras.view[:, :3, :3].transpose(1, 2) * opencv_to_opengl  # columns: right, up, backward
    eye = cameras.centres @ to_z_up.T
    eye = eye / eye.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    bottom = cameras.view.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(cameras), 1, 4)
    return torch.cat([torch.cat([rotation, eye[:, :, None]], -1), bottom], 1).flatten(1)


class MVDreamPrior(LatentPrior):
    """Four views a quarter turn apart, denoised jointly.

    Args:
        parts, unet: frozen components.
        background: grey level the renders are composited over; the model paints plain, mostly grey backgrounds.
        suffix: appended to every prompt.
    """

    def __init__(
        self, parts: Components, unet: MultiViewUNet, *, background: float = 0.5, suffix: str = PROMPT_SUFFIX
    ) -> None:
        size = unet.config.image_size * parts.vae_factor
        super().__init__(parts, unet, n_views=VIEWS, image_size=size, background=background)
        self.suffix = suffix

    def encode_prompt(self, prompt: str, negative_prompt: str = "") -> PromptEmbedding:
        """positive and negative [1, L, D].

        Raises:
            InputError: the prompt is empty or longer than the text encoder reads.
        """
        text = check_prompt(prompt)
        encoded = encode_texts(self.parts, [text + self.suffix, negative_prompt])
        return PromptEmbedding(encoded[:1], encoded[1:], [text])

    def _positive(self, prompt: PromptEmbedding, cameras: Cameras, batch: int, views: int) -> Tensor:
        if views != self.n_views:
            raise InputError(f"{self.name} denoises {self.n_views} views jointly, got {views}")
        return rows(prompt.positive, batch).repeat_interleave(views, 0)

    def _network(self, x: Tensor, steps: Tensor, context: Tensor, cameras: Cameras, views: int) -> Tensor:
        return self.unet(x, steps, context, camera_vectors(cameras.to(self.device)), views)


def read_unet_config(path: Path) -> MultiViewUNetConfig:
    """unet/config.json of an MVDream folder.

    Raises:
        AssetError: an option that this network does not have, ImageDream's image conditioning among them.
    """
    config: dict[str, Any] = read_json(path)
    if config.get("ip_dim"):
        raise AssetError(f"{path} is an image-conditioned model (ImageDream); choose a text-conditioned --prior")
    names = {field.name for field in fields(MultiViewUNetConfig)}
    # Without effect on a frozen network in this layout.
    ignored = {"ip_weight", "use_checkpoint", "dropout", "dims", "conv_resample", "legacy"}
    ignored |= {"use_linear_in_transformer", "use_spatial_transformer", "num_heads", "num_heads_upsample"}
    unknown = [key for key, value in config.items() if not key.startswith("_") and key not in names | ignored and value]
    if unknown:
        raise AssetError(f"{path} sets {', '.join(unknown)}, which rl3d's MVDream U-Net does not have; choose another")
    missing = sorted(names - config.keys())
    if missing:
        raise AssetError(f"{path} lacks {', '.join(missing)}; download the model again")
    lists = ("channel_mult", "attention_resolutions")
    values: dict[str, Any] = {name: tuple(config[name]) if name in lists else config[name] for name in names}
    return MultiViewUNetConfig(**values)


def load_unet(folder: Path, device: torch.device, dtype: torch.dtype) -> MultiViewUNet:
    """The U-Net of an MVDream folder, every tensor matched by name and shape, frozen.

    Raises:
        AssetError: weights missing, truncated, pickled, or of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_unet_config(folder / "config.json")
    variant = weight_variant(folder, "--prior")
    files = sorted(
        path
        for path in folder.glob("*.safetensors")
        if ".non_ema" not in path.name and (".fp16" in path.name) == (variant == "fp16")
    )
    state: dict[str, Tensor] = {}
    try:
        for path in files:
            state.update(load_file(path))
        with torch.device("meta"):  # no second copy of 3.5 GB of random numbers
            unet = MultiViewUNet(config)
        unet.load_state_dict(state, strict=True, assign=True)
    except (SafetensorError, OSError) as error:
        raise AssetError(f"{folder} has a truncated or foreign weight file ({error}); download it again") from error
    except (RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AssetError(f"{folder} does not fit its config.json: {reason}; download the model again") from error
    return unet.to(device=device, dtype=dtype).eval().requires_grad_(False)


def load_mvdream(
    folder: Path, device: torch.device, dtype: torch.dtype | None = None, *, name: str = "", background: float = 0.5
) -> MVDreamPrior:
    """A pipeline folder (model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/) as a prior.

    Raises:
        AssetError: a part is missing, truncated, pickled or of another kind.
    """
    chosen = default_dtype(device, dtype)
    unet = load_unet(folder / "unet", device, chosen)
    parts = load_components(folder, device, chosen, name or folder.name)
    width, expected = parts.text_encoder.config.hidden_size, unet.config.context_dim
    if width != expected:
        raise AssetError(f"{parts.name}: the text encoder is {width} wide, the U-Net wants {expected}; mixed folders?")
    return MVDreamPrior(parts, unet, background=background)
