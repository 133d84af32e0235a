"""The bar shows a rate and the time left, also while the estimate of the total changes."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest

from vhdtool.cli.progress import Rate, progress_bar, rate_and_time_left
from vhdtool.export.copy import Progress

MIB = 1 << 20


def ticking(*seconds: float) -> Iterator[float]:
    yield from seconds


def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = ticking(0, 1, 2, 20, 21).__next__
    rate = Rate(clock)

    assert rate.add(0) is None
    assert rate.add(4 * MIB) == 4 * MIB
    assert rate.add(8 * MIB) == 4 * MIB
    assert rate.add(26 * MIB) == pytest.approx(MIB)
    assert rate.add(28 * MIB) == 2 * MIB


@pytest.mark.parametrize(
    ("done", "total", "rate", "shown"),
    [
        (0, 10, None, ""),
        (MIB, 11 * MIB, float(MIB), "1 MiB/s, 0:00:10 left"),
        (0, 7325 * MIB, float(MIB), "1 MiB/s, 2:02:05 left"),
        (5, None, 1536.0, "1.5 KiB/s"),
        (12, 10, 5.0, "5 bytes/s, 0:00:00 left"),
    ],
)
def test_rate_and_time_left_are_read_easily(
    done: int, total: int | None, rate: float | None, shown: str
) -> None:
    assert rate_and_time_left(done, total, rate) == shown


def test_the_bar_shows_them_while_the_total_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "100")

    with progress_bar("export") as show:
        assert show is not None
        for i in range(1, 40):
            show(Progress("copy", i * MIB, 100 * MIB + i, i * MIB, 100 * MIB))

    assert "/s, " in screen.getvalue()
    assert " left" in screen.getvalue()
