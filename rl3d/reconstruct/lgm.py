"""LGM-format weights as a reconstructor (Tang et al. 2024, arXiv 2402.05054; code and weights MIT).

Four views with their rays go through one U-Net whose attention sees all views at once; every pixel of its smaller
output is one Gaussian. The network is written anew here; its tensors have the published names, so that the hub's
`model_fp16_fixrot.safetensors` loads as it is (strictly), and the sizes are read from them.

    input    9 channels: RGB over white (ImageNet's mean and deviation), o x d and d of each pixel's ray
    output  14 channels: place (clamped to [-1, 1]), opacity (sigmoid), scales (0.1 softplus), quaternion (w, x, y, z),
            colour (tanh to [0, 1]), after one 1 x 1 convolution

The world is the network's: the first view's camera stands upright on +Z at a distance of 1.5. In training the others
stood at azimuths of 90, 180 and 270 degrees, with a lens of 49.1. Other rings and lenses are given by their rays,
turned and scaled so that the first camera stands there; the further from the training's, the less the weights know.

Pixel-aligned: each view owns its splats, so agreement at the input views measures nothing (`shared` is False).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torch.nn import functional as F

from rl3d.cameras import Cameras
from rl3d.errors import AssetError
from rl3d.reconstruct.published import count, fill, pictures, read
from rl3d.reconstruct.views import check_views
from rl3d.scenes.gaussians import SH_C0, Gaussians

CHANNELS_IN, CHANNELS_OUT = 9, 14
GROUPS, HEADS = 32, 16
SKIP = math.sqrt(0.5)  # of every residual sum
RADIUS = 1.5  # of the first camera
IMAGE_SIZE = 256
CONVERT = "save its tensors under the same names with safetensors.torch.save_file"


class Attention(nn.Module):
    """Self-attention over tokens [B, N, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(channels, 3 * channels, bias=False), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ViewAttention(nn.Module):
    """Every pixel of every view of an asset attends to all of them: [B, V, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.attn = nn.GroupNorm(GROUPS, channels), Attention(channels)

    def forward(self, x: Tensor) -> Tensor:
        b, v, c, h, w = x.shape
        tokens = self.norm(x.flatten(0, 1)).view(b, v, c, h * w).transpose(2, 3).flatten(1, 2)
        seen = self.attn(tokens).view(b, v, h * w, c).transpose(2, 3).reshape(x.shape)
        return SKIP * (x + seen)


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a skip, on [N, C, H, W]."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, before), nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(before, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Identity() if before == channels else nn.Conv2d(before, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return SKIP * (self.shortcut(x) + inner)


class Level(nn.Module):
    """Residual blocks with attention over views after each, or without; in the published names "nets" and "attns"."""

    def __init__(self, sizes: list[tuple[int, int]], attention: bool) -> None:
        super().__init__()
        self.nets = nn.ModuleList(Residual(*pair) for pair in sizes)
        self.attns = nn.ModuleList(ViewAttention(channels) if attention else nn.Identity() for _, channels in sizes)

    def step(self, i: int, x: Tensor, views: int) -> Tensor:
        """Block i and its attention on [B * V, C, H, W]."""
        return self.attns[i](self.nets[i](x).unflatten(0, (-1, views))).flatten(0, 1)


class Down(Level):
    def __init__(self, before: int, channels: int, blocks: int, attention: bool, last: bool) -> None:
        super().__init__([(before, channels), *[(channels, channels)] * (blocks - 1)], attention)
        self.downsample = None if last else nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, views: int) -> list[Tensor]:
        """All that the way up sees again; the last of them goes on."""
        kept = []
        for i in range(len(self.nets)):
            x = self.step(i, x, views)
            kept.append(x)
        if self.downsample is not None:
            kept.append(self.downsample(x))
        return kept


class Middle(nn.Module):
    """A block, then attention and another block."""

    def __init__(self, channels: int, attention: bool) -> None:
        super().__init__()
        self.nets = nn.ModuleList(Residual(channels, channels) for _ in range(2))
        self.attns = nn.ModuleList([ViewAttention(channels) if attention else nn.Identity()])

    def forward(self, x: Tensor, views: int) -> Tensor:
        return self.nets[1](self.attns[0](self.nets[0](x).unflatten(0, (-1, views))).flatten(0, 1))


class Up(Level):
    def __init__(self, before: int, skip: int, channels: int, blocks: int, attention: bool, last: bool) -> None:
        # What comes from the way down has this level's channels, but for the last block: the finer level's.
        inner = [(before if i == 0 else channels) + (skip if i == blocks - 1 else channels) for i in range(blocks)]
        super().__init__([(size, channels) for size in inner], attention)
        self.upsample = None if last else nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, kept: list[Tensor], views: int) -> Tensor:
        """Takes what it sees again off the end of `kept`."""
        for i in range(len(self.nets)):
            x = self.step(i, torch.cat([x, kept.pop()], 1), views)
        return x if self.upsample is None else self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))


@dataclass(frozen=True)
class LGMConfig:
    """Sizes of the network, from its tensors.

    Attributes:
        down, up: channels of the levels; there are fewer ways up than down, so the output is smaller than the input.
        down_attention, up_attention: which of them attend over views; middle: whether the middle does.
        blocks: residual blocks of a level on the way down; one more on the way up.
    """

    down: tuple[int, ...]
    down_attention: tuple[bool, ...]
    up: tuple[int, ...]
    up_attention: tuple[bool, ...]
    middle: bool = True
    blocks: int = 2


class LGMUNet(nn.Module):
    """The asymmetric U-Net on [B, V, 9, H, W]."""

    def __init__(self, c: LGMConfig) -> None:
        super().__init__()
        last = len(c.down) - 1
        self.conv_in = nn.Conv2d(CHANNELS_IN, c.down[0], 3, padding=1)
        before = (c.down[0], *c.down)
        self.down_blocks = nn.ModuleList(
            Down(before[i], c.down[i], c.blocks, c.down_attention[i], i == last) for i in range(last + 1)
        )
        self.mid_block = Middle(c.down[-1], c.middle)
        before = (c.up[0], *c.up)
        skips = [c.down[max(last - 1 - i, 0)] for i in range(len(c.up))]
        self.up_blocks = nn.ModuleList(
            Up(before[i], skips[i], c.up[i], c.blocks + 1, c.up_attention[i], i == len(c.up) - 1)
            for i in range(len(c.up))
        )
        self.norm_out = nn.GroupNorm(GROUPS, c.up[-1])
        self.conv_out = nn.Conv2d(c.up[-1], CHANNELS_OUT, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B * V, 14, h, w]."""
        views = x.shape[1]
        kept = [self.conv_in(x.flatten(0, 1))]
        for block in self.down_blocks:
            kept += block(kept[-1], views)
        y = self.mid_block(kept[-1], views)
        for block in self.up_blocks:
            y = block(y, kept, views)
        return self.conv_out(F.silu(self.norm_out(y)))


class LGMModel(nn.Module):
    """The U-Net and the published 1 x 1 convolution behind it."""

    def __init__(self, config: LGMConfig) -> None:
        super().__init__()
        self.config = config
        self.unet, self.conv = LGMUNet(config), nn.Conv2d(CHANNELS_OUT, CHANNELS_OUT, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Raw splats [B, V * h * w, 14] of views and rays [B, V, 9, H, W]: view by view, row by row."""
        out = self.conv(self.unet(x)).flatten(2).transpose(1, 2)
        return out.reshape(x.shape[0], -1, CHANNELS_OUT)


@dataclass(frozen=True)
class LGM:
    """A `Reconstructor`: see the module and `load_lgm`. Four views are what the weights were trained with."""

    model: LGMModel = field(repr=False)
    image_size: int = IMAGE_SIZE
    name: str = "lgm"

    licence = "MIT (LGM's weights), Objaverse (their training data)"
    shared = False
    differentiable = True

    def __call__(self, images: Tensor, cameras: Cameras) -> list[Gaussians]:
        """See `Reconstructor`; gradients reach the images. V * (S / 4)^2 splats an asset (S / 2 for "big" weights)."""
        views = images.shape[1] if images.ndim == 5 else 1
        every = check_views(images, cameras, self.name)
        rotation, scale, shift = first_camera_frame(every, views)
        origins, directions = every.resized(self.image_size).rays()
        turn = rotation.repeat_interleave(views, 0)[:, None, None]
        size, move = (x.repeat_interleave(views, 0)[:, None, None] for x in (scale[:, None], shift))
        o = size * (turn @ origins[..., None])[..., 0] + move
        d = (turn @ directions[..., None])[..., 0]
        rays = torch.cat([torch.linalg.cross(o, d), d], -1).permute(0, 3, 1, 2).unflatten(0, (-1, views))
        raw = self.model(torch.cat([pictures(images, self.image_size), rays], 2)).float()
        return [splats(*parts) for parts in zip(raw, rotation, scale, shift)]


def first_camera_frame(cameras: Cameras, views: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rotation R [B, 3, 3], scale s [B] and shift t [B, 3] of y = s R x + t, the network's world.

    The first of an asset's `views` cameras stands at (0, 0, RADIUS) there, looks along -Z, and +Y is its up.
    """
    first = cameras.view[::views]
    to_camera = first.new_tensor([1.0, -1.0, -1.0])[:, None] * first[:, :3]  # OpenGL's axes
    rotation, shift = to_camera[:, :, :3], to_camera[:, :, 3]
    scale = RADIUS / shift.norm(dim=1)
    return rotation, scale, scale[:, None] * shift + shift.new_tensor([0.0, 0.0, RADIUS])


def splats(raw: Tensor, rotation: Tensor, scale: Tensor, shift: Tensor) -> Gaussians:
    """The activations as published, back in our world: raw [N, 14] to Gaussians."""
    means = raw[:, :3].clamp(-1, 1)
    turned = Rotation.from_matrix(rotation.detach().double().cpu().numpy()).inv().as_quat()[[3, 0, 1, 2]]
    colours = 0.5 * raw[:, 11:].tanh() + 0.5
    return Gaussians(
        ((means - shift) / scale) @ rotation,  # R^T from the left
        (0.1 * F.softplus(raw[:, 4:7]) / scale).log(),
        multiplied(raw.new_tensor(turned), F.normalize(raw[:, 7:11], dim=-1)),
        raw[:, 3],
        ((colours - 0.5) / SH_C0)[:, None],
    )


def multiplied(a: Tensor, b: Tensor) -> Tensor:
    """The quaternion product a b of (w, x, y, z): first b turns, then a. a: [4], b: [N, 4]."""
    w, v = a[0], a[1:]
    scalar = w * b[:, :1] - (b[:, 1:] * v).sum(1, keepdim=True)
    vector = w * b[:, 1:] + b[:, :1] * v + torch.linalg.cross(v.expand_as(b[:, 1:]), b[:, 1:])
    return torch.cat([scalar, vector], 1)


def config_of(weights: Mapping[str, Tensor]) -> LGMConfig:
    """The sizes that tensors under the published names have.

    Raises:
        KeyError: they are of something else.
    """

    def levels(side: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        number = count(weights, f"unet.{side}_blocks")
        channels = tuple(len(weights[f"unet.{side}_blocks.{i}.nets.0.conv1.weight"]) for i in range(number))
        return channels, tuple(f"unet.{side}_blocks.{i}.attns.0.norm.weight" in weights for i in range(number))

    down, up = levels("down"), levels("up")
    if not down[0] or not up[0]:
        raise KeyError("unet.down_blocks or unet.up_blocks")
    middle = "unet.mid_block.attns.0.norm.weight" in weights
    return LGMConfig(*down, *up, middle, count(weights, "unet.down_blocks.0.nets"))


def load_lgm(place: str | Path, device: torch.device | str = "cpu") -> LGM:
    """LGM with published weights: see `rl3d.reconstruct.published.read` for what `place` may be.

    The hub's "ashawkey/LGM" holds several files: give the path of `model_fp16_fixrot.safetensors`.

    Raises:
        InputError: nothing is there.
        AssetError: pickled, truncated, several or foreign files.
    """
    weights, folder = read(place, CONVERT)
    weights = {k: v for k, v in weights.items() if not k.startswith("lpips_loss.")}  # of its training
    try:
        model = LGMModel(config_of(weights))
    except (KeyError, ValueError) as error:  # ValueError: channels that no group divides
        raise AssetError(f"{folder} is no LGM checkpoint: {error} does not fit") from error
    fill(model, weights, "LGM", folder)
    return LGM(model.to(device).eval().requires_grad_(False))
