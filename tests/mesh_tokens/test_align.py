"""Preference alignment: masks from faces, the loss at the start, learning, windows, resuming."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_mesh_pairs import BINS, box, pairs_of_boxes

from rl3d.errors import ConfigError, InputError
from rl3d.mesh_tokens import align as module
from rl3d.mesh_tokens.align import align, chosen, good_tokens, pair_loss, prepared
from rl3d.mesh_tokens.align_options import AlignOptions
from rl3d.mesh_tokens.candidates import condition_of, draw_candidates, pair_set
from rl3d.mesh_tokens.model import MeshLM, MeshLMConfig, load_mesh_lm
from rl3d.mesh_tokens.pair_files import Shape, read_pair_set, write_pair_set
from rl3d.mesh_tokens.pairs import PairRule
from rl3d.mesh_tokens.sampling import SampleOptions
from rl3d.mesh_tokens.tokenizer import Tokenizer
from rl3d.scenes.mesh import Mesh


def tiny(seed: int = 0) -> MeshLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    cloud = {"anchors": 4, "neighbours": 4, "cloud_layers": 1, "cloud_points": 16}
    words = ["<pad>", "<null>", "red", "box"]
    return MeshLM(MeshLMConfig(bins=BINS, words=words, **sizes, **cloud)).eval()


def loss_of(model: MeshLM, options: AlignOptions) -> tuple[float, dict[str, float]]:
    pairs = pairs_of_boxes()
    rows = prepared(model, pairs, options)
    loss, numbers = pair_loss(model, [(rows[p.winner], rows[p.loser]) for p in pairs.pairs], torch.zeros(2), options)
    return float(loss.detach()), numbers


def test_a_token_is_good_where_all_its_faces_are() -> None:
    tokenizer = Tokenizer("adjacent", BINS)
    tokens = tokenizer.encode(box(5))
    decoded = tokenizer.decode(tokens)
    quality = np.ones(12)
    quality[4] = 0.1
    good = good_tokens(tokens, quality, tokenizer, 0.5)
    on_bad = {int(t) for t, f in decoded.token_faces if f == 4}
    assert {i + 1 for i in np.flatnonzero(~good)} == on_bad and len(on_bad) >= 9
    assert good[-1]  # the end
    assert good_tokens(tokens, np.ones(12), tokenizer, 0.5).all()
    assert not good_tokens(tokens, np.zeros(0), tokenizer, 0.5).any()
    with pytest.raises(InputError, match="12 faces, but 3"):
        good_tokens(tokens, np.ones(3), tokenizer, 0.5)


@pytest.mark.parametrize("masked", [True, False])
def test_the_loss_is_log_two_at_the_reference(masked: bool) -> None:
    loss, numbers = loss_of(tiny(), AlignOptions(masked=masked, sft=0.0))
    assert loss == pytest.approx(math.log(2), abs=1e-5) and abs(numbers["margin"]) < 1e-4
    length = len(pairs_of_boxes().candidates["a/small"].tokens) - 1
    assert numbers["tokens_winner"] == length
    assert numbers["tokens_loser"] == (pytest.approx(length) if not masked else pytest.approx(length / 2, rel=0.35))


def test_masks_decide_which_tokens_have_a_gradient() -> None:
    model, options = tiny(), AlignOptions(sft=0.0)
    pairs = pairs_of_boxes()
    rows = prepared(model, pairs, options)
    reached: list[torch.Tensor] = []

    def watched(*args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs, real = whole(*args, **kwargs)  # type: ignore[arg-type]
        log_probs.register_hook(lambda gradient: reached.append(gradient.clone()))
        return log_probs, real

    whole = module.sequence_log_probs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sequence_log_probs", watched)
        loss, _ = pair_loss(model, [(rows["a/small"], rows["a/large"])], torch.zeros(1), options)
    loss.backward()
    winner, loser = reached[0]
    assert bool((winner != 0).all()) and torch.equal(loser != 0, ~rows["a/large"].good)
    assert bool((winner <= 0).all()) and bool((loser >= 0).all())  # up with the winner, down with bad faces


def test_a_window_cuts_both_sides_at_the_same_places() -> None:
    options = AlignOptions(masked=False, sft=0.0, window=7)
    _, numbers = loss_of(tiny(), options)
    assert numbers["tokens_winner"] == numbers["tokens_loser"] == 7
    _, numbers = loss_of(tiny(), replace(options, window=10_000))
    assert numbers["tokens_winner"] == len(pairs_of_boxes().candidates["a/small"].tokens) - 1


def test_micro_batches_do_not_change_the_gradient() -> None:
    gradients = []
    for size in (1, 2):
        model, options = tiny(), AlignOptions(pairs=2, micro_batch=size)
        rows = prepared(model, pairs_of_boxes(), options)
        duels = [(rows[p.winner], rows[p.loser]) for p in pairs_of_boxes().pairs]
        module.gradients(model, duels, options, 0)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("masked", [True, False])
def test_winners_become_likelier_than_losers(masked: bool, tmp_path: Path) -> None:
    seen: list[Mapping[str, float]] = []
    options = AlignOptions(masked=masked, lr=1e-3, steps=12, pairs=2, beta=0.05)
    folder = align(tiny(), pairs_of_boxes(), options, tmp_path / "run", progress=lambda s, n, x: seen.append(x))
    assert seen[0]["margin"] == pytest.approx(0, abs=1e-4) and seen[-1]["margin"] > 0.3
    assert seen[-1]["accuracy"] == 1 and seen[-1]["nll"] < seen[0]["nll"]
    tuned = load_mesh_lm(folder)
    rows = prepared(tiny(), pairs_of_boxes(), options)  # the reference's
    duels = [(rows[p.winner], rows[p.loser]) for p in pairs_of_boxes().pairs]
    assert pair_loss(tuned, duels, torch.zeros(2), options)[1]["margin"] > 0.3
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["pairs"] == 2 and report["by"] == {"metrics": 2, "human": 0} and report["warnings"] == []


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    options = AlignOptions(lr=1e-3, steps=5, pairs=1, save_every=2)
    align(tiny(), pairs_of_boxes(), options, tmp_path / "whole")

    def stop(step: int, of: int, numbers: Mapping[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align(tiny(), pairs_of_boxes(), options, tmp_path / "parts", progress=stop)
    assert not (tmp_path / "parts" / "model").exists()
    with pytest.raises(ConfigError):
        align(tiny(), pairs_of_boxes(), replace(options, beta=0.2), tmp_path / "parts", resume=True)
    align(tiny(), pairs_of_boxes(), options, tmp_path / "parts", resume=True)
    whole, parts = (load_mesh_lm(tmp_path / name / "model").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    rows = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5]


def test_every_pair_is_shown_once_an_epoch() -> None:
    options = AlignOptions(pairs=3)
    shown = [i for step in range(4) for i in chosen(6, options, step)]
    assert sorted(shown[:6]) == sorted(shown[6:]) == list(range(6)) and shown[:6] != shown[6:]


def test_bad_sets_and_options_say_so(tmp_path: Path) -> None:
    whole = pairs_of_boxes()
    with pytest.raises(InputError, match="no pairs"):
        prepared(tiny(), replace(whole, pairs=()), AlignOptions())
    other = replace(whole.candidates["a/small"], tokens=Tokenizer("raw", BINS).encode(box(3)).astype(np.int32))
    raw = replace(whole, candidates={**whole.candidates, "a/small": other})
    with pytest.raises(InputError, match="faces, but"):
        prepared(tiny(), raw, AlignOptions())
    for wrong in ({"beta": 0.0}, {"steps": 0}, {"good_above": 2.0}, {"window": -1}, {"lr": math.nan}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            AlignOptions(**wrong)  # type: ignore[arg-type]
    shapes = [Shape(np.zeros((n, 6), np.float32), "", 3) for n in (4, 5)]
    with pytest.raises(InputError, match="one number of points"):
        condition_of(shapes, tiny().config)


def test_drawn_candidates_are_scored_and_make_a_set(tmp_path: Path) -> None:
    model, mesh = tiny(), box(9).mesh()
    shapes = {"box": Shape(np.zeros((16, 6), np.float32), "red box", 12)}
    options = SampleOptions(temperature=1.0, top_p=1.0, max_faces=40)
    drawn = draw_candidates(model, shapes, {"box": mesh}, 6, options, 0)
    again = draw_candidates(model, shapes, {"box": mesh}, 6, options, 0)
    assert list(drawn) == [f"box/{i}" for i in range(6)]
    for name, one in drawn.items():
        assert np.array_equal(one.tokens, again[name].tokens)
        assert set(one.scores) == {"ber", "ts", "hd", "cd"} and all(map(math.isfinite, one.scores.values()))
        if one.failed:
            assert one.scores == {"ber": 1.0, "ts": 0.0, "hd": 1.0, "cd": 1.0}
        else:
            assert len(good_tokens(one.tokens, one.quality, model.config.tokenizer, 0.5)) == len(one.tokens) - 1
    made = pair_set(shapes, drawn, PairRule(metrics=("cd",), ties=(), band=(0.0, 10.0)), {"bins": BINS})
    write_pair_set(tmp_path, made)
    assert read_pair_set(tmp_path).pairs == made.pairs
    alone = draw_candidates(model, shapes, {}, 2, options, 0)
    assert all(set(c.scores) == {"ber", "ts"} for c in alone.values())
    with pytest.raises(InputError, match="no face with an area"):
        draw_candidates(model, shapes, {"box": Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))}, 1, options, 0)


def test_winners_that_become_less_likely_ring(tmp_path: Path) -> None:
    rows = [{"step": s, "margin": 0.1 * s, "winner": 0.1 - 0.05 * s} for s in range(1, 11)]
    assert module.displaced(rows) == [5, 6, 7, 8, 9, 10]  # the mean of 1 ... 5 is 0.1 - 0.15
    assert module.displaced([{**r, "winner": 0.1} for r in rows]) == []
    assert module.displaced([{**r, "margin": -0.1} for r in rows]) == []
    notes: list[str] = []
    upside = replace(
        pairs_of_boxes(), pairs=tuple(replace(p, winner=p.loser, loser=p.winner) for p in pairs_of_boxes().pairs)
    )
    options = AlignOptions(masked=False, sft=0.0, lr=1e-3, steps=8, pairs=2, beta=0.05)
    align(tiny(), upside, options, tmp_path / "run", note=notes.append)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (len(notes) == 1) == bool(report["displaced"]) == bool(report["warnings"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") == 6 and page.count("<img") == 2 and "red box, asked for with 12 faces" in page
