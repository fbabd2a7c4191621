"""The methods against known answers: a mixture of Gaussians whose posterior mean is exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_mixtures import PLAIN, mixture_prior, random_images, scored_by, seeded, shot_of
from torch import Tensor

from rl3d.errors import InputError
from rl3d.rewards.protocol import RewardInput
from rl3d.rewards.yes_no import yes_no
from rl3d.text_to_3d.dreamdpo import dreamdpo, preference_weights
from rl3d.text_to_3d.dreamreward import dreamreward
from rl3d.text_to_3d.engine import PATIENCE, balanced, candidate_scores, combine, predict, running_mean, weight_of
from rl3d.text_to_3d.method_options import (
    DreamDPOOptions,
    DreamRewardOptions,
    MethodOptions,
    RewardOptions,
    RewardSDSOptions,
)
from rl3d.text_to_3d.rewardsds import reward_weights, rewardsds
from rl3d.text_to_3d.schedule import Schedule
from rl3d.text_to_3d.sds import sds

NAN = float("nan")


def constant(strength: float) -> Schedule:
    return Schedule(((0.0, strength),))


def test_one_candidate_of_weight_one_is_the_target_to_the_last_bit() -> None:
    x, x0 = torch.randn(3, 2, 4, 5, 5), torch.randn(1, 3, 2, 4, 5, 5)
    assert torch.equal(combine(x, x0, torch.ones(1, 3)), x0[0])
    v = torch.tensor([[0.7, 0.2, 1.0]])
    wanted = x - v[0][:, None, None, None, None] * (x - x0[0])
    assert torch.allclose(combine(x, x0, v), wanted, atol=1e-6)  # float32 rounding


def test_the_modes_are_the_fixed_points_of_sds() -> None:
    """With narrow modes, G vanishes at each of them, and descent from beside one ends there."""
    modes = random_images(1, 2)
    prior = mixture_prior(modes, sigma=0.01)
    for mode in modes:
        shot = shot_of(prior, mode[None], t=0.15)
        target, (a, s) = sds(shot).target, shot.levels()
        # E[x0 | x_t] = mu + a sigma^2 / (a^2 sigma^2 + s^2) (x_t - a mu), and x_t - a mu = s eps here.
        shrink = a * 1e-4 / (a**2 * 1e-4 + s**2) * s
        assert float((target - mode).abs().max()) < 5 * shrink  # 128 samples of a normal stay within 5
        x = (mode + 0.05 * torch.randn(mode.shape, generator=seeded(2), dtype=torch.float64))[None]
        for step in range(60):
            x = x + 0.2 * (sds(shot_of(prior, x, t=0.15, seed=step)).target - x)
        assert float((x[0] - mode).abs().max()) < 5 * shrink


def test_the_weight_is_that_of_the_noise_form() -> None:
    """w(t) (eps_hat - eps) on x_t = a x + s eps, against the target's G."""
    prior, x = mixture_prior(random_images(1, 2)), random_images(3)
    for name, w in (("sds", None), ("uniform", 1.0)):
        shot = shot_of(prior, x, t=0.6, method=MethodOptions(name="sds", weighting=name))  # type: ignore[arg-type]
        a, s = shot.levels()
        assert a**2 + s**2 == pytest.approx(1)
        gradient = x - sds(shot).target
        eps = replace(shot, generator=seeded(0)).noise(1)[0]
        x0 = predict(shot, eps[None])[0]
        eps_hat = (a * x + s * eps - a * x0) / s
        wanted = (w or s**2) * (eps_hat - eps)
        assert torch.allclose(gradient, wanted, atol=1e-12)
    assert weight_of(shot_of(prior, x)) == 1


def test_candidates_are_predicted_in_one_batch_as_one_by_one() -> None:
    prior, x = mixture_prior(random_images(1, 2)), random_images(3, 2)
    shot = shot_of(prior, x)
    noise = shot.noise(3)
    together = predict(shot, noise)
    assert together.shape == (3, *x.shape)
    for i in range(3):
        assert torch.allclose(together[i], predict(shot, noise[i : i + 1])[0], atol=1e-12)


def brightness(x: RewardInput) -> Tensor:
    return x.images.mean((1, 2, 3, 4))


