"""Shapes that people made, as they are and gone wrong: what tools/train_rewardcs.py learns from and measures.

An asset comes in two preferred forms: the mesh itself, and its surface out of a grid of signed distances fused from
renders, as this project's pipeline makes surfaces. Without the second a reward would learn to tell artists' meshes from
iso-surfaces, and every scene that a method optimises is an iso-surface. Damage is done to both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, zoom
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.data.asset_set import AssetSet, load_asset_set
from rl3d.data.captions import AssetRecord
from rl3d.errors import InputError
from rl3d.export.asset import DISTANCE, FOV_Y, ExportOptions, fusion_cameras
from rl3d.files import atomic_path, write_json
from rl3d.reconstruct.lift import RADIUS, visual_hull
from rl3d.render.render import render
from rl3d.rewards import damage_mesh
from rl3d.rewards.reward_cs import sample_surface
from rl3d.scenes.fusion import fuse_tsdf
from rl3d.scenes.isosurface import zero_level
from rl3d.scenes.mesh import Mesh

FUSED = {"resolution": 48, "views": 16, "image_size": 96}
HULL = {"resolution": 32, "views": 4, "image_size": 96, "elevation": 0.2}
FAITHFUL = 0.02  # metres; a fused surface further off its mesh (thin parts are lost) is no preferred form
VISIBLE = 0.012  # metres between two surfaces that are still called the same; two samples of one: 0.010 at most


@dataclass(frozen=True)
class Shape:
    """A preferred mesh of asset `asset`, and the grids that its surface came from (the mesh itself: None)."""

    asset: int
    mesh: Mesh
    grid: np.ndarray | None
    hull: np.ndarray


class Shapes:
    """An asset folder with its grids, made once in the folder `cache`: `grids.npy` [N, G, G, G] int8 (127 a truncation
    of 3 voxels, indexed x, y, z), `hulls.npy` [N, H, H, H] uint8 (255 inside) and `faithful.npy` [N] bool."""

    def __init__(self, data: Path, cache: Path, progress: bool = False) -> None:
        self.assets: AssetSet = load_asset_set(data)
        self.records: list[AssetRecord] = self.assets.records
        spec = {"assets": [r.file for r in self.records], "fused": FUSED, "hull": HULL}
        found = cache / "spec.json"
        if not found.is_file() or json.loads(found.read_text(encoding="utf-8")) != spec:
            _build(self.assets, cache, progress)
            write_json(found, spec)
        self.grids, self.hulls = (np.load(cache / f"{name}.npy", mmap_mode="r") for name in ("grids", "hulls"))
        self.faithful = np.load(cache / "faithful.npy")

    def split(self, name: str) -> np.ndarray:
        """Numbers of the assets of a split."""
        return np.array([i for i, r in enumerate(self.records) if r.split == name], dtype=np.int64)

    def shape(self, asset: int, fused: bool) -> Shape:
        """A preferred form; the mesh itself where the fused one is not faithful."""
        hull = np.asarray(self.hulls[asset])
        if fused and self.faithful[asset]:
            grid = np.asarray(self.grids[asset], dtype=np.float32) / 127
            return Shape(asset, from_grid(grid), grid, hull)
        vertices, faces, colours = (torch.from_numpy(a) for a in self.assets.mesh(asset))
        return Shape(asset, Mesh(vertices, faces, face_colours=colours), None, hull)


def _build(assets: AssetSet, cache: Path, progress: bool) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "spec.json").unlink(missing_ok=True)
    options = ExportOptions(resolution=FUSED["resolution"], views=FUSED["views"], image_size=FUSED["image_size"])
    around = fusion_cameras(options)
    ring = torch.arange(HULL["views"]) * (2 * math.pi / HULL["views"])
    four = Cameras.orbit(ring, HULL["elevation"], DISTANCE, FOV_Y, HULL["image_size"])
    grids = np.zeros((len(assets), *[FUSED["resolution"]] * 3), np.int8)
    hulls = np.zeros((len(assets), *[HULL["resolution"]] * 3), np.uint8)
    faithful = np.zeros(len(assets), bool)
    for i in range(len(assets)):
        vertices, faces, _ = (torch.from_numpy(a) for a in assets.mesh(i))
        mesh = Mesh(vertices, faces)
        with torch.no_grad():
            fused = fuse_tsdf(
                render(mesh, around),
                around,
                resolution=FUSED["resolution"],
                radius=RADIUS,
                carve_votes=options.votes,
                tight=False,
            )
            hull = visual_hull(render(mesh, four).alpha, four, HULL["resolution"])
        grids[i] = np.round(fused.values * 127).astype(np.int8)
        hulls[i] = np.round(hull.numpy() * 255).astype(np.uint8)
        if (grids[i] < 0).any():
            faithful[i] = gap(mesh, from_grid(grids[i].astype(np.float32) / 127)) < FAITHFUL
        if progress and i % 100 == 0:
            print(f"fused {i} of {len(assets)}", flush=True)
    for name, array in (("grids", grids), ("hulls", hulls), ("faithful", faithful)):
        with atomic_path(cache / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array)


def from_grid(values: np.ndarray) -> Mesh:
    """The zero level of a grid [G, G, G] over the cube of samples from -RADIUS to RADIUS.

    Raises:
        InputError: nothing is inside.
    """
    if not (values < 0).any():
        raise InputError("nothing is left of the shape")
    vertices, faces = zero_level(values.astype(np.float32), np.full(3, -RADIUS), 2 * RADIUS / (len(values) - 1))
    return Mesh(torch.from_numpy(vertices.astype(np.float32)), torch.from_numpy(faces))


@torch.no_grad()
def gap(a: Mesh, b: Mesh, count: int = 160, reach: float = 0.08) -> float:
    """Metres between two surfaces: the larger mean distance of one's points to the other's nearest tangent planes.

    Where the nearest sampled point lies more than `reach` metres along its plane, what is more counts: there is no
    surface.
    """
    clouds = [sample_surface(mesh, 4 * count, i) for i, mesh in enumerate((a, b))]
    means = []
    for (points, _), (others, normals) in (clouds, clouds[::-1]):
        points = points[::4]
        index = torch.cdist(points, others).argmin(1)
        offset = points - others[index]
        off = (offset * normals[index]).sum(1).abs()
        along = (offset.square().sum(1) - off.square()).clamp_min(0).sqrt()
        means.append(float(torch.maximum(off, along - reach).mean()))
    return max(means)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**62)))


def _floaters(shape: Shape, rng: np.random.Generator) -> Mesh:
    small = _between(rng, 0.03, 0.09)
    near = _between(rng, 0.4, 0.6)
    count = int(rng.integers(2, 10))
    return damage_mesh.floaters(shape.mesh, _generator(rng), count, (small, 1.6 * small), (near, near + 0.12))


def _holes(shape: Shape, rng: np.random.Generator) -> Mesh:
    if shape.grid is None and rng.random() < 0.5:
        return damage_mesh.holes(shape.mesh, _generator(rng), _between(rng, 0.15, 0.4))
    return damage_mesh.punctured(shape.mesh, _generator(rng), int(rng.integers(2, 7)), _between(rng, 0.06, 0.14))


def _rough(shape: Shape, rng: np.random.Generator) -> Mesh:
    wave = _between(rng, 0.08, 0.25)
    return damage_mesh.rough(shape.mesh, _generator(rng), wave * _between(rng, 0.12, 0.3), wave)


def _grid(shape: Shape) -> np.ndarray:
    if shape.grid is None:
        raise InputError("damage of grids is done to fused shapes")
    return shape.grid


def _smoothed(shape: Shape, rng: np.random.Generator) -> Mesh:
    return from_grid(gaussian_filter(_grid(shape), _between(rng, 1.2, 3.0)))


def _coarse(shape: Shape, rng: np.random.Generator) -> Mesh:
    return from_grid(zoom(_grid(shape), float(rng.choice([0.2, 0.25, 0.33])), order=1))


def _unfinished(shape: Shape, rng: np.random.Generator) -> Mesh:
    """As an optimisation that has hardly begun: soft distances with noise of several sizes, loose lumps."""
    grid = gaussian_filter(_grid(shape), _between(rng, 0.5, 1.5))
    for sigma, strength in ((1.0, 0.15), (2.5, 0.35)):
        noise = gaussian_filter(rng.standard_normal(grid.shape).astype(np.float32), sigma)
        grid = grid + noise * (_between(rng, 0.3, 1.0) * strength / noise.std())
    return from_grid(grid)


def _hull(shape: Shape, rng: np.random.Generator) -> Mesh:
    values = 0.5 - shape.hull.astype(np.float32) / 255
    if not (values < 0).any():
        raise InputError("nothing is left of the shape")
    step = 2 * RADIUS / len(values)
    vertices, faces = zero_level(values, np.full(3, 0.5 * step - RADIUS), step)
    return Mesh(torch.from_numpy(vertices.astype(np.float32)), torch.from_numpy(faces))


def _flattened(shape: Shape, rng: np.random.Generator) -> Mesh:
    factors = [1.0, 1.0, 1.0]
    factors[int(rng.integers(3))] = _between(rng, 0.3, 0.7)
    return damage_mesh.stretched(shape.mesh, (factors[0], factors[1], factors[2]))


def _scaled(shape: Shape, rng: np.random.Generator) -> Mesh:
    return damage_mesh.stretched(shape.mesh, (_between(rng, 0.35, 0.8),) * 3)


def _leaning(shape: Shape, rng: np.random.Generator) -> Mesh:
    slope = _between(rng, 0.35, 1.0) * float(rng.choice([-1, 1]))
    leant = damage_mesh.leaning(shape.mesh, slope)
    middle = leant.bounds.mean(0)
    keep = float(rng.integers(2))  # half of them moved back to the middle
    return Mesh(leant.vertices - keep * middle, leant.faces, face_colours=leant.face_colours)


Maker = Callable[[Shape, np.random.Generator], Mesh]
# Damage of a shape; "wrong_noun" is the caption's and is made where captions are.
MAKERS: dict[str, Maker] = {
    "two_faced": lambda shape, rng: damage_mesh.two_faced(shape.mesh),
    "four_faced": lambda shape, rng: damage_mesh.four_faced(shape.mesh),
    "floaters": _floaters,
    "holes": _holes,
    "rough": _rough,
    "scaled_down": _scaled,
    "flattened": _flattened,
    "leaning": _leaning,
    "smoothed": _smoothed,
    "coarse": _coarse,
    "unfinished": _unfinished,
    "hull": _hull,
}
ON_GRIDS = ("smoothed", "coarse", "unfinished")
# Plain to see, though some are small in the mean over a surface: how far off they are is not measured.
ALWAYS_SEEN = ("floaters", "holes", "rough", "scaled_down", "unfinished")
WRONG_NOUN = "wrong_noun"
SEVERITY = 0.75  # of what is always seen
SEVERE, MILDEST = 0.04, 0.5  # metres between two surfaces from which severity is 1; the least severity


def damaged(shape: Shape, kind: str, rng: np.random.Generator) -> tuple[Mesh, float] | None:
    """The damaged shape and its severity in (0, 1]; None where nobody would see it, or nothing is left."""
    try:
        mesh = MAKERS[kind](shape, rng)
    except InputError:
        return None
    if kind in ALWAYS_SEEN:
        return mesh, SEVERITY
    far = gap(shape.mesh, mesh)
    return (mesh, min(1.0, max(MILDEST, far / SEVERE))) if far > VISIBLE else None


def other_noun(shapes: Shapes, asset: int, pool: np.ndarray, rng: np.random.Generator) -> int:
    """An asset of the pool that shares no word of the noun with `asset`."""
    own = set(shapes.records[asset].noun_words)
    for _ in range(1000):
        other = int(rng.choice(pool))
        if not own & set(shapes.records[other].noun_words):
            return other
    raise SystemExit(f"hardly any asset but {shapes.records[asset].caption!r} has another noun; more kinds are needed")


def cloud(mesh: Mesh, count: int, seed: int) -> Tensor:
    """[count, 6] points and normals of the surface, without gradients."""
    with torch.no_grad():
        return torch.cat(sample_surface(mesh, count, seed), 1)
