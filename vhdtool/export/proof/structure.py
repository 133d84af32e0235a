"""What an image's file holds besides guest data, as one digest: headers, tables, bitmaps, padding, slack.

::

    file     |header|log |BAT |bitmap|guest data      |slack|guest data           |footer|
    digested  ██████ ████ ████ ██████                  █████                       ██████   in pieces of 4 KiB

A chunk digest is of what the guest sees; this one is of all the rest, so that together not a bit of the file
can change unseen.  Guest data are the sectors that this file alone holds (not its parents), inside the disk.
For each piece of 4096 bytes, aligned in the file, with guest data taken as zeros and zeros behind the file's
end: when it is not all zeros, its offset (64 bits, little-endian) and its bytes go into a SHA-256.

Behind the digest, after a dot, stand sums (64 bits each, in hexadecimal) which prove nothing and tell where
damage is: the first is of a short hash of every piece, the others only of pieces whose number has bit 0, 1,
2 ... set.  When one piece differs, each sum has changed by the same amount or not at all, and that spells
the piece's number.

Memory does not depend on the disk: the file is gone through in regions, in each of which blocks are sorted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from vhdtool.formats.image import DiskImage
from vhdtool.model.blockmap import STATE_MASK, StoredBlocks
from vhdtool.model.state import STATE_BITS, BlockState
from vhdtool.source import ByteSource

Int64s = npt.NDArray[np.int64]
Ranges = tuple[Int64s, Int64s]

PIECE: Final = 4096
_PIECES_AT_ONCE: Final = 256
# Blocks whose places are sorted together, blocks that are asked for at once, bytes of bitmaps in memory.
_BLOCKS_PER_REGION: Final = 1 << 19
_BLOCKS_PER_WINDOW: Final = 1 << 17
_BITMAP_BYTES: Final = 256 << 10
_BLOCKS_PER_BATCH: Final = 1 << 14
# Only gaps of at least so many bytes are looked into for holes.
_HOLE_MIN: Final = 64 << 10
_SUM_MASK: Final = (1 << 64) - 1


def structure_digest(
    image: DiskImage | None, file: ByteSource, *, check: Callable[[], None] = lambda: None
) -> str:
    """Digest and sums of what ``file`` holds besides the guest data of ``image``.

    Args:
        image: an image in ``file``; None takes nothing of the file for guest data.
        file: the bytes as they stand there, no log replayed over them.
        check: called from time to time; may raise.

    Raises:
        CorruptError, ReadError: the file cannot be read, or is shorter than it was.
    """
    pieces = _Pieces(file)
    position = 0
    for starts, stops in _guest_ranges(image, file.size):
        check()
        # Blocks that overlap are found by a survey; what follows is right for them all the same.
        ends = np.maximum.accumulate(np.append(position, stops))
        gap = np.flatnonzero(starts > ends[:-1])
        for start, stop in zip(ends[gap].tolist(), starts[gap].tolist()):
            pieces.add(start, stop, check)
        position = int(ends[-1])
    pieces.add(position, file.size, check)
    return pieces.finish()


def damaged_piece(expected: str, found: str) -> int | None:
    """File offset of the one piece in which two results of ``structure_digest`` differ.

    None when they differ in several pieces, or do not differ.
    """
    before, after = _sums(expected), _sums(found)
    count = max(len(before), len(after))
    changes = [
        (new - old) & _SUM_MASK
        for old, new in zip(before + [0] * (count - len(before)), after + [0] * (count - len(after)))
    ]
    if not changes or not changes[0] or any(change not in (0, changes[0]) for change in changes):
        return None
    return PIECE * sum(1 << bit for bit, change in enumerate(changes[1:]) if change)


def _sums(text: str) -> list[int]:
    digits = text.partition(".")[2]
    return [int(digits[at : at + 16], 16) for at in range(0, len(digits), 16)]


class _Pieces:
    """Gathers bytes of a file into pieces with zeros around them, and digests those.

    Args:
        file: where they come from.
    """

    def __init__(self, file: ByteSource) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._pages = np.zeros((_PIECES_AT_ONCE, PIECE), np.uint8)
        self._view = self._pages.data.cast("B")
        # The pieces that are in the buffer, by their numbers in the file.
        self._numbers: list[int] = []
        rng = np.random.default_rng(0)
        self._weights = rng.integers(0, 1 << 63, PIECE // 8, np.uint64) * np.uint64(2) + np.uint64(1)
        self._sums: list[int] = [0]

    def add(self, start: int, stop: int, check: Callable[[], None]) -> None:
        """Bytes [start, stop) of the file count; ranges come in order."""
        if stop - start < _HOLE_MIN:
            self._take(start, stop)
            return
        for first, last in self._file.data_ranges(start, stop):
            for at in range(first, last, 16 << 20):
                check()
                self._take(at, min(last, at + (16 << 20)))

    def finish(self) -> str:
        """That was all."""
        self._flush()
        return f"{self._digest.hexdigest()}.{''.join(f'{value:016x}' for value in self._sums)}"

    def _take(self, start: int, stop: int) -> None:
        numbers = self._numbers
        while start < stop:
            number, within = divmod(start, PIECE)
            if not numbers or numbers[-1] != number:
                if len(numbers) == _PIECES_AT_ONCE:
                    self._flush()
                numbers.append(number)
            slot = len(numbers) - 1
            length = min(stop - start, (_PIECES_AT_ONCE - slot) * PIECE - within)
            at = slot * PIECE + within
            self._file.read_into(start, self._view[at : at + length], field="structure")
            start += length
            numbers.extend(range(number + 1, (start - 1) // PIECE + 1))

    def _flush(self) -> None:
        count = len(self._numbers)
        pages = self._pages[:count]
        kept = np.flatnonzero(pages.view(np.uint64).any(axis=1))
        number = np.array(self._numbers, np.int64)[kept]
        rows = np.empty((len(kept), 8 + PIECE), np.uint8)
        rows[:, :8] = (number * PIECE).astype("<i8")[:, None].view(np.uint8)
        rows[:, 8:] = pages[kept]
        self._digest.update(rows.data)
        self._add_sums(number, pages[kept])
        pages[:] = 0
        self._numbers.clear()

    def _add_sums(self, number: Int64s, pages: npt.NDArray[np.uint8]) -> None:
        # All weights are odd, so that no flipped bit leaves its hash as it was.
        short = (pages.view("<u8") * self._weights).sum(axis=1, dtype=np.uint64)
        bits = int(number.max(initial=0)).bit_length()
        self._sums.extend([0] * (1 + bits - len(self._sums)))
        for i in range(1 + bits):
            chosen = short if i == 0 else short[number >> (i - 1) & 1 == 1]
            self._sums[i] = (self._sums[i] + int(chosen.sum(dtype=np.uint64))) & _SUM_MASK


# ------------------------------------------------------------ guest data


def _guest_ranges(image: DiskImage | None, file_size: int) -> Iterator[Ranges]:
    """Ranges of the file that hold guest data, in the order of the file, in parts of bounded size."""
    if image is None:
        return
    block_size = image.geometry.block_size
    # Blocks do not share bytes, so a region has no more of them than fit.
    step = _BLOCKS_PER_REGION * block_size
    for low in range(0, file_size, step):
        stored = _blocks_within(image, low, low + step)
        order = np.argsort(stored.entry, kind="stable")
        for first in range(0, len(order), _BLOCKS_PER_BATCH):
            part = order[first : first + _BLOCKS_PER_BATCH]
            yield from _ranges_of(image, stored.block[part], stored.entry[part], file_size)


def _blocks_within(image: DiskImage, low: int, high: int) -> StoredBlocks:
    """The blocks whose data begin in file range [low, high)."""
    parts = []
    count = image.geometry.block_count
    block = image.next_stored(0)
    while block < count:
        stop = min(count, block + _BLOCKS_PER_WINDOW)
        stored = image.stored(block, stop)
        state = stored.entry & STATE_MASK
        place = stored.entry >> STATE_BITS
        held = (state == BlockState.DATA) | (state == BlockState.PARTIAL)
        kept = np.flatnonzero(held & (place >= low) & (place < high))
        parts.append(StoredBlocks(stored.block[kept], stored.entry[kept]))
        block = image.next_stored(stop) if stop < count else count
    return StoredBlocks.joined(parts)


def _ranges_of(image: DiskImage, block: Int64s, entry: Int64s, file_size: int) -> Iterator[Ranges]:
    """The file ranges of what is held of blocks, which are in the order of the file."""
    geometry = image.geometry
    partial = (entry & STATE_MASK) == BlockState.PARTIAL
    starts = entry >> STATE_BITS
    lengths = np.minimum(geometry.block_size, geometry.virtual_size - block * geometry.block_size)
    width = -(-geometry.sectors_per_block // 8)
    batch = max(1, _BITMAP_BYTES // width) if partial.any() else len(block)
    for first in range(0, len(block), batch):
        part = slice(first, first + batch)
        whole = ~partial[part]
        begin, end = [starts[part][whole]], [(starts[part] + lengths[part])[whole]]
        rows = np.flatnonzero(partial[part])
        if len(rows):
            held_begin, held_end = _held(image, block[part][rows], starts[part][rows])
            begin.append(held_begin)
            end.append(held_end)
        all_begin, all_end = np.concatenate(begin), np.concatenate(end)
        order = np.argsort(all_begin, kind="stable")
        yield all_begin[order], np.minimum(all_end[order], file_size)


def _held(image: DiskImage, block: Int64s, start: Int64s) -> Ranges:
    """The file ranges of the sectors that partial blocks hold."""
    sectors, size = image.geometry.sectors_per_block, image.geometry.sector_size
    # Bitmaps are asked for in the order of the disk.
    order = np.argsort(block)
    bitmaps = np.empty((len(block), -(-sectors // 8)), np.uint8)
    bitmaps[order] = image.bitmaps(block[order] * sectors, sectors)
    is_full = (bitmaps == 0xFF).all(axis=1) if sectors >= 8 else np.zeros(len(block), np.bool_)
    mixed = np.flatnonzero(~is_full)
    row, sector = _edges(bitmaps[mixed], sectors)
    place = start[mixed][row] + sector * size
    full = start[is_full]
    return (
        np.concatenate((full, place[0::2])),
        np.concatenate((full + sectors * size, place[1::2])),
    )


def _edges(bitmaps: npt.NDArray[np.uint8], sectors: int) -> tuple[Int64s, Int64s]:
    """Rows and bits at which runs of set bits begin, and behind which they end, in turns, row by row.

    Only bytes in which something changes are taken apart: most have all their bits alike.
    """
    here = np.zeros((len(bitmaps), bitmaps.shape[1] + 1), np.uint8)
    here[:, :-1] = bitmaps
    if sectors % 8:
        here[:, -2] &= (1 << sectors % 8) - 1
    before = np.zeros_like(here)
    before[:, 1:] = here[:, :-1] >> 7
    changes = (here ^ (here << 1 | before)).reshape(-1)
    where = np.flatnonzero(changes)
    byte, bit = np.nonzero(np.unpackbits(changes[where][:, None], axis=1, bitorder="little"))
    row: Int64s = where[byte] // here.shape[1]
    return row, where[byte] % here.shape[1] * 8 + bit
