"""The shared differentiable renderer: `render(scene, cameras) -> Frames`, and the stages it is made of."""

from rl3d.render.antialias import adjacent_edges, antialias
from rl3d.render.environment_light import constant_environment, environment_factor, project_environment
from rl3d.render.fields import render_field
from rl3d.render.frames import Frames
from rl3d.render.meshes import MeshOptions, face_normals, render_mesh, vertex_normals
from rl3d.render.occupancy import OccupancyGrid, update_occupancy
from rl3d.render.rasterize import Fragments, interpolate, rasterize
from rl3d.render.render import render, render_batch
from rl3d.render.shading import SHADINGS, half_lambert, lambert, shade
from rl3d.render.textures import mip_levels, mip_pyramid, sample_texture

__all__ = [
    "SHADINGS",
    "Fragments",
    "Frames",
    "MeshOptions",
    "OccupancyGrid",
    "adjacent_edges",
    "antialias",
    "constant_environment",
    "environment_factor",
    "face_normals",
    "half_lambert",
    "interpolate",
    "lambert",
    "mip_levels",
    "mip_pyramid",
    "project_environment",
    "rasterize",
    "render",
    "render_batch",
    "render_field",
    "render_mesh",
    "sample_texture",
    "shade",
    "update_occupancy",
    "vertex_normals",
]
