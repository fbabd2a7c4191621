"""HPS v2 and v2.1 (Wu et al. 2023, arXiv 2306.09341; Apache-2.0): CLIP ViT-H-14, tuned on human preferences.

Published as a pickled open_clip checkpoint, which rl3d never opens: convert it once. Two layouts of safetensors work:
a transformers CLIP folder, or open_clip's keys as they are, with open_clip_config.json beside them where the model is
not the published ViT-H-14. The score is the cosine in [-1, 1], around 0.2 to 0.3 on the published weights; scores of v2
and v2.1 do not compare. Differentiable to the images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl3d import hub
from rl3d.errors import AssetError
from rl3d.rewards.hub.clip import FIELD, ClipScorer, as_reward, load_clip, read_tokenizer
from rl3d.rewards.hub.views import CLIP_MEAN, CLIP_STD, Pool, Preparation, ViewReward

CONVERT = (
    "convert it once where you trust the file: save_file({k: v.contiguous() for k, v in torch.load('NAME.pt', "
    "weights_only=True)['state_dict'].items()}, 'model.safetensors') with safetensors.torch, and put the files of "
    "CLIP's tokenizer beside it"
)
# open_clip's ViT-H-14.json.
VIT_H_14: dict[str, Any] = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}
# open_clip's names and transformers' for the tensors that both have as they are.
OUTSIDE = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


def from_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors of a ViT under transformers' names; the buffer attn_mask is left out, unknown names stay."""
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        block = BLOCK.fullmatch(key)
        if key == "attn_mask":
            continue
        if key in TRANSPOSED:
            renamed[TRANSPOSED[key]] = value.T.contiguous()
        elif block is None:
            renamed[OUTSIDE.get(key, key)] = value
        else:
            vision, number, part, kind = block.groups()
            prefix = f"{'vision' if vision else 'text'}_model.encoder.layers.{number}."
            if part == "attn.in_proj":
                for name, third in zip("qkv", value.chunk(3)):
                    renamed[f"{prefix}self_attn.{name}_proj.{kind}"] = third.contiguous()
            else:
                renamed[f"{prefix}{IN_BLOCK.get(part, part)}.{kind}"] = value
    return renamed


def load_hpsv2(
    folder: Path, device: torch.device, dtype: torch.dtype | None = None, *, pool: Pool = "mean", chunk: int = 8
) -> ViewReward:
    """A converted HPSv2 checkpoint as a reward; the views' cosines are pooled.

    Raises:
        AssetError: pickled, truncated or foreign files, each with the way out.
    """
    if (folder / "config.json").is_file():
        return load_clip(folder, device, dtype, name="hpsv2", pool=pool, chunk=chunk)
    from transformers.models.clip.configuration_clip import CLIPConfig
    from transformers.models.clip.modeling_clip import CLIPModel

    weights = from_open_clip(hub.read_tensors(folder, FIELD, CONVERT))
    path = folder / "open_clip_config.json"
    published = hub.read_json(path) if path.is_file() else {"model_cfg": VIT_H_14}
    model = CLIPModel(CLIPConfig(**clip_config(published.get("model_cfg", {}), path)))
    fill(model, weights, folder, "hpsv2")
    hub.frozen(model, device, hub.default_dtype(device, dtype))
    prepared = published.get("preprocess_cfg", {})
    mean, std = tuple(prepared.get("mean", CLIP_MEAN)), tuple(prepared.get("std", CLIP_STD))
    prepare = Preparation(model.config.vision_config.image_size, mean, std, fit="pad")
    return as_reward(ClipScorer(model, read_tokenizer(folder), prepare, "hpsv2"), folder, pool, chunk)


def clip_config(model: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """open_clip's model_cfg of a plain ViT as transformers' CLIPConfig arguments."""
    try:
        vision, text = model["vision_cfg"], model["text_cfg"]
        activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
        return {
            "projection_dim": model["embed_dim"],
            "vision_config": {
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
                "hidden_size": vision["width"],
                "intermediate_size": 4 * vision["width"],
                "num_hidden_layers": vision["layers"],
                "num_attention_heads": vision["width"] // vision.get("head_width", 64),
                "hidden_act": activation,
                "projection_dim": model["embed_dim"],
            },
            "text_config": {
                "vocab_size": text["vocab_size"],
                "max_position_embeddings": text["context_length"],
                "hidden_size": text["width"],
                "intermediate_size": 4 * text["width"],
                "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"],
                "hidden_act": activation,
                "projection_dim": model["embed_dim"],
                "eos_token_id": 2,  # transformers' sign for: features at the highest token, as open_clip takes them
            },
        }
    except (KeyError, TypeError) as error:
        raise AssetError(f"{path}: model_cfg is not of a plain ViT CLIP ({error} is missing)") from error


def fill(model: Any, weights: Mapping[str, Tensor], folder: Path, family: str) -> None:
    """Put tensors into a module, all of them and no others.

    Raises:
        AssetError: missing, surplus or differently shaped tensors, the first one by name.
    """
    own = {key: value for key, value in model.state_dict().items() if not key.endswith("position_ids")}
    given = {key: value for key, value in weights.items() if not key.endswith("position_ids")}
    wrong = [key for key in own if key not in given] or [key for key in given if key not in own]
    if wrong:
        what = "lacks" if wrong[0] in own else "has the unknown"
        raise AssetError(f"{folder} {what} tensor {wrong[0]} ({len(wrong)} such); it is no {family} checkpoint")
    for key, value in own.items():
        if value.shape != given[key].shape:
            raise AssetError(
                f"{folder}: tensor {key} is {list(given[key].shape)}, expected {list(value.shape)}; it is no {family} "
                "checkpoint of that size"
            )
    model.load_state_dict(given, strict=False)
