"""Drafts that several workers share; the real processes are in tests/cli/test_workers_share.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_options import TINY_DRAFT
from tiny_world import random_prior

from rl3d.errors import AssetError, ConfigError, InputError
from rl3d.priors.embedded import EmbeddedPrior
from rl3d.progress import Progress
from rl3d.reconstruct import load_reconstructor
from rl3d.reconstruct.feedforward import FeedForwardConfig, ReconstructorModel, save_reconstructor
from rl3d.runs import read_metrics
from rl3d.text_to_3d import drafts, finish
from rl3d.text_to_3d.generate import generate, help_generate
from rl3d.workers import Worker

TINY = replace(TINY_DRAFT, best_of=3)


@pytest.fixture(autouse=True, scope="module")
def judges() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "score_asset", lambda prompt, mesh: {})
        yield


@pytest.fixture(scope="module")
def prior() -> EmbeddedPrior:
    return random_prior()


@pytest.fixture(scope="module")
def alone(prior: EmbeddedPrior, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "alone"
    generate("a red box", TINY, out, prior=prior)
    return out


def assert_same(out: Path, alone: Path) -> None:
    names = sorted(p.name for p in (alone / "checkpoints").iterdir())
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == names  # no lock, no folder of a helper
    for name in ("asset.glb", "asset.ply", *(f"checkpoints/{name}" for name in names if name != "mesh.json")):
        assert (out / name).read_bytes() == (alone / name).read_bytes(), name
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (out, alone)]
    kept = [sorted((r["stage"], r["step"], r["loss"]) for r in each) for each in rows]
    assert kept[0] == kept[1] and len(kept[0]) == 3


def test_the_first_takes_in_what_a_helper_made(
    prior: EmbeddedPrior, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The helper makes all three drafts but the one in which it fails, before the first worker gets to any."""
    original, by_helper, notes = drafts.draft, [], []

    def draft(run: Any, *args: Any) -> None:
        if run.folder != tmp_path:
            by_helper.append(args[4])
            if args[4] == 1:
                original(run, *args)
                raise InputError("the disk was full for a moment")
        original(run, *args)

    def meet(self: Worker) -> bool:
        if self.first:
            helper = Worker(1, 2)
            monkeypatch.setattr(Progress, "note", lambda self, text: notes.append(text))
            help_generate("a red box", TINY, tmp_path, worker=helper, prior=prior)
        return True

    monkeypatch.setattr(drafts, "draft", draft)
    monkeypatch.setattr(Worker, "meet", meet)
    report = generate("a red box", TINY, tmp_path, prior=prior, worker=Worker(0, 2)).report
    assert by_helper == [0, 1, 2]
    assert "draft 1 is left to the first worker: the disk was full for a moment" in notes
    assert_same(tmp_path, alone)
    assert {f"lift {i}" for i in range(3)} | {"choose", "mesh"} <= set(report["stages"])
    assert all(report["stages"][f"lift {i}"]["gaussians"] > 0 for i in range(3))


def test_the_first_makes_the_draft_of_a_helper_that_was_killed(
    prior: EmbeddedPrior, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_holder: Callable
) -> None:
    held: list[Any] = []

    def meet(self: Worker) -> bool:
        held.append(killed_holder(tmp_path / "checkpoints" / "draft-1.lock", seconds=1.5))
        held[0].__enter__()
        return False

    monkeypatch.setattr(Worker, "meet", meet)
    generate("a red box", TINY, tmp_path, prior=prior, worker=Worker(0, 2))
    held[0].__exit__(None, None, None)
    assert_same(tmp_path, alone)


def test_a_helper_makes_no_draft_that_is_done_or_that_it_does_not_get_to(
    prior: EmbeddedPrior, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("nothing is left to make")

    monkeypatch.setattr(drafts, "draft", refuse)
    monkeypatch.setattr(Worker, "meet", lambda self: True)
    help_generate("a red box", TINY, alone, worker=Worker(1, 2), prior=prior)
    monkeypatch.setattr(Worker, "meet", lambda self: False)  # the first has ended
    help_generate("a red box", TINY, tmp_path / "none", worker=Worker(1, 2), prior=prior)
    monkeypatch.setattr(Worker, "meet", refuse)  # one draft is nothing to share, nobody waits
    help_generate("a red box", replace(TINY, best_of=1), tmp_path / "none", worker=Worker(1, 2), prior=prior)
    assert not (tmp_path / "none").exists()


def test_a_lift_may_start_from_a_network(prior: EmbeddedPrior, tmp_path: Path) -> None:
    """Random weights; without a step of the fit the draft is the network's own scene."""
    torch.manual_seed(0)
    config = FeedForwardConfig(16, 8, 16, 1, 2, features=8, hidden=16, gaussians=60, grid=16)
    model = ReconstructorModel(config)
    torch.nn.init.normal_(model.out.weight, std=0.3)
    save_reconstructor(model, tmp_path / "net", torch.float32)
    cameras = prior.cameras(0.0, 0.35).to(dtype=torch.float32)
    images = torch.zeros(4, 4, 16, 16)
    images[:, :, 4:12, 5:11] = torch.tensor([0.8, 0.2, 0.2, 1.0])[:, None, None]
    options = replace(TINY, lift=replace(TINY.lift, steps=0, reconstructor=f"feedforward:{tmp_path / 'net'}"))
    options = replace(options, sample=replace(options.sample, rings=1))
    prompt = prior.encode_prompt("a red box")
    state, _ = drafts.lift_views(prior, prompt, images, cameras, options, 0, lambda step, loss: None)
    (scene,) = load_reconstructor(tmp_path / "net")(images[None], cameras)
    assert torch.equal(state.tensors["means"], scene.means) and len(scene) == 60
    hull = replace(options, lift=replace(options.lift, reconstructor="hull"))
    other, _ = drafts.lift_views(prior, prompt, images, cameras, hull, 0, lambda step, loss: None)
    assert not torch.equal(other.tensors["means"][:60], scene.means)
    out = generate("a red box", replace(options, best_of=1), tmp_path / "run", prior=prior)
    assert out is not None and (tmp_path / "run" / "asset.glb").is_file()


def test_an_unknown_or_missing_network_is_one_clear_error(prior: EmbeddedPrior, tmp_path: Path) -> None:
    for wrong in ("feed-forward", "hull:x", ""):
        with pytest.raises(ConfigError, match=r"lift.reconstructor must be hull"):
            replace(TINY.lift, reconstructor=wrong)
    missing = replace(TINY, lift=replace(TINY.lift, reconstructor=f"feedforward:{tmp_path / 'nothing'}"))
    with pytest.raises(AssetError, match=r"reconstructor in .* cannot be loaded"):
        drafts.reconstructor_of(missing, torch.device("cpu"))
