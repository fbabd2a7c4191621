"""The embedded feed-forward reconstructor: splats on the views' visual hull, corrected once by a network.

A fit moves splats from the hull by many steps; here a transformer has looked at all views at once (RGBA and Pluecker
rays, Zhang et al. 2024, arXiv 2402.14817) and says in one step where every splat goes. The hull is the bottleneck: a
splat starts on the volume that all silhouettes share, moves by `REACH` voxels at most, has one colour for every camera,
and no view owns any.

    start   = splats on the surface of the hull (`start_from_hull`), x_i with colour c_i
    F       = transformer(patches of all views)
    h_iv    = mlp(F_v(x_i), RGBA_v(x_i), direction from x_i to camera v)
    g_i     = mlp(mean_v h_iv, max_v h_iv, start_i)
    splat_i = start_i + W g_i,   colour_i = sum_v w_iv RGB_v(x_i) + w_i0 c_i + residual_i, w_i = softmax(a g_i, u h_iv)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl3d.assets import model_folder
from rl3d.cameras import Cameras
from rl3d.model_files import read_weights, readable, write_weights
from rl3d.ranges import need
from rl3d.reconstruct.lift import RADIUS, project, sample_images, start_from_hull
from rl3d.reconstruct.options import LiftOptions
from rl3d.reconstruct.splats import smallest_scale
from rl3d.reconstruct.views import check_views
from rl3d.scenes.gaussians import SH_C0, Gaussians

REACH = 2.0  # voxels of the hull's grid that a splat may move along each axis
SPREAD = 1.5  # how far the log of a scale may move
OCTAVES = 4  # of the sines and cosines of a splat's place
OUTPUTS = 14  # of a splat: 3 place, 3 scales, 4 quaternion, 1 opacity, 3 colour


@dataclass(frozen=True)
class FeedForwardConfig:
    """Sizes of the network and of the start."""

    image_size: int = 64  # pixels at which the transformer looks; other views are resampled for it
    patch: int = 8  # pixels a token covers in each direction, a multiple of 4
    width: int = 192
    depth: int = 5
    heads: int = 4
    features: int = 48  # channels of the maps (4 pixels a cell) that the splats look at
    hidden: int = 128  # of the perceptrons of the splats
    gaussians: int = 1200  # fewer where the hull is small
    grid: int = 40  # voxels a side of the hull

    def __post_init__(self) -> None:
        sizes = (self.width, self.depth, self.heads, self.features, self.hidden, self.patch, self.image_size)
        need(min(sizes) >= 1, f"sizes of the network must be at least 1, got {min(sizes)}")
        need(self.patch % 4 == 0, f"patch must be a multiple of 4, got {self.patch}")
        need(self.image_size % self.patch == 0, f"patch {self.patch} does not divide image_size {self.image_size}")
        need(self.width % self.heads == 0, f"heads {self.heads} do not divide width {self.width}")


class ReconstructorModel(nn.Module):
    """See the module. Its last layers start at zero, so that an untrained one gives the hull's own splats."""

    def __init__(self, config: FeedForwardConfig) -> None:
        super().__init__()
        self.config = config
        c, fold = config, config.patch // 4
        self.patch_in = nn.Linear(10 * c.patch**2, c.width)
        self.stem = nn.Conv2d(10, c.features, 4, stride=4)
        layer = nn.TransformerEncoderLayer(
            c.width, c.heads, 4 * c.width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, c.depth, nn.LayerNorm(c.width), enable_nested_tensor=False)
        self.unfold = nn.Linear(c.width, c.features * fold**2)
        self.of_view = nn.Sequential(
            nn.Linear(2 * c.features + 7, c.hidden), nn.GELU(), nn.Linear(c.hidden, c.hidden), nn.GELU()
        )
        start = 3 + 6 * OCTAVES + 3 + 1
        self.of_splat = nn.Sequential(
            nn.Linear(2 * c.hidden + start, 2 * c.hidden), nn.GELU(), nn.Linear(2 * c.hidden, c.hidden), nn.GELU()
        )
        self.out = nn.Linear(c.hidden, OUTPUTS)
        self.own_colour = nn.Linear(c.hidden, 1)
        self.view_colour = nn.Linear(c.hidden, 1)
        for head in (self.out, self.own_colour, self.view_colour):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        nn.init.constant_(self.own_colour.bias, 3.0)

    def forward(self, images: Tensor, cameras: Cameras) -> list[Gaussians]:
        """Scenes of views [B, V, 4, H, W] and their B * V cameras; differentiable to the images but for where the hull
        puts its splats.

        Raises:
            NoSharedVolume: the views of an asset share no volume.
        """
        b, v = images.shape[:2]
        sets = [cameras[slice(i * v, (i + 1) * v)] for i in range(b)]
        options = LiftOptions(gaussians=self.config.gaussians, grid=self.config.grid)
        exact = torch.autocast(images.device.type, enabled=False)  # places need more digits than bfloat16 has
        with exact:
            # A generator an asset: the same splats whatever else is in the batch.
            starts = [start_from_hull(x, c, options, torch.Generator().manual_seed(0)) for x, c in zip(images, sets)]
            pixels = self.pixels(images, cameras)
        maps = self.maps(pixels, v)
        with exact:
            seen = [self.seen(*asset) for asset in zip(maps, images, sets, starts)]
        start = {k: torch.cat([s[k] for s in starts]) for k in starts[0]}
        colours = torch.cat([straight for _, straight in seen], 1)  # [V, sum of N, 3]
        h = self.of_view(torch.cat([around for around, _ in seen], 1))  # [V, sum of N, hidden]
        angles = start["means"][:, None] * (math.pi / RADIUS * 2.0 ** torch.arange(-1, OCTAVES - 1).to(images)[:, None])
        known = (start["means"], angles.sin().flatten(1), angles.cos().flatten(1), start["colours"])
        g = self.of_splat(torch.cat([h.mean(0), h.amax(0), *known, start["opacity_logits"][:, None]], 1))
        logits = torch.cat([self.own_colour(g)[None], self.view_colour(h)]).float()  # [1 + V, sum of N, 1]
        blend = (logits.softmax(0) * torch.cat([start["colours"][None], colours])).sum(0)
        counts = [len(s["means"]) for s in starts]
        floors = [torch.full((n, 1), math.log(smallest_scale(c))) for n, c in zip(counts, sets)]
        return self.corrected(start, blend, self.out(g).float(), torch.cat(floors).to(images), counts)

    def pixels(self, images: Tensor, cameras: Cameras) -> Tensor:
        """[B * V, 10, S, S] at the network's size: RGBA, then direction and moment of every pixel's ray."""
        flat, size = images.flatten(0, 1), self.config.image_size
        if flat.shape[2:] != (size, size):
            flat = F.interpolate(flat, (size, size), mode="bilinear", antialias=True, align_corners=False)
        origins, directions = cameras.resized(size).rays()
        rays = torch.cat([directions, torch.linalg.cross(origins, directions)], -1)
        return torch.cat([flat, rays.permute(0, 3, 1, 2)], 1)

    def maps(self, pixels: Tensor, views: int) -> Tensor:
        """[B, V, 2 * features, S / 4, S / 4]: what the transformer and a convolution make of every view."""
        patch = self.config.patch
        tokens = self.patch_in(F.pixel_unshuffle(pixels, patch).flatten(2).transpose(1, 2))
        tokens = self.blocks(tokens.unflatten(0, (-1, views)).flatten(1, 2))
        side = self.config.image_size // patch
        coarse = self.unfold(tokens).unflatten(1, (views, side, side)).flatten(0, 1).permute(0, 3, 1, 2)
        both = torch.cat([F.pixel_shuffle(coarse, patch // 4).float(), self.stem(pixels).float()], 1)
        return both.unflatten(0, (-1, views))

    def seen(self, maps: Tensor, images: Tensor, cameras: Cameras, start: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What V views show where the splats of one asset are: all of it [V, N, .], and straight colours [V, N, 3]."""
        xy, _ = project(start["means"], cameras)
        rgba = sample_images(images, xy)
        towards = F.normalize(cameras.centres[:, None] - start["means"], dim=-1)
        straight = rgba[..., :3] / rgba[..., 3:].clamp_min(0.1)
        return torch.cat([sample_images(maps, xy), rgba, towards], -1), straight

    def corrected(
        self, start: dict[str, Tensor], colours: Tensor, out: Tensor, floors: Tensor, counts: list[int]
    ) -> list[Gaussians]:
        """The starts of all assets with the network's corrections [sum of N, OUTPUTS], one scene an asset.

        `floors` [sum of N, 1] are the least logs of scales.
        """
        place, scales, quaternions, opacity, residual = out.split([3, 3, 4, 1, 3], -1)
        means = start["means"] + 2 * RADIUS / self.config.grid * REACH * place.tanh()
        tensors = (
            means,
            torch.maximum(start["log_scales"] + SPREAD * scales.tanh(), floors),
            start["quaternions"] + quaternions,
            start["opacity_logits"] + 4 * opacity[:, 0],
            ((colours + 0.3 * residual.tanh()).clamp(0, 1) - 0.5)[:, None] / SH_C0,
        )
        return [Gaussians(*parts) for parts in zip(*(t.split(counts) for t in tensors))]


@dataclass(frozen=True)
class FeedForward:
    """A `Reconstructor`: any V from 2, of any image size; see the module and `load_reconstructor`."""

    model: ReconstructorModel = field(repr=False)
    name: str = "feed-forward"

    licence = "Apache-2.0 (weights), CC0-1.0 (training data)"
    shared = True
    differentiable = True

    def __call__(self, images: Tensor, cameras: Cameras) -> list[Gaussians]:
        """See `Reconstructor`; gradients reach the images, but not through where the hull puts its splats.

        Raises:
            NoSharedVolume: the views of an asset share no volume.
        """
        scenes: list[Gaussians] = self.model(images, check_views(images, cameras, self.name))
        return scenes


def save_reconstructor(model: ReconstructorModel, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write `model.safetensors` (as `dtype`) and `config.json`."""
    write_weights(folder, model, asdict(model.config), dtype)


def load_reconstructor(folder: str | Path | None = None, device: torch.device | str = "cpu") -> FeedForward:
    """The reconstructor from a folder of `save_reconstructor`; None takes the embedded one.

    Raises:
        AssetError: it is not embedded, or files are missing, truncated or of something else.
    """
    folder = Path(folder) if folder is not None else model_folder("reconstructor")
    with readable(f"the reconstructor in {folder}"):
        config, tensors = read_weights(folder)
        model = ReconstructorModel(FeedForwardConfig(**config))
        model.load_state_dict(tensors)
    return FeedForward(model.to(device).eval().requires_grad_(False))
