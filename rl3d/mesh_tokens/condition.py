"""What a mesh is asked for by: points on its surface, words, a number of faces; each may be left out.

All of it becomes a prefix of a fixed number of tokens before the mesh's own:

    anchors of the point cloud | words | number of faces

A cloud is read in patches, a small PointNet (arXiv 1612.00593) over the neighbours of each of some points far apart,
as Point-BERT (arXiv 2111.14819) does; blocks without a causal order mix them. What is left out is a learned vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl3d.mesh_tokens.layers import Block
from rl3d.scenes.point_cloud import farthest


@dataclass(frozen=True)
class Condition:
    """For B sequences; None leaves a part out for all of them.

    Attributes:
        points: [B, N, 3] in [-1/2, 1/2], see `quantise.frame_of`. normals: [B, N, 3], unit length, 0 where unknown.
        has_points: [B] bool, False leaves the points of a row out.
        words: [B, max_words] int64, see `rl3d.data.batches.word_ids`; a row of 1, 0, ... leaves them out.
        faces: [B] int64, number of faces; 0 leaves it out.
    """

    points: Tensor | None = None
    normals: Tensor | None = None
    has_points: Tensor | None = None
    words: Tensor | None = None
    faces: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What is there, by name: keyword arguments of the model."""
        return {k: v for k, v in vars(self).items() if v is not None}

    def rows(self, index: Tensor) -> Condition:
        """Some of the rows, or rows several times."""
        return Condition(**{k: v[index] for k, v in self.tensors().items()})

    def to(self, device: torch.device | str) -> Condition:
        return Condition(**{k: v.to(device) for k, v in self.tensors().items()})


def fourier(values: Tensor, octaves: int) -> Tensor:
    """[..., D] to [..., D (1 + 2 octaves)]: the values, and sines and cosines of pi 2^k times them."""
    scaled = values[..., None] * (math.pi * 2.0 ** torch.arange(octaves, device=values.device))
    return torch.cat([values, scaled.sin().flatten(-2), scaled.cos().flatten(-2)], -1)


class CloudEncoder(nn.Module):
    """Points with normals [B, N, 3] to `anchors` tokens [B, anchors, width]."""

    OCTAVES = 7  # the shortest wave is two bins of 128
    REACH = 8.0  # patches of 1,024 points over a unit shape are about 1 / REACH wide

    def __init__(self, width: int, heads: int, hidden: int, depth: int, anchors: int, neighbours: int) -> None:
        super().__init__()
        self.anchors, self.neighbours = anchors, neighbours
        self.point_in = nn.Linear(6, 64)
        self.point_out = nn.Linear(64, 128)
        self.patch_in = nn.Linear(128, width)
        self.place_in = nn.Linear(3 + 6 * self.OCTAVES, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm = nn.RMSNorm(width)

    def forward(self, points: Tensor, normals: Tensor | None) -> Tensor:
        normals = torch.zeros_like(points) if normals is None else normals
        row = torch.arange(len(points), device=points.device)[:, None]
        anchors = points[row, farthest(points, self.anchors)]  # [B, A, 3]
        near = torch.cdist(anchors, points).topk(min(self.neighbours, points.shape[1]), largest=False).indices
        row = row[..., None]
        offset = (points[row, near] - anchors[:, :, None]) * self.REACH
        dtype = self.norm.weight.dtype
        around = torch.cat([offset, normals[row, near]], -1).to(dtype)
        patch = self.point_out(F.silu(self.point_in(around))).amax(2)
        x = (self.patch_in(patch) + self.place_in(fourier(anchors, self.OCTAVES).to(dtype))).to(dtype)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out


class Prefix(nn.Module):
    """A `Condition`'s parts as `length` tokens [B, length, width]."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        depth: int,
        anchors: int,
        neighbours: int,
        words: int,
        max_words: int,
    ) -> None:
        super().__init__()
        self.length = anchors + max_words + 1
        self.max_words = max_words
        self.cloud = CloudEncoder(width, heads, hidden, depth, anchors, neighbours)
        self.no_cloud = nn.Parameter(torch.zeros(width))
        self.words = nn.Embedding(words, width)
        self.word_places = nn.Parameter(torch.zeros(max_words, width))
        self.count_in = nn.Linear(17, width)
        self.no_count = nn.Parameter(torch.zeros(width))

    def forward(
        self,
        batch: int,
        points: Tensor | None,
        normals: Tensor | None,
        has_points: Tensor | None,
        words: Tensor | None,
        faces: Tensor | None,
    ) -> Tensor:
        device = self.no_cloud.device
        absent = self.no_cloud.expand(batch, self.cloud.anchors, -1)
        cloud = absent if points is None else self.cloud(points, normals)
        if points is not None and has_points is not None:
            cloud = torch.where(has_points[:, None, None], cloud, absent.to(cloud.dtype))
        if words is None:
            words = torch.zeros(batch, self.max_words, dtype=torch.int64, device=device)
            words[:, 0] = 1
        said = (self.words(words) + self.word_places) * (words > 0)[..., None]
        count = self.no_count.expand(batch, -1)
        if faces is not None:
            size = faces.clamp_min(1).float().log2()[:, None] / 16  # 65,536 faces are 1
            count = torch.where((faces > 0)[:, None], self.count_in(fourier(size, 8).to(count.dtype)), count)
        return torch.cat([cloud, said.to(cloud.dtype), count[:, None].to(cloud.dtype)], 1)
