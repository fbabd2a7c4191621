"""The embedded multi-view denoiser: a transformer over the patches of all views of one object.

It predicts the clean RGBA views x0 straight from noisy pixels (no autoencoder), conditioned on words in context, on
each patch's viewing ray (Pluecker coordinates) and on the noise level through adaptive normalisation with one shared
modulation ("adaLN-single", Chen et al. 2023, arXiv 2310.00426). A convolutional stem and head with skip connections
work at four pixels a cell, so that borders between patches do not show.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from rl3d.cameras import Cameras


def sincos(positions: Tensor, width: int, longest: float = 64.0) -> Tensor:
    """[...] positions to [..., width] sines and cosines with wavelengths up to `longest`."""
    frequencies = torch.exp(torch.arange(width // 2, device=positions.device) * (-math.log(longest) / (width // 2 - 1)))
    angles = positions[..., None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def patch_rays(cameras: Cameras, grid: int) -> Tensor:
    """Pluecker coordinates [V, grid * grid, 6] (direction, moment) of rays through the centres of a patch grid."""
    origins, directions = cameras.resized(grid).rays()
    moment = torch.linalg.cross(origins, directions)
    return torch.cat([directions, moment], -1).flatten(1, 2)


def halved(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy views of half the size, and their noise level.

    The mean of four pixels x_t = (1 - t) x0 + t eps keeps the picture and half of the noise, so that the odds
    t / (1 - t) halve: t' = t / (2 - t), and x_t' is the mean times (1 - t') / (1 - t) = 2 / (2 - t). Where noise is
    high, what is lost could not be seen: four views of 64 x 64 pixels say the same thing many times over.

    Args:
        x_t: [B, V, C, S, S], S even. t: [B] or [1] in [0, 1].
    """
    small = F.avg_pool2d(x_t.flatten(0, 1), 2).unflatten(0, x_t.shape[:2])
    return small * (2 / (2 - t))[:, None, None, None, None].to(small.dtype), t / (2 - t)


def doubled(x0: Tensor) -> Tensor:
    """Views [B, V, C, S, S] of twice the size, bilinear."""
    return F.interpolate(x0.flatten(0, 1), scale_factor=2, mode="bilinear", align_corners=False).unflatten(
        0, x0.shape[:2]
    )


def pooled_places(places: Tensor, grid: int) -> Tensor:
    """Embeddings [grid^2, width] of the places of a coarser grid, means of `places` [G^2, width] of the full one."""
    if len(places) == grid**2:
        return places
    full = math.isqrt(len(places))
    return F.adaptive_avg_pool2d(places.T.unflatten(1, (full, full)), grid).flatten(1).T


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, computed in float32, without a gain of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of RMS-normalised queries and keys; q, k, v [B, heads, T, d].

    On a CPU, compiled matrix products train 1.2 times as fast as the flash kernel, whose backward pass uses no matrix
    unit. Normalised rows keep the logits within sqrt(d), so that exp is safe without its maximum subtracted.
    """
    if not (torch.compiler.is_compiling() and q.device.type == "cpu"):
        return F.scaled_dot_product_attention(q, k, v)
    weights = (torch.matmul(q, k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5).exp()
    return torch.matmul(weights.to(v.dtype), v) / weights.sum(-1, keepdim=True).to(v.dtype)


class Block(nn.Module):
    """Pre-norm attention over all tokens and a gated MLP; the shared modulation is shifted by a table of its own."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x [B, T, width]; modulation [B, 6, width]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.table)[:, :, None].to(x.dtype).unbind(1)
        h = self.norm(x) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attention(self.norm(q), self.norm(k), v)
        x = x + gate1 * self.out(attended.transpose(1, 2).flatten(2))
        h = self.norm(x) * (1 + scale2) + shift2
        a, b = self.up(h).chunk(2, -1)
        return x + gate2 * self.down(F.silu(a) * b)


