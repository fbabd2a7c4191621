"""Lets the tests of this folder import `tiny_world`: importlib mode adds no folder to the path by itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_world import write_assets

    return write_assets(tmp_path_factory.mktemp("assets"))
