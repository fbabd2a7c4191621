"""What is said of the renderers, and the adapters of optional ones: against stand-ins, and real ones where they are.

The stand-ins rasterize by the formulas of each package's own conventions, written here, so that what is tested is the
conversion on the way in and out: axes, image rows, offsets of faces and views, barycentrics, depth.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rl3d import backends
from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.render import Fragments, meshes_nvdiffrast, meshes_pytorch3d, rasterize, render
from rl3d.scenes import Gaussians, Mesh

OPTIONAL = ("gsplat", "pytorch3d", "nvdiffrast")


def soup(count: int = 25) -> tuple[Tensor, Tensor]:
    """Random triangles that pierce each other, all in front of the cameras."""
    g = torch.Generator().manual_seed(0)
    centres = 0.5 * (2 * torch.rand(count, 1, 3, generator=g) - 1)
    return (centres + 0.5 * torch.randn(count, 3, 3, generator=g)).reshape(-1, 3), torch.arange(3 * count).reshape(
        -1, 3
    )


def views() -> Cameras:
    """Two tilted views of a wide image with a principal point off the middle."""
    cameras = Cameras.orbit(torch.tensor([0.4, 2.5]), torch.tensor([0.3, -0.5]), 3.0, 0.7, (20, 31))
    shift = torch.tensor([[0.0, 0, 2.3], [0, 0, -1.7], [0, 0, 0]])
    return Cameras(cameras.view, cameras.intrinsics + shift, 20, 31)


def brute_force(corners: Tensor, z: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest face of projected corners [F, 3, 2] with depths z [F, 3] at pixels [P, 2], by 2D areas.

    Returns:
        face [P] or -1, perspective-correct barycentrics [P, 3], depth [P].
    """

    def area(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])

    a, b, c = (corners[:, i, None] for i in range(3))  # [F, 1, 2]
    flat = torch.stack([area(b, c, pixels), area(c, a, pixels), area(a, b, pixels)], -1) / area(a, b, c)[..., None]
    over_z = flat / z[:, None]
    bary = over_z / over_z.sum(-1, keepdim=True)  # [F, P, 3]
    depth = torch.where((flat >= 0).all(-1), (bary * z[:, None]).sum(-1), math.inf)
    nearest, face = depth.min(0)
    bary = bary.gather(0, face[None, :, None].expand(1, -1, 3))[0]
    return torch.where(nearest < math.inf, face, -1), bary, nearest


def fake_pytorch3d() -> tuple[SimpleNamespace, SimpleNamespace]:
    """pytorch3d.renderer and pytorch3d.structures by their documented conventions; it writes -1 where nothing is."""

    class MeshRasterizer:
        def __init__(self, cameras: Any, raster_settings: Any) -> None:
            assert cameras.in_ndc is False and raster_settings.perspective_correct is True
            assert raster_settings.blur_radius == 0 and raster_settings.faces_per_pixel == 1
            assert not raster_settings.cull_backfaces and not raster_settings.clip_barycentric_coords
            self.cameras, self.size = cameras, raster_settings.image_size

        def __call__(self, meshes: Any) -> Any:
            c, (height, width) = self.cameras, self.size
            assert c.image_size.tolist() == [[height, width]] * len(c.R) and len(meshes.verts) == len(c.R)
            rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
            pixels = torch.stack([columns, rows], -1).reshape(-1, 2)
            out = []
            for v, (verts, faces) in enumerate(zip(meshes.verts, meshes.faces)):
                x, y, z = (verts @ c.R[v] + c.T[v]).unbind(1)  # +X left, +Y up
                screen = c.principal_point[v] - c.focal_length[v] * torch.stack([x / z, y / z], 1)
                face, bary, depth = brute_force(screen[faces], z[faces], pixels)
                hit = face >= 0
                out.append(
                    (
                        torch.where(hit, face + v * len(faces), -1).reshape(height, width, 1),
                        torch.where(hit, depth, -1.0).reshape(height, width, 1),
                        torch.where(hit[:, None], bary, -1.0).reshape(height, width, 1, 3),
                    )
                )
            ids, depths, barys = (torch.stack(t) for t in zip(*out))
            return SimpleNamespace(pix_to_face=ids, zbuf=depths, bary_coords=barys)

    def cameras(**k: Any) -> SimpleNamespace:
        return SimpleNamespace(**k)

    renderer = SimpleNamespace(MeshRasterizer=MeshRasterizer, PerspectiveCameras=cameras, RasterizationSettings=cameras)
    return renderer, SimpleNamespace(Meshes=cameras)


