"""A transformer block with rotary positions, and the cache of keys and values that decoding grows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rotary(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, width] of positions [T] (Su et al. 2021, arXiv 2104.09864), float32."""
    exponents = torch.arange(0, width, 2, device=positions.device) / width
    angles = positions[:, None].float() * 10000.0**-exponents
    return angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)


def rotated(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, heads, T, d] turned by its positions, in its dtype."""
    a, b = x.chunk(2, -1)
    return (x * rope[0] + torch.cat([-b, a], -1) * rope[1]).to(x.dtype)


class Block(nn.Module):
    """Pre-norm attention with normalised queries and keys, and a gated MLP (SwiGLU)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None, cache: Any = None, layer: int = 0
    ) -> Tensor:
        """x [B, T, width]. With `rope`, causal; without, every token sees all.

        Args:
            cache: with `update(keys, values, layer)`, such as `KeyValues` or one of transformers; x comes after it.
        """
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        if rope is not None:
            q, k = rotated(q, rope), rotated(k, rope)
        if cache is not None:
            k, v = cache.update(k, v, layer)
        new, seen = q.shape[2], k.shape[2]
        mask = None
        if rope is not None and 1 < new < seen:  # several tokens after others; decoding one by one needs no mask
            mask = torch.ones(new, seen, dtype=torch.bool, device=x.device).tril(seen - new)
        causal = rope is not None and new == seen and new > 1
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        gate, value = self.up(self.norm2(x)).chunk(2, -1)
        out: Tensor = x + self.down(F.silu(gate) * value)
        return out


class KeyValues:
    """Keys and values of all layers in buffers that grow by half, so that a step copies nothing: memory is linear."""

    def __init__(self) -> None:
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._lengths: dict[int, int] = {}

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens seen."""
        return self._lengths.get(layer, 0)

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append [B, heads, T, d] each; returns all so far as views."""
        start = self.get_seq_length(layer)
        end = start + keys.shape[2]
        if layer not in self._buffers or self._buffers[layer][0].shape[2] < end:
            shape = (*keys.shape[:2], max(64, end + end // 2), keys.shape[3])
            grown = (keys.new_empty(shape), values.new_empty(shape))
            for old, new in zip(self._buffers.get(layer, ()), grown):
                new[:, :, :start] = old[:, :, :start]
            self._buffers[layer] = grown
        k, v = self._buffers[layer]
        k[:, :, start:end], v[:, :, start:end] = keys, values
        self._lengths[layer] = end
        return k[:, :, :end], v[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep rows [R] (indices) of the batch, in that order, rows several times where they are named so."""
        self._buffers = {layer: (k[rows], v[rows]) for layer, (k, v) in self._buffers.items()}
