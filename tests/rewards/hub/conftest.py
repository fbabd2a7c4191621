"""Tiny checkpoints with random weights in the published formats, written once a session; no network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_world import load_tool
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.rewards import RewardInput

SIDE, TEXT = 32, 24  # pixels and tokens of the tiny CLIP


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    return load_tool("make_tiny_pipelines")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def touched(name: str, **options: Any) -> str:
        raise AssertionError(f"the network was touched for {name}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", touched)


@pytest.fixture(scope="session")
def clip_folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers CLIP folder with the wide weights that make random features differ."""
    from transformers.models.clip.configuration_clip import CLIPConfig
    from transformers.models.clip.modeling_clip import CLIPModel

    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    folder.mkdir()
    vocabulary = tiny.write_tokenizer(folder)
    block = {"intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
    text = {"vocab_size": vocabulary, "max_position_embeddings": TEXT, "hidden_size": 32, "eos_token_id": 2}
    vision = {"image_size": SIDE, "patch_size": 8, "hidden_size": 32}
    config = CLIPConfig(text_config={**block, **text}, vision_config={**block, **vision}, projection_dim=16)
    model = CLIPModel(config)
    randomise(model, 0)
    model.save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": SIDE},
            "crop_size": {"height": SIDE, "width": SIDE},
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )
    (folder / "README.md").write_text("---\nlicense: mit\n---\nTiny random weights.\n", encoding="utf-8")
    return folder


def randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 or name.endswith(("bias", "class_embedding")):
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Gaussian numbers; those named as a normalisation's weight lie around one."""
    generator = torch.Generator().manual_seed(seed)
    norms = ("norm1.weight", "norm2.weight", "LayerNorm.weight", "encoder.norm.weight")
    return {
        name: 0.2 * torch.randn(shape, generator=generator) + (1.0 if name.endswith(norms) else 0.0)
        for name, shape in shapes.items()
    }


def linear_shapes(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def blip_shapes(words: int, width: int = 64, text: int = 128) -> dict[str, tuple[int, ...]]:
    """Of a checkpoint in the BLIP repository's names: 2 blocks, 32 pixels a side in patches of 16."""
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, width),
        "blip.visual_encoder.pos_embed": (1, 5, width),
        "blip.visual_encoder.patch_embed.proj.weight": (width, 3, 16, 16),
        "blip.visual_encoder.patch_embed.proj.bias": (width,),
        **norm_shapes("blip.visual_encoder.norm", width),
        "blip.text_encoder.embeddings.word_embeddings.weight": (words, text),
        "blip.text_encoder.embeddings.position_embeddings.weight": (128, text),
        **norm_shapes("blip.text_encoder.embeddings.LayerNorm", text),
        **linear_shapes("blip.vision_proj", 8, width),  # of BLIP's pre-training, without use here
        **linear_shapes("blip.text_proj", 8, text),
    }
    for i in range(2):
        block = f"blip.visual_encoder.blocks.{i}"
        shapes |= norm_shapes(f"{block}.norm1", width) | norm_shapes(f"{block}.norm2", width)
        shapes |= linear_shapes(f"{block}.attn.qkv", 3 * width, width) | linear_shapes(
            f"{block}.attn.proj", width, width
        )
        shapes |= linear_shapes(f"{block}.mlp.fc1", 2 * width, width) | linear_shapes(
            f"{block}.mlp.fc2", width, 2 * width
        )
        layer = f"blip.text_encoder.encoder.layer.{i}"
        for attention, keys in (("attention", text), ("crossattention", width)):
            shapes |= linear_shapes(f"{layer}.{attention}.self.query", text, text)
            shapes |= linear_shapes(f"{layer}.{attention}.self.key", text, keys)
            shapes |= linear_shapes(f"{layer}.{attention}.self.value", text, keys)
            shapes |= linear_shapes(f"{layer}.{attention}.output.dense", text, text)
            shapes |= norm_shapes(f"{layer}.{attention}.output.LayerNorm", text)
        shapes |= linear_shapes(f"{layer}.intermediate.dense", 2 * text, text)
        shapes |= linear_shapes(f"{layer}.output.dense", text, 2 * text) | norm_shapes(
            f"{layer}.output.LayerNorm", text
        )
    for name, out, into in (("0", 32, text), ("2", 16, 32), ("4", 8, 16), ("6", 4, 8), ("7", 1, 4)):
        shapes |= linear_shapes(f"mlp.layers.{name}", out, into)
    return shapes


def write_bert_vocabulary(folder: Path) -> int:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [","]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), "view", "barrel"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return len(words)


@pytest.fixture(scope="session")
def write_blip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function from a name and further tensors' shapes to a folder with a BLIP-based checkpoint."""

    def write(name: str, more: dict[str, tuple[int, ...]] | None = None) -> Path:
        folder = tmp_path_factory.mktemp("models") / name
        folder.mkdir()
        words = write_bert_vocabulary(folder)
        tensors = random_tensors({**blip_shapes(words), **(more or {})}, 1)
        tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(128)[None]  # a buffer, as published
        save_file(tensors, folder / "model.safetensors")
        (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
        return folder

    return write


@pytest.fixture
def views() -> Callable[..., RewardInput]:
    """A function to an input of smooth random pictures."""

    def make(
        batch: int = 2, count: int = 4, size: int = 40, dtype: torch.dtype = torch.float32, prompt: str = "red barrel"
    ) -> RewardInput:
        generator = torch.Generator().manual_seed(5)
        coarse = torch.rand(batch * count, 3, 6, 6, generator=generator, dtype=dtype)
        images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
        images = images.unflatten(0, (batch, count)).contiguous()
        cameras = Cameras.orbit(torch.arange(count) * 2 * torch.pi / count, 0.1, size=size)
        return RewardInput(images, torch.ones_like(images[:, :, :1]), cameras, [prompt, "a blue car"][:batch])

    return make


@pytest.fixture
def check_gradient() -> Callable[..., None]:
    """A function that compares a reward's gradient along a random direction with central differences."""

    def check(reward: Any, x: RewardInput, step: float, tolerance: float) -> None:
        import dataclasses

        images = x.images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(dataclasses.replace(x, images=images)).sum(), images)
        per_view = gradient.abs().sum((2, 3, 4))
        assert bool((per_view > 0).all()), "a view without gradient"
        direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=images.dtype)
        with torch.no_grad():
            ends = [reward(dataclasses.replace(x, images=x.images + s * step * direction)).sum() for s in (1, -1)]
        measured, expected = float((ends[0] - ends[1]) / (2 * step)), float((gradient * direction).sum())
        assert abs(measured - expected) < tolerance * max(abs(expected), 1e-3), (measured, expected)

    return check
