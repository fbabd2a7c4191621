"""Low-poly meshes from words, points or a dense mesh: ask, sample some, keep the best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from rl3d.data.batches import word_ids
from rl3d.data.captions import ARTICLES, FILLERS, split_words
from rl3d.errors import ConfigError, InputError, RL3DError, nearest
from rl3d.mesh_tokens.batches import thinned
from rl3d.mesh_tokens.condition import Condition
from rl3d.mesh_tokens.model import MeshLM
from rl3d.mesh_tokens.quantise import Frame, frame_of
from rl3d.mesh_tokens.sampling import SampleOptions, Samples, sample
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.point_cloud import PointCloud, sample_surface

FEWEST_POINTS = 32  # under which a cloud says little of a shape
COMPARED = 4096  # points on a sample that are compared with the cloud
ROWS = 16  # samples in a batch


@dataclass(frozen=True)
class GenerateOptions:
    """What is asked for.

    Attributes:
        faces: how many triangles, about; None leaves it to the model.
        best_of: samples, of which one is kept. seed: of all of them.
        sampling: its `max_faces` is raised to what `faces` needs.
    """

    faces: int | None = None
    best_of: int = 8
    seed: int = 0
    sampling: SampleOptions = field(default_factory=SampleOptions)

    def __post_init__(self) -> None:
        if self.faces is not None and self.faces < 4:
            raise ConfigError(f"a closed mesh has at least 4 faces, {self.faces} were asked for; ask for 4 or more")
        if not 1 <= self.best_of <= 1024:
            raise ConfigError(f"best_of must lie in 1 ... 1024, got {self.best_of}")


@dataclass(frozen=True)
class Candidate:
    """One sample.

    Attributes:
        mesh: as written, merged and without collapsed and duplicate faces; in the world of what was asked with.
        failure: "" for a sequence that ended. distance: CD from the cloud, in its longest side; None without a cloud.
        log_prob: mean over its tokens, on the grammar's support.
    """

    mesh: Mesh
    failure: str
    distance: float | None
    log_prob: float

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Less is better: ended, then near the cloud, then likely."""
        return bool(self.failure), math.inf if self.distance is None else self.distance, -self.log_prob


@dataclass(frozen=True)
class Generated:
    """The best of some candidates, all of them in the order of drawing, and the words that the model does not know."""

    best: Candidate
    candidates: list[Candidate]
    unknown: list[str]


