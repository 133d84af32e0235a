"""How guest bytes become an image's file, for every format and type.

::

    mover ──guest bytes, ascending──► Container ──► TargetFile
                                        │ fixed         byte n stands at a fixed distance from n
                                        │ dynamic       a block gets its place when its first byte comes
                                        │ differencing  and its bitmap when the next block begins
                                        └ finish        tables, bitmaps, headers, footers

What nobody writes is a hole, so zeros take no space.  A full image is not told of zeros; a differencing one
has to know which bytes are zeros and which it leaves to its parent.  There, blocks that are zeros as a whole
are said to be so (VHDX) or are holes with a full bitmap (VHD); blocks that are here as a whole need no
bitmap (VHDX) or have a full one; all others have a bit for each sector.

Where blocks stand follows from the order in which they first came, and from nothing else.  So a job that
was interrupted goes on with a file bit by bit the same: it journals which blocks came (``placed``), gives
that back (``restore``), and looks at what is there (``read_back``).  Nothing in front of the blocks is
believed: it is made anew.  Bitmaps of differencing images are read from the file; a bit that is wrong there
makes another disk, which the digests of its chunks show.

Memory: a window.  A VHDX's table is written as blocks come, a VHD's is at most 64 MiB (4 MiB with the blocks
that Windows takes).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

from vhdtool.export.containers.shape import Shape, TargetFormat
from vhdtool.export.containers.target import TargetFile
from vhdtool.formats.image import Sink
from vhdtool.model.identity import DiskType, Identity
from vhdtool.model.state import UNHELD, ZEROS, BlockState, Run
from vhdtool.source import ByteSource, FileSource

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vhdtool.model.blockmap import StoredBlocks

CHECKPOINT_SIZE_MIN: Final = 2 << 20
# After so many blocks the part of the table that cannot change any more is let go of.
_FLUSH_BLOCKS: Final = 1 << 16


class Container(Protocol):
    """Guest bytes in ascending order go in, an image's file comes out.

    Attributes:
        checkpoint_size: bytes; going on is possible at guest positions that are multiples of it.
    """

    @property
    def checkpoint_size(self) -> int: ...

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Guest bytes: of a differencing image whole sectors, up to the disk's end.

        Raises:
            ExportError: the file cannot be written, or its format cannot hold that much.
        """
        ...

    def zeros(self, offset: int, length: int) -> None:
        """Guest bytes that are zeros, wherever no data was written; needed by differencing images only."""
        ...

    def finish(self) -> int:
        """Write tables and footers; the file's size in bytes, to which the caller cuts or extends it."""
        ...

    def placed(self) -> list[list[int]]:
        """What was placed since the last call, for a journal; to be asked for at a checkpoint only."""
        ...

    def restore(self, position: int, rows: Iterable[list[int]]) -> int:
        """Be as it was at the checkpoint ``position``, with all ``rows`` that ``placed`` gave up to there.

        Returns:
            The file's size there, in bytes; what lies behind, the caller cuts off.

        Raises:
            ValueError: ``placed`` gave no such rows.
            ExportError: the file cannot be written.
        """
        ...

    def read_back(self, position: int) -> tuple[ByteSource, Iterable[Iterable[Run]]]:
        """What was written in front of the checkpoint ``position``.

        Returns:
            The file, which the caller closes, and plans that tile the disk from 0 to ``position``: layer 0
            is the file, ``UNHELD`` is left to the parent.
        """
        ...


class BlockWriter(Protocol):
    """What the writers of both formats have in common; see vhdtool/formats/vhdx/write.py."""

    @property
    def first_offset(self) -> int: ...
    @property
    def stop(self) -> int: ...
    def place_block(self, block: int) -> int: ...
    def reserve_block(self, block: int) -> int: ...
    def write_bitmap(self, block: int, bitmap: bytes | None = None) -> None: ...
    def write_held(self) -> None: ...
    def zero_blocks(self, first: int, count: int) -> None: ...
    def restore_partial(self, block: int) -> None: ...
    def bitmaps_behind(self, block: int) -> tuple[int, int]: ...
    def flush(self, block: int) -> None: ...
    def write_table(self) -> None: ...
    def stored(self, source: ByteSource, stop: int) -> Iterator[StoredBlocks]: ...
    def bitmap_place(self, block: int) -> int: ...
    def decode_bitmap(self, raw: bytes) -> bytes: ...
    def finish(self) -> int: ...


