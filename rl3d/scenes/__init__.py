"""What can be rendered and exported: meshes, Gaussian splats, fields, point clouds, and their files."""

from rl3d.scenes.capture import Capture, load_transforms, save_transforms
from rl3d.scenes.colmap import load_colmap, save_colmap
from rl3d.scenes.dual_marching_cubes import flexicubes
from rl3d.scenes.facts import mesh_facts
from rl3d.scenes.field import Decoder, Field, query
from rl3d.scenes.gaussians import SH_C0, Gaussians
from rl3d.scenes.grids import Dense, HashGrid, Triplane
from rl3d.scenes.isosurface import extract_mesh, marching_cubes, marching_tetrahedra
from rl3d.scenes.load import load_scene
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.point_cloud import PointCloud, sample_surface

__all__ = [
    "SH_C0",
    "Capture",
    "Decoder",
    "Dense",
    "Field",
    "Gaussians",
    "HashGrid",
    "Mesh",
    "PointCloud",
    "Triplane",
    "extract_mesh",
    "flexicubes",
    "load_colmap",
    "load_scene",
    "load_transforms",
    "marching_cubes",
    "marching_tetrahedra",
    "mesh_facts",
    "query",
    "sample_surface",
    "save_colmap",
    "save_transforms",
]
