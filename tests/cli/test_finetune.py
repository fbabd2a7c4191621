"""`rl3d finetune multiview` through the real command line, on a tiny prior in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_world import random_prior

TINY = """
rounds: 2
prompts_per_round: 2
group: 2
micro_batch: 2
spread_floor: 1.0e-9
sampler: {steps: 3}
watch: {every: 1, looks: 2, kl_budget: 10.0}
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The options of all runs here."""
    random_prior().save_pretrained(tmp_path / "prior", dtype=torch.float32)
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "prompts.txt").write_text("# boxes\na red box\n\na blue crate\na red box\n")
    files = ["--prompts", str(tmp_path / "prompts.txt"), "--config", str(tmp_path / "tiny.yaml")]
    return ["multiview", *files, "--prior", str(tmp_path / "prior")]


def test_an_adapter_comes_out_that_generate_takes(rl3d: Callable, words: list[str], tmp_path: Path) -> None:
    done = rl3d("finetune", *words, "--reward", "hull", "--out", str(tmp_path / "run"))
    assert done.code == 0, done.err
    assert done.out == f"{tmp_path / 'run' / 'adapter'}\n"
    assert "repeats 1 of its lines" in done.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["rounds"] == 2 and report["config"]["guard"] == "judge"
    assert len(report["looks"]) == 3
    page = (tmp_path / "run" / "report.html").read_text()
    assert "nft on hull" in page and page.count("<img") >= 2
    tuned = ["--prior", str(tmp_path / "run" / "adapter"), "--preset", "draft", "--set", "mesh.resolution=16"]
    made = rl3d("generate", "a red box", *tuned, "--out", str(tmp_path / "asset"), "--quiet")
    assert made.code == 0, made.err
    assert (tmp_path / "asset" / "asset.glb").exists()


def test_a_finished_run_is_not_lost_and_an_unfinished_one_goes_on(
    rl3d: Callable, words: list[str], tmp_path: Path
) -> None:
    ask = [*words, "--reward", "hull", "--quiet", "--out", str(tmp_path / "run")]
    assert rl3d("finetune", *ask, "--set", "rounds=1").code == 0
    again = rl3d("finetune", *ask)
    assert again.code == 2 and "holds a finished run" in again.err
    assert rl3d("finetune", *ask, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--algorithm", "nff"], "did you mean 'nft'"),
        (["--set", "group=1"], "judged against others"),
        (["--set", "adapter.rnk=3"], "adapter.rank"),
        (["--reward", "gold"], "only measures"),
        (["--reward", "hull", "--set", "watch.guard=hull"], "is what is optimised"),
        (["--prompts", "none.txt"], "no such file"),
        (["--algorithm", "refl", "--set", "sampler.noise=0"], "set sampler.noise above 0"),
        (["--seed", "-1"], "--seed must lie"),
        (["--device", "tpu"], "unknown --device"),
    ],
)
def test_bad_requests_are_one_line(
    rl3d: Callable, words: list[str], tmp_path: Path, extra: list[str], says: str
) -> None:
    done = rl3d("finetune", *words, "--out", str(tmp_path / "run"), *extra)
    assert done.code == 2
    assert says in done.err and "Traceback" not in done.err
    assert not (tmp_path / "run").exists()


def test_blank_prompt_files_and_unknown_words(rl3d: Callable, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n# nothing\n\n")
    done = rl3d("finetune", *words, "--out", str(tmp_path / "run"))
    assert done.code == 2 and "holds no prompt" in done.err
    (tmp_path / "prompts.txt").write_text("a spaceship\n")
    done = rl3d("finetune", *words, "--out", str(tmp_path / "run"))
    assert done.code == 2 and "knows no word" in done.err
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_another_base_is_refused(rl3d: Callable, words: list[str], tmp_path: Path) -> None:
    assert rl3d("finetune", *words, "--reward", "hull", "--quiet", "--out", str(tmp_path / "run")).code == 0
    other = random_prior()
    with torch.no_grad():
        other.network.patch_in.weight[0, 0] += 1
    other.save_pretrained(tmp_path / "prior", dtype=torch.float32)
    made = rl3d("generate", "a red box", "--prior", str(tmp_path / "run" / "adapter"), "--out", str(tmp_path / "asset"))
    assert made.code == 2 and "trained on another base model" in made.err
