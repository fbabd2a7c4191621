"""From file to file: the selector's promise, ways of laying, what is written, and each bad input in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from rl3d.agents.completion.agent import AgentConfig, ShiftAgent
from rl3d.agents.completion.clouds import Frame, distances
from rl3d.agents.completion.complete import (
    Completed,
    CompletionOptions,
    Models,
    complete,
    complete_file,
    joined,
    layings,
    upright,
)
from rl3d.agents.completion.implicit import ImplicitConfig, ImplicitDecoder, labelled, surface_mesh, winding_number
from rl3d.agents.completion.objective import Judge, Parts
from rl3d.agents.completion.select import STOPS, Evidence, accepted, evidence, seen_through, select
from rl3d.agents.completion.views import seen_from
from rl3d.cameras import Cameras
from rl3d.cli.main import main
from rl3d.errors import InputError
from rl3d.rewards.check_assets import box
from rl3d.scenes import Mesh
from rl3d.scenes.load import load_points
from rl3d.scenes.point_cloud import PointCloud, sample_surface

module = sys.modules["rl3d.agents.completion.complete"]  # the package's attribute of this name is its function


@pytest.fixture(scope="module")
def models(judge: Judge) -> Models:
    torch.manual_seed(1)
    agent = ShiftAgent(AgentConfig(gfv=8, hidden=16, steps=2, reach=0.5)).eval().requires_grad_(False)
    implicit = ImplicitDecoder(ImplicitConfig(gfv=8, octaves=2, hidden=32))
    optimizer = torch.optim.Adam(implicit.parameters(), lr=1e-2)
    for _ in range(300):  # a ball of radius 0.3, whatever the latent
        points = 0.25 * torch.randn(4, 200, 3)
        loss = (implicit(torch.randn(4, 8), points) - (points.norm(dim=-1) - 0.3).clamp(-0.1, 0.1)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Models(judge, agent, implicit.eval().requires_grad_(False))


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    """A table's top and two of its legs, 80 cm wide, away from the origin."""
    shape = Mesh.load(_saved(box((0.0, 0.4, 0.0), (0.8, 0.05, 0.5), (0.5, 0.3, 0.2)), tmp_path / "top.ply"))
    cloud = sample_surface(shape, 300, torch.Generator().manual_seed(0))
    path = tmp_path / "partial.ply"
    PointCloud(cloud.points + torch.tensor([3.0, 1.0, -2.0]), None, cloud.colours).save(path)
    return path


def _saved(mesh: Mesh, path: Path) -> Path:
    mesh.save(path)
    return path


def test_the_selector_keeps_nothing_that_is_worse_by_any_evidence(judge: Judge, parts: Parts) -> None:
    g = torch.Generator().manual_seed(0)
    code = parts.start + 0.5 * torch.randn(parts.start.shape, generator=g)
    viewpoint = torch.tensor([[0.0, 0.0, 2.0]]).expand(len(parts), 3)
    kept = select(judge, parts, code, viewpoint)
    before, after = (evidence(judge, parts, c, judge.decode(c), viewpoint) for c in (parts.start, kept.code))
    assert torch.allclose(before.visible, distances(parts.points, judge.decode(parts.start)).mean(1))
    assert accepted(before, after).all()  # the promise, from the kept latents alone
    for name in vars(after):
        assert torch.allclose(getattr(kept.after, name), getattr(after, name), atol=1e-6)
    assert set(kept.share.tolist()) <= {0.0, *STOPS} and 0 < int((kept.share > 0).sum()) < len(parts)
    way = parts.start + kept.share[:, None] * (code - parts.start)
    assert torch.allclose(kept.code, way, atol=1e-6)
    for row, share in enumerate(kept.share.tolist()):  # no stop farther on was free of evidence against it
        for stop in (x for x in STOPS if x > share):
            tried = parts.start + stop * (code - parts.start)
            assert not accepted(before, evidence(judge, parts, tried, judge.decode(tried), viewpoint))[row]
    best = Evidence(before.visible - 1, before.near - 1, before.whole + 1, before.through)
    assert accepted(before, best).all()
    for name, worse in (("visible", 0.1), ("near", 0.1), ("whole", -0.1), ("through", 0.1)):
        assert not accepted(before, Evidence(**{**vars(best), name: getattr(before, name) + worse})).any()


