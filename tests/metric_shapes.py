"""Small made shapes for the tests of this folder: (vertices [N, 3] float64, faces [F, 3])."""

from __future__ import annotations

import numpy as np
from scipy.spatial import ConvexHull

Shape = tuple[np.ndarray, np.ndarray]
SIDES = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]


def cube() -> Shape:
    """Of side 1 around the origin, 12 faces, counter-clockwise from outside."""
    corners = [[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]
    return np.array(corners), np.array([t for a, b, c, d in SIDES for t in ([a, b, c], [a, c, d])])


def box(*extents: float) -> Shape:
    vertices, faces = cube()
    return vertices * extents, faces


def grid(n: int, jitter: float = 0.0, stretch: float = 1.0, seed: int = 0) -> Shape:
    """A flat open sheet of n x n squares of side 1, two triangles each."""
    x, y = np.meshgrid(np.arange(n + 1.0), np.arange(n + 1.0), indexing="ij")
    vertices = np.stack([stretch * x.ravel(), y.ravel(), np.zeros(x.size)], 1)
    vertices[:, :2] += jitter * np.random.default_rng(seed).uniform(-1, 1, (len(vertices), 2))
    a = (np.arange(n)[:, None] * (n + 1) + np.arange(n)).ravel()
    b, c, d = a + n + 1, a + n + 2, a + 1
    return vertices, np.stack([a, b, c, a, c, d], 1).reshape(-1, 3)


def hull(points: np.ndarray) -> Shape:
    """The convex hull, wound outwards; the origin must be inside."""
    faces = ConvexHull(points).simplices.astype(np.int64)
    a, b, c = points[faces].transpose(1, 0, 2)
    inwards = np.einsum("ij,ij->i", np.cross(b - a, c - a), a) < 0
    faces[inwards] = faces[inwards, ::-1]
    return points, faces


def sphere(n: int, seed: int | None = None) -> Shape:
    """n points of the unit sphere: a Fibonacci spiral, or random ones; 2 n - 4 faces, closed."""
    if seed is not None:
        points = np.random.default_rng(seed).normal(size=(n, 3))
        return hull(points / np.linalg.norm(points, axis=1, keepdims=True))
    height = 1 - 2 * (np.arange(n) + 0.5) / n
    turn = np.pi * (1 + 5**0.5) * np.arange(n)
    around = np.sqrt(1 - height**2)
    return hull(np.stack([around * np.cos(turn), around * np.sin(turn), height], 1))


def soup(shape: Shape) -> Shape:
    """Every face with corners of its own."""
    vertices, faces = shape
    return vertices[faces].reshape(-1, 3), np.arange(3 * len(faces)).reshape(-1, 3)


def both(*shapes: Shape) -> Shape:
    """Several as one mesh."""
    counts = np.cumsum([0, *(len(v) for v, _ in shapes)])
    return np.concatenate([v for v, _ in shapes]), np.concatenate([f + n for (_, f), n in zip(shapes, counts)])


def turned(shape: Shape, seed: int = 0) -> Shape:
    """Rotated by a random rotation."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return shape[0] @ (q * np.sign(np.linalg.det(q))), shape[1]
