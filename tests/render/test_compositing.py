"""Compositing along rays: a case by hand, derivatives of the twin, kernels against the twin."""

from __future__ import annotations

import math

import numba
import pytest
import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.render.compositing import composite


def random_rays(counts: list[int], width: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    total = sum(counts)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return torch.rand(total, generator=g), torch.randn(total, width, generator=g), offsets


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_five_samples_by_hand(backend: str) -> None:
    # Thicknesses ln 2, 0, ln 4, 20, 1: alpha 1/2, 0, 3/4, 1 - e^-20, ...; T 1, 1/2, 1/2, 1/8, then 1/8 e^-20 < 1e-4.
    # Weights 1/2, 0, 3/8, 1/8, 0. Blended 1/2 * 1 + 3/8 * 3 + 1/8 * 4 = 2.125.
    thickness = torch.tensor([math.log(2), 0.0, math.log(4), 20.0, 1.0])
    blended, coverage = composite(thickness, torch.arange(1.0, 6.0)[:, None], torch.tensor([0, 5]), backend)
    torch.testing.assert_close(blended, torch.tensor([[2.125]]))
    torch.testing.assert_close(coverage, torch.tensor([1.0]))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_rays_without_samples_are_empty(backend: str) -> None:
    thickness, features, offsets = random_rays([0, 2, 0, 0, 3, 0])
    blended, coverage = composite(thickness, features, offsets, backend)
    assert blended.shape == (6, 3) and bool((blended[[0, 2, 3, 5]] == 0).all())
    alone, _ = composite(thickness[2:], features[2:], torch.tensor([0, 3]), backend)
    torch.testing.assert_close(blended[4:5], alone)
    assert bool((coverage[[1, 4]] > 0).all())
    for rays in (0, 3):
        nothing, _ = composite(torch.zeros(0), torch.zeros(0, 3), torch.zeros(rays + 1, dtype=torch.long), backend)
        assert nothing.shape == (rays, 3)


def test_the_twins_derivatives() -> None:
    thickness, features, offsets = random_rays([3, 0, 5], 2)
    arguments = (thickness.double().requires_grad_(), features.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda t, f: composite(t, f, offsets), arguments)


def test_kernels_equal_the_twin() -> None:
    counts = torch.randint(0, 40, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    thickness, features, offsets = random_rays(counts, 7)
    thickness = thickness**3 * 2
    thickness[::97], thickness[::83] = 1e4, math.inf  # walls: nothing behind them counts, and nothing overflows
    cotangents = torch.randn(300, 7), torch.randn(300)

    def both(dtype: torch.dtype, backend: str) -> list[Tensor]:
        t, f = thickness.to(dtype).requires_grad_(), features.to(dtype).requires_grad_()
        out = composite(t, f, offsets, backend)
        return [*out, *torch.autograd.grad(out, (t, f), [c.to(dtype) for c in cotangents])]

    # Float32 storage of float64 sums: measured at most 2e-7 of the norm.
    for got, want in zip(both(torch.float32, "cpu"), both(torch.float64, "torch")):
        assert bool(torch.isfinite(got).all())
        assert float((got.detach() - want.detach()).norm() / want.detach().norm()) < 1e-6
    # The twin in float32 may drop a sample more where the transmittance is 1e-4; measured 1e-7 without.
    for got, want in zip(both(torch.float32, "torch"), both(torch.float64, "torch")):
        assert float((got.detach() - want.detach()).norm() / want.detach().norm()) < 1e-3


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    thickness, features, offsets = random_rays([7] * 500)
    thickness.requires_grad_()

    def of(threads: int) -> list[Tensor]:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            out = composite(thickness, features, offsets, "cpu")
            return [*out, *torch.autograd.grad(out[0].square().sum(), thickness)]
        finally:
            numba.set_num_threads(before)

    assert all(torch.equal(a, b) for a, b in zip(of(1), of(min(2, numba.config.NUMBA_NUM_THREADS))))


def test_unusable_backends_are_named() -> None:
    thickness, features, offsets = random_rays([2])
    with pytest.raises(InputError, match="unknown backend 'gsplat' for fields"):
        composite(thickness, features, offsets, "gsplat")
    with pytest.raises(InputError, match=r"takes float32 tensors on the CPU, got torch\.float64"):
        composite(thickness.double(), features.double(), offsets, "cpu")
