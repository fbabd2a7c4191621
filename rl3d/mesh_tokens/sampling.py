"""Sampling under the grammar, and log-probabilities on the same support.

A token's probability here is the softmax over what the grammar allows at that place: samples carry it, and
`sequence_log_probs` recomputes it for any model, so that a policy and its reference share one support. Temperature,
top-k and top-p shape what is drawn, not what is reported: with temperature 1 and neither, it is the behaviour's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl3d.errors import ConfigError
from rl3d.mesh_tokens.around import around_of
from rl3d.mesh_tokens.condition import Condition
from rl3d.mesh_tokens.grammar import OVER, Grammar
from rl3d.mesh_tokens.layers import KeyValues
from rl3d.mesh_tokens.model import MeshLM
from rl3d.randomness import generator_for

BLOCK = 256  # random numbers that a row draws at a time


@dataclass(frozen=True)
class SampleOptions:
    """How sequences are drawn.

    Attributes:
        temperature: above 0; 0 takes the likeliest token.
        top_k: only so many likeliest tokens; 0: all. top_p: only the likeliest that hold this much, in (0, 1].
        max_faces: a row that goes on beyond is given up.
        grammar: only what the grammar allows; without it a row is given up at its first violation, and support and
            log-probabilities are those of all tokens.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.95
    max_faces: int = 500
    grammar: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"the temperature must not be negative, got {self.temperature}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.max_faces < 1:
            raise ConfigError(f"the largest number of faces must be at least 1, got {self.max_faces}")


@dataclass(frozen=True)
class Samples:
    """B sequences.

    Attributes:
        tokens: [B, T] from `begin`, padded on the right. log_probs: [B, T - 1] float32 of each next token on the
            support, 0 at padding. lengths: [B] tokens of each. failures: B texts, "" for a sequence that ended.
    """

    tokens: Tensor
    log_probs: Tensor
    lengths: Tensor
    failures: list[str]

    def sequences(self) -> list[NDArray[np.int64]]:
        """Each row without its padding."""
        return [row[:length].numpy() for row, length in zip(self.tokens, self.lengths.tolist())]


