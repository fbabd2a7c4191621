"""The benchmark's arithmetic by hand, and its loop on stand-ins for the generator and the gold judge."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rl3d.errors import ConfigError, InputError
from rl3d.rewards.judges import Judge, JudgeConfig, build_model, load_judge
from rl3d.scenes import Gaussians, Mesh
from rl3d.text_to_3d.options import GenerateOptions

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("bench_tables")


@pytest.fixture
def bench(tables: ModuleType) -> ModuleType:
    return importlib.import_module("bench_text_to_3d")


def record(method: str, prompt: str, seed: int, group: str = "known", **values: Any) -> dict[str, Any]:
    base = {"top1": True, "top1_same_colour": True, "similarity": 0.5, "colour": True, "janus": None}
    cost = {"iou": 0.9, "psnr": 25.0, "seconds": 10.0, "peak_memory_mib": 900}
    return {"method": method, "prompt": prompt, "seed": seed, "group": group, "failed": None, **base, **cost, **values}


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def test_bootstrap_draws_whole_prompts(tables: ModuleType) -> None:
    # Three prompts of two seeds, three draws: all six values are 0 with 1/27 = 3.7 %, over the 2.5 % of the lower end.
    clusters = [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    mean, low, high = tables.cluster_bootstrap(clusters)
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    # Four prompts, one of them a miss: hits are binomial(4, 3/4), P(0) = 0.4 %, P(0 or 1) = 5.1 %, P(4) = 32 %.
    assert tables.cluster_bootstrap([[1.0] * 3, [1.0] * 3, [1.0] * 3, [0.0] * 3]) == (0.75, 0.25, 1.0)
    # Seeds drawn one by one would look surer: as six prompts, all are 0 with 1/64 only.
    _, low_six, high_six = tables.cluster_bootstrap([[v] for c in clusters for v in c])
    assert high_six - low_six < high - low


def test_bootstrap_weighs_prompts_by_their_runs(tables: ModuleType) -> None:
    assert tables.cluster_bootstrap([[1.0, 1.0, 1.0], [0.0], []])[0] == 0.75
    assert tables.cluster_bootstrap([[1.0], [1.0]]) == (1.0, 1.0, 1.0)
    assert tables.cluster_bootstrap([[], []]) is None


def test_failures_count_and_do_not_flatter(tables: ModuleType) -> None:
    records = [
        record("draft", "a red chest", 0),
        record("draft", "a red chest", 1, top1=False, janus=True),
        {"method": "draft", "prompt": "a wooden door", "seed": 0, "group": "known", "failed": "empty", "colour": None},
        record("draft", "a blue bed", 0, group="unseen"),
    ]
    row = tables.aggregate(records, ["draft"])[0]
    assert (row["runs"], row["prompts"], row["failures"]) == (3, 2, 1)
    assert row["top1"]["mean"] == pytest.approx(1 / 3) and row["top1"]["count"] == 3
    assert row["iou"]["mean"] == pytest.approx(0.6)  # the failure has no mesh: 0
    assert row["psnr"]["mean"] == 25 and row["psnr"]["count"] == 2  # a failure has no decibels
    assert row["colour"]["count"] == 2  # "a wooden door" names no colour, so its failure is none of colour
    assert (row["janus"]["mean"], row["janus"]["count"]) == (1.0, 1)
    assert tables.cell(row["janus"], tables.QUALITY[-1]) == "1.00 of 1"  # one prompt has no interval


def test_every_beginning_is_balanced(tables: ModuleType) -> None:
    known, unseen = [f"k{i}" for i in range(40)], [f"u{i}" for i in range(20)]
    order = tables.interleaved(known, unseen)
    assert [p for g, p in order if g == "known"] == known and [p for g, p in order if g == "unseen"] == unseen
    for n in range(1, 61):
        assert abs(sum(g == "unseen" for g, _ in order[:n]) - n / 3) <= 1
    jobs = tables.plan(order, 3, ["views", "draft"], 6)
    assert len(jobs) == 36 and jobs[:2] == [("views", "known", "k0", 0), ("draft", "known", "k0", 0)]
    for n in range(1, 37):
        counts = [sum(j[0] == m for j in jobs[:n]) for m in ("views", "draft")]
        assert counts[0] - counts[1] in (0, 1)


def test_distractors_are_fixed_and_have_other_nouns(tables: ModuleType, bench: ModuleType) -> None:
    for prompts in bench.PROMPTS.values():
        for prompt in prompts:
            others = tables.distractors(prompt, prompts)
            assert len(set(others)) == 19 and others == tables.distractors(prompt, prompts)
            assert tables.noun_of(prompt) not in {tables.noun_of(o) for o in others}
            assert prompt not in tables.in_the_same_colour(prompt, others)
    assert tables.in_the_same_colour("an orange sword", ["a green tree"]) == ["an orange tree"]


def test_known_prompts_are_no_unseen_pairs(bench: ModuleType) -> None:
    assert len(bench.PROMPTS["known"]) == 40 and len(bench.PROMPTS["unseen"]) == 20
    assert len({p.split()[-1] for p in bench.PROMPTS["known"]}) == 40
    assert not set(bench.PROMPTS["known"]) & set(bench.PROMPTS["unseen"])


def test_table_says_how_much_it_rests_on(tables: ModuleType) -> None:
    records = [record("draft", p, 0, janus=False, top1=p == "a") for p in ("a", "b")]
    text = tables.table(tables.aggregate(records, ["draft", "default"])[:2], tables.QUALITY, 120)
    lines = text.splitlines()
    assert lines[0].startswith("| method | runs | failed | retrieval of 20 |")
    assert lines[2].startswith("| draft | 2 of 120 | 0 | 0.50 [0.00, 1.00] | 1.00 [1.00, 1.00] |")
    assert lines[2].endswith("| 0.00 of 2 [0.00, 0.00] |")
    assert lines[3] == "| default | 0 of 120 | 0 | – | – | – | – | – |"
    missed = tables.aims(tables.aggregate([record("default", "a", 0, top1=False)], ["default"]))
    assert missed[0] == "- retrieval of 20, known prompts: aim 0.6, 0.00, missed"
    assert missed[1].endswith("not measured") and missed[2].endswith("0.90, met")


def test_best_of_seeds_is_picked_by_the_reward_judge_and_paid_for(tables: ModuleType) -> None:
    records = [
        record("draft", "a", 0, reward=0.5, top1=False),
        record("draft", "a", 1, reward=0.7, seconds=12.0),
        {"method": "draft", "prompt": "a", "seed": 2, "group": "known", "failed": "empty"},
        record("draft", "b", 0, reward=0.9),  # its other seeds are not made yet
        *(record("views", "a", seed) for seed in range(3)),  # no asset, so no score
    ]
    (best,) = tables.best_of_seeds(records, ["views", "draft"], 3)
    assert (best["method"], best["prompt"], best["seed"]) == ("draft, best of 3", "a", 1)
    assert best["seconds"] == 22.0 and best["top1"]  # 10 + 12 + a failure that has no time
    failed = [{"method": "draft", "prompt": "a", "seed": s, "group": "known", "failed": "empty"} for s in range(3)]
    assert [r["failed"] for r in tables.best_of_seeds(failed, ["draft"], 3)] == ["empty"]  # counts as a failure


def test_differences_pair_prompt_and_seed(tables: ModuleType) -> None:
    records = [
        *(record("sds", p, s, similarity=0.5 + 0.1 * s) for p in "abc" for s in (0, 1)),
        *(record("mine", p, s, similarity=0.6 + 0.1 * s, top1=p != "a") for p in "ab" for s in (0, 1)),
        record("mine", "d", 0, similarity=9.0),  # sds never made it
        {"method": "mine", "prompt": "c", "seed": 0, "group": "known", "failed": "empty", "colour": None},
    ]
    (row,) = tables.differences(records, ["sds", "mine"], "sds", tables.QUALITY)
    assert (row["method"], row["pairs"]) == ("mine", 5)
    assert row["similarity"]["mean"] == pytest.approx(0.1) and row["similarity"]["low"] == pytest.approx(0.1)
    assert (row["similarity"]["count"], row["similarity"]["prompts"]) == (4, 2)  # a failure has no similarity
    assert row["top1"]["mean"] == pytest.approx(-3 / 5)  # both seeds of a, and the failure
    assert row["colour"]["count"] == 4 and row["janus"] is None
    lines = tables.difference_table([row], tables.QUALITY[:3]).splitlines()
    assert lines[2] == "| mine | 5 | -0.60 [-1.00, +0.00] | -0.20 [-1.00, +0.00] | **+0.100** [+0.100, +0.100] |"


def test_the_page_says_what_the_janus_rate_rests_on(tables: ModuleType) -> None:
    full = {"known": 40, "unseen": 20}
    assert "the column is empty" in tables._janus({"full": full, "janus_on_renders": None})
    found = {
        "nouns": ["bed", "chair"],
        "prompts": {"known": 2, "unseen": 1},
        "train_left_out": {"assets": 18, "real": [0.1, 0.0, 0.2], "again": [0.9, 0.8, 1.0]},
        "val": {"assets": 2, "real": [0.0, 0.0, 0.0], "again": [0.75, 0.5, 1.0]},
    }
    text = " ".join(tables._janus({"full": full, "janus_on_renders": found}).split())
    assert "(bed, chair): 2 of 40 known and 1 of 20 unseen prompts" in text
    assert "calls 0.10 [0.00, 0.20], and" in text and "finds 0.90 [0.80, 1.00]" in text
    assert "Val has 2 assets of these nouns: 0.00 called, 0.75 of the copies found" in text


def test_shipped_thresholds_cover_prompts_of_both_lists(bench: ModuleType) -> None:
    found = bench.janus_on_renders(load_judge("gold"))
    assert found["prompts"]["known"] >= 1 and found["prompts"]["unseen"] >= 1
    assert all(0 <= found[part][kind][0] <= 1 for part in ("val", "train_left_out") for kind in ("real", "again"))


# ---- the loop --------------------------------------------------------------------------------------------------------


def gold_of(bench: ModuleType) -> Judge:
    words = sorted({w for prompts in bench.PROMPTS.values() for p in prompts for w in p.split()})
    torch.manual_seed(0)
    judge_config = JudgeConfig("gold", len(words) + 2, 16, (8, 8), 16, embedding=8, heads=2)
    model = build_model(judge_config).eval().requires_grad_(False)
    return Judge("gold", model, {w: i + 2 for i, w in enumerate(words)}, (), {"car": 0.1, "chest": 0.1})


def box() -> Mesh:
    corners = torch.tensor([[x, y, z] for x in (-0.3, 0.3) for y in (-0.3, 0.3) for z in (-0.3, 0.3)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))])
    return Mesh(corners, faces, face_colours=torch.tensor([0.8, 0.2, 0.2]).expand(12, 3))


def ball() -> Gaussians:
    """Flat splats that lie on a sphere."""
    normal = torch.nn.functional.normalize(torch.randn(400, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    axis = torch.linalg.cross(torch.tensor([0.0, 0, 1]).expand_as(normal), normal)
    turn = torch.nn.functional.normalize(torch.cat([1 + normal[:, 2:], axis], 1), dim=1)  # z to the normal
    scales = torch.tensor([0.05, 0.05, 0.003]).log().expand(400, 3)
    return Gaussians(0.4 * normal, scales, turn, torch.full((400,), 8.0), torch.zeros(400, 1, 3))


@pytest.fixture
def stage(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The tool with a generator that writes a red box, fails on trees, and counts its calls."""
    made: list[str] = []

    def generate(prompt: str, options: Any, folder: Path, *, prior: Any, resume: bool) -> None:
        assert resume
        made.append(prompt)
        if "tree" in prompt:
            raise InputError("nothing was left of the scene")
        box().save(folder / "asset.glb")
        ball().save(folder / "asset.ply")
        sound = {"watertight": True, "consistent_winding": True, "non_manifold_edges": 0, "components": 2}
        report = {
            "mesh": sound,
            "stages": {
                "lift 0": {"seconds": 2.0, "peak_memory_mib": 700},
                "mesh": {"seconds": 1.5, "peak_memory_mib": 9},
            },
            "export": {"check": {"psnr": 30.0, "iou": 0.95}},
            "judges": {"reward": {"similarity": 0.1 * options.seed}},
        }
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "state.json").write_text('{"finished": true, "stages": {}}')

    def sample_views(*arguments: Any) -> tuple[torch.Tensor, None, dict]:
        made.append("views")
        return torch.rand(4, 4, 64, 64, generator=torch.Generator().manual_seed(arguments[3])), None, {}

    judge = gold_of(bench)
    prior = SimpleNamespace(name="stand-in", encode_prompt=lambda prompt, negative: None)
    monkeypatch.setattr(bench, "generate", generate)
    monkeypatch.setattr(bench, "sample_views", sample_views)
    monkeypatch.setattr(bench, "load_prior", lambda spec, device: prior)
    monkeypatch.setattr(bench, "load_judge", lambda which, device: judge)
    return SimpleNamespace(tool=bench, made=made)


