"""Runs commands of vhdtool, each in a process of its own that is forked from this one.

Starting an interpreter for each of a thousand commands would take minutes; a fork costs milliseconds and
runs the same ``main``.  Requests and answers are lines of JSON::

    {"argv": [...], "stdout": path, "stderr": path, "seconds": 20}
    {"exit": 65, "signal": 0, "peak_kib": 61000, "seconds": 0.02}
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one command.

    Attributes:
        exit_code: 128 + the signal's number when one ended it.
        peak_mib: of its memory, the interpreter included.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    peak_mib: float
    seconds: float

    @property
    def text(self) -> str:
        """All that a user sees."""
        return (self.stdout + self.stderr).decode("utf-8", "surrogateescape")


class Runner:
    """A warm process that forks one child for each command."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
            "COLUMNS": "100",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.catalogue.runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def run(self, argv: list[str], *, seconds: int = 20) -> Outcome:
        """Run ``vhdtool argv``; a command that takes longer is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out, err = self._scratch / "stdout", self._scratch / "stderr"
        request = {"argv": argv, "stdout": str(out), "stderr": str(err), "seconds": seconds}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Outcome(
            answer["exit"], out.read_bytes(), err.read_bytes(), answer["peak_kib"] / 1024, answer["seconds"]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def _child(argv: list[str], stdout: str, stderr: str, seconds: int) -> None:
    """The forked process: never returns."""
    code = 70
    try:
        signal.alarm(seconds)
        for number, path in ((1, stdout), (2, stderr)):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(descriptor, number)
            os.close(descriptor)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        from vhdtool.cli.main import main

        sys.argv = ["vhdtool", *argv]
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001
        import traceback

        traceback.print_exc()
        code = 70
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _serve() -> None:
    # What every command imports, once; each child has it for nothing.
    import numpy  # noqa: F401

    import vhdtool.chain.check
    import vhdtool.chain.discover
    import vhdtool.cli.app
    import vhdtool.cli.check
    import vhdtool.cli.export
    import vhdtool.cli.info
    import vhdtool.cli.main
    import vhdtool.cli.read
    import vhdtool.formats.vhd.bat
    import vhdtool.formats.vhd.image
    import vhdtool.formats.vhdx.bat
    import vhdtool.formats.vhdx.image  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _child(request["argv"], request["stdout"], request["stderr"], request["seconds"])
        _, status, usage = os.wait4(pid, 0)
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        peak = usage.ru_maxrss // (1024 if sys.platform == "darwin" else 1)
        answer = {
            "exit": 128 + killed if killed else os.WEXITSTATUS(status),
            "peak_kib": peak,
            "seconds": time.monotonic() - started,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
