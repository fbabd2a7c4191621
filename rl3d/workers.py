"""Processes that share work through files, such as those that `accelerate launch` starts. None of it imports torch
unless there are several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

# By any of these accelerate knows that it was launched: torch's launcher, which it uses itself, and those of MPI.
LAUNCHERS = ("LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
ONE_INSTEAD = (
    "accelerate launch started one process only; --num_processes needs --multi_gpu in place of --cpu, on a CPU too"
)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Worker:
    """One of `count` processes. The first, `index` 0, owns the result; `local_index` counts on its own machine."""

    index: int = 0
    count: int = 1
    local_index: int = 0

    @property
    def first(self) -> bool:
        return self.index == 0

    def meet(self) -> bool:
        """Wait until every worker is here; once a process.

        Returns:
            False where that will not happen: one of them has ended.
        """
        if self.count == 1:
            return True
        from accelerate import PartialState

        state = PartialState()
        try:
            state.wait_for_everyone()
        except RuntimeError:  # torch's, when a connection is closed
            return False
        state.destroy_process_group()  # files do the rest, so that nobody hangs on a process that was killed
        return True

    def device(self, name: str) -> str:
        """`name`, or for "cuda" the GPU that is this worker's."""
        if self.count == 1 or name != "cuda":
            return name
        import torch

        return f"cuda:{self.local_index % torch.cuda.device_count()}"


ALONE = Worker()


def launched() -> bool:
    """Whether something started this process with others."""
    return any(name in os.environ for name in LAUNCHERS)


def current() -> Worker:
    """This process as accelerate sees it; `ALONE` where nothing launched it with others.

    With others, numba takes as many threads as torch was given.
    """
    if not launched():
        return ALONE
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=True)  # over gloo, whatever the device: workers exchange nothing but a greeting
    if state.num_processes == 1:
        return ALONE
    os.environ.setdefault("NUMBA_NUM_THREADS", str(torch.get_num_threads()))  # read when numba is imported
    return Worker(state.process_index, state.num_processes, state.local_process_index)


def launched_one_of_many() -> bool:
    """Whether `accelerate launch` was asked for several processes, and began a single one, as it does on CPUs."""
    asked = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    return asked and not launched()


def share_gradients(tensors: Iterable[Tensor], accelerator: Accelerator) -> None:
    """Every gradient becomes its sum over the processes, in one message; a tensor without one counts as 0."""
    if accelerator.num_processes == 1:
        return
    import torch

    whole = list(tensors)
    slopes = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in whole]
    total = accelerator.reduce(torch.cat([slope.flatten() for slope in slopes]), "sum")
    for tensor, piece in zip(whole, total.split([slope.numel() for slope in slopes])):
        tensor.grad = piece.view_as(tensor).clone()


def spread(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    processes: int,
    prepare: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """`function` of every item, in their order, by so many fresh processes of one thread each.

    All of it must be importable: no lambdas.

    Args:
        prepare: called with `arguments` once in each process, before its first item.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Fresh ones: what OpenMP and numba's threads hold does not survive a fork.
    start = multiprocessing.get_context("spawn")
    setting = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    os.environ.update(dict.fromkeys(setting, "1"))  # children read it when they load torch and numba
    try:
        with ProcessPoolExecutor(processes, start, prepare, arguments) as pool:
            yield from pool.map(function, items)
    finally:
        for name, value in setting.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
