"""Rooms: rectangles and L-shapes with a door and windows, on a grid of 10 cm.

Seen from above, x runs to the right and z down the picture; a room's bounding rectangle begins at (0, 0). Walls and
headings share numbers, those of a turn about +Y: 0 is toward +z (the picture's bottom, "south"), 1 toward +x, 2 toward
-z, 3 toward -x.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from rl3d.errors import InputError

CELL = 0.1  # metres
GRID = 64  # cells a side: rooms of up to 6.4 m
SMALLEST = 1.2  # metres
WALLS = ("south", "east", "north", "west")


@dataclass(frozen=True)
class Opening:
    """A door or window in an outer wall: `wall` as above, `start` and `width` in metres along it (from x or z = 0)."""

    wall: int
    start: float
    width: float

    @property
    def centre(self) -> float:
        return self.start + 0.5 * self.width


@dataclass(frozen=True)
class Room:
    """A room. Lengths in metres, multiples of 10 cm.

    Attributes:
        width, depth: of the bounding rectangle, along x and z.
        door: opens inward; the square before it, as deep as the door is wide, stays free.
        windows: at most three.
        notch: (width, depth) of a corner that is cut out (an L-shape), None: a rectangle. corner: of the notch,
            0 to 3: north-west, north-east, south-east, south-west.
    """

    width: float
    depth: float
    door: Opening
    windows: tuple[Opening, ...] = ()
    notch: tuple[float, float] | None = None
    corner: int = 0

    def __post_init__(self) -> None:
        for name, side in (("wide", self.width), ("deep", self.depth)):
            if not (math.isfinite(side) and SMALLEST <= side <= GRID * CELL + 1e-9):
                raise InputError(
                    f"a room must be {SMALLEST} to {GRID * CELL:g} m {name}, got {side:g}; choose another size"
                )
        if len(self.windows) > 3:
            raise InputError(f"a room has at most three windows, got {len(self.windows)}")
        if self.notch is not None and not (
            0 < self.notch[0] <= self.width - SMALLEST and 0 < self.notch[1] <= self.depth - SMALLEST
        ):
            raise InputError(
                f"a notch of {self.notch[0]:g} x {self.notch[1]:g} m leaves no {SMALLEST} m of a room of "
                f"{self.width:g} x {self.depth:g}; make it smaller"
            )
        for what, opening in [("door", self.door), *(("window", w) for w in self.windows)]:
            low, high = self.straight(opening.wall)
            if opening.width > high - low + 1e-9:
                raise InputError(
                    f"the room is smaller than its {what}: the {WALLS[opening.wall]} wall has {high - low:g} m, the "
                    f"{what} {opening.width:g}; make the room larger or the {what} narrower"
                )
            if opening.start < low - 1e-9 or opening.start + opening.width > high + 1e-9:
                raise InputError(
                    f"the {what} from {opening.start:g} to {opening.start + opening.width:g} m is not on the "
                    f"{WALLS[opening.wall]} wall, which runs from {low:g} to {high:g}"
                )
        if not 0.6 <= self.door.width <= 1.6:
            raise InputError(f"a door is 0.6 to 1.6 m wide, got {self.door.width:g}")
        if self.door.width > (self.depth if self.door.wall % 2 == 0 else self.width) + 1e-9:
            raise InputError(
                f"the room is smaller than its door: a door of {self.door.width:g} m cannot swing into it; make the "
                "room larger or the door narrower"
            )

    def straight(self, wall: int) -> tuple[float, float]:
        """(from, to) along an outer wall, without what the notch takes of it."""
        return _straight(self.width, self.depth, self.notch, self.corner, wall)

    @property
    def area(self) -> float:
        """Square metres of floor."""
        return self.width * self.depth - (self.notch[0] * self.notch[1] if self.notch else 0.0)

    def opening_centre(self, opening: Opening) -> tuple[float, float]:
        """(x, z) of an opening's middle on its wall."""
        c = opening.centre
        return [(c, self.depth), (self.width, c), (c, 0.0), (0.0, c)][opening.wall]

    def floor(self) -> np.ndarray:
        """[GRID, GRID] bool, rows are z: cells inside."""
        cells = np.zeros((GRID, GRID), dtype=bool)
        cells[: _cells(self.depth), : _cells(self.width)] = True
        if self.notch is not None:
            w, d = _cells(self.notch[0]), _cells(self.notch[1])
            rows = slice(0, d) if self.corner in (0, 1) else slice(_cells(self.depth) - d, None)
            columns = slice(0, w) if self.corner in (0, 3) else slice(_cells(self.width) - w, None)
            cells[rows, columns] = False
        return cells

    def zone(self, opening: Opening, reach: float) -> tuple[int, int, int, int]:
        """(first row, first column, end row, end column) of the rectangle before an opening, `reach` metres deep."""
        a, b, r = _cells(opening.start), _cells(opening.start + opening.width), _cells(reach)
        width, depth = _cells(self.width), _cells(self.depth)
        return [
            (max(depth - r, 0), a, depth, b),
            (a, max(width - r, 0), b, width),
            (0, a, min(r, depth), b),
            (a, 0, b, min(r, width)),
        ][opening.wall]

    def to_json(self) -> dict[str, object]:
        openings = [{"wall": WALLS[o.wall], "start": o.start, "width": o.width} for o in (self.door, *self.windows)]
        notch = None if self.notch is None else {"width": self.notch[0], "depth": self.notch[1], "corner": self.corner}
        return {
            "width": self.width,
            "depth": self.depth,
            "door": openings[0],
            "windows": openings[1:],
            "notch": notch,
        }

    @staticmethod
    def from_json(tree: dict[str, object]) -> Room:
        """The way back.

        Raises:
            InputError: a missing or unusable entry.
        """

        def opening(value: object) -> Opening:
            assert isinstance(value, dict)
            return Opening(WALLS.index(value["wall"]), float(value["start"]), float(value["width"]))

        try:
            notch = tree.get("notch")
            assert notch is None or isinstance(notch, dict)
            windows = tree.get("windows", [])
            assert isinstance(windows, list)
            return Room(
                float(tree["width"]),  # type: ignore[arg-type]
                float(tree["depth"]),  # type: ignore[arg-type]
                opening(tree["door"]),
                tuple(opening(w) for w in windows),
                None if notch is None else (float(notch["width"]), float(notch["depth"])),
                0 if notch is None else int(notch["corner"]),
            )
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise InputError(
                f"the room needs width, depth, door (wall, start, width), windows and notch; unusable: {error!r}"
            ) from error


