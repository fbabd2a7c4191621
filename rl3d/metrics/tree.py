"""A tree of boxes over triangles: the nearest triangle of a point, and triangles that cross each other. Exact.

The triangles are sorted along a space-filling curve (Morton); halves of that order, quarters and so on get a box each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl3d.metrics import tree_cpu
from rl3d.metrics.surfaces import Array, Flags, Indices

LEAF = 4  # triangles in a lowest box, about


@dataclass(frozen=True)
class Tree:
    """A complete binary tree of 2 L - 1 boxes; box n has the children 2 n + 1 and 2 n + 2, the last L are leaves.

    Attributes:
        triangles: [T, 3, 3] corners, sorted. order: [T] where each was before.
        boxes: [2 L - 1, 2, 3] lowest and highest corner. first: [L + 1], leaf i begins there.
    """

    triangles: Array
    order: Indices
    boxes: Array
    first: Indices


def build(triangles: Array) -> Tree:
    """The tree of triangles [T, 3, 3], at least one."""
    low, high = triangles.min(1), triangles.max(1)
    centre = 0.5 * (low + high)
    start = centre.min(0)
    extent = float((centre.max(0) - start).max())
    cell = ((centre - start) * ((2**21 - 1) / extent if extent > 0 else 0.0)).astype(np.uint64)
    order = np.argsort(_spread(cell[:, 0]) | _spread(cell[:, 1]) << np.uint64(1) | _spread(cell[:, 2]) << np.uint64(2))
    leaves = 1 << max((len(triangles) // LEAF).bit_length() - 1, 0)
    first = np.arange(leaves + 1) * len(triangles) // leaves
    boxes = np.empty((2 * leaves - 1, 2, 3))
    boxes[leaves - 1 :, 0] = np.minimum.reduceat(low[order], first[:-1])
    boxes[leaves - 1 :, 1] = np.maximum.reduceat(high[order], first[:-1])
    while leaves > 1:
        below = boxes[leaves - 1 : 2 * leaves - 1].reshape(-1, 2, 2, 3)
        leaves //= 2
        boxes[leaves - 1 : 2 * leaves - 1, 0] = below[:, :, 0].min(1)
        boxes[leaves - 1 : 2 * leaves - 1, 1] = below[:, :, 1].max(1)
    return Tree(np.ascontiguousarray(triangles[order]), order, boxes, first)


def nearest(tree: Tree, points: Array) -> tuple[Array, Indices]:
    """([P] distance, [P] index of the nearest triangle) of points [P, 3]; of equally near ones any."""
    square, at = tree_cpu.nearest(np.ascontiguousarray(points), tree.triangles, tree.boxes, tree.first)
    return np.sqrt(square), tree.order[at]


def crossing(tree: Tree, corners: Indices, depth: float) -> Flags:
    """[T] whether a triangle goes through another with which it shares no vertex, deeper than `depth`.

    Contact is no crossing, but triangles in one plane that overlap by more than `depth` are.

    Args:
        corners: [T, 3] vertex numbers, in the order in which the triangles came.
    """
    flags = np.zeros(len(tree.order), bool)
    flags[tree.order] = tree_cpu.crossing(tree.triangles, corners[tree.order], tree.boxes, tree.first, depth)
    return flags


def _spread(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The lowest 21 bits, two zeros between each and the next."""
    x = bits
    for shift, mask in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        x = (x | x << np.uint64(shift)) & np.uint64(mask)
    return x
