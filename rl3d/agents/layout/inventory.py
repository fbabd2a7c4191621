"""What stands in a room of a type: published rates where there are some, otherwise our own."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from rl3d.agents.layout.furniture import KINDS, Size, kind_index
from rl3d.errors import InputError, way_out

SLOTS = 12  # pieces in a room at most
FILL = 0.42  # share of the floor that an inventory may cover: what is left is for walking

# Pieces a room, a rate each; a rate above 1 is that many, and the rest a chance. Required ones come first, marked "!":
# one of them is always there.
#
# bedroom: 3D-FRONT after the filter of ATISS, as counted in DiffuScene's data (19,372 objects in 3,889 rooms, 4.98 a
# room): nightstand 1.36, double bed .85, wardrobe .80, TV stand .15, dressing table .10, single bed .10, cabinet .10,
# desk .08, stool .055, bookshelf .035, armchair .02. A room without a bed is not in that set, so the single bed is
# there where the double one is not. Ceiling lamps are left out: they take no floor. Lamps, plants and rugs are ours.
# living room, dining room: the classes are those of 3D-FRONT's 24, the rates our own.
# kitchen, office, bathroom: not in that data; our own.
RATES: dict[str, tuple[tuple[str, float], ...]] = {
    "bedroom": (
        ("double bed!", 0.89),
        ("nightstand", 1.36),
        ("wardrobe", 0.80),
        ("tv stand", 0.15),
        ("dressing table", 0.10),
        ("cabinet", 0.10),
        ("desk", 0.15),
        ("bookshelf", 0.08),
        ("armchair", 0.05),
        ("floor lamp", 0.15),
        ("plant", 0.25),
        ("rug", 0.30),
    ),
    "living room": (
        ("sofa!", 1.0),
        ("coffee table", 0.9),
        ("tv stand", 0.9),
        ("armchair", 0.8),
        ("side table", 0.4),
        ("bookshelf", 0.6),
        ("cabinet", 0.5),
        ("floor lamp", 0.6),
        ("plant", 0.7),
        ("rug", 0.5),
    ),
    "dining room": (
        ("dining table!", 1.0),
        ("dining chair", 4.4),
        ("cabinet", 0.9),
        ("bookshelf", 0.2),
        ("plant", 0.7),
        ("rug", 0.2),
    ),
    "kitchen": (
        ("kitchen sink!", 1.0),
        ("stove!", 1.0),
        ("fridge!", 1.0),
        ("counter", 2.4),
        ("dining table", 0.4),
        ("cabinet", 0.2),
        ("plant", 0.2),
    ),
    "office": (
        ("desk!", 1.2),
        ("bookshelf", 1.2),
        ("cabinet", 0.7),
        ("armchair", 0.5),
        ("floor lamp", 0.5),
        ("plant", 0.6),
        ("rug", 0.2),
    ),
    "bathroom": (
        ("toilet!", 1.0),
        ("washbasin!", 1.0),
        ("bathtub", 0.5),
        ("shower", 0.6),
        ("washing machine", 0.4),
        ("plant", 0.1),
    ),
}
# Pieces that come with another one.
COMPANY = {"desk": ("office chair", 1), "dressing table": ("stool", 1), "dining table": ("dining chair", 2)}
ROOM_TYPES = tuple(RATES)
AREAS = {  # square metres, from and to
    "bedroom": (8.0, 22.0),
    "living room": (12.0, 32.0),
    "dining room": (9.0, 24.0),
    "kitchen": (7.0, 18.0),
    "office": (6.0, 18.0),
    "bathroom": (4.0, 11.0),
}


class Piece(NamedTuple):
    """A piece of furniture to place: index into `furniture.KINDS`, metres, and whether a room without it has failed."""

    kind: int
    size: Size
    required: bool


def room_type(name: str) -> str:
    """The known type, with spaces for "_" and "-".

    Raises:
        InputError: an unknown one, with the known ones.
    """
    plain = re.sub(r"[_\-\s]+", " ", name.strip().lower())
    if plain not in RATES:
        known = ", ".join(RATES)
        close = way_out(plain, RATES)
        raise InputError(f"unknown room type {name!r}; {close if 'mean' not in close else f'{close} known: {known}'}")
    return plain


def sample_inventory(room: str, area: float, random: np.random.Generator) -> list[Piece]:
    """Pieces for a room of `area` square metres: required ones first, then others while there is floor for them."""
    room = room_type(room)
    pieces: list[Piece] = []
    wishes: list[tuple[str, bool]] = []
    for entry, rate in RATES[room]:
        name, required = entry.rstrip("!"), entry.endswith("!")
        count = int(rate) + int(random.random() < rate % 1)
        if name == "double bed" and (count == 0 or area < 7):
            name, count = "single bed", 1
        for i in range(max(count, int(required))):
            wishes.append((name, required and i == 0))
    covered = 0.0
    order = [w for w in wishes if w[1]] + [wishes[i] for i in random.permutation(len(wishes)) if not wishes[i][1]]
    for name, required in order:
        group = [(name, required)]
        if name in COMPANY and not (room == "dining room" and name == "dining table"):
            other, count = COMPANY[name]
            group += [(other, required)] * count
        drawn = [_drawn(n, r, area, random) for n, r in group]
        more = sum(size[0] * size[1] for kind, size, _ in drawn if not KINDS[kind].flat)
        flats = any(KINDS[kind].flat for kind, _, _ in drawn)
        if not required and (covered + more > FILL * area or len(pieces) + len(drawn) > SLOTS or (flats and area < 8)):
            continue
        covered += more
        pieces += drawn
    return pieces


def _drawn(name: str, required: bool, area: float, random: np.random.Generator) -> Piece:
    kind = kind_index(name)
    sizes = KINDS[kind].sizes
    fitting = [s for s in sizes if s[0] * s[1] <= 0.25 * area] or [min(sizes)]
    return Piece(kind, fitting[int(random.integers(len(fitting)))], required)


def parse_inventory(text: str) -> list[Piece]:
    """ "double bed, nightstand x2, wardrobe": every piece is required, in its smallest size.

    Raises:
        InputError: an unknown piece, a count that is none, more pieces than a room takes, or no piece at all.
    """
    pieces: list[Piece] = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"(.*?)(?:\s*[x×*]\s*(\d+))?", entry.lower())
        assert found is not None
        kind, count = kind_index(found[1].strip()), int(found[2] or 1)
        if not 1 <= count <= SLOTS:
            raise InputError(f"{entry!r}: a room takes 1 to {SLOTS} pieces")
        pieces += [Piece(kind, min(KINDS[kind].sizes), True)] * count
    if not 1 <= len(pieces) <= SLOTS:
        raise InputError(f"a room takes 1 to {SLOTS} pieces, got {len(pieces)}")
    return pieces
