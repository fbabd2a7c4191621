"""HPSv2's two layouts: open_clip's names, transformers' names, and a forward written here from open_clip's names."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl3d.errors import AssetError
from rl3d.rewards import RewardInput, load
from rl3d.rewards.hub.hpsv2 import IN_BLOCK, OUTSIDE, TRANSPOSED, VIT_H_14, clip_config, from_open_clip
from rl3d.rewards.hub.views import CLIP_MEAN, CLIP_STD, Preparation

Views = Callable[..., RewardInput]
HEADS = 2
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "width": 32, "heads": HEADS, "layers": 2},
}


def to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back of `from_open_clip`: transformers' CLIP tensors under open_clip's names."""
    outside = {new: old for old, new in OUTSIDE.items()}
    transposed = {new: old for old, new in TRANSPOSED.items()}
    in_block = {new: old for old, new in IN_BLOCK.items()}
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        block = re.fullmatch(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)
        if key in transposed:
            renamed[transposed[key]] = value.T.contiguous()
        elif block is None:
            renamed[outside.get(key, key)] = value
        else:
            tower, number, part, kind = block.groups()
            prefix = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{number}."
            if part == "self_attn.q_proj":
                thirds = [weights[key.replace("q_proj", f"{name}_proj")] for name in "qkv"]
                renamed[f"{prefix}attn.in_proj_{kind}"] = torch.cat(thirds)
            elif part not in ("self_attn.k_proj", "self_attn.v_proj"):
                renamed[f"{prefix}{in_block.get(part, part)}.{kind}"] = value
    return renamed


@pytest.fixture(scope="module")
def open_clip_folder(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny CLIP under open_clip's names, with an MLP of four times the width as open_clip has it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-hps"
    folder.mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "README.md"):
        if (clip_folder / name).is_file():
            shutil.copy(clip_folder / name, folder / name)
    tensors = to_open_clip(load_file(clip_folder / "model.safetensors"))
    tensors["attn_mask"] = torch.zeros(24, 24)  # a buffer, as published
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    words = len(tensors["token_embedding.weight"])
    config = {**MODEL, "text_cfg": {**MODEL["text_cfg"], "vocab_size": words}}  # type: ignore[dict-item]
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return folder


