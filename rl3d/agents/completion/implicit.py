"""An implicit decoder: the signed distance from a whole object's surface, from its latent and a place.

Where a mesh is open (most game assets lack a floor), inside and outside come from the generalised winding number
(Jacobson et al. 2013), which is still above one half where the surface mostly closes around a point.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn

from rl3d.agents.completion.autoencoder import perceptron
from rl3d.errors import InputError
from rl3d.metrics.tree import build, nearest
from rl3d.model_files import read_weights, readable, write_weights
from rl3d.scenes.isosurface import grid_points, zero_level
from rl3d.scenes.mesh import Mesh

BAND = 0.1  # distances beyond it are not told apart
LEVEL = 0.01  # of the surface that is extracted: half the thickness that a sheet gets


@dataclass(frozen=True)
class ImplicitConfig:
    """gfv: size of the latent. octaves: of the places' Fourier features. hidden: width of three layers."""

    gfv: int = 128
    octaves: int = 5
    hidden: int = 160


class ImplicitDecoder(nn.Module):
    """Whitened latents and places to signed distances, cut to [-BAND, BAND]; negative inside."""

    def __init__(self, config: ImplicitConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or ImplicitConfig()
        self.latent = nn.Linear(c.gfv, c.hidden)
        self.place = nn.Linear(3 + 6 * c.octaves, c.hidden, bias=False)
        self.rest = perceptron(c.hidden, c.hidden, c.hidden, 1)

    def forward(self, code: Tensor, points: Tensor) -> Tensor:
        """[B, G], [B, Q, 3] -> [B, Q]; the latent's share of the first layer is computed once."""
        waves = points[..., None] * (2.0 ** torch.arange(self.config.octaves, device=points.device) * math.pi)
        features = torch.cat([points, waves.sin().flatten(-2), waves.cos().flatten(-2)], -1)
        hidden = (self.place(features) + self.latent(code)[:, None]).relu()
        return BAND * torch.tanh(self.rest(hidden)[..., 0])

    def save(self, folder: Path) -> None:
        """Weights in half precision and their configuration; each file atomically."""
        write_weights(folder, self, asdict(self.config), torch.half)

    @staticmethod
    def load(folder: Path) -> ImplicitDecoder:
        """Raises:
        AssetError: files that are missing or of another kind.
        """
        with readable(f"the implicit decoder in {folder}"):
            config, tensors = read_weights(folder)
            model = ImplicitDecoder(ImplicitConfig(**config))
            model.load_state_dict(tensors)
        return model.eval().requires_grad_(False)


def winding_number(mesh: Mesh, points: Tensor, chunk: int = 1 << 19) -> Tensor:
    """[Q] how often the surface closes around each point, 1 inside a closed one, by solid angles (Van Oosterom and
    Strackee 1983)."""
    corners = mesh.triangles.to(points)
    out = []
    for some in points.split(max(1, chunk // max(1, len(corners)))):
        a, b, c = (corners[None, :, i] - some[:, None] for i in range(3))
        x, y, z = (v.norm(dim=-1) for v in (a, b, c))
        volume = (a * torch.linalg.cross(b, c)).sum(-1)
        below = x * y * z + (a * b).sum(-1) * z + (b * c).sum(-1) * x + (c * a).sum(-1) * y
        out.append(torch.atan2(volume, below).sum(1) / (2 * math.pi))
    return torch.cat(out)


def labelled(mesh: Mesh, count: int, generator: Generator) -> Tensor:
    """[count, 4]: places (half within 0.03 of the surface, a quarter within 0.1, the rest in the cube of 1.2) and
    their signed distances, cut to [-BAND, BAND]."""
    from rl3d.scenes.point_cloud import sample_surface

    near, around = count // 2, count // 4
    surface = sample_surface(mesh, near + around, generator).points
    spread = torch.cat([torch.full((near, 1), 0.03), torch.full((around, 1), 0.1)])
    free = 1.2 * torch.rand(count - near - around, 3, generator=generator) - 0.6
    points = torch.cat([surface + spread * torch.randn(surface.shape, generator=generator), free])
    away, _ = nearest(build(mesh.triangles.double().numpy()), points.double().numpy())
    sign = 1 - 2 * (winding_number(mesh, points) > 0.5).float()
    distance = torch.from_numpy(np.minimum(away, BAND)).float() * sign
    return torch.cat([points, distance[:, None]], 1)


@torch.no_grad()
def surface_mesh(model: ImplicitDecoder, code: Tensor, resolution: int = 64, level: float = LEVEL) -> Mesh:
    """The surface of a latent [G] by marching cubes in the cube of 1.2 around the origin.

    Raises:
        InputError: the decoder has no surface there.
    """
    box = torch.tensor([[-0.6] * 3, [0.6] * 3])
    points = grid_points(box, (resolution,) * 3)  # [D, H, W, 3] along z, y, x
    chunks = points.flatten(0, 2).split(1 << 16)
    values = torch.cat([model(code[None], some[None])[0] for some in chunks]).view(points.shape[:3]) - level
    if not bool((values < 0).any()):
        raise InputError("the completed object has no surface at this resolution; leave --mesh out")
    grid = values.permute(2, 1, 0).numpy()
    vertices, faces = zero_level(grid, box[0].double().numpy(), 1.2 / (resolution - 1))
    return Mesh(torch.from_numpy(vertices).float(), torch.from_numpy(faces))
