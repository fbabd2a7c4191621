"""What RewardCS-mini is worth: whole shapes beside damaged ones of val assets, and its model card from that."""

from __future__ import annotations

import math

import numpy as np
import torch
from reward3d_card import Tally, interval_cell
from rewardcs_shapes import MAKERS, ON_GRIDS, WRONG_NOUN, Shapes, damaged, other_noun
from scipy.spatial import cKDTree

from rl3d.cameras import Cameras
from rl3d.errors import InputError
from rl3d.export.asset import DISTANCE, FOV_Y
from rl3d.render.render import render
from rl3d.rewards import geometry
from rl3d.rewards.embedded import JudgeReward
from rl3d.rewards.judges import load_judge
from rl3d.rewards.protocol import RewardInput
from rl3d.rewards.reward_cs import RewardCS, choose_surface, surface_at
from rl3d.scenes.mesh import Mesh

SCORERS = ("rewardcs", "judge", "connectedness", "symmetry", "stability")
FORMS = ("", ", fused")


class Scorers:
    """All of `SCORERS` on one mesh; the judge sees four renders in its training light."""

    def __init__(self, reward: RewardCS) -> None:
        self.reward, self.judge = reward, JudgeReward(load_judge("reward"))
        ring = torch.arange(4) * (math.pi / 2)
        self.cameras = Cameras.orbit(ring, 0.3, DISTANCE, FOV_Y, 64)

    @torch.no_grad()
    def __call__(self, mesh: Mesh, prompt: str) -> torch.Tensor:
        """[S] scores."""
        frames = render(mesh, self.cameras, background=1.0, shading="half_lambert", supersample=2)
        rgb, alpha = frames.rgb[None].clamp(0, 1), frames.alpha[None].clamp(0, 1)
        x = RewardInput(rgb, alpha, self.cameras, [prompt], mesh=[mesh])
        rewards = (self.reward, self.judge, *(geometry.REWARDS[name] for name in SCORERS[2:]))
        return torch.stack([reward(x)[0] for reward in rewards])


def coloured(mesh: Mesh, like: Mesh) -> Mesh:
    """The mesh with the face colours of another one's nearest points."""
    if mesh.face_colours is not None or like.face_colours is None:
        return mesh
    faces, weights = choose_surface(like, 4096, 0)
    places = surface_at(like, faces, weights)[0]
    nearest = cKDTree(places.numpy()).query(mesh.triangles.mean(1).numpy())[1]
    return Mesh(mesh.vertices, mesh.faces, face_colours=like.face_colours[faces[torch.from_numpy(nearest)]])


@torch.no_grad()
def evaluate(reward: RewardCS, shapes: Shapes, assets: np.ndarray, most: int = 0) -> dict:
    """Accuracy on pairs of the given assets (at most `most`, evenly picked; 0: all) whose captions the reward knows.

    "pairs" by kind of damage, done to the mesh ("KIND") and to its fused form ("KIND, fused"): the share of assets
    whose whole form scores above the damaged one, [mean, low, high] with a 95 % bootstrap interval, by `SCORERS`.
    """
    rng, tally, scorers = np.random.default_rng(13), Tally(*SCORERS), Scorers(reward)
    few = min(most or len(assets), len(assets))
    # An orange, whose only noun is the word of a colour, is no wrong noun either.
    nouns = [i for i in shapes.split("train") if set(shapes.records[i].noun_words) & reward.words.keys()]
    whole: list[float] = []
    known = 0
    for asset in assets[np.linspace(0, len(assets) - 1, few).astype(int)]:
        caption = shapes.records[asset].caption
        try:
            reward.word_ids([caption])
        except InputError:
            continue
        known += 1
        colours = shapes.shape(int(asset), False).mesh
        for form in FORMS:
            shape = shapes.shape(int(asset), bool(form))
            if form and shape.grid is None:
                continue
            clean = scorers(coloured(shape.mesh, colours), caption)
            whole.append(float(clean[0]))
            for kind in (*MAKERS, WRONG_NOUN):
                if kind in ON_GRIDS and not form:
                    continue
                if kind == WRONG_NOUN:
                    other = shapes.records[other_noun(shapes, int(asset), np.array(nouns), rng)]
                    found, mesh, said = True, shape.mesh, " ".join([shapes.records[asset].colour, *other.noun_words])
                else:
                    made = damaged(shape, kind, rng)
                    found, mesh, said = made is not None, made[0] if made else shape.mesh, caption
                worse = scorers(coloured(mesh, colours), said) if found else clean
                tally.add(kind + form, np.array([asset]), clean[:, None], worse[:, None], torch.tensor([found]))
    return {
        "assets": few,
        "known": known,
        "pairs": tally.result(rng),
        "whole": {"mean": round(float(np.mean(whole)), 3), "std": round(float(np.std(whole)), 3)},
    }


