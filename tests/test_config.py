from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from rl3d.config import load_yaml, preset_path, resolve, to_dict
from rl3d.errors import ConfigError
from rl3d.text_to_3d.options import GenerateOptions


@dataclass(frozen=True)
class Inner:
    steps: int = 10
    rate: float = 0.1
    span: tuple[float, float] = (0.0, 1.0)
    sizes: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"steps must not be negative, got {self.steps}")


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    kind: Literal["fast", "slow", 3] = "fast"
    on: bool = False
    limit: int | None = None
    mix: int | float | str = 1
    folder: Path | None = None
    weights: dict[str, float] = field(default_factory=lambda: {"a": 1.0})
    inner: Inner = field(default_factory=lambda: Inner(steps=7))
    spare: Inner | None = None


def test_defaults_then_layers_then_overrides(tmp_path: Path) -> None:
    preset = tmp_path / "p.yaml"
    preset.write_text("inner: {rate: 1e-3}\nname: from file\n")
    got = resolve(Outer, [preset, {"name": "later"}], ["inner.span=[2, 3]", "on=true"])
    # inner.steps keeps the 7 of Outer's own default, not the 10 of Inner's.
    assert got == Outer(name="later", on=True, inner=Inner(steps=7, rate=1e-3, span=(2.0, 3.0)))


@pytest.mark.parametrize(
    ("override", "field_name", "value"),
    [
        ("name=12", "name", "12"),  # text, though YAML reads a number
        ("name=true", "name", "true"),
        ("name=a: b: c", "name", "a: b: c"),  # not YAML at all
        ("name=", "name", ""),
        ("name=a=b", "name", "a=b"),
        ("kind=3", "kind", 3),
        ("limit=5", "limit", 5),
        ("limit=null", "limit", None),
        ("mix=2", "mix", 2),
        ("mix=2.5", "mix", 2.5),
        ("mix=word", "mix", "word"),
        ("folder=a/b", "folder", Path("a/b")),
        ("weights.b=2", "weights", {"a": 1.0, "b": 2.0}),
        ("spare.steps=1", "spare", Inner(steps=1)),
        ("spare=null", "spare", None),
    ],
)
def test_overrides_follow_the_annotation(override: str, field_name: str, value: object) -> None:
    got = resolve(Outer, None, [override])
    assert getattr(got, field_name) == value
    assert type(getattr(got, field_name)) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.stps=3", r"unknown configuration key 'inner\.stps' in 'inner\.stps=3'; did you mean 'inner\.steps'\?"),
        ("steps=3", r"did you mean 'inner\.steps' or 'spare\.steps'\?"),
        ("zzz=3", "known: name, kind, on"),
        ("inner=3", r"inner takes keys \(steps, rate"),
        ("inner.steps=2.5", r"inner\.steps must be a whole number, got '2\.5'"),
        ("inner.steps=true", "whole number"),
        ("inner.rate=nan", "finite number"),
        ("inner.rate=.inf", "finite number"),
        ("inner.rate=quick", "finite number, got 'quick'"),
        ("inner.span=[1]", "a list of 2"),
        ("inner.sizes=[1, a]", "whole number"),
        ("on=1", "true or false"),
        ("kind=medium", "one of fast, slow, 3"),
        ("limit=x", "a whole number or null"),
        ("inner.steps=-1", "must not be negative"),
        ("inner.steps", "key=value"),
        ("inner..steps=3", "key=value"),
        ("=3", "key=value"),
    ],
)
def test_wrong_overrides_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(Outer, None, [override])


def test_an_error_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("inner:\n  rat: 1\n")
    with pytest.raises(ConfigError, match=r"'inner\.rat' in .*mine\.yaml; did you mean 'inner\.rate'"):
        resolve(Outer, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "'key: value' lines"),
        ("a: [1\n", "not valid YAML"),
        ("a: 1\na: 2\n", "stands twice"),
        ("!!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("name: off\n", "quote them"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        resolve(Outer, path)


def test_yaml_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_yaml(tmp_path / "binary.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_yaml(tmp_path / "empty.yaml") == {}


def test_a_required_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'must' is required"):
        resolve(Strict)
    assert resolve(Strict, {"must": 1}) == Strict(1)


@dataclass(frozen=True)
class Strict:
    must: int


def test_round_trip() -> None:
    one = resolve(Outer, None, ["folder=x", "inner.steps=3", "spare.rate=2"])
    plain = to_dict(one)
    assert plain["folder"] == "x"
    assert plain["inner"]["span"] == [0.0, 1.0]
    assert resolve(Outer, plain) == one


@pytest.mark.parametrize("name", ["default", "draft"])
def test_shipped_presets_resolve(name: str) -> None:
    options = resolve(GenerateOptions, preset_path("generate", name))
    assert resolve(GenerateOptions, to_dict(options)) == options


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'drat'; did you mean 'draft'"):
        preset_path("generate", "drat")