@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_equal_scores_leave_dreamdpo_with_the_winners_sds(tau: float) -> None:
    """The gate is strict, also for tau = 0."""
    prior, x = mixture_prior(random_images(1, 2)), random_images(3)
    method = MethodOptions(name="dreamdpo", dreamdpo=DreamDPOOptions(tau=tau))
    shot = shot_of(prior, x, method=method, reward=scored_by(lambda i: torch.full((len(i.prompts),), 0.25)))
    found = dreamdpo(shot)
    first = replace(shot, generator=seeded(0)).noise(2)[:1]
    assert torch.allclose(found.target, predict(shot, first)[0], atol=1e-12)
    assert found.numbers["gap"] == 0 and found.numbers["gate"] == 0


def test_above_the_gate_only_the_preference_is_left() -> None:
    """G = x0_lose - x0_win: the render cancels."""
    prior, x = mixture_prior(random_images(1, 2), sigma=0.3), random_images(3)
    shot = shot_of(prior, x, method=MethodOptions(name="dreamdpo"), reward=scored_by(brightness))
    found = dreamdpo(shot)
    x0 = predict(shot, replace(shot, generator=seeded(0)).noise(2))
    scores, _ = candidate_scores(shot, x0)
    win, lose = (0, 1) if scores[0] > scores[1] else (1, 0)
    assert torch.allclose(x - found.target, x0[lose] - x0[win], atol=1e-12)
    assert found.numbers["gate"] == 1 and found.numbers["gap"] == pytest.approx(float((scores[0] - scores[1]).abs()))


def test_preference_weights_by_hand() -> None:
    scores = torch.tensor([[0.5, 0.2, 0.4, NAN, NAN], [0.3, 0.4, 0.4, 0.1, NAN]], dtype=torch.float64)
    assert preference_weights(scores, 0.15).tolist() == [[1, -1, 1, 0, 1], [-1, 1, 0, 1, 0]]
    exact = torch.tensor([[0.5], [0.25]])
    assert preference_weights(exact, 0.25).tolist() == [[1], [0]]  # a gap of tau is not greater than tau


def test_the_gate_counts_in_gaps_of_late() -> None:
    prior, x = mixture_prior(random_images(1, 2), sigma=0.3), random_images(3)
    method = MethodOptions(name="dreamdpo", dreamdpo=DreamDPOOptions(tau=1.5))
    shot = shot_of(prior, x, method=method, reward=scored_by(brightness))
    found = dreamdpo(shot)  # the first gap is its own root mean square: 1 is not greater than 1.5
    assert found.numbers["gate"] == 0
    assert float(found.memory["gap"][0]) ** 0.5 == pytest.approx(found.numbers["gap"])
    small = {"gap": torch.tensor([1e-12, 50.0], dtype=torch.float64)}
    assert dreamdpo(replace(shot, memory=small, generator=seeded(0))).numbers["gate"] == 1


def test_a_judge_of_questions_ranks() -> None:
    prior, x = mixture_prior(random_images(1, 2), sigma=0.3), random_images(3)
    judge = yes_no(
        lambda i, question: i.images.mean((1, 2, 3, 4)) > (0.5 if question == "bright?" else 2), ["bright?", "x"]
    )
    method = MethodOptions(name="dreamdpo", dreamdpo=DreamDPOOptions(tau=0.5, scale="none"))
    found = dreamdpo(shot_of(prior, x, method=method, reward=judge))
    assert found.numbers["gap"] in (0, 1) and found.numbers["gate"] == found.numbers["gap"]
    with pytest.raises(InputError, match="true or false"):
        yes_no(lambda i, q: torch.tensor([0.5]), ["?"])(RewardInput(x[:, :, :3], x[:, :, 3:], None, ["it"]))
    with pytest.raises(InputError, match="list of questions"):
        yes_no(lambda i, q: [True], [])


def test_equal_scores_make_rewardsds_the_mean_of_its_candidates() -> None:
    prior, x = mixture_prior(random_images(1, 2), sigma=0.3), random_images(3)
    options = RewardSDSOptions(candidates=5, weighting="softmax")
    shot = shot_of(prior, x, method=MethodOptions(name="rewardsds", rewardsds=options))
    shot = replace(shot, reward=scored_by(lambda i: torch.full((len(i.prompts),), 0.25)))
    found = rewardsds(shot)
    x0 = predict(shot, replace(shot, generator=seeded(0)).noise(5))
    assert torch.allclose(found.target, x0.mean(0), atol=1e-12)
    assert found.numbers["weight_best"] == pytest.approx(0.2)


