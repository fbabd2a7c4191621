"""Groups of candidates in a known order for one prompt: what tools/train_reward3d.py and tools/train_view_heads.py
learn from and measure.

A group is one real set of views with a caption that names its colour, and for each kind of damage a milder and a worse
form of the same views: real > mild > worse. Nothing is known between kinds, so nothing is said there, nor where two
candidates look the same (a barrel with two fronts is a barrel).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from rl3d.data.batches import ViewBatches
from rl3d.data.captions import AssetRecord, held_out
from rl3d.data.colours import WORDS as COLOURS
from rl3d.data.colours import decode_srgb, sample_colour
from rl3d.data.views import to_images
from rl3d.errors import InputError
from rl3d.rewards import damage

VISIBLE = 0.02  # root mean square over views and channels; what differs less counts as the same


@dataclass(frozen=True)
class Real:
    """images [B, V, 4, H, W] premultiplied; azimuths [B, V] radians; captions, colour words and records [B]; assets and
    view sets [B] in the cache; target: the linear colour [B, 3] that the main colour was painted in."""

    images: Tensor
    azimuths: Tensor
    captions: list[str]
    colours: list[str]
    records: list[AssetRecord]
    assets: np.ndarray
    sets: np.ndarray
    target: Tensor


def stored(source: ViewBatches, assets: np.ndarray, sets: np.ndarray) -> Tensor:
    return torch.as_tensor(source.views[assets, sets]).to(source.device)


def azimuths(source: ViewBatches, assets: np.ndarray, sets: np.ndarray) -> Tensor:
    """[B, V] radians."""
    steps = torch.arange(source.spec["views"]) * (2 * math.pi / source.spec["views"])
    return torch.from_numpy(source.params[assets, sets, 0])[:, None] + steps


def another_colour(record: AssetRecord, not_this: str, rng: np.random.Generator) -> str:
    """A colour word that training may show on the asset."""
    while True:
        colour = COLOURS[rng.integers(len(COLOURS))]
        if colour != not_this and not held_out(colour, record):
            return colour


def caption_of(record: AssetRecord, colour: str) -> str:
    """Colour and words, without words that imply a colour of their own where anything else is left."""
    words = [w for w in record.words if w not in ("wooden", "wood", "golden", "gold", "stone", "snowy", "autumn")]
    return " ".join([colour, *(words or record.noun_words)])


def draw_real(source: ViewBatches, assets: np.ndarray, rng: np.random.Generator, recolour: float) -> Real:
    """Real views of given assets, a share of them repainted; "train" never shows a held-out pair."""
    sets = rng.integers(0, source.spec["sets"], len(assets))
    target, colours = source.main[assets].clone(), []
    for row, i in enumerate(assets):
        colour = source.records[i].colour
        if source.forced[i] or rng.random() < recolour:
            colour = another_colour(source.records[i], "", rng)
            target[row] = torch.as_tensor(decode_srgb(sample_colour(colour, rng)), dtype=torch.float32)
        colours.append(colour)
    records = [source.records[i] for i in assets]
    images = to_images(stored(source, assets, sets), source.main[assets], target)
    captions = [caption_of(r, c) for r, c in zip(records, colours)]
    return Real(images, azimuths(source, assets, sets), captions, colours, records, assets, sets, target)


def painted(source: ViewBatches, real: Real, rng: np.random.Generator) -> Tensor:
    """The same meshes and views, the main colour another one than the caption says."""
    words = [another_colour(r, c, rng) for r, c in zip(real.records, real.colours)]
    linear = np.stack([decode_srgb(sample_colour(word, rng)) for word in words])
    target = torch.from_numpy(linear).float().to(source.device)
    return to_images(stored(source, real.assets, real.sets), source.main[real.assets], target)


def repainted(real: Real, rng: np.random.Generator) -> Tensor:
    """All of the object in another colour than the caption says, secondary colours too."""
    words = [another_colour(r, c, rng) for r, c in zip(real.records, real.colours)]
    return damage.repaint(real.images, torch.from_numpy(np.stack([sample_colour(w, rng) for w in words])).float())


def other_things(source: ViewBatches, real: Real, rng: np.random.Generator) -> Tensor:
    """Another asset that shares no word of the noun, painted in the same colour, from the same number of views."""
    chosen = []
    for record, colour in zip(real.records, real.colours):
        for attempt in range(1000):
            i = int(rng.choice(source.keep, p=source.weight))
            other = source.records[i]
            # Of a handful of assets all may be held out in this colour.
            if not set(other.noun_words) & set(record.noun_words) and (attempt > 100 or not held_out(colour, other)):
                break
        else:
            raise SystemExit(
                f"hardly any asset but {record.caption!r} has another noun; more kinds of assets are needed"
            )
        chosen.append(i)
    assets = np.array(chosen)
    return to_images(stored(source, assets, real.sets), source.main[assets], real.target)


def seen_again(source: ViewBatches, real: Real, front: Tensor, rng: np.random.Generator) -> Tensor:
    """Views in which the back shows the front again as another set of cameras sees it: near, but no exact copy."""
    sets = source.spec["sets"]
    shifts = rng.integers(1, max(sets, 2), len(real.assets))
    others = (real.sets + shifts) % sets
    views, rows = source.spec["views"], torch.arange(len(front))
    wanted = real.azimuths[rows, front]
    turn = azimuths(source, real.assets, others) - wanted[:, None]
    nearest = torch.cos(turn).argmax(1)  # within 45 degrees, where views stand 90 apart
    images = to_images(stored(source, real.assets, others), source.main[real.assets], real.target)
    out = real.images.clone()
    out[rows, (front + views // 2) % views] = images[rows, nearest]
    return out


Maker = Callable[[ViewBatches, Real, np.random.Generator, torch.Generator], tuple[Tensor, ...]]


def _front(real: Real, generator: torch.Generator) -> Tensor:
    return torch.randint(real.images.shape[1], (len(real.images),), generator=generator)


def _faces(source: ViewBatches, real: Real, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, ...]:
    front = _front(real, generator)
    return damage.two_faced(real.images, front), damage.janus(real.images, front)


# Each gives its forms from mild to worse.
MAKERS: dict[str, Maker] = {
    "noise": lambda s, r, n, g: (damage.noise(r.images, 0.06, g), damage.noise(r.images, 0.18, g)),
    "grain": lambda s, r, n, g: (damage.grain(r.images, 0.1, g), damage.grain(r.images, 0.3, g)),
    "blur": lambda s, r, n, g: (damage.blur(r.images, 1.0), damage.blur(r.images, 2.5)),
    "unfinished": lambda s, r, n, g: (damage.unfinished(r.images, 0.35, g), damage.unfinished(r.images, 1.0, g)),
    "blank_view": lambda s, r, n, g: (damage.blank_view(r.images, g),),
    "wrong_colour": lambda s, r, n, g: (painted(s, r, n),),
    "swapped_colour": lambda s, r, n, g: (repainted(r, n),),
    "wrong_noun": lambda s, r, n, g: (other_things(s, r, n),),
    "mixed_views": lambda s, r, n, g: (damage.mixed_views(r.images, other_things(s, r, n)),),
    "janus": _faces,
    "seen_again": lambda s, r, n, g: (seen_again(s, r, _front(r, g), n),),
    "floaters": lambda s, r, n, g: (damage.floaters(r.images, g, count=2), damage.floaters(r.images, g, count=8)),
    "holes": lambda s, r, n, g: (damage.holes(r.images, g, count=1), damage.holes(r.images, g, count=5)),
    "scaled_down": lambda s, r, n, g: (damage.scaled_down(r.images, 0.7), damage.scaled_down(r.images, 0.45)),
}

# What disagrees between views, or stands in another's place.
CONSISTENCY: dict[str, Maker] = {
    "exchanged_views": lambda s, r, n, g: (damage.exchanged_views(r.images, g),),
    "shifted_view": lambda s, r, n, g: (
        damage.shifted_view(r.images, 0.06, g),
        damage.shifted_view(r.images, 0.16, g),
    ),
    "tinted_view": lambda s, r, n, g: (damage.tinted_view(r.images, 0.25, g), damage.tinted_view(r.images, 0.6, g)),
}
# The object is turned: every camera shows what another one, a quarter or half a turn away, should.
TURNS: dict[str, Maker] = {
    "turned": lambda s, r, n, g: (r.images.roll(int(n.choice((1, -1))) * (r.images.shape[1] // 4), 1),),
    "opposite": lambda s, r, n, g: (r.images.roll(r.images.shape[1] // 2, 1),),
}
BETWEEN_VIEWS = ("janus", "seen_again", "mixed_views", *CONSISTENCY)


def torn_from(cache: ViewBatches) -> Maker:
    """The same views of meshes with pieces missing, from a cache that `tools/build_views.py --torn` made.

    Raises:
        InputError: the cache shows other views than the one in use.
    """

    def make(source: ViewBatches, real: Real, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor]:
        if not np.array_equal(source.params, cache.params):
            raise InputError("the cache of torn meshes shows other views; build both with the same --look and --sets")
        return (to_images(stored(cache, real.assets, real.sets), source.main[real.assets], real.target),)

    return make


def known_order(forms: list[int]) -> list[tuple[int, int]]:
    """Pairs (better, worse) of places in a group: place 0 is real, then the forms of each kind, mild first.

    >>> known_order([2, 1])
    [(0, 1), (0, 2), (1, 2), (0, 3)]
    """
    pairs, start = [], 1
    for count in forms:
        chain = [0, *range(start, start + count)]
        pairs += [(a, b) for i, a in enumerate(chain) for b in chain[i + 1 :]]
        start += count
    return pairs


def visible(better: Tensor, worse: Tensor) -> Tensor:
    """[B] bool: the two differ by more than VISIBLE."""
    return (better - worse).square().mean((1, 2, 3, 4)).sqrt() > VISIBLE


class Candidates:
    """Samples of the prior and lifts of them beside the real views, from `tools/reward3d_candidates.py`'s file.

    Kinds: "sample" (one form) and "lift" (many steps, then few): real > sample, real > lifted > hardly lifted.
    """

    def __init__(self, path: Path, split: str) -> None:
        with safe_open(path, "pt") as handle:
            facts = json.loads(handle.metadata()["facts"])
            rows = [i for i, row in enumerate(facts) if row["split"] == split]
            self.views, self.azimuths = handle.get_tensor("views")[rows], handle.get_tensor("azimuths")[rows]
        self.captions = [facts[i]["caption"] for i in rows]
        self.assets = np.array([facts[i]["asset"] for i in rows], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.captions)

    def group(self, rows: np.ndarray) -> tuple[Tensor, Tensor, list[str]]:
        """Images [B, 4, V, 4, H, W] (real, sample, lifted, hardly lifted), azimuths [B, V], captions."""
        return self.views[rows].float() / 255, self.azimuths[rows], [self.captions[i] for i in rows]


CANDIDATE_FORMS = {"sample": 1, "lift": 2}
