"""The optimised scene as a voxel field: a radiance field, or a signed distance whose surface is a mesh with gradients.

Values and colours are leaves of their own, because a metre and a colour want different rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.export.asset import ExportOptions, calibrated_offset, fusion_cameras
from rl3d.reconstruct.leaves import (
    Rates,
    adam_step,
    leaves_of,
    optimizer_of,
    read_leaves,
    readable,
    restore_moments,
    save_leaves,
)
from rl3d.reconstruct.lift import RADIUS
from rl3d.reconstruct.splats import SplatState
from rl3d.render.fields import render_field
from rl3d.render.frames import Frames
from rl3d.render.occupancy import OccupancyGrid, update_occupancy
from rl3d.scenes.field import DENSITY_SHIFT, Field, gradient
from rl3d.scenes.fusion import fuse_tsdf
from rl3d.scenes.grids import Dense
from rl3d.scenes.isosurface import extract_mesh
from rl3d.scenes.mesh import Mesh

SAMPLES = 96  # across the box's diagonal, per ray
LOOK_EVERY = 8  # steps between looks at which cells are empty
OCCUPIED = 2.0  # 1/m, the density from which a cell is looked into
EIKONAL = 0.01  # of the eikonal term, on the scale of the splats' layers (square metres)
SOLID, EMPTY = 4.0, -6.0  # a density's activation inside and outside
COLOUR_SLOPE = 0.25  # of the sigmoid at its steepest: sRGB a unit of logit
NAMES = ("values", "colours", "log_beta")


@dataclass
class VoxelState:
    """A field of kind "sdf" or "density" over a cube, its leaves and their optimizer; see `SceneState`.

    Attributes:
        tensors: values [1, D, H, W] (metres, or the density's activation), colours [3, D, H, W] (logits of sRGB), and
            for "sdf" log_beta.
        occupancy: where rays look.
    """

    kind: str
    tensors: dict[str, Tensor]
    optimizer: torch.optim.Adam
    occupancy: OccupancyGrid
    step: int = 0

    @classmethod
    def start(cls, kind: str, tensors: Mapping[str, Tensor], rates: Rates) -> VoxelState:
        """Leaves out of plain tensors, a fresh optimizer, and a first look at what is empty."""
        leaves = leaves_of({k: tensors[k] for k in NAMES if k in tensors})
        rate = {
            "values": rates.means if kind == "sdf" else rates.opacities,
            "colours": rates.colours / COLOUR_SLOPE,
            "log_beta": rates.scales,
        }
        field = field_of(kind, leaves)
        seen = update_occupancy(OccupancyGrid.full(field), field, threshold=OCCUPIED)
        return cls(kind, leaves, optimizer_of(leaves, rate), seen)

    @property
    def field(self) -> Field:
        """The field on the leaves; differentiable to them."""
        return field_of(self.kind, self.tensors)

    def mesh(self, resolution: int) -> Mesh:
        """The surface by tetrahedra with vertex colours, differentiable to the leaves; without faces where none is."""
        return extract_mesh(self.field, resolution)

    def render(self, cameras: Cameras) -> Frames:
        """Premultiplied sRGB, alpha and depth, differentiable to the leaves."""
        cameras = cameras.to(self.occupancy.box.device, self.occupancy.box.dtype)
        return render_field(self.field, cameras, occupancy=self.occupancy, samples=SAMPLES)

    def render_layers(self, cameras: Cameras) -> tuple[Frames, Tensor]:
        """As `render`, and a distance's eikonal term (Gropp et al. 2020, arXiv 2002.10099); 0 for a density."""
        frames = self.render(cameras)
        if self.kind != "sdf":
            return frames, frames.alpha.new_zeros(1)
        generator = torch.Generator().manual_seed(self.step)
        points = RADIUS * (2 * torch.rand(2048, 3, generator=generator) - 1)
        slope = gradient(self.field, points.to(self.occupancy.box))
        return frames, EIKONAL * (slope.norm(dim=-1) - 1) ** 2

    def descend(self, loss: Tensor, rate: float = 1.0, floor: float = 2e-3) -> None:
        """One Adam step on `loss`, with the rates scaled by `rate`; `floor` has no meaning here, voxels have a size."""
        adam_step(self.optimizer, loss, rate)
        self.step += 1
        if self.step % LOOK_EVERY == 0:
            self.occupancy = update_occupancy(self.occupancy, self.field.detach(), threshold=OCCUPIED)

    def relocate(self, generator: torch.Generator) -> int:
        """Voxels stay where they are."""
        return 0

    def save(self, path: Path, memory: Mapping[str, Tensor] | None = None) -> None:
        """Leaves, Adam's moments, occupancy, step, and a method's memory, atomically."""
        seen = {"seen.density": self.occupancy.density, "seen.occupied": self.occupancy.occupied}
        save_leaves(path, self.tensors, self.optimizer, {"step": self.step, "kind": self.kind}, memory, seen)

    @classmethod
    def load(cls, path: Path, rates: Rates, device: torch.device | str = "cpu") -> VoxelState:
        """What `save` wrote.

        Raises:
            AssetError: the file is missing, truncated or of another kind.
        """
        with readable(path):
            tensors, facts = read_leaves(path, device)
            state = cls.start(facts["kind"], tensors, rates)
            restore_moments(state.optimizer, state.tensors, tensors)
            box = state.occupancy.box
            state.occupancy = OccupancyGrid(tensors["seen.density"], tensors["seen.occupied"], box)
            state.step = int(facts["step"])
        return state


def field_of(kind: str, tensors: Mapping[str, Tensor]) -> Field:
    """The field of a state's leaves; differentiable to them."""
    grid = torch.cat([tensors["values"], tensors["colours"]])
    box = torch.tensor([[-RADIUS] * 3, [RADIUS] * 3], dtype=grid.dtype, device=grid.device)
    return Field(Dense(grid), box, kind, None, tensors.get("log_beta"))


@torch.no_grad()
def voxels_from_splats(state: SplatState, kind: str, resolution: int, size: int = 96) -> dict[str, Tensor]:
    """A voxel field that looks like the splats: their fused distances, and each voxel the colour of its nearest splats.

    Args:
        kind: "sdf" or "density". resolution: samples a side. size: pixels of the renders that are fused.

    Raises:
        InputError: the splats have no surface.
    """
    options = ExportOptions(resolution=resolution, image_size=size, views=24)
    cameras = fusion_cameras(options).to(state.tensors["means"].device)
    frames = state.render(cameras)
    offset = calibrated_offset(frames, cameras, options)
    fused = fuse_tsdf(
        frames, cameras, resolution=resolution, radius=RADIUS, carve_votes=options.votes, offset=offset, tight=False
    )
    inside = fused.values < 0
    if not inside.any():
        raise InputError("the lifted scene has no surface to make voxels of; try another --seed")
    # Beyond the truncation, the distance to the nearest sample on the other side.
    far = np.where(inside, -distance_transform_edt(inside), distance_transform_edt(~inside)) * fused.spacing
    distance = np.where(np.abs(fused.values) < 0.99, fused.values * fused.truncation, far)
    shape = distance.shape
    axes = [fused.origin[i] + fused.spacing * np.arange(shape[i]) for i in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    scene = state.gaussians(min_opacity=0.1)
    means, opacity = scene.means.cpu().numpy(), state.tensors["opacity_logits"].sigmoid() > 0.1
    if len(means) == 0:
        raise InputError("the lifted scene has no visible splats; try another --seed")
    own = state.tensors["colours"][opacity].cpu().numpy()
    _, nearest = cKDTree(means).query(points, k=min(3, len(means)))
    colour = own[nearest].reshape(len(points), -1, 3).mean(1).reshape(*shape, 3)
    values = torch.from_numpy(distance.astype(np.float32)).permute(2, 1, 0)[None].contiguous()
    colours = torch.logit(torch.from_numpy(colour.astype(np.float32)).permute(3, 2, 1, 0), 0.02).contiguous()
    place = state.tensors["means"].device
    tensors = {"values": values.to(place), "colours": colours.to(place)}
    if kind == "density":
        sharp = (-2 * values / fused.spacing).clamp(EMPTY, SOLID)
        return {**tensors, "values": (sharp - DENSITY_SHIFT).to(place)}
    return {**tensors, "log_beta": torch.tensor(math.log(0.5 * fused.spacing), device=place)}
