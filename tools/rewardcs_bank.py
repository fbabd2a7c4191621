"""Point clouds of preferred and dispreferred shapes, made once: what tools/train_rewardcs.py draws its batches from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from rewardcs_shapes import MAKERS, ON_GRIDS, WRONG_NOUN, Shapes, cloud, damaged, other_noun
from torch import Tensor

from rl3d.data.batches import noun_weights
from rl3d.files import atomic_path, write_json

FUSED_SHARE = 0.5  # of the shapes that are fused
PREFERRED_SHARE = 0.4  # of the bank
NOUN_SHARE = 0.2  # of the dispreferred that are whole, with another's caption
SCALE = 16_000  # of positions as int16: 2 metres at most, 0.06 millimetres apart


class Bank:
    """`count` clouds of a split's assets in the folder `path`, each a function of its number; made where missing.

    Attributes:
        places: [N, P, 3] int16 positions. normals: [N, P, 3] int8. marks: [N] what the scores should be.
        captions: [N] assets whose captions they have. kinds: [N] of damage, "" for the preferred.
    """

    def __init__(self, shapes: Shapes, path: Path, count: int, points: int, split: str, progress: bool = False) -> None:
        facts, places, normals = [], np.zeros((0, points, 3), np.int16), np.zeros((0, points, 3), np.int8)
        found = path / "facts.json"
        if found.is_file():
            facts = json.loads(found.read_text(encoding="utf-8"))
            places, normals = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("places", "normals"))
        if len(facts) < count:
            first, made = len(facts), []
            pool = shapes.split(split)
            weights = noun_weights([shapes.records[i] for i in pool])
            for number in range(first, count):
                points6, fact = make_one(shapes, pool, weights, number, points)
                made.append(points6.numpy())
                facts.append(fact)
                if progress and number % 500 == 0:
                    print(f"cloud {number} of {count}", flush=True)
            new = np.stack(made)
            places = np.concatenate([places, np.clip(np.round(new[..., :3] * SCALE), -32767, 32767).astype(np.int16)])
            normals = np.concatenate([normals, np.round(new[..., 3:] * 127).astype(np.int8)])
            path.mkdir(parents=True, exist_ok=True)
            for name, array in (("places", places), ("normals", normals)):
                with atomic_path(path / f"{name}.npy") as temporary, temporary.open("wb") as file:
                    np.save(file, array)
            write_json(found, facts)
        self.places, self.normals = places[:count], normals[:count]
        self.kinds = np.array([kind for kind, _, _ in facts[:count]])
        self.captions = np.array([caption for _, caption, _ in facts[:count]])
        self.marks = torch.tensor([mark for _, _, mark in facts[:count]])

    def clouds(self, rows: np.ndarray) -> Tensor:
        """[B, P, 6] points and normals."""
        places = torch.from_numpy(self.places[rows].astype(np.float32)) / SCALE
        return torch.cat([places, torch.from_numpy(self.normals[rows].astype(np.float32)) / 127], 2)


def make_one(
    shapes: Shapes, pool: np.ndarray, weights: np.ndarray, number: int, points: int
) -> tuple[Tensor, tuple[str, int, float]]:
    """Cloud `number` [P, 6] of a bank, its kind, the asset of its caption, and its mark."""
    rng = np.random.default_rng([11, number])
    preferred = number % 10 < 10 * PREFERRED_SHARE
    while True:
        asset = int(rng.choice(pool, p=weights))
        kind, caption, mark = "", asset, 1.0
        if not preferred:
            kind = WRONG_NOUN if rng.random() < NOUN_SHARE else str(rng.choice(list(MAKERS)))
        shape = shapes.shape(asset, kind in ON_GRIDS or rng.random() < FUSED_SHARE)
        mesh = shape.mesh
        if kind == WRONG_NOUN:
            caption, mark = other_noun(shapes, asset, pool, rng), 0.0
        elif kind:
            found = damaged(shape, kind, rng)
            if found is None:
                continue
            mesh, mark = found[0], 1 - found[1]
        return cloud(mesh, points, int(rng.integers(2**31))), (kind, caption, mark)


def varied(points: Tensor, rng: np.random.Generator) -> Tensor:
    """Clouds [B, N, 6], each mirrored left to right half of the time, turned by up to 8 degrees, sized by 0.94 to
    1.03, its points in another order."""
    out = []
    for one in points:
        flip = torch.tensor([-1.0 if rng.random() < 0.5 else 1.0, 1.0, 1.0])
        angle = math.radians(float(rng.uniform(-8, 8)))
        turn = torch.tensor(
            [[math.cos(angle), 0.0, math.sin(angle)], [0.0, 1.0, 0.0], [-math.sin(angle), 0.0, math.cos(angle)]]
        )
        place, normal = (part * flip @ turn.T for part in one[torch.from_numpy(rng.permutation(len(one)))].split(3, 1))
        out.append(torch.cat([place * float(rng.uniform(0.94, 1.03)), normal], 1))
    return torch.stack(out)
