"""InstantMesh-format weights: the published layout, cameras, the triplane's surface, and files. Weights are tiny."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rl3d.cameras import Cameras
from rl3d.errors import AssetError, InputError
from rl3d.reconstruct import InstantMesh, load_instantmesh, look
from rl3d.reconstruct.instantmesh import PREFIX, InstantMeshConfig, InstantMeshModel, camera_numbers, config_of
from rl3d.reconstruct.published import pictures
from rl3d.scenes.mesh import Mesh

# width, hidden, layers, patch, places; width, seen, layers, places, features; features, hidden, layers
TINY = InstantMeshConfig((32, 48, 2, 8, 5), (24, 32, 2, 48, 4), (4, 8, 3), grid=10)


def tiny(config: InstantMeshConfig = TINY) -> InstantMeshModel:
    torch.manual_seed(0)
    model = InstantMeshModel(config)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.3 * torch.randn_like(tensor))
        model.decoder.net_sdf[-1].weight.mul_(10)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def instantmesh() -> InstantMesh:
    return InstantMesh(tiny(), image_size=16)


def ring(distance: float = 4.0) -> Cameras:
    turns = torch.tensor([30.0, 90, 150, 210, 270, 330])
    heights = torch.tensor([20.0, -10] * 3)
    return Cameras.orbit(turns * math.pi / 180, heights * math.pi / 180, distance, math.pi / 6, 16)


def test_the_published_models_have_the_published_sizes() -> None:
    """The checkpoints hold float32: 1.25 GB (base) and 1.51 GB (large)."""
    for layers, features, count in ((12, 40, 313_352_516), (16, 80, 378_657_644)):
        config = InstantMeshConfig((768, 3072, 12, 16, 197), (1024, 768, layers, 3072, features), (features, 64, 4))
        with torch.device("meta"):
            model = InstantMeshModel(config)
            planes = model.planes(torch.zeros(1, 6, 3, 320, 320), torch.zeros(1, 6, 16))
        assert planes.shape == (1, 3, features, 64, 64)
        assert sum(p.numel() for p in model.parameters()) == count
        assert config_of(model.state_dict(), 128) == config


def test_its_tensors_have_the_published_names(instantmesh: InstantMesh) -> None:
    names = {k: tuple(v.shape) for k, v in instantmesh.model.state_dict().items()}
    layer = "encoder.model.encoder.layer.1."
    expected = {
        "encoder.camera_embedder.2.weight": (32, 32),
        "encoder.model.embeddings.cls_token": (1, 1, 32),
        "encoder.model.embeddings.position_embeddings": (1, 5, 32),
        "encoder.model.embeddings.patch_embeddings.projection.weight": (32, 3, 8, 8),
        layer + "attention.attention.query.bias": (32,),
        layer + "attention.output.dense.weight": (32, 32),
        layer + "intermediate.dense.weight": (48, 32),
        layer + "output.dense.weight": (32, 48),
        layer + "layernorm_before.weight": (32,),
        layer + "adaLN_modulation.1.weight": (128, 32),
        "encoder.model.layernorm.bias": (32,),
        "transformer.pos_embed": (1, 48, 24),
        "transformer.layers.1.cross_attn.k_proj_weight": (24, 32),
        "transformer.layers.1.cross_attn.out_proj.weight": (24, 24),
        "transformer.layers.1.self_attn.in_proj_weight": (72, 24),
        "transformer.layers.0.mlp.0.weight": (96, 24),
        "transformer.layers.0.mlp.3.bias": (24,),
        "transformer.norm.weight": (24,),
        "transformer.deconv.weight": (24, 4, 2, 2),
        "synthesizer.decoder.net_sdf.0.weight": (8, 12),
        "synthesizer.decoder.net_deformation.4.bias": (3,),
        "synthesizer.decoder.net_weight.0.weight": (8, 96),
        "synthesizer.decoder.net_weight.4.weight": (21, 8),
        "synthesizer.decoder.net_rgb.2.bias": (8,),
    }
    assert {k: names.get(k) for k in expected} == expected


def test_cameras_are_those_of_training() -> None:
    """The first of Zero123++'s: 30 degrees round and 20 up in a world with +Z up, 4 away, a lens of 30 degrees."""
    numbers, scale = camera_numbers(ring(2.0), 6)
    a, e = math.radians(30), math.radians(20)
    eye = 4 * torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    pose = numbers[0, :12].view(3, 4)
    assert float(scale) == pytest.approx(2.0) and torch.allclose(pose[:, 3], eye, atol=1e-5)
    assert torch.allclose(pose[:, 2], eye / 4, atol=1e-6)  # backwards, as OpenGL has it
    assert torch.allclose(pose[:, 0], torch.tensor([-math.sin(a), math.cos(a), 0.0]), atol=1e-6)  # to the right
    focal = 0.5 / math.tan(math.radians(15))
    assert torch.allclose(numbers[0, 12:], torch.tensor([focal, focal, 0.5, 0.5]), atol=1e-5)


