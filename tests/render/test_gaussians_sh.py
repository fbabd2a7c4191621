"""Spherical harmonics: orthonormal on the sphere, harmonic, and in the order of splat files."""

from __future__ import annotations

import math

import pytest
import torch

from rl3d.errors import InputError
from rl3d.scenes.spherical_harmonics import basis, evaluate


def test_the_basis_is_orthonormal_on_the_sphere() -> None:
    # Gauss-Legendre in z and equal steps in azimuth integrate products of two degree-3 functions exactly.
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(8)
    z, w = torch.from_numpy(nodes), torch.from_numpy(weights)
    azimuth = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    radius = (1 - z * z).sqrt()
    directions = torch.stack(
        [radius[:, None] * azimuth.cos(), radius[:, None] * azimuth.sin(), z[:, None].expand(8, 16)], -1
    )
    values = basis(directions, 16)
    gram = torch.einsum("i,ijk,ijl->kl", w * (2 * math.pi / 16), values, values)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)


def test_order_and_signs_are_those_of_splat_files() -> None:
    # The colour function of Kerbl et al.'s renderer at three directions, degree 1 and 2 written out.
    x, y, z = torch.eye(3, dtype=torch.float64)
    c1, c2 = 0.4886025119029199, 0.31539156525252005
    first = [0.28209479177387814]
    torch.testing.assert_close(basis(x, 9)[:4], torch.tensor([*first, 0, 0, -c1], dtype=torch.float64))
    torch.testing.assert_close(basis(y, 9)[:4], torch.tensor([*first, -c1, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(basis(z, 9)[:4], torch.tensor([*first, 0, c1, 0], dtype=torch.float64))
    torch.testing.assert_close(basis(z, 9)[4:], torch.tensor([0, 0, 2 * c2, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(
        basis(x, 16)[[8, 15]], torch.tensor([0.5462742152960396, -0.5900435899266435], dtype=torch.float64)
    )


@pytest.mark.parametrize("count", [1, 4, 9, 16])
def test_lower_degrees_are_prefixes_and_evaluation_is_the_sum(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(2, 5, 3, generator=generator, dtype=torch.float64), dim=-1)
    sh = torch.randn(5, count, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    values = basis(directions, 16)[..., :count]
    torch.testing.assert_close(evaluate(sh, directions), (values[..., None] * sh).sum(2))
    assert torch.autograd.gradcheck(evaluate, (sh, directions.requires_grad_()))


def test_a_count_between_two_degrees_is_an_error() -> None:
    with pytest.raises(InputError, match="1, 4, 9 or 16"):
        basis(torch.zeros(3), 5)
