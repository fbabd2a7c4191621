from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import rl3d


def test_names_lead_to_their_homes() -> None:
    from rl3d.cameras import Cameras
    from rl3d.scenes import Gaussians, Mesh, PointCloud

    assert (rl3d.Cameras, rl3d.Mesh, rl3d.Gaussians, rl3d.PointCloud) == (Cameras, Mesh, Gaussians, PointCloud)
    assert isinstance(rl3d.priors, ModuleType)
    assert set(rl3d.__all__) <= {*dir(rl3d)}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Camera'"):
        rl3d.Camera  # noqa: B018


@pytest.mark.parametrize("first", ["rl3d.render", "rl3d.render.render", "rl3d.render.meshes", "rl3d"])
def test_render_is_a_package_and_a_function_whatever_was_imported_first(first: str) -> None:
    code = f"""
import {first}
import torch
from rl3d import Cameras, Mesh, render
import rl3d, rl3d.render.meshes
mesh = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2]]))
frames = render(mesh, Cameras.orbit(0.0, size=8), backend="torch")
assert frames.rgb.shape == (1, 3, 8, 8)
assert type(frames) is rl3d.Frames
assert rl3d.render is render and callable(rl3d.render.meshes.rasterize)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(rl3d.__file__).resolve().parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_calling_text_to_3d_reaches_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("rl3d.text_to_3d.generate")
    fake.text_to_3d = lambda prompt, seed=0: (prompt, seed)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rl3d.text_to_3d.generate", fake)
    assert rl3d.text_to_3d("a barrel", seed=3) == ("a barrel", 3)


def test_every_module_has_a_docstring_that_says_what_it_is() -> None:
    root = Path(rl3d.__file__).parent
    missing = []
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8").lstrip()
        if text and not text.startswith(('"""', 'r"""')):
            missing.append(path.relative_to(root).as_posix())
    assert missing == []
