"""VHDs in memory, made with ``struct`` alone: nothing of the code under test goes into them.

Every builder has valid defaults and checksums that are right unless a test spells them out.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final

from vhdtool.formats.image import OpenOptions
from vhdtool.formats.vhd.image import VhdImage, open_vhd
from vhdtool.source import MemorySource

FOOTER_FORMAT: Final = ">8sIIQI4sI4sQQHBBII16sB427s"
FOOTER_FIELDS: Final = (
    "cookie",
    "features",
    "file_format_version",
    "data_offset",
    "time_stamp",
    "creator_application",
    "creator_version",
    "creator_host_os",
    "original_size",
    "current_size",
    "cylinders",
    "heads",
    "sectors_per_track",
    "disk_type",
    "checksum",
    "unique_id",
    "saved_state",
    "reserved",
)
HEADER_FORMAT: Final = ">8sQQIIII16sII512s192s256s"
HEADER_FIELDS: Final = (
    "cookie",
    "data_offset",
    "table_offset",
    "header_version",
    "max_table_entries",
    "block_size",
    "checksum",
    "parent_unique_id",
    "parent_time_stamp",
    "reserved",
    "parent_unicode_name",
    "parent_locator_entries",
    "reserved_2",
)
assert struct.calcsize(FOOTER_FORMAT) == 512
assert struct.calcsize(HEADER_FORMAT) == 1024

FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
Fields = Mapping[str, "int | bytes"]
UNUSED: Final = 0xFFFF_FFFF
ALL_ONES: Final = 0xFFFF_FFFF_FFFF_FFFF
SIZE: Final = 104448  # 204 sectors: 3 cylinders, 4 heads, 17 sectors exactly
BLOCK_SIZE: Final = 32768
AN_ID: Final = bytes.fromhex("6d2d5fc8eebade4c8ceede3a12db7c98")
A_PARENT_ID: Final = bytes.fromhex("5fa21a55f394aa4d99581951a67d5540")
HEADER_AT: Final = 512
TABLE_AT: Final = 1536


class BytesSink:
    """A :class:`~vhdtool.formats.image.Sink` in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        if offset > len(self.data):
            self.data += bytes(offset - len(self.data))
        self.data[offset : offset + len(data)] = data


def checksum(data: bytes | bytearray) -> int:
    """Of a structure whose own checksum bytes are zero."""
    return ~sum(data) & 0xFFFF_FFFF


def a_footer(**changes: int | bytes) -> bytes:
    """512 bytes: a dynamic disk of ``SIZE`` bytes made by Windows 10."""
    fields: dict[str, int | bytes] = {
        "cookie": b"conectix",
        "features": 2,
        "file_format_version": 0x0001_0000,
        "data_offset": ALL_ONES if changes.get("disk_type") == FIXED else HEADER_AT,
        "time_stamp": 0x2719_8E1B,
        "creator_application": b"win ",
        "creator_version": 0x000A_0000,
        "creator_host_os": b"Wi2k",
        "original_size": changes.get("current_size", SIZE),
        "current_size": SIZE,
        "cylinders": 3,
        "heads": 4,
        "sectors_per_track": 17,
        "disk_type": DYNAMIC,
        "checksum": 0,
        "unique_id": AN_ID,
        "saved_state": 0,
        "reserved": b"",
    }
    return _packed(FOOTER_FORMAT, FOOTER_FIELDS, fields, changes, 64)


