"""What the viewpoint reward and the multi-view preference are worth beyond pairs, and their model cards."""

from __future__ import annotations

import math

import numpy as np
import torch
from measure_judge import with_interval
from reward3d_card import CHUNK, interval_cell, pair_table
from reward3d_pairs import draw_real

from rl3d.data.batches import ViewBatches
from rl3d.rewards.hfdream import DIRECTIONS, HFDream

SIDED = 0.1  # root mean square of front minus back, over views and channels: what differs more has a front


@torch.no_grad()
def by_quarter(reward: HFDream, source: ViewBatches) -> dict[str, dict]:
    """Share of single views whose own direction scores highest among the four that are quarter turns apart.

    Of all assets, and of those whose views from front and back differ by SIDED or more; [mean, low, high] with a 95 %
    bootstrap interval over assets, "views" that counted, and the mean score.
    """
    rng, rows = np.random.default_rng(14), []
    for start in range(0, len(source.keep), CHUNK):
        real = draw_real(source, source.keep[start : start + CHUNK], rng, 0.5)
        turns = [reward.by_view(real.images, real.azimuths + k * math.pi / 2) for k in range(4)]
        scores = torch.stack(turns).cpu()  # [4, B, V]
        across = real.images.roll(real.images.shape[1] // 2, 1)
        apart = (real.images - across).square().mean((1, 2, 3, 4)).sqrt()
        hits = (scores[0] > scores[1:].amax(0)).float()
        rows += [
            (float(asset), float(far), *pair)
            for asset, far, *marks in zip(real.assets, apart, hits, scores[0])
            for pair in zip(*(mark.tolist() for mark in marks))
        ]
    table, out = np.array(rows), {}
    for name, chosen in (("all", table), ("sided", table[table[:, 1] >= SIDED])):
        if len(chosen):
            share = with_interval(chosen[:, 2], chosen[:, 0], rng)
            out[name] = {"share": share, "views": len(chosen), "score": round(float(chosen[:, 3].mean()), 3)}
    return out


def hfdream_text(row: dict) -> tuple[str, str, str, str]:
    """What it is, what it started from, how it was trained, and what its numbers are besides pairs."""
    lines = [
        f"| {split}, {name} | {interval_cell(found['share'])} | {found['views']} | {found['score']:.2f} |"
        for split in ("val", "train")
        for name, found in row[split]["quarter"].items()
    ]
    best = f"{math.log(DIRECTIONS):.2f}"
    what = f"""\
Scores whether each view shows the side that its camera stands at, the front at azimuth 0: HFDream's viewpoint reward
with renders from known directions in the place of people's answers. Any number of views, each by itself; the score is
their mean.

Range [-20, {best}]: the log of the density that a view gives its own direction over an even one. 0 is
what a view scores that says nothing of its side."""
    how = "-log p of the direction that each view was rendered from; an empty view has any."
    numbers = f"""\
Share of single views whose own direction scores highest of four quarter turns (chance 0.25), by mean and 95 %
bootstrap interval over assets; "sided": assets whose front and back differ by {SIDED} or more (root mean square).

| split, assets | right quarter | views | mean score |
|---|---|---|---|
{chr(10).join(lines)}

"""
    return what, "the reward judge's convolutions, fine-tuned, and new", how, numbers


def mvreward_text(row: dict) -> tuple[str, str, str, str]:
    """What it is, what it started from, how it was trained, and what its numbers are besides pairs."""
    real = row["val"]["real"]
    scale = f"{real['mean']:.2f} and {real['std']:.2f}"
    what = f"""\
Scores how good 2 or more views are as pictures of one object, with MVReward's ranking loss on whole view sets (Wang et
al. 2024, arXiv 2412.06614). From a prompt no picture is given, so every view attends to all others.

Range [-20, 20]: 0 is the mean of real training renders, 1 their standard deviation (val renders have {scale})."""
    how = """\
-log sigma(r_w - r_l) over all pairs of an asset's view sets whose order is known: real views, and milder and worse
forms of each kind of damage."""
    return what, "Reward3D-mini's convolutions and blocks, fine-tuned:", how, ""


def model_card(head: str, row: dict, parameters: int) -> str:
    """Markdown of the card; `row` is what train_view_heads.py writes as evaluation.json."""
    title, text = {"hfdream": ("HFDream", hfdream_text), "mvreward": ("MVReward", mvreward_text)}[head]
    what, start, how, numbers = text(row)
    training = row["training"]
    drawn = "sample" in row["val"]["pairs"]
    unseen = "" if head == "mvreward" and drawn else ", nor any generator's output"
    return f"""# {title}, trained by this project

{what}

The prompt is not read. Differentiable to the images. Licence: Apache-2.0; the data is CC0-1.0.

    reward = rl3d.rewards.load("{head}")
    scores = reward(rl3d.RewardInput(images, alphas, cameras, prompts))

Without cameras, views stand at equal steps of a turn, in order, the front first.

Network: {start} transformer blocks over the 16x16-pixel patches;
{parameters / 1e6:.2f} million parameters.

## Training

{training["step"]:,} steps, {training["assets"]:,} view sets, {training["seconds"] / 60:.0f} minutes.
{how}

    python tools/build_views.py DATA CACHE --look judge
    python tools/train_view_heads.py DATA CACHE --head {head} --out RUN --minutes MINUTES

## Numbers

{numbers}{pair_table(head, row)}

## Limits

It knows low-poly props. What a generator does wrong in other ways than those it was trained on it has not seen{unseen}.
It goes back to the reward judge's convolutions, so that one is a poor guard for it; the gold judge shares nothing but
the data.
"""
