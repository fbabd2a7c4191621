"""ImageReward and Reward3D against a forward written here from the BLIP repository's tensor names."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl3d.errors import AssetError, InputError
from rl3d.rewards import RewardInput, load, load_hub_reward
from rl3d.rewards.hub.reward3d import view_sentences
from rl3d.rewards.hub.views import Preparation, TruncatedPromptWarning

Views = Callable[..., RewardInput]
SCORER = {
    **{f"Scorer.fc1.{k}": s for k, s in (("weight", (16, 64)), ("bias", (16,)))},
    **{f"Scorer.fc2.{k}": s for k, s in (("weight", (8, 16)), ("bias", (8,)))},
    **{f"Scorer.fc3.{k}": s for k, s in (("weight", (1, 8)), ("bias", (1,)))},
}
FUSION: dict[str, tuple[int, ...]] = {
    "cross_view_adapter.self_attn.in_proj_weight": (384, 128),
    "cross_view_adapter.self_attn.in_proj_bias": (384,),
    "cross_view_adapter.self_attn.out_proj.weight": (128, 128),
    "cross_view_adapter.self_attn.out_proj.bias": (128,),
    "cross_view_adapter.fusion_gate.0.weight": (128, 256),
    "cross_view_adapter.fusion_gate.0.bias": (128,),
}


@pytest.fixture(scope="module")
def imagereward(write_blip: Callable[..., Path]) -> Path:
    return write_blip("tiny-imagereward")


@pytest.fixture(scope="module")
def with_scorer(write_blip: Callable[..., Path]) -> Path:
    return write_blip("tiny-scorer", SCORER)


@pytest.fixture(scope="module")
def with_fusion(write_blip: Callable[..., Path]) -> Path:
    return write_blip("tiny-fusion", FUSION)


def token_ids(folder: Path, text: str) -> Tensor:
    """[1, L]: words of the list as they are, others letter by letter, commas on their own; as BERT does it."""
    words = (folder / "vocab.txt").read_text().split()
    pieces: list[str] = []
    for word in text.replace(",", " , ").split():
        pieces += [word] if word in words else [word[0], *(f"##{c}" for c in word[1:])]
    return torch.tensor([[words.index(p) for p in ["[CLS]", *pieces, "[SEP]"]]])


def lin(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def cls_feature(w: dict[str, Tensor], image: Tensor, ids: Tensor) -> Tensor:
    """BLIP's forward for one prepared picture [3, 32, 32] and one sentence [1, L], no padding: [128]."""
    p = "blip.visual_encoder."
    x = F.conv2d(image[None], w[f"{p}patch_embed.proj.weight"], w[f"{p}patch_embed.proj.bias"], stride=16).flatten(2).mT
    x = torch.cat([w[f"{p}cls_token"], x], 1) + w[f"{p}pos_embed"]
    for i in range(2):
        b = f"{p}blocks.{i}."
        q, k, v = lin(w, f"{b}attn.qkv", norm(w, f"{b}norm1", x, 1e-6)).chunk(3, -1)
        x = x + lin(w, f"{b}attn.proj", attend(q, k, v, 1))
        x = x + lin(w, f"{b}mlp.fc2", F.gelu(lin(w, f"{b}mlp.fc1", norm(w, f"{b}norm2", x, 1e-6))))
    grid = norm(w, f"{p}norm", x, 1e-6)
    t = "blip.text_encoder."
    y = w[f"{t}embeddings.word_embeddings.weight"][ids] + w[f"{t}embeddings.position_embeddings.weight"][: ids.shape[1]]
    y = norm(w, f"{t}embeddings.LayerNorm", y, 1e-12)
    for i in range(2):
        b = f"{t}encoder.layer.{i}."
        for name, source in (("attention", None), ("crossattention", grid)):
            a = f"{b}{name}."
            keys = y if source is None else source
            seen = attend(
                lin(w, f"{a}self.query", y), lin(w, f"{a}self.key", keys), lin(w, f"{a}self.value", keys), heads=2
            )
            y = norm(w, f"{a}output.LayerNorm", y + lin(w, f"{a}output.dense", seen), 1e-12)
        inner = F.gelu(lin(w, f"{b}intermediate.dense", y))
        y = norm(w, f"{b}output.LayerNorm", y + lin(w, f"{b}output.dense", inner), 1e-12)
    return y[0, 0]


def mlp(w: dict[str, Tensor], x: Tensor) -> Tensor:
    for name in ("0", "2", "4", "6", "7"):
        x = lin(w, f"mlp.layers.{name}", x)
    return x[..., 0]


def test_imagereward_is_blips_forward(imagereward: Path, views: Views) -> None:
    x = views()  # prompts of different lengths, so that the shorter is padded and masked
    reward = load(f"imagereward:{imagereward}")
    assert (reward.name, reward.licence, reward.views) == ("imagereward", "apache-2.0", None)
    w = load_file(imagereward / "model.safetensors")
    prepared = Preparation(32)(x.images.flatten(0, 1)).unflatten(0, (2, 4))
    raw = torch.stack(
        [
            torch.stack([mlp(w, cls_feature(w, v, token_ids(imagereward, p))) for v in a])
            for a, p in zip(prepared, x.prompts)
        ]
    )
    expected = (raw - 0.16717362830052426) / 1.0333394966054072
    assert float(expected.std()) > 1e-2
    assert torch.allclose(reward(x), expected.mean(1), atol=1e-4)
    assert torch.allclose(load_hub_reward(f"imagereward:{imagereward}", pool="min")(x), expected.amin(1), atol=1e-4)
    assert torch.allclose(load_hub_reward(f"imagereward:{imagereward}", chunk=3)(x), expected.mean(1), atol=1e-4)


