"""The layout policy: replays, learns, saves; and RLSS's search for places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rl3d.agents import PPO, PPOOptions
from rl3d.agents.layout import LayoutPolicy, SceneLayout, sample_tasks
from rl3d.agents.layout.generate import load_policy
from rl3d.agents.layout.train import EMBEDDED, TrainOptions, fresh_policy, train
from rl3d.cli.main import main
from rl3d.errors import AssetError, ConfigError

TASKS = sample_tasks(4, 1, "bathroom")


@pytest.mark.parametrize("where", ["policy", "greedy"])
def test_the_replay_is_exact_and_the_policy_learns_something(where: str) -> None:
    torch.manual_seed(0)
    policy = LayoutPolicy(16, 8, where)  # type: ignore[arg-type]
    learner = PPO(SceneLayout(8, TASKS), policy, PPOOptions(steps=4, epochs=2, minibatches=2, gamma=1.0, rate=3e-3))
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    numbers = learner.update()  # raises where the replay differs by more than 1e-4
    assert numbers["steps"] >= 2 and any(not torch.equal(v, before[k]) for k, v in policy.state_dict().items())
    places_learn = not torch.equal(policy.pair.weight, before["pair.weight"])
    assert places_learn == (where == "policy")


def test_saving_and_loading_gives_the_same_rooms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = LayoutPolicy(16, 8)
    policy.save(tmp_path)
    loaded, again = LayoutPolicy.load(tmp_path), LayoutPolicy.load(tmp_path)
    env, other = SceneLayout(4, TASKS, seed=5), SceneLayout(4, TASKS, seed=5)
    a, b = (
        p.act(e.observe(), e, torch.Generator().manual_seed(0), best=True).action
        for p, e in ((loaded, env), (again, other))
    )
    assert torch.equal(a, b)
    (tmp_path / "config.json").write_text('{"hidden": 8, "proposals": 8, "where": "policy"}')
    with pytest.raises(AssetError, match="layout policy"):
        LayoutPolicy.load(tmp_path)
    with pytest.raises(AssetError, match="layout policy"):
        LayoutPolicy.load(tmp_path / "nowhere")


def test_training_resumes_where_it_was(tmp_path: Path) -> None:
    ppo = PPOOptions(steps=2, epochs=1, minibatches=1, gamma=1.0, updates=2)
    options = TrainOptions(rooms=4, envs=4, hidden=16, proposals=8, save_every=1, ppo=ppo)
    whole = LayoutPolicy.load(train(options, tmp_path / "whole"))

    class Stop(Exception):
        pass

    plain, count = PPO.update, 0

    def once(self: PPO) -> dict[str, float]:
        nonlocal count
        count += 1
        if count == 2:
            raise Stop
        return plain(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPO, "update", once)
        with pytest.raises(Stop):
            train(options, tmp_path / "parts")
    parts = LayoutPolicy.load(train(options, tmp_path / "parts", resume=True))
    assert all(torch.equal(v, parts.state_dict()[k]) for k, v in whole.state_dict().items())
    with pytest.raises(ConfigError, match="was begun with"):
        train(TrainOptions(rooms=5, envs=4), tmp_path / "whole", resume=True)


def test_training_begins_with_the_weights_of_a_folder_or_the_embedded_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    LayoutPolicy(16, 8).save(tmp_path / "begin")
    begun = LayoutPolicy.load(tmp_path / "begin").state_dict()
    small = ["--updates", "1", "--envs", "4", "--rooms", "4", "--quiet"]
    command = ["layout", "train", "--from", str(tmp_path / "begin"), "--rate", "1e-9", *small]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    after = LayoutPolicy.load(tmp_path / "run" / "policy")
    assert (after.hidden, after.proposals) == (16, 8)
    assert all(torch.equal(v, begun[k]) for k, v in after.state_dict().items())  # a rate of next to nothing
    assert main([*command, "--rate", "1e-2", "--out", str(tmp_path / "moved")]) == 0
    moved = LayoutPolicy.load(tmp_path / "moved" / "policy").state_dict()
    assert any(not torch.equal(v, begun[k]) for k, v in moved.items())
    shipped = load_policy().state_dict()
    fresh = fresh_policy(TrainOptions(begin=EMBEDDED, where="greedy"))
    assert fresh.where == "greedy" and all(torch.equal(v, shipped[k]) for k, v in fresh.state_dict().items())

    capsys.readouterr()
    again = [
        "layout",
        "train",
        "--from",
        str(tmp_path / "run" / "policy"),
        "--overwrite",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*again, *small]) == 2
    assert "take another --out" in capsys.readouterr().err and (tmp_path / "run" / "policy").is_dir()
    assert main(["layout", "train", "--from", str(tmp_path / "none"), "--out", str(tmp_path / "new"), *small]) != 0
    assert "layout policy" in capsys.readouterr().err and not (tmp_path / "new").exists()
