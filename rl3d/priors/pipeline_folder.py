"""Reading a pipeline folder in the diffusers layout: noise schedule, VAE, text encoder, tokenizer.

Safetensors and JSON only; weights are frozen; no code of the folder is run and no network is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl3d.errors import AssetError
from rl3d.hub import from_folder, read_json, read_licence


@dataclass(frozen=True)
class NoiseSchedule:
    """A discrete variance-preserving schedule, x_t = sqrt(abar) x + sqrt(1 - abar) eps.

    Attributes:
        alphas_cumprod: [N] abar, float32, decreasing.
        prediction: what the network puts out: "epsilon", "v_prediction" or "sample".
    """

    alphas_cumprod: Tensor
    prediction: str

    def timesteps(self, t: Tensor) -> Tensor:
        """Continuous t [B] in (0, 1] to the network's integer steps [B] in 0 .. N-1; t = 1 is the noisiest."""
        count = len(self.alphas_cumprod)
        return (t.float() * count).round().long().sub(1).clamp(0, count - 1)

    def signal_and_noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and s_t at the integer step of t [B], each [B, 1, 1, 1, 1]."""
        alpha = self.alphas_cumprod[self.timesteps(t).to(self.alphas_cumprod.device)].to(t.device)
        return alpha.sqrt()[:, None, None, None, None], (1 - alpha).sqrt()[:, None, None, None, None]

    def x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean sample that a network's output [B, V, c, h, w] at t [B] stands for."""
        if self.prediction == "sample":
            return output
        a, s = self.signal_and_noise(t)
        if self.prediction == "v_prediction":  # v = a eps - s x0 (Salimans & Ho 2022, appendix D)
            return a * x_t - s * output
        return (x_t - s * output) / a


def load_schedule(folder: Path) -> NoiseSchedule:
    """The noise schedule of a pipeline folder, whichever diffusers scheduler it was saved with.

    Raises:
        AssetError: no scheduler configuration, or one that is not a variance-preserving beta schedule.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    config = read_json(folder / "scheduler" / "scheduler_config.json")
    prediction = config.get("prediction_type", "epsilon")
    known = ("epsilon", "v_prediction", "sample")
    if prediction not in known:
        raise AssetError(f"prediction_type {prediction!r} in {folder}/scheduler is not one of {', '.join(known)}")
    if "beta_schedule" not in config and "trained_betas" not in config:
        raise AssetError(f"{folder}/scheduler is a {config.get('_class_name')}: choose a model with a beta schedule")
    # DDIM reads the same fields as every other variance-preserving scheduler, and knows zero terminal SNR.
    fields = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
    )
    try:
        scheduler = DDIMScheduler(**{key: config[key] for key in fields if config.get(key) is not None})
    except (NotImplementedError, TypeError, ValueError) as error:
        raise AssetError(f"{folder}/scheduler cannot be read: {error}; choose another --prior") from error
    alphas = scheduler.alphas_cumprod.float()
    if prediction == "epsilon" and float(alphas[-1]) == 0:
        raise AssetError(
            f"{folder}/scheduler: rescale_betas_zero_snr leaves epsilon prediction undefined; set it false"
        )
    return NoiseSchedule(alphas, prediction)


@dataclass(frozen=True)
class Components:
    """The frozen parts of a latent diffusion pipeline but its U-Net.

    Attributes:
        vae: diffusers AutoencoderKL.
        text_encoder, tokenizer: transformers CLIPTextModel and CLIPTokenizer.
        schedule: noise schedule.
        device, dtype: where and in which precision the networks run.
        name, licence: for reports.
    """

    vae: Any
    text_encoder: Any
    tokenizer: Any
    schedule: NoiseSchedule
    device: torch.device
    dtype: torch.dtype
    name: str
    licence: str

    @property
    def vae_factor(self) -> int:
        """Pixels per latent cell."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


def load_components(folder: Path, device: torch.device, dtype: torch.dtype, name: str) -> Components:
    """VAE, text encoder, tokenizer and schedule of a pipeline folder in the diffusers layout.

    Raises:
        AssetError: a part is missing, truncated, pickled or of another kind.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers.models.clip.modeling_clip import CLIPTextModel
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    schedule = load_schedule(folder)
    vae = from_folder(AutoencoderKL, folder / "vae", device, dtype, "--prior")
    text_encoder = from_folder(CLIPTextModel, folder / "text_encoder", device, dtype, "--prior")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise AssetError(f"{folder}/tokenizer cannot be loaded: {reason}; download the model again") from error
    return Components(vae, text_encoder, tokenizer, schedule, device, dtype, name, read_licence(folder))
