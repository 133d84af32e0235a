"""The geometry of small charts: where ticks, lines and bars stand.  Templates draw them.

Units are those of the drawing, 360 wide: text of 11 is legible on a phone, where a drawing is that wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 360.0
HEIGHT: Final = 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 12.0, 28.0, 36.0
_LABEL_ROOM: Final = 26.0  # between labels of an axis, so that they do not touch
_BARS_MAX: Final = 96
LINE_STYLES: Final = 6  # as many as the pages have colours for


@dataclass(frozen=True, slots=True)
class Series:
    """One line: a name for the legend, and points (x, y) by rising x; each y above zero on a log axis."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis; ``text`` may be empty where there is no room."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of a line, and what it says when one points at it."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line to draw; ``style`` counts from 0, ``legend`` is where its name stands (x, y)."""

    name: str
    style: int
    dots: tuple[Dot, ...]
    legend: tuple[float, float]

    @property
    def points(self) -> str:
        """As ``polyline`` takes them."""
        return " ".join(f"{dot.x},{dot.y}" for dot in self.dots)


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a histogram."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines or bars in a frame from (left, top) to (right, bottom)."""

    title: str
    x_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    top: float
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    bottom: float = HEIGHT - _BOTTOM


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_title: str,
    log_x: bool = False,
    log_y: bool = False,
) -> Chart | None:
    """Lines over a common axis; None when there is no point to draw.

    Args:
        log_x: places by log2(x + 1), for depths that double; ticks are the points' own.
        log_y: a logarithmic axis.
    """
    series = [one for one in series if one.points]
    if not series:
        return None
    xs = sorted({x for one in series for x, _ in one.points})
    legends = _legend_places([one.name for one in series]) if len(series) > 1 else [(0.0, 0.0)]
    top = _TOP if len(series) == 1 else legends[-1][1] + 14
    place_x = _scale([math.log2(x + 1) if log_x else x for x in xs], _LEFT, WIDTH - _RIGHT)
    y_marks = _marks([y for one in series for _, y in one.points], log_y)
    place_y = _scale([_y(y, log_y) for y in y_marks], HEIGHT - _BOTTOM, top)
    lines = tuple(
        Line(
            one.name,
            style % LINE_STYLES,
            tuple(
                Dot(
                    place_x(math.log2(x + 1) if log_x else x),
                    place_y(_y(y, log_y)),
                    f"{one.name}, {x_title} {number_text(x)}: {number_text(y)}",
                )
                for x, y in one.points
            ),
            legends[style],
        )
        for style, one in enumerate(series)
    )
    x_ticks = [(place_x(math.log2(x + 1) if log_x else x), number_text(x)) for x in xs]
    y_ticks = [(place_y(_y(y, log_y)), number_text(y)) for y in y_marks]
    return Chart(title, x_title, _apart(x_ticks), tuple(Tick(*tick) for tick in y_ticks), top, lines)


def histogram(title: str, counts: Sequence[int], *, x_title: str, first: int = 1) -> Chart | None:
    """Bars for the values ``first``, ``first + 1``, ... with their share of the sum; many values share bars.

    None when there is nothing to count.
    """
    if not any(counts):
        return None
    last = max(i for i, number in enumerate(counts) if number)
    per_bar = -(-(last + 1) // _BARS_MAX)
    sums = [sum(counts[i : i + per_bar]) for i in range(0, last + 1, per_bar)]
    total = sum(sums)
    marks = _marks([0.0, *(100 * number / total for number in sums)], False)
    place_y = _scale(marks, HEIGHT - _BOTTOM, _TOP)
    step = (WIDTH - _RIGHT - _LEFT) / len(sums)
    width = min(step - min(2.0, step / 4), 48)
    bars, ticks = [], []
    for i, number in enumerate(sums):
        low = first + i * per_bar
        name = str(low) if per_bar == 1 else f"{low} to {low + per_bar - 1}"
        share = 100 * number / total
        y = place_y(share)
        bars.append(
            Bar(
                round(_LEFT + (i + 0.5) * step - width / 2, 2),
                y,
                round(width, 2),
                round(HEIGHT - _BOTTOM - y, 2),
                f"{x_title} {name}: {number} ({number_text(share)} %)",
            )
        )
        ticks.append((round(bars[-1].x + bars[-1].width / 2, 2), str(low)))
    y_ticks = tuple(Tick(place_y(mark), f"{number_text(mark)} %") for mark in marks)
    return Chart(title, x_title, _apart(ticks), y_ticks, _TOP, bars=tuple(bars))


def number_text(value: float) -> str:
    """``0.25``, ``12``, ``1.5k``, ``3M``: short, for axes and tables."""
    size = abs(value)
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{_short(value / (1e3 if unit == 'k' else limit))}{unit}"
    return _short(value)


def _short(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}".rstrip("0").rstrip(".")


def _y(value: float, log: bool) -> float:
    return math.log10(value) if log else value


class _Scale:
    """Places values on a stretch of the drawing."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.start = low, start
        self.per = (stop - start) / (high - low) if high > low else 0.0
        self.middle = (start + stop) / 2 if high <= low else None

    def __call__(self, value: float) -> float:
        if self.middle is not None:
            return round(self.middle, 2)
        return round(self.start + (value - self.low) * self.per, 2)


def _scale(values: Sequence[float], start: float, stop: float) -> _Scale:
    return _Scale(min(values), max(values), start, stop)


def _marks(values: Sequence[float], log: bool) -> list[float]:
    """Round numbers from below the least of ``values`` (0 on a linear axis) to above the greatest."""
    if log:
        return _log_marks(min(values), max(values))
    most = max(max(values), 0.0) or 1.0
    power = 10.0 ** math.floor(math.log10(most / 4))
    step_size = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if most <= power * factor * 5)
    return [step_size * i for i in range(math.ceil(most / step_size - 1e-9) + 1)]


def _log_marks(least: float, most: float) -> list[float]:
    """Powers of ten; within two decades 1, 2 and 5 of each."""
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most) - 1e-9)
    if high - low > 2:
        step = -(-(high - low) // 6)
        return [10.0**power for power in range(low, low + -(-(high - low) // step) * step + 1, step)]
    marks = [10.0**power * factor for power in range(low, high + 2) for factor in (1, 2, 5)]
    first = max(i for i, mark in enumerate(marks) if mark <= least * (1 + 1e-9))
    last = min(i for i, mark in enumerate(marks) if mark >= most * (1 - 1e-9))
    return marks[first : max(last, first + 1) + 1]


def _apart(ticks: Sequence[tuple[float, str]]) -> tuple[Tick, ...]:
    """Ticks in order, without the texts that would touch the one before; the last one keeps its text."""
    shown: list[Tick] = []
    place = -math.inf
    for i, (at, text) in enumerate(ticks):
        is_last = i == len(ticks) - 1
        room = at - place >= _LABEL_ROOM and (is_last or ticks[-1][0] - at >= _LABEL_ROOM)
        shown.append(Tick(at, text if room or is_last else ""))
        if room:
            place = at
    return tuple(shown)


def _legend_places(names: Sequence[str]) -> list[tuple[float, float]]:
    """Where the names of lines stand above the frame, in rows."""
    places: list[tuple[float, float]] = []
    x, y = _LEFT, 30.0
    for name in names:
        width = 18 + 6.2 * len(name) + 12
        if x > _LEFT and x + width > WIDTH:
            x, y = _LEFT, y + 15
        places.append((round(x, 1), y))
        x += width
    return places
