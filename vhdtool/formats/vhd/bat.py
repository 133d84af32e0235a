"""The Block Allocation Table as arrays: the survey of the whole table, and block maps of windows of it.

Rules of an entry that are broken are findings, and make the block DAMAGED::

    file   | copy | header | BAT | locators |  block  |  block  | ... | footer |
                       ▲                         ▲                        ▲
             vhd.block.meta            vhd.block.cross              vhd.block.eof

Entries behind the disk's end are looked at and not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from vhdtool.errors import FINDINGS_PER_CODE, FindingLog, Severity
from vhdtool.formats.overlap import Batch, Overlaps, find_overlaps
from vhdtool.formats.vhd import layout
from vhdtool.formats.vhd.table import Table, Window
from vhdtool.model.blockmap import KEPT_BLOCKS_MAX, StoredBlocks, pack
from vhdtool.model.state import BlockState

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_DATA_ALIGNMENT: Final = 4096


def decode_entries(data: bytes) -> Int64s:
    """int64[n]: sector numbers, or ``BAT_UNUSED``."""
    return np.frombuffer(data, ">u4").astype(np.int64)


class Judged:
    """Used entries, and which of them break a rule that needs no other entry.

    Attributes:
        block: int64[n], block numbers, ascending.
        start: int64[n], file offset of the block's bitmap.
        meta, eof: bool[n], the rules broken.
        truncated: bool[n], sound, but what lies beyond the disk's end is not there; at most one.
        placed: bool[n], there is something to read: no rule is broken as far as can be seen here, or the
            file was cut off inside the block's data.
    """

    def __init__(self, table: Table, block: Int64s, entries: Int64s) -> None:
        self.block = block
        self.start: Int64s = entries * layout.SECTOR_SIZE
        stop = self.start + table.stored_size
        self.meta: Bools = np.zeros(len(block), np.bool_)
        for low, high, _ in table.metadata:
            self.meta |= (self.start < high) & (stop > low)
        beyond = stop > table.data_stop
        is_last = self.block == table.block_count - 1
        self.truncated: Bools = beyond & is_last & (self.start + table.stored_size_last <= table.data_stop)
        self.eof: Bools = beyond & ~self.truncated
        begins = self.start + table.bitmap_size < table.data_stop if table.is_cut else np.False_
        self.placed: Bools = ~(self.meta | (self.eof & ~begins))

    @classmethod
    def of_window(cls, table: Table, first: int, entries: Int64s) -> Judged:
        """The used ones among neighbouring ``entries`` from entry ``first`` on."""
        used = np.flatnonzero(entries != layout.BAT_UNUSED)
        return cls(table, used + first, entries[used])

    @property
    def sound(self) -> Bools:
        """bool[n]: no rule is broken, as far as can be seen here."""
        return ~(self.meta | self.eof)


class TableSurvey:
    """The judged table of one image.

    Making one reads the whole table once or twice; findings go to ``log``.

    Attributes:
        overlaps: the blocks of the disk that share bytes of the file with another.
    """

    def __init__(self, table: Table, log: FindingLog) -> None:
        self._table = table
        self.overlaps, used = _survey_table(table, log)
        # Where few blocks are stored, the table is not read again for each window.
        self._kept: StoredBlocks | None = None
        if used <= KEPT_BLOCKS_MAX and table.blocks_there == table.block_count:
            self._kept = self._scan(0, table.block_count)

    def stored(self, start: int, stop: int) -> StoredBlocks:
        """The blocks of ``[start, stop)`` that are not ABSENT: PARTIAL or DAMAGED."""
        return self._scan(start, stop) if self._kept is None else self._kept.within(start, stop)

    def next_stored(self, block: int) -> int | None:
        """The first stored block from ``block`` on, if that is known without reading the table."""
        return None if self._kept is None else self._kept.next(block, self._table.block_count)

    def _scan(self, start: int, stop: int) -> StoredBlocks:
        table = self._table
        parts = []
        for window in table.windows(start, min(stop, table.block_count)):
            if window.data is None:
                parts.append(_damaged(window.first, window.first + window.count))
                continue
            judged = Judged.of_window(table, window.first, decode_entries(window.data))
            readable = judged.placed & ~self.overlaps.among(judged.block)
            state = np.where(readable, BlockState.PARTIAL, BlockState.DAMAGED)
            parts.append(StoredBlocks(judged.block, pack(state, judged.start + table.bitmap_size)))
        beyond = max(start, table.blocks_there)
        if beyond < stop:
            parts.append(_damaged(beyond, stop))
        return StoredBlocks.joined(parts)


def _damaged(start: int, stop: int) -> StoredBlocks:
    block = np.arange(start, stop, dtype=np.int64)
    return StoredBlocks(block, np.full(len(block), BlockState.DAMAGED, np.int64))


def _survey_table(table: Table, log: FindingLog) -> tuple[Overlaps, int]:
    """Judge the whole table, in windows; how many blocks of the disk its entries say are stored."""
    stored = unaligned = tail = in_holes = 0
    first_tail: tuple[int, str] | None = None
    for window in table.windows(0, table.entry_count):
        inside = max(0, min(window.count, table.block_count - window.first))
        if window.data is None:
            _note_hole(table, window, inside, log)
            in_holes += inside
            if inside < window.count:
                first_tail = first_tail or (window.first + inside, "a hole")
                tail += window.count - inside
            continue
        entries = decode_entries(window.data)
        judged = Judged.of_window(table, window.first, entries[:inside])
        stored += len(judged.block)
        unaligned += int(((judged.start + table.bitmap_size) % _DATA_ALIGNMENT != 0).sum())
        _note_broken(table, judged, log)
        outside = np.flatnonzero(entries[inside:] != layout.BAT_UNUSED)
        if len(outside):
            at = inside + int(outside[0])
            first_tail = first_tail or (window.first + at, f"{int(entries[at]):#x}")
            tail += len(outside)
    if first_tail is not None:
        log.note(
            Severity.INFO,
            "vhd.bat.tail",
            f"{tail} used entries behind the disk's end",
            offset=table.place(first_tail[0]),
            field=f"bat[{first_tail[0]}]",
            found=first_tail[1],
            expected=layout.BAT_UNUSED,
        )
    if unaligned:
        log.note(
            Severity.INFO,
            "vhd.block.unaligned",
            f"the data of {unaligned} of {stored} blocks are not at a multiple of 4096 bytes, which is slow",
            field="bat",
        )
    _note_filler(table, log)
    overlaps = find_overlaps(
        lambda: _stored_ranges(table),
        table.data_stop,
        within=lambda low, high: _stored_ranges(table, low, high),
    )
    _note_overlaps(table, overlaps, log)
    return overlaps, stored + in_holes


def _stored_ranges(table: Table, low: int = 0, high: int = 1 << 62) -> Iterator[Batch]:
    """The blocks that have something to read and begin in ``[low, high)``, as ranges of the file."""
    first, last = low // layout.SECTOR_SIZE, min(layout.BAT_UNUSED, -(-high // layout.SECTOR_SIZE))
    if first >= last:  # beyond what 32-bit sector numbers reach
        return
    for window in table.windows(0, table.block_count):
        if window.data is None:
            continue
        entries = np.frombuffer(window.data, ">u4").astype(np.uint32)
        near = np.flatnonzero((entries >= first) & (entries < last))
        judged = Judged(table, near + window.first, entries[near].astype(np.int64))
        starts, blocks = judged.start[judged.placed], judged.block[judged.placed]
        if judged.truncated.any() or judged.eof.any():
            yield starts, np.minimum(table.stored_size, table.data_stop - starts), blocks
        else:
            yield starts, table.stored_size, blocks


def _note_some(
    table: Table,
    log: FindingLog,
    severity: Severity,
    code: str,
    what: str,
    blocks: Int64s,
    starts: Int64s,
    expected: str,
    clash: str = "",
) -> None:
    """One finding for each of the first few blocks; the last of them stands for the rest."""
    shown = min(len(blocks), FINDINGS_PER_CODE)
    for i in range(shown):
        block, start = int(blocks[i]), int(starts[i])
        log.note(
            severity,
            code,
            what,
            offset=table.place(block),
            field=f"bat[{block}]",
            found=f"{start:#x}-{start + table.stored_size:#x}{clash}",
            expected=expected,
            times=1 if i < shown - 1 else len(blocks) - shown + 1,
        )


def _note_broken(table: Table, judged: Judged, log: FindingLog) -> None:
    if judged.meta.any():
        blocks, starts = judged.block[judged.meta], judged.start[judged.meta]
        low, high, name = _metadata_at(table, int(starts[0]))
        what = (
            f"block {int(blocks[0])} overlaps the {name}" if len(blocks) == 1 else "blocks overlap metadata"
        )
        expected = f"outside of {name} at {low:#x}-{high:#x}"
        _note_some(table, log, Severity.ERROR, "vhd.block.meta", what, blocks, starts, expected)
    eof = judged.eof & ~judged.meta
    if eof.any():
        expected = f"to end by {table.data_stop:#x}"
        what = "a block reaches beyond the file or over its footer"
        blocks, starts = judged.block[eof], judged.start[eof]
        _note_some(table, log, Severity.ERROR, "vhd.block.eof", what, blocks, starts, expected)
    truncated = judged.truncated & ~judged.meta
    if truncated.any():
        expected = f"to end by {table.data_stop:#x}"
        what = "the last block is cut off behind the disk's end; what belongs to the disk is there"
        blocks, starts = judged.block[truncated], judged.start[truncated]
        _note_some(table, log, Severity.WARNING, "vhd.block.truncated", what, blocks, starts, expected)


def _metadata_at(table: Table, start: int) -> tuple[int, int, str]:
    stop = start + table.stored_size
    return next(part for part in table.metadata if start < part[1] and part[0] < stop)


def _note_hole(table: Table, window: Window, inside: int, log: FindingLog) -> None:
    """A hole in the table reads as entry 0 again and again: as if all blocks lay over the footer's copy."""
    if not inside:
        return
    last = window.first + inside - 1
    log.note(
        Severity.ERROR,
        "vhd.block.meta",
        f"blocks {window.first} to {last} overlap the footer_copy: the table has a hole",
        offset=table.place(window.first),
        field=f"bat[{window.first}]",
        found=0,
        times=inside,
    )


