"""The rule that sets Janus thresholds, by hand, and its measuring loop on a small asset set."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from rl3d.data.asset_set import AssetSet
from rl3d.data.captions import AssetRecord
from rl3d.rewards import load_judge

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("measure_janus")


def rows(tool: ModuleType, noun: str, real: list[float], again: list[float], first: int = 0):  # type: ignore[no-untyped-def]
    """One light, one row an asset."""
    n = len(real)
    values = np.array([real, again, real]).T
    return tool.Distances(
        np.arange(first, first + n), np.full(n, noun), np.full(n, "prior"), np.zeros(n, dtype=bool), values
    )


def joined(tool: ModuleType, *parts):  # type: ignore[no-untyped-def]
    return tool.Distances(*(np.concatenate([getattr(p, f) for p in parts]) for f in tool.Distances.__annotations__))


def test_a_threshold_lies_between_real_ones_and_copies(tool: ModuleType) -> None:
    # 21 real ones from 0.1 to 0.3: 10 % lie below 0.12. Copies: 0.01, one in seven far off.
    real, again = np.linspace(0.1, 0.3, 21), np.array([0.01] * 18 + [0.9] * 3)
    values = np.stack([real, again, real], 1)
    assert tool.threshold(values) == pytest.approx(math.sqrt(0.12 * 0.01))
    assert tool.threshold(values[:, [1, 0, 2]]) is None  # copies farther off than real ones: no front to tell
    assert tool.threshold(np.stack([real, real, real], 1)) is None


def test_only_nouns_that_can_be_told_count(tool: ModuleType) -> None:
    chairs = rows(tool, "chair", [0.2] * 6, [0.05] * 6)
    barrels = rows(tool, "barrel", [0.01] * 6, [0.01] * 6, first=6)
    fronts = tool.fit(joined(tool, chairs, barrels))
    assert fronts == {"chair": pytest.approx(0.1)}
    seen, hits = tool.called(joined(tool, barrels, chairs), fronts)
    assert set(seen.noun) == {"chair"} and hits.tolist() == [[False, True, False]] * 6
    found = tool.rates(seen, hits)
    assert found["assets"] == 6 and found["nouns"] == {"chair": 6}
    assert found["real"]["all"] == [0, 0, 0] and found["again"]["all"] == [1, 1, 1]


def test_an_asset_does_not_set_its_own_threshold(tool: ModuleType) -> None:
    # With the one odd chair among them the 10 % quantile is 0.003 + 0.5 (0.2 - 0.003) = 0.1015, the threshold 0.071;
    # without it, 0.1. Left out, it is called Janus by the others' threshold, and each of them by none.
    chairs = rows(tool, "chair", [0.2] * 5 + [0.003], [0.05] * 6)
    assert tool.fit(chairs)["chair"] == pytest.approx(math.sqrt(0.1015 * 0.05))
    held, hits = tool.left_out(chairs)
    by_asset = dict(zip(held.asset.tolist(), hits[:, 0].tolist()))
    assert by_asset[5] is True and not any(by_asset.get(i, False) for i in range(5))


def test_a_red_front_is_seen_by_the_measuring_loop(tool: ModuleType) -> None:
    corners = np.array([[x, y, z] for x in (-0.3, 0.3) for y in (-0.3, 0.3) for z in (-0.3, 0.3)], np.float32)
    quads = [(1, 5, 7, 3), (0, 2, 6, 4), (4, 6, 7, 5), (0, 1, 3, 2), (0, 4, 5, 1), (2, 3, 7, 6)]
    faces = np.array([f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))])
    grey, red = [0.6, 0.6, 0.6], [0.8, 0.1, 0.1]
    one = np.array([red] * 2 + [grey] * 10, np.float32)
    record = AssetRecord("a.glb", "box", ("box",), ("box",), "grey", 0.8, "", "train")
    assets = AssetSet(
        [record, record],
        np.concatenate([corners, corners]),
        np.concatenate([faces, faces]),
        np.concatenate([one, one]),
        np.array([0, 8, 16]),
        np.array([0, 12, 24]),
    )
    found = tool.measured(load_judge("gold"), assets, [0, 1], {0: 1, 1: 0})
    assert found.values.shape == (4, 3) and set(found.light) == set(tool.LIGHTS)
    assert found.values[:, 0].min() > 3 * found.values[:, 1:].max()
