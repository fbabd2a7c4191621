"""RewardCS-mini: a learned reward on the mesh, trained without pairs (DreamCS, Zou et al. 2025, arXiv 2506.09814).

The paper's RewardCS is a MeshMAE encoder (256 patches of 64 faces), a frozen text encoder and cross-attention to a
scalar, trained on preferred and dispreferred meshes that need not show the same thing:

    L = L_MSE + lambda L_div,    L_div = -D_CS(preferred || dispreferred)

D_CS of the two sets of embeddings is symmetric and unbounded: it pushes the sets apart and does not say which is the
better one. L_MSE, of the score with a mark for every mesh, gives the direction and holds the embeddings.

What differs here, and why:

- Patches of sampled surface points with normals, not of faces: an iso-surface has other faces every step, and a reward
  on faces would need the paper's remeshing and could learn who made the mesh.
- Geometry alone: no colours are looked at, and the words of colours are not in its vocabulary.
- The prompt is a bag of words that is one token among the patches, trained with the rest: no text encoder of this size
  exists to be frozen.
- Embeddings are on the unit sphere, so that D_CS is bounded: 4 / h^2 at most with bandwidth h.
- Marks are not a language model's but known from how a mesh was made, see tools/train_rewardcs.py: 1 for real assets,
  1 minus the damage for damaged ones.

    r(y, M) = 1/2 + LIMIT tanh((w h(y, M) + b) / LIMIT)

with h what the embedding is a linear map of.

Real training assets score about 1, ruined ones about 0. Asked are positions in metres in the canonical frame (around
the origin, +Y up, front to +Z, radius about 0.6): size and place count.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl3d.assets import model_folder
from rl3d.data.captions import MAX_WORDS
from rl3d.errors import InputError
from rl3d.model_files import read_model, readable, write_model
from rl3d.rewards.divergence import cauchy_schwarz_divergence
from rl3d.rewards.judges import Block, known_words
from rl3d.rewards.protocol import RewardInput, check_scores
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.point_cloud import farthest

LIMIT = 1.5  # scores lie in 1/2 +- LIMIT
PATCH_SCALE = 0.15  # metres; offsets within a patch are divided by it
WAVES = (math.pi, 2 * math.pi, 4 * math.pi)  # radians a metre, of a patch centre's coordinates
BANDWIDTH = 1.0  # of D_CS on the unit sphere, whose diameter is 2


@dataclass(frozen=True)
class RewardCSConfig:
    """Sizes of the network: words with the two special tokens; surface points, patches and points a patch; width, heads
    and number of the blocks; width of the embedding."""

    vocabulary: int
    points: int = 1024
    patches: int = 32
    neighbours: int = 24
    width: int = 96
    heads: int = 4
    blocks: int = 3
    embedding: int = 64


def choose_surface(mesh: Mesh, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Faces [count] and barycentric weights [count, 3] of points spread over a surface by area; no gradients.

    Every face gets its share of the points to within one of them; the same mesh and seed give the same choice.
    """
    generator = torch.Generator().manual_seed(seed)
    shift, random = torch.rand((), generator=generator), torch.rand(count, 2, generator=generator)
    ends = mesh.face_areas.detach().double().cumsum(0)
    places = (torch.arange(count) + shift).to(ends) / count * ends[-1]
    faces = torch.searchsorted(ends, places).clamp_max(len(ends) - 1)
    root, along = random.to(mesh.vertices).unbind(1)
    root = root.sqrt()
    return faces, torch.stack([1 - root, root * (1 - along), root * along], 1)


