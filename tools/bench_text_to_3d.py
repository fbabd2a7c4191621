"""Measure text to 3D: methods as rows, the gold judge as the measure; see docs/benchmarks/text_to_3d.md.

    python tools/bench_text_to_3d.py --out runs/bench                            # everything: many hours on 2 cores
    python tools/bench_text_to_3d.py --out runs/bench --prompts 12 --seeds 1 --limit-minutes 60
    python tools/bench_text_to_3d.py --out runs/bench --methods draft mine=my_preset.yaml
    python tools/bench_text_to_3d.py --out runs/bench --report-only              # the page again

Every run is a folder of --out; finished ones are skipped, so the same command goes on after Ctrl-C, a kill or the time
limit; --records goes on without the folders. A run that fails is recorded and counted. Of the judges only the measures
use the gold one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from bench_budget import budgeted, cost_of
from bench_folder import FOV_Y, VIEWS, shape, tile, words_tile
from bench_tables import (
    QUALITY,
    SHAPE,
    aggregate,
    article,
    best_of_name,
    best_of_seeds,
    differences,
    distractors,
    in_the_same_colour,
    interleaved,
    page,
    plan,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl3d import config, runs
from rl3d.assets import embedded_models, packaged_folder
from rl3d.data.captions import HELD_OUT_PAIRS, split_words
from rl3d.data.colours import WORDS as COLOURS
from rl3d.environment import PeakMemory, environment
from rl3d.errors import AssetError, ConfigError, InputError, RL3DError
from rl3d.files import atomic_path, atomic_write_text, write_json
from rl3d.preview import view_sheet
from rl3d.priors import load as load_prior
from rl3d.priors.protocol import Prior
from rl3d.rewards import Judge, judge_views, load_judge, retrieval, shows_front_twice
from rl3d.rewards.damage import scaled_down
from rl3d.rewards.janus import front_noun
from rl3d.rewards.judges import JANUS
from rl3d.rewards.score import LOOKS, colour_seen
from rl3d.scenes.mesh import Mesh
from rl3d.text_to_3d.drafts import sample_views, view_judge
from rl3d.text_to_3d.generate import generate
from rl3d.text_to_3d.methods import METHODS as DISTILLATIONS
from rl3d.text_to_3d.options import GenerateOptions, recorded

ROOT = Path(__file__).resolve().parents[1]
# Nouns with at least 4 training assets that look like one thing, each once; "chest" and "potion", but not "bottle".
KNOWN = """
green tree, red chest, wooden barrel, blue couch, grey rock, orange pumpkin, red car, golden key, white cloud,
green cactus, blue potion, wooden chair, red mushroom, black sword, red house, brown table, purple crystal,
stone tower, blue bed, wooden bench, yellow lamp, white skull, brown shelf, wooden door, green book, grey
column, red heart, brown crate, pink flower, blue banner, red sign, wooden fence, yellow coin, cyan bush, white
candle, purple cabinet, green watermelon, black axe, stone bridge, wooden ladder"""
PROMPTS = {
    "known": [f"{article(words)} {words}" for words in " ".join(KNOWN.split()).split(", ")],
    "unseen": [f"{article(colour)} {colour} {noun}" for colour, noun in HELD_OUT_PAIRS],
}
SEEDS = 3
PAGE = ROOT / "docs" / "benchmarks" / "text_to_3d.md"
METHODS = ("views", "draft", "default", "best-of-4")
RECORD = "bench.json"
SHOWN = 10  # prompts in the picture


@dataclass(frozen=True)
class Job:
    """One run: what, and the folder it leaves."""

    method: str
    group: str
    prompt: str
    seed: int

    def folder(self, out: Path) -> Path:
        return out / self.method / f"{re.sub(r'[^a-z0-9]+', '-', self.prompt)}-seed{self.seed}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"method": self.method, "group": self.group, "prompt": self.prompt, "seed": self.seed}


@dataclass(frozen=True)
class Bench:
    """What all runs share.

    `models`: file checksums of the embedded models by name. `elsewhere`: records by method, prompt and seed of runs
    whose folders are not here.
    """

    out: Path
    methods: dict[str, GenerateOptions]
    prior: Prior
    gold: Judge
    models: dict[str, dict[str, str]]
    elsewhere: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)

    def made_with(self, job: Job) -> str:
        return digest([self.identity(job), self.gold_digest()])[:16]

    def identity(self, job: Job) -> dict[str, Any]:
        """What a run's result depends on; a folder made with something else is not taken for it."""
        options = replace(self.methods[job.method], seed=job.seed)
        made_by = ["prior"] if self.prior.name == "embedded" else []
        chosen = options.sample.candidates > 1 and options.sample.judge_weight > 0
        rewarded = DISTILLATIONS[options.method.name].reward  # by any of them, and another one is its guard
        made_by += ["judge_reward"] if chosen or options.best_of > 1 or rewarded else []
        made_by += [name for name in ("reward3d", "rewardcs") if looks_with(options, name)]
        models = digest([self.prior.name, *(self.models.get(name) for name in made_by)])
        return {"options": recorded(options), "models": models}

    def gold_digest(self) -> str:
        return digest(self.models.get("judge_gold"))


