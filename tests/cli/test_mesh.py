from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from metric_shapes import Shape, box, grid, sphere


def write(path: Path, shape: Shape) -> Path:
    vertices, faces = shape
    lines = ["v " + " ".join(map(str, v)) for v in vertices] + ["f " + " ".join(str(i + 1) for i in f) for f in faces]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ball, one with a hole, one that is unreadable, and what is no mesh file."""
    vertices, faces = sphere(60)
    write(tmp_path / "a_ball.obj", (vertices, faces))
    write(tmp_path / "b_holed.obj", (vertices, faces[5:]))
    (tmp_path / "c_broken.obj").write_text("v 0 0 0\nf 1 2 3\n")
    (tmp_path / "notes.txt").write_text("no mesh")
    return tmp_path


def test_a_table_for_people(rl3d: Callable, folder: Path) -> None:
    done = rl3d("mesh", "score", str(folder / "a_ball.obj"), "--reference", str(folder / "a_ball.obj"))
    assert (done.code, done.err) == (0, "")
    head, row = done.out.splitlines()
    assert head.split() == (
        "faces BER TS quads loops closed manifold nonman flat copies crossing HD CD F normals".split()
    )
    assert row.split()[:3] == [str(folder / "a_ball.obj"), "116", "0.0000"]
    assert row.split()[-4:] == ["0.0000", "0.0000", "1.000", "1.000"]
    assert len(rl3d("mesh", "score", str(folder / "a_ball.obj")).out.splitlines()[0].split()) == 11


def test_a_folder_counts_what_failed(rl3d: Callable, folder: Path) -> None:
    done = rl3d("mesh", "score", str(folder), "--json", "--reference", str(folder / "a_ball.obj"))
    assert done.code == 1  # c_broken.obj could not be read
    report = json.loads(done.out)
    ball, holed, broken = report["meshes"]
    assert [Path(m["file"]).name for m in report["meshes"]] == ["a_ball.obj", "b_holed.obj", "c_broken.obj"]
    assert ball["passed"] and (ball["ber"], ball["geometry"]["f_score"]) == (0, 1)
    assert 0 < holed["ber"] == holed["topology"]["ber"] < 0.1
    assert (broken["passed"], broken["ber"], broken["ts"], broken["hausdorff"]) == (False, 1, 0, 1)
    assert len(broken["failed"]) == 1 and "line 2" in broken["failed"][0]
    assert (report["summary"]["meshes"], report["summary"]["failed"]) == (3, 1)
    assert report["summary"]["ber"]["mean"] == pytest.approx(statistics.fmean([0, holed["ber"], 1]))
    text = rl3d("mesh", "score", str(folder)).out
    assert "1 of 3 failed" in text.splitlines()[-1] and "worst score: " in text


def test_several_processes_say_the_same(rl3d: Callable, folder: Path) -> None:
    words = ("mesh", "score", str(folder), "--json", "--reference", str(folder / "b_holed.obj"))
    assert rl3d(*words, "--workers", "2") == rl3d(*words, "--workers", "1")


def test_the_number_of_faces_and_the_threshold(rl3d: Callable, folder: Path) -> None:
    small = write(folder / "small.obj", box(1.15, 1.15, 1.15))
    words = ("mesh", "score", str(small), "--reference", str(folder / "a_ball.obj"), "--json")
    (row,) = json.loads(rl3d(*words).out)["meshes"]
    assert any(f.startswith("face count: 12, asked for 116") for f in row["failed"])
    (row,) = json.loads(rl3d(*words, "--faces", "0").out)["meshes"]
    assert not any(f.startswith("face count") for f in row["failed"])
    (wide,) = json.loads(rl3d(*words, "--threshold", "0.9").out)["meshes"]
    assert wide["geometry"]["f_score"] == 1 > row["geometry"]["f_score"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "ACTION; see rl3d mesh --help"),
        (["scoer"], "invalid choice: 'scoer'"),
        (["score"], "FILE; see rl3d mesh score --help"),
        (["score", "none.glb"], "no such file: none.glb"),
        (["score", "a.txt"], "a.txt is no mesh file that rl3d reads; known: .glb, .gltf, .obj"),
        (["score", "empty"], "the folder empty holds no mesh files"),
        (["score", "ball.obj", "--reference", "none.obj"], "no such file: none.obj"),
        (["score", "ball.obj", "--reference", "flat.obj"], "the reference has no face with an area"),
        (["score", "ball.obj", "--reference", "points.obj"], "points.obj has no faces"),
        (["score", "ball.obj", "--faces", "-1"], "--faces must lie between 0 and"),
        (["score", "ball.obj", "--threshold", "0"], "--threshold must lie between 0 and 1"),
        (["score", "ball.obj", "--workers", "0"], "--workers must lie between 1 and"),
        (["score", "ball.obj", "--jsno"], "unknown option --jsno; did you mean --json?"),
    ],
)
def test_wrong_words_are_one_line(
    rl3d: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    write(tmp_path / "ball.obj", sphere(20))
    write(tmp_path / "flat.obj", (grid(2)[0] * [1, 0, 0], grid(2)[1]))
    write(tmp_path / "points.obj", (np.zeros((3, 3)), np.zeros((0, 3), int)))
    done = rl3d("mesh", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("rl3d: error: ") and done.err.count("\n") == 1
    assert message in done.err


def test_any_scale_scores_alike(rl3d: Callable, tmp_path: Path) -> None:
    rows = []
    for scale in (1e-6, 1.0, 1e6):
        path = write(tmp_path / "ball.obj", (sphere(40)[0] * scale, sphere(40)[1]))
        rows.append(json.loads(rl3d("mesh", "score", str(path), "--reference", str(path), "--json").out)["meshes"][0])
    for row in rows:
        assert row["passed"] and row["topology"] == rows[0]["topology"]
        assert row["ts"] == pytest.approx(rows[0]["ts"]) and row["hausdorff"] == pytest.approx(0, abs=1e-9)
