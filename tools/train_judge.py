"""Train an embedded judge from a view cache, or measure a trained one.

    python tools/build_views.py DATA CACHE --look judge            # --look gold for the gold judge
    python tools/train_judge.py DATA CACHE --which reward --out RUN --minutes 20
    python tools/train_judge.py DATA CACHE --which reward --out RUN --evaluate [--assets assets/judge_reward]

Resumes from RUN when it exists. InfoNCE over the batch (Oord 2018; Radford 2021) with two hard negative captions an
object: the same words in another colour, and another noun in the same colour. Pairs that are true by chance (shared
noun, colours that do not contradict) are left out of the sum. Helpers: cross-entropy of the main colour, of each view's
side (gold), and a ranking loss that puts a damaged copy of the views below the whole one. After --assets of the gold
judge, tools/measure_janus.py sets its Janus thresholds anew; until then it has none.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from judge_card import model_card
from measure_judge import Batch, draw, evaluate, fixed_distractors
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from rl3d.assets import record_model
from rl3d.data.asset_set import read_records
from rl3d.data.batches import ViewBatches, word_ids
from rl3d.data.captions import AssetRecord, augment_caption, build_vocabulary
from rl3d.data.colours import WORDS as COLOURS
from rl3d.files import atomic_path, atomic_write_text, write_json
from rl3d.rewards import damage
from rl3d.rewards.judges import GoldJudge, Judge, JudgeConfig, JudgeModel, build_model, load_judge, save_judge

TRAINED_DAMAGE = ("janus", "floaters", "holes", "blank_view", "mixed_views")


@dataclass(frozen=True)
class Augment:
    """What a judge must not mind. Shares are probabilities per batch, amounts upper bounds."""

    gain: float  # of colour, per object and channel
    blur: float
    noise: float
    zoom: tuple[float, float]
    shift: float  # of the image's half width
    cutout: float
    pixelate: float
    flip: bool
    background: float  # share of objects over any colour instead of a grey near the middle (gold)
    views: float  # share of batches with 2 or 3 views


AUGMENT = {
    "reward": Augment(0.12, 0.3, 0.05, (0.8, 1.2), 0.08, 0.25, 0.15, True, 0.0, 0.25),
    "gold": Augment(0.14, 0.3, 0.07, (0.85, 1.25), 0.1, 0.3, 0.15, False, 0.15, 0.25),
}


def hard_negatives(
    batch: Batch, source: ViewBatches, rng: np.random.Generator
) -> tuple[list[str], list[AssetRecord], list[str]]:
    """For every object a caption with another colour, then for every object one with another noun, same colour.

    Returns:
        captions, records and colours [2B].
    """
    texts, records, colours = [], [], []
    for record, colour in zip(batch.records, batch.colours):
        other = COLOURS[(COLOURS.index(colour) + 1 + rng.integers(len(COLOURS) - 1)) % len(COLOURS)]
        texts.append(augment_caption(record, other, rng, True))
        records.append(record)
        colours.append(other)
    for record, colour in zip(batch.records, batch.colours):
        while True:
            other_record = source.records[rng.choice(source.keep, p=source.weight)]
            if not set(other_record.noun_words) & set(record.noun_words):
                break
        texts.append(augment_caption(other_record, colour, rng, True))
        records.append(other_record)
        colours.append(colour)
    return texts, records, colours


def true_by_chance(batch: Batch, texts: list[str], records: list[AssetRecord], colours: list[str]) -> Tensor:
    """[B, N] bool: caption j may describe object i too (a shared noun word, and no colour that contradicts)."""
    nouns = [set(r.noun_words) for r in records]
    names = [c if c in t.split() else None for c, t in zip(colours, texts)]
    rows = [
        [bool(set(own.noun_words) & noun) and said in (None, colour) for noun, said in zip(nouns, names)]
        for own, colour in zip(batch.records, batch.colours)
    ]
    return torch.tensor(rows)


def augment(images: Tensor, spec: Augment, rng: np.random.Generator) -> Tensor:
    """Random changes that keep what the object is; see Augment. One strength a batch, random values an object."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    batch, views, _, size, _ = images.shape
    uniform = lambda *shape: 2 * torch.rand(shape, generator=generator) - 1  # noqa: E731
    if rng.random() < 0.7:
        zoom = torch.empty(batch, 1).uniform_(*spec.zoom, generator=generator).expand(batch, views).flatten()
        theta = torch.zeros(batch * views, 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / zoom
        theta[:, :, 2] = spec.shift * uniform(batch * views, 2)
        if spec.flip and rng.random() < 0.5:
            theta[:, 0] *= -1
        grid = F.affine_grid(theta, [batch * views, 4, size, size], align_corners=False)
        images = F.grid_sample(images.flatten(0, 1), grid, align_corners=False).unflatten(0, (batch, views))
    if rng.random() < spec.blur:
        images = damage.blur(images, float(rng.uniform(0.4, 1.4)))
    if rng.random() < spec.pixelate:
        small = int(rng.integers(20, 44))
        flat = F.interpolate(images.flatten(0, 1), small, mode="bilinear", antialias=True)
        images = F.interpolate(flat, size, mode="bilinear").unflatten(0, (batch, views))
    if rng.random() < spec.cutout:
        images = damage.holes(images, generator, count=1, radius=(3.0, 8.0))
    gain = 1 + spec.gain * (uniform(batch, 1, 3, 1, 1) + uniform(batch, 1, 1, 1, 1))
    alpha = images[:, :, 3:]
    images = torch.cat([torch.minimum((images[:, :, :3] * gain).clamp_min(0), alpha), alpha], 2)
    if rng.random() < 0.4:
        images = damage.noise(images, spec.noise * torch.rand((batch, 1, 1, 1, 1), generator=generator), generator)
    if rng.random() < spec.views:
        images = images[:, torch.randperm(views, generator=generator)[: int(rng.integers(2, views))].sort().values]
    return images


def damaged(images: Tensor, others: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """The training-time forms of damage."""
    if kind == "janus":
        return damage.janus(images, torch.randint(images.shape[1], (len(images),), generator=generator))
    if kind == "floaters":
        return damage.floaters(images, generator, count=4)
    if kind == "holes":
        return damage.holes(images, generator, count=3)
    if kind == "blank_view":
        return damage.blank_view(images, generator)
    return damage.mixed_views(images, others)


def encode(model: JudgeModel, images: Tensor, spec: Augment, rng: np.random.Generator):  # type: ignore[no-untyped-def]
    """The model's code of augmented views; the gold judge sees them over a random background."""
    autocast = torch.autocast(images.device.type, torch.bfloat16)
    if not isinstance(model, GoldJudge):
        with autocast:
            return model.encode_images(images)
    level = torch.from_numpy(rng.uniform(0.4, 0.6, (len(images), 1, 1, 1, 1))).float().expand(-1, -1, 3, -1, -1)
    other = torch.from_numpy(rng.uniform(0, 1, (len(images), 1, 3, 1, 1))).float()
    level = torch.where(torch.from_numpy(rng.random((len(images), 1, 1, 1, 1)) < spec.background), other, level)
    with autocast:
        return model.encode_over(images, level.to(images))


def loss_of(model, batch: Batch, source: ViewBatches, index: dict[str, int], spec: Augment, rng, device):  # type: ignore[no-untyped-def]
    """All losses of one step, by name."""
    wrong, records, colours = hard_negatives(batch, source, rng)
    texts = batch.captions + wrong
    chance = true_by_chance(batch, texts, batch.records + records, batch.colours + colours)
    chance[torch.arange(len(batch.captions)), torch.arange(len(batch.captions))] = False
    images = augment(batch.images, spec, rng).to(device)
    complete = images.shape[1] == batch.images.shape[1]
    some = len(images) // 4
    code = encode(model, images, spec, rng)
    words = model.encode_texts(word_ids(texts, index).to(device))
    scale = model.log_scale.exp().clamp(max=60)
    logits = (scale * code.embedding @ words.T).masked_fill(chance.to(device), -1e4)
    target = torch.arange(len(images), device=device)
    losses = {
        "image_text": F.cross_entropy(logits, target),
        "text_image": F.cross_entropy(logits[:, : len(images)].T, target),
        "colour": 0.3
        * F.cross_entropy(code.colour_logits, torch.tensor([COLOURS.index(c) for c in batch.colours], device=device)),
    }
    if code.view_logits is not None and complete:
        losses["side"] = 0.2 * F.cross_entropy(code.view_logits.flatten(0, 1), batch.sides.flatten().to(device))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    kind = TRAINED_DAMAGE[rng.integers(len(TRAINED_DAMAGE))]
    bad = damaged(images[:some], images[some : 2 * some], kind, generator)
    worse = (encode(model, bad, spec, rng).embedding * words[:some]).sum(-1)
    better = (code.embedding[:some] * words[:some]).sum(-1)
    losses["damage"] = 0.3 * F.softplus(10 * (worse - better)).mean()
    return losses


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--which", choices=("reward", "gold"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20, help="stop after this much wall-clock in this call")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--cooldown", type=float, default=0.6, help="share of this call's minutes with a falling rate")
    parser.add_argument("--recolour", type=float, default=0.5)
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--init", type=Path, help="saved judge, such as assets/judge_gold, to start a new run from")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save-every", type=float, default=3, help="minutes")
    parser.add_argument("--seed", type=int, help="default: 0 for the reward judge, 1000 for the gold judge")
    parser.add_argument("--evaluate", action="store_true", help="measure RUN's averaged weights, do not train")
    parser.add_argument("--assets", type=Path, help="with --evaluate: also write the shipped files there")
    return parser.parse_args()


