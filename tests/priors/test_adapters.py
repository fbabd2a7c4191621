"""Adapters: nothing changes at first, files come back the same, another base is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_world import random_model, random_prior

from rl3d.errors import AssetError, InputError
from rl3d.priors import load
from rl3d.priors.adapters import (
    CONFIG,
    FACTS,
    WEIGHTS,
    LoraOptions,
    attach,
    fingerprint,
    reference,
    save_adapter,
    swapped,
)
from rl3d.priors.embedded import EmbeddedPrior, Vocabulary, new_scheduler


def shown(prior: EmbeddedPrior) -> torch.Tensor:
    x = torch.randn(1, 4, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return prior.predict_x0(x, torch.tensor([0.6]), prior.encode_prompt("a red box"), prior.cameras(0.0, 0.2))[0]


def trained(prior: EmbeddedPrior, amount: float = 0.5) -> None:
    with torch.no_grad():
        for name, tensor in attach(prior, LoraOptions(rank=3, alpha=6.0), seed=4).items():
            if "lora_B" in name:
                tensor.normal_(generator=torch.Generator().manual_seed(5)).mul_(amount)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    random_prior().save_pretrained(tmp_path / "base", dtype=torch.float32)
    return tmp_path / "base"


def test_a_fresh_adapter_changes_nothing_and_the_seed_decides_it() -> None:
    plain = shown(random_prior())
    prior = random_prior()
    first = {k: v.detach().clone() for k, v in attach(prior, LoraOptions(), seed=1).items()}
    assert torch.equal(shown(prior), plain)
    again, other = (attach(random_prior(), LoraOptions(), seed=seed) for seed in (1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_off_it_is_the_base_again_and_values_can_be_swapped() -> None:
    plain, prior = shown(random_prior()), random_prior()
    trained(prior)
    moved = shown(prior)
    assert float((moved - plain).abs().max()) > 1e-3
    with reference(prior.network):
        assert torch.equal(shown(prior), plain)
    values = {n: torch.zeros_like(p) for n, p in prior.network.named_parameters() if ".lora_" in n}
    with swapped(prior.network, values):
        assert torch.equal(shown(prior), plain)
    assert torch.equal(shown(prior), moved)


def test_a_saved_adapter_is_a_prior(base: Path, tmp_path: Path) -> None:
    prior = load(str(base))
    assert isinstance(prior, EmbeddedPrior)
    trained(prior)
    save_adapter(prior, tmp_path / "tuned", str(base), {"algorithm": "none"})
    again = load(str(tmp_path / "tuned"))
    assert isinstance(again, EmbeddedPrior)
    assert torch.equal(shown(again), shown(prior))
    assert not any(p.requires_grad for p in again.network.parameters())
    assert again.linears().keys() and not any("lora" in name for name in again.linears())
    # peft's own files: another program can read them
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(tmp_path / "tuned"))
    assert (config.r, config.lora_alpha) == (3, 6.0)


def test_the_fingerprint_knows_the_base_and_not_its_precision() -> None:
    one, half = random_prior(), random_prior(dtype=torch.bfloat16)
    assert fingerprint(one.network) == fingerprint(half.network)
    known = fingerprint(one.network)
    attach(one, LoraOptions())
    assert fingerprint(one.network) == known
    with torch.no_grad():
        half.network.patch_in.weight[0, 0] += 1
    assert fingerprint(half.network) != known


def test_wrong_adapters_are_named(base: Path, tmp_path: Path) -> None:
    prior = load(str(base))
    assert isinstance(prior, EmbeddedPrior)
    trained(prior)
    with pytest.raises(InputError, match="carries an adapter already"):
        attach(prior, LoraOptions())
    tuned = tmp_path / "tuned"
    save_adapter(prior, tuned, str(base), {})

    model = random_model()
    with torch.no_grad():
        model.patch_in.weight[0, 0] += 1
    words = prior.vocabulary.words
    EmbeddedPrior(model, Vocabulary(words), new_scheduler(), "x", torch.device("cpu"), torch.float32).save_pretrained(
        base, dtype=torch.float32
    )
    with pytest.raises(AssetError, match="trained on another base model"):
        load(str(tuned))
    random_prior().save_pretrained(base, dtype=torch.float32)
    load(str(tuned))
    (tuned / WEIGHTS).write_bytes((tuned / WEIGHTS).read_bytes()[:100])
    with pytest.raises(AssetError, match="cannot read the adapter"):
        load(str(tuned))
    config = json.loads((tuned / CONFIG).read_text())
    (tuned / CONFIG).write_text(json.dumps({**config, "r": "four"}))
    with pytest.raises(AssetError, match="cannot read the adapter"):
        load(str(tuned))
    (tuned / FACTS).unlink()
    with pytest.raises(AssetError, match="no adapter of rl3d"):
        load(str(tuned))
    with pytest.raises(InputError, match="rank >= 1"):
        LoraOptions(rank=0)
