"""Many prompts, each into its own run folder, shared by any number of workers.

A worker holds the lock of the prompt that it works on, FOLDER.lock, and writes down in summary.json how it went. What
is "waiting" there and not locked is anybody's: so faster workers do more, and a killed one's prompt is taken over.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from rl3d import runs
from rl3d.errors import InputError, RL3DError
from rl3d.files import file_lock, write_json
from rl3d.preview import view_sheet
from rl3d.priors.protocol import Prior
from rl3d.progress import Progress
from rl3d.rewards.protocol import Reward
from rl3d.text_to_3d.finish import TURNTABLE
from rl3d.text_to_3d.generate import Models, load_models, make_asset, run_config
from rl3d.text_to_3d.options import GenerateOptions
from rl3d.text_to_3d.prompts import clean_prompt, folder_name
from rl3d.workers import ALONE, Worker

SUMMARY, SHEET = "summary.json", "sheet.png"
POLL = 0.2  # seconds between looks at what other workers do
SHEET_PIXELS = 4096  # the sheet is at most about as wide
SHOWN_FROM = 0.6  # radians: a three-quarter view


@dataclass(frozen=True)
class Outcome:
    """What became of a prompt.

    Attributes:
        folder: its run folder, inside the batch's. status: "done" in this call, "skipped" since it was finished before,
        "failed" with its `error`, "waiting" where this worker stopped before the others had finished it.
        seconds: of all stages, or what the failed attempt took. judges: each judge's similarity with the prompt.
    """

    prompt: str
    folder: str
    status: Literal["waiting", "done", "skipped", "failed"] = "waiting"
    error: str | None = None
    seconds: float | None = None
    judges: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.status in ("done", "skipped")


def generate_batch(
    prompts: Sequence[str],
    options: GenerateOptions | None = None,
    out: str | Path = "runs/batch",
    *,
    prior: str | Prior | None = None,
    reward: Reward | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
    worker: Worker = ALONE,
    on_failure: Callable[[Outcome, Exception], None] | None = None,
) -> list[Outcome]:
    """Make an asset of every prompt in a folder of its own under `out`; a prompt that fails stops no other.

    What is finished there is skipped, what is unfinished goes on, what failed is tried again. `out` also gets
    summary.json (the outcomes) and sheet.png (the assets with their prompts).

    Args:
        prompts: one that comes twice is made once.
        options, prior, reward, device: as in `generate`; the models are loaded once.
        overwrite: make all of them anew.
        worker: which of several processes this one is; each makes this call with the same arguments. The first returns
            when everything is decided, another when nothing is left for it to take.
        on_failure: told of each prompt that failed here, and why.

    Returns:
        The outcomes in the order of the prompts.

    Raises:
        RL3DError: nothing can be made at all: no prompt, an unusable `out` or prior, or a folder there that was begun
            with other options.
    """
    options, progress, out = options or GenerateOptions(), progress or Progress(silent=True), Path(out)
    batch = _Batch(out, options, prior, reward, device, progress, on_failure)
    models = None
    if worker.first:
        outcomes, failures = batch.plan(prompts, overwrite)
        if any(o.status == "waiting" for o in outcomes):
            models = batch.load(progress)
        batch.begin(outcomes, overwrite)
        worker.meet()
        for outcome, error in failures:
            batch.tell(outcome, error)
    else:
        models = batch.load(Progress(silent=True))
        if not worker.meet():
            return []
    while any(o.status == "waiting" for o in batch.outcomes()):
        models = models or batch.load(progress)
        if not batch.take_one(models):
            if not worker.first:
                break
            time.sleep(POLL)
    if worker.first:
        batch.end()
    return batch.outcomes()


@dataclass(frozen=True)
class _Batch:
    """The folder of a batch and what all of its prompts share."""

    out: Path
    options: GenerateOptions
    prior: str | Prior | None
    reward: Reward | None
    device: str
    progress: Progress
    on_failure: Callable[[Outcome, Exception], None] | None

    def load(self, progress: Progress) -> Models:
        return load_models(self.options, self.prior, self.reward, self.device, progress)

    def config(self, prompt: str) -> dict[str, Any]:
        return run_config(prompt, self.options, self.prior, self.reward)

    def outcomes(self) -> list[Outcome]:
        """As summary.json has them now."""
        path = self.out / SUMMARY
        try:
            return [Outcome(**record) for record in json.loads(path.read_text(encoding="utf-8"))["prompts"]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} cannot be read ({error}); it was changed by something else") from error

    def _record(self, made: Outcome) -> None:
        """Put one outcome into the summary, which others change too."""
        with file_lock(self.out / f"{SUMMARY}.lock", wait=True):
            self._write([made if o.folder == made.folder else o for o in self.outcomes()])

    def _write(self, outcomes: list[Outcome]) -> None:
        counts = Counter(o.status for o in outcomes)
        totals = {status: counts[status] for status in ("done", "skipped", "failed", "waiting")}
        write_json(self.out / SUMMARY, {**totals, "prompts": [asdict(o) for o in outcomes]})

    def plan(self, prompts: Sequence[str], overwrite: bool) -> tuple[list[Outcome], list[tuple[Outcome, Exception]]]:
        """Look at every prompt and folder before any work; changes nothing.

        Returns:
            The outcomes to begin with, and those that have failed already, since they are no prompts, with the error.
        """
        if not prompts:
            raise InputError("there is no prompt; give at least one")
        runs.check_out(self.out)
        distinct = list(dict.fromkeys(text.strip() for text in prompts))
        if len(distinct) < len(prompts):
            self.progress.note(
                f"{len(prompts) - len(distinct)} of {len(prompts)} prompts came before, and are made once"
            )
        outcomes: list[Outcome] = []
        failures: list[tuple[Outcome, Exception]] = []
        for prompt in distinct:
            folder = self.out / folder_name(prompt)
            outcome = Outcome(prompt.encode(errors="replace").decode(), folder.name)
            try:
                clean_prompt(prompt)
            except InputError as error:
                outcome = replace(outcome, status="failed", error=str(error))
                failures.append((outcome, error))
            else:
                runs.check_out(folder, resume=True, overwrite=overwrite)
                if not overwrite:
                    runs.check_config(folder, self.config(prompt))
                    if runs.status(folder) == "finished":
                        outcome = replace(outcome, status="skipped", **_facts(folder))
            outcomes.append(outcome)
        return outcomes, failures

    def begin(self, outcomes: list[Outcome], overwrite: bool) -> None:
        """Write the first summary."""
        if overwrite:
            for outcome in outcomes:
                runs.clear(self.out / outcome.folder)
        with file_lock(self.out / f"{SUMMARY}.lock", wait=True):
            self._write(outcomes)

    def take_one(self, models: Models) -> bool:
        """Make the first of the waiting prompts that nobody else is making; False where there is none."""
        outcomes = self.outcomes()
        for i, outcome in enumerate(outcomes):
            if outcome.status != "waiting":
                continue
            with file_lock(self.out / f"{outcome.folder}.lock") as mine:
                if not mine or outcome not in self.outcomes():  # somebody has it, or has made it meanwhile
                    continue
                line = f"[{i + 1}/{len(outcomes)}] {outcome.prompt}"
                self.progress.note(line)
                made, error = self._make(outcome, models)
                self._record(made)
                if error is None:
                    self.progress.note(f"{line}: done in {made.seconds:.0f} s")
                else:
                    self.tell(made, error)
            return True
        return False

    def _make(self, outcome: Outcome, models: Models) -> tuple[Outcome, Exception | None]:
        folder, began = self.out / outcome.folder, time.monotonic()
        try:
            with runs.Run.open(folder, self.config(outcome.prompt), sys.argv, resume=True) as run:
                make_asset(run, outcome.prompt, self.options, models, self.progress)
            return replace(outcome, status="done", **_facts(folder)), None
        except Exception as error:  # whatever it was: the other prompts are not to blame
            runs.discard_barren(folder)
            text = str(error) if isinstance(error, RL3DError) else f"{type(error).__name__}: {error}"
            line, seconds = " ".join(text.split()), round(time.monotonic() - began, 3)
            return replace(outcome, status="failed", error=line, seconds=seconds), error

    def tell(self, outcome: Outcome, error: Exception) -> None:
        if self.on_failure is not None:
            self.on_failure(outcome, error)

    def end(self) -> None:
        """The sheet, and a last line."""
        outcomes = self.outcomes()
        made = [o for o in outcomes if o.finished and (self.out / o.folder / TURNTABLE).exists()]
        if made:
            write_sheet([self.out / o.folder for o in made], [o.prompt for o in made], self.out / SHEET)
        counts = Counter(o.status for o in outcomes)
        parts = ", ".join(f"{counts[status]} {status}" for status in ("done", "skipped", "failed") if counts[status])
        self.progress.note(f"{len(outcomes)} prompts: {parts}; see {self.out / SUMMARY}")


def _facts(folder: Path) -> dict[str, Any]:
    """Seconds, judges and warnings of an outcome from a finished run's report."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        stages, judges = report["stages"].values(), report["judges"].items()
        return {
            "seconds": round(sum(stage["seconds"] for stage in stages), 3),
            "judges": {name: verdict["similarity"] for name, verdict in judges if name != "unknown_words"},
            "warnings": report["warnings"],
        }
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete that folder to make it again") from error


def write_sheet(folders: Sequence[Path], labels: Sequence[str], out: Path) -> Path:
    """One picture of finished runs, from their turntables, with a label under each."""
    columns = math.ceil(math.sqrt(len(folders)))
    side = min(256, SHEET_PIXELS // columns)
    pictures = []
    for folder in folders:
        with Image.open(folder / TURNTABLE) as turn:
            frames = getattr(turn, "n_frames", 1)
            turn.seek(round(SHOWN_FROM / (2 * math.pi) * frames) % frames)
            picture = np.array(turn.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
        pictures.append(torch.from_numpy(picture).movedim(-1, 0) / 255)
    return view_sheet(pictures, out, columns=columns, labels=labels)