class ConvBlock(nn.Module):
    """A residual pair of 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


class MultiViewTransformer(ModelMixin, ConfigMixin):
    """x0-predicting denoiser of V views.

    Args:
        image_size: pixels, a multiple of `patch`.
        patch: pixels a token covers in each direction, a multiple of 4 when `stem_channels` > 0.
        width, depth, heads: of the transformer; the MLP's hidden size is 8/3 of the width.
        vocabulary: number of words; 0 is padding, 1 the empty prompt.
        stem_channels: channels of the convolutional stem and head at 4 pixels a cell; 0 leaves plain linear patches.
        stem_blocks: residual convolution blocks in the stem and in the head, each.
        coarse_above: noise level from which it was trained on views of half the size, and has to be asked so (see
            `halved`); None: it was not.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        channels: int = 4,
        patch: int = 8,
        width: int = 256,
        depth: int = 8,
        heads: int = 4,
        vocabulary: int = 1000,
        max_words: int = 12,
        stem_channels: int = 64,
        stem_blocks: int = 1,
        coarse_above: float | None = None,
    ) -> None:
        super().__init__()
        hidden = int(width * 8 / 3) // 32 * 32
        self.cell = 4 if stem_channels else patch
        self.head: nn.Module
        self.fold = patch // self.cell
        cell_channels = channels * self.cell**2
        if stem_channels:
            self.stem = nn.Conv2d(cell_channels, stem_channels, 1)
            self.stem_layers = nn.ModuleList(ConvBlock(stem_channels) for _ in range(stem_blocks))
            self.unfold_head = nn.Linear(width, stem_channels * self.fold**2)
            self.merge = nn.Conv2d(2 * stem_channels, stem_channels, 1)
            self.head_layers = nn.ModuleList(ConvBlock(stem_channels) for _ in range(stem_blocks))
            self.head = nn.Conv2d(stem_channels, cell_channels, 3, padding=1)
            nn.init.zeros_(self.head.weight)
        else:
            self.head = nn.Linear(width, cell_channels)
            nn.init.zeros_(self.head.weight)
        self.patch_in = nn.Linear((stem_channels or cell_channels) * self.fold**2, width)
        self.ray_in = nn.Linear(6 * 9, width)
        self.places = nn.Parameter(0.02 * torch.randn((image_size // patch) ** 2, width))
        self.words = nn.Embedding(vocabulary, width)
        self.word_mix = nn.Linear(width, width)
        self.time_in = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 6 * width)
        self.final_table = nn.Parameter(torch.zeros(2, width))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm = RMSNorm()
        nn.init.normal_(self.words.weight, std=0.16)
        for module in (self.modulation, self.final_modulation):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, t: Tensor, words: Tensor, rays: Tensor) -> Tensor:
        """Clean views of noisy ones, of any size S that its patches divide; place embeddings are pooled to it.

        Args:
            x: [B, V, 4, S, S] noisy views, clean range [-1, 1].
            t: [B] noise level in [0, 1]; x = (1 - t) x0 + t eps.
            words: [B, L] int64, 0 = padding; a row of 1 then 0s is the empty prompt.
            rays: [B, V, (S / patch)^2, 6] from `patch_rays`.

        Returns:
            x0 [B, V, 4, S, S], not clamped, in the dtype of `x`.
        """
        b, v, _, s, _ = x.shape
        cell, fold = self.cell, self.fold
        grid = s // (cell * fold)
        h = F.pixel_unshuffle(x.flatten(0, 1), cell)  # [BV, c cell^2, s/cell, s/cell]
        skip = None
        if self.config.stem_channels:
            h = self.stem(h.contiguous(memory_format=torch.channels_last))
            for block in self.stem_layers:
                h = block(h)
            skip = h
        tokens = F.pixel_unshuffle(h, fold).flatten(2).transpose(1, 2)  # [BV, grid^2, .]
        octaves = 2.0 ** torch.arange(4, device=x.device)
        angles = rays[..., None, :] * octaves[:, None] * (math.pi / 2)
        ray_code = torch.cat([rays[..., None, :], angles.sin(), angles.cos()], -2).flatten(-2)
        tokens = self.patch_in(tokens).unflatten(0, (b, v)) + self.ray_in(ray_code.to(tokens.dtype))
        tokens = tokens + pooled_places(self.places, grid)
        mask = (words > 0).to(self.words.weight.dtype)[..., None]
        embedded = self.words(words) * mask
        pooled = embedded.sum(1) / mask.sum(1).clamp_min(1)
        places = sincos(torch.arange(words.shape[1], device=x.device), embedded.shape[-1])
        text = (embedded + 0.16 * places.to(embedded.dtype)) * mask
        code = self.time_in(sincos(1000 * t, 256, 10000.0).to(pooled.dtype)) + self.word_mix(pooled)
        code = F.silu(code)
        modulation = self.modulation(code).unflatten(-1, (6, -1)).float()
        h = torch.cat([text.to(tokens.dtype), tokens.flatten(1, 2)], 1)
        for layer in self.blocks:
            h = layer(h, modulation)
        shift, scale = (self.final_modulation(code).unflatten(-1, (2, -1)) + self.final_table)[:, :, None].unbind(1)
        h = self.norm(h[:, words.shape[1] :]) * (1 + scale).to(h.dtype) + shift.to(h.dtype)
        if skip is None:
            out = self.head(h)  # [B, V grid^2, c patch^2]
            out = out.unflatten(1, (v, grid, grid)).flatten(0, 1).permute(0, 3, 1, 2)
        else:
            h = self.unfold_head(h).unflatten(1, (v, grid, grid)).flatten(0, 1).permute(0, 3, 1, 2)
            h = F.pixel_shuffle(h, fold)
            h = self.merge(torch.cat([h, skip.to(h.dtype)], 1).contiguous(memory_format=torch.channels_last))
            for block in self.head_layers:
                h = block(h)
            out = self.head(h)
        return F.pixel_shuffle(out.float(), cell).unflatten(0, (b, v)).to(x.dtype)
