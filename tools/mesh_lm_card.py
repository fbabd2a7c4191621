"""What the mesh language model is worth: meshes sampled for held-out shapes, and its model card from them."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from rl3d.mesh_tokens.batches import PLAIN, MeshBatches, TokenBatch
from rl3d.mesh_tokens.condition import Condition
from rl3d.mesh_tokens.model import MeshLM
from rl3d.mesh_tokens.quantise import frame_of
from rl3d.mesh_tokens.sampling import SampleOptions, sample
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.point_cloud import sample_surface

POINTS = 4096  # on each surface, seed 0
ROWS = 16  # sampled together
ASKED_BY = ("points, words, faces", "points, faces", "words, faces")


def distances(made: Mesh, reference: Mesh) -> tuple[float, float]:
    """(CD, HD) between 4,096 points on each: CD is the mean of both means of distances, HD the larger maximum.

    In the reference's frame, whose longest side is 1; nothing is fitted to the made mesh. Infinite without a surface.
    """
    clouds = []
    for mesh in (made, reference):
        if len(mesh.faces) == 0 or not float(mesh.face_areas.sum()) > 0:
            return math.inf, math.inf
        clouds.append(sample_surface(mesh, POINTS, torch.Generator().manual_seed(0)).points.double().numpy())
    there, back = (cKDTree(b).query(a)[0] for a, b in (clouds, clouds[::-1]))
    return float(0.5 * (there.mean() + back.mean())), float(max(there.max(), back.max()))


def asked(batch: TokenBatch, by: str) -> Condition:
    """The parts of a batch's condition that `by` names."""
    parts = by.split(", ")
    condition = batch.condition
    if "points" not in parts:
        condition = replace(condition, points=None, normals=None, has_points=None)
    return replace(condition, words=condition.words if "words" in parts else None)


def summary(rows: list[dict[str, float]], failures: list[str]) -> dict[str, Any]:
    """Medians over all samples, a failure counted as infinitely far (None: over half of them are); means over the rest.

    "faces" is the median of written over asked-for faces.
    """
    out: dict[str, Any] = {"samples": len(rows), "failures": sum(1 for f in failures if f)}
    for key in ("cd", "hd"):
        values = np.array([math.inf if f else row[key] for row, f in zip(rows, failures)])
        fine = values[np.isfinite(values)]
        middle = float(np.median(values))
        out[f"{key}_median"] = round(middle, 5) if math.isfinite(middle) else None
        out[f"{key}_mean"] = round(float(fine.mean()), 5) if len(fine) else None
    ratios = [row["faces"] / row["asked"] for row, f in zip(rows, failures) if not f]
    out["faces"] = round(float(np.median(ratios)), 3) if ratios else None
    return out


def evaluate(model: MeshLM, source: MeshBatches, options: SampleOptions, each: int = 1) -> dict[str, Any]:
    """Samples for every mesh of `source`, `each` times, by each of `ASKED_BY`; also tokens a second, all rows together.

    "bins" is what rounding alone costs: the reference at its bins against itself.
    """
    rng, tokenizer = np.random.default_rng(21), source.tokenizer
    rows: dict[str, list[dict[str, float]]] = {by: [] for by in ("bins", *ASKED_BY)}
    failures: dict[str, list[str]] = {by: [] for by in rows}
    tokens = seconds = 0.0
    chosen = np.tile(source.keep, each)
    for start in range(0, len(chosen), ROWS):
        batch = source.make(chosen[start : start + ROWS], PLAIN, rng)
        references = [_reference(source, i) for i in batch.assets.tolist()]
        for by in ASKED_BY:
            began = time.perf_counter()
            made = sample(model, asked(batch, by), len(references), options, seed=0, first_row=start)
            seconds += time.perf_counter() - began
            tokens += int((made.lengths - 1).sum())
            failures[by] += made.failures
            for sequence, reference, count in zip(made.sequences(), references, batch.faces.tolist()):
                rows[by].append(_row(tokenizer.decode(sequence).mesh(), reference, count))
        for sequence, reference, count in zip(batch.tokens, references, batch.faces.tolist()):
            said = tokenizer.decode(sequence.numpy())
            rows["bins"].append(_row(said.mesh(), reference, count))
            failures["bins"].append(said.failure)
    found = {by: summary(rows[by], failures[by]) for by in rows}
    return {"assets": len(source), "by": found, "tokens_per_second": round(tokens / seconds, 1)}


def _reference(source: MeshBatches, asset: int) -> Mesh:
    vertices, faces, _ = source.assets.mesh(asset)
    points = frame_of(vertices[np.unique(faces)], source.tokenizer.bins).to_unit(vertices)
    return Mesh(torch.from_numpy(points.astype(np.float32)), torch.from_numpy(faces.copy()))


def _row(made: Mesh, reference: Mesh, count: int) -> dict[str, float]:
    cd, hd = distances(made, reference)
    return {"cd": cd, "hd": hd, "faces": float(len(made.faces)), "asked": float(count)}


def parameters(model: torch.nn.Module) -> float:
    """Millions of parameters; tied ones once."""
    sizes: dict[int, Tensor] = {id(p): p for p in model.parameters()}
    return sum(p.numel() for p in sizes.values()) / 1e6


def model_card(row: dict[str, Any], model: MeshLM, command: str) -> str:
    """Markdown of the card; `row` is what train_mesh_lm.py writes as evaluation.json."""
    config, training, options = model.config, row["training"], row["options"]
    lines = []
    for split in ("val", "train"):
        for by, found in row[split]["by"].items():
            cells = [found[k] for k in ("cd_median", "cd_mean", "hd_median", "hd_mean", "faces")]
            shown = " | ".join("-" if c is None else f"{c:.3f}" for c in cells)
            lines.append(f"| {split} | {by} | {found['samples']} | {found['failures']} | {shown} |")
    return f"""# Mesh language model

Writes low-poly triangle meshes face by face, for points on a surface (with normals), for words, for a number of faces,
or any of them together. Licence: Apache-2.0; the data is CC0-1.0.

    model = rl3d.mesh_tokens.load_mesh_lm()

A causal transformer of {config.num_hidden_layers} layers, width {config.hidden_size}, {parameters(model):.1f} million
parameters; the condition is a prefix of {model.model.prefix.length} tokens inside its backbone. Tokens: {config.kind},
{config.bins} bins an axis, {config.vocab_size} in all. A `PreTrainedModel` of transformers, saved in bfloat16.

## Training

{training["step"]:,} steps, {training["meshes"]:,} meshes, {training["tokens"]:,} tokens,
{training["seconds"] / 60:.0f} minutes, on the meshes of up to {config.max_faces} faces of the low-poly set by Kay
Lousberg and Quaternius.

    {command}

Mean -log p of a token on {row["val"]["assets"]} held-out meshes: {row["val_loss"]["loss"]:.3f}, which is
{row["val_loss"]["bits_per_face"]:.2f} bits a face; without the points {row["val_loss"]["loss_without_points"]:.3f}.

## Samples

Temperature {options["temperature"]}, top-p {options["top_p"]}, under the grammar. CD: mean of both mean distances
between 4,096 points on each surface, HD: the larger maximum; the longest side of the reference is 1. Medians count
failures (no end within {options["max_faces"]} faces) as infinitely far, means leave them out. "faces": written over
asked for, median. "bins": what rounding alone costs.

| split | asked by | samples | failures | CD median | CD mean | HD median | HD mean | faces |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}

## Limits

It knows low-poly props of up to {config.max_faces} faces. Nothing keeps its meshes closed: holes, faces that cross and
strips that break off happen; the metrics of rl3d count them. Colours are not written.
"""
