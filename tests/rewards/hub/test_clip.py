"""CLIP and PickScore against transformers' own code, and every way to give a wrong folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rl3d.assets import packaged_folder
from rl3d.errors import AssetError, InputError
from rl3d.rewards import Reward, RewardInput, load, load_hub_reward
from rl3d.rewards.hub.views import Preparation, TruncatedPromptWarning
from rl3d.text_to_3d.method_options import MethodOptions, RewardOptions
from rl3d.text_to_3d.methods import guide_for

Views = Callable[..., RewardInput]


@pytest.mark.parametrize("shape", [(40, 40), (20, 20), (30, 44), (32, 32)])
def test_pictures_are_prepared_as_transformers_does(shape: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pixels = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    theirs = torch.as_tensor(np.stack(processor(pixels, input_data_format="channels_first")["pixel_values"]))
    ours = Preparation(32)(torch.from_numpy(pixels)[None].float() / 255)
    # Pillow rounds to bytes after each of its two passes: a byte is 1 / 255 / 0.26 = 0.015 here. Measured on 50
    # pictures of noise at 32 and 224 pixels: 0.0165.
    assert ours.shape == theirs.shape and float((ours - theirs).abs().max()) < 0.03


def test_the_score_is_the_models_own_cosine(clip_folder: Path, views: Views) -> None:
    from transformers.models.clip.modeling_clip import CLIPModel
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    x = views()
    reward = load(f"clip:{clip_folder}")
    assert isinstance(reward, Reward)
    assert (reward.name, reward.licence, reward.range, reward.differentiable) == ("clip", "mit", (-1.0, 1.0), True)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), CLIPTokenizer.from_pretrained(clip_folder)
    text = tokenizer(x.prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**text, pixel_values=Preparation(32)(x.images.flatten(0, 1)))
        cosines = (out.logits_per_image / model.logit_scale.exp()).unflatten(0, (2, 4))
        expected = torch.stack([cosines[i, :, i] for i in range(2)])  # [B, V]
        assert torch.allclose(reward(x), expected.mean(1), atol=1e-5)
        for pool in ("max", "min"):
            pooled = load_hub_reward(f"pickscore:{clip_folder}", pool=pool)
            assert pooled.name == "pickscore"
            assert torch.allclose(pooled(x), getattr(expected, f"a{pool}")(1), atol=1e-5)
        assert torch.equal(reward(x), reward(x)) and float(expected.std()) > 1e-3  # reproducible, and no constant


def test_the_gradient_is_that_of_the_score(
    clip_folder: Path, views: Views, check_gradient: Callable[..., None]
) -> None:
    reward = load_hub_reward(f"clip:{clip_folder}", dtype=torch.float64)
    check_gradient(reward, views(dtype=torch.float64), 1e-5, 1e-4)


def test_chunks_change_neither_scores_nor_gradients(clip_folder: Path, views: Views) -> None:
    found = []
    for chunk in (1, 3, 64):
        x = views()
        x.images.requires_grad_()
        scores = load_hub_reward(f"clip:{clip_folder}", chunk=chunk)(x)
        scores.sum().backward()
        assert x.images.grad is not None
        found.append((scores.detach(), x.images.grad))
    for scores, gradient in found[1:]:
        assert torch.allclose(scores, found[0][0], atol=1e-6) and torch.allclose(gradient, found[0][1], atol=1e-6)


def test_a_long_prompt_is_cut_with_a_warning(clip_folder: Path, views: Views) -> None:
    reward = load(f"clip:{clip_folder}")
    with pytest.warns(TruncatedPromptWarning, match="'clip' reads 24 tokens, the prompt has"):
        cut = reward(views(1, prompt="red barrel with a very long description"))
    with pytest.warns(TruncatedPromptWarning):
        same = reward(views(1, prompt="red barrel with a very long story, and then another one"))
    assert torch.isfinite(cut).all() and cut.shape == same.shape


def test_a_method_takes_the_spec(clip_folder: Path) -> None:
    prior: Any = SimpleNamespace(n_views=4, name="four views")
    guide = guide_for(MethodOptions("dreamdpo", reward=RewardOptions(name=f"clip:{clip_folder}")), prior)
    assert guide.facts()["reward"] == {"name": "clip", "licence": "mit", "range": [-1.0, 1.0]}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("clib:a/b", "no reward family is called 'clib'; known: clip, .*did you mean 'clip:a/b'"),
        ("clip:", "method.reward.name clip: '' does not exist; give a model folder, a hub id"),
        ("clip", "method.reward.name clip: '' does not exist"),
        ("clip:./nowhere", "method.reward.name clip: './nowhere' does not exist"),
        ("clip:a/b@", "the revision after '@' is empty"),
        ("gold:a/b", "gold judge only measures"),
    ],
)
def test_wrong_specs(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(spec)
    assert "\n" not in str(caught.value)


def test_the_gold_judge_is_no_reward() -> None:
    with pytest.raises(InputError, match="gold judge only measures"):
        load(f"clip:{packaged_folder('assets') / 'judge_gold'}")


def test_wrong_options(clip_folder: Path) -> None:
    with pytest.raises(InputError, match="pool must be mean, max or min, got 'median'"):
        load_hub_reward(f"clip:{clip_folder}", pool="median")
    with pytest.raises(InputError, match="chunk must be at least 1, got 0"):
        load_hub_reward(f"clip:{clip_folder}", chunk=0)


def test_a_hub_id_asks_for_safetensors_only(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    calls: list[dict[str, Any]] = []

    def snapshot(name: str, **options: Any) -> str:
        calls.append({"name": name, **options})
        return str(clip_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load("clip:owner/some-model@v1").name == "clip"
    (call,) = calls
    assert (call["name"], call["revision"]) == ("owner/some-model", "v1")
    assert {"*.bin", "*.pt", "*.py", "*/*", "open_clip*"} <= set(call["ignore_patterns"]) and "token" not in call

    def missing(name: str, **options: Any) -> str:
        response: Any = SimpleNamespace(headers={}, request=None)
        raise errors.RepositoryNotFoundError("no", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    with pytest.raises(InputError, match=r"not on the hub .*change method\.reward\.name") as caught:
        load("clip:owner/other")
    assert "\n" not in str(caught.value)


def test_broken_folders_are_named(clip_folder: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return shutil.copytree(clip_folder, tmp_path / name)

    def config(folder: Path, file: str, **changes: Any) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    truncated, pickled, foreign, wordless, mixed, lacking = map(copy, "abcdef")
    weights = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    config(foreign, "config.json", model_type="siglip")
    for name in ("vocab.json", "merges.txt"):
        (wordless / name).unlink()
    config(mixed, "preprocessor_config.json", crop_size={"height": 16, "width": 16})
    (lacking / "config.json").unlink()
    for folder, message in {
        truncated: "cannot be loaded as CLIPModel",
        pickled: r"holds only pickled weights \(pytorch_model\.bin\), which rl3d never opens; convert",
        foreign: "is a 'siglip' model, reward family clip reads clip; choose another method.reward.name",
        wordless: "has no tokenizer; put CLIP's vocab.json and merges.txt there",
        mixed: "crop_size .* does not fit the model's 32 pixels",
        lacking: r"config\.json is missing",
    }.items():
        with pytest.raises(AssetError, match=message) as caught:
            load(f"clip:{folder}")
        assert "\n" not in str(caught.value)


def test_scores_that_are_not_finite_are_named(clip_folder: Path, views: Views) -> None:
    x = views()
    x = dataclasses.replace(x, images=x.images * torch.nan)
    with pytest.raises(InputError, match="'clip' gave nan for asset 0"):
        load(f"clip:{clip_folder}")(x)