def looks_with(options: GenerateOptions, model: str) -> bool:
    """Whether a run may ask an embedded reward that is not the judge: it names it, or its scene has the mesh for it."""
    named = model in f"{options.method.reward.name} {options.guard.reward}"
    return named or (model == "rewardcs" and options.method.scene == "sdf")


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def method_options(words: list[str]) -> dict[str, GenerateOptions]:
    """Options by row name of "draft", "best-of-4" or NAME=preset.yaml."""
    found = {}
    for word in words:
        name, _, preset = word.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name) or name in found or (preset and name in METHODS):
            raise InputError(f"--methods {word}: a row needs a plain name of its own, like mine=my_preset.yaml")
        if preset:
            found[name] = config.resolve(GenerateOptions, config.preset_path("generate", preset))
        elif name in METHODS:
            base = config.preset_path("generate", "draft" if name == "draft" else "default")
            found[name] = config.resolve(GenerateOptions, [base, {"best_of": 4}] if name == "best-of-4" else base)
        else:
            raise InputError(f"unknown method {name!r}; known: {', '.join(METHODS)}, or NAME=preset.yaml")
    return found


def read_record(bench: Bench, job: Job) -> dict[str, Any] | None:
    """The finished record of a job, measured by the gold judge there is now; None: still to run or measure.

    Raises:
        ConfigError: the folder was made with other options or models.
    """
    folder = job.folder(bench.out)
    try:
        stored = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        record = bench.elsewhere.get((job.method, job.prompt, job.seed))
        return record if record is not None and record["made_with"] == bench.made_with(job) else None
    if stored["identity"] != bench.identity(job):
        raise ConfigError(f"{folder} was made with other options or models; choose another --out or remove it")
    record = stored["record"]
    failed = record is not None and record["failed"] is not None
    return record if failed or stored["gold"] == bench.gold_digest() else None


def is_made(bench: Bench, job: Job) -> bool:
    """Whether the asset (or the views) of a job is there, so that only measuring may be left."""
    folder = job.folder(bench.out)
    return (folder / VIEWS).exists() if job.method == "views" else runs.status(folder) == "finished"


def run_job(bench: Bench, job: Job) -> dict[str, Any]:
    """Make the asset (or go on with it), measure it, and write the record."""
    folder = job.folder(bench.out)
    stored = {"identity": bench.identity(job), "gold": bench.gold_digest(), "record": None}
    # Raises what is wrong with the disk, before anything can be taken for a failure of the method.
    runs.check_out(folder, resume=True)
    write_json(folder / RECORD, stored)
    try:
        record = {**job.facts, "failed": None, **(_views if job.method == "views" else _asset)(bench, job, folder)}
    except (ConfigError, AssetError, OSError, MemoryError):
        raise
    except (RL3DError, RuntimeError, ValueError, ArithmeticError, IndexError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        record = {**job.facts, "failed": reason}
        if prompt_colour(job.prompt) is None:
            record["colour"] = None  # does not apply, so it cannot fail
        if job.method == "views":
            record["iou"] = None
    write_json(folder / RECORD, {**stored, "record": record})
    return record


def _asset(bench: Bench, job: Job, folder: Path) -> dict[str, Any]:
    if not is_made(bench, job):
        options = replace(bench.methods[job.method], seed=job.seed)
        if runs.status(folder) == "empty":
            plant_draft(bench, job, folder)
        generate(job.prompt, options, folder, prior=bench.prior, resume=True)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    images = judge_views(Mesh.load(folder / "asset.glb"), LOOKS["gold"], bench.gold.device)
    stages, check = report["stages"].values(), report["export"]["check"]
    return {
        "reward": report["judges"]["reward"]["similarity"],
        **measure(bench.gold, images, job),
        **shape(folder, report["mesh"]),
        "psnr": check["psnr"],
        "iou": check["iou"],
        "seconds": round(sum(s["seconds"] for s in stages), 2),
        "peak_memory_mib": max(s["peak_memory_mib"] for s in stages),
    }


def plant_draft(bench: Bench, job: Job, folder: Path) -> None:
    """Begin a run with the first draft of a finished run that drew and lifted the same: rows then differ in what they
    do with it. The same to the bit as drawing it again; its seconds are taken over."""
    wanted = bench.methods[job.method]
    for method, options in bench.methods.items():
        source = replace(job, method=method).folder(bench.out)
        same = (options.sample, options.lift, options.negative_prompt)
        if method in (job.method, "views") or same != (wanted.sample, wanted.lift, wanted.negative_prompt):
            continue
        files = [source / "checkpoints" / f"{name}-0.safetensors" for name in ("views", "anchor", "lift")]
        if runs.status(source) != "finished" or not all(file.exists() for file in files):
            continue
        stages = json.loads((source / "report.json").read_text(encoding="utf-8"))["stages"]
        first = {name: stages[name] for name in ("views 0", "lift 0")}
        write_json(
            folder / "state.json", {"finished": False, "stages": {}}
        )  # if this is killed: a run with nothing done
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, folder / "checkpoints" / file.name)
        write_json(folder / "state.json", {"finished": False, "stages": first})
        return


