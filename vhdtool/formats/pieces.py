"""Pieces of sector bitmaps of many blocks at once, whatever the format: where they stand is its affair.

Pieces lie far apart in files with large blocks and close together in files with small ones: what is
close is read together.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from vhdtool.source import ByteSource

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

# Reading over a gap of this size costs less than a second read.
_GAP_MAX: Final = 16 << 10
_BUFFER_MAX: Final = 1 << 20


def read_bitmaps(
    source: ByteSource, bit: Int64s, sector_count: int, left: Int64s, *, is_msb_first: bool = False
) -> Bytes:
    """Pieces of sector bitmaps; the result is that of ``DiskImage.bitmaps``.

    Args:
        bit: int64[k], where each piece's first sector stands: 8 times the file offset of its byte, plus
            its number in that byte, counted in the order of sectors.
        sector_count: of each piece; less than 8 only where no piece crosses a byte.
        left: int64[k], sectors from each piece's first one to the end of the disk.
        is_msb_first: whether a byte's first sector is its most significant bit.
    """
    width = -(-sector_count // 8)
    pieces = np.empty((len(bit), width), np.uint8)
    if not len(bit):
        return pieces
    place = bit >> 3
    order = np.argsort(place, kind="stable")
    _read_pieces(source, place[order], order, pieces)
    if is_msb_first:
        reverse_bits(pieces)
    if sector_count < 8:
        pieces >>= (bit & 7).astype(np.uint8)[:, None]
        pieces &= np.uint8((1 << sector_count) - 1)
    _clear_beyond_end(pieces, left, sector_count)
    return pieces


def reverse_bits(pieces: Bytes) -> None:
    """Turn the bits of every byte round, in place."""
    pieces[:] = np.packbits(np.unpackbits(pieces, axis=1), axis=1, bitorder="little")


def _read_pieces(source: ByteSource, place: Int64s, target: Int64s, pieces: Bytes) -> None:
    """Fill row ``target[i]`` of ``pieces`` from file offset ``place[i]``; ``place`` ascends."""
    width = pieces.shape[1]
    columns = np.arange(width)
    edges = np.concatenate(([0], np.flatnonzero(np.diff(place) > width + _GAP_MAX) + 1, [len(place)]))
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist()):
        while low < high:
            start = int(place[low])
            end = high
            if int(place[high - 1]) - start > _BUFFER_MAX:
                end = low + int(np.searchsorted(place[low:high], start + _BUFFER_MAX, side="right"))
            length = int(place[end - 1]) + width - start
            data = np.frombuffer(source.read_exact(start, length, field="sector bitmap"), np.uint8)
            if end == low + 1:
                pieces[target[low]] = data
            else:
                pieces[target[low:end]] = data[(place[low:end] - start)[:, None] + columns]
            low = end


def _clear_beyond_end(pieces: Bytes, left: Int64s, sector_count: int) -> None:
    """Clear the bits of sectors behind the disk's end."""
    short = np.flatnonzero(left < sector_count)
    bit = np.arange(pieces.shape[1] * 8)
    for row in short.tolist():  # of one block, where the disk ends
        pieces[row] &= np.packbits(bit < left[row], bitorder="little")
