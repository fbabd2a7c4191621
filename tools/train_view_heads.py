"""Train HFDream's viewpoint reward or MVReward's multi-view preference from a view cache, or measure a trained one.

    python tools/build_views.py DATA CACHE --look judge
    python tools/train_view_heads.py DATA CACHE --head hfdream --out RUN --minutes 25
    python tools/train_view_heads.py DATA CACHE --head mvreward --out RUN --minutes 25
    python tools/train_view_heads.py DATA CACHE --head mvreward --out RUN --evaluate [--assets assets/mvreward]
    accelerate launch tools/train_view_heads.py ...        # several processes, one per GPU

Resumes from RUN when it exists. Neither reads a prompt; the convolutions that they start from move at a fraction of the
rate.

- hfdream starts from the reward judge's convolutions: every view of a real set and the direction that it was rendered
  from; the loss is -log p of that direction among all (see rl3d/rewards/hfdream.py). An empty view has any direction.
- mvreward starts from Reward3D-mini without its words: -log sigma(r(better) - r(worse)) over all pairs of whole view
  sets whose order is known (see tools/reward3d_pairs.py). RUN/candidates.safetensors of tools/train_reward3d.py
  --make-candidates, where there is one, gives the prior's samples and lifts a share of the steps.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from reward3d_card import Scorer, evaluate, standardise
from reward3d_pairs import CONSISTENCY, MAKERS, TURNS, Candidates, Maker, draw_real, known_order, visible
from ship_model import averaged_weights, ship
from torch import Tensor, nn
from train_prior import CLOCKS, Ema, agreed, restore, save, set_rate
from train_reward3d import by_kind, draw_group, optimizer_for, ranking_loss, seen_alike, thin
from view_heads_card import by_quarter, model_card

from rl3d.data.asset_set import read_records
from rl3d.data.batches import ViewBatches
from rl3d.files import write_json
from rl3d.rewards.hfdream import HFDream, HFDreamConfig, HFDreamModel, load_hfdream, save_hfdream
from rl3d.rewards.judges import load_judge
from rl3d.rewards.mvreward import MVReward, MVRewardConfig, MVRewardModel, load_mvreward, save_mvreward
from rl3d.rewards.reward3d import load_reward3d

EMPTY = 0.03  # share of the views that hfdream sees emptied, with any direction
TRAIN_SHOWN = 40  # training assets of --evaluate, for comparison
OF_PROMPTS = ("wrong_colour", "swapped_colour", "wrong_noun")
# Scalar loss, and (hits, counted) by kind for the log.
Step = tuple[Tensor, dict[str, tuple[int, int]]]


@dataclass(frozen=True)
class Head:
    """What differs between the two: what a new model starts from, the loss of a random batch, the makers of the pairs
    that measure it, and how averaged weights become files and the scores of those files.

    Attributes:
        finish: model, training views, folder -> (facts for the evaluation, scores of the saved reward).
    """

    about: str
    start: Callable[[argparse.Namespace, dict[str, Any]], nn.Module]
    loss: Callable[..., Step]
    makers: dict[str, Maker]
    finish: Callable[[nn.Module, ViewBatches, Path], tuple[dict[str, float], Scorer]]


def start_viewpoint(args: argparse.Namespace, sizes: dict[str, Any]) -> HFDreamModel:
    """The network around the convolutions of the reward judge."""
    judge = load_judge("reward", "cpu", args.judge).model
    model = HFDreamModel(HFDreamConfig(judge.config, **sizes))
    model.encoder.load_state_dict({k: v for k, v in judge.state_dict().items() if k.startswith("features.")})
    return model


def start_preference(args: argparse.Namespace, sizes: dict[str, Any]) -> MVRewardModel:
    """Reward3D-mini's convolutions and blocks; the first token and the last perceptron are new."""
    begun = load_reward3d("cpu", args.reward3d).model
    c = begun.config
    model = MVRewardModel(MVRewardConfig(c.judge, c.width, c.heads, c.blocks))
    model.encoder.features.load_state_dict(begun.judge.features.state_dict())
    for part in ("patch", "blocks", "norm"):
        model.get_submodule(part).load_state_dict(begun.get_submodule(part).state_dict())
    model.positions.data.copy_(begun.positions)
    return model


