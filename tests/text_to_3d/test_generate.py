"""Whole runs with tiny priors: files, report, choice, and that an interruption changes nothing."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh
from PIL import Image
from tiny_options import TINY, VERDICT
from tiny_world import load_tool, random_prior

from rl3d.errors import AssetError, ConfigError, InputError
from rl3d.priors.embedded import EmbeddedPrior
from rl3d.randomness import generator_for
from rl3d.rewards import reward
from rl3d.rewards.pictures import to_rgba
from rl3d.runs import finished_stages, read_metrics, status
from rl3d.scenes import Field, Gaussians, Mesh
from rl3d.text_to_3d import drafts, finish
from rl3d.text_to_3d.drafts import candidate_seed, sample_views, view_judge
from rl3d.text_to_3d.generate import generate, text_to_3d
from rl3d.text_to_3d.method_options import MethodOptions
from rl3d.text_to_3d.options import GenerateOptions, SampleOptions

# `rl3d.text_to_3d.generate` is also the name of a function in some importers' eyes; this is the module.
module = sys.modules["rl3d.text_to_3d.generate"]


@pytest.fixture(autouse=True)
def judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish, "score_asset", lambda prompt, mesh: dict(VERDICT))


@pytest.fixture(scope="module")
def prior() -> EmbeddedPrior:
    return random_prior()


@pytest.fixture(scope="module")
def whole(prior: EmbeddedPrior, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "score_asset", lambda prompt, mesh: dict(VERDICT))
        generate("a red box", TINY, out, prior=prior)
    return out


def test_a_run_leaves_files_that_others_can_read(whole: Path) -> None:
    assert status(whole) == "finished"
    for loaded in (trimesh.load(whole / "asset.glb", force="mesh"), Mesh.load(whole / "asset.glb").to_trimesh()):
        assert 4 <= len(loaded.faces) <= 120 and math.isfinite(float(loaded.area))
    splats = Gaussians.load(whole / "asset.ply")
    assert 0 < len(splats) <= 300 and bool(torch.isfinite(splats.means).all())
    turntable, views = Image.open(whole / "turntable.webp"), Image.open(whole / "views.png")
    assert getattr(turntable, "n_frames", 1) == 2
    assert 4 * 24 <= views.width < 5 * 24 and 2 * 24 <= views.height < 3 * 24  # splats above, mesh below
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "<h1>a red box</h1>" in page and page.count("data:image/") == 2 and page.count("<svg") == 6
    assert not list(whole.rglob(".*"))  # no temporary files


def test_the_report(whole: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    assert (report["prompt"], report["seed"], report["prior"]["name"]) == ("a red box", 1, "tiny")
    assert list(report["stages"]) == ["views 0", "lift 0", "distill", "mesh", "preview", "score"]
    assert all(stage["seconds"] >= 0 for stage in report["stages"].values())
    drawn = report["stages"]["views 0"]
    assert len(drawn["agreement"]) == 2 and all(0 <= a <= 1 for a in drawn["agreement"])
    assert len(drawn["similarity"]) == 2 and all(-1 <= s <= 1 for s in drawn["similarity"])
    assert report["judges"] == VERDICT and report["config"]["lift"]["gaussians"] == 300
    assert report["mesh"]["faces"] == len(Mesh.load(whole / "asset.glb").faces)
    assert {"psnr", "iou"} <= set(report["export"]["check"])
    assert all(isinstance(w, str) for w in report["warnings"])  # noise has no surface to be proud of
    rows = [r["step"] for r in read_metrics(whole / "metrics.jsonl") if r["stage"] == "distill"]
    assert rows == [1, 2, 3, 4, 5, 6]


def test_the_judge_chooses_among_groups_that_agree_alike(prior: EmbeddedPrior) -> None:
    options = replace(TINY, sample=replace(TINY.sample, candidates=3, judge_weight=100.0))
    embedding = prior.encode_prompt("a red box")
    liked = iter([0.1, 0.9, 0.5])
    chosen, _, scores = sample_views(prior, embedding, options, 1, lambda *_: None, lambda views: next(liked))
    assert scores["similarity"] == [0.1, 0.9, 0.5] and len(scores["agreement"]) == 3
    second = prior.sample(
        embedding,
        prior.cameras(0.0, math.radians(options.sample.elevation)).to(dtype=torch.float32),
        steps=options.sample.steps,
        guidance=options.sample.guidance,
        generator=generator_for(1, 1, 1),
    )[0]
    assert torch.equal(chosen, second)
    _, _, alone = sample_views(prior, embedding, options, 1, lambda *_: None)
    assert alone == {"agreement": scores["agreement"]}


def test_a_prompt_that_the_judge_does_not_know_is_not_judged() -> None:
    assert view_judge("a red barrel", TINY) is not None
    assert view_judge("zyzzyva", TINY) is None
    assert view_judge("a red barrel", replace(TINY, sample=replace(TINY.sample, judge_weight=0.0))) is None


class Stop(Exception):
    pass


def fails_at(count: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """`original`, but call number `count` raises after its work was done; later ones pass."""
    calls = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        result = original(*args, **kwargs)
        if len(calls) == count:
            raise Stop
        return result

    return wrapped


def assert_same(a: Path, b: Path) -> None:
    first, second = Gaussians.load(a / "asset.ply"), Gaussians.load(b / "asset.ply")
    assert all(torch.equal(v, getattr(second, k)) for k, v in vars(first).items())
    assert (a / "asset.glb").read_bytes() == (b / "asset.glb").read_bytes()
    assert (a / "views.png").read_bytes() == (b / "views.png").read_bytes()
    rows = [[r for r in read_metrics(x / "metrics.jsonl") if r["stage"] == "distill"] for x in (a, b)]
    assert [{**r, "seconds": 0} for r in rows[0]] == [{**r, "seconds": 0} for r in rows[1]]


def test_an_interruption_in_every_stage_changes_nothing(
    prior: EmbeddedPrior, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, stopped in each stage after part of its work (and right before it counts as done), resumed each time."""
    out = tmp_path / "run"
    stops: list[tuple[Any, str, int]] = [
        (drafts, "sample_views", 1),  # the views are there, their stage is not
        (drafts.lift, "fit", 1),  # between two rings
        (drafts, "save_views", 1),  # the lift's last file but one is written
        (module, "distill_step", 4),  # after the checkpoint of step 2
        (finish, "export_asset", 1),  # the GLB is written, its report is not
        (finish, "turntable", 1),
        (finish, "score_asset", 1),
        (module.Run, "finish", 1),
    ]
    for i, (owner, name, count) in enumerate(stops):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fails_at(count, getattr(owner, name)))
            with pytest.raises(Stop):
                generate("a red box", TINY, out, prior=prior, resume=i > 0)
        if name != "finish":
            assert status(out) == "unfinished" and not (out / "report.json").exists(), name
    result = generate("a red box", TINY, out, prior=prior, resume=True)
    assert status(out) == "finished" and result.asset == out / "asset.glb"
    assert_same(whole, out)


