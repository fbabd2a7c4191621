"""Simple built-in furniture of boxes and solids of revolution, for whoever has no meshes of their own.

Every piece stands on y = 0 in the middle of its footprint, looks to +Z and fills its size. Metres, colours sRGB.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from rl3d.agents.layout.furniture import KINDS, Size
from rl3d.rewards.check_assets import box, joined, turned
from rl3d.scenes.mesh import Mesh

Colour = tuple[float, float, float]
WHITE, LINEN, DARK, STEEL, GLASS = (
    (0.95, 0.95, 0.93),
    (0.90, 0.87, 0.80),
    (0.2, 0.2, 0.22),
    (0.7, 0.72, 0.75),
    (0.6, 0.75, 0.82),
)


def built_in(kind: int, size: Size) -> Mesh:
    """The piece of a kind (index into `furniture.KINDS`) in a size: width, depth, height."""
    return _MAKERS[KINDS[kind].name](*size, KINDS[kind].colour)


def _shade(colour: Colour, by: float) -> Colour:
    r, g, b = (min(1.0, c * by) for c in colour)
    return r, g, b


def block(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], colour: Colour) -> Mesh:
    """An axis-parallel box from low to high along each axis."""
    centre = [0.5 * (low + high) for low, high in (x, y, z)]
    return box(centre, [high - low for low, high in (x, y, z)], colour)


def _legs(w: float, d: float, top: float, thick: float, colour: Colour) -> list[Mesh]:
    a, b = 0.5 * (w - thick), 0.5 * (d - thick)
    return [box((x, 0.5 * top, z), (thick, top, thick), colour) for x in (-a, a) for z in (-b, b)]


def _bed(w: float, d: float, h: float, c: Colour) -> Mesh:
    frame, head = (0.62, 0.45, 0.3), 2.0 * h
    pillows = 1 if w < 1.2 else 2
    wide = w / pillows
    parts = [
        block((-w / 2, w / 2), (0.08, 0.5 * h), (-d / 2, d / 2), frame),
        block((-w / 2 + 0.03, w / 2 - 0.03), (0.5 * h, 0.9 * h), (-d / 2 + 0.06, d / 2 - 0.03), WHITE),
        block((-w / 2, w / 2), (0.55 * h, h), (-d / 2 + 0.65, d / 2), c),
        block((-w / 2, w / 2), (0.0, head), (-d / 2, -d / 2 + 0.06), frame),
    ]
    for i in range(pillows):
        middle = (i - 0.5 * (pillows - 1)) * wide
        parts.append(
            block((middle - 0.4 * wide, middle + 0.4 * wide), (0.9 * h, 1.12 * h), (-d / 2 + 0.1, -d / 2 + 0.5), LINEN)
        )
    return joined(*parts, *_legs(w, d, 0.08, 0.08, frame))


def _drawers(w: float, d: float, h: float, c: Colour, rows: int = 2, columns: int = 1) -> Mesh:
    parts = [block((-w / 2, w / 2), (0.04, h), (-d / 2, d / 2 - 0.03), c)]
    tall, wide = (h - 0.04) / rows, w / columns
    for i in range(rows):
        for j in range(columns):
            left, low = -w / 2 + j * wide, 0.04 + i * tall
            parts.append(
                block(
                    (left + 0.015, left + wide - 0.015),
                    (low + 0.015, low + tall - 0.015),
                    (d / 2 - 0.03, d / 2 - 0.01),
                    _shade(c, 1.12),
                )
            )
            parts.append(box((left + wide / 2, low + tall / 2, d / 2 - 0.005), (0.1, 0.025, 0.01), DARK))
    return joined(*parts, *_legs(w, d - 0.03, 0.04, 0.05, DARK))


def _wardrobe(w: float, d: float, h: float, c: Colour) -> Mesh:
    doors = max(2, round(w / 0.5))
    parts = [block((-w / 2, w / 2), (0, h), (-d / 2, d / 2 - 0.03), c)]
    for i in range(doors):
        left = -w / 2 + i * w / doors
        parts.append(
            block(
                (left + 0.01, left + w / doors - 0.01), (0.06, h - 0.04), (d / 2 - 0.03, d / 2 - 0.01), _shade(c, 1.12)
            )
        )
        side = left + (w / doors - 0.06 if i % 2 == 0 else 0.06)
        parts.append(box((side, 0.5 * h, d / 2 - 0.005), (0.02, 0.2, 0.01), DARK))
    return joined(*parts)


def _shelf(w: float, d: float, h: float, c: Colour) -> Mesh:
    parts = [block((-w / 2, w / 2), (0, h), (-d / 2, -d / 2 + 0.02), _shade(c, 0.8))]
    parts += [block((x, x + 0.03), (0, h), (-d / 2, d / 2), c) for x in (-w / 2, w / 2 - 0.03)]
    boards = 5
    for i in range(boards + 1):
        y = i * (h - 0.03) / boards
        parts.append(block((-w / 2, w / 2), (y, y + 0.03), (-d / 2, d / 2), c))
        if i < boards:
            x, k = -w / 2 + 0.05, i
            while x < w / 2 - 0.15 - 0.1 * (i % 3):
                tall = 0.18 + 0.03 * (k % 4)
                book = [(0.7, 0.3, 0.28), (0.3, 0.42, 0.6), (0.85, 0.7, 0.4), (0.35, 0.5, 0.38)][k % 4]
                parts.append(block((x, x + 0.05), (y + 0.03, y + 0.03 + tall), (-d / 2 + 0.03, d / 2 - 0.06), book))
                x, k = x + 0.055, k + 1
    return joined(*parts)


def _table(w: float, d: float, h: float, c: Colour) -> Mesh:
    thick = min(0.05, 0.1 * h)
    return joined(
        block((-w / 2, w / 2), (h - thick, h), (-d / 2, d / 2), c),
        *_legs(w - 0.06, d - 0.06, h - thick, 0.06, _shade(c, 0.8)),
    )


def _desk(w: float, d: float, h: float, c: Colour) -> Mesh:
    screen = [
        block((-0.28, 0.28), (h + 0.1, h + 0.42), (-d / 2 + 0.12, -d / 2 + 0.15), DARK),
        box((0, h + 0.05, -d / 2 + 0.14), (0.06, 0.1, 0.06), DARK),
    ]
    keys = block((-0.22, 0.22), (h, h + 0.02), (-0.05, 0.1), STEEL)
    return joined(
        _table(w, d, h, c),
        block((w / 2 - 0.42, w / 2 - 0.05), (0.1, h - 0.05), (-d / 2 + 0.03, d / 2 - 0.1), _shade(c, 0.9)),
        keys,
        *screen,
    )


def _dressing(w: float, d: float, h: float, c: Colour) -> Mesh:
    mirror = block((-0.3 * w, 0.3 * w), (h, h + 0.65), (-d / 2, -d / 2 + 0.03), GLASS)
    return joined(
        _table(w, d, h, c),
        block((-w / 2 + 0.03, w / 2 - 0.03), (h - 0.18, h - 0.05), (-d / 2, d / 2 - 0.02), _shade(c, 0.9)),
        mirror,
    )


def _chair(w: float, d: float, h: float, c: Colour) -> Mesh:
    seat = 0.5 * h
    back = block((-w / 2 + 0.02, w / 2 - 0.02), (seat, h), (-d / 2, -d / 2 + 0.05), c)
    return joined(
        block((-w / 2, w / 2), (seat - 0.05, seat), (-d / 2, d / 2), c),
        back,
        *_legs(w, d, seat - 0.05, 0.05, _shade(c, 0.75)),
    )


def _office_chair(w: float, d: float, h: float, c: Colour) -> Mesh:
    seat = 0.48 * h
    foot = turned([(0.45 * w, 0.0), (0.45 * w, 0.04), (0.06, 0.08)], [DARK, DARK])
    stem = turned([(0.03, 0.05), (0.03, seat - 0.06)], [STEEL])
    back = block((-0.42 * w, 0.42 * w), (seat + 0.06, h), (-d / 2, -d / 2 + 0.07), c)
    return joined(block((-w / 2, w / 2), (seat - 0.07, seat), (-d / 2 + 0.03, d / 2), c), back, foot, stem)


def _stool(w: float, d: float, h: float, c: Colour) -> Mesh:
    return joined(
        block((-w / 2, w / 2), (h - 0.07, h), (-d / 2, d / 2), c), *_legs(w, d, h - 0.07, 0.05, _shade(c, 0.7))
    )


def _seat(w: float, d: float, h: float, c: Colour) -> Mesh:
    arm, cushions = 0.14, max(1, round((w - 0.28) / 0.62))
    parts = [
        block((-w / 2, w / 2), (0.06, 0.32), (-d / 2, d / 2 - 0.02), _shade(c, 0.85)),
        block((-w / 2, w / 2), (0.1, h), (-d / 2, -d / 2 + 0.2), c),
        block((-w / 2, -w / 2 + arm), (0.1, 0.62), (-d / 2, d / 2), c),
        block((w / 2 - arm, w / 2), (0.1, 0.62), (-d / 2, d / 2), c),
    ]
    wide = (w - 2 * arm) / cushions
    for i in range(cushions):
        left = -w / 2 + arm + i * wide
        parts.append(block((left + 0.01, left + wide - 0.01), (0.32, 0.46), (-d / 2 + 0.2, d / 2), _shade(c, 1.12)))
    return joined(*parts, *_legs(w - 0.1, d - 0.1, 0.06, 0.06, DARK))


def _tv(w: float, d: float, h: float, c: Colour) -> Mesh:
    wide = min(0.85 * w, 1.3)
    screen = block((-wide / 2, wide / 2), (h + 0.06, h + 0.06 + 0.56 * wide), (-0.05, -0.01), DARK)
    picture = block(
        (-wide / 2 + 0.03, wide / 2 - 0.03), (h + 0.09, h + 0.03 + 0.56 * wide), (-0.01, 0.0), (0.25, 0.4, 0.55)
    )
    return joined(_drawers(w, d, h, c, 1, 3), screen, picture, box((0, h + 0.03, -0.03), (0.3, 0.06, 0.15), DARK))


def _lamp(w: float, d: float, h: float, c: Colour) -> Mesh:
    r = 0.5 * min(w, d)
    pole = turned([(0.7 * r, 0.0), (0.7 * r, 0.03), (0.02, 0.04), (0.02, h - 0.3)], [DARK, DARK, STEEL])
    return joined(pole, turned([(r, h - 0.35), (0.6 * r, h)], [(0.98, 0.92, 0.72)], 14))


def _plant(w: float, d: float, h: float, c: Colour) -> Mesh:
    r = 0.5 * min(w, d)
    pot = turned([(0.45 * r, 0.0), (0.65 * r, 0.28 * h)], [(0.75, 0.45, 0.32)], 12)
    leaves = [
        turned(
            [(0.25 * r, 0.28 * h), (0.95 * r, 0.5 * h), (0.8 * r, 0.7 * h), (0.0, h)],
            [_shade(c, 0.85), c, _shade(c, 1.15)],
            9,
        )
    ]
    return joined(pot, *leaves)


def _rug(w: float, d: float, h: float, c: Colour) -> Mesh:
    inner = block((-w / 2 + 0.12, w / 2 - 0.12), (h, h + 0.004), (-d / 2 + 0.12, d / 2 - 0.12), _shade(c, 0.85))
    return joined(block((-w / 2, w / 2), (0.001, h), (-d / 2, d / 2), c), inner)


def _counter(w: float, d: float, h: float, c: Colour) -> Mesh:
    top = block((-w / 2, w / 2), (h - 0.04, h), (-d / 2, d / 2), (0.45, 0.42, 0.4))
    return joined(_drawers(w, d - 0.02, h - 0.04, c, 1, max(1, round(w / 0.6))), top)


def _sink(w: float, d: float, h: float, c: Colour) -> Mesh:
    bowl = block((-0.3 * w, 0.3 * w), (h, h + 0.005), (-0.3 * d, 0.3 * d), DARK)
    tap = [
        box((0, h + 0.12, -0.38 * d), (0.03, 0.24, 0.03), STEEL),
        box((0, h + 0.23, -0.28 * d), (0.03, 0.03, 0.2 * d), STEEL),
    ]
    return joined(_counter(w, d, h, WHITE), bowl, *tap)


def _stove(w: float, d: float, h: float, c: Colour) -> Mesh:
    plates = [
        box((x * w, h + 0.005, z * d), (0.3 * w, 0.01, 0.3 * d), (0.08, 0.08, 0.08))
        for x in (-0.22, 0.22)
        for z in (-0.22, 0.22)
    ]
    door = block((-0.42 * w, 0.42 * w), (0.15, h - 0.2), (d / 2 - 0.02, d / 2), (0.12, 0.12, 0.14))
    return joined(
        block((-w / 2, w / 2), (0, h), (-d / 2, d / 2 - 0.02), STEEL),
        door,
        box((0, h - 0.14, d / 2 - 0.005), (0.7 * w, 0.03, 0.01), DARK),
        *plates,
    )


def _fridge(w: float, d: float, h: float, c: Colour) -> Mesh:
    doors = [
        block((-w / 2, w / 2), (low, high), (d / 2 - 0.05, d / 2 - 0.01), _shade(c, 1.1))
        for low, high in ((0.03, 0.35 * h), (0.36 * h, h))
    ]
    grips = [box((-0.42 * w, y * h, d / 2 - 0.005), (0.02, 0.2, 0.01), DARK) for y in (0.28, 0.45)]
    return joined(block((-w / 2, w / 2), (0, h), (-d / 2, d / 2 - 0.05), c), *doors, *grips)


def _toilet(w: float, d: float, h: float, c: Colour) -> Mesh:
    tank = block((-w / 2, w / 2), (0.38, h), (-d / 2, -d / 2 + 0.18), WHITE)
    reach = 0.5 * (d - 0.2)
    bowl = turned([(0.3 * w, 0.0), (0.35 * w, 0.2), (0.5 * w, 0.4)], [WHITE, WHITE], 12)
    lid = turned([(0.5 * w, 0.4), (0.5 * w, 0.44)], [_shade(WHITE, 0.9)], 12)
    stretch = torch.tensor([1.0, 1.0, 2 * reach / w])
    shift = torch.tensor([0.0, 0.0, d / 2 - reach])
    moved = [Mesh(m.vertices * stretch + shift, m.faces, face_colours=m.face_colours) for m in (bowl, lid)]
    return joined(tank, *moved, block((-0.3 * w, 0.3 * w), (0, 0.38), (-d / 2, -d / 2 + 0.3), WHITE))


def _basin(w: float, d: float, h: float, c: Colour) -> Mesh:
    bowl = block((-0.35 * w, 0.35 * w), (h, h + 0.004), (-0.25 * d, 0.35 * d), GLASS)
    tap = box((0, h + 0.08, -0.35 * d), (0.03, 0.16, 0.05), STEEL)
    mirror = block((-0.4 * w, 0.4 * w), (h + 0.3, h + 0.9), (-d / 2, -d / 2 + 0.02), GLASS)
    return joined(
        block((-w / 2, w / 2), (h - 0.15, h), (-d / 2, d / 2), WHITE),
        block((-0.4 * w, 0.4 * w), (0, h - 0.15), (-d / 2, 0.3 * d), (0.72, 0.6, 0.48)),
        bowl,
        tap,
        mirror,
    )


def _bathtub(w: float, d: float, h: float, c: Colour) -> Mesh:
    t = 0.07
    walls = [
        block((-w / 2, w / 2), (0, h), (-d / 2, -d / 2 + t), WHITE),
        block((-w / 2, w / 2), (0, h), (d / 2 - t, d / 2), WHITE),
        block((-w / 2, -w / 2 + t), (0, h), (-d / 2, d / 2), WHITE),
        block((w / 2 - t, w / 2), (0, h), (-d / 2, d / 2), WHITE),
    ]
    water = block((-w / 2 + t, w / 2 - t), (0.05, 0.6 * h), (-d / 2 + t, d / 2 - t), GLASS)
    return joined(*walls, water, box((-w / 2 + 0.04, h + 0.08, 0), (0.04, 0.16, 0.04), STEEL))


def _shower(w: float, d: float, h: float, c: Colour) -> Mesh:
    tray = block((-w / 2, w / 2), (0, 0.1), (-d / 2, d / 2), WHITE)
    posts = [
        box((x, h / 2, z), (0.03, h, 0.03), STEEL)
        for x in (-w / 2 + 0.02, w / 2 - 0.02)
        for z in (-d / 2 + 0.02, d / 2 - 0.02)
    ]
    rail = block((-w / 2, w / 2), (h - 0.03, h), (d / 2 - 0.03, d / 2), STEEL)
    pane = block((-w / 2, -w / 2 + 0.015), (0.1, h - 0.1), (-d / 2, d / 2), GLASS)
    head = box((0, h - 0.15, -d / 2 + 0.15), (0.2, 0.03, 0.2), STEEL)
    return joined(tray, *posts, rail, pane, head, box((0, 0.5 * h, -d / 2 + 0.02), (0.03, h - 0.2, 0.03), STEEL))


def _washer(w: float, d: float, h: float, c: Colour) -> Mesh:
    ring = turned([(0.34 * w, -0.015), (0.34 * w, 0.015)], [STEEL], 16)
    glass = turned([(0.26 * w, -0.02), (0.26 * w, 0.02)], [DARK], 16)
    upright = [
        Mesh(
            m.vertices[:, [0, 2, 1]] * torch.tensor([1.0, 1.0, -1.0]) + torch.tensor([0, 0.45 * h, d / 2 - 0.02]),
            m.faces,
            face_colours=m.face_colours,
        )
        for m in (ring, glass)
    ]
    panel = block((-0.45 * w, 0.45 * w), (h - 0.13, h - 0.04), (d / 2 - 0.02, d / 2 - 0.005), STEEL)
    return joined(block((-w / 2, w / 2), (0, h), (-d / 2, d / 2 - 0.02), WHITE), panel, *upright)


_MAKERS: dict[str, Callable[[float, float, float, Colour], Mesh]] = {
    "double bed": _bed,
    "single bed": _bed,
    "nightstand": _drawers,
    "wardrobe": _wardrobe,
    "cabinet": lambda w, d, h, c: _drawers(w, d, h, c, 3, 2),
    "dressing table": _dressing,
    "stool": _stool,
    "desk": _desk,
    "office chair": _office_chair,
    "bookshelf": _shelf,
    "armchair": _seat,
    "tv stand": _tv,
    "floor lamp": _lamp,
    "plant": _plant,
    "rug": _rug,
    "sofa": _seat,
    "coffee table": _table,
    "side table": _table,
    "dining table": _table,
    "dining chair": _chair,
    "counter": _counter,
    "kitchen sink": _sink,
    "stove": _stove,
    "fridge": _fridge,
    "toilet": _toilet,
    "washbasin": _basin,
    "bathtub": _bathtub,
    "shower": _shower,
    "washing machine": _washer,
}
