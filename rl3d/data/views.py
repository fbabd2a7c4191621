"""Pre-rendered view sets: every asset seen by groups of 4 orthogonal cameras, recolourable after the fact.

A pixel stores what recolouring needs, so that training never renders: with face albedo c (linear) and shade s,
    rgb = mean(s c) over the pixel's samples (premultiplied, linear),
    main = mean(s [face has the main colour]),   alpha = mean([covered]),
so painting the main colour's faces from mean colour m to m' is rgb + (m' - m) main, exactly.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numba
import numpy as np
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.colour import linear_to_srgb
from rl3d.data.asset_set import AssetSet
from rl3d.data.colours import WORDS, colour_index, decode_srgb
from rl3d.files import atomic_path, write_json
from rl3d.render.mesh_cpu import rasterize_views

CHANNELS = 5  # sqrt(linear rgb), main, alpha; 8 bits each


@dataclass(frozen=True)
class ViewSpec:
    """How an asset set is looked at. Angles in degrees (they are written to JSON), light as a world direction."""

    size: int = 64
    views: int = 4
    sets: int = 12
    front: int = 0  # how many of the sets start at azimuth 0, where generation starts; the others anywhere
    supersample: int = 4
    distance: tuple[float, float] = (2.7, 2.7)
    fov_y: float = 0.47
    elevation: tuple[float, float] = (-10.0, 45.0)
    light: tuple[float, float, float] = (0.35, 0.8, 0.5)
    ambient: float = 0.55
    diffuse: float = 0.45
    half_lambert: bool = True
    seed: int = 0


@numba.njit(cache=True, parallel=True)
def _resolve(face_id, normals, albedo, is_main, centres, vertices, faces, light, ambient, diffuse, half, k):  # type: ignore[no-untyped-def]
    """Average k x k samples of a rasterization into [V, 5, H, W] float32 (linear, premultiplied)."""
    n_views, height, width = face_id.shape[0], face_id.shape[1] // k, face_id.shape[2] // k
    out = np.zeros((n_views, 5, height, width), dtype=np.float32)
    for v in numba.prange(n_views):
        shade = np.empty(normals.shape[0], dtype=np.float32)
        for f in range(normals.shape[0]):
            facing = 0.0
            for d in range(3):
                facing += normals[f, d] * (centres[v, d] - vertices[faces[f, 0], d])
            sign = 1.0 if facing >= 0 else -1.0
            cosine = sign * (normals[f, 0] * light[0] + normals[f, 1] * light[1] + normals[f, 2] * light[2])
            shade[f] = ambient + diffuse * (0.5 + 0.5 * cosine if half else max(cosine, 0.0))
        for y in range(height):
            for x in range(width):
                for j in range(k):
                    for i in range(k):
                        f = face_id[v, y * k + j, x * k + i]
                        if f >= 0:
                            for d in range(3):
                                out[v, d, y, x] += shade[f] * albedo[f, d]
                            if is_main[f]:
                                out[v, 3, y, x] += shade[f]
                            out[v, 4, y, x] += 1.0
    return out / (k * k)


def face_geometry(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(unit normals [F, 3], areas [F]) of triangles; zero-area faces get a zero normal."""
    corners = vertices[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(cross, axis=1)
    return (cross / np.maximum(length, 1e-20)[:, None]).astype(np.float32), 0.5 * length


def main_colour(face_colours: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """The faces [F] bool of the colour word that covers most area, their mean linear colour [3], and the word."""
    names = colour_index(face_colours)
    weight = np.bincount(names, weights=areas + 1e-12, minlength=len(WORDS))
    word = int(weight.argmax())
    is_main = names == word
    share = (areas + 1e-12)[is_main]
    mean = (decode_srgb(face_colours[is_main]) * share[:, None]).sum(0) / share.sum()
    return is_main, mean.astype(np.float32), WORDS[word]


def orbit_sets(spec: ViewSpec, rng: np.random.Generator) -> tuple[Cameras, np.ndarray]:
    """`spec.sets` groups of `spec.views` cameras at equal azimuth spacing.

    Returns:
        cameras [sets * views] and parameters [sets, 3]: base azimuth, elevation (radians), distance.
    """
    azimuth = rng.uniform(0, 2 * math.pi, spec.sets)
    azimuth[: spec.front] = 0.0
    elevation = np.radians(rng.uniform(*spec.elevation, spec.sets))
    distance = rng.uniform(*spec.distance, spec.sets)
    params = np.stack([azimuth, elevation, distance], 1).astype(np.float32)
    return cameras_of(params, spec.views, spec.fov_y, spec.size), params


def cameras_of(params: np.ndarray, views: int, fov_y: float, size: int) -> Cameras:
    """Cameras [sets * views] of parameters [sets, 3] (base azimuth, elevation, distance)."""
    steps = torch.arange(views) * (2 * math.pi / views)
    base = torch.as_tensor(params, dtype=torch.float32)
    azimuth = (base[:, :1] + steps).reshape(-1)
    return Cameras.orbit(azimuth, base[:, 1].repeat_interleave(views), base[:, 2].repeat_interleave(views), fov_y, size)


def render_view_sets(
    vertices: np.ndarray, faces: np.ndarray, face_colours: np.ndarray, cameras: Cameras, spec: ViewSpec
) -> np.ndarray:
    """[V, 5, H, W] uint8 views of one mesh, in the module's storage form."""
    normals, areas = face_geometry(vertices, faces)
    is_main, _, _ = main_colour(face_colours, areas)
    light = np.asarray(spec.light, dtype=np.float32)
    fine = cameras.resized(spec.size * spec.supersample)
    face_id, _, _ = rasterize_views(
        vertices, faces, fine.view.numpy(), fine.intrinsics.numpy(), fine.height, fine.width
    )
    linear = _resolve(
        face_id,
        normals,
        decode_srgb(face_colours).astype(np.float32),
        is_main,
        cameras.centres.numpy(),
        vertices,
        faces,
        light / np.linalg.norm(light),
        spec.ambient,
        spec.diffuse,
        spec.half_lambert,
        spec.supersample,
    )
    linear[:, :3] = np.sqrt(linear[:, :3])
    return np.rint(linear.clip(0, 1) * 255).astype(np.uint8)


def build_view_cache(assets: AssetSet, spec: ViewSpec, folder: str | Path, progress: bool = True) -> None:
    """Render every asset into `folder`: views.npy [N, sets, views, 5, H, W] uint8, params.npy, main.npy, spec.json.

    spec.json comes last: a cache that was interrupted has none.
    """
    from tqdm import tqdm

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shape = (len(assets), spec.sets, spec.views, CHANNELS, spec.size, spec.size)
    params = np.zeros((len(assets), spec.sets, 3), np.float32)
    mains = np.zeros((len(assets), 3), np.float32)
    words: list[str] = []
    with atomic_path(folder / "views.npy") as temporary:
        out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        for i in tqdm(range(len(assets)), disable=not progress, desc="rendering", mininterval=5):
            vertices, faces, colours = assets.mesh(i)
            cameras, params[i] = orbit_sets(spec, np.random.default_rng([spec.seed, i]))
            out[i] = render_view_sets(vertices, faces, colours, cameras, spec).reshape(shape[1:])
            _, mains[i], word = main_colour(colours, face_geometry(vertices, faces)[1])
            words.append(word)
        out.flush()
        del out
        # An older cache's description does not hold for the views that now take the place of its own.
        (folder / "spec.json").unlink(missing_ok=True)
    for name, array in (("params", params), ("main", mains)):
        with atomic_path(folder / f"{name}.npy") as temporary:
            np.save(temporary, array)
    write_json(folder / "spec.json", {**asdict(spec), "words": words})


def to_images(stored: Tensor, main: Tensor, new_main: Tensor | None = None) -> Tensor:
    """Stored views to premultiplied sRGB + alpha.

    Args:
        stored: [B, V, 5, H, W] uint8. main: [B, 3] linear mean of the main colour. new_main: [B, 3] linear, or None.

    Returns:
        [B, V, 4, H, W] float32 in [0, 1].
    """
    x = stored.float() / 255
    rgb, weight, alpha = x[:, :, :3] ** 2, x[:, :, 3:4], x[:, :, 4:5]
    if new_main is not None:
        rgb = rgb + (new_main - main)[:, None, :, None, None] * weight
    straight = (rgb / alpha.clamp_min(1 / 255)).clamp(0, 1)
    return torch.cat([linear_to_srgb(straight) * alpha, alpha], 2)
