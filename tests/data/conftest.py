"""The tiny assets that the tests of this folder read."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_world import write_assets

    return write_assets(tmp_path_factory.mktemp("assets"))
