from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from rl3d.cli.main import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def rl3d(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """The real command line, in this process."""
    monkeypatch.delenv("RL3D_DEBUG", raising=False)
    capsys.readouterr()

    def call(*arguments: str) -> Outcome:
        code = main(arguments)
        return Outcome(code, *capsys.readouterr())

    return call
