"""Training batches from a view cache: random view sets, random recolouring, random wording. All on one device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rl3d.cameras import Cameras
from rl3d.data.captions import MAX_WORDS, AssetRecord, augment_caption, held_out, split_words
from rl3d.data.colours import WORDS as COLOURS
from rl3d.data.colours import decode_srgb, sample_colour
from rl3d.data.views import cameras_of, to_images
from rl3d.errors import InputError


def word_ids(texts: list[str], vocabulary: dict[str, int], max_words: int = MAX_WORDS) -> Tensor:
    """[B, max_words] int64; unknown words are left out, a text without known words is the empty prompt (1, 0, ...)."""
    out = torch.zeros(len(texts), max_words, dtype=torch.int64)
    for row, text in zip(out, texts):
        ids = [vocabulary[w] for w in split_words(text) if w in vocabulary][:max_words] or [1]
        row[: len(ids)] = torch.tensor(ids)
    return out


def noun_weights(records: list[AssetRecord]) -> np.ndarray:
    """[N] probabilities by the inverse square root of the noun's count: rare nouns would hardly be seen otherwise."""
    nouns = [" ".join(r.noun_words) for r in records]
    counts = {n: nouns.count(n) for n in set(nouns)}
    weight = np.array([counts[n] ** -0.5 for n in nouns])
    return weight / weight.sum()


class ViewBatches:
    """Draws (images, captions, cameras) from a cache written by `build_view_cache`.

    Args:
        cache: its folder. records: the asset set's records, in the cache's order. split: "train" or "val".
        recolour: probability that the main colour is changed (the caption names the new one). In "train", assets that
            were found in a colour that is held out for them are always changed.

    Raises:
        InputError: the cache is missing, unfinished or of another asset set, or has no asset of the split.
    """

    def __init__(
        self, cache: Path, records: list[AssetRecord], split: str, recolour: float, device: str | torch.device = "cpu"
    ) -> None:
        try:
            spec = json.loads((cache / "spec.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{cache} is no finished view cache ({error}); build it with tools/build_views.py"
            ) from error
        if len(spec["words"]) != len(records):
            raise InputError(
                f"{cache} holds {len(spec['words'])} assets, the captions {len(records)}; build the cache anew"
            )
        self.spec = spec
        self.keep = np.array([i for i, r in enumerate(records) if r.split == split])
        # The cache named colours by the faces it can repaint; captions must use the same word.
        self.records = [replace(r, colour=word) for r, word in zip(records, spec["words"])]
        self.forced = [split == "train" and held_out(r.colour, r) for r in self.records]
        if len(self.keep) == 0:
            raise InputError(
                f"no asset of {cache} is in the split {split!r}; give some lines of captions.jsonl that split"
            )
        views = np.load(cache / "views.npy", mmap_mode="r")
        on_gpu = torch.device(device).type == "cuda"
        self.views = torch.from_numpy(np.ascontiguousarray(views)).to(device) if on_gpu else views
        self.params = np.load(cache / "params.npy")
        self.main = torch.from_numpy(np.load(cache / "main.npy")).to(device)
        self.recolour = recolour
        self.device = torch.device(device)
        self.weight = noun_weights([records[i] for i in self.keep])

    def draw(self, batch: int, rng: np.random.Generator) -> tuple[Tensor, list[str], np.ndarray, np.ndarray]:
        """A random batch.

        Returns:
            images [B, V, 4, H, W] premultiplied sRGB in [0, 1], captions [B], camera parameters [B, 3]
            (base azimuth, elevation, distance), asset indices [B].
        """
        chosen = rng.choice(self.keep, batch, p=self.weight)
        return self.make(chosen, rng.integers(0, self.spec["sets"], batch), rng)

    def make(
        self, chosen: np.ndarray, sets: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, list[str], np.ndarray, np.ndarray]:
        """The batch of given assets and view sets."""
        stored = self.views[chosen, sets]
        if isinstance(stored, np.ndarray):
            stored = torch.from_numpy(stored)
        main = self.main[chosen]
        target = main.clone()
        captions = []
        for row, i in enumerate(chosen):
            record, changed = self.records[i], rng.random() < self.recolour or self.forced[i]
            colour = record.colour
            if changed:
                colour = COLOURS[rng.integers(len(COLOURS))]
                while held_out(colour, record):
                    colour = COLOURS[rng.integers(len(COLOURS))]
                srgb = sample_colour(colour, rng)
                linear = decode_srgb(srgb)
                target[row] = torch.as_tensor(linear, dtype=torch.float32)
            captions.append(augment_caption(record, colour, rng, changed))
        return to_images(stored.to(self.device), main, target), captions, self.params[chosen, sets], chosen

    def cameras(self, params: np.ndarray) -> Cameras:
        """Cameras [B * V] of camera parameters [B, 3]."""
        return cameras_of(params, self.spec["views"], self.spec["fov_y"], self.spec["size"])
