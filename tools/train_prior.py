"""Train the embedded multi-view prior from a view cache.

    python tools/build_views.py DATA CACHE
    python tools/train_prior.py DATA CACHE --out RUN [--minutes 60] [--batch 16] [--compile]
    accelerate launch tools/train_prior.py ...           # several processes, one per GPU
    python tools/train_prior.py DATA CACHE --out SMALL --size 32     # views pooled to 32 pixels, then
    python tools/train_prior.py DATA CACHE --out RUN --init SMALL    # a run at the cache's size from its weights
    python tools/train_prior.py DATA CACHE --out BOTH --init RUN --coarse-above 0.75    # high noise at half the size

Resumes from RUN when it exists. Flow matching with x-prediction: x_t = (1 - t) x0 + t eps, the network gives x0, the
loss is on the velocity, |v - v_hat|^2 = |x0 - x0_hat|^2 / t^2 (Li & He 2025, arXiv 2511.13720).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rl3d.data.asset_set import read_records
from rl3d.data.batches import ViewBatches, word_ids
from rl3d.data.captions import build_vocabulary
from rl3d.files import atomic_path, write_json
from rl3d.priors.multiview_model import MultiViewTransformer, doubled, halved, patch_rays

T_FLOOR = 0.1  # the velocity loss weighs 1 / max(t, T_FLOOR)^2
MATRIX = re.compile(r"blocks\.\d+\.(qkv|out|up|down)\.")  # what Muon moves
CLOCKS = {"wall": time.monotonic, "cpu": time.process_time}
DROP = 0.12  # share of empty prompts, for classifier-free guidance
COARSE_BATCH = 3  # times the batch where views have half the size: a quarter of the tokens


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60, help="stop after this much time in this call")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="what all minutes are; cpu: of this process, to compare runs on a machine that others use",
    )
    parser.add_argument("--steps", type=int, default=0, help="stop at this step, counted over all calls; 0: no limit")
    parser.add_argument("--batch", type=int, default=16, help="objects a step and process")
    parser.add_argument(
        "--lr", type=float, default=1e-3, help="of both optimizers; Muon's updates are scaled to AdamW's size"
    )
    parser.add_argument("--word-factor", type=float, default=3.0, help="rate of the word embeddings, times --lr")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--cooldown", type=float, default=0.0, help="share of this call's minutes with a falling rate")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--t-mean", type=float, default=2.0, help="mean of the logit-normal noise level")
    parser.add_argument("--t-std", type=float, default=1.3)
    parser.add_argument("--recolour", type=float, default=0.35)
    parser.add_argument("--model", type=json.loads, default={}, help='JSON, e.g. {"width": 320}')
    parser.add_argument("--size", type=int, help="pixels to train at, a divisor of the cache's size (the default)")
    parser.add_argument(
        "--coarse-above",
        type=float,
        help="noise level from which views of half the size are denoised, every other step and three times the batch",
    )
    parser.add_argument(
        "--init", type=Path, help="saved prior, such as assets/prior, or run, whose weights a new run starts from"
    )
    parser.add_argument("--compile", action="store_true", help="fuse operations (needs a C++ compiler on a CPU)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the default")
    parser.add_argument("--save-every", type=float, default=5, help="minutes")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Ema:
    """Exponential moving average of parameters, with a warm-up so that early weights are forgotten quickly."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay, self.shadow = decay, {k: v.detach().clone().float() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: float) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for k, v in model.state_dict().items():
            self.shadow[k].lerp_(v.float(), 1 - decay)


