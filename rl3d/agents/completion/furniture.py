"""Parts to complete for whoever has no data: of rl3d's built-in furniture."""

from __future__ import annotations

import torch

from rl3d.agents.completion.clouds import corrupted, random_frame, surface_points
from rl3d.agents.completion.objective import Judge, Parts, parts_of
from rl3d.agents.layout.furniture import KINDS
from rl3d.agents.layout.pieces import built_in
from rl3d.data.asset_set import canonical
from rl3d.scenes.mesh import Mesh

EACH = 4  # random parts of each piece


def furniture_parts(judge: Judge, seed: int = 0) -> Parts:
    """Random parts of rl3d's built-in furniture in random frames."""
    meshes = []
    for i, kind in enumerate(KINDS):
        mesh = built_in(i, kind.sizes[0])
        meshes.append(Mesh(torch.from_numpy(canonical(mesh.vertices.numpy())), mesh.faces))
    generator = torch.Generator().manual_seed(seed)
    whole = surface_points(meshes, 1024, generator).repeat(EACH, 1, 1)
    part = corrupted(random_frame(len(whole), generator).into(whole), 512, generator)
    return parts_of(judge.autoencoder, part)
