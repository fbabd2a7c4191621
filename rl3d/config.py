"""Configuration: frozen dataclasses, filled from YAML layers and `key=value` overrides, checked against annotations.

A preset is a partial YAML mapping; what it leaves out keeps the dataclass's default. Unknown keys and values of another
type are errors that name the key, where it came from and the nearest known one. Ranges are each dataclass's own
business, in `__post_init__`. Understood annotations: int, float, bool, str, Path, None, unions of these, Literal,
tuple[T, ...], tuple[A, B], list[T], dict[str, T] and nested dataclasses.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from rl3d.assets import packaged_folder
from rl3d.errors import ConfigError, nearest, way_out

T = TypeVar("T")
Layer = Mapping[str, Any] | Path


class _Mismatch(Exception):
    """A value does not fit an annotation; carries what was wanted, in words."""


class _Text(str):
    """The right side of an override: YAML where that fits the annotation, else the text itself."""


def resolve(cls: type[T], preset: Layer | Sequence[Layer] | None = None, overrides: Sequence[str] = ()) -> T:
    """An instance of the dataclass `cls` from its defaults, then the layers in turn, then the overrides.

    Args:
        preset: a partial mapping, a YAML file, or several of them; later ones win key by key.
        overrides: "a.b=value" strings; the value is YAML (`true`, `0.5`, `[1, 2]`, `null`) or plain text.

    Raises:
        ConfigError: a file that is missing or not a mapping, an unknown key, a value of another type.
        Whatever the dataclasses raise for values out of range.
    """
    layers = [] if preset is None else [preset] if isinstance(preset, Mapping | Path) else list(preset)
    tree: dict[str, Any] = {}
    for layer in layers:
        mapping, source = (layer, "") if isinstance(layer, Mapping) else (load_yaml(layer), f" in {layer}")
        tree = _merge(tree, _checked_mapping(cls, cls, mapping, "", source))
    for override in overrides:
        tree = _merge(tree, _checked_mapping(cls, cls, _override(override), "", f" in {override!r}"))
    return _build(cls, tree, "")


def to_dict(instance: Any) -> Any:
    """The plain form of a configuration, for JSON or YAML: dataclasses to dicts, tuples to lists, paths to strings."""
    if dataclasses.is_dataclass(instance) and not isinstance(instance, type):
        return {f.name: to_dict(getattr(instance, f.name)) for f in dataclasses.fields(instance)}
    if isinstance(instance, Mapping):
        return {str(k): to_dict(v) for k, v in instance.items()}
    if isinstance(instance, list | tuple):
        return [to_dict(v) for v in instance]
    return str(instance) if isinstance(instance, Path) else instance


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping (an empty file is an empty mapping)."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text; a configuration is a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold 'key: value' lines, got {_describe(value)}")
    return value


def preset_names(kind: str) -> list[str]:
    """The presets that come with the package for a command, such as "generate"."""
    return sorted(path.stem for path in (packaged_folder("configs") / kind).glob("*.yaml"))


def preset_path(kind: str, name: str) -> Path:
    """A preset by its name, or by the path of a YAML file (anything with a slash or a .yaml/.yml ending)."""
    if "/" in name or "\\" in name or name.endswith((".yaml", ".yml")):
        return Path(name)
    known = preset_names(kind)
    if name not in known:
        raise ConfigError(f"unknown preset {name!r}; {way_out(name, known)}")
    return packaged_folder("configs") / kind / f"{name}.yaml"


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML allows no key twice, PyYAML keeps the last one in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        raise ConfigError(f"an override looks like key=value or stage.key=value, got {text!r}")
    tree: Any = _Text(value.strip())
    for name in reversed(names):
        tree = {name: tree}
    return tree


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def _nested(hint: Any) -> type | None:
    """The dataclass in an annotation (alone or in a union), if there is one."""
    for candidate in (hint, *get_args(hint)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _leaf_keys(cls: type, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, hint in _hints(cls).items():
        nested = _nested(hint)
        keys += [f"{prefix}{name}"] if nested is None else _leaf_keys(nested, f"{prefix}{name}.")
    return keys


def _unknown_key(root: type, cls: type, key: str, prefix: str, source: str) -> ConfigError:
    name = key.removeprefix(prefix)
    # A sibling first; else a leaf of that name in another stage ("steps" for "lift.steps").
    close = [prefix + k for k in nearest(name, _hints(cls))]
    leaves = _leaf_keys(root)
    close = close or [k for k in leaves if k.rpartition(".")[2] == name] or nearest(key, leaves)
    if close:
        way_out = f"did you mean {' or '.join(repr(k) for k in close[:3])}?"
    else:
        way_out = f"known: {', '.join(prefix + k for k in _hints(cls))}"
    return ConfigError(f"unknown configuration key {key!r}{source}; {way_out}")


def _checked_mapping(root: type, cls: type, mapping: Any, prefix: str, source: str) -> dict[str, Any]:
    """The mapping with every key known to `cls` and every value of its annotated type."""
    if isinstance(mapping, _Text):
        mapping = _parse(mapping)
    if not isinstance(mapping, Mapping):
        at = prefix.rstrip(".") or "the configuration"
        raise ConfigError(f"{at} takes keys ({', '.join(_hints(cls))}), got {_describe(mapping)}{source}")
    checked = {}
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        if name not in _hints(cls):
            raise _unknown_key(root, cls, key, prefix, source)
        checked[str(name)] = _checked(root, _hints(cls)[name], value, key, source)
    return checked


def _checked(root: type, hint: Any, value: Any, key: str, source: str) -> Any:
    nested = _nested(hint)
    if nested is not None:
        if type(None) in get_args(hint) and (_parse(value) if isinstance(value, _Text) else value) is None:
            return None
        return _checked_mapping(root, nested, value, f"{key}.", source)
    try:
        return _fit_text(hint, value) if isinstance(value, _Text) else _fit(hint, value)
    except _Mismatch as error:
        hint_text = ""
        if isinstance(value, bool) and "text" in str(error):
            hint_text = "; yes, no, on and off are booleans in YAML, quote them"
        raise ConfigError(f"{key} must be {error}, got {_describe(value)}{source}{hint_text}") from None


def _parse(text: _Text) -> Any:
    try:
        return yaml.load(str(text), _UniqueKeyLoader)
    except yaml.YAMLError:
        return str(text)


def _fit_text(hint: Any, text: _Text) -> Any:
    try:
        return _fit(hint, _parse(text))
    except _Mismatch as first:
        try:
            return _fit(hint, str(text))
        except _Mismatch:
            raise first from None


def _fit(hint: Any, value: Any) -> Any:
    """`value` as the annotation wants it, or _Mismatch."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if hint is None or hint is type(None):
        if value is None:
            return None
        raise _Mismatch("null")
    if origin in (Union, types.UnionType):
        return _fit_union(arguments, value)
    if origin is Literal:
        for choice in arguments:
            if value == choice and type(value) is type(choice):
                return value
        raise _Mismatch("one of " + ", ".join(map(str, arguments)) + (" (text)" if isinstance(value, bool) else ""))
    if origin is tuple or hint is tuple:
        return _fit_tuple(arguments, value)
    if origin is list:
        if isinstance(value, list | tuple):
            return [_fit(arguments[0], v) for v in value]
        raise _Mismatch("a list")
    if origin is dict:
        if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
            return {k: _fit(arguments[1], v) for k, v in value.items()}
        raise _Mismatch("keys with values")
    return _fit_scalar(hint, value)