def transformer(w: dict[str, Tensor], prefix: str, x: Tensor, mask: Tensor | None) -> Tensor:
    """open_clip's residual attention blocks on x [N, L, D]."""
    for i in range(2):
        p = f"{prefix}transformer.resblocks.{i}."
        y = F.layer_norm(x, x.shape[-1:], w[f"{p}ln_1.weight"], w[f"{p}ln_1.bias"])
        qkv = F.linear(y, w[f"{p}attn.in_proj_weight"], w[f"{p}attn.in_proj_bias"])
        q, k, v = (z.unflatten(-1, (HEADS, -1)).transpose(1, 2) for z in qkv.chunk(3, -1))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        y = ((scores if mask is None else scores + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, w[f"{p}attn.out_proj.weight"], w[f"{p}attn.out_proj.bias"])
        y = F.layer_norm(x, x.shape[-1:], w[f"{p}ln_2.weight"], w[f"{p}ln_2.bias"])
        y = F.gelu(F.linear(y, w[f"{p}mlp.c_fc.weight"], w[f"{p}mlp.c_fc.bias"]))
        x = x + F.linear(y, w[f"{p}mlp.c_proj.weight"], w[f"{p}mlp.c_proj.bias"])
    return x


def features(w: dict[str, Tensor], pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    x = F.conv2d(pixels, w["visual.conv1.weight"], stride=8).flatten(2).mT
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + w["visual.positional_embedding"]
    x = transformer(w, "visual.", F.layer_norm(x, (32,), w["visual.ln_pre.weight"], w["visual.ln_pre.bias"]), None)
    seen = F.layer_norm(x[:, 0], (32,), w["visual.ln_post.weight"], w["visual.ln_post.bias"]) @ w["visual.proj"]
    length = ids.shape[1]
    x = w["token_embedding.weight"][ids] + w["positional_embedding"][:length]
    x = transformer(w, "", x, torch.full((length, length), -torch.inf).triu(1))
    x = F.layer_norm(x, (32,), w["ln_final.weight"], w["ln_final.bias"])
    read = x[torch.arange(len(ids)), ids.argmax(1)] @ w["text_projection"]
    return F.normalize(seen, dim=-1), F.normalize(read, dim=-1)


def test_the_score_is_that_of_open_clips_forward(open_clip_folder: Path, clip_folder: Path, views: Views) -> None:
    x = views()
    reward = load(f"hpsv2:{open_clip_folder}")
    assert (reward.name, reward.range, reward.licence) == ("hpsv2", (-1.0, 1.0), "mit")
    weights = load_file(open_clip_folder / "model.safetensors")
    vocabulary = json.loads((open_clip_folder / "vocab.json").read_text())
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    x.prompts[1] = x.prompts[0]
    # "red barrel" by the tokenizer's merges, the first of which joins "a r", the third "r e":
    ids = [start, *(vocabulary[token] for token in ("re", "d</w>", "b", "ar", "re", "l</w>")), end]
    seen, read = features(weights, Preparation(32)(x.images.flatten(0, 1)), torch.tensor([ids]))
    expected = (seen @ read[0]).unflatten(0, (2, 4)).mean(1)
    assert torch.allclose(reward(x), expected, atol=1e-5)
    assert torch.allclose(load(f"hpsv2:{clip_folder}")(x), expected, atol=1e-5)  # the other layout


def test_names_go_there_and_back(clip_folder: Path) -> None:
    tensors = load_file(clip_folder / "model.safetensors")
    renamed = to_open_clip(tensors)
    assert renamed["transformer.resblocks.1.attn.in_proj_weight"].shape == (96, 32)
    assert renamed["visual.proj"].shape == (32, 16) and "visual.conv1.weight" in renamed
    again = from_open_clip(renamed)
    assert {k for k in tensors if not k.endswith("position_ids")} == set(again)
    assert all(torch.equal(again[k], tensors[k]) for k in again)


def test_vit_h_14_is_the_published_size() -> None:
    config = clip_config(VIT_H_14, Path("open_clip_config.json"))
    vision, text = config["vision_config"], config["text_config"]
    assert (vision["num_attention_heads"], vision["intermediate_size"], text["intermediate_size"]) == (16, 5120, 4096)
    with pytest.raises(AssetError, match="model_cfg is not of a plain ViT"):
        clip_config({"embed_dim": 8}, Path("open_clip_config.json"))


def test_oblong_pictures_get_black_bars() -> None:
    image = torch.ones(1, 3, 16, 32)
    padded = Preparation(32, fit="pad")(image)[0] * torch.tensor(CLIP_STD)[:, None, None]
    padded = padded + torch.tensor(CLIP_MEAN)[:, None, None]
    assert padded.shape == (3, 32, 32)
    assert torch.allclose(padded[:, 8:24], torch.ones(3, 16, 32), atol=1e-5)
    assert torch.allclose(padded[:, :8], torch.zeros(3, 8, 32), atol=1e-5)


def test_gradient(open_clip_folder: Path, views: Views, check_gradient: Callable[..., None]) -> None:
    from rl3d.rewards import load_hub_reward

    check_gradient(
        load_hub_reward(f"hpsv2:{open_clip_folder}", dtype=torch.float64), views(dtype=torch.float64), 1e-5, 1e-4
    )


def test_broken_folders_are_named(open_clip_folder: Path, tmp_path: Path) -> None:
    pickled, several, truncated, foreign = (shutil.copytree(open_clip_folder, tmp_path / n) for n in "abcd")
    (pickled / "model.safetensors").rename(pickled / "HPS_v2_compressed.pt")
    shutil.copy(several / "model.safetensors", several / "other.safetensors")
    weights = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(weights[:-100])
    save_file({"classifier.weight": torch.zeros(2, 2)}, foreign / "model.safetensors")
    for folder, message in {
        pickled: r"only pickled weights \(HPS_v2_compressed\.pt\), which rl3d never opens; convert it once .*save_file",
        several: "several safetensors files",
        truncated: "cannot be read .*download or convert it again",
        foreign: "lacks tensor .* it is no hpsv2 checkpoint",
    }.items():
        with pytest.raises(AssetError, match=message) as caught:
            load(f"hpsv2:{folder}")
        assert "\n" not in str(caught.value)
