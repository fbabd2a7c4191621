"""How well a set of generated shapes covers a set of references, from a matrix of distances between them.

COV and MMD: Achlioptas et al. 2018 (1707.02392); 1-NNA: Yang et al. 2019 (1906.12320, PointFlow).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl3d.errors import InputError
from rl3d.metrics.surfaces import Array


@dataclass(frozen=True)
class SetScores:
    """cov: share of the references that are the nearest one of some generated shape, [0, 1], higher is better.

    mmd: mean over references of the distance to the nearest generated shape; lower is better.
    one_nna: how often the nearest other shape is of the same set, [0, 1]; 0.5 is ideal, 1 tells the sets apart.
    """

    cov: float
    mmd: float
    one_nna: float


def coverage(across: NDArray) -> float:
    """COV of distances [G, R] between G generated shapes and R references."""
    across = _checked(across, "across")
    return len(np.unique(across.argmin(1))) / across.shape[1]


def minimum_matching_distance(across: NDArray) -> float:
    """MMD of distances [G, R]."""
    return float(_checked(across, "across").min(0).mean())


def one_nearest_neighbour_accuracy(generated: NDArray, across: NDArray, references: NDArray) -> float:
    """1-NNA of distances [G, G], [G, R] and [R, R]; the diagonals do not count. Ties go to the other set.

    Raises:
        InputError: shapes that do not fit, or NaN.
    """
    across = _checked(across, "across")
    (g, r), within = across.shape, (_checked(generated, "generated"), _checked(references, "references"))
    if within[0].shape != (g, g) or within[1].shape != (r, r):
        raise InputError(
            f"distances across are [{g}, {r}], so those within must be [{g}, {g}] and [{r}, {r}], got "
            f"{list(within[0].shape)} and {list(within[1].shape)}"
        )
    own = [np.where(np.eye(len(d), dtype=bool), np.inf, d).min(1) for d in within]
    same = np.concatenate([own[0] < across.min(1), own[1] < across.min(0)])
    return float(same.mean())


def set_scores(generated: NDArray, across: NDArray, references: NDArray) -> SetScores:
    """All three. A failed shape takes part with the worst distance to everything, it is not left out."""
    return SetScores(
        coverage(across),
        minimum_matching_distance(across),
        one_nearest_neighbour_accuracy(generated, across, references),
    )


def distance_matrix(rows: Sequence, columns: Sequence, distance: Callable[..., float]) -> Array:
    """[len(rows), len(columns)] of `distance(row, column)`."""
    return np.array([[distance(a, b) for b in columns] for a in rows], np.float64).reshape(len(rows), len(columns))


def _checked(matrix: NDArray, name: str) -> Array:
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"the distances {name} must be a matrix with rows and columns, got {list(matrix.shape)}")
    if np.isnan(matrix).any():
        raise InputError(f"the distances {name} hold NaN; give a failed shape the worst distance instead")
    return matrix