def test_points_before_what_was_seen_are_seen_through() -> None:
    """A plate at z = 0, seen from z = 2: points at z = 1 are in the way, those behind and beside are not."""
    x, y = torch.meshgrid(torch.linspace(-1, 1, 41), torch.linspace(-1, 1, 41), indexing="ij")
    plate = torch.stack([x, y, 0 * x], -1).reshape(1, -1, 3)
    cloud = torch.tensor([[[0.0, 0.0, 1.0], [0.2, 0.1, 1.5], [0.0, 0.0, -1.0], [5.0, 0.0, 1.0]]])
    assert float(seen_through(plate, cloud, torch.tensor([[0.0, 0.0, 2.0]]))) == pytest.approx(0.5)


def test_new_points_in_free_space_are_left_out() -> None:
    x, y = torch.meshgrid(torch.linspace(-1, 1, 41), torch.linspace(-1, 1, 41), indexing="ij")
    plate = PointCloud(torch.stack([x, y, 0 * x], -1).reshape(-1, 3) + 5)
    decoded = torch.tensor([[5.0, 5.0, 6.0], [5.0, 5.0, 4.0], [5.0, 5.0, 5.01]])
    frame = Frame(torch.zeros(1), torch.ones(1), torch.zeros(1, 3))
    nothing = Evidence(*torch.zeros(4, 1))
    found = Completed(decoded, torch.zeros(8), frame, torch.full((3,), 5.0), 2.0, 1.0, nothing, nothing)
    g = torch.Generator().manual_seed(0)
    everywhere, count = joined(plate, found, 4000, g)
    assert count == 2 and torch.equal(everywhere.points[-2:], decoded[:2])  # the third lies on the plate
    seen, count = joined(plate, found, 4000, g, (5.0, 5.0, 7.0))
    assert count == 1 and torch.equal(seen.points[-1], decoded[1])  # the first is in the way


def test_ways_of_laying_stay_in_the_box_and_lead_back() -> None:
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.3, 0.5])
    frame = layings(points - 0.5 * (points.amin(0) + points.amax(0)))
    assert len(frame.scale) == 6 * (1 + 7 + 7)
    laid = frame.into(points[None].expand(len(frame.scale), -1, -1))
    extent = laid.amax(1) - laid.amin(1)
    assert extent.amax(1).tolist() == pytest.approx(6 * ([1.0] + [0.8] * 7 + [0.6] * 7), abs=1e-5)
    assert torch.allclose(frame.back(laid), points.expand_as(laid), atol=1e-5)


def test_what_a_camera_sees_lies_on_the_surface() -> None:
    mesh = box((0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5))
    seen = seen_from(mesh, Cameras.orbit(0.0, 0.0, size=32)).points
    assert len(seen) > 100 and float((seen[:, 2] - 0.5).abs().max()) < 1e-4  # the front alone
    with pytest.raises(InputError, match="no camera sees"):
        seen_from(mesh, Cameras.orbit(0.0, 0.0, size=8, target=(50.0, 0.0, 0.0)))


def test_signs_and_distances_of_a_box() -> None:
    mesh = box((0, 0, 0), (0.8, 0.6, 0.4), (0.5, 0.5, 0.5))
    inside = torch.tensor([[0.0, 0, 0], [0.39, 0.0, 0.0], [0.6, 0, 0], [0.0, 0.5, 0.0]])
    assert winding_number(mesh, inside).tolist() == pytest.approx([1, 1, 0, 0], abs=1e-5)
    known = labelled(mesh, 400, torch.Generator().manual_seed(0))
    away = known[:, :3].abs() - torch.tensor([0.4, 0.3, 0.2])
    truth = away.clamp_min(0).norm(dim=1) + away.amax(1).clamp_max(0)
    assert torch.allclose(known[:, 3], truth.clamp(-0.1, 0.1), atol=1e-5)


def test_the_implicit_surface_is_where_the_distance_is_the_level(models: Models) -> None:
    assert models.implicit is not None
    mesh = surface_mesh(models.implicit, torch.zeros(8), 32, level=0.0)
    assert float((mesh.vertices.norm(dim=1) - 0.3).abs().mean()) < 0.03
    with pytest.raises(InputError, match="no surface"):
        surface_mesh(models.implicit, torch.zeros(8), 16, level=-1.0)


@pytest.mark.parametrize("by", ["agent", "search", "autoencoder"])
def test_the_visible_points_stay_and_new_ones_have_neighbours_colours(
    models: Models, partial: Path, tmp_path: Path, by: str
) -> None:
    out = tmp_path / "full.ply"
    report = complete_file(partial, out, CompletionOptions(by=by, calls=4, points=350), models)  # type: ignore[arg-type]
    given, full = load_points(partial), load_points(out)
    assert len(full) == report["points"] <= 350 and full.colours is not None
    there = distances(full.points[None], given.points[None])[0]
    assert int((there < 1e-6).sum()) == len(full) - report["new_points"]
    assert report["followed"] in (0.0, *STOPS) and (tmp_path / "full.png").stat().st_size > 1000
    assert json.loads((tmp_path / "full.json").read_text()) == report


