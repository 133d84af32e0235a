"""The resolved map: which layer serves a guest byte, at a cost that does not know how deep the chain is.

::

    guest offset ──► segment ──► cell ──► words of run starts ──► rank ──► origin of the run
                        │
                        └ not resolved yet: flatten it, and add its cells

The disk is cut into segments, resolved when something in them is first asked for; who asks for many
offsets at once has neighbouring segments resolved together.  All that is known lies in a few flat arrays
(their layout: :mod:`vhdtool.kernels.rank`), so that a lookup touches four cache lines and nothing else,
in a chain of 256 layers as in one of two.  When they pass ``bytes_max``, everything is forgotten and begins
anew: memory stays bounded on any disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from vhdtool.chain.engine import Engine, Int64s, checked_offsets, machine_for
from vhdtool.chain.flatten import Resolved, bitmaps_within, next_stored, resolve
from vhdtool.kernels.reference import bit_count
from vhdtool.model.arrays import distinct
from vhdtool.model.state import DAMAGED, UNHELD, ZEROS

if TYPE_CHECKING:
    from vhdtool.formats.image import DiskImage

# The layout of origins and cells, which kernels repeat.
LAYER_BITS: Final = 9
NO_LAYER: Final = (1 << LAYER_BITS) - 1
KIND_BITS: Final = 2
GRAIN_BITS: Final = 5
MISSING: Final = -128

# While it grows, what was there and what follows are in memory together.
BYTES_MAX: Final = 128 << 20
_CELLS_PER_SEGMENT: Final = 64
_SEGMENT_SIZE_MAX: Final = 128 << 20
_SEGMENTS_MAX: Final = 1 << 20
# What is resolved in one go: its runs are in memory before they become a part of the map.
_CELLS_AT_ONCE: Final = 1 << 14
_CELLS_AT_ONCE_MIN: Final = 1 << 11
_RUNS_AT_ONCE: Final = 1 << 18
_RUNS_AT_ONCE_MAX: Final = 1 << 19


@dataclass(frozen=True, slots=True, eq=False)
class Lookups:
    """The runs that hold guest bytes, one row for each byte.

    Attributes:
        layer: int16[n], ``ZEROS`` or ``DAMAGED`` where no layer holds it.
        file_offset: int64[n], of that byte; -1 where no layer holds it.
        stop: int64[n], guest byte where the run ends, at the latest the end of its cell or of the disk.
        probes: int16[n], layers whose tables a walk would consult.
    """

    layer: npt.NDArray[np.int16]
    file_offset: Int64s
    stop: Int64s
    probes: npt.NDArray[np.int16]


class ResolvedMap:
    """Lookups in the disk of ``images``; safe for several threads.

    Args:
        images: leaf first, one sector size; sound, as far as the caller cares.
        engine: who resolves and looks up; "auto" chooses for each call.
        bytes_max: what the map may take.

    Attributes:
        cell_size: bytes; no run of the map is longer.
        segment_size: bytes; what is resolved together at least.
    """

    def __init__(
        self, images: Sequence[DiskImage], *, engine: Engine = "auto", bytes_max: int = BYTES_MAX
    ) -> None:
        self._images = tuple(images)
        self._engine: Engine = engine
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._size = images[0].geometry.virtual_size
        self._sector_shift = images[0].geometry.sector_size.bit_length() - 1
        self.cell_size = min(image.geometry.block_size for image in images)
        self._cell_shift = self.cell_size.bit_length() - 1
        segment_size = max(self.cell_size, min(self.cell_size * _CELLS_PER_SEGMENT, _SEGMENT_SIZE_MAX))
        while segment_size * _SEGMENTS_MAX < self._size:
            segment_size *= 2
        self.segment_size = segment_size
        self._segment_shift = segment_size.bit_length() - 1
        self._cells_per_segment = 1 << (self._segment_shift - self._cell_shift)
        self._tables: _Tables
        self._forget()

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the map takes now."""
        return self._tables.nbytes

    @property
    def covered(self) -> int:
        """Guest bytes that are resolved now."""
        there = np.flatnonzero(self._tables.segment_first >= 0)
        start = there << self._segment_shift
        return int((np.minimum(self._size, start + (1 << self._segment_shift)) - start).sum())

    def resolve(self, start: int = 0, stop: int | None = None) -> None:
        """Resolve guest range ``[start, stop)`` ahead of lookups, as far as it fits into ``bytes_max``.

        Raises:
            ValueError: the range leaves the disk.
        """
        stop = self._size if stop is None else stop
        if not 0 <= start <= stop <= self._size:
            raise ValueError(f"range {start}..{stop} is not inside the disk of {self._size} bytes")
        shift = self._segment_shift
        self._added(np.arange(start >> shift, -(-stop >> shift), dtype=np.int64))

    def lookup(self, offsets: npt.ArrayLike) -> tuple[npt.NDArray[np.int16], Int64s]:
        """Layers and file offsets of guest bytes.

        Args:
            offsets: int64[n].

        Returns:
            int16[n], ``ZEROS`` or ``DAMAGED`` where no layer holds the byte; int64[n], -1 beside those.

        Raises:
            ValueError: an offset is outside of the disk.
        """
        wanted = checked_offsets(offsets)
        layer, file_offset = np.empty(len(wanted), np.int16), np.empty(len(wanted), np.int64)
        machine = machine_for(self._engine, lookups=len(wanted))
        self._answer(machine.lookup, wanted, layer, file_offset, missing=layer)
        return layer, file_offset

    def runs_at(self, offsets: npt.ArrayLike) -> Lookups:
        """The runs that hold guest bytes ``offsets`` (int64[n]).

        Raises:
            ValueError: an offset is outside of the disk.
        """
        wanted = checked_offsets(offsets)
        stop, origin = np.empty(len(wanted), np.int64), np.empty(len(wanted), np.int64)
        machine = machine_for(self._engine, lookups=len(wanted))
        self._answer(machine.runs_at, wanted, stop, origin, missing=stop)
        layer, file_offset, probes = self._decoded(origin, wanted)
        return Lookups(layer, file_offset, np.minimum(stop, self._size), probes)

    def cell_runs(self, offset: int) -> tuple[Int64s, npt.NDArray[np.int16], Int64s]:
        """The runs of the cell that holds guest byte ``offset``.

        Returns:
            int64[n], guest bytes where they begin; int16[n], layers; int64[n], file offsets as in plans.

        Raises:
            ValueError: the offset is outside of the disk.
        """
        if not 0 <= offset < self._size:
            raise ValueError(f"offset {offset} is not inside the disk of {self._size} bytes")
        tables = self._tables
        cell, segment = offset >> self._cell_shift, offset >> self._segment_shift
        if tables.segment_first[segment] < 0:
            tables = self._added(np.array([segment]))
        first = int(tables.segment_first[segment])
        entry = int(tables.cells.buffer[first + cell % self._cells_per_segment])
        word, shift = entry >> GRAIN_BITS, self._sector_shift + (entry & ((1 << GRAIN_BITS) - 1))
        count = max(1, self.cell_size >> shift >> 6)
        bits = np.unpackbits(tables.words.buffer[word : word + count].view(np.uint8), bitorder="little")
        start = (cell << self._cell_shift) + (np.flatnonzero(bits) << shift)
        rank = int(tables.before.buffer[word])
        layer, file_offset, _ = self._decoded(tables.origins.buffer[rank : rank + len(start)], start)
        return start, layer, file_offset

    # ------------------------------------------------------------ what is resolved

    def _decoded(
        self, origin: Int64s, offset: Int64s
    ) -> tuple[npt.NDArray[np.int16], Int64s, npt.NDArray[np.int16]]:
        """Layers, file offsets and probes of guest bytes ``offset`` from the origins of their runs."""
        code = origin & NO_LAYER
        nowhere = code == NO_LAYER
        rest = origin >> LAYER_BITS
        kind = rest & ((1 << KIND_BITS) - 1)
        return (
            np.where(nowhere, -1 - kind, code).astype(np.int16),
            np.where(nowhere, -1, origin - code + (offset & (self.cell_size - 1))),
            np.where(nowhere, rest >> KIND_BITS, code + 1).astype(np.int16),
        )

    def _answer(
        self, look: Callable[..., int], wanted: Int64s, *columns: npt.NDArray[Any], missing: npt.NDArray[Any]
    ) -> None:
        """Fill ``columns`` for all of ``wanted``; segments that are missing are resolved on the way.

        Raises:
            ValueError: an offset is outside of the disk.
        """
        found = look(wanted, *self._tables.columns, *columns)
        if found < 0:
            raise ValueError(f"an offset is not inside the disk of {self._size} bytes")
        if found == 0:
            return
        todo = np.flatnonzero(missing == MISSING)
        while len(todo):
            segments = distinct(wanted[todo] >> self._segment_shift)
            parts = [np.empty(len(todo), column.dtype) for column in columns]
            # As many as there is room for: the others are still missing, and come next.  No name holds the
            # tables, or they would stay in memory beside those that follow when they are forgotten.
            look(wanted[todo], *self._added(segments).columns, *parts)
            for column, part in zip(columns, parts):
                column[todo] = part
            todo = todo[missing[todo] == MISSING]

    def _added(self, segments: Int64s) -> _Tables:
        """As ``_add``, one thread after the other."""
        with self._lock:
            return self._add(segments)

    def _add(self, segments: Int64s) -> _Tables:
        """Resolve those of ``segments`` (ascending) that are not there, one at least, until the map is full.

        Returns:
            The tables with them, which stay as they are whoever adds or forgets something later.
        """
        if self.nbytes >= self._bytes_max:
            self._forget()
        tables = self._tables
        segments = segments[tables.segment_first[segments] < 0]
        # Whoever looks something up now goes on with the tables that are there.
        tables = replace(tables, segment_first=tables.segment_first.copy())
        # One engine for all of it: a chain's bitmaps are not fewer for being asked for piece by piece.
        engine = self._engine
        if engine == "auto" and len(segments):
            wanted = min(self._size, len(segments) << self._segment_shift)
            engine = machine_for("auto", bitmaps=bitmaps_within(self._images, 0, wanted)).name
        ends = np.append(np.flatnonzero(np.diff(segments) > 1) + 1, len(segments))
        at_once = max(1, _CELLS_AT_ONCE_MIN // self._cells_per_segment)
        i = 0
        while i < len(segments) and (i == 0 or tables.nbytes < self._bytes_max):
            first = int(segments[i])
            empty, probes = self._nothing_from(first)
            if empty > first:
                tables = tables.with_nothing(first, empty, probes)
                i = int(np.searchsorted(segments, empty))
                continue
            at_most = min(at_once, int(ends[np.searchsorted(ends, i, side="right")]) - i)
            index = self._index(first, first + at_most, engine)
            tables = tables.extended(first, index)
            count = -(-len(index.cells) // self._cells_per_segment)
            i += count
            # So that what is in memory at a time is neither much nor next to nothing.
            if count < at_most:
                at_once = max(1, at_once // 2)
            elif len(index.origins) < _RUNS_AT_ONCE:
                at_once = min(2 * at_once, max(1, _CELLS_AT_ONCE // self._cells_per_segment))
        self._tables = tables
        return tables

    def _nothing_from(self, segment: int) -> tuple[int, int]:
        """The first segment from ``segment`` on that may hold something, and how many layers are asked."""
        start = segment << self._segment_shift
        asked = next(
            (i for i, image in enumerate(self._images) if image.geometry.virtual_size <= start),
            len(self._images),
        )
        images = self._images[:asked]
        stored = min([next_stored(images, start), *(image.geometry.virtual_size for image in images)])
        # The disk's last segment may be short.
        whole = stored + self.segment_size - 1 if stored == self._size else stored
        return whole >> self._segment_shift, asked

    def _index(self, first: int, last: int, engine: Engine) -> _Index:
        """The index of segments ``[first, last)``, or of fewer, one at least, when they have many runs."""
        start, stop = first << self._segment_shift, min(self._size, last << self._segment_shift)
        windows, run_count = [], 0
        for window in resolve(self._images, start, stop, engine=engine):
            windows.append(window)
            run_count += len(window.offset)
            whole = int(window.offset[-1] + window.length[-1]) >> self._segment_shift
            if run_count >= _RUNS_AT_ONCE_MAX and first < whole < last:
                stop = whole << self._segment_shift
                windows = [window.clipped(start, stop) for window in windows]
                break
        cell_count = -(-(stop - start) >> self._cell_shift)
        runs = _Runs.of(windows, self._cell_shift)
        cell = (runs.offset - start) >> self._cell_shift
        begin = (runs.offset & (self.cell_size - 1)) >> self._sector_shift
        first_of_cell = np.searchsorted(cell, np.arange(cell_count))
        # The largest grain that all of a cell's runs begin at multiples of.
        sectors = self.cell_size >> self._sector_shift
        together = np.bitwise_or.reduceat(begin, first_of_cell) | sectors
        grain_shift = bit_count(((together & -together) - 1).astype(np.uint64)).astype(np.int64)
        word_count = np.maximum(1, (sectors >> grain_shift) >> 6)
        first_word = np.cumsum(word_count) - word_count

        grain = begin >> grain_shift[cell]
        word = first_word[cell] + (grain >> 6)
        bit = np.uint64(1) << (grain & 63).astype(np.uint64)
        new = np.flatnonzero(np.diff(word, prepend=-1))
        words = np.zeros(int(word_count.sum()), np.uint64)
        words[word[new]] = np.bitwise_or.reduceat(bit, new)
        bits = np.zeros(len(words), np.int64)
        bits[word[new]] = np.diff(new, append=len(word))

        return _Index(
            (first_word << GRAIN_BITS) | grain_shift,
            words,
            (np.cumsum(bits) - bits).astype(np.uint32),
            runs.origins(self.cell_size),
        )

    def _forget(self) -> None:
        shifts = (self._segment_shift, self._cell_shift, self._sector_shift, self._size)
        self._tables = _Tables(np.full(-(-self._size >> shifts[0]), -1, np.int64), *_Index.pools(), shifts)


@dataclass(frozen=True, slots=True, eq=False)
class _Index:
    """Some neighbouring segments, numbered from 0 in all columns; see :mod:`vhdtool.kernels.rank`."""

    cells: Int64s
    words: npt.NDArray[np.uint64]
    before: npt.NDArray[np.uint32]
    origins: Int64s

    @staticmethod
    def pools() -> tuple[_Pool, _Pool, _Pool, _Pool]:
        """Nothing, to begin with."""
        dtypes = (np.int64, np.uint64, np.uint32, np.int64)
        one, two, three, four = (_Pool(np.empty(0, dtype), 0) for dtype in dtypes)
        return one, two, three, four


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """An array that grows at its end; what was handed out before never changes."""

    buffer: npt.NDArray[Any]
    used: int

    @property
    def column(self) -> npt.NDArray[Any]:
        return self.buffer[: self.used]

    def extended(self, more: npt.NDArray[Any]) -> _Pool:
        """This with ``more`` behind it."""
        used = self.used + len(more)
        buffer = self.buffer
        if used > len(buffer):
            buffer = np.empty(used + (self.used >> 2), self.buffer.dtype)
            buffer[: self.used] = self.column
        buffer[self.used : used] = more
        return _Pool(buffer, used)


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """What lookups read, in the order in which kernels take it; see :func:`vhdtool.kernels.rank.lookup`."""

    segment_first: Int64s
    cells: _Pool
    words: _Pool
    before: _Pool
    origins: _Pool
    shifts: tuple[int, int, int, int]
    # First cells of segments in which nothing is, by how many layers say so.
    nothing: dict[int, int] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[Any, ...]:
        pools = (self.cells, self.words, self.before, self.origins)
        return (self.segment_first, *(pool.column for pool in pools), self.shifts)

    @property
    def nbytes(self) -> int:
        pools = (self.cells, self.words, self.before, self.origins)
        return self.segment_first.nbytes + sum(pool.buffer.nbytes for pool in pools)

    def with_nothing(self, first: int, stop: int, probes: int) -> _Tables:
        """These with segments ``[first, stop)``, in which ``probes`` layers store nothing."""
        tables, cell = self, self.nothing.get(probes)
        if cell is None:
            # One segment of single runs stands for all of them: where nothing is, no offset matters.
            per_segment = 1 << (self.shifts[0] - self.shifts[1])
            run = np.arange(per_segment, dtype=np.int64)
            grain_shift = self.shifts[1] - self.shifts[2]
            origin = (((probes << KIND_BITS) | (-1 - ZEROS)) << LAYER_BITS) | NO_LAYER
            index = _Index(
                (run << GRAIN_BITS) | grain_shift,
                np.ones(per_segment, np.uint64),
                run.astype(np.uint32),
                np.full(per_segment, origin, np.int64),
            )
            cell = self.cells.used
            tables = self.extended(first, index)
            tables = replace(tables, nothing={**tables.nothing, probes: cell})
        missing = np.flatnonzero(tables.segment_first[first:stop] < 0) + first
        tables.segment_first[missing] = cell
        return tables

    def extended(self, first: int, index: _Index) -> _Tables:
        """These with the segments of ``index``, the first of which is segment ``first``.

        ``segment_first`` is changed in place: nobody else has these tables yet.
        """
        per_segment = 1 << (self.shifts[0] - self.shifts[1])
        starts = np.arange(0, len(index.cells), per_segment)
        self.segment_first[first : first + len(starts)] = starts + self.cells.used
        return _Tables(
            self.segment_first,
            self.cells.extended(index.cells + (self.words.used << GRAIN_BITS)),
            self.words.extended(index.words),
            self.before.extended(index.before + np.uint32(self.origins.used)),
            self.origins.extended(index.origins),
            self.shifts,
            self.nothing,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Runs:
    """Runs in guest order, each in one cell."""

    offset: Int64s
    layer: Int64s
    file_offset: Int64s
    probes: Int64s

    @classmethod
    def of(cls, windows: Sequence[Resolved], cell_shift: int) -> _Runs:
        """Those of neighbouring windows; what spans cells is cut."""
        offset = np.concatenate([window.offset for window in windows])
        length = np.concatenate([window.length for window in windows])
        layer = np.concatenate([window.layer for window in windows]).astype(np.int64)
        file_offset = np.concatenate([window.file_offset for window in windows])
        probes = np.concatenate([window.probes for window in windows]).astype(np.int64)
        first_cell = offset >> cell_shift
        count = ((offset + length - 1) >> cell_shift) - first_cell + 1
        if int(count.max(initial=1)) == 1:
            return cls(offset, layer, file_offset, probes)
        run = np.repeat(np.arange(len(offset)), count)
        nth = np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count)
        begin = np.where(nth == 0, offset[run], (first_cell[run] + nth) << cell_shift)
        place = np.where(layer[run] < 0, -1, file_offset[run] + begin - offset[run])
        return cls(begin, layer[run], place, probes[run])

    def origins(self, cell_size: int) -> Int64s:
        """int64[n], as lookups read them."""
        kind = -1 - np.where(self.layer == UNHELD, ZEROS, self.layer)
        nowhere = (((self.probes << KIND_BITS) | kind) << LAYER_BITS) | NO_LAYER
        base = self.file_offset - (self.offset & (cell_size - 1))
        return np.where(self.layer < 0, nowhere, base | self.layer)


assert (ZEROS, DAMAGED) == (-1, -2), "an origin's kind is -1 - layer"
