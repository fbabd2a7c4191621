"""VSD (ProlificDreamer, Wang et al. 2023, arXiv 2305.16213): what a copy of the prior predicts replaces the noise.

    grad = w(t) (eps_pre(x_t; t, y) - eps_phi(x_t; t, c, y)) dx/dtheta = w(t) (a_t / s_t) (x0_phi - x0_pre) dx/dtheta

phi is a low-rank adapter of the prior, trained on the current renders alone, L_phi = E |eps_phi - eps|^2; in x0 form
E |x0_phi - x|^2, which has the same minimum at every t. One particle, as in practice there. The prior is guided, phi
is not; both know the cameras. For one render that never moves, phi's minimum is x0_phi = x, and VSD is SDS.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl3d.priors.low_rank import AdaptablePrior, adapted, start_factors
from rl3d.text_to_3d.engine import Guidance, Memory, Shot, in_range, predict, weight_of

PHI = "phi."


def vsd_target(x: Tensor, x0_pre: Tensor, x0_phi: Tensor, weight: float = 1.0) -> Tensor:
    """x - G with G = weight (x0_phi - x0_pre)."""
    return x - weight * (x0_phi - x0_pre)


def adam(
    values: dict[str, Tensor], slopes: tuple[Tensor, ...], memory: Memory, rate: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One step of Adam (Kingma & Ba 2014, algorithm 1; betas 0.9 and 0.999) on named tensors.

    Returns:
        The new values, and the moments "adam.first.NAME", "adam.second.NAME" and "adam.count" for the memory.
    """
    count = float(memory["adam.count"]) + 1 if "adam.count" in memory else 1.0
    moved, moments = {}, {"adam.count": torch.tensor(count, dtype=torch.float64)}
    for (name, value), g in zip(values.items(), slopes):
        first, second = (memory.get(f"adam.{k}.{name}", torch.zeros_like(value)) for k in ("first", "second"))
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        moments |= {f"adam.first.{name}": first, f"adam.second.{name}": second}
        step = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
        moved[name] = value.detach() - rate * step
    return moved, moments


def vsd(shot: Shot) -> Guidance:
    options, prior, memory = shot.method.vsd, shot.prior, shot.memory
    assert isinstance(prior, AdaptablePrior)  # checked before the run
    linears = prior.linears()
    phi = {k.removeprefix(PHI): v for k, v in memory.items() if k.startswith(PHI)}
    if not phi:
        phi = start_factors(linears, options.rank, shot.generator)
    noise = shot.noise(1)
    x0_pre = predict(shot, noise)[0]
    t = torch.full((len(shot.x),), shot.t, device=shot.x.device)
    with torch.no_grad():
        x_t = shot.prior.add_noise(shot.x, noise[0], t)
        x0_phi = prior.predict_x0_with(adapted(linears, phi), x_t, t, shot.prompt, shot.cameras)
    target = vsd_target(shot.x, x0_pre, in_range(shot.prior, x0_phi), weight_of(shot))

    moments = memory
    for _ in range(options.steps):
        level = 0.02 + 0.96 * float(torch.rand((), generator=shot.generator))
        t = torch.full((len(shot.x),), level, device=shot.x.device)
        leaves = {k: v.detach().requires_grad_(True) for k, v in phi.items()}
        with torch.enable_grad():
            x_t = shot.prior.add_noise(shot.x, shot.noise(1)[0], t)
            x0 = prior.predict_x0_with(adapted(linears, leaves), x_t, t, shot.prompt, shot.cameras)
            loss = ((x0 - shot.x) ** 2).mean()
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        phi, moments = adam(phi, slopes, moments, options.rate)
    kept = {PHI + k: v for k, v in phi.items()} | {k: v for k, v in moments.items() if k.startswith("adam.")}
    numbers = {"phi_loss": float(loss.detach()), "phi_gap": float((x0_phi - shot.x).square().mean().sqrt())}
    return Guidance(target, numbers=numbers, memory=kept)
