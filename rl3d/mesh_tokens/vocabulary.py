"""What the numbers in a sequence mean, for both tokenizers: N coordinates, then five signs."""

from __future__ import annotations

from dataclasses import dataclass

from rl3d.errors import ConfigError
from rl3d.mesh_tokens.quantise import BINS


@dataclass(frozen=True)
class Vocabulary:
    """Tokens 0 ... bins - 1 are coordinates.

    Attributes:
        bins: bins an axis, 2 to 4096.
        begin, end, pad: around a sequence.
        restart: "&" of adjacent mesh tokenization, the next nine coordinates are a whole face.
        turn: the strip goes on across its other free edge.
    """

    bins: int = BINS

    def __post_init__(self) -> None:
        if not 2 <= self.bins <= 4096:
            raise ConfigError(f"the number of bins must lie in 2 ... 4096, got {self.bins}")

    @property
    def begin(self) -> int:
        return self.bins

    @property
    def end(self) -> int:
        return self.bins + 1

    @property
    def pad(self) -> int:
        return self.bins + 2

    @property
    def restart(self) -> int:
        return self.bins + 3

    @property
    def turn(self) -> int:
        return self.bins + 4

    @property
    def size(self) -> int:
        return self.bins + 5
