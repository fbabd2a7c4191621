"""A set of preference pairs as files that people can read, edit and label.

    FOLDER/pair_set.json     what made it: the tokenizer, its bins, the model, the rule
    FOLDER/shapes.jsonl      a line a shape: its name, caption, face target and SHA-256
    FOLDER/shapes.npz        the points [P, 6] (position and normal) that each shape was asked by
    FOLDER/candidates.jsonl  a line a candidate: its name, shape, faces, scores and SHA-256
    FOLDER/candidates.npz    the tokens [T] of each candidate and the score of each of its faces [F]
    FOLDER/pairs.jsonl       a line a pair: winner, loser, and who says so ("metrics" or "human")

pairs.jsonl comes last: a set that was interrupted has none. Nothing in it is pickled.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rl3d.errors import InputError, way_out
from rl3d.files import atomic_path, atomic_write_text, write_json

Author = Literal["metrics", "human"]


@dataclass(frozen=True)
class Shape:
    """What candidates were asked for.

    Attributes:
        points: [P, 6] float32, positions in the tokenizer's box and unit normals; P may be 0. faces: the target.
    """

    points: NDArray[np.float32]
    caption: str
    faces: int


@dataclass(frozen=True)
class Candidate:
    """One answer of the model.

    Attributes:
        shape: the name of its shape. tokens: [T] int32. quality: [F] float32 in [0, 1], of each face, 0 is worst.
        scores: by metric; a failed one has none.
    """

    shape: str
    tokens: NDArray[np.int32]
    quality: NDArray[np.float32]
    scores: Mapping[str, float]

    @property
    def failed(self) -> bool:
        return len(self.quality) == 0


@dataclass(frozen=True)
class Pair:
    """Two candidates of one shape, by name."""

    winner: str
    loser: str
    by: Author = "metrics"


@dataclass(frozen=True)
class PairSet:
    """Shapes and candidates by name, and the pairs among them."""

    shapes: Mapping[str, Shape]
    candidates: Mapping[str, Candidate]
    pairs: tuple[Pair, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


def digest(*arrays: NDArray[Any]) -> str:
    """SHA-256 of arrays, their shapes and types."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def write_pair_set(folder: str | Path, pair_set: PairSet) -> None:
    """Write all files, each atomically.

    Raises:
        InputError: an unwritable folder, or pairs that `check_pairs` refuses.
    """
    folder = Path(folder)
    check_pairs(pair_set.pairs, pair_set.candidates, "the pairs")
    (folder / "pairs.jsonl").unlink(missing_ok=True)
    write_json(folder / "pair_set.json", dict(pair_set.facts))
    shapes, candidates = pair_set.shapes, pair_set.candidates
    _write_arrays(folder / "shapes.npz", {name: s.points for name, s in shapes.items()})
    _write_lines(
        folder / "shapes.jsonl",
        ({"shape": n, "caption": s.caption, "faces": s.faces, "sha256": digest(s.points)} for n, s in shapes.items()),
    )
    arrays: dict[str, NDArray[Any]] = {}
    for name, c in candidates.items():
        arrays |= {f"{name}|tokens": c.tokens, f"{name}|quality": c.quality}
    _write_arrays(folder / "candidates.npz", arrays)
    _write_lines(
        folder / "candidates.jsonl",
        (
            {
                "candidate": name,
                "shape": c.shape,
                "faces": len(c.quality),
                "scores": dict(c.scores),
                "sha256": digest(c.tokens, c.quality),
            }
            for name, c in candidates.items()
        ),
    )
    write_pairs(folder, pair_set.pairs)


def write_pairs(folder: str | Path, pairs: Iterable[Pair]) -> None:
    """Write pairs.jsonl alone, atomically: what labelling does."""
    rows = ({"winner": p.winner, "loser": p.loser, "by": p.by} for p in pairs)
    _write_lines(Path(folder) / "pairs.jsonl", rows)


