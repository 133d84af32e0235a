"""Flatten: resolve a range of the disk once, in windows, as arrays.

::

    layers' block maps, cell by cell            a cell is a block of the layer with the smallest ones
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

from vhdtool.chain.engine import BitmapEngine, Engine, engine_named
from vhdtool.model.plan import ReadPlan, merged
from vhdtool.model.state import DAMAGED, STATE_BITS, ZEROS, BlockState, Run

if TYPE_CHECKING:
    from vhdtool.formats.image import DiskImage

Int64s = npt.NDArray[np.int64]

CELLS_PER_WINDOW: Final = 1 << 16
BITMAP_BYTES_PER_BATCH: Final = 4 << 20
RUNS_PER_PLAN: Final = 1 << 18


def flatten(
    images: Sequence[DiskImage], start: int, stop: int, *, engine: Engine = "numpy"
) -> Iterator[ReadPlan]:
    """Plans that tile guest bytes ``[start, stop)`` in order; within the leaf's disk.

    Neighbouring runs are merged within a plan, not from one plan to the next.
    """
    machine = engine_named(engine)
    # Past the end of a smaller parent every layer below reads zeros: between two such ends the same
    # layers take part, each with all of its disk there.
    ends = {image.geometry.virtual_size for image in images}
    edges = sorted({start, stop, *(end for end in ends if start < end < stop)})
    for first, last in pairwise(edges):
        depth = next(
            (i for i, image in enumerate(images) if image.geometry.virtual_size <= first), len(images)
        )
        cell = min(image.geometry.block_size for image in images[:depth])
        span = cell * CELLS_PER_WINDOW
        position = first
        while position < last:
            # A table of 512 MiB that is one hole must not cost more than its hole.
            stored = min(last, _next_stored(images[:depth], position))
            if stored > position:
                yield ReadPlan.of_runs([Run(position, stored - position, ZEROS, -1)])
                position = stored
                continue
            end = min(last, position - position % span + span)
            yield from _Window(images[:depth], cell, position, end).plans(machine)
            position = end


def _next_stored(images: Sequence[DiskImage], position: int) -> int:
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
        layer: int16[n], as in a plan.
        file_offset: int64[n], where the cell's first byte would stand; -1 where no layer holds it.
        partial: bool[n], False for what settles the cell: all that is still unclaimed comes from there.
        depth: int16[n], the layer to ask for the bitmap.
    """

    cell: Int64s
    layer: npt.NDArray[np.int16]
    file_offset: Int64s
    partial: npt.NDArray[np.bool_]
    depth: npt.NDArray[np.int16]

    def __getitem__(self, rows: slice | Int64s) -> _Rows:
        return _Rows(
            self.cell[rows], self.layer[rows], self.file_offset[rows], self.partial[rows], self.depth[rows]
        )


