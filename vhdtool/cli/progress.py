"""Progress on stderr: phase, bytes, rate, time left, and why a job is slowed.

A bar on a terminal and nothing elsewhere (``auto``); or a line of JSON a few times a second, wherever stderr
goes, for other programs (``json``); or nothing (``none``).  Each line of JSON is one document that stands by
itself, between whatever else is said on stderr, line by line as well::

    {"phase": "copy", "done": 1048576, "total": 4194304, "rate": 524288, "seconds_left": 6,
     "position": 1048576, "virtual_size": 8388608, "slowed": "limited to 512.0 KiB/s"}
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

from vhdtool.report.text import size_text

if TYPE_CHECKING:
    from vhdtool.export.moving.progress import Progress, ProgressCallback

ProgressMode = Literal["auto", "json", "none"]

_RATE_SECONDS: Final = 10.0
_LINE_SECONDS: Final = 0.25


class Rate:
    """Bytes a second over the last seconds.

    rich forgets its samples whenever a bar's total changes, and ours is an estimate that does all the time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, done: int) -> float | None:
        """``done`` bytes so far; the rate, None while nothing can be said."""
        now = self._clock()
        self._samples.append((now, done))
        while now - self._samples[0][0] > _RATE_SECONDS and len(self._samples) > 2:
            self._samples.popleft()
        first, before = self._samples[0]
        return (done - before) / (now - first) if now > first and done > before else None


def rate_and_time_left(done: int, total: int | None, rate: float | None) -> str:
    """``254.6 MiB/s, 0:00:12 left``; empty while nothing can be said."""
    if rate is None:
        return ""
    shown = f"{size_text(int(rate))}/s"
    if total is None:
        return shown
    seconds = seconds_left(done, total, rate)
    return f"{shown}, {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"


def seconds_left(done: int, total: int, rate: float) -> int:
    """Whole seconds for the rest at ``rate`` bytes a second."""
    return round(max(0, total - done) / rate)


@contextmanager
def progress_bar(title: str, mode: ProgressMode = "auto") -> Iterator[ProgressCallback | None]:
    """Progress for the time of the context; what to call with news, None when nobody watches."""
    if sys.stderr is None or mode == "none":
        yield None
    elif mode == "json":
        lines = JsonLines(sys.stderr.write, sys.stderr.flush)
        yield lines.show
        lines.finish()
    elif sys.stderr.isatty():
        with _bar(title) as show:
            yield show
    else:
        yield None


class JsonLines:
    """Writes progress as lines of JSON: a few a second, and the last news of each phase in any case.

    Args:
        write, flush: where to; when they fail, nobody listens any more, and nothing more is written.
        clock: of a monotonic clock, in seconds.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        flush: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._flush = flush
        self._clock = clock
        self._rates = _Rates(clock)
        self._next = clock()
        # News that have not been written yet.
        self._held: Progress | None = None
        self._phase = ""
        self._is_closed = False

    def show(self, progress: Progress) -> None:
        """News: written when it is time to."""
        if progress.phase != self._phase:
            self.finish()
            self._phase = progress.phase
            self._rates = _Rates(self._clock)
            self._next = self._clock()
        self._rates.add(progress)
        self._held = progress
        if self._clock() >= self._next:
            self.finish()
            self._next = self._clock() + _LINE_SECONDS

    def finish(self) -> None:
        """Write news that were held back."""
        progress, self._held = self._held, None
        if progress is None or self._is_closed:
            return
        rates = self._rates
        document = {
            "phase": progress.phase,
            "done": progress.done,
            "total": progress.total,
            "rate": None if rates.data is None else round(rates.data),
            "seconds_left": rates.seconds_left(progress),
            "position": progress.position,
            "virtual_size": progress.virtual_size,
            "slowed": progress.slowed,
        }
        try:
            # One call for a line, so that those of several threads do not mix.
            self._write(json.dumps(document) + "\n")
            self._flush()
        except (OSError, ValueError):  # ValueError: it was closed
            self._is_closed = True


class _Rates:
    """Rates of a phase: of data, and of the disk, for the time left where no total is known."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._of_data = Rate(clock)
        self._of_disk = Rate(clock)
        self.data: float | None = None
        self.disk: float | None = None

    def add(self, progress: Progress) -> None:
        """News."""
        self.data = self._of_data.add(progress.done)
        self.disk = self._of_disk.add(progress.position)

    def seconds_left(self, progress: Progress) -> int | None:
        """Until the phase is done; None while nothing can be said."""
        if progress.total is None:
            rate, done, total = self.disk, progress.position, progress.virtual_size
        else:
            rate, done, total = self.data, progress.done, progress.total
        if done >= total:
            return 0 if total else None
        return None if rate is None else seconds_left(done, total, rate)


@contextmanager
def _bar(title: str) -> Iterator[ProgressCallback]:
    """A bar on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[slowed]}", style="yellow", markup=False),
    )
    rate = Rate()
    phase = ""
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, speed="", slowed="")

        def show(progress: Progress) -> None:
            nonlocal phase, rate
            if progress.phase != phase:
                phase, rate = progress.phase, Rate()
            done, total = progress.done, progress.total
            if total is None:
                done, total = progress.position, progress.virtual_size
            speed = rate_and_time_left(done, total, rate.add(done))
            what = title if phase == title else f"{title}: {phase}"
            bar.update(
                task, description=what, completed=done, total=total, speed=speed, slowed=progress.slowed
            )

        yield show


@contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """One line that says what is being done, for the time of the context; nothing when nobody watches."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda what: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("") as line:
        yield lambda what: line.update(escape(what))
