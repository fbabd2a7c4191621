"""Volume compositing along rays with packed samples (Max 1995; Mildenhall et al. 2020, eq. 3). Twin and way in.

Samples of all rays lie one after the other, nearest first; ray r owns those from offsets[r] to offsets[r + 1]. With
optical thickness tau_i (density times length), sample i hides alpha_i = 1 - exp(-tau_i) of what is behind it, light
arrives from it with transmittance T_i = exp(-sum of tau_j over j before i), and weighs w_i = T_i alpha_i; nothing where
T_i < TRANSMITTANCE_MIN, so that marching may stop there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl3d.errors import InputError

TRANSMITTANCE_MIN = 1e-4


def composite(
    thickness: Tensor, features: Tensor, offsets: Tensor, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Blend packed samples along their rays.

    Args:
        thickness: [S] optical thickness, >= 0. features: [S, D]. offsets: [R + 1] int64, from 0 to S.
        backend: "cpu" (compiled; float32 on the CPU), "torch" (any device and dtype), None: "cpu" where it can.

    Returns:
        sum of w_i features_i [R, D] and coverage, the sum of w_i, [R]; differentiable to thickness and features.

    Raises:
        InputError: an unknown or unusable backend.
    """
    fits = features.device.type == "cpu" and thickness.dtype == features.dtype == torch.float32
    if backend not in (None, "cpu", "torch"):
        raise InputError(f"unknown backend {backend!r} for fields; choose one of cpu, torch")
    if backend == "cpu" and not fits:
        raise InputError(f'backend "cpu" takes float32 tensors on the CPU, got {features.dtype} on {features.device}')
    if fits and backend != "torch":
        from rl3d.render.compositing_cpu import composite_cpu  # brings compiled kernels

        return composite_cpu(thickness, features, offsets)
    return composite_torch(thickness, features, offsets)


def composite_torch(thickness: Tensor, features: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The twin of the compiled kernels; see `composite`."""
    counts = offsets.diff()
    ray = torch.arange(len(counts), device=offsets.device).repeat_interleave(counts)  # [S]
    # One running sum over all rays: float32 would lose the last of them, and nothing finds its way past infinity.
    exact = thickness.double().clamp(max=1e3)
    before = exact.cumsum(0) - exact
    log_transmittance = before.index_select(0, offsets[:-1].index_select(0, ray)) - before
    transmittance = log_transmittance.to(thickness.dtype).exp()
    weights = transmittance * -torch.expm1(-thickness)
    weights = torch.where(transmittance >= TRANSMITTANCE_MIN, weights, 0)
    blended = features.new_zeros(len(counts), features.shape[1]).index_add(0, ray, weights[:, None] * features)
    return blended, weights.new_zeros(len(counts)).index_add(0, ray, weights)
