"""The yes/no judge on tiny Qwen2-VL and Qwen2.5-VL folders: patches, log-odds, gradients, wrong folders."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl3d.errors import AssetError, InputError
from rl3d.rewards import Reward, RewardInput, load, load_hub_reward
from rl3d.rewards.hub.views import CLIP_MEAN, CLIP_STD
from rl3d.rewards.hub.vlm_judge import Patches, VLMJudge, grid

Views = Callable[..., RewardInput]
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
LEAST, MOST = 56 * 56, 28 * 28 * 1280


def write_tokenizer(folder: Path, merges: list[tuple[str, str]]) -> dict[str, int]:
    """Byte-pair files as Qwen publishes them: every byte, the merges, then the special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    added = {
        str(len(vocabulary) + i): {"content": s, "special": True} for i, s in enumerate((*SPECIALS, "<|video_pad|>"))
    }
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {i: {**flags, **token} for i, token in added.items()},
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "bos_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return {token["content"]: int(i) for i, token in added.items()}  # type: ignore[misc]


def write_vlm(folder: Path, kind: str) -> Path:
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder.mkdir()
    special = write_tokenizer(folder, [("Y", "e"), ("Ye", "s"), ("N", "o")])
    text = {
        "vocab_size": max(special.values()) + 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]},
        "rope_theta": 10000.0,
        "bos_token_id": special["<|endoftext|>"],
        "eos_token_id": special["<|im_end|>"],
    }
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "temporal_patch_size": 2}
    else:
        vision |= {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "temporal_patch_size": 2}
        vision |= {"window_size": 112, "fullatt_block_indexes": [1]}
    ids = {f"{name}_token_id": special[f"<|{name}_pad|>"] for name in ("image", "video")}
    ids |= {f"vision_{name}_token_id": special[f"<|vision_{name}|>"] for name in ("start", "end")}
    config = AutoConfig.for_model(kind, text_config=text, vision_config=vision, **ids)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.copy_(0.15 * torch.randn(value.shape, generator=generator))
    model.save_pretrained(folder)
    sizes = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": LEAST, "max_pixels": MOST}
    normal = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
    processor = {"image_processor_type": "Qwen2VLImageProcessor", **sizes, **normal}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl"])
def vlm_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vlm(tmp_path_factory.mktemp("models") / request.param, request.param)


def small(spec: str, **options: Any) -> VLMJudge:
    """The judge with views of 56 pixels, so that tests take little time."""
    judge = load_hub_reward(spec, **options)
    assert isinstance(judge, VLMJudge)
    return dataclasses.replace(judge, view_size=56)


@pytest.mark.parametrize("shape", [(112, 112), (60, 90), (20, 31), (300, 200)])
def test_patches_are_those_of_transformers(shape: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    most = 160 * 160  # so that the largest is shrunk
    pixels = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    theirs = Qwen2VLImageProcessorPil(size={"shortest_edge": LEAST, "longest_edge": most})(
        pixels, input_data_format="channels_first", return_tensors="pt"
    )
    ours, (rows, columns) = Patches(14, 2, 2, LEAST, most, CLIP_MEAN, CLIP_STD)(torch.from_numpy(pixels).float() / 255)
    assert theirs["image_grid_thw"].tolist() == [[1, rows, columns]]
    # Pillow rounds to bytes twice: a byte is 1 / 255 / 0.26 = 0.015 here.
    assert ours.shape == theirs["pixel_values"].shape and float((ours - theirs["pixel_values"]).abs().max()) < 0.03


def test_views_stand_in_a_grid() -> None:
    numbers = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2)
    picture = grid(numbers)
    assert picture.shape == (3, 4, 6)
    assert picture[0, ::2, ::2].tolist() == [[0, 1, 2], [3, 4, 1]]  # the empty place is white
    assert torch.equal(grid(numbers[:1]), numbers[0])


def test_log_odds_are_the_models_own(vlm_folder: Path, views: Views) -> None:
    x = views(size=56)
    judge = small(f"vlm:{vlm_folder}", questions=["Is it {prompt}?", "Is it whole?"])
    assert isinstance(judge, Reward) and (judge.name, judge.licence, judge.views) == ("vlm", "apache-2.0", None)
    tokenizer, model = judge.tokenizer, judge.model
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * 16
        + "<|vision_end|>Is it red barrel? Answer Yes or No.<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    assert int((ids == model.config.image_token_id).sum()) == 16 and tokenizer.decode(ids[0]) == text
    patches, _ = judge.patches(grid(x.images[0]))  # 2 x 2 views of 56 pixels: 8 x 8 patches, 4 x 4 tokens
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            pixel_values=patches,
            image_grid_thw=torch.tensor([[1, 8, 8]]),
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
        ).logits[0, -1]
        likely = logits.log_softmax(-1)
        first = judge.log_odds(x.images[0], "Is it red barrel?")
        second = judge.log_odds(x.images[0], "Is it whole?")
        scores = judge(x)
        assert torch.allclose(
            first, likely[tokenizer("Yes")["input_ids"][0]] - likely[tokenizer("No")["input_ids"][0]], atol=1e-4
        )
        assert torch.allclose(scores[0], (first + second) / 2, atol=1e-5)
        assert torch.equal(scores, judge(x)) and float((scores[0] - scores[1]).abs()) > 1e-4


def test_the_gradient_is_that_of_the_score(vlm_folder: Path, views: Views, check_gradient: Callable[..., None]) -> None:
    judge = small(f"vlm:{vlm_folder}", dtype=torch.float64, questions=["Is it {prompt}?"])
    # The model's norms and rotations are float32 whatever its weights are: an error of 1e-7 over a step of 1e-3.
    check_gradient(judge, views(1, size=56, dtype=torch.float64), 1e-3, 0.02)


def test_broken_folders_are_named(tmp_path: Path) -> None:
    whole = write_vlm(tmp_path / "whole", "qwen2_vl")
    with pytest.raises(InputError, match="needs a list of questions"):
        load_hub_reward(f"vlm:{whole}", questions="Is it red?")
    truncated, pickled, foreign, wordless, mixed = (shutil.copytree(whole, tmp_path / n) for n in "abcde")
    weights = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    write_tokenizer(wordless, [("Y", "e")])
    processor = json.loads((mixed / "preprocessor_config.json").read_text())
    (mixed / "preprocessor_config.json").write_text(json.dumps({**processor, "patch_size": 16}))
    for folder, message in {
        truncated: "cannot be loaded as AutoModelForImageTextToText",
        pickled: "only pickled weights",
        foreign: "is a 'llava' model, reward family vlm reads qwen2_vl or qwen2_5_vl",
        wordless: "must be one token each; the tokenizer is of another model",
        mixed: "disagree on the patches",
    }.items():
        with pytest.raises(AssetError, match=message) as caught:
            load(f"vlm:{folder}")
        assert "\n" not in str(caught.value)
