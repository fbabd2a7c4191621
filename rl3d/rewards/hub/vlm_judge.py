"""A vision-language model asked yes/no questions about all views at once (VLM3D, arXiv 2509.15772; DreamDPO's judge).

Qwen2-VL and Qwen2.5-VL folders in the transformers format. The views stand side by side in one picture; the score is
the log-odds of "Yes" against "No" as the answer's first token, log p(Yes) - log p(No), averaged over the questions.

Differentiable to the images: the model's own processor works on byte pictures (and needs torchvision), so the same
steps (smart resize, normalisation, 2 x 2 merged patches) are taken here on tensors, up to the model's pixel_values.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rl3d import hub
from rl3d.errors import AssetError, InputError
from rl3d.rewards.hub.clip import FIELD, check_kind
from rl3d.rewards.hub.views import normalise, read_normalisation, resize
from rl3d.rewards.protocol import RewardInput, check_scores

KINDS = ("qwen2_vl", "qwen2_5_vl")
QUESTIONS = (
    "These are views of one 3D object from different sides. Does the object match the description: {prompt}?",
    "These are views of one 3D object from different sides. Is its shape plausible and the same in all of them, "
    "without a second face, holes or floating parts?",
)
VIEW_SIZE = 224  # pixels a side of a view in the picture: 64 tokens
BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
PIXELS = "<|image_pad|>"
AFTER = "<|vision_end|>{question} Answer Yes or No.<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Patches:
    """How Qwen-VL cuts a picture, as in its preprocessor_config.json."""

    size: int
    frames: int
    merge: int
    least: int  # pixels of a picture
    most: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """The size that a picture is brought to: whole merged patches, between `least` and `most` pixels."""
        unit = self.size * self.merge
        h, w = (max(unit, round(side / unit) * unit) for side in (height, width))
        if h * w > self.most:
            shrink = math.sqrt(height * width / self.most)
            h, w = (max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width))
        elif h * w < self.least:
            grow = math.sqrt(self.least / (height * width))
            h, w = (math.ceil(side * grow / unit) * unit for side in (height, width))
        return h, w

    def __call__(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A picture [3, H, W], sRGB in [0, 1], as patches [h * w, 3 * frames * size^2] and (h, w); differentiable.

        Patches run in blocks of merge x merge, so that those which become one token lie together.
        """
        h, w = self.sides(*image.shape[-2:])
        pixels = normalise(resize(image[None], (h, w)), self.mean, self.std)[0]
        rows, columns = h // self.size, w // self.size
        cut = pixels.reshape(3, rows // self.merge, self.merge, self.size, columns // self.merge, self.merge, self.size)
        cut = cut.permute(1, 4, 2, 5, 0, 3, 6)  # [block row, block column, row, column, 3, size, size]
        still = cut[:, :, :, :, :, None].expand(*cut.shape[:5], self.frames, -1, -1)  # a picture is a still film
        return still.reshape(rows * columns, -1), (rows, columns)


def read_patches(folder: Path) -> Patches:
    """From preprocessor_config.json.

    Raises:
        AssetError: it is missing or lacks a size.
    """
    config = hub.read_json(folder / "preprocessor_config.json")
    limits = config.get("size", {})
    least, most = (
        config.get("min_pixels", limits.get("shortest_edge")),
        config.get("max_pixels", limits.get("longest_edge")),
    )
    try:
        size, frames, merge = (int(config[key]) for key in ("patch_size", "temporal_patch_size", "merge_size"))
        return Patches(size, frames, merge, int(least), int(most), *read_normalisation(config))
    except (KeyError, TypeError, ValueError) as error:
        raise AssetError(f"{folder}/preprocessor_config.json is not Qwen-VL's: {error}; download it again") from error


def grid(views: Tensor) -> Tensor:
    """Views [V, 3, H, W] side by side, row by row, in one picture [3, rows * H, columns * W]; empty places white."""
    count, _, h, w = views.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    blank = views.new_ones(rows * columns - count, 3, h, w)
    return torch.cat([views, blank]).unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


@dataclass(frozen=True)
class VLMJudge:
    """Log-odds of Yes against No, averaged over the questions; see the module.

    Attributes:
        model, tokenizer: frozen, of a Qwen-VL folder. patches: how pictures are cut.
        yes, no: tokens. questions: texts; "{prompt}" becomes the asset's prompt.
    """

    model: Any
    tokenizer: Any
    patches: Patches
    yes: int
    no: int
    questions: tuple[str, ...] = QUESTIONS
    licence: str = "unknown, see the model's card"
    name: str = "vlm"
    views: int | None = None
    differentiable: bool = True
    range: tuple[float, float] = (-math.inf, math.inf)
    view_size: int = field(default=VIEW_SIZE)

    def __call__(self, x: RewardInput) -> Tensor:
        """Scores [B]; one picture and question at a time, recomputed on the way back, so that memory is bounded."""
        scores = []
        for views, prompt in zip(x.images, x.prompts):
            asked = [question.replace("{prompt}", prompt) for question in self.questions]
            if torch.is_grad_enabled() and views.requires_grad:
                odds = [checkpoint(self.log_odds, views, question, use_reentrant=False) for question in asked]
            else:
                odds = [self.log_odds(views, question) for question in asked]
            scores.append(torch.stack(odds).mean())
        return check_scores(torch.stack(scores), x, self.name, True, self.range)

    def log_odds(self, views: Tensor, question: str) -> Tensor:
        """log p(Yes) - log p(No), a scalar, for the views [V, 3, H, W] of one asset."""
        height, width = (round(side * self.view_size / max(views.shape[-2:])) for side in views.shape[-2:])
        pixels, (rows, columns) = self.patches(grid(resize(views, (height, width))))
        device = self.model.device
        text = BEFORE + PIXELS * (rows * columns // self.patches.merge**2) + AFTER.format(question=question)
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]], device=device)
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": pixels.to(device=device, dtype=self.model.dtype),
            "image_grid_thw": torch.tensor([[1, rows, columns]], device=device),
            "use_cache": False,
            "logits_to_keep": 1,
        }
        if "mm_token_type_ids" in inspect.signature(self.model.forward).parameters:  # newer releases of transformers
            inputs["mm_token_type_ids"] = (ids == self.model.config.image_token_id).int()
        logits = self.model(**inputs).logits[0, -1].to(views.dtype)
        return logits[self.yes] - logits[self.no]