def _fit_union(arguments: tuple[Any, ...], value: Any) -> Any:
    wanted = []
    # An int stays an int in `int | float`: exact types go first.
    for argument in sorted(arguments, key=lambda a: type(value) is not a):
        try:
            return _fit(argument, value)
        except _Mismatch as error:
            wanted.append(str(error))
    raise _Mismatch(" or ".join(wanted))


def _fit_tuple(arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        if isinstance(value, list | tuple):
            return tuple(_fit(arguments[0], v) for v in value)
        raise _Mismatch("a list")
    if isinstance(value, list | tuple) and len(value) == len(arguments):
        return tuple(_fit(a, v) for a, v in zip(arguments, value))
    raise _Mismatch(f"a list of {len(arguments)}")


def _fit_scalar(hint: Any, value: Any) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise _Mismatch("true or false")
    if hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise _Mismatch("a whole number")
    if hint is float:
        return _fit_float(value)
    if hint is str or hint is Path:
        if isinstance(value, str) or (hint is Path and isinstance(value, Path)):
            return hint(value)
        raise _Mismatch("text" if hint is str else "a path (text)")
    raise TypeError(f"a configuration field cannot be annotated {hint!r}")


def _fit_float(value: Any) -> float:
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)  # YAML 1.1 reads 1e-3 as text
    if not math.isfinite(number):
        raise _Mismatch("a finite number")
    return number


def _describe(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    text = str(value).lower() if isinstance(value, bool) else repr(str(value) if isinstance(value, _Text) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _build(cls: type[T], tree: dict[str, Any], prefix: str, base: Any = None) -> T:
    """The dataclass from a checked tree. What the tree leaves out comes from `base`, else from the field's default."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if not field.init:
            continue
        key = f"{prefix}{field.name}"
        value = default = _default(field) if base is None else getattr(base, field.name)
        if field.name in tree:
            value = tree[field.name]
            nested = _nested(_hints(cls)[field.name])
            if isinstance(value, dict) and isinstance(default, dict):
                value = _merge(default, value)
            elif isinstance(value, dict) and nested is not None:
                value = _build(nested, value, f"{key}.", default if dataclasses.is_dataclass(default) else None)
        if value is dataclasses.MISSING:
            raise ConfigError(f"the configuration key {key!r} is required")
        values[field.name] = value
    return cls(**values)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
