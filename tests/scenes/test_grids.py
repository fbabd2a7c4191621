"""Feature grids: hand-computed values, derivatives of the twin, kernels against the twin."""

from __future__ import annotations

from dataclasses import replace

import numba
import pytest
import torch
from torch import Tensor

from rl3d.errors import InputError
from rl3d.scenes.grids import PRIMES, Dense, Encoding, HashGrid, Triplane, encode, encoding_width, levels_of, rows_of


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grids() -> dict[str, Encoding]:
    return {
        "dense": Dense(torch.randn(4, 5, 3, 7, generator=generator())),
        "triplane": Triplane.random(3, 9, spread=1.0, generator=generator()),
        "hash": HashGrid.random(4, 3, 17, 2, 5, spread=1.0, generator=generator()),
    }


def with_table(encoding: Encoding, table: Tensor) -> Encoding:
    name = next(k for k, v in vars(encoding).items() if isinstance(v, Tensor))
    return replace(encoding, **{name: table})


def table_of(encoding: Encoding) -> Tensor:
    return next(v for v in vars(encoding).values() if isinstance(v, Tensor))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_dense_grid_by_hand(backend: str) -> None:
    grid = torch.zeros(1, 2, 2, 3)
    grid[0, 1, 0, 2] = 8.0  # z 1, y 0, x 1
    # x = 0.75 is sample 1.5 of 0..2, half of sample 2; y = 0.25: 3/4 of row 0; z: half. 8 * 1/2 * 3/4 * 1/2 = 1.5.
    got = encode(Dense(grid), torch.tensor([[0.75, 0.25, 0.5], [1.0, 0.0, 1.0], [7.0, -1.0, 2.0]]), backend)
    torch.testing.assert_close(got, torch.tensor([[1.5], [8.0], [8.0]]))  # beyond the border: the border's value


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_triplane_sums_its_planes_at_row_and_column(backend: str) -> None:
    planes = torch.zeros(3, 1, 3, 3)
    planes[0, 0, 2, 0], planes[1, 0, 1, 0], planes[2, 0, 1, 2] = 1.0, 10.0, 100.0
    # The sample x 0, y 2, z 1: planes (y 2, x 0), (z 1, x 0), (z 1, y 2).
    got = encode(Triplane(planes), torch.tensor([[0.0, 1.0, 0.5]]), backend)
    assert got.tolist() == [[111.0]]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_hash_rows_are_those_of_the_paper(backend: str) -> None:
    encoding = HashGrid.random(2, 3, 40, 1, 6, spread=1.0, generator=generator())
    coarse, fine = levels_of(encoding)
    assert not coarse.hashed and fine.hashed and (coarse.rows, fine.rows) == (27, 64)
    x, y, z = 39, 17, 5  # a sample: one row with weight 1
    row = ((x * PRIMES[0] % 2**32) ^ (y * PRIMES[1] % 2**32) ^ (z * PRIMES[2] % 2**32)) % 64
    got = encode(encoding, torch.tensor([[x, y, z]]) / 39, backend)
    # The position is off its sample by float32's rounding: 39 * 6e-8.
    torch.testing.assert_close(got[0, 1], rows_of(encoding)[27 + row, 0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["dense", "triplane", "hash"])
def test_the_twins_derivatives(name: str) -> None:
    encoding = grids()[name]
    points = torch.rand(4, 3, dtype=torch.float64, generator=generator(1)).requires_grad_()
    table = table_of(encoding).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t, p: encode(with_table(encoding, t), p), (table, points))
    assert torch.autograd.gradgradcheck(lambda p: encode(with_table(encoding, table.detach()), p), (points,))


@pytest.mark.parametrize("name", ["dense", "triplane", "hash"])
def test_kernels_equal_the_twin(name: str) -> None:
    encoding = grids()[name]
    points = torch.cat([torch.rand(3000, 3, generator=generator(2)), torch.zeros(1, 3), torch.ones(1, 3)])
    cotangent = torch.randn(3002, encoding_width(encoding), generator=generator(3))

    def both(dtype: torch.dtype, backend: str) -> list[Tensor]:
        table = table_of(encoding).to(dtype).requires_grad_()
        at = points.to(dtype).requires_grad_()
        features = encode(with_table(encoding, table), at, backend)
        (slope,) = torch.autograd.grad((features * cotangent.to(dtype)).sum(), at, create_graph=True)
        second = torch.autograd.grad(slope.square().sum(), table, retain_graph=True)[0]
        return [features, *torch.autograd.grad(features, (table, at), cotangent.to(dtype)), second]

    # Float32 against float64: measured at most 5e-7 of the norm.
    for got, want in zip(both(torch.float32, "cpu"), both(torch.float64, "torch")):
        assert float((got.detach() - want.detach()).norm() / want.detach().norm()) < 5e-6


def test_gradients_do_not_depend_on_the_number_of_threads() -> None:
    points = torch.rand(5000, 3, generator=generator(4))

    def of(threads: int) -> list[Tensor]:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            out = []
            for encoding in grids().values():
                table = table_of(encoding).clone().requires_grad_()
                encode(with_table(encoding, table), points, "cpu").square().sum().backward()
                out.append(table.grad)
            return out
        finally:
            numba.set_num_threads(before)

    assert all(torch.equal(a, b) for a, b in zip(of(1), of(min(2, numba.config.NUMBA_NUM_THREADS))))


def test_no_points_give_no_features() -> None:
    for encoding in grids().values():
        for backend in ("cpu", "torch"):
            assert encode(encoding, torch.zeros(0, 3), backend).shape == (0, encoding_width(encoding))


def test_a_point_that_is_no_number_has_no_features() -> None:
    for encoding in grids().values():
        for backend in ("cpu", "torch"):
            features = encode(encoding, torch.tensor([[0.5, float("nan"), 0.5], [0.5, 0.5, 0.5]]), backend)
            assert bool(features[0].isnan().any()) and bool(features[1].isfinite().all())


def test_errors_are_one_line() -> None:
    for make in (
        lambda: Dense(torch.zeros(4, 1, 8, 8)),
        lambda: Triplane(torch.zeros(3, 4, 8, 9)),
        lambda: HashGrid(torch.zeros(8, 2), (2,), 7),
        lambda: HashGrid(torch.zeros(8, 2), (2, 4), 64),
        lambda: encode(Dense.zeros(), torch.zeros(1, 3), "cuda"),
        lambda: encode(Dense.zeros(), torch.zeros(1, 3).double(), "cpu"),
    ):
        with pytest.raises(InputError) as error:
            make()
        assert "\n" not in str(error.value)
