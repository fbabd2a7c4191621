"""The mesh language model: a small causal transformer in the format of transformers.

The condition enters inside the backbone (`base_model_prefix`), as a prefix: trainers that call the backbone and the
head by themselves keep it. The slot that is due (see `grammar`) and the axis of each coordinate are embedded beside the
token, so that the network need not count.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from rl3d.data.captions import MAX_WORDS
from rl3d.errors import AssetError, InputError
from rl3d.hub import no_progress_bars
from rl3d.mesh_tokens.around import Around, around_of
from rl3d.mesh_tokens.condition import Condition, Prefix
from rl3d.mesh_tokens.grammar import SLOTS
from rl3d.mesh_tokens.layers import Block, KeyValues, rotary
from rl3d.mesh_tokens.lookup import SurfaceLookup
from rl3d.mesh_tokens.quantise import BINS
from rl3d.mesh_tokens.tokenizer import Kind, Tokenizer


class MeshLMConfig(PretrainedConfig):
    """Sizes and the tokenizer.

    Args:
        kind, bins: of the tokenizer. words: the vocabulary of prompts; 0 pads, 1 is the empty prompt.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the transformer.
        anchors, neighbours, cloud_layers: patches of a point cloud, points in each, and blocks over them.
        cloud_points: points that training shows, and to which a larger cloud is thinned.
        max_faces: largest mesh of the training set, 0 if unknown.
    """

    model_type = "rl3d_mesh_lm"

    def __init__(
        self,
        kind: Kind = "adjacent",
        bins: int = BINS,
        words: list[str] | None = None,
        max_words: int = MAX_WORDS,
        hidden_size: int = 128,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 2,
        intermediate_size: int = 352,
        anchors: int = 64,
        neighbours: int = 32,
        cloud_layers: int = 1,
        cloud_points: int = 1024,
        max_faces: int = 0,
        **kwargs: Any,
    ) -> None:
        signs = Tokenizer(kind, bins).vocabulary
        self.kind, self.bins = kind, bins
        self.words = words or ["<pad>", "<null>"]
        self.max_words = max_words
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.intermediate_size = num_attention_heads, intermediate_size
        self.anchors, self.neighbours, self.cloud_layers = anchors, neighbours, cloud_layers
        self.cloud_points = cloud_points
        self.max_faces = max_faces
        self.vocab_size = signs.size
        own = {
            "bos_token_id": signs.begin,
            "eos_token_id": signs.end,
            "pad_token_id": signs.pad,
            "tie_word_embeddings": True,
        }
        super().__init__(**{**{k: v for k, v in kwargs.items() if k != "vocab_size"}, **own})

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.kind, self.bins)


class MeshLMPreTrainedModel(PreTrainedModel):
    config_class = MeshLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("Block",)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the modules are made with their initial weights."""


