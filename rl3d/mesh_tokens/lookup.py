"""What the surface is like around the vertices at hand: attention over points of the cloud with geometry as its score.

A token knows the last two vertices, v1 and v2, and the coordinates c that its own vertex has so far. Head h sees point
a with the weight

    softmax_a [ - sum_k s_hk (a_k - v1_k)^2 - sum_k s'_hk (a_k - v2_k)^2 - sum_k u_hk (a_k - c_k)^2 + l_h a ],

k over axes, terms of what is not known left out. s, s', u > 0 and l are learnt, apart for each slot of the grammar.
Attention by content would have to learn first where points are; told, a small model uses them from the start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rl3d.mesh_tokens.condition import fourier
from rl3d.mesh_tokens.grammar import SLOTS
from rl3d.mesh_tokens.quantise import AXES

HEADS, SEEN, OCTAVES = 4, 256, 7
NEAR = 3  # v1, v2, c


class SurfaceLookup(nn.Module):
    """What is around each token, and the vertices themselves; without points these alone."""

    def __init__(self, width: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        sigma = torch.empty(HEADS, NEAR, 3)
        sigma[:, 0] = torch.logspace(-1.3, 0, HEADS)[:, None]  # 0.05 to 1
        sigma[:, 1] = 1.5
        sigma[:, 2] = torch.logspace(-1.7, -0.7, HEADS)[torch.arange(HEADS).view(2, -1).T.flatten()][:, None]
        self.precision = nn.Parameter((-2 * sigma.log()).expand(SLOTS, -1, -1, -1).clone())  # its logarithm
        self.slope = nn.Parameter(torch.zeros(SLOTS, HEADS, 3))
        self.out = nn.Linear(HEADS * (3 + 3 * (1 + 2 * OCTAVES)) + 3 * NEAR, width, bias=False)

    def forward(
        self, near: Tensor, slots: Tensor, points: Tensor | None, normals: Tensor | None, has_points: Tensor | None
    ) -> Tensor:
        """[B, T, width].

        Args:
            near: [B, T, 9] bins of v1, v2, c in the order of writing, -1 where unknown (`grammar.near_of`).
            slots: [B, T] of the token that is due.
            others: see `Condition`.
        """
        known = (near >= 0).unflatten(-1, (NEAR, 3))  # [B, T, 3, 3]
        place = ((near + 0.5) / self.bins - 0.5).unflatten(-1, (NEAR, 3)) * known
        if points is None:
            found = place.new_zeros(*near.shape[:2], self.out.in_features - 3 * NEAR)
        else:
            found = self._attended(place, known, slots, points[:, :SEEN, AXES], normals)
            if has_points is not None:
                found = found * has_points[:, None, None]
        out: Tensor = self.out(torch.cat([place.flatten(2), found], 2).to(self.out.weight.dtype))
        return out

    def _attended(self, place: Tensor, known: Tensor, slots: Tensor, points: Tensor, normals: Tensor | None) -> Tensor:
        with torch.autocast(points.device.type, enabled=False):  # squares cancel
            points = points.float()
            precision = 0.5 * self.precision.float().exp()[slots] * known[:, :, None]  # [B, T, H, 3, 3]
            linear = 2 * (precision * place[:, :, None]).sum(3) + self.slope.float()[slots]
            query = torch.cat([-precision.sum(3), linear], -1).transpose(1, 2)  # [B, H, T, 6]
            key = torch.cat([points.square(), points], -1)[:, None].expand(-1, HEADS, -1, -1)
            side = torch.zeros_like(points) if normals is None else normals[:, :SEEN, AXES].float()
            value = torch.cat([fourier(points, OCTAVES), side], -1)[:, None].expand(-1, HEADS, -1, -1)
            found = nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return found.transpose(1, 2).flatten(2)
