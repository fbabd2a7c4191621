"""Train RewardCS-mini on meshes that need no pairs, or measure a trained one.

    python tools/train_rewardcs.py DATA CACHE --out RUN --minutes 40
    python tools/train_rewardcs.py DATA CACHE --out RUN --evaluate [--assets assets/rewardcs]

CACHE is made by the first call (some minutes); RUN is resumed when it exists. Every step draws two sets of their own
from a bank of point clouds: preferred shapes (real training assets with their captions, as they are or fused) and
dispreferred ones (other assets, damaged, or with another's caption; see tools/rewardcs_shapes.py). The loss is that of
DreamCS (Zou et al. 2025, arXiv 2506.09814), the squared error of the score minus the Cauchy-Schwarz divergence of the
two sets of embeddings:

    L = mean (r - mark)^2 - lambda D_CS(preferred || dispreferred)

The mark is 1 for the preferred; 0 for another's caption; 1 - severity for the damaged, where severity is 0.5 to 1, by
the distance between the damaged surface and the whole one, or 0.75 where that says little. Clouds are mirrored left to
right, turned a little and sized at random.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rewardcs_bank import Bank, varied
from rewardcs_card import evaluate, model_card
from rewardcs_shapes import Shapes
from ship_model import averaged_weights, ship
from torch import Tensor
from train_prior import Ema, restore, save, set_rate

from rl3d.data.batches import word_ids
from rl3d.data.captions import AssetRecord, augment_caption, build_vocabulary
from rl3d.data.colours import WORDS as COLOURS
from rl3d.files import write_json
from rl3d.rewards.reward_cs import RewardCS, RewardCSConfig, RewardCSModel, load_rewardcs, rewardcs_loss, save_rewardcs


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path, help="folder of the fused shapes; made where it is missing")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40, help="stop after this much wall-clock in this call")
    parser.add_argument("--steps", type=int, default=0, help="stop at this step, counted over all calls; 0: no limit")
    parser.add_argument("--clouds", type=int, default=8000, help="in the cache; more are added where there are fewer")
    parser.add_argument("--preferred", type=int, default=16, help="a step")
    parser.add_argument("--dispreferred", type=int, default=24, help="a step")
    parser.add_argument("--divergence", type=float, default=0.05, help="lambda of the divergence")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=30)
    parser.add_argument("--cooldown", type=float, default=0.4, help="share of this call's minutes with a falling rate")
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--model", type=json.loads, default={}, help='JSON, e.g. {"width": 128}')
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the default")
    parser.add_argument("--save-every", type=float, default=5, help="minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true", help="measure RUN's averaged weights, do not train")
    parser.add_argument("--eval-assets", type=int, default=0, help="assets with --evaluate; 0: the whole val split")
    parser.add_argument("--assets", type=Path, help="with --evaluate: also write the shipped files there")
    return parser.parse_args()


def vocabulary_of(records: list[AssetRecord]) -> dict[str, int]:
    """The words of training captions but those of colours, which a shape does not have."""
    words = [w for w in build_vocabulary([r for r in records if r.split == "train"]) if w not in COLOURS]
    return {w: i for i, w in enumerate(words)}


def draw_batch(
    bank: Bank, records: list[AssetRecord], counts: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, Tensor, list[str]]:
    """Rows of the bank [B], so many preferred and dispreferred ones, drawn apart; their clouds varied, and captions."""
    preferred = bank.kinds == ""
    rows = np.concatenate([rng.choice(np.flatnonzero(which), n) for which, n in zip((preferred, ~preferred), counts)])
    said = [records[i] for i in bank.captions[rows]]
    captions = [augment_caption(r, r.colour, rng, False) for r in said]
    return rows, varied(bank.clouds(rows), rng), captions


def train(args: argparse.Namespace) -> None:
    shapes = Shapes(args.data, args.cache, progress=True)
    words = vocabulary_of(shapes.records)
    torch.manual_seed(args.seed)
    resume = (args.out / "state.json").is_file()
    sizes = json.loads((args.out / "state.json").read_text())["sizes"] if resume else args.model
    model = RewardCSModel(RewardCSConfig(len(words), **sizes))
    points = model.config.points
    bank = Bank(shapes, args.cache / f"train_{points}", args.clouds, points, "train", progress=True)
    groups = [[p for p in model.parameters() if (p.ndim >= 2) == matrices] for matrices in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.05}, {"params": groups[1], "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    ema = Ema(model, args.ema)
    state = {"step": 0, "shapes": 0, "seconds": 0.0}
    if resume:
        state |= {k: v for k, v in restore(args.out, model, ema, [optimizer]).items() if k in state}
    if args.steps and state["step"] >= args.steps:
        print(f"{args.out} is at step {state['step']} already")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    start = saved = logged = time.monotonic()
    before, seen = state["seconds"], []
    while True:
        step, minutes = int(state["step"]), (time.monotonic() - start) / 60
        done = minutes >= args.minutes or step + 1 == args.steps
        set_rate([optimizer], args, step, minutes)
        # The step decides the batch, so that a resumed run draws what an uninterrupted one would have.
        rng = np.random.default_rng([args.seed, step])
        rows, clouds, captions = draw_batch(bank, shapes.records, (args.preferred, args.dispreferred), rng)
        embedding, scores = model(*clouds.split(3, 2), word_ids(captions, words))
        preferred = torch.arange(len(rows)) < args.preferred
        losses = rewardcs_loss(embedding, scores, bank.marks[rows], preferred, args.divergence)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not math.isfinite(float(norm)):
            raise SystemExit(f"the gradient is not finite at step {step}; lower --lr and resume")
        optimizer.step()
        ema.update(model, step)
        seen.append((bank.kinds[rows], scores.detach(), {k: float(v.detach()) for k, v in losses.items()}))
        seconds = before + time.monotonic() - start
        state = {"step": step + 1, "shapes": state["shapes"] + len(rows), "seconds": seconds}
        if done or time.monotonic() - logged > 60:
            logged = time.monotonic()
            row = {"step": step + 1, "minutes": round(seconds / 60, 2), **log_row(seen)}
            with (args.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            seen = []
        if done or time.monotonic() - saved > 60 * args.save_every:
            saved = time.monotonic()
            save(args.out, model, ema, [optimizer], {**state, "sizes": sizes, "model": asdict(model.config)})
        if done:
            return


def log_row(seen: list[tuple[np.ndarray, Tensor, dict[str, float]]]) -> dict:
    """Means of the losses, and the share of (preferred, dispreferred) of all steps in the right order, by kind."""
    scores = torch.cat([s for _, s, _ in seen])
    kinds = np.concatenate([k for k, _, _ in seen])
    real = scores[torch.from_numpy(kinds == "")]
    above = {
        str(kind): round(float((real[:, None] > scores[torch.from_numpy(kinds == kind)]).float().mean()), 3)
        for kind in sorted(set(kinds) - {""})
    }
    losses = {k: round(float(np.mean([parts[k] for _, _, parts in seen])), 4) for k in seen[0][2]}
    return {**losses, "preferred_above": above}


def finish(args: argparse.Namespace) -> None:
    """Measure the averaged weights in the form in which they ship; write them to --assets."""
    shapes = Shapes(args.data, args.cache)
    words = vocabulary_of(shapes.records)
    facts = json.loads((args.out / "state.json").read_text())
    model = RewardCSModel(RewardCSConfig(len(words), **facts["sizes"]))
    model.load_state_dict(averaged_weights(args.out))
    save_rewardcs(RewardCS(model.eval().requires_grad_(False), words), args.out / "rewardcs")
    reward = load_rewardcs(folder=args.out / "rewardcs")
    row: dict = {"training": {k: facts[k] for k in ("step", "shapes", "seconds")}}
    row["val"] = evaluate(reward, shapes, shapes.split("val"), args.eval_assets)
    print(json.dumps(row), flush=True)
    write_json(args.out / "evaluation.json", row)
    if args.assets:
        save_rewardcs(reward, args.assets)
        command = "python tools/train_rewardcs.py DATA CACHE --out RUN --minutes MINUTES"
        size = sum(p.numel() for p in model.parameters())
        what = "RewardCS-mini: scores the shape of a mesh against a prompt"
        ship(args.assets, what, model_card(row, command, size), row)


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.evaluate:
        finish(args)
    else:
        train(args)


if __name__ == "__main__":
    main()
