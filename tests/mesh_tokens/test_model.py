"""The mesh language model: its conditions, its cache, its files, and the format of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_mesh_lm import tiny_condition, tiny_model
from transformers.cache_utils import DynamicCache

from rl3d.errors import AssetError, InputError
from rl3d.mesh_tokens.around import around_of
from rl3d.mesh_tokens.condition import Condition
from rl3d.mesh_tokens.layers import KeyValues
from rl3d.mesh_tokens.model import MeshLM, load_mesh_lm


@pytest.fixture(scope="module")
def model() -> MeshLM:
    return tiny_model()


def some_tokens(model: MeshLM, batch: int = 2, length: int = 14) -> torch.Tensor:
    tokens = torch.randint(0, model.config.bins, (batch, length), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = model.config.bos_token_id
    tokens[0, 10] = model.config.tokenizer.vocabulary.turn
    return tokens


@torch.no_grad()
def logits(model: MeshLM, tokens: torch.Tensor, condition: Condition) -> torch.Tensor:
    return model(tokens, **condition.tensors()).logits


def test_every_part_of_the_condition_changes_the_answer(model: MeshLM) -> None:
    tokens, condition = some_tokens(model), tiny_condition(2)
    whole = logits(model, tokens, condition)
    for change in (
        {"points": None, "normals": None},
        {"normals": None},
        {"points": condition.points + 0.1},
        {"words": None},
        {"words": (condition.words - 1) % 3 + 2},
        {"faces": None},
        {"faces": condition.faces * 2},
    ):
        other = logits(model, tokens, replace(condition, **change))
        assert (other - whole).abs().amax((1, 2)).min() > 1e-3, change


def test_what_is_left_out_of_a_row_is_left_out(model: MeshLM) -> None:
    """A row without points, words or faces answers as a batch that has none of them."""
    tokens, condition = some_tokens(model), tiny_condition(2)
    null = torch.tensor([[1, 0, 0]] * 2)
    none = torch.zeros(2, dtype=torch.bool)
    rows = replace(condition, has_points=none, words=null, faces=torch.zeros(2, dtype=torch.int64))
    assert torch.equal(logits(model, tokens, rows), logits(model, tokens, Condition()))
    first = replace(condition, has_points=torch.tensor([True, False]))
    mixed = logits(model, tokens, first)
    assert torch.allclose(mixed[0], logits(model, tokens, condition)[0], atol=1e-6)
    assert torch.allclose(mixed[1], logits(model, tokens, replace(first, has_points=none))[1], atol=1e-6)


def test_the_order_of_points_does_not_matter_and_few_are_enough(model: MeshLM) -> None:
    tokens, condition = some_tokens(model), tiny_condition(2)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    turned = replace(condition, points=condition.points[:, order], normals=condition.normals[:, order])
    assert torch.allclose(logits(model, tokens, condition), logits(model, tokens, turned), atol=1e-5)
    few = Condition(condition.points[:, :3])
    assert logits(model, tokens, few).isfinite().all()


def test_nothing_sees_what_comes_after_it(model: MeshLM) -> None:
    tokens, condition = some_tokens(model), tiny_condition(2)
    changed = tokens.clone()
    changed[:, 9:] = model.config.pad_token_id
    before, after = logits(model, tokens, condition), logits(model, changed, condition)
    assert torch.allclose(before[:, :9], after[:, :9], atol=1e-6)
    assert (before[:, 9:] - after[:, 9:]).abs().max() > 1e-3


@pytest.mark.parametrize("make", [KeyValues, DynamicCache])
@torch.no_grad()
def test_a_cache_changes_nothing(model: MeshLM, make: type) -> None:
    """One by one, or several tokens at once after others; measured 6e-7 on logits of about 1."""
    tokens, condition = some_tokens(model), tiny_condition(2)
    whole, cache = logits(model, tokens, condition), make()
    around, parts, place = around_of(tokens, model.config.tokenizer, condition.points), [], 0
    for count in (2, 1, 1, 4, 1, 5):
        part = slice(place, place + count)
        own = {"input_ids": tokens[:, part], "around": around.at(part)}
        parts.append(model(**own, past_key_values=cache, **condition.tensors()).logits)
        place += count
    assert place == tokens.shape[1]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)
    with pytest.raises(InputError, match="around"):
        model(tokens[:, :1], past_key_values=cache)


def test_the_cache_keeps_rows_and_grows() -> None:
    cache, rows = KeyValues(), torch.arange(3.0)[:, None, None, None]
    for step in range(200):
        keys, _ = cache.update(rows + 10 * step, rows, 0)
        if step == 100:
            cache.select(torch.tensor([2, 0, 0]))
            rows = rows[[2, 0, 0]]
    assert cache.get_seq_length() == 200
    assert torch.equal(keys[:, 0, :, 0], torch.tensor([2.0, 0, 0])[:, None] + 10 * torch.arange(200.0))


def test_the_backbone_and_the_head_alone_are_the_model(model: MeshLM) -> None:
    """Trainers that skip `forward` of the whole must not lose the condition."""
    tokens, condition = some_tokens(model), tiny_condition(2)
    with torch.no_grad():
        hidden = model.base_model(input_ids=tokens, **condition.tensors()).last_hidden_state
        assert torch.equal(model.lm_head(hidden), logits(model, tokens, condition))
    assert model.base_model is model.model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_the_loss_is_that_of_the_next_token(model: MeshLM) -> None:
    tokens, condition = some_tokens(model), tiny_condition(2)
    labels = tokens.clone()
    labels[:, :5] = -100
    loss = model(tokens, labels=labels, **condition.tensors()).loss
    chosen = logits(model, tokens, condition).log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    assert float(loss.detach()) == pytest.approx(-float(chosen[:, 4:].mean()), rel=1e-5)


def test_recomputing_activations_gives_the_same_gradient() -> None:
    model, gradients = tiny_model().train(), []
    tokens = some_tokens(model)
    for recompute in (False, True):
        model.model.gradient_checkpointing = recompute
        model.zero_grad()
        model(tokens, labels=tokens, **tiny_condition(2).tensors()).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


@torch.no_grad()
def test_transformers_generate_is_the_plain_loop(model: MeshLM) -> None:
    condition = tiny_condition(2)
    begin = torch.full((2, 1), model.config.bos_token_id)
    made = model.generate(
        begin, do_sample=False, max_new_tokens=20, eos_token_id=None, pad_token_id=0, **condition.tensors()
    )
    tokens = begin
    for _ in range(20):
        tokens = torch.cat([tokens, logits(model, tokens, condition)[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, tokens)


def test_half_precision_is_close() -> None:
    """All weights in bfloat16, no autocast: measured 0.041 on logits of up to 2.45."""
    model = tiny_model()
    tokens, condition = some_tokens(model), tiny_condition(2)
    whole = logits(model, tokens, condition)
    half = logits(model.to(torch.bfloat16), tokens, condition)
    assert half.dtype == torch.float32 and (half - whole).abs().max() < 0.15


def test_padding_on_the_left_is_refused(model: MeshLM) -> None:
    tokens = some_tokens(model)
    mask = torch.ones_like(tokens)
    mask[:, -3:] = 0
    with torch.no_grad():
        assert torch.equal(model(tokens, attention_mask=mask).logits, model(tokens).logits)
    with pytest.raises(InputError, match="padded on the right"):
        model(tokens, attention_mask=mask.flip(1))


def test_files_bring_the_same_model_back(model: MeshLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    again = load_mesh_lm(tmp_path / "model")
    tokens, condition = some_tokens(model), tiny_condition(2)
    assert torch.equal(logits(again, tokens, condition), logits(model, tokens, condition))
    assert again.config.tokenizer == model.config.tokenizer and not again.training
    assert again.lm_head.weight is again.model.tokens.weight


def test_broken_files_are_one_line(model: MeshLM, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="cannot load the mesh model"):
        load_mesh_lm(tmp_path / "nowhere")
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(AssetError, match="cannot load the mesh model"):
        load_mesh_lm(tmp_path)
    weights.write_bytes(data)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(AssetError, match="do not fit"):
        load_mesh_lm(tmp_path)
    (tmp_path / "config.json").write_text(config.replace("rl3d_mesh_lm", "gpt2"))
    with pytest.raises(AssetError, match="'gpt2'"):
        load_mesh_lm(tmp_path)
