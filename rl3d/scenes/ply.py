"""The PLY container: any element, any property order, ASCII and both binary byte orders.

Format: Greg Turk, "The PLY Polygon File Format" (1994). The mesh and the splat readers both stand on this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rl3d.errors import InputError

MAX_HEADER = 1 << 16  # bytes; the longest splat header (degree 3, 62 properties) has about 1,500
_TYPES = {  # both spellings in use -> numpy
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_NAMES = {"i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint", "f4": "float"}


@dataclass(frozen=True)
class Ragged:
    """A list property: row i owns `lengths[i]` consecutive `values`."""

    values: NDArray
    lengths: NDArray


@dataclass(frozen=True)
class Property:
    """One property of the header; `length_type` is set for lists only."""

    name: str
    value_type: str
    length_type: str | None = None


@dataclass(frozen=True)
class Element:
    """One element of the header."""

    name: str
    count: int
    properties: tuple[Property, ...]


@dataclass(frozen=True)
class Header:
    """What precedes the data: encoding ("ascii", "<" or ">"), elements, comments and where the data begins."""

    encoding: str
    elements: tuple[Element, ...]
    comments: tuple[str, ...]
    size: int

    def properties(self, element: str) -> set[str]:
        """Names of the properties of `element`, empty where it does not exist."""
        return {p.name for e in self.elements if e.name == element for p in e.properties}

    def count(self, element: str) -> int:
        """Rows of `element`, 0 where it does not exist."""
        return sum(e.count for e in self.elements if e.name == element)


def parse_header(data: bytes, path: Path) -> Header:
    """Read the header at the start of `data`.

    Raises:
        InputError: not a PLY file, a header without an end, an unknown type, an impossible count.
    """
    if data[:3] != b"ply":
        raise InputError(f"{path} is not a PLY file: it does not begin with 'ply'; check what the file really is")
    end = data.find(b"end_header", 0, MAX_HEADER)
    if end < 0:
        raise InputError(f"{path}: the PLY header has no end_header; the file is truncated or damaged, get it again")
    newline = data.find(b"\n", end)
    size = len(data) if newline < 0 else newline + 1
    encoding, comments = "", []
    elements: list[Element] = []
    for line in data[:end].decode("utf-8", errors="surrogateescape").splitlines()[1:]:
        words = line.split()
        try:
            if not words or words[0] == "obj_info":
                continue
            elif words[0] == "comment":
                comments.append(line.strip()[len("comment") :].strip())
            elif words[0] == "format":
                encoding = {"ascii": "ascii", "binary_little_endian": "<", "binary_big_endian": ">"}[words[1]]
            elif words[0] == "element":
                elements.append(Element(words[1], int(words[2]), ()))
                if elements[-1].count < 0:
                    raise ValueError(line)
            elif words[0] == "property":
                known = _property(words)
                last = elements[-1]
                elements[-1] = Element(last.name, last.count, (*last.properties, known))
            else:
                raise ValueError(line)
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(
                f"{path}: PLY header line {line.strip()[:60]!r} is not understood; re-export it"
            ) from error
    if not encoding:
        raise InputError(f"{path}: the PLY header has no format line; re-export the file")
    bare = [e.name for e in elements if e.count > 0 and not e.properties]
    if bare:
        raise InputError(f"{path}: PLY element {bare[0]!r} has no properties; re-export the file")
    return Header(encoding, tuple(elements), tuple(comments), size)


def _property(words: list[str]) -> Property:
    if words[1] == "list":
        return Property(words[4], _TYPES[words[3]], _TYPES[words[2]])
    return Property(words[2], _TYPES[words[1]])


def read_elements(data: bytes, header: Header, path: Path) -> dict[str, dict[str, NDArray | Ragged]]:
    """All elements as {element: {property: values}}, in the declared types, native byte order.

    Counts are checked against the bytes that exist before anything is allocated.

    Raises:
        InputError: the data end too early or are not numbers.
    """
    if header.encoding == "ascii":
        return _read_ascii(data[header.size :], header, path)
    result: dict[str, dict[str, NDArray | Ragged]] = {}
    at = header.size
    for element in header.elements:
        result[element.name], at = _read_binary(data, at, element, header.encoding, path)
    return result


def _truncated(path: Path, element: Element) -> InputError:
    return InputError(
        f"{path} is truncated: its header promises {element.count} of {element.name!r}, "
        "the data end before; get it again"
    )


def _read_binary(
    data: bytes, at: int, element: Element, order: str, path: Path
) -> tuple[dict[str, NDArray | Ragged], int]:
    """One binary element and the position after it. Lists of one common length are read in one go."""
    smallest = sum(np.dtype(p.length_type or p.value_type).itemsize for p in element.properties)
    if element.count * smallest > len(data) - at:
        raise _truncated(path, element)
    if element.count == 0:
        return {p.name: _empty(p) for p in element.properties}, at
    fields: list[tuple] = []
    probe = at
    for i, p in enumerate(element.properties):  # the first row's list lengths: most files have triangles only
        if p.length_type is None:
            fields.append((f"v{i}", order + p.value_type))
            probe += np.dtype(p.value_type).itemsize
            continue
        length_size = np.dtype(p.length_type).itemsize
        if probe + length_size > len(data):
            raise _truncated(path, element)
        length = int(np.frombuffer(data, order + p.length_type, 1, probe)[0])
        fields += [(f"n{i}", order + p.length_type), (f"v{i}", order + p.value_type, (max(length, 0),))]
        probe += length_size + max(length, 0) * np.dtype(p.value_type).itemsize
    row = np.dtype(fields)
    if element.count * row.itemsize <= len(data) - at:
        rows = np.frombuffer(data, row, element.count, at)
        lists = [i for i, p in enumerate(element.properties) if p.length_type is not None]
        if all((rows[f"n{i}"] == rows[f"n{i}"][0]).all() for i in lists):
            columns: dict[str, NDArray | Ragged] = {}
            for i, p in enumerate(element.properties):
                values = rows[f"v{i}"].astype(p.value_type)
                columns[p.name] = Ragged(values.reshape(-1), rows[f"n{i}"].astype(np.int64)) if i in lists else values
            return columns, at + element.count * row.itemsize
    return _read_binary_ragged(data, at, element, order, path)


def _read_binary_ragged(
    data: bytes, at: int, element: Element, order: str, path: Path
) -> tuple[dict[str, NDArray | Ragged], int]:
    """Row by row, for lists of different lengths (mixed triangles and quads)."""
    columns: list[list[NDArray]] = [[] for _ in element.properties]
    types = [
        (np.dtype(order + p.value_type), None if p.length_type is None else np.dtype(order + p.length_type))
        for p in element.properties
    ]
    for _ in range(element.count):
        for column, (value, length) in zip(columns, types):
            count = 1
            if length is not None:
                if at + length.itemsize > len(data):
                    raise _truncated(path, element)
                count = int(np.frombuffer(data, length, 1, at)[0])
                at += length.itemsize
            if count < 0 or at + count * value.itemsize > len(data):
                raise _truncated(path, element)
            column.append(np.frombuffer(data, value, count, at))
            at += count * value.itemsize
    return _join(columns, element), at


def _read_ascii(body: bytes, header: Header, path: Path) -> dict[str, dict[str, NDArray | Ragged]]:
    words = body.split()
    result: dict[str, dict[str, NDArray | Ragged]] = {}
    at = 0
    for element in header.elements:
        if element.count * len(element.properties) > len(words) - at:
            raise _truncated(path, element)
        try:
            if all(p.length_type is None for p in element.properties):
                end = at + element.count * len(element.properties)
                table = np.array(words[at:end], dtype=np.float64).reshape(element.count, len(element.properties))
                at = end
                result[element.name] = {
                    p.name: table[:, i].astype(p.value_type) for i, p in enumerate(element.properties)
                }
                continue
            columns: list[list[NDArray]] = [[] for _ in element.properties]
            for _ in range(element.count):
                for column, p in zip(columns, element.properties):
                    count = 1
                    if p.length_type is not None:
                        count, at = int(words[at]), at + 1
                    if count < 0 or at + count > len(words):
                        raise _truncated(path, element)
                    column.append(np.array(words[at : at + count], dtype=np.float64))
                    at += count
            result[element.name] = _join(columns, element)
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{path}: the PLY data of {element.name!r} are not numbers ({error}); re-export it"
            ) from error
    return result


def _join(columns: list[list[NDArray]], element: Element) -> dict[str, NDArray | Ragged]:
    joined: dict[str, NDArray | Ragged] = {}
    for column, p in zip(columns, element.properties):
        if not column:
            joined[p.name] = _empty(p)
            continue
        values = np.concatenate(column).astype(p.value_type)
        lengths = np.array([len(c) for c in column], dtype=np.int64)
        joined[p.name] = values if p.length_type is None else Ragged(values, lengths)
    return joined


def _empty(p: Property) -> NDArray | Ragged:
    values = np.zeros(0, dtype=p.value_type)
    return values if p.length_type is None else Ragged(values, np.zeros(0, dtype=np.int64))


def encode(elements: dict[str, NDArray], comments: tuple[str, ...] = ()) -> bytes:
    """A binary little-endian PLY of structured arrays {element: rows}.

    A field with a sub-shape [n] becomes a list property of constant length n (a uchar counts it), so n < 256.
    """
    lines = ["ply", "format binary_little_endian 1.0", *(f"comment {c}" for c in comments)]
    body = []
    for element, rows in elements.items():
        lines.append(f"element {element} {len(rows)}")
        packed: list[tuple] = []
        for name in rows.dtype.names or ():
            field = rows.dtype[name]
            kind = _NAMES[field.base.str[1:]]
            if field.shape:
                lines.append(f"property list uchar {kind} {name}")
                packed += [(f"{name} count", "u1"), (name, field.base.newbyteorder("<"), field.shape)]
            else:
                lines.append(f"property {kind} {name}")
                packed.append((name, field.newbyteorder("<")))
        out = np.empty(len(rows), dtype=np.dtype(packed))
        for name in rows.dtype.names or ():
            out[name] = rows[name]
            if rows.dtype[name].shape:
                out[f"{name} count"] = rows.dtype[name].shape[0]
        body.append(out.tobytes())
    return "\n".join([*lines, "end_header", ""]).encode("utf-8", errors="surrogateescape") + b"".join(body)