def test_a_run_goes_on_and_reports(stage: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "docs" / "benchmarks" / "text_to_3d.md"
    common = ["--out", str(tmp_path / "bench"), "--seeds", "1", "--page", str(page), "--methods", "views", "draft"]
    monkeypatch.setattr(sys, "argv", ["bench_text_to_3d.py", *common])
    assert stage.tool.main([*common, "--prompts", "3"]) == 0
    assert stage.made == ["a green tree", "views", "a purple barrel", "views", "a red chest", "views"]
    results = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert json.loads(page.with_suffix(".json").read_text()) == results
    rows = {(r["method"], r["group"]): r for r in results["rows"]}
    draft = rows["draft", "known"]
    assert (draft["runs"], draft["failures"], draft["seconds"]["mean"]) == (2, 1, 3.5)
    assert draft["iou"]["mean"] == pytest.approx(0.475) and draft["peak_memory_mib"]["mean"] == 700
    assert draft["janus"]["count"] == 1 and rows["views", "known"]["iou"] is None
    text = page.read_text()
    assert "nothing was left of the scene" in text and "A part of the benchmark" in text
    assert str(tmp_path) not in text and "--out bench" in text
    assert (tmp_path / "docs" / "images" / "bench_text_to_3d.png").exists()
    assert "(../images/bench_text_to_3d.png)" in text

    stage.made.clear()
    assert stage.tool.main([*common, "--prompts", "4"]) == 0
    assert stage.made == ["a wooden barrel", "views"]  # finished and failed runs are not made again
    stage.made.clear()
    assert stage.tool.main([*common, "--prompts", "4", "--report-only"]) == 0
    assert stage.tool.main([*common, "--prompts", "5", "--limit-minutes", "0"]) == 0
    assert stage.made == []
    before = (tmp_path / "bench" / "draft" / "a-red-chest-seed0" / "bench.json").read_text()
    monkeypatch.setattr(stage.tool.Bench, "gold_digest", lambda bench: "another judge")
    assert stage.tool.main([*common, "--prompts", "4", "--report-only"]) == 0  # measures again, makes nothing
    assert stage.made == []
    assert (tmp_path / "bench" / "draft" / "a-red-chest-seed0" / "bench.json").read_text() != before
    assert len(json.loads((tmp_path / "bench" / "results.json").read_text())["records"]) == 8
    assert stage.tool.main([*common, "--prompts", "4", "--retry-failed"]) == 0
    assert stage.made == ["a green tree"]


def test_rows_are_compared_with_one_of_them(stage: SimpleNamespace, tmp_path: Path) -> None:
    page, preset = tmp_path / "page.md", tmp_path / "mine.yaml"
    preset.write_text("distill: {steps: 7}\n")
    common = ["--out", str(tmp_path / "bench"), "--page", str(page), "--prompts", "3", "--seeds", "1"]
    common += ["--methods", "draft", f"mine={preset}"]
    assert stage.tool.main([*common, "--against", "draft"]) == 0
    results = json.loads((tmp_path / "bench" / "results.json").read_text())
    ((row,),) = (compared["rows"] for compared in results["against"])
    assert row["method"] == "mine" and row["pairs"] == 3 and row["top1"]["mean"] == 0  # the same box
    known = next(r for r in results["rows"] if r["method"] == "mine" and r["group"] == "known")
    assert known["dnc"]["mean"] > 0.8 and known["parts"]["mean"] == 2  # flat splats on a sphere
    assert known["valid"]["mean"] == 0.5  # the tree failed
    text = page.read_text()
    assert "## Against draft" in text and "| mine | 3 | +0.00 [+0.00, +0.00]" in text
    with pytest.raises(InputError, match="--against other: no such row; rows are draft, mine"):
        stage.tool.main([*common, "--against", "other"])


def test_views_of_a_finished_default_run_are_not_drawn_again(stage: SimpleNamespace, tmp_path: Path) -> None:
    whole, drawn = stage.tool.generate, torch.rand(4, 4, 64, 64, generator=torch.Generator().manual_seed(9))

    def generate(prompt: str, options: Any, folder: Path, **rest: Any) -> None:
        whole(prompt, options, folder, **rest)
        report = json.loads((folder / "report.json").read_text())
        report["stages"]["views 0"] = {"seconds": 4.5, "peak_memory_mib": 710}
        (folder / "report.json").write_text(json.dumps(report))
        (folder / "checkpoints").mkdir()
        save_file({"images": drawn}, folder / "checkpoints" / "views-0.safetensors")

    stage.tool.generate = generate  # the fixture's monkeypatch puts the real one back
    common = ["--out", str(tmp_path / "bench"), "--page", str(tmp_path / "page.md"), "--seeds", "1", "--prompts", "2"]
    assert stage.tool.main([*common, "--methods", "views", "default"]) == 0
    assert stage.made == ["a green tree", "views", "a purple barrel"]  # the tree's failure left no views
    record = json.loads((tmp_path / "bench" / "views" / "a-purple-barrel-seed0" / "bench.json").read_text())["record"]
    assert (record["seconds"], record["peak_memory_mib"]) == (4.5, 710)


def test_parts_share_a_folder(stage: SimpleNamespace, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    common = ["--out", str(tmp_path / "bench"), "--page", str(page), "--methods", "draft", "--prompts", "4"]
    assert stage.tool.main([*common, "--part", "1/2"]) == 0
    assert stage.made == ["a purple barrel", "a wooden barrel"] * 3 and not page.exists()
    assert stage.tool.main([*common, "--part", "0/2"]) == 0
    stage.made.clear()
    assert stage.tool.main(common) == 0 and stage.made == []
    results = json.loads((tmp_path / "bench" / "results.json").read_text())
    rows = {(r["method"], r["group"]): r for r in results["rows"]}
    best = rows["draft, best of 3", "known"]
    assert (best["runs"], best["failures"], best["seconds"]["mean"]) == (3, 1, 10.5)
    assert "| draft, best of 3 | 3 of 40 |" in page.read_text() and "| draft | 9 of 120 |" in page.read_text()
    for wrong in ("2/2", "x", "0/0"):
        with pytest.raises(SystemExit):
            stage.tool.main([*common, "--part", wrong])


def test_records_of_another_machine_are_not_made_again(
    stage: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    common = ["--page", str(page), "--methods", "draft", "--seeds", "1", "--prompts", "3"]
    stage.tool.main(["--out", str(tmp_path / "here"), *common])
    before, table = json.loads(page.with_suffix(".json").read_text()), page.read_text()
    earlier = tmp_path / "earlier.json"
    earlier.write_text(page.with_suffix(".json").read_text())
    stage.made.clear()
    there = ["--out", str(tmp_path / "there"), "--records", str(earlier)]
    assert stage.tool.main([*there, *common]) == 0 and stage.made == []
    assert json.loads(page.with_suffix(".json").read_text())["records"] == before["records"]
    assert page.read_text().split("## What produced it")[0] == table.split("## What produced it")[0]
    monkeypatch.setattr(stage.tool.Bench, "gold_digest", lambda bench: "another judge")
    assert stage.tool.main([*there, *common]) == 0 and len(stage.made) == 3  # nothing there to measure again
    with pytest.raises(InputError, match="cannot be read"):
        stage.tool.main(["--out", str(tmp_path / "there"), *common, "--records", str(tmp_path / "none.json")])


def test_ctrl_c_reports_what_there_is(stage: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stage.tool.generate

    def interrupted(prompt: str, *args: Any, **kwargs: Any) -> None:
        if "barrel" in prompt:
            raise KeyboardInterrupt
        whole(prompt, *args, **kwargs)

    monkeypatch.setattr(stage.tool, "generate", interrupted)
    arguments = ["--out", str(tmp_path / "bench"), "--page", str(tmp_path / "page.md"), "--methods", "draft"]
    assert stage.tool.main(arguments) == 130
    assert len(json.loads((tmp_path / "bench" / "results.json").read_text())["records"]) == 1


def test_runs_of_other_models_are_not_mixed_in(
    stage: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--out", str(tmp_path / "bench"), "--page", str(tmp_path / "page.md"), "--methods", "draft"]
    arguments += ["--prompts", "2", "--seeds", "1"]
    stage.tool.main(arguments)
    monkeypatch.setattr(stage.tool, "load_prior", lambda spec, device: SimpleNamespace(name="another"))
    with pytest.raises(ConfigError, match="other options or models"):
        stage.tool.main(arguments)


def test_method_rows(bench: ModuleType, tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("distill: {steps: 7}\n")
    rows = bench.method_options(["draft", "default", "best-of-4", f"mine={preset}"])
    assert rows["draft"].distill.steps == 0 and rows["mine"].distill.steps == 7
    assert rows["best-of-4"].best_of == 4 and rows["default"].best_of == 1
    for wrong in ("fast", "draft=" + str(preset), "a b=x"):
        with pytest.raises(InputError):
            bench.method_options([wrong])


def test_only_the_models_that_a_run_may_ask_are_part_of_it(bench: ModuleType) -> None:
    base = GenerateOptions()
    named = replace(base, method=replace(base.method, reward=replace(base.method.reward, name="reward3d")))
    surface = replace(base, method=replace(base.method, scene="sdf"))
    assert not bench.looks_with(base, "reward3d") and not bench.looks_with(base, "rewardcs")
    assert bench.looks_with(named, "reward3d") and not bench.looks_with(named, "rewardcs")
    assert bench.looks_with(surface, "rewardcs") and not bench.looks_with(surface, "reward3d")