def load_vlm(
    folder: Path, device: torch.device, dtype: torch.dtype | None = None, *, questions: Sequence[str] = QUESTIONS
) -> VLMJudge:
    """A Qwen2-VL or Qwen2.5-VL folder as a judge. On a GPU it runs in bfloat16, which it was trained in.

    Raises:
        InputError: no questions.
        AssetError: another architecture; missing, pickled or truncated files; a tokenizer without Yes and No.
    """
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    if isinstance(questions, str) or not questions:
        raise InputError(f"a yes/no judge needs a list of questions, got {questions!r}")
    check_kind(folder, KINDS, "vlm")
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    patches = read_patches(folder)
    model = hub.from_folder(AutoModelForImageTextToText, folder, device, dtype, FIELD)
    vision = model.config.vision_config
    if (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size) != (
        patches.size,
        patches.frames,
        patches.merge,
    ):
        raise AssetError(f"{folder}: preprocessor_config.json and config.json disagree on the patches; mixed folders?")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        answers = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("Yes", "No")]
        pad = tokenizer(PIXELS, add_special_tokens=False)["input_ids"]
    except Exception as error:  # as many types as there are ways to break a file
        reason = " ".join(str(error).split())[:200]
        raise AssetError(f"{folder}: the tokenizer cannot be loaded: {reason}; download the model again") from error
    if [len(ids) for ids in answers] != [1, 1] or pad != [model.config.image_token_id]:
        raise AssetError(f"{folder}: Yes, No and {PIXELS} must be one token each; the tokenizer is of another model")
    yes, no = (ids[0] for ids in answers)
    return VLMJudge(model, tokenizer, patches, yes, no, tuple(questions), hub.read_licence(folder))