def read_pair_set(folder: str | Path) -> PairSet:
    """Read and check everything.

    Raises:
        InputError: a file is missing, unreadable or unfinished; a line has an unknown or missing key; arrays are
            missing or differ from their hash; a pair names no candidate, one twice, or two of different shapes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one that `rl3d mesh pairs` made")
    facts = _read_facts(folder / "pair_set.json")
    points = _read_arrays(folder / "shapes.npz")
    shapes = {}
    for where, row in _read_lines(folder / "shapes.jsonl", {"shape": str, "caption": str, "faces": int, "sha256": str}):
        found = _checked(where, points, [row["shape"]], row["sha256"])
        shapes[row["shape"]] = Shape(found[0], row["caption"], row["faces"])
    arrays = _read_arrays(folder / "candidates.npz")
    candidates = {}
    keys = {"candidate": str, "shape": str, "faces": int, "scores": dict, "sha256": str}
    for where, row in _read_lines(folder / "candidates.jsonl", keys):
        name = row["candidate"]
        if row["shape"] not in shapes:
            raise InputError(f"{where}: shape {row['shape']!r} is not in shapes.jsonl; {way_out(row['shape'], shapes)}")
        tokens, quality = _checked(where, arrays, [f"{name}|tokens", f"{name}|quality"], row["sha256"])
        candidates[name] = Candidate(row["shape"], tokens, quality, row["scores"])
    pairs, lines = [], []
    for where, row in _read_lines(folder / "pairs.jsonl", {"winner": str, "loser": str, "by": str}):
        if row["by"] not in get_args(Author):
            raise InputError(f"{where}: by must be {' or '.join(get_args(Author))}, got {row['by']!r}")
        pairs.append(Pair(row["winner"], row["loser"], row["by"]))
        lines.append(where)
    for where, pair in zip(lines, pairs):
        check_pairs([pair], candidates, where)
    return PairSet(shapes, candidates, tuple(pairs), facts)


def check_pairs(pairs: Iterable[Pair], candidates: Mapping[str, Candidate], where: str) -> None:
    """Every pair names two candidates of one shape.

    Raises:
        InputError: saying which does not.
    """
    for pair in pairs:
        for name in (pair.winner, pair.loser):
            if name not in candidates:
                raise InputError(f"{where}: there is no candidate {name!r}; {way_out(name, candidates)}")
        if pair.winner == pair.loser:
            raise InputError(f"{where}: {pair.winner!r} cannot be better than itself; name two candidates")
        of = candidates[pair.winner].shape, candidates[pair.loser].shape
        if of[0] != of[1]:
            raise InputError(f"{where}: the winner is of shape {of[0]!r}, the loser of {of[1]!r}; pair one shape's own")


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    atomic_write_text(path, "".join(f"{line}\n" for line in lines))


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); make the set again with `rl3d mesh pairs`") from error
    if not isinstance(facts, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(facts).__name__}")
    return facts


def _read_lines(path: Path, keys: Mapping[str, type]) -> list[tuple[str, dict[str, Any]]]:
    """("FILE line N", row) of every line that is not blank, with these keys and no other."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; the set is unfinished, make it again with `rl3d mesh pairs`") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} is not JSON ({error}); mend or remove the line") from None
        if not isinstance(row, dict):
            raise InputError(f"{where} must be a JSON object, got {type(row).__name__}")
        for key in row:
            if key not in keys:
                raise InputError(f"{where}: unknown key {key!r}; {way_out(key, keys)}")
        for key, kind in keys.items():
            if key not in row:
                raise InputError(f"{where}: the key {key!r} is missing; a line has {', '.join(keys)}")
            if not isinstance(row[key], kind) or isinstance(row[key], bool):
                raise InputError(f"{where}: {key} must be {kind.__name__}, got {row[key]!r}")
        rows.append((where, row))
    return rows


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}); make the set again with `rl3d mesh pairs`") from error


def _checked(where: str, arrays: Mapping[str, NDArray[Any]], names: list[str], sha256: str) -> list[NDArray[Any]]:
    for name in names:
        if name not in arrays:
            raise InputError(f"{where}: its arrays are missing from the .npz ({name!r}); make the set again")
    found = [arrays[name] for name in names]
    if digest(*found) != sha256:
        raise InputError(f"{where}: the stored arrays do not have the hash that the line says; make the set again")
    return found
