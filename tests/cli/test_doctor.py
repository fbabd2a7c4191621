from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from rl3d import assets
from rl3d.cli import doctor


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An assets folder with small files in place of the real models."""
    for name in doctor.MODELS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"0123456789")
        assets.record_model(name, description="four views", licence="CC0-1.0", root=tmp_path)
    monkeypatch.setattr(assets, "packaged_folder", lambda kind: tmp_path)
    return tmp_path


def test_a_sound_installation(rl3d: Callable, models: Path) -> None:
    done = rl3d("doctor")
    assert done.code == 0, done.out
    for text in ("torch: ", "render backends:", "prior: four views, 0.0 MiB, CC0-1.0, ok", "gsplat", "nvdiffrast"):
        assert text in done.out
    assert "everything that rl3d needs is here" in done.out


def test_json(rl3d: Callable, models: Path) -> None:
    report = json.loads(rl3d("doctor", "--json").out)
    assert report["broken"] == []
    assert report["torch"]["threads"] >= 1
    assert report["backends"]["cpu"] == {
        "scenes": ["meshes", "Gaussians"],
        "devices": ["cpu"],
        "dtypes": ["float32"],
        "why_not": None,
    }
    assert set(report["backends"]) == {"cpu", "torch", "gsplat", "pytorch3d", "nvdiffrast"}
    assert {r["name"] for r in report["rewards"]} == {"clip", "pickscore", "hpsv2", "imagereward", "reward3d", "vlm"}
    assert all(r["why_not"] is None and r["files"] for r in report["rewards"])
    assert {e["package"] for e in report["extras"]} >= {"gsplat", "pytorch3d", "open3d", "nvdiffrast", "viser"}
    assert all(e["adds"] and e["licence"] and e["install"] for e in report["extras"])


def test_a_truncated_model_is_broken(rl3d: Callable, models: Path) -> None:
    (models / "prior" / "weights.safetensors").write_bytes(b"0123")
    done = rl3d("doctor")
    assert done.code == 1
    assert "BROKEN: the embedded model 'prior': weights.safetensors is truncated (4 bytes, expected 10)" in done.out


def test_a_missing_model_is_broken(rl3d: Callable, models: Path) -> None:
    manifest = json.loads((models / assets.MANIFEST).read_text())
    del manifest["models"]["prior"]
    (models / assets.MANIFEST).write_text(json.dumps(manifest))
    done = rl3d("doctor")
    assert done.code == 1 and "BROKEN: the embedded model 'prior' is not in this installation" in done.out


def test_a_missing_package_is_broken(rl3d: Callable, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.package_version
    monkeypatch.setattr(doctor, "package_version", lambda name: None if name == "xatlas" else real(name))
    done = rl3d("doctor")
    assert done.code == 1
    assert "BROKEN: the required package xatlas is not installed; pip install xatlas" in done.out


def test_torchvision_beside_a_cpu_torch_is_a_warning(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.package_version
    monkeypatch.setattr(doctor, "package_version", lambda name: "1.0" if name == "torchvision" else real(name))
    monkeypatch.setattr(doctor, "_torch_facts", lambda broken: {"cuda_build": None, "gpus": []})
    assert any("torchvision" in text for text in doctor.examine()["warnings"])


def test_required_packages_are_those_of_the_metadata() -> None:
    root = Path(doctor.__file__).resolve().parents[2]
    try:
        requires = metadata.requires("rl3d") or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        text = (root / "pyproject.toml").read_text()
        block = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
        assert block is not None
        requires = re.findall(r'^    "([^"]+)",', block.group(1), re.MULTILINE)
    names = {re.split(r"[^\w-]", r)[0] for r in requires if "extra ==" not in r}
    assert names == set(doctor.REQUIRED)


def test_an_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert [c["writable"] for c in doctor._caches() if c["variable"] == "NUMBA_CACHE_DIR"] == [False]
