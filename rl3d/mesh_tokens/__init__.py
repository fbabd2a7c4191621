"""Triangle meshes written face by face by a language model: tokenizers, grammar, model, sampling.

Names load on first use: tokenizers do not pay for transformers, nor the command line's help for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl3d.mesh_tokens.condition import Condition as Condition
    from rl3d.mesh_tokens.generate import Candidate as Candidate
    from rl3d.mesh_tokens.generate import Generated as Generated
    from rl3d.mesh_tokens.generate import GenerateOptions as GenerateOptions
    from rl3d.mesh_tokens.generate import generate_mesh as generate_mesh
    from rl3d.mesh_tokens.grammar import Grammar as Grammar
    from rl3d.mesh_tokens.grammar import GrammarState as GrammarState
    from rl3d.mesh_tokens.grammar import slots_of as slots_of
    from rl3d.mesh_tokens.model import MeshLM as MeshLM
    from rl3d.mesh_tokens.model import MeshLMConfig as MeshLMConfig
    from rl3d.mesh_tokens.model import load_mesh_lm as load_mesh_lm
    from rl3d.mesh_tokens.quantise import BinMesh as BinMesh
    from rl3d.mesh_tokens.quantise import Frame as Frame
    from rl3d.mesh_tokens.quantise import clean as clean
    from rl3d.mesh_tokens.quantise import dequantise as dequantise
    from rl3d.mesh_tokens.quantise import frame_of as frame_of
    from rl3d.mesh_tokens.quantise import to_bins as to_bins
    from rl3d.mesh_tokens.sampling import SampleOptions as SampleOptions
    from rl3d.mesh_tokens.sampling import Samples as Samples
    from rl3d.mesh_tokens.sampling import sample as sample
    from rl3d.mesh_tokens.sampling import sequence_log_probs as sequence_log_probs
    from rl3d.mesh_tokens.tokenizer import Decoded as Decoded
    from rl3d.mesh_tokens.tokenizer import Tokenizer as Tokenizer
    from rl3d.mesh_tokens.vocabulary import Vocabulary as Vocabulary

_HOME = {
    "Grammar": "grammar",
    "GrammarState": "grammar",
    "slots_of": "grammar",
    "BinMesh": "quantise",
    "Frame": "quantise",
    "clean": "quantise",
    "dequantise": "quantise",
    "frame_of": "quantise",
    "to_bins": "quantise",
    "Decoded": "tokenizer",
    "Tokenizer": "tokenizer",
    "Vocabulary": "vocabulary",
    "Candidate": "generate",
    "Condition": "condition",
    "GenerateOptions": "generate",
    "Generated": "generate",
    "MeshLM": "model",
    "MeshLMConfig": "model",
    "SampleOptions": "sampling",
    "Samples": "sampling",
    "generate_mesh": "generate",
    "load_mesh_lm": "model",
    "sample": "sampling",
    "sequence_log_probs": "sampling",
}

__all__ = [
    "BinMesh",
    "Candidate",
    "Condition",
    "Decoded",
    "Frame",
    "GenerateOptions",
    "Generated",
    "Grammar",
    "GrammarState",
    "MeshLM",
    "MeshLMConfig",
    "SampleOptions",
    "Samples",
    "Tokenizer",
    "Vocabulary",
    "clean",
    "dequantise",
    "frame_of",
    "generate_mesh",
    "load_mesh_lm",
    "sample",
    "sequence_log_probs",
    "slots_of",
    "to_bins",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
