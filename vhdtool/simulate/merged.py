"""Layers of a chain as the one image that merging them would leave, without copying a byte.

::

    0 leaf          0 leaf
    1 ┐             1 merged: the disk of layer 1, blocks as large as those of layer 3, its place in
    2 ├─ merge 1..3   the chain: a full image when layer 3 is the base, else a differencing one
    3 ┘             2 base
    4 base

What the image holds follows from tables and bitmaps:

==================================  =============================  ========================================
a sector of layers first..last      in a full image                in a differencing image
==================================  =============================  ========================================
data of one of them                 data                           data
explicit zeros: a ZERO block, or    nothing                        here, as zeros: a ZERO block where a
past the end of a smaller layer                                    whole block is (VHDX), else written
that no layer above it holds
held by none of them                nothing                        falls through to the layer below
==================================  =============================  ========================================

A block of a full image with any data is stored whole, and of a fixed one every block.  So does an export,
which looks at what it copies besides, and leaves out blocks in which only zeros were written; here no payload
is read.  Stored blocks stand in the file in the order of the disk, where the package's writers place them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from vhdtool.chain.chain import Chain, Layer, LinkVerdict
from vhdtool.chain.flatten import Resolved, resolve
from vhdtool.chain.walk import first_run
from vhdtool.errors import Finding
from vhdtool.formats.flat import flat_blocks
from vhdtool.formats.image import BitmapPlaces, Section
from vhdtool.formats.probe import BAT, Look, Outcome
from vhdtool.model.blockmap import STATE_MASK, BlockMap, StoredBlocks
from vhdtool.model.geometry import Geometry
from vhdtool.model.identity import DiskType, Identity, ImageFormat, ParentLink
from vhdtool.model.state import DAMAGED, STATE_BITS, UNHELD, BlockCounts, BlockState, LogState
from vhdtool.simulate.placing import (
    SEGMENT_BLOCKS,
    PlacedBlocks,
    Placing,
    placing_of_vhd,
    placing_of_vhdx,
    states_of,
)
from vhdtool.source import too_short

if TYPE_CHECKING:
    from vhdtool.chain.engine import Engine
    from vhdtool.formats.image import DiskImage

Int64s = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]

_SEGMENTS_KEPT: Final = 4
_BITMAP_BYTES_AT_ONCE: Final = 1 << 20
_OUTCOMES: Final = {
    BlockState.ABSENT: Outcome.PARENT,
    BlockState.ZERO: Outcome.ZEROS,
    BlockState.DATA: Outcome.HERE,
    BlockState.DAMAGED: Outcome.DAMAGED,
}


def merged_chain(chain: Chain, first: int, last: int, *, engine: Engine = "auto") -> Chain:
    """``chain`` with layers ``first`` to ``last`` as one; it borrows the images, ``chain`` stays their owner.

    Raises:
        ValueError: these are not two layers or more of the chain, in this order.
        FormatError, ChainError: the chain is not sound.
    """
    require_layers(first, last, len(chain.layers))
    chain.require_sound()
    bottom = chain.layers[last]
    image = MergedImage(chain.layers[first : last + 1], engine=engine)
    merged = Layer(image, bottom.path, chain.layers[first].found_by, bottom.link, bottom.findings)
    of_links = sum(len(layer.findings) for layer in chain.layers)
    return Chain((*chain.layers[:first], merged, *chain.layers[last + 1 :]), chain.findings[of_links:])


def require_layers(first: int, last: int, depth: int) -> None:
    """Refuse what is no range of two layers or more of ``depth``.

    Raises:
        ValueError: it is not.
    """
    if not 0 <= first < last < depth:
        raise ValueError(
            f"layers {first}..{last} cannot be merged: the first is above the last,"
            f" and the deepest layer of this chain is {depth - 1}"
        )


class MergedImage:
    """Neighbouring layers of a chain as one image; see :class:`~vhdtool.formats.image.DiskImage`.

    Its tables are worked out when they are first asked for, in one pass; they take a byte a block where
    blocks differ.  Bitmaps are worked out each time.

    Args:
        layers: two or more, top layer first, of a sound chain.  They stay their owner's.
        engine: for resolving them.

    Attributes:
        is_full: whether the last layer is a base, so that this image needs no parent.
        source: reads payload through the layers; there are no headers in it.
    """

    log = LogState()
    sections: Sequence[Section] = ()
    creator = "vhdtool"
    created: datetime | None = None

    def __init__(self, layers: Sequence[Layer], *, engine: Engine = "auto") -> None:
        self.layers = tuple(layers)
        self._images = [layer.image for layer in layers]
        self._engine: Engine = engine
        top, bottom = self._images[0], self._images[-1]
        self.is_full = layers[-1].link is LinkVerdict.BASE
        self.format: ImageFormat = bottom.format
        self.type: DiskType = DiskType.DIFFERENCING
        if self.is_full:
            self.type = DiskType.FIXED if bottom.type is DiskType.FIXED else DiskType.DYNAMIC
        self.geometry = Geometry(
            top.geometry.virtual_size,
            bottom.geometry.block_size,
            top.geometry.sector_size,
            bottom.geometry.physical_sector_size,
            bottom.geometry.has_table,
        )
        # Past the end of a layer those below it are not seen: all is said there, as data or as zeros.
        self._said_from = min(image.geometry.virtual_size for image in self._images)
        self.disk_id: Identity | None = bottom.disk_id
        # Whoever is the child of the first layer becomes this image's.
        self.write_id: Identity | None = top.write_id
        self.parent: ParentLink | None = None if self.is_full else bottom.parent
        self._placing = _placing(self)
        self._table: PlacedBlocks | None = None
        self._lock = threading.Lock()
        self._segment = lru_cache(maxsize=_SEGMENTS_KEPT)(lambda number: self._tables().stored(number))
        self.source = MergedSource(self)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of the layers."""
        return tuple(finding for image in self._images for finding in image.findings)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Those of the layers."""
        return tuple(error for image in self._images for error in image.errors)

    # ------------------------------------------------------------ one at a time

    def counts(self) -> BlockCounts:
        """Blocks by state; none where there is no table."""
        if not self.geometry.has_table:
            return BlockCounts()
        absent, zero, data, partial, _ = self._tables().counts.tolist()
        return BlockCounts(self.geometry.block_count, data, partial, zero, absent)

    def entry(self, block: int) -> tuple[BlockState, int]:
        """State of one block and the file offset of its data."""
        if not 0 <= block < self.geometry.block_count:
            raise ValueError(f"block {block} is not one of {self.geometry.block_count}")
        one = self.block_map(block, block + 1)
        return BlockState(int(one.state[0])), int(one.file_offset[0])

    def bitmap(self, block: int) -> bytes:
        """Sector bitmap of a PARTIAL block."""
        per_block = self.geometry.sectors_per_block
        if self.entry(block)[0] is not BlockState.PARTIAL:
            raise ValueError(f"block {block} is not partial")
        return self.bitmaps(np.array([block * per_block]), per_block).tobytes()

    def probe(self, offset: int) -> tuple[Look, ...]:
        """What a walk would find in the table that a merge would write."""
        block, within = divmod(offset, self.geometry.block_size)
        state, _ = self.entry(block)
        outcome = _OUTCOMES.get(state)
        if outcome is None:
            sector = within // self.geometry.sector_size
            here, _ = first_run(self.bitmap(block), sector, sector + 1)
            outcome = Outcome.HERE if here else Outcome.PARENT
        note = f"layers are merged in thought, and leave this block {state.name}"
        return (Look(structure=BAT, index=block, state=state.name, outcome=outcome, note=note),)

    # ------------------------------------------------------------ arrays

    def survey(self) -> None:
        """Judge the tables of the layers."""
        for image in self._images:
            image.survey()

    def block_map(self, start: int, stop: int) -> BlockMap:
        """Blocks ``[start, stop)``."""
        return self.stored(start, stop).block_map(start, stop)

    def stored(self, start: int, stop: int) -> StoredBlocks:
        """The blocks of ``[start, stop)`` that are not ABSENT."""
        if start >= stop:
            return StoredBlocks.joined([])
        if not self.geometry.has_table:
            return flat_blocks(start, stop, self.geometry.block_size)
        first, last = start // SEGMENT_BLOCKS, -(-stop // SEGMENT_BLOCKS)
        return StoredBlocks.joined([self._segment(number) for number in range(first, last)]).within(
            start, stop
        )

    def next_stored(self, block: int) -> int:
        """The first block from ``block`` on in a segment of the table in which something is stored."""
        if not self.geometry.has_table:
            return block
        segments = self._tables().segments
        number = block // SEGMENT_BLOCKS
        while number < len(segments) and not segments[number].any_stored:
            number += 1
        return min(self.geometry.block_count, max(block, number * SEGMENT_BLOCKS))

    def bitmaps(self, first_sectors: Int64s, sector_count: int) -> Bits:
        """Pieces of the bitmaps of PARTIAL blocks."""
        pieces = np.empty((len(first_sectors), -(-sector_count // 8)), np.uint8)
        step = max(1, _BITMAP_BYTES_AT_ONCE // pieces.shape[1])
        for at in range(0, len(first_sectors), step):
            pieces[at : at + step] = self._said(first_sectors[at : at + step], sector_count)
        return pieces

    def bitmap_places(self, first_sectors: Int64s, file_offsets: Int64s) -> BitmapPlaces | None:
        """They stand nowhere."""
        return None

    def inspect(self, *, deep: bool = False) -> None:
        """There is no file to look at."""

    def close(self) -> None:
        """The layers are not this image's to close."""

    # ------------------------------------------------------------ its file

    @property
    def file_size(self) -> int:
        """Bytes of the file that a merge would write, up to the end of its last block."""
        if not self.geometry.has_table:
            return self.geometry.virtual_size
        return self._tables().stop

    def guest_offset(self, file_offset: int) -> tuple[int, int] | None:
        """Which byte of the disk stands at ``file_offset``, and how many of its block follow there.

        None where no block's data are.
        """
        size = self.geometry.block_size
        if not self.geometry.has_table:
            left = self.geometry.virtual_size - file_offset
            return (file_offset, left) if left > 0 else None
        blocks = self._segment(self._tables().segment_at(file_offset))
        place = blocks.entry >> STATE_BITS
        here = np.flatnonzero((place > 0) & (place <= file_offset) & (file_offset < place + size))
        if not len(here):
            return None
        within = file_offset - int(place[here[0]])
        return int(blocks.block[here[0]]) * size + within, size - within

    def growth(self) -> int:
        """Bytes by which the last layer's file grows when the layers above are merged into it.

        Those of the blocks that it has not placed yet, with their bitmaps and, in a VHDX, with the bitmap
        blocks of chunks in which it has no partial block; blocks that are no longer needed stay in the
        file.  The growth of the table is left out.
        """
        bottom = self._images[-1]
        if not self.geometry.has_table:
            return max(0, self.geometry.virtual_size - bottom.geometry.virtual_size)
        # To the segment's end: beyond a disk that was made smaller there may be what its last chunk has.
        return sum(
            self._placing.length_of_new(
                table.state, states_of(bottom, table.first, table.first + SEGMENT_BLOCKS)
            )
            for table in self._tables().segments
            if table.any_stored
        )

    # ------------------------------------------------------------ how it is worked out

    def _tables(self) -> PlacedBlocks:
        with self._lock:
            if self._table is None:
                self._table = PlacedBlocks(self._placing, self._segment_states())
            return self._table

    def _segment_states(self) -> Iterator[Bits]:
        """uint8[n], states of the blocks of each segment; a view of one byte where they are all alike."""
        geometry, span = self.geometry, SEGMENT_BLOCKS * self.geometry.block_size
        tally = _Tally(0, span, geometry)
        for runs in resolve(self._images, 0, geometry.virtual_size, engine=self._engine):
            stop = int(runs.offset[-1] + runs.length[-1])
            while True:
                part = runs.clipped(tally.start, tally.stop)
                if len(part.offset) == 1 and part.length[0] == tally.stop - tally.start:
                    # A hole, or a layer that ends early, and not to be gone through block by block.
                    block = _Tally(tally.start, geometry.block_size, geometry)
                    block.add(part.clipped(block.start, block.stop))
                    yield np.broadcast_to(self._states(block), len(tally.length))
                else:
                    tally.add(part)
                    if stop < tally.stop:
                        break
                    yield _shared_where_alike(self._states(tally))
                tally = _Tally(tally.stop, span, geometry)
                if stop <= tally.start:
                    break

    def _states(self, tally: _Tally) -> Bits:
        """States of blocks by what is said of them."""
        is_vhd = self.format is ImageFormat.VHD
        if self.type is DiskType.FIXED:
            state = np.full(len(tally.length), BlockState.DATA)
        elif self.is_full:
            state = np.where(
                tally.data > 0, BlockState.PARTIAL if is_vhd else BlockState.DATA, BlockState.ABSENT
            )
        else:
            state = np.where(tally.unheld < tally.length, BlockState.PARTIAL, BlockState.ABSENT)
            if not is_vhd:
                whole = np.where(tally.data > 0, BlockState.DATA, BlockState.ZERO)
                state = np.where(tally.unheld == 0, whole, state)
        return np.where(tally.damaged > 0, BlockState.DAMAGED, state).astype(np.uint8)

    def _said(self, first_sectors: Int64s, sector_count: int) -> Bits:
        """Which sectors this image has: those that any of the layers has, and those past a layer's end.

        Arguments and result as ``bitmaps``.
        """
        geometry = self.geometry
        pieces = np.zeros((len(first_sectors), -(-sector_count // 8)), np.uint8)
        if not self.is_full:
            for image in self._images:
                _add_bits(image, first_sectors, sector_count, pieces)
        said_from = 0 if self.is_full else self._said_from // geometry.sector_size
        _set_from(first_sectors, sector_count, said_from, pieces)
        _clear_from(first_sectors, sector_count, geometry.sector_count, pieces)
        return pieces


# ---------------------------------------------------------------- which sectors are said


def _add_bits(image: DiskImage, first_sectors: Int64s, sector_count: int, pieces: Bits) -> None:
    """Set the bits of ``pieces`` for the sectors that ``image`` has; arguments as ``DiskImage.bitmaps``."""
    per_block = image.geometry.sectors_per_block
    unit = min(sector_count, per_block)
    # A piece lies in one block of the image, or is made of whole blocks of it.
    sector = (first_sectors[:, None] + np.arange(0, sector_count, unit)).reshape(-1)
    state = _states_of(image, sector // per_block)
    bits = np.zeros((len(sector), -(-unit // 8)), np.uint8)
    full = (1 << unit) - 1 if unit < 8 else 0xFF
    bits[(state != BlockState.ABSENT) & (state != BlockState.PARTIAL)] = full
    partial = np.flatnonzero(state == BlockState.PARTIAL)
    if len(partial):
        bits[partial] = image.bitmaps(sector[partial], unit)
    pieces |= _joined(bits, unit, pieces.shape)


def _joined(bits: Bits, unit: int, shape: tuple[int, ...]) -> Bits:
    """Rows of ``unit`` bits put together to rows as wide as ``shape``."""
    if unit >= 8 or len(bits) == shape[0]:
        return bits.reshape(shape)
    single = np.unpackbits(bits, axis=1, bitorder="little")[:, :unit]
    return np.packbits(single.reshape(shape[0], -1), axis=1, bitorder="little")


def _states_of(image: DiskImage, blocks: Int64s) -> Int64s:
    """States of ``blocks`` (ascending, perhaps beyond the disk's end), asked for in windows."""
    state = np.full(len(blocks), BlockState.ABSENT, np.int64)
    at, stop = 0, int(np.searchsorted(blocks, image.geometry.block_count))
    while at < stop:
        first = int(blocks[at])
        end = int(np.searchsorted(blocks[:stop], first + SEGMENT_BLOCKS))
        found = image.stored(first, int(blocks[end - 1]) + 1)
        where = np.searchsorted(found.block, blocks[at:end])
        there = np.flatnonzero(np.append(found.block, -1)[where] == blocks[at:end])
        state[at + there] = found.entry[where[there]] & STATE_MASK
        at = end
    return state


def _set_from(first_sectors: Int64s, sector_count: int, sector: int, pieces: Bits) -> None:
    """Set the bits of sectors from ``sector`` on."""
    pieces[first_sectors >= sector] = (1 << min(sector_count, 8)) - 1
    bit = np.arange(sector_count)
    for row in _crossing(first_sectors, sector_count, sector):
        pieces[row] |= np.packbits(first_sectors[row] + bit >= sector, bitorder="little")


def _clear_from(first_sectors: Int64s, sector_count: int, sector: int, pieces: Bits) -> None:
    """Clear the bits of sectors from ``sector`` on."""
    pieces[first_sectors >= sector] = 0
    bit = np.arange(sector_count)
    for row in _crossing(first_sectors, sector_count, sector):
        pieces[row] &= np.packbits(first_sectors[row] + bit < sector, bitorder="little")


def _crossing(first_sectors: Int64s, sector_count: int, sector: int) -> list[int]:
    """The rows with sectors on both sides of ``sector``; those of one piece."""
    return np.flatnonzero((first_sectors < sector) & (first_sectors + sector_count > sector)).tolist()


# ---------------------------------------------------------------- states from runs


class _Tally:
    """Bytes of each block of a guest range, by what runs say of them.

    Args:
        start, span: where the range begins and how long it is, unless the disk ends before; whole blocks.

    Attributes:
        stop: guest byte where the range ends.
        length, data, unheld, damaged: int64[n].
    """

    def __init__(self, start: int, span: int, geometry: Geometry) -> None:
        self.start = start
        self.stop = min(start + span, geometry.virtual_size)
        self._size = geometry.block_size
        edges = np.arange(start, self.stop, self._size)
        self.length = np.minimum(edges + self._size, self.stop) - edges
        self.data = np.zeros(len(edges), np.int64)
        self.unheld = np.zeros(len(edges), np.int64)
        self.damaged = np.zeros(len(edges), np.int64)

    def add(self, runs: Resolved) -> None:
        """Count ``runs``, which lie in the range and are in order."""
        low = (int(runs.offset[0]) - self.start) // self._size
        high = -(-(int(runs.offset[-1] + runs.length[-1]) - self.start) // self._size)
        edges = np.arange(low, high + 1) * self._size + self.start
        run = np.maximum(np.searchsorted(runs.offset, edges, side="right") - 1, 0)
        within = np.clip(edges - runs.offset[run], 0, runs.length[run])
        for counts, counted in (
            (self.data, runs.layer >= 0),
            (self.unheld, runs.layer == UNHELD),
            (self.damaged, runs.layer == DAMAGED),
        ):
            before = np.concatenate(([0], np.cumsum(np.where(counted, runs.length, 0))))
            counts[low:high] += np.diff(before[run] + np.where(counted[run], within, 0))


def _placing(image: MergedImage) -> Placing:
    """As the writer of the image's format places blocks."""
    if image.format is ImageFormat.VHD:
        return placing_of_vhd(image.geometry, image.parent)
    return placing_of_vhdx(image.geometry, is_differencing=not image.is_full)


def _shared_where_alike(state: Bits) -> Bits:
    """``state``, in one byte where all are alike."""
    return np.broadcast_to(state[:1].copy(), len(state)) if (state == state[0]).all() else state


# ---------------------------------------------------------------- payload


class MergedSource:
    """The file of a merged image, as far as there is payload in it: read through the layers.

    Meant for looking at a few places; whoever moves data reads the chain.
    """

    descriptor: int | None = None

    def __init__(self, image: MergedImage) -> None:
        self._image = image
        self._layers = Chain(image.layers)
        self.name = f"{image.layers[-1].path} (layers merged)"

    @property
    def size(self) -> int:
        """Bytes up to the end of the last block."""
        return self._image.file_size

    def read_exact(self, offset: int, length: int, *, field: str) -> bytes:
        """Exactly ``length`` bytes from byte ``offset``; errors as ``read_into``."""
        if offset + length > self.size:
            raise too_short(self.name, offset, field, max(0, self.size - offset), length)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer), field=field)
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        """Fill ``buffer`` with payload from byte ``offset``.

        Raises:
            ValueError: there is no payload there: headers and tables were never written.
            FormatError, ChainError, ReadError: as ``Chain.read``.
        """
        disk_size = self._image.geometry.virtual_size
        while len(buffer):
            place = self._image.guest_offset(offset)
            if place is None:
                raise ValueError(f"layers merged in thought have no {field} at {offset:#x}, only payload")
            guest, left = place
            count = min(len(buffer), left)
            inside = max(0, min(count, disk_size - guest))
            buffer[:inside] = self._layers.read(guest, inside)
            buffer[inside:count] = bytes(count - inside)
            buffer = buffer[count:]
            offset += count

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """It cannot tell: the whole range."""
        stop = min(stop, self.size)
        if start < stop:
            yield start, stop

    def close(self) -> None:
        """The files are the layers'."""
