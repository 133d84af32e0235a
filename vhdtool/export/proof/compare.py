"""The virtual content of two images or points in time: equal or not, and where not.

Pieces that both sides take from one place of one file, and pieces that are zeros on both, are equal without
being read.  Everything else is read and compared, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from vhdtool.chain.chain import Chain
from vhdtool.chain.diff import SideBySide, side_by_side
from vhdtool.chain.reader import require_readable
from vhdtool.errors import CorruptError, ReadError
from vhdtool.export.containers.target import ZERO_PIECE
from vhdtool.export.gentle.watch import SourceWatch
from vhdtool.export.moving.fill import with_guest_range
from vhdtool.export.moving.holes import data_and_holes
from vhdtool.export.moving.pipeline import BUFFER_SIZE
from vhdtool.export.moving.progress import CancelToken, ProgressCallback, Reporter
from vhdtool.export.proof.comparison import GRAIN, RANGES_KEPT, Comparison, Ranges
from vhdtool.model.state import ZEROS, Run
from vhdtool.source import ByteSource, FileSource, JoinedSource, PatchedSource, WrappingSource

# Pieces end at multiples of so many bytes: who stops a job waits for one, who keeps its ranges keeps so many.
PIECE_MAX: Final = 32 << 20


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
    ranges = Ranges(RANGES_KEPT)
    comparer = Comparer(ranges.add)
    with watch.guarding():
        sources_a, sources_b = ([image.source for image in chain.images] for chain in (a, b))
        for window in side_by_side(a, b):
            reporter.update(window.start, window.start)
            for piece in unequal_pieces(window, sources_a, sources_b):
                reporter.update(piece.start, piece.start)
                comparer.add(piece)
        comparer.flush()
    watch.check()
    if larger > common:
        ranges.add(common, larger - common)
    reporter.finish(common)
    return Comparison(
        size_a=a.virtual_size,
        size_b=b.virtual_size,
        first_difference=common if comparer.first is None and larger > common else comparer.first,
        ranges=tuple(ranges.kept),
        range_count=ranges.count,
        bytes=ranges.bytes,
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


@dataclass(frozen=True, slots=True)
class Piece:
    """Guest bytes [start, start + length), each side of them from one place."""

    start: int
    length: int
    a: _Part
    b: _Part

    def cut(self) -> Iterator[Piece]:
        """The same, cut at multiples of ``PIECE_MAX`` in the disk."""
        done = 0
        while done < self.length:
            position = self.start + done
            count = min(self.length - done, PIECE_MAX - position % PIECE_MAX)
            yield Piece(position, count, self.a.behind(done), self.b.behind(done))
            done += count


def unequal_pieces(
    window: SideBySide, sources_a: Sequence[ByteSource], sources_b: Sequence[ByteSource]
) -> Iterator[Piece]:
    """What of ``window`` must be read to know whether both sides are equal, in order.

    Args:
        sources_a, sources_b: the bytes of each side's layers.

    Raises:
        CorruptError: a piece is damaged on one side.
    """
    for run_a, run_b in window.differing():
        for piece in _in_step(run_a.offset, _parts_of(run_a, sources_a), _parts_of(run_b, sources_b)):
            if not _is_same(piece.a, piece.b, piece.length):
                yield from piece.cut()


def _parts_of(run: Run, sources: Sequence[ByteSource]) -> Iterator[_Part]:
    """A run as parts in order, holes of the file taken for the zeros that they are."""
    require_readable(run, sources[0].name)
    if run.layer == ZEROS:
        yield _Part(run.length, None, 0)
        return
    source = sources[run.layer]
    for file_offset, length, is_data in data_and_holes(source, run.file_offset, run.length):
        yield _Part(length, source if is_data else None, file_offset)


def _in_step(position: int, a: Iterator[_Part], b: Iterator[_Part]) -> Iterator[Piece]:
    """Pieces that lie in one part of either side, from ``position`` on."""
    part_a, part_b = next(a, None), next(b, None)
    while part_a is not None and part_b is not None:
        length = min(part_a.length, part_b.length)
        yield Piece(position, length, part_a, part_b)
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
    if isinstance(source, WrappingSource):
        return _file_key(source.below, offset, length)
    if isinstance(source, FileSource):
        return source.opened_as.file if source.opened_as.inode else None
    if isinstance(source, JoinedSource):
        keys = [_file_key(part, 0, part.size) for part in source.parts]
        return None if None in keys else tuple(keys)
    return None


class Comparer:
    """Reads pieces of both sides into buffers and compares those when they are full.

    Args:
        differs: is told where they differ: start and length in whole sectors of ``GRAIN`` bytes, counted from
            where a piece began, in order.

    Attributes:
        first: the first guest byte that differs.
        read_bytes: of both sides.
    """

    def __init__(self, differs: Callable[[int, int], None]) -> None:
        self.first: int | None = None
        self.read_bytes = 0
        self._a, self._b = bytearray(BUFFER_SIZE), bytearray(BUFFER_SIZE)
        self._view_a, self._view_b = memoryview(self._a), memoryview(self._b)
        self._differs = differs
        self._filled = 0
        # Stretches of guest bytes in the buffers: where each begins there, and on the disk.
        self._places: list[int] = []
        self._starts: list[int] = []
        self._stop = -1

    def add(self, piece: Piece) -> None:
        """Compare a piece, sooner or later; pieces come in order."""
        done = 0
        while done < piece.length:
            position = piece.start + done
            if not self._filled or position != self._stop:
                self._begin(position)
            count = min(piece.length - done, BUFFER_SIZE - self._filled)
            part = slice(self._filled, self._filled + count)
            self._fill(self._view_a[part], piece.a, done, position)
            self._fill(self._view_b[part], piece.b, done, position)
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
            self._differs(first, min(self._stop, last + GRAIN) - first)
