"""Rotations of Gaussians: against another implementation, at any length, at length zero."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from rl3d.scenes.gaussians import rotations


def test_they_are_scipys() -> None:
    q = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = Rotation.from_quat(np.roll(q.numpy(), -1, 1)).as_matrix()  # it takes (x, y, z, w)
    np.testing.assert_allclose(rotations(q).numpy(), expected, atol=1e-14)


def test_the_length_does_not_matter() -> None:
    """Down to where its square is lost in float32."""
    q = torch.tensor([[0.9, 0.3, -0.2, 0.4]])
    for length in (1e-15, 1e-3, 1e6):
        torch.testing.assert_close(rotations(length * q), rotations(q), atol=1e-6, rtol=0)


def test_length_zero_is_no_rotation_without_a_gradient() -> None:
    q = torch.tensor([[0.0, 0, 0, 0], [1.0, 0, 0, 0]], requires_grad=True)
    turned = rotations(q)
    assert torch.equal(turned, torch.eye(3).expand(2, 3, 3))
    (turned * torch.arange(9.0).reshape(3, 3)).sum().backward()
    assert q.grad is not None and q.grad[0].tolist() == [0, 0, 0, 0] and float(q.grad[1].abs().max()) > 0
