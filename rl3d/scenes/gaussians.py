"""3D Gaussian splats as a frozen dataclass of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rl3d.errors import InputError

SH_C0 = 0.28209479177387814  # the constant spherical harmonic


def rotations(quaternions: Tensor) -> Tensor:
    """[N, 4] (w, x, y, z) of any length -> rotation matrices [N, 3, 3]; differentiable.

    Length zero is no rotation, and has no gradient.
    """
    tiny = torch.finfo(quaternions.dtype).tiny
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1, eps=tiny).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


@dataclass(frozen=True)
class Gaussians:
    """N anisotropic Gaussians in the parametrisation of 3D Gaussian Splatting (Kerbl et al. 2023, arXiv 2308.04079).

    Attributes:
        means: [N, 3] world, metres.
        log_scales: [N, 3] natural log of the standard deviations along the local axes.
        quaternions: [N, 4] (w, x, y, z), not necessarily of unit length.
        opacity_logits: [N], opacity = sigmoid.
        sh: [N, K, 3] spherical-harmonic coefficients, K = 1, 4, 9 or 16; colour = 0.5 + SH_C0 * sh[:, 0] + ..., sRGB.
    """

    means: Tensor
    log_scales: Tensor
    quaternions: Tensor
    opacity_logits: Tensor
    sh: Tensor

    def __post_init__(self) -> None:
        n = self.means.shape[0]
        want = {"means": (n, 3), "log_scales": (n, 3), "quaternions": (n, 4), "opacity_logits": (n,)}
        for name, shape in want.items():
            if tuple(getattr(self, name).shape) != shape:
                raise InputError(f"Gaussians.{name} must be {list(shape)}, got {list(getattr(self, name).shape)}")
        if self.sh.ndim != 3 or self.sh.shape[0] != n or self.sh.shape[2] != 3 or self.sh.shape[1] not in (1, 4, 9, 16):
            raise InputError(f"Gaussians.sh must be [{n}, 1|4|9|16, 3], got {list(self.sh.shape)}")

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def device(self) -> torch.device:
        return self.means.device

    @property
    def colours(self) -> Tensor:
        """[N, 3] view-independent part of the colour, sRGB, unclamped."""
        return 0.5 + SH_C0 * self.sh[:, 0]

    @property
    def scales(self) -> Tensor:
        """[N, 3] standard deviations along the local axes, metres."""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Tensor:
        """[N] in (0, 1)."""
        return torch.sigmoid(self.opacity_logits)

    @staticmethod
    def load(path: str | Path) -> Gaussians:
        """Read a splat PLY or a .splat, see `rl3d.scenes.splat_io.load_splats`."""
        from rl3d.scenes.splat_io import load_splats

        return load_splats(path)

    def save(self, path: str | Path) -> None:
        """Write a splat PLY in the usual layout, or a .splat, by the suffix; see `rl3d.scenes.splat_io.save_splats`."""
        from rl3d.scenes.splat_io import save_splats

        save_splats(self, path)

    def to(self, device: torch.device | str) -> Gaussians:
        """The Gaussians on another device; dtypes stay."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items()})

    def detach(self) -> Gaussians:
        """The Gaussians cut off from any gradient graph."""
        return replace(self, **{k: v.detach() for k, v in vars(self).items()})

    def __getitem__(self, index: Tensor | slice) -> Gaussians:
        """A subset by a slice, a mask [N] or indices [M]; differentiable."""
        return replace(self, **{k: v[index] for k, v in vars(self).items()})

    @staticmethod
    def cat(parts: Sequence[Gaussians]) -> Gaussians:
        """All parts in one scene; lower spherical-harmonic degrees are padded with zeros, which changes no colour.

        Raises:
            InputError: no parts.
        """
        if not parts:
            raise InputError("Gaussians.cat needs at least one part, got none")
        width = max(p.sh.shape[1] for p in parts)
        padded = [replace(p, sh=torch.nn.functional.pad(p.sh, (0, 0, 0, width - p.sh.shape[1]))) for p in parts]
        return Gaussians(*(torch.cat([getattr(p, k) for p in padded]) for k in vars(padded[0])))
