"""How a round is cut into micro-batches, solved from prompts, group, processes and the memory there is.

Any numbers go together: a process with fewer groups waits, the last micro-batch is smaller, and where not even one
sample would fit by the measurement, one is tried.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """How a round is cut.

    Attributes:
        samples: of the round, over all processes. rows: of the process with the most.
        micro_batch: view groups at once. micros: micro-batches of that process, whose gradients add up to one step.
        busy, processes: how many processes have work, and how many there are.
        sample_bytes, budget: what was measured of one sample and what there was for all at once; None: unknown.
    """

    samples: int
    rows: int
    micro_batch: int
    micros: int
    busy: int
    processes: int
    sample_bytes: int | None = None
    budget: int | None = None

    def text(self) -> str:
        """In words, one line."""
        waiting = self.processes - self.busy
        idle = f", {waiting} of {self.processes} processes idle (set prompts_per_round higher)" if waiting else ""
        memory = ""
        if self.sample_bytes is not None and self.budget is not None:
            memory = f"; a sample keeps {_size(self.sample_bytes)}, {_size(self.budget)} may be used"
        return (
            f"{self.samples} samples a round: {self.micros} micro-batches of up to {self.micro_batch} view groups on "
            f"each of {self.busy} processes{idle}{memory}"
        )


def cut(
    prompts: int,
    group: int,
    processes: int,
    at_most: int,
    *,
    together: int = 1,
    sample_bytes: int | None = None,
    budget: int | None = None,
) -> Geometry:
    """The fewest micro-batches that fit, all of them as small as that number allows.

    Args:
        prompts, group: of a round, whose groups the processes share. at_most: view groups at once.
        together: neighbouring samples that stay in one micro-batch; it divides `group`.
        sample_bytes: what one sample needs at once, forward and backward. budget: bytes for all of them; with either
            None memory is not looked at.
    """
    rows = -(-prompts // processes) * group
    fits = at_most
    if sample_bytes is not None and budget is not None:
        fits = min(fits, budget // max(1, sample_bytes))
    largest = max(together, min(fits, rows) // together * together)
    micros = -(-rows // largest)
    even = -(-rows // micros)
    micro_batch = -(-even // together) * together  # still at most the largest, which is a multiple too
    busy = min(prompts, processes)
    return Geometry(prompts * group, rows, micro_batch, micros, busy, processes, sample_bytes, budget)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
