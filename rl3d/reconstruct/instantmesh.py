"""InstantMesh-format weights as a reconstructor (Xu et al. 2024, arXiv 2404.07191; code and weights Apache-2.0).

Views with their cameras become tokens of one triplane, and that a mesh with colours. The network is written anew here;
its tensors have the published names, so that a checkpoint of `instant_mesh_base` or `instant_mesh_large`, converted to
safetensors, loads strictly (its "lrm_generator." in front or not), and the sizes are read from the tensors.

    views     -> DINO's vision transformer, each layer shifted and scaled by the view's camera (16 numbers)
    all views -> cross-attention of a learned triplane's tokens, self-attention, perceptron; then twice the resolution
    triplane  -> at every corner of a grid a signed distance (negative inside) and how far the corner moves, at every
                 cube 21 weights: FlexiCubes of `rl3d.scenes.dual_marching_cubes`, whose vertices get colours

The world is the network's: +Z up, the asset's front along +X, the first camera at a distance of 4 (30 degrees of lens
in training, six views of Zero123++). The published quads are split by FlexiCubes' own rule; here each becomes four
triangles around the middle that the weights give, as in the paper's training. The NeRF variants ("net_sigma") are not
read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl3d.cameras import Cameras
from rl3d.errors import AssetError
from rl3d.reconstruct.published import count, fill, pictures, read
from rl3d.reconstruct.views import check_views
from rl3d.scenes.dual_marching_cubes import EDGES, flexicubes
from rl3d.scenes.isosurface import active_cubes, corner_steps, grid_points
from rl3d.scenes.mesh import Mesh

HEAD = 64  # channels of an attention head, in the encoder and in the transformer
EPS = 1e-12  # of the encoder's norms, as transformers' ViT has it
CAMERA = 16  # 3 x 4 camera-to-world (OpenGL's axes), then fx, fy, cx, cy over the picture's size
RADIUS, IMAGE_SIZE = 4.0, 320
BOX = 2.1  # the grid's side, world units; the triplane covers [-1, 1]
DEFORM = 4.0  # a corner moves by 1 / DEFORM of a unit cell (1 / grid) at most
WEIGHT = 0.5  # how far FlexiCubes' weights move from 1
CHUNK = 1 << 16  # corners, and cubes, at once
PREFIX = "lrm_generator."
CONVERT = (
    "save the tensors of its state_dict that begin with 'lrm_generator.' with safetensors.torch.save_file, where you "
    "trust the file"
)
# Published edges of a cube by corners (bits x, y, z), and where each is among `EDGES`.
_THEIRS = ((0, 1), (1, 5), (4, 5), (0, 4), (2, 3), (3, 7), (6, 7), (2, 6), (2, 0), (3, 1), (7, 5), (6, 4))
_EDGE_ORDER = [[tuple(sorted(pair)) for pair in _THEIRS].index(edge) for edge in EDGES]
_TO_THEIRS = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))  # (x, y, z) of ours is (z, x, y) there


def heads(width: int) -> int:
    return max(1, width // HEAD)


class Dense(nn.Module):
    """One linear layer under its published name."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.dense = nn.Linear(before, after)


class SelfAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = (
            m(x).unflatten(-1, (heads(x.shape[-1]), -1)).transpose(1, 2) for m in (self.query, self.key, self.value)
        )
        return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.output = SelfAttention(width), Dense(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output.dense(self.attention(x))


class ViTLayer(nn.Module):
    """A layer of transformers' ViT by its tensors' names, shifted and scaled by a camera's embedding."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.intermediate, self.output = Dense(width, hidden), Dense(hidden, width)
        self.layernorm_before, self.layernorm_after = (nn.LayerNorm(width, eps=EPS) for _ in range(2))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width))

    def forward(self, x: Tensor, camera: Tensor) -> Tensor:
        """x: [N, L, C]; camera: [N, C]."""
        shift, scale, shift_mlp, scale_mlp = self.adaLN_modulation(camera)[:, None].chunk(4, -1)
        x = x + self.attention(self.layernorm_before(x) * (1 + scale) + shift)
        y = self.layernorm_after(x) * (1 + scale_mlp) + shift_mlp
        return x + self.output.dense(F.gelu(self.intermediate.dense(y)))


class Embeddings(nn.Module):
    """Patches of pictures with their places, a learned token before them."""

    def __init__(self, width: int, patch: int, places: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, places, width))
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(3, width, patch, stride=patch)})

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch_embeddings["projection"](images)
        first, places = self.position_embeddings.split([1, self.position_embeddings.shape[1] - 1], 1)
        side = round(places.shape[1] ** 0.5)
        grid = places.transpose(1, 2).unflatten(2, (side, side))
        if tokens.shape[2:] != grid.shape[2:]:
            # DINO's own: the size is enlarged by a tenth of a patch, so that rounding cannot lose one.
            factors = [(n + 0.1) / side for n in tokens.shape[2:]]
            grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
        first = (self.cls_token + first).expand(len(images), -1, -1)
        return torch.cat([first, (tokens + grid).flatten(2).transpose(1, 2)], 1)


class VisionTransformer(nn.Module):
    def __init__(self, width: int, hidden: int, layers: int, patch: int, places: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(width, patch, places)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(ViTLayer(width, hidden) for _ in range(layers))})
        self.layernorm = nn.LayerNorm(width, eps=EPS)

    def forward(self, images: Tensor, camera: Tensor) -> Tensor:
        x, layers = self.embeddings(images), self.encoder["layer"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = layer(x, camera)
        return self.layernorm(x)


class Encoder(nn.Module):
    """DINO's ViT with cameras: pictures [N, 3, S, S] and cameras [N, 16] to tokens [N, 1 + (S / P)^2, C]."""

    def __init__(self, width: int, hidden: int, layers: int, patch: int, places: int) -> None:
        super().__init__()
        self.model = VisionTransformer(width, hidden, layers, patch, places)
        self.camera_embedder = nn.Sequential(nn.Linear(CAMERA, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, images: Tensor, cameras: Tensor) -> Tensor:
        return self.model(images, self.camera_embedder(cameras))


class TriplaneLayer(nn.Module):
    """Tokens of the triplane look at the views', at each other, and think."""

    def __init__(self, width: int, seen: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        attention = partial(nn.MultiheadAttention, width, heads(width), bias=False, batch_first=True)
        self.cross_attn, self.self_attn = attention(kdim=seen, vdim=seen), attention()
        # Places 2 and 4 of the published perceptron are dropout without a share.
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Identity(), nn.Linear(4 * width, width), nn.Identity()
        )

    def forward(self, x: Tensor, views: Tensor) -> Tensor:
        x = x + self.cross_attn(self.norm1(x), views, views, need_weights=False)[0]
        y = self.norm2(x)
        x = x + self.self_attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm3(x))


class TriplaneTransformer(nn.Module):
    """Views' tokens [B, N, C] to planes [B, 3, F, 2 R, 2 R]: of (x, y), (x, z), (z, y), the first along the width."""

    def __init__(self, width: int, seen: int, layers: int, places: int, features: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, places, width))
        self.layers = nn.ModuleList(TriplaneLayer(width, seen) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.deconv = nn.ConvTranspose2d(width, features, 2, stride=2)

    def forward(self, views: Tensor) -> Tensor:
        x = self.pos_embed.expand(len(views), -1, -1)
        for layer in self.layers:
            x = layer(x, views)
        side = round((x.shape[1] / 3) ** 0.5)
        planes = self.norm(x).unflatten(1, (3, side, side)).flatten(0, 1).permute(0, 3, 1, 2)
        return self.deconv(planes).unflatten(0, (-1, 3))


class Decoder(nn.Module):
    """Four perceptrons on a triplane's features at points: distance, colour, deformation, and weights of cubes."""

    def __init__(self, features: int, hidden: int, layers: int) -> None:
        super().__init__()

        def perceptron(before: int, out: int) -> nn.Sequential:
            middle = [m for _ in range(layers - 2) for m in (nn.Linear(hidden, hidden), nn.ReLU())]
            return nn.Sequential(nn.Linear(before, hidden), nn.ReLU(), *middle, nn.Linear(hidden, out))

        self.net_sdf, self.net_rgb = perceptron(3 * features, 1), perceptron(3 * features, 3)
        self.net_deformation, self.net_weight = perceptron(3 * features, 3), perceptron(24 * features, 21)


@dataclass(frozen=True)
class InstantMeshConfig:
    """Sizes of the network, from its tensors; `grid`: cubes a side, which no tensor says."""

    encoder: tuple[int, int, int, int, int]  # width, hidden, layers, patch, places
    triplane: tuple[int, int, int, int, int]  # width, width of the views' tokens, layers, places, features
    decoder: tuple[int, int, int]  # features, hidden, layers
    grid: int = 128


class InstantMeshModel(nn.Module):
    """See the module."""

    def __init__(self, config: InstantMeshConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.transformer = Encoder(*config.encoder), TriplaneTransformer(*config.triplane)
        self.synthesizer = nn.ModuleDict({"decoder": Decoder(*config.decoder)})

    @property
    def decoder(self) -> Decoder:
        found = self.synthesizer["decoder"]
        assert isinstance(found, Decoder)
        return found

    def planes(self, images: Tensor, cameras: Tensor) -> Tensor:
        """[B, 3, F, R, R] of normalised pictures [B, V, 3, S, S] and cameras [B, V, 16]; differentiable."""
        tokens = self.encoder(images.flatten(0, 1), cameras.flatten(0, 1))
        return self.transformer(tokens.unflatten(0, images.shape[:2]).flatten(1, 2))

    def mesh(self, planes: Tensor) -> Mesh:
        """The surface of one triplane [3, F, R, R] in the network's world, vertices coloured; differentiable.

        Without faces where the distances have one sign.
        """
        n, decoder = self.config.grid, self.decoder
        box = planes.new_tensor([[-0.5] * 3, [0.5] * 3]) * BOX
        points = grid_points(box, (n + 1, n + 1, n + 1))
        flat = points.reshape(-1, 3)
        found = [_at(planes, part) for part in flat.split(CHUNK)]
        values = torch.cat([decoder.net_sdf(f)[:, 0] for f in found]).view(n + 1, n + 1, n + 1)
        moves = torch.cat([decoder.net_deformation(f) for f in found]).tanh() / (DEFORM * n)
        active = active_cubes(values)
        corners = active[:, None] + corner_steps(tuple(values.shape), planes.device)
        alpha, beta, gamma = planes.new_ones(n**3, 8), planes.new_ones(n**3, 12), planes.new_ones(n**3)
        z, y, x = torch.unravel_index(active, values.shape)
        cell = (z * n + y) * n + x
        if len(active):
            raw = torch.cat([decoder.net_weight(_at(planes, flat[c]).flatten(1)) for c in corners.split(CHUNK // 8)])
            raw = 0.1 * raw
            beta = beta.index_copy(0, cell, (1 + WEIGHT * raw[:, :12].tanh())[:, _EDGE_ORDER])
            alpha = alpha.index_copy(0, cell, 1 + WEIGHT * raw[:, 12:20].tanh())
            gamma = gamma.index_copy(0, cell, WEIGHT * raw[:, 20].sigmoid() + (1 - WEIGHT) / 2)
        cubes = (n, n, n)
        mesh, _ = flexicubes(
            values, (flat + moves).view(points.shape), alpha.view(*cubes, 8), beta.view(*cubes, 12), gamma.view(cubes)
        )
        if not len(mesh.vertices):
            return mesh
        rgb = torch.cat([decoder.net_rgb(_at(planes, part)) for part in mesh.vertices.split(CHUNK)]).sigmoid()
        colours = 1.002 * rgb - 0.001
        return Mesh(mesh.vertices, mesh.faces, vertex_colours=colours.clamp(0, 1))


def _at(planes: Tensor, points: Tensor) -> Tensor:
    """[..., 3 F] features of a triplane [3, F, R, R] at points [..., 3]; nothing outside [-1, 1]."""
    x, y, z = points.reshape(-1, 3).unbind(-1)
    where = torch.stack([torch.stack(pair, -1) for pair in ((x, y), (x, z), (z, y))])  # [3, M, 2]
    found = F.grid_sample(planes, where[:, None], align_corners=False)[:, :, 0]  # [3, F, M]
    return found.permute(2, 0, 1).reshape(*points.shape[:-1], -1)


@dataclass(frozen=True)
class InstantMesh:
    """A `Reconstructor`: see the module and `load_instantmesh`. Six views are what the weights were trained with.

    At the published sizes one asset asks about two million points, some seconds on a GPU and minutes on a CPU.
    """

    model: InstantMeshModel = field(repr=False)
    image_size: int = IMAGE_SIZE
    name: str = "instantmesh"

    licence = "Apache-2.0 (InstantMesh's weights), Objaverse (their training data)"
    shared = True
    differentiable = True

    def __call__(self, images: Tensor, cameras: Cameras) -> list[Mesh]:
        """See `Reconstructor`; gradients reach the images. A mesh has no faces where nothing was found."""
        every = check_views(images, cameras, self.name)
        views = images.shape[1]
        numbers, scale = camera_numbers(every, views)
        planes = self.model.planes(pictures(images, self.image_size), numbers.unflatten(0, (-1, views)))
        meshes = [self.model.mesh(asset) for asset in planes.float()]
        turn = images.new_tensor(_TO_THEIRS)
        return [replace(mesh, vertices=mesh.vertices @ turn / s) for mesh, s in zip(meshes, scale)]


def camera_numbers(cameras: Cameras, views: int) -> tuple[Tensor, Tensor]:
    """[B * V, 16] as the network takes cameras, and the scale [B] of its world beside ours.

    The first of an asset's `views` cameras stands RADIUS away from the origin there.
    """
    poses, turn = cameras.poses, cameras.view.new_tensor(_TO_THEIRS)
    scale = RADIUS / poses[::views, :3, 3].norm(dim=1)
    axes = turn @ poses[:, :3, :3] * poses.new_tensor([1.0, -1.0, -1.0])  # OpenGL's camera axes
    place = scale.repeat_interleave(views)[:, None] * poses[:, :3, 3] @ turn.T
    k, size = cameras.intrinsics, cameras.view.new_tensor([cameras.width, cameras.height])
    lens = torch.cat([k[:, [0, 1], [0, 1]] / size, k[:, :2, 2] / size], 1)
    return torch.cat([torch.cat([axes, place[:, :, None]], 2).flatten(1), lens], 1), scale


def config_of(weights: Mapping[str, Tensor], grid: int) -> InstantMeshConfig:
    """The sizes that tensors under the published names have.

    Raises:
        KeyError: they are of something else.
    """
    vit = "encoder.model."
    width = weights[vit + "embeddings.cls_token"].shape[-1]
    encoder = (
        width,
        len(weights[vit + "encoder.layer.0.intermediate.dense.weight"]),
        count(weights, vit + "encoder.layer"),
        weights[vit + "embeddings.patch_embeddings.projection.weight"].shape[-1],
        weights[vit + "embeddings.position_embeddings"].shape[1],
    )
    places, features = weights["transformer.pos_embed"].shape[1:], weights["transformer.deconv.weight"].shape[1]
    triplane = (places[1], width, count(weights, "transformer.layers"), places[0], features)
    sdf = "synthesizer.decoder.net_sdf"
    layers = sum(k.startswith(sdf) and k.endswith(".weight") for k in weights)
    return InstantMeshConfig(encoder, triplane, (features, len(weights[sdf + ".0.weight"]), layers), grid)


def load_instantmesh(place: str | Path, device: torch.device | str = "cpu", *, grid: int = 128) -> InstantMesh:
    """InstantMesh with published weights: see `rl3d.reconstruct.published.read` for what `place` may be.

    They are published pickled and have to be converted first; the error says how.

    Args:
        grid: cubes a side of the surface's grid, 128 in training; fewer are faster and coarser.

    Raises:
        InputError: nothing is there.
        AssetError: pickled, truncated, several or foreign files.
    """
    weights, folder = read(place, CONVERT)
    weights = {k.removeprefix(PREFIX): v for k, v in weights.items()}
    try:
        model = InstantMeshModel(config_of(weights, grid))
    except KeyError as error:
        raise AssetError(f"{folder} is no checkpoint of InstantMesh's meshes: {error} is missing") from error
    fill(model, weights, "InstantMesh", folder)
    return InstantMesh(model.to(device).eval().requires_grad_(False))
