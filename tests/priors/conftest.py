"""Tiny pipelines in the hub's formats, written once a session by the maintainers' tool."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from tiny_world import load_tool


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    return load_tool("make_tiny_pipelines")


@pytest.fixture(scope="session")
def sd_folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_stable_diffusion(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture(scope="session")
def sd_v_folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-sd-v"
    return tiny.write_stable_diffusion(folder, "v_prediction", linear_projection=False, zero_snr=True)


@pytest.fixture(scope="session")
def mvdream_folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_mvdream(tmp_path_factory.mktemp("models") / "tiny-mvdream")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two cores shared with other work: more threads make these tiny networks slower."""
    import torch

    torch.set_num_threads(1)