class FakeNvdiffrast:
    """nvdiffrast.torch by its documented conventions: clip space in, first row the lowest, face numbers from 1."""

    def RasterizeCudaContext(self, device: Any) -> str:
        return "context"

    def rasterize(self, context: str, pos: Tensor, tri: Tensor, resolution: list[int]) -> tuple[Tensor, None]:
        assert context == "context" and tri.dtype == torch.int32 and pos.is_contiguous()
        height, width = resolution
        rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        pixels = torch.stack([columns, rows], -1).reshape(-1, 2)
        out = []
        for clip in pos:
            ndc = clip[:, :3] / clip[:, 3:]
            assert bool((ndc[:, 2].abs() <= 1).all())  # nothing is cut off by the near and far planes
            window = (ndc[:, :2] + 1) / 2 * torch.tensor([width, height])
            face, bary, _ = brute_force(window[tri.long()], clip[:, 3][tri.long()], pixels)
            hit = (face >= 0)[:, None]
            channels = torch.cat([bary[:, :2], torch.zeros(len(face), 1), (face + 1.0)[:, None]], 1)
            out.append(torch.where(hit, channels, 0.0).reshape(height, width, 4))
        return torch.stack(out), None

    def interpolate(self, attr: Tensor, rast: Tensor, tri: Tensor) -> tuple[Tensor, None]:
        u, v, _, number = rast.unbind(-1)
        weights = torch.stack([u, v, 1 - u - v], -1)[..., None]
        corners = torch.stack([a[tri.long()][(n.long() - 1).clamp_min(0)] for a, n in zip(attr, number)])
        return torch.where((number > 0)[..., None], (weights * corners).sum(-2), 0.0), None


