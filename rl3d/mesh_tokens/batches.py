"""Training batches: meshes turned, mirrored and stretched, written as tokens, with noisy clouds of their surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl3d.data.asset_set import AssetSet
from rl3d.data.batches import noun_weights, word_ids
from rl3d.data.captions import augment_caption
from rl3d.errors import InputError
from rl3d.mesh_tokens.condition import Condition
from rl3d.mesh_tokens.quantise import to_bins
from rl3d.mesh_tokens.tokenizer import Tokenizer
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.point_cloud import PointCloud, sample_surface


@dataclass(frozen=True)
class Augmentation:
    """Shares in [0, 1], each of the sequences.

    Attributes:
        quarter_turns: turned about +Y by a multiple of 90 degrees. Walls stay on the grid's planes.
        free_turns: by any angle instead. Low-poly walls become stairs of bins then: leave it at 0 unless shapes are
            asked for at odd angles.
        mirrored: x to -x, the winding is turned too.
        stretch: each axis is scaled by exp(u), |u| <= stretch.
        point_noise: largest standard deviation of the points' noise, in units of the longest side.
        sparse: share of clouds that are drawn from a quarter of the points or more, repeated.
        no_normals: share of clouds without normals.
        no_points, no_words, no_faces: share left out, each by itself.
    """

    quarter_turns: float = 1.0
    free_turns: float = 0.0
    mirrored: float = 0.5
    stretch: float = 0.2
    point_noise: float = 0.005
    sparse: float = 0.3
    no_normals: float = 0.1
    no_points: float = 0.2
    no_words: float = 0.3
    no_faces: float = 0.2


PLAIN = Augmentation(*[0.0] * 10)


@dataclass(frozen=True)
class TokenBatch:
    """Sequences padded on the right.

    Attributes:
        tokens: [B, T]. condition: what each was asked by. faces: [B] faces written. assets: [B] indices in the set.
    """

    tokens: Tensor
    condition: Condition
    faces: Tensor
    assets: NDArray[np.int64]


def moved(
    vertices: NDArray[np.floating], faces: NDArray[np.int64], options: Augmentation, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A mesh turned about +Y, mirrored and stretched; its winding still runs counter-clockwise from outside."""
    points = vertices.astype(np.float64)
    x, z = points[:, 0].copy(), points[:, 2].copy()
    if rng.random() < options.free_turns:
        angle = rng.uniform(0, 2 * np.pi)
        points[:, 0], points[:, 2] = np.cos(angle) * x + np.sin(angle) * z, np.cos(angle) * z - np.sin(angle) * x
    elif rng.random() < options.quarter_turns:
        points[:, 0], points[:, 2] = [(x, z), (z, -x), (-x, -z), (-z, x)][rng.integers(4)]
    if rng.random() < options.mirrored:
        points[:, 0], faces = -points[:, 0], faces[:, ::-1]
    return points * np.exp(rng.uniform(-options.stretch, options.stretch, 3)), faces