def test_the_same_seed_gives_the_same_cloud(models: Models, partial: Path) -> None:
    cloud = load_points(partial)
    first, second = (complete(models, cloud, CompletionOptions(by="search", calls=3, seed=4)) for _ in range(2))
    assert torch.equal(first.cloud, second.cloud)


def test_up_z_is_a_rotation_there_and_back() -> None:
    points = torch.rand(5, 3)
    assert torch.equal(module.as_it_was(upright(points, "z"), "z"), points)
    assert upright(torch.tensor([[0.0, 0.0, 1.0]]), "z").tolist() == [[0.0, 1.0, 0.0]]


def test_the_command(models: Models, partial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert models.implicit is not None
    home = tmp_path / "models"
    models.judge.autoencoder.save(home / "autoencoder")
    models.judge.gan.save(home / "critic")
    models.agent.save(home / "agent")
    models.implicit.save(home / "implicit")
    words = ["complete", str(partial), "--out", str(tmp_path / "o.ply"), "--models", str(home), "--up", "z"]
    assert main([*words, "--mesh", "--seen-from", "3,1,0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mesh_faces"] == len(Mesh.load(tmp_path / "o-mesh.glb").faces)
    assert "through" in report["evidence"]
    assert main([*words, "--always"]) == 0
    assert json.loads((tmp_path / "o.json").read_text())["followed"] == 1.0
    assert capsys.readouterr().out.strip() == str(tmp_path / "o.ply")
    assert main([*words, "--own-frame"]) == 2
    assert "leave --own-frame out" in capsys.readouterr().err
    assert main([*words, "--seen-from", "1,2"]) == 2
    assert "takes three numbers" in capsys.readouterr().err
    assert main(["complete", str(partial), "--out", str(partial)]) == 2
    assert "choose another name" in capsys.readouterr().err
    assert main(["complete", str(partial), "--out", "x.obj"]) == 2
    assert "name it x.ply" in capsys.readouterr().err
    assert main(["complete", str(tmp_path / "none.ply")]) == 2
    assert "no such file" in capsys.readouterr().err


BAD = {
    "3 different points of 3": "3\n0 0 0\n1 0 0\n0 1 0\n",
    "1 different points of 40": "40\n" + "1 2 3\n" * 40,
    "NaN": "40\n" + "".join(f"{i} {i * i} nan\n" for i in range(40)),
    "on one line": "40\n" + "".join(f"{i} {2 * i} {3 * i}\n" for i in range(40)),
    "not numbers": "40\n" + "a b c\n" * 40,
    "holds neither faces nor points": "0\n",
}


@pytest.mark.parametrize("said", BAD)
def test_bad_clouds_are_one_line_and_leave_nothing(
    said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, rest = BAD[said].split("\n", 1)
    head = f"ply\nformat ascii 1.0\nelement vertex {count}\n"
    (tmp_path / "bad.ply").write_text(
        head + "property float x\nproperty float y\nproperty float z\nend_header\n" + rest
    )
    monkeypatch.setattr(module, "load_models", lambda folder=None: None)
    monkeypatch.chdir(tmp_path)
    assert main(["complete", "bad.ply"]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rl3d:")]
    assert len(err) == 1 and said in err[0]
    assert [p.name for p in tmp_path.iterdir()] == ["bad.ply"]


def test_colours_that_are_half_there_are_left_out_and_a_mesh_is_refused(models: Models, tmp_path: Path) -> None:
    rows = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)).tolist()
    body = "".join(f"{x} {y} {z} 200\n" for x, y, z in rows)
    names = "".join(f"property float {n}\n" for n in "xyz") + "property uchar red\n"
    (tmp_path / "red.ply").write_text(f"ply\nformat ascii 1.0\nelement vertex 40\n{names}end_header\n{body}")
    complete_file(tmp_path / "red.ply", tmp_path / "o.ply", CompletionOptions(), models)
    assert load_points(tmp_path / "o.ply").colours is None
    with pytest.raises(InputError, match="sample_surface"):
        complete_file(
            _saved(box((0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5)), tmp_path / "mesh.ply"),
            tmp_path / "o.ply",
            CompletionOptions(),
            models,
        )
