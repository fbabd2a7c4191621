"""The benchmark of room layout: rows furnish and count their calls, the page compares rooms that both rows have; and
what ships has beaten the others."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_world import load_tool

from rl3d.agents.layout import LayoutPolicy
from rl3d.agents.layout.inventory import ROOM_TYPES
from rl3d.agents.layout.train import TEST_SEED
from rl3d.errors import InputError


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("bench_layout")


@pytest.fixture(scope="module")
def every(tool: ModuleType) -> list[Any]:
    torch.manual_seed(0)
    return tool.rows(LayoutPolicy(16, 8), LayoutPolicy(16, 8, "greedy"))


def test_rows_furnish_the_unseen_rooms_and_count_their_calls(tool: ModuleType, every: list[Any]) -> None:
    tasks = tool.test_rooms(1)
    assert len(tasks) == len(ROOM_TYPES) and tasks.room_type.tolist() == list(range(len(ROOM_TYPES)))
    pieces = (tasks.kind >= 0).sum(1).double().mean()
    by_key = {row.key: row for row in every}
    assert len(by_key) == len(every)
    for key, calls in (
        ("random-1", 1),
        ("policy-1", 1),
        ("greedy-12", 12 * float(pieces) + 1),
        ("rlss-12", 12 * float(pieces) + 1),  # as many as greedy's
        ("polish-64", 64),
    ):
        made = tool.run_row(by_key[key], tasks)
        assert made["calls"] == pytest.approx(calls), key
        assert len(made["measures"]["score"]) == made["rooms"] == 6 and 0 <= made["diversity"] <= 1
        assert sum(made["measures"]["collisions"]) == sum(made["measures"]["outside"]) == 0


def test_a_searching_policy_is_asked_for_and_keeps_its_own_places(tool: ModuleType) -> None:
    policy = LayoutPolicy(16, 8)
    assert not [row for row in tool.rows(policy) if row.key.startswith("rlss")]
    with pytest.raises(AssertionError):
        tool.rlss_of(policy, 12)  # one that was trained to choose the place itself
    searching = LayoutPolicy(16, 8, "greedy")
    tool.rlss_of(searching, 12)
    assert searching.proposals == 8


def test_the_rooms_are_those_that_training_refuses(tool: ModuleType) -> None:
    assert tool.TEST_SEED == TEST_SEED
    assert tool.test_rooms(2).metres[:6].equal(tool.test_rooms(1).metres)  # fewer rooms are the first of more


def row(name: str, calls: float, milliseconds: float, score: list[float]) -> dict[str, Any]:
    rooms = len(score)
    flat = {key: [0.0] * rooms for key in ("collisions", "outside", "door")}
    shares = {key: list(score) for key in ("score", "rules", "navigability", "accessibility", "placed")}
    return {
        "name": name,
        "calls": calls,
        "cpu_ms": milliseconds,
        "diversity": 0.5,
        "rooms": rooms,
        "types": [i % 6 for i in range(rooms)],
        "measures": {**flat, **shares, "objects": [5.0] * rooms},
    }


def test_the_page_pairs_rooms_and_says_what_was_aimed_at() -> None:
    page = load_tool("bench_layout_page").page
    results = {
        "order": ["policy-1", "policy-16", "anneal-1200", "anneal-12000", "missing"],
        "policy-1": row("one", 1, 4.0, [0.9] * 12),
        "policy-16": row("sixteen", 16, 50.0, [0.8] * 6 + [0.5] * 6),
        "anneal-1200": row("long", 1200, 200.0, [0.8] * 12),
        "anneal-12000": row("longest", 12_000, 2500.0, [0.9] * 6),  # the first six rooms alone
        "speed": [
            {"n": 1.0, "env": 0.01, "policy": 0.01, "update": 0.02},
            {"n": 64.0, "env": 0.0001, "policy": 0.01, "update": 0.02},
        ],
        "wrapped": {"sync": 0.004, "dummy": 0.005, "batch": 0.0002},
        "room": [{"type": 0.0, "ms": 60.0}, {"type": 1.0, "ms": 100.0}],
    }
    text = page(results, "rooms.png")
    assert "12 unseen rooms, 2 of each type" in text and "| longest (6 rooms) | 12000 |" in text
    assert "0 pieces collide and 0 stand out of bounds" in text
    assert "| one less long | 50 | 12 | 0.1000 [0.1000, 0.1000]" in text
    assert "| sixteen less longest | 50 | 6 | -0.1000 [-0.1000, -0.1000]" in text  # not its last six rooms
    assert "| 1 | 100 | 50 | 25 | 25% | 25% | 50% |" in text
    assert "makes 40 and 50 times as many" in text and "20 and 25 times as many" in text
    assert "80 ms of one thread's CPU time, 60 to 100 over 2 rooms" in text and "](rooms.png)" in text


def test_the_command_makes_what_is_missing_and_writes_page_and_picture(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    LayoutPolicy(16, 8).save(tmp_path / "policy")
    few = [row for row in tool.rows(LayoutPolicy(16, 8)) if row.key in ("random-1", "policy-1")]
    shown = [tool.Row(key, key, few[0].make) for key in ("random-64", "greedy-64", "anneal-384", "policy-64")]
    monkeypatch.setattr(tool, "rows", lambda policy, rlss: few + shown)
    command = ["bench_layout", str(tmp_path / "out"), "--policy", str(tmp_path / "policy"), "--rooms", "1"]
    command += ["--only", "random-1", "--page", str(tmp_path / "page.md"), "--picture", str(tmp_path / "rooms.png")]
    monkeypatch.setattr("sys.argv", command)
    tool.main()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"random-1.json"}
    kept = (tmp_path / "out" / "random-1.json").read_bytes()
    assert "](rooms.png)" in (tmp_path / "page.md").read_text() and (tmp_path / "rooms.png").stat().st_size > 10_000
    monkeypatch.setattr("sys.argv", [*command[:6], "--only", "random-1", "policy-1"])
    tool.main()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"random-1.json", "policy-1.json"}
    assert (tmp_path / "out" / "random-1.json").read_bytes() == kept


def test_speeds_and_times_are_measured(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stable_baselines3")
    torch.manual_seed(0)
    policy = LayoutPolicy(16, 8)
    monkeypatch.setattr(tool, "SPEEDS", (32,))
    (found,) = tool.speed(policy)
    assert found["n"] == 32 and min(found.values()) > 0
    assert set(tool.wrapped_steps()) == {"sync", "dummy", "batch"}
    monkeypatch.setattr(tool, "ROOM_TYPES", ("office", "bathroom"))
    times = tool.room_times(policy, seeds=1)
    assert [t["type"] for t in times] == [0, 1] and all(t["ms"] > 0 for t in times)


def test_a_policy_ships_only_if_it_beats_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship = load_tool("ship_layout")
    torch.manual_seed(0)
    policy = LayoutPolicy(16, 8)
    policy.save(tmp_path / "policy")
    score = [0.9, 0.92, 0.94, 0.9, 0.93, 0.95]
    rows = {"policy-64": row("mine", 64, 9.0, score), "random-64": row("random", 64, 9.0, [0.5] * 6)}
    rows |= {key: row(key, 64, 9.0, [s - 0.1 for s in score]) for key in ("greedy-12", "anneal-64")}
    found = ship.beaten(rows, "policy-64", "anneal-64")
    assert found == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(InputError, match="policy-64 does not beat policy-64"):
        ship.beaten(rows, "policy-64", "policy-64")
    bench = tmp_path / "bench"
    bench.mkdir()
    for key, value in rows.items():
        (bench / f"{key}.json").write_text(json.dumps(value))
    (bench / "speed.json").write_text("[]")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "MANIFEST.json").write_text('{"models": {}}')
    monkeypatch.setattr(ship, "packaged_folder", lambda name: tmp_path / name)
    monkeypatch.setattr("sys.argv", ["ship_layout", str(tmp_path / "policy"), str(bench)])
    ship.main()
    folder = tmp_path / "assets" / "layout"
    card = (folder / "README.md").read_text()
    assert "| mine | 64 | 0.9233 |" in card and "- less anneal-64: 0.1000 [0.1000, 0.1000]" in card
    assert "layout" in (tmp_path / "assets" / "MANIFEST.json").read_text()
    assert LayoutPolicy.load(folder).proposals == 8
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    (bench / "anneal-64.json").write_text(json.dumps(row("anneal-64", 64, 9.0, [0.99] * 6)))
    with pytest.raises(InputError, match="not shipped"):
        ship.main()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
