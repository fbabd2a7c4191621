"""Low-rank adapters on a prior's network, by peft: what fine-tuning trains, saves, and `--prior` reads back.

A folder holds peft's own two files (adapter_model.safetensors, adapter_config.json) and rl3d_adapter.json, which names
the base and its fingerprint. The reference policy is the same network with the adapter off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rl3d.errors import AssetError, InputError
from rl3d.files import atomic_path, write_json

# Attention's projections, as the embedded transformer, diffusers' and MVDream's U-Nets call them.
TARGETS = ("qkv", "out", "to_q", "to_k", "to_v", "to_out.0")
WEIGHTS, CONFIG, FACTS = "adapter_model.safetensors", "adapter_config.json", "rl3d_adapter.json"
NAME = "default"  # peft's


@runtime_checkable
class TunablePrior(Protocol):
    """A prior with a network that an adapter can be put on."""

    name: str

    @property
    def network(self) -> nn.Module: ...


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = 4
    alpha: float = 4.0  # the update is scaled by alpha / rank

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise InputError(f"an adapter needs rank >= 1 and alpha > 0, got {self.rank} and {self.alpha}")


def attach(prior: TunablePrior, options: LoraOptions, seed: int = 0) -> dict[str, nn.Parameter]:
    """Put a fresh adapter on the prior's network; nothing changes until it is trained.

    Returns:
        The adapter's float32 parameters by name; all others stay frozen.

    Raises:
        InputError: there is an adapter already, or nothing to put one on.
    """
    from peft import LoraConfig, inject_adapter_in_model

    network = prior.network
    if any(True for _ in _layers(network)):
        raise InputError(f"the prior {prior.name!r} carries an adapter already; fine-tune its base instead")
    found = [name for name, module in network.named_modules() if _is_target(name, module)]
    if not found:
        raise InputError(f"the prior {prior.name!r} has no attention projections for an adapter ({', '.join(TARGETS)})")
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=found, lora_dropout=0.0)  # type: ignore[arg-type]
    device = next(network.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network)
    _in_float32(network)
    return adapter_parameters(network)


def adapter_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name; empty without one."""
    return {name: tensor for name, tensor in network.named_parameters() if ".lora_" in name}


def _in_float32(network: nn.Module) -> None:
    """The adapter in float32, trainable, all else frozen; a step of 1e-4 is nothing to a bfloat16 number."""
    network.requires_grad_(False)
    for tensor in adapter_parameters(network).values():
        tensor.data = tensor.data.float()
        tensor.requires_grad_(True)


@contextmanager
def reference(network: nn.Module) -> Iterator[None]:
    """Inside, the adapter is off: the network is the base again. No gradient may flow from inside to the adapter."""
    layers = list(_layers(network))
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@contextmanager
def swapped(network: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the adapter has these values (an average's or an older policy's); no graph may be alive across it."""
    parameters = adapter_parameters(network)
    kept = {name: tensor.detach().clone() for name, tensor in parameters.items()}
    _copy(parameters, values)
    try:
        yield
    finally:
        _copy(parameters, kept)


@torch.no_grad()
def _copy(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, tensor in parameters.items():
        tensor.copy_(values[name])


def _is_target(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and any(name == t or name.endswith("." + t) for t in TARGETS)


def _layers(network: nn.Module) -> Iterator[Any]:
    from peft.tuners.lora import LoraLayer

    return (module for module in network.modules() if isinstance(module, LoraLayer))


def fingerprint(network: nn.Module) -> str:
    """A short hash of the base network: names, shapes and the beginning of every tensor, in half precision.

    The same for a model that was loaded in float32 and in bfloat16, and with or without an adapter.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted((n.replace(".base_layer", ""), p) for n, p in network.named_parameters()):
        if ".lora_" in name:
            continue
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().flatten()[:64].to("cpu", torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_adapter(prior: TunablePrior, folder: str | Path, base: str | None, facts: Mapping[str, Any]) -> None:
    """Write the adapter, each file atomically.

    Args:
        base: what `--prior` named; None for the embedded one. facts: JSON for rl3d_adapter.json.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = next(iter(prior.network.peft_config.values()))  # type: ignore[union-attr, operator]
    state = get_peft_model_state_dict(prior.network, adapter_name=NAME)
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, temporary)
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    write_json(folder / CONFIG, {**plain, "base_model_name_or_path": base or "embedded"})
    write_json(folder / FACTS, {"base": base, "fingerprint": fingerprint(prior.network), **facts})


def adapter_base(folder: Path) -> str | None:
    """What the adapter in a folder was trained on, as `--prior` names it; None for the embedded prior.

    Raises:
        AssetError: it is not an adapter of rl3d.
    """
    facts = _facts(folder)
    base = facts.get("base")
    return None if base is None else str(base)


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AssetError(f"{folder} has {CONFIG} but no readable {FACTS}; it is no adapter of rl3d") from error
    return facts


def load_adapter(prior: TunablePrior, folder: Path) -> None:
    """Put the adapter of a folder on its base, frozen.

    Raises:
        AssetError: files are missing or truncated, or the adapter was trained on another base.
    """
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    network, facts = prior.network, _facts(folder)
    own = fingerprint(network)
    if facts.get("fingerprint") != own:
        raise AssetError(
            f"the adapter in {folder} was trained on another base model (fingerprint {facts.get('fingerprint')}, the "
            f"prior {prior.name!r} has {own}); fine-tune this prior, or give the one it was trained on"
        )
    try:
        config = LoraConfig(**_lora_fields(json.loads((folder / CONFIG).read_text(encoding="utf-8"))))
        state = load_file(folder / WEIGHTS)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise AssetError(f"cannot read the adapter in {folder} ({reason}); copy or train it again") from error
    inject_adapter_in_model(config, network)
    _in_float32(network)
    outcome = set_peft_model_state_dict(network, state, adapter_name=NAME)
    missing = [k for k in outcome.missing_keys if ".lora_" in k]
    if missing or outcome.unexpected_keys:
        wrong = (missing or outcome.unexpected_keys)[0]
        raise AssetError(f"the adapter in {folder} does not fit its configuration ({wrong}); copy or train it again")
    network.requires_grad_(False)


def _lora_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What this project sets, of peft's many fields."""
    names = ("r", "lora_alpha", "target_modules")
    return {**{name: raw[name] for name in names}, "lora_dropout": 0.0}
