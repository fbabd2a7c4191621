"""Meshes as sequences of tokens and back, in two ways, each exact at its bins.

    raw         v1 v2 v3 | v1 v2 v3 | ...        nine coordinates a face, faces sorted (MeshXL, arXiv 2405.20853)
    adjacent    v1 v2 v3 v4 turn v5 & v1 v2 v3   a face that shares an edge with the one before is one new vertex

`adjacent` is adjacent mesh tokenization (MeshAnything V2, arXiv 2408.02555) with one sign more. A strip's next face
lies across the edge of its two newest vertices; `turn` makes it the edge of the newest and the oldest of the last
face, so that a strip ends only where both free edges are used up. Strips begin at the lowest face that is left.

A sequence is `begin`, the tokens, `end`. Vertices are written y, z, x (see `quantise.AXES`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rl3d.mesh_tokens.quantise import AXES, BINS, BinMesh, Frame, clean
from rl3d.mesh_tokens.vocabulary import Vocabulary
from rl3d.scenes.mesh import Mesh

Kind = Literal["raw", "adjacent"]


@dataclass(frozen=True)
class Decoded:
    """What a sequence says.

    Attributes:
        vertices: [3 F, 3] int64 bins of x, y, z, the corners of the faces in the order of writing, not merged.
        token_faces: [P, 2] int64 pairs (token, face): which faces depend on a token. A vertex of a strip has several.
        failure: "" for a whole sequence, else what was wrong; the faces before that are there.
    """

    vertices: NDArray[np.int64]
    token_faces: NDArray[np.int64]
    bins: int
    failure: str

    @property
    def face_count(self) -> int:
        """Faces as written, with duplicates."""
        return len(self.vertices) // 3

    def clean(self) -> BinMesh:
        """Merged, without collapsed and duplicate faces, sorted; face numbers are no longer those of `token_faces`."""
        return clean(self.vertices, np.arange(len(self.vertices)).reshape(-1, 3), self.bins)

    def mesh(self, frame: Frame | None = None) -> Mesh:
        """Every face as written, in that order (so that `token_faces` fits), vertices of one bin merged."""
        unique, inverse = np.unique(self.vertices, axis=0, return_inverse=True)
        return BinMesh(unique, inverse.reshape(-1, 3).astype(np.int64), self.bins).mesh(frame)


@dataclass(frozen=True)
class Tokenizer:
    """Encodes and decodes; `kind` "raw" or "adjacent", see the module."""

    kind: Kind = "adjacent"
    bins: int = BINS

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.bins)

    def encode(self, mesh: BinMesh) -> NDArray[np.int64]:
        """[T] tokens from `begin` to `end`; `mesh` in clean form, as `to_bins` and `clean` give it."""
        signs = self.vocabulary
        points = mesh.vertices[:, AXES]
        if self.kind == "raw":
            body = points[mesh.faces].reshape(-1)
        else:
            written = np.asarray(strips(mesh.faces))  # vertices, or -1 restart, -2 turn
            rows = points[np.maximum(written, 0)]
            rows[written < 0, 0] = np.where(written[written < 0] == -1, signs.restart, signs.turn)
            keep = np.ones(rows.shape, bool)
            keep[written < 0, 1:] = False
            body = rows[keep]
        return np.concatenate([[signs.begin], body, [signs.end]]).astype(np.int64)

    def decode(self, tokens: NDArray[np.integer]) -> Decoded:
        """The faces that [T] tokens write, up to `end` or the first token that breaks the grammar; never raises."""
        reader = _Reader(self.vocabulary, self.kind == "adjacent")
        failure = "it has no end"
        for place, token in enumerate(np.asarray(tokens).tolist()):
            fault = reader.read(place, int(token))
            if fault is not None:
                failure = fault
                break
        back = np.argsort(AXES)
        vertices = np.asarray(reader.corners, np.int64).reshape(-1, 3)[:, back]
        if not failure and not len(vertices):
            failure = "it has no face"
        pairs = np.asarray(sorted(reader.pairs), np.int64).reshape(-1, 2)
        return Decoded(vertices, pairs, self.bins, failure)


def strips(faces: NDArray[np.integer]) -> list[int]:
    """Vertex indices in the order of writing for faces [F, 3] in clean form, with -1 for a restart and -2 for a turn.

    Of two ways on, a strip takes the face that has fewer neighbours left, and on a tie the one without a turn: corners
    are not left behind, which halves the restarts (0.047 a face instead of 0.105 on 924 low-poly assets).
    """
    rows: list[tuple[int, int, int]] = [tuple(f) for f in faces.tolist()]  # type: ignore[misc]
    owners: dict[tuple[int, int], list[int]] = defaultdict(list)  # directed edge -> its faces, lowest last
    for index in range(len(rows) - 1, -1, -1):
        a, b, c = rows[index]
        for edge in ((a, b), (b, c), (c, a)):
            owners[edge].append(index)
    left = [True] * len(rows)

    def beyond(u: int, v: int) -> int | None:
        """The lowest face left that has the directed edge u -> v."""
        found = owners.get((u, v))
        while found and not left[found[-1]]:
            found.pop()
        return found[-1] if found else None

    def neighbours(face: int) -> int:
        a, b, c = rows[face]
        return sum(beyond(v, u) is not None for u, v in ((a, b), (b, c), (c, a)))

    out: list[int] = []
    for start, (p, q, r) in enumerate(rows):
        if not left[start]:
            continue
        out += [-1, p, q, r] if out else [p, q, r]
        left[start], forward = False, True  # the face at hand runs p -> q -> r if forward, else r -> q -> p
        while True:
            on, turn = (beyond(r, q), beyond(p, r)) if forward else (beyond(q, r), beyond(r, p))
            if on is None and turn is None:
                break
            turned = turn is not None and (on is None or neighbours(turn) < neighbours(on))
            face = turn if turned else on
            assert face is not None
            left[face] = False
            if turned:
                out.append(-2)
                q = p
            else:
                forward = not forward
            p, q, r = q, r, next(v for v in rows[face] if v not in (q, r))
            out.append(r)
    return out


class _Reader:
    """Reads tokens one by one; `corners` grows by three vertices [y, z, x] a face, `pairs` by (token, face)."""

    def __init__(self, signs: Vocabulary, strips: bool) -> None:
        self.signs, self.strips = signs, strips
        self.corners: list[list[int]] = []
        self.pairs: list[tuple[int, int]] = []
        self.face: list[tuple[list[int], list[int]]] = []  # vertices of the face at hand: values, and their tokens
        self.values: list[int] = []
        self.places: list[int] = []
        self.sign: list[int] = []  # the restart or turn that the next face depends on
        self.forward = True  # the face at hand is wound as it is written
        self.leaves = (
            0  # which of its vertices the next face of the strip has not: the oldest, or after a turn the next
        )

    def read(self, place: int, token: int) -> str | None:
        """None to go on, "" at a good end, else what is wrong."""
        signs = self.signs
        if place == 0:
            return None if token == signs.begin else f"token 0 is {token}, not the begin sign"
        if 0 <= token < signs.bins:
            self._coordinate(place, token)
            return None
        between = len(self.face) == 3 and not self.values and not self.sign
        if between and token == signs.end:
            return ""
        if between and self.strips and token == signs.restart:
            self.face, self.forward, self.sign = [], True, [place]
            return None
        if between and self.strips and token == signs.turn:
            self.leaves, self.sign = 1, [place]
            return None
        return f"token {place} ({token}) cannot stand there"

    def _coordinate(self, place: int, token: int) -> None:
        self.values.append(token)
        self.places.append(place)
        if len(self.values) < 3:
            return
        if len(self.face) == 3 and self.strips:
            del self.face[self.leaves]
            self.forward ^= self.leaves == 0
            self.leaves = 0
        elif len(self.face) == 3:
            self.face = []
        self.face.append((self.values, self.places))
        self.values, self.places = [], []
        if len(self.face) == 3:
            number = len(self.corners) // 3
            self.corners += [values for values, _ in (self.face if self.forward else self.face[::-1])]
            depends = [*self.sign, *(place for _, places in self.face for place in places)]
            self.pairs += [(place, number) for place in depends]
            self.sign = []