class MeshLMModel(MeshLMPreTrainedModel):
    """Tokens and a condition to hidden states."""

    def __init__(self, config: MeshLMConfig) -> None:
        super().__init__(config)
        width, heads, hidden = config.hidden_size, config.num_attention_heads, config.intermediate_size
        self.prefix = Prefix(
            width,
            heads,
            hidden,
            config.cloud_layers,
            config.anchors,
            config.neighbours,
            len(config.words),
            config.max_words,
        )
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.slots = nn.Embedding(SLOTS, width)
        self.axes = nn.Embedding(3 * config.bins + 1, width)  # the last one is for signs
        self.lookup = SurfaceLookup(width, config.bins)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(width)
        self.gradient_checkpointing = False
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                depth = len(self.blocks) if name.startswith("blocks.") else max(1, config.cloud_layers)
                last = name.endswith((".out.weight", ".down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if last else 0.02)
        nn.init.zeros_(self.lookup.out.weight)
        nn.init.zeros_(self.lookup.left.weight)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.tokens = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        around: Around | None = None,
        points: Tensor | None = None,
        normals: Tensor | None = None,
        has_points: Tensor | None = None,
        words: Tensor | None = None,
        faces: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, width] of `input_ids` [B, T], which start with `begin` where nothing is cached.

        Args:
            attention_mask: [B, T'] only looked at for padding on the left, which there must not be; what is padded on
                the right is seen by nothing before it.
            past_key_values: what came before, the condition's prefix with it; points, normals and faces are still read.
            around: what follows from the tokens; needed after a cache.
            others: see `Condition`.

        Raises:
            InputError: padding on the left, or a cache without `around`.
        """
        if attention_mask is not None and not bool(attention_mask[:, 0].all()):
            raise InputError("a mesh sequence is padded on the right; set the padding side to right")
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        if around is None:
            if seen:
                raise InputError("tokens after a cache need what is around them; compute it with around_of")
            around = around_of(input_ids, self.config.tokenizer, points)
        slots = around.slots
        if use_cache and past_key_values is None:
            past_key_values = KeyValues()
        bins = self.config.bins
        axis = torch.where(input_ids < bins, (slots - 1) % 3 * bins + input_ids, 3 * bins)
        x = self.tokens(input_ids) + self.slots(slots) + self.axes(axis)
        x = x + self.lookup(around, points, normals, has_points, faces)
        prefix = self.prefix.length
        # The whole prefix stands at position 0, its order says nothing.
        positions = torch.arange(seen - prefix if seen else 0, max(seen - prefix, 0) + x.shape[1], device=x.device) + 1
        if not seen:
            asked = self.prefix(len(x), points, normals, has_points, words, faces)
            x = torch.cat([asked.to(x.dtype), x], 1)
            positions = torch.cat([positions.new_zeros(prefix), positions])
        rope = rotary(positions, self.config.hidden_size // self.config.num_attention_heads)
        for layer, block in enumerate(self.blocks):
            if self.gradient_checkpointing and self.training and past_key_values is None:
                x = checkpoint(block, x, rope, use_reentrant=False)
            else:
                x = block(x, rope, past_key_values, layer)
        x = self.norm(x if seen else x[:, prefix:])
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=past_key_values)


class MeshLM(MeshLMPreTrainedModel, GenerationMixin):
    """The backbone with its head; the head's weights are the token embedding's."""

    _tied_weights_keys = {"lm_head.weight": "model.tokens.weight"}  # noqa: RUF012

    def __init__(self, config: MeshLMConfig) -> None:
        super().__init__(config)
        self.model = MeshLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.model.tokens.weight
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        around: Around | None = None,
        points: Tensor | None = None,
        normals: Tensor | None = None,
        has_points: Tensor | None = None,
        words: Tensor | None = None,
        faces: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] for the token after each one, float32.

        Args:
            labels: [B, T] as `input_ids`, -100 where nothing is learnt: also gives the mean loss of the next token.
            logits_to_keep: of the last so many places alone; 0: of all.
            others: see `MeshLMModel.forward`.
        """
        asked = Condition(points, normals, has_points, words, faces)  # named above, for `generate` looks at the names
        out = self.model(input_ids, attention_mask, past_key_values, use_cache, around, **asked.tensors())
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:]).float()
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)

    def prepare_inputs_for_generation(self, input_ids: Tensor, past_key_values: Any = None, **kwargs: Any) -> dict:
        """For `generate`: the last token alone once something is cached."""
        around = around_of(input_ids, self.config.tokenizer, kwargs.get("points"))
        if past_key_values is not None and past_key_values.get_seq_length():
            input_ids, around = input_ids[:, -1:], around.at(slice(-1, None))
        names = Condition.__dataclass_fields__
        asked = {k: v for k, v in kwargs.items() if k in names}
        return {
            "input_ids": input_ids.contiguous(),
            "around": around,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
            **asked,
        }


def load_mesh_lm(folder: str | Path | None = None, device: torch.device | str = "cpu") -> MeshLM:
    """A saved model, float32, in evaluation mode; None takes the one inside the package.

    Raises:
        AssetError: a file is missing, truncated or does not fit.
    """
    if folder is None:
        from rl3d.assets import embedded_models, model_folder

        if "mesh_lm" not in embedded_models():
            raise AssetError(
                "no mesh model ships yet; train one with tools/train_mesh_lm.py and name its folder (--model)"
            )
        folder = model_folder("mesh_lm")
    folder = Path(folder)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != MeshLMConfig.model_type:
            raise ValueError(f"config.json is of a model {kind!r}")
        with no_progress_bars():
            model, info = MeshLM.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        stray = [*info["missing_keys"], *info["unexpected_keys"]]
        if stray:
            raise ValueError(f"the weights do not fit the configuration ({stray[0]} and {len(stray) - 1} more)")
    except Exception as error:  # transformers, safetensors and json each raise their own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AssetError(f"cannot load the mesh model in {folder}: {reason}; give a complete folder") from error
    loaded: MeshLM = model.to(device, torch.float32).eval()
    return loaded
