"""Files of fields: safetensors, with what is not a tensor as JSON in the header."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from rl3d.errors import InputError, RL3DError
from rl3d.files import atomic_path
from rl3d.scenes.checks import looks_like, read_bytes
from rl3d.scenes.field import Decoder, Field
from rl3d.scenes.grids import Dense, Encoding, HashGrid, Triplane

FORMAT = "rl3d.field"


def save_field(field: Field, path: str | Path) -> None:
    """Write a field as .safetensors, atomically, from any device.

    Raises:
        InputError: another suffix, or a path that cannot be written.
    """
    path = Path(path)
    _check_suffix(path)
    facts: dict[str, object] = {
        "format": FORMAT,
        "encoding": type(field.encoding).__name__,
        "kind": field.kind,
        "bias_height": field.bias_height,
        "bias_radius": field.bias_radius,
    }
    if isinstance(field.encoding, HashGrid):
        facts |= {"resolutions": field.encoding.resolutions, "table_size": field.encoding.table_size}
    tensors = {k: v.detach().cpu().contiguous() for k, v in {**field.parameters(), "box": field.box}.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"field": json.dumps(facts)})


def load_field(path: str | Path) -> Field:
    """Read what `save_field` wrote, onto the CPU.

    Raises:
        InputError: no such file, not a field, truncated, or its tensors do not fit each other.
    """
    path = Path(path)
    _check_suffix(path)
    data = read_bytes(path)
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = json.loads(header["__metadata__"]["field"])
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}")
        return _field(tensors, facts)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RL3DError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{path} is not a field of rl3d ({reason or type(error).__name__}; it looks like {looks_like(data)}); "
            "write it with Field.save"
        ) from error


def _field(tensors: dict[str, Tensor], facts: dict[str, object]) -> Field:
    encoding: Encoding
    if facts["encoding"] == "Dense":
        encoding = Dense(tensors["encoding.grid"])
    elif facts["encoding"] == "Triplane":
        encoding = Triplane(tensors["encoding.planes"])
    elif facts["encoding"] == "HashGrid":
        resolutions = tuple(int(n) for n in facts["resolutions"])  # type: ignore[attr-defined]
        encoding = HashGrid(tensors["encoding.table"], resolutions, int(facts["table_size"]))  # type: ignore[call-overload]
    else:
        raise ValueError(f"it has an unknown encoding {facts['encoding']!r}")
    layers = range(sum(name.startswith("decoder.weights.") for name in tensors))
    decoder = None
    if layers:
        decoder = Decoder(
            tuple(tensors[f"decoder.weights.{i}"] for i in layers),
            tuple(tensors[f"decoder.biases.{i}"] for i in layers),
        )
    height, radius = float(facts["bias_height"]), float(facts["bias_radius"])  # type: ignore[arg-type]
    return Field(encoding, tensors["box"], str(facts["kind"]), decoder, tensors.get("log_beta"), height, radius)


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"fields are kept in .safetensors files, got {path.name!r}; name it {path.stem}.safetensors")
