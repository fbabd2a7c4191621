"""Meshes from words, points and dense meshes: where they lie, which is kept, and what cannot be asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_mesh_lm import tiny_model
from tiny_world import BROWN, box

from rl3d.errors import ConfigError, InputError, RL3DError
from rl3d.mesh_tokens import generate as module
from rl3d.mesh_tokens.generate import Candidate, GenerateOptions, generate_mesh, unit_cloud
from rl3d.mesh_tokens.model import MeshLM
from rl3d.mesh_tokens.sampling import SampleOptions
from rl3d.scenes import Mesh, PointCloud, sample_surface

SAMPLING = SampleOptions(temperature=1.0, top_p=1.0, max_faces=20)
OPTIONS = GenerateOptions(best_of=20, sampling=SAMPLING)
BOX = Mesh(box((2.0, 1.0, 1.0), BROWN).vertices + 50, box((1, 1, 1), BROWN).faces)


@pytest.fixture(scope="module")
def model() -> MeshLM:
    return tiny_model()


def test_the_best_lies_where_the_shape_lies_and_is_the_nearest(model: MeshLM) -> None:
    calls: list[tuple[int, int]] = []
    made = generate_mesh(model, BOX, OPTIONS, lambda done, total: calls.append((done, total)))
    assert calls == [(16, 20), (20, 20)] and len(made.candidates) == 20 and made.unknown == []
    ended = [c for c in made.candidates if not c.failure]
    assert any(made.best is c for c in ended) and len(ended) < 20
    assert made.best.distance == min(c.distance for c in ended if c.distance is not None)
    # Anything on the grid lies within half a bin (of 16, over 2 m) of a cube of 2 m around the box's centre.
    middle = torch.tensor([50.0, 50, 50])
    assert (made.best.mesh.vertices - middle).abs().max() <= 1 + 2 / 15 / 2 + 1e-4
    again = generate_mesh(model, BOX, OPTIONS)
    assert torch.equal(again.best.mesh.vertices, made.best.mesh.vertices)


def test_points_do_as_a_mesh_does(model: MeshLM) -> None:
    cloud = sample_surface(BOX, 400, torch.Generator().manual_seed(0))
    for given in (cloud, PointCloud(cloud.points)):
        made = generate_mesh(model, given, OPTIONS)
        assert made.best.distance is not None and len(made.best.mesh.faces) > 0


def test_words_and_what_is_not_known(model: MeshLM) -> None:
    made = generate_mesh(model, "a purple barrel", replace(OPTIONS, faces=8))
    assert made.unknown == ["a", "purple"] and made.best.distance is None
    assert made.best.log_prob == max(c.log_prob for c in made.candidates if not c.failure)
    assert made.best.mesh.vertices.abs().max() <= 0.5
    with pytest.raises(InputError, match="nearest known: barrel"):
        generate_mesh(model, "barel", OPTIONS)
    with pytest.raises(InputError, match="no word"):
        generate_mesh(model, "???", OPTIONS)


def test_ended_then_near_then_likely() -> None:
    def candidate(failure: str, distance: float | None, log_prob: float) -> Candidate:
        return Candidate(BOX, failure, distance, log_prob)

    order = [
        candidate("", 0.1, -2.0),
        candidate("", 0.2, -1.0),
        candidate("", None, -1.0),
        candidate("", None, -2.0),
        candidate("it has no end", 0.01, 0.0),
    ]
    assert sorted([*order[2:], *order[:2]], key=lambda c: c.rank) == order


def test_a_dense_mesh_is_read_by_its_surface() -> None:
    fine = box((1.0, 1.0, 1.0), BROWN)
    corners = fine.triangles
    for _ in range(5):  # 12,288 faces
        a, b, c = corners.unbind(1)
        d, e, f = (a + b) / 2, (b + c) / 2, (c + a) / 2
        corners = torch.cat([torch.stack(t, 1) for t in ((a, d, f), (d, b, e), (f, e, c), (d, e, f))])
    dense = Mesh(corners.reshape(-1, 3), torch.arange(3 * len(corners)).view(-1, 3))
    cloud, frame = unit_cloud(dense, 512, 0)
    assert len(cloud) == 512 and frame.scale == pytest.approx(128 / 127)
    assert cloud.normals is not None
    wall = cloud.points.abs().argmax(1, keepdim=True)
    assert (cloud.normals.gather(1, wall) * cloud.points.gather(1, wall) > 0).all()  # outwards


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (PointCloud(torch.rand(3, 3)), "3 points say too little"),
        (PointCloud(torch.zeros(100, 3)), "one place"),
        (PointCloud(torch.full((100, 3), float("nan"))), "NaN"),
        (PointCloud(torch.rand(100, 3), torch.full((100, 3), float("nan"))), "normals"),
        (Mesh(torch.rand(3, 3), torch.zeros(0, 3, dtype=torch.int64)), "no faces"),
        (Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), "one place"),
        (Mesh(torch.rand(3, 3), torch.tensor([[0, 1, 1]])), "no surface"),
    ],
)
def test_shapes_that_say_nothing(model: MeshLM, shape: Mesh | PointCloud, words: str) -> None:
    with pytest.raises(InputError, match=words):
        generate_mesh(model, shape, OPTIONS)


def test_wishes_that_cannot_be_granted(model: MeshLM, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"faces": 0}, {"faces": 3}, {"best_of": 0}):
        with pytest.raises(ConfigError):
            GenerateOptions(**wrong)
    with pytest.raises(InputError, match="up to 20"):
        generate_mesh(model, BOX, GenerateOptions(faces=21))
    real = module.sample

    def cut(*args, **more):  # type: ignore[no-untyped-def]
        made = real(*args, **more)
        return replace(made, failures=["it has no end"] * len(made.failures))

    monkeypatch.setattr(module, "sample", cut)
    with pytest.raises(RL3DError, match="none of 2 samples became a mesh"):
        generate_mesh(model, BOX, replace(OPTIONS, best_of=2))


def test_scale_and_place_do_not_matter(model: MeshLM) -> None:
    """Ten million metres away in float32 a box of 1 m has lost its shape; 1 mm and 1 km have not."""
    for scale in (1e-3, 1e3):
        made = generate_mesh(model, Mesh(BOX.vertices * scale, BOX.faces), OPTIONS)
        assert made.best.distance == pytest.approx(generate_mesh(model, BOX, OPTIONS).best.distance, rel=0.02)
