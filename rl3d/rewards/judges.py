"""The two embedded judges: contrastive text-to-multi-view scorers trained by this project (CLIP's loss, Radford 2021).

One is a reward that anybody may optimise; the gold judge only measures. They share the data set and nothing else: the
reward judge is a small CNN per view with a bag of words, the gold judge a convolutional stem with a small transformer
over the patches of all views and a transformer over the words; cameras, light, augmentation and seed differ too.
Weights are safetensors in half precision (loaded as float32), a `config.json` and a `vocabulary.json`; nothing pickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl3d.assets import model_folder
from rl3d.data.captions import MAX_WORDS, split_words
from rl3d.data.colours import WORDS as COLOURS
from rl3d.errors import InputError, nearest
from rl3d.model_files import read_model, readable, write_model

Which = Literal["reward", "gold"]
KINDS = ("reward", "gold")
JANUS = "janus.json"  # beside the gold judge: which nouns have a front, and thresholds
GREY = 0.5  # the gold judge sees assets over this sRGB level


class ImageCode(NamedTuple):
    """What a judge sees: embedding [B, E] unit length, colour_logits [B, 13] in the order of rl3d.data.colours.WORDS,
    view_logits [B, V, 4] (front, +X side, back, -X side; gold judge only, else None)."""

    embedding: Tensor
    colour_logits: Tensor
    view_logits: Tensor | None


@dataclass(frozen=True)
class JudgeConfig:
    """Sizes of a judge's network.

    Attributes:
        kind: "reward" or "gold". vocabulary: words with the two special tokens. image_size: pixels the network sees.
        channels: of the convolutional stages. width: of a view's feature (reward), of tokens (gold). embedding: of the
        shared space. heads, view_blocks, joint_blocks: the gold judge's transformer.
    """

    kind: str
    vocabulary: int
    image_size: int
    channels: tuple[int, ...]
    width: int
    embedding: int = 96
    heads: int = 4
    view_blocks: int = 0
    joint_blocks: int = 1
    max_words: int = MAX_WORDS

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> JudgeConfig:
        """From the plain values of a config file."""
        return cls(**{**values, "channels": tuple(values["channels"])})

    @classmethod
    def reward(cls, vocabulary: int) -> JudgeConfig:
        return cls("reward", vocabulary, 64, (32, 64, 96, 128), 128)

    @classmethod
    def gold(cls, vocabulary: int) -> JudgeConfig:
        return cls("gold", vocabulary, 56, (48, 80), 112)


class _Residual(nn.Module):
    """Two 3x3 convolutions around a skip, pre-normalised by group."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Block(nn.Module):
    """A pre-norm transformer block on [B, N, C]; `mask` [B, heads or 1, N or 1, N]: true may be seen, or a bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class PatchEncoder(nn.Module):
    """The reward judge's CNN: each view of premultiplied RGBA by itself to features of patches."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        before = 4
        for i, channels in enumerate(config.channels):
            layers.append(nn.Conv2d(before, channels, 5 if i == 0 else 3, stride=2, padding=2 if i == 0 else 1))
            if 0 < i < len(config.channels) - 1:
                layers.append(_Residual(channels))
            before = channels
        self.features = nn.Sequential(*layers, nn.GroupNorm(8, before), nn.SiLU())

    def patches(self, images: Tensor) -> Tensor:
        """[B, V, C, S / 16, S / 16] features of 16x16-pixel patches, each view by itself.

        images: [B, V, 4, H, W] premultiplied sRGB in [0, 1], any H, W; differentiable.
        """
        x = _resized(images.flatten(0, 1), self.config.image_size)
        return self.features(2 * x - 1).unflatten(0, images.shape[:2])


