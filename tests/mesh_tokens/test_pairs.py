"""Which candidates dominate others, and pair sets as files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rl3d.errors import ConfigError, InputError
from rl3d.mesh_tokens.pair_files import Candidate, Pair, PairSet, Shape, read_pair_set, write_pair_set, write_pairs
from rl3d.mesh_tokens.pairs import METRICS, PairRule, better, dominance, gain

GOOD = {"ber": 0.0, "ts": 0.8, "hd": 0.1, "cd": 0.02}
FAILED = {name: -math.inf if more else math.inf for name, more in METRICS.items()}


def test_a_winner_is_better_on_every_metric() -> None:
    worse = {"ber": 0.1, "ts": 0.7, "hd": 0.2, "cd": 0.03}
    mixed = {**worse, "ts": 0.9}
    rule = PairRule()
    assert better(GOOD, worse, rule) == pytest.approx(min(0.1 / 0.75, 0.1 / 0.15))
    assert better(worse, GOOD, rule) is None and better(GOOD, mixed, rule) is None
    assert dominance([GOOD, worse, mixed], [100] * 3, 100, rule) == [(0, 1)]  # mixed ties with worse on ber and hd
    assert dominance([GOOD, worse, mixed], [100] * 3, 100, PairRule(("hd",), ())) == [(0, 1), (0, 2)]


def test_ties_are_allowed_where_the_rule_says_so() -> None:
    closed = {**GOOD, "ts": 0.7, "hd": 0.2}
    assert better(GOOD, closed, PairRule()) is not None
    assert better(GOOD, closed, PairRule(ties=())) is None
    assert better(GOOD, GOOD, PairRule()) is None
    assert better(GOOD, {**GOOD, "ts": 0.799, "hd": 0.11}, PairRule(margin=0.05)) is None


def test_what_failed_loses_and_never_wins() -> None:
    assert dominance([FAILED, GOOD, FAILED], [0, 100, 0], 100, PairRule()) == [(1, 0), (1, 2)]
    assert gain(math.inf, math.inf, False) == 0 and gain(math.nan, 1.0, True) == -math.inf


def test_no_winner_is_far_from_the_asked_number_of_faces() -> None:
    coarse, fine = {**GOOD, "ts": 1.0, "hd": 0.05}, {**GOOD, "ts": 0.9, "hd": 0.01}
    assert dominance([coarse, GOOD], [12, 100], 100, PairRule()) == []
    assert dominance([fine, GOOD], [400, 100], 100, PairRule()) == []
    assert dominance([fine, GOOD], [140, 100], 100, PairRule()) == [(0, 1)]


def test_the_clearest_pairs_are_kept() -> None:
    scores = [{**GOOD, "ts": ts, "hd": hd} for ts, hd in ((0.9, 0.1), (0.8, 0.2), (0.4, 0.8))]
    assert dominance(scores, [10] * 3, 10, PairRule(most=1)) == [(0, 2)]
    assert len(dominance(scores, [10] * 3, 10, PairRule())) == 3


def test_independent_metrics_order_a_quarter_of_all_pairs() -> None:
    rng = np.random.default_rng(0)  # each of three metrics agrees with the first by chance
    rule, found = PairRule(ties=()), 0
    for _ in range(60):
        scores = [dict(zip(("ber", "ts", "hd"), row)) for row in rng.random((8, 3)).tolist()]
        found += len(dominance(scores, [10] * 8, 10, rule))
    assert found / (60 * 28) == pytest.approx(0.25, abs=0.03)


def test_rules_and_scores_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"unknown metric 'bre'.*ber"):
        PairRule(metrics=("bre",))
    with pytest.raises(ConfigError, match="must not allow ties"):
        PairRule(metrics=("ber",), ties=("ber",))
    with pytest.raises(InputError, match="no score 'ts'"):
        dominance([{"ber": 0.0, "hd": 0.0}], [1], 1, PairRule())
    with pytest.raises(InputError, match="one face count"):
        dominance([GOOD], [1, 2], 1, PairRule())


# Files ----------------------------------------------------------------------------------------------------------------


def small_set() -> PairSet:
    rng = np.random.default_rng(0)
    shapes = {n: Shape(rng.random((4, 6), np.float32), f"a {n}", 3) for n in ("chair", "table")}
    candidates = {}
    for name in ("chair/0", "chair/1", "table/0", "table/1"):
        tokens, quality = rng.integers(0, 9, 12).astype(np.int32), rng.random(3).astype(np.float32)
        candidates[name] = Candidate(name.split("/")[0], tokens, quality, {"ber": 0.0, "hd": 0.25})
    nothing = np.zeros(0, np.float32)
    candidates["table/2"] = Candidate("table", np.arange(3, dtype=np.int32), nothing, {})
    pairs = (Pair("chair/0", "chair/1"), Pair("table/1", "table/0", "human"))
    return PairSet(shapes, candidates, pairs, {"bins": 128})


def test_a_set_comes_back_as_it_was_written(tmp_path: Path) -> None:
    wrote = small_set()
    write_pair_set(tmp_path, wrote)
    read = read_pair_set(tmp_path)
    assert read.pairs == wrote.pairs and read.facts == wrote.facts and list(read.candidates) == list(wrote.candidates)
    for name, candidate in wrote.candidates.items():
        other = read.candidates[name]
        assert other.shape == candidate.shape and other.scores == candidate.scores
        assert other.failed == (name == "table/2")
        assert np.array_equal(other.tokens, candidate.tokens) and np.array_equal(other.quality, candidate.quality)
    assert all(np.array_equal(read.shapes[n].points, s.points) for n, s in wrote.shapes.items())
    write_pairs(tmp_path, [Pair("chair/1", "chair/0", "human")])
    assert read_pair_set(tmp_path).pairs == (Pair("chair/1", "chair/0", "human"),)


def line_changed(name: str, number: int, change: Callable[[dict], dict]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        lines[number] = json.dumps(change(json.loads(lines[number])))
        (folder / name).write_text("\n".join(lines))

    return edit


BROKEN = {
    "unknown key": (line_changed("pairs.jsonl", 1, lambda r: {**r, "winer": 1}), r"pairs.jsonl line 2: unknown key"),
    "missing key": (line_changed("pairs.jsonl", 0, lambda r: {"winner": r["winner"]}), r"'loser' is missing"),
    "wrong type": (line_changed("shapes.jsonl", 0, lambda r: {**r, "faces": "3"}), r"faces must be int, got '3'"),
    "no candidate": (line_changed("pairs.jsonl", 0, lambda r: {**r, "loser": "chair/9"}), r"no candidate 'chair/9'"),
    "itself": (line_changed("pairs.jsonl", 0, lambda r: {**r, "loser": r["winner"]}), r"better than itself"),
    "two shapes": (line_changed("pairs.jsonl", 0, lambda r: {**r, "loser": "table/0"}), r"pair one shape's own"),
    "no author": (line_changed("pairs.jsonl", 0, lambda r: {**r, "by": "me"}), r"metrics or human"),
    "wrong hash": (line_changed("candidates.jsonl", 2, lambda r: {**r, "sha256": "0" * 64}), r"do not have the hash"),
    "wrong shape": (line_changed("candidates.jsonl", 0, lambda r: {**r, "shape": "sofa"}), r"shape 'sofa' is not"),
    "lost arrays": (line_changed("candidates.jsonl", 0, lambda r: {**r, "candidate": "chair/x"}), r"are missing"),
    "not JSON": (lambda f: (f / "pairs.jsonl").write_text("{winner}"), r"line 1 is not JSON"),
    "a list": (lambda f: (f / "pairs.jsonl").write_text("[1]"), r"must be a JSON object"),
    "unfinished": (lambda f: (f / "pairs.jsonl").unlink(), r"pairs.jsonl is missing; the set is unfinished"),
    "no arrays": (lambda f: (f / "candidates.npz").write_bytes(b"PK nothing"), r"candidates.npz cannot be read"),
    "no facts": (lambda f: (f / "pair_set.json").unlink(), r"pair_set.json cannot be read"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_set_says_where(kind: str, tmp_path: Path) -> None:
    write_pair_set(tmp_path, small_set())
    damage, message = BROKEN[kind]
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        read_pair_set(tmp_path)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    write_pair_set(tmp_path, small_set())
    np.savez(tmp_path / "shapes.npz", chair=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"shapes\.npz cannot be read"):
        read_pair_set(tmp_path)


def test_bad_pairs_are_not_written(tmp_path: Path) -> None:
    wrote = small_set()
    with pytest.raises(InputError, match="no candidate"):
        write_pair_set(tmp_path / "set", PairSet(wrote.shapes, wrote.candidates, (Pair("chair/0", "x"),)))
    assert not (tmp_path / "set").exists()
    with pytest.raises(InputError, match="is no folder"):
        read_pair_set(tmp_path / "set")
