"""Progress on stderr: bytes, rate and time left; nothing at all when stderr is no terminal."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vhdtool.report.text import size_text

if TYPE_CHECKING:
    from vhdtool.export.copy import Progress, ProgressCallback

_RATE_SECONDS: Final = 10.0


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
    seconds = round(max(0, total - done) / rate)
    return f"{shown}, {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"


@contextmanager
def progress_bar(title: str) -> Iterator[ProgressCallback | None]:
    """A bar for the time of the context; what to call with news, None when nobody watches."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[speed]}"),
    )
    rate = Rate()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, speed="")

        def show(progress: Progress) -> None:
            done, total = progress.done, progress.total
            if total is None:
                done, total = progress.position, progress.virtual_size
            speed = rate_and_time_left(done, total, rate.add(done))
            bar.update(task, completed=done, total=total, speed=speed)

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
