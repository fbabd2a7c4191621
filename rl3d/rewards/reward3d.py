"""Reward3D-mini: a learned multi-view reward that was trained to rank (DreamReward, Ye et al. 2024, arXiv 2403.14613).

It starts as the reward judge (its image and text encoders, fine-tuned here) and adds what that one lacks: attention
over the patches of all views and the prompt at once, with the angle between every two views, so that views are judged
against each other and not one by one. Four times the front of a chair are four good views of a chair and no chair.

    r(y, X) = LIMIT tanh(z / LIMIT),   z = (raw(y, X) - mean) / std
    raw(y, X) = gain cos(judge(X), judge(y)) + mlp(text token, worst patch, spread over views, product of embeddings)

`mean` and `std` are those of `raw` over real renders of training assets with right prompts: those score about 0 with a
standard deviation of about 1. Scores of one prompt can be compared; those of different prompts only roughly, since the
ranking loss never compared them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rl3d.assets import model_folder
from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.model_files import read_model, readable, write_model
from rl3d.rewards.judges import Block, Judge, JudgeConfig, RewardJudge
from rl3d.rewards.protocol import RewardInput, check_scores

LIMIT = 20.0  # nearly linear where real renders lie (a score of 4 loses 1.3 %), bounded for what no one has seen
GAIN = 10.0  # of the judge's similarity at the start of training
ANGLES = 6  # functions of the angle between two views: 1, same view, and cos, sin of one and two turns


@dataclass(frozen=True)
class Reward3DConfig:
    """Sizes of the network: the judge's; the width, heads and number of the blocks over all views' patches."""

    judge: JudgeConfig
    width: int = 128
    heads: int = 4
    blocks: int = 2


class ViewBlock(nn.Module):
    """A transformer block over a text token and the patches of V views; heads are biased by the views' angles."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.block, self.bias = Block(width, heads), nn.Linear(ANGLES, heads, bias=False)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """x: [B, 1 + V P, C], the text first. angles: [B, V, V, ANGLES] of `view_angles`."""
        patches = (x.shape[1] - 1) // angles.shape[1]
        bias = self.bias(angles).permute(0, 3, 1, 2)
        bias = bias.repeat_interleave(patches, 2).repeat_interleave(patches, 3)
        return self.block(x, nn.functional.pad(bias, (1, 0, 1, 0)).to(x.dtype))


