"""The BAT without NumPy: one entry, one block, and how many blocks are in which state.

Reads windows of the table and skips holes of the file: a table of 512 MiB in a sparse file costs what
stands in it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from vhdtool.formats.vhdx import chunk
from vhdtool.formats.vhdx.chunk import ChunkLayout
from vhdtool.formats.vhdx.layout import MIB
from vhdtool.model.geometry import Geometry
from vhdtool.model.state import BlockCounts, BlockState
from vhdtool.source import ByteSource

WINDOW_ENTRIES: Final = 1 << 17
_PAGE_ENTRIES: Final = 512
_PAGES_KEPT: Final = 64
_STATE_OF_BYTE: Final = bytes(byte & chunk.STATE_MASK for byte in range(256))


@dataclass(frozen=True, slots=True)
class Table:
    """Where blocks may be and where not: what one entry is judged by.

    Attributes:
        file_size: bytes, after the log was replayed.
        reserved: ranges that belong to the header area, the log and the regions: sorted, apart.
    """

    geometry: Geometry
    chunks: ChunkLayout
    file_size: int
    reserved: tuple[tuple[int, int], ...]

    def touches_reserved(self, start: int, stop: int) -> bool:
        """Whether ``[start, stop)`` shares bytes with a reserved range."""
        i = bisect_right(self.reserved, start, key=lambda place: place[0]) - 1
        if i >= 0 and self.reserved[i][1] > start:
            return True
        return i + 1 < len(self.reserved) and self.reserved[i + 1][0] < stop

    def place(self, entry: int, length: int) -> int | None:
        """File offset of ``length`` bytes that ``entry`` places; None where they cannot begin."""
        offset_mib = entry >> chunk.OFFSET_SHIFT
        offset = offset_mib * MIB
        if offset_mib == 0 or offset >= self.file_size:
            return None
        return None if self.touches_reserved(offset, offset + length) else offset

    def stored_length(self, block: int) -> int:
        """Bytes of ``block`` that must stand in the file.

        A block is stored whole, also the last one of a disk that ends inside it; but old QEMU cut that
        one short, so only the part that belongs to the disk is asked for.
        """
        return self.geometry.block_length(block)


def merged_ranges(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """``ranges`` sorted, empty ones dropped, those that touch or overlap made one."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if start >= stop:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return tuple(merged)


