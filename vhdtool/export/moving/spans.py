"""What a buffer holds of a disk: data, and between them ranges that take no place there."""

from __future__ import annotations

from typing import Final, NamedTuple

from vhdtool.model.state import ZEROS

DATA: Final = 0
# Zeros among data are looked for in cells of this size, aligned in the disk.
CELL_SIZE: Final = 64 << 10

_ZERO_CELL: Final = bytes(CELL_SIZE)


class Span(NamedTuple):
    """The next ``length`` bytes of a disk.

    ``kind`` is ``DATA``, which stand in the buffer from byte ``at`` on; or ``ZEROS`` or ``UNHELD``, which
    take no place there.
    """

    kind: int
    length: int
    at: int


def add_span(spans: list[Span], kind: int, length: int, at: int) -> None:
    """Append a span; one of the same kind as the last makes that longer."""
    if spans and spans[-1].kind == kind:
        last = spans.pop()
        length, at = last.length + length, last.at
    spans.append(Span(kind, length, at))


def zero_spans(data: bytearray, guest: int, start: int, stop: int, spans: list[Span]) -> None:
    """Append bytes ``[start, stop)`` of ``data`` to ``spans``, as zeros and as data.

    Args:
        guest: the disk's offset of the first of them; cells are aligned in the disk.
    """
    if guest % CELL_SIZE + stop - start <= CELL_SIZE:  # as most small runs
        is_zero = data.startswith(_ZERO_CELL[: stop - start], start)
        add_span(spans, ZEROS if is_zero else DATA, stop - start, start)
        return
    shift = guest - start
    next_cell = start + CELL_SIZE - guest % CELL_SIZE
    if data[start] and 0 not in data[next_cell:stop:CELL_SIZE]:  # no cell begins with a zero
        add_span(spans, DATA, stop - start, start)
        return
    position = begin = start
    kind = DATA
    while position < stop:
        end = min(stop, position + CELL_SIZE - (shift + position) % CELL_SIZE)
        count = end - position
        zeros = _ZERO_CELL if count == CELL_SIZE else _ZERO_CELL[:count]
        # startswith compares in place and stops at the first difference.
        found = ZEROS if data.startswith(zeros, position) else DATA
        if found != kind:
            if begin < position:
                add_span(spans, kind, position - begin, begin)
            begin, kind = position, found
        position = end
    if begin < stop:
        add_span(spans, kind, stop - begin, begin)
