"""Fine-tuning a tiny prior: every rule learns, a kill changes nothing, faults are survived."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_rounds import PROMPTS, TINY, adapter, dark, rounds
from tiny_world import random_prior
from toy_prior import ToyPrior

from rl3d.errors import ConfigError, InputError
from rl3d.multiview import loop as module
from rl3d.multiview import update
from rl3d.multiview.loop import finetune
from rl3d.multiview.options import (
    ALGORITHMS,
    AdapterOptions,
    ForwardOptions,
    PathOptions,
    WatchOptions,
)
from rl3d.multiview.sampler_options import SamplerOptions
from rl3d.priors import load
from rl3d.rewards.protocol import RewardInput, reward


@reward(views=None)
def bright(x: RewardInput) -> torch.Tensor:
    return x.images.mean((1, 2, 3, 4))


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_rule_raises_the_reward(algorithm: str, tmp_path: Path) -> None:
    options = replace(
        TINY,
        algorithm=algorithm,
        rounds=24,
        spread_floor=1e-6,
        adapter=AdapterOptions(rank=4, lr=3e-2),
        path=PathOptions(clip=0.05, ratio_clip=0.3, beta=5.0),
        forward=ForwardOptions(kl=0.0, clip=0.05, beta={"diffusion-dpo": 50.0, "rwr": 0.5}.get(algorithm, 1.0)),
    )
    finetune(ToyPrior(), dark, PROMPTS, options, tmp_path / "run")
    rows = rounds(tmp_path / "run")
    assert all(row["taken"] == 1 for row in rows)
    begin, end = (sum(row["reward"] for row in part) / 3 for part in (rows[:3], rows[-3:]))
    # A sample's reward has a standard deviation of 0.05, the mean of three rounds one of 0.01.
    assert end > begin + 0.03


class Killed(Exception):
    """As a kill would: between two rounds, after the checkpoint."""


def killed_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    whole, done = module.one_round, []

    def one_round(*arguments):  # type: ignore[no-untyped-def]
        if len(done) == count:
            raise Killed
        done.append(1)
        return whole(*arguments)

    monkeypatch.setattr(module, "one_round", one_round)


@pytest.mark.parametrize("algorithm", ["carve3d", "nft", "diffusion-dpo"])
def test_a_resumed_run_is_the_uninterrupted_one(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(TINY, algorithm=algorithm, rounds=4, watch=WatchOptions(every=2, kl_budget=10.0, looks=2))
    whole = finetune(ToyPrior(), dark, PROMPTS, options, tmp_path / "whole", guard=bright)
    with monkeypatch.context() as patch:
        killed_after(patch, 3)
        with pytest.raises(Killed):
            finetune(ToyPrior(), dark, PROMPTS, options, tmp_path / "parts", guard=bright)
    parts = finetune(ToyPrior(), dark, PROMPTS, options, tmp_path / "parts", guard=bright, resume=True)
    assert adapter(parts) == adapter(whole)
    assert adapter(tmp_path / "parts" / "last") == adapter(tmp_path / "whole" / "last")
    kept = ("reward", "from_base", "gradient", "micro_batch")
    for a, b in zip(rounds(tmp_path / "whole"), rounds(tmp_path / "parts"), strict=True):
        assert {k: a[k] for k in kept if k in a} == {k: b[k] for k in kept if k in b}


def test_the_best_by_the_guard_is_kept_and_not_the_last(tmp_path: Path) -> None:
    options = replace(
        TINY,
        algorithm="ddpo",
        rounds=12,
        adapter=AdapterOptions(rank=4, lr=3e-2),
        path=PathOptions(clip=0.05),
        watch=WatchOptions(every=2, kl_budget=10.0, looks=3, fall=0.02, patience=2),
    )
    best = finetune(ToyPrior(), dark, PROMPTS, options, tmp_path / "run", guard=bright)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    # What darkens is not bright: the base stays the best by the guard, and the run is stopped.
    assert report["best"]["round"] == 0 and "being gamed" in report["stopped"]
    assert report["rounds"] < 12
    assert adapter(best) != adapter(tmp_path / "run" / "last")
    guards = [row["guard"] for row in report["looks"]]
    assert guards[0] == max(guards) and len(guards) == report["rounds"] // 2 + 1
    assert (tmp_path / "run" / "looks" / "round-0002.png").exists()


def test_a_step_beyond_the_budget_is_not_taken(tmp_path: Path) -> None:
    options = replace(
        TINY, algorithm="nft", rounds=9, adapter=AdapterOptions(lr=5e-2), watch=WatchOptions(every=0, kl_budget=1e-3)
    )
    finetune(ToyPrior(), dark, PROMPTS, options, tmp_path / "run")
    rows = rounds(tmp_path / "run")
    assert rows[0]["taken"] == 1 and rows[-1]["taken"] == 0
    over = [row for row in rows if row["taken"] == 0]
    assert all(row["from_base"] > 1e-3 for row in over)
    assert len(over) == options.watch.patience  # then it ends
    assert "above 0.001" in json.loads((tmp_path / "run" / "report.json").read_text())["stopped"]


def test_the_budget_holds_between_the_updates_of_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    whole = module.take

    def take(*arguments):  # type: ignore[no-untyped-def]
        steps.append(1)
        return whole(*arguments)

    monkeypatch.setattr(module, "take", take)
    options = replace(
        TINY,
        algorithm="ddpo",
        rounds=1,
        updates=5,
        adapter=AdapterOptions(lr=0.1),
        path=PathOptions(clip=0.5),
        watch=WatchOptions(every=0, kl_budget=1e-4),
    )
    finetune(ToyPrior(), dark, PROMPTS, options, tmp_path / "run")
    (row,) = rounds(tmp_path / "run")
    assert len(steps) == row["taken"] == 1 and row["from_base"] > 1e-4


def test_samples_on_which_the_reward_breaks_are_dropped(tmp_path: Path) -> None:
    @reward(views=None)
    def fragile(x: RewardInput) -> torch.Tensor:
        scores = dark.function(x)
        if bool((scores > 0.05).any()):
            raise RuntimeError("too dark to see")
        return torch.where(scores < -0.04, torch.nan, scores)

    finetune(ToyPrior(), fragile, PROMPTS, TINY, tmp_path / "run")
    assert sum(row["dropped"] for row in rounds(tmp_path / "run")) > 0

    @reward(views=None)
    def broken(x: RewardInput) -> torch.Tensor:
        raise RuntimeError("no such table")

    with pytest.raises(InputError, match="broke on 8 of 8 samples"):
        finetune(ToyPrior(), broken, PROMPTS, TINY, tmp_path / "broken")


def test_where_memory_runs_out_fewer_rows_go_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = module.draw

    def draw(prior, prompts, groups, options, round_, micro_batch):  # type: ignore[no-untyped-def]
        if micro_batch > 2:
            raise torch.OutOfMemoryError("no room")
        return whole(prior, prompts, groups, options, round_, micro_batch)

    plain = finetune(ToyPrior(), dark, PROMPTS, replace(TINY, micro_batch=2), tmp_path / "plain")
    monkeypatch.setattr(module, "draw", draw)
    out = finetune(ToyPrior(), dark, PROMPTS, TINY, tmp_path / "run")
    assert [row["micro_batch"] for row in rounds(tmp_path / "run")] == [2, 2]
    assert adapter(out) == adapter(plain)
    monkeypatch.setattr(module, "draw", whole)
    once = []

    def gradients(*arguments):  # type: ignore[no-untyped-def]
        if not once:
            once.append(1)
            raise torch.OutOfMemoryError("no room")
        return update.gradients(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "gradients", gradients)
        out = finetune(ToyPrior(), dark, PROMPTS, TINY, tmp_path / "update")
    assert [row["micro_batch"] for row in rounds(tmp_path / "update")] == [2, 2]
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (out, plain))
    for name in a:  # the first round's gradient was summed in another order
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)

    monkeypatch.setattr(module, "draw", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    with pytest.raises(InputError, match="one view group at a time"):
        finetune(ToyPrior(), dark, PROMPTS, TINY, tmp_path / "none")


def test_the_embedded_prior_s_format_is_tuned_and_read_back(tmp_path: Path) -> None:
    random_prior().save_pretrained(tmp_path / "base", dtype=torch.float32)
    prior = load(str(tmp_path / "base"))
    options = replace(TINY, adapter=AdapterOptions(lr=1e-2), rounds=1)
    finetune(
        prior, dark, ["a red box", "a red box", "a blue crate"], options, tmp_path / "run", base=str(tmp_path / "base")
    )
    tuned = load(str(tmp_path / "run" / "adapter"))
    x = torch.randn(1, 4, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    a, b = (
        p.predict_x0(x, torch.tensor([0.6]), p.encode_prompt("a red box"), p.cameras(0.0, 0.2))[0]
        for p in (prior, tuned)
    )
    assert torch.equal(a.detach(), b)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["prompts"] == ["a red box", "a blue crate"]


def test_bad_requests_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one prompt"):
        finetune(ToyPrior(), dark, [], TINY, tmp_path / "run")
    with pytest.raises(InputError, match="knows no word"):
        finetune(ToyPrior(), dark, ["a boat"], TINY, tmp_path / "run")
    for changes, says in (
        ({"algorithm": "nff"}, "did you mean 'nft'"),
        ({"group": 1}, "judged against others"),
        ({"rounds": 0}, "at least 1"),
        ({"path": PathOptions(window=4)}, "has no room"),
        ({"elevation": (30.0, 10.0)}, "ordered pair"),
    ):
        with pytest.raises(ConfigError, match=says):
            replace(TINY, **changes)


def test_a_constraint_is_kept_while_the_reward_rises(tmp_path: Path) -> None:
    @reward(views=None)
    def red(x: RewardInput) -> torch.Tensor:
        return x.images[:, :, 0].mean((1, 2, 3))

    options = replace(
        TINY,
        algorithm="ddpo",
        rounds=24,
        group=8,
        micro_batch=8,
        adapter=AdapterOptions(rank=4, lr=3e-2),
        path=PathOptions(clip=0.05),
    )
    ends = {}
    for name, held in (("free", None), ("held", red)):
        prior = ToyPrior()
        finetune(prior, dark, PROMPTS, options, tmp_path / name, constraint=held)
        with torch.no_grad():
            images = prior.decode(prior.network(torch.eye(4)[:3]))
        rgb = images[:, :, :3] + 1 - images[:, :, 3:]
        ends[name] = (float(1 - rgb.mean()), float(rgb[:, :, 0].mean()))
    # Darker in both; with the constraint (a multiplier that rises while red falls) less red is lost.
    assert rounds(tmp_path / "held")[-1]["multiplier"] > 0
    print(ends)
    assert ends["held"][1] > ends["free"][1]


def test_neighbours_of_zigal_begin_from_the_same_noise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    whole = module.scored

    def scored(prior, rewards, batches):  # type: ignore[no-untyped-def]
        for found in whole(prior, rewards, batches):
            seen.append(found.batch)
            yield found

    monkeypatch.setattr(module, "scored", scored)
    options = replace(TINY, algorithm="zigal", micro_batch=3, rounds=1, sampler=SamplerOptions(kind="lcm", steps=4))
    finetune(ToyPrior(), dark, PROMPTS, options, tmp_path / "run")
    for batch in seen:
        assert len(batch.rows) == 2  # a micro-batch of 3 holds one pair
        standard, zigzag = batch.path.states[0]
        assert not torch.equal(standard, zigzag)
        # The toy's noise at t = 1 knows nothing, so its zigzag is the noise with a share of the mean in it.
        assert float((standard - zigzag).abs().mean()) < 0.5 * float(standard.abs().mean())
    with pytest.raises(ConfigError, match="must be even"):
        replace(options, group=3)


def test_rules_that_follow_a_gradient_need_one(tmp_path: Path) -> None:
    @reward(views=None, differentiable=False)
    def flat(x: RewardInput) -> torch.Tensor:
        return x.images.mean((1, 2, 3, 4)).detach()

    with pytest.raises(ConfigError, match="has none"):
        finetune(ToyPrior(), flat, PROMPTS, replace(TINY, algorithm="refl"), tmp_path / "run")
    still = replace(TINY, algorithm="draft", sampler=SamplerOptions(steps=4, noise=0.0))
    with pytest.raises(ConfigError, match=r"set sampler.noise above 0"):
        finetune(ToyPrior(), dark, PROMPTS, still, tmp_path / "run")
