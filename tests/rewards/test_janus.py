"""Fronts shown twice: boxes with one and two painted sides, thresholds and their file, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rl3d.errors import AssetError, InputError
from rl3d.rewards import damage, janus_rate, judge_views, load_judge, shows_front_twice
from rl3d.rewards.janus import front_back_distance, front_noun
from rl3d.rewards.judges import JANUS, Judge, save_judge
from rl3d.rewards.score import LOOKS
from rl3d.scenes import Mesh

GREY, RED = (0.6, 0.6, 0.6), (0.8, 0.1, 0.1)


def box(*red: int) -> Mesh:
    """A grey box whose sides `red` are red: 0 front (+Z), 1 back, 2 +X, 3 -X."""
    corners = torch.tensor([[x, y, z] for x in (-0.3, 0.3) for y in (-0.3, 0.3) for z in (-0.3, 0.3)])
    quads = [(1, 5, 7, 3), (0, 2, 6, 4), (4, 6, 7, 5), (0, 1, 3, 2), (0, 4, 5, 1), (2, 3, 7, 6)]
    faces = torch.tensor([f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))])
    colours = torch.tensor([RED if side in red else GREY for side in range(6) for _ in range(2)])
    return Mesh(corners, faces, face_colours=colours)


def views_of(*red: int) -> torch.Tensor:
    return judge_views(box(*red), LOOKS["gold"])


def gold_with(**fronts: float) -> Judge:
    return replace(load_judge("gold"), fronts=fronts)


def test_one_red_side_is_a_front_and_two_are_a_front_twice() -> None:
    judge = gold_with(crate=0.1)
    one, two, none, sides = (
        float(front_back_distance(judge, v[:1], v[2:3]))
        for v in (views_of(*red)[0] for red in ((0,), (0, 1), (), (2, 3)))
    )
    # 0.417 against 0.001 (both red) and 0.008 (none, or the two sides red); the light is not the same on both faces.
    assert one > 0.2 and max(two, none, sides) < 0.03
    assert shows_front_twice(judge, views_of(0), "a red crate") is False
    assert shows_front_twice(judge, views_of(1), "a red crate") is False  # turned around, it still has a back
    assert shows_front_twice(judge, views_of(0, 1), "a red crate") is True


def test_a_pasted_front_is_found_mirrored_noisy_or_darker() -> None:
    judge, real = gold_with(crate=0.1), views_of(0)
    front = real[:, 0]
    darker = torch.cat([0.8 * front[:, :3], front[:, 3:]], 1)
    noisy = damage.noise(damage.blur(front[:, None], 0.7), 0.03, torch.Generator().manual_seed(0))[:, 0]
    for back in (front, front.flip(-1), darker, noisy):
        pasted = real.clone()
        pasted[:, 2] = back
        assert shows_front_twice(judge, pasted, "crate") is True
    assert shows_front_twice(judge, damage.janus(real), "crate") is True
    assert shows_front_twice(judge, damage.noise(real, 0.03, torch.Generator().manual_seed(0)), "crate") is False


def test_a_mirrored_copy_is_no_distance_for_any_weights(tiny_judge: Callable, random_views: Callable) -> None:
    judge, front = tiny_judge("gold"), random_views(3)[:, 0]
    other = random_views(3, seed=1)[:, 0]
    zero = front_back_distance(judge, torch.cat([front, front]), torch.cat([front, front.flip(-1)]))
    assert torch.equal(zero, torch.zeros(6))
    apart = front_back_distance(judge, front, other)
    assert bool((apart > 0).all())
    assert torch.allclose(apart, front_back_distance(judge, front, other.flip(-1)), atol=1e-6)


def test_only_nouns_with_a_front_count() -> None:
    judge = gold_with(couch=0.1, bed=0.1)
    assert front_noun(judge, "a pink sofa") == "couch" and front_noun(judge, "a couch, then a bed") == "bed"
    assert front_noun(judge, "a red barrel") is None
    assert shows_front_twice(judge, views_of(0, 1), "a red barrel") is None
    images = [views_of(0, 1), views_of(0), views_of(0, 1)]
    assert janus_rate(judge, images, ["couch", "bed", "barrel"]) == {"rate": 0.5, "counted": 2, "skipped": 1}
    assert janus_rate(judge, images[:1], ["barrel"])["rate"] is None


def test_the_first_group_decides_and_an_empty_view_says_nothing() -> None:
    judge, one, two = gold_with(crate=0.1), views_of(0), views_of(0, 1)
    assert shows_front_twice(judge, torch.cat([two[:1], one[1:]]), "crate") is True
    assert shows_front_twice(judge, torch.cat([one[:1], two[1:]]), "crate") is False
    assert shows_front_twice(judge, two[:1], "crate") is True  # one group, as the views of a prior come
    empty = two.clone()
    empty[0, 2] = 0
    assert shows_front_twice(judge, empty, "crate") is None
    assert shows_front_twice(judge, torch.zeros(1, 4, 4, 64, 64), "crate") is None


def test_bad_input_is_refused(tiny_judge: Callable, random_views: Callable) -> None:
    judge = tiny_judge("gold")
    for wrong in (torch.zeros(4, 4, 8, 8), torch.zeros(1, 3, 4, 8, 8), torch.zeros(1, 4, 3, 8, 8)):
        with pytest.raises(InputError, match="groups of 4 RGBA views"):
            shows_front_twice(judge, wrong, "car")
    with pytest.raises(InputError, match="front and back"):
        front_back_distance(judge, torch.zeros(2, 4, 8, 8), torch.zeros(1, 4, 8, 8))
    with pytest.raises(InputError, match="load the gold judge"):
        shows_front_twice(tiny_judge("reward"), random_views(1), "car")
    with pytest.raises(InputError, match="as many prompts"):
        janus_rate(judge, [random_views(1)], [])


def test_thresholds_come_from_their_file(tmp_path: Path, tiny_judge: Callable) -> None:
    save_judge(tiny_judge("gold"), tmp_path)
    assert load_judge("gold", folder=tmp_path).fronts == {}
    (tmp_path / JANUS).write_text(json.dumps({"nouns": {"chair": {"threshold": 0.02, "train_assets": 9}}}))
    assert load_judge("gold", folder=tmp_path).fronts == {"chair": 0.02}
    (tmp_path / JANUS).write_text('{"nouns": {"chair": {}}}')
    with pytest.raises(AssetError, match="gold judge"):
        load_judge("gold", folder=tmp_path)
    save_judge(tiny_judge("gold"), tmp_path)  # other weights: thresholds of the old ones would be wrong
    assert not (tmp_path / JANUS).exists()
