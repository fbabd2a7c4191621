"""Floor, low walls, door and windows of a room as meshes; the room's middle is the origin, the floor is y = 0."""

from __future__ import annotations

from rl3d.agents.layout.pieces import block
from rl3d.agents.layout.rooms import Room
from rl3d.rewards.check_assets import joined
from rl3d.scenes.mesh import Mesh

HEIGHT, SILL, THICK = 1.0, 0.55, 0.1  # metres; walls are low enough to look in
FLOOR, BASE, WALL = (0.78, 0.70, 0.60), (0.55, 0.52, 0.50), (0.88, 0.86, 0.82)
LEAF, GLASS, FRAME = (0.55, 0.38, 0.26), (0.62, 0.80, 0.90), (0.97, 0.97, 0.97)
WET = {"kitchen": (0.80, 0.79, 0.76), "bathroom": (0.70, 0.77, 0.80)}  # tiles

Rect = tuple[float, float, float, float]  # x, z, end x, end z


def shell(room: Room, room_type: str) -> dict[str, Mesh]:
    """By name: floor, walls, door, and a window each."""
    cx, cz = 0.5 * room.width, 0.5 * room.depth

    def solid(rect: Rect, low: float, high: float, colour: tuple[float, float, float]) -> Mesh:
        x, z, x_end, z_end = rect
        return block((x - cx, x_end - cx), (low, high), (z - cz, z_end - cz), colour)

    floor = [solid(rect, -0.06, 0.0, WET.get(room_type, FLOOR)) for rect in _floor(room)]
    walls, parts = [], {}
    openings = [(room.door, "door")] + [(w, f"window {i + 1}") for i, w in enumerate(room.windows)]
    for wall in range(4):
        low, high = room.straight(wall)
        cuts = sorted((o.start, o.start + o.width, name) for o, name in openings if o.wall == wall)
        ends = (low - (THICK if low == 0 else 0), high + (THICK if high == _length(room, wall) else 0))
        at = ends[0]
        for start, end, name in cuts:
            walls.append(solid(_along(room, wall, at, start), 0, HEIGHT, WALL))
            if name == "door":
                parts[name] = _door(room, solid)
            else:
                whole = _along(room, wall, start, end)
                walls.append(solid(whole, 0, SILL, WALL))
                pane = _along(room, wall, start + 0.04, end - 0.04, 0.03)
                posts = [_along(room, wall, a, a + 0.04, 0.06) for a in (start, 0.5 * (start + end) - 0.02, end - 0.04)]
                parts[name] = joined(
                    solid(pane, SILL, HEIGHT, GLASS),
                    solid(whole, SILL, SILL + 0.04, FRAME),
                    *[solid(post, SILL, HEIGHT, FRAME) for post in posts],
                )
            at = end
        walls.append(solid(_along(room, wall, at, ends[1]), 0, HEIGHT, WALL))
    if room.notch is not None:
        walls += [solid(rect, 0, HEIGHT, WALL) for rect in _notch(room)]
    return {"floor": joined(*floor), "walls": joined(*walls), **parts}


def _length(room: Room, wall: int) -> float:
    return room.width if wall % 2 == 0 else room.depth


def _along(room: Room, wall: int, start: float, end: float, thick: float = THICK) -> Rect:
    """A stretch of an outer wall, outside the room's outline; a thinner one lies in the wall's middle."""
    inset = 0.5 * (THICK - thick)
    near, far = inset, inset + thick
    return [
        (start, room.depth + near, end, room.depth + far),
        (room.width + near, start, room.width + far, end),
        (start, -far, end, -near),
        (-far, start, -near, end),
    ][wall]


def _floor(room: Room) -> list[Rect]:
    if room.notch is None:
        return [(0, 0, room.width, room.depth)]
    w, d = room.notch
    left, top = room.corner in (0, 3), room.corner in (0, 1)
    band = (0.0, d, room.width, room.depth) if top else (0.0, 0.0, room.width, room.depth - d)
    z = (0.0, d) if top else (room.depth - d, room.depth)
    x = (w, room.width) if left else (0.0, room.width - w)
    return [band, (x[0], z[0], x[1], z[1])]


def _notch(room: Room) -> list[Rect]:
    """The two walls along a notch, inside the cut-out corner."""
    assert room.notch is not None
    w, d = room.notch
    left, top = room.corner in (0, 3), room.corner in (0, 1)
    x = (w - THICK, w) if left else (room.width - w, room.width - w + THICK)
    z = (d - THICK, d) if top else (room.depth - d, room.depth - d + THICK)
    upright = (x[0], -THICK, x[1], d) if top else (x[0], room.depth - d, x[1], room.depth + THICK)
    across = (-THICK, z[0], w, z[1]) if left else (room.width - w, z[0], room.width + THICK, z[1])
    return [upright, across]


def _door(room: Room, solid: object) -> Mesh:
    """An open leaf, at right angles to its wall at the end of the opening that is nearer a corner, and the sill."""
    assert callable(solid)
    door, length = room.door, _length(room, room.door.wall)
    hinge = door.start if door.centre < 0.5 * length else door.start + door.width
    a, b = (hinge, hinge + 0.04) if hinge == door.start else (hinge - 0.04, hinge)
    w = door.width
    leaf = [
        (a, room.depth - w, b, room.depth),
        (room.width - w, a, room.width, b),
        (a, 0.0, b, w),
        (0.0, a, w, b),
    ][door.wall]
    sill = _along(room, door.wall, door.start, door.start + w)
    return joined(solid(leaf, 0.01, HEIGHT, LEAF), solid(sill, -0.06, 0.0, BASE))
