"""Compare candidates for the embedded prior at equal wall-clock; see docs/benchmarks/prior_candidates.md.

    python tools/prior_candidates.py DATA CACHE --out FOLDER [--minutes 10] [--only A D] [--at-once 2]

Each candidate trains on one thread for the same CPU time, which is the wall-clock of a core that nobody else uses; its
stages and its autoencoder share its minutes. Then all in FOLDER are measured: the x0 error in pixels on 48 fixed
validation draws. Writes FOLDER/candidates.json and FOLDER/candidates.md. A candidate that FOLDER has is not trained
again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prior_latent import LEVELS, Autoencoder, Denoiser, errors, validation_draws
from safetensors.torch import load_file
from train_prior import saved_weights

from rl3d.files import write_json
from rl3d.priors.multiview_model import MultiViewTransformer

TOOLS = Path(__file__).resolve().parent
A = ["--model", '{"stem_channels": 64}']
# What it is, and its stages: share of the minutes, options of train_prior.py; each stage starts from the one before.
# 32 pixels need less noise for the same signal: shifted by log(sqrt(64^2 / 32^2)) (Esser et al. 2024, eq. 23).
CANDIDATES: dict[str, tuple[str, list[tuple[float, list[str]]]]] = {
    "A": ("patch 8, width 256, 8 layers, stem 64x1, rate 1e-3", [(1.0, A)]),
    "B": ("as A, rate 3e-3", [(1.0, [*A, "--lr", "3e-3"])]),
    "C": (
        "patch 16, width 256, 8 layers, stem 96x2",
        [(1.0, ["--model", '{"patch": 16, "stem_channels": 96, "stem_blocks": 2}'])],
    ),
    "D": ("as A, half of the time at 32 pixels", [(0.5, [*A, "--size", "32", "--t-mean", "1.31"]), (0.5, A)]),
    "E": ("latents 8x8x16, patch 1, width 256, 8 layers", [(1.0, [])]),
    "F": (
        "as A, width 384, 6 heads, 4 layers",
        [(1.0, ["--model", '{"stem_channels": 64, "width": 384, "heads": 6, "depth": 4}'])],
    ),
    "G": (
        "as A, width 384, 6 heads",
        [(1.0, ["--model", '{"stem_channels": 64, "width": 384, "heads": 6}'])],
    ),
}
LATENT = "E"


def load(run: Path) -> tuple[Denoiser, dict]:
    """A finished candidate with its averaged weights, and {"objects", "minutes", "log", ...}."""
    latent = (run / "latent.json").is_file()
    facts = json.loads((run / ("latent.json" if latent else "state.json")).read_text())
    model = MultiViewTransformer(**{k: v for k, v in facts["model"].items() if not k.startswith("_")})
    codec = None
    if latent:
        codec = Autoencoder()
        codec.load_state_dict(load_file(run / "autoencoder.safetensors"))
        codec.eval()
        model.load_state_dict(load_file(run / "model.safetensors"))
    else:
        weights, _, facts = saved_weights(run)
        model.load_state_dict(weights)
    return Denoiser(model.eval(), codec), facts


def run(command: list[str], log: Path) -> float:
    """CPU seconds that a command took, start and end included; one thread, its output into `log`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("a") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed, see {log}")
    return usage.ru_utime + usage.ru_stime


def train_candidate(name: str, args: argparse.Namespace) -> None:
    """All stages of a candidate into FOLDER/NAME-1, ...; FOLDER/NAME.json says that it is finished."""
    if (args.out / f"{name}.json").is_file():
        return
    args.out.mkdir(parents=True, exist_ok=True)
    before: list[str] = []
    seconds, start = 0.0, time.monotonic()
    for number, (share, options) in enumerate(CANDIDATES[name][1], 1):
        folder = args.out / f"{name}-{number}"
        if folder.exists():
            raise SystemExit(f"{folder} was left unfinished; delete it")
        tool = TOOLS / ("prior_latent.py" if name == LATENT else "train_prior.py")
        command = [sys.executable, str(tool), str(args.data), str(args.cache), "--out", str(folder), "--threads", "1"]
        command += [
            "--clock",
            "cpu",
            "--minutes",
            str(share * args.minutes),
            "--batch",
            str(args.batch),
            *options,
            *before,
        ]
        seconds += run(command, args.out / f"{name}.log")
        before = ["--init", str(folder)]
    facts = {"run": folder.name, "minutes": args.minutes, "cpu_seconds": round(seconds, 1)}
    write_json(args.out / f"{name}.json", {**facts, "wall_seconds": round(time.monotonic() - start, 1)})


def measure(name: str, args: argparse.Namespace) -> dict:
    """What candidate `name` can do, as a row of candidates.json."""
    trained = json.loads((args.out / f"{name}.json").read_text())
    denoiser, facts = load(args.out / trained["run"])
    draws = validation_draws(args.data, args.cache, denoiser.model)
    row = {
        "name": name,
        "what": CANDIDATES[name][0],
        **trained,
        "parameters": sum(p.numel() for p in denoiser.model.parameters()),
        "objects": facts["log"][-1]["objects"],
        "error": errors(denoiser, draws),
    }
    if denoiser.codec is not None:
        row["parameters"] += sum(p.numel() for p in denoiser.codec.parameters())
        row["error_at_equal_signal"] = errors(denoiser, draws, denoiser.redundancy(draws[0].shape[-1]))
        row |= {k: facts[k] for k in ("autoencoder_objects", "autoencoder_error")}
    return row


def table(rows: list[dict]) -> str:
    """Markdown."""
    head = ["candidate", "parameters", "CPU min", "objects", *(f"t = {t}" for t in LEVELS)]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [f"{row['name']}: {row['what']}", f"{row['parameters'] / 1e6:.1f}M", f"{row['cpu_seconds'] / 60:.1f}"]
        lines.append([*cells, f"{row['objects']:,}", *(f"{row['error'][str(t)]:.4f}" for t in LEVELS)])
        if "error_at_equal_signal" in row:
            same = (f"{row['error_at_equal_signal'][str(t)]:.4f}" for t in LEVELS)
            lines.append(["the same at equal signal", "", "", "", *same])
            note = f"its autoencoder alone, {row['autoencoder_objects']:,} objects"
            lines.append([note, "", "", "", f"{row['autoencoder_error']:.4f}", *[""] * (len(LEVELS) - 1)])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--at-once", type=int, default=1, help="candidates that train side by side")
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    with ThreadPoolExecutor(args.at_once) as pool:
        list(pool.map(lambda name: train_candidate(name, args), args.only))
    rows = [measure(name, args) for name in CANDIDATES if (args.out / f"{name}.json").is_file()]
    write_json(args.out / "candidates.json", rows)
    (args.out / "candidates.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
