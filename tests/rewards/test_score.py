"""Scoring scenes: the judges' own looks, retrieval arithmetic, and the shipped judges on plain shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from rl3d.cameras import Cameras
from rl3d.data.views import ViewSpec, render_view_sets, to_images
from rl3d.errors import InputError
from rl3d.rewards import judge_views, load_judge, retrieval, score_asset
from rl3d.rewards.score import LOOKS, colour_probabilities, colour_seen, distractors_for, draft_score
from rl3d.scenes import Gaussians, Mesh


def box(colour: tuple[float, float, float], extents: tuple[float, float, float] = (0.6, 0.4, 0.5)) -> Mesh:
    corners = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))])
    return Mesh(corners * torch.tensor(extents), faces, face_colours=torch.tensor(colour).expand(len(faces), 3))


def blob(colour: float = 0.5) -> Gaussians:
    means = 0.15 * torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    identity = torch.tensor([1.0, 0, 0, 0]).expand(200, 4)
    return Gaussians(
        means, torch.full((200, 3), -3.0), identity, torch.full((200,), 3.0), torch.full((200, 1, 3), colour)
    )


@pytest.mark.parametrize("which", ["reward", "gold"])
def test_a_mesh_is_lit_as_in_the_training_images(which: str) -> None:
    look, mesh = LOOKS[which], box((0.8, 0.3, 0.1), (1.0, 0.4, 0.3))  # canonical size already: longest side 1
    spec = ViewSpec(
        light=look.light, ambient=look.ambient, diffuse=look.diffuse, half_lambert=look.half_lambert, fov_y=look.fov_y
    )
    azimuth = look.azimuths[0] + torch.arange(4) * (math.pi / 2)
    cameras = Cameras.orbit(azimuth, look.elevations[0], look.distance, look.fov_y, 64)
    stored = render_view_sets(mesh.vertices.numpy(), mesh.faces.numpy(), mesh.face_colours.numpy(), cameras, spec)
    want = to_images(torch.from_numpy(stored)[None], torch.zeros(1, 3))[0]
    ours = judge_views(mesh, look)[0]
    # 8-bit storage moves colours by up to 0.006; the two rasterizers agree on all but a few samples of edge pixels.
    assert float((ours - want).abs().mean()) < 2e-3
    assert float(((ours - want).abs() > 0.02).float().mean()) < 2e-3


def test_place_and_size_do_not_matter() -> None:
    mesh = box((0.8, 0.3, 0.1))
    moved = replace(mesh, vertices=7 * mesh.vertices + torch.tensor([3.0, -2.0, 5.0]))
    look = LOOKS["gold"]
    assert float((judge_views(mesh, look) - judge_views(moved, look)).abs().mean()) < 1e-3
    splats = blob()
    moved_splats = replace(splats, means=2 * splats.means + 1, log_scales=splats.log_scales + math.log(2))
    assert float((judge_views(splats, look) - judge_views(moved_splats, look)).abs().mean()) < 1e-3


def test_nothing_to_see_is_an_error() -> None:
    empty = replace(blob(), opacity_logits=torch.full((200,), -9.0))
    with pytest.raises(InputError, match="splats is visible"):
        judge_views(empty, LOOKS["reward"])
    with pytest.raises(InputError, match="faces"):
        judge_views(Mesh(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.int64)), LOOKS["reward"])
    with pytest.raises(InputError, match="size is 0"):
        judge_views(Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])), LOOKS["reward"])


def test_retrieval_counts_who_is_ahead(tiny_judge: Callable, random_views: Callable) -> None:
    judge, images = tiny_judge("reward"), random_views(2)
    texts = [f"{c} thing{i}" for i, c in enumerate(["red", "blue", "green", "black", "white"])]
    mean = torch.nn.functional.normalize(judge.encode(images).embedding.mean(0), dim=0)
    scores = judge.embed_texts(texts) @ mean
    order = scores.argsort(descending=True).tolist()
    for place, i in enumerate(order):
        found = retrieval(judge, images, texts[i], [t for t in texts if t != texts[i]])
        assert (found.rank, found.best) == (place + 1, texts[order[0]])
        assert found.similarity == pytest.approx(float(scores[i]), abs=1e-6)
    assert retrieval(judge, images, "red thing0", ["red thing0 "]).rank == 2  # a tie counts against the prompt
    with pytest.raises(InputError, match="own distractors"):
        retrieval(judge, images, texts[0], texts)


def test_distractors_share_no_noun_with_the_prompt(tiny_judge: Callable) -> None:
    judge = tiny_judge("reward")
    found = distractors_for(judge, "a red thing3")
    assert len(found) == 19 and not any("thing3" in d.split() for d in found)
    assert found == distractors_for(judge, "thing3 in blue")
    trunks = replace(judge, distractors=("red chest", "red car"))
    assert distractors_for(trunks, "a trunk", 1) == ["red car"]
    assert distractors_for(judge, "red thing3", same_colour=True)[:2] == ["red thing0", "red thing1"]
    assert distractors_for(judge, "thing3", same_colour=True)[:2] == ["thing0", "thing1"]
    with pytest.raises(InputError, match="fixed captions"):
        distractors_for(judge, "thing3", 40)


def test_colours_sum_to_one_and_ignore_the_prompts_own(tiny_judge: Callable, random_views: Callable) -> None:
    judge, images = tiny_judge("gold"), random_views(1)
    red = colour_probabilities(judge, images, "a red barrel")
    assert sum(red.values()) == pytest.approx(1, abs=1e-5) and len(red) == 13
    assert red == colour_probabilities(judge, images, "a blue barrel")


# ---- the shipped judges ----------------------------------------------------------------------------------------------

PAINTS = {"red": (0.8, 0.12, 0.12), "green": (0.2, 0.6, 0.25), "blue": (0.15, 0.3, 0.8), "yellow": (0.95, 0.8, 0.2)}


@pytest.mark.parametrize("which", ["reward", "gold"])
def test_shipped_judges_see_the_colour_of_a_box(which: str) -> None:
    judge = load_judge(which)  # type: ignore[arg-type]
    for name, colour in PAINTS.items():
        images = judge_views(box(colour), LOOKS[which])
        assert colour_seen(judge, images) == name
        assert retrieval(judge, images, f"{name} crate", [f"{c} crate" for c in PAINTS if c != name]).rank == 1


def test_score_asset_is_plain_and_knows_what_it_does_not_know() -> None:
    mesh = box(PAINTS["red"])
    scores = score_asset("a red zyxomat crate", mesh)
    assert scores["unknown_words"] == ["zyxomat"]
    assert json.loads(json.dumps(scores)) == scores
    for which in ("reward", "gold"):
        assert scores[which]["colour"] == "red" and -1 <= scores[which]["similarity"] <= 1
        assert 1 <= scores[which]["rank_of_20"] <= 20
    assert draft_score("red crate", mesh) > draft_score("blue tree", mesh)
    assert "colour_probability" not in score_asset("crate", blob())["gold"]
    with pytest.raises(InputError, match="knows no word"):
        score_asset("zyxomat", mesh)
