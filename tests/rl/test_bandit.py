"""Every rule learns: a 1-D Gaussian bandit whose best action is known, solved in a few hundred cheap steps.

The policy is N(m, 0.5^2), its mean m the only parameter; a reward -(x - 1.5)^2 is best at m = 1.5, and m starts at 0.
The reference is the start.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rl3d.rl import (
    ConstraintOptions,
    ConstraintState,
    awm,
    carve3d_advantages,
    clipped_surrogate,
    constrained_advantages,
    d3po,
    diffusion_dpo,
    dpok,
    exponential_weights,
    gaussian_kl,
    gaussian_log_prob,
    group_advantages,
    grpo,
    k1,
    matching_log_probs,
    nft,
    optimality,
    prdp,
    rebel,
    reinforce,
    reward_weighted_regression,
    token_dpo,
    updated,
    zigal,
)

STD, BEST = 0.5, 1.5
GROUPS, SAMPLES = 4, 16


def log_prob(x: Tensor, m: Tensor) -> Tensor:
    """Of samples [G, K], in their shape."""
    flat = x.reshape(-1, 1)
    return gaussian_log_prob(flat, m.expand_as(flat), STD).reshape(x.shape)


def reward(x: Tensor) -> Tensor:
    return -((x - BEST) ** 2)


def pairs(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """The first half of every group against the second: winners and losers, [G * K / 2]."""
    (a, b), (ra, rb) = x.chunk(2, 1), r.chunk(2, 1)
    better = ra > rb
    return torch.where(better, a, b).flatten(), torch.where(better, b, a).flatten()


Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # of m, m_old, m_reference, x and r [G, K]


def by_reinforce(m: Tensor, old: Tensor, ref: Tensor, x: Tensor, r: Tensor) -> Tensor:
    return reinforce(log_prob(x, m), group_advantages(r).values)


def by_carve3d(m: Tensor, old: Tensor, ref: Tensor, x: Tensor, r: Tensor) -> Tensor:
    k = k1(log_prob(x, old), log_prob(x, ref))
    advantages = carve3d_advantages(group_advantages(r).values, group_advantages(k, floor=0.1).values, alpha=0.1)
    return reinforce(log_prob(x, m), advantages)


def by_surrogate(m: Tensor, old: Tensor, ref: Tensor, x: Tensor, r: Tensor) -> Tensor:
    return clipped_surrogate(log_prob(x, m), log_prob(x, old), group_advantages(r).values, clip=0.2)[0]


def by_dpok(m: Tensor, old: Tensor, ref: Tensor, x: Tensor, r: Tensor) -> Tensor:
    lp = log_prob(x, m).reshape(-1, 1)
    kl = gaussian_kl(m.expand_as(lp), ref.expand_as(lp), STD)[:, None]
    return dpok(lp, group_advantages(r).values.flatten(), kl, alpha=1.0, beta=0.01)


def by_grpo(m: Tensor, old: Tensor, ref: Tensor, x: Tensor, r: Tensor) -> Tensor:
    wide = x[..., None]
    kl = gaussian_kl(m.expand_as(wide)[..., None], ref.expand_as(wide)[..., None], STD, keep=3)
    return grpo(log_prob(wide, m), log_prob(wide, old), group_advantages(r).values, kl, clip=0.2, beta=0.01)[0]


def by_diffusion_dpo(m: Tensor, old: Tensor, ref: Tensor, x: Tensor, r: Tensor) -> Tensor:
    w, l = pairs(x, r)
    return diffusion_dpo((w - m) ** 2, (l - m) ** 2, (w - ref) ** 2, (l - ref) ** 2, beta=0.2)[0]


def by_d3po(m: Tensor, old: Tensor, ref: Tensor, x: Tensor, r: Tensor) -> Tensor:
    w, l = pairs(x, r)  # against the old policy: far from the reference the clip leaves no gradient (its trap)
    return d3po(log_prob(w, m), log_prob(l, m), log_prob(w, old), log_prob(l, old), beta=0.1, clip=0.9)[0]


def by_token_dpo(m: Tensor, old: Tensor, ref: Tensor, x: Tensor, r: Tensor) -> Tensor:
    w, l = (side[:, None] for side in pairs(x, r))
    return token_dpo(log_prob(w, m), log_prob(l, m), log_prob(w, ref), log_prob(l, ref), beta=0.05)[0]


def by_nft(m: Tensor, old: Tensor, ref: Tensor, x: Tensor, r: Tensor) -> Tensor:
    target, probability = x.reshape(-1, 1), optimality(group_advantages(r).values, 2.0).flatten()
    return nft(m.expand_as(target), old.expand_as(target), target, probability, beta=1.0)[0]


def by_awm(m: Tensor, old: Tensor, ref: Tensor, x: Tensor, r: Tensor) -> Tensor:
    target = x.reshape(-1, 1)
    lp, lp_old = (matching_log_probs(mean.expand_as(target), target) for mean in (m, old))
    return awm(lp, lp_old, group_advantages(r).values.flatten(), clip=0.2)[0]


def by_regression(m: Tensor, old: Tensor, ref: Tensor, x: Tensor, r: Tensor) -> Tensor:
    target = x.reshape(-1, 1)
    return reward_weighted_regression(m.expand_as(target), target, exponential_weights(r, 1.0).flatten())


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = x.chunk(2, 1)
    return a.flatten(), b.flatten()


def by_rebel(m: Tensor, old: Tensor, ref: Tensor, x: Tensor, r: Tensor) -> Tensor:
    (a, b), (ra, rb) = halves(x), halves(r)
    return rebel(log_prob(a, m), log_prob(b, m), log_prob(a, old), log_prob(b, old), ra - rb, eta=0.3)[0]


def by_prdp(m: Tensor, old: Tensor, ref: Tensor, x: Tensor, r: Tensor) -> Tensor:
    (a, b), (ra, rb) = halves(x), halves(r)
    a, b = a[:, None], b[:, None]
    means = [log_prob(side, mean) for mean in (m, old, ref) for side in (a, b)]
    return prdp(*means, ra - rb, beta=0.05, clip=0.5)[0]


def by_zigal(m: Tensor, old: Tensor, ref: Tensor, x: Tensor, r: Tensor) -> Tensor:
    (a, b), (ra, rb) = halves(x), halves(group_advantages(r).values)
    return zigal(log_prob(a, m), log_prob(b, m), log_prob(a, old), log_prob(b, old), ra - rb, clip=0.2)[0]


RULES: dict[str, Loss] = {
    name.removeprefix("by_"): rule for name, rule in list(globals().items()) if name.startswith("by_")
}


# Losses have units of their own: a preference's slope is beta, a regression's curvature 1/eta^2.
RATES = {"diffusion_dpo": 1.0, "token_dpo": 1.0, "d3po": 0.3, "rebel": 1e-3, "prdp": 0.005}


def learn(
    loss: Loss, rate: float, judge: Callable[[Tensor], Tensor] = reward, rounds: int = 150, epochs: int = 2
) -> float:
    """Mean of m over the last third of the rounds; every round draws from the policy of its start."""
    generator = torch.Generator().manual_seed(0)
    m, reference, path = torch.zeros((), requires_grad=True), torch.zeros(()), []
    optimizer = torch.optim.SGD([m], lr=rate)
    for _ in range(rounds):
        old = m.detach().clone()
        x = old + STD * torch.randn(GROUPS, SAMPLES, generator=generator)
        for _ in range(epochs):
            optimizer.zero_grad()
            loss(m, old, reference, x, judge(x)).backward()
            optimizer.step()
        path.append(float(m.detach()))
    late = path[-(rounds // 3) :]
    return sum(late) / len(late)


# PRDP's minimum is not the best action: m maximises -(m - 1.5)^2 - beta m^2 / (2 s^2), so m = 3 / (2 + beta / s^2)
ENDS = {"prdp": 3 / (2 + 0.05 / STD**2)}


@pytest.mark.parametrize("name", RULES)
def test_the_rule_finds_the_best_action(name: str) -> None:
    found = learn(RULES[name], RATES.get(name, 0.05))
    assert found == pytest.approx(ENDS.get(name, BEST), abs=0.1)  # the furthest, measured: Diffusion-DPO, 0.063 off


@pytest.mark.parametrize("name", RULES)
def test_the_opposite_reward_sends_it_the_other_way(name: str) -> None:
    """What makes the test above one of the reward: -r is worst at 1.5 and unbounded, so m leaves 0 downwards."""
    found = learn(RULES[name], RATES.get(name, 0.05), judge=lambda x: -reward(x), rounds=9)
    assert found < -0.3  # measured -0.54 (D3PO) and below


def test_a_constraint_holds_the_mean_at_its_border() -> None:
    """Quality wants m = 3; E[-x^2] = -(m^2 + 0.25) >= -1.25 allows m <= 1. lambda falls slower than it rises, so m
    swings around a little less than that: measured 0.84."""
    generator = torch.Generator().manual_seed(0)
    m = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([m], lr=0.05)
    options, state, path = ConstraintOptions(decay=1.0), ConstraintState(tau=-1.25), []
    for _ in range(300):
        x = m.detach() + STD * torch.randn(GROUPS, SAMPLES, generator=generator)
        quality, consistency = -((x - 3) ** 2), -(x**2)
        state = updated(options, state, float(consistency.mean()))
        standardised = (group_advantages(r).values for r in (quality, consistency))
        advantages = constrained_advantages(*standardised, state.multiplier)
        optimizer.zero_grad()
        reinforce(log_prob(x, m), advantages).backward()
        optimizer.step()
        path.append(float(m.detach()))
    late = sum(path[-100:]) / 100
    assert late == pytest.approx(0.9, abs=0.2) and 0 < state.multiplier < 5
