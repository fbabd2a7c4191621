"""The multi-view U-Net of MVDream (Shi et al. 2023, arXiv 2308.16512, section 3) under its checkpoints' tensor names.

A Stable Diffusion 2.1 U-Net in the original latent-diffusion layout with two changes: self-attention runs over the
tokens of all views of an object together, and an MLP of the camera matrix is added to the time embedding. Module names
follow the checkpoints ("input_blocks.1.0.in_layers.2.weight", ...), so that their state dicts load strictly: 690
tensors, 867.6 million numbers at the released size.
Rows are ordered "(b f)": b objects, f views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class MultiViewUNetConfig:
    """The fields of a checkpoint's unet/config.json that shape the network.

    Attributes:
        image_size: latent cells a side at training time.
        channel_mult: width of each resolution level over `model_channels`.
        attention_resolutions: downsampling rates at which attention takes place.
        context_dim: width of the text encoder.
        camera_dim: length of the camera vector, 16 for a flattened 4 x 4 matrix.
    """

    image_size: int = 32
    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    num_res_blocks: int = 2
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    attention_resolutions: tuple[int, ...] = (4, 2, 1)
    num_head_channels: int = 64
    transformer_depth: int = 1
    context_dim: int = 1024
    camera_dim: int = 16


def sinusoids(steps: Tensor, width: int) -> Tensor:
    """Time embedding [N, width] of steps [N]: cosines, then sines, wavelengths 2 pi to 20,000 pi; float32."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=steps.device, dtype=torch.float32) * (-math.log(10000.0) / half))
    angles = steps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with the time-and-camera embedding added between them."""

    def __init__(self, channels: int, embedding: int, out_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Identity(),  # the checkpoints' numbering counts a dropout here
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    """Multi-head attention of x [N, T, width] over context [N, S, context_width] (itself when None)."""

    def __init__(self, width: int, context_width: int, head_width: int) -> None:
        super().__init__()
        self.heads = width // head_width
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GatedLinear(nn.Module):
    """GELU-gated linear layer (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedLinear(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention over all views' tokens, cross-attention to the text, gated MLP; each pre-norm and residual."""

    def __init__(self, width: int, context_width: int, head_width: int) -> None:
        super().__init__()
        self.attn1 = Attention(width, width, head_width)
        self.attn2 = Attention(width, context_width, head_width)
        self.ff = FeedForward(width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor, views: int) -> Tensor:
        tokens = x.shape[1]
        joint = x.unflatten(0, (-1, views)).flatten(1, 2)  # [B * V, T, c] -> [B, V * T, c]
        joint = joint + self.attn1(self.norm1(joint))
        x = joint.unflatten(1, (views, tokens)).flatten(0, 1)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class MultiViewTransformer(nn.Module):
    """Transformer blocks over the cells of a feature map [B * V, c, h, w], residual."""

    def __init__(self, channels: int, config: MultiViewUNetConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, config.context_dim, config.num_head_channels)
            for _ in range(config.transformer_depth)
        )
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor, views: int) -> Tensor:
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            h = block(h, context, views)
        return x + self.proj_out(h).transpose(1, 2).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Sequential):
    """Layers in a row; each gets what its kind takes."""

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor, views: int) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding)
            elif isinstance(layer, MultiViewTransformer):
                x = layer(x, context, views)
            else:
                x = layer(x)
        return x


class MultiViewUNet(nn.Module):
    """Noise predictor of V views jointly."""

    def __init__(self, config: MultiViewUNetConfig) -> None:
        super().__init__()
        self.config = config
        base, embedding = config.model_channels, 4 * config.model_channels
        self.time_embed = nn.Sequential(nn.Linear(base, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.camera_embed = nn.Sequential(
            nn.Linear(config.camera_dim, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        channels, rate, last = base, 1, len(config.channel_mult) - 1
        skips = [channels]
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(config.in_channels, base, 3, padding=1))])
        for level, multiple in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(self._stage(channels, multiple * base, rate))
                channels = multiple * base
                skips.append(channels)
            if level != last:
                self.input_blocks.append(Stage(Downsample(channels)))
                skips.append(channels)
                rate *= 2
        self.middle_block = Stage(
            ResBlock(channels, embedding, channels),
            MultiViewTransformer(channels, config),
            ResBlock(channels, embedding, channels),
        )
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(last + 1)):
            for index in range(config.num_res_blocks + 1):
                width = config.channel_mult[level] * base
                stage = self._stage(channels + skips.pop(), width, rate)
                channels = width
                if level and index == config.num_res_blocks:
                    stage.append(Upsample(channels))
                    rate //= 2
                self.output_blocks.append(stage)
        self.out = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, config.out_channels, 3, padding=1)
        )

    def _stage(self, channels: int, out_channels: int, rate: int) -> Stage:
        stage = Stage(ResBlock(channels, 4 * self.config.model_channels, out_channels))
        if rate in self.config.attention_resolutions:
            stage.append(MultiViewTransformer(out_channels, self.config))
        return stage

    def forward(self, x: Tensor, steps: Tensor, context: Tensor, camera: Tensor | None, views: int) -> Tensor:
        """Predicted noise [B * V, c, h, w]; rows in "(b f)" order everywhere.

        Args:
            x: [B * V, c, h, w] noisy latents.
            steps: [B * V] integer noise levels.
            context: [B * V, L, context_dim] text states.
            camera: [B * V, camera_dim], or None for plain images (then pass views = 1).
            views: V, the views that attend to each other.
        """
        embedding = self.time_embed(sinusoids(steps, self.config.model_channels).to(x.dtype))
        if camera is not None:
            embedding = embedding + self.camera_embed(camera.to(x.dtype))
        skips = []
        for stage in self.input_blocks:
            x = stage(x, embedding, context, views)
            skips.append(x)
        x = self.middle_block(x, embedding, context, views)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], 1), embedding, context, views)
        return self.out(x)
