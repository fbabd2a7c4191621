"""Whether an object shows its front twice (Janus), measured by the gold judge against real assets of the same noun.

The measure is how alike front and back are: the judge's features of 8x8-pixel patches, averaged along each row of the
image (what is to be seen at which height, however far it is turned), as a relative squared distance; the back plain or
mirrored, whichever is closer. Real chairs, seen from the front and from behind, differ by some amount; one that differs
by less than (nearly) all real ones has no back. Most low-poly things look alike from both sides, so that only nouns
count whose real assets do not: `judge.fronts` holds those and the distance below which a front counts as shown twice.
`tools/measure_janus.py` sets them on training renders; the judge's card says how often they err.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rl3d.data.captions import SYNONYMS, split_words
from rl3d.errors import InputError
from rl3d.rewards.judges import GoldJudge, Judge

FRONT, BACK = 0, 2  # of 4 views at steps of 90 degrees, the first from the front


@torch.no_grad()
def front_back_distance(judge: Judge, front: Tensor, back: Tensor) -> Tensor:
    """[B] in [0, 2]: 0 where the back shows the front again, plain or mirrored.

    With f and b the row means of the patch features of front and back: |f - b|^2 / (|f|^2 + |b|^2).

    Args:
        front, back: [B, 4, H, W] premultiplied sRGB + alpha in [0, 1], opposite views of the same objects.

    Raises:
        InputError: other shapes, or a judge that is not the gold one.
    """
    if not isinstance(judge.model, GoldJudge):
        raise InputError(f"the {judge.name} judge cannot tell fronts from backs; load the gold judge")
    if front.shape != back.shape or front.ndim != 4 or front.shape[1] != 4:
        raise InputError(f"front and back must both be [B, 4, H, W], got {list(front.shape)} and {list(back.shape)}")
    views = torch.stack([front, back, back.flip(-1)]).to(judge.device, torch.float32)
    seen, plain, mirrored = judge.model.patches(views).mean(3).flatten(1).chunk(3)
    return torch.minimum(_relative(seen, plain), _relative(seen, mirrored))


def _relative(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).sum(1) / ((a**2).sum(1) + (b**2).sum(1)).clamp_min(1e-12)


def front_noun(judge: Judge, prompt: str) -> str | None:
    """The last word of the prompt that is a noun of `judge.fronts` or its synonym ("a pink sofa": couch), or None."""
    known = {word: noun for noun in judge.fronts for word in SYNONYMS.get(noun, ())}
    known |= {noun: noun for noun in judge.fronts}
    return next((known[word] for word in reversed(split_words(prompt)) if word in known), None)


def shows_front_twice(judge: Judge, images: Tensor, prompt: str) -> bool | None:
    """Whether one asset is a Janus object; None where that cannot be said of it.

    Args:
        images: [G, 4, 4, H, W] as of `judge_views`, or 4 views at azimuth 0, 90, 180, 270 degrees as one group. The
            first group alone counts: it stands in front, as the views did that set the thresholds.
        prompt: its noun must be among `judge.fronts`, else the answer is None; so it is when a view shows nothing.

    Raises:
        InputError: other shapes, or a judge that is not the gold one.
    """
    if images.ndim != 5 or images.shape[1:3] != (4, 4) or not len(images):
        raise InputError(f"images must be groups of 4 RGBA views [G, 4, 4, H, W], got {list(images.shape)}")
    pair = images[0, [FRONT, BACK]]
    distance = front_back_distance(judge, pair[:1], pair[1:])
    noun = front_noun(judge, prompt)
    if noun is None or float(pair[:, 3].amax((1, 2)).min()) < 0.5:
        return None
    return float(distance) < judge.fronts[noun]


def janus_rate(judge: Judge, images: Sequence[Tensor], prompts: Sequence[str]) -> dict[str, Any]:
    """Share of assets that show their front twice, among those of which `shows_front_twice` can say it.

    Real assets are called so too at times; the judge's card gives both rates of error.

    Args:
        images: per asset [G, 4, 4, H, W]. prompts: one an asset.

    Returns:
        rate (None where nothing counts), counted, skipped.
    """
    if len(images) != len(prompts):
        raise InputError(f"{len(images)} assets need as many prompts, got {len(prompts)}")
    found = [shows_front_twice(judge, views, prompt) for views, prompt in zip(images, prompts)]
    said = [hit for hit in found if hit is not None]
    rate = sum(said) / len(said) if said else None
    return {"rate": rate, "counted": len(said), "skipped": len(found) - len(said)}
