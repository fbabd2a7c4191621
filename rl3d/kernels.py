"""How numba compiles the kernels of this package, and word of it when it does.

A kernel is compiled when it is first called and kept on disk. The first compilation of a process logs one line, at
level INFO, to the logger "rl3d.kernels"; the command line shows it. A kernel that is found on disk logs nothing.
"""

from __future__ import annotations

import logging

from numba.core import event

MESSAGE = (
    "compiling kernels for this machine, each when it is first needed: about half a minute in all, once; "
    "later runs load them"
)


def prange_only() -> dict[str, bool]:
    """numba's `parallel=` for a kernel whose only parallel loops are the `prange` that it says.

    With `True`, every fill and copy of an array becomes a parallel loop too, and each costs a compilation of its own.
    A new dict each time: numba empties what it is given.
    """
    return dict.fromkeys(
        ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"), False
    )


class _Word(event.Listener):  # type: ignore[misc]
    """Logs once when a function of this package is really compiled: numba tells no event where it loads one."""

    def __init__(self) -> None:
        self.told = False

    def on_start(self, event: event.Event) -> None:
        if not self.told and event.data["dispatcher"].py_func.__module__.startswith("rl3d."):
            self.told = True
            logging.getLogger(__name__).info(MESSAGE)

    def on_end(self, event: event.Event) -> None:
        pass


WORD = _Word()
event.register("numba:compile", WORD)
