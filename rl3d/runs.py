"""Run folders: what was asked for, on what machine, what happened, and how far it came.

config.json       the resolved configuration
command.txt       the command line
environment.json  versions and hardware; no host names, no paths
metrics.jsonl     one JSON object a line: stage, step, seconds, numbers
state.json        finished stages with seconds and peak memory; "finished": true at the very end
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rl3d.environment import PeakMemory, environment
from rl3d.errors import ConfigError, InputError
from rl3d.files import atomic_write_text, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

RUN_FILES = ("config.json", "command.txt", "environment.json", "metrics.jsonl", "state.json", "checkpoints")
RESULT_FILES = (
    "report.json",
    "report.html",
    "asset.glb",
    "asset.ply",
    "asset.safetensors",
    "turntable.webp",
    "views.png",
)
LEAST_FREE_MIB = 64  # a run leaves a few MiB; checkpoints a few more

Status = Literal["empty", "unfinished", "finished", "foreign"]


def status(folder: str | Path) -> Status:
    """What a folder holds: nothing of ours, a run to go on with, a finished run, or results without a run's state."""
    folder = Path(folder)
    state = _read_state(folder)
    if state is not None:
        return "finished" if state.get("finished") else "unfinished"
    if (folder / "config.json").exists() and (folder / "command.txt").exists():
        return "unfinished"
    return "foreign" if any((folder / name).exists() for name in RESULT_FILES + RUN_FILES) else "empty"


def finished_stages(folder: str | Path) -> list[str]:
    """The stages that the run in a folder has finished, in order; empty where there is no run."""
    return list((_read_state(Path(folder)) or {"stages": {}})["stages"])