def install_pytorch3d(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("pytorch3d")
    package.__spec__ = ModuleSpec("pytorch3d", None)
    monkeypatch.setitem(sys.modules, "pytorch3d", package)
    for name, module in zip(("renderer", "structures"), fake_pytorch3d()):
        monkeypatch.setitem(sys.modules, f"pytorch3d.{name}", module)


def check_same(got: Fragments, want: Fragments) -> None:
    """The same visibility but for pixels whose centres lie on an edge, and there the same numbers."""
    same = got.face_id == want.face_id
    assert float(same.float().mean()) > 0.998 and float((want.face_id >= 0).float().mean()) > 0.2
    assert got.face_id.dtype == torch.int64 and got.bary.shape == want.bary.shape
    # measured 1e-5: the stand-ins' 2D areas are float32, the twin computes in float64
    torch.testing.assert_close(got.bary[same], want.bary[same], atol=1e-4, rtol=0)
    torch.testing.assert_close(got.depth[same], want.depth[same], atol=1e-4, rtol=0)
    empty = got.face_id < 0
    assert not got.bary[empty].any() and not got.depth[empty].any()


def through_nvdiffrast(vertices: Tensor, faces: Tensor, cameras: Cameras) -> Fragments:
    return meshes_nvdiffrast.rasterize_by(FakeNvdiffrast(), vertices, faces, cameras)


@pytest.mark.parametrize("adapter", [meshes_pytorch3d.rasterize, through_nvdiffrast], ids=["pytorch3d", "nvdiffrast"])
def test_adapters_speak_their_packages_conventions(adapter: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    install_pytorch3d(monkeypatch)
    vertices, faces = soup()
    cameras = views()
    check_same(adapter(vertices, faces, cameras), rasterize(vertices, faces, cameras, "torch"))
    none = adapter(vertices, faces[:0], cameras)
    assert none.face_id.shape == (2, 20, 31) and bool((none.face_id == -1).all())
    assert none.bary.shape == (2, 20, 31, 3) and not none.depth.any()
    # gradients reach the vertices and the cameras
    vertices.requires_grad_()
    moved = Cameras(cameras.view.clone().requires_grad_(), cameras.intrinsics, 20, 31)
    adapter(vertices, faces, moved).depth.sum().backward()
    assert vertices.grad is not None and bool(torch.isfinite(vertices.grad).all()) and vertices.grad.any()
    assert moved.view.grad is not None and moved.view.grad.any()


def test_render_reaches_pytorch3d_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    install_pytorch3d(monkeypatch)
    vertices, faces = soup()
    mesh = Mesh(vertices, faces, face_colours=torch.rand(len(faces), 3, generator=torch.Generator().manual_seed(1)))
    want = render(mesh, views(), shading="lambert", normals=True)
    calls = []
    monkeypatch.setattr(
        meshes_pytorch3d, "load_pytorch3d", lambda load=meshes_pytorch3d.load_pytorch3d: calls.append(1) or load()
    )
    render(mesh, views())
    assert calls == []
    got = render(mesh, views(), shading="lambert", normals=True, backend="pytorch3d")
    assert calls == [1]
    different = (got.rgb - want.rgb).abs().amax(1) > 0.01
    assert float(different.float().mean()) < 0.002


def test_the_nvdiffrast_licence_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("nvdiffrast")
    package.torch = FakeNvdiffrast()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", package.torch)
    meshes_nvdiffrast.say_licence.cache_clear()
    with pytest.warns(UserWarning, match=r"NVIDIA Source Code License, non-commercial use only") as seen:
        for _ in range(3):
            meshes_nvdiffrast.rasterize(*soup(), views())
    assert len(seen) == 1


def gaussians() -> Gaussians:
    return Gaussians(
        torch.zeros(1, 3),
        torch.zeros(1, 3),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.zeros(1),
        torch.zeros(1, 1, 3),
    )


def mesh() -> Mesh:
    return Mesh(*soup(2))


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_missing_package_is_one_line_that_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    scene = gaussians() if name == "gsplat" else mesh()
    with pytest.raises(InputError, match=rf'backend "{name}" needs the package {name} \(not installed\)') as error:
        render(scene, views(), backend=name)
    assert backends.BACKENDS[name].install in str(error.value) and "\n" not in str(error.value)
    assert backends.why_not(name) == "not installed"


@pytest.mark.parametrize("name", ["gsplat", "nvdiffrast"])
def test_without_cuda_it_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    scene = gaussians() if name == "gsplat" else mesh()
    with pytest.raises(InputError, match=rf'backend "{name}" needs a CUDA device and torch sees none; pass backend='):
        render(scene, views(), backend=name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backends.why_not(name) is None
    with pytest.raises(
        InputError, match=rf'backend "{name}" takes float32 tensors on a CUDA device, got float32 on cpu'
    ):
        render(scene, views(), backend=name)


@pytest.mark.parametrize("name", ["pytorch3d", "nvdiffrast"])
def test_a_package_that_does_not_import_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built for another torch: the package is found, its inside is not."""
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for inner in ("renderer", "structures", "torch"):
        monkeypatch.setitem(sys.modules, f"{name}.{inner}", None)
    adapter = {"pytorch3d": meshes_pytorch3d, "nvdiffrast": meshes_nvdiffrast}[name]
    with pytest.raises(InputError, match=rf'backend "{name}" is installed but does not import') as error:
        adapter.rasterize(*soup(2), views())
    assert "\n" not in str(error.value)


def test_unknown_and_unfit_names() -> None:
    with pytest.raises(InputError, match=r"unknown backend 'pytorch3' for meshes; .*did you mean 'pytorch3d'"):
        render(mesh(), views(), backend="pytorch3")
    with pytest.raises(
        InputError, match="unknown backend 'gsplat' for meshes: it renders Gaussians; choose one of cpu"
    ):
        render(mesh(), views(), backend="gsplat")
    with pytest.raises(InputError, match="unknown backend 'pytorch3d' for Gaussians: it renders meshes"):
        render(gaussians(), views(), backend="pytorch3d")
    with pytest.raises(InputError, match=r"unknown backend 3 for Gaussians; choose one of cpu, torch, gsplat$"):
        render(gaussians(), views(), backend=3)  # type: ignore[arg-type]
    assert backends.why_not("cpu") is None and backends.why_not("torch") is None
    with pytest.raises(InputError, match=r"takes float32 tensors on the CPU or a CUDA device, got float64 on cpu"):
        sys.modules["pytorch3d"] = ModuleType("pytorch3d")
        try:
            render(Mesh(soup()[0].double(), soup()[1]), views(), backend="pytorch3d")
        finally:
            del sys.modules["pytorch3d"]


def test_real_pytorch3d() -> None:
    pytest.importorskip("pytorch3d.renderer", reason="PyTorch3D is not installed: its adapter met a stand-in only")
    vertices, faces = soup()
    check_same(rasterize(vertices, faces, views(), "pytorch3d"), rasterize(vertices, faces, views(), "torch"))


def test_real_nvdiffrast() -> None:
    pytest.importorskip("nvdiffrast.torch", reason="nvdiffrast is not installed: its adapter met a stand-in only")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: nvdiffrast's adapter met a stand-in only")
    vertices, faces = soup()
    got = rasterize(vertices.cuda(), faces.cuda(), views().to("cuda"), "nvdiffrast")
    check_same(
        Fragments(got.face_id.cpu(), got.bary.cpu(), got.depth.cpu()), rasterize(vertices, faces, views(), "torch")
    )