def viewpoint_loss(
    model: nn.Module,
    source: ViewBatches,
    candidates: Candidates | None,
    args: argparse.Namespace,
    rng: np.random.Generator,
    device: torch.device,
) -> Step:
    """-log p of every view's own direction; a hit has more than an even share."""
    real = draw_real(source, rng.choice(source.keep, args.batch, p=source.weight), rng, args.recolour)
    images, angles = seen_alike(real.images[:, None], real.azimuths.float(), rng)
    images, shape = images[:, 0], angles.shape
    empty = torch.from_numpy(rng.random(shape) < EMPTY)
    anywhere = torch.from_numpy(rng.uniform(0, 2 * math.pi, shape)).float()
    angles = torch.where(empty, anywhere, angles)
    images = images * ~empty[:, :, None, None, None]
    with torch.autocast(device.type, torch.bfloat16):
        log_p = model(images.to(device), angles.to(device))
    return -log_p.mean(), {"above even": (int((log_p > 0).sum()), log_p.numel())}


def preference_loss(
    model: nn.Module,
    source: ViewBatches,
    candidates: Candidates | None,
    args: argparse.Namespace,
    rng: np.random.Generator,
    device: torch.device,
) -> Step:
    """-log sigma over pairs of known order; a hit is a real set above its damaged form."""
    images, angles, _, forms = draw_group(source, candidates, args, rng, PREFERENCE)
    pairs = known_order(list(forms.values()))
    counts = torch.stack([visible(images[:, a], images[:, b]) for a, b in pairs])
    images, angles = seen_alike(images, angles, rng)
    each = images.shape[1]
    with torch.autocast(device.type, torch.bfloat16):
        scores = model(images.flatten(0, 1).to(device), angles.repeat_interleave(each, 0).to(device)).view(-1, each)
    loss, right = ranking_loss(scores, pairs, counts.to(device))
    seen = {}
    for kind, rows in by_kind(pairs, forms).items():
        seen[kind] = (int((right.cpu() & counts)[rows].sum()), int(counts[rows].sum()))
    return loss, seen


def finish_viewpoint(model: nn.Module, source: ViewBatches, folder: Path) -> tuple[dict[str, float], Scorer]:
    assert isinstance(model, HFDreamModel)
    save_hfdream(HFDream(model), folder)
    reward = load_hfdream(next(model.parameters()).device, folder)
    return {}, lambda images, prompts, azimuths: reward.score(images, azimuths)


def finish_preference(model: nn.Module, source: ViewBatches, folder: Path) -> tuple[dict[str, float], Scorer]:
    assert isinstance(model, MVRewardModel)
    rough = MVReward(model, 0.0, 1.0)
    mean, std = standardise(lambda images, prompts, azimuths: rough.raw(images, azimuths), source)
    save_mvreward(replace(rough, mean=mean, std=std), folder)
    reward = load_mvreward(next(model.parameters()).device, folder)
    return {"mean": mean, "std": std}, lambda images, prompts, azimuths: reward.score(images, azimuths)


