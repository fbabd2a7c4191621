"""Online alignment: on-policy ratios, a reward that rises, resuming."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_mesh_lm import tiny_model
from tiny_mesh_pairs import box

from rl3d.errors import ConfigError, InputError
from rl3d.mesh_tokens import candidates, online
from rl3d.mesh_tokens.align_options import OnlineOptions
from rl3d.mesh_tokens.model import MeshLM, load_mesh_lm
from rl3d.mesh_tokens.pair_files import Shape
from rl3d.scenes.mesh import Mesh

FEW = OnlineOptions(shapes=1, group=4, steps=3, max_faces=12, lr=1e-3, warmup=1, save_every=1)


def one_box(points: int = 16) -> tuple[dict[str, Shape], dict[str, Mesh]]:
    return {"box": Shape(np.zeros((points, 6), np.float32), "box", 12)}, {"box": box(9).mesh()}


def seen_by(model: MeshLM, options: OnlineOptions, out: Path) -> list[Mapping[str, float]]:
    seen: list[Mapping[str, float]] = []
    online.align_online(model, *one_box(), options, out, progress=lambda step, of, x: seen.append(x))
    return seen


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Short sequences are rewarded; the lengths of all that were scored."""
    whole, found = candidates.measured, []

    def short(model: MeshLM, tokens: torch.Tensor, *rest: object) -> object:
        found.append(len(tokens))
        return replace(whole(model, tokens, *rest), scores={"hd": len(tokens) / 100})  # type: ignore[arg-type]

    monkeypatch.setattr(candidates, "measured", short)
    return found


ONLY = (("hd", 1.0),)


def test_the_first_step_is_on_policy(lengths: list[int], tmp_path: Path) -> None:
    first = seen_by(tiny_model(), replace(FEW, steps=1, weights=ONLY), tmp_path)[0]
    assert first["ratio_deviation"] < 1e-5 and first["clip_fraction"] == 0 and abs(first["kl"]) < 1e-6
    assert first["gradient_norm"] > 0 and 0 <= first["failed"] <= 1 and len(set(lengths)) > 1


def test_equal_candidates_teach_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = candidates.measured
    monkeypatch.setattr(candidates, "measured", lambda *a: replace(whole(*a), scores={"hd": 0.5}))
    first = seen_by(tiny_model(), replace(FEW, steps=1, weights=ONLY), tmp_path)[0]
    assert first["gradient_norm"] < 1e-6


def test_a_reward_rises(lengths: list[int], tmp_path: Path) -> None:
    options = replace(FEW, weights=ONLY, group=16, micro_batch=16, steps=14, lr=4e-3, max_faces=12, beta=0.0)
    seen_by(tiny_model(), options, tmp_path)
    assert np.mean(lengths[-48:]) < 0.75 * np.mean(lengths[:48])
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4 and page.count("<img") == 1 and "HD of what was drawn (less is better)" in page


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    online.align_online(tiny_model(), *one_box(), FEW, tmp_path / "whole")

    def stop(step: int, of: int, numbers: Mapping[str, float]) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        online.align_online(tiny_model(), *one_box(), FEW, tmp_path / "parts", progress=stop)
    online.align_online(tiny_model(), *one_box(), FEW, tmp_path / "parts", resume=True)
    whole, parts = (load_mesh_lm(tmp_path / name / "model").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_micro_batches_do_not_change_the_gradient() -> None:
    found = []
    for size in (1, 4):
        model = tiny_model()
        online.gradients(model, tiny_model(), *one_box(), replace(FEW, micro_batch=size), 0)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-3)


def test_bad_input_is_said(tmp_path: Path) -> None:
    shapes, _ = one_box()
    with pytest.raises(InputError, match="box"):
        online.align_online(tiny_model(), shapes, {}, FEW, tmp_path)
    for wrong in ({"group": 1}, {"clip": 0.0}, {"weights": (("bre", 1.0),)}, {"weights": ()}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            OnlineOptions(**wrong)  # type: ignore[arg-type]
