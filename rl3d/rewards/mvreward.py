"""MVReward's multi-view preference: which of two sets of views is better as pictures of one object?

MVReward (Wang et al. 2024, arXiv 2412.06614) asks people which of two view sets they prefer and learns

    L = -E log sigma(r(X_w) - r(X_l))

over whole sets: each view attends to the picture that was given, the views attend to each other, a perceptron scores
them all. From a prompt no picture is given, so here every view attends to all others; pairs that the project makes take
the people's place: real views before damaged ones and before views that do not fit together. Number, order and angles
of the views are free, where the published network wants twelve slots in a fixed order.

    r(X) = LIMIT tanh(z / LIMIT),   z = (raw(X) - mean) / std

`mean` and `std` are those of `raw` over real renders of training assets. The prompt is not read: put it beside a reward
that does. The network starts as Reward3D-mini (`rl3d.rewards.reward3d`) without its words.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rl3d.assets import model_folder
from rl3d.errors import InputError
from rl3d.model_files import read_weights, readable, write_weights
from rl3d.rewards.judges import JudgeConfig, PatchEncoder
from rl3d.rewards.protocol import RewardInput, check_scores
from rl3d.rewards.reward3d import LIMIT, ViewTokens, azimuths_of, bounded, spread_over_views


@dataclass(frozen=True)
class MVRewardConfig:
    """Sizes of the network: the judge's; the width, heads and number of the blocks over all views' patches."""

    judge: JudgeConfig
    width: int = 96
    heads: int = 4
    blocks: int = 2


class MVRewardModel(ViewTokens):
    """The network: views and azimuths to `raw`."""

    def __init__(self, config: MVRewardConfig) -> None:
        super().__init__(config.judge, config.width, config.heads, config.blocks)
        self.config, width = config, config.width
        self.encoder = PatchEncoder(config.judge)
        self.first = nn.Parameter(0.02 * torch.randn(width))
        self.mlp = nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, images: Tensor, azimuths: Tensor) -> Tensor:
        """`raw` [B], float32, differentiable to the images.

        Args:
            images: [B, V, 4, H, W] premultiplied sRGB + alpha in [0, 1], V >= 2, any H, W. azimuths: [B, V] radians;
            only differences between views count.
        """
        patches = self.encoder.patches(images)
        first, views = self.attended(self.first.expand(len(patches), -1), patches, azimuths)
        around = [first, views.mean((1, 2)), views.amax((1, 2)), spread_over_views(views)]
        return self.mlp(torch.cat(around, 1))[:, 0].float()


@dataclass(frozen=True)
class MVReward:
    """The preference as a Reward: standardised scores, differentiable to images and alphas, 2 views or more, no prompt.

    Float32; on CUDA the network runs in float16 by autocast. Without cameras, views are taken to stand at equal steps
    of a full turn, in order.

    Attributes:
        model: frozen. mean, std: of `raw` over real renders, see the module.
    """

    model: MVRewardModel
    mean: float
    std: float
    name: str = "mvreward"
    views: int | None = None
    differentiable: bool = True
    range: tuple[float, float] = (-LIMIT, LIMIT)
    licence: str = "Apache-2.0"

    @property
    def device(self) -> torch.device:
        return self.model.first.device

    def __call__(self, x: RewardInput) -> Tensor:
        """Scores [B].

        Raises:
            InputError: fewer than 2 views.
        """
        azimuths = azimuths_of(x.cameras, *x.images.shape[:2])
        return check_scores(self.score(x.premultiplied(), azimuths), x, self.name, True, self.range)

    def score(self, images: Tensor, azimuths: Tensor) -> Tensor:
        """Scores [B] of premultiplied views [B, V, 4, H, W] at azimuths [B, V] (radians)."""
        return bounded(self.raw(images, azimuths), self.mean, self.std)

    def raw(self, images: Tensor, azimuths: Tensor) -> Tensor:
        """The same before they are standardised."""
        if images.shape[1] < 2:
            raise InputError(f"reward {self.name!r} compares views with each other and needs 2 or more, got 1")
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            raw: Tensor = self.model(images.to(self.device, torch.float32), azimuths.to(self.device))
        return raw


def save_mvreward(reward: MVReward, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write `model.safetensors` and `config.json` into a folder, each atomically."""
    config = {**asdict(reward.model.config), "mean": reward.mean, "std": reward.std}
    write_weights(Path(folder), reward.model, config, dtype)


def load_mvreward(device: torch.device | str = "cpu", folder: str | Path | None = None) -> MVReward:
    """The reward from a folder of `save_mvreward`; None takes the embedded one.

    Raises:
        AssetError: it is not embedded, or files are missing, truncated or of something else.
    """
    folder = Path(folder) if folder is not None else model_folder("mvreward")
    with readable(f"the mvreward in {folder}"):
        raw, tensors = read_weights(folder)
        mean, std = float(raw.pop("mean")), float(raw.pop("std"))
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise ValueError(f"mean {mean} or std {std} do not fit it")
        model = MVRewardModel(MVRewardConfig(JudgeConfig.from_json(raw.pop("judge")), **raw))
        model.load_state_dict(tensors)
    return MVReward(model.to(device).eval().requires_grad_(False), mean, std)