OF_VIEWS = {**MAKERS, **CONSISTENCY}
PREFERENCE = {kind: make for kind, make in OF_VIEWS.items() if kind not in OF_PROMPTS}
DIRECTION = {**TURNS, **{kind: OF_VIEWS[kind] for kind in ("exchanged_views", "janus", "seen_again")}}
HEADS = {
    "hfdream": Head(
        "HFDream: says whether each view shows the side that its camera stands at",
        start_viewpoint,
        viewpoint_loss,
        DIRECTION,
        finish_viewpoint,
    ),
    "mvreward": Head(
        "MVReward: which of two view sets is better as pictures of one object",
        start_preference,
        preference_loss,
        PREFERENCE,
        finish_preference,
    ),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--head", choices=HEADS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25, help="stop after this much time in this call")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what all minutes are; cpu: of this process")
    parser.add_argument("--steps", type=int, default=0, help="stop at this step, counted over all calls; 0: no limit")
    parser.add_argument("--batch", type=int, default=16, help="assets a step and process")
    parser.add_argument("--kinds", type=int, default=2, help="mvreward: kinds of damage a step, one between views")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--encoder-factor", type=float, default=0.3, help="rate of the convolutions, times --lr")
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--cooldown", type=float, default=0.0, help="share of this call's minutes with a falling rate")
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--recolour", type=float, default=0.5)
    parser.add_argument("--judge", type=Path, help="folder of the reward judge; default: the embedded one")
    parser.add_argument(
        "--reward3d", type=Path, help="folder of Reward3D-mini, for mvreward; default: the embedded one"
    )
    parser.add_argument("--model", type=json.loads, default={}, help='hfdream: JSON, e.g. {"width": 128}')
    parser.add_argument("--prior-share", type=float, default=0.25, help="of steps on the prior's candidates")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the default")
    parser.add_argument("--save-every", type=float, default=5, help="minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true", help="measure RUN's averaged weights, do not train")
    parser.add_argument("--eval-assets", type=int, default=0, help="assets a split with --evaluate; 0: all of them")
    parser.add_argument("--assets", type=Path, help="with --evaluate: also write the shipped files there")
    return parser.parse_args()


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    device, head = accelerator.device, HEADS[args.head]
    source = ViewBatches(args.cache, read_records(args.data), "train", args.recolour)
    found = args.out / "candidates.safetensors"
    candidates = Candidates(found, "train") if found.is_file() else None
    torch.manual_seed(args.seed)
    resume = (args.out / "state.json").is_file()
    sizes = json.loads((args.out / "state.json").read_text())["sizes"] if resume else args.model
    model = head.start(args, sizes).to(device)
    optimizer, ema = optimizer_for(model, args.lr, "encoder.", args.encoder_factor), Ema(model, args.ema)
    state = {"step": 0, "assets": 0, "seconds": 0.0}
    if resume:
        state |= {k: v for k, v in restore(args.out, model, ema, [optimizer]).items() if k in state}
    if args.steps and state["step"] >= args.steps:
        print(f"{args.out} is at step {state['step']} already")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    runner = torch.nn.parallel.DistributedDataParallel(model) if accelerator.num_processes > 1 else model
    clock = CLOCKS[args.clock]
    start = saved = logged = clock()
    before, losses, hits, seen = state["seconds"], [], Counter(), Counter()
    while True:
        step, minutes = int(state["step"]), (clock() - start) / 60
        done = agreed(minutes >= args.minutes or step + 1 == args.steps, accelerator)
        set_rate([optimizer], args, step, minutes)
        # The step decides the batch, so that a resumed run draws what an uninterrupted one would have.
        rng = np.random.default_rng([args.seed, step, accelerator.process_index])
        loss, right = head.loss(runner, source, candidates, args, rng, device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not math.isfinite(float(norm)):
            raise SystemExit(f"the gradient is not finite at step {step}; lower --lr and resume")
        optimizer.step()
        ema.update(model, step)
        losses.append(float(loss.detach()))
        for kind, (hit, counted) in right.items():
            hits[kind] += hit
            seen[kind] += counted
        seconds = before + clock() - start
        assets = state["assets"] + args.batch * accelerator.num_processes
        state = {"step": step + 1, "assets": assets, "seconds": seconds}
        if accelerator.is_main_process and (done or clock() - logged > 60):
            logged = clock()
            row = {"step": step + 1, "minutes": round(seconds / 60, 2), "loss": round(float(np.mean(losses)), 5)}
            row |= {"right": {kind: round(hits[kind] / seen[kind], 3) for kind in sorted(seen) if seen[kind]}}
            with (args.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            losses, hits, seen = [], Counter(), Counter()
        if accelerator.is_main_process and (done or clock() - saved > 60 * args.save_every):
            saved = clock()
            facts = {"head": args.head, "sizes": sizes, "model": asdict(model.config)}
            save(args.out, model, ema, [optimizer], {**state, **facts})
        if done:
            return


def finish(args: argparse.Namespace, device: torch.device) -> None:
    """Measure the averaged weights in the form in which they ship; write them to --assets."""
    records, head = read_records(args.data), HEADS[args.head]
    facts = json.loads((args.out / "state.json").read_text())
    model = head.start(args, facts["sizes"])
    model.load_state_dict(averaged_weights(args.out))
    model.to(device).eval().requires_grad_(False)
    sources = {split: ViewBatches(args.cache, records, split, 0.0) for split in ("train", "val")}
    for source in sources.values():
        thin(source, args.eval_assets)
    folder = args.out / args.head
    scale, score = head.finish(model, sources["train"], folder)
    judge = load_judge("reward", device, args.judge)
    row: dict = {"training": {k: facts[k] for k in ("step", "assets", "seconds")}, **scale}
    found = args.out / "candidates.safetensors"
    for split, source in sources.items():
        if split == "train" and not args.eval_assets:
            thin(source, TRAIN_SHOWN)
        drawn = Candidates(found, split) if args.head == "mvreward" and found.is_file() else None
        row[split] = evaluate(args.head, score, judge, source, drawn, head.makers, rounds=1)
        if args.head == "hfdream":
            row[split]["quarter"] = by_quarter(load_hfdream(device, folder), source)
    print(json.dumps(row), flush=True)
    write_json(args.out / "evaluation.json", row)
    if args.assets:
        args.assets.mkdir(parents=True, exist_ok=True)
        for name in ("model.safetensors", "config.json"):
            (args.assets / name).write_bytes((folder / name).read_bytes())
        size = sum(p.numel() for p in model.parameters())
        ship(args.assets, head.about, model_card(args.head, row, size), row)


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    accelerator = Accelerator()
    if args.evaluate:
        finish(args, accelerator.device)
    else:
        train(args, accelerator)


if __name__ == "__main__":
    main()
