"""Triangle meshes as frozen dataclasses of tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rl3d.errors import InputError

if TYPE_CHECKING:
    import open3d
    import trimesh


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh. Colours are sRGB in [0, 1]; at most one of the three colour sources is set.

    Attributes:
        vertices: [N, 3] float, metres, +Y up.
        faces: [F, 3] int64, counter-clockwise seen from outside.
        vertex_colours: [N, 3], interpolated across a face.
        face_colours: [F, 3], one flat colour a face.
        texture: [H, W, 3], row 0 at the top of the picture; needs `uvs` and `face_uvs`.
        uvs: [T, 2], glTF convention: (0, 0) is the top-left corner of the picture, v runs down.
        face_uvs: [F, 3] int64, indices into `uvs`, so that a seam does not split the vertices.
    """

    vertices: Tensor
    faces: Tensor
    vertex_colours: Tensor | None = None
    face_colours: Tensor | None = None
    texture: Tensor | None = None
    uvs: Tensor | None = None
    face_uvs: Tensor | None = None

    def __post_init__(self) -> None:
        if self.vertices.ndim != 2 or self.vertices.shape[1] != 3:
            raise InputError(f"Mesh.vertices must be [N, 3], got {list(self.vertices.shape)}")
        if self.faces.ndim != 2 or self.faces.shape[1] != 3:
            raise InputError(f"Mesh.faces must be [F, 3] triangles, got {list(self.faces.shape)}")
        given = [k for k in ("vertex_colours", "face_colours", "texture") if getattr(self, k) is not None]
        if len(given) > 1:
            raise InputError(f"a Mesh takes one source of colour, got {' and '.join(given)}")
        if self.texture is not None and (self.uvs is None or self.face_uvs is None):
            raise InputError("Mesh.texture needs uvs [T, 2] and face_uvs [F, 3]")
        for name, rows in (("vertex_colours", len(self.vertices)), ("face_colours", len(self.faces))):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != (rows, 3):
                raise InputError(f"Mesh.{name} must be [{rows}, 3], got {list(value.shape)}")

    @property
    def device(self) -> torch.device:
        return self.vertices.device

    @staticmethod
    def load(path: str | Path) -> Mesh:
        """Read GLB, glTF, OBJ, PLY, STL or OFF, see `rl3d.scenes.mesh_io.load_mesh`."""
        from rl3d.scenes.mesh_io import load_mesh

        return load_mesh(path)

    def save(self, path: str | Path, crease: float | None = None) -> None:
        """Write GLB, OBJ, PLY, STL, OFF or USD by the suffix, see `rl3d.scenes.mesh_io.save_mesh`."""
        from rl3d.scenes.mesh_io import save_mesh

        save_mesh(self, path, crease)

    def to(self, device: torch.device | str) -> Mesh:
        """The mesh on another device; dtypes stay."""
        tensors = {k: v.to(device) for k, v in vars(self).items() if v is not None}
        return replace(self, **tensors)

    def detach(self) -> Mesh:
        """The mesh cut off from any gradient graph."""
        return replace(self, **{k: v.detach() for k, v in vars(self).items() if v is not None})

    @property
    def triangles(self) -> Tensor:
        """[F, 3, 3] corner positions; differentiable to `vertices`."""
        return self.vertices[self.faces]

    @property
    def bounds(self) -> Tensor:
        """[2, 3] lowest and highest corner of the box around the faces (loose vertices do not count).

        Raises:
            InputError: the mesh has no faces.
        """
        if len(self.faces) == 0:
            raise InputError(f"a mesh without faces ({len(self.vertices)} vertices) has no bounds")
        corners = self.triangles.reshape(-1, 3)
        return torch.stack([corners.amin(0), corners.amax(0)])

    @property
    def face_areas(self) -> Tensor:
        """[F] square metres; differentiable except at degenerate faces."""
        return 0.5 * torch.linalg.vector_norm(self._cross, dim=1)

    @property
    def face_normals(self) -> Tensor:
        """[F, 3] unit normals, out of the counter-clockwise side; zero for faces without an area."""
        return torch.nn.functional.normalize(self._cross, dim=1, eps=1e-20)

    @property
    def _cross(self) -> Tensor:
        a, b, c = self.triangles.unbind(1)
        return torch.linalg.cross(b - a, c - a)

    def normalised(self, radius: float = 0.6) -> Mesh:
        """Centre the bounding box on the origin and scale uniformly, so that the farthest vertex is `radius` away.

        Raises:
            InputError: a radius that is not positive, no faces, or all vertices in one place.
        """
        if not radius > 0:
            raise InputError(f"the radius must be positive, got {radius}")
        centre = self.bounds.mean(0)
        reach = torch.linalg.vector_norm(self.triangles.reshape(-1, 3) - centre, dim=1).max()
        if not float(reach) > 0:
            raise InputError("all vertices of the mesh lie in one place, it has no size to normalise")
        return replace(self, vertices=(self.vertices - centre) * (radius / reach))

    def welded(self, tolerance: float = 1e-6) -> Mesh:
        """Merge vertices that lie within `tolerance` metres, see `rl3d.scenes.weld.weld`."""
        from rl3d.scenes.weld import weld

        return weld(self, tolerance)

    def to_trimesh(self) -> trimesh.Trimesh:
        """A trimesh.Trimesh with the same surface and colours, see `rl3d.scenes.convert`."""
        from rl3d.scenes.convert import to_trimesh

        return to_trimesh(self)

    @staticmethod
    def from_trimesh(source: trimesh.Trimesh | trimesh.Scene) -> Mesh:
        """From a trimesh.Trimesh or trimesh.Scene, see `rl3d.scenes.convert`."""
        from rl3d.scenes.convert import from_trimesh

        return from_trimesh(source)

    def to_open3d(self) -> open3d.geometry.TriangleMesh:
        """An open3d.geometry.TriangleMesh with the same surface and colours, see `rl3d.scenes.convert_open3d`."""
        from rl3d.scenes.convert_open3d import to_open3d

        return to_open3d(self)

    @staticmethod
    def from_open3d(source: open3d.geometry.TriangleMesh) -> Mesh:
        """From a triangle mesh of Open3D, see `rl3d.scenes.convert_open3d`."""
        from rl3d.scenes.convert_open3d import from_open3d

        mesh = from_open3d(source)
        if not isinstance(mesh, Mesh):
            raise InputError("the Open3D object is a point cloud; use PointCloud.from_open3d")
        return mesh