def _views(bench: Bench, job: Job, folder: Path) -> dict[str, Any]:
    """The prior's views themselves, framed as the judge frames assets."""
    file, options = folder / VIEWS, replace(bench.methods[job.method], seed=job.seed)
    if not file.exists():
        images, seconds, mib = _views_of_default(bench, job) or _sampled(bench, job.prompt, options)
        tensors = {"images": images.cpu().contiguous(), "cost": torch.tensor([seconds, mib])}
        with atomic_path(file) as temporary:
            save_file(tensors, temporary)
    tensors = load_file(file)
    factor = math.tan(0.5 * FOV_Y) / math.tan(0.5 * LOOKS["gold"].fov_y)  # same distance, the judge's wider lens
    seconds, mib = tensors["cost"].tolist()
    found = measure(bench.gold, scaled_down(tensors["images"][None], factor), job)
    return {**found, "seconds": round(seconds, 2), "peak_memory_mib": round(mib)}


def _sampled(bench: Bench, prompt: str, options: GenerateOptions) -> tuple[Tensor, float, float]:
    """A prompt's views, seconds and MiB."""
    began = time.monotonic()
    with PeakMemory() as memory:
        embedding = bench.prior.encode_prompt(prompt, options.negative_prompt)
        judge = view_judge(prompt, options)
        images, _, _ = sample_views(bench.prior, embedding, options, options.seed, lambda step, steps: None, judge)
    return images, time.monotonic() - began, memory.mib


def _views_of_default(bench: Bench, job: Job) -> tuple[Tensor, float, float] | None:
    """The same from the finished run of the default row, which drew the same views; None without one."""
    default = replace(job, method="default")
    folder = default.folder(bench.out)
    file = folder / "checkpoints" / "views-0.safetensors"
    if "default" not in bench.methods or not is_made(bench, default) or not file.exists():
        return None
    read_record(bench, default)  # raises where the folder was made with something else
    stage = json.loads((folder / "report.json").read_text(encoding="utf-8"))["stages"]["views 0"]
    return load_file(file)["images"], stage["seconds"], stage["peak_memory_mib"]


def measure(gold: Judge, images: Tensor, job: Job) -> dict[str, Any]:
    """The gold judge's measures of one asset [G, 4, 4, H, W]; "colour" and "janus" are None where they do not apply."""
    others = distractors(job.prompt, PROMPTS[job.group])
    found = retrieval(gold, images, job.prompt, others)
    colour = prompt_colour(job.prompt)
    return {
        "top1": found.rank == 1,
        "top1_same_colour": retrieval(gold, images, job.prompt, in_the_same_colour(job.prompt, others)).rank == 1,
        "rank": found.rank,
        "best": found.best,
        "similarity": round(found.similarity, 4),
        "colour": colour_seen(gold, images) == colour if colour else None,
        "janus": shows_front_twice(gold, images, job.prompt),
    }


def prompt_colour(prompt: str) -> str | None:
    return next((w for w in split_words(prompt) if w in COLOURS), None)


