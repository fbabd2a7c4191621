"""Reward3D of DreamReward (Ye et al. 2024, arXiv 2403.14613; code MIT): four views in order, one score an asset.

BLIP-large as in ImageReward reads each view with the prompt of its direction ("..., side view"); two published
heads put the four together, and the checkpoint's tensors say which it is:

- Scorer (the paper's): the MLP up to its second layer for every view, the four side by side through three layers.
- CrossViewFusion: self-attention over the views, a sigmoid gate between views and attended views, the mean, the MLP.

The checkpoints are published pickled: convert as for ImageReward. Differentiable to the images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rl3d import hub
from rl3d.errors import AssetError, InputError
from rl3d.rewards.hub.blip import HEAD, BlipEncoder, linear, part
from rl3d.rewards.hub.clip import FIELD
from rl3d.rewards.hub.imagereward import CONVERT, LAYERS, MEAN, STD, read_head
from rl3d.rewards.hub.views import ViewReward
from rl3d.rewards.protocol import RewardInput
from rl3d.view_words import VIEW_SUFFIXES, view_indices

VIEWS = 4
TOKENS = 100
FUSION_STD = 5.0  # CrossViewFusion's scores are divided by this instead of ImageReward's deviation


def load_reward3d(
    folder: Path, device: torch.device, dtype: torch.dtype | None = None, *, chunk: int = 8
) -> ViewReward:
    """A converted Reward3D checkpoint as a reward that needs cameras, for the words of each view.

    Raises:
        AssetError: pickled, truncated or foreign files, each with the way out.
    """
    weights = hub.read_tensors(folder, FIELD, CONVERT)
    encoder = BlipEncoder(weights, folder, "reward3d", device, hub.default_dtype(device, dtype))
    head = partial(read_head, weights, folder=folder, family="reward3d", device=device)
    if "Scorer.fc1.weight" in weights:
        score = partial(scorer, head("mlp.", LAYERS[:2]), head("Scorer.", ("fc1", "fc2", "fc3")))
    elif "cross_view_adapter.fusion_gate.0.weight" in weights:
        # torch names a multi-head attention's input projection in_proj_weight and in_proj_bias
        own = part(weights, "cross_view_adapter.")
        missing = [f"self_attn.in_proj_{kind}" for kind in ("weight", "bias") if f"self_attn.in_proj_{kind}" not in own]
        if missing:
            raise AssetError(f"{folder} is no reward3d checkpoint: cross_view_adapter.{missing[0]} is missing")
        projection = {f"in_proj.{kind}": own[f"self_attn.in_proj_{kind}"].to(device) for kind in ("weight", "bias")}
        attention = {**projection, **head("cross_view_adapter.", ("self_attn.out_proj", "fusion_gate.0"))}
        score = partial(cross_view_fusion, head("mlp.", LAYERS), attention)
    else:
        raise AssetError(
            f"{folder} has neither of Reward3D's heads (Scorer, cross_view_adapter); if it is ImageReward, take "
            f"imagereward:{folder}"
        )
    licence = hub.read_licence(folder)
    name, bounds = "reward3d", (-math.inf, math.inf)
    encode = partial(encoder, limit=TOKENS)
    return ViewReward(encode, score, name, licence, bounds, views=VIEWS, sentences=view_sentences, chunk=chunk)


def view_sentences(x: RewardInput) -> list[str]:
    """One prompt a view, B * 4 of them: "a chest, front view", by where its camera stands.

    Raises:
        InputError: the input has no cameras.
    """
    if x.cameras is None:
        raise InputError("reward 'reward3d' reads another sentence for every view; RewardInput.cameras must be given")
    batch, views = x.images.shape[:2]
    index = view_indices(x.cameras).tolist()
    index = index if len(index) == batch * views else index * batch
    return [x.prompts[i // views] + VIEW_SUFFIXES[direction] for i, direction in enumerate(index)]


def scorer(mlp: Mapping[str, Tensor], head: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Features [B, 4, D] of the views to scores [B]; all layers are linear, as published."""
    x = linear(mlp, LAYERS[1], linear(mlp, LAYERS[0], features)).flatten(1)  # [B, 4 * 128]
    for name in ("fc1", "fc2", "fc3"):
        x = linear(head, name, x)
    return (x[:, 0] - MEAN) / STD


def cross_view_fusion(mlp: Mapping[str, Tensor], adapter: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Features [B, 4, D] of the views to scores [B]."""
    heads = max(1, features.shape[-1] // HEAD)
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in linear(adapter, "in_proj", features).chunk(3, -1))
    seen = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    attended = linear(adapter, "self_attn.out_proj", seen)
    gate = linear(adapter, "fusion_gate.0", torch.cat([features, attended], -1)).sigmoid()
    x = (gate * attended + (1 - gate) * features).mean(1)
    for name in LAYERS:
        x = linear(mlp, name, x)
    return (x[:, 0] - MEAN) / FUSION_STD
