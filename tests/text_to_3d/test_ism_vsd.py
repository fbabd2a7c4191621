"""ISM and VSD against known answers, and the adapter of the embedded prior."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_mixtures import mixture_prior, random_images, seeded, shot_of
from tiny_world import random_prior

from rl3d.errors import ConfigError, InputError
from rl3d.priors.low_rank import AdaptablePrior, adapted, start_factors
from rl3d.priors.mixture import GaussianMixturePrior, Mixture
from rl3d.text_to_3d.engine import Shot
from rl3d.text_to_3d.ism import inverted, ism
from rl3d.text_to_3d.method_options import ISMOptions, MethodOptions, VSDOptions
from rl3d.text_to_3d.methods import guide_for
from rl3d.text_to_3d.options import DistillOptions
from rl3d.text_to_3d.schedule import Schedule
from rl3d.text_to_3d.sds import sds
from rl3d.text_to_3d.vsd import adam, vsd, vsd_target

ONE = torch.ones(1, dtype=torch.float64)


def gaussian_prior(text: torch.Tensor, null: torch.Tensor, sigma: float) -> GaussianMixturePrior:
    return GaussianMixturePrior({"it": Mixture(ONE, text, sigma * ONE)}, Mixture(ONE, null, sigma * ONE))


def test_inversion_follows_the_probability_flow() -> None:
    """Of one Gaussian: (x_t - a mu) / sqrt(a^2 sigma^2 + s^2) is a constant of the flow."""
    mean, x, sigma = random_images(1), random_images(2), 0.3
    prior = gaussian_prior(mean, mean, sigma)
    shot = shot_of(prior, x)

    def constant(t: float, at: torch.Tensor) -> torch.Tensor:
        a, s = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
        return (at - a * mean) / math.sqrt(a**2 * sigma**2 + s**2)

    start = constant(0.1, math.cos(math.pi * 0.05) * x)
    errors = []
    for steps in (200, 400):
        x_s, x0_s = inverted(shot, torch.linspace(0.1, 0.7, steps, dtype=torch.float64).tolist())
        errors.append(float((constant(0.7, x_s) - start).norm() / start.norm()))
    assert errors[1] < 2e-3 and errors[0] / errors[1] == pytest.approx(2, abs=0.05)  # first order; measured 1.6e-3
    wanted = shot.prior.predict_x0(x_s, torch.full((1,), 0.7), shot.prompt, shot.cameras)[0]
    assert torch.allclose(x0_s, wanted, atol=1e-6)  # levels travel as float32


def test_ism_rests_at_a_mode_and_leads_to_the_prompts() -> None:
    mode, other = random_images(1), random_images(2)
    method = MethodOptions(name="ism")
    settled = ism(shot_of(gaussian_prior(mode, mode, 0.02), mode, method=method))
    assert float((settled.target - mode).abs().max()) < 1e-9  # without noise there is nothing to shrink
    # Without a prompt the prior wants `other`, with it `mode`: G = x0_s - x0_t leads from the one to the other.
    between = 0.5 * (mode + other)
    pulled = ism(shot_of(gaussian_prior(mode, other, 0.02), between, method=method)).target - between
    assert float((pulled - (mode - other)).abs().max()) < 0.02
    assert torch.equal(
        ism(shot_of(gaussian_prior(mode, other, 0.02), between, method=method, seed=5)).target - between, pulled
    )


def test_ism_is_the_difference_of_two_noises() -> None:
    """w(t) [eps(x_t, t, y) - eps(x_s, s, null)] with w = s_t / a_t, written out for one inversion step."""
    prior, x = mixture_prior(random_images(1, 2), sigma=0.2), random_images(3)
    options = ISMOptions(gap=Schedule(((0.0, 0.2),)), inversion_steps=1, first=0.5)
    shot = shot_of(prior, x, t=0.6, method=MethodOptions(name="ism", ism=options))
    (a_s, s_s), (a, s) = shot.levels(0.4), shot.levels(0.6)
    x_s = a_s * x
    null = prior.predict_x0(x_s, torch.full((1,), 0.4), shot.prompt, shot.cameras, guidance=0.0)[0]
    eps_s = (x_s - a_s * null) / s_s
    x_t = a * null + s * eps_s
    eps_t = (x_t - a * prior.predict_x0(x_t, torch.full((1,), 0.6), shot.prompt, shot.cameras)[0]) / s
    found = ism(shot)
    assert torch.allclose(x - found.target, (s / a) * (eps_t - eps_s), atol=1e-12)
    assert found.numbers["interval"] == pytest.approx(0.2)


def test_vsd_with_the_posterior_of_a_still_render_is_sds() -> None:
    """The posterior of a delta at x is x itself: G = x - x0_pre, zero at a mode and towards it elsewhere."""
    modes = random_images(1, 2)
    prior = mixture_prior(modes, sigma=0.01)
    beside = (modes[0] + 0.05)[None]
    shot = shot_of(prior, beside, t=0.15)
    x0_pre = sds(shot).target
    target = vsd_target(beside, x0_pre, beside)
    assert torch.allclose(target, x0_pre, atol=1e-12)
    assert float((target - modes[0]).norm()) < 0.1 * float((beside - modes[0]).norm())
    assert torch.equal(vsd_target(modes[:1], modes[:1], modes[:1]), modes[:1])
    # And where phi already knows what the prior says, nothing moves.
    assert torch.equal(vsd_target(beside, x0_pre, x0_pre), beside)


def tiny_shot(**changes: object) -> Shot:
    prior = random_prior()
    images = torch.rand(1, 4, 4, 16, 16, generator=seeded(1))
    shot = Shot(
        prior,
        prior.encode_prompt("a red box"),
        prior.cameras(0.0, 0.3),
        images,
        prior.to_latents(images),
        0.5,
        0.5,
        DistillOptions(guidance=1.0, rescale=0.0),
        MethodOptions(name="vsd", vsd=VSDOptions(rank=4, rate=1e-2)),
        None,
        seeded(0),
    )
    return replace(shot, **changes)  # type: ignore[arg-type]


def test_a_fresh_adapter_changes_nothing_and_learns() -> None:
    """Without guidance phi begins as the prior, so that G is 0; then it learns the render it is shown."""
    shot = tiny_shot()
    first = vsd(shot)
    assert torch.allclose(first.target, shot.x, atol=1e-6)  # float32 rounding
    losses, memory = [], dict(first.memory)
    for step in range(1, 60):
        found = vsd(replace(shot, memory=memory, generator=seeded(step)))
        memory = {**memory, **found.memory}
        losses.append(found.numbers["phi_loss"])
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10]), losses
    assert float((found.target - shot.x).abs().max()) > 1e-3
    assert float(memory["adam.count"]) == 60


def test_the_embedded_prior_with_its_own_weights_is_itself() -> None:
    shot = tiny_shot()
    prior = shot.prior
    assert isinstance(prior, AdaptablePrior) and not isinstance(mixture_prior(random_images(1)), AdaptablePrior)
    linears = prior.linears()
    assert linears and all(w.ndim == 2 for w in linears.values())
    t = torch.full((1,), 0.5)
    with torch.no_grad():
        plain = shot.prior.predict_x0(shot.x, t, shot.prompt, shot.cameras)[0]
        factors = start_factors(linears, 2, seeded(0))
        same = prior.predict_x0_with(adapted(linears, factors), shot.x, t, shot.prompt, shot.cameras)
        assert torch.equal(same.clamp(-1.1, 1.1), plain)
        factors = {k: v + 0.1 for k, v in factors.items()}
        other = prior.predict_x0_with(adapted(linears, factors), shot.x, t, shot.prompt, shot.cameras)
    assert float((other - plain).abs().max()) > 1e-3


def test_adam_is_that_of_torch() -> None:
    value = torch.randn(3, 4, generator=seeded(0))
    theirs = value.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([theirs], lr=0.05)
    ours, memory = {"w": value.clone()}, {}
    for step in range(5):
        slope = torch.randn(3, 4, generator=seeded(step + 1))
        theirs.grad = slope
        optimizer.step()
        ours, memory = adam(ours, (slope,), memory, 0.05)
    assert torch.allclose(ours["w"], theirs.detach(), atol=1e-6)


def test_vsd_needs_a_prior_that_can_be_adapted() -> None:
    prior = mixture_prior(random_images(1))
    with pytest.raises(InputError, match="method vsd trains a copy of the prior, which analytic Gaussian mixture has"):
        guide_for(MethodOptions(name="vsd"), prior)


def test_bad_options_are_refused() -> None:
    for options, values in (
        (ISMOptions, {"first": 0.0}),
        (ISMOptions, {"inversion_steps": 0}),
        (ISMOptions, {"gap": Schedule(((0.0, 0.0),))}),
        (VSDOptions, {"rank": 0}),
        (VSDOptions, {"rate": -1.0}),
        (VSDOptions, {"steps": 0}),
    ):
        with pytest.raises(ConfigError, match=next(iter(values))):
            options(**values)  # type: ignore[operator]