class RewardJudge(PatchEncoder):
    """The views' patches pooled over patches, then over views by mean, maximum and spread; text is a bag of words.

    The spread (standard deviation over views) is what tells four copies of one view from four views.
    """

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__(config)
        self.view = nn.Linear(2 * config.channels[-1], config.width)
        self.pool = nn.Sequential(nn.LayerNorm(3 * config.width), nn.Linear(3 * config.width, 160), nn.SiLU())
        self.image_out, self.colour_out = nn.Linear(160, config.embedding), nn.Linear(160, len(COLOURS))
        self.words = nn.Embedding(config.vocabulary, config.embedding, padding_idx=0)
        self.text_mlp = nn.Sequential(
            nn.LayerNorm(config.embedding),
            nn.Linear(config.embedding, 160),
            nn.SiLU(),
            nn.Linear(160, config.embedding),
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def encode_images(self, images: Tensor) -> ImageCode:
        """[B, V, 4, H, W] premultiplied sRGB in [0, 1], any H, W; differentiable."""
        return self.encode_patches(self.patches(images))

    def encode_patches(self, x: Tensor) -> ImageCode:
        """What `encode_images` gives, of the views' `patches`."""
        x = F.silu(self.view(torch.cat([x.mean((3, 4)), x.amax((3, 4))], 2)))
        spread = ((x - x.mean(1, keepdim=True)) ** 2).mean(1).add(1e-6).sqrt()
        pooled = self.pool(torch.cat([x.mean(1), x.amax(1), spread], 1))
        return ImageCode(F.normalize(self.image_out(pooled).float(), dim=-1), self.colour_out(pooled).float(), None)

    def encode_texts(self, ids: Tensor) -> Tensor:
        """[B, L] int64 word ids (0: padding) to unit embeddings [B, E]."""
        keep = (ids != 0).to(self.words.weight.dtype)[..., None]
        bag = (self.words(ids) * keep).sum(1) / keep.sum(1).clamp_min(1).sqrt()
        return F.normalize((bag + self.text_mlp(bag)).float(), dim=-1)


class GoldJudge(nn.Module):
    """Convolutional stem to patches, a transformer block over the patches of all views, attention and maximum
    pooling.

    It sees the asset over grey, with alpha as a fourth channel (a third of the assets are grey themselves).

    Text: one transformer block over words with positions. A linear head on each view's own patches names its side.
    """

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        first, second = config.channels
        self.stem = nn.Sequential(
            nn.Conv2d(4, first, 7, stride=2, padding=3),
            nn.GELU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            _Residual(second),
            nn.GroupNorm(8, second),
            nn.GELU(),
            nn.Conv2d(second, width, 3, stride=2, padding=1),
            _Residual(width),
        )
        self.positions = nn.Parameter(0.02 * torch.randn((config.image_size // 8) ** 2, width))
        self.view_blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.view_blocks))
        self.joint_blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.joint_blocks))
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Linear(width, config.heads)  # one attention map a head pools all patches of all views
        self.image_mlp = nn.Sequential(nn.Linear((config.heads + 1) * width, width), nn.GELU())
        self.image_out, self.colour_out = nn.Linear(width, config.embedding), nn.Linear(width, len(COLOURS))
        self.view_out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4))
        self.words = nn.Embedding(config.vocabulary, width, padding_idx=0)
        nn.init.normal_(self.words.weight, std=0.1)  # from 1 down to 0.1: captions align in half the steps
        self.word_positions = nn.Parameter(0.02 * torch.randn(config.max_words, width))
        self.text_block, self.text_norm = Block(width, config.heads), nn.LayerNorm(width)
        self.text_out = nn.Linear(width, config.embedding)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def encode_images(self, images: Tensor) -> ImageCode:
        """[B, V, 4, H, W] premultiplied sRGB in [0, 1], any H, W; differentiable. The background becomes grey."""
        return self.encode_over(images, GREY)

    def encode_over(self, images: Tensor, background: Tensor | float) -> ImageCode:
        """The same over a background colour [B, 1, 3, 1, 1] (training varies it)."""
        x = self.patches(images, background).flatten(2).transpose(1, 2) + self.positions
        for block in self.view_blocks:
            x = block(x)
        sides = self.view_out(x.mean(1)).unflatten(0, images.shape[:2])
        x = x.unflatten(0, images.shape[:2]).flatten(1, 2)  # [B, V * P, C]
        for block in self.joint_blocks:
            x = block(x)
        x = self.norm(x)
        attended = (self.queries(x).softmax(1).transpose(1, 2) @ x).flatten(1)
        pooled = self.image_mlp(torch.cat([attended, x.amax(1)], 1))
        embedding = F.normalize(self.image_out(pooled).float(), dim=-1)
        return ImageCode(embedding, self.colour_out(pooled).float(), sides.float())

    def patches(self, images: Tensor, background: Tensor | float = GREY) -> Tensor:
        """[B * V, C, S / 8, S / 8] features of 8x8-pixel patches, each view by itself; images as above."""
        alpha = images[:, :, 3:]
        images = torch.cat([images[:, :, :3] + background * (1 - alpha), alpha], 2)
        return self.stem(2 * _resized(images.flatten(0, 1), self.config.image_size) - 1)

    def encode_texts(self, ids: Tensor) -> Tensor:
        """[B, L] int64 word ids (0: padding) to unit embeddings [B, E]."""
        keep = ids != 0
        x = self.words(ids) + self.word_positions[: ids.shape[1]]
        x = self.text_norm(self.text_block(x, keep[:, None, None])) * keep[..., None]
        x = x.sum(1) / keep.sum(1, keepdim=True).clamp_min(1)
        return F.normalize(self.text_out(x).float(), dim=-1)


JudgeModel = RewardJudge | GoldJudge


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)


def build_model(config: JudgeConfig) -> JudgeModel:
    """The network of a config, with random weights."""
    return RewardJudge(config) if config.kind == "reward" else GoldJudge(config)