@pytest.mark.parametrize("weighting", ["softmax", "best_worst", "top2_bottom2"])
def test_reward_weights_sum_to_one_and_follow_the_rewards(weighting: Any) -> None:
    options = RewardSDSOptions(candidates=6, weighting=weighting)
    scores = torch.randn(6, 4, generator=seeded(1), dtype=torch.float64)
    scores[2, 1] = scores[1:, 2] = NAN
    v = reward_weights(scores, options)
    assert torch.allclose(v.sum(0), torch.ones(4, dtype=torch.float64))
    assert bool((v[scores.isnan()] == 0).all()) and float(v[0, 2]) == 1
    for b in (0, 3):
        assert int(v[:, b].argmax()) in scores[:, b].topk(2).indices and v[scores[:, b].argmin(), b] == v[:, b].min()
    # Standardised: neither the scores' scale nor their offset counts.
    assert torch.allclose(reward_weights(0.01 * scores - 7, options), v)


def test_top2_bottom2_by_hand() -> None:
    v = reward_weights(torch.tensor([[1.0], [4.0], [2.0], [3.0], [2.5]]), RewardSDSOptions())
    assert v[:, 0].tolist() == pytest.approx([-0.0625, 0.5625, -0.0625, 0.5625, 0])  # .9 / 2 / .8, -.1 / 2 / .8


def test_candidates_may_be_denoised_before_they_are_scored() -> None:
    prior, x = mixture_prior(random_images(1, 2), sigma=0.02), random_images(3)
    seen: list[Tensor] = []

    def remembers(i: RewardInput) -> Tensor:
        seen.append(i.premultiplied())
        return brightness(i)

    for steps in (1, 8):
        options = RewardSDSOptions(denoise=steps)
        method = MethodOptions(name="rewardsds", rewardsds=options)
        rewardsds(shot_of(prior, x, t=0.95, method=method, reward=scored_by(remembers)))
    modes = prior.encode_prompt("it").positive[1][0]
    gaps = [float((s[:, None].double() - modes).abs().flatten(2).mean(2).min(1).values.max()) for s in seen]
    assert gaps[1] < 0.05 < gaps[0]  # measured 0.004 and 0.077: after 8 steps each candidate is one of the modes


@pytest.mark.parametrize("t", [0.2, 0.6])  # the reward looks at the prediction, and at the render
def test_a_quadratic_reward_moves_dreamfl_by_lambda_times_its_gradient(t: float) -> None:
    """r = -1/2 |g - c|^2, dr/dg = c - g, at the prediction at low noise and at the render otherwise."""
    prior, x = mixture_prior(random_images(1, 2)), random_images(3)
    c, strength = random_images(5)[0], 0.37

    def quadratic(i: RewardInput) -> Tensor:
        return -0.5 * ((i.premultiplied() - c) ** 2).flatten(1).sum(1)

    options = RewardOptions(weight=constant(strength), cap=1.0, balance="none")
    method = MethodOptions(name="dreamreward", reward=options, dreamreward=DreamRewardOptions(x0_below=0.3))
    shot = shot_of(prior, x, t=t, method=method, reward=scored_by(quadratic, differentiable=True))
    found = dreamreward(shot)
    alone = sds(replace(shot, generator=seeded(0)))
    assert torch.equal(found.target, alone.target)
    at = alone.target if t < 0.3 else x
    assert found.push is not None
    factor, memory = balanced(x - found.target, found.push, found.strength, options, {})
    assert (factor, memory) == (strength, {})
    moved = -factor * found.push
    assert torch.allclose(moved, strength * (c - at), atol=1e-6)  # rewards see float32


def test_the_hinge_stops_a_reward_at_its_cap() -> None:
    prior, x = mixture_prior(random_images(1, 2)), random_images(3, 2)
    with_cap = RewardOptions(weight=constant(0.3), cap=0.0)
    method = MethodOptions(name="dreamreward", reward=with_cap)
    found = dreamreward(shot_of(prior, x, method=method, reward=scored_by(brightness, differentiable=True)))
    assert found.push is not None and not bool(found.push.any())
    assert balanced(x, found.push, 0.3, with_cap, {})[0] == 0
    off = MethodOptions(name="dreamreward", reward=RewardOptions(weight=constant(0.0)))
    assert dreamreward(shot_of(prior, x, method=off, reward=scored_by(brightness, differentiable=True))).push is None


