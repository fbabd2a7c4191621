"""The latent candidate for the embedded prior: a small autoencoder, then the transformer on its latents.

    python tools/prior_latent.py DATA CACHE --out RUN [--minutes 10]

Run by prior_candidates.py. It lives here and not in the package: nothing of it ships.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from train_prior import CLOCKS, Ema, drop_prompts, flow_loss, make_optimizers, noise_levels, prepared

from rl3d.data.asset_set import read_records
from rl3d.data.batches import ViewBatches
from rl3d.data.captions import build_vocabulary
from rl3d.files import write_json
from rl3d.priors.multiview_model import ConvBlock, MultiViewTransformer

LEVELS = (0.3, 0.6, 0.9, 0.97, 1.0)
CHANNELS = 16
AE_SHARE = 0.35  # of the minutes, for the autoencoder


class Autoencoder(nn.Module):
    """RGBA [N, 4, S, S] in [-1, 1] to latents [N, C, S/8, S/8] of mean 0 and variance 1, and back."""

    def __init__(self, channels: int = CHANNELS, fine: int = 96, coarse: int = 128) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(64, fine, 3, padding=1),
            ConvBlock(fine),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * fine, coarse, 1),
            ConvBlock(coarse),
            nn.Conv2d(coarse, channels, 1),
            nn.BatchNorm2d(channels, affine=False),  # latents that diffusion can take as they are
        )
        self.up = nn.Sequential(
            nn.Conv2d(channels, coarse, 3, padding=1),
            ConvBlock(coarse),
            ConvBlock(coarse),
            nn.Conv2d(coarse, 4 * fine, 1),
            nn.PixelShuffle(2),
            ConvBlock(fine),
            ConvBlock(fine),
            nn.Conv2d(fine, 64, 3, padding=1),
            nn.PixelShuffle(4),
        )

    def encode(self, images: Tensor) -> Tensor:
        """Views [B, V, 4, S, S] to [B, V, C, S/8, S/8]."""
        flat = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.down(flat).float().unflatten(0, images.shape[:2])

    def decode(self, latents: Tensor) -> Tensor:
        flat = latents.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.up(flat).float().unflatten(0, latents.shape[:2])


class Denoiser(NamedTuple):
    """A denoiser of pixels, or with `codec` of latents."""

    model: MultiViewTransformer
    codec: Autoencoder | None

    def encode(self, images: Tensor) -> Tensor:
        return images if self.codec is None else self.codec.encode(images)

    def decode(self, x: Tensor) -> Tensor:
        return x if self.codec is None else self.codec.decode(x)

    def redundancy(self, pixels: int) -> float:
        """sqrt(pixel values / values that are noised): the odds of noise t / (1 - t) that leave as much of the picture
        are that much smaller (Esser et al. 2024, arXiv 2403.03206, eq. 23)."""
        config = self.model.config
        return math.sqrt(4 * pixels**2 / (config["channels"] * config["image_size"] ** 2))


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def validation_draws(data: Path, cache: Path, model: MultiViewTransformer) -> tuple[Tensor, Tensor, Tensor]:
    """Images [48, V, 4, S, S] in [-1, 1] at the cache's size, words, rays: those that train_prior.py draws."""
    records = read_records(data)
    index = {w: i for i, w in enumerate(build_vocabulary(records))}
    source = ViewBatches(cache, records, "val", 0.0)
    drawn = source.draw(48, np.random.default_rng(123))
    return prepared(source, drawn, index, source.spec["size"], model.config["image_size"] // model.config["patch"])


@torch.no_grad()
def errors(denoiser: Denoiser, draws: tuple[Tensor, Tensor, Tensor], odds: float = 1.0) -> dict[str, float]:
    """Mean squared x0 error in pixels at LEVELS, the odds of noise divided by `odds`; 1.0 is nothing but noise."""
    images, words, rays = draws
    out = {}
    with autocast():
        clean = denoiser.encode(images)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
        for t in LEVELS:
            level = t / (t + odds * (1 - t))
            x0 = denoiser.model((1 - level) * clean + level * noise, torch.full((len(clean),), level), words, rays)
            out[str(t)] = round(float(((denoiser.decode(x0.float()) - images) ** 2).mean()), 5)
    return out


def train(args: argparse.Namespace) -> None:
    """The latent candidate: an autoencoder for a share of the minutes, then the transformer on its latents."""
    torch.set_num_threads(args.threads)
    clock = CLOCKS[args.clock]
    torch.manual_seed(args.seed)
    records = read_records(args.data)
    vocabulary = build_vocabulary(records)
    index = {w: i for i, w in enumerate(vocabulary)}
    source = ViewBatches(args.cache, records, "train", 0.35)
    size = source.spec["size"]
    codec = Autoencoder().to(memory_format=torch.channels_last)
    config = {"image_size": size // 8, "channels": CHANNELS, "patch": 1, "stem_channels": 0}
    model = MultiViewTransformer(**{**config, **args.model}, vocabulary=len(vocabulary))
    draws = validation_draws(args.data, args.cache, model)
    start, step, rate = clock(), 0, 2e-3
    optimizer = torch.optim.AdamW(codec.parameters(), lr=rate, betas=(0.9, 0.99))
    while (left := 1 - (clock() - start) / (60 * args.minutes * AE_SHARE)) > 0 or step < 2:
        optimizer.param_groups[0]["lr"] = rate * max(0.02, min(1.0, (step + 1) / 50, left))
        images, _, _ = prepared(
            source, source.draw(args.batch, np.random.default_rng([1, step])), index, size, size // 8
        )
        with autocast():
            latents = codec.encode(images)
            # The decoder will be given predictions, not latents.
            loss = F.mse_loss(codec.decode(latents + 0.1 * torch.randn_like(latents)), images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    codec.eval().requires_grad_(False)
    with torch.no_grad(), autocast():
        floor = float(((codec.decode(codec.encode(draws[0])) - draws[0]) ** 2).mean())
    facts = {"autoencoder_objects": step * args.batch, "autoencoder_error": round(floor, 5), "log": []}
    optimizers, ema, step, logged = make_optimizers(model, "muon", 1e-3, 3.0), Ema(model, 0.999), 0, clock()
    # As much of the picture is left at these levels as at train_prior.py's in pixels.
    mean = 2.0 - math.log(Denoiser(model, codec).redundancy(size))
    while True:
        minutes = (clock() - start) / 60
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = 1e-3 * group.get("factor", 1.0) * min(1.0, (step + 1) / 100)
        rng = np.random.default_rng([args.seed, step, 0])
        images, words, rays = prepared(source, source.draw(args.batch, rng), index, size, size // 8)
        with torch.no_grad(), autocast():
            latents = codec.encode(images)
        words, t = drop_prompts(words, rng), noise_levels(args.batch, mean, 1.3, rng)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**62))))
        flow_loss(model, latents, words, rays, t, noise, autocast).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        ema.update(model, step)
        step += 1
        done = minutes >= args.minutes
        if done or clock() - logged > 120:
            logged, kept = clock(), {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(ema.shadow)
            row = {"objects": step * args.batch, "minutes": round(minutes, 2), **errors(Denoiser(model, codec), draws)}
            facts["log"].append(row)
            print(json.dumps(row), flush=True)
            model.load_state_dict(kept)
        if done:
            break
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in ema.shadow.items()}, args.out / "model.safetensors")
    save_file({k: v.contiguous() for k, v in codec.state_dict().items()}, args.out / "autoencoder.safetensors")
    write_json(args.out / "latent.json", {**facts, "model": dict(model.config)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what minutes are: see train_prior.py")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=json.loads, default={}, help='JSON, e.g. {"depth": 4}')
    train(parser.parse_args())