def model_card(row: dict, command: str, parameters: int) -> str:
    """Markdown of the card; `row` is what train_rewardcs.py writes as evaluation.json."""
    training, val = row["training"], row["val"]
    lines = []
    for name, found in val["pairs"].items():
        cells = " | ".join(interval_cell(found[s]) for s in SCORERS)
        lines.append(f"| {name} | {cells} | {found['pairs']} | {found['visible']:.2f} |")
    return f"""# RewardCS-mini

Scores the shape of a mesh against a prompt; higher is better. It looks at no picture and no colour. A mini of DreamCS'
RewardCS (Zou et al. 2025, arXiv 2506.09814): trained without pairs, by the Cauchy-Schwarz divergence between preferred
and dispreferred meshes beside a squared error. Differentiable to the vertices. Licence: Apache-2.0; data: CC0-1.0.

    reward = rl3d.rewards.load("rewardcs-mini")
    scores = reward(rl3d.RewardInput(images, alphas, cameras, prompts, mesh=meshes))
    rl3d generate PROMPT --method dreamcs --set method.reward.name=rewardcs-mini

Range [-1, 2]: real training assets score about 1, ruined ones about 0 (whole val assets {val["whole"]["mean"]:.2f},
with a standard deviation of {val["whole"]["std"]:.2f}). A mesh without faces scores -1. Meshes are taken in the
canonical frame: around the origin, longest side about 1 metre, +Y up, front to +Z. Words of colours do not count.

Network: 1,024 points of the surface with normals, in 32 patches of 24 (a small PointNet each); three transformer blocks
over patches and prompt; a 64-wide embedding on the unit sphere, linear to the score. {parameters / 1e6:.2f} million
parameters.

## Training

{training["step"]:,} steps, {training["shapes"]:,} clouds, {training["seconds"] / 60:.0f} minutes on part of one core.
Preferred: real training assets with their captions, as they are and as surfaces fused from renders. Dispreferred, drawn
apart from them: the kinds of the table, on other assets. Details and what differs from the paper:
`rl3d/rewards/reward_cs.py`, `tools/train_rewardcs.py`.

    {command}

## Numbers

Share of pairs in which the whole shape scores above the damaged one, by mean and 95 % bootstrap interval over
{val["known"]} val assets (of {val["assets"]}; the rest have captions without a known word) that were never trained on;
0.5 is blind, a tie counts half. "fused": both surfaces come from a grid of signed distances, as in `--method dreamcs`.
The judge sees four renders of the same meshes. "counted": the share that is left after pairs that look the same (a
barrel with two fronts is a barrel).

| damage | RewardCS-mini | judge | connectedness | symmetry | stability | pairs | counted |
|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}

`rl3d rewards check rewardcs-mini` asks for what reaches 0.75 in both forms (`CLAIMS` in `rl3d/rewards/check.py`);
results on the check's props are in docs/benchmarks/rewards.md.

## Limits

Kinds near 0.5 are not seen: do not rely on it against them. It knows the judge's words but those of colours, and
low-poly props. All kinds of damage were trained, in other draws and on other assets; what an optimisation does to a
shape in other ways it has not seen. Points are sampled: two equal surfaces with other faces differ a little. It shares
its data with both judges and nothing else. Marks are absolute, so scores of different prompts were compared while
training; still a rare noun's assets score lower.
"""
