"""New VHDX images: fixed, dynamic and differencing.

The layout is the one that Windows writes: headers, log at 1 MiB, metadata at 2 MiB, BAT at 3 MiB, then
blocks in the order in which they are first written, sector bitmap blocks among them; those of a fixed disk
in the order of the disk.  Blocks go out as they come; tables and headers follow in
:meth:`VhdxWriter.finish`, so a file that was never finished has no valid header.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vhdtool.checksum import crc32c_without_field
from vhdtool.formats.image import Sink
from vhdtool.formats.vhdx import chunk, layout
from vhdtool.formats.vhdx.chunk import ChunkLayout, chunk_ratio
from vhdtool.formats.vhdx.metadata import BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, SECTOR_SIZES, VIRTUAL_SIZE_MAX
from vhdtool.model.geometry import Geometry
from vhdtool.model.identity import DiskType, Identity
from vhdtool.model.state import BlockState
from vhdtool.source import ByteSource

if TYPE_CHECKING:
    from vhdtool.model.blockmap import StoredBlocks

LOG_OFFSET: Final = 1 * layout.MIB
LOG_LENGTH: Final = 1 * layout.MIB
METADATA_OFFSET: Final = 2 * layout.MIB
METADATA_LENGTH: Final = 1 * layout.MIB
BAT_OFFSET: Final = 3 * layout.MIB
BLOCK_SIZE_DEFAULT: Final = 32 * layout.MIB
BLOCK_SIZE_DIFFERENCING: Final = 2 * layout.MIB
_PAGE_ENTRIES: Final = 512
_PAGE_SIZE: Final = _PAGE_ENTRIES * chunk.ENTRY_SIZE
_WINDOW: Final = 1 << 17
# Bitmaps that are so close and so many are written together.
_HELD_GAP_MAX: Final = 4 << 10
_HELD_MAX: Final = 64 << 10
# What the payload states read as; only states that this writes occur.
_STATES: Final = (
    BlockState.ABSENT,
    BlockState.ZERO,
    BlockState.ZERO,
    BlockState.ZERO,
    BlockState.DAMAGED,
    BlockState.DAMAGED,
    BlockState.DATA,
    BlockState.PARTIAL,
)


@dataclass(frozen=True, slots=True)
class ParentRecord:
    """What a differencing disk is to record of its parent; paths with Windows' separators."""

    identity: Identity
    relative_path: str
    absolute_win32_path: str
    volume_path: str | None = None


