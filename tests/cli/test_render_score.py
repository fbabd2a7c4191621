from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rl3d.scenes import Dense, Field

TETRAHEDRON = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
POINTS = (
    "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n0 0 0\n"
)


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    path = tmp_path / "tetrahedron.obj"
    path.write_text(TETRAHEDRON)
    return path


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for the turntable writer; the calls it got."""
    calls: list[dict[str, Any]] = []

    def turntable(scene: Any, out: Path, **kwargs: Any) -> None:
        calls.append({"scene": scene, "out": out, **kwargs})

    module = ModuleType("rl3d.preview")
    module.turntable = turntable  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rl3d.preview", module)
    return calls


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    import rl3d.rewards

    scores = {"reward_judge": 0.75, "gold_judge": 0.5}
    monkeypatch.setattr(rl3d.rewards, "score_asset", lambda prompt, scene: scores, raising=False)


def test_render_prints_the_picture_and_says_what_it_saw(
    rl3d: Callable, turns: list[dict[str, Any]], mesh: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "turn.webp")
    done = rl3d("render", str(mesh), "--out", out, "--frames", "3", "--size", "32", "--shading", "unlit")
    assert (done.code, done.out) == (0, out + "\n")
    assert "kind mesh" in done.err and "watertight True" in done.err
    assert (turns[0]["frames"], turns[0]["size"], turns[0]["shading"]) == (3, 32, "unlit")
    assert len(turns[0]["scene"].faces) == 4


def test_render_json(
    rl3d: Callable, turns: list[dict[str, Any]], mesh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    facts = json.loads(rl3d("render", str(mesh), "--json").out)
    assert (facts["kind"], facts["faces"], facts["turntable"]) == ("mesh", 4, "tetrahedron.webp")


def test_render_takes_fields_and_score_says_why_not(
    rl3d: Callable, turns: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "ball.safetensors"
    Field.sphere(Dense.zeros(4, 3)).save(path)
    done = rl3d("render", str(path), "--out", str(tmp_path / "ball.webp"), "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert (facts["kind"], facts["values"], facts["encoding"], facts["parameters"]) == ("field", "sdf", "Dense", 109)
    assert isinstance(turns[0]["scene"], Field)
    done = rl3d("score", "a ball", str(path))
    assert (done.code, done.out) == (2, "") and "ball.safetensors holds a field" in done.err


def test_score_judges_every_file(rl3d: Callable, judged: None, mesh: Path) -> None:
    done = rl3d("score", "a red chest", str(mesh), str(mesh))
    assert done.code == 0
    assert done.out.count("reward_judge: 0.75") == 2 and done.out.count("gold_judge: 0.5") == 2
    report = json.loads(rl3d("score", "a red chest", str(mesh), "--json").out)
    assert report["prompt"] == "a red chest"
    assert report["assets"][0]["scores"] == {"reward_judge": 0.75, "gold_judge": 0.5}
    assert report["assets"][0]["facts"]["faces"] == 4


@pytest.mark.parametrize("command", [["render"], ["score", "a chest"]])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.glb", None, "no such file"),
        ("empty.glb", b"", "is empty (0 bytes)"),
        ("notes.txt", b"hello", "is no 3D file that rl3d reads"),
        ("torn.glb", b"glTF\x02\x00", "torn.glb"),
        ("not.obj", b"this is prose\n", "not.obj"),
        ("nan.obj", b"v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "nan.obj"),
        ("nofaces.obj", b"v 0 0 0\n", "nofaces.obj"),
        ("points.ply", POINTS.encode(), "1 points without faces"),
        ("empty.safetensors", b"", "is empty (0 bytes)"),
        ("prose.safetensors", b"this is prose", "prose.safetensors is not a field of rl3d"),
    ],
)
def test_files_that_are_no_scene(
    rl3d: Callable,
    turns: list[dict[str, Any]],
    judged: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    name: str,
    content: bytes | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content)
    done = rl3d(*command, name)
    assert (done.code, done.out) == (2, ""), done.err
    assert message in done.err
    assert done.err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ([] if content is None else [name])
    assert turns == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "0"], "--size must lie between 16 and 4096, got 0"),
        (["--frames", "-3"], "--frames must lie between 1 and 720, got -3"),
        (["--shading", "phong"], "invalid choice: 'phong'"),
        (["--out", "tetrahedron.obj"], "is the file to render"),
    ],
)
def test_render_options_out_of_range(
    rl3d: Callable, mesh: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(mesh.parent)
    done = rl3d("render", mesh.name, *words)
    assert done.code == 2
    assert message in done.err and done.err.count("\n") == 1


def test_folders_are_not_files(rl3d: Callable, tmp_path: Path) -> None:
    assert "is a folder" in rl3d("render", str(tmp_path)).err
