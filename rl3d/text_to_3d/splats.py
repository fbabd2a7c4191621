"""The optimised scene: Gaussians as leaf tensors with their Adam state, saved and restored exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.errors import AssetError
from rl3d.files import atomic_path
from rl3d.render.frames import Frames
from rl3d.render.gaussians import splat
from rl3d.scenes.gaussians import SH_C0, Gaussians

NAMES = ("means", "log_scales", "quaternions", "opacity_logits", "colours")
MEMORY = "memory."


@dataclass(frozen=True)
class Rates:
    """Adam's learning rates; quaternions use the rate of the scales."""

    means: float
    scales: float
    colours: float
    opacities: float


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
        leaves = {k: tensors[k].detach().clone().requires_grad_(True) for k in NAMES}
        rate = {
            "means": rates.means,
            "log_scales": rates.scales,
            "quaternions": rates.scales,
            "opacity_logits": rates.opacities,
            "colours": rates.colours,
        }
        groups = [{"params": [leaves[k]], "lr": rate[k], "name": k} for k in NAMES]
        return cls(leaves, torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15))

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
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        base = [group["lr"] for group in self.optimizer.param_groups]
        for group, lr in zip(self.optimizer.param_groups, base):
            group["lr"] = lr * rate
        self.optimizer.step()
        for group, lr in zip(self.optimizer.param_groups, base):
            group["lr"] = lr
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
        out = {k: v.detach().contiguous() for k, v in self.tensors.items()}
        for name, leaf in self.tensors.items():
            for key, value in self.optimizer.state.get(leaf, {}).items():
                out[f"adam.{name}.{key}"] = torch.as_tensor(value).contiguous()
        out |= {MEMORY + k: v.detach().contiguous() for k, v in (memory or {}).items()}
        with atomic_path(path) as temporary:
            save_file(out, temporary, {"facts": json.dumps({"step": self.step, **facts})})

    @classmethod
    def load(cls, path: Path, rates: Rates, device: torch.device | str = "cpu") -> SplatState:
        """What `save` wrote.

        Raises:
            AssetError: the file is missing, truncated or of another kind.
        """
        from safetensors import safe_open

        try:
            tensors = load_file(path, device=str(device))
            with safe_open(path, "pt") as handle:
                facts = json.loads(handle.metadata()["facts"])
            state = cls.start({k: tensors[k] for k in NAMES}, rates)
            for name, leaf in state.tensors.items():
                entry = {k.split(".", 2)[2]: v for k, v in tensors.items() if k.startswith(f"adam.{name}.")}
                if entry:
                    state.optimizer.state[leaf] = {**entry, "step": entry["step"].cpu()}
            state.step = int(facts["step"])
        except Exception as error:  # safetensors, json and the lookups each raise their own kinds
            reason = " ".join(str(error).split())[:160]
            raise AssetError(
                f"cannot read the checkpoint {path}: {reason or type(error).__name__}; begin anew with --overwrite"
            ) from error
        return state


def load_memory(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """What a method left in a checkpoint of `SceneState.save`; the checkpoint itself is checked by the scene's `load`.

    Numbers (float64) stay on the CPU.
    """
    tensors = {k.removeprefix(MEMORY): v for k, v in load_file(path).items() if k.startswith(MEMORY)}
    return {k: v if v.dtype == torch.float64 else v.to(device) for k, v in tensors.items()}
