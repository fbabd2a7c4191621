"""The optimised scene: Gaussians as leaf tensors with their Adam state, saved and restored exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.reconstruct.leaves import (
    Rates,
    adam_step,
    leaves_of,
    optimizer_of,
    read_leaves,
    readable,
    restore_moments,
    save_leaves,
)
from rl3d.render.frames import Frames
from rl3d.render.gaussians import splat
from rl3d.scenes.gaussians import SH_C0, Gaussians

NAMES = ("means", "log_scales", "quaternions", "opacity_logits", "colours")


def smallest_scale(cameras: Cameras) -> float:
    """A quarter of a pixel at the origin, metres; cameras see nothing smaller (Yu et al. 2024, arXiv 2311.16493).

    Splats below it fit the pixels they were trained on and fall apart into dots in larger pictures.
    """
    return 0.25 * float((cameras.centres.norm(dim=1) / cameras.intrinsics[:, 1, 1]).min())


@dataclass
class SplatState:
    """Leaf tensors of N Gaussians (see `Gaussians`; `colours` [N, 3] are sRGB) and the optimizer that moves them."""

    tensors: dict[str, Tensor]
    optimizer: torch.optim.Adam
    step: int = 0

    @classmethod
    def start(cls, tensors: dict[str, Tensor], rates: Rates) -> SplatState:
        """Leaves out of plain tensors and a fresh optimizer."""
        leaves = leaves_of({k: tensors[k] for k in NAMES})
        rate = {
            "means": rates.means,
            "log_scales": rates.scales,
            "quaternions": rates.scales,
            "opacity_logits": rates.opacities,
            "colours": rates.colours,
        }
        return cls(leaves, optimizer_of(leaves, rate))

    def render(self, cameras: Cameras) -> Frames:
        """Premultiplied sRGB, alpha and depth, differentiable to the leaves."""
        return Frames(*self._splat(cameras, self.tensors["colours"]))

    def render_layers(self, cameras: Cameras) -> tuple[Frames, Tensor]:
        """As `render`, and how far apart along each ray the layers are that it sees.

        Returns:
            Frames, and the variance [V, 1, H, W] of depth under the ray's weights, square metres; 0 where alpha < 0.5.
            Surfaces have a small one, fog and see-through shells a large one (Huang et al. 2024, arXiv 2403.17888,
            penalise the same with a pairwise sum). Differentiable to the leaves.
        """
        means, colours = self.tensors["means"], self.tensors["colours"]
        cameras = cameras.to(means.device, means.dtype)
        forward = cameras.view[:, 2]  # [V, 4]
        depth = means @ forward[:, :3].T + forward[:, 3] - cameras.centres.norm(dim=1)  # [N, V], 0 at the origin
        depth = depth.T[..., None]  # [V, N, 1]
        features = torch.cat([colours.expand(len(cameras), -1, -1), depth, depth**2], -1)
        image, alpha, z = self._splat(cameras, features)
        solid = alpha > 0.5
        first, second = (image[:, k : k + 1] / torch.where(solid, alpha, 1) for k in (3, 4))
        variance = torch.where(solid, second - first**2, 0).clamp_min(0)
        return Frames(image[:, :3], alpha, z), variance

    def _splat(self, cameras: Cameras, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The leaves with `features` [N, D] or [V, N, D] for colours: image [V, D, H, W], alpha and depth."""
        t = self.tensors
        cameras = cameras.to(t["means"].device, t["means"].dtype)
        return splat(
            t["means"],
            t["log_scales"].exp(),
            t["quaternions"],
            t["opacity_logits"].sigmoid(),
            features,
            cameras.view,
            cameras.intrinsics,
            cameras.height,
            cameras.width,
        )

    def descend(self, loss: Tensor, rate: float = 1.0, floor: float = 2e-3) -> None:
        """One Adam step on `loss`, with the rates scaled by `rate`; keeps scales in [`floor`, 0.12] metres."""
        adam_step(self.optimizer, loss, rate)
        with torch.no_grad():
            self.tensors["log_scales"].clamp_(math.log(floor), math.log(0.12))
            self.tensors["colours"].clamp_(0, 1)
            self.tensors["opacity_logits"].clamp_(-6, 6)
        self.step += 1

    @torch.no_grad()
    def relocate(self, generator: torch.Generator, threshold: float = 0.02) -> int:
        """Move splats that have faded onto visible ones, chosen by opacity (Kheradmand et al. 2024, arXiv 2404.09591).

        A host of opacity o and its n - 1 newcomers share it: each gets 1 - (1 - o)^(1 / n), eq. 9 there, at least 0.05.
        The newcomers' Adam moments start at zero.

        Returns:
            How many moved.
        """
        opacity = self.tensors["opacity_logits"].sigmoid()
        dead = torch.nonzero(opacity < threshold)[:, 0]
        if len(dead) == 0 or len(dead) == len(opacity):
            return 0
        alive = opacity.clone()
        alive[dead] = 0
        host = torch.multinomial(alive.cpu(), len(dead), replacement=True, generator=generator).to(dead.device)
        copies = 1 + torch.bincount(host, minlength=len(opacity))[host]
        shared = (1 - (1 - opacity[host].clamp(max=0.995)) ** (1 / copies)).clamp_min(0.05)
        for name, tensor in self.tensors.items():
            tensor[dead] = tensor[host]
            for moment in ("exp_avg", "exp_avg_sq"):
                state = self.optimizer.state.get(tensor)
                if state:
                    state[moment][dead] = 0
            if name == "opacity_logits":
                tensor[dead] = tensor[host] = torch.logit(shared)
        jitter = torch.randn(len(dead), 3, generator=generator).to(dead.device)
        self.tensors["means"][dead] += jitter * self.tensors["log_scales"][dead].exp()
        return len(dead)

    def gaussians(self, min_opacity: float = 0.02) -> Gaussians:
        """The scene as it stands, faded splats left out."""
        t = {k: v.detach() for k, v in self.tensors.items()}
        keep = t["opacity_logits"].sigmoid() > min_opacity
        sh = ((t["colours"][keep] - 0.5) / SH_C0)[:, None]
        return Gaussians(t["means"][keep], t["log_scales"][keep], t["quaternions"][keep], t["opacity_logits"][keep], sh)

    def save(self, path: Path, memory: Mapping[str, Tensor] | None = None, **facts: int | float | str) -> None:
        """Leaves, Adam's moments and step, a method's memory (see `load_memory`) and JSON facts, atomically."""
        save_leaves(path, self.tensors, self.optimizer, {"step": self.step, **facts}, memory)

    @classmethod
    def load(cls, path: Path, rates: Rates, device: torch.device | str = "cpu") -> SplatState:
        """What `save` wrote.

        Raises:
            AssetError: the file is missing, truncated or of another kind.
        """
        with readable(path):
            tensors, facts = read_leaves(path, device)
            state = cls.start(tensors, rates)
            restore_moments(state.optimizer, state.tensors, tensors)
            state.step = int(facts["step"])
        return state