def features_of(folder: Path, x: RewardInput) -> tuple[dict[str, Tensor], Tensor]:
    """[B, 4, 128], each view with its own sentence."""
    w = load_file(folder / "model.safetensors")
    prepared = Preparation(32)(x.images.flatten(0, 1))
    words = (", front view", ", side view", ", back view", ", side view")  # azimuths 0, 90, 180 and 270 degrees
    texts = [prompt + word for prompt in x.prompts for word in words]
    assert view_sentences(x) == texts
    rows = [cls_feature(w, image, token_ids(folder, text)) for image, text in zip(prepared, texts)]
    return w, torch.stack(rows).unflatten(0, (2, 4))


def test_the_scorer_head(with_scorer: Path, views: Views) -> None:
    x = views()
    w, features = features_of(with_scorer, x)
    side_by_side = torch.cat([lin(w, "mlp.layers.2", lin(w, "mlp.layers.0", features[:, i])) for i in range(4)], 1)
    raw = lin(w, "Scorer.fc3", lin(w, "Scorer.fc2", lin(w, "Scorer.fc1", side_by_side)))[:, 0]
    reward = load(f"reward3d:{with_scorer}")
    assert reward.views == 4
    assert torch.allclose(reward(x), (raw - 0.16717362830052426) / 1.0333394966054072, atol=1e-4)
    turned = dataclasses.replace(x, images=x.images.roll(1, 1))
    assert float((reward(x) - reward(turned)).abs().min()) > 1e-4  # the order of the views counts


def test_the_fusion_head(with_fusion: Path, views: Views) -> None:
    x = views()
    w, features = features_of(with_fusion, x)
    attention = torch.nn.MultiheadAttention(128, 2, batch_first=True).eval()  # 64 wide heads
    prefix = "cross_view_adapter.self_attn."
    attention.load_state_dict({k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)})
    with torch.no_grad():
        attended = attention(features, features, features)[0]
        gate = lin(w, "cross_view_adapter.fusion_gate.0", torch.cat([features, attended], -1)).sigmoid()
        raw = mlp(w, (gate * attended + (1 - gate) * features).mean(1))
    assert torch.allclose(load(f"reward3d:{with_fusion}")(x), (raw - 0.16717362830052426) / 5, atol=1e-4)


@pytest.mark.parametrize("family", ["imagereward", "reward3d"])
def test_the_gradient_is_that_of_the_score(
    family: str, imagereward: Path, with_fusion: Path, views: Views, check_gradient: Callable[..., None]
) -> None:
    folder = imagereward if family == "imagereward" else with_fusion
    reward = load_hub_reward(f"{family}:{folder}", dtype=torch.float64, chunk=3)
    check_gradient(reward, views(1, dtype=torch.float64), 1e-5, 1e-4)


def test_four_views_with_cameras(with_scorer: Path, views: Views) -> None:
    reward = load(f"reward3d:{with_scorer}")
    with pytest.raises(InputError, match="'reward3d' needs 4 views an asset, got 3"):
        reward(views(count=3))
    with pytest.raises(InputError, match=r"RewardInput\.cameras must be given"):
        reward(dataclasses.replace(views(), cameras=None))


def test_a_long_prompt_is_cut_with_a_warning(imagereward: Path, views: Views) -> None:
    with pytest.warns(TruncatedPromptWarning, match="'imagereward' reads 35 tokens"):
        assert load(f"imagereward:{imagereward}")(views(1, prompt="a very long description of a thing " * 2)).isfinite()


def test_broken_folders_are_named(imagereward: Path, with_fusion: Path, tmp_path: Path) -> None:
    pickled, truncated, wordless, headless, empty = (shutil.copytree(imagereward, tmp_path / n) for n in "abcde")
    (pickled / "model.safetensors").rename(pickled / "ImageReward.pt")
    weights = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (wordless / "vocab.txt").unlink()
    tensors = load_file(headless / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "mlp.layers.7.bias"}, headless / "model.safetensors")
    (empty / "model.safetensors").unlink()
    for spec, message in {
        f"imagereward:{pickled}": r"only pickled weights \(ImageReward\.pt\), which rl3d never opens; convert it once",
        f"imagereward:{empty}": "holds no .*safetensors weights; if it was published pickled, convert it once",
        f"imagereward:{truncated}": "cannot be read",
        f"imagereward:{wordless}": "put vocab.txt of bert-base-uncased there",
        f"imagereward:{headless}": r"tensor mlp\.layers\.7\.bias is missing",
        f"reward3d:{imagereward}": "neither of Reward3D's heads .* take imagereward:",
        f"reward3d:{Path(__file__).parent}": "holds no .*safetensors",
    }.items():
        with pytest.raises(AssetError, match=message) as caught:
            load(spec)
        assert "\n" not in str(caught.value)
    weights3d = load_file(with_fusion / "model.safetensors")
    other = shutil.copytree(with_fusion, tmp_path / "f")
    narrow = {k: v[..., :-1].contiguous() if k.endswith("attn.qkv.weight") else v for k, v in weights3d.items()}
    save_file(narrow, other / "model.safetensors")
    with pytest.raises(AssetError, match=r"is .*expected .*it is no reward3d checkpoint of that size"):
        load(f"reward3d:{other}")
