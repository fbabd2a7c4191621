"""Cleaning, wording and colour words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rl3d.data.captions import (
    ARTICLES,
    HELD_OUT_PAIRS,
    IMPLY_COLOUR,
    MAX_WORDS,
    SIZES,
    SYNONYMS,
    AssetRecord,
    augment_caption,
    build_vocabulary,
    clean_record,
    held_out,
    split_words,
)
from rl3d.data.colours import PROTOTYPES, WORDS, colour_index, sample_colour


def record(caption: str, noun: str = "", colours: list[list[object]] | None = None) -> AssetRecord:
    row = {"file": "x.glb", "caption": caption, "noun": noun or caption, "split": "train"}
    return clean_record({**row, "colours": colours} if colours else row)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Barrel, A", ("barrel",)),
        ("chair 4legs b 2x", ("chair",)),
        ("snow-covered  TREE!", ("snow-covered", "tree")),
        ("red car", ("car",)),
        ("red", ("red",)),  # nothing else is left
        ("a", ("a",)),
    ],
)
def test_cleaning(caption: str, words: tuple[str, ...]) -> None:
    assert record(caption).words == words


def test_a_second_colour_counts_from_15_percent() -> None:
    assert record("box", colours=[["red", 0.8], ["blue", 0.2]]).second == "blue"
    assert record("box", colours=[["red", 0.9], ["blue", 0.1]]).second == ""
    assert record("box").colour == "grey"


def test_prompts_are_split_into_words() -> None:
    assert split_words("A jack-o-lantern, 3D -- Ångström!") == ["a", "jack-o-lantern", "3d", "ngstr", "m"]


RECORDS = [
    record("wooden barrel", "barrel", [["brown", 0.8], ["grey", 0.2]]),
    record("large rock", "rock", [["grey", 1.0]]),
    record("stone", "stone", [["grey", 1.0]]),
    record("golden key small", "key", [["yellow", 1.0]]),
    record("snowy pine tree", "pine tree", [["white", 0.6], ["green", 0.4]]),
    record("couch", "couch", [["pink", 0.9]]),
    record("small house", "home", [["red", 0.5], ["yellow", 0.3]]),
    record("orange", "orange", [["orange", 1.0]]),
    record("one two three four five six seven eight nine ten eleven tree tall", "tree", [["green", 0.3]]),
]


def test_the_vocabulary_covers_every_caption() -> None:
    vocabulary = build_vocabulary(RECORDS)
    assert vocabulary[:2] == ["<pad>", "<null>"] and len(set(vocabulary)) == len(vocabulary)
    known, rng = set(vocabulary), np.random.default_rng(0)
    shown = set()
    for i in range(6000):
        own = RECORDS[i % len(RECORDS)]
        changed = bool(rng.random() < 0.5)
        text = augment_caption(own, WORDS[rng.integers(len(WORDS))] if changed else own.colour, rng, changed)
        words = split_words(text)
        assert 1 <= len(words) <= MAX_WORDS and " ".join(words) == text
        assert set(words) <= known, text
        shown |= set(words)
    assert shown >= {"cask", "keg", "tiny", "boulder", "wood", "gold", "in", "an", "and"}  # the wordings do vary


def test_a_recoloured_caption_keeps_its_noun_and_claims_no_other_colour() -> None:
    rng = np.random.default_rng(0)
    empty = {*WORDS, *ARTICLES, *SIZES, *(s for words in SIZES.values() for s in words), "in", "and"}
    for own in RECORDS:
        for _ in range(400):
            words = set(split_words(augment_caption(own, "cyan", rng, True)))
            assert words - empty or own.words == ("orange",), words
            if "stone" not in own.words and "rock" not in own.words:
                assert not words & IMPLY_COLOUR, words


def test_found_materials_are_said_only_of_assets_as_found() -> None:
    rng = np.random.default_rng(0)
    barrel = replace(RECORDS[0], words=("barrel",))
    as_found = {w for _ in range(300) for w in split_words(augment_caption(barrel, "brown", rng, False))}
    assert {"wooden", "wood", "brown", "barrel"} <= as_found
    grey = {w for _ in range(300) for w in split_words(augment_caption(barrel, "grey", rng, False))}
    assert not grey & IMPLY_COLOUR


def test_held_out_pairs_are_found_through_synonyms() -> None:
    assert held_out("pink", record("couch")) and not held_out("red", record("couch"))
    assert held_out("red", record("small box", "box"))  # box means crate
    assert not held_out("", record("couch"))


def test_a_second_colour_does_not_smuggle_a_held_out_pair_in() -> None:
    couch = record("couch", "couch", [["grey", 0.6], ["pink", 0.4]])
    rng = np.random.default_rng(0)
    said = {w for _ in range(600) for w in split_words(augment_caption(couch, "grey", rng, False))}
    assert "grey" in said and "pink" not in said


def test_held_out_pairs_name_known_colours() -> None:
    assert {c for c, _ in HELD_OUT_PAIRS} <= set(WORDS) and len(set(HELD_OUT_PAIRS)) == len(HELD_OUT_PAIRS)
    assert all(word not in names for word, names in SYNONYMS.items())


def test_colour_words_of_plain_colours() -> None:
    """The words that a person would say; a change of the prototypes that renames one of these is a break."""
    said = {
        "black": (0, 0, 0),
        "white": (255, 255, 255),
        "grey": (128, 128, 128),
        "red": (255, 0, 0),
        "green": (0, 160, 0),
        "blue": (0, 0, 255),
        "yellow": (255, 230, 0),
        "orange": (255, 140, 0),
        "purple": (128, 0, 160),
        "pink": (255, 105, 180),
        "brown": (110, 70, 40),
        "cyan": (0, 200, 200),
        "olive": (128, 128, 0),
    }
    for word, colour in said.items():
        assert WORDS[int(colour_index(np.array(colour) / 255))] == word
    for word, rows in PROTOTYPES.items():
        assert all(WORDS[i] == word for i in colour_index(np.array(rows) / 255))


@pytest.mark.parametrize("word", WORDS)
def test_a_sampled_colour_has_its_word(word: str) -> None:
    rng = np.random.default_rng(0)
    colours = np.stack([sample_colour(word, rng) for _ in range(200)])
    assert colours.min() >= 0 and colours.max() <= 1
    assert all(WORDS[i] == word for i in colour_index(colours))
    assert len(np.unique(colours, axis=0)) > 50
