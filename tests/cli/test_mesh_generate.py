"""`rl3d mesh generate`: its files, its JSON, and one line for what cannot be done."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from tiny_mesh_lm import tiny_model
from tiny_world import BROWN, box

from rl3d.cli import mesh_generate
from rl3d.errors import InputError, RL3DError
from rl3d.scenes import Mesh, PointCloud


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a mesh, points, and files that hold neither."""
    path = tmp_path_factory.mktemp("files")
    tiny_model().save_pretrained(path / "model")
    box((1.0, 0.5, 0.5), BROWN).save(path / "box.glb")
    PointCloud(torch.rand(100, 3, generator=torch.Generator().manual_seed(0))).save(path / "cloud.ply")
    PointCloud(torch.eye(3)).save(path / "three.ply")
    (path / "empty.glb").write_bytes(b"")
    (path / "text.obj").write_text("hello")
    return path


def call(folder: Path, *words: str) -> int:
    parser = argparse.ArgumentParser()
    mesh_generate.add_arguments(parser)
    fixed = ["--model", str(folder / "model"), "--temperature", "1", "--top-p", "1", "--best-of", "6", "--quiet"]
    return mesh_generate.run(parser.parse_args([*words, *fixed]))


@pytest.mark.parametrize("source", ["box.glb", "cloud.ply", "a barrel"])
def test_it_writes_a_mesh(folder: Path, tmp_path: Path, source: str, capsys: pytest.CaptureFixture) -> None:
    given = str(folder / source) if "." in source else source
    out = tmp_path / "low.obj"
    assert call(folder, given, "--faces", "8", "--out", str(out), "--json") == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert len(Mesh.load(out).faces) == facts["facts"]["faces"] == facts["kept"]["faces"]
    assert len(facts["samples"]) == 6 and facts["kept"] in facts["samples"]
    assert ("does not know: a" in said.err) == (source == "a barrel")
    assert call(folder, given, "--out", str(tmp_path / "low.glb")) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "low.glb")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["three.ply", "--out", "x.glb"], "3 points say too little"),
        (["cloud.ply", "--faces", "0", "--out", "x.glb"], "--faces must lie between 4"),
        (["cloud.ply", "--faces", "21", "--out", "x.glb"], "up to 20"),
        (["empty.glb", "--out", "x.glb"], "is empty"),
        (["text.obj", "--out", "x.glb"], "text.obj"),
        (["nowhere.glb", "--out", "x.glb"], "no such file"),
        (["box.glb", "--out", "x.png"], "no mesh file that rl3d writes"),
        (["box.glb", "--out", "box.glb"], "the file to read"),
        (["box.glb", "--out", "x.glb", "--best-of", "0"], "--best-of"),
        (["box.glb", "--out", "x.glb", "--device", "tpu"], "unknown --device"),
        (["  ", "--out", "x.glb"], "the prompt is empty"),
        (["zebra", "--out", "x.glb"], "knows no word"),
    ],
)
def test_one_line_for_what_cannot_be_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    fixed = ["--model", str(folder / "model"), "--best-of", "2", "--quiet"]
    parser = argparse.ArgumentParser()
    mesh_generate.add_arguments(parser)
    with pytest.raises(RL3DError, match=message) as error:
        mesh_generate.run(parser.parse_args([*fixed, *words]))
    assert "\n" not in str(error.value) and isinstance(error.value, InputError)
    assert not (folder / "x.glb").exists()


def test_a_folder_without_a_model(folder: Path, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    mesh_generate.add_arguments(parser)
    words = [str(folder / "box.glb"), "--out", str(tmp_path / "x.glb"), "--model", str(tmp_path)]
    with pytest.raises(RL3DError, match="cannot load the mesh model"):
        mesh_generate.run(parser.parse_args(words))
