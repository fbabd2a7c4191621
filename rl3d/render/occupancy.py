"""Where a field may be other than empty (Müller et al. 2022, arXiv 2201.05989), as an explicit value."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import max_pool3d

from rl3d.errors import InputError
from rl3d.scenes.field import Field, density, potential

_CHUNK = 1 << 16  # points asked at once


@dataclass(frozen=True)
class OccupancyGrid:
    """Cells of a field's box; what lies in the others is taken as empty.

    Attributes:
        density: [D, H, W] along z, y, x: the highest density seen in each cell, fading, 1/m.
        occupied: [D, H, W] bool.
        box: [2, 3] lowest and highest corner, metres.
    """

    density: Tensor
    occupied: Tensor
    box: Tensor

    @staticmethod
    def full(field: Field, resolution: int = 64) -> OccupancyGrid:
        """Every cell occupied, nothing known; the start of an optimisation.

        Raises:
            InputError: a resolution below 1.
        """
        if resolution < 1:
            raise InputError(f"an occupancy grid needs 1 cell an axis or more, got {resolution}")
        cells = torch.zeros((resolution,) * 3, dtype=field.dtype, device=field.device)
        return OccupancyGrid(cells, torch.ones_like(cells, dtype=torch.bool), field.box.detach())

    @property
    def share(self) -> float:
        """Occupied cells / all cells."""
        return float(self.occupied.double().mean())


@torch.no_grad()
def update_occupancy(
    grid: OccupancyGrid,
    field: Field,
    generator: torch.Generator | None = None,
    *,
    decay: float = 0.95,
    threshold: float = 0.5,
) -> OccupancyGrid:
    """Look at every cell once and decide anew which are occupied; not differentiable.

    A cell is occupied if it or a neighbour has a density of `threshold`, or of half the mean where that is less: thin
    fog, the usual start, then stays as a whole.

    Args:
        generator: looks at a random point of each cell, so that repeated updates see all of it; None: at its middle.
        decay: factor on what was seen before.
        threshold: 1/m. What is taken as empty hides less than 1 - exp(-threshold * length) of what is behind it.
    """
    depth, height, width = grid.density.shape
    axes = [torch.arange(n, dtype=field.dtype, device=field.device) for n in (depth, height, width)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    cells = torch.stack([x, y, z], -1).reshape(-1, 3)
    if generator is None:
        cells = cells + 0.5
    else:
        cells = cells + torch.rand(cells.shape, generator=generator, dtype=field.dtype).to(field.device)
    points = field.box[0] + cells / cells.new_tensor([width, height, depth]) * (field.box[1] - field.box[0])
    seen = torch.cat([density(field, p, potential(field, p)[0]) for p in points.split(_CHUNK)])
    highest = torch.maximum(decay * grid.density, seen.reshape(grid.density.shape))
    enough = highest.mean().mul(0.5).clamp(max=threshold)
    occupied = (highest >= enough) & (highest > 0)
    near = max_pool3d(occupied[None, None].to(field.dtype), 3, stride=1, padding=1)[0, 0] > 0
    return replace(grid, density=highest, occupied=near)
