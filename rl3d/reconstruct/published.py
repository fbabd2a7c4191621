"""What the published reconstructors share: finding and filling their weights, and pictures as they take them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from rl3d import hub
from rl3d.errors import AssetError

FIELD = "reconstructor"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def read(place: str | Path, convert: str) -> tuple[dict[str, Tensor], Path]:
    """The tensors that `place` means, and where they were.

    Args:
        place: a *.safetensors file, a folder with one, or a hub id OWNER/NAME[@REVISION]. convert: how published
            weights of this kind become safetensors, for errors.

    Raises:
        InputError: none of these, or an id that the hub does not give.
        AssetError: pickled, truncated or several files.
    """
    here = Path(place).expanduser()
    if here.is_file() and here.suffix == ".safetensors":
        try:
            return load_file(here), here
        except (SafetensorError, OSError) as error:
            raise AssetError(f"{here} cannot be read ({error}); download or convert it again") from error
    found = hub.locate(str(place), FIELD, marker="its *.safetensors")
    folder = found if isinstance(found, Path) else hub.download(*found, FIELD, ("*.safetensors",), ())
    return hub.read_tensors(folder, FIELD, convert), folder


def fill(model: nn.Module, weights: Mapping[str, Tensor], what: str, place: Path) -> None:
    """Load exactly these tensors, as float32.

    Raises:
        AssetError: a tensor is missing, is of another shape, or belongs to nothing; the first is named.
    """
    own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in weights.items()}
    for name in sorted(own.keys() | given.keys()):
        if own.get(name) != given.get(name):
            have, want = (str(list(s)) if s is not None else "nothing" for s in (given.get(name), own.get(name)))
            raise AssetError(f"{place} is no {what} checkpoint: {name} is {have}, expected {want}")
    model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=True)


def count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many entries a list of modules has: PREFIX.0. to PREFIX.N-1."""
    return len({k[len(prefix) + 1 :].split(".")[0] for k in weights if k.startswith(prefix + ".")})


def pictures(images: Tensor, size: int) -> Tensor:
    """[B, V, 3, S, S] over white, normalised as ImageNet's, of premultiplied views [B, V, 4, H, W]; differentiable."""
    flat = images.flatten(0, 1)
    rgb = flat[:, :3] + (1 - flat[:, 3:])
    if rgb.shape[2:] != (size, size):
        rgb = F.interpolate(rgb, (size, size), mode="bilinear", antialias=True, align_corners=False)
    mean, std = (rgb.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((rgb - mean) / std).unflatten(0, images.shape[:2])
