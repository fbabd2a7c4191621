"""Which tokens may come next, for a batch of sequences at once.

A finite state (`slot`) says what is due: a coordinate of which vertex, or a sign. A few numbers beside it keep out what
no clean mesh has: a face with a vertex twice or the face before once more, a vertex of a whole face below its first,
and a whole face that does not come after the last whole one in sorted order. (Whole faces are all of "raw", and what
follows `begin` and `restart` in "adjacent".)

    slot 0 ... 8   coordinate k of a whole face
    9              a new face, or a sign            10, 11   second, third coordinate of a strip's vertex
    12             first one after a turn           13       over, only padding
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl3d.mesh_tokens.tokenizer import Tokenizer

SLOTS = 14
NEXT, TURNED, OVER = 9, 12, 13
AXIS = (0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0)  # of the coordinate due in each slot


@dataclass(frozen=True)
class GrammarState:
    """After some tokens of B sequences; coordinates are in the order of writing.

    Attributes:
        slot: [B] int64, see the module.
        face: [B, 3, 3] the vertices of the face at hand; of a strip those of the last face.
        vertex: [B, 3] the coordinates of the vertex at hand.
        floor: [B, 9] the last whole face, -1 before there is one. tight: [B] bool, the one at hand equals it so far.
        turned: [B] bool, the vertex at hand comes after a turn.
        faces: [B] int64, faces written.
    """

    slot: Tensor
    face: Tensor
    vertex: Tensor
    floor: Tensor
    tight: Tensor
    turned: Tensor
    faces: Tensor

    def rows(self, index: Tensor) -> GrammarState:
        """Some of the rows, or rows several times."""
        return GrammarState(**{k: v[index] for k, v in vars(self).items()})


@dataclass(frozen=True)
class Grammar:
    """The grammar of a tokenizer's sequences."""

    tokenizer: Tokenizer

    @property
    def _strips(self) -> bool:
        return self.tokenizer.kind == "adjacent"

    def start(self, batch: int, device: torch.device | str = "cpu") -> GrammarState:
        """The state after `begin`."""
        zero = torch.zeros(batch, 9, dtype=torch.int64, device=device)
        no = torch.zeros(batch, dtype=torch.bool, device=device)
        return GrammarState(
            zero[:, 0], zero.unflatten(1, (3, 3)).clone(), zero[:, :3].clone(), zero - 1, ~no, no, zero[:, 0]
        )

    def _due(self, slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B] each: coordinate of a whole face or -1, axis, and whether a coordinate may come at all."""
        first = torch.full_like(slot, -1 if self._strips else 0)
        k = torch.where(slot < NEXT, slot, torch.where(slot == NEXT, first, -1))
        return k, torch.tensor(AXIS, device=slot.device)[slot], slot != OVER

    def allowed(self, state: GrammarState) -> Tensor:
        """[B, V] bool: what may come next. A row without any is a dead end, which only the grid's border has."""
        signs = self.tokenizer.vocabulary
        k, axis, any_coordinate = self._due(state.slot)
        # What must be exceeded in the end cannot be equalled now if the rest of it stands at the border.
        floor = state.floor.gather(1, k.clamp_min(0)[:, None])[:, 0] + ~_room(state.floor, k, signs.bins)
        low = torch.where((k >= 0) & state.tight, floor, 0)
        before = torch.arange(3, device=axis.device) < axis[:, None]  # [B, 3] coordinates that the vertex has already
        own = state.face[:, 0].gather(1, axis[:, None])[:, 0] + ~_room(state.face[:, 0], axis, signs.bins)
        equal = ((state.vertex == state.face[:, 0]) | ~before).all(1)
        low = torch.where((k >= 3) & equal, torch.maximum(low, own), low)
        coordinate = torch.arange(signs.bins, device=axis.device)
        allowed = (coordinate >= low[:, None]) & any_coordinate[:, None]  # [B, bins]

        # The last coordinate must not make a vertex that the face has, nor the one that would give the face before.
        strip = (k < 0) & (axis == 2)
        same = (state.vertex[:, None, :2] == state.face[..., :2]).all(2)  # [B, 3]
        same &= torch.stack([strip, strip | (k == 8), strip], 1)
        third = state.face[..., 2, None] == coordinate  # [B, 3, bins]
        allowed &= ~(third & same[..., None]).any(1)

        out = torch.zeros(len(axis), signs.size, dtype=torch.bool, device=axis.device)
        out[:, : signs.bins] = allowed
        between = state.slot == NEXT
        out[:, signs.end] = between
        out[:, signs.restart] = out[:, signs.turn] = between & self._strips
        out[:, signs.pad] = ~any_coordinate
        return out

    def advance(self, state: GrammarState, token: Tensor) -> GrammarState:
        """The state after one more token [B] each; a sign where none may stand ends its row."""
        signs = self.tokenizer.vocabulary
        k, axis, any_coordinate = self._due(state.slot)
        written = any_coordinate & (token < signs.bins)
        whole, complete = written & (k >= 0), written & (axis == 2)
        at = torch.arange(3, device=token.device) == axis[:, None]
        vertex = torch.where(at & written[:, None], token[:, None], state.vertex)

        p, q, r = state.face.unbind(1)
        strip = torch.stack([torch.where(state.turned[:, None], p, q), r, vertex], 1)
        corner = torch.arange(3, device=token.device) == (k // 3)[:, None]  # [B, 3]
        placed = torch.where(corner[..., None], vertex[:, None], state.face)
        face = torch.where((complete & whole)[:, None, None], placed, state.face)
        face = torch.where((complete & ~whole)[:, None, None], strip, face)
        finished = complete & ((k == 8) | ~whole)
        floor = torch.where((whole & (k == 8))[:, None], face.flatten(1), state.floor)

        bound = state.floor.gather(1, k.clamp_min(0)[:, None])[:, 0]
        restart = token == signs.restart
        tight = torch.where(whole, state.tight & (token == bound), state.tight) | restart | (whole & (k == 8))

        slot = torch.where(whole, k + 1, axis + 10)  # a vertex of a strip goes on at 10 and 11
        slot = torch.where(finished, NEXT, slot)
        between = state.slot == NEXT
        sign = torch.full_like(slot, OVER)
        if self._strips:
            sign = torch.where(between & restart, 0, sign)
            sign = torch.where(between & (token == signs.turn), TURNED, sign)
        slot = torch.where(written, slot, sign)
        turned = torch.where(written, state.turned & ~complete, slot == TURNED)
        return GrammarState(slot, face, vertex, floor, tight, turned, state.faces + finished)

    def supports(self, tokens: Tensor) -> Tensor:
        """[B, T - 1, V] bool: what might have stood at each place after the first of `tokens` [B, T].

        After a dead end only padding: a row without any would make gradients NaN.
        """
        state, out = self.start(len(tokens), tokens.device), []
        for token in tokens[:, 1:].unbind(1):
            allowed = self.allowed(state)
            allowed[:, self.tokenizer.vocabulary.pad] |= ~allowed.any(1)
            out.append(allowed)
            state = self.advance(state, token)
        return torch.stack(out, 1)


def _room(values: Tensor, k: Tensor, bins: int) -> Tensor:
    """[B] bool: something of [B, N] after place k [B] is below the last bin."""
    after = torch.arange(values.shape[1], device=k.device) > k[:, None]
    return (after & (values < bins - 1)).any(1)


def slots_of(tokens: Tensor, tokenizer: Tokenizer) -> Tensor:
    """[B, T] the slot after each of `tokens` [B, T], which start with `begin`; without a loop over T.

    Equal to what `Grammar.advance` steps through, for sequences of the grammar.
    """
    signs = tokenizer.vocabulary
    place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)

    def last(found: Tensor) -> Tensor:
        """[B, T] the last place of a sign, -1 where there was none."""
        return torch.where(found, place, -1).cummax(1).values

    over = last((tokens == signs.end) | (tokens == signs.pad)) >= 0
    if tokenizer.kind == "raw":
        slot = torch.where((place > 0) & (place % 9 == 0), NEXT, place % 9)
    else:
        whole, turn = last((tokens == signs.begin) | (tokens == signs.restart)), last(tokens == signs.turn)
        since = place - torch.maximum(whole, turn)
        strip = since % 3 + NEXT
        after_turn = torch.where(since == 0, TURNED, strip)
        slot = torch.where(turn > whole, after_turn, torch.where(since < 9, since, strip))
    return torch.where(over, OVER, slot)