def flat_wall() -> InstantMeshModel:
    """Distances x - 0.2 of its world, from planes whose one feature is the position along the width."""
    model = InstantMeshModel(InstantMeshConfig((32, 48, 1, 8, 5), (24, 32, 1, 48, 1), (1, 1, 2), grid=10))
    with torch.no_grad():
        for tensor in model.decoder.parameters():
            tensor.zero_()
        first, last = model.decoder.net_sdf[0], model.decoder.net_sdf[-1]
        first.weight[0, 0], first.bias[0] = 1.0, 10.0  # of the plane (x, y); ReLU passes x + 10
        last.weight[0, 0], last.bias[0] = 1.0, -10.2
        model.decoder.net_rgb[-1].bias.copy_(torch.tensor([0.0, 100.0, -100.0]))
    return model.requires_grad_(False)


def test_the_surface_of_a_known_triplane() -> None:
    steps = (torch.arange(20) + 0.5) / 10 - 1  # the centres of 20 texels over [-1, 1]
    planes = steps.expand(3, 1, 20, 20).clone()
    wall = flat_wall().mesh(planes)
    inside = (wall.vertices.abs() < 0.7).all(1)  # outside of the texels' centres the features fade
    assert int(inside.sum()) > 50
    assert torch.allclose(wall.vertices[inside, 0], torch.tensor(0.2), atol=1e-5)
    seen = inside[wall.faces].all(1)
    assert torch.allclose(wall.face_normals[seen], torch.tensor([1.0, 0, 0]), atol=1e-4)  # out of the negative side
    assert wall.vertex_colours is not None
    assert torch.allclose(wall.vertex_colours[0], torch.tensor([0.5, 1.0, 0.0]), atol=1e-6)
    model = flat_wall()
    with torch.no_grad():
        model.decoder.net_sdf[-1].bias.add_(5)  # nothing is inside
    nothing = model.mesh(planes)
    assert len(nothing.faces) == 0 and not look([nothing], ring()).any()


def test_meshes_come_back_to_our_world(instantmesh: InstantMesh, random_views: Callable) -> None:
    images = random_views(1, 6)
    (here,), (there,) = instantmesh(images, ring(4.0)), instantmesh(images, ring(8.0))
    assert isinstance(here, Mesh) and len(here.faces) > 20
    assert torch.allclose(there.vertices, 2 * here.vertices, atol=1e-4)
    model = instantmesh.model
    numbers, _ = camera_numbers(ring(4.0), 6)
    (planes,) = model.planes(pictures(images, 16), numbers[None])
    theirs = model.mesh(planes).vertices
    assert torch.allclose(here.vertices, theirs[:, [1, 2, 0]], atol=1e-5)  # their +X is our +Z, +Z our +Y
    assert look([here], ring(4.0)).shape == (1, 6, 4, 16, 16)


def test_gradients_reach_the_views(instantmesh: InstantMesh, random_views: Callable) -> None:
    assert instantmesh.shared and instantmesh.differentiable
    images = random_views(1, 3).requires_grad_()
    (mesh,) = instantmesh(images, ring()[[0, 2, 4]])
    mesh.vertices.square().sum().backward()
    assert images.grad is not None and bool((images.grad.abs().amax((0, 2, 3, 4)) > 0).all())


def test_other_picture_sizes_interpolate_the_places(random_views: Callable) -> None:
    model = tiny()
    tokens = model.encoder(torch.zeros(1, 3, 24, 24), torch.zeros(1, 16))
    assert tokens.shape == (1, 1 + 9, 32)  # 3 x 3 patches of 8 pixels, where 2 x 2 places were learned


def test_checkpoints_load_strictly(instantmesh: InstantMesh, tmp_path: Path) -> None:
    weights = {k: v.contiguous() for k, v in instantmesh.model.state_dict().items()}
    for prefix in ("", PREFIX):
        save_file({prefix + k: v for k, v in weights.items()}, tmp_path / "model.safetensors")
        loaded = load_instantmesh(tmp_path, grid=10)
        assert loaded.model.config == TINY
        assert all(torch.equal(v, weights[k]) for k, v in loaded.model.state_dict().items())
    nerf = {k.replace("net_sdf", "net_sigma"): v for k, v in weights.items()}
    cases = {
        "net_sdf.0.weight' is missing": nerf,
        "encoder.model.layernorm.bias is nothing": {k: v for k, v in weights.items() if "model.layernorm.b" not in k},
        "more is .1., expected nothing": {**weights, "more": torch.zeros(1)},
    }
    for message, wrong in cases.items():
        save_file(wrong, tmp_path / "model.safetensors")
        with pytest.raises(AssetError, match=message):
            load_instantmesh(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "instant_mesh_large.ckpt")
    with pytest.raises(AssetError, match="lrm_generator"):
        load_instantmesh(tmp_path)
    with pytest.raises(InputError, match="instantmesh takes float views"):
        instantmesh(torch.zeros(1, 3, 16, 16), ring())
