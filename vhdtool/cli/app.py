"""The ``vhdtool`` group: finds a command's module when it is called, and ends the process properly.

A command's module is imported only when that command runs; ``--help`` lists them from the table below, so
that it costs no more than click.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

import vhdtool
from vhdtool.cli.faults import ReaderLeft, Stopped, exit_code_of, is_broken_pipe

if TYPE_CHECKING:
    from types import FrameType

# Name and one line of help; the module has the same name, a test keeps the lines in step with it.
COMMANDS: Final[dict[str, str]] = {
    "info": "Show one image's headers, sizes, identities and findings.",
    "chain": "Show LEAF and every parent it reads through.",
    "tree": "Draw every image below the folders as a forest.",
    "check": "List all findings of images, chains or whole folders.",
    "map": "List the virtual disk as extents with their origin.",
    "explain": "Show how one sector is read: the walk through every layer, down to the bytes.",
    "report": "Write one page about a chain: layers, heat map, cost of depth, findings.",
    "simulate": "Count what the lookups of a workload cost, and predict what devices make of it.",
    "read": "Write bytes of the virtual disk to stdout.",
    "export": "Write the disk that LEAF's guest would see to TARGET, as one image.",
    "verify": "Check an exported image against its manifest, or against its chain with --against.",
    "merge": "Fold LEAF and everything that it reads through into one new full image.",
    "compare": "Compare the virtual content of two images or points in time.",
    "diff": "List the ranges that can differ between two points in time, from metadata alone.",
    "create": "Make a new image, empty or filled from a raw one.",
    "snapshot": "Make a new differencing child of an image.",
    "bench": "Measure what reading through snapshots costs on this machine.",
    "completion": "Print the completion script of a shell.",
}
_OPEN_FILES: Final = 1024
COMPLETE_VARIABLE: Final = "_VHDTOOL_COMPLETE"


class VhdtoolGroup(click.Group):
    """A group whose commands are modules, imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which one meets them, not the alphabet's."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"vhdtool.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the options in front of the command; Ctrl-C as in ``invoke``."""
        try:
            return super().make_context(*args, **extra)
        except KeyboardInterrupt as interrupt:
            raise Stopped from interrupt

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Ctrl-C and closed pipes are caught here, before click does what it does about them: print an empty
        line for the one, exit with a code of its own for the other.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Stopped from interrupt
        except OSError as error:
            if is_broken_pipe(error):
                raise ReaderLeft from error
            raise

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and turn whatever happens into a message and an exit code."""

        if args is None:
            args = expanded(sys.argv[1:]) if os.name == "nt" and windows_expand_args else sys.argv[1:]
        # For the foot of pages: what was typed.
        extra.setdefault("obj", tuple(args))

        def run() -> Any:
            return super(VhdtoolGroup, self).main(
                args=args,
                prog_name="vhdtool",
                complete_var=COMPLETE_VARIABLE,
                standalone_mode=False,
                windows_expand_args=False,
                **extra,
            )

        if not standalone_mode:
            return run()
        allow_many_files()
        stop_on_signals()
        if os.environ.get(COMPLETE_VARIABLE, "").startswith("powershell"):
            from vhdtool.cli.powershell import add_powershell

            add_powershell()
        raise SystemExit(exit_code_of(run))


class Stopper:
    """A handler of signals that stops the job, and lets it clean up after that.

    A second and third signal, of somebody who cannot wait, must not leave half of the files there.  More of
    them are meant.
    """

    _PASSED_OVER: Final = (2, 3)

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal.

        Raises:
            KeyboardInterrupt: the job is to stop.
        """
        self._count += 1
        if self._count not in self._PASSED_OVER:
            raise KeyboardInterrupt


def stop_on_signals() -> None:
    """Let Ctrl-C, SIGHUP (the session ended) and SIGTERM stop a job with nothing left behind."""
    stopper = Stopper()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is None:
            continue
        current = signal.getsignal(number)
        # nohup has SIGHUP ignored, and means it.
        if current in (signal.SIG_DFL, signal.default_int_handler) or isinstance(current, Stopper):
            signal.signal(number, stopper)


def allow_many_files() -> None:
    """Raise this process's limit of open files: a chain holds one a layer, and macOS begins with 256."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # then a deep chain says that there are too many
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def expanded(args: Sequence[str]) -> list[str]:
    r"""Arguments with ``*`` and ``?`` replaced by the files they match, as Windows leaves it to programs.

    Not as click does it: ``disk[1].vhdx`` is the name of a file here and never means ``disk1.vhdx``, and
    ``~`` and ``$`` are characters like any other.
    """
    from glob import glob

    found: list[str] = []
    for arg in args:
        # Long paths begin with a question mark that is none.
        is_pattern = ("*" in arg or "?" in arg) and not arg.startswith("\\\\?\\")
        matches = sorted(glob(arg.replace("[", "[[]"))) if is_pattern else []  # noqa: PTH207
        found.extend(matches or [arg])
    return found


@click.group(
    cls=VhdtoolGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Sizes take plain bytes or a unit: 65536, 64KiB, 4MiB, 1GiB, 128s (sectors of 512 bytes).",
)
@click.version_option(vhdtool.__version__, prog_name="vhdtool")
def cli() -> None:
    """Read VHD, VHDX and Hyper-V snapshot chains offline, and export any point in time exactly.

    Inputs are never written.
    """
