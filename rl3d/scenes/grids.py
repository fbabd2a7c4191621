"""Grids of features over the unit cube: dense, triplane, multi-resolution hash. Plain torch; `grids_cpu` is compiled.

All three are tables of rows that a list of `Level` says how to read: at a point, each level blends the rows of the
corners of the cell around it (trilinearly; bilinearly where an axis has one sample), and levels are summed or
concatenated. Samples lie on the cube's border and inside it: an axis with n samples has them at i / (n - 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rl3d.errors import InputError

PRIMES = (1, 2654435761, 805459861)  # Müller et al. 2022, eq. 4
_WORD = 0xFFFFFFFF


class Level(NamedTuple):
    """One grid in a table: samples along x, y and z (1: the axis does not count), its first row, how many rows.

    It is hashed where it has fewer rows than samples; else sample (x, y, z) is row first + (z ny + y) nx + x.
    """

    nx: int
    ny: int
    nz: int
    first: int
    rows: int

    @property
    def hashed(self) -> bool:
        return self.nx * self.ny * self.nz > self.rows


@dataclass(frozen=True)
class Dense:
    """A voxel grid.

    Attributes:
        grid: [C, D, H, W] features at samples along z, y and x, at least 2 each.
    """

    grid: Tensor

    def __post_init__(self) -> None:
        if self.grid.ndim != 4 or min(self.grid.shape[1:]) < 2 or self.grid.shape[0] < 1:
            raise InputError(f"Dense.grid must be [C, D, H, W] with 2 samples or more, got {list(self.grid.shape)}")

    @staticmethod
    def zeros(channels: int = 4, resolution: int = 64) -> Dense:
        """All zero, the same resolution along the three axes."""
        return Dense(torch.zeros(channels, resolution, resolution, resolution))


@dataclass(frozen=True)
class Triplane:
    """Three feature planes whose values are summed (Chan et al. 2022, arXiv 2112.07945).

    Attributes:
        planes: [3, C, N, N] over (row, column) = (y, x), (z, x) and (z, y).
    """

    planes: Tensor

    def __post_init__(self) -> None:
        shape = self.planes.shape
        if self.planes.ndim != 4 or shape[0] != 3 or shape[1] < 1 or shape[2] != shape[3] or shape[2] < 2:
            raise InputError(f"Triplane.planes must be [3, C, N, N] with N >= 2, got {list(shape)}")

    @staticmethod
    def random(
        channels: int = 16, resolution: int = 64, *, spread: float = 0.1, generator: torch.Generator | None = None
    ) -> Triplane:
        """Normal values of standard deviation `spread`."""
        return Triplane(spread * torch.randn(3, channels, resolution, resolution, generator=generator))


@dataclass(frozen=True)
class HashGrid:
    """Grids of growing resolution, those that do not fit hashed without collision handling (Müller et al. 2022).

    Attributes:
        table: [R, C], the levels' rows one after the other.
        resolutions: samples along each axis, a number per level, at least 2.
        table_size: rows that a level has at most, a power of two; finer levels are hashed.
    """

    table: Tensor
    resolutions: tuple[int, ...]
    table_size: int

    def __post_init__(self) -> None:
        if not self.resolutions or min(self.resolutions) < 2 or self.table_size & (self.table_size - 1):
            raise InputError(
                "HashGrid needs one resolution or more, each >= 2, and a power of two as table_size, got "
                f"{self.resolutions} and {self.table_size}"
            )
        rows = sum(min(n**3, self.table_size) for n in self.resolutions)
        if self.table.ndim != 2 or self.table.shape[0] != rows or self.table.shape[1] < 1:
            raise InputError(f"HashGrid.table must be [{rows}, C] for its resolutions, got {list(self.table.shape)}")

    @staticmethod
    def random(
        levels: int = 8,
        coarsest: int = 8,
        finest: int = 128,
        channels: int = 2,
        log2_size: int = 15,
        *,
        spread: float = 1e-4,
        generator: torch.Generator | None = None,
    ) -> HashGrid:
        """Resolutions in geometric progression (eq. 2 and 3 there), uniform values in [-spread, spread]."""
        growth = (finest / coarsest) ** (1 / max(levels - 1, 1))
        resolutions = tuple(int(coarsest * growth**level + 1e-6) for level in range(levels))
        rows = sum(min(n**3, 1 << log2_size) for n in resolutions)
        table = spread * (2 * torch.rand(rows, channels, generator=generator) - 1)
        return HashGrid(table, resolutions, 1 << log2_size)


Encoding = Dense | Triplane | HashGrid


def encoding_width(encoding: Encoding) -> int:
    """How many features a point gets."""
    if isinstance(encoding, HashGrid):
        return len(encoding.resolutions) * encoding.table.shape[1]
    return encoding.grid.shape[0] if isinstance(encoding, Dense) else encoding.planes.shape[1]


def levels_of(encoding: Encoding) -> tuple[Level, ...]:
    """How the rows of `rows_of` are read."""
    if isinstance(encoding, Dense):
        depth, height, width = encoding.grid.shape[1:]
        return (Level(width, height, depth, 0, depth * height * width),)
    if isinstance(encoding, Triplane):
        n = encoding.planes.shape[-1]
        return (Level(n, n, 1, 0, n * n), Level(n, 1, n, n * n, n * n), Level(1, n, n, 2 * n * n, n * n))
    out, first = [], 0
    for n in encoding.resolutions:
        out.append(Level(n, n, n, first, min(n**3, encoding.table_size)))
        first += out[-1].rows
    return tuple(out)


def rows_of(encoding: Encoding) -> Tensor:
    """The table [R, C] of an encoding, contiguous; differentiable."""
    if isinstance(encoding, HashGrid):
        return encoding.table.contiguous()
    if isinstance(encoding, Dense):
        return encoding.grid.flatten(1).T.contiguous()
    return encoding.planes.flatten(2).transpose(1, 2).reshape(-1, encoding.planes.shape[1])


def encode(encoding: Encoding, points: Tensor, backend: str | None = None) -> Tensor:
    """Features [N, F] at points [N, 3] (x, y, z) of the unit cube; points outside take the value at its border.

    A point that is NaN has features that are NaN.

    Differentiable to the encoding and, inside cells, to the points (twice: second derivatives take the torch twin).

    Args:
        backend: "cpu" (compiled; float32 on the CPU), "torch" (any device and dtype), None: "cpu" where it can.

    Raises:
        InputError: an unknown or unusable backend.
    """
    table, levels = rows_of(encoding), levels_of(encoding)
    summed = isinstance(encoding, Triplane)
    points = points.clamp(0, 1)
    fits = table.device.type == points.device.type == "cpu" and table.dtype == points.dtype == torch.float32
    if backend not in (None, "cpu", "torch"):
        raise InputError(f"unknown backend {backend!r} for fields; choose one of cpu, torch")
    if backend == "cpu" and not fits:
        raise InputError(f'backend "cpu" takes float32 tensors on the CPU, got {table.dtype} on {table.device}')
    if fits and backend != "torch":
        from rl3d.scenes.grids_cpu import lookup  # brings compiled kernels

        return lookup(table, points, levels, summed)
    return lookup_torch(table, points, levels, summed)


def lookup_torch(table: Tensor, points: Tensor, levels: tuple[Level, ...], summed: bool) -> Tensor:
    """The twin of the compiled look-up: table [R, C], points [N, 3] in [0, 1] -> [N, C] (summed) or [N, L C]."""
    features = []
    for level in levels:
        samples = (level.nx, level.ny, level.nz)
        last = torch.tensor(samples, device=points.device) - 1
        position = points * last
        base = position.detach().floor().long().clamp_min(0).minimum((last - 1).clamp_min(0))
        fraction = position - base
        total = table.new_zeros(points.shape[0], table.shape[1])
        for corner in range(8):
            bits = [corner & 1, corner >> 1 & 1, corner >> 2]
            if any(bit and n == 1 for bit, n in zip(bits, samples)):
                continue
            factors = [fraction[:, a] if bits[a] else 1 - fraction[:, a] for a in range(3) if samples[a] > 1]
            weight = torch.stack(factors, -1).prod(-1)
            index = row_index(level, *(base[:, a] + bits[a] for a in range(3)))
            total = total + weight[:, None] * table.index_select(0, index)
        features.append(total)
    return torch.stack(features).sum(0) if summed else torch.cat(features, 1)


def row_index(level: Level, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """[N] rows of integer samples (Müller et al. 2022, eq. 4, for a hashed level; 32-bit arithmetic)."""
    if not level.hashed:
        return level.first + (z * level.ny + y) * level.nx + x
    hashed = (x * PRIMES[0] & _WORD) ^ (y * PRIMES[1] & _WORD) ^ (z * PRIMES[2] & _WORD)
    return level.first + (hashed & (level.rows - 1))
