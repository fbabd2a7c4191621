"""BLIP's image-grounded text encoder (Li et al. 2022, arXiv 2201.12086), which ImageReward and Reward3D are built on.

Their checkpoints name tensors as the BLIP repository does (blip.visual_encoder.*, blip.text_encoder.*); here they fill
transformers' BlipVisionModel and BlipTextModel. All sizes are read off the tensors; heads are 64 wide, as in BLIP-base
and BLIP-large.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl3d import hub
from rl3d.errors import AssetError
from rl3d.rewards.hub.hpsv2 import fill
from rl3d.rewards.hub.views import Preparation, tokens

HEAD = 64  # width of an attention head
VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
IN_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def vision_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """blip.visual_encoder's tensors under transformers' names; unknown names stay."""
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", key)
        if block is None:
            renamed[VISION.get(key, key)] = value
        else:
            number, name, kind = block.groups()
            renamed[f"encoder.layers.{number}.{IN_BLOCK.get(name, name)}.{kind}"] = value
    return renamed


class BlipEncoder:
    """Frozen vision and text networks of BLIP, and BERT's tokenizer.

    Attributes:
        width: of the features. prepare: pictures as the vision network wants them.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], folder: Path, family: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        """From a checkpoint's tensors.

        Raises:
            AssetError: they are not of a BLIP, or the folder has no BERT vocabulary.
        """
        from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        vision, text = part(weights, "blip.visual_encoder."), part(weights, "blip.text_encoder.")
        try:
            width, _, patch, _ = vision["patch_embed.proj.weight"].shape
            side = patch * math.isqrt(vision["pos_embed"].shape[1] - 1)
            vocabulary, self.width = text["embeddings.word_embeddings.weight"].shape
            longest = len(text["embeddings.position_embeddings.weight"])
            inner = len(text["encoder.layer.0.intermediate.dense.weight"])
            vision_inner = len(vision["blocks.0.mlp.fc1.weight"])
        except (KeyError, ValueError) as error:
            raise AssetError(f"{folder} is no {family} checkpoint: BLIP's tensor {error} is missing") from error
        vision_config = BlipVisionConfig(
            hidden_size=width,
            intermediate_size=vision_inner,
            num_hidden_layers=count(vision, r"blocks\.(\d+)\."),
            num_attention_heads=max(1, width // HEAD),
            image_size=side,
            patch_size=patch,
            hidden_act="gelu",
            layer_norm_eps=1e-6,  # BLIP's; transformers' own default is another
            attn_implementation="eager",
        )
        text_config = BlipTextConfig(
            vocab_size=vocabulary,
            hidden_size=self.width,
            encoder_hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=count(text, r"encoder\.layer\.(\d+)\."),
            num_attention_heads=max(1, self.width // HEAD),
            max_position_embeddings=longest,
            hidden_act="gelu",
            layer_norm_eps=1e-12,
            is_decoder=True,  # transformers' sign for: with cross-attention; the mask below stays two-way
            attn_implementation="eager",
        )
        self.vision, self.text = BlipVisionModel(vision_config), BlipTextModel(text_config, add_pooling_layer=False)
        fill(self.vision, vision_names(vision), folder, family)
        fill(self.text, text, folder, family)
        for model in (self.vision, self.text):
            hub.frozen(model, device, dtype)
        self.prepare = Preparation(side)
        self.tokenizer = read_bert_tokenizer(folder)
        self.family = family

    def __call__(self, images: Tensor, prompts: list[str], limit: int) -> Tensor:
        """The [CLS] features [N, width], in the images' precision, of N pictures [N, 3, H, W] and N sentences."""
        grid = self.vision(pixel_values=self.prepare(images).to(self.vision.dtype)).last_hidden_state
        rows = [torch.tensor(tokens(self.tokenizer, prompt, limit, self.family)) for prompt in prompts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(images.device)  # BERT's [PAD] is 0
        lengths = torch.tensor([len(row) for row in rows], device=images.device)
        mask = torch.arange(ids.shape[1], device=images.device) < lengths[:, None]
        out = self.text(input_ids=ids, attention_mask=mask.long(), encoder_hidden_states=grid, is_decoder=False)
        return out.last_hidden_state[:, 0].to(images.dtype)


def count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbered blocks there are."""
    return len({found.group(1) for key in weights if (found := re.match(pattern, key))})


def read_bert_tokenizer(folder: Path) -> Any:
    """The tokenizer of bert-base-uncased from vocab.txt or tokenizer.json.

    Raises:
        AssetError: neither is there, or it is broken.
    """
    from transformers.models.bert.tokenization_bert import BertTokenizer

    if not (folder / "vocab.txt").is_file() and not (folder / "tokenizer.json").is_file():
        raise AssetError(f"{folder} has no tokenizer; put vocab.txt of bert-base-uncased there, which BLIP reads with")
    try:
        return BertTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # as many types as there are ways to break a file
        reason = " ".join(str(error).split())[:200]
        raise AssetError(f"{folder}: the tokenizer cannot be loaded: {reason}; copy it again") from error


def linear(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """One linear layer of a checkpoint, in the precision of x [..., in]."""
    return torch.nn.functional.linear(x, weights[f"{name}.weight"].to(x), weights[f"{name}.bias"].to(x))
