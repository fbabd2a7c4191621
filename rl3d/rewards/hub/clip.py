"""CLIP similarity (Radford et al. 2021, arXiv 2103.00020) and PickScore (Kirstain et al. 2023, arXiv 2305.01569).

Both are a transformers CLIPModel folder: config.json, *.safetensors, preprocessor_config.json and CLIP's tokenizer. The
score is the cosine of image and text features, in [-1, 1]; what PickScore's authors print is this times
exp(logit_scale), about 100. Differentiable to the images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rl3d import hub
from rl3d.errors import AssetError
from rl3d.rewards.hub.views import POOLS, Pool, Preparation, ViewReward, read_normalisation, tokens

FIELD = "method.reward.name"


class ClipScorer:
    """Cosine similarity of pictures and sentences: a frozen CLIPModel, its tokenizer and the texts it has read."""

    def __init__(self, model: Any, tokenizer: Any, prepare: Preparation, name: str) -> None:
        self.model, self.tokenizer, self.prepare, self.name = model, tokenizer, prepare, name
        self.texts: dict[str, Tensor] = {}  # prompt -> unit features [D], float32

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Images [N, 3, H, W], sRGB in [0, 1], and N sentences: [N] cosines, float32."""
        pixels = self.prepare(images).to(self.model.dtype)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        seen = F.normalize(self.model.visual_projection(pooled).to(images.dtype), dim=-1)
        return (seen * torch.stack([self.text(prompt) for prompt in prompts]).to(seen)).sum(-1)

    @torch.no_grad()
    def text(self, prompt: str) -> Tensor:
        """Unit features [D] of a sentence, read once."""
        if prompt not in self.texts:
            limit = self.model.config.text_config.max_position_embeddings
            ids = torch.tensor([tokens(self.tokenizer, prompt, limit, self.name)], device=self.model.device)
            pooled = self.model.text_model(input_ids=ids).pooler_output
            self.texts[prompt] = F.normalize(self.model.text_projection(pooled)[0].float(), dim=-1)
        return self.texts[prompt]


def load_clip(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    name: str = "clip",
    pool: Pool = "mean",
    chunk: int = 8,
) -> ViewReward:
    """A transformers CLIP folder as a reward; the views' cosines are pooled.

    Raises:
        AssetError: another architecture, missing, pickled or truncated files.
    """
    from transformers.models.clip.modeling_clip import CLIPModel

    check_kind(folder, ("clip",), name)
    model = hub.from_folder(CLIPModel, folder, device, hub.default_dtype(device, dtype), FIELD)
    side = int(model.config.vision_config.image_size)
    path = folder / "preprocessor_config.json"
    config = hub.read_json(path) if path.is_file() else {}
    for key in ("size", "crop_size"):
        size = config.get(key, side)
        sides = set(size.values()) if isinstance(size, dict) else {size}
        if sides != {side}:
            raise AssetError(f"{path}: {key} {size} does not fit the model's {side} pixels a side; mixed folders?")
    mean, std = read_normalisation(config)
    return as_reward(ClipScorer(model, read_tokenizer(folder), Preparation(side, mean, std), name), folder, pool, chunk)


def as_reward(scorer: ClipScorer, folder: Path, pool: Pool, chunk: int) -> ViewReward:
    """A scorer whose cosines are pooled over the views."""
    return ViewReward(scorer, POOLS[pool], scorer.name, hub.read_licence(folder), (-1.0, 1.0), chunk=chunk)


def check_kind(folder: Path, kinds: tuple[str, ...], family: str) -> str:
    """The model_type of a folder's config.json.

    Raises:
        AssetError: no config.json, or the model is of another kind.
    """
    kind = str(hub.read_json(folder / "config.json").get("model_type"))
    if kind not in kinds:
        raise AssetError(
            f"{folder} is a {kind!r} model, reward family {family} reads {' or '.join(kinds)}; choose another {FIELD}"
        )
    return kind


def read_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer from a model folder.

    Raises:
        AssetError: its files are not there or broken.
    """
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    has_lists = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    if not has_lists and not (folder / "tokenizer.json").is_file():
        raise AssetError(
            f"{folder} has no tokenizer; put CLIP's vocab.json and merges.txt there (any CLIP model folder has them)"
        )
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # as many types as there are ways to break a file
        reason = " ".join(str(error).split())[:200]
        raise AssetError(f"{folder}: the tokenizer cannot be loaded: {reason}; download the model again") from error