def _cells(metres: float) -> int:
    return round(metres / CELL)


def parse_size(text: str) -> tuple[float, float]:
    """(width, depth) of "4x3.5", metres; to the nearest 10 cm.

    Raises:
        InputError: another form.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*[x×]\s*(\d+(?:\.\d+)?)\s*m?\s*", text)
    if found is None:
        raise InputError(f"a size is WIDTHxDEPTH in metres, such as 4x3.5, got {text!r}")
    return round(float(found[1]), 1), round(float(found[2]), 1)


def sample_room(
    random: np.random.Generator,
    size: tuple[float, float] | None = None,
    *,
    area: tuple[float, float] = (8.0, 24.0),
    door: float | None = None,
    l_shaped: float = 0.25,
) -> Room:
    """A room with openings in sensible places.

    Args:
        size: (width, depth) in metres; None: drawn, of an area between the two of `area`.
        door: its width; None: 0.8 or 0.9 (0.7 in rooms below 5 square metres).
        l_shaped: how likely a corner is cut out, where the room is large enough.

    Raises:
        InputError: a size that no room or no door fits.
    """
    if size is None:
        square = random.uniform(*area)
        ratio = random.uniform(1.0, 1.6)
        width = float(np.clip(round(math.sqrt(square * ratio), 1), 1.6, GRID * CELL))
        depth = float(np.clip(round(square / width, 1), 1.6, GRID * CELL))
        size = (width, depth) if random.random() < 0.5 else (depth, width)
    width, depth = size
    notch, corner = None, int(random.integers(4))
    if min(width, depth) >= 3.4 and random.random() < l_shaped:
        notch = (
            round(float(random.uniform(0.25, 0.4)) * width, 1),
            round(float(random.uniform(0.25, 0.4)) * depth, 1),
        )
    if door is None:
        door = 0.7 if width * depth < 5 else float(random.choice([0.8, 0.9]))
    walls = random.permutation(4)
    spans = {int(w): _straight(width, depth, notch, corner, int(w)) for w in walls}
    fits = [wall for wall, (low, high) in spans.items() if high - low >= door - 1e-9]
    if not fits or door > min(width, depth):
        raise InputError(
            f"the room is smaller than its door: {width:g} x {depth:g} m, and a door of {door:g} m needs as much wall "
            "and as much floor to swing; make the room larger or the door narrower"
        )
    low, high = spans[fits[0]]
    slack = max(high - low - door, 0.0)
    aside = round(min(slack, float(random.choice([0.1, 0.2, 0.4]))), 1)  # doors are near corners
    start = round(low + aside if random.random() < 0.5 else low + slack - aside, 1)
    entrance = Opening(fits[0], start, door)
    windows = []
    for wall in [w for w in spans if w != entrance.wall][: int(random.integers(1, 3))]:
        low, high = spans[wall]
        if high - low >= 1.2:
            wide = round(float(random.uniform(0.8, min(1.8, high - low - 0.3))), 1)
            middle = 0.5 * (high - low - wide)
            windows.append(Opening(wall, round(low + middle + middle * float(random.uniform(-0.5, 0.5)), 1), wide))
    return Room(width, depth, entrance, tuple(windows), notch, 0 if notch is None else corner)


def _straight(
    width: float, depth: float, notch: tuple[float, float] | None, corner: int, wall: int
) -> tuple[float, float]:
    length = width if wall % 2 == 0 else depth
    if notch is None:
        return 0.0, length
    cut = notch[0] if wall % 2 == 0 else notch[1]
    if corner == (3, 1, 0, 0)[wall]:  # the corner at the wall's beginning
        return cut, length
    return 0.0, length - cut if corner == (2, 2, 1, 3)[wall] else length
