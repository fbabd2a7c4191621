"""Training batches: what augmentation keeps, what a batch holds, and that assets come as often as they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import BROWN, GREY, box, cone, write_assets

from rl3d.data.asset_set import AssetSet, load_asset_set
from rl3d.errors import InputError
from rl3d.mesh_tokens.batches import PLAIN, Augmentation, MeshBatches, drawn_cloud, moved, thinned
from rl3d.mesh_tokens.quantise import to_bins
from rl3d.mesh_tokens.tokenizer import Tokenizer
from rl3d.scenes import Mesh, PointCloud

WORDS = {"<pad>": 0, "<null>": 1, "crate": 2, "wooden": 3, "tree": 4, "small": 5}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> AssetSet:
    return load_asset_set(write_assets(tmp_path_factory.mktemp("assets")))


@pytest.fixture(scope="module")
def source(assets: AssetSet) -> MeshBatches:
    return MeshBatches(assets, "train", Tokenizer(), WORDS, cloud_points=64)


def volume(points: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = points[faces].transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6)


def test_moved_meshes_stay_closed_and_face_outwards() -> None:
    shape = cone(6, BROWN, GREY, 0.5)
    vertices, faces = shape.vertices.double().numpy(), shape.faces.numpy()
    rng, seen = np.random.default_rng(0), set()
    for options in (Augmentation(), replace(Augmentation(), free_turns=1.0)):
        for _ in range(40):
            points, corners = moved(vertices, faces, options, rng)
            assert volume(points, corners) > 0.5 * volume(vertices, faces) > 0
            seen.add(bool((corners == faces).all()))
    assert seen == {True, False}


def test_quarter_turns_and_mirrors_keep_walls_on_the_grid() -> None:
    """A box keeps 8 vertices on 2 planes an axis, whatever happens to it; a free turn breaks that."""
    shape = box((1.0, 0.6, 0.8), BROWN)
    rng = np.random.default_rng(1)
    for options, planes in ((Augmentation(), {2}), (replace(Augmentation(), free_turns=1.0), {2, 4})):
        found = set()
        for _ in range(20):
            bins, _ = to_bins(*moved(shape.vertices.numpy(), shape.faces.numpy(), options, rng))
            found |= {len(np.unique(bins.vertices[:, axis])) for axis in range(3)}
        assert found == planes


def test_plain_is_the_asset_itself(source: MeshBatches, assets: AssetSet) -> None:
    batch = source.make(source.keep, PLAIN, np.random.default_rng(0))
    for row, asset in enumerate(batch.assets.tolist()):
        bins, _ = to_bins(*assets.mesh(asset)[:2])
        tokens = source.tokenizer.encode(bins)
        assert np.array_equal(batch.tokens[row, : len(tokens)].numpy(), tokens)
        assert (batch.tokens[row, len(tokens) :] == source.tokenizer.vocabulary.pad).all()
        assert int(batch.faces[row]) == len(bins.faces) == int(batch.condition.faces[row])
        points, normals = batch.condition.points[row], batch.condition.normals[row]
        assert points.abs().max() <= 0.5 and torch.allclose(normals.norm(dim=1), torch.ones(64), atol=1e-5)
    assert batch.condition.has_points.all()
    crate = [assets.records[i].caption for i in batch.assets].index("wooden crate")
    assert batch.condition.words[crate].tolist()[:3] == [3, 2, 0]


def test_parts_are_left_out_as_often_as_asked(source: MeshBatches) -> None:
    """400 rows each: four standard errors of a share of 0.3 are 0.09."""
    options, rng = replace(Augmentation(), no_points=0.3, no_words=0.3, no_faces=0.3), np.random.default_rng(0)
    batches = [source.make(np.tile(source.keep, 20), options, rng) for _ in range(5)]
    parts = [b.condition for b in batches]
    shares = [
        1 - torch.cat([c.has_points for c in parts]).float().mean(),
        torch.cat([c.words[:, 0] == 1 for c in parts]).float().mean(),
        torch.cat([c.faces == 0 for c in parts]).float().mean(),
    ]
    # Some captions hold no word of this small vocabulary: those rows have no words either.
    assert abs(float(shares[0]) - 0.3) < 0.09 and abs(float(shares[2]) - 0.3) < 0.09 and float(shares[1]) > 0.3


def test_batches_hold_their_budget_and_every_asset_its_share(source: MeshBatches) -> None:
    counts, rng = np.zeros(len(source.assets)), np.random.default_rng(0)
    for _ in range(300):
        batch = source.draw(400, PLAIN, rng)
        assert batch.tokens.numel() <= 400 * 1.3 or len(batch.tokens) == 1
        real = (batch.tokens != source.tokenizer.vocabulary.pad).sum()
        assert float(real) > 0.8 * batch.tokens.numel()
        np.add.at(counts, batch.assets, 1)
    shares = counts[source.keep] / counts.sum()
    # Four train assets of equal weight and 48 to 87 tokens; "about as often" within a third.
    assert (counts > 0).sum() == len(source) == 4
    assert np.abs(shares - 0.25).max() < 0.09


def test_the_same_numbers_give_the_same_batch(source: MeshBatches) -> None:
    one, two = (source.draw(300, Augmentation(), np.random.default_rng([3, 5])) for _ in range(2))
    assert torch.equal(one.tokens, two.tokens)
    assert all(torch.equal(a, b) for a, b in zip(one.condition.tensors().values(), two.condition.tensors().values()))


def test_clouds_of_any_size_become_one_size() -> None:
    cloud = PointCloud(torch.arange(15.0).view(5, 3), torch.ones(5, 3))
    rng = np.random.default_rng(0)
    few = thinned(cloud, 3, rng)
    assert len(few) == 3 and len(torch.unique(few.points, dim=0)) == 3
    many = thinned(cloud, 12, rng)
    assert len(many) == 12 and len(torch.unique(many.points, dim=0)) == 5
    assert thinned(PointCloud(cloud.points), 4, rng).normals is None


def test_noise_and_gaps_of_a_cloud() -> None:
    shape = Mesh(box((1, 1, 1), BROWN).vertices, box((1, 1, 1), BROWN).faces)
    noisy = replace(PLAIN, point_noise=0.01, sparse=1.0, no_normals=1.0)
    points, normals = drawn_cloud(shape, 256, noisy, np.random.default_rng(3))
    off = (points.abs().amax(1) - 0.5).abs()
    assert 0 < float(off.max()) < 0.06 and (normals == 0).all() and points.dtype == torch.float32
    clean, _ = drawn_cloud(shape, 256, PLAIN, np.random.default_rng(3))
    assert float((clean.abs().amax(1) - 0.5).abs().max()) < 1e-6


def test_a_split_without_small_meshes(assets: AssetSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 faces or fewer"):
        MeshBatches(assets, "train", Tokenizer(), WORDS, max_faces=3)
