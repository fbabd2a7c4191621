"""Ways in which views of an asset go wrong: what a judge must notice, made on purpose.

Every function takes views [B, V, 4, H, W], premultiplied sRGB + alpha in [0, 1], and gives the same form. Randomness
comes from the given CPU generator; given that, all are differentiable almost everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rl3d.errors import InputError


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator, like: Tensor) -> Tensor:
    return (low + (high - low) * torch.rand(shape, generator=generator)).to(like)


def noise(images: Tensor, sigma: float | Tensor, generator: torch.Generator) -> Tensor:
    """Add white noise to colour and alpha; colour stays premultiplied (at most alpha)."""
    noisy = (images + sigma * torch.randn(images.shape, generator=generator).to(images)).clamp(0, 1)
    return torch.cat([torch.minimum(noisy[:, :, :3], noisy[:, :, 3:]), noisy[:, :, 3:]], 2)


def grain(images: Tensor, sigma: float | Tensor, generator: torch.Generator) -> Tensor:
    """Add white noise to the object's colour alone; the silhouette and what is outside it stay."""
    rgb, alpha = images[:, :, :3], images[:, :, 3:]
    noisy = rgb + sigma * torch.randn(rgb.shape, generator=generator).to(rgb)
    return torch.cat([torch.minimum(noisy.clamp_min(0), alpha), alpha], 2)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, sigma in pixels; outside the image is empty."""

    def rows(size: int) -> Tensor:  # [size, size]: a blur along one axis is one matrix product
        x = torch.arange(size, dtype=images.dtype, device=images.device)
        kernel = torch.exp(-0.5 * ((x[:, None] - x) / sigma) ** 2)
        total = torch.exp(-0.5 * (torch.arange(-size, size + 1).to(images) / sigma) ** 2).sum()
        return kernel / total

    return rows(images.shape[-2]) @ images @ rows(images.shape[-1])


def unfinished(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """As if an optimisation had stopped early: soft, blotched with wrong colours, faint.

    Blurred by 2.5 `amount` pixels of a 64-pixel image, smooth colour errors with a standard deviation of 0.25 `amount`
    that differ from view to view, alpha faded by up to 0.4 `amount`.

    Raises:
        InputError: amount outside (0, 1].
    """
    if not 0 < amount <= 1:
        raise InputError(f"amount must lie in (0, 1], got {amount}")
    size = images.shape[-2:]
    soft = blur(images, 2.5 * amount * size[0] / 64)

    def blotches(channels: int) -> Tensor:  # 6 x 6 random values a view, smoothly between them
        coarse = torch.randn((images.shape[0] * images.shape[1], channels, 6, 6), generator=generator).to(images)
        return F.interpolate(coarse, size, mode="bicubic", align_corners=False).unflatten(0, images.shape[:2])

    fade = 1 - 0.4 * amount * blotches(1).sigmoid()
    alpha = soft[:, :, 3:] * fade
    rgb = (soft[:, :, :3] * fade + 0.25 * amount * alpha * blotches(3)).clamp_min(0)
    return torch.cat([torch.minimum(rgb, alpha), alpha], 2)


def blank_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """One random view of each object is empty."""
    which = torch.randint(images.shape[1], (len(images),), generator=generator)
    keep = torch.ones(images.shape[:2], dtype=images.dtype)
    keep[torch.arange(len(images)), which] = 0
    return images * keep.to(images.device)[:, :, None, None, None]


def repaint(images: Tensor, colour: Tensor) -> Tensor:
    """The whole object in one sRGB colour [B, 3], its light and dark kept relative to the object's mean."""
    rgb, alpha = images[:, :, :3], images[:, :, 3:]
    grey = (rgb * rgb.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(2, keepdim=True)
    mean = grey.sum((1, 2, 3, 4), keepdim=True) / alpha.sum((1, 2, 3, 4), keepdim=True).clamp_min(1)
    shade = torch.minimum(grey / mean.clamp_min(1e-3), 2 * alpha)
    return torch.cat([torch.minimum(shade * colour.to(rgb)[:, None, :, None, None], alpha), alpha], 2)


def mixed_views(images: Tensor, others: Tensor) -> Tensor:
    """Every second view shows another object: [B, V, 4, H, W] of each."""
    odd = torch.arange(images.shape[1], device=images.device) % 2 == 1
    return torch.where(odd[None, :, None, None, None], others, images)


def two_faced(images: Tensor, front: Tensor | int = 0) -> Tensor:
    """The view across from the one with index `front` ([B] or one number) shows that front too; the sides stay."""
    index = torch.as_tensor(front, device=images.device).expand(len(images))
    rows = torch.arange(len(images), device=images.device)
    out = images.clone()
    out[rows, (index + images.shape[1] // 2) % images.shape[1]] = images[rows, index]
    return out


def janus(images: Tensor, front: Tensor | int = 0) -> Tensor:
    """The view with index `front` ([B] or one number) at every azimuth: the many-faced asset of score distillation."""
    index = torch.as_tensor(front, device=images.device).expand(len(images))
    chosen = images[torch.arange(len(images), device=images.device), index]
    return chosen[:, None].expand_as(images).clone()


def exchanged_views(images: Tensor, generator: torch.Generator) -> Tensor:
    """Two random views of each object in each other's place."""
    order = torch.arange(images.shape[1]).repeat(len(images), 1)
    rows = torch.arange(len(images))
    pairs = torch.stack([torch.randperm(images.shape[1], generator=generator)[:2] for _ in rows])
    order[rows, pairs[:, 0]], order[rows, pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    return images[rows[:, None].to(images.device), order.to(images.device)]


def _one_view(images: Tensor, changed: Tensor, generator: torch.Generator) -> Tensor:
    """One random view of each object taken from `changed`, which has the form of `images`."""
    which = torch.randint(images.shape[1], (len(images),), generator=generator)
    chosen = F.one_hot(which, images.shape[1]).bool().to(images.device)
    return torch.where(chosen[:, :, None, None, None], changed, images)


def shifted_view(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """One random view of each object moved sideways by `amount` of the picture's width; what leaves it is lost."""
    by = round(amount * images.shape[-1])
    left, right = F.pad(images, (0, by))[..., by:], F.pad(images, (by, 0))[..., : images.shape[-1]]
    sign = torch.rand(len(images), generator=generator) < 0.5
    return _one_view(images, torch.where(sign.to(images.device)[:, None, None, None, None], left, right), generator)


def tinted_view(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """One random view of each object with the gains of its colour channels changed by up to `amount` each."""
    gain = 1 + _uniform((len(images), 1, 3, 1, 1), -amount, amount, generator, images)
    tinted = torch.minimum(images[:, :, :3] * gain, images[:, :, 3:])
    return _one_view(images, torch.cat([tinted, images[:, :, 3:]], 2), generator)


def _discs(like: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """[B, V, K, H, W] soft discs at centres [B, V, K, 2] (x, y) with radii [B, V, K], all in pixels."""
    height, width = like.shape[-2:]
    y = torch.arange(height, dtype=like.dtype, device=like.device)[:, None] + 0.5
    x = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    distance = ((x - centres[..., 0, None, None]) ** 2 + (y - centres[..., 1, None, None]) ** 2).sqrt()
    return (radii[..., None, None] - distance + 0.5).clamp(0, 1)


def _scatter(
    images: Tensor, count: int, radius: tuple[float, float], inside: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random (centres, radii), in pixels, of discs whose centres lie inside or outside the silhouettes."""
    batch, views, _, height, width = images.shape
    alpha = images[:, :, 3].detach().to("cpu").flatten(0, 1).flatten(1)
    weight = (alpha if inside else 1 - alpha).clamp_min(0) + 1e-6
    index = torch.multinomial(weight, count, replacement=True, generator=generator).view(batch, views, count)
    centres = torch.stack([index % width, index // width], -1).to(images) + 0.5
    scale = height / 64
    return centres, _uniform((batch, views, count), radius[0] * scale, radius[1] * scale, generator, images)


def holes(
    images: Tensor, generator: torch.Generator, count: int = 4, radius: tuple[float, float] = (3.0, 6.0)
) -> Tensor:
    """Discs are cut out of every view's silhouette; radii in pixels of a 64-pixel image."""
    centres, radii = _scatter(images, count, radius, True, generator)
    return images * (1 - _discs(images, centres, radii)).prod(2, keepdim=True)


def floaters(
    images: Tensor, generator: torch.Generator, count: int = 6, radius: tuple[float, float] = (1.5, 4.0)
) -> Tensor:
    """Specks of random colour float around the object; radii in pixels of a 64-pixel image."""
    centres, radii = _scatter(images, count, radius, False, generator)
    discs = _discs(images, centres, radii)
    colours = _uniform((*discs.shape[:3], 3), 0, 1, generator, images)
    for k in range(count):
        disc = discs[:, :, k : k + 1]
        layer = torch.cat([disc * colours[:, :, k, :, None, None], disc], 2)
        images = layer + (1 - disc) * images
    return images


def scaled_down(images: Tensor, factor: float = 0.5) -> Tensor:
    """The object shrinks towards the middle of the image."""
    if not 0 < factor <= 1:
        raise InputError(f"factor must lie in (0, 1], got {factor}")
    height, width = images.shape[-2:]
    small = (max(1, round(height * factor)), max(1, round(width * factor)))
    shrunk = F.interpolate(images.flatten(0, 1), small, mode="bilinear", antialias=True, align_corners=False)
    top, left = (height - small[0]) // 2, (width - small[1]) // 2
    padded = F.pad(shrunk, (left, width - small[1] - left, top, height - small[0] - top))
    return padded.unflatten(0, images.shape[:2])