class BatReader:
    """Entries of the BAT, by index, from several threads at once.

    Attributes:
        entry_count: entries that are there; fewer than the disk needs when the region is too short or
            the file ends inside it.
    """

    def __init__(self, source: ByteSource, offset: int, length: int, table: Table) -> None:
        self.table = table
        self.offset = offset
        there = min(length, max(0, source.size - offset)) // chunk.ENTRY_SIZE
        self.entry_count = min(table.chunks.entry_count, there)
        self._source = source
        count = self.entry_count

        @lru_cache(maxsize=_PAGES_KEPT)
        def page(number: int) -> bytes:
            start = number * _PAGE_ENTRIES
            size = (min(count, start + _PAGE_ENTRIES) - start) * chunk.ENTRY_SIZE
            return source.read_exact(offset + start * chunk.ENTRY_SIZE, size, field="BAT")

        self._page = page

    def entry(self, index: int) -> int | None:
        """One entry, None when the table does not reach it."""
        if not 0 <= index < self.entry_count:
            return None
        page, i = divmod(index, _PAGE_ENTRIES)
        at = i * chunk.ENTRY_SIZE
        return int.from_bytes(self._page(page)[at : at + chunk.ENTRY_SIZE], "little")

    def read(self, start: int, stop: int) -> bytes:
        """Entries ``[start, stop)`` as they stand in the file; the table must have them."""
        at = self.offset + start * chunk.ENTRY_SIZE
        return self._source.read_exact(at, (stop - start) * chunk.ENTRY_SIZE, field="BAT")

    def windows(self) -> Iterator[tuple[int, int]]:
        """Ranges of whole chunks, in order, outside of which the table is a hole of the file."""
        chunk_size = (self.table.chunks.ratio + 1) * chunk.ENTRY_SIZE
        step = max(1, WINDOW_ENTRIES * chunk.ENTRY_SIZE // chunk_size)
        stop = self.offset + self.entry_count * chunk.ENTRY_SIZE
        following = 0
        for start, end in self._source.data_ranges(self.offset, stop):
            first = max(following, (start - self.offset) // chunk_size)
            following = max(following, (end - self.offset - 1) // chunk_size + 1)
            for number in range(first, following, step):
                yield number, min(following, self.table.chunks.chunk_count, number + step)

    def next_stored(self, block: int) -> int:
        """The first block from ``block`` on whose entry may not be zero; the block count if there is none."""
        chunks = self.table.chunks
        start = self.offset + chunks.index_of_block(block) * chunk.ENTRY_SIZE
        stop = self.offset + self.entry_count * chunk.ENTRY_SIZE
        for first, _ in self._source.data_ranges(start, stop):
            number, place = divmod((first - self.offset) // chunk.ENTRY_SIZE, chunks.ratio + 1)
            return min(chunks.block_count, max(block, number * chunks.ratio + place))
        # Where the table ends too early the blocks behind it are damaged, not absent.
        return chunks.block_count if self.entry_count == chunks.entry_count else block

    def block(self, block: int) -> tuple[BlockState, int]:
        """State of one block and the file offset of its data, judged by its own entries alone."""
        table = self.table
        entry = self.entry(table.chunks.index_of_block(block))
        if entry is None:
            return BlockState.DAMAGED, 0
        state = entry & chunk.STATE_MASK
        if state in (chunk.FULLY_PRESENT, chunk.PARTIALLY_PRESENT):
            offset = table.place(entry, table.stored_length(block))
            if offset is None:
                return BlockState.DAMAGED, 0
            if state == chunk.FULLY_PRESENT or not table.chunks.differencing:
                return BlockState.DATA, offset
            if self.bitmap_offset(table.chunks.chunk_of_block(block)) is None:
                return BlockState.DAMAGED, 0
            return BlockState.PARTIAL, offset
        if state == chunk.NOT_PRESENT:
            return BlockState.ABSENT, 0
        return (BlockState.ZERO if state <= chunk.UNMAPPED else BlockState.DAMAGED), 0

    def bitmap_offset(self, number: int) -> int | None:
        """File offset of the sector bitmap block of chunk ``number``, None when there is no sound one."""
        entry = self.entry(self.table.chunks.index_of_bitmap(number))
        if entry is None or entry & chunk.STATE_MASK != chunk.BITMAP_PRESENT:
            return None
        offset = self.table.place(entry, chunk.BITMAP_BLOCK_SIZE)
        is_whole = offset is not None and offset + chunk.BITMAP_BLOCK_SIZE <= self.table.file_size
        return offset if is_whole else None

    def counts(self) -> BlockCounts:
        """Blocks by the state that their entries give; blocks in reserved states are in none."""
        chunks = self.table.chunks
        totals = [0] * 8
        stop = min(self.entry_count, chunks.index_of_block(chunks.block_count - 1) + 1)
        counted = 0
        for first, last in self.windows():
            start = first * (chunks.ratio + 1)
            end = min(stop, last * (chunks.ratio + 1))
            if start >= end:
                continue
            states = self.read(start, end)[:: chunk.ENTRY_SIZE].translate(_STATE_OF_BYTE)
            bitmaps = states[chunks.ratio :: chunks.ratio + 1]
            for state in range(8):
                totals[state] += states.count(state) - bitmaps.count(state)
            counted += len(states) - len(bitmaps)
        there = chunks.block_count
        if stop < chunks.entry_count and stop <= chunks.index_of_block(chunks.block_count - 1):
            there = stop - stop // (chunks.ratio + 1)
        totals[chunk.NOT_PRESENT] += there - counted
        partial = totals[chunk.PARTIALLY_PRESENT]
        return BlockCounts(
            total=chunks.block_count,
            data=totals[chunk.FULLY_PRESENT] + (0 if chunks.differencing else partial),
            partial=partial if chunks.differencing else 0,
            zero=totals[chunk.UNDEFINED] + totals[chunk.ZERO] + totals[chunk.UNMAPPED],
            absent=totals[chunk.NOT_PRESENT],
        )
