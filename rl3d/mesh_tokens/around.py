"""What a token is surrounded by when it is due: its slot, the vertices before it, the faces written, what is covered.

All of it follows from the tokens (and the cloud) and saves a small network from finding it out. For a whole sequence
at once by `around_of`, without a loop over its length; step by step by `Around.after`, for decoding with a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl3d.mesh_tokens.grammar import AXIS, NEXT, OVER, slots_of
from rl3d.mesh_tokens.quantise import AXES
from rl3d.mesh_tokens.tokenizer import Tokenizer

WINDOW = 16  # tokens that hold three vertices, their signs and what the vertex at hand has
WATCHED = 64  # points of a cloud of which is known whether the mesh came near


@dataclass(frozen=True)
class Around:
    """After each of [B, T] tokens.

    Attributes:
        slots: [B, T] of `grammar.slots_of`. near: [B, T, 12] of `near_of`.
        written: [B, T] int64, faces so far.
        reach: [B, T, K] from each of the first K = `WATCHED` points of the cloud to the nearest vertex so far, or
            middle of two vertices that followed each other; infinite before there is one. None without a cloud.
        tail, tail_slots: [B, WINDOW or less] the last tokens and the slots after them, to go on from.
    """

    slots: Tensor
    near: Tensor
    written: Tensor
    reach: Tensor | None
    tail: Tensor
    tail_slots: Tensor

    def rows(self, index: Tensor) -> Around:
        """Some of the rows, or rows several times."""
        parts: Any = {k: None if v is None else v[index] for k, v in vars(self).items()}
        return Around(**parts)

    def at(self, part: slice) -> Around:
        """Some of the places; not to go on from."""
        return Around(**{k: v if v is None or k.startswith("tail") else v[:, part] for k, v in vars(self).items()})

    def after(self, token: Tensor, slot: Tensor, tokenizer: Tokenizer, points: Tensor | None) -> Around:
        """One token [B] later, that place alone.

        Args:
            slot: [B] after the token, see `grammar.GrammarState`. points: see `around_of`.
        """
        tail = torch.cat([self.tail, token[:, None]], 1)[:, -WINDOW:]
        slots = torch.cat([self.tail_slots, slot[:, None]], 1)[:, -WINDOW:]
        near = near_of(tail, slots, tokenizer)[:, -1:]
        written = self.written[:, -1:] + finished(tail, slots, tokenizer)[:, -1:]
        before = None if self.reach is None else self.reach[:, -1]
        reach = None if points is None else reached(near, points, tokenizer.bins, before)
        return Around(slots[:, -1:], near, written, reach, tail, slots)


def around_of(tokens: Tensor, tokenizer: Tokenizer, points: Tensor | None = None) -> Around:
    """Of whole sequences [B, T], which start with `begin`.

    Args:
        points: [B, N, 3] of the condition, in the unit box.
    """
    slots = slots_of(tokens, tokenizer)
    near = near_of(tokens, slots, tokenizer)
    written = finished(tokens, slots, tokenizer).long().cumsum(1)
    reach = None if points is None else reached(near, points, tokenizer.bins)
    return Around(slots, near, written, reach, tokens[:, -WINDOW:], slots[:, -WINDOW:])


def complete(tokens: Tensor, slots: Tensor, tokenizer: Tokenizer) -> Tensor:
    """[B, T] bool: the token ends a vertex."""
    return (tokens < tokenizer.bins) & ((slots - 1) % 3 == 2)


def finished(tokens: Tensor, slots: Tensor, tokenizer: Tokenizer) -> Tensor:
    """[B, T] bool: the token ends a face."""
    return complete(tokens, slots, tokenizer) & (slots == NEXT)


def near_of(tokens: Tensor, slots: Tensor, tokenizer: Tokenizer) -> Tensor:
    """[B, T, 12] bins around the token due after each of `tokens` [B, T], -1 where there is none yet.

    The last vertex v1, the one before it v2, the coordinates c of the vertex at hand, and the corner e that makes a
    parallelogram of the last face and the next one of its strip, cut at the grid's border (the parallelogram rule of
    mesh compression: Touma and Gotsman 1998). All in the order of writing. Exact for the last token of a window of
    `WINDOW` tokens too.
    """
    signs = tokenizer.vocabulary
    place = torch.arange(tokens.shape[1], device=tokens.device)
    shift = torch.arange(3, device=tokens.device)
    ends = [torch.where(complete(tokens, slots, tokenizer), place, -1).cummax(1).values]  # of the last vertex, ...
    for _ in range(2):  # ... of the one before, of the third
        ends.append(torch.where(ends[-1] > 0, ends[0].gather(1, (ends[-1] - 1).clamp_min(0)), -1))

    def read(index: Tensor, there: Tensor) -> Tensor:
        flat = tokens.gather(1, index.clamp(0, tokens.shape[1] - 1).flatten(1)).view_as(index)
        return torch.where(there, flat, -1)

    v1, v2, v3 = (read(end[..., None] - 2 + shift, (end >= 2)[..., None].expand(*end.shape, 3)) for end in ends)
    axis = torch.tensor(AXIS, device=tokens.device)[slots][..., None]
    begun = place[:, None] - axis + 1 + shift  # [B, T, 3] places of the vertex at hand
    turned = torch.where(tokens == signs.turn, place, -1).cummax(1).values > ends[0]
    across = torch.where(turned[..., None], v1 + v3 - v2, v1 + v2 - v3).clamp(0, signs.bins - 1)
    strip = (slots >= NEXT) & (slots < OVER) & (ends[2] >= 2)
    return torch.cat([v1, v2, read(begun, shift < axis), torch.where(strip[..., None], across, -1)], 2)


def reached(near: Tensor, points: Tensor, bins: int, before: Tensor | None = None) -> Tensor:
    """`Around.reach` [B, T, K] for near [B, T, 12]; `before` [B, K] is that of what came before."""
    seen = points[:, :WATCHED, AXES].float()
    v1, v2 = ((near[..., i : i + 3] + 0.5) / bins - 0.5 for i in (0, 3))
    found = torch.cdist(v1, seen).masked_fill(near[..., :1] < 0, torch.inf)
    middle = torch.cdist(0.5 * (v1 + v2), seen).masked_fill(near[..., 3:4] < 0, torch.inf)
    found = torch.minimum(found, middle)
    if before is not None:
        found = torch.minimum(found, before[:, None])
    return found.cummin(1).values
