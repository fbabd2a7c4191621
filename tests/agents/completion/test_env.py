"""The environment's contract: terms add up, SAME_STEP, search by state_dict, and no look at what is missing."""

from __future__ import annotations

import pytest
import torch

from rl3d.agents.completion.agent import AgentConfig, ShiftAgent, best_of, climb_loss, hill_climb
from rl3d.agents.completion.autoencoder import Autoencoder
from rl3d.agents.completion.clouds import distances, resampled, view_crop
from rl3d.agents.completion.env import LatentCompletion
from rl3d.agents.completion.objective import TERMS, Judge, Parts, parts_of, total
from rl3d.errors import InputError


@pytest.mark.parametrize("mode", ["shift", "pick"])
def test_an_episode_returns_what_the_objective_gained(judge: Judge, parts: Parts, mode: str) -> None:
    env = LatentCompletion(4, parts, judge, mode=mode, steps=3, reach=0.5)  # type: ignore[arg-type]
    seen = env.reset(row=torch.tensor([0, 1, 2, 5]))
    begun, first = env.chosen, seen["state"]
    assert first.shape == (4, env.state_size) and float(first[:, -1].abs().max()) == 0
    start = total(judge.terms(begun, begun.start))
    gained, g = torch.zeros(4), torch.Generator().manual_seed(0)
    for k in range(env.steps):
        step = env.step(2 * torch.rand(4, env.action_size, generator=g) - 1)
        assert torch.allclose(step.reward, sum(step.terms.values()), atol=1e-5) and set(step.terms) == set(TERMS)  # type: ignore[arg-type]
        gained += step.reward
        over = k == env.steps - 1
        assert step.terminated.tolist() == [over] * 4 and not step.truncated.any()
        if not over:
            assert torch.equal(step.final["state"], step.observation["state"])
            code = env.code
    code = step.final["state"][:, 8:16] + begun.start
    assert torch.allclose(gained, total(judge.terms(begun, code)) - start, atol=1e-4)
    assert float(step.observation["state"][:, 8:16].abs().max()) == 0  # a new episode, at E(P_in) again


def test_rows_end_for_themselves_and_states_come_back(judge: Judge, parts: Parts) -> None:
    env = LatentCompletion(3, parts, judge, steps=2, seed=1)
    g = torch.Generator().manual_seed(0)
    env.step(2 * torch.rand(3, 8, generator=g) - 1)
    kept = env.row.clone()
    env.reset(torch.tensor([True, False, False]))
    assert env.done_steps.tolist() == [0, 1, 1] and torch.equal(env.row[1:], kept[1:])
    state, action = env.state_dict(), 2 * torch.rand(3, 8, generator=g) - 1
    first = env.step(action)
    assert first.done.tolist() == [False, True, True]
    env.load_state_dict(state)
    second = env.step(action)
    assert torch.equal(first.reward, second.reward)
    assert torch.equal(first.observation["state"], second.observation["state"])


def test_the_missing_part_is_never_seen(judge: Judge) -> None:
    """Two wholes that differ in their far half alone give the same parts, rewards and observations."""
    g = torch.Generator().manual_seed(0)
    near = torch.rand(2, 50, 3, generator=g) * torch.tensor([0.5, 1.0, 1.0]) - torch.tensor([0.5, 0.5, 0.5])
    envs = []
    for missing in (torch.rand(2, 50, 3, generator=g) * 0.4 + 0.1, torch.full((2, 50, 3), 0.45)):
        whole = torch.cat([near, missing], 1)
        keep = view_crop(whole, torch.tensor([[2.0, 0.0, 0.0]]).expand(2, 3), 0.5)
        assert keep[:, :50].all() and not keep[:, 50:].any()
        seen = resampled(whole, keep, 50, torch.Generator().manual_seed(1))
        envs.append(LatentCompletion(2, parts_of(judge.autoencoder, seen), judge))
    action = 2 * torch.rand(2, 8, generator=g) - 1
    one, other = (env.step(action) for env in envs)
    assert torch.equal(one.reward, other.reward)
    assert torch.equal(one.observation["state"], other.observation["state"])


def test_the_visible_term_does_not_punish_completing(judge: Judge, parts: Parts) -> None:
    """Points beside the visible ones change nothing; away from all of them, it falls."""
    cloud = torch.cat([parts.points, parts.points + 2], 1)
    terms = judge.terms(parts, parts.start, cloud)
    assert float(terms["visible"].abs().max()) == 0
    assert float(judge.terms(parts, parts.start, cloud + 0.1)["visible"].max()) < 0
    there = distances(parts.points, cloud + 0.1).mean(1)
    assert torch.allclose(
        judge.terms(parts, parts.start, cloud + 0.1)["visible"], -judge.weights.visible * there, atol=1e-5
    )


def test_candidates_are_scored_as_steps_are(judge: Judge, parts: Parts) -> None:
    env = LatentCompletion(2, parts, judge, steps=2, reach=1.0)
    before = total(judge.terms(env.chosen, env.code))
    action = torch.rand(2, 8)
    scores = env.score_candidates(torch.stack([env.code, env.code + action], 1))
    assert torch.allclose(scores[:, 0], before, atol=1e-5)
    assert torch.allclose(env.step(action).reward, scores[:, 1] - scores[:, 0], atol=1e-5)


def test_bad_actions_and_sizes_are_refused(judge: Judge, parts: Parts) -> None:
    env = LatentCompletion(2, parts, judge)
    with pytest.raises(InputError, match="must be \\[2, 8\\]"):
        env.step(torch.zeros(2, 7))
    with pytest.raises(InputError, match="lie in"):
        env.step(torch.full((2, 8), 1.5))
    with pytest.raises(InputError, match="mode"):
        LatentCompletion(2, parts, judge, mode="push")  # type: ignore[arg-type]


def test_search_never_ends_below_its_start(judge: Judge, parts: Parts) -> None:
    g = torch.Generator().manual_seed(0)
    start = total(judge.terms(parts, parts.start))
    for search in (hill_climb, best_of):
        assert torch.equal(search(judge, parts, 1, g), parts.start)
        few, many = (total(judge.terms(parts, search(judge, parts, calls, g))) for calls in (4, 40))
        assert (few >= start - 1e-6).all() and (many >= start - 1e-6).all() and (many > start + 1e-4).any()


def test_the_agent_climbs_the_objective(judge: Judge, parts: Parts) -> None:
    torch.manual_seed(0)
    agent = ShiftAgent(AgentConfig(gfv=8, hidden=32, steps=2, reach=0.5))
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss, _, _ = climb_loss(agent, judge, parts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.03  # 0.05; an untrained decoder has little to offer
    path = agent.path(judge, parts)
    assert len(path) == 3 and torch.equal(path[0], parts.start)
    assert float((path[2] - path[0]).detach().abs().max()) <= 2 * 0.5 + 1e-6
    assert isinstance(judge.autoencoder, Autoencoder) and all(p.grad is None for p in judge.autoencoder.parameters())