def test_a_finished_run_can_be_resumed_and_says_the_same(prior: EmbeddedPrior, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "copy"))
    generate("a red box", TINY, out, prior=prior, resume=True)
    assert_same(whole, out)


def test_another_configuration_is_not_resumed(prior: EmbeddedPrior, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "copy"))
    before = (out / "report.json").read_bytes()
    with pytest.raises(ConfigError, match=r"begun with lift\.steps = 8, now it is 9"):
        generate("a red box", replace(TINY, lift=replace(TINY.lift, steps=9)), out, prior=prior, resume=True)
    with pytest.raises(ConfigError, match="begun with prompt = 'a red box'"):
        generate("a blue box", TINY, out, prior=prior, resume=True)
    with pytest.raises(InputError, match="holds a run already"):
        generate("a red box", TINY, out, prior=prior)
    assert (out / "report.json").read_bytes() == before


@pytest.mark.parametrize("file", ["views-0", "lift-0", "anchor-0", "distill"])
def test_a_lost_checkpoint_is_an_error_and_never_another_asset(
    prior: EmbeddedPrior, whole: Path, tmp_path: Path, file: str
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "copy"))
    state = json.loads((out / "state.json").read_text())
    order = ["views-0", "lift-0", "anchor-0", "distill"]
    kept = list(state["stages"])[: [1, 2, 2, 3][order.index(file)]]  # as if it had stopped before the file was read
    state = {"finished": False, "stages": {name: state["stages"][name] for name in kept}}
    (out / "state.json").write_text(json.dumps(state))
    (out / "checkpoints" / f"{file}.safetensors").unlink()
    if file in ("lift-0", "anchor-0"):
        (out / "checkpoints" / "distill.safetensors").unlink()
    with pytest.raises(AssetError, match=file) as error:
        generate("a red box", TINY, out, prior=prior, resume=True)
    assert "--overwrite" in str(error.value) and "\n" not in str(error.value)


def test_checkpoints_of_an_older_run_are_not_taken_for_this_one(
    prior: EmbeddedPrior, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / "checkpoints", tmp_path / "run" / "checkpoints")
    options = replace(TINY, seed=2)
    result = generate("a red box", options, tmp_path / "run", prior=prior)
    fresh = generate("a red box", options, tmp_path / "fresh", prior=prior)
    assert torch.equal(result.gaussians.means, fresh.gaussians.means)


