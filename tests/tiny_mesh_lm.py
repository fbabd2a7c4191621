"""A mesh language model small enough for tests, every tensor random, and conditions for it."""

from __future__ import annotations

import torch

from rl3d.mesh_tokens.condition import Condition
from rl3d.mesh_tokens.model import MeshLM, MeshLMConfig

WORDS = ["<pad>", "<null>", "box", "barrel", "tree"]


def tiny_config(kind: str = "adjacent", bins: int = 16) -> MeshLMConfig:
    return MeshLMConfig(
        kind=kind,
        bins=bins,
        words=WORDS,
        max_words=3,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        anchors=6,
        neighbours=4,
        cloud_layers=1,
        cloud_points=32,
        max_faces=20,
    )


def tiny_model(kind: str = "adjacent", bins: int = 16) -> MeshLM:
    torch.manual_seed(0)
    model = MeshLM(tiny_config(kind, bins))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.15 * torch.randn_like(tensor))
    return model.eval()


def tiny_condition(batch: int, seed: int = 0) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(batch, 32, 3, generator=generator) - 0.5
    normals = torch.nn.functional.normalize(torch.randn(batch, 32, 3, generator=generator), dim=-1)
    words = torch.randint(2, len(WORDS), (batch, 3), generator=generator)
    return Condition(points, normals, None, words, torch.randint(4, 20, (batch,), generator=generator))
