"""Flatten: resolve a range of the disk once, in windows, as arrays.

::

    what layers store, cell by cell             a cell is a block of the layer with the smallest ones
        │ top-down, until a layer settles the cell
        ├── no partial layer above ──► one run for the cell
        └── partial layers above ───► rows of sector bitmaps, one a layer, top layer first
                                          claim: a bit stays in the first row that has it
                                          runs of what is left ──► runs of the plan

The other algorithm for the same answer is ``walk``.  Memory depends on the constants below, not on the
disk or on the depth of the chain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from vhdtool.chain.engine import Engine, Int64s, Machine, Words, cheaper, descriptors_of, machine_for
from vhdtool.formats.pieces import reverse_bits
from vhdtool.model.arrays import distinct
from vhdtool.model.blockmap import STATE_MASK
from vhdtool.model.plan import ReadPlan, merged
from vhdtool.model.state import DAMAGED, STATE_BITS, UNHELD, ZEROS, BlockState

if TYPE_CHECKING:
    from vhdtool.formats.image import DiskImage
    from vhdtool.source import ByteSource

# A window has this many cells, or fewer where layers store more than so many rows of them.
CELLS_PER_WINDOW: Final = 1 << 16
CELLS_PER_WINDOW_MIN: Final = 1 << 8
ROWS_PER_WINDOW: Final = 1 << 20
BITMAP_BYTES_PER_BATCH: Final = 4 << 20
RUNS_PER_PLAN: Final = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Resolved:
    """Runs in guest order that tile a window, as a plan's but not merged, and who settled them.

    Each lies in one cell, but for stretches in which no layer stores anything.

    Attributes:
        offset, length, file_offset: int64[n], as in :class:`ReadPlan`.
        layer: int16[n], as in a plan; ``UNHELD`` where no layer says anything and the last one would ask its
            parent, which at a chain's base reads as zeros.
        probes: int16[n], layers whose tables a walk consults: up to the one that settles the run, or all
            whose disks reach so far.
    """

    offset: Int64s
    length: Int64s
    layer: npt.NDArray[np.int16]
    file_offset: Int64s
    probes: npt.NDArray[np.int16]

    def clipped(self, start: int, stop: int) -> Resolved:
        """The part inside guest range ``[start, stop)``."""
        first = int(np.searchsorted(self.offset, start, side="right")) - 1
        part = slice(max(0, first), int(np.searchsorted(self.offset, stop)))
        offset, length, file_offset = self.offset[part], self.length[part], self.file_offset[part]
        if len(offset) and (offset[0] < start or offset[-1] + length[-1] > stop):
            begin = np.maximum(offset, start)
            length = np.minimum(offset + length, stop) - begin
            file_offset = np.where(self.layer[part] < 0, -1, file_offset + (begin - offset))
            offset = begin
        return Resolved(offset, length, self.layer[part], file_offset, self.probes[part])

    def plan(self) -> ReadPlan:
        """The same runs as a plan."""
        layer = self.layer
        if layer.min(initial=0) == UNHELD:
            layer = np.where(layer == UNHELD, np.int16(ZEROS), layer)
        return merged(self.offset, self.length, layer, self.file_offset)


def flatten(
    images: Sequence[DiskImage], start: int, stop: int, *, engine: Engine = "auto"
) -> Iterator[ReadPlan]:
    """Plans that tile guest bytes ``[start, stop)`` in order; within the leaf's disk.

    Neighbouring runs are merged within a plan, not from one plan to the next.
    """
    for window in resolve(images, start, stop, engine=engine):
        yield window.plan()


def resolve(
    images: Sequence[DiskImage], start: int, stop: int, *, engine: Engine = "auto"
) -> Iterator[Resolved]:
    """Runs that tile guest bytes ``[start, stop)`` in order, in windows; within the leaf's disk."""
    machine = machine_for(engine, bitmaps=0 if engine != "auto" else bitmaps_within(images, start, stop))
    # Past the end of a smaller parent every layer below reads zeros: between two such ends the same
    # layers take part, each with all of its disk there.
    ends = {image.geometry.virtual_size for image in images}
    edges = sorted({start, stop, *(end for end in ends if start < end < stop)})
    for first, last in pairwise(edges):
        depth = next(
            (i for i, image in enumerate(images) if image.geometry.virtual_size <= first), len(images)
        )
        yield from _resolve(images[:depth], first, last, UNHELD if depth == len(images) else ZEROS, machine)


