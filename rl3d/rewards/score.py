"""Scoring a scene with the embedded judges: each looks through its own cameras and light. No gradients here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from rl3d.cameras import Cameras
from rl3d.colour import linear_to_srgb, srgb_to_linear
from rl3d.data.captions import SYNONYMS, split_words
from rl3d.data.colours import WORDS as COLOURS
from rl3d.errors import InputError
from rl3d.render.render import render
from rl3d.rewards.judges import Judge, load_judge
from rl3d.scenes.gaussians import Gaussians
from rl3d.scenes.mesh import Mesh

VIEWS = 4
SIZE = 64
DISTRACTORS = 19


@dataclass(frozen=True)
class Look:
    """How a judge looks at an asset: groups of 4 orthogonal views; the light is what it was trained with.

    Attributes:
        azimuths, elevations: of each group's first view, radians. distance, fov_y: for an asset of the canonical size
        (bounding-sphere radius at most 0.6). light: world direction towards it; half_lambert, ambient, diffuse as in
        rl3d.data.views.ViewSpec.
    """

    azimuths: tuple[float, ...]
    elevations: tuple[float, ...]
    distance: float
    fov_y: float
    light: tuple[float, float, float]
    ambient: float
    diffuse: float
    half_lambert: bool


LOOKS = {
    "reward": Look((0.0, math.pi / 4), (0.2, 0.45), 2.7, 0.47, (0.35, 0.8, 0.5), 0.55, 0.45, True),
    "gold": Look((0.0, 0.6, -0.6), (0.35, 0.1, 0.6), 2.7, 0.55, (-0.6, 0.7, 0.4), 0.5, 0.5, False),
}


@dataclass(frozen=True)
class Retrieval:
    """similarity with the prompt in [-1, 1]; rank of the prompt among all captions (1 is best); its probability
    (softmax over similarity / temperature); best: the caption in first place."""

    similarity: float
    rank: int
    probability: float
    best: str


def scene_frame(scene: Mesh | Gaussians) -> tuple[Tensor, float]:
    """Centre [3] and the length that canonical size 1 has in the scene (see rl3d.data.asset_set.canonical).

    Splats count where they are visible (opacity over 0.1), without the outermost half percent on each side.
    """
    if isinstance(scene, Mesh):
        points = scene.triangles.detach().reshape(-1, 3)
        low, high = scene.bounds.detach()
    else:
        points = scene.means.detach()[scene.opacities.detach() > 0.1]
        if len(points) == 0:
            raise InputError(f"none of the {len(scene)} splats is visible (opacity over 0.1), nothing to judge")
        ordered = points.sort(0).values
        skip = int(0.005 * len(ordered))
        low, high = ordered[skip], ordered[len(ordered) - 1 - skip]
        points = points[((points >= low) & (points <= high)).all(1)]
    centre = 0.5 * (low + high)
    reach = float((points - centre).norm(dim=1).max()) if len(points) else 0.0
    length = max(float((high - low).max()), reach / 0.6)
    if not (math.isfinite(length) and length > 0):
        raise InputError(f"the scene's size is {length:g}; a judge needs a scene with a finite extent")
    return centre, length


@torch.no_grad()
def judge_views(scene: Mesh | Gaussians, look: Look, device: torch.device | str = "cpu") -> Tensor:
    """[groups, 4, 4, 64, 64] premultiplied sRGB + alpha: the scene as a judge sees it; view k of a group stands k * 90
    degrees after its first. Meshes get the judge's light, splats are shown as they are."""
    scene = scene.to(device)
    centre, length = scene_frame(scene)
    steps = torch.arange(VIEWS) * (2 * math.pi / VIEWS)
    azimuth = (torch.tensor(look.azimuths)[:, None] + steps).flatten()
    elevation = torch.tensor(look.elevations).repeat_interleave(VIEWS)
    x, y, z = (float(c) for c in centre)
    cameras = Cameras.orbit(azimuth, elevation, look.distance * length, look.fov_y, SIZE, (x, y, z)).to(device)
    if isinstance(scene, Gaussians):
        frames = render(scene, cameras, background=0.0, supersample=2)
        rgba = torch.cat([frames.rgb, frames.alpha], 1).clamp(0, 1)
    else:
        rgba = _lit(scene, cameras, look)
    return rgba.float().unflatten(0, (len(look.azimuths), VIEWS))


def _lit(mesh: Mesh, cameras: Cameras, look: Look, supersample: int = 4) -> Tensor:
    """[V, 4, H, W]: light on every sample in linear light, then the mean over a pixel, as in the training images."""
    frames = render(mesh, cameras.resized(SIZE * supersample), background=0.0, normals=True, antialias=False)
    light = torch.tensor(look.light, device=cameras.device)
    assert frames.normal is not None  # asked for
    cosine = (frames.normal * (light / light.norm())[:, None, None]).sum(1, keepdim=True)
    falloff = 0.5 + 0.5 * cosine if look.half_lambert else cosine.clamp_min(0)
    linear = srgb_to_linear(frames.rgb.clamp(0, 1)) * (look.ambient + look.diffuse * falloff) * frames.alpha
    linear, alpha = avg_pool2d(linear, supersample), avg_pool2d(frames.alpha, supersample)
    straight = (linear / alpha.clamp_min(1 / 255)).clamp(0, 1)
    return torch.cat([linear_to_srgb(straight) * alpha, alpha], 1)


