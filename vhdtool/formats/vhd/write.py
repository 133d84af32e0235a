"""Writing VHDs as Windows lays them out: what it made was measured, and other programs know it.

::

    dynamic       copy 0x0 | header 0x200 | BAT 0x600 | blocks ... | footer
    differencing  copy 0x0 | header 0x200 | W2ku 0x1000 | BAT 0x2000 | W2ru 0x3000 | blocks ... | footer

A block's bitmap ends where a multiple of 4096 bytes begins, so that the data behind it are aligned; the
file ends at such a multiple, with the footer in its last sector.  What nobody writes reads as zeros, so
a :class:`~vhdtool.formats.image.Sink` may leave holes.  The BAT is written last but for the footers: a
file that was not finished has no footer at its end and no copy at its start.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from vhdtool.errors import ExportError
from vhdtool.formats.image import Sink
from vhdtool.formats.vhd import layout
from vhdtool.formats.vhd.chs import geometry_of
from vhdtool.model.identity import DiskType, Identity, base_name
from vhdtool.model.state import BlockState
from vhdtool.source import ByteSource

if TYPE_CHECKING:
    from vhdtool.model.blockmap import StoredBlocks

# QEMU takes the geometry for the disk's size unless it knows the creator for one that does not; Windows
# is such a creator, and files like its own are what this writes.
CREATOR: Final = b"win "
CREATOR_VERSION: Final = 0x000A_0000
_HOST: Final = b"Wi2k"
_SECONDS_TO_2000: Final = 946_684_800

_ALIGNMENT: Final = 4096
_DYNAMIC_TABLE_OFFSET: Final = layout.FOOTER_SIZE + layout.DYNAMIC_HEADER_SIZE
_LOCATOR_OFFSET: Final = 0x1000
_ABSOLUTE_SPACE: Final = 0x1000
_RELATIVE_SPACE: Final = 0x1_0000
_NAME_SIZE: Final = 512
_TABLE_WINDOW: Final = 1 << 20
_NUMBERS: Final = {
    DiskType.FIXED: layout.DISK_TYPE_FIXED,
    DiskType.DYNAMIC: layout.DISK_TYPE_DYNAMIC,
    DiskType.DIFFERENCING: layout.DISK_TYPE_DIFFERENCING,
}


@dataclass(frozen=True, slots=True)
class ParentRecord:
    """What a differencing VHD is to record of its parent.

    Attributes:
        unique_id: the parent's Unique Id.
        absolute_path: with Windows separators; also the header's Parent Unicode Name.  May be empty.
        relative_path: from the child's folder, with Windows separators, usually beginning with ``.\\``.
        timestamp: modification time of the parent's file; None leaves it out, as Windows does.
    """

    unique_id: Identity
    absolute_path: str
    relative_path: str
    timestamp: datetime | None = None


def seconds_from_2000(when: datetime) -> int:
    """The time stamp of a VHD for ``when`` (with a time zone); times that have none become the nearest."""
    return min(max(0, int(when.timestamp()) - _SECONDS_TO_2000), 0xFFFF_FFFF)


def encode_footer(
    disk_type: DiskType,
    virtual_size: int,
    unique_id: Identity,
    timestamp: datetime,
    *,
    creator: bytes = CREATOR,
    creator_version: int = CREATOR_VERSION,
) -> bytes:
    """The 512 bytes of a footer for a disk of ``virtual_size`` bytes.

    Raises:
        ValueError: a VHD cannot have that size.
    """
    if not 0 < virtual_size <= layout.VIRTUAL_SIZE_MAX or virtual_size % layout.SECTOR_SIZE:
        raise ValueError(
            f"virtual size {virtual_size} is no multiple of 512 bytes up to {layout.VIRTUAL_SIZE_MAX}"
        )
    geometry = geometry_of(virtual_size)
    is_fixed = disk_type is DiskType.FIXED
    raw: bytes = layout.FOOTER.build(
        {
            "cookie": layout.FOOTER_COOKIE,
            "features": layout.FEATURE_RESERVED,
            "file_format_version": layout.VERSION_1_0,
            "data_offset": layout.ALL_ONES_64 if is_fixed else layout.FOOTER_SIZE,
            "time_stamp": seconds_from_2000(timestamp),
            "creator_application": creator,
            "creator_version": creator_version,
            "creator_host_os": _HOST,
            "original_size": virtual_size,
            "current_size": virtual_size,
            "cylinders": geometry.cylinders,
            "heads": geometry.heads,
            "sectors_per_track": geometry.sectors_per_track,
            "disk_type": _NUMBERS[disk_type],
            "checksum": 0,
            "unique_id": unique_id.raw,
            "saved_state": 0,
            "reserved": bytes(427),
        }
    )
    return _with_checksum(raw, layout.FOOTER_OFFSETS["checksum"])


def blocks_offset(block_count: int, parent: ParentRecord | None = None) -> int:
    """Where blocks begin in a new VHD of so many: behind the BAT and the locators of ``parent``."""
    if parent is None:
        return _table_stop(block_count, parent)
    return _table_stop(block_count, parent) + _locator_space(parent.relative_path, _RELATIVE_SPACE)


def block_stride(block_size: int) -> int:
    """Bytes that a block takes up in a new VHD: its bitmap, aligned, and its data behind it."""
    return layout.round_up(layout.bitmap_size(block_size), _alignment(block_size)) + block_size


def write_fixed_footer(
    sink: Sink,
    *,
    virtual_size: int,
    unique_id: Identity,
    timestamp: datetime,
    creator: bytes = CREATOR,
    creator_version: int = CREATOR_VERSION,
) -> int:
    """Make a fixed VHD of a sink that holds, or will hold, the disk's bytes from offset 0 on.

    Returns:
        The file's final size in bytes.
    """
    footer = encode_footer(
        DiskType.FIXED, virtual_size, unique_id, timestamp, creator=creator, creator_version=creator_version
    )
    sink.write_at(virtual_size, footer)
    return virtual_size + len(footer)


class VhdWriter:
    """Writes one dynamic or differencing VHD, blocks in any order, each once.

    Memory: 4 bytes for each block of the disk.

    Args:
        sink: where the file goes; what is never written there reads as zeros.
        virtual_size: bytes, a multiple of 512, at most 2040 GiB.
        block_size: bytes, a power of two, at least 512; other programs want 2 MiB or 512 KiB.
        parent: what to record; makes the image differencing.
        creator, creator_version: Creator Application (4 bytes) and Version.

    Raises:
        ValueError: a VHD cannot be like that.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        virtual_size: int,
        unique_id: Identity,
        timestamp: datetime,
        disk_type: DiskType = DiskType.DYNAMIC,
        block_size: int = layout.BLOCK_SIZE_DEFAULT,
        parent: ParentRecord | None = None,
        creator: bytes = CREATOR,
        creator_version: int = CREATOR_VERSION,
    ) -> None:
        if disk_type is DiskType.FIXED or (disk_type is DiskType.DIFFERENCING) != (parent is not None):
            raise ValueError(
                "a dynamic disk has no parent, a differencing disk has one, a fixed disk no blocks"
            )
        if not layout.SECTOR_SIZE <= block_size < 1 << 32 or block_size & (block_size - 1):
            raise ValueError(f"block size {block_size} is no power of two from 512 to 2 GiB")
        self._sink = sink
        self._footer = encode_footer(
            disk_type, virtual_size, unique_id, timestamp, creator=creator, creator_version=creator_version
        )
        self._virtual_size = virtual_size
        self._block_size = block_size
        self._bitmap_size = layout.bitmap_size(block_size)
        self._parent = parent
        self._alignment = _alignment(block_size)
        self._table = array("I", b"\xff" * 4) * -(-virtual_size // block_size)
        assert self._table.itemsize == layout.BAT_ENTRY_SIZE
        self._locators: list[dict[str, object]] = []
        self._locator_data: list[tuple[int, bytes]] = []
        self._stop = 0
        self._place_metadata()

    @property
    def block_count(self) -> int:
        """Blocks of the disk."""
        return len(self._table)

    def write_block(self, block: int, data: bytes | memoryview, bitmap: bytes | None = None) -> int:
        """Store a block.

        Args:
            data: at most a block; what is missing reads as zeros.
            bitmap: which sectors are here, least significant bit first, one bit a sector; None: all.
                Sectors left out must be zeros in ``data``.

        Returns:
            The file offset of the data.
        """
        if len(data) > self._block_size:
            raise ValueError(f"{len(data)} bytes for a block of {self._block_size}")
        offset = self.place_block(block, bitmap)
        if len(data):
            self._sink.write_at(offset, data)
        return offset

    def place_block(self, block: int, bitmap: bytes | None = None) -> int:
        """Make room for a block and write its bitmap; the caller writes the data at the offset returned."""
        offset = self.reserve_block(block)
        self.write_bitmap(block, bitmap)
        return offset

    def reserve_block(self, block: int) -> int:
        """Make room for a block; its bitmap and its data, behind the offset returned, are the caller's."""
        if self._table[block] != layout.BAT_UNUSED:
            raise ValueError(f"block {block} is written already")
        offset = layout.round_up(self._stop + self._bitmap_size, self._alignment)
        start = offset - self._bitmap_size
        if start // layout.SECTOR_SIZE >= layout.BAT_UNUSED:
            raise ExportError("a VHD cannot refer to blocks beyond 2 TiB of its file")
        self._table[block] = start // layout.SECTOR_SIZE
        self._stop = offset + self._block_size
        return offset

    def write_bitmap(self, block: int, bitmap: bytes | None = None) -> None:
        """Write the bitmap of a block that has a place: which sectors are here, as in ``write_block``."""
        self._sink.write_at(self.bitmap_place(block), self._encode_bitmap(block, bitmap))

    # ------------------------------------------------------------ what an image that is being made has

    @property
    def first_offset(self) -> int:
        """Where blocks begin; what is in front of it, ``finish`` writes."""
        return blocks_offset(len(self._table), self._parent)

    @property
    def stop(self) -> int:
        """Where the last block ends so far."""
        return self._stop

    def zero_blocks(self, first: int, count: int) -> None:
        """Let blocks be zeros, whatever a parent has: all of their sectors are here, as holes."""
        for block in range(first, first + count):
            self.place_block(block)

    def restore_partial(self, block: int) -> None:
        """Let a block have the place that it has in a file which is gone on with, and the bitmap there."""
        self.reserve_block(block)

    def bitmaps_behind(self, block: int) -> tuple[int, int]:
        """(file offset, length): none, a bitmap comes with its block."""
        return 0, 0

    def flush(self, block: int) -> None:
        """The table is small enough to be kept until the end."""

    def write_table(self) -> None:
        """The same: ``stored`` does not read it."""

    def write_held(self) -> None:
        """No bitmap is held back: each stands beside its block."""

    def stored(self, source: ByteSource, stop: int) -> Iterator[StoredBlocks]:
        """The blocks up to block ``stop`` that have a place, in windows: DATA, and in children PARTIAL.

        Args:
            source: the file; not needed, the table is kept.
        """
        import numpy as np

        from vhdtool.model.blockmap import StoredBlocks, pack

        state = BlockState.DATA if self._parent is None else BlockState.PARTIAL
        step = _TABLE_WINDOW // layout.BAT_ENTRY_SIZE
        for first in range(0, stop, step):
            window = np.array(self._table[first : min(stop, first + step)], np.int64)
            rows = np.flatnonzero(window != layout.BAT_UNUSED)
            offset = window[rows] * layout.SECTOR_SIZE + self._bitmap_size
            yield StoredBlocks(rows + first, pack(np.full(len(rows), state, np.int64), offset))

    def bitmap_place(self, block: int) -> int:
        """File offset of the bitmap of a block that has a place."""
        return self._table[block] * layout.SECTOR_SIZE

    def decode_bitmap(self, raw: bytes) -> bytes:
        """A bitmap as it stands in the file, least significant bit first."""
        return raw.translate(layout.MSB_TO_LSB)

    def finish(self) -> int:
        """Write header, locators, BAT and footers.

        Returns:
            The file's final size in bytes.
        """
        header_offset = layout.FOOTER_SIZE
        for offset, data in self._locator_data:
            self._sink.write_at(offset, data)
        self._sink.write_at(header_offset, self._encode_header())
        self._write_table()
        self._sink.write_at(0, self._footer)
        end = layout.round_up(self._stop + layout.FOOTER_SIZE, self._alignment)
        self._sink.write_at(end - layout.FOOTER_SIZE, self._footer)
        return end

    def _place_metadata(self) -> None:
        """Decide where BAT and locators go; ``_stop`` is where blocks may begin."""
        parent = self._parent
        self._table_offset = _table_offset(parent)
        self._filler_stop = _table_stop(len(self._table), parent)
        if parent is not None:
            self._add_locator(b"W2ku", parent.absolute_path, _LOCATOR_OFFSET, _ABSOLUTE_SPACE)
            self._add_locator(b"W2ru", parent.relative_path, self._filler_stop, _RELATIVE_SPACE)
        self._stop = blocks_offset(len(self._table), parent)

    def _add_locator(self, code: bytes, path: str, offset: int, space_min: int) -> None:
        """Keep a locator for ``finish``, if there is a path to put into it."""
        if not path:
            return
        data = _path_bytes(path)
        if len(data) > 64 << 10:
            raise ValueError(f"a path of {len(data)} bytes is too long for a parent locator")
        self._locators.append(
            {
                "platform_code": code,
                "platform_data_space": _locator_space(path, space_min),
                "platform_data_length": len(data),
                "reserved": 0,
                "platform_data_offset": offset,
            }
        )
        self._locator_data.append((offset, data))

    def _encode_header(self) -> bytes:
        parent = self._parent
        unused = dict.fromkeys(layout.PARENT_LOCATOR_OFFSETS, 0) | {"platform_code": bytes(4)}
        locators = [*self._locators, *[unused] * (layout.PARENT_LOCATOR_ENTRIES - len(self._locators))]
        stamp = parent.timestamp if parent is not None else None
        raw: bytes = layout.DYNAMIC_HEADER.build(
            {
                "cookie": layout.HEADER_COOKIE,
                "data_offset": layout.ALL_ONES_64,
                "table_offset": self._table_offset,
                "header_version": layout.VERSION_1_0,
                "max_table_entries": len(self._table),
                "block_size": self._block_size,
                "checksum": 0,
                "parent_unique_id": parent.unique_id.raw if parent is not None else bytes(16),
                "parent_time_stamp": seconds_from_2000(stamp) if stamp is not None else 0,
                "reserved": 0,
                "parent_unicode_name": _parent_name(parent),
                "parent_locator_entries": layout.PARENT_LOCATORS.build(locators),
                "reserved_2": bytes(256),
            }
        )
        return _with_checksum(raw, layout.DYNAMIC_HEADER_OFFSETS["checksum"])

    def _encode_bitmap(self, block: int, bitmap: bytes | None) -> bytes:
        length = min(self._block_size, self._virtual_size - block * self._block_size)
        mask = (1 << length // layout.SECTOR_SIZE) - 1
        size = -(-self._block_size // layout.SECTOR_SIZE // 8)
        if bitmap is not None and len(bitmap) != size:
            raise ValueError(f"a bitmap of {len(bitmap)} bytes, not {size}")
        bits = mask if bitmap is None else int.from_bytes(bitmap, "little") & mask
        return bits.to_bytes(size, "little").translate(layout.MSB_TO_LSB).ljust(self._bitmap_size, b"\0")

    def _write_table(self) -> None:
        step = _TABLE_WINDOW // layout.BAT_ENTRY_SIZE
        for first in range(0, len(self._table), step):
            window = self._table[first : first + step]
            if sys.byteorder == "little":
                window.byteswap()
            self._sink.write_at(self._table_offset + first * layout.BAT_ENTRY_SIZE, window.tobytes())
        stop = self._table_offset + len(self._table) * layout.BAT_ENTRY_SIZE
        if stop < self._filler_stop:
            self._sink.write_at(stop, b"\xff" * (self._filler_stop - stop))


def _alignment(block_size: int) -> int:
    """What the data of blocks and the file's size are multiples of."""
    # Aligning blocks that are smaller than the alignment would make the file many times larger.
    return _ALIGNMENT if block_size >= _ALIGNMENT else layout.SECTOR_SIZE


def _table_offset(parent: ParentRecord | None) -> int:
    if parent is None:
        return _DYNAMIC_TABLE_OFFSET
    return _LOCATOR_OFFSET + _locator_space(parent.absolute_path, _ABSOLUTE_SPACE)


def _table_stop(block_count: int, parent: ParentRecord | None) -> int:
    """Where the room of the BAT ends."""
    return layout.round_up(_table_offset(parent) + block_count * layout.BAT_ENTRY_SIZE, _ALIGNMENT)


def _locator_space(path: str, space_min: int) -> int:
    """Bytes set aside for a locator with ``path``; none for no path."""
    return max(space_min, layout.round_up(len(_path_bytes(path)), _ALIGNMENT)) if path else 0


def _path_bytes(path: str) -> bytes:
    return path.encode("utf-16-le", "surrogatepass")


def _parent_name(parent: ParentRecord | None) -> bytes:
    """Parent Unicode Name: the full path as Windows writes it, only the file name where that does not fit."""
    if parent is None:
        return bytes(_NAME_SIZE)
    for name in (parent.absolute_path, base_name(parent.absolute_path or parent.relative_path)):
        data = name.encode("utf-16-be", "surrogatepass")
        if data and len(data) < _NAME_SIZE:
            return data.ljust(_NAME_SIZE, b"\0")
    return bytes(_NAME_SIZE)


def _with_checksum(raw: bytes, offset: int) -> bytes:
    checksum = layout.byte_sum_checksum(raw, offset)
    return raw[:offset] + checksum.to_bytes(4, "big") + raw[offset + 4 :]