def bitmaps_within(images: Sequence[DiskImage], start: int, stop: int) -> int:
    """About how many sector bitmaps resolving ``[start, stop)`` reads: what the cost model asks for.

    Tables are not read when even all blocks together would not make a difference.
    """
    blocks = sum((stop - start) // image.geometry.block_size + 1 for image in images)
    if cheaper(bitmaps=blocks) == "numpy":
        return blocks
    size = max(image.geometry.virtual_size for image in images)
    partial = sum(image.counts().partial for image in images)
    return partial * (stop - start) // size


def _resolve(
    images: Sequence[DiskImage], start: int, stop: int, nobody: int, machine: Machine
) -> Iterator[Resolved]:
    """As ``resolve``, where all of ``images`` reach to ``stop``."""
    cell = min(image.geometry.block_size for image in images)
    cells = CELLS_PER_WINDOW
    position = start
    while position < stop:
        # A table of 512 MiB that is one hole must not cost more than its hole.
        stored = min(stop, next_stored(images, position))
        if stored > position:
            yield _nothing(position, stored, nobody, len(images))
            position = stored
            continue
        span = cell * cells
        end = min(stop, position - position % span + span)
        window = _Window(images, cell, position, end, nobody)
        if not window.load(None if cells == CELLS_PER_WINDOW_MIN else ROWS_PER_WINDOW):
            cells = max(CELLS_PER_WINDOW_MIN, cells // 4)
            continue
        yield from window.resolved(machine)
        position = end
        if len(window.rows.cell) < ROWS_PER_WINDOW // 8:
            cells = min(2 * cells, CELLS_PER_WINDOW)


def _nothing(start: int, stop: int, nobody: int, depth: int) -> Resolved:
    """One run that nobody holds."""
    int64s = (np.array([value], np.int64) for value in (start, stop - start, -1))
    offset, length, file_offset = int64s
    return Resolved(offset, length, np.array([nobody], np.int16), file_offset, np.array([depth], np.int16))


def next_stored(images: Sequence[DiskImage], position: int) -> int:
    """The first guest byte from ``position`` on that any of ``images`` may hold."""
    found = []
    for image in images:
        size = image.geometry.block_size
        block = image.next_stored(position // size)
        if block * size <= position:
            return position
        found.append(block * size)
    return min(found)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """What layers hold of cells that have partial layers: by cell, then layer, top first.

    Attributes:
        cell: int64[n], counted from the window's first.
        layer: int16[n], as in ``Resolved``.
        file_offset: int64[n], where the cell's first byte would stand; -1 where no layer holds it.
        depth: int16[n], the layer that says so; the number of layers where none does.
        bitmap: int64[n], for partial layers where the cell's piece of the bitmap stands in its file, -1
            where that cannot be said; -2 for what settles the cell: all that is still unclaimed.
    """

    cell: Int64s
    layer: npt.NDArray[np.int16]
    file_offset: Int64s
    depth: npt.NDArray[np.int16]
    bitmap: Int64s

    def __getitem__(self, rows: slice | Int64s) -> _Rows:
        return _Rows(
            self.cell[rows], self.layer[rows], self.file_offset[rows], self.depth[rows], self.bitmap[rows]
        )

    @classmethod
    def joined(cls, parts: Sequence[_Rows]) -> _Rows:
        columns = ([getattr(part, name) for part in parts] for name in cls.__slots__)
        return cls(*(np.concatenate(column) for column in columns))


_SETTLES: Final = -2
_UNPLACED: Final = -1


class _Window:
    """The cells of guest range [start, stop), all of which every image here has."""

    def __init__(
        self, images: Sequence[DiskImage], cell_size: int, start: int, stop: int, nobody: int
    ) -> None:
        self.images = images
        self.cell_size = cell_size
        self.nobody = nobody
        self.sector_size = images[0].geometry.sector_size
        self.sectors_per_cell = cell_size // self.sector_size
        self.words_per_cell = -(-self.sectors_per_cell // 64)
        self.start, self.stop = start, stop
        self.first = start // cell_size
        self.count = -(-stop // cell_size) - self.first
        # For cells settled without a partial layer: their one run.
        self.layer = np.full(self.count, nobody, np.int16)
        self.file_offset = np.full(self.count, -1, np.int64)
        self.probes = np.full(self.count, len(images), np.int16)
        # A file and the bit order of its bitmaps, for each layer whose bitmaps stand in a plain one.
        self.files: list[ByteSource | None] = [None] * (len(images) + 1)
        self.is_msb_first = np.zeros(len(images) + 1, np.bool_)

    # ------------------------------------------------------------ blocks

    def load(self, rows_max: int | None) -> bool:
        """Settle every cell that bitmaps are not needed for; what the others need is kept as rows.

        Returns:
            False, and all of this was for nothing, when that were more than ``rows_max`` rows.
        """
        settled = np.zeros(self.count, np.bool_)
        mixed = np.zeros(self.count, np.bool_)
        found: list[_Rows] = []
        left, row_count = self.count, 0
        for depth, image in enumerate(self.images):
            cell, entry, within = self._stored(image)
            fresh = np.flatnonzero(~settled[cell])
            if not len(fresh):
                continue
            cell, entry, within = cell[fresh], entry[fresh], within[fresh]
            state = entry & STATE_MASK
            partial = state == BlockState.PARTIAL
            placed = partial | (state == BlockState.DATA)
            layer = np.where(placed, depth, np.where(state == BlockState.DAMAGED, DAMAGED, ZEROS))
            file_offset = np.where(placed, (entry >> STATE_BITS) + within, -1)
            was_mixed = mixed[cell]
            simple = np.flatnonzero(~(partial | was_mixed))
            self.layer[cell[simple]] = layer[simple]
            self.file_offset[cell[simple]] = file_offset[simple]
            self.probes[cell[simple]] = depth + 1
            shared = np.flatnonzero(partial | was_mixed)
            if len(shared):
                bitmap = np.full(len(cell), _SETTLES, np.int64)
                where = np.flatnonzero(partial)
                bitmap[where] = self._bitmap_places(depth, cell[where], file_offset[where] - within[where])
                depths = np.full(len(cell), depth, np.int16)
                found.append(_Rows(cell, layer.astype(np.int16), file_offset, depths, bitmap)[shared])
                row_count += len(shared)
                if rows_max is not None and row_count > rows_max:
                    return False
            settles = cell[~partial]
            settled[settles] = True
            mixed[cell[partial]] = True
            left -= len(settles)
            if left == 0:
                break
        open_cells = np.flatnonzero(mixed & ~settled)
        rows = len(open_cells)
        found.append(
            _Rows(
                open_cells,
                np.full(rows, self.nobody, np.int16),
                np.full(rows, -1, np.int64),
                np.full(rows, len(self.images), np.int16),
                np.full(rows, _SETTLES, np.int64),
            )
        )
        rows_by_layer = _Rows.joined(found)
        # A window has no more cells than 16 bits number: sorting those takes no comparisons.
        self.rows = rows_by_layer[np.argsort(rows_by_layer.cell.astype(np.uint16), kind="stable")]
        return True

    def _stored(self, image: DiskImage) -> tuple[Int64s, Int64s, Int64s]:
        """Cells of the window that ``image`` stores: number, entry of the block, where in it they begin."""
        ratio = image.geometry.block_size // self.cell_size
        blocks = image.stored(self.first // ratio, -(-(self.first + self.count) // ratio))
        if ratio == 1:
            return blocks.block - self.first, blocks.entry, np.zeros(len(blocks.block), np.int64)
        # Blocks may be far larger than the window: only their cells that lie in it are spelled out.
        begin = blocks.block * ratio - self.first
        low, high = np.maximum(begin, 0), np.minimum(begin + ratio, self.count)
        cells = high - low
        before = np.cumsum(cells) - cells
        cell = np.arange(int(cells.sum())) + np.repeat(low - before, cells)
        within = (cell - np.repeat(begin, cells)) * self.cell_size
        return cell, np.repeat(blocks.entry, cells), within

    def _bitmap_places(self, depth: int, cell: Int64s, block_offset: Int64s) -> Int64s | int:
        """Where the bitmaps of partial cells stand, if that can be said."""
        # Pieces of less than a byte are rare, and cut out where bitmaps are read.
        if self.sectors_per_cell < 8 or not len(cell):
            return _UNPLACED
        places = self.images[depth].bitmap_places((cell + self.first) * self.sectors_per_cell, block_offset)
        if places is None:
            return _UNPLACED
        self.files[depth] = places.source
        self.is_msb_first[depth] = places.is_msb_first
        return places.place

    # ------------------------------------------------------------ bitmaps

    def resolved(self, machine: Machine) -> Iterator[Resolved]:
        """Runs of bounded number that tile the window; after ``load``."""
        rows = self.rows
        new = np.flatnonzero(np.diff(rows.cell, prepend=-1))
        group_first = np.append(new, len(rows.cell))
        # A batch ends before a cell with partial layers; the cells between go with it.
        done = 0
        for first, last in self._batches(group_first):
            end = self.count if last == len(new) else int(rows.cell[new[last]])
            batch = rows[slice(int(group_first[first]), int(group_first[last]))]
            groups = group_first[first : last + 1] - group_first[first]
            for part in self._resolve_batch(machine, done, end, batch, groups):
                yield part.clipped(self.start, self.stop)
            done = end

    def _batches(self, group_first: Int64s) -> Iterator[tuple[int, int]]:
        """Ranges of groups whose bitmaps are in memory together; at least one range, maybe empty."""
        row_bytes = 8 * self.words_per_cell
        rows_max = BITMAP_BYTES_PER_BATCH // row_bytes
        group_count = len(group_first) - 1
        first = 0
        while True:
            last = int(np.searchsorted(group_first, group_first[first] + rows_max, "right")) - 1
            last = min(max(last, first + 1), group_count)
            yield first, last
            if last == group_count:
                return
            first = last

    def _resolve_batch(
        self, machine: Machine, first: int, stop: int, rows: _Rows, group_first: Int64s
    ) -> Iterator[Resolved]:
        """Runs of cells ``[first, stop)``, of which ``rows`` are those with partial layers."""
        words = self._bitmaps(machine, rows)
        counts = np.empty(len(group_first) - 1, np.int64)
        machine.claim(words, group_first, counts)
        runs = np.concatenate(([0], np.cumsum(counts)))
        group = 0
        while True:
            # As many groups as make runs of bounded number.
            last = int(np.searchsorted(runs, runs[group] + RUNS_PER_PLAN, "right")) - 1
            last = min(max(last, group + 1), len(counts))
            part = slice(int(group_first[group]), int(group_first[last]))
            end = stop if last == len(counts) else int(rows.cell[group_first[last]])
            groups = group_first[group : last + 1] - group_first[group]
            row, begin = machine.claimed_runs(words[part], groups, counts[group:last])
            yield self._runs(first, end, rows[part], groups, counts[group:last], row, begin)
            if last == len(counts):
                return
            first, group = end, last

    def _bitmaps(self, machine: Machine, rows: _Rows) -> Words:
        """One row of sector bits for each of ``rows``: all ones for what settles a cell."""
        words = np.zeros((len(rows.cell), self.words_per_cell), np.uint64)
        bits = words.view(np.uint8)
        width = -(-self.sectors_per_cell // 8)
        settles = np.flatnonzero(rows.bitmap == _SETTLES)
        bits[settles, :width] = 0xFF if self.sectors_per_cell >= 8 else (1 << self.sectors_per_cell) - 1
        placed = np.flatnonzero(rows.bitmap >= 0)
        missing = np.flatnonzero(rows.bitmap == _UNPLACED)
        if machine.name == "numpy":
            # Layer by layer neighbours are read together, which saves more than it costs.
            missing = np.flatnonzero(rows.bitmap != _SETTLES)
        elif len(placed):
            done = machine.read_pieces(
                descriptors_of(self.files)[rows.depth[placed]],
                rows.bitmap[placed],
                np.full(len(placed), width, np.int64),
                placed * bits.shape[1],
                bits.reshape(-1),
            )
            turned = placed[self.is_msb_first[rows.depth[placed]]]
            if len(turned):
                pieces = bits[turned]
                reverse_bits(pieces)
                bits[turned] = pieces
            # Whatever could not be read there is asked for where errors are told.
            missing = np.concatenate((missing, placed[~done]))
        sector = (rows.cell + self.first) * self.sectors_per_cell
        for depth in distinct(rows.depth[missing].astype(np.int64)).tolist():
            mine = missing[rows.depth[missing] == depth]
            bits[mine, :width] = self.images[depth].bitmaps(sector[mine], self.sectors_per_cell)
        return words

    # ------------------------------------------------------------ runs

    def _runs(
        self,
        first: int,
        stop: int,
        rows: _Rows,
        group_first: Int64s,
        counts: Int64s,
        row: Int64s,
        begin: Int64s,
    ) -> Resolved:
        """The runs of cells ``[first, stop)``: single ones, and among them those of rows and sectors."""
        # How many runs each cell has, and so where each run stands among all.
        runs_of_cell = np.ones(stop - first, np.int64)
        mixed = rows.cell[group_first[:-1]] - first
        runs_of_cell[mixed] = counts
        place = np.cumsum(runs_of_cell) - runs_of_cell
        total = int(runs_of_cell.sum())
        is_single = np.ones(stop - first, np.bool_)
        is_single[mixed] = False
        single = np.flatnonzero(is_single)
        at = place[single]
        before = np.cumsum(counts) - counts
        among = np.arange(len(row)) + np.repeat(place[mixed] - before, counts)

        skipped = begin * self.sector_size
        layer_of_row = rows.layer[row]
        offset = np.empty(total, np.int64)
        layer = np.empty(total, np.int16)
        file_offset = np.empty(total, np.int64)
        probes = np.empty(total, np.int16)
        offset[at] = (single + (first + self.first)) * self.cell_size
        layer[at] = self.layer[first:stop][single]
        file_offset[at] = self.file_offset[first:stop][single]
        probes[at] = self.probes[first:stop][single]
        offset[among] = (rows.cell[row] + self.first) * self.cell_size + skipped
        layer[among] = layer_of_row
        file_offset[among] = np.where(layer_of_row < 0, -1, rows.file_offset[row] + skipped)
        probes[among] = np.minimum(rows.depth[row] + 1, len(self.images))
        end = (stop + self.first) * self.cell_size
        return Resolved(offset, np.diff(offset, append=end), layer, file_offset, probes)
