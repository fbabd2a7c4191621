"""The errors that a user can cause. Each message says what was wrong, what came, and the way out, in one line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RL3DError(Exception):
    """Base of every error that the command line prints as one line (exit code 2) instead of a traceback."""


class InputError(RL3DError):
    """A value that came from the user is not usable: a prompt, a number, a file, a tensor's shape."""


class ConfigError(RL3DError):
    """A configuration key or value is not known."""


class AssetError(RL3DError):
    """An embedded or given model's files are missing, truncated or of another kind."""


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known words that look most like `word`, best first; possibly empty."""
    return get_close_matches(word, list(known), n=count, cutoff=0.6)


def way_out(word: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown word: the known one that it looks like, or all of them."""
    every = list(known)
    close = nearest(word, every)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(every) or 'none'}"
