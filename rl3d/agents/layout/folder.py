"""Furniture from a folder of the user's own: which mesh is which piece, and how large it stands in the room."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rl3d.agents.layout.furniture import KINDS, Kind, Size
from rl3d.errors import InputError
from rl3d.scenes.mesh import Mesh

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
# Words of a caption that do not change what a thing is.
DECORATION = {"wooden", "large", "small", "medium", "decorated", "a", "the", "round", "low", "long", "pillows", "king"}


@dataclass(frozen=True)
class Model:
    """A mesh of the folder for a kind. scale: to metres. size: width, depth, height in metres; its front is +Z."""

    path: Path
    scale: float
    size: Size


def furniture_folder(folder: str | Path) -> dict[int, list[Model]]:
    """The meshes of a folder by kind (index into `furniture.KINDS`); files that name no kind are left alone.

    Names come from `captions.jsonl` where there is one (a JSON object a line: file, caption, optionally noun), else
    from file names. Mesh files say nothing of their unit, so a mesh is scaled uniformly until it fits the footprint of
    its kind's most similar size (and is at most twice as tall, or 0.6 m taller).

    Raises:
        InputError: no folder, no mesh that names a piece, a mesh that cannot be read, or one without a size.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder: --furniture {folder}; give one with {', '.join(SUFFIXES)} files")
    found: dict[int, list[Model]] = {}
    for path, texts in _named(folder):
        kind = _kind(texts)
        if kind is None:
            continue
        if not path.is_file():
            raise InputError(f"{folder / 'captions.jsonl'} names {path.name}, which is not there; mend the file")
        found.setdefault(kind, []).append(_model(path, KINDS[kind]))
    if not found:
        names = ", ".join(kind.name for kind in KINDS[:8])
        raise InputError(f"no file in {folder} is named like a piece of furniture ({names}, ...); rename some")
    return found


def _named(folder: Path) -> list[tuple[Path, list[str]]]:
    """(file, what it may be called, the most telling first)."""
    captions = folder / "captions.jsonl"
    if captions.is_file():
        rows = []
        for number, line in enumerate(captions.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{captions}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("file", "caption")):
                raise InputError(f'{captions}, line {number} must be an object with the texts "file" and "caption"')
            rows.append((folder / row["file"], [row["caption"], str(row.get("noun", ""))]))
        return rows
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return [(path, [re.sub(r"[^a-zA-Z]+", " ", path.stem)]) for path in files]


def _kind(texts: list[str]) -> int | None:
    """By the whole caption, then without decoration, then the noun; the first kind in the table that it names."""
    plain = [" ".join(re.findall(r"[a-z]+", text.lower())) for text in texts]
    bare = [" ".join(w for w in text.split() if w not in DECORATION) for text in plain]
    for text in (plain[0], bare[0], *plain[1:]):
        for index, kind in enumerate(KINDS):
            if text == kind.name:
                return index
        for index, kind in enumerate(KINDS):
            if text in kind.words:
                return index
    return None


def _model(path: Path, kind: Kind) -> Model:
    try:
        width, height, depth = (float(v) for v in (lambda b: b[1] - b[0])(Mesh.load(path).bounds))
    except InputError as error:
        raise InputError(f"the furniture {path.name} cannot be used: {error}; mend it or take it out") from error
    if not min(width, height, depth) > 1e-6 and not kind.flat:
        raise InputError(
            f"the furniture {path.name} has no dimensions: {width:g} x {height:g} x {depth:g}; a {kind.name} needs a "
            "width, a height and a depth"
        )
    plan = np.array([width, depth])
    w, d, h = min(kind.sizes, key=lambda s: abs(np.log(plan[0] / plan[1] / (s[0] / s[1]))))
    scale = min(w / width, d / depth, max(2 * h, h + 0.6) / max(height, 1e-6) if not kind.flat else np.inf)
    return Model(path, float(scale), (width * scale, depth * scale, height * scale))


def placed_mesh(model: Model) -> Mesh:
    """The mesh in metres, on y = 0 in the middle of its footprint."""
    mesh = Mesh.load(model.path)
    low, high = mesh.bounds
    foot = torch.stack([0.5 * (low[0] + high[0]), low[1], 0.5 * (low[2] + high[2])])
    return Mesh(
        (mesh.vertices - foot) * model.scale,
        mesh.faces,
        mesh.vertex_colours,
        mesh.face_colours,
        mesh.texture,
        mesh.uvs,
        mesh.face_uvs,
    )


def sizes_from(models: Mapping[int, list[Model]], kind: int, size: Size, index: int) -> tuple[Size, Model | None]:
    """What stands for a piece: the folder's mesh number `index` (counted round) and its size, or the size as it is."""
    if not models.get(kind):
        return size, None
    model = models[kind][index % len(models[kind])]
    return model.size, model