def results_of(bench: Bench, jobs: list[Job], against: Sequence[str] = ()) -> dict[str, Any]:
    """The content of results.json: rows, every record, and what made them."""
    found = [(job, read_record(bench, job)) for job in jobs]
    records = [{**record, "made_with": bench.made_with(job)} for job, record in found if record is not None]
    rows = aggregate(records, list(bench.methods))
    if picked := best_of_seeds(records, list(bench.methods), SEEDS):
        names = [name for m in bench.methods if (name := best_of_name(m, SEEDS)) in {r["method"] for r in picked}]
        rows += [{**row, "best_of": SEEDS} for row in aggregate(picked, names)]
    measures = (*QUALITY, *SHAPE)
    compared = [{"row": row, "rows": differences(records, list(bench.methods), row, measures)} for row in against]
    evaluation = packaged_folder("assets") / "judge_gold" / "evaluation.json"
    return {
        "full": {**{group: len(all_of) for group, all_of in PROMPTS.items()}, "seeds": SEEDS},
        "rows": rows,
        "against": compared,
        "made": {
            "command": command_line(sys.argv),
            "revision": revision(),
            "prior": bench.prior.name,
            "environment": environment(),
            "models": bench.models,
        },
        "gold_on_renders": json.loads(evaluation.read_text()).get("val") if evaluation.exists() else None,
        "janus_on_renders": janus_on_renders(bench.gold),
        "records": records,
    }


def janus_on_renders(gold: Judge) -> dict[str, Any] | None:
    """Nouns and prompts that the Janus rate counts, and what it says of real assets and of Janus copies of them."""
    file = packaged_folder("assets") / "judge_gold" / JANUS
    if not file.exists():
        return None
    measured = json.loads(file.read_text(encoding="utf-8"))
    return {
        "nouns": sorted(gold.fronts),
        "prompts": {g: sum(front_noun(gold, p) is not None for p in all_of) for g, all_of in PROMPTS.items()},
        **{
            part: {"assets": measured[part]["assets"], **{k: measured[part][k]["all"] for k in ("real", "again")}}
            for part in ("val", "train_left_out")
        },
    }


def command_line(argv: list[str]) -> str:
    """The command without the places of this machine."""
    return shlex.join(["python", f"tools/{Path(argv[0]).name}", *(re.sub(r"[^=]*/", "", a) for a in argv[1:])])


