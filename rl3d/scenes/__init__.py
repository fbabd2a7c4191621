"""What can be rendered and exported: meshes, Gaussian splats, fields, point clouds, and their files."""

from rl3d.scenes.facts import mesh_facts
from rl3d.scenes.field import Decoder, Field, query
from rl3d.scenes.gaussians import SH_C0, Gaussians
from rl3d.scenes.grids import Dense, HashGrid, Triplane
from rl3d.scenes.load import load_scene
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.point_cloud import PointCloud, sample_surface

__all__ = [
    "SH_C0",
    "Decoder",
    "Dense",
    "Field",
    "Gaussians",
    "HashGrid",
    "Mesh",
    "PointCloud",
    "Triplane",
    "load_scene",
    "mesh_facts",
    "query",
    "sample_surface",
]