class _Window:
    """The cells of guest range [start, stop), all of which every image here has."""

    def __init__(self, images: Sequence[DiskImage], cell_size: int, start: int, stop: int) -> None:
        self.images = images
        self.cell_size = cell_size
        self.sector_size = images[0].geometry.sector_size
        self.sectors_per_cell = cell_size // self.sector_size
        self.start, self.stop = start, stop
        self.first = start // cell_size
        self.count = -(-stop // cell_size) - self.first
        # For cells settled without a partial layer: their one run.
        self.layer = np.full(self.count, ZEROS, np.int16)
        self.file_offset = np.full(self.count, -1, np.int64)

    def plans(self, engine: BitmapEngine) -> Iterator[ReadPlan]:
        """Plans of bounded size that tile the window."""
        rows = self._resolve_blocks()
        cells, group_first = np.unique(rows.cell, return_index=True)
        group_first = np.append(group_first, len(rows.cell))
        # A batch ends before a cell with partial layers; the cells between go with it.
        done = 0
        for first, last in self._batches(group_first):
            end = self.count if last == len(cells) else int(cells[last])
            batch = rows[slice(int(group_first[first]), int(group_first[last]))]
            groups = group_first[first : last + 1] - group_first[first]
            for plan in self._plans_of_batch(engine, done, end, batch, groups):
                yield plan.clipped(self.start, self.stop)
            done = end

    def _resolve_blocks(self) -> _Rows:
        """Settle every cell that bitmaps are not needed for; what the others need comes back as rows."""
        live = np.arange(self.count)
        mixed = np.zeros(self.count, np.bool_)
        found: list[_Rows] = []
        for depth, image in enumerate(self.images):
            entry, within = self._entries(image, live)
            state = entry & ((1 << STATE_BITS) - 1)
            hit = np.flatnonzero(state != BlockState.ABSENT)
            if len(hit) == 0:
                continue
            cell, state = live[hit], state[hit]
            partial = state == BlockState.PARTIAL
            placed = partial | (state == BlockState.DATA)
            rows = _Rows(
                cell,
                np.where(placed, depth, np.where(state == BlockState.DAMAGED, DAMAGED, ZEROS)).astype(
                    np.int16
                ),
                np.where(placed, (entry[hit] >> STATE_BITS) + within[hit], -1),
                partial,
                np.full(len(cell), depth, np.int16),
            )
            simple = ~partial & ~mixed[cell]
            self.layer[cell[simple]] = rows.layer[simple]
            self.file_offset[cell[simple]] = rows.file_offset[simple]
            found.append(rows[np.flatnonzero(~simple)])
            mixed[cell[partial]] = True
            live = np.delete(live, hit[~partial])
            if len(live) == 0:
                break
        # Below the last layer are zeros: they settle what is still open.
        left = live[mixed[live]]
        nothing = np.full(len(left), -1)
        found.append(
            _Rows(
                left,
                np.full(len(left), ZEROS, np.int16),
                nothing,
                np.zeros(len(left), np.bool_),
                nothing.astype(np.int16),
            )
        )
        rows = _Rows(
            np.concatenate([r.cell for r in found]),
            np.concatenate([r.layer for r in found]),
            np.concatenate([r.file_offset for r in found]),
            np.concatenate([r.partial for r in found]),
            np.concatenate([r.depth for r in found]),
        )
        return rows[np.argsort(rows.cell, kind="stable")]

    def _entries(self, image: DiskImage, cells: Int64s) -> tuple[Int64s, Int64s]:
        """Block map entries of ``image`` for ``cells``, and where in its block each cell begins."""
        ratio = image.geometry.block_size // self.cell_size
        first_block = self.first // ratio
        stop_block = -(-(self.first + self.count) // ratio)
        entry = image.block_map(first_block, stop_block).entry
        if ratio == 1:
            return entry[cells], np.zeros(len(cells), np.int64)
        block, within = np.divmod(cells + self.first, ratio)
        return entry[block - first_block], within * self.cell_size

    def _batches(self, group_first: Int64s) -> Iterator[tuple[int, int]]:
        """Ranges of groups whose bitmaps are in memory together; at least one range, maybe empty."""
        rows_max = max(1, BITMAP_BYTES_PER_BATCH // self._row_bytes)
        group_count = len(group_first) - 1
        first = 0
        while True:
            last = int(np.searchsorted(group_first, group_first[first] + rows_max, "right")) - 1
            last = min(max(last, first + 1), group_count)
            yield first, last
            if last == group_count:
                return
            first = last

    @property
    def _row_bytes(self) -> int:
        return -(-self.sectors_per_cell // 8)

    def _plans_of_batch(
        self, engine: BitmapEngine, first: int, stop: int, rows: _Rows, group_first: Int64s
    ) -> Iterator[ReadPlan]:
        """Plans for cells ``[first, stop)``, of which ``rows`` are those with partial layers."""
        bits = self._bitmaps(rows)
        engine.claim(bits, group_first)
        runs = np.concatenate(([0], np.cumsum(engine.count_runs(bits))))[group_first]
        group = 0
        while True:
            # As many groups as make a plan of bounded size.
            last = int(np.searchsorted(runs, runs[group] + RUNS_PER_PLAN, "right")) - 1
            last = min(max(last, group + 1), len(group_first) - 1)
            part = slice(int(group_first[group]), int(group_first[last]))
            end = stop if last == len(group_first) - 1 else int(rows.cell[group_first[last]])
            yield self._plan(engine, first, end, rows[part], bits[part])
            if last == len(group_first) - 1:
                return
            first, group = end, last

    def _bitmaps(self, rows: _Rows) -> npt.NDArray[np.uint8]:
        """One row of sector bits for each of ``rows``: all ones for what settles a cell."""
        full = 0xFF if self.sectors_per_cell >= 8 else (1 << self.sectors_per_cell) - 1
        bits = np.full((len(rows.cell), self._row_bytes), full, np.uint8)
        sector = (rows.cell + self.first) * self.sectors_per_cell
        for depth in np.unique(rows.depth[rows.partial]).tolist():
            mine = np.flatnonzero(rows.partial & (rows.depth == depth))
            bits[mine] = self.images[depth].bitmaps(sector[mine], self.sectors_per_cell)
        return bits

    def _plan(
        self, engine: BitmapEngine, first: int, stop: int, rows: _Rows, bits: npt.NDArray[np.uint8]
    ) -> ReadPlan:
        """The plan of cells ``[first, stop)``: single runs, and the runs of ``bits`` among them."""
        single = np.arange(first, stop)
        if len(rows.cell):
            single = np.setdiff1d(single, rows.cell, assume_unique=False)
        row, begin, end = engine.find_runs(bits)
        skipped = begin * self.sector_size
        offset = np.concatenate(
            [
                (single + self.first) * self.cell_size,
                (rows.cell[row] + self.first) * self.cell_size + skipped,
            ]
        )
        length = np.concatenate(
            [np.full(len(single), self.cell_size, np.int64), (end - begin) * self.sector_size]
        )
        layer = np.concatenate([self.layer[single], rows.layer[row]])
        file_offset = np.concatenate(
            [
                self.file_offset[single],
                np.where(rows.layer[row] < 0, -1, rows.file_offset[row] + skipped),
            ]
        )
        order = np.argsort(offset, kind="stable")
        return merged(offset[order], length[order], layer[order], file_offset[order])
