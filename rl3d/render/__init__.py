"""The shared differentiable renderer: `render(scene, cameras) -> Frames`, and the stages it is made of."""

from rl3d.render.antialias import adjacent_edges, antialias
from rl3d.render.frames import Frames
from rl3d.render.meshes import face_normals, render_mesh, sample_texture, vertex_normals
from rl3d.render.rasterize import Fragments, interpolate, rasterize
from rl3d.render.render import render
from rl3d.render.shading import SHADINGS, half_lambert, lambert, shade

__all__ = [
    "SHADINGS",
    "Fragments",
    "Frames",
    "adjacent_edges",
    "antialias",
    "face_normals",
    "half_lambert",
    "interpolate",
    "lambert",
    "rasterize",
    "render",
    "render_mesh",
    "sample_texture",
    "shade",
    "vertex_normals",
]
