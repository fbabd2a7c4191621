"""Progress on stderr: a bar on a terminal, one line every few seconds elsewhere, nothing when silent."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Stage:
    """The current stage: call `step` after each unit of work, or hand `at` to a loop that reports (step, steps)."""

    def __init__(self, name: str, total: int, done: int = 0, show: Callable[[Stage], None] | None = None) -> None:
        self.name = name
        self.total = total
        self.done = done
        self.numbers: dict[str, Any] = {}
        self._show = show
        self._first = done
        self._began = time.monotonic()

    def step(self, count: int = 1, /, **numbers: Any) -> None:
        """`count` more steps are done; `numbers` (loss=0.1) are shown beside them."""
        self.at(self.done + count, **numbers)

    def at(self, done: int, total: int | None = None, /, **numbers: Any) -> None:
        """`done` steps are done in all."""
        self.done = done
        self.total = self.total if total is None else total
        self.numbers.update(numbers)
        if self._show is not None:
            self._show(self)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Steps a second since the stage began here; what a resumed run had done before does not count."""
        return (self.done - self._first) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.done > self._first else None

    def line(self) -> str:
        """stage step/total, percent, rate, time left, numbers."""
        parts = [f"{self.name} {self.done}/{self.total}", f"{100 * self.done / max(self.total, 1):3.0f}%"]
        if self.seconds_left is not None:
            parts += [_rate(self.rate), f"ETA {_clock(self.seconds_left)}"]
        return "  ".join([*parts, *_numbers(self.numbers)])


class Progress:
    """Shows stages one after the other.

    Args:
        stream: where to; default stderr (looked up when a stage begins).
        interval: seconds between lines where the stream is not a terminal.
        silent: show nothing.
        aside: show notes only, each with this text before it: one of several processes that share a terminal.
    """

    def __init__(
        self, stream: TextIO | None = None, interval: float = 5.0, silent: bool = False, aside: str = ""
    ) -> None:
        self._stream = stream
        self._interval = interval
        self._silent = silent
        self._aside = aside

    @property
    def stream(self) -> TextIO:
        return self._stream or sys.stderr

    def note(self, text: str) -> None:
        """A line beside the stages, such as a warning; above the bar where there is one."""
        if self._silent:
            return
        if self._aside:
            over_the_bar = "\r\x1b[K" if self.stream.isatty() else ""  # another process's, which draws it again
            print(f"{over_the_bar}{self._aside}{text}", file=self.stream, flush=True)
        elif self.stream.isatty():
            from tqdm import tqdm

            tqdm.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    @contextmanager
    def notes_of(self, logger: str) -> Iterator[None]:
        """Show what a logger tells at level INFO or above as notes."""
        handler, source = _Notes(self), logging.getLogger(logger)
        level = source.level
        source.addHandler(handler)
        source.setLevel(logging.INFO)
        try:
            yield
        finally:
            source.setLevel(level)
            source.removeHandler(handler)

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        """Show one stage of `total` steps, of which `done` were done before (a resumed run)."""
        if self._silent or self._aside:
            yield Stage(name, total, done)
        elif self.stream.isatty():
            with _bar(name, total, done, self.stream) as stage:
                yield stage
        else:
            yield from self._lines(name, total, done)

    def _lines(self, name: str, total: int, done: int) -> Iterator[Stage]:
        last = time.monotonic()

        def show(stage: Stage) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= self._interval:
                last = now
                print(stage.line(), file=self.stream, flush=True)

        stage = Stage(name, total, done, show)
        print(f"{name} {done}/{total}", file=self.stream, flush=True)
        yield stage
        numbers = "  ".join(_numbers(stage.numbers))
        print(f"{name} done in {_clock(stage.seconds)}  {numbers}".rstrip(), file=self.stream, flush=True)


class _Notes(logging.Handler):
    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.note(record.getMessage())


@contextmanager
def _bar(name: str, total: int, done: int, stream: TextIO) -> Iterator[Stage]:
    from tqdm import tqdm

    with tqdm(total=total, initial=done, desc=name, file=stream, dynamic_ncols=True) as bar:

        def show(stage: Stage) -> None:
            bar.total = stage.total
            bar.set_postfix_str("  ".join(_numbers(stage.numbers)), refresh=False)
            bar.update(stage.done - bar.n)

        yield Stage(name, total, done, show)


def _numbers(numbers: dict[str, Any]) -> list[str]:
    return [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in numbers.items()]


def _rate(rate: float) -> str:
    return f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
