"""Fine-tuning a multi-view prior on a reward: draw, score, weigh, update, watch, write down; round after round.

Several processes (`accelerate launch`) share the groups of a round and end with the same adapter as one would.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from rl3d.config import to_dict
from rl3d.errors import InputError
from rl3d.multiview.algorithms import rule_for
from rl3d.multiview.geometry import cut
from rl3d.multiview.looks import Looks
from rl3d.multiview.memory import TOO_LITTLE, ran_out, solved
from rl3d.multiview.options import FinetuneOptions
from rl3d.multiview.path_rules import path_kl
from rl3d.multiview.policy import Drawn, Memory, Policy, Rule
from rl3d.multiview.report_page import report_of, write_page
from rl3d.multiview.rounds import (
    Batch,
    Verdict,
    draw,
    drawn_of,
    held,
    judged,
    pairs_of,
    scored,
    split,
    turn,
    weighted,
)
from rl3d.multiview.update import distance_from_base, gradients, optimizer_for, summed, take
from rl3d.priors.adapters import TunablePrior, save_adapter
from rl3d.priors.protocol import Prior, PromptEmbedding
from rl3d.progress import Progress
from rl3d.reconstruct.leaves import load_memory, read_leaves, readable, restore_moments, save_leaves
from rl3d.rewards.protocol import Reward
from rl3d.rl import ConstraintOptions, ConstraintState, Round, StopOptions, StopState, updated, watched, within_budget
from rl3d.runs import Run, opened_by_first, read_metrics
from rl3d.workers import share_gradients

T = TypeVar("T")
ADAPTER, LAST, CHECKPOINT = "adapter", "last", "finetune.safetensors"


@dataclass
class Training:
    """What a round changes; all of it is in the checkpoint.

    Attributes:
        round_, step: rounds and optimizer steps done. micro_batch: view groups at once, halved where memory ran out.
        stop, constraint: states of their rules; stopped: why the run ended early.
        best: (round, guard's score) of the best look.
    """

    policy: Policy
    rule: Rule
    optimizer: torch.optim.AdamW
    memory: Memory
    micro_batch: int
    round_: int = 0
    step: int = 0
    stop: StopState = field(default_factory=StopState)
    constraint: ConstraintState = field(default_factory=ConstraintState)
    stopped: str | None = None
    best: tuple[int, float] | None = None


@dataclass(frozen=True)
class Judging:
    """Seconds that a round's rewards took, and those of them in which nothing was drawn."""

    seconds: float = 0.0
    waited: float = 0.0


def finetune(
    prior: Prior,
    reward: Reward,
    prompts: Sequence[str],
    options: FinetuneOptions | None = None,
    out: str | Path = "runs/tuned",
    *,
    base: str | None = None,
    constraint: Reward | None = None,
    guard: Reward | None = None,
    look_prompts: Sequence[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    accelerator: Accelerator | None = None,
) -> Path:
    """Tune an adapter of `prior` on `reward`; the prior carries it afterwards.

    Args:
        prompts: to train on; each must be one that the prior knows something of. Repeated ones count once.
        base: what `--prior` named, to be found again when the adapter is loaded; None: the embedded prior.
        constraint: kept at the level that it has, while `reward` is raised (MVC-ZigAL); None: nothing is.
        guard: watches and is not optimised; None: nobody does, and the last state is kept.
        look_prompts: of the looks; None: the first of `prompts`.
        resume: go on with the unfinished run in `out`; the result is that of an uninterrupted run.

    Returns:
        The folder of the adapter: the best by the guard, or the last.

    Raises:
        RL3DError: bad input, see its subclasses.
    """
    options, progress = options or FinetuneOptions(), progress or Progress(silent=True)
    accelerator, out = accelerator or Accelerator(), Path(out)
    texts = list(dict.fromkeys(prompts))
    if not texts:
        raise InputError("fine-tuning needs at least one prompt")
    embeddings = [prior.encode_prompt(text) for text in texts]
    config = run_config(base, reward, constraint, guard, texts, options)
    policy, rule = Policy.of(prior, options), rule_for(options, reward)
    optimizer = optimizer_for(policy, options.adapter)
    training = Training(policy, rule, optimizer, rule.start(policy), options.micro_batch)
    rewards = [reward] if constraint is None else [reward, constraint]
    looks = None
    if guard is not None and options.watch.every > 0:
        seen_prompts = [prior.encode_prompt(text) for text in (look_prompts or texts)[: options.watch.looks]]
        looks = Looks(prior, reward, guard, tuple(seen_prompts), options, out)
    with opened_by_first(out, config, resume, accelerator) as run:
        file = out / "checkpoints" / CHECKPOINT
        if resume and file.exists():
            restore(training, file)
        for stage_name in ("round", "look"):
            if run is not None:
                run.rewind(stage_name, training.round_ if file.exists() else -1)
        if looks is not None and training.round_ == 0:
            reward_then, guarded = look(training, looks, run, base, config, accelerator)
            training.stop = StopState(best_guard=guarded, reward_then=reward_then)
        if file.exists():  # another micro-batch rounds differently
            parts = (options.prompts_per_round, options.group, accelerator.num_processes)
            found = cut(*parts, training.micro_batch, together=rule.together)
        else:
            found = solved(policy, rule, training.memory, embeddings[0], options, accelerator)
            training.micro_batch = found.micro_batch
        progress.note(f"{found.text()}; {options.updates} optimizer steps")
        with progress.stage("finetune", options.rounds, done=training.round_) as stage:
            while training.round_ < options.rounds and training.stopped is None:
                numbers = one_round(training, rewards, embeddings, options, accelerator, progress)
                training.round_ += 1
                seen = None
                if looks is not None and looks.due(training.round_):
                    seen = look(training, looks, run, base, config, accelerator)
                watch(training, options, numbers, seen)
                if run is not None:
                    run.log("round", training.round_, **numbers)
                    save(training, file)
                stage.at(training.round_, reward=numbers["reward"])
        if run is not None:
            _write(training, out / LAST, base, config)
            if looks is None:
                _write(training, out / ADAPTER, base, config)
            rows = read_metrics(out / "metrics.jsonl")
            report = report_of(config, rows, training.stopped, training.best)
            write_page(out, report, rows)
            run.finish(report)
    accelerator.wait_for_everyone()
    return out / ADAPTER


def run_config(
    base: str | None,
    reward: Reward,
    constraint: Reward | None,
    guard: Reward | None,
    prompts: list[str],
    options: FinetuneOptions,
) -> dict[str, Any]:
    """What decides the adapter, as plain values for the run's config.json."""
    others = {"constraint": constraint, "guard": guard}
    names = {role: None if other is None else other.name for role, other in others.items()}
    names |= {"prior": base or "embedded", "reward": reward.name}
    return {**names, "prompts": prompts, **to_dict(options)}


def one_round(
    training: Training,
    rewards: Sequence[Reward],
    prompts: Sequence[PromptEmbedding],
    options: FinetuneOptions,
    accelerator: Accelerator,
    progress: Progress,
) -> dict[str, float]:
    """Draw, score, weigh and update once; the numbers for the log.

    Args:
        rewards: the optimised one, and the constraint's where there is one. prompts: all of the run.
    """
    policy, rule = training.policy, training.rule
    chosen = [prompts[i] for i in turn(len(prompts), options, training.round_)]
    mine = range(accelerator.process_index, len(chosen), accelerator.num_processes)
    began = time.perf_counter()
    batches, verdict, judging = with_less_memory(
        training, progress, lambda: sampled(training, rewards, chosen, mine, options, accelerator)
    )
    drew = time.perf_counter()
    numbers: dict[str, float] = {}
    if rule.paired:
        batches = pairs_of(batches, verdict, options, rows_at_once(training))
    total = total_rows(batches, accelerator)
    outcome: dict[str, float] = {"taken": 0.0}
    for _ in range(options.updates if total else 0):
        step = training.step

        def micros(step: int = step) -> list[Drawn]:
            own = split(batches, rows_at_once(training))
            return [drawn_of(batch, verdict, options, step, rule.paired) for batch in own]

        # What processes tell each other is outside of what may have to be tried again.
        apart = with_less_memory(training, progress, lambda: distance_from_base(policy, micros()))
        numbers["from_base"] = summed(apart, accelerator) / total
        if not within_budget(numbers["from_base"], options.watch.kl_budget):
            break
        numbers |= with_less_memory(
            training, progress, lambda: gradients(rule, policy, micros(), training.memory, total)
        )
        share_gradients(policy.parameters.values(), accelerator)
        taken, norm = take(policy, training.optimizer, options.adapter)
        outcome = {"taken": outcome["taken"] + taken, "gradient": norm}
        training.step += 1
        training.memory = rule.stepped(policy, training.memory, training.step)
    known = verdict.rewards[torch.isfinite(verdict.rewards)]
    ended = time.perf_counter()
    return {
        "reward": float(known.mean()),
        "reward_std": float(known.std(correction=0)),
        "silent": verdict.silent,
        "dropped": verdict.dropped,
        "micro_batch": training.micro_batch,
        **({"multiplier": training.constraint.multiplier} if len(rewards) > 1 else {}),
        **numbers,
        **outcome,
        "seconds_rollout": drew - began - judging.waited,
        "seconds_reward": judging.waited,
        "seconds_reward_hidden": max(0.0, judging.seconds - judging.waited),
        "seconds_update": ended - drew,
        "samples_per_second": len(verdict.rewards) / (ended - began),
    }


def sampled(
    training: Training,
    rewards: Sequence[Reward],
    chosen: Sequence[PromptEmbedding],
    mine: Sequence[int],
    options: FinetuneOptions,
    accelerator: Accelerator,
) -> tuple[list[Batch], Verdict, Judging]:
    """This process's micro-batches of a round, the verdict on the samples of all processes, and its rewards' time."""
    policy, prior = training.policy, training.policy.prior
    table = torch.zeros(len(rewards) + 1, len(chosen) * options.group, dtype=torch.float64)
    batches, judging = [], Judging()
    with training.rule.sampling(policy, training.memory):
        drawn = draw(prior, chosen, mine, options, training.round_, rows_at_once(training))
        for found in scored(prior, rewards, drawn):
            batch, rows = found.batch, torch.tensor(found.batch.rows)
            judging = Judging(judging.seconds + found.seconds, judging.waited + found.waited)
            table[:-1, rows] = found.scores
            if options.algorithm == "carve3d":
                table[-1, rows] = path_kl(policy, batch.path).double().cpu()
            batches.append(batch)
    if accelerator.num_processes > 1:
        table = accelerator.reduce(table.to(accelerator.device), "sum").cpu()
    charge = table[-1] if options.algorithm == "carve3d" else None
    verdict = judged(table[0], options, rewards[0].name, charge)
    if len(rewards) > 1:
        other = judged(table[1], options, rewards[1].name)
        training.constraint = updated(ConstraintOptions(), training.constraint, float(table[1].nanmean()))
        verdict = held(verdict, other, training.constraint.multiplier)
    return batches, weighted(verdict, options) if options.algorithm == "rwr" else verdict, judging


def rows_at_once(training: Training) -> int:
    """The micro-batch, as a multiple of the rows that stay together."""
    together = training.rule.together
    return max(together, training.micro_batch // together * together)


def total_rows(batches: Sequence[Batch], accelerator: Accelerator) -> int:
    """Rows of all processes' micro-batches."""
    return round(summed(float(sum(len(batch.rows) for batch in batches)), accelerator))


def with_less_memory(training: Training, progress: Progress, work: Callable[[], T]) -> T:
    """`work`, again with half the micro-batch whenever memory runs out.

    Raises:
        InputError: one view group at a time is too much.
    """
    while True:
        try:
            return work()
        except RuntimeError as error:
            if not ran_out(error):
                raise
            if training.micro_batch == 1:
                raise InputError(TOO_LITTLE) from error
            training.micro_batch //= 2
            progress.note(f"memory ran out; going on with {training.micro_batch} view groups at a time")


def look(
    training: Training,
    looks: Looks,
    run: Run | None,
    base: str | None,
    config: dict[str, Any],
    accelerator: Accelerator,
) -> tuple[float, float]:
    """Look at the policy as it is; the adapter folder is written where the guard finds it the best so far.

    Returns:
        The scores of reward and guard, the same on every process.
    """
    seen = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    if run is not None:
        scores = looks.look(training.round_)
        run.log("look", training.round_, **scores)
        seen = seen.new_tensor([scores["reward"], scores["guard"]])
    if accelerator.num_processes > 1:
        seen = broadcast(seen)
    scored, guarded = seen.tolist()
    if training.best is None or guarded > training.best[1]:
        training.best = (training.round_, guarded)
        if run is not None:
            _write(training, looks.out / ADAPTER, base, config)
    return scored, guarded


def watch(
    training: Training, options: FinetuneOptions, numbers: dict[str, float], seen: tuple[float, float] | None
) -> None:
    """Move the stopping rules on by a round.

    Args:
        seen: scores of reward and guard in this round's look, which are compared with those of other looks.
    """
    o = options.watch
    rules = StopOptions(kl=o.kl_budget, silent=o.silent, fall=o.fall, patience=o.patience)
    broken = not math.isfinite(numbers.get("gradient", 0.0))
    reward, guarded = (numbers["reward"], None) if seen is None else seen
    what = Round(numbers.get("from_base", 0.0), numbers["silent"], reward, guarded, broken)
    training.stop, training.stopped = watched(rules, training.stop, what)


def _write(training: Training, folder: Path, base: str | None, config: dict[str, Any]) -> None:
    facts = {"algorithm": config["algorithm"], "reward": config["reward"], "rounds": training.round_}
    prior = training.policy.prior
    assert isinstance(prior, TunablePrior)  # it carries the adapter
    save_adapter(prior, folder, base, facts)


def save(training: Training, file: Path) -> None:
    """The checkpoint, atomically."""
    facts = {
        "round": training.round_,
        "step": training.step,
        "micro_batch": training.micro_batch,
        "stop": asdict(training.stop),
        "constraint": asdict(training.constraint),
        "stopped": training.stopped,
        "best": training.best,
    }
    save_leaves(file, training.policy.parameters, training.optimizer, facts, training.memory)


def restore(training: Training, file: Path) -> None:
    """Put back what `save` wrote.

    Raises:
        AssetError: the file is truncated or of another run.
    """
    with readable(file):
        place = next(iter(training.policy.parameters.values())).device
        tensors, facts = read_leaves(file, place)
        with torch.no_grad():
            for name, tensor in training.policy.parameters.items():
                tensor.copy_(tensors[name])
        restore_moments(training.optimizer, training.policy.parameters, tensors)
        training.memory = load_memory(file, place)
        training.round_, training.step = int(facts["round"]), int(facts["step"])
        training.micro_batch, training.stopped = int(facts["micro_batch"]), facts["stopped"]
        training.stop, training.constraint = StopState(**facts["stop"]), ConstraintState(**facts["constraint"])
        training.best = None if facts["best"] is None else (int(facts["best"][0]), float(facts["best"][1]))
