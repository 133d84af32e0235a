"""How far a job is: told a few times a second, and the moment at which it can be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vhdtool.errors import EXIT_INTERRUPTED, ExportError

_PROGRESS_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        phase: "settle", "resume", "copy", "digest", "verify" or "compare".
        done: bytes of data moved so far.
        total: an estimate of those in the end; exact at the end, None when there is no estimate.
        position: guest bytes that are settled, of ``virtual_size``.
        slowed: why the job is not as fast as it could be; empty when it is.
    """

    phase: str
    done: int
    total: int | None
    position: int
    virtual_size: int
    slowed: str = ""


ProgressCallback = Callable[[Progress], None]


class CancelToken:
    """Stops a job from another thread; the job raises :class:`CancelledError` soon after."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        """Ask the job to stop."""
        self.cancelled = True


class CancelledError(ExportError):
    """A job was stopped through its token."""

    exit_code = EXIT_INTERRUPTED


class Reporter:
    """Tells a callback how far the job is, a few times a second, and looks whether it is to stop.

    Args:
        estimate: bytes of data expected in the whole disk; None when unknown.
        tick: called every now and then; may raise.
        slowed: says why the job is not as fast as it could be.
    """

    def __init__(
        self,
        phase: str,
        virtual_size: int,
        *,
        estimate: int | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        tick: Callable[[], None] = lambda: None,
        slowed: Callable[[], str] = str,
    ) -> None:
        self._phase = phase
        self._tick = tick
        self._slowed = slowed
        self._virtual_size = virtual_size
        self._estimate = estimate
        self._progress = progress
        self._cancel = cancel
        self._next = 0.0
        self._state = 0, 0

    def check(self) -> None:
        """Report when it is time to, and raise when the job is to stop.

        Raises:
            CancelledError: it is.
            SourceChangedError: what ``tick`` has to say.
        """
        self._tick()
        if self._cancel is not None and self._cancel.cancelled:
            raise CancelledError("stopped on request")
        if self._progress is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_SECONDS
            self._report(self._progress, *self._state)

    def update(self, done: int, position: int) -> None:
        """The job is so far; ``check``."""
        self._state = done, position
        self.check()

    def finish(self, done: int) -> None:
        """Report the end."""
        if self._progress is not None:
            self._report(self._progress, done, self._virtual_size)

    def _report(self, progress: ProgressCallback, done: int, position: int) -> None:
        total = None
        if self._estimate is not None:
            # What the rest of the disk holds if the estimate is right there, and at most all of it.
            rest = self._virtual_size - position
            total = done + min(rest, self._estimate * rest // max(1, self._virtual_size))
        progress(Progress(self._phase, done, total, position, self._virtual_size, self._slowed()))
