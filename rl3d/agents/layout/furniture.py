"""Kinds of furniture: sizes in metres, how each wants to stand, and which belong together.

Sizes: seats, tables, desks and storage from metric furniture tables; beds, nightstands, wardrobes, kitchen modules and
bathroom fittings are common catalogue sizes. None is measured from a data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rl3d.errors import InputError, way_out

Size = tuple[float, float, float]  # width across, depth from back to front, height; metres

# Where a designer would look for a place first: back to a wall, facing another piece, near one, or anywhere.
Snug = Literal["wall", "facing", "near", "any"]
# From where a person uses it: nowhere, its front, one of its long sides, both, or any side at all.
Use = Literal["none", "front", "side", "both", "any"]
# What A wants of B, see rl3d.agents.layout.objective.pair_scores.
Relation = Literal["beside", "seat", "around", "before", "across", "toward", "row", "near", "under"]

SNUGS: tuple[Snug, ...] = ("wall", "facing", "near", "any")
USES: tuple[Use, ...] = ("none", "front", "side", "both", "any")
RELATIONS: tuple[Relation, ...] = ("beside", "seat", "around", "before", "across", "toward", "row", "near", "under")


@dataclass(frozen=True)
class Kind:
    """A kind of furniture.

    Attributes:
        sizes: one is drawn for a piece. snug, use: see above. wall: its back belongs against a wall.
        flat: lies on the floor, others may stand on it (a rug). colour: of the built-in piece, sRGB.
        words: other nouns under which a folder of meshes may name it.
    """

    name: str
    sizes: tuple[Size, ...]
    snug: Snug
    use: Use
    wall: bool
    colour: tuple[float, float, float]
    flat: bool = False
    words: tuple[str, ...] = ()

    @property
    def footprint(self) -> float:
        """Square metres of its smallest size."""
        return min(w * d for w, d, _ in self.sizes)


_WOOD, _OAK, _DARK = (0.72, 0.53, 0.36), (0.80, 0.65, 0.46), (0.45, 0.33, 0.25)
_WHITE, _STEEL, _BLUE = (0.93, 0.93, 0.91), (0.72, 0.75, 0.78), (0.36, 0.50, 0.66)
_GREEN, _RED, _SAND = (0.36, 0.56, 0.36), (0.70, 0.36, 0.32), (0.82, 0.74, 0.62)

KINDS: tuple[Kind, ...] = (
    Kind("double bed", ((1.4, 2.0, 0.5), (1.6, 2.0, 0.5), (1.8, 2.0, 0.5)), "wall", "both", True, _BLUE),
    Kind("single bed", ((0.9, 2.0, 0.5),), "wall", "side", True, _BLUE),
    Kind("nightstand", ((0.45, 0.40, 0.5),), "wall", "none", True, _OAK, words=("night stand", "bedside table")),
    Kind("wardrobe", ((1.0, 0.6, 2.0), (1.5, 0.6, 2.0), (1.8, 0.6, 2.0)), "wall", "front", True, _WOOD),
    Kind(
        "cabinet",
        ((1.0, 0.5, 0.9), (1.5, 0.5, 0.9)),
        "wall",
        "front",
        True,
        _OAK,
        words=("drawer", "dresser", "sideboard"),
    ),
    Kind("dressing table", ((1.0, 0.45, 0.75),), "wall", "none", True, _OAK),
    Kind("stool", ((0.4, 0.4, 0.45),), "facing", "none", False, _SAND, words=("chair stool",)),
    Kind("desk", ((1.2, 0.75, 0.75), (1.5, 0.75, 0.75)), "wall", "none", True, _OAK),
    Kind("office chair", ((0.5, 0.5, 0.95),), "facing", "any", False, _DARK, words=("desk chair", "chair")),
    Kind("bookshelf", ((0.8, 0.3, 1.9), (1.2, 0.3, 1.9)), "wall", "front", True, _WOOD, words=("large shelf",)),
    Kind("armchair", ((0.9, 0.95, 0.9),), "near", "front", False, _RED, words=("armchair pillows", "small couch")),
    Kind("tv stand", ((1.4, 0.4, 0.5), (1.8, 0.4, 0.5)), "wall", "none", True, _DARK, words=("tv table",)),
    Kind("floor lamp", ((0.4, 0.4, 1.6),), "near", "none", False, _SAND, words=("standing lamp", "stand lamp")),
    Kind("plant", ((0.4, 0.4, 1.1),), "wall", "none", False, _GREEN, words=("house plant", "cactus")),
    Kind("rug", ((2.0, 1.4, 0.02), (2.4, 1.7, 0.02)), "any", "none", False, _SAND, flat=True, words=("carpet",)),
    Kind("sofa", ((1.5, 0.95, 0.85), (2.1, 0.95, 0.85)), "wall", "front", True, _BLUE, words=("couch", "loveseat")),
    Kind("coffee table", ((1.0, 0.5, 0.42), (0.75, 0.75, 0.42)), "near", "none", False, _WOOD, words=("low table",)),
    Kind("side table", ((0.5, 0.5, 0.5),), "near", "none", False, _WOOD, words=("small table", "end table")),
    Kind(
        "dining table",
        ((1.35, 0.75, 0.75), (1.5, 0.9, 0.75), (1.95, 0.9, 0.75)),
        "any",
        "none",
        False,
        _WOOD,
        words=("table",),
    ),
    Kind("dining chair", ((0.45, 0.45, 0.9),), "facing", "none", False, _OAK, words=("chair",)),
    Kind("counter", ((0.6, 0.6, 0.9), (1.2, 0.6, 0.9)), "wall", "front", True, _WHITE, words=("kitchen cabinet",)),
    Kind("kitchen sink", ((0.8, 0.6, 0.9),), "wall", "front", True, _STEEL),
    Kind("stove", ((0.6, 0.6, 0.9),), "wall", "front", True, _DARK, words=("kitchen oven", "oven", "cooker")),
    Kind("fridge", ((0.6, 0.65, 1.8),), "wall", "front", True, _STEEL, words=("kitchen fridge", "refrigerator")),
    Kind("toilet", ((0.4, 0.7, 0.8),), "wall", "front", True, _WHITE),
    Kind("washbasin", ((0.6, 0.45, 0.85),), "wall", "front", True, _WHITE, words=("sink", "bathroom sink")),
    Kind("bathtub", ((1.7, 0.75, 0.55),), "wall", "front", True, _WHITE),
    Kind("shower", ((0.9, 0.9, 2.0),), "wall", "front", True, _STEEL),
    Kind("washing machine", ((0.6, 0.6, 0.85),), "wall", "front", True, _WHITE),
)
NAMES = tuple(kind.name for kind in KINDS)

# (what, how, to which): a piece is judged by the best of those that are in its room; none there, nothing to judge.
PAIRS: tuple[tuple[str, Relation, tuple[str, ...]], ...] = (
    ("nightstand", "beside", ("double bed", "single bed")),
    ("office chair", "seat", ("desk",)),
    ("stool", "seat", ("dressing table",)),
    ("dining chair", "around", ("dining table",)),
    ("coffee table", "before", ("sofa",)),
    ("tv stand", "across", ("sofa", "double bed")),
    ("armchair", "toward", ("coffee table",)),
    ("side table", "beside", ("sofa", "armchair")),
    ("floor lamp", "near", ("sofa", "armchair", "desk", "double bed", "single bed")),
    ("rug", "under", ("coffee table", "dining table", "double bed")),
    ("counter", "row", ("counter", "kitchen sink", "stove")),
    ("kitchen sink", "row", ("counter",)),
    ("stove", "row", ("counter",)),
    ("fridge", "row", ("counter",)),
)


def kind_index(name: str) -> int:
    """Raises:
    InputError: an unknown name; names the one that it looks like, or all.
    """
    if name not in NAMES:
        raise InputError(f"unknown furniture {name!r}; {way_out(name, NAMES)}")
    return NAMES.index(name)
