"""What can be rendered and exported: meshes, Gaussian splats, point clouds, and their files."""

from rl3d.scenes.capture import Capture, load_transforms, save_transforms
from rl3d.scenes.colmap import load_colmap, save_colmap
from rl3d.scenes.facts import mesh_facts
from rl3d.scenes.gaussians import SH_C0, Gaussians
from rl3d.scenes.load import load_scene
from rl3d.scenes.mesh import Mesh
from rl3d.scenes.point_cloud import PointCloud, sample_surface

__all__ = [
    "SH_C0",
    "Capture",
    "Gaussians",
    "Mesh",
    "PointCloud",
    "load_colmap",
    "load_scene",
    "load_transforms",
    "mesh_facts",
    "sample_surface",
    "save_colmap",
    "save_transforms",
]