def thinned(cloud: PointCloud, count: int, rng: np.random.Generator) -> PointCloud:
    """Exactly `count` points: some of them without repetition, or all of them several times where there are fewer."""
    order = np.tile(rng.permutation(len(cloud)), -(-count // max(1, len(cloud))))[:count]
    chosen = torch.from_numpy(order)
    return PointCloud(cloud.points[chosen], None if cloud.normals is None else cloud.normals[chosen])


def drawn_cloud(mesh: Mesh, count: int, options: Augmentation, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Points and normals [count, 3] of a surface in the unit box, with the noise that `options` ask for."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    cloud = sample_surface(mesh, count, generator)
    if rng.random() < options.sparse:
        few = int(count * 0.25 ** rng.uniform(0, 1))
        cloud = thinned(thinned(cloud, few, rng), count, rng)
    noise = options.point_noise * rng.uniform() * torch.randn(count, 3, generator=generator)
    normals = cloud.normals
    assert normals is not None
    if rng.random() < options.no_normals:
        normals = torch.zeros_like(normals)
    return (cloud.points + noise).float(), normals.float()


class MeshBatches:
    """Draws batches of a split of an asset set.

    Args:
        words: word -> id of the prompts. max_faces: larger meshes are left out. cloud_points: of each cloud.

    Raises:
        InputError: no mesh of the split is small enough.
    """

    def __init__(
        self,
        assets: AssetSet,
        split: str,
        tokenizer: Tokenizer,
        words: dict[str, int],
        max_faces: int = 400,
        cloud_points: int = 1024,
        max_words: int = 12,
    ) -> None:
        self.assets, self.tokenizer, self.words = assets, tokenizer, words
        self.cloud_points, self.max_words = cloud_points, max_words
        lengths = {}
        for i, record in enumerate(assets.records):
            if record.split == split and assets.face_starts[i + 1] - assets.face_starts[i] <= max_faces:
                try:
                    lengths[i] = len(tokenizer.encode(to_bins(*assets.mesh(i)[:2], tokenizer.bins)[0]))
                except InputError:
                    continue  # all of it collapses at this number of bins
        if not lengths:
            raise InputError(f"no mesh of the split {split!r} has {max_faces} faces or fewer; raise the limit")
        self.keep = np.array(sorted(lengths, key=lambda i: (lengths[i], i)))
        self.lengths = np.array([lengths[i] for i in self.keep])
        self.weight = noun_weights([assets.records[i] for i in self.keep])

    def __len__(self) -> int:
        return len(self.keep)

    def draw(self, budget: int, options: Augmentation, rng: np.random.Generator) -> TokenBatch:
        """Sequences of about the same length, of about `budget` tokens together with their padding.

        Every asset comes about as often as its weight says, long ones are not left out.
        """
        by_tokens = self.weight * self.lengths
        middle = int(rng.choice(len(self.keep), p=by_tokens / by_tokens.sum()))
        near = np.flatnonzero(np.abs(np.log(self.lengths / self.lengths[middle])) <= 0.12)
        count = max(1, round(budget / float(self.lengths[near].max())))
        p = self.weight[near] / self.weight[near].sum()
        return self.make(self.keep[rng.choice(near, count, p=p)], options, rng)

    def make(self, chosen: NDArray[np.int64], options: Augmentation, rng: np.random.Generator) -> TokenBatch:
        """The batch of given assets; `PLAIN` shows them as they are, with everything in the condition."""
        rows, faces, points, normals, captions = [], [], [], [], []
        for i in chosen.tolist():
            vertices, corners, _ = self.assets.mesh(i)
            vertices, corners = moved(vertices, corners, options, rng)
            bins, frame = to_bins(vertices, corners, self.tokenizer.bins)
            rows.append(torch.from_numpy(self.tokenizer.encode(bins)))
            faces.append(len(bins.faces))
            unit = torch.from_numpy(frame.to_unit(vertices))
            cloud = drawn_cloud(Mesh(unit, torch.from_numpy(corners.copy())), self.cloud_points, options, rng)
            points.append(cloud[0])
            normals.append(cloud[1])
            record = self.assets.records[i]
            plain = options is PLAIN or rng.random() < 0.1
            captions.append(record.caption if plain else augment_caption(record, record.colour, rng, False))
        pad = self.tokenizer.vocabulary.pad
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        counts = torch.tensor(faces)

        def kept(without: float) -> Tensor:
            return torch.from_numpy(rng.random(len(chosen)) >= without)

        words = word_ids(captions, self.words, self.max_words)
        words[~kept(options.no_words)] = torch.tensor([1] + [0] * (self.max_words - 1))
        condition = Condition(
            torch.stack(points), torch.stack(normals), kept(options.no_points), words, counts * kept(options.no_faces)
        )
        return TokenBatch(tokens, condition, counts, chosen)
