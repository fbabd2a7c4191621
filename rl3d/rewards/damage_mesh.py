"""Ways in which the shape of an asset goes wrong: what a reward on meshes must notice, made on purpose.

Every function takes a mesh in the canonical frame (around the origin, +Y up, front to +Z, radius about 0.6 metres) and
gives a new one; face colours follow their faces, other colours are not kept where faces are cut. Randomness comes from
the given CPU generator. Nothing here is meant to be differentiated.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rl3d.errors import InputError
from rl3d.rewards.check_assets import box, joined
from rl3d.scenes.mesh import Mesh


def clipped(mesh: Mesh, direction: Tensor) -> Mesh:
    """The part of a mesh on that side of a plane through the origin that `direction` [3] points to; open at the cut."""
    corners = mesh.triangles
    height = corners @ direction.to(corners)  # [F, 3]
    above = height > 0
    parts, owners = [corners[above.all(1)]], [above.all(1).nonzero()[:, 0]]
    for count in (1, 2):
        chosen = (above.sum(1) == count).nonzero()[:, 0]
        # The corner that is alone on its side comes first; turning keeps the winding.
        alone = (above[chosen] if count == 1 else ~above[chosen]).int().argmax(1)
        order = (alone[:, None] + torch.arange(3, device=alone.device)) % 3
        a, b, c = corners[chosen].gather(1, order[..., None].expand(-1, -1, 3)).unbind(1)
        h = height[chosen].gather(1, order)
        ab, ac = (a + (h[:, :1] / (h[:, :1] - h[:, k : k + 1])) * (other - a) for k, other in ((1, b), (2, c)))
        pieces = [(a, ab, ac)] if count == 1 else [(ab, b, c), (ab, c, ac)]
        parts += [torch.stack(piece, 1) for piece in pieces]
        owners += [chosen] * len(pieces)
    return _loose(torch.cat(parts), mesh, torch.cat(owners))


def two_faced(mesh: Mesh) -> Mesh:
    """The front half (z > 0) again as the back, mirrored: the Janus of a mesh."""
    front = clipped(mesh, torch.tensor([0.0, 0.0, 1.0]))
    mirror = front.vertices.new_tensor([1.0, 1.0, -1.0])
    return joined(front, replace(front, vertices=front.vertices * mirror, faces=front.faces.flip(1)))


def four_faced(mesh: Mesh) -> Mesh:
    """The quarter around the front (|x| < z) at all four sides."""
    quarter = clipped(clipped(mesh, torch.tensor([1.0, 0.0, 1.0])), torch.tensor([-1.0, 0.0, 1.0]))
    x, y, z = quarter.vertices.unbind(1)
    turns = [(x, z), (z, -x), (-x, -z), (-z, x)]
    return joined(*(replace(quarter, vertices=torch.stack([a, y, b], 1)) for a, b in turns))


def floaters(
    mesh: Mesh,
    generator: torch.Generator,
    count: int = 6,
    size: tuple[float, float] = (0.06, 0.12),
    distance: tuple[float, float] = (0.62, 0.62),
) -> Mesh:
    """Boxes around the object, their sides in the range `size` and distances from the origin in `distance`, in metres;
    in random colours where the mesh has face colours."""
    place = normalize(torch.randn(count, 3, generator=generator), dim=1)
    if distance[0] < distance[1]:
        place = place * (distance[0] + (distance[1] - distance[0]) * torch.rand(count, 1, generator=generator))
    else:
        place = place * distance[0]
    side = size[0] + (size[1] - size[0]) * torch.rand(count, generator=generator)
    paint = torch.rand(count, 3, generator=generator).tolist()
    boxes = [box(p, (s, s, s), (c[0], c[1], c[2])) for p, s, c in zip(place.tolist(), side.tolist(), paint)]
    return joined(mesh, *boxes)


def divided(mesh: Mesh) -> Mesh:
    """Every face in four, the pieces without shared vertices."""
    a, b, c = mesh.triangles.unbind(1)
    ab, bc, ca = 0.5 * (a + b), 0.5 * (b + c), 0.5 * (c + a)
    pieces = torch.stack([a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], 1).reshape(-1, 3, 3)
    return _loose(pieces, mesh, torch.arange(len(mesh.faces), device=mesh.device).repeat_interleave(4))


def holes(mesh: Mesh, generator: torch.Generator, share: float = 0.25) -> Mesh:
    """Every face in four, and a share of the pieces gone."""
    pieces = divided(mesh)
    return _only(pieces, torch.rand(len(pieces.faces), generator=generator) > share)


def punctured(mesh: Mesh, generator: torch.Generator, count: int, radius: float) -> Mesh:
    """Holes of `radius` metres around `count` random places of the surface."""
    fine = _fine(mesh, 0.7 * radius)
    middle = fine.triangles.mean(1)
    weights = fine.face_areas.clamp_min(1e-12)
    centres = middle[torch.multinomial(weights, min(count, len(weights)), generator=generator)]
    return _only(fine, (torch.cdist(middle, centres) > radius).all(1))


def rough(
    mesh: Mesh, generator: torch.Generator, sigma: float = 0.025, wavelength: float = 0.12, waves: int = 24
) -> Mesh:
    """The surface moved by a smooth random field: `sigma` metres a direction (root mean square), bumps of about
    `wavelength` metres."""
    fine = _fine(mesh, 0.35 * wavelength)
    ways = normalize(torch.randn(waves, 3, generator=generator), dim=1) * (2 * math.pi / wavelength)
    phase = 2 * math.pi * torch.rand(waves, generator=generator)
    amplitude = torch.randn(waves, 3, generator=generator) * (sigma * math.sqrt(2 / waves))
    return replace(fine, vertices=fine.vertices + (fine.vertices @ ways.T + phase).sin() @ amplitude)


def leaning(mesh: Mesh, slope: float = 1.0) -> Mesh:
    """Sheared sideways: x grows by `slope` times the height over the lowest vertex."""
    x, y, z = mesh.vertices.unbind(1)
    return replace(mesh, vertices=torch.stack([x + slope * (y - y.min()), y, z], 1))


def stretched(mesh: Mesh, factors: tuple[float, float, float]) -> Mesh:
    """Scaled around the origin along x, y and z."""
    return replace(mesh, vertices=mesh.vertices * mesh.vertices.new_tensor(factors))


def _loose(corners: Tensor, like: Mesh, owners: Tensor) -> Mesh:
    """Triangles [F, 3, 3] as a mesh without shared vertices; `owners` [F] are the faces of `like` that they come from.

    Raises:
        InputError: nothing is left.
    """
    if len(corners) == 0:
        raise InputError("nothing is left of the mesh")
    colours = None if like.face_colours is None else like.face_colours[owners]
    faces = torch.arange(3 * len(corners), device=corners.device).reshape(-1, 3)
    return Mesh(corners.reshape(-1, 3), faces, face_colours=colours)


def _only(mesh: Mesh, kept: Tensor) -> Mesh:
    return _loose(mesh.triangles[kept], mesh, kept.nonzero()[:, 0])


def _fine(mesh: Mesh, edge: float, most: int = 40_000) -> Mesh:
    """Faces in four until the longest edges are at most `edge` metres, or there would be more than `most` faces.

    Only faces that need it are cut, so that cracks may open beside them when vertices move.
    """
    while 4 * len(mesh.faces) <= most:
        corners = mesh.triangles
        long = (corners - corners.roll(1, 1)).norm(dim=2).amax(1) > edge
        if not bool(long.any()):
            break
        whole, parts = mesh.triangles[~long], divided(_only(mesh, long))
        owners = torch.cat([(~long).nonzero()[:, 0], long.nonzero()[:, 0].repeat_interleave(4)])
        mesh = _loose(torch.cat([whole, parts.triangles]), mesh, owners)
    return mesh
