"""The one place where an error becomes a message and an exit code; no traceback leaves it."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, Final

import click

from vhdtool.errors import EXIT_INTERRUPTED, EXIT_IO, VhdtoolError, printable

# Not in the table of promises: it means that vhdtool itself is wrong.
EXIT_FAULT: Final = 70


class Stopped(Exception):  # noqa: N818
    """The user pressed Ctrl-C."""


class ReaderLeft(Exception):  # noqa: N818
    """Nobody reads our standard output any more: no reason to say anything."""


def exit_code_of(action: Callable[[], Any]) -> int:
    """Run ``action``; what it raised becomes a message on stderr, and the process's exit code is returned.

    Bytes still buffered for stdout are written here, so that a full disk is noticed.
    """
    _accept_any_text()
    try:
        result = action()
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as stop:
        return _code(stop.code)
    except Exception as error:  # noqa: BLE001
        return _report(error)
    except KeyboardInterrupt:
        return _stopped()
    return _code(result)


def _report(error: Exception) -> int:
    """Say what happened in one line; the exit code for it."""
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, (Stopped, click.Abort)):
        return _stopped(str(error))
    if isinstance(error, ReaderLeft):
        return _silence_stdout()
    if isinstance(error, VhdtoolError):
        if is_broken_pipe(error.__cause__):
            return _silence_stdout()
        say(f"error: {error}")
        return error.exit_code
    if isinstance(error, MemoryError):
        say("error: not enough memory")
        return EXIT_IO
    if isinstance(error, OSError):
        code = _silence_stdout()
        if not is_broken_pipe(error):
            place = "" if error.filename is None else f" {error.filename}"
            say(f"error: cannot read or write{place}: {error.strerror or error}")
        return code
    if os.environ.get("VHDTOOL_DEBUG"):
        raise error
    say(f"error: a fault in vhdtool itself, please report it: {_place_of(error)}{error!r}")
    return EXIT_FAULT


def say(message: str) -> None:
    """One line to stderr; that stderr is gone is no reason to fail."""
    try:
        click.echo(printable(message), err=True)
    except OSError:
        return


def _stopped(how_to_go_on: str = "") -> int:
    say("error: stopped by the user" + (f"; {how_to_go_on}" if how_to_go_on else ""))
    return EXIT_INTERRUPTED


def _code(value: object) -> int:
    """An exit code from what a command returned or asked ``sys.exit`` for."""
    if isinstance(value, int):
        return value
    return 0 if value is None else 1


def is_broken_pipe(error: BaseException | None) -> bool:
    """Whether ``error`` says that nobody reads what we write."""
    # Windows reports a closed pipe as EINVAL, but so it does much else.
    return isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno == errno.EPIPE)


def _silence_stdout() -> int:
    """Keep the interpreter from trying, and failing, once more to write what is still buffered."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):  # no real file: a test's stand-in, or none at all
        return EXIT_IO
    return EXIT_IO


def _accept_any_text() -> None:
    """Let stdout and stderr print any name: what their encoding lacks is printed escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _place_of(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    name = os.path.basename(trace.tb_frame.f_code.co_filename)  # noqa: PTH119
    return f"{name}:{trace.tb_lineno}: "
