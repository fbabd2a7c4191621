"""The calibration finds what it is told to find: rewards that see everything, nothing, or prefer a hack."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rl3d.assets import packaged_folder
from rl3d.data.captions import split_words
from rl3d.errors import AssetError, InputError
from rl3d.reconstruct import HullFit
from rl3d.rewards import MRC, MRCOptions, RewardInput, check_reward, load, reward
from rl3d.rewards.calibrated import calibration_warning, recorded_calibration, weights_digest
from rl3d.rewards.check import CASES, CLAIMS, FAR_COLOUR, ON_VIEWS, _first_view_shifted, claims_of
from rl3d.rewards.check_assets import check_assets
from rl3d.scenes.facts import mesh_facts


def test_the_props_are_solid_named_and_of_one_size() -> None:
    words = json.loads((packaged_folder("assets") / "judge_reward" / "vocabulary.json").read_text(encoding="utf-8"))
    for asset in check_assets():
        facts = mesh_facts(asset.mesh)
        assert facts["watertight"] and facts["consistent_winding"] and facts["volume"] > 0, asset.noun
        assert max(facts["extents"]) == pytest.approx(1, abs=1e-5)
        assert set(split_words(asset.caption)) <= set(words) and asset.colour in FAR_COLOUR


def test_one_reward_per_answer() -> None:
    """Coverage falls with every loss of pixels and rises with floaters: known orders, with the shares of all cases."""

    @reward(views=None, range=(0, 1), name="coverage")
    def coverage(x: RewardInput) -> torch.Tensor:
        return x.alphas.mean((1, 2, 3, 4))

    found = check_reward(coverage, ["nothing", "scaled down", "floaters", "wrong noun"], size=24)
    cases = {c.case: c for c in found.cases}
    assert list(cases) == list(CASES)
    assert cases["nothing"].verdict == "pass" and cases["nothing"].worse == 0
    assert cases["scaled down"].verdict == "pass" and cases["scaled down"].share == 1
    assert cases["floaters"].verdict == "FAIL" and cases["floaters"].share == 0  # it prefers the hack
    assert cases["wrong noun"].verdict == "FAIL" and cases["wrong noun"].better == cases["wrong noun"].worse  # a tie
    assert cases["blank view"].verdict == "not asked" and cases["blank view"].holds
    assert found.failed == ["wrong noun", "floaters"]
    assert cases["repeated"].comparisons == 10 and cases["holes"].comparisons == 16
    assert cases["specks"].share == 0 and cases["near copies"].comparisons == cases["exchanged views"].comparisons == 10
    assert "floaters" in found.table() and found.as_json()["failed"] == found.failed
    assert found == check_reward(coverage, ["nothing", "scaled down", "floaters", "wrong noun"], size=24)
    assert claims_of(coverage) == ON_VIEWS
    with pytest.raises(InputError, match="'floater'; known: floaters"):
        check_reward(coverage, ["floater"])


def test_a_shifted_view_takes_all_that_it_shows_with_it() -> None:
    values = torch.arange(8.0).expand(1, 2, 3, 8, 8) / 8
    alphas = torch.ones(1, 2, 1, 8, 8)
    x = RewardInput(values, alphas, None, ["ramp"], normals=values, depths=alphas)
    made = _first_view_shifted(x)  # by one of eight pixels
    assert made.images[0, 0, 0, 0].tolist() == [1, 0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75]  # white where it came from
    assert made.normals is not None and made.normals[0, 0, 0, 0].tolist() == [0, *(k / 8 for k in range(7))]
    assert made.depths is not None and made.depths[0, 0, 0, 0].tolist() == [0, *[1] * 7]
    assert torch.equal(made.images[:, 1], x.images[:, 1]) and torch.equal(made.depths[:, 1], alphas[:, 1])


@pytest.mark.parametrize("name", ["connectedness", "stability"])
def test_formulas_pass_what_they_claim(name: str) -> None:
    assert check_reward(load(name), size=16).failed == []


def test_every_embedded_reward_is_calibrated_with_its_present_weights() -> None:
    for name in CLAIMS:
        found = recorded_calibration(load(name))
        assert found is not None, f"{name}: run tools/calibrate_rewards.py"
        assert [c["case"] for c in found["cases"]] == list(CASES)
        assert {c["case"] for c in found["cases"] if c["verdict"] != "not asked"} == set(CLAIMS[name])
        assert found["failed"] == [c["case"] for c in found["cases"] if c["verdict"] == "FAIL"]


def test_an_mrc_of_other_parts_is_another_reward() -> None:
    embedded = load("mrc")
    assert isinstance(embedded, MRC)
    for other in (
        replace(embedded, reconstructor=HullFit(seed=3)),
        replace(embedded, options=MRCOptions(alpha_weight=0.5)),
        replace(embedded, view_pixels=32),
    ):
        assert weights_digest(other) != weights_digest(embedded) and recorded_calibration(other) is None


def test_uncalibrated_rewards_are_refused_or_warned_about(tmp_path: Path) -> None:
    judge, own = load("judge"), reward(name="mine")(lambda x: x.images.mean((1, 2, 3, 4)))
    path = tmp_path / "calibration.json"
    with pytest.raises(InputError, match="'judge' was not calibrated with these weights"):
        calibration_warning(judge, True, path)
    assert "your own and not calibrated" in str(calibration_warning(own, False, path))
    entry = {"weights": weights_digest(judge), "failed": [], "cases": []}
    path.write_text(json.dumps({"judge": entry}), encoding="utf-8")
    assert calibration_warning(judge, True, path) is None
    path.write_text(json.dumps({"judge": {**entry, "failed": ["holes"]}}), encoding="utf-8")
    assert "'judge' fails 1 of its calibration's cases (holes)" in str(calibration_warning(judge, True, path))
    path.write_text(json.dumps({"judge": {**entry, "weights": "other"}}), encoding="utf-8")
    with pytest.raises(InputError, match="not calibrated"):
        calibration_warning(judge, True, path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(AssetError, match="cannot be read"):
        calibration_warning(judge, True, path)
