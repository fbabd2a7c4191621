"""KL: values against the closed form, and which gradient each estimate has, integrated exactly instead of sampled."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from rl3d.errors import InputError
from rl3d.rl import gaussian_kl, gaussian_log_prob, k1, k2, k3

NODES, WEIGHTS = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(60))
WEIGHTS = WEIGHTS / WEIGHTS.sum()  # E f(z) = sum w f(z) for a standard normal z, exact for polynomials to degree 119


def theta() -> tuple[Tensor, Tensor]:
    """A policy N(0.3, 0.8^2), by mean and log std; the reference below is another in both."""
    mean = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor(math.log(0.8), dtype=torch.float64, requires_grad=True)
    return mean, log_std


REFERENCE = Normal(torch.tensor(-0.2, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))


def on_policy(estimate: object) -> tuple[float, list[float]]:
    """Expected value and expected gradient of an estimate whose samples are drawn from theta and then held."""
    mean, log_std = theta()
    policy = Normal(mean, log_std.exp())
    x = (mean + log_std.exp() * NODES).detach()
    values = estimate(policy.log_prob(x), REFERENCE.log_prob(x))  # type: ignore[operator]
    expected = (WEIGHTS * values).sum()
    return float(expected.detach()), [float(g) for g in torch.autograd.grad(expected, [mean, log_std])]


def exact(reverse: bool = False) -> tuple[float, list[float]]:
    mean, log_std = theta()
    policy = Normal(mean, log_std.exp())
    kl = kl_divergence(REFERENCE, policy) if reverse else kl_divergence(policy, REFERENCE)
    return float(kl.detach()), [float(g) for g in torch.autograd.grad(kl, [mean, log_std])]


def test_k1_has_the_right_value_and_no_gradient() -> None:
    value, gradient = on_policy(k1)
    assert value == pytest.approx(exact()[0], abs=1e-12)
    assert gradient == pytest.approx([0, 0], abs=1e-12)
    assert min(abs(g) for g in exact()[1]) > 0.2  # what it should have been: 0.5 and -0.36


def test_k2_has_the_gradient_of_the_kl_and_another_value() -> None:
    value, gradient = on_policy(k2)
    assert gradient == pytest.approx(exact()[1], abs=1e-12)
    assert abs(value - exact()[0]) > 0.01  # 0.127 for 0.168


def test_k3_has_the_right_value_and_the_gradient_of_the_other_direction() -> None:
    value, gradient = on_policy(k3)
    # exp(-u) is no polynomial, so 60 nodes are not exact; measured apart by less than 1e-14
    assert value == pytest.approx(exact()[0], abs=1e-12)
    assert gradient == pytest.approx(exact(reverse=True)[1], abs=1e-12)
    assert abs(gradient[1] - exact()[1][1]) > 0.2  # the two directions differ


def test_estimates_by_hand() -> None:
    """u = log 2: k1 = log 2, k2 = log(2)^2 / 2, k3 = 1/2 - 1 + log 2."""
    a, b = torch.tensor([math.log(2.0)]), torch.tensor([0.0])
    assert float(k1(a, b)) == pytest.approx(0.693147, abs=1e-6)
    assert float(k2(a, b)) == pytest.approx(0.240227, abs=1e-6)
    assert float(k3(a, b)) == pytest.approx(0.193147, abs=1e-6)
    assert float(k3(b, a)) == pytest.approx(1 - math.log(2), abs=1e-6)


def test_the_reference_has_no_gradient_and_masks_stop_infinities() -> None:
    a = torch.tensor([-1.0, -math.inf], requires_grad=True)
    b = torch.tensor([-2.0, -math.inf], requires_grad=True)
    mask = torch.tensor([True, False])
    for estimate in (k1, k2, k3):
        a.grad = b.grad = None
        values = estimate(a, b, mask)
        values.sum().backward()
        assert values[1] == 0 and a.grad.tolist()[1] == 0 and a.grad.tolist()[0] != 0
        assert b.grad is None


def test_gaussian_kl_is_that_of_torch_averaged_over_dims() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, other = (torch.randn(4, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    std = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    wide = std[:, None, None]
    wanted = kl_divergence(Normal(mean, wide), Normal(other, wide)).mean((1, 2))
    assert torch.allclose(gaussian_kl(mean, other, std), wanted, rtol=1e-12)
    steps = gaussian_kl(mean, other, std[:, None].expand(4, 2), keep=2)
    assert steps.shape == (4, 2) and torch.allclose(steps.mean(1), wanted, rtol=1e-12)


def test_gaussian_kl_has_a_gradient_towards_the_reference() -> None:
    """d/dmu (mu - r)^2 / (2 s^2) / D = (mu - r) / (s^2 D): (1 - 0) / (0.25 * 2) = 2 and (0 - 1) / 0.5 = -2."""
    mean = torch.tensor([[1.0, 0.0]], requires_grad=True)
    gaussian_kl(mean, torch.tensor([[0.0, 1.0]]), 0.5).sum().backward()
    assert mean.grad.tolist() == [[2.0, -2.0]]


def test_gaussian_log_prob_is_that_of_torch_averaged_over_dims() -> None:
    generator = torch.Generator().manual_seed(1)
    x, mean = (torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    std = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    wanted = Normal(mean, std[:, None, None]).log_prob(x).mean((1, 2))
    assert torch.allclose(gaussian_log_prob(x, mean, std), wanted, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda m: gaussian_log_prob(x, m, std), mean.requires_grad_())


def test_half_precision_is_summed_in_float32() -> None:
    """Squared differences of 300 overflow float16 (65504); the mean over dims does not."""
    far = torch.full((1, 8), 300.0, dtype=torch.float16)
    assert float(gaussian_kl(far, torch.zeros_like(far), 1.0)) == pytest.approx(45_000)
    assert gaussian_log_prob(far, torch.zeros_like(far), 1.0).dtype == torch.float32


def test_steps_without_noise_are_refused() -> None:
    mean = torch.zeros(2, 3)
    with pytest.raises(InputError, match="std must be positive, got 0"):
        gaussian_kl(mean, mean, torch.tensor([1.0, 0.0]))
    with pytest.raises(InputError, match=r"std must be a number or \[2\], got \[3\]"):
        gaussian_log_prob(mean, mean, torch.ones(3))
    with pytest.raises(InputError, match=r"mean_reference must have the shape \[2, 3\]"):
        gaussian_kl(mean, torch.zeros(2, 1), 1.0)
