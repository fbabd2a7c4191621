"""Train Reward3D-mini from a view cache, or measure a trained one.

    python tools/build_views.py DATA CACHE --look judge
    python tools/build_views.py DATA TORN --look judge --torn                     # optional
    python tools/train_reward3d.py DATA CACHE --out RUN --make-candidates 300     # once; optional
    python tools/train_reward3d.py DATA CACHE --out RUN --minutes 60 [--torn TORN]
    python tools/train_reward3d.py DATA CACHE --out RUN --evaluate [--assets assets/reward3d] [--torn TORN]
    accelerate launch tools/train_reward3d.py ...        # several processes, one per GPU

Resumes from RUN when it exists. The ranking loss of DreamReward (Ye et al. 2024, arXiv 2403.14613),

    L = -E log sigma(r(y, X_w) - r(y, X_l)),

over all pairs of a prompt's candidates whose order is known (see tools/reward3d_pairs.py); it starts from the reward
judge, whose weights move at a fraction of the rate. RUN/candidates.safetensors, where there is one, gives the prior's
samples and lifts a share of the steps.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from reward3d_candidates import make_candidates
from reward3d_card import evaluate, model_card, standardise
from reward3d_pairs import CANDIDATE_FORMS, MAKERS, Candidates, Maker, draw_real, known_order, torn_from, visible
from ship_model import averaged_weights, ship
from torch import Tensor
from torch.nn import functional as F
from train_judge import AUGMENT, augment
from train_prior import Ema, agreed, restore, save, set_rate

from rl3d.data.asset_set import read_records
from rl3d.data.batches import ViewBatches, word_ids
from rl3d.files import write_json
from rl3d.priors.embedded import load_embedded
from rl3d.rewards.judges import load_judge
from rl3d.rewards.reward3d import Reward3D, Reward3DConfig, Reward3DModel, load_reward3d, save_reward3d

BETWEEN_VIEWS = ("janus", "seen_again", "mixed_views")
# The same for all candidates of a group; blur and noise are damage here and stay weak, flips and views are done here.
SPEC = replace(AUGMENT["reward"], flip=False, views=0.0, blur=0.15, pixelate=0.1, cutout=0.15, noise=0.03)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--torn", type=Path, help="cache of the same views of meshes with pieces missing")
    parser.add_argument("--minutes", type=float, default=60, help="stop after this much wall-clock in this call")
    parser.add_argument("--steps", type=int, default=0, help="stop at this step, counted over all calls; 0: no limit")
    parser.add_argument("--batch", type=int, default=16, help="prompts a step and process; each has 2 to 5 candidates")
    parser.add_argument("--kinds", type=int, default=2, help="kinds of damage a step, one of them between views")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--judge-factor", type=float, default=0.1, help="rate of the judge's weights, times --lr")
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--cooldown", type=float, default=0.0, help="share of this call's minutes with a falling rate")
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--recolour", type=float, default=0.5)
    parser.add_argument("--judge", type=Path, help="folder of the reward judge to start from; default: the embedded")
    parser.add_argument("--model", type=json.loads, default={}, help='JSON, e.g. {"width": 96}')
    parser.add_argument("--prior-share", type=float, default=0.25, help="of steps on the prior's candidates")
    parser.add_argument("--make-candidates", type=int, metavar="N", help="draw the prior's for N captions, then stop")
    parser.add_argument("--prior", type=Path, help="for --make-candidates; default: the embedded one")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the default")
    parser.add_argument("--save-every", type=float, default=5, help="minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true", help="measure RUN's averaged weights, do not train")
    parser.add_argument("--eval-assets", type=int, default=0, help="assets a split with --evaluate; 0: all of them")
    parser.add_argument("--assets", type=Path, help="with --evaluate: also write the shipped files there")
    return parser.parse_args()


def new_model(judge_folder: Path | None, sizes: dict) -> tuple[Reward3DModel, dict[str, int]]:
    """The network around the reward judge's weights, and the judge's words."""
    judge = load_judge("reward", "cpu", judge_folder)
    model = Reward3DModel(Reward3DConfig(judge.model.config, **sizes))
    model.judge.load_state_dict(judge.model.state_dict())
    # What no score depends on; a parameter without a gradient would also stop several processes.
    model.judge.colour_out.requires_grad_(False)
    model.judge.log_scale.requires_grad_(False)
    return model, judge.words


def optimizer_for(model: Reward3DModel, lr: float, judge_factor: float) -> torch.optim.Optimizer:
    """AdamW; matrices decay, the judge's weights move slower (`factor`)."""
    groups = []
    for own in (True, False):
        for matrices in (True, False):
            found = [
                p
                for n, p in model.named_parameters()
                if p.requires_grad and n.startswith("judge.") != own and (p.ndim >= 2) == matrices
            ]
            factor, decay = (1.0 if own else judge_factor), (0.05 if matrices else 0.0)
            groups.append({"params": found, "factor": factor, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def makers(args: argparse.Namespace, split: str) -> dict[str, Maker]:
    """The kinds of damage, with what --torn adds."""
    if args.torn is None:
        return MAKERS
    return {**MAKERS, "torn": torn_from(ViewBatches(args.torn, read_records(args.data), split, 0.0))}


def draw_group(
    source: ViewBatches,
    kinds_of: dict[str, Maker],
    candidates: Candidates | None,
    args: argparse.Namespace,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, list[str], dict[str, int]]:
    """Images [B, K, V, 4, H, W] of B prompts with K candidates, azimuths [B, V], captions, and forms by kind."""
    if candidates and rng.random() < args.prior_share:
        rows = rng.choice(len(candidates), min(args.batch, len(candidates)), replace=False)
        return *candidates.group(rows), CANDIDATE_FORMS
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    real = draw_real(source, rng.choice(source.keep, args.batch, p=source.weight), rng, args.recolour)
    # What shows only between views is the slowest to be learnt: one such kind is always there.
    first = str(rng.choice([kind for kind in kinds_of if kind in BETWEEN_VIEWS] or list(kinds_of)))
    rest = [kind for kind in kinds_of if kind not in (first, *BETWEEN_VIEWS)]
    kinds = [first, *rng.choice(rest, min(args.kinds - 1, len(rest)), replace=False)]
    forms = {str(kind): kinds_of[kind](source, real, rng, generator) for kind in kinds}
    images = torch.stack([real.images, *(form for made in forms.values() for form in made)], 1)
    return images, real.azimuths, real.captions, {kind: len(made) for kind, made in forms.items()}


def seen_alike(images: Tensor, angles: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The same random changes for all candidates of a prompt: [B, K, V', 4, H, W], angles [B, V'], V' = 2 ... V."""
    views = images.shape[2]
    images = augment(images.flatten(1, 2), SPEC, rng).unflatten(1, images.shape[1:3])
    if rng.random() < 0.5:  # the mirror's world turns the other way
        images, angles = images.flip(-1), -angles
    if rng.random() < AUGMENT["reward"].views:
        keep = np.sort(rng.permutation(views)[: rng.integers(2, views)])
        images, angles = images[:, :, keep], angles[:, keep]
    return images, angles


def ranking_loss(scores: Tensor, pairs: list[tuple[int, int]], counts: Tensor) -> tuple[Tensor, Tensor]:
    """-log sigma(r_w - r_l), mean over the pairs that count, and each pair's hits [P, B] bool.

    Args:
        scores: [B, K]. pairs: (better, worse). counts: [P, B] bool.
    """
    better, worse = (scores[:, [pair[i] for pair in pairs]].T for i in (0, 1))
    loss = (F.softplus(worse - better) * counts).sum() / counts.sum().clamp_min(1)
    return loss, better > worse


def by_kind(pairs: list[tuple[int, int]], forms: dict[str, int]) -> dict[str, list[int]]:
    """The rows of `pairs` that set a kind's form against the real one."""
    names = [None, *(kind for kind, count in forms.items() for _ in range(count))]
    return {kind: [i for i, (a, b) in enumerate(pairs) if a == 0 and names[b] == kind] for kind in forms}


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    device = accelerator.device
    records = read_records(args.data)
    source = ViewBatches(args.cache, records, "train", args.recolour)
    found = args.out / "candidates.safetensors"
    candidates = Candidates(found, "train") if found.is_file() else None
    kinds_of = makers(args, "train")
    torch.manual_seed(args.seed)
    resume = (args.out / "state.json").is_file()
    sizes = json.loads((args.out / "state.json").read_text())["sizes"] if resume else args.model
    model, words = new_model(args.judge, sizes)
    model.to(device)
    optimizer, ema = optimizer_for(model, args.lr, args.judge_factor), Ema(model, args.ema)
    state = {"step": 0, "prompts": 0, "seconds": 0.0}
    if resume:
        state |= {k: v for k, v in restore(args.out, model, ema, [optimizer]).items() if k in state}
    if args.steps and state["step"] >= args.steps:
        print(f"{args.out} is at step {state['step']} already")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    runner = torch.nn.parallel.DistributedDataParallel(model) if accelerator.num_processes > 1 else model
    start = saved = logged = time.monotonic()
    before, losses, hits, seen = state["seconds"], [], Counter(), Counter()
    while True:
        step, minutes = int(state["step"]), (time.monotonic() - start) / 60
        done = minutes >= args.minutes or step + 1 == args.steps
        done = agreed(done, accelerator)
        set_rate([optimizer], args, step, minutes)
        # The step decides the batch, so that a resumed run draws what an uninterrupted one would have.
        rng = np.random.default_rng([args.seed, step, accelerator.process_index])
        images, angles, captions, forms = draw_group(source, kinds_of, candidates, args, rng)
        pairs = known_order(list(forms.values()))
        counts = torch.stack([visible(images[:, a], images[:, b]) for a, b in pairs])
        images, angles = seen_alike(images, angles, rng)
        each = images.shape[1]
        ids = word_ids(captions, words).repeat_interleave(each, 0)
        parts = (images.flatten(0, 1), ids, angles.repeat_interleave(each, 0))
        with torch.autocast(device.type, torch.bfloat16):
            scores = runner(*(part.to(device) for part in parts)).view(-1, each)
        loss, right = ranking_loss(scores, pairs, counts.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not math.isfinite(float(norm)):
            raise SystemExit(f"the gradient is not finite at step {step}; lower --lr and resume")
        optimizer.step()
        ema.update(model, step)
        losses.append(float(loss.detach()))
        for kind, rows in by_kind(pairs, forms).items():
            hits[kind] += int((right.cpu() & counts)[rows].sum())
            seen[kind] += int(counts[rows].sum())
        total = len(captions) * accelerator.num_processes
        seconds = before + time.monotonic() - start
        state = {"step": step + 1, "prompts": state["prompts"] + total, "seconds": seconds}
        if accelerator.is_main_process and (done or time.monotonic() - logged > 60):
            logged = time.monotonic()
            accuracy = {kind: round(hits[kind] / seen[kind], 3) for kind in sorted(seen) if seen[kind]}
            row = {"step": step + 1, "minutes": round(seconds / 60, 2), "loss": round(float(np.mean(losses)), 5)}
            row |= {"accuracy": round(sum(hits.values()) / max(1, sum(seen.values())), 4), "real_above": accuracy}
            with (args.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            losses, hits, seen = [], Counter(), Counter()
        if accelerator.is_main_process and (done or time.monotonic() - saved > 60 * args.save_every):
            saved = time.monotonic()
            save(args.out, model, ema, [optimizer], {**state, "sizes": sizes, "model": asdict(model.config)})
        if done:
            return


def thin(source: ViewBatches, count: int) -> None:
    """Leave at most `count` assets, evenly picked and equally likely; 0 leaves all of them."""
    few = min(count or len(source.keep), len(source.keep))
    source.keep = source.keep[np.linspace(0, len(source.keep) - 1, few).astype(int)]
    source.weight = np.full(few, 1 / few)


def finish(args: argparse.Namespace, device: torch.device) -> None:
    """Measure the averaged weights in the form in which they ship; write them to --assets."""
    records = read_records(args.data)
    facts = json.loads((args.out / "state.json").read_text())
    model, words = new_model(args.judge, facts["sizes"])
    model.load_state_dict(averaged_weights(args.out))
    rough = Reward3D(model.to(device).eval().requires_grad_(False), words, 0.0, 1.0)
    sources = {split: ViewBatches(args.cache, records, split, 0.0) for split in ("train", "val")}
    for source in sources.values():
        thin(source, args.eval_assets)
    mean, std = standardise(rough, sources["train"])
    save_reward3d(replace(rough, mean=mean, std=std), args.out / "reward3d")
    reward = load_reward3d(device, args.out / "reward3d")
    judge = load_judge("reward", device, args.judge)
    row: dict = {"training": {k: facts[k] for k in ("step", "prompts", "seconds")}, "mean": mean, "std": std}
    found = args.out / "candidates.safetensors"
    for split, source in sources.items():
        if split == "train" and not args.eval_assets:
            thin(source, 200)
        candidates = Candidates(found, split) if found.is_file() else None
        row[split] = evaluate(reward, judge, source, makers(args, split), candidates)
    print(json.dumps(row), flush=True)
    write_json(args.out / "evaluation.json", row)
    if args.assets:
        save_reward3d(reward, args.assets)
        command = "python tools/train_reward3d.py DATA CACHE --out RUN --torn TORN --minutes MINUTES"
        size = sum(p.numel() for p in reward.model.parameters())
        what = "Reward3D-mini: ranks views of assets against a prompt and each other"
        ship(args.assets, what, model_card(row, command, size), row)


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.make_candidates:
        records = read_records(args.data)
        sources = {split: ViewBatches(args.cache, records, split, args.recolour) for split in ("train", "val")}
        path = args.out / "candidates.safetensors"
        make_candidates(sources, load_embedded(args.prior), args.make_candidates, path)
        return
    accelerator = Accelerator()
    if args.evaluate:
        finish(args, accelerator.device)
    else:
        train(args, accelerator)


if __name__ == "__main__":
    main()