def save(folder: Path, model, ema: dict, optimizer, state: dict) -> None:  # type: ignore[no-untyped-def]
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"ema.{k}": v for k, v in ema.items()}
    for j, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"opt.{j}.{k}": torch.as_tensor(v) for k, v in entry.items()}
    with atomic_path(folder / "checkpoint.safetensors") as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
    write_json(folder / "state.json", {**state, "model": asdict(model.config)})


def restore(folder: Path, model, ema: dict, optimizer) -> dict:  # type: ignore[no-untyped-def]
    tensors = load_file(folder / "checkpoint.safetensors")
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    ema.update({k: tensors[f"ema.{k}"].to(v.device) for k, v in ema.items()})
    state: dict[int, dict] = {}
    for key in (k for k in tensors if k.startswith("opt.")):
        _, j, name = key.split(".", 2)
        state.setdefault(int(j), {})[name] = tensors[key]
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads((folder / "state.json").read_text())


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    seed = args.seed if args.seed is not None else {"reward": 0, "gold": 1000}[args.which]
    torch.manual_seed(seed)
    records = read_records(args.data)
    vocabulary = build_vocabulary([r for r in records if r.split == "train"])
    index = {w: i for i, w in enumerate(vocabulary)}
    model = build_model(getattr(JudgeConfig, args.which)(len(vocabulary))).to(args.device)
    before: dict = {}
    if args.init and not (args.out / "state.json").is_file():
        saved = load_judge(args.which, "cpu", args.init)
        if saved.words != index:
            raise SystemExit(f"{args.init} was trained on other captions, its words differ; train without --init")
        model.load_state_dict(saved.model.state_dict())
        # Steps go on counting, which also keeps the random draws from repeating.
        before = json.loads((args.init / "evaluation.json").read_text(encoding="utf-8"))["training"]
    no_decay = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.05},
        {"params": no_decay, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    state = {"step": 0, "objects": 0, "seconds": 0.0} | before
    if (args.out / "state.json").is_file():
        state = {k: v for k, v in restore(args.out, model, ema, optimizer).items() if k in state}
    if args.evaluate:
        finish(args, model, ema, records, index, state)
        return
    source = ViewBatches(args.cache, records, "train", args.recolour)
    spec = AUGMENT[args.which]
    args.out.mkdir(parents=True, exist_ok=True)
    start = saved = logged = time.monotonic()
    first_seconds, sums, count = state["seconds"], Counter(), 0
    while True:
        minutes = (time.monotonic() - start) / 60
        done = minutes >= args.minutes
        left = max(0.0, 1 - minutes / args.minutes) / args.cooldown if args.cooldown else 1.0
        rate = args.lr * min(1.0, (state["step"] + 1) / 60, max(left, 0.01))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng([seed, state["step"]])
        chosen = rng.choice(source.keep, args.batch, p=source.weight)
        batch = draw(source, chosen, rng.integers(0, source.spec["sets"], args.batch), rng, args.recolour)
        losses = loss_of(model, batch, source, index, spec, rng, args.device)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not math.isfinite(float(norm)):
            raise SystemExit(f"the gradient is not finite at step {state['step']}; lower --lr and resume")
        optimizer.step()
        decay = min(args.ema, (1 + state["step"]) / (10 + state["step"]))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                ema[k].lerp_(v, 1 - decay)
        sums.update({k: float(v.detach()) for k, v in losses.items()})
        count += 1
        state = {
            "step": state["step"] + 1,
            "objects": state["objects"] + args.batch,
            "seconds": first_seconds + time.monotonic() - start,
        }
        if done or time.monotonic() - logged > 30:
            logged = time.monotonic()
            row = {k: round(v / count, 4) for k, v in sums.items()}
            row = {
                "step": state["step"],
                "minutes": round(state["seconds"] / 60, 2),
                **row,
                "scale": round(float(model.log_scale.detach().exp()), 2),
            }
            with (args.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            sums, count = Counter(), 0
        if done or time.monotonic() - saved > 60 * args.save_every:
            saved = time.monotonic()
            save(args.out, model, ema, optimizer, state)
        if done:
            break
    finish(args, model, ema, records, index, state)


def finish(args: argparse.Namespace, model, ema: dict, records, index, state) -> None:  # type: ignore[no-untyped-def]
    """Measure the averaged weights in the form in which they ship; write them to --assets."""
    model.load_state_dict(ema)
    judge = Judge(args.which, model.eval(), index, tuple(fixed_distractors(records)))
    save_judge(judge, args.out / "judge")
    judge = load_judge(args.which, args.device, args.out / "judge")
    train_words = {w for r in records if r.split == "train" for w in r.words + r.noun_words}
    row = {"training": state}
    for split in ("val", "train"):
        source = ViewBatches(args.cache, records, split, 0.0)
        if split == "train":
            source.keep = source.keep[::10]
        row[split] = evaluate(judge, source, train_words, 3 if split == "val" else 1)
    print(json.dumps(row), flush=True)
    write_json(args.out / "evaluation.json", row)
    if args.assets:
        save_judge(judge, args.assets)
        command = f"python tools/train_judge.py DATA CACHE --which {args.which} --out RUN --minutes MINUTES"
        size = sum(p.numel() for p in judge.model.parameters())
        row["val"]["words"] = len(judge.words) - 2
        atomic_write_text(args.assets / "README.md", model_card(args.which, row, command, size))
        write_json(args.assets / "evaluation.json", row)
        licence = "Apache-2.0 (weights), CC0-1.0 (data)"
        what = {"reward": "Reward judge: scores how well views fit a prompt", "gold": "Gold judge: measures only"}
        record_model(args.assets.name, description=what[args.which], licence=licence, root=args.assets.parent)


if __name__ == "__main__":
    main()