def distractors_for(judge: Judge, prompt: str, count: int = DISTRACTORS, same_colour: bool = False) -> list[str]:
    """The judge's first `count` fixed captions ("colour noun") that share no word with the prompt.

    Colours do not count, synonyms do (rl3d.data.captions.SYNONYMS): a chest is no wrong answer to "a trunk". With
    `same_colour` they take the prompt's colour word, or lose theirs where it names none, so that only the noun decides;
    this is the harder test.
    """

    def meanings(text: str) -> set[str]:
        words = set(split_words(text)) - set(COLOURS)
        return words.union(*(SYNONYMS.get(w, ()) for w in words))

    own_meanings = meanings(prompt)
    found = [d for d in judge.distractors if not own_meanings & meanings(d)][:count]
    if len(found) < count:
        raise InputError(f"only {len(found)} fixed captions differ from {prompt!r}; pass {count} distractors yourself")
    if same_colour:
        own = [w for w in split_words(prompt) if w in COLOURS][:1]
        found = [" ".join([*own, *(w for w in split_words(d) if w not in COLOURS)]) for d in found]
    return found


def _mean_embedding(judge: Judge, images: Tensor) -> Tensor:
    mean = judge.encode(images).embedding.mean(0)
    return mean / mean.norm().clamp_min(1e-6)


@torch.no_grad()
def retrieval(judge: Judge, images: Tensor, prompt: str, distractors: Sequence[str] | None = None) -> Retrieval:
    """Where the prompt lands among captions, by the asset's mean embedding.

    Args:
        images: [G, V, 4, H, W] premultiplied views of ONE asset, e.g. of `judge_views`; groups are averaged.
        distractors: wrong captions; None takes 19 fixed ones. A tie counts against the prompt.

    Raises:
        InputError: no words of a caption are known to the judge, or the prompt is among the distractors.
    """
    wrong = list(distractors) if distractors is not None else distractors_for(judge, prompt)
    if prompt in wrong:
        raise InputError(f"{prompt!r} is among its own distractors; leave it out of them")
    texts = [prompt, *wrong]
    scores = judge.embed_texts(texts) @ _mean_embedding(judge, images)
    probability = (scores / judge.temperature).softmax(0)
    rank = 1 + int((scores[1:] >= scores[0]).sum())
    return Retrieval(float(scores[0]), rank, float(probability[0]), texts[int(scores.argmax())])


@torch.no_grad()
def colour_probabilities(judge: Judge, images: Tensor, prompt: str) -> dict[str, float]:
    """P(colour word) for one asset [G, V, 4, H, W]: the prompt said in each of the 13 colours, softmax over them."""
    rest = [w for w in split_words(prompt) if w not in COLOURS]
    scores = judge.embed_texts([" ".join([colour, *rest]) for colour in COLOURS]) @ _mean_embedding(judge, images)
    return dict(zip(COLOURS, (scores / judge.temperature).softmax(0).tolist()))


@torch.no_grad()
def colour_seen(judge: Judge, images: Tensor) -> str:
    """The main colour of one asset [G, V, 4, H, W] by the judge's colour head, which does not know the prompt."""
    return COLOURS[int(judge.encode(images).colour_logits.softmax(-1).mean(0).argmax())]


def score_with(judge: Judge, prompt: str, scene: Mesh | Gaussians) -> dict[str, Any]:
    """One judge's verdict as plain values; see `score_asset`."""
    images = judge_views(scene, LOOKS[judge.name], judge.device)
    found = retrieval(judge, images, prompt)
    verdict: dict[str, Any] = {
        "similarity": found.similarity,
        "rank_of_20": found.rank,
        "probability": found.probability,
        "colour": colour_seen(judge, images),
    }
    named = [w for w in split_words(prompt) if w in COLOURS]
    if named:
        verdict["colour_probability"] = colour_probabilities(judge, images, prompt)[named[0]]
    return verdict


def score_asset(
    prompt: str, scene: Mesh | Gaussians, device: torch.device | str = "cpu", judges: Sequence[Judge] | None = None
) -> dict[str, Any]:
    """How well a scene shows what a sentence says, by both embedded judges (or by those given, loaded once for many).

    Returns:
        "reward" and "gold", each: similarity in [-1, 1]; rank_of_20 among 19 fixed captions (1 is best, chance is
        10.5); probability against those; colour: the main colour the judge sees; colour_probability: of the first
        colour word of the prompt against the other 12, where it names one. "unknown_words": of the prompt.

    Raises:
        InputError: the judges know no word of the prompt; the scene has no faces or nothing visible.
        AssetError: the judges' files are missing or broken.
    """
    judges = judges or (load_judge("reward", device), load_judge("gold", device))
    unknown = judges[0].unknown_words(prompt)
    return {**{j.name: score_with(j, prompt, scene) for j in judges}, "unknown_words": unknown}


def draft_score(prompt: str, scene: Mesh | Gaussians, device: torch.device | str = "cpu") -> float:
    """The reward judge's similarity alone, for choosing among candidates; the gold judge must not choose."""
    judge = load_judge("reward", device)
    images = judge_views(scene, LOOKS["reward"], judge.device)
    with torch.no_grad():
        return float(_mean_embedding(judge, images) @ judge.embed_texts([prompt])[0])


def views_scorer(prompt: str, device: torch.device | str = "cpu") -> Callable[[Tensor], float]:
    """A function that gives the reward judge's similarity of the prompt with views [V, 4, H, W], premultiplied RGBA.

    Raises:
        InputError: the judge knows no word of the prompt.
        AssetError: its files are missing or broken.
    """
    judge = load_judge("reward", device)
    with torch.no_grad():
        wanted = judge.embed_texts([prompt])[0]

    def score(views: Tensor) -> float:
        with torch.no_grad():
            return float(judge.encode(views[None]).embedding[0] @ wanted)

    return score
