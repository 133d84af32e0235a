"""libvhdi beside us, where it is installed: as a program of its own, in its own interpreter.

A reader that is measured must not share our memory, and a fault in it must not end us.  So the text of
``libvhdi_program.py`` runs in the other interpreter, and both talk in lines of JSON.
"""

from __future__ import annotations

import json
import pkgutil
import queue
import shutil
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from vhdtool.errors import MissingPackageError, printable

# An answer takes milliseconds, but opening hundreds of layers on a loaded machine may take long.
_SECONDS_MAX: Final = 120.0
_SECONDS_TO_END: Final = 2.0
_MESSAGE_MAX: Final = 200
_LINE_MAX: Final = 32 << 20
_ANSWERS_MAX: Final = 4


class LibvhdiError(MissingPackageError):
    """libvhdi is not to be had, or failed at what it was asked."""


@dataclass(frozen=True, slots=True)
class ReadsAnswer:
    """How long reads took over there, and the CRC-32 of what each one read."""

    seconds: float
    checksums: tuple[int, ...]


class Libvhdi:
    """A running program with libvhdi in it.

    Args:
        python: an interpreter that can import pyvhdi: a path, or a name to be looked for.
        seconds_max: to wait for one answer.

    Raises:
        LibvhdiError: the interpreter does not run, or has no pyvhdi.

    Attributes:
        version: of libvhdi.
    """

    def __init__(self, python: str, *, seconds_max: float = _SECONDS_MAX) -> None:
        self._seconds_max = seconds_max
        self._python = python
        program = pkgutil.get_data("vhdtool.simulate", "libvhdi_program.py")
        assert program is not None
        found = shutil.which(python)
        if found is None:
            raise LibvhdiError(f"no such interpreter: {printable(python)}")
        try:
            self._process = subprocess.Popen(
                [found, "-c", program.decode("utf-8")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",
                errors="replace",
            )
        except (OSError, ValueError) as error:
            raise LibvhdiError(f"cannot run {printable(python)}: {error}") from error
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self.version = printable(str(self._ask("version")))[:_MESSAGE_MAX]
        except BaseException:
            self.close()
            raise

    def open(self, paths: Sequence[Path]) -> int:
        """Open a chain, leaf first; the size of the leaf's disk in bytes.

        Raises:
            LibvhdiError: it cannot.
        """
        return int(self._ask("open", [str(path) for path in paths]))

    def read(self, layer: int, offsets: Sequence[int], length: int) -> ReadsAnswer:
        """Read ``length`` bytes from each guest byte in ``offsets``, as if ``layer`` were the leaf.

        Raises:
            LibvhdiError: it cannot.
        """
        answer = self._ask("read", layer, list(offsets), length)
        return ReadsAnswer(answer["seconds"], tuple(answer["checksums"]))

    def close(self) -> None:
        """End the program."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # A wrapper's child may live on and hold the pipe: then the thread keeps it, and ends with us.
        self._listener.join(_SECONDS_TO_END)
        if not self._listener.is_alive():
            process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, job: str, *arguments: object) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"job": job, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=self._seconds_max)
        except queue.Empty as error:
            self._process.kill()
            raise self._failed(f"no answer within {self._seconds_max:.0f} s") from error
        except OSError as error:
            raise self._failed("it ended") from error
        if not line:
            raise self._failed("it ended")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or "answer" not in answer:
            raise self._failed(str(answer.get("error")) if isinstance(answer, dict) else "no answer of ours")
        return answer["answer"]

    def _listen(self) -> None:
        """Hand on what comes: waiting for a line in another thread is what can be given up."""
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):
            # Bounded: what was named as an interpreter may be anything.
            while self._answers.qsize() < _ANSWERS_MAX and (line := self._process.stdout.readline(_LINE_MAX)):
                self._answers.put(line)
        self._answers.put("")

    def _failed(self, why: str) -> LibvhdiError:
        return LibvhdiError(f"libvhdi in {printable(self._python)}: {printable(why)[:_MESSAGE_MAX]}")
