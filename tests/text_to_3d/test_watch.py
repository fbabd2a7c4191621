"""Watching real (tiny) runs: nothing is touched, resuming is exact, a hack is caught, a broken guard loses no run."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import random_prior

from rl3d.errors import AssetError, ConfigError, InputError
from rl3d.priors.embedded import EmbeddedPrior
from rl3d.reconstruct.splats import SplatState
from rl3d.render.frames import Frames
from rl3d.rewards import load, reward, weighted_sum
from rl3d.rewards.protocol import Reward, RewardInput
from rl3d.rewards.tidy import TIDY
from rl3d.runs import read_metrics
from rl3d.scenes import Gaussians
from rl3d.text_to_3d import looks, watch
from rl3d.text_to_3d.alarms import GuardOptions
from rl3d.text_to_3d.generate import generate
from rl3d.text_to_3d.method_options import DreamCSOptions, MethodOptions, RewardOptions
from rl3d.text_to_3d.methods import guide_for
from rl3d.text_to_3d.options import DistillOptions, GenerateOptions, LiftOptions, SampleOptions
from rl3d.text_to_3d.schedule import Schedule
from rl3d.text_to_3d.watch import guard_for

module = sys.modules["rl3d.text_to_3d.generate"]
TINY = GenerateOptions(
    seed=1,
    sample=SampleOptions(steps=1, candidates=1, rings=1),
    lift=LiftOptions(steps=4, gaussians=200, grid=16),
    distill=DistillOptions(steps=6, save_every=2),
    guard=GuardOptions(every=1),
)
FINISHED = {"mesh": {"faces": 4}, "export": {}, "judges": {}, "warnings": []}


def redness(x: RewardInput) -> torch.Tensor:
    return x.images[:, :, 0].mean((1, 2, 3)) - x.images[:, :, 1:].mean((1, 2, 3, 4))


ENOUGH = 0.388  # redness that `HACKED` has after 12 of its steps; 0.003 at the start, 0.76 at the end
RED = reward(views=None, name="redness")(redness)
STRONG = RewardOptions(weight=Schedule(((0.0, 1e4),)), balance="none", cap=1e6)  # the prior has no say any more
HACKED = replace(
    TINY,
    method=MethodOptions(name="dreamreward", reward=STRONG),
    distill=DistillOptions(steps=40, lr_colours=0.02, save_every=3, anchor_weight=0.0),
    guard=GuardOptions(every=2, reward="anti", patience=8),
)


@pytest.fixture(autouse=True)
def no_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a run, which has its own tests, is left out."""
    monkeypatch.setattr(module, "finish_asset", lambda *_, **__: json.loads(json.dumps(FINISHED)))


@pytest.fixture(scope="module")
def prior() -> EmbeddedPrior:
    return random_prior()


@pytest.fixture
def anti(monkeypatch: pytest.MonkeyPatch) -> Callable[[Reward], None]:
    """Makes a reward known as "anti" to the guard's loader."""

    def known(guard: Reward) -> None:
        monkeypatch.setattr(watch, "load", lambda name, device="cpu": guard if name == "anti" else load(name, device))

    known(reward(views=None, name="anti")(lambda x: -(redness(x) - ENOUGH).abs()))
    return known


class Stop(Exception):
    pass


def rows(out: Path, stage: str) -> list[dict[str, Any]]:
    return [{**r, "seconds": 0} for r in read_metrics(out / "metrics.jsonl") if r["stage"] == stage]


def same(a: Gaussians | None, b: Gaussians | None) -> bool:
    assert a is not None and b is not None
    return len(a) == len(b) and all(torch.equal(v, getattr(b, k)) for k, v in vars(a).items())


def test_looking_leaves_the_default_run_as_it_was(prior: EmbeddedPrior, tmp_path: Path) -> None:
    """To the last bit, with a guard that throws dice of its own; and nothing is stopped or kept aside."""
    blind = generate("a red box", replace(TINY, guard=GuardOptions(every=0)), tmp_path / "blind", prior=prior)
    seen = generate("a red box", TINY, tmp_path / "seen", prior=prior)
    assert same(blind.gaussians, seen.gaussians)
    assert rows(tmp_path / "blind", "distill") == rows(tmp_path / "seen", "distill")
    assert "guard" not in blind.report and rows(tmp_path / "blind", "guard") == []
    found = seen.report["guard"]
    assert (found["guard"], found["reward"], found["stop"], found["stopped_at"]) == ("judge", None, False, None)
    assert [r["step"] for r in rows(tmp_path / "seen", "guard")] == list(range(7)) and found["kept_step"] == 6
    assert not (tmp_path / "seen" / "checkpoints" / "best.safetensors").exists()


