"""The environment: hard rules hold, rewards add up, states come back; and the objective on rooms made by hand."""

from __future__ import annotations

import pytest
import torch

from rl3d.agents.layout import LEAVE, PLACES, SceneLayout, anneal, best_of, furnish, greedy, random_masked
from rl3d.agents.layout.furniture import NAMES
from rl3d.agents.layout.inventory import parse_inventory
from rl3d.agents.layout.objective import TERMS, Layouts, objective
from rl3d.agents.layout.rooms import GRID, Opening, Room
from rl3d.agents.layout.scene import FurnishedRoom, Standing, as_layouts, measures
from rl3d.agents.layout.tasks import Task, sample_tasks
from rl3d.errors import InputError

TASKS = sample_tasks(12, 3)
INDEX = torch.arange(12)


def test_random_rooms_keep_every_hard_rule_and_rewards_add_up() -> None:
    env = SceneLayout(12, TASKS)
    seen = env.reset(task=INDEX)
    first, g = env.score.clone(), torch.Generator().manual_seed(0)
    total, ended = torch.zeros(12), torch.zeros(12, dtype=torch.bool)
    while not bool(ended.all()):
        action = random_masked(env, seen, g)
        before = env.score.clone()
        step = env.step(action)
        assert torch.allclose(sum(step.terms.values()), step.reward, atol=1e-6)  # type: ignore[arg-type]
        total += torch.where(ended, torch.zeros(12), step.reward)
        now = ~ended & step.terminated
        layouts = Layouts(INDEX, step.final["place"], step.final["status"] == 1)
        score, terms = objective(TASKS, layouts)
        numbers = measures(TASKS, layouts)
        for name in ("collisions", "outside", "door"):
            assert numbers[name][~ended].sum() == 0  # from boxes in metres, not from the grid
        assert torch.allclose(score[now], (first + total)[now], atol=1e-5)
        assert all(bool(((t >= 0) & (t <= 1 + 1e-6)).all()) for t in terms.values())
        assert before.shape == (12,)
        ended |= now
        seen = step.observation
    assert bool(step.truncated.sum() == 0)


def test_equal_pieces_wait_in_line_and_illegal_actions_are_refused() -> None:
    env = SceneLayout(1, TASKS)
    task = int(next(i for i in range(12) if (TASKS.kind[i] == NAMES.index("nightstand")).sum() > 1))
    env.reset(task=torch.tensor([task]))
    twins = (TASKS.kind[task] == NAMES.index("nightstand")).nonzero()[:, 0].tolist()
    mask = env.action_mask()[0]
    assert bool(mask[twins[0]]) and not bool(mask[twins[1]])
    slot = torch.tensor([twins[0]])
    places = env.action_mask(slot)[0]
    bad = int((~places[:PLACES]).nonzero()[0, 0])
    with pytest.raises(InputError, match="outside or taken"):
        env.step(torch.tensor([[twins[0], bad]]))
    good = int(places[:PLACES].nonzero()[0, 0])
    env.step(torch.tensor([[twins[0], good]]))
    with pytest.raises(InputError, match="does not wait"):
        env.step(torch.tensor([[twins[0], good]]))
    assert bool(env.action_mask()[0, twins[1]])
    assert not bool(env.action_mask(torch.tensor([twins[1]]))[0, good])  # taken now


def test_only_what_cannot_be_placed_or_is_optional_may_be_left_out() -> None:
    env = SceneLayout(12, TASKS)
    env.reset(task=INDEX)
    for slot in range(4):
        there = TASKS.kind[:, slot] >= 0
        leave = env.action_mask(torch.full((12,), slot))[:, LEAVE]
        assert torch.equal(leave[there], ~TASKS.required[there, slot])


def test_states_come_back_and_a_seed_is_a_trajectory() -> None:
    def walk(env: SceneLayout) -> list[float]:
        g = torch.Generator().manual_seed(3)
        seen = env.observe()
        out = []
        for _ in range(5):
            step = env.step(random_masked(env, seen, g))
            seen = step.observation
            out.append(float(step.reward.sum()))
        return out

    env, other = SceneLayout(4, TASKS, seed=1), SceneLayout(4, TASKS, seed=2)
    state = env.state_dict()
    ahead = walk(env)
    other.load_state_dict(state)
    assert walk(other) == ahead
    env.reset(seed=1)
    assert walk(env) == ahead


def test_score_candidates_is_the_score_after_the_step() -> None:
    env = SceneLayout(12, TASKS)
    seen = env.reset(task=INDEX)
    slot = seen["waiting"].float().argmax(1)
    proposed = env.propose(slot, 3, torch.Generator().manual_seed(0))
    scores = env.score_candidates(slot, proposed.place)
    env.put(slot, proposed.place[:, 1])
    assert torch.allclose(objective(TASKS, env.layouts)[0], scores[:, 1])
    env.lift(slot)
    assert bool((env.status[torch.arange(12), slot] == 0).all()) and not bool(env.taken.any())