def check_out(folder: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse an output folder that cannot be written or holds something that would be lost. Changes nothing.

    Raises:
        InputError: says which, and the way out.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file; give a folder")
    home = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        # The only test that tells the truth for root, read-only mounts and access lists alike.
        with tempfile.TemporaryFile(dir=home):
            pass
        free = shutil.disk_usage(home).free // 2**20
    except OSError as error:
        raise InputError(f"cannot write --out {folder}: {error.strerror or error}; choose another folder") from error
    if free < LEAST_FREE_MIB:
        raise InputError(f"--out {folder} has {free} MiB free, a run needs {LEAST_FREE_MIB}; choose another disk")
    found = status(folder)
    if overwrite or found == "empty" or (resume and found != "foreign"):
        return
    if found == "unfinished":
        raise InputError(f"--out {folder} holds an unfinished run; add --resume to go on or --overwrite to start anew")
    what = "a finished run" if found == "finished" else "results that no run of rl3d accounts for"
    raise InputError(f"--out {folder} holds {what}; choose another folder or add --overwrite")


def clear(folder: str | Path) -> None:
    """Remove a run's own files and results from a folder, and the folder if nothing else is in it."""
    folder = Path(folder)
    for name in ("state.json", *RESULT_FILES, *RUN_FILES):  # the state first: what is half removed is no finished run
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def discard_barren(folder: str | Path) -> None:
    """Leave nothing behind of a run that was refused before any stage was finished."""
    if status(folder) == "unfinished" and not finished_stages(folder):
        clear(folder)


def check_config(folder: str | Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that differs from the one that the run in `folder`, if there is one, was begun with.

    Raises:
        ConfigError: names the first key that differs. InputError: what the folder says of it cannot be read.
    """
    folder = Path(folder)
    if status(folder) != "empty" and (folder / "config.json").exists():
        _same_config(folder, json.loads(json.dumps(config, allow_nan=False)))


class Run:
    """An open run folder. Make one with `Run.open`, close it with `finish` or by leaving its `with` block.

    `config` is what decides the result, as plain values.
    """

    def __init__(self, folder: Path, state: dict[str, Any], config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config
        self._state = state
        self._began = time.monotonic()
        self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")

    @classmethod
    def open(
        cls, folder: str | Path, config: Mapping[str, Any], command: Sequence[str], *, resume: bool = False
    ) -> Run:
        """Begin a run, or go on with one.

        Args:
            config: what decides the result, JSON-able; a resumed run must have been begun with the same.
            command: the words of the command line.
            resume: go on where `folder` stopped; a folder without a run begins one.

        Raises:
            ConfigError: the run to resume was begun with another configuration.
            InputError: the folder cannot be written, or holds a run and `resume` is false.
        """
        folder = Path(folder)
        found = status(folder)
        if found in ("unfinished", "finished") and not resume:
            raise InputError(f"{folder} holds a run already; resume it, or choose another folder")
        plain = json.loads(json.dumps(config, allow_nan=False))
        if resume:
            check_config(folder, plain)
        write_json(folder / "config.json", plain)
        # Where the program is installed is nobody's business; `python -m rl3d` shows up as __main__.py.
        program = Path(command[0]).name.replace("__main__.py", "rl3d") if command else "rl3d"
        atomic_write_text(folder / "command.txt", shlex.join([program, *command[1:]]) + "\n")
        write_json(folder / "environment.json", environment())
        metrics = folder / "metrics.jsonl"
        state = _read_state(folder) if resume else None
        if state is None:
            state = {"finished": False, "stages": {}}
            metrics.unlink(missing_ok=True)
        elif metrics.exists():
            _mend_tail(metrics)
        run = cls(folder, state, plain)
        run._save()
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """Finished stages: {"seconds", "peak_memory_mib", facts...} by name, for the report."""
        return dict(self._state["stages"])

    @property
    def finished(self) -> bool:
        return bool(self._state["finished"])

    def is_done(self, stage: str) -> bool:
        return stage in self._state["stages"]

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a stage and watch its memory; marked as finished when the block ends without an error.

        The yielded dict takes facts to keep with it (JSON-able). Seconds and peak of an interrupted attempt are not
        kept; put what an earlier attempt spent into the facts if it matters.
        """
        facts: dict[str, Any] = {}
        began = time.monotonic()
        with PeakMemory() as memory:
            yield facts
        measured = {"seconds": round(time.monotonic() - began, 3), "peak_memory_mib": memory.mib}
        self._state["stages"][name] = {**measured, **facts}
        self._save()

    def log(self, stage: str, step: int, **numbers: float | int | str | bool | None) -> None:
        """Append a line to metrics.jsonl, at once on disk. NaN and infinities are written as text ("nan")."""
        row = {"stage": stage, "step": step, "seconds": round(time.monotonic() - self._began, 3)}
        self._metrics.write(json.dumps({**row, **{k: _plain(v) for k, v in numbers.items()}}, allow_nan=False) + "\n")
        self._metrics.flush()

    def rewind(self, stage: str, step: int) -> None:
        """Drop a stage's lines after `step`: a run that resumes from the checkpoint of `step` will write them again."""
        path = self.folder / "metrics.jsonl"
        rows = [r for r in read_metrics(path) if r.get("stage") != stage or r.get("step", 0) <= step]
        self._metrics.close()
        atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._metrics = path.open("a", encoding="utf-8")

    def adopt(self, other: str | Path) -> None:
        """Take over the finished stages of the run in the folder `other` that this one lacks, with their metrics."""
        stages = (_read_state(Path(other)) or {"stages": {}})["stages"]
        missing = {name: facts for name, facts in stages.items() if not self.is_done(name)}
        if not missing:
            return
        rows = [row for row in read_metrics(Path(other) / "metrics.jsonl") if row.get("stage") in missing]
        for name in {row["stage"] for row in rows}:
            self.rewind(name, -1)  # of an attempt that was interrupted
        self._metrics.write("".join(json.dumps(row) + "\n" for row in rows))
        self._metrics.flush()
        self._state["stages"].update(missing)
        self._save()

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write report.json, then mark the run as finished; nothing looks finished before this."""
        write_json(self.folder / "report.json", report)
        self._state["finished"] = True
        self._save()
        self._metrics.close()

    def _save(self) -> None:
        write_json(self.folder / "state.json", self._state)


@contextmanager
def opened_by_first(
    folder: Path, config: Mapping[str, Any], resume: bool, accelerator: Accelerator
) -> Iterator[Run | None]:
    """`Run.open` by the first process, with this program's command line; the others wait for it, and get None."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        yield None
        return
    with Run.open(folder, config, sys.argv, resume=resume) as run:
        accelerator.wait_for_everyone()
        yield run


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that a kill tore is left out.

    Raises:
        InputError: an earlier line is not a JSON object.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        row = _json_object(line)
        if row is not None:
            rows.append(row)
        elif line.strip() and number < len(lines):  # the piece after the last newline may be torn
            raise InputError(f"{path}, line {number} is not a JSON object; the file was changed by something else")
    return rows


def _read_state(folder: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        state = None
    if not isinstance(state, dict) or not isinstance(state.get("stages"), dict):
        raise InputError(f"{folder / 'state.json'} is not a run's state; choose another folder")
    return state


def _same_config(folder: Path, config: dict[str, Any]) -> None:
    try:
        begun = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'} cannot be read; choose another folder") from error
    before, now = _flat(begun), _flat(config)
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ConfigError(
            f"{folder} was begun with {key} = {before.get(key)!r}, now it is {now.get(key)!r}{more};"
            " resume with the same configuration or choose another folder"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix.rstrip("."): value}
    return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{prefix}{name}.").items()}


def _mend_tail(path: Path) -> None:
    """Cut a torn last line off, so that the next one begins on its own line."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        with path.open("r+b") as stream:
            stream.truncate(whole)


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _plain(value: Any) -> Any:
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value