def test_a_reward_pushes_a_share_of_what_the_prior_pulls() -> None:
    """Whatever its scale; and a sudden gradient is no stronger than the usual one."""
    pull, push = torch.randn(10, generator=seeded(0)), torch.randn(10, generator=seeded(1))
    for scale in (1e-6, 1.0, 1e6):
        factor, memory = balanced(pull, scale * push, 0.25, RewardOptions(), {})
        assert factor * scale * float(push.norm()) == pytest.approx(0.25 * float(pull.norm()), rel=1e-5)
    factor, _ = balanced(pull, 1e9 * push, 0.25, RewardOptions(), memory)
    assert factor * 1e9 * float(push.norm()) == pytest.approx(0.25 * float(pull.norm()), rel=1e-5)


def test_a_running_mean_is_plain_before_it_is_exponential() -> None:
    mean = None
    for value in (2.0, 4.0, 6.0):
        mean = running_mean(mean, value, 3)
    assert mean is not None and mean.tolist() == [4, 3]
    assert running_mean(mean, 10.0, 3).tolist() == [6, 3]


def test_a_judge_that_breaks_on_one_candidate_loses_it() -> None:
    prior, x = mixture_prior(random_images(1, 2), sigma=0.3), random_images(3)
    calls: list[int] = []

    def breaks(i: RewardInput) -> Tensor:
        calls.append(len(i.prompts))
        if len(i.prompts) > 1 or len(calls) == 3:
            raise RuntimeError("out of luck")
        return brightness(i)

    shot = shot_of(prior, x, method=MethodOptions(name="rewardsds"), reward=scored_by(breaks))
    scores, numbers = candidate_scores(shot, predict(shot, shot.noise(4)))
    assert calls == [4, 1, 1, 1, 1]
    assert scores.isnan()[:, 0].tolist() == [False, True, False, False] and numbers["dropped"] == 1
    found = rewardsds(replace(shot, generator=seeded(0)))
    assert bool(torch.isfinite(found.target).all())

    def never(i: RewardInput) -> Tensor:
        raise RuntimeError("no key\nset")

    with pytest.raises(InputError, match=r"'test' failed on every candidate of a step \(RuntimeError: no key set\)"):
        rewardsds(replace(shot, reward=scored_by(never)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda i: torch.full((len(i.prompts),), torch.nan), "'test' gave nan for asset 0"),
        (lambda i: torch.zeros(3), r"must return a tensor of shape \[2\], one score an asset; got \[3\]"),
        (lambda i: None, "got NoneType"),
    ],
)
def test_a_broken_promise_stops_the_run(function: Any, message: str) -> None:
    prior, x = mixture_prior(random_images(1, 2)), random_images(3)
    shot = shot_of(prior, x, method=MethodOptions(name="dreamdpo"), reward=scored_by(function))
    with pytest.raises(InputError, match=message) as error:
        dreamdpo(shot)
    assert "\n" not in str(error.value)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    prior, x = mixture_prior(random_images(1, 2)), random_images(3)
    # sqrt has an infinite slope at 0, and its value there is fine.
    broken = scored_by(lambda i: (i.images - i.images.detach()).sum((1, 2, 3, 4)).sqrt(), differentiable=True)
    method = MethodOptions(name="dreamreward", reward=RewardOptions(weight=constant(0.1)))
    with pytest.raises(InputError, match="the gradient of reward 'test' is not finite"):
        dreamreward(shot_of(prior, x, method=method, reward=broken))


def test_a_constant_reward_is_found_out() -> None:
    prior, x = mixture_prior(random_images(1, 2)), random_images(3)
    constant_reward = scored_by(lambda i: torch.full((len(i.prompts),), 0.5))
    shot = shot_of(prior, x, method=MethodOptions(name="dreamdpo"), reward=constant_reward)
    for _ in range(PATIENCE - 1):
        shot = replace(shot, memory=dreamdpo(shot).memory)
    with pytest.raises(InputError, match=r"'test' gave 0\.5 to every candidate of 20 steps; a constant cannot guide"):
        dreamdpo(shot)


def test_rewards_decide_in_the_first_part_of_the_run_only() -> None:
    prior, x = mixture_prior(random_images(1, 2)), random_images(3)
    method = MethodOptions(name="rewardsds", rewardsds=RewardSDSOptions(until=0.5))
    shot = shot_of(prior, x, method=method, reward=scored_by(brightness), distill=PLAIN)
    assert "reward" in rewardsds(replace(shot, progress=0.49)).numbers
    assert rewardsds(replace(shot, progress=0.5)).numbers == {}
