"""The shared differentiable renderer: `render(scene, cameras) -> Frames`, and the stages it is made of."""

from rl3d.render.fields import render_field
from rl3d.render.frames import Frames
from rl3d.render.meshes import (
    Fragments,
    face_normals,
    interpolate,
    rasterize,
    render_mesh,
    sample_texture,
    vertex_normals,
)
from rl3d.render.occupancy import OccupancyGrid, update_occupancy
from rl3d.render.render import render
from rl3d.render.shading import SHADINGS, half_lambert, lambert, shade

__all__ = [
    "SHADINGS",
    "Fragments",
    "Frames",
    "OccupancyGrid",
    "face_normals",
    "half_lambert",
    "interpolate",
    "lambert",
    "rasterize",
    "render",
    "render_field",
    "render_mesh",
    "sample_texture",
    "shade",
    "update_occupancy",
    "vertex_normals",
]
