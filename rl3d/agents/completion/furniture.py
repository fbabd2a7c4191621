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


def furniture_meshes() -> list[Mesh]:
    """rl3d's built-in furniture, each piece in its own frame of longest side 1."""
    pieces = (built_in(i, kind.sizes[0]) for i, kind in enumerate(KINDS))
    return [Mesh(torch.from_numpy(canonical(piece.vertices.numpy())), piece.faces) for piece in pieces]


def furniture_parts(judge: Judge, seed: int = 0) -> Parts:
    """Random parts of `furniture_meshes` in random frames."""
    generator = torch.Generator().manual_seed(seed)
    whole = surface_points(furniture_meshes(), 1024, generator).repeat(EACH, 1, 1)
    part = corrupted(random_frame(len(whole), generator).into(whole), 512, generator)
    return parts_of(judge.autoencoder, part)
