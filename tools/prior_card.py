# ruff: noqa: E501
"""Ship a training run of tools/train_prior.py: weights, model card, sample grid, manifest entry.

python tools/prior_card.py RUN [--seed 0] [--guidance 4] [--steps 24]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from export_prior import GRID_PROMPTS, draw_grid, prior_of_run

from rl3d.assets import record_model
from rl3d.files import write_json

ROOT = Path(__file__).resolve().parent.parent
CARD = """# Embedded multi-view prior

Text and four cameras to four agreeing RGBA views (64x64, premultiplied sRGB) of one low-poly asset. It is what
`rl3d generate` uses when no `--prior` is given.

    prior = rl3d.priors.load()                                   # or load("assets/prior"), the diffusers layout
    images = prior.sample(prior.encode_prompt("a red chest"), prior.cameras(0.0, 0.35), steps=24, guidance=4.0,
                          generator=torch.Generator().manual_seed(0))          # [1, 4, 4, 64, 64] in [0, 1]

![samples](../../docs/images/prior_samples.png)

Prompts of the picture, row by row, two a row, seed {seed}, {steps} steps, guidance {guidance}: {prompts}.

## Model

A transformer over the patches of all views ({parameters:.1f}M parameters, bfloat16): width {width}, {depth} layers,
patch {patch}, a convolutional stem and head with {stem_channels} channels at 4 pixels a cell. It predicts the clean views
straight from noisy pixels (x-prediction, flow matching with a velocity loss), conditioned on words ({vocabulary}
known), on each patch's viewing ray and on the noise level.
{coarse}Cameras: distance 2.7, fov_y 0.47 rad, elevation -10 to 45 degrees,
any azimuth, 90 degrees apart. The light is part of the pictures: shade = 0.55 + 0.45 (0.5 + 0.5 n.l) in linear light.

## Data and licence

1,911 captioned low-poly assets (the train split of 1,995), CC0 1.0, by Kay Lousberg (KayKit) and Quaternius, 12 view
sets each, 4 of them from the front; captions cleaned and varied by rule; the main colour repainted, with the caption, in 35 % of the draws. The pairs
of colour and noun in `rl3d.data.captions.HELD_OUT_PAIRS` were never shown. Weights: Apache-2.0.

## Training

{steps_trained:,} steps, {objects:,} objects ({smaller:,} of them at 32 pixels), {minutes:.0f} minutes of wall-clock on a
shared 2-core CPU.

    python tools/build_views.py DATA CACHE
    python tools/train_prior.py DATA CACHE --out A --batch 32 --lr 1.5e-3 --compile --minutes MINUTES
    python tools/train_prior.py DATA CACHE --out B --init A --size 32 --t-mean 1.31 --batch 64 --lr 1.5e-3 --compile \\
        --minutes MINUTES
    python tools/train_prior.py DATA CACHE --out RUN --init B --coarse-above 0.75 --t-mean 1.4 --t-std 1.5 --batch 32 \\
        --lr 1.5e-3 --compile --minutes MINUTES --cooldown 0.5
    python tools/prior_card.py RUN

A: up to 256,000 objects, the first 31,000 at lower noise levels (`--t-mean 0.4 --t-std 1`) and, like the next 8,900, in
batches of 16 without views from the front. Between A and B, and between B and RUN, some 40,000 objects at 64 pixels
with `--t-mean 0.8` and `1.0 --t-std 1.4`. What each part brought: docs/benchmarks/prior_candidates.md.

Mean squared x0 error (range [-1, 1]) of the averaged weights, asked as the prior asks, on 48 fixed draws of 64
pixels with fixed noise:

| objects | minutes | val t=0.3 | val t=0.6 | val t=0.9 | train t=0.9 |
|---|---|---|---|---|---|
{rows}

Other candidates at equal wall-clock: docs/benchmarks/prior_candidates.md.

## Limits

Training time is the limit: the run resumes and the error still falls. It knows the words of its data set and nothing
else. Thin parts and text-like detail are beyond 64 pixels; views may disagree in detail.
"""

COARSE = """From t = {border} up it denoises views of 32 pixels, the means of four (they keep the picture and half of the noise), and
the result is enlarged: layouts are decided there, at a quarter of the tokens.
"""


def history(run: Path) -> dict[str, Any]:
    """What `--init` goes on from: totals, and some rows of the log at the run's own size, the last one among them."""
    state = json.loads((run / "state.json").read_text())
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    own = state["model"]["image_size"]
    log = [row for row in log if row.get("size", own) == own]
    keep = sorted({round(i * (len(log) - 1) / 11) for i in range(12)})
    return {**{k: state[k] for k in ("step", "objects", "smaller", "seconds")}, "log": [log[i] for i in keep]}


def card(run: Path, parameters: float, **sampling: object) -> str:
    """The model card's text, with the numbers of the run's log."""
    state = json.loads((run / "state.json").read_text())
    facts = history(run)
    rows = "\n".join(
        "| {objects:,} | {minutes:.0f} | {a:.4f} | {b:.4f} | {c:.4f} | {d:.4f} |".format(
            **{k: row[k] for k in ("objects", "minutes")},
            a=row["val_x0_mse_0.3"],
            b=row["val_x0_mse_0.6"],
            c=row["val_x0_mse_0.9"],
            d=row["train_x0_mse_0.9"],
        )
        for row in facts["log"]
    )
    model = {k: state["model"][k] for k in ("width", "depth", "patch", "stem_channels")}
    border = state["model"].get("coarse_above")
    coarse = "" if border is None else COARSE.format(border=border)
    return CARD.format(
        rows=rows,
        parameters=parameters / 1e6,
        vocabulary=len(state["vocabulary"]) - 2,
        steps_trained=state["step"],
        objects=state["objects"],
        smaller=facts["smaller"],
        coarse=coarse,
        minutes=state["seconds"] / 60,
        prompts=", ".join(GRID_PROMPTS),
        **model,
        **sampling,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=24)
    args = parser.parse_args()
    prior = prior_of_run(args.run)
    folder = ROOT / "assets" / "prior"
    prior.save_pretrained(folder)
    grid = ROOT / "docs" / "images" / "prior_samples.png"
    draw_grid(prior, grid, GRID_PROMPTS, args.steps, args.guidance, args.seed)
    parameters = sum(p.numel() for p in prior.model.parameters())
    text = card(args.run, parameters, seed=args.seed, guidance=args.guidance, steps=args.steps)
    (folder / "README.md").write_text(text, encoding="utf-8")
    write_json(folder / "training.json", history(args.run))
    record_model("prior", description="text to 4 RGBA views of a low-poly asset, 64x64", licence="Apache-2.0")
