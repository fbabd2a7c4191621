"""The renderer's benchmark: a cell measures, a peer that cannot run is named, the page has ratios."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tiny_world import load_tool


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("bench_render")


def test_the_sphere_is_closed_and_has_about_the_faces_asked_for(tool: ModuleType) -> None:
    for asked in tool.SPHERE:
        vertices, faces, colours = tool.sphere(asked)
        assert abs(len(faces) - asked) < 0.05 * asked and faces.max() < len(vertices) == len(colours)
        assert colours.min() >= 0 and colours.max() <= 1
    vertices, faces, _ = tool.sphere(1_000)
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    assert (np.einsum("fd,fd->f", np.cross(b - a, c - a), a + b + c) > 0).mean() > 0.95  # counter-clockwise


@pytest.mark.parametrize("kind", ["mesh", "gaussians"])
def test_a_cell_measures_both_passes(tool: ModuleType, kind: str) -> None:
    row = tool.measure(tool.Cell(kind, "rl3d cpu", 1_000, 16, 2), seconds=0.0)
    assert row["both_ms"] >= row["both_best_ms"] > 0 and row["forward_ms"] > 0 and row["added_mib"] >= 0


def test_a_cell_that_cannot_run_says_why(tool: ModuleType, tmp_path: Path) -> None:
    row = tool.run_cell(tool.Cell("mesh", "no such peer", 1_000, 16, 1), tmp_path, limit=60)
    assert "no such peer" in row["failed"]


def test_the_page_gives_ratios_and_names_what_is_missing(tool: ModuleType) -> None:
    shared = {"kind": "mesh", "primitives": 5_000, "pixels": 128, "views": 1}
    rows = [
        {**shared, "peer": "rl3d cpu", "forward_ms": 2.0, "both_ms": 10.0, "added_mib": 3.0},
        {**shared, "peer": "PyTorch3D soft", "forward_ms": 300.0, "both_ms": 1800.0, "added_mib": 700.0},
        {**shared, "peer": "Mitsuba projective", "failed": "over 120 s"},
    ]
    machine = {"packages": {"torch": "2"}, "cpu": "a CPU", "cpus": 2, "python": "3"}
    cold, warm = {"forward_first_ms": 12_340.0, "both_first_ms": 5_000.0}, {"failed": "over 9 s"}
    made = {"command": "c", "load": 0.1, "environment": machine}
    text = tool.page(rows, {"gsplat": "no CUDA device"}, made, [{"kind": "mesh", "cold": cold, "warm": warm}])
    assert "| 5,000 | 128 | 1 | rl3d cpu | 2.0 | 10.0 | 3 |" in text
    assert "300 (150.0x) | 1800 (180.0x) | 700 |" in text
    assert "over 120 s" in text and "- gsplat: no CUDA device" in text
    assert "| mesh | none | 12.34 | 5.00 |" in text and "| mesh | yes | over 9 s |" in text


@pytest.mark.parametrize("quick", [True, False])
def test_the_extremes_are_in_both_grids_for_the_kernels_alone(tool: ModuleType, quick: bool) -> None:
    extremes = [c for c in tool.grid(quick) if c.primitives == 1_000_000 or c.pixels == 4_096]
    assert [(c.kind, c.peer, c.primitives, c.pixels, c.views) for c in extremes] == [
        ("mesh", "rl3d cpu", 1_000_000, 512, 1),
        ("mesh", "rl3d cpu", 5_000, 4_096, 1),
        ("gaussians", "rl3d cpu", 1_000_000, 512, 1),
        ("gaussians", "rl3d cpu", 10_000, 4_096, 1),
    ]
