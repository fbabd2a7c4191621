"""Pictures, gradients and cameras against PyTorch3D's CPU kernels, where it is installed (it is built from source)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.render import rasterize, render
from rl3d.scenes import Mesh

p3d: Any = pytest.importorskip("pytorch3d.renderer", reason="PyTorch3D is not installed: nothing to compare with")

SIZE = (48, 60)


def cameras() -> Cameras:
    return Cameras.orbit(torch.tensor([0.5, 2.9]), torch.tensor([0.3, -0.4]), 2.2, 0.6, SIZE)


def scene() -> Mesh:
    """A twisted tetrahedron that pierces a tilted square: occlusion, intersection and slanted edges."""
    vertices = torch.tensor(
        [
            *[[-0.45, -0.4, 0.3], [0.5, -0.35, 0.2], [0.05, 0.5, 0.1], [0.0, -0.1, -0.5]],
            *[[-0.5, -0.2, -0.4], [0.5, -0.3, -0.3], [0.55, 0.25, 0.35], [-0.45, 0.35, 0.25]],
        ]
    )
    faces = torch.tensor([[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0], [4, 5, 6], [4, 6, 7]])
    return Mesh(vertices, faces, vertex_colours=torch.rand(8, 3, generator=torch.Generator().manual_seed(3)))


def theirs(view: Cameras) -> Any:
    return p3d.PerspectiveCameras(**view.to_pytorch3d(), in_ndc=False)


def fragments(mesh: Mesh, view: Cameras, blur: float = 0.0, faces: int = 1) -> tuple[Any, Any]:
    """PyTorch3D's own fragments of the mesh, and its mesh."""
    from pytorch3d.structures import Meshes

    options = p3d.RasterizationSettings(image_size=SIZE, blur_radius=blur, faces_per_pixel=faces, bin_size=0)
    textures = p3d.TexturesVertex([mesh.vertex_colours])
    meshes = Meshes([mesh.vertices], [mesh.faces], textures).extend(len(view))
    return p3d.MeshRasterizer(theirs(view), options)(meshes), meshes


def test_its_cameras_project_as_ours() -> None:
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    ours, depth = cameras().project(points)
    screen = theirs(cameras()).transform_points_screen(points, image_size=torch.tensor([SIZE, SIZE]))
    torch.testing.assert_close(screen[..., :2], ours, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(theirs(cameras()).get_world_to_view_transform().transform_points(points)[..., 2], depth)


def test_pictures_agree() -> None:
    seen, meshes = fragments(scene(), cameras())
    colours = meshes.sample_textures(seen)[..., 0, :].permute(0, 3, 1, 2)
    hit = seen.pix_to_face[..., 0] >= 0
    frames = render(scene(), cameras(), antialias=False)
    same = hit == (frames.alpha[:, 0] > 0.5)
    assert float((~same).float().mean()) < 2e-3
    both = hit & (frames.alpha[:, 0] > 0.5)
    for got, want in ((frames.rgb, colours), (frames.depth, seen.zbuf[..., 0][:, None])):
        error = (got - want).abs().amax(1)[both]
        assert float(error.quantile(0.995)) < 1e-4


def test_gradients_inside_faces_agree() -> None:
    generator = torch.Generator().manual_seed(1)
    cotangents = torch.randn(2, *SIZE, 4, generator=generator)

    def gradient(bary: Tensor, depth: Tensor, face: Tensor, vertices: Tensor, agreed: Tensor) -> Tensor:
        value = torch.cat([bary, depth[..., None]], -1) * cotangents
        return torch.autograd.grad(value[agreed].sum(), vertices)[0]

    mesh, results = scene(), []
    ours_leaf = mesh.vertices.clone().requires_grad_()
    theirs_leaf = mesh.vertices.clone().requires_grad_()
    ours = rasterize(ours_leaf, mesh.faces, cameras(), "torch")
    seen, _ = fragments(Mesh(theirs_leaf, mesh.faces, vertex_colours=mesh.vertex_colours), cameras())
    face = seen.pix_to_face[..., 0]
    face = torch.where(face >= 0, face % len(mesh.faces), face)
    agreed = (face == ours.face_id) & (face >= 0)
    assert float(agreed.float().sum() / (face >= 0).sum()) > 0.99
    results.append(gradient(ours.bary, ours.depth, ours.face_id, ours_leaf, agreed))
    results.append(gradient(seen.bary_coords[..., 0, :], seen.zbuf[..., 0], face, theirs_leaf, agreed))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3 * float(results[1].abs().max()))


SIGMA = 1e-4  # of SoftRas, in its squared screen units; its best here: fewer pixels see a smaller blur


def moved(vertices: Tensor) -> Mesh:
    return Mesh(vertices, scene().faces, vertex_colours=scene().vertex_colours)


def area(vertices: Tensor, samples: int = 1) -> Tensor:
    """The covered share of the pictures, by our antialiased silhouettes."""
    return render(moved(vertices), cameras(), supersample=samples).alpha.mean()


def softras(vertices: Tensor) -> Tensor:
    """The same by PyTorch3D's, which are blurred over the pixels around every edge."""
    seen, _ = fragments(moved(vertices), cameras(), blur=12 * SIGMA, faces=12)
    colours = torch.ones(*seen.pix_to_face.shape, 3)
    return p3d.sigmoid_alpha_blend(colours, seen, p3d.BlendParams(sigma=SIGMA))[..., 3].mean()


def gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = scene().vertices.requires_grad_()
    return torch.autograd.grad(of(leaf), leaf)[0].flatten()


def test_silhouettes_pull_the_same_way() -> None:
    a, b = gradient(area), gradient(softras)
    assert float(torch.cosine_similarity(a, b, 0)) > 0.985  # measured: 0.994
    assert 0.93 < float(a.norm() / b.norm()) < 1.01  # measured: 0.969


def test_silhouettes_pull_as_the_area_changes() -> None:
    """Against finite differences of the area at 16 x 16 samples a pixel."""
    vertices, h = scene().vertices, 2e-2
    slopes = []
    with torch.no_grad():
        for k in range(vertices.numel()):
            step = torch.zeros(vertices.numel()).index_fill(0, torch.tensor([k]), h).reshape_as(vertices)
            slopes.append((area(vertices + step, 16).double() - area(vertices - step, 16).double()) / (2 * h))
    truth = torch.stack(slopes).float()
    # cosine, length: measured 0.9996, 0.975 of ours; 0.995, 1.006 of SoftRas
    for found, cosine, least, most in ((gradient(area), 0.999, 0.95, 1.0), (gradient(softras), 0.99, 0.98, 1.03)):
        assert float(torch.cosine_similarity(found, truth, 0)) > cosine
        assert least < float(found.norm() / truth.norm()) < most
