"""What the surface is like around the vertices at hand: attention over points of the cloud with geometry as its score.

A token knows four places: the last two vertices, the coordinates that its own vertex has so far, and the corner where
the next vertex is expected (see `grammar.near_of`). Head h sees point a of the cloud with the weight

    softmax_a [ l_h a - sum_n sum_k s_hnk (a_k - x_nk)^2 ],

n over those places x_n, k over axes, terms of what is not known left out. s > 0 and l are learnt, apart for each slot
of the grammar. Attention by content would have to learn first where points are; told, a small model uses them from
the start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rl3d.mesh_tokens.condition import fourier
from rl3d.mesh_tokens.grammar import SLOTS
from rl3d.mesh_tokens.quantise import AXES

HEADS, SEEN, OCTAVES = 4, 256, 7
WAVES = 1 + 2 * OCTAVES  # numbers a coordinate
NEAR = 4  # v1, v2, c, e


class SurfaceLookup(nn.Module):
    """What is around each token, and the vertices themselves; without points these alone."""

    def __init__(self, width: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        sigma = torch.full((HEADS, NEAR, 3), 2.0)  # at the start half of the heads look around v1, half around e
        sigma[: HEADS // 2, 0] = sigma[HEADS // 2 :, 3] = torch.logspace(-1.3, -0.3, HEADS // 2)[:, None]
        sigma[:, 2] = torch.logspace(-1.7, -0.7, HEADS // 2).repeat(2)[:, None]
        self.precision = nn.Parameter((-2 * sigma.log()).expand(SLOTS, -1, -1, -1).clone())  # its logarithm
        self.slope = nn.Parameter(torch.zeros(SLOTS, HEADS, 3))
        self.out = nn.Linear((HEADS + NEAR) * 3 * WAVES + 3 * HEADS, width, bias=False)

    def forward(
        self, near: Tensor, slots: Tensor, points: Tensor | None, normals: Tensor | None, has_points: Tensor | None
    ) -> Tensor:
        """[B, T, width].

        Args:
            near: [B, T, 12] of `grammar.near_of`.
            slots: [B, T] of the token that is due.
            others: see `Condition`.
        """
        known = (near >= 0).unflatten(-1, (NEAR, 3))  # [B, T, 4, 3]
        place = ((near + 0.5) / self.bins - 0.5).unflatten(-1, (NEAR, 3)) * known
        own = fourier(place[..., None], OCTAVES) * known[..., None]
        if points is None:
            found = place.new_zeros(*near.shape[:2], HEADS * (3 * WAVES + 3))
        else:
            found = self._attended(place, known, slots, points[:, :SEEN, AXES], normals)
            if has_points is not None:
                found = found * has_points[:, None, None]
        out: Tensor = self.out(torch.cat([own.flatten(2), found], 2).to(self.out.weight.dtype))
        return out

    def _attended(self, place: Tensor, known: Tensor, slots: Tensor, points: Tensor, normals: Tensor | None) -> Tensor:
        with torch.autocast(points.device.type, enabled=False):  # squares cancel
            points = points.float()
            precision = 0.5 * self.precision.float().exp()[slots] * known[:, :, None]  # [B, T, H, 4, 3]
            linear = 2 * (precision * place[:, :, None]).sum(3) + self.slope.float()[slots]
            query = torch.cat([-precision.sum(3), linear], -1).transpose(1, 2)  # [B, H, T, 6]
            key = torch.cat([points.square(), points], -1)[:, None].expand(-1, HEADS, -1, -1)
            side = torch.zeros_like(points) if normals is None else normals[:, :SEEN, AXES].float()
            value = torch.cat([fourier(points, OCTAVES), side], -1)[:, None].expand(-1, HEADS, -1, -1)
            found = nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return found.transpose(1, 2).flatten(2)
