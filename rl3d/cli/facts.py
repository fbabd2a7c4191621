"""What `rl3d render` and `rl3d score` say of a scene beside pictures and scores. Imports torch."""

from __future__ import annotations

from typing import Any

from rl3d.errors import InputError
from rl3d.scenes import Field, Gaussians, Mesh, PointCloud, mesh_facts


def visible(scene: Mesh | Gaussians | PointCloud | Field, name: str) -> Mesh | Gaussians | Field:
    """The scene, unless it is bare points, which show nothing."""
    if isinstance(scene, PointCloud):
        raise InputError(f"{name} holds {len(scene)} points without faces; rl3d shows meshes and splats, mesh it first")
    return scene


def surface(scene: Mesh | Gaussians | PointCloud | Field, name: str) -> Mesh | Gaussians:
    """The scene, unless it is bare points or a field, which the judges do not look at."""
    scene = visible(scene, name)
    if isinstance(scene, Field):
        raise InputError(f"{name} holds a field; the judges see meshes and splats, rl3d.scenes.extract_mesh makes one")
    return scene


def scene_facts(scene: Mesh | Gaussians | Field) -> dict[str, Any]:
    """JSON-able facts: the mesh's topology and size, the number and extent of the splats, or a field's parts."""
    if isinstance(scene, Field):
        return {
            "kind": "field",
            "values": scene.kind,
            "encoding": type(scene.encoding).__name__,
            "parameters": sum(t.numel() for t in scene.parameters().values()),
            "harmonics": scene.sh_count,
            "extents": (scene.box[1] - scene.box[0]).tolist(),
        }
    if isinstance(scene, Gaussians):
        low, high = scene.means.amin(0), scene.means.amax(0)
        return {"kind": "gaussians", "gaussians": len(scene), "extents": (high - low).tolist()}
    return {"kind": "mesh", **mesh_facts(scene)}


def short(value: Any) -> str:
    """A fact for a person: four digits, nested values in one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " ".join(short(v) for v in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{k} {short(v)}" for k, v in value.items())
    return str(value)