def test_a_rewarded_run_reports_its_method_and_resumes(
    prior: EmbeddedPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = MethodOptions(name="dreamdpo")
    options = replace(TINY, method=method, sample=replace(TINY.sample, candidates=1))
    kept, killed = tmp_path / "kept", tmp_path / "killed"
    whole = generate("a red box", options, kept, prior=prior).report
    assert any("'judge' fails" in w and "rl3d rewards check judge" in w for w in whole["warnings"])
    report = whole["method"]
    assert (report["name"], report["reward"]["name"], report["reward"]["licence"]) == (
        "dreamdpo",
        "judge",
        "Apache-2.0",
    )
    rows = [r for r in read_metrics(kept / "metrics.jsonl") if r["stage"] == "distill"]
    assert all({"reward", "gap", "gate"} <= set(row) for row in rows)
    assert report["reward"]["range"] == [-1, 1] and report["gap"] == pytest.approx(rows[-1]["gap"], abs=1e-6)
    with monkeypatch.context() as patch:
        patch.setattr(module, "distill_step", fails_at(5, module.distill_step))
        with pytest.raises(Stop):
            generate("a red box", options, killed, prior=prior)
    generate("a red box", options, killed, prior=prior, resume=True)
    assert_same(kept, killed)
    with pytest.raises(ConfigError, match=r"begun with method\."):
        generate("a red box", TINY, killed, prior=prior, resume=True)


def test_an_uncalibrated_reward_is_refused_and_a_users_own_warned_about(
    prior: EmbeddedPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(TINY, method=MethodOptions(name="dreamdpo"), sample=replace(TINY.sample, candidates=1))
    monkeypatch.setattr("rl3d.rewards.calibrated.recorded_calibration", lambda reward, path: None)
    with pytest.raises(InputError, match="the embedded reward 'judge' was not calibrated with these weights"):
        generate("a red box", options, tmp_path / "refused", prior=prior)
    assert finished_stages(tmp_path / "refused") == []
    mine = reward(name="mine")(lambda x: x.images.mean((1, 2, 3, 4)))
    report = generate("a red box", options, tmp_path / "own", prior=prior, reward=mine).report
    assert any(w.startswith("reward 'mine' is your own and not calibrated") for w in report["warnings"])
    assert report["method"]["reward"]["range"] == [None, None]  # unbounded, and still a report


def test_dreamcs_runs_on_a_signed_distance_and_resumes(
    prior: EmbeddedPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(TINY, method=MethodOptions(name="dreamcs", scene="sdf", voxels=16), seed=2)
    options = replace(options, distill=replace(TINY.distill, steps=4), sample=replace(TINY.sample, candidates=1))
    kept, killed = tmp_path / "kept", tmp_path / "killed"
    result = generate("a red box", options, kept, prior=prior)
    assert result.gaussians is None and result.field == kept / "asset.safetensors" and result.splats is None
    assert Field.load(kept / "asset.safetensors").kind == "sdf" and not (kept / "asset.ply").exists()
    with monkeypatch.context() as patch:
        patch.setattr(module, "distill_step", fails_at(3, module.distill_step))
        with pytest.raises(Stop):
            generate("a red box", options, killed, prior=prior)
    generate("a red box", options, killed, prior=prior, resume=True)
    for name in ("asset.safetensors", "asset.glb"):
        assert (kept / name).read_bytes() == (killed / name).read_bytes()
    rows = [r for r in read_metrics(kept / "metrics.jsonl") if r["stage"] == "distill"]
    assert rows[-1]["faces"] > 0 and result.report["method"]["name"] == "dreamcs"


def test_the_default_method_leaves_the_configuration_as_it_was(whole: Path) -> None:
    """So that a run of an earlier version is resumed; the report names the method all the same."""
    assert "method" not in json.loads((whole / "config.json").read_text())
    assert json.loads((whole / "report.json").read_text())["method"] == {"name": "mvdream"}


def test_best_of_takes_the_candidate_that_the_reward_judge_prefers(
    prior: EmbeddedPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.7, 0.3])
    monkeypatch.setattr("rl3d.rewards.score.draft_score", lambda prompt, scene: next(scores))
    options = replace(TINY, best_of=3, distill=replace(TINY.distill, steps=0))
    result = generate("a red box", options, tmp_path, prior=prior)
    choose = result.report["stages"]["choose"]
    assert (choose["scores"], choose["chosen"]) == ([0.1, 0.7, 0.3], 1)
    from safetensors.torch import load_file

    lifted = [load_file(tmp_path / "checkpoints" / f"lift-{i}.safetensors")["means"] for i in range(3)]
    kept = set(map(tuple, result.gaussians.means.tolist()))
    assert [kept <= set(map(tuple, means.tolist())) for means in lifted] == [False, True, False]


def test_candidates_that_cannot_be_judged_leave_the_first_and_say_so(
    prior: EmbeddedPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise InputError("the reward judge knows no word of 'a red box'")

    monkeypatch.setattr("rl3d.rewards.score.draft_score", refuse)
    monkeypatch.setattr(finish, "score_asset", refuse)
    options = replace(TINY, best_of=2, distill=replace(TINY.distill, steps=0))
    report = generate("a red box", options, tmp_path, prior=prior).report
    assert report["stages"]["choose"]["chosen"] == 0 and report["judges"] == {}
    notes = [w for w in json.loads((tmp_path / "report.json").read_text())["warnings"] if "judged" in w]
    assert notes[0].startswith("the candidates were not judged, the first is taken: the reward judge knows no word")
    assert notes[1].startswith("not judged: the reward judge knows no word")


def test_unknown_words_reach_the_report(prior: EmbeddedPrior, tmp_path: Path) -> None:
    options = replace(TINY, distill=replace(TINY.distill, steps=0), sample=SampleOptions(steps=1, candidates=1))
    generate("a red zeppelin box", options, tmp_path, prior=prior)
    notes = json.loads((tmp_path / "report.json").read_text())["warnings"]
    assert any("does not know the word 'zeppelin'" in note for note in notes)


def test_a_prompt_that_the_prior_cannot_know_leaves_no_asset(prior: EmbeddedPrior, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="knows no word"):
        generate("zeppelin", TINY, tmp_path / "run", prior=prior)
    assert status(tmp_path / "run") == "unfinished" and not (tmp_path / "run" / "asset.glb").exists()


@pytest.mark.parametrize("kind", ["mvdream", "stable_diffusion"])
def test_hub_formats_run_through_the_same_code(kind: str, tmp_path: Path) -> None:
    """Four views in latent space that are lifted, and single views that start from a ball; both by folder."""
    torch.set_num_threads(1)
    folder = getattr(load_tool("make_tiny_pipelines"), f"write_{kind}")(tmp_path / "model")
    options = replace(TINY, distill=replace(TINY.distill, steps=2), sample=SampleOptions(steps=2, candidates=1))
    result = generate("a red box", options, tmp_path / "run", prior=str(folder))
    assert len(trimesh.load(result.asset, force="mesh").faces) >= 4
    assert result.report["prior"]["licence"] == "openrail"
    assert (tmp_path / "run" / "checkpoints" / "views-0.safetensors").exists() == (kind == "mvdream")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["stages"]["lift 0"]["gaussians"] > 0 and report["config"]["prior"] == str(folder)


def test_text_to_3d_names_an_unknown_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no option 'best_off'; did you mean best_of"):
        text_to_3d("a box", out=tmp_path / "run", best_off=2)
    with pytest.raises(ConfigError, match="unknown method 'sdss'; did you mean 'sds'"):
        text_to_3d("a box", out=tmp_path / "run", method="sdss")
    assert not (tmp_path / "run").exists()


def test_generators_depend_on_every_key() -> None:
    places = [(0, 3), (1, 3), (0, 1, 0), (0, 1, 1), (0, 2, 1), (0, 4, 1), (0, 4, 25), (1, 4, 25), (25, 4, 1)]
    drawn = {int(torch.randint(2**40, (1,), generator=generator_for(*keys))) for keys in places}
    assert len(drawn) == len(places)
    assert generator_for(3, 4).initial_seed() == generator_for(3, 4).initial_seed()
    options = GenerateOptions(seed=5)
    assert candidate_seed(options, 0) == 5 and len({candidate_seed(options, i) for i in range(20)}) == 20


def test_a_plain_background_is_keyed_out() -> None:
    class Plain:
        has_alpha, background = False, 0.5

    images = torch.full((1, 3, 1, 3), 0.5, dtype=torch.float64)
    images[0, :, 0, 1] = torch.tensor([0.9, 0.1, 0.5])  # far from grey: the object
    images[0, :, 0, 2] = 0.51  # nearly the background
    rgba = to_rgba(images, Plain())  # type: ignore[arg-type]
    assert rgba.dtype == torch.float32 and rgba[0, 3, 0].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert rgba[0, :3, 0, 1].tolist() == pytest.approx([0.9, 0.1, 0.5]) and float(rgba[0, :3, 0, 0].abs().max()) == 0
