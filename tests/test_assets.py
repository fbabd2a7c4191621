from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl3d.assets import MANIFEST, embedded_models, model_folder, packaged_folder, record_model
from rl3d.errors import AssetError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "prior" / "model"
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"0123456789")
    (tmp_path / "prior" / "config.json").write_text("{}")
    (tmp_path / "prior" / ".hidden").write_text("not shipped")
    record_model("prior", description="four views", licence="CC0-1.0", root=tmp_path)
    return tmp_path


def test_recorded_models_are_found_whole(root: Path) -> None:
    assert model_folder("prior", root) == root / "prior"
    model = embedded_models(root)["prior"]
    assert [f.path for f in model.files] == ["config.json", "model/weights.safetensors"]
    assert (model.bytes, model.licence) == (12, "CC0-1.0")


def test_recording_one_model_keeps_the_other(root: Path) -> None:
    (root / "judge").mkdir()
    (root / "judge" / "config.json").write_text("{}")
    record_model("judge", description="a judge", licence="CC0-1.0", root=root)
    assert list(embedded_models(root)) == ["judge", "prior"]
    with pytest.raises(AssetError, match="holds no files"):
        record_model("nothing", description="", licence="", root=root)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"01234", r"weights\.safetensors is truncated \(5 bytes, expected 10\)"),
        (b"0123456789+", "too long"),
        (b"012345678X", "was changed"),
        (None, r"weights\.safetensors is missing"),
    ],
)
def test_a_damaged_file_is_named(root: Path, data: bytes | None, message: str) -> None:
    path = root / "prior" / "model" / "weights.safetensors"
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(AssetError, match=rf"'prior' is broken: .*{message}.*; reinstall"):
        model_folder("prior", root)


def test_unknown_models_and_manifests(root: Path) -> None:
    with pytest.raises(AssetError, match="no embedded model is called 'prio'; known: prior"):
        model_folder("prio", root)
    (root / MANIFEST).write_text('{"models": {"prior": {"files": {}}}}')
    with pytest.raises(AssetError, match="cannot be read"):
        embedded_models(root)
    (root / MANIFEST).write_text('{"models": ')
    with pytest.raises(AssetError, match="cannot be read"):
        embedded_models(root)
    (root / MANIFEST).unlink()
    with pytest.raises(AssetError, match="is missing"):
        embedded_models(root)


def test_the_package_finds_its_folders() -> None:
    assert (packaged_folder("configs") / "generate" / "default.yaml").is_file()
    manifest = packaged_folder("assets") / MANIFEST
    if manifest.exists():
        for name in json.loads(manifest.read_text())["models"]:
            assert model_folder(name).is_dir()
