"""The policy of room layout: which piece, then which of the proposed places, from geometry alone.

It sees the room, what stands where, and for each proposed place how it lies to the walls, the door, the windows and
every piece. It never asks the objective: drawing a room from it costs no reward call.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import relu

from rl3d.agents.environment import Decision, Observation
from rl3d.agents.layout.env import PLACED, PLACES, WAITING, SceneLayout
from rl3d.agents.layout.furniture import KINDS
from rl3d.agents.layout.inventory import ROOM_TYPES
from rl3d.agents.layout.objective import TERMS, Poses, Relative, poses, relative
from rl3d.agents.policies import mlp
from rl3d.model_files import read_weights, readable, write_weights
from rl3d.rl.distributions import MaskedCategorical, ObjectThenCell

ROOM_FEATURES = 4 + len(ROOM_TYPES) + 5 + 18
PIECE_FEATURES, PLACE_FEATURES, PAIR_FEATURES = 10, 12 + 4 + 2 + 12, 20


class LayoutPolicy(nn.Module):
    """Args:
    hidden: width. proposals: places to choose from. where: "policy" chooses among them; "greedy" takes the one of
        the largest objective (RLSS, arXiv 2206.02544: the network says what, a search says where).
    """

    def __init__(self, hidden: int = 48, proposals: int = 48, where: Literal["policy", "greedy"] = "policy") -> None:
        super().__init__()
        self.proposals, self.where, self.hidden = proposals, where, hidden
        self.kind = nn.Embedding(len(KINDS) + 1, 16)
        nn.init.normal_(self.kind.weight, std=0.3)
        self.token = mlp(16 + PIECE_FEATURES + 2, hidden, hidden, gain=1.0, activation=nn.ReLU)
        self.context = mlp(ROOM_FEATURES + 3 * hidden, 2 * hidden, hidden, gain=1.0, activation=nn.ReLU)
        self.what = mlp(2 * hidden, hidden, 1, gain=0.01, activation=nn.ReLU)
        self.query = mlp(2 * hidden, hidden, hidden, gain=1.0, activation=nn.ReLU)
        self.own = mlp(PLACE_FEATURES, hidden, hidden, gain=1.0, activation=nn.ReLU)
        self.at = mlp(hidden, hidden, 1, gain=0.01, activation=nn.ReLU)
        # A pair of kinds has a shift and a reading of its own, the features between them one layer: a place's logit is
        # a sum over the pieces that stand, so its probability is a product of how well it lies to each.
        self.pair = nn.Linear(PAIR_FEATURES, hidden // 2)
        self.pair_shift = nn.Embedding((len(KINDS) + 1) ** 2, hidden // 2)
        self.pair_reading = nn.Embedding((len(KINDS) + 1) ** 2, hidden // 2)
        nn.init.normal_(self.pair_shift.weight, std=0.1)
        nn.init.normal_(self.pair_reading.weight, std=0.05)
        self.leave = mlp(hidden, hidden, 1, gain=0.01, activation=nn.ReLU)
        self.critic = mlp(ROOM_FEATURES + 2 * hidden + len(TERMS), 2 * hidden, hidden, 1, gain=1.0, activation=nn.ReLU)
        self.critic_token = mlp(16 + PIECE_FEATURES + 2, hidden, hidden, gain=1.0, activation=nn.ReLU)

    @torch.no_grad()
    def act(
        self, observation: Observation, env: SceneLayout, generator: Generator | None, *, best: bool = False
    ) -> Decision:
        """Draw a piece and a place a room; `best`: the likeliest ones. The action is (slot, place)."""
        tokens, context = self._read(observation)
        objects = self._objects(observation, tokens, context)
        slot = objects.mode() if best else objects.sample(generator)
        proposed = env.propose(slot, self.proposals, generator)
        kept = {**observation, "proposed": proposed.place, "legal": proposed.legal}
        kept["own"] = _place_features(observation, proposed.gaps[:, :-1], _candidates(kept, slot))
        if self.where == "greedy":
            scores = env.score_candidates(slot, proposed.place).masked_fill(~proposed.legal, -1.0)
            choice, log_prob = scores.argmax(1), objects.log_prob(slot)
        else:
            cells = self._cells(kept, slot, tokens, context)
            choice = cells.mode() if best else cells.sample(generator)
            drawn = ObjectThenCell(objects, lambda _: cells)
            log_prob = drawn.log_prob_and_entropy(torch.stack([slot, choice], 1))[0]
        place = proposed.place.gather(1, choice[:, None])[:, 0]
        kept["choice"] = choice
        return Decision(torch.stack([slot, place], 1), log_prob, self.value(observation), kept)

    def evaluate(self, kept: Mapping[str, Tensor], action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens, context = self._read(kept)
        objects = self._objects(kept, tokens, context)
        slot = action[:, 0]
        if self.where == "greedy":
            return objects.log_prob(slot), objects.entropy(), self.value(dict(kept))
        drawn = ObjectThenCell(objects, lambda chosen: self._cells(kept, chosen, tokens, context))
        log_prob, entropy = drawn.log_prob_and_entropy(torch.stack([slot, kept["choice"]], 1))
        return log_prob, entropy, self.value(dict(kept))

    def value(self, observation: Observation) -> Tensor:
        """[N], of the objective still to be gained; the critic alone sees the objective's terms."""
        tokens = self.critic_token(self._pieces(observation))
        there = (observation["kind"] >= 0)[..., None].float()
        mean = (tokens * there).sum(1) / there.sum(1).clamp_min(1)
        most = tokens.masked_fill(there == 0, -1e4).amax(1)
        return self.critic(torch.cat([observation["room"], mean, most, observation["terms"]], 1))[:, 0]

    def _pieces(self, seen: Mapping[str, Tensor]) -> Tensor:
        """[N, K, ...]: kind, size, state and pose of each piece, the room's middle as origin."""
        placed = (seen["status"] == PLACED)[..., None]
        at = poses(seen["place"], seen["metres"], seen["cells"])
        centre = torch.stack([at.x, at.z], -1) - 0.5 * seen["size"][:, None]
        pose = torch.cat([centre / 3, at.front, at.half], -1) * placed
        waiting = (seen["status"] == WAITING)[..., None]
        left = ~placed & ~waiting
        state = torch.cat([placed, waiting, left], -1).float()
        return torch.cat([self.kind(seen["kind"] + 1), seen["metres"], state, pose], -1)

    def _read(self, seen: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(tokens [N, K, H], context [N, H])."""
        tokens = relu(self.token(self._pieces(seen)))
        placed, waiting = (seen["status"] == PLACED)[..., None], (seen["status"] == WAITING)[..., None]
        pools = [(tokens * placed).sum(1) / 4, (tokens * placed).amax(1), (tokens * waiting).sum(1) / 4]
        return tokens, relu(self.context(torch.cat([seen["room"], *pools], 1)))

    def _objects(self, seen: Mapping[str, Tensor], tokens: Tensor, context: Tensor) -> MaskedCategorical:
        wide = context[:, None].expand(-1, tokens.shape[1], -1)
        return MaskedCategorical(self.what(torch.cat([tokens, wide], -1))[..., 0], seen["waiting"])

    def _cells(self, kept: Mapping[str, Tensor], slot: Tensor, tokens: Tensor, context: Tensor) -> MaskedCategorical:
        """Over the C proposed places and leaving out."""
        row = torch.arange(len(slot), device=slot.device)
        query = self.query(torch.cat([tokens[row, slot], context], 1))
        logits = self.at(relu(self.own(kept["own"]) + query[:, None]))[..., 0]
        rows, piece = (kept["status"] == PLACED).nonzero(as_tuple=True)  # [P] pairs of a room and a piece that stands
        at, others = _candidates(kept, slot), poses(kept["place"], kept["metres"], kept["cells"])
        pairs = _pair_features(at.taken(rows), others.taken((rows, piece)).unsqueezed())  # [P, C, 20]
        code = (kept["kind"][rows, slot[rows]] + 1) * (len(KINDS) + 1) + kept["kind"][rows, piece] + 1
        hidden = relu(self.pair(pairs) + self.pair_shift(code)[:, None])
        logits = logits.index_add(0, rows, torch.einsum("pch,ph->pc", hidden, self.pair_reading(code)))
        return MaskedCategorical(torch.cat([logits, self.leave(relu(query))], 1), kept["legal"])

    def save(self, folder: Path) -> None:
        """Weights in half precision and what they need; each file atomically."""
        write_weights(
            folder, self, {"hidden": self.hidden, "proposals": self.proposals, "where": self.where}, torch.half
        )

    @staticmethod
    def load(folder: Path) -> LayoutPolicy:
        """Raises:
        AssetError: files that are missing or of another kind.
        """
        with readable(f"the layout policy in {folder}"):
            config, tensors = read_weights(folder)
            policy = LayoutPolicy(**config)
            policy.load_state_dict(tensors)
        return policy.eval()


def _candidates(kept: Mapping[str, Tensor], slot: Tensor) -> Poses:
    """[N, C]: the chosen piece at each proposed place."""
    row, place = torch.arange(len(slot), device=slot.device), kept["proposed"][:, :-1]
    metres, cells = (kept[name][row, slot][:, None].expand(-1, place.shape[1], -1) for name in ("metres", "cells"))
    return poses(place % PLACES, metres, cells)


def _near(metres: Tensor, scale: float) -> Tensor:
    return torch.exp(-metres.clamp_min(0) / scale)


def _place_features(seen: Mapping[str, Tensor], gaps: Tensor, at: Poses) -> Tensor:
    """[N, C, 30] of a place: its walls on four sides, and door, room's middle and windows in its own frame."""
    shift = 0.5 * seen["size"][:, None]
    centre = torch.stack([at.x, at.z], -1) - shift
    first = 4 + len(ROOM_TYPES)
    door, windows = seen["room"][:, None, first : first + 5], seen["room"][:, None, first + 5 :].unflatten(2, (3, 6))

    def frame(point: Tensor) -> tuple[Tensor, Tensor]:
        apart = point - centre
        ahead = (apart * at.front).sum(-1)
        return ahead, apart[..., 0] * at.front[..., 1] - apart[..., 1] * at.front[..., 0]

    parts = [_near(gaps, 0.15), _near(gaps, 0.8), gaps / 3]
    ahead, aside = frame(door[..., :2])
    parts.append(
        torch.stack([ahead / 3, aside / 3, _near(torch.hypot(ahead, aside), 1.0), door[..., 4] + 0 * ahead], -1)
    )
    parts.append(torch.stack(frame(torch.zeros_like(centre)), -1) / 3)
    for w in range(3):
        window = windows[:, :, w]
        ahead, aside = frame(window[..., :2])
        there = window[..., 5] + 0 * ahead
        parts.append(
            torch.stack([ahead / 3, aside / 3, _near(torch.hypot(ahead, aside), 1.0), there], -1) * there[..., None]
        )
    return torch.cat(parts, -1)


def _pair_features(at: Poses, others: Poses) -> Tensor:
    """[P, C, 20] of places [P, C] and a piece [P, 1]: each in the other's frame, gaps between edges, headings."""
    r = Relative(**{name: value[..., 0] for name, value in vars(relative(at, others)).items()})
    return torch.stack(
        [
            r.u / 2,
            r.v / 2,
            r.ahead / 2,
            r.aside / 2,
            _near(r.u.abs(), 0.2),
            _near(r.aside.abs(), 0.2),
            _near(r.gap_u, 0.2),
            _near(r.gap_v, 0.2),
            _near(r.gap_ahead, 0.2),
            _near(r.gap_aside, 0.2),
            _near((r.gap_v - 0.4).abs(), 0.2),
            _near(r.edge, 0.2),
            _near(r.edge, 1.0),
            _near(r.backs.abs(), 0.2),
            _near(r.gap_aside + 2 * r.half_across, 0.2),
            r.same,
            r.cross,
            (r.v > 0).float(),
            (r.ahead > 0).float(),
            r.gap_v / 2,
        ],
        -1,
    )