def test_a_look_takes_no_random_numbers(prior: EmbeddedPrior, anti: Any, tmp_path: Path) -> None:
    anti(reward(views=None, name="dice")(lambda x: torch.rand(len(x.prompts))))
    options = replace(TINY, guard=GuardOptions(every=1, reward="anti"), distill=replace(TINY.distill, steps=2))
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    report = generate("a red box", options, tmp_path, prior=prior).report
    assert torch.equal(torch.rand(3), want) and report["guard"]["guard"] == "dice"


def test_a_hack_rings_stops_the_run_and_the_best_by_the_guard_is_kept(
    prior: EmbeddedPrior, anti: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Redness alone is optimised; the guard likes some of it, so that the best is early and the last the worst."""
    from rl3d.progress import Progress

    result = generate("a red box", HACKED, tmp_path / "on", prior=prior, reward=RED, progress=Progress())
    found = result.report["guard"]
    assert "reward up, guard down" in [alarm["kind"] for alarm in found["alarms"]]
    assert "alarm: reward up, guard down at step" in capsys.readouterr().err
    assert (found["kept_step"], found["best_step"], found["stopped_at"]) == (12, 12, 18)
    assert "while the guard fell" in found["stopped_because"]
    best = SplatState.load(tmp_path / "on" / "checkpoints" / "best.safetensors", module.distill_rates(HACKED.distill))
    assert best.step == found["kept_step"] and same(result.gaussians, best.gaussians())
    assert rows(tmp_path / "on", "distill")[-1]["step"] == found["stopped_at"]
    page = (tmp_path / "on" / "report.html").read_text()
    assert all(escape(f"{alarm['kind']}: {alarm['message']}") in page for alarm in found["alarms"]) and "<svg" in page

    off = replace(HACKED, guard=replace(HACKED.guard, stop="off"))
    last = generate("a red box", off, tmp_path / "off", prior=prior, reward=RED)
    assert last.report["guard"]["kept_step"] == 40 and last.report["guard"]["stopped_at"] is None
    assert float(last.gaussians.sh[:, 0, 0].mean()) > float(result.gaussians.sh[:, 0, 0].mean())  # redder
    assert [alarm["kind"] for alarm in last.report["guard"]["alarms"]]  # it rings all the same


def test_the_lifted_scene_is_kept_where_the_guard_likes_nothing_later(
    prior: EmbeddedPrior, anti: Any, tmp_path: Path
) -> None:
    anti(reward(views=None, name="less")(lambda x: -redness(x)))
    options = replace(HACKED, guard=GuardOptions(every=4, reward="anti", patience=20))
    for resume in (False, True):
        result = generate("a red box", options, tmp_path, prior=prior, reward=RED, resume=resume)
        found = result.report["guard"]
        assert (found["kept_step"], found["best_step"], found["stopped_at"]) == (0, 0, 28)
        lifted = SplatState.load(tmp_path / "checkpoints" / "lift-0.safetensors", module.distill_rates(options.distill))
        assert same(result.gaussians, lifted.gaussians())


@pytest.mark.parametrize("count", [1, 9, 13, 17])
def test_a_killed_run_resumes_to_the_same_end(
    count: int, prior: EmbeddedPrior, anti: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step `count`, before and after looks and checkpoints: scene, history, kept state, stop, all equal."""
    whole = generate("a red box", HACKED, tmp_path / "whole", prior=prior, reward=RED)
    assert whole.report["guard"]["stopped_at"] > count
    steps, original = [], module.distill_step

    def killed(*args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        if len(steps) == count + 1:
            raise Stop
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, "distill_step", killed)
        with pytest.raises(Stop):
            generate("a red box", HACKED, tmp_path / "killed", prior=prior, reward=RED)
    resumed = generate("a red box", HACKED, tmp_path / "killed", prior=prior, reward=RED, resume=True)
    assert same(whole.gaussians, resumed.gaussians) and whole.report["guard"] == resumed.report["guard"]
    for stage in ("distill", "guard"):
        assert rows(tmp_path / "whole", stage) == rows(tmp_path / "killed", stage)
    again = generate("a red box", HACKED, tmp_path / "killed", prior=prior, reward=RED, resume=True)
    assert same(whole.gaussians, again.gaussians) and again.report["guard"] == whole.report["guard"]


def test_a_lost_best_is_an_error_and_never_another_asset(prior: EmbeddedPrior, anti: Any, tmp_path: Path) -> None:
    generate("a red box", HACKED, tmp_path, prior=prior, reward=RED)
    checkpoints = tmp_path / "checkpoints"
    shutil.copy(checkpoints / "distill.safetensors", checkpoints / "best.safetensors")
    with pytest.raises(AssetError, match=r"best\.safetensors holds step .*begin anew with --overwrite"):
        generate("a red box", HACKED, tmp_path, prior=prior, reward=RED, resume=True)
    (checkpoints / "best.safetensors").unlink()
    with pytest.raises(AssetError, match=r"best\.safetensors"):
        generate("a red box", HACKED, tmp_path, prior=prior, reward=RED, resume=True)


def broken(kind: str) -> Reward:
    calls = []

    def guard(x: RewardInput) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 8 and kind == "raises":  # two of them are the empty views', two a look
            raise RuntimeError("the judge's server is gone")
        return redness(x) * (math.nan if len(calls) > 8 else 1.0)

    return reward(views=None, name="mine")(guard)


@pytest.mark.parametrize("kind", ["raises", "nan"])
def test_a_guard_that_breaks_is_set_aside_and_the_run_goes_on(
    kind: str, prior: EmbeddedPrior, anti: Any, tmp_path: Path
) -> None:
    anti(broken(kind))
    options = replace(HACKED, distill=replace(HACKED.distill, steps=8))
    result = generate("a red box", options, tmp_path, prior=prior, reward=RED)
    found = result.report["guard"]
    assert found["set_aside_at"] == 6 and found["stopped_at"] is None and found["kept_step"] == 8
    reason = "the judge's server is gone" if kind == "raises" else "scores are finite"
    (warning,) = [w for w in result.report["warnings"] if "set aside" in w]
    assert warning.startswith("guard 'mine' was set aside at step 6") and reason in warning
    assert [("guard" in r, "guard_error" in r) for r in rows(tmp_path, "guard")] == [
        (True, False),
        (True, False),
        (True, False),
        (False, True),
        (False, False),
    ]


def choose(options: GenerateOptions, prior: EmbeddedPrior, own: Reward | None = None, prompt: str = "a red box") -> Any:
    return guard_for(options, prior, prompt, guide_for(options.method, prior, own), "cpu")


def test_who_guards(prior: EmbeddedPrior) -> None:
    dpo = replace(TINY, method=MethodOptions(name="dreamdpo"))
    assert choose(TINY, prior).reward.name == "judge"
    assert choose(dpo, prior, RED).reward.name == "judge"
    alone = choose(dpo, prior)  # the judge is optimised, and Reward3D-mini has no weights yet
    assert alone.reward is TIDY and "formula" in alone.why
    assert choose(TINY, prior, prompt="zyzzyva").reward is TIDY
    assert choose(replace(TINY, guard=GuardOptions(every=0)), prior) is None
    assert choose(replace(TINY, distill=DistillOptions(steps=0)), prior) is None
    mixed = weighted_sum([load("judge"), RED], [1.0, 0.5])
    assert choose(dpo, prior, mixed).reward is TIDY  # the judge is in it


def test_a_guard_that_cannot_guard_is_refused(prior: EmbeddedPrior) -> None:
    named = replace(TINY, method=MethodOptions(name="dreamdpo"), guard=GuardOptions(reward="judge"))
    with pytest.raises(ConfigError, match=r"guard\.reward 'judge' is what is optimised \(judge\)"):
        choose(named, prior)
    with pytest.raises(ConfigError, match=r"what is optimised \(standardised judge\)"):
        from rl3d.rewards import standardised

        choose(named, prior, standardised(load("judge"), mean=0.0, std=1.0))
    with pytest.raises(InputError, match="the gold judge only measures"):
        choose(replace(TINY, guard=GuardOptions(reward="gold")), prior)
    with pytest.raises(InputError, match="no embedded reward is called 'jugde'"):
        choose(replace(TINY, guard=GuardOptions(reward="jugde")), prior)
    with pytest.raises(ConfigError, match=r"'connectedness' looks at mesh; set method\.scene=sdf"):
        choose(replace(TINY, guard=GuardOptions(reward="connectedness")), prior)
    with pytest.raises(InputError, match="knows no word of 'zyzzyva'"):
        choose(replace(TINY, guard=GuardOptions(reward="judge")), prior, prompt="zyzzyva")
    assert choose(named, prior, RED).reward.name == "judge"


def test_a_mesh_is_guarded_by_a_formula_of_meshes(prior: EmbeddedPrior, tmp_path: Path) -> None:
    method = MethodOptions(name="dreamcs", scene="sdf", voxels=16, dreamcs=DreamCSOptions(resolution=12))
    options = replace(TINY, method=method, guard=GuardOptions(every=1, reward="connectedness"), seed=2)
    options = replace(options, distill=replace(TINY.distill, steps=2))
    found = generate("a red box", options, tmp_path, prior=prior).report["guard"]
    assert found["guard"] == "connectedness" and 0 <= found["last"]["guard"] <= 1 and "reward" in found["last"]


def test_the_ring_stands_still_and_fits_the_reward(prior: EmbeddedPrior) -> None:
    cameras, again = looks.ring(prior), looks.ring(prior)
    assert len(cameras) == 8 and torch.equal(cameras.view, again.view)
    centres = cameras.centres
    for i, j in looks.OPPOSITE:
        assert torch.allclose(centres[i, [0, 2]], -centres[j, [0, 2]], atol=1e-5)
    assert len(looks.ring(prior, 6)) == 12 and len(looks.ring(prior, 1)) == 2


def splats(*centres: tuple[float, float, float], count: int = 50) -> Gaussians:
    """Small solid clusters of equal mass."""
    generator = torch.Generator().manual_seed(0)
    means = torch.cat([torch.tensor(c) + 0.04 * torch.rand(count, 3, generator=generator) for c in centres])
    n = len(means)
    quaternions = torch.tensor([1.0, 0, 0, 0]).expand(n, 4)
    return Gaussians(means, torch.full((n, 3), -4.0), quaternions, torch.full((n,), 3.0), torch.zeros(n, 1, 3))


def test_mass_beside_the_main_body() -> None:
    assert looks.floating_share(splats((0, 0, 0), (0.04, 0, 0))) == 0
    assert looks.floating_share(splats((0, 0, 0), (0.04, 0, 0), (0.5, 0, 0))) == pytest.approx(1 / 3, abs=1e-6)
    assert looks.floating_share(splats((0, 0, 0), (1e6, 0, 0))) == pytest.approx(0.5, abs=1e-6)
    empty = splats((0, 0, 0))
    faint = Gaussians(empty.means, empty.log_scales, empty.quaternions, torch.full((50,), -5.0), empty.sh)
    assert looks.floating_share(faint) == 0


def test_borders_and_opposite_views_by_hand() -> None:
    alpha = torch.zeros(8, 1, 16, 16)
    alpha[..., 4:8, 4:8] = 1
    alpha[..., 0, 0] = 4  # 16 inside, 4 on the border
    assert looks.border_share(alpha) == pytest.approx(0.2)
    rgb = torch.zeros(8, 3, 16, 16)
    rgb[0, 0] = 1.0
    rgb[2, 1] = 1.0  # red in front, green behind: |f - b|^2 = 2, |f|^2 + |b|^2 = 2 a pixel
    rgb[1, :, :, :8], rgb[3, :, :, 8:] = 0.5, 0.5  # each other's mirror image
    found = looks.face_distances(Frames(rgb, torch.zeros(8, 1, 16, 16), torch.zeros(8, 1, 16, 16)))
    assert found == pytest.approx((1.0, 0.0, 0.0, 0.0))
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 4, 4)
    half = Frames(0.5 * red, torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, 1, 4, 4))
    assert looks.mean_colour(half) == pytest.approx((0.628, 0.225, 0.126), abs=1e-3)  # sRGB red in OKLab


def test_a_surface_whose_judge_is_optimised_is_guarded_by_the_reward_of_meshes(prior: EmbeddedPrior) -> None:
    options = replace(TINY, method=MethodOptions(name="dreamcs", scene="sdf", voxels=16))
    guide = guide_for(options.method, prior)
    chosen = guard_for(options, prior, "a red barrel", guide, "cpu")
    assert chosen is not None and chosen.reward.name == "rewardcs-mini"
    splats = replace(TINY, method=MethodOptions(name="dreamdpo"))
    chosen = guard_for(splats, prior, "a red barrel", guide_for(splats.method, prior), "cpu")
    assert chosen is not None and chosen.reward.name == "tidy views"  # nobody sees a mesh there
