"""The Block Allocation Table as bytes in a file: windows, single entries, counts.  No NumPy here.

A table may claim 2**32 entries, most of them a hole in a sparse file.  Nobody here holds more than a window
of it, and holes are stepped over: they read as entry 0, which no sound block can have.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vhdtool.formats.vhd import layout
from vhdtool.formats.vhd.footer import Footer
from vhdtool.formats.vhd.header import DynamicHeader
from vhdtool.model.state import BlockState
from vhdtool.source import ByteSource

WINDOW_ENTRIES: Final = 1 << 18
PAGE_ENTRIES: Final = 4096
_PAGES_KEPT: Final = 64
_IS_ALL_ONES: Final = bytes(255) + b"\1"


@dataclass(frozen=True, slots=True)
class Window:
    """``count`` neighbouring entries from entry ``first``; ``data`` None: a hole, all of them 0."""

    first: int
    count: int
    data: bytes | None


class Table:
    """Where the BAT is, and the sizes that decide what its entries mean.  All sizes are bytes.

    Attributes:
        entry_count: entries that the header claims.
        entries_there: how many of them lie inside the file.
        block_count: blocks of the disk; the entries behind are outside of it.
        bitmap_size: of the sector bitmap in front of each block, in whole sectors.
        stored_size: a block in the file: bitmap and data.
        stored_size_last: what of the disk's last block must be there: its data end with the disk.
        data_stop: where blocks must end: at the footer.
        is_cut: there is no footer at the end: the file was cut off, perhaps inside a block, whose first
            part can still be read by those who ask for what is left.
        metadata: (start, stop, name) of what blocks must not overlap.
    """

    def __init__(self, source: ByteSource, footer: Footer, header: DynamicHeader) -> None:
        self.source = source
        self.offset = header.table_offset
        self.entry_count = header.max_table_entries
        self.block_size = header.block_size
        self.block_count = -(-footer.virtual_size // header.block_size)
        self.bitmap_size = layout.bitmap_size(header.block_size)
        self.stored_size = self.bitmap_size + header.block_size
        last_size = footer.virtual_size - (self.block_count - 1) * header.block_size
        self.stored_size_last = self.bitmap_size + last_size
        self.data_stop = source.size - footer.length
        self.is_cut = footer.length == 0
        self.metadata = header.metadata
        there = max(0, source.size - self.offset) // layout.BAT_ENTRY_SIZE
        self.entries_there = min(self.entry_count, there)
        self._pages = PageCache(self._read_page, _PAGES_KEPT)

    @property
    def blocks_there(self) -> int:
        """Blocks of the disk that have an entry inside the file."""
        return min(self.block_count, self.entries_there)

    def place(self, entry: int) -> int:
        """Where entry number ``entry`` stands in the file."""
        return self.offset + entry * layout.BAT_ENTRY_SIZE

    def windows(self, start: int, stop: int) -> Iterator[Window]:
        """Entries ``[start, stop)`` that lie inside the file, in order, holes apart from the rest."""
        stop = min(stop, self.entries_there)
        if stop - start <= WINDOW_ENTRIES:
            if start < stop:
                yield self._window(start, stop)
            return
        position = start
        for low, high in self.source.data_ranges(self.place(start), self.place(stop)):
            first = max(position, (low - self.offset) // layout.BAT_ENTRY_SIZE)
            last = min(stop, -(-(high - self.offset) // layout.BAT_ENTRY_SIZE))
            if last <= position:
                continue
            if first > position:
                yield Window(position, first - position, None)
            while first < last:
                end = min(last, first + WINDOW_ENTRIES)
                yield self._window(first, end)
                first = end
            position = last
        if position < stop:
            yield Window(position, stop - position, None)

    def entry(self, block: int) -> int:
        """One entry, of those that lie inside the file."""
        page, index = divmod(block, PAGE_ENTRIES)
        at = index * layout.BAT_ENTRY_SIZE
        return int.from_bytes(self.page(page)[at : at + layout.BAT_ENTRY_SIZE], "big")

    def judge(self, block: int) -> tuple[BlockState, int]:
        """State and data offset of one block of the disk, by the rules that need no other entry."""
        if block >= self.blocks_there:
            return BlockState.DAMAGED, 0
        entry = self.entry(block)
        if entry == layout.BAT_UNUSED:
            return BlockState.ABSENT, 0
        start = entry * layout.SECTOR_SIZE
        stop = start + self.stored_size
        must_end = start + self.stored_size_last if block == self.block_count - 1 else stop
        begins = self.is_cut and start + self.bitmap_size < self.data_stop
        beyond = must_end > self.data_stop and not begins
        if beyond or any(start < high and low < stop for low, high, _ in self.metadata):
            return BlockState.DAMAGED, 0
        return BlockState.PARTIAL, start + self.bitmap_size

    def page(self, page: int) -> bytes:
        """Entries ``[page * PAGE_ENTRIES, ...)`` as bytes; the last page is short."""
        return self._pages.get(page)

    def count_used(self) -> int:
        """How many blocks of the disk have an entry that says they are stored."""
        used = 0
        for window in self.windows(0, self.block_count):
            used += window.count if window.data is None else window.count - _count_all_ones(window.data)
        return used

    def _read_page(self, page: int) -> bytes:
        start = page * PAGE_ENTRIES
        stop = min(self.entries_there, start + PAGE_ENTRIES)
        return self._read(start, stop)

    def _window(self, start: int, stop: int) -> Window:
        return Window(start, stop - start, self._read(start, stop))

    def _read(self, start: int, stop: int) -> bytes:
        return self.source.read_exact(
            self.place(start), (stop - start) * layout.BAT_ENTRY_SIZE, field=f"bat[{start}]"
        )


def _count_all_ones(data: bytes) -> int:
    """How many 4-byte entries of ``data`` are 0xFFFFFFFF.

    Each byte becomes 1 where it is 0xFF; then the four bytes of all entries are ANDed as large integers.
    """
    marks = data.translate(_IS_ALL_ONES)
    together = -1
    for byte in range(layout.BAT_ENTRY_SIZE):
        together &= int.from_bytes(marks[byte :: layout.BAT_ENTRY_SIZE], "little")
    return together.bit_count()


class PageCache:
    """The few pieces of something large that were asked for last; safe for several threads."""

    def __init__(self, read: Callable[[int], bytes], kept: int) -> None:
        self._read = read
        self._kept = kept
        self._pieces: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, number: int) -> bytes:
        """Piece ``number``, read outside of the lock when it is not kept."""
        with self._lock:
            piece = self._pieces.get(number)
            if piece is not None:
                self._pieces.move_to_end(number)
                return piece
        piece = self._read(number)
        with self._lock:
            self._pieces[number] = piece
            while len(self._pieces) > self._kept:
                self._pieces.popitem(last=False)
        return piece
