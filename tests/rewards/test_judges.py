"""The judges' networks, their files, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl3d.errors import AssetError, InputError
from rl3d.rewards.judges import KINDS, load_judge, save_judge


@pytest.mark.parametrize("which", KINDS)
def test_files_give_the_same_judge_back(
    which: str, tmp_path: Path, tiny_judge: Callable, random_views: Callable
) -> None:
    judge = tiny_judge(which)
    save_judge(judge, tmp_path, torch.float32)
    loaded = load_judge(which, folder=tmp_path)  # type: ignore[arg-type]
    images, prompts = random_views(2), ["a red barrel", "blue car"]
    assert torch.equal(loaded.similarity(images, prompts), judge.similarity(images, prompts))
    assert (loaded.words, loaded.distractors) == (judge.words, judge.distractors)
    save_judge(judge, tmp_path)
    half = load_judge(which, folder=tmp_path)  # type: ignore[arg-type]
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    # float16 weights moved the similarity by up to 4e-4 over ten seeds
    assert torch.allclose(half.similarity(images, prompts), judge.similarity(images, prompts), atol=3e-3)


@pytest.mark.parametrize("which", KINDS)
def test_scores_are_cosines_for_any_number_and_size_of_views(
    which: str, tiny_judge: Callable, random_views: Callable
) -> None:
    judge = tiny_judge(which)
    for views, size in ((1, 16), (3, 32), (4, 50)):
        scores = judge.similarity(random_views(3, views, size), ["red barrel", "blue car", "green thing1"])
        assert scores.shape == (3,) and bool((scores.abs() <= 1 + 1e-6).all())
    assert judge.logits(random_views(2), ["red", "blue", "green"]).shape == (2, 3)
    sides = judge.encode(random_views(2)).view_logits
    assert (sides is None) if which == "reward" else (sides is not None and sides.shape == (2, 4, 4))


def test_the_order_of_views_is_no_matter(tiny_judge: Callable, random_views: Callable) -> None:
    images, prompts = random_views(1), ["red barrel"]
    for which in KINDS:
        judge = tiny_judge(which)
        again = judge.similarity(images[:, [2, 0, 3, 1]], prompts)
        assert torch.allclose(judge.similarity(images, prompts), again, atol=1e-5)  # sums in another order: 1e-7 seen


def test_the_reward_judges_gradient_is_right(tiny_judge: Callable, random_views: Callable) -> None:
    judge = tiny_judge("reward")
    images = random_views(1).requires_grad_()
    judge.similarity(images, ["red barrel"]).sum().backward()
    assert images.grad is not None
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    step = 1e-2
    with torch.no_grad():
        ends = [judge.similarity(images + s * step * direction, ["red barrel"]) for s in (1, -1)]
    slope = float((ends[0] - ends[1]) / (2 * step))
    assert float((images.grad * direction).sum()) == pytest.approx(slope, rel=0.05, abs=1e-4)  # maxima switch: 1 % seen


def test_unknown_words_are_left_out_or_refused(tiny_judge: Callable, random_views: Callable) -> None:
    judge = tiny_judge("reward")
    assert judge.unknown_words("a red zeppelin, quick") == ["a", "zeppelin", "quick"]
    assert torch.equal(judge.embed_texts(["red zeppelin"]), judge.embed_texts(["red"]))
    with pytest.raises(InputError, match=r"knows no word of 'barel'; nearest known: barrel"):
        judge.embed_texts(["barel"])
    with pytest.raises(InputError, match="premultiplied RGBA"):
        judge.encode(torch.zeros(1, 4, 3, 8, 8))
    with pytest.raises(InputError, match="as many prompts"):
        judge.similarity(random_views(2), ["red"])


def test_broken_files_are_one_clear_error(tmp_path: Path, tiny_judge: Callable) -> None:
    with pytest.raises(InputError, match="reward, gold"):
        load_judge("silver")  # type: ignore[arg-type]
    with pytest.raises(AssetError, match="reward judge"):
        load_judge("reward", folder=tmp_path / "nothing")
    save_judge(tiny_judge("gold"), tmp_path)
    with pytest.raises(AssetError, match="holds a gold judge"):
        load_judge("reward", folder=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "width": 32}))
    with pytest.raises(AssetError, match="size mismatch"):
        load_judge("gold", folder=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AssetError, match="cannot be loaded"):
        load_judge("gold", folder=tmp_path)
