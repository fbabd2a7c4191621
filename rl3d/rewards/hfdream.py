"""HFDream's viewpoint reward: does each view show the side that was asked for?

HFDream learns what people say of single pictures and the direction in their prompts, and tunes the image model on it
against the many fronts of score distillation. Here renders from known directions take the people's place: a network
reads each view by itself, names a density over azimuths around the asset (the front is 0, as everywhere), and is paid
for the one that the view's camera stands at,

    l_v(theta) = sum_k a_k(x_v) cos(k theta) + b_k(x_v) sin(k theta),   k = 1 ... HARMONICS
    p_v(theta) = exp l_v(theta) / mean_j exp l_v(theta + j 2 pi / DIRECTIONS)
    r = mean_v LIMIT tanh(log p_v(theta_v) / LIMIT)

0 is what a view scores that says nothing of its side (a barrel), log DIRECTIONS the most that a sure one can. The
prompt is not read: put it beside a reward that does. The network starts from the reward judge's convolutions.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rl3d.assets import model_folder
from rl3d.model_files import read_weights, readable, write_weights
from rl3d.rewards.judges import JudgeConfig, PatchEncoder
from rl3d.rewards.protocol import RewardInput, check_scores
from rl3d.rewards.reward3d import LIMIT, ViewTokens, azimuths_of

DIRECTIONS = 16  # equal steps of a turn over which a density is normalised
HARMONICS = 4  # the finest thing that a density can tell is an eighth of a turn


@dataclass(frozen=True)
class HFDreamConfig:
    """Sizes of the network: the judge's; the width, heads and number of the blocks over a view's patches."""

    judge: JudgeConfig
    width: int = 96
    heads: int = 4
    blocks: int = 2


class HFDreamModel(ViewTokens):
    """The network: views and azimuths to log densities."""

    def __init__(self, config: HFDreamConfig) -> None:
        super().__init__(config.judge, config.width, config.heads, config.blocks)
        self.config = config
        self.encoder = PatchEncoder(config.judge)
        self.first = nn.Parameter(0.02 * torch.randn(config.width))
        self.out = nn.Linear(2 * config.width, 2 * HARMONICS)
        nn.init.zeros_(self.out.weight)  # at first every direction is as good
        nn.init.zeros_(self.out.bias)

    def forward(self, images: Tensor, azimuths: Tensor) -> Tensor:
        """log p [B, V], float32: each view's own, differentiable to the images.

        Args:
            images: [B, V, 4, H, W] premultiplied sRGB + alpha in [0, 1], any H, W. azimuths: [B, V] radians.
        """
        patches = self.encoder.patches(images).flatten(0, 1)[:, None]  # [B V, 1, ...]: no view sees another
        first, views = self.attended(self.first.expand(len(patches), -1), patches, azimuths.reshape(-1, 1))
        waves = self.out(torch.cat([first, views.mean((1, 2))], 1)).float().unflatten(0, azimuths.shape)
        steps = torch.arange(DIRECTIONS, device=azimuths.device) * (2 * math.pi / DIRECTIONS)
        angles = azimuths[..., None] + steps  # [B, V, DIRECTIONS], the view's own first
        turns = angles[..., None] * torch.arange(1, HARMONICS + 1, device=azimuths.device)
        basis = torch.cat([turns.cos(), turns.sin()], -1).float()
        logits = (basis * waves[:, :, None]).sum(-1)
        return logits[..., 0] - logits.logsumexp(-1) + math.log(DIRECTIONS)


@dataclass(frozen=True)
class HFDream:
    """The viewpoint reward as a Reward: differentiable to images and alphas, any number of views, no prompt.

    Float32; on CUDA the network runs in float16 by autocast. Without cameras, views are taken to stand at equal steps
    of a full turn, the front first.
    """

    model: HFDreamModel
    name: str = "hfdream"
    views: int | None = None
    differentiable: bool = True
    range: tuple[float, float] = (-LIMIT, math.log(DIRECTIONS))
    licence: str = "Apache-2.0"

    @property
    def device(self) -> torch.device:
        return self.model.first.device

    def __call__(self, x: RewardInput) -> Tensor:
        """Scores [B]."""
        azimuths = azimuths_of(x.cameras, *x.images.shape[:2])
        return check_scores(self.score(x.premultiplied(), azimuths), x, self.name, True, self.range)

    def score(self, images: Tensor, azimuths: Tensor) -> Tensor:
        """Scores [B] of premultiplied views [B, V, 4, H, W] at azimuths [B, V] (radians)."""
        return self.by_view(images, azimuths).mean(1)

    def by_view(self, images: Tensor, azimuths: Tensor) -> Tensor:
        """The same of each view: [B, V]."""
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            log_p = self.model(images.to(self.device, torch.float32), azimuths.to(self.device))
        return LIMIT * torch.tanh(log_p / LIMIT)


def save_hfdream(reward: HFDream, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write `model.safetensors` and `config.json` into a folder, each atomically."""
    write_weights(Path(folder), reward.model, asdict(reward.model.config), dtype)


def load_hfdream(device: torch.device | str = "cpu", folder: str | Path | None = None) -> HFDream:
    """The reward from a folder of `save_hfdream`; None takes the embedded one.

    Raises:
        AssetError: it is not embedded, or files are missing, truncated or of something else.
    """
    folder = Path(folder) if folder is not None else model_folder("hfdream")
    with readable(f"the hfdream in {folder}"):
        raw, tensors = read_weights(folder)
        model = HFDreamModel(HFDreamConfig(JudgeConfig.from_json(raw.pop("judge")), **raw))
        model.load_state_dict(tensors)
    return HFDream(model.to(device).eval().requires_grad_(False))
