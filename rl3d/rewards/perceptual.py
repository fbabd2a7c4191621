"""How different two pictures look: LPIPS with weights from a file, or a substitute that is embedded.

A distance is a callable of two stacks of pictures, 0 for equal ones, larger for less alike; it carries a name, so that
a report says which of them was used. Nothing is downloaded, and nothing pickled is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rl3d.errors import AssetError, InputError
from rl3d.rewards.judges import Judge, RewardJudge, load_judge


class PerceptualDistance(Protocol):
    """Differentiable distance of pictures.

    Attributes:
        name, licence: for reports.
    """

    @property
    def name(self) -> str: ...
    @property
    def licence(self) -> str: ...

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """[N] from 0 up, of premultiplied sRGB + alpha [N, 4, h, w] in [0, 1]."""
        ...


def pixel_distance(a: Tensor, b: Tensor, scales: int = 4) -> Tensor:
    """[N] in [0, 1]: mean absolute difference of RGBA pictures [N, 4, h, w], averaged over `scales` halvings."""
    total = a.new_zeros(len(a))
    for k in range(scales):
        total = total + (a - b).abs().mean((1, 2, 3))
        if k + 1 < scales and min(a.shape[-2:]) > 1:
            a, b = F.avg_pool2d(a, 2, ceil_mode=True), F.avg_pool2d(b, 2, ceil_mode=True)
    return total / scales


@dataclass(frozen=True)
class JudgeFeatures:
    """The embedded substitute for LPIPS, in [0, 1]; differentiable to both pictures.

    Half of it is `pixel_distance`, which no wrong texture escapes, half the distance of features that the reward
    judge's image encoder computes at each of its resolutions: normalised over the channels of every place (mean 0, mean
    square 1), half the mean square of the difference over 2, which is (1 - correlation) / 2.

    The encoder was trained on 64-pixel renders of low-poly props by this project: it is no stand-in for LPIPS on
    photos, and its numbers are not LPIPS's.

    Raises:
        InputError: it is built on the gold judge, which only measures.
    """

    judge: Judge
    name: str = "judge features"
    licence: str = "Apache-2.0"

    def __post_init__(self) -> None:
        if self.judge.name != "reward":
            raise InputError("the gold judge only measures; a perceptual distance is built on the reward judge")

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = (t.to(self.judge.device, torch.float32) for t in (a, b))
        both = torch.cat([a, b])
        distances = []
        for feature in self._features(both):
            flat = F.layer_norm(feature.movedim(1, -1), feature.shape[1:2])
            ours, theirs = flat.chunk(2)
            distances.append(((ours - theirs) ** 2).mean((1, 2, 3)) / 4)
        return 0.5 * torch.stack(distances).mean(0) + 0.5 * pixel_distance(a, b)

    def _features(self, pictures: Tensor) -> list[Tensor]:
        """[N, C, h, w] after every convolution that halves the picture and the block behind it, before the pooling."""
        model = self.judge.model
        assert isinstance(model, RewardJudge)  # `name` is "reward"
        size = model.config.image_size
        x = 2 * F.interpolate(pictures, (size, size), mode="bilinear", antialias=True, align_corners=False) - 1
        found: list[Tensor] = []
        for layer in model.features:
            halves = isinstance(layer, nn.Conv2d)
            x = layer(x)
            found = [*found, x] if halves or not found else [*found[:-1], x]
        return found


def judge_features(device: torch.device | str = "cpu", folder: str | Path | None = None) -> JudgeFeatures:
    """The embedded distance; its files raise an AssetError where they are broken."""
    return JudgeFeatures(load_judge("reward", device, folder))


# LPIPS (Zhang et al. 2018, arXiv 1801.03924), version 0.1 on AlexNet -------------------------------------------------

CONVOLUTIONS = (0, 3, 6, 8, 10)  # their indices in torchvision's AlexNet.features, where LPIPS takes its features
SIDES = (11, 5, 3, 3, 3)
# Its net.sliceK.N names keep torchvision's N; a file may also hold AlexNet alone, and "lins.K" beside "linK".
_ALEX = re.compile(r"^(?:net\.slice\d\.|features\.|alexnet\.features\.)(\d+)\.(weight|bias)$")
_LIN = re.compile(r"^lins?\.?(\d)\.model\.1\.weight$")
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class LPIPS:
    """LPIPS v0.1 with AlexNet: pictures over white, in [-1, 1], features of unit length over the channels, squared
    differences weighted by channel, mean over places, summed over five layers. Differentiable.

    Attributes:
        weights, biases: of the five convolutions. lins: [C_k] weights of their channels, not negative.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    lins: tuple[Tensor, ...]
    name: str = "LPIPS (AlexNet)"
    licence: str = "BSD-2-Clause (LPIPS), torchvision's AlexNet"

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        both = torch.cat([a, b]).to(self.weights[0])
        if min(both.shape[-2:]) < 32:
            raise InputError(f"LPIPS on AlexNet needs pictures of 32 pixels or more, got {list(both.shape[-2:])}")
        over_white = 2 * (both[:, :3] + 1 - both[:, 3:]) - 1
        shift, scale = (both.new_tensor(c)[:, None, None] for c in (_SHIFT, _SCALE))
        total = both.new_zeros(len(a))
        for feature, lin in zip(self.features((over_white - shift) / scale), self.lins):
            unit = feature / (feature.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
            ours, theirs = unit.chunk(2)
            total = total + ((ours - theirs) ** 2 * lin[:, None, None]).sum(1).mean((1, 2))
        return total

    def features(self, x: Tensor) -> list[Tensor]:
        """The five rectified maps of AlexNet."""
        found = []
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            if k in (1, 2):
                x = F.max_pool2d(x, 3, stride=2)
            x = F.relu(F.conv2d(x, weight, bias, stride=4 if k == 0 else 1, padding=(2, 2, 1, 1, 1)[k]))
            found.append(x)
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> LPIPS:
        """From the names of the published files: AlexNet's features (torchvision's `features.N`, or LPIPS's own
        `net.sliceK.N`) and LPIPS's `linK.model.1.weight`; other tensors, such as AlexNet's classifier, are left out.

        Raises:
            AssetError: a tensor is missing or has another shape, or a channel's weight is negative.
        """
        convolutions: dict[tuple[int, str], Tensor] = {}
        lins: dict[int, Tensor] = {}
        for key, tensor in tensors.items():
            if match := _ALEX.match(key):
                convolutions[int(match[1]), match[2]] = tensor.to(device, torch.float32)
            elif match := _LIN.match(key):
                lins[int(match[1])] = tensor.to(device, torch.float32)
        wanted = [(n, part) for n in CONVOLUTIONS for part in ("weight", "bias")]
        missing = [f"features.{n}.{part}" for n, part in wanted if (n, part) not in convolutions]
        missing += [f"lin{k}.model.1.weight" for k in range(5) if k not in lins]
        if missing:
            raise AssetError(f"no LPIPS on AlexNet: {', '.join(missing)} are missing; give both files' tensors")
        weights = tuple(convolutions[n, "weight"] for n in CONVOLUTIONS)
        biases = tuple(convolutions[n, "bias"] for n in CONVOLUTIONS)
        before = 3
        for k, (weight, bias) in enumerate(zip(weights, biases)):
            channels = weight.shape[0]
            shapes = (tuple(weight.shape), tuple(bias.shape), tuple(lins[k].shape))
            if shapes != ((channels, before, SIDES[k], SIDES[k]), (channels,), (1, channels, 1, 1)):
                raise AssetError(f"no LPIPS on AlexNet: layer {k} has weight, bias and lin of shapes {shapes}")
            if bool((lins[k] < 0).any()):
                raise AssetError(f"no LPIPS: lin{k} has negative weights, a distance has none")
            before = channels
        return cls(weights, biases, tuple(lins[k].flatten() for k in range(5)))


def load_lpips(path: str | Path, device: torch.device | str = "cpu") -> LPIPS:
    """LPIPS from a safetensors file, or a folder of them: AlexNet's tensors and LPIPS's, under their published names.

    Convert torchvision's `alexnet-owt-7be5be79.pth` and LPIPS's `weights/v0.1/alex.pth` once, where they are trusted:
    `safetensors.torch.save_file(torch.load(pth, weights_only=True), out)`.

    Raises:
        AssetError: no such file, a pickled one, or one that lacks a tensor (`LPIPS.from_tensors`).
    """
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.suffix != ".safetensors":
            raise AssetError(f"{file} is no safetensors file and is not read; convert it once, see load_lpips")
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise AssetError(f"{file} cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not files:
        raise AssetError(f"{path} holds no *.safetensors; put AlexNet's and LPIPS's there")
    return LPIPS.from_tensors(tensors, device)
