"""ImageReward (Xu et al. 2023, arXiv 2304.05977; Apache-2.0): BLIP-large reads picture and prompt, an MLP scores them.

The checkpoint is published pickled, which rl3d never opens: convert it once and put the vocabulary of bert-base-uncased
beside it. Scores are standardised by the authors' constants, roughly in [-3, 3]. Differentiable to the images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rl3d import hub
from rl3d.errors import AssetError
from rl3d.rewards.hub.blip import BlipEncoder, linear, part
from rl3d.rewards.hub.clip import FIELD
from rl3d.rewards.hub.views import POOLS, Pool, ViewReward

CONVERT = (
    "convert it once where you trust the file: save_file({k: v.contiguous() for k, v in torch.load('NAME.pt', "
    "weights_only=True).items()}, 'model.safetensors') with safetensors.torch, and put vocab.txt of bert-base-uncased "
    "beside it"
)
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the scores on the authors' data
TOKENS = 35
LAYERS = ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7")  # the MLP is linear: dropout between, no ReLU


class ImageRewardScorer:
    """Standardised scores of pictures and sentences."""

    def __init__(self, encoder: BlipEncoder, mlp: Mapping[str, Tensor]) -> None:
        self.encoder, self.mlp = encoder, mlp

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Images [N, 3, H, W], sRGB in [0, 1], and N sentences: [N] scores."""
        x = self.encoder(images, prompts, TOKENS)
        for name in LAYERS:
            x = linear(self.mlp, name, x)
        return (x[:, 0] - MEAN) / STD


def load_imagereward(
    folder: Path, device: torch.device, dtype: torch.dtype | None = None, *, pool: Pool = "mean", chunk: int = 8
) -> ViewReward:
    """A converted ImageReward checkpoint as a reward; the views' scores are pooled.

    Raises:
        AssetError: pickled, truncated or foreign files, each with the way out.
    """
    weights = hub.read_tensors(folder, FIELD, CONVERT)
    encoder = BlipEncoder(weights, folder, "imagereward", device, hub.default_dtype(device, dtype))
    mlp = read_head(weights, "mlp.", LAYERS, folder, "imagereward", device)
    scorer = ImageRewardScorer(encoder, mlp)
    licence = hub.read_licence(folder)
    return ViewReward(scorer, POOLS[pool], "imagereward", licence, (-math.inf, math.inf), chunk=chunk)


def read_head(
    weights: Mapping[str, Tensor],
    prefix: str,
    layers: tuple[str, ...],
    folder: Path,
    family: str,
    device: torch.device,
) -> dict[str, Tensor]:
    """The linear layers below a prefix, frozen, on their device, in the checkpoint's precision.

    Raises:
        AssetError: one is missing.
    """
    found = part(weights, prefix)
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    missing = [name for name in names if name not in found]
    if missing:
        raise AssetError(f"{folder} is no {family} checkpoint: tensor {prefix}{missing[0]} is missing")
    return {name: found[name].to(device) for name in names}
