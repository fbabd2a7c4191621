"""A folder of captioned meshes as arrays: any GLB/OBJ/PLY/STL/OFF files with a `captions.jsonl`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rl3d.data.captions import AssetRecord, clean_record, split_words
from rl3d.errors import InputError


@dataclass(frozen=True)
class AssetSet:
    """N meshes, flattened, in the canonical frame (centred, bounding-sphere radius at most 0.6).

    Attributes:
        vertices: [sum Nv, 3] float32. faces: [sum Nf, 3] int64, local indices. face_colours: [sum Nf, 3] float32 sRGB.
        vertex_starts, face_starts: [N + 1] int64 offsets.
    """

    records: list[AssetRecord]
    vertices: np.ndarray
    faces: np.ndarray
    face_colours: np.ndarray
    vertex_starts: np.ndarray
    face_starts: np.ndarray

    def __len__(self) -> int:
        return len(self.records)

    def mesh(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(vertices [n, 3], faces [f, 3], face_colours [f, 3]) of asset i."""
        v, f = slice(*self.vertex_starts[i : i + 2]), slice(*self.face_starts[i : i + 2])
        return self.vertices[v], self.faces[f], self.face_colours[f]


def canonical(vertices: np.ndarray, radius: float = 0.6) -> np.ndarray:
    """Centre the bounding box; longest side 1, then shrink until the bounding sphere has at most `radius`."""
    low, high = vertices.min(0), vertices.max(0)
    centred = (vertices - 0.5 * (low + high)) / max(float((high - low).max()), 1e-9)
    reach = float(np.linalg.norm(centred, axis=1).max())
    return (centred * min(1.0, radius / max(reach, 1e-9))).astype(np.float32)


def _rows(folder: Path) -> list[dict]:
    path = folder / "captions.jsonl"
    if not path.is_file():
        raise InputError(
            f"no captions.jsonl in {folder}; give a folder that has one, a JSON object a line (file, caption)"
        )
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("file", "caption")):
            raise InputError(f'{path}, line {number} must be an object with the texts "file" and "caption"')
        if not split_words(row["caption"]):
            raise InputError(
                f"{path}, line {number}: the caption {row['caption']!r} has no word; write one in a-z, 0-9"
            )
        rows.append({"noun": row["caption"], "split": "train", **row})
    if not rows:
        raise InputError(f"{path} is empty; give an asset a line, a JSON object (file, caption)")
    return rows


def read_records(folder: str | Path) -> list[AssetRecord]:
    """The captions alone, cleaned; the meshes are not read."""
    return [clean_record(row) for row in _rows(Path(folder))]


def load_asset_set(folder: str | Path) -> AssetSet:
    """Read a folder of meshes with a `captions.jsonl`; a `compact.npz` beside it is used where there is one.

    Raises:
        InputError: no captions file, a line that is not a usable JSON object, a mesh that cannot be read, or a
            `compact.npz` of another number of meshes.
    """
    folder = Path(folder)
    rows = _rows(folder)
    compact = folder / "compact.npz"
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    if compact.is_file():
        data = np.load(compact, allow_pickle=False)
        vertices, faces, colours = data["vertices"], data["faces"], data["face_colours"]
        if len(data["vertex_counts"]) != len(rows):
            raise InputError(
                f"{compact} holds {len(data['vertex_counts'])} meshes, captions.jsonl {len(rows)} lines; remove the "
                "file to read the meshes themselves"
            )
        v = np.concatenate([[0], np.cumsum(data["vertex_counts"])])
        f = np.concatenate([[0], np.cumsum(data["face_counts"])])
        for i in range(len(rows)):
            own = slice(f[i], f[i + 1])
            parts.append(
                (
                    vertices[v[i] : v[i + 1]].astype(np.float32) / 4096,
                    faces[own].astype(np.int64),
                    colours[own].astype(np.float32) / 255,
                )
            )
    else:
        from rl3d.scenes.mesh import Mesh
        from rl3d.scenes.texture import face_centre_colours

        for row in rows:
            mesh = Mesh.load(folder / row["file"])
            parts.append((mesh.vertices.numpy(), mesh.faces.numpy(), face_centre_colours(mesh).numpy()))
    return AssetSet(
        [clean_record(row) for row in rows],
        np.concatenate([canonical(p[0]) for p in parts]),
        np.concatenate([p[1] for p in parts]),
        np.concatenate([p[2] for p in parts]),
        np.concatenate([[0], np.cumsum([len(p[0]) for p in parts])]).astype(np.int64),
        np.concatenate([[0], np.cumsum([len(p[1]) for p in parts])]).astype(np.int64),
    )