def generate_mesh(
    model: MeshLM,
    source: str | PointCloud | Mesh,
    options: GenerateOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Generated:
    """Sample meshes for a prompt, for points, or for the surface of a mesh of any density (retopology).

    With points or a mesh the nearest sample (CD) is kept, and lies where they lie; for a prompt the likeliest one, in
    the unit box around the origin.

    Args:
        progress: called with the samples drawn and their number.

    Raises:
        InputError: no known word, too few points, NaN, a shape without size or area, more faces than the model knows.
        RL3DError: no sample ended.
    """
    options = options or GenerateOptions()
    most = model.config.max_faces
    if options.faces is not None and most and options.faces > most:
        raise InputError(
            f"{options.faces} faces were asked for, the model was trained on meshes of up to {most}; ask for fewer, or "
            "give a model that was trained on more"
        )
    unknown: list[str] = []
    frame: Frame | None = None
    cloud: PointCloud | None = None
    if isinstance(source, str):
        words, unknown = _known(model, source)
        condition = Condition(words=words)
    else:
        cloud, frame = unit_cloud(source, model.config.cloud_points, options.seed)
        assert cloud.normals is not None
        condition = Condition(cloud.points[None], cloud.normals[None])
    if options.faces is not None:
        condition = replace(condition, faces=torch.tensor([options.faces]))
    limit = max(options.sampling.max_faces, 2 * (options.faces or 0))
    sampling = replace(options.sampling, max_faces=limit)
    candidates: list[Candidate] = []
    for start in range(0, options.best_of, ROWS):
        count = min(ROWS, options.best_of - start)
        made = sample(model, condition, count, sampling, options.seed, first_row=start)
        candidates += _candidates(model, made, cloud, frame)
        if progress is not None:
            progress(len(candidates), options.best_of)
    best = min(candidates, key=lambda c: c.rank)
    if best.failure:
        raise RL3DError(
            f"none of {len(candidates)} samples became a mesh ({best.failure}); try another seed, or a larger best_of"
        )
    return Generated(best, candidates, unknown)


def unit_cloud(source: PointCloud | Mesh, count: int, seed: int) -> tuple[PointCloud, Frame]:
    """The `count` points that a model reads, float32 in the unit box, with normals (0 where unknown), and their frame.

    Raises:
        InputError: see `generate_mesh`.
    """
    rng = np.random.default_rng(seed)
    if isinstance(source, Mesh):
        if len(source.faces) == 0:
            raise InputError(f"the mesh has no faces ({len(source.vertices)} vertices); give one with a surface")
        vertices = source.vertices.detach().cpu()
        frame = frame_of(vertices[source.faces.cpu().unique()].numpy())
        unit = Mesh(torch.from_numpy(frame.to_unit(vertices.numpy())), source.faces.cpu())
        if not float(unit.face_areas.sum()) > 1e-9:  # square longest sides
            raise InputError(
                f"the mesh has no surface, all its {len(source.faces)} faces are degenerate; export it again"
            )
        drawn = sample_surface(unit, count, torch.Generator().manual_seed(seed))
        assert drawn.normals is not None
        return PointCloud(drawn.points.float(), drawn.normals.float()), frame
    if len(source) < FEWEST_POINTS:
        raise InputError(f"{len(source)} points say too little of a shape; give at least {FEWEST_POINTS}")
    frame = frame_of(source.points.cpu().numpy())
    points = torch.from_numpy(frame.to_unit(source.points.cpu().numpy())).float()
    normals = torch.zeros_like(points) if source.normals is None else source.normals.cpu().float()
    if not bool(normals.isfinite().all()):
        raise InputError("some normals of the points are NaN or infinite; drop the normals, or export them again")
    return thinned(PointCloud(points, torch.nn.functional.normalize(normals, dim=1)), count, rng), frame


def _known(model: MeshLM, prompt: str) -> tuple[Tensor, list[str]]:
    """Word ids [1, max_words] of a prompt, and its words that the model does not know."""
    index = {word: i for i, word in enumerate(model.config.words)}
    said = split_words(prompt)
    if not any(word in index and word not in (*ARTICLES, *FILLERS) for word in said):
        close = [near for word in said for near in nearest(word, model.config.words[2:], 1)]
        hint = f"nearest known: {', '.join(close)}" if close else "it knows low-poly props, e.g. 'wooden barrel'"
        raise InputError(f"the mesh model knows no word of {prompt!r}; {hint}")
    return word_ids([prompt], index, model.config.max_words), [word for word in said if word not in index]


def _candidates(model: MeshLM, made: Samples, cloud: PointCloud | None, frame: Frame | None) -> list[Candidate]:
    out = []
    for sequence, failure, log_probs in zip(made.sequences(), made.failures, made.log_probs):
        bins = model.config.tokenizer.decode(sequence).clean()
        distance = None if cloud is None else _distance(bins.mesh(), cloud)
        if not failure and len(bins.faces) == 0:
            failure = "all its faces collapse"
        log_prob = float(log_probs.sum()) / max(1, len(sequence) - 1)
        out.append(Candidate(bins.mesh(frame), failure, distance, log_prob))
    return out


def _distance(mesh: Mesh, cloud: PointCloud) -> float:
    """The mean of both mean distances between `COMPARED` points on the surface and the cloud's."""
    from scipy.spatial import cKDTree

    if len(mesh.faces) == 0 or not float(mesh.face_areas.sum()) > 0:
        return math.inf
    ours = sample_surface(mesh, COMPARED, torch.Generator().manual_seed(0)).points.numpy()
    theirs = cloud.points.numpy()
    return float(0.5 * (cKDTree(theirs).query(ours)[0].mean() + cKDTree(ours).query(theirs)[0].mean()))
