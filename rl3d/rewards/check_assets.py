"""Eight low-poly props made by code, with captions: what `rl3d rewards check` looks at. No data set is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rl3d.scenes.mesh import Mesh

Colour = tuple[float, float, float]
BROWN, DARK_BROWN, GREEN = (0.47, 0.29, 0.18), (0.33, 0.22, 0.15), (0.24, 0.60, 0.28)
GREY, DARK_GREY, WHITE, BLACK = (0.62, 0.63, 0.65), (0.35, 0.36, 0.38), (0.93, 0.92, 0.88), (0.08, 0.08, 0.09)
RED, BLUE, YELLOW = (0.78, 0.17, 0.16), (0.20, 0.35, 0.78), (0.92, 0.80, 0.24)


@dataclass(frozen=True)
class CheckAsset:
    """A prop and what it is called.

    Attributes:
        noun, colour: words of the caption. sided: its four sides look different, so that four copies of one are wrong.
    """

    noun: str
    colour: str
    sided: bool
    mesh: Mesh

    @property
    def caption(self) -> str:
        return f"{self.colour} {self.noun}"


def check_assets() -> list[CheckAsset]:
    """The props, each in a box around the origin whose longest side is 1; the front looks to +Z."""
    return [
        CheckAsset("table", "brown", True, _table()),
        CheckAsset("chair", "red", True, _chair()),
        CheckAsset("tree", "green", False, _tree()),
        CheckAsset("barrel", "brown", False, _barrel()),
        CheckAsset("house", "white", True, _house()),
        CheckAsset("sword", "grey", True, _sword()),
        CheckAsset("mushroom", "red", False, _mushroom()),
        CheckAsset("car", "blue", True, _car()),
    ]


def box(centre: Sequence[float], size: Sequence[float], colour: Colour) -> Mesh:
    """An axis-parallel box; metres."""
    corners = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))])
    vertices = corners * torch.tensor(size) + torch.tensor(centre)
    return Mesh(vertices, faces, face_colours=torch.tensor(colour).expand(12, 3).clone())


def turned(profile: Sequence[tuple[float, float]], colours: Sequence[Colour], sides: int = 10) -> Mesh:
    """A solid of revolution around y: `profile` (radius, height) from below upwards, closed by flat ends.

    Args:
        colours: one for every step of the profile.
    """
    angle = torch.arange(sides) * (2 * math.pi / sides)
    rings = [torch.stack([r * angle.cos(), torch.full((sides,), h), -r * angle.sin()], 1) for r, h in profile]
    ends = torch.tensor([[0, profile[0][1], 0], [0, profile[-1][1], 0]], dtype=torch.float32)
    vertices = torch.cat([*rings, ends])
    bottom, top = len(profile) * sides, len(profile) * sides + 1
    faces, painted = [], []
    for i in range(sides):
        j = (i + 1) % sides
        for k, colour in enumerate(colours):
            a, b, c, d = k * sides + i, k * sides + j, (k + 1) * sides + j, (k + 1) * sides + i
            faces += [(a, b, c), (a, c, d)]
            painted += [colour, colour]
        last = (len(profile) - 1) * sides
        faces += [(bottom, j, i), (top, last + i, last + j)]
        painted += [colours[0], colours[-1]]
    return Mesh(vertices, torch.tensor(faces), face_colours=torch.tensor(painted))


def joined(*parts: Mesh) -> Mesh:
    """Meshes as one mesh, with face colours where all have them; the parts stay separate surfaces."""
    offsets = [sum(len(p.vertices) for p in parts[:i]) for i in range(len(parts))]
    colours = [p.face_colours for p in parts if p.face_colours is not None]
    return Mesh(
        torch.cat([p.vertices for p in parts]),
        torch.cat([p.faces + offset for p, offset in zip(parts, offsets)]),
        face_colours=torch.cat(colours) if len(colours) == len(parts) else None,
    )


def _sized(mesh: Mesh) -> Mesh:
    low, high = mesh.bounds
    return Mesh((mesh.vertices - 0.5 * (low + high)) / (high - low).max(), mesh.faces, face_colours=mesh.face_colours)


def _table() -> Mesh:
    legs = [box((x, 0.3, z), (0.08, 0.6, 0.08), DARK_BROWN) for x in (-0.42, 0.42) for z in (-0.22, 0.22)]
    return _sized(joined(box((0, 0.63, 0), (1.0, 0.08, 0.6), BROWN), *legs))


def _chair() -> Mesh:
    legs = [box((x, 0.2, z), (0.07, 0.4, 0.07), DARK_BROWN) for x in (-0.2, 0.2) for z in (-0.2, 0.2)]
    back = box((0, 0.75, -0.21), (0.48, 0.6, 0.06), RED)
    return _sized(joined(box((0, 0.43, 0), (0.5, 0.08, 0.5), RED), back, *legs))


def _tree() -> Mesh:
    crown = [turned([(0.36 - 0.1 * k, 0.3 + 0.25 * k), (0.0, 0.7 + 0.25 * k)], [GREEN], 8) for k in range(3)]
    return _sized(joined(turned([(0.08, 0.0), (0.08, 0.35)], [BROWN], 8), *crown))


def _barrel() -> Mesh:
    heights = [(0.30, 0.0), (0.35, 0.18), (0.37, 0.26), (0.39, 0.45), (0.37, 0.64), (0.35, 0.72), (0.30, 0.9)]
    return _sized(turned(heights, [BROWN, DARK_GREY, BROWN, BROWN, DARK_GREY, BROWN], 12))


def _house() -> Mesh:
    roof = torch.tensor(
        [[-0.5, 0.5, 0.42], [0.5, 0.5, 0.42], [0.5, 0.5, -0.42], [-0.5, 0.5, -0.42], [-0.5, 0.85, 0], [0.5, 0.85, 0]]
    )
    faces = torch.tensor([(0, 1, 5), (0, 5, 4), (2, 3, 4), (2, 4, 5), (1, 2, 5), (3, 0, 4), (0, 3, 2), (0, 2, 1)])
    top = Mesh(roof, faces, face_colours=torch.tensor(RED).expand(8, 3).clone())
    walls = box((0, 0.25, 0), (0.9, 0.5, 0.75), WHITE)
    door = box((0, 0.16, 0.375), (0.2, 0.32, 0.04), BROWN)
    windows = [box((x, 0.3, 0.375), (0.16, 0.16, 0.03), BLUE) for x in (-0.28, 0.28)]
    chimney = box((0.25, 0.8, -0.15), (0.12, 0.25, 0.12), DARK_GREY)
    return _sized(joined(top, walls, door, *windows, chimney))


def _sword() -> Mesh:
    tip = turned([(0.064, 0.95), (0.0, 1.1)], [GREY], 4)
    tip = Mesh(tip.vertices * torch.tensor([1.0, 1.0, 0.35]), tip.faces, face_colours=tip.face_colours)
    return _sized(
        joined(
            box((0, 0.6, 0), (0.13, 0.72, 0.045), GREY),
            tip,
            box((0, 0.22, 0), (0.38, 0.06, 0.09), YELLOW),
            box((0, 0.1, 0), (0.07, 0.2, 0.07), BROWN),
            box((0, 0.0, 0), (0.1, 0.07, 0.1), YELLOW),
        )
    )


def _mushroom() -> Mesh:
    stem = turned([(0.16, 0.0), (0.12, 0.25), (0.12, 0.5)], [WHITE, WHITE], 10)
    cap = turned([(0.45, 0.42), (0.40, 0.58), (0.25, 0.74), (0.08, 0.82)], [RED, RED, RED], 10)
    dots = [box((0.33 * math.sin(a), 0.64, 0.33 * math.cos(a)), (0.1, 0.1, 0.1), WHITE) for a in (0.4, 2.2, 4.3)]
    return _sized(joined(stem, cap, *dots))


def _car() -> Mesh:
    wheel = turned([(0.14, -0.05), (0.14, 0.05)], [BLACK], 10)
    upright = wheel.vertices[:, [1, 0, 2]] * torch.tensor([1.0, 1.0, -1.0])  # the axle along x
    wheels = [
        Mesh(upright + torch.tensor([x, 0.14, z]), wheel.faces, face_colours=wheel.face_colours)
        for x in (-0.24, 0.24)
        for z in (-0.3, 0.3)
    ]
    lights = [box((x, 0.3, 0.5), (0.1, 0.08, 0.03), YELLOW) for x in (-0.16, 0.16)]
    cabin = box((0, 0.5, -0.06), (0.42, 0.2, 0.5), WHITE)
    return _sized(joined(box((0, 0.28, 0), (0.48, 0.26, 1.0), BLUE), cabin, *wheels, *lights))
