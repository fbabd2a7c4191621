"""One door to every prior: the embedded default, a model folder, or a hub id. No network unless a hub id is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rl3d import hub
from rl3d.errors import AssetError, InputError
from rl3d.priors import adapters
from rl3d.priors.protocol import Prior, PromptEmbedding

# Never the repository's top folder of whole-checkpoint files, never anything pickled or executable.
WANTED = ("*.json", "README.md", "*/*.json", "*/*.txt", "*/*.safetensors")
UNWANTED = (*hub.PICKLED, "*.py", "*.non_ema*", "safety_checker/*", "image_encoder/*")


def load(spec: str | None = None, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Prior:
    """The prior that `--prior` names.

    Args:
        spec: None or "embedded" for the model inside the package; a folder; or a hub id "OWNER/NAME[@REVISION]".
            Folders: Stable Diffusion 1.x / 2.x text-to-image pipelines and MVDream-format pipelines in the diffusers
            layout, rl3d's own multi-view pipelines, and adapters that `rl3d finetune` made of any of them. Code in a
            model's repository is never run.
        device: where it runs.
        dtype: of hub models' networks; None takes float16 on a GPU, float32 on a CPU.

    Raises:
        InputError: `spec` is neither a folder nor a hub id, or the hub does not have it or cannot be reached.
        AssetError: the model is incomplete, holds only pickled weights, or is of an unknown kind.
    """
    chosen = torch.device(device)
    if spec is None or spec == "embedded":
        from rl3d.priors.embedded import load_embedded

        return load_embedded(device=chosen)
    return load_folder(locate(spec), chosen, dtype, name=spec)


def locate(spec: str) -> Path:
    """The folder that `spec` names, downloaded when it is a hub id and nothing on disk has that name.

    Raises:
        InputError: see `load`.
    """
    found = hub.locate(spec, "--prior", known=["embedded"])
    if isinstance(found, Path):
        return found
    folder = hub.download(*found, "--prior", WANTED, (*UNWANTED, "*.fp16.*"))
    if not any(folder.glob("unet/*.safetensors")):  # some models publish half precision only
        folder = hub.download(*found, "--prior", WANTED, UNWANTED)
    return folder


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype | None = None, *, name: str = "") -> Prior:
    """The prior in a folder with a model_index.json, or with an adapter of one.

    Raises:
        AssetError: see `load`.
    """
    if (folder / adapters.CONFIG).is_file():
        tuned: Any = load(adapters.adapter_base(folder), device, dtype)
        adapters.load_adapter(tuned, folder)
        tuned.name = name or folder.name
        return cast(Prior, tuned)
    index_path = folder / "model_index.json"
    if not index_path.is_file():
        raise AssetError(
            f"--prior {name or folder} has no model_index.json; give the folder of a diffusers pipeline, the one with "
            "unet/ and vae/ in it"
        )
    index = hub.read_json(index_path)
    kind = index.get("_class_name")
    if kind == "MultiViewPipeline":
        from rl3d.priors.embedded import load_embedded

        return load_embedded(folder, device=device)
    parts = {key: value[1] for key, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]}
    common = parts.get("vae") == "AutoencoderKL" and parts.get("text_encoder") == "CLIPTextModel"
    if common and parts.get("unet") == "MultiViewUNetModel":
        from rl3d.priors.mvdream import load_mvdream

        return load_mvdream(folder, device, dtype, name=name)
    if common and parts.get("unet") == "UNet2DConditionModel" and "text_encoder_2" not in parts:
        from rl3d.priors.stable_diffusion import load_stable_diffusion

        return load_stable_diffusion(folder, device, dtype, name=name)
    raise AssetError(
        f"--prior {name or folder} is a {kind}, which rl3d cannot use; choose a Stable Diffusion 1.x / 2.x "
        "text-to-image pipeline, an MVDream-format one, or rl3d's own"
    )


def join_prompts(prompts: Sequence[PromptEmbedding]) -> PromptEmbedding:
    """Several prompts of one prior as a batch, in the given order.

    Raises:
        InputError: nothing to join, or conditionings of different shapes.
    """
    if not prompts:
        raise InputError("no prompts to join; pass at least one")

    def cat(values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            if len({value.shape[1:] for value in values}) != 1:
                raise InputError(f"prompts of different shapes cannot be joined: {[list(v.shape) for v in values]}")
            return torch.cat(values)
        if isinstance(first, dict):
            return {key: cat([value[key] for value in values]) for key in first}
        return type(first)(cat(list(column)) for column in zip(*values))

    return PromptEmbedding(
        cat([p.positive for p in prompts]),
        cat([p.negative for p in prompts]),
        [text for p in prompts for text in p.prompts],
    )


def prompt_row(prompt: PromptEmbedding, i: int) -> PromptEmbedding:
    """One prompt of a batch of them."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[i : i + 1]
        if isinstance(value, dict):
            return {k: cut(v) for k, v in value.items()}
        return type(value)(cut(v) for v in value)

    return PromptEmbedding(cut(prompt.positive), cut(prompt.negative), prompt.prompts[i : i + 1])
