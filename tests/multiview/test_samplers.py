"""Samplers: the marginals that they leave, formulas of the papers, and densities against finite differences."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rl3d.errors import ConfigError, InputError
from rl3d.multiview.sampler_options import SamplerOptions
from rl3d.multiview.samplers import Levels, ddim_step, sde_step, step_from
from rl3d.rl import gaussian_log_prob

MEAN, STD = 0.3, 0.5  # of 1-D Gaussian data


def flow(t: float) -> tuple[float, float]:
    return 1 - t, t


def variance_preserving(t: float) -> tuple[float, float]:
    return math.cos(0.5 * math.pi * t), math.sin(0.5 * math.pi * t)


def posterior_mean(x: Tensor, a: float, s: float) -> Tensor:
    """E[x0 | x_t] of N(MEAN, STD^2) data."""
    return MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (x - a * MEAN)


def drawn(options: SamplerOptions, schedule, count: int = 40_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    times = torch.linspace(1, 0, options.steps + 1, dtype=torch.float64).tolist()
    x = torch.randn(count, 1, 1, 1, 1, dtype=torch.float64, generator=generator)
    for t, u in pairwise(times):
        levels = Levels(t, u, *schedule(t), *schedule(u))
        step = step_from(x, posterior_mean(x, levels.a_t, levels.s_t), levels, options, noisy=True)
        noise = torch.randn(x.shape, dtype=torch.float64, generator=generator)
        x = step.mean + step.std * noise if step.std > 0 else step.mean
    return x.flatten()


# The standard deviation that each keeps of 0.5, at 50 steps and at 400; 40,000 draws know it to 0.0018 (one sigma).
@pytest.mark.parametrize(
    ("kind", "noise", "schedule"),
    [
        ("ddim", 0.0, flow),
        ("ddim", 1.0, flow),
        ("ddim", 1.0, variance_preserving),
        ("ddim", 0.5, variance_preserving),
        ("flow_sde", 0.7, flow),
        ("dance_sde", 0.3, flow),
    ],
)
def test_the_data_s_gaussian_comes_out(kind: str, noise: float, schedule) -> None:
    x = drawn(SamplerOptions(kind=kind, noise=noise, steps=200), schedule)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.std()) == pytest.approx(STD, abs=0.012)


def test_a_fresh_x_u_from_the_posterior_s_mean_loses_spread() -> None:
    # LCM is exact for a model that maps x_t to a sample; from the mean, the last step gives E[x0 | x_u] of a fresh x_u.
    x = drawn(SamplerOptions(kind="lcm", steps=4), flow)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.std()) < 0.4


def test_ddim_s_variance_is_that_of_the_papers() -> None:
    t, u = 0.6, 0.5
    levels = Levels(t, u, *variance_preserving(t), *variance_preserving(u))
    ab_t, ab_u = levels.a_t**2, levels.a_u**2
    # Carve3D and DDIM, eq. 16: s^2 = eta^2 (1 - ab_u) / (1 - ab_t) (1 - ab_t / ab_u)
    expected = 0.8**2 * (1 - ab_u) / (1 - ab_t) * (1 - ab_t / ab_u)
    x_t, x0 = torch.randn(1, 1, 1, 2, 2), torch.randn(1, 1, 1, 2, 2)
    mean, std = ddim_step(x_t, x0, levels, 0.8)
    assert std**2 == pytest.approx(expected, rel=1e-9)
    eps = (x_t - math.sqrt(ab_t) * x0) / math.sqrt(1 - ab_t)
    torch.testing.assert_close(mean, math.sqrt(ab_u) * x0 + math.sqrt(1 - ab_u - expected) * eps)


def test_flow_grpo_s_step_is_its_equation() -> None:
    t, dt, a = 0.5, -0.1, 0.7
    levels = Levels(t, t + dt, *flow(t), *flow(t + dt))
    x, x0 = torch.randn(1, 1, 1, 2, 2), torch.randn(1, 1, 1, 2, 2)
    v, s = (x - x0) / t, a * math.sqrt(t / (1 - t))
    # x + [v + s^2 / (2 t) (x + (1 - t) v)] dt, standard deviation s sqrt|dt|
    step = step_from(x, x0, levels, SamplerOptions(kind="flow_sde", noise=a), noisy=True)
    torch.testing.assert_close(step.mean, x + (v + s**2 / (2 * t) * (x + (1 - t) * v)) * dt)
    assert step.std == pytest.approx(s * math.sqrt(-dt))


def test_without_sigma_the_sde_is_the_flow() -> None:
    levels = Levels(0.5, 0.4, *flow(0.5), *flow(0.4))
    x, x0 = torch.randn(1, 1, 1, 2, 2), torch.randn(1, 1, 1, 2, 2)
    mean, std = sde_step(x, x0, levels, 0.0)
    assert std == 0
    torch.testing.assert_close(mean, ddim_step(x, x0, levels, 0.0)[0])


def test_the_first_step_of_a_flow_starts_from_noise_alone() -> None:
    levels = Levels(1.0, 0.9, *flow(1.0), *flow(0.9))
    mean, std = ddim_step(torch.randn(1, 1, 1, 2, 2), torch.ones(1, 1, 1, 2, 2), levels, 1.0)
    assert std == pytest.approx(0.9)  # nothing of x_1 is kept
    torch.testing.assert_close(mean, torch.full_like(mean, 0.1))


@pytest.mark.parametrize("kind", ["ddim", "lcm", "flow_sde", "dance_sde"])
def test_the_last_step_adds_no_noise(kind: str) -> None:
    levels = Levels(0.1, 0.0, *flow(0.1), 1.0, 0.0)
    x0 = torch.randn(1, 1, 1, 2, 2)
    step = step_from(torch.randn(1, 1, 1, 2, 2), x0, levels, SamplerOptions(kind=kind), noisy=True)
    assert step.std == 0
    torch.testing.assert_close(step.mean, x0)
    with pytest.raises(InputError, match="without noise"):
        gaussian_log_prob(x0, step.mean, step.std)


def test_the_density_s_gradient_is_that_of_finite_differences() -> None:
    levels = Levels(0.6, 0.5, *flow(0.6), *flow(0.5))
    generator = torch.Generator().manual_seed(1)
    x_t, x0, landed = (torch.randn(2, 2, 1, 2, 2, dtype=torch.float64, generator=generator) for _ in range(3))

    def of(prediction: Tensor) -> Tensor:
        step = step_from(x_t, prediction, levels, SamplerOptions(), noisy=True)
        return gaussian_log_prob(landed, step.mean, step.std)

    assert torch.autograd.gradcheck(of, x0.requires_grad_(True))


def test_bad_options_are_named() -> None:
    for changes, says in (
        ({"kind": "euler"}, "must be one of ddim"),
        ({"steps": 1}, "at least 2"),
        ({"noise": 1.5}, "at most 1 for ddim"),
        ({"noise": -0.1, "kind": "flow_sde"}, "positive"),
    ):
        with pytest.raises(ConfigError, match=says):
            SamplerOptions(**changes)
    levels = Levels(0.5, 0.4, *variance_preserving(0.5), *variance_preserving(0.4))
    with pytest.raises(InputError, match="flow-matching"):
        step_from(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1), levels, SamplerOptions("flow_sde"), True)
