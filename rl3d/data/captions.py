"""Captions: cleaning by rule, augmentation, and the word-level vocabulary of the embedded models."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from rl3d.data.colours import WORDS as COLOURS

MAX_WORDS = 12
SIZES = {
    "small": ["little", "tiny"],
    "large": ["big", "huge"],
    "big": ["large", "huge"],
    "tall": ["high"],
    "medium": [],
}
# Words on the right are understood as the dataset's word on the left.
SYNONYMS: dict[str, list[str]] = {
    "couch": ["sofa", "settee"],
    "rock": ["stone", "boulder"],
    "rocks": ["stones", "boulders"],
    "chest": ["coffer", "trunk"],
    "bush": ["shrub", "hedge"],
    "trash": ["garbage", "rubbish"],
    "can": ["bin"],
    "pistol": ["handgun"],
    "car": ["automobile"],
    "picture": ["painting"],
    "rug": ["carpet", "mat"],
    "carpet": ["rug"],
    "cabinet": ["cupboard"],
    "drawer": ["dresser"],
    "shelf": ["rack"],
    "house": ["home", "cottage"],
    "home": ["house"],
    "building": ["house"],
    "grave": ["tombstone"],
    "gravestone": ["tombstone"],
    "stairs": ["steps", "staircase"],
    "potion": ["flask", "elixir"],
    "bottle": ["flask"],
    "crystal": ["gem"],
    "gem": ["jewel", "crystal"],
    "lamp": ["light"],
    "keg": ["barrel", "cask"],
    "barrel": ["cask", "keg"],
    "crate": ["box"],
    "box": ["crate"],
    "bonfire": ["campfire"],
    "coin": ["money"],
    "sword": ["blade"],
    "dagger": ["knife"],
    "mushroom": ["toadstool"],
    "mountain": ["peak"],
    "path": ["trail"],
    "road": ["street"],
    "fridge": ["refrigerator"],
    "tv": ["television"],
    "bookshelf": ["bookcase"],
    "bag": ["sack"],
    "sack": ["bag"],
    "boat": ["ship"],
    "ship": ["vessel"],
    "stool": ["seat"],
    "bed": ["cot"],
    "column": ["pillar"],
    "pillar": ["column"],
    "golden": ["gold"],
    "wooden": ["wood"],
    "snowy": ["snow-covered"],
    "skull": ["head"],
    "truck": ["lorry"],
    "flower": ["blossom"],
    "armor": ["armour"],
    "gate": ["door"],
    "pine": ["fir"],
    "spaceship": ["rocket"],
    "lander": ["spaceship"],
    "jack-o-lantern": ["pumpkin"],
    "coffin": ["casket"],
    "ladder": ["rungs"],
    "pallet": ["platform"],
}
WOODEN = frozenset(
    "barrel crate chest table chair bench door fence sign shelf cabinet box bed bridge cart ladder stool bucket "
    "house dock pallet keg stairs drawer bookshelf windmill wagon log trunk coffin ship boat".split()
)
STONE = frozenset("wall tower column pillar stairs bridge floor arch well castle statue tile doorway path".split())
GOLDEN = frozenset("coin key ring crown star chalice necklace ingots cup heart bell coins".split())
# Pairs of colour and noun that no training caption shows, neither as found nor by recolouring: what is left to measure
# whether the prior can put known words together in a new way.
HELD_OUT_PAIRS: tuple[tuple[str, str], ...] = (
    ("purple", "barrel"),
    ("pink", "chest"),
    ("blue", "pumpkin"),
    ("red", "chair"),
    ("pink", "couch"),
    ("pink", "table"),
    ("purple", "tree"),
    ("purple", "bottle"),
    ("cyan", "tower"),
    ("blue", "sword"),
    ("red", "key"),
    ("green", "potion"),
    ("blue", "mushroom"),
    ("purple", "bed"),
    ("red", "crate"),
    ("pink", "rock"),
    ("red", "cactus"),
    ("green", "skull"),
    ("orange", "door"),
    ("blue", "bench"),
)
# Words that say a colour without naming it: left out when the asset was painted in another one.
IMPLY_COLOUR = frozenset("wooden wood golden gold stone snowy autumn".split())
ARTICLES = ("a", "the", "an", "one")
FILLERS = ("of", "with", "and", "in", "model", "asset", "low-poly", "3d")
# File-name debris that says nothing about the shape.
_JUNK = re.compile(r"^([a-z]|\d+x?|\dlegs|\dway|w|x|bottompivot|allsides|leve|rig|default)$")
_TOKEN = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass(frozen=True)
class AssetRecord:
    """One asset's line of the captions file, cleaned.

    Attributes:
        caption: the words as given. words: without debris and colour words. noun_words: the words of the noun.
        colour: the word that covers most area. share: its share of the area in [0, 1].
        second: the second colour's word, or "" when it covers under 15 %.
    """

    file: str
    caption: str
    words: tuple[str, ...]
    noun_words: tuple[str, ...]
    colour: str
    share: float
    second: str
    split: str


def split_words(text: str) -> list[str]:
    """Lower-case words of a prompt; punctuation dropped, hyphens inside words kept."""
    return _TOKEN.findall(text.lower())


def clean_record(row: dict) -> AssetRecord:
    """A line of `captions.jsonl` as a record."""
    words = [w for w in split_words(row["caption"]) if not _JUNK.match(w)]
    kept = [w for w in words if w not in COLOURS] or words or split_words(row["caption"])
    noun = [w for w in split_words(row["noun"]) if not _JUNK.match(w) and w not in COLOURS] or kept
    colours = row.get("colours") or [["grey", 1.0]]
    second = colours[1][0] if len(colours) > 1 and colours[1][1] >= 0.15 else ""
    return AssetRecord(
        row["file"], row["caption"], tuple(kept), tuple(noun), colours[0][0], float(colours[0][1]), second, row["split"]
    )


def held_out(colour: str, record: AssetRecord) -> bool:
    """Whether training must not show this asset in this colour."""
    said = set(record.noun_words) | set(record.words)
    said |= {synonym for word in said for synonym in SYNONYMS.get(word, ())}
    return any(colour == c and noun in said for c, noun in HELD_OUT_PAIRS)


def augment_caption(record: AssetRecord, colour: str, rng: np.random.Generator, recoloured: bool) -> str:
    """A random way of saying what the asset is.

    Args:
        colour: the word of its (possibly new) main colour.
        recoloured: the main colour was changed, so it is named nearly always and materials that imply another colour
            are left out.
    """
    words = list(record.words)
    if rng.random() < 0.2:
        words = list(record.noun_words)
    if recoloured:
        plain = [w for w in words if w not in IMPLY_COLOUR]
        words = plain if any(w not in SIZES for w in plain) else words  # a stone that is called nothing but "stone"
    words = [SYNONYMS[w][rng.integers(len(SYNONYMS[w]))] if w in SYNONYMS and rng.random() < 0.25 else w for w in words]
    words = [SIZES[w][rng.integers(len(SIZES[w]))] if SIZES.get(w) and rng.random() < 0.4 else w for w in words]
    nouns = set(record.noun_words)
    material = ""
    if not recoloured:
        if colour == "brown" and nouns & WOODEN:
            material = "wooden"
        elif colour == "grey" and nouns & STONE:
            material = "stone"
        elif colour == "yellow" and nouns & GOLDEN:
            material = "golden"
    front: list[str] = []
    named = recoloured or record.share > 0.4
    if named and rng.random() < (0.92 if recoloured else 0.45):
        front.append(colour)
        second = "" if held_out(record.second, record) else record.second
        if second and second != colour and rng.random() < 0.2:
            front += ["and", second]
    if material and material not in words and rng.random() < 0.4:
        front.append("wood" if material == "wooden" and rng.random() < 0.2 else material)
    adjectives = [w for w in words if w in SIZES or any(w in s for s in SIZES.values())]
    rest = [w for w in words if w not in adjectives]
    said = adjectives + front + rest if rng.random() < 0.7 else front + adjectives + rest
    if front == [colour] and rng.random() < 0.06:
        said = [*adjectives, *rest, "in", colour]
    if rng.random() < 0.5:
        article = "the" if rng.random() < 0.2 else ("an" if said[0][0] in "aeiou" else "a")
        said = [article, *said]
    return " ".join(said[:MAX_WORDS])


def build_vocabulary(records: list[AssetRecord]) -> list[str]:
    """Every word that training can show, sorted, after the two special tokens."""
    words: set[str] = set(COLOURS) | set(ARTICLES) | set(FILLERS) | {"wooden", "wood", "stone", "golden", "gold"}
    for record in records:
        words |= set(record.words) | set(record.noun_words)
    for word in list(words):
        words |= set(SYNONYMS.get(word, ())) | set(SIZES.get(word, ()))
    return ["<pad>", "<null>", *sorted(words)]
