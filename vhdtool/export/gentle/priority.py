"""Low priority for the time of a job: CPU, and I/O where the system and psutil know of it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib import import_module
from types import TracebackType
from typing import Any, Final, Self

_NICEST: Final = 19


class LowPriority:
    """Context: the calling thread (on Windows and macOS the process) works when nobody else wants to.

    At its end everything is as before, except where the system lets nobody but root take a nice value back.

    Attributes:
        notes: what cannot be done here, for a warning.
    """

    def __init__(self) -> None:
        self._psutil = _psutil()
        self.notes: tuple[str, ...] = ()
        if self._psutil is None:
            what = "the priority stays" if os.name == "nt" else "only the CPU's priority is lowered"
            self.notes = (f"{what}: the package psutil is not installed (vhdtool[gentle])",)
        elif not hasattr(self._psutil.Process, "ionice"):
            self.notes = ("only the CPU's priority is lowered: this system has no other",)
        self._restore = ExitStack()

    def __enter__(self) -> Self:
        if self._psutil is not None and hasattr(self._psutil.Process, "ionice"):
            self._lower_io(self._psutil)
        if self._psutil is not None and sys.platform == "win32":
            process = self._psutil.Process()
            self._change(process.nice, self._psutil.IDLE_PRIORITY_CLASS)
        elif hasattr(os, "setpriority"):
            self._change(_nice, _NICEST)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore.close()

    def _lower_io(self, psutil: Any) -> None:
        if sys.platform == "win32":
            self._change(psutil.Process().ionice, psutil.IOPRIO_VERYLOW)
            return
        with suppress(psutil.Error, OSError, ValueError):
            # Linux has it for each thread.
            ionice = psutil.Process(threading.get_native_id()).ionice
            before = ionice()
            ionice(psutil.IOPRIO_CLASS_IDLE)
            levels = (psutil.IOPRIO_CLASS_RT, psutil.IOPRIO_CLASS_BE)
            level = before.value if before.ioclass in levels else None
            self._restore.callback(_quietly, ionice, before.ioclass, level)

    def _change(self, priority: Callable[..., Any], value: int) -> None:
        """``priority()`` says the present value, ``priority(value)`` sets one."""
        with suppress(OSError, ValueError, self._error):
            before = priority()
            priority(value)
            self._restore.callback(_quietly, priority, before)

    @property
    def _error(self) -> type[Exception]:
        error: type[Exception] = OSError if self._psutil is None else self._psutil.Error
        return error


def _psutil() -> Any:
    try:
        return import_module("psutil")
    except ImportError:
        return None


def _nice(value: int | None = None) -> int | None:
    if value is None:
        return os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, value)
    return None


def _quietly(action: Callable[..., Any], *arguments: Any) -> None:
    # PermissionError: only root may be less nice again; psutil.Error: the same, or the thread is gone.
    with suppress(Exception):
        action(*arguments)
