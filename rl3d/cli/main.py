"""The `rl3d` command: finds the subcommand, imports only that one, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 something broke (or `doctor` found it broken), 2 the input was wrong, 130 interrupted, 141 nobody
reads the output, 143 terminated.
Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, NoReturn

from rl3d import __version__
from rl3d.errors import InputError, RL3DError, nearest, way_out

COMMANDS = {
    "generate": "turn a sentence into a checked 3D asset",
    "finetune": "tune a multi-view prior on a reward",
    "complete": "complete a partial point cloud, as points or as a mesh",
    "layout": "furnish rooms with a learned policy, train it, or score a room",
    "render": "render a turntable of a mesh, splat or field file",
    "score": "judge how well 3D files match a sentence",
    "mesh": "write low-poly meshes face by face, and measure meshes",
    "rewards": "list the embedded rewards, or check whether one prefers a hack",
    "doctor": "report what this installation can do and what is broken",
}


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised as an exception so that temporary files are removed on the way out."""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument as one InputError instead of the usage text."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The whole parser, with the arguments of `command` only: the other modules stay unimported."""
    parser = _Parser(
        prog="rl3d",
        description="Aligns 3D generation with rewards: text to 3D on one differentiable renderer, on CPU and GPU.",
        epilog="rl3d COMMAND --help describes a command. Results go to stdout, progress to stderr.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rl3d {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks (also: RL3D_DEBUG=1)")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        sub = subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        if name == command:
            _module(name).add_arguments(sub)
            sub.set_defaults(parser=sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; never raises, never exits the process. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("RL3D_DEBUG", "0") not in ("", "0")
    # Read once, when torch loads. OpenMP's workers spin while they wait for each other: for as long as is usual, they
    # starve whatever shares the machine (two runs on two cores: 50 times as slow); not at all, a run alone on two cores
    # is as slow as on one. This is some tens of microseconds.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    try:
        with _sigterm_raises():
            code = _run(arguments)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # The reader (head, less) has gone. Python would complain once more when it flushes stdout at exit.
        _silence_stdout()
        return 141
    except SystemExit as stop:  # --help and --version
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt as stop:
        name, code = ("terminated", 143) if isinstance(stop, _Terminated) else ("interrupted", 130)
        return _fail(name, code, _resume_hint(arguments))
    except RL3DError as error:
        if debug:
            traceback.print_exc()
        return _fail("error", 2, str(error))
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _fail("error", 1, _explain(error))


def _run(arguments: list[str]) -> int:
    command = next((a for a in arguments if not a.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        raise InputError(f"unknown command {command!r}; {way_out(command, COMMANDS)}")
    parser = build_parser(command)
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        _refuse_arguments(getattr(args, "parser", parser), unknown)
    if command is None:
        parser.print_help()
        return 2 if arguments else 0
    args.argv = arguments
    return int(_module(command).run(args))


def _module(command: str) -> Any:
    return import_module(f"rl3d.cli.{command}")


def _refuse_arguments(parser: argparse.ArgumentParser, unknown: list[str]) -> NoReturn:
    word = unknown[0].partition("=")[0]
    close = nearest(word, [option for action in parser._actions for option in action.option_strings])
    if word.startswith("-"):
        hint = f"did you mean {close[0]}?" if close else f"see {parser.prog} --help"
        raise InputError(f"unknown option {word}; {hint}")
    raise InputError(f"unexpected argument {word!r}; put a text of several words in quotes, see {parser.prog} --help")


def _fail(name: str, code: int, message: str) -> int:
    line = " ".join(message.split())
    print(f"rl3d: {name}: {line}" if line else f"rl3d: {name}", file=sys.stderr)
    return code


def _explain(error: Exception) -> str:
    """One line for an exception that no command expected."""
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        return "out of memory; close other programs, or ask for less (--preset draft, --best-of 1, a smaller --size)"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space left on the disk{f' for {error.filename}' if error.filename else ''}; free some, then --resume"
        )
    return f"internal error: {type(error).__name__}: {text}; please report it, with the output of --debug"


def _resume_hint(arguments: list[str]) -> str:
    """How to go on, for a command that can."""
    try:
        command = next(a for a in arguments if a in COMMANDS)
        args, _ = build_parser(command).parse_known_args(arguments)
        hint = getattr(_module(command), "can_resume", None)
        if hint is None or not hint(args):
            return ""
    except (StopIteration, RL3DError):
        return ""
    again = [a for a in arguments if a not in ("--resume", "--overwrite")]
    return f"go on with: rl3d {shlex.join([*again, '--resume'])}"


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _Terminated

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _silence_stdout() -> None:
    with suppress(OSError, ValueError):  # stdout is closed, or not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
