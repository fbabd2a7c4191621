"""What a reward on views is worth: pairs of known order, real renders and damaged ones; Reward3D-mini's model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from measure_judge import with_interval
from reward3d_pairs import CANDIDATE_FORMS, MAKERS, Candidates, Maker, draw_real, visible
from torch import Tensor

from rl3d.data.batches import ViewBatches
from rl3d.rewards.judges import Judge

CHUNK = 32
# Views [B, V, 4, H, W], prompts [B] and azimuths [B, V] to scores [B].
Scorer = Callable[[Tensor, list[str], Tensor], Tensor]


@torch.no_grad()
def standardise(raw: Scorer, source: ViewBatches) -> tuple[float, float]:
    """Mean and standard deviation of `raw` over real views of a split's assets, one view set each, half repainted."""
    rng, found = np.random.default_rng(12), []
    for start in range(0, len(source.keep), CHUNK):
        real = draw_real(source, source.keep[start : start + CHUNK], rng, 0.5)
        found.append(raw(real.images, real.captions, real.azimuths))
    values = torch.cat(found)
    return float(values.mean()), max(float(values.std()), 1e-3)


class Tally:
    """Hits of pairs, by name and scorer, with the asset that each belongs to; pairs that nobody can see are left out.

    A tie is half a hit, as a coin would have it.
    """

    def __init__(self, *scorers: str) -> None:
        self.scorers = scorers
        self.rows: dict[str, list[tuple[float, ...]]] = {}
        self.pairs: dict[str, int] = {}

    def add(self, name: str, assets: np.ndarray, better: Tensor, worse: Tensor, seen: Tensor) -> None:
        """better, worse: [S, B], scores of the S scorers. seen: [B] bool."""
        self.pairs[name] = self.pairs.get(name, 0) + len(assets)
        hits = (better > worse).float() + 0.5 * (better == worse)
        rows = self.rows.setdefault(name, [])
        rows += [(float(a), *h.tolist()) for a, h, s in zip(assets, hits.T, seen) if s]

    def result(self, rng: np.random.Generator) -> dict[str, dict]:
        """By name: each scorer's share with its interval, the first's "gain" over the second, "pairs" that counted, and
        which share of all they are ("visible")."""
        out = {}
        for name, rows in self.rows.items():
            if rows:
                table = np.array(rows)
                found = {s: with_interval(table[:, 1 + i], table[:, 0], rng) for i, s in enumerate(self.scorers)}
                gain = with_interval(table[:, 1] - table[:, 2], table[:, 0], rng)
                counted = round(len(rows) / self.pairs[name], 3)
                out[name] = {**found, "gain": gain, "pairs": len(rows), "visible": counted}
        return out


@torch.no_grad()
def evaluate(
    name: str,
    score: Scorer,
    judge: Judge,
    source: ViewBatches,
    candidates: Candidates | None,
    makers: Mapping[str, Maker] = MAKERS,
    rounds: int = 2,
) -> dict:
    """Accuracy on pairs of a split, each [mean, low, high] with a 95 % bootstrap interval over assets.

    "pairs" by kind: the real one above its mildest form ("KIND"), above its worst ("KIND, worse") and the mildest above
    the worst ("KIND, order"); for the judge that reward `name` started from too, and their difference ("gain").
    """
    rng, generator, tally = np.random.default_rng(13), torch.Generator().manual_seed(13), Tally(name, "judge")
    scores: list[Tensor] = []

    def both(images: Tensor, prompts: list[str], azimuths: Tensor) -> Tensor:
        return torch.stack([score(images, prompts, azimuths), judge.similarity(images, prompts)]).cpu()

    def compare(kind: str, assets: np.ndarray, looks: list[Tensor], marks: list[Tensor]) -> None:
        for pair, a, b in ((kind, 0, 1), (f"{kind}, worse", 0, 2), (f"{kind}, order", 1, 2)):
            if b < len(looks):
                tally.add(pair, assets, marks[a], marks[b], visible(looks[a], looks[b]))

    for _ in range(rounds):
        for start in range(0, len(source.keep), CHUNK):
            real = draw_real(source, source.keep[start : start + CHUNK], rng, 0.5)
            clean = both(real.images, real.captions, real.azimuths)
            scores.append(clean[0])
            for kind, make in makers.items():
                forms = make(source, real, rng, generator)
                marks = [clean, *(both(form, real.captions, real.azimuths) for form in forms)]
                compare(kind, real.assets, [real.images, *forms], marks)
    for start in range(0, len(candidates) if candidates else 0, CHUNK):
        assert candidates is not None
        rows = np.arange(start, min(start + CHUNK, len(candidates)))
        images, azimuths, captions = candidates.group(rows)
        marks = [both(images[:, i], captions, azimuths) for i in range(images.shape[1])]
        place = 1
        for kind, count in CANDIDATE_FORMS.items():
            chosen = [0, *range(place, place + count)]
            compare(kind, candidates.assets[rows], [images[:, i] for i in chosen], [marks[i] for i in chosen])
            place += count
    real_scores = torch.cat(scores)
    return {
        "assets": len(source.keep),
        "pairs": tally.result(rng),
        "real": {"mean": round(float(real_scores.mean()), 3), "std": round(float(real_scores.std()), 3)},
    }