def room_of(*pieces: tuple[str, float, float, int]) -> FurnishedRoom:
    """4 x 3.5 m, the door in the south near the west corner; pieces as (name, x, z, heading), smallest sizes."""
    room = Room(4.0, 3.5, Opening(0, 0.2, 0.9), (Opening(2, 1.0, 1.2),))
    standing = [Standing(parse_inventory(name)[0], x, z, turn) for name, x, z, turn in pieces]
    return FurnishedRoom(Task("bedroom", room, tuple(s.piece for s in standing)), tuple(standing))


def numbers_of(*pieces: tuple[str, float, float, int]) -> dict[str, float]:
    return {name: float(value[0]) for name, value in measures(*as_layouts(room_of(*pieces))).items()}


def test_a_bedroom_as_it_should_be_has_full_marks() -> None:
    """A bed of 1.4 m with its head in the middle of the north wall, nightstands of .45 x .40 at both sides."""
    good = numbers_of(
        ("double bed", 2.0, 1.0, 0),
        ("nightstand", 1.05, 0.2, 0),
        ("nightstand", 2.95, 0.2, 0),
        ("wardrobe", 3.7, 2.5, 3),
    )
    assert good["score"] > 0.97 and good["rules"] == 1 and good["symmetry"] > 0.9
    assert good["collisions"] == good["outside"] == good["door"] == 0
    apart = numbers_of(
        ("double bed", 2.0, 1.0, 0),
        ("nightstand", 0.2, 1.5, 1),
        ("nightstand", 2.95, 0.2, 0),
        ("wardrobe", 3.7, 2.5, 3),
    )
    assert apart["pair"] == pytest.approx(0.5, abs=0.05) and apart["symmetry"] < 0.1 < good["symmetry"]
    turned = numbers_of(
        ("double bed", 2.0, 1.7, 0),
        ("nightstand", 1.05, 0.2, 0),
        ("nightstand", 2.95, 0.2, 0),
        ("wardrobe", 3.7, 2.5, 3),
    )
    assert turned["wall"] < good["wall"] and turned["rules"] < 1


def test_what_is_wrong_is_counted() -> None:
    """A wardrobe inside the bed, a nightstand through the wall, a plant in the door, a tall wardrobe at the window."""
    bad = numbers_of(
        ("double bed", 2.0, 1.0, 0), ("wardrobe", 1.5, 0.5, 0), ("nightstand", 3.9, 2.0, 0), ("plant", 0.6, 3.0, 0)
    )
    assert bad["collisions"] == 2 and bad["outside"] == 1 and bad["door"] == 1 and bad["window"] < 0.6


def test_a_wall_of_furniture_is_not_walkable() -> None:
    """Wardrobes across the room: what is behind them counts as standing room that nobody reaches."""
    row = [("wardrobe", 0.5 + i, 1.75, 0) for i in range(4)]
    assert numbers_of(*row)["navigability"] < 0.7
    assert numbers_of(("wardrobe", 0.5, 0.3, 0))["navigability"] == 1


def test_greedy_beats_random_and_calls_are_counted() -> None:
    env, g = SceneLayout(12, TASKS), torch.Generator().manual_seed(0)
    pieces = (TASKS.kind >= 0).sum(1)
    random = furnish(env, INDEX, random_masked, g)
    best = furnish(env, INDEX, greedy(8), g, 8)
    cooled = anneal(env, INDEX, 30, g)
    assert random.calls.tolist() == [1] * 12 and best.calls.tolist() == (8 * pieces + 1).tolist()
    assert cooled.calls.tolist() == [30] * 12
    assert best.score.mean() > random.score.mean() + 0.1 and cooled.score.mean() > random.score.mean()
    two = best_of(2, env, INDEX, random_masked, g)
    assert two.calls.tolist() == [2] * 12 and two.score.mean() >= 0.5
    score, _ = objective(TASKS, cooled.layouts)
    assert torch.allclose(score, cooled.score, atol=1e-6)
    for name in ("collisions", "outside", "door"):
        assert measures(TASKS, cooled.layouts)[name].sum() == 0


def test_terms_are_seven_and_the_grid_is_that_of_the_rooms() -> None:
    env = SceneLayout(2, TASKS)
    assert env.observe()["terms"].shape == (2, len(TERMS)) and env.raster().shape == (2, 5, GRID, GRID)
    assert env.observe()["room"].shape == (2, 4 + 6 + 5 + 18)
