"""Boxes as tokens, and pairs of them in which the small one is preferred."""

from __future__ import annotations

import numpy as np

from rl3d.mesh_tokens.pair_files import Candidate, Pair, PairSet, Shape
from rl3d.mesh_tokens.quantise import BinMesh, clean
from rl3d.mesh_tokens.tokenizer import Tokenizer

BINS = 16


def box(size: int) -> BinMesh:
    corners = np.array([[x, y, z] for x in (0, size) for y in (0, size) for z in (0, size)])
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    return clean(corners, faces, BINS)


def pairs_of_boxes() -> PairSet:
    """Small boxes are preferred; half the faces of the large ones are bad."""
    tokenizer, rng = Tokenizer("adjacent", BINS), np.random.default_rng(0)
    shapes = {
        "a": Shape(rng.random((16, 6), np.float32), "red box", 12),
        "b": Shape(np.zeros((0, 6), np.float32), "", 12),
    }
    candidates, pairs = {}, []
    for shape in shapes:
        for name, size in (("small", 3), ("large", 9)):
            tokens = tokenizer.encode(box(size)).astype(np.int32)
            quality = np.ones(12, np.float32)
            quality[6:] = 1.0 if name == "small" else 0.2
            candidates[f"{shape}/{name}"] = Candidate(shape, tokens, quality, {"hd": float(size)})
        pairs.append(Pair(f"{shape}/small", f"{shape}/large"))
    return PairSet(shapes, candidates, tuple(pairs), {"bins": BINS})