class ViewTokens(nn.Module):
    """Patches of V views and a token before them, through blocks of attention over all of them at once."""

    def __init__(self, judge: JudgeConfig, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.patch = nn.Linear(judge.channels[-1], width)
        side = judge.image_size // 2 ** len(judge.channels)
        self.positions = nn.Parameter(0.02 * torch.randn(side**2, width))
        self.blocks = nn.ModuleList(ViewBlock(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def attended(self, first: Tensor, patches: Tensor, azimuths: Tensor) -> tuple[Tensor, Tensor]:
        """The first token [B, C] and the patches [B, V, P, C] afterwards, float32.

        Args:
            first: [B, C]. patches: [B, V, ., s, s] of `PatchEncoder.patches`. azimuths: [B, V] radians; only
            differences between views count.
        """
        x = self.patch(patches.flatten(3).transpose(2, 3)) + self.positions  # [B, V, P, C]
        shape = x.shape
        x = torch.cat([first[:, None].to(x), x.flatten(1, 2)], 1)
        angles = view_angles(azimuths)
        for block in self.blocks:
            x = block(x, angles)
        x = self.norm(x).float()
        return x[:, 0], x[:, 1:].view(shape)


def spread_over_views(views: Tensor) -> Tensor:
    """[B, C]: the standard deviation over views of tokens [B, V, P, C], mean over patches."""
    return views.var(1, unbiased=False).mean(1).add(1e-6).sqrt()


class Reward3DModel(ViewTokens):
    """The network: [B, V, 4, H, W] views and [B, L] words to `raw` [B]; not standardised."""

    def __init__(self, config: Reward3DConfig) -> None:
        judge, width = config.judge, config.width
        super().__init__(judge, width, config.heads, config.blocks)
        self.config = config
        self.judge = RewardJudge(judge)
        self.text = nn.Linear(judge.embedding, width)
        features = 3 * width + judge.embedding
        self.mlp = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width), nn.SiLU(), nn.Linear(width, 1))
        for tensor in self.mlp[-1].parameters():  # the judge alone, at first
            nn.init.zeros_(tensor)
        self.gain = nn.Parameter(torch.tensor(GAIN))

    def forward(self, images: Tensor, words: Tensor, azimuths: Tensor) -> Tensor:
        """See `raw`; `words` [B, L] are the judge's word ids."""
        return self.raw(images, self.judge.encode_texts(words), azimuths)

    def raw(self, images: Tensor, texts: Tensor, azimuths: Tensor) -> Tensor:
        """Scores [B], float32, differentiable to the images.

        Args:
            images: [B, V, 4, H, W] premultiplied sRGB + alpha in [0, 1], V >= 2, any H, W.
            texts: [B, E] embeddings of the judge. azimuths: [B, V] radians; only differences between views count.
        """
        patches = self.judge.patches(images)
        seen = self.judge.encode_patches(patches).embedding
        first, views = self.attended(self.text(texts), patches, azimuths)
        around = [first, views.amax((1, 2)), spread_over_views(views), len(texts[0]) ** 0.5 * seen * texts]
        return self.gain.float() * (seen * texts).sum(1) + self.mlp(torch.cat(around, 1))[:, 0].float()


def view_angles(azimuths: Tensor) -> Tensor:
    """[B, V, V, ANGLES] of azimuths [B, V], radians: what a block may know of two views."""
    turn = azimuths[:, None] - azimuths[:, :, None]
    same = torch.eye(turn.shape[-1], device=turn.device).expand_as(turn)
    waves = [turn.cos(), turn.sin(), (2 * turn).cos(), (2 * turn).sin()]
    return torch.stack([torch.ones_like(turn), same, *waves], -1)


def azimuths_of(cameras: Cameras | None, batch: int, views: int) -> Tensor:
    """[B, V] radians around the y axis, by where the cameras look from; without cameras, equal steps of a full turn."""
    if cameras is None:
        return (torch.arange(views) * (2 * math.pi / views)).expand(batch, views)
    backward = -cameras.view[:, 2, :3].float()
    azimuth = torch.atan2(backward[:, 0], backward[:, 2])
    return azimuth.expand(batch, views) if len(azimuth) == views else azimuth.view(batch, views)


def bounded(raw: Tensor, mean: float, std: float) -> Tensor:
    """LIMIT tanh(z / LIMIT) of z = (raw - mean) / std."""
    return LIMIT * torch.tanh((raw - mean) / (std * LIMIT))


@dataclass(frozen=True)
class Reward3D:
    """Reward3D-mini as a Reward: standardised scores, differentiable to images and alphas, 2 views or more.

    Float32; on CUDA the network runs in float16 by autocast, its scores stay float32. Views are taken to stand around
    the asset: with `cameras` at their azimuths, without them at equal steps of a full turn, in order.

    Attributes:
        model: frozen. words: word -> id. mean, std: of `raw` over real renders, see the module.
    """

    model: Reward3DModel
    words: dict[str, int]
    mean: float
    std: float
    name: str = "reward3d"
    views: int | None = None
    differentiable: bool = True
    range: tuple[float, float] = (-LIMIT, LIMIT)
    licence: str = "Apache-2.0"

    @property
    def device(self) -> torch.device:
        return self.model.gain.device

    def __call__(self, x: RewardInput) -> Tensor:
        """Scores [B].

        Raises:
            InputError: fewer than 2 views, or a prompt of which no word is known.
        """
        azimuths = azimuths_of(x.cameras, *x.images.shape[:2])
        return check_scores(self.score(x.premultiplied(), x.prompts, azimuths), x, self.name, True, self.range)

    def score(self, images: Tensor, prompts: list[str], azimuths: Tensor) -> Tensor:
        """Scores [B] of premultiplied views [B, V, 4, H, W] at azimuths [B, V] (radians)."""
        return bounded(self.raw(images, prompts, azimuths), self.mean, self.std)

    def raw(self, images: Tensor, prompts: list[str], azimuths: Tensor) -> Tensor:
        """The same before they are standardised."""
        if images.shape[1] < 2:
            raise InputError(f"reward {self.name!r} compares views with each other and needs 2 or more, got 1")
        texts = Judge("reward", self.model.judge, self.words, ()).embed_texts(prompts)
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            return self.model.raw(images.to(self.device, torch.float32), texts, azimuths.to(self.device))


def save_reward3d(reward: Reward3D, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write `model.safetensors`, `config.json` and `vocabulary.json` into a folder, each atomically."""
    config = {**asdict(reward.model.config), "mean": reward.mean, "std": reward.std}
    write_model(Path(folder), reward.model, config, reward.words, dtype)


def load_reward3d(device: torch.device | str = "cpu", folder: str | Path | None = None) -> Reward3D:
    """The reward from a folder of `save_reward3d`; None takes the embedded one.

    Raises:
        AssetError: it is not embedded, or files are missing, truncated or of something else.
    """
    folder = Path(folder) if folder is not None else model_folder("reward3d")
    with readable(f"the reward3d in {folder}"):
        raw, words, tensors = read_model(folder)
        mean, std = float(raw.pop("mean")), float(raw.pop("std"))
        config = Reward3DConfig(JudgeConfig.from_json(raw.pop("judge")), **raw)
        if config.judge.vocabulary != len(words) or not (math.isfinite(mean) and 0 < std < math.inf):
            raise ValueError(f"{len(words)} words, mean {mean} or std {std} do not fit it")
        model = Reward3DModel(config)
        model.load_state_dict(tensors)
    return Reward3D(model.to(device).eval().requires_grad_(False), words, mean, std)
