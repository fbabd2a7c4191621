"""Rewards with published weights: "FAMILY:PATH_OR_ID[@REVISION]", safetensors and JSON only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rl3d import hub
from rl3d.assets import packaged_folder
from rl3d.errors import AssetError, InputError, nearest
from rl3d.rewards.embedded import refuse_gold
from rl3d.rewards.hub.clip import FIELD, load_clip
from rl3d.rewards.hub.hpsv2 import load_hpsv2
from rl3d.rewards.hub.imagereward import load_imagereward
from rl3d.rewards.hub.reward3d import load_reward3d
from rl3d.rewards.hub.vlm_judge import load_vlm
from rl3d.rewards.protocol import Reward

WANTED = ("*.json", "*.txt", "README.md", "*.safetensors")
UNWANTED = ("*/*", *hub.PICKLED, "*.py", "*.fp16.*")


@dataclass(frozen=True)
class Family:
    """A kind of published reward: what it is, the format of its files, how they are loaded, what to leave out."""

    about: str
    files: str
    load: Callable[..., Reward]
    unwanted: tuple[str, ...] = ()


# Repositories of CLIP hold open_clip's copy of the same weights as well.
FAMILIES = {
    "clip": Family("CLIP similarity", "transformers CLIP", load_clip, ("open_clip*",)),
    "pickscore": Family("PickScore", "transformers CLIP", partial(load_clip, name="pickscore"), ("open_clip*",)),
    "hpsv2": Family("HPS v2", "transformers CLIP, or open_clip's keys", load_hpsv2),
    "imagereward": Family("ImageReward", "its own keys, converted to safetensors", load_imagereward),
    "reward3d": Family("DreamReward's Reward3D", "its own keys, converted to safetensors", load_reward3d),
    "vlm": Family("yes/no judge", "transformers Qwen2-VL or Qwen2.5-VL", load_vlm),
}


def load_hub_reward(
    spec: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, **options: Any
) -> Reward:
    """A reward with published weights.

    Args:
        spec: "FAMILY:PATH_OR_ID[@REVISION]", such as "clip:openai/clip-vit-large-patch14@main" or "vlm:models/judge".
            No network unless an id is given.
        device: where it runs.
        dtype: of its networks; None takes half precision on a GPU, float32 on a CPU.
        options: of the family's function: pool="mean" | "max" | "min" (over the views), chunk=8 (views at a time),
            questions=[...] (of the vlm judge).

    Raises:
        InputError: no such family, neither a folder nor an id, the gold judge, or an id that the hub does not give.
        AssetError: another architecture; missing, pickled or truncated files.
    """
    name, _, place = spec.partition(":")
    if name in ("gold", "judge_gold"):
        refuse_gold()
    if name not in FAMILIES:
        close = nearest(name, FAMILIES, 1)
        guess = f"; did you mean {close[0] + ':' + place!r}?" if close else ""
        raise InputError(f"{FIELD} {spec!r}: no reward family is called {name!r}; known: {', '.join(FAMILIES)}{guess}")
    if options.get("pool", "mean") not in ("mean", "max", "min"):
        raise InputError(f"pool must be mean, max or min, got {options['pool']!r}")
    if options.get("chunk", 1) < 1:
        raise InputError(f"chunk must be at least 1, got {options['chunk']}")
    found = hub.locate(place, f"{FIELD} {name}:", marker="its *.safetensors")
    if not isinstance(found, Path):
        found = hub.download(*found, FIELD, WANTED, (*UNWANTED, *FAMILIES[name].unwanted))
    if _is_gold_judge(found):
        refuse_gold()
    return FAMILIES[name].load(found, torch.device(device), dtype, **options)


def _is_gold_judge(folder: Path) -> bool:
    try:
        return folder.resolve() == (packaged_folder("assets") / "judge_gold").resolve()
    except AssetError:  # an installation without embedded models has no gold judge either
        return False


def family_facts() -> list[dict[str, str | None]]:
    """For `rl3d doctor`: every family, its file format, and why it cannot run here (None: it can, given weights)."""
    lacking = [package for package in ("transformers", "safetensors", "huggingface_hub") if find_spec(package) is None]
    why_not = f"pip install {' '.join(lacking)}" if lacking else None
    return [{"name": n, "about": f.about, "files": f.files, "why_not": why_not} for n, f in FAMILIES.items()]
