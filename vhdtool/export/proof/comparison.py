"""How two disks differ, whoever compared them: one way to tell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vhdtool.errors import EXIT_FOUND

# Differing ranges are told in whole sectors: random data agrees in one byte of 256 by chance.
GRAIN: Final = 512
RANGES_KEPT: Final = 100_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two disks differ.  Picklable.  All in bytes of the virtual disks.

    Attributes:
        size_a, size_b: of the disks; where only the larger one has bytes, they differ.
        first_difference: the first byte that differs, exactly; None when all are equal.
        ranges: (start, length) in sectors of 512 bytes, in order, not touching; the first ``RANGES_KEPT``.
        range_count, bytes: of all ranges.
        read_bytes: what had to be read, of both sides.
    """

    size_a: int
    size_b: int
    first_difference: int | None
    ranges: tuple[tuple[int, int], ...]
    range_count: int
    bytes: int
    read_bytes: int

    @property
    def equal(self) -> bool:
        """Whether the disks have the same size and the same bytes."""
        return self.first_difference is None

    @property
    def exit_code(self) -> int:
        """0, or 1 for a difference."""
        return 0 if self.equal else EXIT_FOUND


class Ranges:
    """Collects ranges in order: joins those that touch, keeps the first ones, counts all.

    Args:
        limit: how many to keep.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.kept: list[tuple[int, int]] = []
        self.count = 0
        self.bytes = 0
        self._stop = -1

    def add(self, start: int, length: int) -> None:
        """A range that does not begin before the last one's start; bytes known already do not count again."""
        stop = start + length
        start = max(start, self._stop)
        if start >= stop:
            return
        self.bytes += stop - start
        if start == self._stop:
            if self.count <= self._limit:
                first, before = self.kept[-1]
                self.kept[-1] = (first, before + stop - start)
        else:
            self.count += 1
            if self.count <= self._limit:
                self.kept.append((start, stop - start))
        self._stop = stop