def interval_cell(value: list[float]) -> str:
    return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def pair_table(name: str, row: dict) -> str:
    """What the numbers of reward `name` mean, and the table of its pairs; `row`: `evaluate`'s "val" and "train"."""
    val, train = row["val"], row["train"]
    lines = []
    for pair, found in val["pairs"].items():
        cells = [interval_cell(found[k]) for k in (name, "judge", "gain")]
        beside = interval_cell(train["pairs"][pair][name]) if pair in train["pairs"] else "-"
        lines.append(f"| {pair} | {' | '.join(cells)} | {beside} | {found['pairs']} | {found['visible']:.2f} |")
    return f"""\
Share of pairs in which the better one scores higher, by mean and 95 % bootstrap interval over assets; 0.5 is blind.
"KIND": real against the mildest form; "worse": real against the worst; "order": mildest against worst. "gain": minus
the reward judge's, on the same pairs. Val: {val["assets"]} assets that were never trained on; train: {train["assets"]}.
Pairs that differ by less than 0.02 (root mean square) are left out: "counted" is the share that is left.

| pair | val | judge, val | gain, val | train | pairs, val | counted |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}"""


def model_card(row: dict, command: str, parameters: int) -> str:
    """Markdown of the card; `row` is what train_reward3d.py writes as evaluation.json."""
    training, val = row["training"], row["val"]
    return f"""# Reward3D-mini

Scores how well 2 or more views around an asset fit a prompt and each other; higher is better. It was trained to rank,
with the loss of DreamReward (Ye et al. 2024, arXiv 2403.14613), and starts from the reward judge. Differentiable to the
images. Licence: Apache-2.0; the data is CC0-1.0.

    reward = rl3d.rewards.load("reward3d")
    scores = reward(rl3d.RewardInput(images, alphas, cameras, prompts))

Range [-20, 20]: 0 is the mean of real training renders with right prompts, 1 their standard deviation (on val real
renders have {val["real"]["mean"]:.2f} and {val["real"]["std"]:.2f}). Without cameras, views stand at equal steps of a
turn, in order.

Network: the reward judge's image encoder, fine-tuned; two transformer blocks over the prompt and the 16x16-pixel
patches of all views, biased by the angle between every two views; {parameters / 1e6:.2f} million
parameters with the judge's.

## Training

{training["step"]:,} steps, {training["prompts"]:,} prompts, {training["seconds"] / 60:.0f} minutes.
-log sigma(r_w - r_l) over all pairs of a prompt's candidates whose order is known: real views, and milder and worse
forms of each kind of damage.

    python tools/build_views.py DATA CACHE --look judge
    python tools/build_views.py DATA TORN --look judge --torn
    {command}

## Numbers

{pair_table("reward3d", row)}

## Limits

It knows the words of the reward judge and low-poly props. All kinds of damage were trained, in other draws; what a
generator does wrong in other ways it has not seen{"" if "sample" in val["pairs"] else ", nor any generator's output"}.
It shares its start with the reward judge, so that one is a poor guard for it; the gold judge shares nothing but the
data. Scores of different prompts were never compared while training.
"""