def surface_at(mesh: Mesh, faces: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Points and unit normals [N, 3] at barycentric weights [N, 3] of faces [N]; differentiable to the vertices."""
    corners = mesh.vertices[mesh.faces[faces]]
    a, b, c = corners.unbind(1)
    normals = F.normalize(torch.linalg.cross(b - a, c - a), dim=1, eps=1e-20)
    return (weights[..., None] * corners).sum(1), normals


def sample_surface(mesh: Mesh, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` points and unit normals [count, 3] of a surface, differentiable to the vertices; which faces are taken is
    not. See `choose_surface`; the mesh must have an area."""
    return surface_at(mesh, *choose_surface(mesh, count, seed))


def has_area(mesh: Mesh) -> bool:
    """Whether there is any surface to look at.

    Raises:
        InputError: vertices that are NaN or infinite.
    """
    if not bool(torch.isfinite(mesh.vertices).all()):
        raise InputError("a mesh has vertices that are NaN or infinite; has the scene diverged?")
    return len(mesh.faces) > 0 and bool(mesh.face_areas.detach().sum() > 1e-12)


class RewardCSModel(nn.Module):
    """The network: points with normals and words to an embedding on the unit sphere and a score."""

    def __init__(self, config: RewardCSConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.point = nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 64))
        self.patch = nn.Sequential(nn.GELU(), nn.Linear(2 * 64, width))
        self.place = nn.Linear(3 + 6 * len(WAVES), width)
        self.words = nn.Embedding(config.vocabulary, width, padding_idx=0)
        nn.init.normal_(self.words.weight, std=0.1)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width)
        self.whole = nn.Linear(9, width)
        self.pool = nn.Sequential(nn.Linear(3 * width, width), nn.GELU())
        self.out, self.score = nn.Linear(width, config.embedding), nn.Linear(width, 1)

    def forward(self, points: Tensor, normals: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, E] of unit length and scores [B]; differentiable to points and normals.

        Args:
            points: [B, N, 3] metres. normals: [B, N, 3] unit vectors. words: [B, L] ids, 0: padding.
        """
        keep = (words != 0).to(points.dtype)[..., None]
        text = (self.words(words) * keep).sum(1) / keep.sum(1).clamp_min(1).sqrt()
        text = text + self.whole(torch.cat([points.mean(1), points.amin(1), points.amax(1)], 1))
        x = torch.cat([text[:, None], self.patches(points, normals)], 1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        x = self.pool(torch.cat([x[:, 0], x[:, 1:].mean(1), x[:, 1:].amax(1)], 1))
        return F.normalize(self.out(x), dim=1), 0.5 + LIMIT * torch.tanh(self.score(x)[:, 0] / LIMIT)

    def patches(self, points: Tensor, normals: Tensor) -> Tensor:
        """[B, P, C] tokens: what lies around P points that are far from each other, and where they are."""
        rows = torch.arange(len(points), device=points.device)[:, None]
        index = 2 * farthest(points[:, ::2].detach(), self.config.patches)  # half of them will do, in half the time
        centres = points[rows, index]  # [B, P, 3]
        near = torch.cdist(centres.detach(), points.detach()).topk(self.config.neighbours, largest=False).indices
        around, facing = points[rows[..., None], near], normals[rows[..., None], near]  # [B, P, K, 3]
        offset = (around - centres[:, :, None]) / PATCH_SCALE
        own = normals[rows, index][:, :, None].expand_as(facing)
        # What no layer of this size finds by itself: distance, height over the tangent plane, turn of the normal.
        products = [(a * b).sum(-1, keepdim=True) for a, b in ((offset, offset), (offset, own), (facing, own))]
        x = self.point(torch.cat([offset, facing, own, *products], -1))
        waves = torch.cat([f(w * centres) for w in WAVES for f in (torch.sin, torch.cos)], -1)
        return self.patch(torch.cat([x.amax(2), x.mean(2)], -1)) + self.place(torch.cat([centres, waves], -1))


def rewardcs_loss(
    embedding: Tensor, score: Tensor, marks: Tensor, preferred: Tensor, weight: float
) -> dict[str, Tensor]:
    """ "loss" = L_MSE - weight D_CS(preferred || dispreferred), with its parts "mse" and "divergence".

    Args:
        embedding: [B, E] unit vectors. score: [B]. marks: [B] what the scores should be. preferred: [B] bool; neither
        all nor none.
    """
    mse = F.mse_loss(score.float(), marks.float())
    divergence = cauchy_schwarz_divergence(embedding[preferred].float(), embedding[~preferred].float(), BANDWIDTH)
    return {"loss": mse - weight * divergence, "mse": mse, "divergence": divergence}


@dataclass(frozen=True)
class RewardCS:
    """RewardCS-mini as a Reward: it looks at meshes and prompts and not at images; differentiable to the vertices.

    A mesh without an area scores the lowest possible, with a gradient of zero.

    Attributes:
        model: frozen. words: word -> id. seed: of the points on the surface, so that the reward is a fixed function.
    """

    model: RewardCSModel
    words: dict[str, int]
    seed: int = 0
    name: str = "rewardcs-mini"
    needs: tuple[str, ...] = ("mesh",)
    views: int | None = None
    differentiable: bool = True
    range: tuple[float, float] = (0.5 - LIMIT, 0.5 + LIMIT)
    licence: str = "Apache-2.0"

    @property
    def device(self) -> torch.device:
        return self.model.words.weight.device

    def __call__(self, x: RewardInput) -> Tensor:
        """Scores [B].

        Raises:
            InputError: no meshes, vertices that are not finite, or a prompt of which no word is known.
        """
        if x.mesh is None:
            raise InputError(f"reward {self.name!r} looks at mesh, which are not known here")
        return check_scores(self.score(x.mesh, x.prompts).to(x.images), x, self.name, True, self.range)

    def score(self, meshes: list[Mesh], prompts: list[str]) -> Tensor:
        """Scores [B] of meshes and their prompts, in the precision of the network's weights."""
        ids, like = self.word_ids(prompts).to(self.device), self.model.words.weight
        scores = []
        for mesh, row in zip(meshes, ids):
            if not has_area(mesh):
                scores.append(self.range[0] + 0 * mesh.vertices.sum().to(like))
                continue
            points, normals = (part.to(like) for part in sample_surface(mesh, self.model.config.points, self.seed))
            scores.append(self.model(points[None], normals[None], row[None])[1][0])
        return torch.stack(scores)

    def word_ids(self, prompts: list[str]) -> Tensor:
        """[B, MAX_WORDS] int64.

        Raises:
            InputError: a prompt has no word that it knows; words of colours do not count.
        """
        return known_words(prompts, self.words, MAX_WORDS, f"reward {self.name!r}")


def save_rewardcs(reward: RewardCS, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write `model.safetensors`, `config.json` and `vocabulary.json` into a folder, each atomically."""
    write_model(Path(folder), reward.model, asdict(reward.model.config), reward.words, dtype)


def load_rewardcs(device: torch.device | str = "cpu", folder: str | Path | None = None) -> RewardCS:
    """The reward from a folder of `save_rewardcs`; None takes the embedded one.

    Raises:
        AssetError: it is not embedded, or files are missing, truncated or of something else.
    """
    folder = Path(folder) if folder is not None else model_folder("rewardcs")
    with readable(f"the rewardcs in {folder}"):
        raw, words, tensors = read_model(folder)
        config = RewardCSConfig(**raw)
        if config.vocabulary != len(words):
            raise ValueError(f"{len(words)} words do not fit it")
        model = RewardCSModel(config)
        model.load_state_dict(tensors)
    return RewardCS(model.to(device).eval().requires_grad_(False), words)