def _note_filler(table: Table, log: FindingLog) -> None:
    start = table.place(table.entry_count)
    stop = layout.round_up(start, layout.SECTOR_SIZE)
    if start >= stop or stop > table.source.size:
        return
    filler = table.source.read_exact(start, stop - start, field="bat")
    if filler.count(0xFF) != len(filler):
        log.note(
            Severity.INFO,
            "vhd.bat.pad",
            "the filler behind the BAT is not all ones",
            offset=start,
            field="bat",
            found=f"bytes {filler[:8].hex()}",
            expected="bytes ff",
        )


def _note_overlaps(table: Table, overlaps: Overlaps, log: FindingLog) -> None:
    if not overlaps:
        return
    examples = overlaps.examples
    if not examples:
        log.note(
            Severity.ERROR,
            "vhd.block.cross",
            "more blocks are stored than the file has room for: they overlap",
            offset=table.offset,
            field="bat",
        )
    # Each example names two blocks; the rest of the blocks concerned is counted with the last one.
    rest = max(1, len(overlaps.ids) - 2 * len(examples) + 1)
    for i, (block, other, offset) in enumerate(examples):
        log.note(
            Severity.ERROR,
            "vhd.block.cross",
            f"blocks {block} and {other} overlap in the file",
            offset=table.place(other),
            field=f"bat[{other}]",
            found=f"{offset:#x}",
            times=rest if i == len(examples) - 1 else 1,
        )
