"""Train the embedded feed-forward reconstructor from a view cache.

    python tools/build_views.py DATA CACHE
    python tools/train_reconstructor.py DATA CACHE --out RUN [--minutes 60] [--batch 8]
    accelerate launch tools/train_reconstructor.py ...   # several processes, one per GPU
    python tools/train_reconstructor.py DATA CACHE --out RUN --save FOLDER     # the averaged weights, no training

Resumes from RUN when it exists. An asset's scene is made of 2 to 4 views of one set of the cache and shown from cameras
of that set and of another one; the loss is on colour and alpha there. A share of the assets is given with views that do
not fit each other (shifted, tinted, noised), while the targets stay as they are: the network has to find the one object
that they are views of, not to explain each of them.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from ship_model import averaged_weights
from torch import Tensor
from train_prior import CLOCKS, Ema, agreed, restore, save, set_rate

from rl3d.cameras import Cameras
from rl3d.data.asset_set import read_records
from rl3d.data.batches import ViewBatches
from rl3d.reconstruct.feedforward import FeedForwardConfig, ReconstructorModel, save_reconstructor
from rl3d.reconstruct.lift import NoSharedVolume, image_loss
from rl3d.reconstruct.views import look
from rl3d.rewards import damage

VIEWS = (2, 3, 4, 4)  # how many of a set are given, drawn once a step
SPOILT = 0.3  # share of the assets whose given views disagree
SHIFT, TINT, NOISE = 2, 0.2, 0.08  # pixels each way, of a channel's gain, standard deviation of alpha and colour
ALPHA_WEIGHT = 1.0  # of the alpha error beside the colour error
SHOWN = 2  # cameras of the given set, and as many of another, from which a scene is shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60, help="stop after this much time in this call")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what all minutes are; cpu: of this process")
    parser.add_argument("--steps", type=int, default=0, help="stop at this step, counted over all calls; 0: no limit")
    parser.add_argument("--batch", type=int, default=8, help="assets a step and process")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--cooldown", type=float, default=0.0, help="share of this call's minutes with a falling rate")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--recolour", type=float, default=0.5)
    parser.add_argument("--model", type=json.loads, default={}, help='JSON, e.g. {"width": 256}')
    parser.add_argument("--eval-assets", type=int, default=32, help="of each split, fixed, for the log")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the default")
    parser.add_argument("--log-every", type=float, default=2, help="minutes")
    parser.add_argument("--save-every", type=float, default=5, help="minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="write RUN's averaged weights there, do not train")
    return parser.parse_args()


def draw(source: ViewBatches, batch: int, rng: np.random.Generator) -> tuple[tuple[Tensor, Cameras], ...]:
    """Two sets of views of the same assets in the same colours: (images [B, V, 4, H, W], B * V cameras) of each."""
    chosen = rng.choice(source.keep, batch, p=source.weight)
    sets = np.stack([rng.permutation(source.spec["sets"])[:2] for _ in range(batch)], 1)
    paint = int(rng.integers(2**62))
    out = []
    for which in sets:
        images, _, params, _ = source.make(chosen, which, np.random.default_rng(paint))
        out.append((images, source.cameras(params)))
    return tuple(out)


def spoil(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Views [B, V, 4, H, W] of which a share of SPOILT assets has every view shifted, tinted and noised by itself."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    b, v = images.shape[:2]
    gain = 1 + TINT * (2 * torch.rand((b, v, 3, 1, 1), generator=generator) - 1).to(images)
    spoilt = torch.cat([torch.minimum(images[:, :, :3] * gain, images[:, :, 3:]), images[:, :, 3:]], 2)
    moves = rng.integers(-SHIFT, SHIFT + 1, (b, v, 2))
    for i, j in np.ndindex(b, v):
        spoilt[i, j] = spoilt[i, j].roll(tuple(moves[i, j]), (-2, -1))
    spoilt = damage.noise(spoilt, NOISE * torch.rand((b, 1, 1, 1, 1), generator=generator).to(images), generator)
    chosen = torch.from_numpy(rng.random(b) < SPOILT).to(images.device)
    return torch.where(chosen[:, None, None, None, None], spoilt, images)


def rows_of(cameras: Cameras, batch: int, keep: np.ndarray) -> Cameras:
    """Of the cameras [B * V] of B assets those with the indices `keep` [K]: [B * K]."""
    number = torch.arange(len(cameras)).reshape(batch, -1)[:, torch.from_numpy(keep)]
    return cameras[number.flatten()]


def side_by_side(first: Cameras, second: Cameras, batch: int) -> Cameras:
    """Cameras [B * K] and [B * L] of B assets as [B * (K + L)]."""
    number = torch.arange(len(first) + len(second)).split([len(first), len(second)])
    return Cameras.cat([first, second])[torch.cat([n.reshape(batch, -1) for n in number], 1).flatten()]


def example(
    source: ViewBatches, batch: int, rng: np.random.Generator, spoilt: bool = True
) -> tuple[Tensor, Cameras, Tensor, Cameras]:
    """Given views and their cameras, and targets and theirs: SHOWN of the given set, then SHOWN of another.

    Not `spoilt`: all views of a set as they are.
    """
    (images, cameras), (others, where) = draw(source, batch, rng)
    v = images.shape[1]
    keep = np.sort(rng.permutation(v)[: min(v, int(rng.choice(VIEWS)))]) if spoilt else np.arange(v)
    shown, elsewhere = (rng.permutation(v)[:SHOWN] for _ in range(2))
    targets = torch.cat([images[:, shown], others[:, elsewhere]], 1)
    at = side_by_side(rows_of(cameras, batch, shown), rows_of(where, batch, elsewhere), batch)
    given = spoil(images[:, keep], rng) if spoilt else images
    return given, rows_of(cameras, batch, keep), targets, at


def shown_by(model, given: Tensor, cameras: Cameras, at: Cameras, autocast) -> Tensor:  # type: ignore[no-untyped-def]
    """What the scenes of B assets show at their B * T cameras: [B, T, 4, H, W]."""
    with autocast():
        scenes = model(given, cameras)
    return look(scenes, at)


@torch.no_grad()
def validation(model, examples, autocast) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """PSNR in dB of premultiplied colour and IoU of silhouettes, means over cameras of the given set and of another."""
    psnr, iou = [], []
    for given, cameras, targets, at in examples:
        shown = shown_by(model, given, cameras, at, autocast)
        psnr.append(-10 * (shown - targets)[:, :, :3].square().mean((2, 3, 4)).clamp_min(1e-8).log10())
        a, b = shown[:, :, 3] > 0.5, targets[:, :, 3] > 0.5
        iou.append((a & b).sum((-1, -2)) / (a | b).sum((-1, -2)).clamp_min(1))
    out = {}
    for what, values in (("psnr", torch.cat(psnr)), ("iou", torch.cat(iou))):
        out[f"{what}_given"] = round(float(values[:, :SHOWN].mean()), 4)
        out[f"{what}_novel"] = round(float(values[:, SHOWN:].mean()), 4)
    return out


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    device = accelerator.device
    records = read_records(args.data)
    sources = [ViewBatches(args.cache, records, "train", args.recolour), ViewBatches(args.cache, records, "val", 0.0)]
    torch.manual_seed(args.seed)
    resume = (args.out / "state.json").is_file()
    sizes = json.loads((args.out / "state.json").read_text())["model"] if resume else args.model
    model = ReconstructorModel(FeedForwardConfig(**sizes)).to(device)
    matrices = [[p for p in model.parameters() if (p.ndim >= 2) == many] for many in (True, False)]
    groups = [{"params": p, "weight_decay": decay} for p, decay in zip(matrices, (0.02, 0.0))]
    optimizer, ema = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98)), Ema(model, args.ema)
    state = {"step": 0, "assets": 0, "seconds": 0.0}
    if resume:
        state |= {k: v for k, v in restore(args.out, model, ema, [optimizer]).items() if k in state}
    if args.steps and state["step"] >= args.steps:
        print(f"{args.out} is at step {state['step']} already")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    runner = torch.nn.parallel.DistributedDataParallel(model) if accelerator.num_processes > 1 else model
    native = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    autocast = lambda: torch.autocast(device.type, torch.bfloat16, enabled=native)  # noqa: E731
    on = lambda parts: tuple(part.to(device) for part in parts)  # noqa: E731
    parts = range(math.ceil(args.eval_assets / args.batch))
    fixed = [[on(example(s, args.batch, np.random.default_rng([123, i]), False)) for i in parts] for s in sources]

    clock = CLOCKS[args.clock]
    start = saved = logged = clock()
    before, losses, first = state["seconds"], [], state["assets"]
    while True:
        step, minutes = int(state["step"]), (clock() - start) / 60
        done = minutes >= args.minutes or step + 1 == args.steps
        done = agreed(done, accelerator)
        rate = set_rate([optimizer], args, step, minutes)
        # The step decides the batch, so that a resumed run draws what an uninterrupted one would have.
        rng = np.random.default_rng([args.seed, step, accelerator.process_index])
        while True:
            given, cameras, targets, at = on(example(sources[0], args.batch, rng))
            try:
                shown = shown_by(runner, given, cameras, at, autocast)
                break
            except NoSharedVolume:  # spoilt views of something thin
                continue
        flat = shown.flatten(0, 1)
        loss = image_loss(flat[:, :3], flat[:, 3:], targets.flatten(0, 1), ALPHA_WEIGHT)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not math.isfinite(float(norm)):
            raise SystemExit(f"the gradient is not finite at step {step}; lower --lr and resume")
        optimizer.step()
        ema.update(model, step)
        losses.append(float(loss.detach()))
        assets = state["assets"] + args.batch * accelerator.num_processes
        state = {"step": step + 1, "assets": assets, "seconds": before + clock() - start}
        if accelerator.is_main_process and (done or clock() - logged > 60 * args.log_every):
            speed = (assets - first) / (clock() - start)
            keep = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(ema.shadow)
            row = {"step": step + 1, "assets": assets, "minutes": round(state["seconds"] / 60, 2)}
            row |= {"assets_per_second": round(speed, 2), "loss": round(float(np.mean(losses)), 5), "rate": rate}
            for split, examples in zip(("train", "val"), fixed):
                row |= {f"{split}_{k}": v for k, v in validation(model, examples, autocast).items()}
            model.load_state_dict(keep)
            with (args.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            losses, logged = [], clock()
        if accelerator.is_main_process and (done or clock() - saved > 60 * args.save_every):
            saved = clock()
            save(args.out, model, ema, [optimizer], {**state, "model": asdict(model.config)})
        if done:
            return


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.save is None:
        train(args, Accelerator())
        return
    try:
        sizes = json.loads((args.out / "state.json").read_text())["model"]
    except OSError as error:
        raise SystemExit(f"{args.out} is no training run ({error}); train first") from error
    model = ReconstructorModel(FeedForwardConfig(**sizes))
    model.load_state_dict(averaged_weights(args.out))
    save_reconstructor(model, args.save)


if __name__ == "__main__":
    main()
