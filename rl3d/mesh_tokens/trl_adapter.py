"""Pair sets for TRL's DPOTrainer (the extra "trl"; nothing else imports this module).

TRL takes the softmax over all tokens by itself and knows neither our condition nor the grammar. So the condition goes
into the backbone with every batch, the masks of M-DPO are the batch's `completion_mask`, and the backbone's hidden
states carry what the grammar forbids as further columns, which the head turns into logits of -1e4: TRL's log-probs are
then those of the grammar's support, like ours. Of its logged numbers `logits/*` say nothing.

TRL's SFT term is one mean over those tokens of a batch's winners that count; ours is the mean over winners of each
one's mean over all its tokens: with masks, or winners of different lengths, they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from tokenizers import Tokenizer as WordTokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPast
from trl import DPOConfig, DPOTrainer

from rl3d.errors import InputError
from rl3d.mesh_tokens.align import Row, counted, prepared
from rl3d.mesh_tokens.align_options import AlignOptions
from rl3d.mesh_tokens.around import Around
from rl3d.mesh_tokens.candidates import condition_of
from rl3d.mesh_tokens.grammar import Grammar
from rl3d.mesh_tokens.model import MeshLM, MeshLMConfig, MeshLMModel
from rl3d.mesh_tokens.pair_files import PairSet
from rl3d.mesh_tokens.tokenizer import Tokenizer

FORBIDDEN = -1e4  # exp of it is 0 in every type


class SupportedBackbone(MeshLMModel):
    """The backbone with V further columns: 1 where the grammar forbids the token. For whole sequences."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        around: Around | None = None,
        **asked: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, width + V]; else as `MeshLMModel.forward`."""
        if past_key_values is not None:
            raise InputError("this model scores whole sequences; to generate, load what it saved with load_mesh_lm")
        hidden = super().forward(input_ids, attention_mask, None, False, around, **asked).last_hidden_state
        grammar = Grammar(self.config.tokenizer)
        after = input_ids.new_full((len(input_ids), 1), grammar.tokenizer.vocabulary.pad)
        forbidden = ~grammar.supports(torch.cat([input_ids, after], 1))  # [B, T, V]
        return BaseModelOutputWithPast(last_hidden_state=torch.cat([hidden, forbidden.to(hidden)], 2))


class SupportedHead(nn.Linear):
    """The head's weights and, for what is forbidden, `FORBIDDEN`."""

    def wide(self) -> Tensor:
        """[V, width + V]."""
        return torch.cat([self.weight, FORBIDDEN * torch.eye(len(self.weight)).to(self.weight)], 1)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.wide())


class SupportedMeshLM(MeshLM):
    """A `MeshLM` whose logits leave the grammar's support alone; what it saves is loaded as a `MeshLM`."""

    def __init__(self, config: MeshLMConfig) -> None:
        super().__init__(config)
        self.model = SupportedBackbone(config)
        self.lm_head = SupportedHead(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.model.tokens.weight

    @classmethod
    def of(cls, model: MeshLM) -> SupportedMeshLM:
        """A copy of `model`."""
        own = cls(model.config)
        own.load_state_dict(model.state_dict())
        moved: SupportedMeshLM = own.to(model.device, model.dtype).eval()
        return moved

    def get_output_embeddings(self) -> Any:
        head: Any = self.lm_head
        return SimpleNamespace(weight=head.wide(), bias=None)


class PairCollator:
    """Places of pairs to a batch: all winners, then all losers, what they were asked by, and which tokens count.

    Windows (tDPO) begin at places that torch's global generator draws.
    """

    def __init__(self, duels: Sequence[tuple[Row, Row]], config: MeshLMConfig, options: AlignOptions) -> None:
        self.duels, self.config, self.options = duels, config, options

    def __call__(self, examples: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        duels = [self.duels[example["pair"]] for example in examples]
        flat = [row for side in zip(*duels) for row in side]
        winner, loser, _ = counted(duels, torch.rand(len(duels)), self.options)
        mask = torch.cat([winner, loser])
        return {
            "input_ids": pad_sequence([r.tokens for r in flat], True, self.config.tokenizer.vocabulary.pad),
            "attention_mask": pad_sequence([torch.ones_like(r.tokens) for r in flat], True),
            "completion_mask": nn.functional.pad(mask, (1, 0)).long(),
            **condition_of([r.shape for r in flat], self.config).tensors(),
        }


class MeshDPOTrainer(DPOTrainer):
    """TRL's trainer on pairs that are tokens already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def mesh_dpo_trainer(
    model: MeshLM, pairs: PairSet, options: AlignOptions, out: str | Path, **settings: Any
) -> MeshDPOTrainer:
    """TRL's DPOTrainer with a copy of `model` as the policy (`.model`), another as the reference, and our options.

    Args:
        out: folder of TRL's checkpoints. settings: of DPOConfig, over those that `options` decide.

    Raises:
        InputError: see `align.prepared`.
    """
    rows = prepared(model, pairs, options)
    duels = [(rows[p.winner], rows[p.loser]) for p in pairs.pairs]
    kind = "sigmoid" if options.reduce == "sum" else "sigmoid_norm"
    own = {
        "beta": options.beta,
        "loss_type": [kind, "sft"] if options.sft else [kind],
        "loss_weights": [1.0, options.sft] if options.sft else [1.0],
        "max_length": None,  # TRL's default cuts sequences at 1,024 tokens in silence
        "remove_unused_columns": False,
        "learning_rate": options.lr,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": options.warmup,
        "adam_beta2": 0.98,
        "max_grad_norm": options.clip_norm,
        "max_steps": options.steps,
        "per_device_train_batch_size": options.micro_batch,
        "gradient_accumulation_steps": max(1, options.pairs // options.micro_batch),
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": options.seed,
        "report_to": "none",
        "save_strategy": "no",
    }
    return MeshDPOTrainer(
        SupportedMeshLM.of(model),
        SupportedMeshLM.of(model),
        DPOConfig(str(out), **{**own, **settings}),
        PairCollator(duels, model.config, options),
        # Named, so that datasets does not pickle the table to hash it, which fails with pyarrow 26.
        Dataset(InMemoryTable.from_pydict({"pair": list(range(len(duels)))}), fingerprint="pairs"),
        processing_class=words_of(model.config.tokenizer),
    )


def words_of(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as TRL wants one: a word a token, its number."""
    signs = tokenizer.vocabulary
    words = WordTokenizer(WordLevel({str(i): i for i in range(signs.size)}, str(signs.pad)))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=str(signs.end), pad_token=str(signs.pad))
