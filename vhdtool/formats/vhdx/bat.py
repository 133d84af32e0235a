"""The BAT as arrays: judging the whole table in windows, block maps, pieces of sector bitmaps.

Imported where arrays are asked for; opening an image does not come here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vhdtool.errors import FINDINGS_PER_CODE, FindingLog, Severity
from vhdtool.formats.overlap import Batch, Overlaps, find_overlaps
from vhdtool.formats.vhdx import chunk
from vhdtool.formats.vhdx.layout import MIB
from vhdtool.formats.vhdx.table import WINDOW_ENTRIES, BatReader
from vhdtool.model.arrays import distinct
from vhdtool.model.blockmap import KEPT_BLOCKS_MAX, StoredBlocks, pack
from vhdtool.model.state import BlockState

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# What the eight payload states read as; 7 is set apart where the disk has no parent.
_STATES: Final = np.array(
    [
        BlockState.ABSENT,
        BlockState.ZERO,
        BlockState.ZERO,
        BlockState.ZERO,
        BlockState.DAMAGED,
        BlockState.DAMAGED,
        BlockState.DATA,
        BlockState.PARTIAL,
    ],
    np.int64,
)


@dataclass(frozen=True, slots=True, eq=False)
class _Column:
    """Entries of one kind in a window, and what their own rules say of them.

    Attributes:
        index: int64[n], where each stands in the BAT.
        state: int64[n].
        offset: int64[n], bytes; 0 where the file does not reach so far.
        length: int64[n], bytes that must stand in the file.
        live: bool[n], whose bytes are read.
        missing: bool[n], the table does not reach them.
        reserved, zero, eof, region: bool[n], broken rules; the last three of live ones.
        cut: bool[n], of those in ``eof`` the payload blocks that begin inside the file: what is left of
            them can still be read by those who ask for it.
        anchor: bool[n], states that keep an offset to old content.
    """

    index: Int64s
    state: Int64s
    offset: Int64s
    length: Int64s
    live: Bools
    missing: Bools
    reserved: Bools
    zero: Bools
    eof: Bools
    cut: Bools
    region: Bools
    anchor: Bools

    @property
    def unplaced(self) -> Bools:
        """Live ones whose bytes cannot be read."""
        return self.zero | (self.eof & ~self.cut) | self.region


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    """What is stored of blocks ``[first, stop)``, and the bitmaps of their chunks.

    Attributes:
        blocks: of blocks whose entries are not zero, or that the table does not reach.
        block: int64[n], their numbers, ascending.
        chunk_of: int64[n], for each block the place of its chunk in ``bitmaps``.
        no_bitmap: bool[n], partial blocks whose chunk has no bitmap at all.
        damaged: bool[n], everything that the window alone shows.
    """

    first: int
    stop: int
    block: Int64s
    blocks: _Column
    bitmaps: _Column
    chunk_of: Int64s
    no_bitmap: Bools
    damaged: Bools


class BatSurvey:
    """The judged BAT of one image.

    Making one reads the whole table once or twice; findings go to ``log``.

    Attributes:
        overlaps: blocks (by their index in the BAT) that share bytes with another one.
        referenced: bytes of the file that blocks and bitmaps stand in, also old content.
    """

    def __init__(
        self, bat: BatReader, patched: list[tuple[int, int]], log: FindingLog, *, fixed: bool
    ) -> None:
        self._bat = bat
        self._table = bat.table
        self._chunks = bat.table.chunks
        self._log = log
        self._reserved = np.array(self._table.reserved, np.int64).reshape(-1, 2)
        self._patched = np.array(patched, np.int64).reshape(-1, 2)
        self._bitmap_offset = np.zeros(self._chunks.chunk_count, np.int64)
        self.referenced = 0
        self.overlaps = Overlaps(np.empty(0, np.int64))
        # Where few blocks are stored, the table is not read again for each window.
        self._kept: StoredBlocks | None = None
        self._judge(fixed=fixed)

    # ------------------------------------------------------------ maps

    def stored(self, start: int, stop: int) -> StoredBlocks:
        """The blocks of ``[start, stop)`` that are not ABSENT."""
        if self._kept is not None:
            return self._kept.within(start, stop)
        parts = [
            self._stored(self._window(max(start, first), min(stop, last)))
            for first, last in self._windows_of(start, stop)
        ]
        return StoredBlocks.joined(parts)

    def next_stored(self, block: int) -> int | None:
        """The first stored block from ``block`` on, if that is known without reading the table."""
        return None if self._kept is None else self._kept.next(block, self._chunks.block_count)

    def bit_places(self, first_sectors: Int64s) -> Int64s:
        """int64[k]: where the bits of sectors of partial blocks stand, 8 for each byte of the file."""
        number, bit = np.divmod(first_sectors, chunk.SECTORS_PER_CHUNK)
        places: Int64s = self._bitmap_offset[number] * 8 + bit
        return places

    def _stored(self, window: _Window) -> StoredBlocks:
        blocks = window.blocks
        damaged = window.damaged | self.overlaps.among(blocks.index)
        state = _STATES[blocks.state]
        if self._chunks.differencing:
            crossed = self.overlaps.among(window.bitmaps.index)
            damaged |= (blocks.state == chunk.PARTIALLY_PRESENT) & crossed[window.chunk_of]
        else:
            state[state == BlockState.PARTIAL] = BlockState.DATA
        state[damaged] = BlockState.DAMAGED
        there = np.flatnonzero(state != BlockState.ABSENT)
        return StoredBlocks(window.block[there], pack(state[there], blocks.offset[there]))

    def partial_blocks(self) -> Iterator[tuple[int, int, Int64s]]:
        """For each chunk with a sound bitmap: its number, the bitmap's file offset, its partial blocks."""
        for window in self._all_windows() if self._chunks.differencing else ():
            partial = (window.blocks.state == chunk.PARTIALLY_PRESENT) & ~window.damaged
            where = np.flatnonzero(partial)
            edges = np.searchsorted(window.chunk_of[where], np.arange(len(window.bitmaps.index) + 1))
            for i in distinct(window.chunk_of[where]).tolist():
                number = window.first // self._chunks.ratio + i
                blocks = window.block[where[edges[i] : edges[i + 1]]]
                yield number, int(window.bitmaps.offset[i]), blocks

    # ------------------------------------------------------------ decoding a window

    def _windows(self) -> Iterator[tuple[int, int]]:
        """Block ranges of whole chunks outside of which the table is a hole of the file."""
        ratio, block_count = self._chunks.ratio, self._chunks.block_count
        for first, stop in self._bat.windows():
            yield first * ratio, min(block_count, stop * ratio)

    def _all_windows(self) -> Iterator[_Window]:
        """All of the table but windows in which every entry is zero."""
        for first, stop in self._windows():
            window = self._window(first, stop)
            if len(window.block) or window.bitmaps.state.any() or window.bitmaps.reserved.any():
                yield window

    def _windows_of(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Pieces of blocks ``[start, stop)`` that are no more than a window each."""
        for first in range(start, stop, WINDOW_ENTRIES):
            yield first, min(stop, first + WINDOW_ENTRIES)

    def _window(self, first: int, stop: int) -> _Window:
        ratio = self._chunks.ratio
        start = self._chunks.index_of_block(first)
        end = min(self._chunks.index_of_block(stop - 1) + 1, self._bat.entry_count)
        entries = np.frombuffer(self._bat.read(start, end) if start < end else b"", "<u8")
        index = np.flatnonzero(entries != 0) + start
        number, place = np.divmod(index, ratio + 1)
        is_block = place < ratio
        index = index[is_block]
        block = (number * ratio + place)[is_block]
        used = entries[index - start]
        unreached = max(first, self._bat.entry_count - self._bat.entry_count // (ratio + 1))
        if self._bat.entry_count < self._chunks.entry_count and unreached < stop:
            # The table is too short: blocks that it does not reach have an entry that says so.
            beyond = np.arange(unreached, stop, dtype=np.int64)
            block = np.concatenate((block, beyond))
            index = np.concatenate((index, beyond + beyond // ratio))
            used = np.concatenate((used, np.zeros(len(beyond), np.uint64)))
        chunk_of = block // ratio - first // ratio
        numbers = np.arange(first // ratio, (stop - 1) // ratio + 1, dtype=np.int64)
        bitmap_index = numbers * (ratio + 1) + ratio
        length = np.full(len(block), self._table.geometry.block_size, np.int64)
        if len(block) and block[-1] == self._chunks.block_count - 1:
            length[-1] = self._table.stored_length(self._chunks.block_count - 1)
        blocks = self._column(index, used, length, chunk.FULLY_PRESENT)
        bitmaps = self._column(
            bitmap_index,
            self._bitmap_entries(entries, start, bitmap_index),
            np.full(len(numbers), chunk.BITMAP_BLOCK_SIZE, np.int64),
            None,
        )
        damaged = blocks.missing | (blocks.state == 4) | (blocks.state == 5) | blocks.unplaced
        no_bitmap = np.zeros(len(block), np.bool_)
        if self._chunks.differencing:
            partial = blocks.state == chunk.PARTIALLY_PRESENT
            no_bitmap = partial & ~bitmaps.live[chunk_of]
            damaged |= no_bitmap | (partial & bitmaps.unplaced[chunk_of])
        return _Window(first, stop, block, blocks, bitmaps, chunk_of, no_bitmap, damaged)

    def _bitmap_entries(
        self, entries: npt.NDArray[np.uint64], start: int, index: Int64s
    ) -> npt.NDArray[np.uint64]:
        """The bitmaps' entries; the last one stands behind the blocks of the window."""
        there = index < start + len(entries)
        result = np.zeros(len(index), np.uint64)
        result[there] = entries[index[there] - start]
        last = int(index[-1])
        if last >= start + len(entries):
            result[-1] = self._bat.entry(last) or 0
        return result

    def _column(
        self, index: Int64s, entries: npt.NDArray[np.uint64], length: Int64s, lowest_live: int | None
    ) -> _Column:
        state = (entries & np.uint64(chunk.STATE_MASK)).astype(np.int64)
        # 44 bits of mebibytes: compared as such, because in bytes they pass what int64 holds.
        offset_mib = (entries >> np.uint64(chunk.OFFSET_SHIFT)).astype(np.int64)
        size = self._table.file_size
        near = offset_mib <= size // MIB
        offset = np.where(near, offset_mib, 0) * MIB
        beyond = ~near | (offset > size - length)
        if lowest_live is None:
            live = (
                (state == chunk.BITMAP_PRESENT)
                if self._chunks.differencing
                else np.zeros(len(state), np.bool_)
            )
            anchor = np.zeros(len(state), np.bool_)
        else:
            live = state >= lowest_live
            anchor = ((state == chunk.UNDEFINED) | (state == chunk.UNMAPPED)) & (offset_mib > 0)
        zero = live & (offset_mib == 0)
        eof = live & beyond & ~zero
        cut = eof & near & (offset < size) if lowest_live is not None else np.zeros(len(state), np.bool_)
        placed = (live | anchor) & (~beyond | cut) & (offset_mib > 0)
        region = _touch(offset, offset + length, self._reserved) & placed
        return _Column(
            index,
            state,
            offset,
            length,
            live,
            index >= self._bat.entry_count,
            (entries & np.uint64(chunk.RESERVED_MASK)) != 0,
            zero,
            eof,
            cut,
            region & live,
            anchor,
        )

    # ------------------------------------------------------------ judging

    def _judge(self, *, fixed: bool) -> None:
        totals = {"anchors": 0, "full": 0}
        kept: list[_Window] | None = []
        count = 0
        for window in self._all_windows():
            self._judge_window(window)
            blocks, bitmaps = window.blocks, window.bitmaps
            totals["anchors"] += int(blocks.anchor.sum())
            totals["full"] += int((blocks.state == chunk.FULLY_PRESENT).sum())
            for column in (blocks, bitmaps):
                stored = (column.live & ~column.unplaced) | self._sound_anchor(column)
                there = np.minimum(column.length, self._table.file_size - column.offset)
                self.referenced += int(there[stored].sum())
            readable = np.where(bitmaps.live & ~bitmaps.unplaced, bitmaps.offset, 0)
            number = window.first // self._chunks.ratio
            self._bitmap_offset[number : number + len(readable)] = readable
            count += len(window.block)
            if kept is not None and count <= KEPT_BLOCKS_MAX:
                kept.append(window)
            else:
                kept = None
        self.overlaps = find_overlaps(lambda: self._batches(kept, anchors=False), self._table.file_size)
        if kept is not None and self._bat.entry_count == self._chunks.entry_count:
            self._kept = StoredBlocks.joined([self._stored(window) for window in kept])
        self._report_overlaps(self.overlaps)
        if totals["anchors"]:
            self._judge_anchors(totals["anchors"])
        if fixed and totals["full"] != self._chunks.block_count:
            self._log.note(
                Severity.WARNING,
                "vhdx.fixed.holes",
                "a fixed disk has blocks that are not there",
                offset=self._bat.offset,
                field="BAT",
                found=f"{self._chunks.block_count - totals['full']} of {self._chunks.block_count} blocks",
                expected="all blocks fully present",
            )

    def _judge_window(self, window: _Window) -> None:
        blocks, bitmaps = window.blocks, window.bitmaps
        there = ~blocks.missing
        error, warning = Severity.ERROR, Severity.WARNING
        reserved_state = (blocks.state == 4) | (blocks.state == 5)
        self._report(blocks, reserved_state & there, error, "state", "a payload block is in a reserved state")
        if self._chunks.differencing:
            wrong = (bitmaps.state != chunk.BITMAP_NOT_PRESENT) & (bitmaps.state != chunk.BITMAP_PRESENT)
            self._report(bitmaps, wrong, error, "state", "a sector bitmap block is in a reserved state")
            what = "a partially present block has no sector bitmap"
            self._report(blocks, window.no_bitmap & there, error, "no_bitmap", what)
        else:
            partial = blocks.state == chunk.PARTIALLY_PRESENT
            what = "a block is partially present, and the disk has no parent; it is read as fully present"
            self._report(blocks, partial, warning, "state", what)
            present = (bitmaps.state != chunk.BITMAP_NOT_PRESENT) & (
                bitmaps.index < self._chunks.index_of_block(self._chunks.block_count - 1)
            )
            what = "there is a sector bitmap block, and the disk has no parent; it is not used"
            self._report(bitmaps, present, warning, "state", what)
        for column, name in ((blocks, "payload block"), (bitmaps, "sector bitmap block")):
            self._report(
                column, column.reserved & ~column.missing, warning, "reserved", "reserved bits are set"
            )
            self._report(column, column.zero, error, "zero_offset", f"a {name} is present and has no place")
            self._report(column, column.eof, error, "eof", f"a {name} lies beyond the end of the file")
            what = f"a {name} overlaps the headers, the log or a region"
            self._report(column, column.region, error, "region", what)
        if len(window.block) and window.block[-1] == self._chunks.block_count - 1:
            self._judge_last(blocks)
        if len(self._patched):
            touched = _touch(blocks.offset, blocks.offset + blocks.length, self._patched)
            self._report(
                blocks,
                touched & blocks.live & ~blocks.unplaced,
                warning,
                "payload",
                "the log writes into a payload block, which no writer does",
                prefix="vhdx.log",
            )

    def _judge_last(self, blocks: _Column) -> None:
        whole = int(blocks.offset[-1]) + self._table.geometry.block_size
        if not blocks.live[-1] or blocks.unplaced[-1] or blocks.eof[-1]:
            return
        self.referenced += min(whole, self._table.file_size) - int(blocks.offset[-1] + blocks.length[-1])
        if whole > self._table.file_size:
            self._log.note(
                Severity.INFO,
                "vhdx.bat.short_block",
                "the last block is stored short, up to the end of the disk at least",
                offset=self._entry_offset(int(blocks.index[-1])),
                field=f"BAT[{int(blocks.index[-1])}]",
                found=self._table.file_size,
                expected=whole,
            )

    def _sound_anchor(self, column: _Column) -> Bools:
        inside = column.offset + column.length <= self._table.file_size
        return column.anchor & inside & (column.offset > 0)

    def _batches(self, kept: list[_Window] | None, *, anchors: bool) -> Iterator[Batch]:
        for window in self._all_windows() if kept is None else kept:
            for column in (window.blocks, window.bitmaps):
                stored = column.live & ~column.zero & (~column.eof | column.cut)
                if anchors:
                    stored |= self._sound_anchor(column)
                if stored.any():
                    length = np.minimum(column.length, self._table.file_size - column.offset)
                    yield column.offset[stored], length[stored], column.index[stored]

    def _report_overlaps(self, overlaps: Overlaps) -> None:
        if not overlaps:
            return
        count = len(overlaps.ids)
        for i, (one, other, offset) in enumerate(overlaps.examples):
            last = i == len(overlaps.examples) - 1
            self._log.note(
                Severity.ERROR,
                "vhdx.bat.cross",
                "two blocks share bytes of the file",
                offset=self._entry_offset(other),
                field=self._name(other),
                found=f"{self._name(other)} and {self._name(one)} at {offset:#x}",
                times=max(1, count - i - 1) if last else 1,
            )
        if not overlaps.examples:
            self._log.note(
                Severity.ERROR,
                "vhdx.bat.cross",
                "the blocks need more room than the file has: they share bytes of it",
                offset=self._bat.offset,
                field="BAT",
            )

    def _judge_anchors(self, count: int) -> None:
        """Old content that is still pointed to: worth saying, and no fault of what is read."""
        beyond, misplaced = [0, 0], [0, 0]  # how many, and the first one's index
        for window in self._all_windows():
            blocks = window.blocks
            sound = self._sound_anchor(blocks)
            inside_region = sound & _touch(blocks.offset, blocks.offset + blocks.length, self._reserved)
            for tally, mask in ((beyond, blocks.anchor & ~sound), (misplaced, inside_region)):
                where = np.flatnonzero(mask)
                if len(where):
                    tally[1] = tally[1] or int(blocks.index[where[0]])
                    tally[0] += len(where)
        self._note_anchors(beyond, "eof", "old content would lie beyond the end of the file")
        self._note_anchors(misplaced, "region", "old content would lie in the headers, the log or a region")
        everything = find_overlaps(lambda: self._batches(None, anchors=True), self._table.file_size)
        crossed = len(everything.ids) - len(self.overlaps.ids)
        if everything and not self.overlaps.everything and (crossed or everything.everything):
            found = [max(1, crossed), everything.examples[0][1] if everything.examples else 0]
            self._note_anchors(found, "cross", "old content shares bytes of the file with another block")
        self._log.note(
            Severity.INFO,
            "vhdx.bat.anchor",
            "blocks that read as zeros still point to their old content, which may be recovered",
            offset=self._bat.offset,
            field="BAT",
            found=f"{count} blocks",
        )

    def _note_anchors(self, tally: list[int], rule: str, what: str) -> None:
        if tally[0]:
            self._log.note(
                Severity.WARNING,
                f"vhdx.bat.{rule}",
                what,
                offset=self._entry_offset(tally[1]),
                field=self._name(tally[1]),
                times=tally[0],
            )

    def _report(
        self,
        column: _Column,
        mask: Bools,
        severity: Severity,
        rule: str,
        what: str,
        *,
        prefix: str = "vhdx.bat",
    ) -> None:
        where = np.flatnonzero(mask)
        shown = where[:FINDINGS_PER_CODE].tolist()
        for n, i in enumerate(shown):
            index = int(column.index[i])
            self._log.note(
                severity,
                f"{prefix}.{rule}",
                what,
                offset=self._entry_offset(index),
                field=self._name(index),
                found=self._bat.entry(index) or 0,
                times=len(where) - n if n == len(shown) - 1 else 1,
            )

    def _entry_offset(self, index: int) -> int:
        return self._bat.offset + index * chunk.ENTRY_SIZE

    def _name(self, index: int) -> str:
        is_bitmap, number = self._chunks.owner_of(index)
        return f"BAT[{index}], {'sector bitmap of chunk' if is_bitmap else 'block'} {number}"


def _touch(start: Int64s, stop: Int64s, ranges: Int64s) -> Bools:
    """bool[n]: which of ``[start, stop)`` share bytes with one of ``ranges`` (int64[k, 2], sorted, apart)."""
    if not len(ranges):
        return np.zeros(len(start), np.bool_)
    i = np.searchsorted(ranges[:, 1], start, side="right")
    last = len(ranges) - 1
    touches: Bools = (i <= last) & (ranges[np.minimum(i, last), 0] < stop)
    return touches
