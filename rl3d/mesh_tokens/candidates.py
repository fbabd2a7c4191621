"""Candidates of shapes, with the scores that decide who is preferred: sample, decode, measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rl3d.data.asset_set import AssetSet
from rl3d.data.batches import word_ids
from rl3d.errors import InputError
from rl3d.mesh_tokens.batches import PLAIN, drawn_cloud
from rl3d.mesh_tokens.condition import Condition
from rl3d.mesh_tokens.model import MeshLM, MeshLMConfig
from rl3d.mesh_tokens.pair_files import Candidate, Pair, PairSet, Shape
from rl3d.mesh_tokens.pairs import PairRule, dominance
from rl3d.mesh_tokens.quantise import to_bins
from rl3d.mesh_tokens.sampling import SampleOptions, Samples, sample
from rl3d.metrics import Gates, MeshScore, Reference, face_quality, reference, score_mesh, surface, worst_score
from rl3d.randomness import seed_for
from rl3d.scenes.mesh import Mesh

# The distance is one of the metrics, so that a far candidate loses by it and need not fail.
LEARNT_FROM = Gates(most_hausdorff=1.0)


def condition_of(shapes: Sequence[Shape], config: MeshLMConfig) -> Condition:
    """What shapes are asked by; a shape without points is asked by its words and its number of faces alone.

    Raises:
        InputError: clouds of different sizes.
    """
    counts = {len(s.points) for s in shapes} - {0}
    if len(counts) > 1:
        raise InputError(f"the clouds of one set must have one number of points, got {sorted(counts)}; thin them")
    clouds = torch.zeros(len(shapes), max(counts, default=0), 6)
    for row, shape in zip(clouds, shapes):
        row[: len(shape.points)] = torch.from_numpy(shape.points)
    words = word_ids([s.caption for s in shapes], {w: i for i, w in enumerate(config.words)}, config.max_words)
    faces = torch.tensor([s.faces for s in shapes])
    if not counts:
        return Condition(words=words, faces=faces)
    there = torch.tensor([len(s.points) > 0 for s in shapes])
    return Condition(clouds[..., :3].contiguous(), clouds[..., 3:].contiguous(), there, words, faces)


def picked(assets: AssetSet, split: str, count: int, config: MeshLMConfig, seed: int, max_faces: int = 0) -> list[int]:
    """Up to `count` meshes of a split, at random among those of at most `max_faces`; 0: the most of the model.

    Raises:
        InputError: there is none.
    """
    most, faces = max_faces or config.max_faces or 10**9, np.diff(assets.face_starts)
    fit = [i for i, r in enumerate(assets.records) if r.split == split and faces[i] <= most]
    if not fit:
        raise InputError(f"no mesh of the split {split!r} has at most {most} faces; give other meshes")
    found: list[int] = np.random.default_rng(seed).permutation(fit)[:count].tolist()
    return found


def asked(
    assets: AssetSet, chosen: Sequence[int], config: MeshLMConfig, seed: int
) -> tuple[dict[str, Shape], dict[str, Mesh]]:
    """Shapes out of an asset set, asked by points, caption and their own number of faces, and the meshes themselves.

    Returns:
        shapes and references by name, both in the tokenizer's box.

    Raises:
        InputError: a mesh that has no tokens.
    """
    shapes, references = {}, {}
    for i in chosen:
        vertices, corners, _ = assets.mesh(i)
        bins, frame = to_bins(vertices, corners, config.bins)
        mesh = Mesh(torch.from_numpy(frame.to_unit(vertices)).float(), torch.from_numpy(corners.copy()))
        points, normals = drawn_cloud(mesh, config.cloud_points, PLAIN, np.random.default_rng([seed, i]))
        record = assets.records[i]
        name = f"{i:05d} {record.caption}"
        shapes[name] = Shape(torch.cat([points, normals], 1).numpy(), record.caption, len(bins.faces))
        references[name] = mesh
    return shapes, references


def scores_of(found: MeshScore) -> dict[str, float]:
    """By the names of `pairs.METRICS`; a mesh that failed a gate has the worst of each."""
    scores = {"ber": found.ber, "ts": found.ts}
    if found.geometry is not None and found.hausdorff is not None:
        scores |= {"hd": found.hausdorff, "cd": found.geometry.chamfer_l1 if found.passed else 1.0}
    return scores


def measured(
    model: MeshLM, tokens: Tensor, failure: str, name: str, target: Reference | None, faces: int, gates: Gates
) -> Candidate:
    """One sequence as a candidate of the shape `name`: decoded and scored; undecodable is a score, the worst."""
    written = tokens.numpy().astype(np.int32)
    decoded = model.config.tokenizer.decode(written)
    why = failure or decoded.failure
    if why:
        worst = scores_of(worst_score(why, target is not None))
        return Candidate(name, written, np.zeros(0, np.float32), worst)
    mesh = decoded.mesh()
    seen = surface(mesh.vertices.double().numpy(), mesh.faces.numpy())
    found = score_mesh(seen, target, faces=faces, gates=gates)
    return Candidate(name, written, face_quality(seen).astype(np.float32), scores_of(found))


def draw_group(
    model: MeshLM,
    name: str,
    shape: Shape,
    target: Reference | None,
    count: int,
    options: SampleOptions,
    seed: int,
    gates: Gates = LEARNT_FROM,
) -> tuple[Samples, list[Candidate]]:
    """`count` samples of one shape, and each as a candidate."""
    drawn = sample(model, condition_of([shape], model.config), count, options, seed)
    rows = zip(drawn.tokens, drawn.lengths.tolist(), drawn.failures)
    return drawn, [measured(model, t[:length], why, name, target, shape.faces, gates) for t, length, why in rows]


def draw_candidates(
    model: MeshLM,
    shapes: Mapping[str, Shape],
    references: Mapping[str, Mesh],
    count: int,
    options: SampleOptions,
    seed: int,
    *,
    gates: Gates = LEARNT_FROM,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Candidate]:
    """`count` candidates of every shape, by name "SHAPE/NUMBER". Which ones depends on the seed and the shape's place.

    Args:
        references: by shape, in the box of the shape's points; those without one get no distances.

    Raises:
        InputError: a reference without an area.
    """
    found: dict[str, Candidate] = {}
    for place, (name, shape) in enumerate(shapes.items()):
        target = reference(references[name]) if name in references else None
        _, group = draw_group(model, name, shape, target, count, options, seed_for(seed, place), gates)
        found |= {f"{name}/{row}": one for row, one in enumerate(group)}
        progress(place + 1, len(shapes))
    return found


def paired(shapes: Mapping[str, Shape], candidates: Mapping[str, Candidate], rule: PairRule) -> tuple[Pair, ...]:
    """The pairs of every shape by `rule`. Failed candidates have no faces to learn from and are left out."""
    pairs = []
    for name, shape in shapes.items():
        own = [n for n, c in candidates.items() if c.shape == name and not c.failed]
        scores, faces = [candidates[n].scores for n in own], [len(candidates[n].quality) for n in own]
        pairs += [Pair(own[w], own[l]) for w, l in dominance(scores, faces, shape.faces, rule)]
    return tuple(pairs)


def pair_set(
    shapes: Mapping[str, Shape], candidates: Mapping[str, Candidate], rule: PairRule, facts: Mapping[str, object]
) -> PairSet:
    """Shapes, candidates and the pairs among them, ready to be written."""
    return PairSet(shapes, candidates, paired(shapes, candidates, rule), facts)
