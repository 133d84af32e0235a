"""Sector bitmaps of many blocks at once.

On disk the most significant bit of a byte is its first sector; here, as everywhere in vhdtool, the
least significant one is.  A bitmap stands in front of its block, so the pieces asked for lie far apart in
files with large blocks and close together in files with small ones: what is close is read together.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from vhdtool.formats.vhd import layout
from vhdtool.formats.vhd.bat import decode_entries
from vhdtool.formats.vhd.table import PAGE_ENTRIES, Table
from vhdtool.model.geometry import Geometry

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

# Reading over a gap of this size costs less than a second read.
_GAP_MAX: Final = 16 << 10
_BUFFER_MAX: Final = 4 << 20


def read_bitmaps(
    table: Table, geometry: Geometry, first_sectors: Int64s, sector_count: int, *, is_msb_first: bool
) -> Bytes:
    """Pieces of the bitmaps of stored blocks; arguments and result as ``DiskImage.bitmaps``."""
    width = -(-sector_count // 8)
    pieces = np.zeros((len(first_sectors), width), np.uint8)
    if not len(first_sectors):
        return pieces
    block, sector = np.divmod(first_sectors, geometry.sectors_per_block)
    place = _entries(table, block) * layout.SECTOR_SIZE + sector // 8
    order = np.argsort(place, kind="stable")
    _read_pieces(table, place[order], order, pieces)
    if is_msb_first:
        pieces = np.frombuffer(layout.MSB_TO_LSB, np.uint8)[pieces]
    if sector_count < 8:
        pieces >>= (sector % 8).astype(np.uint8)[:, None]
        pieces &= np.uint8((1 << sector_count) - 1)
    _clear_beyond_end(pieces, geometry.sector_count - first_sectors, sector_count)
    return pieces


def _entries(table: Table, block: Int64s) -> Int64s:
    """The table's entries of ``block`` (ascending), page by page."""
    entries = np.empty(len(block), np.int64)
    page = block // PAGE_ENTRIES
    edges = np.concatenate(([0], np.flatnonzero(np.diff(page)) + 1, [len(block)]))
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist()):
        number = int(page[low])
        entries[low:high] = decode_entries(table.page(number))[block[low:high] - number * PAGE_ENTRIES]
    return entries


def _read_pieces(table: Table, place: Int64s, target: Int64s, pieces: Bytes) -> None:
    """Fill row ``target[i]`` of ``pieces`` from file offset ``place[i]``; ``place`` ascends."""
    width = pieces.shape[1]
    edges = np.concatenate(([0], np.flatnonzero(np.diff(place) > width + _GAP_MAX) + 1, [len(place)]))
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist()):
        while low < high:
            start = int(place[low])
            end = max(low + 1, int(np.searchsorted(place[:high], start + _BUFFER_MAX - width, side="right")))
            length = int(place[end - 1]) + width - start
            data = table.source.read_exact(start, length, field="sector_bitmap")
            if end == low + 1:
                pieces[target[low]] = np.frombuffer(data, np.uint8)
            else:
                rows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), width)
                pieces[target[low:end]] = rows[place[low:end] - start]
            low = end


def _clear_beyond_end(pieces: Bytes, left: Int64s, sector_count: int) -> None:
    """Clear the bits of sectors behind the disk's end; of row ``i``, ``left[i]`` sectors exist."""
    pieces[left <= 0] = 0
    bit = np.arange(pieces.shape[1] * 8)
    for row in np.flatnonzero((left > 0) & (left < sector_count)).tolist():  # one, where the disk ends
        pieces[row] &= np.packbits(bit < left[row], bitorder="little")
