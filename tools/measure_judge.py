"""What a judge is worth: retrieval, colours, sides and damage on real renders. Used by train_judge.py.

python tools/train_judge.py DATA CACHE --which reward --out RUN --evaluate
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rl3d.data.batches import ViewBatches, word_ids
from rl3d.data.captions import AssetRecord, augment_caption
from rl3d.data.colours import WORDS as COLOURS
from rl3d.data.colours import decode_srgb, sample_colour
from rl3d.data.views import to_images
from rl3d.rewards import damage
from rl3d.rewards.judges import Judge


@dataclass(frozen=True)
class Batch:
    """images [B, V, 4, H, W] premultiplied; captions [B]; colour words [B]; said: the caption names the colour [B];
    sides [B, V] int64: front, +X, back, -X; records [B]."""

    images: Tensor
    captions: list[str]
    colours: list[str]
    said: np.ndarray
    sides: Tensor
    records: list[AssetRecord]


def draw(source: ViewBatches, chosen: np.ndarray, sets: np.ndarray, rng: np.random.Generator, recolour: float) -> Batch:
    """A batch of given assets with random recolouring and wording."""
    stored = torch.as_tensor(source.views[chosen, sets])
    main = source.main[chosen]
    target, captions, colours, said = main.clone(), [], [], []
    for row, i in enumerate(chosen):
        record, changed = source.records[i], rng.random() < recolour
        colour = record.colour
        if changed:
            colour = COLOURS[rng.integers(len(COLOURS))]
            srgb = sample_colour(colour, rng)
            linear = decode_srgb(srgb)
            target[row] = torch.as_tensor(linear, dtype=torch.float32)
        captions.append(augment_caption(record, colour, rng, changed))
        colours.append(colour)
        said.append(colour in captions[-1].split())
    base = torch.from_numpy(source.params[chosen, sets, 0])[:, None] + torch.arange(4) * (math.pi / 2)
    sides = (base / (math.pi / 2)).round().long() % 4
    records = [source.records[i] for i in chosen]
    return Batch(to_images(stored, main, target), captions, colours, np.array(said), sides, records)


def with_interval(hits: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> list[float]:
    """[mean, low, high]: 95 % bootstrap interval over assets (their view sets stay together)."""
    names = np.unique(groups)
    means = np.array([hits[groups == g].mean() for g in names])
    draws = means[rng.integers(len(means), size=(2000, len(means)))].mean(1)
    return [round(float(x), 3) for x in (means.mean(), np.quantile(draws, 0.025), np.quantile(draws, 0.975))]


def plain_caption(record: AssetRecord, colour: str) -> str:
    words = [w for w in record.words if w not in ("wooden", "golden", "stone", "snowy", "autumn")] or list(
        record.noun_words
    )
    return " ".join([colour, *words])


@torch.no_grad()
def evaluate(judge: Judge, source: ViewBatches, train_words: set[str], sets: int = 3) -> dict:
    """Retrieval, colours, sides and damage on a split, each as [mean, low, high]."""
    rng = np.random.default_rng(11)
    generator = torch.Generator().manual_seed(11)
    hits: dict[str, list[float]] = {}
    groups: list[int] = []
    pair_hits: dict[str, list[float]] = {}
    pair_groups: dict[str, list[int]] = {}
    side_hits: list[float] = []
    everyone = np.arange(len(source.records))
    for s in range(sets):
        for start in range(0, len(source.keep), 42):
            chosen = source.keep[start : start + 42]
            batch = draw(source, chosen, np.full(len(chosen), s), rng, 0.5)
            code = judge.encode(batch.images)
            groups += list(chosen)
            right = [plain_caption(r, c) for r, c in zip(batch.records, batch.colours)]
            for row, (record, colour) in enumerate(zip(batch.records, batch.colours)):
                pool = [
                    i
                    for i in rng.permutation(everyone)
                    if not set(source.records[i].noun_words) & set(record.noun_words)
                ][:19]
                others = [source.records[i] for i in pool]
                rows = {
                    "caption_of_20": [right[row]] + [plain_caption(o, o.colour) for o in others],
                    "noun_of_20": [" ".join(record.noun_words)] + [" ".join(o.noun_words) for o in others],
                    "noun_of_20_same_colour": [right[row]] + [plain_caption(o, colour) for o in others],
                    "colour_of_13": [right[row]] + [plain_caption(record, c) for c in COLOURS if c != colour],
                }
                for name, texts in rows.items():
                    ids = word_ids(texts, judge.words)
                    scores = judge.model.encode_texts(ids.to(judge.device)) @ code.embedding[row]
                    hits.setdefault(name, []).append(float(scores[0] > scores[1:].max()))
                hits.setdefault("colour_head_of_13", []).append(
                    float(int(code.colour_logits[row].argmax()) == COLOURS.index(colour))
                )
            if code.view_logits is not None:
                side_hits += (code.view_logits.argmax(-1).cpu() == batch.sides).float().mean(1).tolist()
            texts = judge.model.encode_texts(word_ids(right, judge.words).to(judge.device))
            clean = (code.embedding * texts).sum(-1)
            front = (batch.sides == 0).float().argmax(1)
            apart = [
                int(
                    next(
                        j
                        for j in rng.permutation(len(chosen))
                        if not set(batch.records[j].noun_words) & set(r.noun_words)
                    )
                )
                for r in batch.records
            ]
            paint = np.stack(
                [sample_colour(COLOURS[(COLOURS.index(c) + 1 + rng.integers(12)) % 13], rng) for c in batch.colours]
            )
            forms = {
                "noise": damage.noise(batch.images, 0.15, generator),
                "blur": damage.blur(batch.images, 2.5),
                "blank_view": damage.blank_view(batch.images, generator),
                "swapped_colour": damage.repaint(batch.images, torch.from_numpy(paint).float()),
                "wrong_noun": batch.images[apart],
                "mixed_views": damage.mixed_views(batch.images, batch.images[apart]),
                "janus": damage.janus(batch.images, front),
                "floaters": damage.floaters(batch.images, generator),
                "holes": damage.holes(batch.images, generator),
                "scaled_down": damage.scaled_down(batch.images, 0.5),
            }
            for name, images in forms.items():
                score = (judge.encode(images).embedding * texts).sum(-1)
                pair_hits.setdefault(name, []).extend((clean > score).float().tolist())
                pair_groups.setdefault(name, []).extend(chosen)
    where = np.array(groups)
    known = np.array([bool(set(source.records[i].noun_words) & train_words) for i in groups])
    result = {
        "assets": len(source.keep),
        "share_with_a_known_noun_word": round(float(known.mean()), 3),
        **{k: with_interval(np.array(v), where, rng) for k, v in hits.items()},
        "caption_of_20_known_noun": with_interval(np.array(hits["caption_of_20"])[known], where[known], rng),
        "clean_above_damaged": {
            k: with_interval(np.array(v), np.array(pair_groups[k]), rng) for k, v in pair_hits.items()
        },
        "temperature": round(judge.temperature, 4),
    }
    if side_hits:
        result["side_of_4"] = with_interval(np.array(side_hits), where, rng)
    return result


def fixed_distractors(records: list[AssetRecord], count: int = 40) -> list[str]:
    """ "colour noun" captions of the commonest one-word train nouns, colours in turn."""
    nouns = Counter(r.noun_words[0] for r in records if r.split == "train" and len(r.noun_words) == 1)
    return [f"{COLOURS[(5 * i) % len(COLOURS)]} {noun}" for i, (noun, _) in enumerate(nouns.most_common(count))]
