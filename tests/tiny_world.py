"""A world small enough for tests: a folder of captioned coloured solids, and a random multi-view prior."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import torch

from rl3d.data.colours import WORDS as COLOURS
from rl3d.priors.embedded import EmbeddedPrior, Vocabulary, new_scheduler
from rl3d.priors.multiview_model import MultiViewTransformer
from rl3d.rewards.reward_cs import RewardCS, RewardCSConfig, RewardCSModel
from rl3d.scenes import Mesh

RED, GREEN, BLUE = (0.78, 0.16, 0.16), (0.24, 0.63, 0.27), (0.2, 0.35, 0.78)
PINK = (0.92, 0.47, 0.67)
YELLOW, GREY, BROWN = (0.94, 0.82, 0.24), (0.51, 0.52, 0.53), (0.47, 0.29, 0.18)
Colour = tuple[float, float, float]
WORDS = ["<pad>", "<null>", *sorted("a the barrel box chest crate red blue green wooden small tree".split())]


def box(extents: tuple[float, float, float], *sides: Colour) -> Mesh:
    """A box around the origin; one colour, or six in the order -x, +x, -y, +y, -z, +z."""
    corners = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))])
    colours = torch.tensor(sides if len(sides) == 6 else sides * 6).repeat_interleave(2, 0)
    return Mesh(corners * torch.tensor(extents), faces, face_colours=colours)


def cone(sides: int, side: Colour, bottom: Colour, top: float = 0.0) -> Mesh:
    """A pyramid (`top` 0) or a prism (`top` 1) over a regular polygon."""
    angle = torch.arange(sides) * (2 * math.pi / sides)
    ring = torch.stack([angle.cos(), torch.zeros(sides), -angle.sin()], 1) * 0.4
    up = torch.tensor([0.0, 0.45, 0.0])
    vertices = torch.cat([ring - up, ring * torch.tensor([top, 1.0, top]) + up, torch.stack([-up, up])])
    faces, colours = [], []
    for i in range(sides):
        j = (i + 1) % sides
        k, m = sides + i, sides + j
        faces += [(i, j, m), (i, m, k), (2 * sides, j, i), (2 * sides + 1, k, m)]
        colours += [side, side, bottom, side]
    keep = [k for k in range(len(faces)) if top or k % 4 != 3]
    return Mesh(vertices, torch.tensor(faces)[keep], face_colours=torch.tensor(colours)[keep])


def write_assets(folder: Path) -> Path:
    """Six meshes in three formats with captions; the "chest" was found in a colour that is held out for it."""
    solids = {
        "crate.glb": (box((1.0, 0.8, 0.9), BROWN), "wooden crate", "crate", [["brown", 1.0]], "train"),
        "barrel.obj": (cone(8, RED, GREY, 1.0), "red barrel", "barrel", [["red", 0.7], ["grey", 0.3]], "train"),
        "tree.ply": (cone(4, GREEN, BROWN), "small tree", "tree", [["green", 0.6], ["brown", 0.4]], "train"),
        "couch.glb": (box((1.0, 0.4, 0.5), PINK), "couch", "couch", [["pink", 1.0]], "train"),
        "chest.glb": (box((0.7, 0.5, 0.5), BLUE), "blue chest", "chest", [["blue", 1.0]], "val"),
        "tower.obj": (cone(6, GREY, GREY, 0.8), "stone tower", "tower", [["grey", 1.0]], "val"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for file, (mesh, caption, noun, colours, split) in solids.items():
        mesh.save(folder / file)
        lines.append({"file": file, "caption": caption, "noun": noun, "colours": colours, "split": split})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def random_model(size: int = 16, vocabulary: int = len(WORDS), stem_channels: int = 16) -> MultiViewTransformer:
    """Every tensor random (a fresh model's last layer is zero), its pictures mostly covered."""
    torch.manual_seed(0)
    model = MultiViewTransformer(
        image_size=size, patch=8, width=32, depth=1, heads=2, vocabulary=vocabulary, stem_channels=stem_channels
    )
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
        # Outputs are pixels folded 4 x 4, channel by channel: the last 16 of 64 are alpha.
        if stem_channels:
            model.head.bias[48:] += 0.6
    return model


def random_prior(size: int = 16, dtype: torch.dtype = torch.float32) -> EmbeddedPrior:
    return EmbeddedPrior(random_model(size), Vocabulary(WORDS), new_scheduler(), "tiny", torch.device("cpu"), dtype)


def random_rewardcs() -> RewardCS:
    """A reward on meshes that knows `WORDS` but those of colours; every tensor random."""
    words = {w: i for i, w in enumerate(w for w in WORDS if w not in COLOURS)}
    config = RewardCSConfig(len(words), points=64, patches=8, neighbours=6, width=16, heads=2, blocks=1, embedding=8)
    torch.manual_seed(0)
    model = RewardCSModel(config)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    return RewardCS(model.eval().requires_grad_(False), words)


def load_tool(name: str) -> ModuleType:
    """tools/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