def container_for(shape: Shape, sink: Sink, *, record: bool = True) -> Container:
    """What makes an image of that shape in ``sink``.

    Args:
        sink: a :class:`TargetFile`; anything else cannot be gone on with.
        record: keep what ``placed`` gives.  Without a journal nobody asks for it.

    Raises:
        ValueError: a format that is not made here (raw.zst, e01).
    """
    if shape.format is TargetFormat.RAW:
        return RawContainer(sink, shape.virtual_size)
    if shape.format is TargetFormat.VHD and shape.type is DiskType.FIXED:
        return FixedVhdContainer(shape, sink)
    if not shape.format.has_structures:
        raise ValueError(f"{shape.format} is made elsewhere")
    writer = _vhdx_writer(shape, sink) if shape.format is TargetFormat.VHDX else _vhd_writer(shape, sink)
    if shape.type is DiskType.FIXED:
        return FixedVhdxContainer(shape, sink, writer)
    if shape.type is DiskType.DYNAMIC:
        return BlockContainer(shape, sink, writer, record=record)
    return DifferencingContainer(shape, sink, writer, record=record)


def file_size_known(shape: Shape) -> int | None:
    """The size of the finished file in bytes, where it does not depend on the content; None otherwise."""
    if shape.type is not DiskType.FIXED:
        return None
    if shape.format is TargetFormat.VHD:
        return shape.virtual_size + 512
    if shape.format is TargetFormat.VHDX:
        blocks = -(-shape.virtual_size // shape.block_size) * shape.block_size
        return _vhdx_writer(shape, _Nowhere()).first_offset + blocks
    return shape.virtual_size if shape.format is TargetFormat.RAW else None


# ------------------------------------------------------------ fixed


class _Linear:
    """Guest byte n stands at file byte ``first_offset`` + n."""

    checkpoint_size = CHECKPOINT_SIZE_MIN

    def __init__(self, sink: Sink, virtual_size: int, first_offset: int = 0) -> None:
        self._sink = sink
        self._virtual_size = virtual_size
        self._first_offset = first_offset

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self._sink.write_at(self._first_offset + offset, data)

    def zeros(self, offset: int, length: int) -> None:
        """Holes are zeros."""

    def placed(self) -> list[list[int]]:
        """Nothing: where bytes stand is known."""
        return []

    def restore(self, position: int, rows: Iterable[list[int]]) -> int:
        if any(True for _ in rows):
            raise ValueError("nothing is placed in a fixed image")
        if self._first_offset:
            _file_of(self._sink).zero(0, self._first_offset)
        return self._first_offset + min(position, self._virtual_size)

    def read_back(self, position: int) -> tuple[ByteSource, Iterable[Iterable[Run]]]:
        source = FileSource(_file_of(self._sink).partial)
        stop = min(position, self._virtual_size)
        return source, [list(_held(source, 0, stop, self._first_offset))] if stop else []


class RawContainer(_Linear):
    """A raw disk."""

    def finish(self) -> int:
        return self._virtual_size


class FixedVhdContainer(_Linear):
    """A raw disk with a footer behind it."""

    def __init__(self, shape: Shape, sink: Sink) -> None:
        super().__init__(sink, shape.virtual_size)
        self._shape = shape

    def finish(self) -> int:
        from vhdtool.formats.vhd.write import write_fixed_footer

        shape = self._shape
        assert shape.disk_id is not None
        return write_fixed_footer(
            self._sink, virtual_size=shape.virtual_size, unique_id=shape.disk_id, timestamp=shape.created
        )


class FixedVhdxContainer(_Linear):
    """A fixed VHDX: all blocks, in the order of the disk."""

    def __init__(self, shape: Shape, sink: Sink, writer: BlockWriter) -> None:
        super().__init__(sink, shape.virtual_size, writer.first_offset)
        self._writer = writer

    def finish(self) -> int:
        return self._writer.finish()


# ------------------------------------------------------------ in blocks


class _Blocks:
    """What dynamic and differencing images share: blocks that get a place as they come."""

    # What no block says anything about.
    _nobody: int

    def __init__(self, shape: Shape, sink: Sink, writer: BlockWriter, *, record: bool) -> None:
        self._sink = sink
        self._writer = writer
        self._virtual_size = shape.virtual_size
        self._sector_size = shape.sector_size
        self._block_size = shape.block_size
        self._block_count = -(-shape.virtual_size // shape.block_size)
        self._record = record
        self._rows: list[list[int]] = []
        self._next_flush = _FLUSH_BLOCKS
        self._block = -1  # the one that bytes go to; -1 is none
        self._place = -1  # of its data in the file; -1 is none yet
        self._next_block = 0

    @property
    def checkpoint_size(self) -> int:
        """Bytes: whole blocks."""
        return max(self._block_size, CHECKPOINT_SIZE_MIN)

    def finish(self) -> int:
        self._leave()
        return self._writer.finish()

    def placed(self) -> list[list[int]]:
        """Rows [first block, number of blocks, a :class:`BlockState`]."""
        self._leave()
        self._writer.write_held()
        rows, self._rows = self._rows, []
        return rows

    def restore(self, position: int, rows: Iterable[list[int]]) -> int:
        file = _file_of(self._sink)
        file.zero(0, self._writer.first_offset)
        limit = min(self._block_count, -(-position // self._block_size))
        for row in rows:
            first, count, state = row
            if first < self._next_block or count < 1 or first + count > limit:
                raise ValueError(f"no block {first} can have been placed")
            self._restore_blocks(first, count, state)
            self._next_block = first + count
        # What came behind the checkpoint may come otherwise now.
        file.zero(*self._writer.bitmaps_behind(limit))
        return self._writer.stop

    def read_back(self, position: int) -> tuple[ByteSource, Iterable[Iterable[Run]]]:
        self._leave()
        self._writer.write_table()
        source = FileSource(_file_of(self._sink).partial)
        return source, self._plans(source, min(position, self._virtual_size))

    def _leave(self) -> None:
        """No more bytes come for the block."""
        raise NotImplementedError

    def _restore_blocks(self, first: int, count: int, state: int) -> None:
        for block in range(first, first + count):
            if state == BlockState.DATA:
                self._writer.place_block(block)
            else:
                raise ValueError(f"no block can have state {state}")
            self._flush(block)

    def _enter(self, block: int) -> None:
        """Bytes come for ``block``."""
        if block == self._block:
            return
        self._leave()
        if not self._next_block <= block < self._block_count:
            raise ValueError(f"bytes come in order and end with the disk; block {block} does not")
        self._flush(block)
        self._block = block
        self._next_block = block + 1

    def _flush(self, block: int) -> None:
        if block >= self._next_flush:
            self._writer.flush(block)
            self._next_flush = block + _FLUSH_BLOCKS

    def _note(self, first: int, count: int, state: BlockState) -> None:
        if not self._record:
            return
        last = self._rows[-1] if self._rows else None
        if last is not None and last[2] == state and last[0] + last[1] == first:
            last[1] += count
        else:
            self._rows.append([first, count, int(state)])

    def _plans(self, source: ByteSource, stop: int) -> Iterator[list[Run]]:
        at = 0
        for stored in self._writer.stored(source, -(-stop // self._block_size)):
            runs: list[Run] = []
            for start, length, state, file_offset in self._stretches(stored):
                if start > at:
                    runs.append(Run(at, start - at, self._nobody, -1))
                at = min(start + length, stop)
                if state == BlockState.PARTIAL:
                    runs.extend(self._partial(source, start, at - start, file_offset))
                elif state == BlockState.DATA:
                    runs.extend(_held(source, start, at - start, file_offset))
                else:
                    runs.append(Run(start, at - start, ZEROS, -1))
            if runs:
                yield runs
        if at < stop:
            yield [Run(at, stop - at, self._nobody, -1)]

    def _stretches(self, stored: StoredBlocks) -> Iterator[tuple[int, int, int, int]]:
        """(guest offset, length, state, file offset): neighbours that stand side by side are one."""
        import numpy as np

        from vhdtool.model.blockmap import BlockMap

        blocks = BlockMap(0, stored.entry)
        block, state, file_offset = stored.block, blocks.state, blocks.file_offset
        # No two partial blocks have one place, so those stay apart.
        step = np.where(state == BlockState.DATA, self._block_size, 0)
        goes_on = (
            (np.diff(block) == 1)
            & (state[1:] == state[:-1])
            & (file_offset[1:] == file_offset[:-1] + step[:-1])
        )
        first = np.flatnonzero(np.concatenate((np.ones(min(1, len(block)), np.bool_), ~goes_on)))
        count = np.diff(first, append=len(block))
        columns = (
            block[first] * self._block_size,
            count * self._block_size,
            state[first],
            file_offset[first],
        )
        return zip(*(column.tolist() for column in columns))

    def _partial(self, source: ByteSource, start: int, length: int, file_offset: int) -> Iterator[Run]:
        """The runs of ``length`` bytes of a partially present block, by its bitmap in the file."""
        sector_count = -(-length // self._sector_size)
        place = self._writer.bitmap_place(start // self._block_size)
        size = -(-sector_count // 8)
        there = max(0, min(size, source.size - place))
        raw = source.read_exact(place, there, field="sector bitmap").ljust(size, b"\0")
        bits = _bits(self._writer.decode_bitmap(raw), sector_count)
        for first, last, is_here in bits:
            at = first * self._sector_size
            count = min(last * self._sector_size, length) - at
            if is_here:
                yield from _held(source, start + at, count, file_offset + at)
            else:
                yield Run(start + at, count, self._nobody, -1)


class BlockContainer(_Blocks):
    """A dynamic image: blocks of zeros have no place."""

    _nobody = ZEROS

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view):
            block, within = divmod(offset, self._block_size)
            if block != self._block:
                self._enter(block)
                self._place = self._writer.place_block(block)
                self._note(block, 1, BlockState.DATA)
            count = min(len(view), self._block_size - within)
            self._sink.write_at(self._place + within, view[:count])
            view = view[count:]
            offset += count

    def zeros(self, offset: int, length: int) -> None:
        """What has no place reads as zeros."""

    def _leave(self) -> None:
        self._block = -1


class DifferencingContainer(_Blocks):
    """A differencing image: what is not told of is left to the parent."""

    _nobody = UNHELD

    def __init__(self, shape: Shape, sink: Sink, writer: BlockWriter, *, record: bool) -> None:
        super().__init__(shape, sink, writer, record=record)
        # Where the disk's last sector begins: the bytes that are known of it may end inside it.
        self._last_sector = shape.virtual_size - shape.sector_size
        self._bitmap = bytearray(-(-shape.block_size // shape.sector_size // 8))
        self._sectors_here = 0
        self._next_sector = 0

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        while len(data):
            block, within = divmod(offset, self._block_size)
            if block != self._block:
                self._enter(block)
            count = min(len(data), self._block_size - within)
            self._hold(within, count)
            if self._place < 0:
                self._place = self._writer.reserve_block(block)
            if count == len(data):  # as nearly always
                self._sink.write_at(self._place + within, data)
                return
            self._sink.write_at(self._place + within, memoryview(data)[:count])
            data = memoryview(data)[count:]
            offset += count

    def zeros(self, offset: int, length: int) -> None:
        stop = offset + length
        while offset < stop:
            block, within = divmod(offset, self._block_size)
            count = min(stop, self._virtual_size) // self._block_size - block
            if within == 0 and count > 0 and block != self._block:
                self._enter(block)
                self._block = -1
                self._note(block, count, BlockState.ZERO)
                self._zero_blocks(block, count)
                offset += count * self._block_size
            else:
                self._enter(block)
                length = min(stop - offset, self._block_size - within)
                self._hold(within, length)
                offset += length

    def _enter(self, block: int) -> None:
        """As before; the first bytes of it come with none of it here."""
        if block != self._block:
            super()._enter(block)
            self._place = -1
            self._bitmap[:] = bytes(len(self._bitmap))
            self._sectors_here = self._next_sector = 0

    def _hold(self, within: int, length: int) -> None:
        """Bytes [within, within + length) of the block are here."""
        stop = self._block * self._block_size + within + length
        if within % self._sector_size or (stop % self._sector_size and stop < self._last_sector):
            raise ValueError(f"bytes in front of {stop:#x} are no whole sectors of {self._sector_size}")
        first = within // self._sector_size
        last = -(-(within + length) // self._sector_size)
        if first < self._next_sector or stop > self._virtual_size:
            raise ValueError(f"bytes come in order and end with the disk; those in front of {stop:#x} do not")
        _set_bits(self._bitmap, first, last)
        self._sectors_here += last - first
        self._next_sector = last

    def _leave(self) -> None:
        if self._block < 0:
            return
        block, self._block = self._block, -1
        length = min(self._block_size, self._virtual_size - block * self._block_size)
        if self._sectors_here * self._sector_size < length:
            if self._place < 0:
                self._writer.reserve_block(block)
            self._writer.write_bitmap(block, bytes(self._bitmap))
            self._note(block, 1, BlockState.PARTIAL)
        elif self._place < 0:
            self._writer.zero_blocks(block, 1)
            self._note(block, 1, BlockState.ZERO)
        else:
            self._writer.write_bitmap(block)
            self._note(block, 1, BlockState.DATA)

    def _zero_blocks(self, first: int, count: int) -> None:
        self._next_block = first + count
        for block in range(first, first + count, _FLUSH_BLOCKS):
            self._flush(block)
            self._writer.zero_blocks(block, min(_FLUSH_BLOCKS, first + count - block))

    def _restore_blocks(self, first: int, count: int, state: int) -> None:
        if state == BlockState.ZERO:
            self._zero_blocks(first, count)
        elif state == BlockState.PARTIAL:
            for block in range(first, first + count):
                self._writer.restore_partial(block)
                self._flush(block)
        else:
            super()._restore_blocks(first, count, state)


# ------------------------------------------------------------ helpers


class _Nowhere:
    """A sink for who only asks where something would stand."""

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        raise AssertionError("nothing is to be written")


def _file_of(sink: Sink) -> TargetFile:
    if not isinstance(sink, TargetFile):
        raise ValueError("only a file can be gone on with")
    return sink


def _held(source: ByteSource, offset: int, length: int, file_offset: int) -> Iterator[Run]:
    """Guest bytes that stand in the file; what lies behind its end was never written, or is lost."""
    there = max(0, min(length, source.size - file_offset))
    if there:
        yield Run(offset, there, 0, file_offset)
    if there < length:
        yield Run(offset + there, length - there, ZEROS, -1)


def _set_bits(bitmap: bytearray, first: int, stop: int) -> None:
    """Set bits [first, stop), least significant bit of a byte first; at least one."""
    first_byte, last_byte = first >> 3, stop - 1 >> 3
    head = 0xFF << (first & 7) & 0xFF
    tail = 0xFF >> (7 - (stop - 1 & 7))
    if first_byte == last_byte:
        bitmap[first_byte] |= head & tail
        return
    bitmap[first_byte] |= head
    bitmap[first_byte + 1 : last_byte] = b"\xff" * (last_byte - first_byte - 1)
    bitmap[last_byte] |= tail


def _bits(bitmap: bytes, count: int) -> Iterator[tuple[int, int, bool]]:
    """The first ``count`` bits as runs (first, stop, are set), least significant bit of a byte first."""
    import numpy as np

    bits: npt.NDArray[np.uint8] = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")[:count]
    edges = np.flatnonzero(np.diff(bits)) + 1
    starts = [0, *edges.tolist()]
    stops = [*edges.tolist(), count]
    return zip(starts, stops, (bits[starts] != 0).tolist())


def _vhd_writer(shape: Shape, sink: Sink) -> BlockWriter:
    from vhdtool.formats.vhd.write import ParentRecord, VhdWriter

    parent = shape.parent
    return VhdWriter(
        sink,
        virtual_size=shape.virtual_size,
        unique_id=_identity(shape.disk_id),
        timestamp=shape.created,
        disk_type=shape.type,
        block_size=shape.block_size,
        parent=None if parent is None else ParentRecord(parent.identity, parent.absolute, parent.relative),
    )


def _vhdx_writer(shape: Shape, sink: Sink) -> BlockWriter:
    from vhdtool.formats.vhdx.write import ParentRecord, VhdxWriter

    parent = shape.parent
    return VhdxWriter(
        sink,
        virtual_size=shape.virtual_size,
        block_size=shape.block_size,
        logical_sector_size=shape.sector_size,
        physical_sector_size=shape.physical_sector_size,
        disk_type=shape.type,
        disk_id=_identity(shape.disk_id),
        write_id=_identity(shape.write_id),
        parent=None if parent is None else ParentRecord(parent.identity, parent.relative, parent.absolute),
    )


def _identity(identity: Identity | None) -> Identity:
    assert identity is not None, "a shape with structures has identities"
    return identity
