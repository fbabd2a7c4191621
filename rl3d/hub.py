"""Models that others published: finding a folder or a hub id, reading JSON and safetensors.

No network unless a hub id is given; no code of a model is run; nothing pickled is opened. Every error names
the option (`field`) to change. Access tokens come from the environment (HF_TOKEN, read by huggingface_hub itself).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl3d.errors import AssetError, InputError, nearest

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PICKLED = ("*.bin", "*.ckpt", "*.pt", "*.pth")


def locate(
    spec: str, field: str, known: Sequence[str] = (), marker: str = "model_index.json"
) -> Path | tuple[str, str]:
    """The folder that `spec` names, or (OWNER/NAME, revision) to download when nothing on disk has that name.

    Args:
        spec: a folder or a hub id "OWNER/NAME[@REVISION]". field: the option that holds it, for errors.
        known: words that the option also takes. marker: a file that the right folder has.

    Raises:
        InputError: neither a folder nor a hub id.
    """
    here = Path(spec).expanduser()
    if spec and here.is_dir():
        return here
    name, _, revision = spec.rpartition("@") if "@" in spec else (spec, "", "")
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        raise InputError(f"{field} {spec}: a folder has no revision; drop '@{revision}' or give a hub id OWNER/NAME")
    if folder.is_file():
        kind = "pipeline" if marker == "model_index.json" else "model"
        raise InputError(f"{field} {spec} is a file; give the {kind}'s folder (the one with {marker})")
    if "@" in spec and not revision:
        raise InputError(f"{field} {spec}: the revision after '@' is empty; drop the '@' or name a branch or commit")
    if not HUB_ID.fullmatch(name) or Path(name).parts[0] in (".", "..", "~") or Path(Path(name).parts[0]).is_dir():
        close = nearest(spec, known, 1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(
            f"{field} {spec!r} does not exist{guess}; give a model folder, a hub id OWNER/NAME[@REVISION], or leave it "
            "out for the embedded model"
        )
    return name, revision


def download(name: str, revision: str, field: str, wanted: Sequence[str], unwanted: Sequence[str]) -> Path:
    """A snapshot of a hub model's files in the hub's own cache.

    Args:
        revision: a branch, tag or commit; "" for the default. field: the option, for errors.
        wanted, unwanted: glob patterns of files to take, and of those to leave out of them.

    Raises:
        InputError: unknown id or revision, no permission, no network.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, allow_patterns=list(wanted), ignore_patterns=list(unwanted)
            )
        )
    except errors.GatedRepoError as error:
        raise InputError(
            f"{field} {name} asks for a licence agreement: accept it on the model's page and log in with "
            f"'hf auth login', or choose another {field}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{field} {name}@{revision}: the model has no revision {revision!r}; name a branch, tag or commit of it"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{field} {name} is not on the hub (or it is private); change {field} to an id that exists, a folder, or "
            "leave it out for the embedded model"
        ) from error
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{field} {name} could not be downloaded ({reason}); check the network, give a local folder, or leave "
            f"{field} out for the embedded model"
        ) from error
    except Exception as error:  # the hub's transport library is not ours to name
        raise InputError(
            f"{field} {name} could not be downloaded ({type(error).__name__}); check the network, give a local folder, "
            f"or leave {field} out for the embedded model"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder; AssetError when it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AssetError(f"{path} is missing; the model folder is incomplete, download it again") from error
    except (OSError, ValueError) as error:
        raise AssetError(f"{path} is not readable JSON ({error}); download the model again") from error
    if not isinstance(value, dict):
        raise AssetError(f"{path} must hold a JSON object, got {type(value).__name__}; download the model again")
    return value


def weight_variant(folder: Path, field: str, convert: str = "") -> str | None:
    """The file variant to load from a folder: None for plain files, "fp16" where only those exist.

    Args:
        convert: how weights of this kind become safetensors, for errors.

    Raises:
        AssetError: no safetensors weights at all. Pickled weights are never opened.
    """
    if not folder.is_dir():
        raise AssetError(f"{folder} is missing; the model folder is incomplete, download it again")
    names = [path.name for path in folder.glob("*.safetensors")]
    if any(".fp16" not in name and ".non_ema" not in name for name in names):
        return None
    if any(".fp16" in name for name in names):
        return "fp16"
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        way_out = convert or "convert them to safetensors (save_pretrained with safe_serialization)"
        raise AssetError(
            f"{folder} holds only pickled weights ({pickled[0]}), which rl3d never opens; {way_out} or choose another "
            f"{field}"
        )
    way_out = f"if it was published pickled, {convert}" if convert else "the model folder is incomplete"
    raise AssetError(f"{folder} holds no *.safetensors weights; {way_out}, or download it again")


def read_tensors(folder: Path, field: str, convert: str) -> dict[str, Tensor]:
    """All tensors of the one safetensors file in a folder, on the CPU, as they were saved.

    Args:
        field: the option, for errors. convert: how weights of this kind become safetensors, for errors.

    Raises:
        AssetError: no such file, several of them, or a truncated one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weight_variant(folder, field, convert)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise AssetError(
            f"{folder} holds several safetensors files ({', '.join(f.name for f in files[:3])}); keep the one that "
            f"{field} means"
        )
    try:
        return load_file(files[0])
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise AssetError(f"{files[0]} cannot be read ({reason}); download or convert it again") from error


def from_folder(model_class: Any, folder: Path, device: torch.device, dtype: torch.dtype, field: str) -> Any:
    """A frozen diffusers or transformers model from one component's folder, safetensors only, no network.

    Raises:
        AssetError: the folder is missing, truncated, pickled, or its tensors do not fill the model.
    """
    variant = weight_variant(folder, field)
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "variant": variant}
    if model_class.__module__.startswith("diffusers"):
        options["torch_dtype"] = dtype  # transformers renamed this option, and converts as well afterwards
    again = f"download it again or choose another {field}"
    try:
        with no_progress_bars():
            model, loaded = model_class.from_pretrained(str(folder), output_loading_info=True, **options)
    except Exception as error:  # the libraries raise a dozen unrelated types for a truncated or foreign file
        reason = " ".join(str(error).split())[:200]
        raise AssetError(f"{folder} cannot be loaded as {model_class.__name__}: {reason}; {again}") from error
    # The libraries only log these and go on with random numbers.
    missing = sorted(key for key in loaded["missing_keys"] if not key.endswith("position_ids"))
    if missing or loaded.get("mismatched_keys"):
        lost = missing or [str(loaded["mismatched_keys"])]
        raise AssetError(f"{folder} lacks {len(lost)} tensors of a {model_class.__name__} ({lost[0]}); {again}")
    return frozen(model, device, dtype)


def frozen(model: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The module on its device, in evaluation mode, without gradients of its own."""
    model = model.to(device=device) if model.dtype == dtype else model.to(device=device, dtype=dtype)
    return model.eval().requires_grad_(False)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without transformers' bar for every component on stderr; the setting is put back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def default_dtype(device: torch.device, dtype: torch.dtype | None) -> torch.dtype:
    """float16 on a GPU, float32 on a CPU (whose half-precision kernels are slower), unless the caller chose."""
    if dtype is not None:
        return dtype
    return torch.float16 if device.type == "cuda" else torch.float32


def read_licence(folder: Path) -> str:
    """The `license:` line of the model card, or what to do when there is none."""
    card = folder / "README.md"
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines() if card.is_file() else []
    if lines and lines[0].strip() == "---":
        for line in lines[1:]:
            if line.strip() == "---":
                break
            if line.startswith("license:"):
                return line.removeprefix("license:").strip().strip("\"'") or "unknown, see the model's card"
    return "unknown, see the model's card"
