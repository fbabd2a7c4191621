"""Finds and checks what the package carries: the embedded models and the presets.

An installed wheel holds them inside the package (`rl3d/assets`, `rl3d/configs`), a checkout beside it. Each embedded
model is one folder; `assets/MANIFEST.json` names its files with size and SHA-256, so that a truncated or missing file
is one clear error and not a stack trace from a tensor library:

    {"models": {"prior": {"description": "...", "licence": "CC0-1.0",
                          "files": {"config.json": {"bytes": 1, "sha256": "..."}}}}}
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rl3d.errors import AssetError, nearest
from rl3d.files import write_json

MANIFEST = "MANIFEST.json"
_REINSTALL = "reinstall rl3d, or check out its repository again"


@dataclass(frozen=True)
class AssetFile:
    """A file of an embedded model: path relative to the model's folder, size in bytes, lower-case hex SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class EmbeddedModel:
    """What the manifest says of one embedded model."""

    name: str
    description: str
    licence: str
    files: tuple[AssetFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def packaged_folder(kind: Literal["assets", "configs"]) -> Path:
    """The folder of assets or presets of this installation.

    Raises:
        AssetError: it has neither.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise AssetError(f"this installation of rl3d has no {kind} folder; {_REINSTALL}")


def embedded_models(root: Path | None = None) -> dict[str, EmbeddedModel]:
    """The models that the manifest of `root` (default: the package's assets) lists, by name; reads nothing else."""
    path = (root or packaged_folder("assets")) / MANIFEST
    try:
        models = json.loads(path.read_text(encoding="utf-8"))["models"]
        return {
            name: EmbeddedModel(
                name,
                str(entry["description"]),
                str(entry["licence"]),
                tuple(AssetFile(f, int(v["bytes"]), str(v["sha256"])) for f, v in sorted(entry["files"].items())),
            )
            for name, entry in models.items()
        }
    except FileNotFoundError:
        raise AssetError(f"{MANIFEST} is missing from the embedded models; {_REINSTALL}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AssetError(f"{path} cannot be read ({type(error).__name__}: {error}); {_REINSTALL}") from error


def model_folder(name: str, root: Path | None = None) -> Path:
    """The folder of an embedded model, every file of it checked (30 MiB take about 0.1 s).

    Raises:
        AssetError: the model is not embedded, or a file is missing, truncated or changed.
    """
    root = root or packaged_folder("assets")
    models = embedded_models(root)
    if name not in models:
        close = nearest(name, models) or sorted(models)
        raise AssetError(f"no embedded model is called {name!r}; known: {', '.join(close) or 'none'}")
    fault = find_fault(models[name], root)
    if fault is not None:
        raise AssetError(f"the embedded model {name!r} is broken: {fault}; {_REINSTALL}")
    return root / name


def find_fault(model: EmbeddedModel, root: Path) -> str | None:
    """What is wrong with the files of an embedded model, in words; None when all are as the manifest says."""
    for file in model.files:
        path = root / model.name / file.path
        try:
            size = path.stat().st_size
            if size != file.bytes:
                what = "truncated" if size < file.bytes else "too long"
                return f"{file.path} is {what} ({size} bytes, expected {file.bytes})"
            if _sha256(path) != file.sha256:
                return f"{file.path} was changed (its SHA-256 is not the manifest's)"
        except FileNotFoundError:
            return f"{file.path} is missing"
        except OSError as error:
            return f"{file.path} cannot be read ({error.strerror or error})"
    return None


def record_model(name: str, *, description: str, licence: str, root: Path | None = None) -> EmbeddedModel:
    """Write the files of `root/name` as they are now into the manifest; other models' entries stay.

    For maintainers, after a model was trained. Hidden files are left out.
    """
    root = root or packaged_folder("assets")
    folder = root / name
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    if not files:
        raise AssetError(f"{folder} holds no files; save the model there first")
    manifest: dict[str, Any] = {"models": {}}
    if (root / MANIFEST).exists():
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    manifest["models"][name] = {"description": description, "licence": licence, "files": files}
    manifest["models"] = dict(sorted(manifest["models"].items()))
    write_json(root / MANIFEST, manifest)
    return embedded_models(root)[name]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