class VhdxWriter:
    """Writes one image to ``sink``.

    Args:
        sink: takes bytes at positions; what is never written must read as zeros.
        virtual_size: bytes, whole logical sectors, at most 64 TiB.
        block_size: bytes, a power of two from 1 to 256 MiB.
        write_id: the DataWriteGuid, by which children know this image.
        file_write_id: the FileWriteGuid; ``write_id`` when None.
        creator: at most 255 UTF-16 units.
        parent: for a differencing disk, and only for one.

    Raises:
        ValueError: an argument is outside of these rules.

    Attributes:
        geometry: how the disk is divided.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        virtual_size: int,
        block_size: int = BLOCK_SIZE_DEFAULT,
        logical_sector_size: int = 512,
        physical_sector_size: int = 4096,
        disk_type: DiskType = DiskType.DYNAMIC,
        disk_id: Identity,
        write_id: Identity,
        file_write_id: Identity | None = None,
        creator: str = "vhdtool",
        parent: ParentRecord | None = None,
    ) -> None:
        if not BLOCK_SIZE_MIN <= block_size <= BLOCK_SIZE_MAX:
            raise ValueError(f"block_size {block_size} is not within 1 to 256 MiB")
        if logical_sector_size not in SECTOR_SIZES or physical_sector_size not in SECTOR_SIZES:
            raise ValueError("sector sizes are 512 or 4096")
        if virtual_size > VIRTUAL_SIZE_MAX:
            raise ValueError(f"virtual_size {virtual_size} is more than 64 TiB")
        if (disk_type is DiskType.DIFFERENCING) != (parent is not None):
            raise ValueError("a differencing disk has a parent, and no other has")
        self.geometry = Geometry(virtual_size, block_size, logical_sector_size, physical_sector_size)
        self._sink = sink
        self._type = disk_type
        self._chunks = ChunkLayout(
            self.geometry.block_count,
            chunk_ratio(block_size, logical_sector_size),
            disk_type is DiskType.DIFFERENCING,
        )
        self._identifier = _identifier(creator)
        self._locator = _locator(parent) if parent else b""
        self._disk_id = disk_id
        self._write_id = write_id
        self._file_write_id = file_write_id or write_id
        # Pages of the BAT that hold something: a table of 512 MiB stays as small as what is in it.
        self._pages: dict[int, bytearray] = {}
        self._pages_flushed = 0
        # File offsets of sector bitmap blocks, by chunk.
        self._bitmaps: dict[int, int] = {}
        # Bitmaps side by side that have not been written yet, and where they stand.
        self._held = bytearray()
        self._held_at = self._written_up_to = 0
        self._next = blocks_offset(self._chunks)

    def place_block(self, block: int, bitmap: bytes | None = None) -> int:
        """Give ``block`` its place, for callers that write its bytes themselves.

        Args:
            bitmap: ``sectors_per_block / 8`` bytes, least significant bit first, 1 for sectors that are
                here; None when all are.  Only for differencing disks.

        Returns:
            File offset of its ``block_size`` bytes.
        """
        index = self._index(block)
        if self._type is DiskType.FIXED and bitmap is None:
            return self.first_offset + block * self.geometry.block_size
        entry = self._entry(index)
        offset = entry >> chunk.OFFSET_SHIFT << chunk.OFFSET_SHIFT
        if entry & chunk.STATE_MASK < chunk.FULLY_PRESENT:
            offset = self._take(self.geometry.block_size)
        self._set_entry(index, offset | chunk.FULLY_PRESENT)
        if bitmap is not None:
            self.write_bitmap(block, bitmap)
        return offset

    def write_block(self, block: int, data: bytes | memoryview, bitmap: bytes | None = None) -> None:
        """Write ``block``, at most ``block_size`` bytes from its start; the rest of it reads as zeros.

        A ``bitmap`` as in :meth:`place_block` makes it partially present.
        """
        if len(data) > self.geometry.block_size:
            raise ValueError(f"{len(data)} bytes are more than a block")
        self._sink.write_at(self.place_block(block, bitmap), data)

    def set_state(self, block: int, state: int, file_offset: int = 0) -> None:
        """Put ``block`` in one of the states 0 to 3, which have no data.

        ``file_offset``, a multiple of 1 MiB, is kept beside the state as the place of old content.
        """
        if not chunk.NOT_PRESENT <= state <= chunk.UNMAPPED:
            raise ValueError(f"state {state} is none of 0 to 3")
        if self._type is DiskType.FIXED:
            raise ValueError("a fixed disk has all its blocks")
        if file_offset % layout.MIB:
            raise ValueError(f"file_offset {file_offset} is no multiple of 1 MiB")
        self._set_entry(self._index(block), file_offset | state)

    def finish(self) -> int:
        """Write tables and headers; the file's final size in bytes, to which the caller extends it."""
        if self._type is DiskType.FIXED:
            self._write_fixed_table()
        self.write_table()
        self._write_metadata()
        table = self._region_table()
        for offset in layout.REGION_TABLE_OFFSETS:
            self._sink.write_at(offset, table)
        self._sink.write_at(layout.IDENTIFIER_OFFSET, self._identifier)
        for i, offset in enumerate(layout.HEADER_OFFSETS):
            self._sink.write_at(offset, self._header(i + 1))
        return self._next

    # ------------------------------------------------------------ what an image that is being made has

    @property
    def first_offset(self) -> int:
        """Where blocks begin; what is in front of it, ``finish`` writes."""
        return blocks_offset(self._chunks)

    @property
    def stop(self) -> int:
        """Where the last block ends so far; of a fixed disk where blocks begin."""
        return self._next

    def reserve_block(self, block: int) -> int:
        """As :meth:`place_block` for all of a block; ``write_bitmap`` may say later that it was not all."""
        return self.place_block(block)

    def write_bitmap(self, block: int, bitmap: bytes | None = None) -> None:
        """Let a block that has a place be partially present; ``bitmap`` as in :meth:`place_block`."""
        if bitmap is None:
            return  # it is fully present since it has its place
        size = self.geometry.sectors_per_block // 8
        if self._type is not DiskType.DIFFERENCING or len(bitmap) != size:
            raise ValueError(f"a bitmap is {size} bytes, in a differencing disk only")
        place = self._let_be_partial(block)
        end = self._held_at + len(self._held)
        # Nothing stands in a gap behind everything that was written.
        gap_max = _HELD_GAP_MAX if end >= self._written_up_to else 0
        if not end <= place <= end + gap_max or len(self._held) > _HELD_MAX:
            self.write_held()
            self._held_at = end = place
        self._held += bytes(place - end) + bitmap

    def write_held(self) -> None:
        """Write the bitmaps that are held back: those of neighbouring blocks stand side by side."""
        if self._held:
            self._sink.write_at(self._held_at, memoryview(self._held))
            self._written_up_to = max(self._written_up_to, self._held_at + len(self._held))
            self._held = bytearray()

    def zero_blocks(self, first: int, count: int) -> None:
        """Let blocks be zeros, whatever a parent has; they take no space."""
        stop = first + count
        while first < stop:
            # Entries of blocks stand side by side up to the one of their chunk's bitmap.
            index = self._index(first)
            number, place = divmod(index, _PAGE_ENTRIES)
            length = min(stop - first, self._chunks.ratio - first % self._chunks.ratio, _PAGE_ENTRIES - place)
            at = place * chunk.ENTRY_SIZE
            entries = chunk.ZERO.to_bytes(chunk.ENTRY_SIZE, "little") * length
            self._page(number)[at : at + len(entries)] = entries
            first += length

    def restore_partial(self, block: int) -> None:
        """Let a block have the place that it has in a file which is gone on with, and the bitmap there."""
        self.place_block(block)
        self._let_be_partial(block)

    def bitmaps_behind(self, block: int) -> tuple[int, int]:
        """(file offset, length) of the bitmaps from that of ``block`` on, in a bitmap block that is there."""
        number, place = divmod(block, self._chunks.ratio)
        start = place * (self.geometry.sectors_per_block // 8)
        offset = self._bitmaps.get(number)
        return (0, 0) if offset is None else (offset + start, chunk.BITMAP_BLOCK_SIZE - start)

    def flush(self, block: int) -> None:
        """Blocks in front of ``block`` stay as they are: write what of the table is theirs and let go of it.

        For who writes blocks in order: so a table of 512 MiB takes no memory.
        """
        stop = self._index(block) // _PAGE_ENTRIES
        for number in sorted(number for number in self._pages if number < stop):
            self._sink.write_at(BAT_OFFSET + number * _PAGE_SIZE, memoryview(self._pages.pop(number)))
        self._pages_flushed = max(self._pages_flushed, stop)

    def write_table(self) -> None:
        """Write the table as far as it is known, and the bitmaps."""
        self.write_held()
        for number, page in sorted(self._pages.items()):
            self._sink.write_at(BAT_OFFSET + number * _PAGE_SIZE, memoryview(page))

    def stored(self, source: ByteSource, stop: int) -> Iterator[StoredBlocks]:
        """The blocks up to block ``stop`` that are not absent, in windows; not of a fixed disk.

        Args:
            source: the file, opened after ``write_table``; holes in it cost nothing.
        """
        if stop <= 0:
            return
        table_stop = BAT_OFFSET + (self._index(stop - 1) + 1) * chunk.ENTRY_SIZE
        step = _WINDOW * chunk.ENTRY_SIZE
        for first, last in source.data_ranges(BAT_OFFSET, min(table_stop, source.size)):
            start = first - first % chunk.ENTRY_SIZE
            last = min(table_stop, -(-last // chunk.ENTRY_SIZE) * chunk.ENTRY_SIZE)
            for at in range(start, last, step):
                yield self._stored_window(source, at, min(last, at + step))

    def bitmap_place(self, block: int) -> int:
        """File offset of the bitmap of a partially present block."""
        number, place = divmod(block, self._chunks.ratio)
        return self._bitmaps[number] + place * (self.geometry.sectors_per_block // 8)

    def decode_bitmap(self, raw: bytes) -> bytes:
        """A bitmap as it stands in the file, least significant bit first."""
        return raw

    # ------------------------------------------------------------ the BAT

    def _index(self, block: int) -> int:
        if not 0 <= block < self.geometry.block_count:
            raise ValueError(f"block {block} is not one of {self.geometry.block_count}")
        return self._chunks.index_of_block(block)

    def _take(self, length: int) -> int:
        """The next ``length`` bytes of the file, a multiple of 1 MiB."""
        offset = self._next
        self._next += length
        return offset

    def _entry(self, index: int) -> int:
        page = self._pages.get(index // _PAGE_ENTRIES)
        at = index % _PAGE_ENTRIES * chunk.ENTRY_SIZE
        return int.from_bytes(page[at : at + chunk.ENTRY_SIZE], "little") if page else 0

    def _set_entry(self, index: int, value: int) -> None:
        at = index % _PAGE_ENTRIES * chunk.ENTRY_SIZE
        self._page(index // _PAGE_ENTRIES)[at : at + chunk.ENTRY_SIZE] = value.to_bytes(
            chunk.ENTRY_SIZE, "little"
        )

    def _page(self, number: int) -> bytearray:
        if number < self._pages_flushed:
            raise ValueError("the table in front of a flush does not change any more")
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = bytearray(_PAGE_SIZE)
        return page

    def _let_be_partial(self, block: int) -> int:
        """File offset of the bitmap of ``block``, which has a place and is partially present from now on."""
        index = self._index(block)
        entry = self._entry(index)
        if entry & chunk.STATE_MASK < chunk.FULLY_PRESENT:
            raise ValueError(f"block {block} has no place")
        self._set_entry(index, entry & ~chunk.STATE_MASK | chunk.PARTIALLY_PRESENT)
        number = self._chunks.chunk_of_block(block)
        if number not in self._bitmaps:
            self._bitmaps[number] = self._take(chunk.BITMAP_BLOCK_SIZE)
            entry = self._bitmaps[number] | chunk.BITMAP_PRESENT
            self._set_entry(self._chunks.index_of_bitmap(number), entry)
        return self.bitmap_place(block)

    def _write_fixed_table(self) -> None:
        """All blocks are there, one behind the other."""
        import numpy as np

        block_size, count = self.geometry.block_size, self.geometry.block_count
        for first in range(0, count, _WINDOW):
            block = np.arange(first, min(count, first + _WINDOW))
            index = block + block // self._chunks.ratio
            entries = np.zeros(int(index[-1] - index[0]) + 1, "<u8")
            entries[index - index[0]] = self.first_offset + block * block_size | chunk.FULLY_PRESENT
            self._sink.write_at(BAT_OFFSET + int(index[0]) * chunk.ENTRY_SIZE, entries.tobytes())
        self._next = self.first_offset + count * block_size

    def _stored_window(self, source: ByteSource, start: int, stop: int) -> StoredBlocks:
        """What file bytes [start, stop) of the table say."""
        import numpy as np

        from vhdtool.model.blockmap import StoredBlocks, pack

        there = min(stop, source.size) - start
        data = source.read_exact(start, there, field="BAT").ljust(stop - start, b"\0")
        entry = np.frombuffer(data, "<u8").astype(np.int64)
        rows = np.flatnonzero(entry)
        number, place = np.divmod(rows + (start - BAT_OFFSET) // chunk.ENTRY_SIZE, self._chunks.ratio + 1)
        is_block = place < self._chunks.ratio
        entry = entry[rows[is_block]]
        block = (number * self._chunks.ratio + place)[is_block]
        state = np.array(_STATES, np.int64)[entry & chunk.STATE_MASK]
        return StoredBlocks(block, pack(state, entry >> chunk.OFFSET_SHIFT << chunk.OFFSET_SHIFT))

    # ------------------------------------------------------------ structures

    def _header(self, sequence_number: int) -> bytes:
        raw = layout.HEADER.build(
            {
                "signature": layout.HEADER_SIGNATURE,
                "checksum": 0,
                "sequence_number": sequence_number,
                "file_write_guid": self._file_write_id.raw,
                "data_write_guid": self._write_id.raw,
                "log_guid": bytes(16),
                "log_version": 0,
                "version": 1,
                "log_length": LOG_LENGTH,
                "log_offset": LOG_OFFSET,
            }
        )
        return with_checksum(raw.ljust(layout.HEADER_SIZE, b"\0"))

    def _region_table(self) -> bytes:
        regions = (
            (layout.BAT_REGION, BAT_OFFSET, blocks_offset(self._chunks) - BAT_OFFSET),
            (layout.METADATA_REGION, METADATA_OFFSET, METADATA_LENGTH),
        )
        head = {"signature": layout.REGION_TABLE_SIGNATURE, "checksum": 0, "reserved": 0}
        raw = layout.REGION_TABLE_HEADER.build(head | {"entry_count": len(regions)})
        for guid, offset, length in regions:
            entry = {"guid": guid, "file_offset": offset, "length": length, "required": 1}
            raw += layout.REGION_TABLE_ENTRY.build(entry)
        return with_checksum(raw.ljust(layout.REGION_TABLE_SIZE, b"\0"))

    def _write_metadata(self) -> None:
        fixed = self._type is DiskType.FIXED
        flags = layout.HAS_PARENT if self._locator else layout.LEAVE_BLOCK_ALLOCATED * fixed
        parameters = {"block_size": self.geometry.block_size, "flags": flags}
        here, disk = layout.IS_REQUIRED, layout.IS_REQUIRED | layout.IS_VIRTUAL_DISK
        items = [
            (layout.FILE_PARAMETERS_ITEM, here, layout.FILE_PARAMETERS.build(parameters)),
            (layout.VIRTUAL_DISK_SIZE_ITEM, disk, self.geometry.virtual_size.to_bytes(8, "little")),
            (layout.LOGICAL_SECTOR_SIZE_ITEM, disk, self.geometry.sector_size.to_bytes(4, "little")),
            (
                layout.PHYSICAL_SECTOR_SIZE_ITEM,
                disk,
                self.geometry.physical_sector_size.to_bytes(4, "little"),
            ),
            (layout.VIRTUAL_DISK_ID_ITEM, disk, self._disk_id.raw),
        ]
        if self._locator:
            items.append((layout.PARENT_LOCATOR_ITEM, here, self._locator))
        head = {"signature": layout.METADATA_SIGNATURE, "reserved": 0, "reserved2": bytes(20)}
        table = layout.METADATA_TABLE_HEADER.build(head | {"entry_count": len(items)})
        values = b""
        for item_id, item_flags, value in items:
            entry = {"item_id": item_id, "length": len(value), "flags": item_flags, "reserved2": 0}
            table += layout.METADATA_TABLE_ENTRY.build(
                entry | {"offset": layout.METADATA_TABLE_SIZE + len(values)}
            )
            values += value
        self._sink.write_at(METADATA_OFFSET, table.ljust(layout.METADATA_TABLE_SIZE, b"\0") + values)


def blocks_offset(chunks: ChunkLayout) -> int:
    """Where blocks begin in a new VHDX: behind the whole mebibytes of its BAT."""
    return BAT_OFFSET + -(-chunks.entry_count * chunk.ENTRY_SIZE // layout.MIB) * layout.MIB


def with_checksum(raw: bytes) -> bytes:
    """``raw``, a header or region table, with its CRC-32C in its place."""
    at = layout.CHECKSUM_OFFSET
    return raw[:at] + crc32c_without_field(raw, at).to_bytes(4, "little") + raw[at + 4 :]


def _identifier(creator: str) -> bytes:
    text = creator.encode("utf-16-le")
    if len(text) > layout.IDENTIFIER_SIZE - 10:
        raise ValueError("the creator's name is longer than 255 characters")
    fields = {"signature": layout.IDENTIFIER_SIGNATURE, "creator": text.ljust(512, b"\0")}
    raw: bytes = layout.FILE_IDENTIFIER.build(fields)
    return raw


def _locator(parent: ParentRecord) -> bytes:
    values = {
        "parent_linkage": f"{{{parent.identity}}}",
        "relative_path": parent.relative_path,
        "volume_path": parent.volume_path or "",
        "absolute_win32_path": parent.absolute_win32_path,
    }
    pairs = [(key.encode("utf-16-le"), text.encode("utf-16-le")) for key, text in values.items() if text]
    if any(
        len(value) > 0xFFFE or "\0" in text for text, (_, value) in zip(filter(None, values.values()), pairs)
    ):
        raise ValueError("a path is longer than a locator can hold, or has a NUL in it")
    head = {"locator_type": layout.VHDX_LOCATOR_TYPE, "reserved": 0, "key_value_count": len(pairs)}
    table: bytes = layout.PARENT_LOCATOR_HEADER.build(head)
    first = layout.LOCATOR_HEADER_SIZE + len(pairs) * layout.LOCATOR_ENTRY_SIZE
    strings = b""
    for key, value in pairs:
        at = first + len(strings)
        table += layout.PARENT_LOCATOR_ENTRY.build(
            {
                "key_offset": at,
                "value_offset": at + len(key),
                "key_length": len(key),
                "value_length": len(value),
            }
        )
        strings += key + value
    return table + strings