def revision() -> str | None:
    """The checkout's commit, with a + when files differ from it; None outside git."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
        return head + ("+" if changed.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def draw_sheet(bench: Bench, jobs: list[Job], path: Path) -> dict[str, Any] | None:
    """One row a method, its name in front; the prompts that every method has done with seed 0, at most `SHOWN`."""
    methods = list(bench.methods)
    here = [j for j in jobs if j.seed == 0 and (j.folder(bench.out) / RECORD).exists()]
    done = {(j.method, j.prompt): j for j in here if read_record(bench, j) is not None}
    order = dict.fromkeys(j.prompt for j in jobs)
    shown = [p for p in order if all((m, p) in done for m in methods)][:SHOWN]
    if not shown:
        return None
    with torch.no_grad():
        tiles = [t for m in methods for t in (words_tile(m), *(tile(done[m, p].folder(bench.out)) for p in shown))]
    view_sheet(tiles, path, columns=len(shown) + 1, labels=["", *shown] * len(methods))
    return {"methods": methods, "prompts": shown}


def write_report(bench: Bench, jobs: list[Job], earlier: dict[str, Any], args: argparse.Namespace) -> None:
    """results.json in --out and beside the page, the picture, and the page."""
    results = {**results_of(bench, jobs, args.against), "budget": earlier["budget"]}
    if args.report_only and (bench.out / "results.json").exists():  # what made the runs, not what made the page
        results["made"] = json.loads((bench.out / "results.json").read_text(encoding="utf-8"))["made"]
    home = args.page.resolve().parent
    picture = (home.parent / "images" if home.name == "benchmarks" else home) / f"bench_{args.page.stem}.png"
    results["picture"] = draw_sheet(bench, jobs, picture) or earlier.get("picture")
    write_json(bench.out / "results.json", results)
    lines = ",\n".join("    " + json.dumps(r, ensure_ascii=False) for r in results["records"])
    head = json.dumps({k: v for k, v in results.items() if k != "records"}, indent=2, ensure_ascii=False)
    atomic_write_text(args.page.with_suffix(".json"), f'{head[:-2]},\n  "records": [\n{lines}\n  ]\n}}\n')
    atomic_write_text(args.page, page(results, os.path.relpath(picture, home) if results["picture"] else None))
    print(args.page)


def read_results(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"--records {path} cannot be read: {error}; give a results.json of this tool") from error


def part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; give I/N with I from 0 to N - 1, such as 0/2")
    return int(match[1]), int(match[2])


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; made, or gone on with")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="ROW", help=f"{METHODS}, NAME=FILE.yaml")
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="ROW", help="a table of every row's differences to each of these"
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="CPU seconds for drafts and distillation, the same for every row: its steps (or, with best_of over 1, its"
        " candidates) are measured and set",
    )
    parser.add_argument("--prompts", type=int, help="only the first N of the fixed order, known and unseen interleaved")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds 0 to N - 1 (default: {SEEDS})")
    parser.add_argument("--limit-minutes", type=float, default=math.inf, help="begin no run after this; then report")
    parser.add_argument(
        "--part",
        type=part,
        default=(0, 1),
        metavar="I/N",
        help="only every N-th prompt, from the I-th (0 to N - 1) on:"
        " N processes may share one --out, and --report-only then makes the page of all",
    )
    parser.add_argument(
        "--records",
        type=Path,
        help="results of an earlier call, such as the page's .json: runs in it that were made with the same models and"
        " options, on whatever machine, are not made again",
    )
    parser.add_argument("--retry-failed", action="store_true", help="run recorded failures again")
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="make nothing, rebuild the page; measures again what another gold judge measured",
    )
    parser.add_argument("--prior", help="as in rl3d generate (default: the embedded one)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown file to write (default: in docs)")
    args = parser.parse_args(argv)
    if args.seeds < 1 or (args.prompts is not None and args.prompts < 1):
        parser.error("--seeds and --prompts must be at least 1")
    return args


def decides(path: str) -> bool:
    """Whether a file of a model changes what it says; its card and measurements do not."""
    return not path.endswith(".md") and Path(path).name != "evaluation.json"


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    prompts = interleaved(PROMPTS["known"], PROMPTS["unseen"])[: args.prompts]
    mine = {prompt for _, prompt in prompts[args.part[0] :: args.part[1]]}
    models = {n: {f.path: f.sha256 for f in m.files if decides(f.path)} for n, m in embedded_models().items()}
    prior = load_prior(args.prior, args.device)
    earlier = read_results(args.records) if args.records else {}
    elsewhere = {(r["method"], r["prompt"], r["seed"]): r for r in earlier.get("records", []) if "made_with" in r}
    methods = method_options(args.methods)
    budget = None
    if args.budget is not None:
        file, drafts = args.out / "budget.json", {}
        known = read_results(file) if file.exists() else earlier.get("budget")
        methods, budget = budgeted(methods, args.budget, known, lambda options: cost_of(options, prior, drafts))
        write_json(file, budget)
    for row in args.against:
        if row not in methods:
            raise InputError(f"--against {row}: no such row; rows are {', '.join(methods)}")
    bench = Bench(args.out, methods, prior, load_judge("gold", args.device), models, elsewhere)
    order = sorted(bench.methods, key=lambda method: method == "views")  # last: the default row has drawn them by then
    jobs = [Job(*entry) for entry in plan(prompts, args.seeds, order)]
    code, began, spent = 0, time.monotonic(), []
    try:
        for i, job in enumerate(jobs):
            record = read_record(bench, job)
            if record is not None and not (args.retry_failed and record["failed"] is not None):
                continue
            if job.prompt not in mine or (args.report_only and not is_made(bench, job)):
                continue
            if time.monotonic() - began > 60 * args.limit_minutes:
                print(f"time limit: {i} of {len(jobs)} runs are done; the same command goes on", file=sys.stderr)
                break
            start = time.monotonic()
            record = run_job(bench, job)
            spent.append(time.monotonic() - start)
            verdict = record["failed"] or f"rank {record['rank']}, seen as {record['best']!r}"
            left = sum(spent) / len(spent) * (len(jobs) - i - 1) / 60 / args.part[1]
            note = f"[{i + 1}/{len(jobs)}] {job.method}, {job.prompt!r}, seed {job.seed}: {verdict}"
            print(f"{note} ({spent[-1]:.0f} s, about {left:.0f} min left)", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        code = 130
    if args.part[1] == 1:  # a part would write over the others' page
        write_report(bench, jobs, {**earlier, "budget": budget}, args)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RL3DError as error:
        sys.exit(f"bench_text_to_3d: error: {error}")
