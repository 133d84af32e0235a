"""Two disks compared by the second reader, window by window, byte for byte.

Nothing of what exports or compares disks elsewhere is used: see naive.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vhdtool.export.proof.comparison import GRAIN, RANGES_KEPT, Comparison, Ranges
from vhdtool.export.proof.naive import NaiveDisk

WINDOW: Final = 1 << 20

assert WINDOW % GRAIN == 0


def compare_naively(a: NaiveDisk, b: NaiveDisk, tick: Callable[[int, int], None]) -> Comparison:
    """Compare two disks; where neither can hold anything but zeros, they are equal without being painted.

    Args:
        tick: called for each window with the bytes read so far and the position; may raise.

    Raises:
        CorruptError, ReadError: one of them cannot be read.
    """
    common, larger = sorted((a.size, b.size))
    ranges = Ranges(RANGES_KEPT)
    first_difference: int | None = None
    canvas_a, canvas_b = bytearray(WINDOW), bytearray(WINDOW)
    position = 0
    while position < common:
        tick(a.read_bytes + b.read_bytes, position)
        position = min(a.next_data(position), b.next_data(position), common)
        if position == common:
            break
        start = position - position % WINDOW
        length = min(WINDOW, common - start)
        a.paint(start, memoryview(canvas_a)[:length])
        b.paint(start, memoryview(canvas_b)[:length])
        if canvas_a[:length] != canvas_b[:length]:
            for at in range(0, length, GRAIN):
                one, other = canvas_a[at : at + GRAIN], canvas_b[at : at + GRAIN]
                if one != other:
                    ranges.add(start + at, min(GRAIN, length - at))
                    if first_difference is None:
                        first_difference = start + at + next(i for i in range(GRAIN) if one[i] != other[i])
        position = start + length
    if larger > common:
        ranges.add(common, larger - common)
        first_difference = common if first_difference is None else first_difference
    return Comparison(
        size_a=a.size,
        size_b=b.size,
        first_difference=first_difference,
        ranges=tuple(ranges.kept),
        range_count=ranges.count,
        bytes=ranges.bytes,
        read_bytes=a.read_bytes + b.read_bytes,
    )
