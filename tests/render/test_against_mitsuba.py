"""Pictures against Mitsuba 3, a renderer that shares nothing with ours: coverage, colour, depth and normals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl3d.cameras import Cameras
from rl3d.colour import srgb_to_linear
from rl3d.render import render
from rl3d.scenes import Mesh

mitsuba: Any = pytest.importorskip("mitsuba", reason="pip install mitsuba to compare with it")

SIZE, FOV, SAMPLES, NEAR = 48, 0.6, 256, 0.01


@pytest.fixture(scope="module")
def mi() -> Any:
    mitsuba.set_variant("scalar_rgb")  # no LLVM needed
    mitsuba.set_log_level(mitsuba.LogLevel.Error)
    return mitsuba


def scene() -> Mesh:
    """A twisted tetrahedron that pierces a tilted square: occlusion, intersection and slanted edges."""
    vertices = torch.tensor(
        [
            *[[-0.45, -0.4, 0.3], [0.5, -0.35, 0.2], [0.05, 0.5, 0.1], [0.0, -0.1, -0.5]],
            *[[-0.5, -0.2, -0.4], [0.5, -0.3, -0.3], [0.55, 0.25, 0.35], [-0.45, 0.35, 0.25]],
        ]
    )
    faces = torch.tensor([[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0], [4, 5, 6], [4, 6, 7]])
    colours = 0.15 + 0.8 * torch.rand(6, 3, generator=torch.Generator().manual_seed(3))
    return Mesh(vertices, faces, face_colours=colours)


def camera() -> Cameras:
    return Cameras.orbit(torch.tensor([0.5]), torch.tensor([0.3]), torch.tensor([2.2]), FOV, SIZE)


def reference(mi: Any, mesh: Mesh, cameras: Cameras, folder: Path) -> dict[str, np.ndarray]:
    """Linear colour premultiplied [H, W, 3], alpha [H, W], distance and normal where the centre ray hits."""
    shapes: dict[str, Any] = {}
    linear = srgb_to_linear(mesh.face_colours).tolist() if mesh.face_colours is not None else []
    for i, face in enumerate(mesh.faces.tolist()):  # one mesh a face, for its colour
        triangle = mi.Mesh(f"face{i}", 3, 1)
        data = mi.traverse(triangle)
        data["vertex_positions"] = mesh.vertices[face].numpy().ravel()
        data["faces"] = np.arange(3, dtype=np.uint32)
        data.update()
        triangle.write_ply(str(folder / f"{i}.ply"))
        paint = {"type": "diffuse", "reflectance": {"type": "rgb", "value": linear[i]}}
        shapes[f"face{i}"] = {
            "type": "ply",
            "filename": str(folder / f"{i}.ply"),
            "bsdf": {"type": "twosided", "b": paint},
        }
    pose = cameras.poses[0].double().numpy() @ np.diag([-1.0, -1.0, 1.0, 1.0])  # its camera has x left and y up
    film = {"type": "hdrfilm", "width": SIZE, "height": SIZE, "pixel_format": "rgba", "rfilter": {"type": "box"}}
    sensor = {"type": "perspective", "fov": math.degrees(FOV), "fov_axis": "y", "film": film, "near_clip": NEAR}
    sensor["to_world"] = mi.ScalarTransform4f(pose)
    sensor["sampler"] = {"type": "stratified", "sample_count": SAMPLES}
    aov = {"type": "aov", "aovs": "d:depth,n:geo_normal,c:albedo", "inner": {"type": "direct"}}
    found = mi.load_dict({"type": "scene", "integrator": aov, "sensor": sensor, **shapes})
    image = np.array(mi.render(found))
    parts = np.split(image, [3, 4, 5, 8, 11], axis=-1)
    return dict(zip(("lit", "alpha", "distance", "normal", "rgb"), (p.squeeze() for p in parts)))


@pytest.fixture(scope="module")
def truth(mi: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return reference(mi, scene(), camera(), tmp_path_factory.mktemp("mitsuba"))


def test_coverage_and_colour(truth: dict[str, np.ndarray]) -> None:
    frames = render(scene(), camera(), supersample=8)
    alpha = frames.alpha[0, 0].numpy()
    # 64 regular against 256 stratified samples: an edge pixel may differ by some hundredths, the mean by far less.
    assert np.abs(alpha - truth["alpha"]).max() < 0.06
    assert np.abs(alpha - truth["alpha"]).mean() < 0.002
    straight = frames.rgb[0].permute(1, 2, 0) / frames.alpha[0].permute(1, 2, 0).clamp_min(1e-6)
    linear = (srgb_to_linear(straight) * frames.alpha[0].permute(1, 2, 0)).numpy()
    assert np.abs(linear - truth["rgb"]).max() < 0.06
    assert np.abs(linear - truth["rgb"]).mean() < 0.002
    assert truth["alpha"].mean() > 0.1  # there was something to compare


def test_depth_and_normals_inside(truth: dict[str, np.ndarray]) -> None:
    frames = render(scene(), camera(), supersample=1, normals=True)
    assert frames.normal is not None
    whole = truth["alpha"] > 0.999
    unit = np.abs(np.linalg.norm(truth["normal"], axis=-1) - 1) < 1e-3  # one face fills the pixel
    inside = whole & unit
    assert inside.sum() > 100
    _, directions = camera().rays()
    forward = torch.linalg.inv(camera().view)[0, :3, 2]
    depth = torch.from_numpy(truth["distance"]) * (directions[0] @ forward) + NEAR  # its rays start on the near plane
    # Its distance is a mean over the pixel, ours the centre's: they part where a face is steep.
    error = (frames.depth[0, 0] - depth)[torch.from_numpy(inside)].abs()
    assert float(error.median()) < 2e-4 and float(error.max()) < 0.02
    ours = frames.normal[0].permute(1, 2, 0).numpy()[inside]
    cosine = np.abs((ours * truth["normal"][inside]).sum(-1))
    assert cosine.min() > 0.999
