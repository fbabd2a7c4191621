"""TRL's DPOTrainer on our pairs: the same loss as ours, the condition and the grammar within it, a step that learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_mesh_lm import tiny_model
from tiny_mesh_pairs import pairs_of_boxes

from rl3d.mesh_tokens.align import pair_loss, prepared
from rl3d.mesh_tokens.align_options import AlignOptions
from rl3d.mesh_tokens.model import MeshLM, load_mesh_lm
from rl3d.mesh_tokens.pair_files import PairSet

pytest.importorskip("trl", reason="TRL is not installed (the extra trl)")

from rl3d.mesh_tokens.trl_adapter import SupportedMeshLM, mesh_dpo_trainer


def moved(model: MeshLM) -> MeshLM:
    """A policy some way from the reference."""
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.02 * torch.randn_like(tensor))
    return model


def trl_loss(pairs: PairSet, options: AlignOptions, out: Path) -> float:
    trainer = mesh_dpo_trainer(tiny_model(), pairs, options, out, use_cpu=True)
    trainer.model.load_state_dict(moved(tiny_model()).state_dict())
    batch: Any = trainer.data_collator([{"pair": i} for i in range(len(pairs.pairs))])
    return float(trainer.compute_loss(trainer.model, batch).detach())


def our_loss(pairs: PairSet, options: AlignOptions) -> float:
    rows = prepared(tiny_model(), pairs, options)
    duels = [(rows[p.winner], rows[p.loser]) for p in pairs.pairs]
    return float(pair_loss(moved(tiny_model()), duels, torch.zeros(len(duels)), options)[0].detach())


@pytest.mark.parametrize(
    "options",
    [
        AlignOptions(masked=True, sft=0.0),
        AlignOptions(masked=False, sft=0.0),
        AlignOptions(masked=False, sft=0.5),
        AlignOptions(masked=True, sft=0.0, reduce="mean", beta=2.0),
    ],
    ids=["m-dpo", "dpo", "dpo and sft", "m-dpo by tokens"],
)
def test_the_loss_is_ours(options: AlignOptions, tmp_path: Path) -> None:
    ours = our_loss(pairs_of_boxes(), options)
    start = 0.693147 + (options.sft and 3.0)
    assert abs(ours - start) > 1e-2  # the policy is not the reference
    assert trl_loss(pairs_of_boxes(), options, tmp_path) == pytest.approx(ours, rel=1e-5)


def test_another_condition_is_another_loss(tmp_path: Path) -> None:
    pairs, options = pairs_of_boxes(), AlignOptions(sft=0.0)
    before = trl_loss(pairs, options, tmp_path)
    for change in ({"points": 0.5 * pairs.shapes["a"].points}, {"caption": "barrel"}, {"faces": 19}):
        shapes = {**pairs.shapes, "a": replace(pairs.shapes["a"], **change)}
        assert abs(trl_loss(replace(pairs, shapes=shapes), options, tmp_path) - before) > 1e-4, change


def test_the_grammar_is_in_the_logits() -> None:
    pairs = pairs_of_boxes()
    tokens = torch.from_numpy(pairs.candidates["a/small"].tokens.astype("int64"))[None]
    model = tiny_model()
    masked, plain = SupportedMeshLM.of(model)(tokens).logits[0], model(tokens).logits[0]
    assert masked[:8].argmax(1).max() < model.config.bins  # a whole face begins: nothing but coordinates
    away = masked < -5e3
    assert 0 < away.float().mean() < 1
    torch.testing.assert_close(masked[~away], plain[~away])


def test_it_trains_and_saves_a_mesh_model(tmp_path: Path) -> None:
    options = AlignOptions(steps=4, pairs=2, micro_batch=2, lr=1e-3, warmup=0, beta=0.05)
    trainer = mesh_dpo_trainer(tiny_model(), pairs_of_boxes(), options, tmp_path, use_cpu=True, disable_tqdm=True)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    rows = prepared(tiny_model(), pairs_of_boxes(), options)
    duels = [(rows[p.winner], rows[p.loser]) for p in pairs_of_boxes().pairs]
    numbers = pair_loss(load_mesh_lm(tmp_path / "model"), duels, torch.zeros(2), options)[1]
    assert numbers["margin"] > 0.05 and numbers["accuracy"] == 1
