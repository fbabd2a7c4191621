"""What the surface is like around the vertices at hand: attention over points of the cloud with geometry as its score.

A token knows four places: the last two vertices, the coordinates that its own vertex has so far, and the corner where
the next vertex is expected (see `around.near_of`). Head h sees point a of the cloud with the weight

    softmax_a [ l_h a - sum_n sum_k s_hnk (a_k - x_nk)^2 + g_h f_a ],

n over those places x_n, k over axes, terms of what is not known left out. The last heads alone have g: f_a in [0, 1]
says how far a is from all that is written, 1 at `FAR` and beyond. s > 0, l and g are learnt, apart for each slot of the
grammar. Attention by content would have to learn first where points are; told, a small model uses them from the start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rl3d.mesh_tokens.around import WATCHED, Around
from rl3d.mesh_tokens.condition import fourier
from rl3d.mesh_tokens.grammar import SLOTS
from rl3d.mesh_tokens.quantise import AXES

NEARBY, SEEKING = 4, 2  # heads without g, on the first SEEN points, and with it, on the first WATCHED
HEADS, OCTAVES = NEARBY + SEEKING, 7
WAVES = 1 + 2 * OCTAVES  # numbers a coordinate
NEAR = 4  # v1, v2, c, e
SEEN = 256
FAR = 0.3  # longest sides
FOUND = 3 * WAVES + 3  # place and normal of what a head sees
LEFT = 2 * (1 + 2 * 4)  # numbers of the faces that are left


class SurfaceLookup(nn.Module):
    """What is around each token: the places themselves, the surface there, and how much is left to write."""

    def __init__(self, width: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        sigma = torch.full((HEADS, NEAR, 3), 2.0)  # at the start heads look around v1, around e, at what is far
        sigma[:2, 0] = sigma[2:4, 3] = torch.logspace(-1.3, -0.3, 2)[:, None]
        sigma[5, 0] = 0.3
        sigma[:, 2] = torch.logspace(-1.7, -0.7, 2).repeat(HEADS // 2)[:, None]
        self.precision = nn.Parameter((-2 * sigma.log()).expand(SLOTS, -1, -1, -1).clone())  # its logarithm
        self.slope = nn.Parameter(torch.zeros(SLOTS, HEADS, 3))
        self.seek = nn.Parameter(torch.full((SLOTS, SEEKING), 8.0))  # g
        self.out = nn.Linear(3 * WAVES * NEAR + FOUND * HEADS + SEEKING + 1, width, bias=False)
        self.left = nn.Linear(LEFT, width, bias=False)

    def forward(
        self,
        around: Around,
        points: Tensor | None,
        normals: Tensor | None,
        has_points: Tensor | None,
        faces: Tensor | None,
    ) -> Tensor:
        """[B, T, width]; for the others see `Condition`."""
        near = around.near
        known = (near >= 0).unflatten(-1, (NEAR, 3))  # [B, T, 4, 3]
        place = ((near + 0.5) / self.bins - 0.5).unflatten(-1, (NEAR, 3)) * known
        own = fourier(place[..., None], OCTAVES) * known[..., None]
        if points is None or around.reach is None:
            found = place.new_zeros(*near.shape[:2], FOUND * HEADS + SEEKING + 1)
        else:
            far = around.reach.clamp_max(FAR) / FAR
            found = self._attended(place, known, around.slots, far, points[:, :SEEN, AXES], normals)
            found = torch.cat([found, far.mean(2, keepdim=True)], 2)
            if has_points is not None:
                found = found * has_points[:, None, None]
        out: Tensor = self.out(torch.cat([own.flatten(2), found], 2).to(self.out.weight.dtype))
        if faces is not None:
            out = out + self._left(around.written, faces)
        return out

    def _left(self, written: Tensor, faces: Tensor) -> Tensor:
        asked = faces.clamp_min(1)[:, None].float()
        left = asked - written
        share = (left / asked).clamp(-0.5, 1)
        count = (left.clamp_min(0) + 1).log2() / 8 - 0.1 * (left < 0)
        waves = fourier(torch.stack([share, count], -1), 4) * (faces > 0)[:, None, None]
        out: Tensor = self.left(waves.to(self.left.weight.dtype))
        return out

    def _attended(
        self, place: Tensor, known: Tensor, slots: Tensor, far: Tensor, points: Tensor, normals: Tensor | None
    ) -> Tensor:
        """[B, T, HEADS * FOUND + SEEKING]."""
        with torch.autocast(points.device.type, enabled=False):  # squares cancel
            points = points.float()
            precision = 0.5 * self.precision.float().exp()[slots] * known[:, :, None]  # [B, T, H, 4, 3]
            linear = 2 * (precision * place[:, :, None]).sum(3) + self.slope.float()[slots]
            query = torch.cat([-precision.sum(3), linear], -1)  # [B, T, H, 6]
            key = torch.cat([points.square(), points], -1)
            side = torch.zeros_like(points) if normals is None else normals[:, :SEEN, AXES].float()
            value = torch.cat([fourier(points, OCTAVES), side], -1)
            keys, values = (x[:, None].expand(-1, NEARBY, -1, -1) for x in (key, value))
            queries = query[:, :, :NEARBY].transpose(1, 2)
            close = nn.functional.scaled_dot_product_attention(queries, keys, values, scale=1.0)
            score = torch.einsum("bthc,bkc->bthk", query[:, :, NEARBY:], key[:, :WATCHED])
            weight = (score + self.seek.float()[slots][..., None] * far[:, :, None]).softmax(-1)
            sought = torch.einsum("bthk,bkc->bthc", weight, value[:, :WATCHED])
            open_ = torch.einsum("bthk,btk->bth", weight, far)  # f of what was sought
        return torch.cat([close.transpose(1, 2).flatten(2), sought.flatten(2), open_], -1)
