"""Options are checked where they are made."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from rl3d.errors import ConfigError
from rl3d.text_to_3d.options import (
    DistillOptions,
    GenerateOptions,
    LiftOptions,
    MeshOptions,
    PreviewOptions,
    SampleOptions,
    recorded,
)

BAD: list[tuple[type, dict[str, Any]]] = [
    (SampleOptions, {"steps": 0}),
    (SampleOptions, {"guidance": -1.0}),
    (SampleOptions, {"guidance": math.nan}),
    (SampleOptions, {"rings": 0}),
    (SampleOptions, {"elevation": 60.0}),
    (SampleOptions, {"candidates": 0}),
    (LiftOptions, {"steps": -1}),
    (LiftOptions, {"gaussians": 0}),
    (LiftOptions, {"grid": 8}),
    (LiftOptions, {"lr_means": -1e-3}),
    (LiftOptions, {"alpha_weight": -1.0}),
    (DistillOptions, {"steps": -1}),
    (DistillOptions, {"batch": 0}),
    (DistillOptions, {"rescale": 1.5}),
    (DistillOptions, {"guidance": math.nan}),
    (DistillOptions, {"t_max": (0.5,)}),
    (DistillOptions, {"t_max": (1.0, 0.5)}),
    (DistillOptions, {"t_min": (0.98, 0.05)}),
    (DistillOptions, {"elevation": (40.0, -5.0)}),
    (DistillOptions, {"elevation": (0.0,)}),
    (DistillOptions, {"elevation": (-95.0, 0.0)}),
    (DistillOptions, {"save_every": 0}),
    (DistillOptions, {"anchor_weight": -0.1}),
    (DistillOptions, {"lr_colours": math.inf}),
    (MeshOptions, {"resolution": 8}),
    (MeshOptions, {"views": 3}),
    (MeshOptions, {"render_size": 8}),
    (MeshOptions, {"faces": 3}),
    (MeshOptions, {"texture": 8}),
    (PreviewOptions, {"frames": 0}),
    (PreviewOptions, {"size": 8}),
    (GenerateOptions, {"seed": -1}),
    (GenerateOptions, {"best_of": 0}),
]


@pytest.mark.parametrize(("options", "values"), BAD, ids=lambda x: x.__name__ if isinstance(x, type) else str(x))
def test_bad_values_are_refused_by_name(options: type, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))) as error:
        options(**values)
    assert "\n" not in str(error.value)


def test_defaults_are_accepted_and_frozen() -> None:
    options = GenerateOptions()
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            with pytest.raises(AttributeError):
                setattr(value, fields(value)[0].name, 1)


def test_a_choice_that_was_not_made_is_not_recorded() -> None:
    """So that runs and benchmarks from before there was one still count."""
    plain = recorded(GenerateOptions())
    assert "method" not in plain and "guard" not in plain and "reconstructor" not in plain["lift"]
    chosen = recorded(GenerateOptions(lift=LiftOptions(reconstructor="feedforward")))
    assert chosen["lift"].pop("reconstructor") == "feedforward" and chosen == plain
