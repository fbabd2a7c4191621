"""Colour words: which word a colour has, and which colour a word means. sRGB in [0, 1] throughout."""

from __future__ import annotations

import numpy as np

# Prototypes of the words people use for low-poly palettes; several for words that cover much of colour space.
PROTOTYPES: dict[str, list[tuple[int, int, int]]] = {
    "black": [(15, 15, 18), (38, 38, 44)],
    "grey": [
        (72, 73, 80),
        (90, 92, 96),
        (130, 132, 135),
        (170, 172, 175),
        (198, 199, 200),
        (105, 110, 125),
        (150, 155, 168),
    ],
    "white": [(245, 245, 245), (220, 222, 225), (240, 232, 215)],
    "red": [(200, 40, 40), (150, 30, 35), (225, 75, 65)],
    "orange": [(235, 130, 40), (205, 110, 58), (215, 165, 110), (245, 160, 75)],
    "yellow": [(240, 210, 60), (225, 190, 40), (245, 225, 130), (190, 155, 65), (190, 185, 60)],
    "olive": [(128, 132, 40), (150, 150, 70)],
    "green": [
        (60, 160, 70),
        (40, 105, 55),
        (125, 190, 85),
        (75, 105, 58),
        (118, 166, 90),
        (185, 215, 120),
        (55, 72, 55),
    ],
    "cyan": [(70, 195, 205), (40, 150, 160), (150, 220, 220), (100, 215, 185)],
    "blue": [(50, 90, 200), (35, 55, 120), (90, 150, 220)],
    "purple": [(120, 60, 170), (85, 45, 115), (160, 115, 205)],
    "pink": [(235, 120, 170), (240, 170, 190), (210, 80, 130)],
    "brown": [(120, 75, 45), (85, 55, 38), (150, 105, 70)],
}
WORDS = tuple(PROTOTYPES)


def decode_srgb(srgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] (any shape) to linear light; the numpy twin of `rl3d.colour.srgb_to_linear`."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def srgb_to_oklab(srgb: np.ndarray) -> np.ndarray:
    """[..., 3] sRGB in [0, 1] to OKLab (Ottosson 2020), where distances follow perception better."""
    linear = decode_srgb(srgb)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ to_lms.T) @ to_lab.T


_LAB = srgb_to_oklab(np.array([c for row in PROTOTYPES.values() for c in row], dtype=np.float64) / 255)
_WORD_OF = np.array([i for i, row in enumerate(PROTOTYPES.values()) for _ in row])


def colour_index(srgb: np.ndarray) -> np.ndarray:
    """[..., 3] sRGB to indices into `WORDS`: the word of the nearest prototype in OKLab."""
    lab = srgb_to_oklab(np.asarray(srgb, dtype=np.float64))
    distance = ((lab[..., None, :] - _LAB) ** 2).sum(-1)
    return _WORD_OF[distance.argmin(-1)]


def sample_colour(word: str, rng: np.random.Generator) -> np.ndarray:
    """A random sRGB colour [3] that `word` names: a prototype with a little jitter that keeps the word."""
    rows = np.array(PROTOTYPES[word], dtype=np.float64) / 255
    want = WORDS.index(word)
    base = rows[rng.integers(len(rows))]
    for _ in range(8):
        colour = np.clip(base + rng.normal(0, 0.03, 3), 0, 1)
        if colour_index(colour) == want:
            return colour
    return base
