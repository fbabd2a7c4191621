"""Faces that go through other faces of the same mesh."""

from __future__ import annotations

import numpy as np

from rl3d.metrics.surfaces import WELD, Flags, Surface, as_surface
from rl3d.metrics.tree import build, crossing
from rl3d.scenes.mesh import Mesh


def self_intersecting(mesh: Mesh | Surface) -> Flags:
    """[F] whether a face meets another one with which it shares no vertex, deeper than 1e-6 of the box's diagonal.

    Contact (a leg that stands on a floor) is none; two faces in one plane that overlap are. Faces that do not count or
    are degenerate are left out. Parts that an artist pushed into each other intersect too.
    """
    surface = as_surface(mesh)
    flags = np.zeros(len(surface.faces), bool)
    faces = surface.kept[~surface.degenerate[surface.kept]]
    if len(faces) > 1:
        corners = surface.faces[faces]
        triangles = surface.vertices[corners]
        depth = WELD * float(np.linalg.norm(np.ptp(triangles.reshape(-1, 3), axis=0)))
        flags[faces] = crossing(build(triangles), corners, depth)
    return flags
