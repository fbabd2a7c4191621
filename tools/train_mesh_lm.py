"""Train the mesh language model on a folder of captioned meshes, or measure a trained one.

    python tools/train_mesh_lm.py DATA --out RUN --minutes 300 --cooldown 0.3 --compile --threads 1
    python tools/train_mesh_lm.py DATA --out RUN --evaluate [--assets assets/mesh_lm]
    accelerate launch tools/train_mesh_lm.py ... --large --checkpointing     # several processes, one per GPU

Resumes from RUN when it exists. DATA is any folder of meshes with captions.jsonl. Each step writes some meshes of about
the same length as tokens anew, turned, mirrored and stretched; the loss is the mean -log p of a token, with points,
words and the number of faces each left out of some sequences. log.jsonl has it beside the bits a face costs.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from mesh_lm_card import evaluate, model_card
from ship_model import averaged_weights, ship
from torch import Tensor
from torch.nn import functional as F
from train_prior import CLOCKS, Ema, agreed, restore, save, set_rate

from rl3d.data.asset_set import load_asset_set
from rl3d.data.captions import build_vocabulary
from rl3d.files import write_json
from rl3d.mesh_tokens.batches import PLAIN, Augmentation, MeshBatches, TokenBatch
from rl3d.mesh_tokens.model import MeshLM, MeshLMConfig, load_mesh_lm
from rl3d.mesh_tokens.sampling import SampleOptions
from rl3d.priors.embedded import SHARD_BYTES

LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 2816,
    "anchors": 256,
    "cloud_layers": 6,
    "cloud_points": 4096,
}
MATRIX = re.compile(r".*(blocks\.\d+\.(qkv|out|up|down)|lookup\.out)\.weight")  # what Muon moves
CHUNK = 8192  # tokens of validation at a time


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60, help="stop after this much time in this call")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what all minutes are; cpu: of this process")
    parser.add_argument("--steps", type=int, default=0, help="stop at this step, counted over all calls; 0: no limit")
    parser.add_argument("--tokens", type=int, default=4096, help="a step and process, with padding")
    parser.add_argument("--tokenizer", choices=("adjacent", "raw"), default="adjacent")
    parser.add_argument("--bins", type=int, default=128)
    parser.add_argument("--max-faces", type=int, default=400, help="larger meshes are left out")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--cooldown", type=float, default=0.0, help="share of this call's minutes with a falling rate")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--augment", type=json.loads, default={}, help='JSON of Augmentation, e.g. {"free_turns": 0.2}')
    parser.add_argument("--model", type=json.loads, default={}, help='JSON of MeshLMConfig, e.g. {"hidden_size": 384}')
    parser.add_argument("--large", action="store_true", help="0.4 G parameters, for GPUs; --model still counts")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations: less memory, more time")
    parser.add_argument("--compile", action="store_true", help="fuse operations (needs a C++ compiler on a CPU)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves the default")
    parser.add_argument("--save-every", type=float, default=5, help="minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true", help="sample meshes for val shapes, do not train")
    parser.add_argument("--eval-assets", type=int, default=0, help="assets a split with --evaluate; 0: all of val")
    parser.add_argument("--eval-samples", type=int, default=1, help="for each asset and condition")
    parser.add_argument("--sample", type=json.loads, default={}, help='JSON of SampleOptions, e.g. {"top_p": 0.9}')
    parser.add_argument("--assets", type=Path, help="with --evaluate: also write the shipped files there")
    return parser.parse_args()


def make_optimizers(model: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the transformer's matrices (Jordan 2024), AdamW for everything else."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        (matrices if MATRIX.match(name) else rest).append(parameter)
    return [
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
    ]


def token_losses(model: torch.nn.Module, batch: TokenBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """-log p [B, T - 1] of each next token, 0 at padding, and [B, T - 1] bool where there is one."""
    tokens, condition = batch.tokens.to(device), batch.condition.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        logits = model(tokens[:, :-1], **condition.tensors()).logits
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1)
    real = torch.arange(1, tokens.shape[1], device=device) < batch.lengths.to(device)[:, None]
    return loss * real, real


def fixed_batches(source: MeshBatches, limit: int) -> list[TokenBatch]:
    """Up to `limit` assets, evenly picked by length, as they are."""
    rng = np.random.default_rng(123)
    few = source.keep[np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int)]
    lengths = dict(zip(source.keep.tolist(), source.lengths.tolist()))
    batches: list[list[int]] = [[]]
    for asset in few.tolist():  # sorted by length
        if batches[-1] and (len(batches[-1]) + 1) * lengths[asset] > CHUNK:
            batches.append([])
        batches[-1].append(asset)
    return [source.make(np.array(chosen), PLAIN, rng) for chosen in batches]


@torch.no_grad()
def validation(model: torch.nn.Module, batches: list[TokenBatch], device: torch.device) -> dict[str, float]:
    """Mean -log p of a token ("loss") and bits a face, with the whole condition, and the loss without the points."""
    model.eval()
    total = tokens = faces = bare = 0.0
    for batch in batches:
        loss, real = token_losses(model, batch, device)
        total, tokens, faces = total + float(loss.sum()), tokens + int(real.sum()), faces + int(batch.faces.sum())
        hidden = replace(batch, condition=replace(batch.condition, points=None, normals=None, has_points=None))
        bare += float(token_losses(model, hidden, device)[0].sum())
    model.train()
    return {
        "loss": round(total / tokens, 5),
        "bits_per_face": round(total / faces / math.log(2), 4),
        "loss_without_points": round(bare / tokens, 5),
    }


def new_or_saved_config(args: argparse.Namespace, words: list[str]) -> MeshLMConfig:
    """The configuration of RUN, or a new one."""
    if (args.out / "state.json").is_file():
        config = MeshLMConfig(**json.loads((args.out / "state.json").read_text())["model"])
        if config.words != words:
            raise SystemExit(f"{args.out} was trained on other captions, its vocabulary differs; choose another --out")
        return config
    sizes = {**(LARGE if args.large else {}), **args.model}
    return MeshLMConfig(kind=args.tokenizer, bins=args.bins, words=words, max_faces=args.max_faces, **sizes)


def config_facts(config: MeshLMConfig) -> dict:
    """What `MeshLMConfig(**...)` makes again."""
    names = MeshLMConfig.__init__.__annotations__.keys() - {"return", "kwargs"}
    return {k: getattr(config, k) for k in sorted(names)}


def train(args: argparse.Namespace, accelerator: Accelerator) -> None:
    device, options = accelerator.device, Augmentation(**args.augment)
    assets = load_asset_set(args.data)
    words = build_vocabulary(assets.records)
    config = new_or_saved_config(args, words)
    index = {w: i for i, w in enumerate(words)}
    sources = {
        split: MeshBatches(
            assets, split, config.tokenizer, index, config.max_faces, config.cloud_points, config.max_words
        )
        for split in ("train", "val")
    }
    torch.manual_seed(args.seed)
    model = MeshLM(config).to(device).train()
    optimizers, ema = make_optimizers(model, args.lr), Ema(model, args.ema)
    state = {"step": 0, "tokens": 0, "meshes": 0, "seconds": 0.0}
    if (args.out / "state.json").is_file():
        state |= {k: v for k, v in restore(args.out, model, ema, optimizers).items() if k in state}
    if args.steps and state["step"] >= args.steps:
        print(f"{args.out} is at step {state['step']} already")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if args.checkpointing:
        model.model.gradient_checkpointing = True
    if args.compile:  # by block: one graph serves all of them
        for block in model.model.blocks:
            block.compile(dynamic=True)
    runner = torch.nn.parallel.DistributedDataParallel(model) if accelerator.num_processes > 1 else model
    fixed = {split: fixed_batches(source, 24) for split, source in sources.items()}
    clock = CLOCKS[args.clock]
    start, saved, logged = clock(), clock(), clock()
    before, first, losses, bits = state["seconds"], state["tokens"], [], []
    while True:
        step, minutes = int(state["step"]), (clock() - start) / 60
        done = agreed(minutes >= args.minutes or step + 1 == args.steps, accelerator)
        rate = set_rate(optimizers, args, step, minutes)
        # The step decides the batch, so that a resumed run draws what an uninterrupted one would have.
        rng = np.random.default_rng([args.seed, step, accelerator.process_index])
        batch = sources["train"].draw(args.tokens, options, rng)
        loss, real = token_losses(runner, batch, device)
        mean = loss.sum() / real.sum()
        mean.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not math.isfinite(float(norm)):
            raise SystemExit(f"the gradient is not finite at step {step}; lower --lr and resume")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        ema.update(model, step)
        losses.append(float(mean.detach()))
        bits.append(float(loss.detach().sum()) / int(batch.faces.sum()) / math.log(2))
        state["step"] += 1
        state["tokens"] += int(real.sum()) * accelerator.num_processes
        state["meshes"] += len(batch.assets) * accelerator.num_processes
        state["seconds"] = before + clock() - start
        if accelerator.is_main_process and (done or clock() - logged > 600):
            logged = clock()
            keep = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(ema.shadow)
            row = {
                "step": state["step"],
                "meshes": state["meshes"],
                "minutes": round(state["seconds"] / 60, 2),
                "tokens_per_second": round((state["tokens"] - first) / (clock() - start), 1),
                "loss": round(float(np.mean(losses)), 5),
                "bits_per_face": round(float(np.mean(bits)), 4),
                "rate": rate,
                **{f"{s}_{k}": v for s, b in fixed.items() for k, v in validation(model, b, device).items()},
            }
            model.load_state_dict(keep)
            losses.clear(), bits.clear()
            with (args.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        if accelerator.is_main_process and (done or clock() - saved > 60 * args.save_every):
            saved = clock()
            save(args.out, model, ema, optimizers, {**state, "model": config_facts(config)})
        if done:
            return


def thin(source: MeshBatches, count: int) -> None:
    """Leave at most `count` assets, evenly picked by length; 0 leaves all of them."""
    few = np.linspace(0, len(source) - 1, min(count or len(source), len(source))).astype(int)
    source.keep, source.lengths, source.weight = source.keep[few], source.lengths[few], source.weight[few]


def finish(args: argparse.Namespace, device: torch.device) -> None:
    """Measure the averaged weights in the form in which they ship; write them to --assets."""
    facts = json.loads((args.out / "state.json").read_text())
    config = MeshLMConfig(**facts["model"])
    rough = MeshLM(config)
    rough.load_state_dict(averaged_weights(args.out))
    folder = args.out / "model"
    rough.to(torch.bfloat16).save_pretrained(folder, max_shard_size=SHARD_BYTES)
    model = load_mesh_lm(folder, device)
    options = SampleOptions(**{"max_faces": config.max_faces * 5 // 4, **args.sample})
    assets, index = load_asset_set(args.data), {w: i for i, w in enumerate(config.words)}
    sizes = (config.max_faces, config.cloud_points, config.max_words)
    training = {k: facts[k] for k in ("step", "tokens", "meshes", "seconds")}
    row: dict = {"training": training, "options": asdict(options)}
    for split in ("val", "train"):
        source = MeshBatches(assets, split, config.tokenizer, index, *sizes)
        thin(source, args.eval_assets or (0 if split == "val" else 32))
        row[split] = evaluate(model, source, options, args.eval_samples)
        row[f"{split}_loss"] = validation(model, fixed_batches(source, len(source)), device)
    print(json.dumps(row), flush=True)
    write_json(args.out / "evaluation.json", row)
    if args.assets:
        model.eval().to("cpu", torch.bfloat16).save_pretrained(args.assets, max_shard_size=SHARD_BYTES)
        command = "python tools/train_mesh_lm.py DATA --out RUN --minutes MINUTES"
        what = "Mesh language model: writes low-poly meshes for points, words and a number of faces"
        ship(args.assets, what, model_card(row, model, command), row)


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