def known_words(prompts: list[str], words: Mapping[str, int], most: int, who: str) -> Tensor:
    """[N, most] int64 ids of the prompts' known words, 0 behind them; unknown words are left out.

    Raises:
        InputError: `who` knows no word of a prompt.
    """
    ids = torch.zeros(len(prompts), most, dtype=torch.int64)
    for row, prompt in zip(ids, prompts):
        known = [words[w] for w in split_words(prompt) if w in words][:most]
        if not known:
            close = [w for word in split_words(prompt) for w in nearest(word, words, 1)]
            hint = f"nearest known: {', '.join(close)}" if close else "it knows low-poly props, e.g. 'red barrel'"
            raise InputError(f"{who} knows no word of {prompt!r}; {hint}")
        row[: len(known)] = torch.tensor(known)
    return ids


@dataclass(frozen=True)
class Judge:
    """A judge ready to score. Its network is frozen; gradients reach the images, except through the gold judge.

    Attributes:
        name: "reward" or "gold". model: the network. words: word -> id.
        distractors: captions that a right caption must beat in `rl3d.rewards.score`.
        fronts: nouns whose real assets look different from behind, with the distance of front and back below which a
            front is shown twice; see rl3d.rewards.janus (gold judge; else empty).
    """

    name: str
    model: JudgeModel
    words: dict[str, int]
    distractors: tuple[str, ...]
    fronts: Mapping[str, float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.model.log_scale.device

    @property
    def temperature(self) -> float:
        """Learned: logits are similarity / temperature."""
        return math.exp(-float(self.model.log_scale))

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that the judge never saw; it leaves them out."""
        return [w for w in split_words(prompt) if w not in self.words]

    def embed_texts(self, prompts: list[str]) -> Tensor:
        """[N, E] unit embeddings.

        Raises:
            InputError: a prompt has no word that the judge knows.
        """
        ids = known_words(prompts, self.words, self.model.config.max_words, f"the {self.name} judge")
        return self.model.encode_texts(ids.to(self.device))

    def encode(self, images: Tensor) -> ImageCode:
        """What the judge sees in [B, V, 4, H, W] premultiplied sRGB in [0, 1]; differentiable to the images.

        The gold judge never builds a graph, so that it cannot end up in a loss.
        """
        if images.ndim != 5 or images.shape[2] != 4:
            raise InputError(f"a judge takes premultiplied RGBA views [B, V, 4, H, W], got {list(images.shape)}")
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.name != "gold"):
            return self.model.encode_images(images.to(self.device, torch.float32))

    def similarity(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Cosine similarity [B] in [-1, 1] of view sets [B, V, 4, H, W] (premultiplied) and their prompts."""
        if len(prompts) != len(images):
            raise InputError(f"{len(images)} view sets need as many prompts, got {len(prompts)}")
        return (self.encode(images).embedding * self.embed_texts(prompts)).sum(-1)

    def logits(self, images: Tensor, prompts: list[str]) -> Tensor:
        """[B, N] similarity / temperature of every view set with every prompt."""
        return self.encode(images).embedding @ self.embed_texts(prompts).T / self.temperature


def save_judge(judge: Judge, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write `model.safetensors`, `config.json` and `vocabulary.json` into a folder, each atomically.

    A `janus.json` there was measured on other weights and is removed; tools/measure_janus.py makes it anew.
    """
    folder = Path(folder)
    (folder / JANUS).unlink(missing_ok=True)
    config = {**asdict(judge.model.config), "distractors": list(judge.distractors)}
    write_model(folder, judge.model, config, judge.words, dtype)


def load_judge(which: Which, device: torch.device | str = "cpu", folder: str | Path | None = None) -> Judge:
    """A judge from its folder; None takes the embedded one.

    Raises:
        InputError: `which` is not a judge. AssetError: files are missing, truncated or of another judge.
    """
    if which not in KINDS:
        raise InputError(f"which must be one of {', '.join(KINDS)}, got {which!r}")
    folder = Path(folder) if folder is not None else model_folder(f"judge_{which}")
    with readable(f"the {which} judge in {folder}"):
        raw, words, tensors = read_model(folder)
        distractors = tuple(raw.pop("distractors"))
        raw.pop("sided", None)  # what `janus.json` replaced; older files still have it
        config = JudgeConfig.from_json(raw)
        if config.kind != which or config.vocabulary != len(words):
            raise ValueError(f"it holds a {config.kind} judge of {config.vocabulary} words, found {len(words)} words")
        model = build_model(config)
        model.load_state_dict(tensors)
        fronts = _fronts(folder / JANUS) if which == "gold" else {}
    return Judge(which, model.to(device).eval().requires_grad_(False), words, distractors, fronts)


def _fronts(path: Path) -> dict[str, float]:
    """Noun -> threshold, as tools/measure_janus.py writes them; nothing where it was not run."""
    if not path.exists():
        return {}
    nouns = json.loads(path.read_text(encoding="utf-8"))["nouns"]
    return {str(noun): float(entry["threshold"]) for noun, entry in nouns.items()}
