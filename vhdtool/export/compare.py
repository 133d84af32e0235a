"""The virtual content of two images or points in time: equal or not, and where not.

Pieces that both sides take from one place of one file, and pieces that are zeros on both, are equal without
being read.  Everything else is read and compared, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from vhdtool.chain.chain import Chain
from vhdtool.chain.diff import side_by_side
from vhdtool.chain.reader import require_readable
from vhdtool.errors import EXIT_FOUND, CorruptError, ReadError
from vhdtool.export.copy import (
    CancelToken,
    ProgressCallback,
    Reporter,
    data_and_holes,
    with_guest_range,
)
from vhdtool.export.pipeline import BUFFER_SIZE
from vhdtool.export.target import ZERO_PIECE
from vhdtool.export.watch import SourceWatch
from vhdtool.model.state import ZEROS, Run
from vhdtool.source import ByteSource, FileSource, JoinedSource, PatchedSource

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


def compare_contents(
    a: Chain,
    b: Chain,
    *,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> Comparison:
    """Compare the disks of ``a`` and ``b``.

    Raises:
        FormatError, ChainError, ReadError: one of them is not sound or cannot be read.
        SourceChangedError: an input was written to meanwhile.
        CancelledError: stopped through ``cancel``.
    """
    common = min(a.virtual_size, b.virtual_size)
    larger = max(a.virtual_size, b.virtual_size)
    watch = SourceWatch([*a.files(), *b.files()])
    reporter = Reporter("compare", common, estimate=common, progress=progress, cancel=cancel)
    comparer = _Comparer()
    with watch.guarding():
        sources_a, sources_b = ([image.source for image in chain.images] for chain in (a, b))
        for window in side_by_side(a, b):
            reporter.update(window.start, window.start)
            for run_a, run_b in window.differing():
                reporter.update(run_a.offset, run_a.offset)
                for start, length, part_a, part_b in _in_step(
                    run_a.offset, _parts_of(run_a, sources_a), _parts_of(run_b, sources_b)
                ):
                    if not _is_same(part_a, part_b, length):
                        comparer.add(start, length, part_a, part_b)
        comparer.flush()
    watch.check()
    comparer.differs(common, common, larger - common)
    reporter.finish(common)
    return Comparison(
        size_a=a.virtual_size,
        size_b=b.virtual_size,
        first_difference=comparer.first,
        ranges=tuple(comparer.ranges.kept),
        range_count=comparer.ranges.count,
        bytes=comparer.ranges.bytes,
        read_bytes=comparer.read_bytes,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """``length`` bytes of a disk from one place; source None is zeros."""

    length: int
    source: ByteSource | None
    file_offset: int

    def behind(self, count: int) -> _Part:
        """What follows the first ``count`` bytes."""
        return _Part(self.length - count, self.source, self.file_offset + count)


def _parts_of(run: Run, sources: Sequence[ByteSource]) -> Iterator[_Part]:
    """A run as parts in order, holes of the file taken for the zeros that they are."""
    require_readable(run, sources[0].name)
    if run.layer == ZEROS:
        yield _Part(run.length, None, 0)
        return
    source = sources[run.layer]
    for file_offset, length, is_data in data_and_holes(source, run.file_offset, run.length):
        yield _Part(length, source if is_data else None, file_offset)


def _in_step(
    position: int, a: Iterator[_Part], b: Iterator[_Part]
) -> Iterator[tuple[int, int, _Part, _Part]]:
    """Guest offset, length and both sides of pieces that lie in one part of either, from ``position`` on."""
    part_a, part_b = next(a, None), next(b, None)
    while part_a is not None and part_b is not None:
        length = min(part_a.length, part_b.length)
        yield position, length, part_a, part_b
        position += length
        part_a = next(a, None) if part_a.length == length else part_a.behind(length)
        part_b = next(b, None) if part_b.length == length else part_b.behind(length)


def _is_same(a: _Part, b: _Part, length: int) -> bool:
    if a.source is None or b.source is None:
        return a.source is b.source
    if a.file_offset != b.file_offset:
        return False
    if a.source is b.source:
        return True
    key = _file_key(a.source, a.file_offset, length)
    return key is not None and key == _file_key(b.source, b.file_offset, length)


def _file_key(source: ByteSource, offset: int, length: int) -> object:
    """Which file these bytes are read from, as they stand there; None when that cannot be said."""
    if isinstance(source, PatchedSource):
        if source.differs(offset, offset + length):
            return None
        return _file_key(source.below, offset, length)
    if isinstance(source, FileSource):
        return source.opened_as.file if source.opened_as.inode else None
    if isinstance(source, JoinedSource):
        keys = [_file_key(part, 0, part.size) for part in source.parts]
        return None if None in keys else tuple(keys)
    return None


class _Comparer:
    """Reads pieces of both sides into buffers, compares those when they are full, notes where they differ."""

    def __init__(self) -> None:
        self.ranges = Ranges(RANGES_KEPT)
        self.first: int | None = None
        self.read_bytes = 0
        self._a, self._b = bytearray(BUFFER_SIZE), bytearray(BUFFER_SIZE)
        self._view_a, self._view_b = memoryview(self._a), memoryview(self._b)
        self._filled = 0
        # Stretches of guest bytes in the buffers: where each begins there, and on the disk.
        self._places: list[int] = []
        self._starts: list[int] = []
        self._stop = -1

    def add(self, start: int, length: int, a: _Part, b: _Part) -> None:
        """Compare a piece, sooner or later; pieces come in order."""
        done = 0
        while done < length:
            position = start + done
            if not self._filled or position != self._stop:
                self._begin(position)
            count = min(length - done, BUFFER_SIZE - self._filled)
            part = slice(self._filled, self._filled + count)
            self._fill(self._view_a[part], a, done, position)
            self._fill(self._view_b[part], b, done, position)
            self._filled += count
            self._stop = position + count
            done += count
            if self._filled == BUFFER_SIZE:
                self.flush()

    def flush(self) -> None:
        """Compare what is in the buffers."""
        # startswith compares in place.
        if self._filled and not self._a.startswith(self._view_b[: self._filled]):
            self._note()
        self._filled = 0
        self._places.clear()
        self._starts.clear()

    def differs(self, first: int, start: int, length: int) -> None:
        """Note a range that differs, from byte ``first`` on."""
        if length:
            self.first = first if self.first is None else self.first
            self.ranges.add(start, length)

    def _begin(self, position: int) -> None:
        """A new stretch; it must not share a sector of the buffers with the one before."""
        if self._filled % GRAIN:
            self.flush()
        self._places.append(self._filled)
        self._starts.append(position)

    def _fill(self, view: memoryview, part: _Part, done: int, position: int) -> None:
        if part.source is None:
            view[:] = ZERO_PIECE[: len(view)]
            return
        try:
            part.source.read_into(part.file_offset + done, view, field="payload")
        except (ReadError, CorruptError) as error:
            raise with_guest_range(error, position, len(view)) from error
        self.read_bytes += len(view)

    def _note(self) -> None:
        import numpy as np

        # Whole sectors: behind the end of what was read stands the same on both sides.
        length = self._filled
        whole = -(-length // GRAIN) * GRAIN
        self._view_a[length:whole] = self._view_b[length:whole]
        a, b = (np.frombuffer(side, np.uint64, whole // 8) for side in (self._a, self._b))
        place = np.flatnonzero((a != b).reshape(-1, GRAIN // 8).any(axis=1)) * GRAIN
        stretches = np.array(self._places, np.int64)
        # Guest byte of a sector less its place in the buffers, and so the guest bytes of those that differ.
        shift = np.array(self._starts, np.int64) - stretches
        start = place + shift[np.searchsorted(stretches, place, "right") - 1]
        if self.first is None:
            at = int(place[0])
            side_a, side_b = (np.frombuffer(side, np.uint8, GRAIN, at) for side in (self._a, self._b))
            self.first = int(start[0]) + int(np.argmax(side_a != side_b))
        edges = np.flatnonzero(np.diff(start) > GRAIN) + 1
        firsts, lasts = start[np.append(0, edges)], start[np.append(edges - 1, len(start) - 1)]
        for first, last in zip(firsts.tolist(), lasts.tolist()):
            self.differs(first, first, min(self._stop, last + GRAIN) - first)
