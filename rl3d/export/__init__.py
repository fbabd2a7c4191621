"""From a scene in memory to a checked mesh file. The pieces: simplify, unwrap, bake; the whole way: `export_asset`."""

from rl3d.export.asset import (
    DRAFT,
    ExportOptions,
    check_cameras,
    check_export,
    export_asset,
    fusion_cameras,
    scene_to_mesh,
)
from rl3d.export.bake import bake_texture, bake_vertices
from rl3d.export.simplify import simplify
from rl3d.export.unwrap import Unwrapping, unwrap

__all__ = [
    "DRAFT",
    "ExportOptions",
    "Unwrapping",
    "bake_texture",
    "bake_vertices",
    "check_cameras",
    "check_export",
    "export_asset",
    "fusion_cameras",
    "scene_to_mesh",
    "simplify",
    "unwrap",
]