def a_dynamic_header(**changes: int | bytes) -> bytes:
    """1024 bytes: a header for ``a_footer``, without a parent."""
    fields: dict[str, int | bytes] = {
        "cookie": b"cxsparse",
        "data_offset": ALL_ONES,
        "table_offset": TABLE_AT,
        "header_version": 0x0001_0000,
        "max_table_entries": -(-SIZE // BLOCK_SIZE),
        "block_size": BLOCK_SIZE,
        "checksum": 0,
        "parent_unique_id": b"",
        "parent_time_stamp": 0,
        "reserved": 0,
        "parent_unicode_name": b"",
        "parent_locator_entries": b"",
        "reserved_2": b"",
    }
    return _packed(HEADER_FORMAT, HEADER_FIELDS, fields, changes, 36)


def a_locator(code: bytes, length: int, offset: int, *, space: int = 512, reserved: int = 0) -> bytes:
    """24 bytes of a parent locator entry."""
    return struct.pack(">4sIIIQ", code, space, length, reserved, offset)


def _packed(
    layout: str,
    names: Sequence[str],
    fields: dict[str, int | bytes],
    changes: Mapping[str, int | bytes],
    checksum_at: int,
) -> bytes:
    assert not changes.keys() - fields.keys(), changes
    fields.update(changes)
    raw = bytearray(struct.pack(layout, *(fields[name] for name in names)))
    if "checksum" not in changes:
        raw[checksum_at : checksum_at + 4] = checksum(raw).to_bytes(4, "big")
    return bytes(raw)


def repaired(structure: bytes) -> bytes:
    """A footer or dynamic header with its checksum made right."""
    at = 64 if len(structure) == 512 else 36
    raw = bytearray(structure)
    raw[at : at + 4] = bytes(4)
    raw[at : at + 4] = checksum(raw).to_bytes(4, "big")
    return bytes(raw)


def patched(image: bytes, at: int, data: bytes) -> bytes:
    """``image`` with ``data`` at ``at`` (from the end when negative), its size as it was."""
    at = at if at >= 0 else len(image) + at
    assert at + len(data) <= len(image)
    return image[:at] + data + image[at + len(data) :]


def bitmap_bytes(block_size: int, bits: Sequence[int] | None, sectors: int) -> bytes:
    """A bitmap as it stands on disk: most significant bit first, in whole sectors; None: ``sectors`` ones."""
    raw = bytearray(-(-block_size // 512 // 8 // 512) * 512 or 512)
    for sector in range(sectors) if bits is None else bits:
        raw[sector // 8] |= 0x80 >> sector % 8
    return bytes(raw)


Block = tuple[bytes, "Sequence[int] | None"]  # data, the sectors whose bit is set (None: all of the disk's)


def a_vhd(
    *,
    size: int = SIZE,
    block_size: int = BLOCK_SIZE,
    blocks: Mapping[int, Block] | None = None,
    disk_type: int = DYNAMIC,
    footer: Fields | None = None,
    copy: bytes | None = None,
    end: bytes | None = None,
    header: Fields | None = None,
    bat: Mapping[int, int] | None = None,
    bat_entries: int | None = None,
    locators: Sequence[tuple[bytes, bytes]] = (),
    name: str = "",
    first_block_at: int | None = None,
    block_gap: int = 0,
    filler: bytes = b"\xff",
) -> bytes:
    """A dynamic or differencing VHD: copy, header, BAT, locator data, blocks, footer.

    Args:
        blocks: by number, stored in the order given.
        footer, header: fields that are other than in a sound image.
        copy, end: whole structures in place of the footer's copy and the footer; ``b""``: cut off.
        bat: entries that are other than where the blocks were put.
        bat_entries: how many the table has; the disk's blocks when None.
        locators: (code, data); data go behind the BAT, a sector each at least.
        first_block_at, block_gap: file offset of the first block, bytes between blocks.
        filler: the byte behind the last entry, up to the sector's end.
    """
    block_count = -(-size // block_size)
    entries = block_count if bat_entries is None else bat_entries
    table = [UNUSED] * entries
    table_bytes = -(-entries * 4 // 512) * 512
    position = TABLE_AT + table_bytes
    entry_bytes = b""
    parts: list[tuple[int, bytes]] = []
    for code, data in locators:
        entry_bytes += a_locator(code, len(data), position, space=-(-len(data) // 512) * 512)
        parts.append((position, data))
        position += max(512, -(-len(data) // 512) * 512)
    position = first_block_at if first_block_at is not None else position
    for number, (data, bits) in (blocks or {}).items():
        assert len(data) <= block_size
        sectors = min(block_size, size - number * block_size) // 512
        bitmap = bitmap_bytes(block_size, bits, sectors)
        if number < entries:
            table[number] = position // 512
        parts.append((position, bitmap + data.ljust(block_size, b"\0")))
        position += len(bitmap) + block_size + block_gap
    for number, entry in (bat or {}).items():
        table[number] = entry
    header_fields: dict[str, int | bytes] = {
        "max_table_entries": entries,
        "block_size": block_size,
        "parent_unique_id": A_PARENT_ID if disk_type == DIFFERENCING else b"",
        "parent_unicode_name": name.encode("utf-16-be"),
        "parent_locator_entries": entry_bytes,
    }
    footer_fields: dict[str, int | bytes] = {"current_size": size, "disk_type": disk_type, **(footer or {})}
    cylinders, heads, sectors_per_track = chs(int(footer_fields["current_size"]))
    geometry = {"cylinders": cylinders, "heads": heads, "sectors_per_track": sectors_per_track}
    whole = a_footer(**{**geometry, **footer_fields})
    raw = bytearray(position)
    parts = [
        (0, whole if copy is None else copy.ljust(512, b"\0")),
        (HEADER_AT, a_dynamic_header(**{**header_fields, **(header or {})})),
        (TABLE_AT, struct.pack(f">{entries}I", *table) + filler * (table_bytes - entries * 4)),
        *parts,
    ]
    for at, data in parts:
        raw[at : at + len(data)] = data
    return bytes(raw) + (whole if end is None else end)


def a_fixed_vhd(data: bytes = bytes(SIZE), **changes: int | bytes) -> bytes:
    """A fixed VHD around ``data``."""
    fields: dict[str, int | bytes] = {"current_size": len(data), "disk_type": FIXED}
    cylinders, heads, sectors_per_track = chs(len(data))
    geometry = {"cylinders": cylinders, "heads": heads, "sectors_per_track": sectors_per_track}
    return data + a_footer(**{**fields, **geometry, **changes})


def chs(size: int) -> tuple[int, int, int]:
    """The geometry for a small disk, up to some 70 MB; larger ones get the largest there is."""
    sectors = size // 512
    if sectors // 17 < 4 * 1024:
        return sectors // 17 // 4, 4, 17
    return 65535, 16, 255


def a_windows_differencing_head() -> bytes:
    """The first 0x14000 bytes of a file that Windows 10's diskpart made, after the digest (vhd.md, 11.2)."""
    footer = bytes.fromhex(
        "636f6e656374697800000002000100000000000000000200"
        "27198e1b77696e20000a00005769326b00000000004000000000000000400000"
        "0078041100000004fffff02cf84f1636cd9e9041a69edcc2380e416a00"
    ).ljust(512, b"\0")
    name = "C:\\Projects\\dfvfs\\test_data\\fat-parent.vhd"
    relative = ".\\fat-parent.vhd"
    header = bytearray(1024)
    header[:64] = bytes.fromhex(
        "6378737061727365ffffffffffffffff000000000000200000010000000000020020"
        "0000ffffd9515fa21a55f394aa4d99581951a67d55400000000000000000"
    )
    header[64 : 64 + len(name) * 2] = name.encode("utf-16-be")
    header[0x240:0x270] = bytes.fromhex(
        "57326b750000100000000054000000000000000000001000573272750001000000000020000000000000000000003000"
    )
    head = bytearray(0x14000)
    head[0:512] = footer
    head[0x200:0x600] = header
    head[0x1000 : 0x1000 + len(name) * 2] = name.encode("utf-16-le")
    head[0x2000:0x3000] = bytes.fromhex("0000009f").ljust(0x1000, b"\xff")
    head[0x3000 : 0x3000 + len(relative) * 2] = relative.encode("utf-16-le")
    head[0x13E10:0x13E19] = bytes.fromhex("020100ff000000cba8")
    return bytes(head)


def a_windows_differencing_vhd() -> bytes:
    """That file in full, with the data of its non-zero sectors left zero but for their first byte."""
    body = bytearray(0x215000 - 0x14000)
    for sector in (134, 143, 152, 184, 188, 190, 192, 194, 196):
        body[sector * 512] = sector
    head = a_windows_differencing_head()
    body[-512:] = head[:512]
    return head + bytes(body)


def a_parent_of_bitmap_semantics() -> bytes:
    """The parent of the synthetic chain (vhd.md, 11.3): 4 MiB, block 0 bits 0 to 7, block 1 in full."""
    size, block_size = 4 << 20, 2 << 20
    return a_vhd(
        size=size,
        block_size=block_size,
        blocks={0: (b"\x50" * 8 * 512, range(8)), 1: (b"\x51" * block_size, None)},
        footer={"unique_id": A_PARENT_ID},
    )


def a_child_of_bitmap_semantics() -> bytes:
    """Its child: bits 1 and 9 of block 0; read through it, sectors 0 to 11 begin with
    ``50 C0 50 50 50 50 50 50 00 C0 00 00`` and sector 4096 with ``51``.
    """
    sector = b"\xc0" * 512
    data = bytes(512) + sector + bytes(7 * 512) + sector
    relative = ".\\parent.vhd".encode("utf-16-le")
    return a_vhd(
        size=4 << 20,
        block_size=2 << 20,
        blocks={0: (data, (1, 9))},
        disk_type=DIFFERENCING,
        name="parent.vhd",
        locators=((b"W2ru", relative),),
    )


def opened(image: bytes, *, ignore_checksums: bool = False, name: str = "disk.vhd") -> VhdImage:
    """The image in ``image``, opened as any other."""
    return open_vhd(MemorySource(name, image), OpenOptions(ignore_checksums=ignore_checksums))


def codes(image: VhdImage) -> dict[str, str]:
    """The codes found so far, with their severities."""
    return {finding.code: str(finding.severity) for finding in image.findings}


def content(image: VhdImage) -> bytes:
    """What the guest sees of this one file, sector by sector: slow, obvious, and right."""
    from vhdtool.model.state import BlockState

    disk = bytearray()
    for block in range(image.geometry.block_count):
        length = image.geometry.block_length(block)
        state, offset = image.entry(block)
        if state is BlockState.ABSENT:
            disk += bytes(length)
            continue
        assert state in (BlockState.PARTIAL, BlockState.DATA)
        data = image.source.read_exact(offset, length, field="block")
        bitmap = image.bitmap(block) if state is BlockState.PARTIAL else b"\xff" * (length // 4096 + 1)
        for sector in range(length // 512):
            is_here = bitmap[sector // 8] >> sector % 8 & 1
            disk += data[sector * 512 : sector * 512 + 512] if is_here else bytes(512)
    return bytes(disk)