def supported(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """Log-probabilities [..., V] float32 of `logits` on the support [..., V] bool, minus infinity beside it."""
    logits = logits.float()
    return (logits if allowed is None else logits.masked_fill(~allowed, -math.inf)).log_softmax(-1)


def drawn(log_probs: Tensor, uniform: Tensor, options: SampleOptions) -> Tensor:
    """[B] tokens from log-probabilities [B, V] by one number in [0, 1) each."""
    if options.temperature == 0:
        return log_probs.argmax(-1)
    ordered, token = (log_probs.double() / options.temperature).softmax(-1).sort(-1, descending=True)
    total = ordered.cumsum(-1)
    keep = (total - ordered < options.top_p) & (ordered > 0)
    if options.top_k:
        keep[:, options.top_k :] = False
    total = (ordered * keep).cumsum(-1)
    place = (total <= uniform[:, None] * total[:, -1:]).sum(-1)
    last = keep.sum(-1) - 1  # rounding must not go beyond what is kept
    return token.gather(1, torch.minimum(place, last)[:, None])[:, 0]


class _Rows:
    """Random numbers a row, whatever its neighbours: row i of a call with seed s always has the same ones."""

    def __init__(self, seed: int, count: int) -> None:
        self.generators = [generator_for(seed, row) for row in range(count)]
        self.block = torch.empty(count, 0, dtype=torch.float64)

    def column(self, step: int, rows: Tensor) -> Tensor:
        if step % BLOCK == 0:
            self.block = torch.stack([torch.rand(BLOCK, generator=g, dtype=torch.float64) for g in self.generators])
        return self.block[rows, step % BLOCK]


@torch.no_grad()
def sample(
    model: MeshLM, condition: Condition, count: int, options: SampleOptions, seed: int, first_row: int = 0
) -> Samples:
    """Draw `count` sequences for one condition, or one for each of its `count` rows.

    The condition is read once. Rows that end or are given up leave the batch; what a row becomes depends on `seed` and
    its number alone, up to rounding.

    Args:
        condition: of 1 or `count` rows. first_row: the number of the first row, to draw a set in parts.
    """
    device = model.lm_head.weight.device
    grammar = Grammar(model.config.tokenizer)
    signs = grammar.tokenizer.vocabulary
    condition = condition.to(device)
    given = next((len(v) for v in condition.tensors().values()), 1)
    begin = torch.full((given, 1), signs.begin, device=device)
    cache, state = KeyValues(), grammar.start(given, device)
    around = around_of(begin, grammar.tokenizer, condition.points)
    logits = model(begin, past_key_values=cache, around=around, **condition.tensors()).logits[:, -1]
    if given != count:
        every = torch.zeros(count, dtype=torch.int64, device=device)
        logits, state, around, condition = logits[every], state.rows(every), around.rows(every), condition.rows(every)
        cache.select(every)
    rows = torch.arange(count)  # numbers of the rows that are still in the batch
    numbers = _Rows(seed, first_row + count)
    written: list[tuple[Tensor, Tensor, Tensor]] = []  # (rows, tokens, log-probabilities) a step
    failures = ["it has no end"] * count
    step = 0
    while len(rows):
        allowed = grammar.allowed(state)
        stuck = ~allowed.any(1)
        log_probs = supported(logits, allowed | stuck[:, None] if options.grammar else None)
        token = drawn(log_probs, numbers.column(step, rows + first_row).to(device), options)
        wrong = stuck if options.grammar else ~allowed.gather(1, token[:, None])[:, 0]
        state = grammar.advance(state, token)
        chosen = log_probs.gather(1, token[:, None])[:, 0]
        ended, long = state.slot == OVER, state.faces > options.max_faces
        keep = ~(ended | long | wrong)
        for i in (~keep).nonzero()[:, 0].tolist():
            row = int(rows[i])
            if bool(wrong[i]):
                failures[row] = "a dead end" if options.grammar else "it breaks the grammar"
            else:
                failures[row] = "" if bool(ended[i]) else f"more than {options.max_faces} faces"
        said = (~wrong).cpu()
        written.append((rows[said], token.cpu()[said], chosen.cpu()[said]))
        step += 1
        if not bool(keep.all()):
            left = keep.nonzero()[:, 0]
            rows, token, state, condition = rows[left.cpu()], token[left], state.rows(left), condition.rows(left)
            around = around.rows(left)
            cache.select(left)
        if len(rows):
            around = around.after(token, state.slot, grammar.tokenizer, condition.points)
            own = {"past_key_values": cache, "around": around}
            logits = model(token[:, None], **own, **condition.tensors()).logits[:, -1]
    return _gathered(written, failures, signs.begin, signs.pad)


def _gathered(written: list[tuple[Tensor, Tensor, Tensor]], failures: list[str], begin: int, pad: int) -> Samples:
    count = len(failures)
    tokens = torch.full((count, len(written) + 1), pad)
    tokens[:, 0] = begin
    log_probs = torch.zeros(count, len(written))
    lengths = torch.ones(count, dtype=torch.int64)
    for step, (rows, token, log_prob) in enumerate(written):
        tokens[rows, step + 1], log_probs[rows, step] = token, log_prob
        lengths[rows] += 1
    longest = int(lengths.max())
    return Samples(tokens[:, :longest], log_probs[:, : longest - 1], lengths, failures)


def sequence_log_probs(
    model: MeshLM, tokens: Tensor, condition: Condition, supports: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of sequences on the grammar's support; differentiable to the model.

    Args:
        tokens: [B, T] from `begin`, padded on the right. condition: of B rows.
        supports: [B, T - 1, V] bool of `Grammar.supports`, where it is known already; it depends on the tokens alone.

    Returns:
        [B, T - 1] float32 log-probabilities of each next token, 0 at padding, and [B, T - 1] bool, False at padding.
        Minus infinity where a token is not on the support: no sample of `sample` has one.
    """
    grammar = Grammar(model.config.tokenizer)
    if supports is None:
        supports = grammar.supports(tokens)
    logits = model(tokens[:, :-1], **condition.tensors()).logits
    target = tokens[:, 1:]
    real = target != grammar.tokenizer.vocabulary.pad
    chosen = supported(logits, supports).gather(2, target[..., None])[..., 0]
    return chosen.masked_fill(~real, 0.0), real