def make_optimizers(
    model: torch.nn.Module, name: str, lr: float, word_factor: float = 1.0
) -> list[torch.optim.Optimizer]:
    """Muon for the transformer's matrices (Jordan 2024), AdamW for everything else; or AdamW alone.

    `word_factor` scales the rate of the word embeddings: most words are drawn rarely and have to learn from few steps.
    """
    named = dict(model.named_parameters())
    matrices = [] if name == "adamw" else [n for n, p in named.items() if p.ndim == 2 and MATRIX.match(n)]
    rest = [n for n in named if n not in matrices and not n.startswith("words.")]
    decay = 0.01 if name == "adamw" else 0.0
    groups = [
        {"params": [named[n] for n in rest], "factor": 1.0},
        {"params": [p for n, p in named.items() if n.startswith("words.")], "factor": word_factor, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=decay)]
    if matrices:
        chosen = [named[n] for n in matrices]
        optimizers.append(torch.optim.Muon(chosen, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def saved_weights(folder: Path) -> tuple[dict[str, torch.Tensor], list[str], dict]:
    """Weights, words, and totals with the log, of a run (its averaged weights) or of a saved pipeline."""
    if (folder / "state.json").is_file():
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        tensors = load_file(folder / "checkpoint.safetensors")
        weights = {k[4:]: v for k, v in tensors.items() if k.startswith("ema.")}
        return weights, state["vocabulary"], {**state, "log": log}
    weights = MultiViewTransformer.from_pretrained(folder / "transformer").state_dict()
    words = json.loads((folder / "tokenizer" / "vocabulary.json").read_text(encoding="utf-8"))
    return weights, words, json.loads((folder / "training.json").read_text(encoding="utf-8"))


def initial_weights(
    saved: dict[str, torch.Tensor], old: list[str], index: dict[str, int], model: MultiViewTransformer
) -> dict[str, torch.Tensor]:
    """Saved weights for `model`, the words `old` moved to where `index` has them; new words stay random.

    Of another image size only the place embeddings have another shape: they are interpolated over the picture. All
    else carries over as it is: a patch's ray holds for the centre of any patch, and the stem, which now sees the world
    at another scale, has to learn the rest.
    """
    own = model.state_dict()
    words = own["words.weight"].clone()
    if saved["words.weight"].shape[1] == words.shape[1]:
        for row, word in enumerate(old):
            if word in index:
                words[index[word]] = saved["words.weight"][row]
    places = saved["places"].float()
    if len(places) != len(own["places"]):
        picture = places.T.unflatten(1, (math.isqrt(len(places)), -1))[None]
        grid = math.isqrt(len(own["places"]))
        places = F.interpolate(picture, (grid, grid), mode="bilinear", align_corners=False)[0].flatten(1).T
    found = {**saved, "words.weight": words, "places": places}
    for name in sorted(found.keys() | own.keys()):
        shapes = [tuple(x[name].shape) if name in x else None for x in (found, own)]
        if shapes[0] != shapes[1]:
            raise SystemExit(
                f"--init has another model: {name} is {shapes[0]} there and {shapes[1]} here; give --model the same"
                " width, depth, patch and stem"
            )
    return found


def prepared(
    source: ViewBatches,
    drawn: tuple[torch.Tensor, list[str], np.ndarray, np.ndarray],
    index: dict[str, int],
    size: int,
    grid: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images [B, V, 4, S, S] in [-1, 1], words [B, L], rays [B, V, grid^2, 6] of what `source` drew.

    Smaller images are means over blocks of the premultiplied ones, so that borders stay antialiased.
    """
    images, captions, params, _ = drawn
    if size != images.shape[-1]:
        images = F.avg_pool2d(images.flatten(0, 1), images.shape[-1] // size).unflatten(0, images.shape[:2])
    rays = patch_rays(source.cameras(params), grid).unflatten(0, (len(captions), -1))
    return 2 * images - 1, word_ids(captions, index), rays


def drop_prompts(words: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Words [B, L] with a share of DROP made the empty prompt."""
    words = words.clone()
    words[torch.from_numpy(rng.random(len(words)) < DROP)] = torch.tensor([1] + [0] * (words.shape[1] - 1))
    return words


def noise_levels(
    batch: int, mean: float, std: float, rng: np.random.Generator, low: float = 0.0, high: float = 1.0
) -> torch.Tensor:
    """[B] logit-normal levels in (`low`, `high`)."""
    bell = NormalDist(mean, std)
    a, b = (bell.cdf(math.log(t / (1 - t))) if 0 < t < 1 else t for t in (low, high))
    drawn = [bell.inv_cdf(u) for u in np.clip(rng.uniform(a, b, batch), 1e-9, 1 - 1e-9)]
    return torch.from_numpy(1 / (1 + np.exp(-np.array(drawn)))).float()


def flow_loss(model, images, words, rays, t, noise, autocast):  # type: ignore[no-untyped-def]
    """Velocity loss of clean images [B, V, 4, S, S] in [-1, 1] at levels t [B]."""
    level = t[:, None, None, None, None]
    with autocast():
        x0 = model((1 - level) * images + level * noise, t, words, rays)
    return (((x0.float() - images) / level.clamp_min(T_FLOOR)) ** 2).mean()


@torch.no_grad()
def validation(model, fixed, autocast, coarse_above) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """Mean squared x0 error at four noise levels on a fixed batch with fixed noise, asked as a prior asks."""
    images, words, rays, coarse_rays, noise = fixed
    out = {}
    for t in (0.3, 0.6, 0.9, 0.97):
        level = torch.full((len(images),), t, device=images.device)
        x_t = (1 - t) * images + t * noise
        with autocast():
            if coarse_above is not None and t >= coarse_above:
                x0 = doubled(model(*halved(x_t, level), words, coarse_rays))
            else:
                x0 = model(x_t, level, words, rays)
        out[f"x0_mse_{t}"] = round(float(((x0.float() - images) ** 2).mean()), 5)
    return out


def save(folder: Path, model, ema, optimizers, state: dict) -> None:  # type: ignore[no-untyped-def]
    folder.mkdir(parents=True, exist_ok=True)
    # Copies: of tied weights, which the file format would refuse.
    tensors = {f"model.{k}": v.clone().contiguous() for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v.contiguous() for k, v in ema.shadow.items()}
    names = {p: n for n, p in model.named_parameters()}
    for parameter, entry in (item for optimizer in optimizers for item in optimizer.state.items()):
        kept = {k: torch.as_tensor(v).contiguous() for k, v in entry.items() if v is not None}
        tensors |= {f"opt.{k}.{names[parameter]}": v for k, v in kept.items()}
    with atomic_path(folder / "checkpoint.safetensors") as temporary:
        save_file(tensors, temporary, {"step": str(state["step"])})
    write_json(folder / "state.json", state)


def restore(folder: Path, model, ema, optimizers) -> dict:  # type: ignore[no-untyped-def]
    tensors = load_file(folder / "checkpoint.safetensors")
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    ema.shadow = {k[4:]: v.to(ema.shadow[k[4:]].device) for k, v in tensors.items() if k.startswith("ema.")}
    entries: dict[str, dict] = {}
    for key in (k for k in tensors if k.startswith("opt.")):
        _, kind, name = key.split(".", 2)
        entries.setdefault(name, {})[kind] = tensors[key]
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if name in entries:  # a parameter that has had no gradient yet has no state
            owner[parameter].state[parameter] = {
                k: v if k == "step" else v.to(parameter.device) for k, v in entries[name].items()
            }
    facts = json.loads((folder / "state.json").read_text())
    # Two files are no one write: if the process died between them, the weights' own step is the true one.
    with safe_open(folder / "checkpoint.safetensors", "pt") as handle:
        facts["step"] = int(handle.metadata()["step"])
    return facts


def agreed(done: bool, accelerator: Accelerator) -> bool:
    """Whether to stop, by the first process's clock: else some would wait for those that stopped."""
    if accelerator.num_processes == 1:
        return done
    return bool(broadcast(torch.tensor([int(done)], device=accelerator.device))[0])


def set_rate(optimizers: list, args: argparse.Namespace, step: int, minutes: float) -> float:
    """--lr after warm-up and cool-down, times each group's own "factor", into all optimizers; without the factors."""
    left = max(0.0, 1 - minutes / args.minutes) / args.cooldown if args.cooldown else 1.0
    rate = args.lr * min(1.0, (step + 1) / args.warmup, max(left, 0.02))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = rate * group.get("factor", 1.0)
    return float(rate)


def main() -> None:
    args = arguments()
    accelerator = Accelerator()
    device = accelerator.device
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    records = read_records(args.data)
    vocabulary = build_vocabulary(records)
    index = {w: i for i, w in enumerate(vocabulary)}
    train = ViewBatches(args.cache, records, "train", args.recolour, device)
    held_out = ViewBatches(args.cache, records, "val", 0.0, "cpu")
    torch.manual_seed(args.seed)
    full = train.spec["size"]
    resume = (args.out / "state.json").is_file()
    saved_run = json.loads((args.out / "state.json").read_text()) if resume else {"model": args.model}
    if saved_run.get("vocabulary", vocabulary) != vocabulary:
        raise SystemExit(f"{args.out} was trained on other captions, its vocabulary differs; choose another --out")
    if args.steps and saved_run.get("step", 0) >= args.steps:
        print(f"{args.out} is at step {saved_run['step']} already")
        return
    config = saved_run["model"]
    config = {k: v for k, v in config.items() if not k.startswith("_")}
    size = args.size or (config["image_size"] if resume else full)
    if size < 1 or full % size or (resume and size != config["image_size"]):
        was = f"{args.out} was trained at {config['image_size']}" if resume else f"the cache has {full}"
        raise SystemExit(
            f"--size {size} does not fit: {was} pixels; leave it out, or choose a divisor and another --out"
        )
    config |= {"vocabulary": len(vocabulary), "image_size": size}
    if args.coarse_above is not None:
        if not 0 < args.coarse_above < 1:
            raise SystemExit(f"--coarse-above must lie between 0 and 1, got {args.coarse_above}")
        config["coarse_above"] = args.coarse_above
    model = MultiViewTransformer(**config).to(device).to(memory_format=torch.channels_last)
    state = {"step": 0, "objects": 0, "smaller": 0, "seconds": 0.0, "average_from": 0}  # smaller: objects pooled down
    log = args.out / "log.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    if args.init and not resume:
        weights, old, before = saved_weights(args.init)
        model.load_state_dict(initial_weights(weights, old, index, model))
        # Steps go on counting, which also keeps the random draws from repeating.
        state |= {k: before[k] for k in state if k in before}
        if len(weights["places"]) != len(model.places):
            state["average_from"] = state["step"]  # weights of another size have no place in this run's average
        log.write_text("".join(json.dumps(row) + "\n" for row in before["log"]), encoding="utf-8")
    optimizers = make_optimizers(model, args.optimizer, args.lr, args.word_factor)
    ema = Ema(model, args.ema)
    if resume:
        state |= {k: v for k, v in restore(args.out, model, ema, optimizers).items() if k in state}
    border = model.config.coarse_above
    if size % (model.config.patch * (1 if border is None else 2)):
        halves = "" if border is None else ", halved,"
        raise SystemExit(
            f"{size} pixels{halves} are no multiple of the patch of {model.config.patch}; choose another --size"
        )
    grid = size // model.config.patch
    runner = model
    if args.compile:  # by block: one graph serves all of them, and compiles in seconds
        for block in model.blocks:
            block.compile(dynamic=False)
    if accelerator.num_processes > 1:
        runner = torch.nn.parallel.DistributedDataParallel(runner)
    autocast = lambda: torch.autocast(device.type, torch.bfloat16)  # noqa: E731

    fixed = []
    for source in (train, held_out):
        drawn = source.draw(48, np.random.default_rng(123))
        images, words, rays = (x.to(device) for x in prepared(source, drawn, index, size, grid))
        coarse_rays = None
        if border is not None:
            coarse_rays = patch_rays(source.cameras(drawn[2]), grid // 2).unflatten(0, (len(images), -1)).to(device)
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(5)).to(device)
        fixed.append((images, words, rays, coarse_rays, noise))

    clock = CLOCKS[args.clock]
    start, saved, logged = clock(), clock(), clock()
    losses: list[float] = []
    first_objects, base_seconds = state["objects"], state["seconds"]
    while True:
        minutes = (clock() - start) / 60
        step = int(state["step"])
        done = minutes >= args.minutes or step + 1 == args.steps
        done = agreed(done, accelerator)
        rate = set_rate(optimizers, args, step, minutes)
        # The step decides the batch, so that a resumed run draws what an uninterrupted one would have.
        rng = np.random.default_rng([args.seed, step, accelerator.process_index])
        coarse = border is not None and step % 2 == 0
        batch, part = (COARSE_BATCH * args.batch, 2) if coarse else (args.batch, 1)
        images, words, rays = prepared(train, train.draw(batch, rng), index, size // part, grid // part)
        images, words, rays = (x.to(device) for x in (images, drop_prompts(words, rng), rays))
        low, high = (0.0, 1.0) if border is None else ((border, 1.0) if coarse else (0.0, border))
        t = noise_levels(batch, args.t_mean, args.t_std, rng, low, high).to(device)
        t = t / (2 - t) if coarse else t  # the level of the halved views, see `halved`
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        noise = torch.randn(images.shape, generator=generator, device=device)
        loss = flow_loss(runner, images, words, rays, t, noise, autocast)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not math.isfinite(float(norm)):
            raise SystemExit(f"the gradient is not finite at step {step}; lower --lr and resume")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        ema.update(model, step - int(state["average_from"]))
        losses.append(float(loss.detach()))
        state["step"] += 1
        state["objects"] += batch * accelerator.num_processes
        state["smaller"] += batch * accelerator.num_processes * (coarse or size < full)
        state["seconds"] = base_seconds + clock() - start
        if accelerator.is_main_process and (done or clock() - logged > 120):
            logged = clock()
            keep = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(ema.shadow)
            row = {
                "step": state["step"],
                "size": size,
                "objects": state["objects"],
                "minutes": round(state["seconds"] / 60, 2),
                "objects_per_second": round((state["objects"] - first_objects) / (clock() - start), 2),
                "loss": round(float(np.mean(losses)), 5),
                "rate": rate,
                **{f"train_{k}": v for k, v in validation(model, fixed[0], autocast, border).items()},
                **{f"val_{k}": v for k, v in validation(model, fixed[1], autocast, border).items()},
            }
            model.load_state_dict(keep)
            losses.clear()
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        if accelerator.is_main_process and (done or clock() - saved > 60 * args.save_every):
            saved = clock()
            facts = {**state, "model": dict(model.config), "vocabulary": vocabulary}
            save(args.out, model, ema, optimizers, facts)
        if done:
            break


if __name__ == "__main__":
    main()
