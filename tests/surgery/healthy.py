"""Sound images, written from the digests alone: what surgery begins with.

Stored blocks are mostly holes: their first and last 4096 bytes are filled (``filling``), the rest is zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Final

from tests.surgery.patient import Patient, Record
from tests.surgery.vhd import FOOTER, HEADER, SECTOR, UNUSED, VhdSurgeon
from tests.surgery.vhdx import (
    BAT_REGION,
    HEADER_AT,
    ITEMS,
    METADATA_REGION,
    MIB,
    VIRTUAL_DISK_ITEMS,
    VhdxSurgeon,
    encode_locator,
    guid,
)

PARENT_GUID: Final = "83ed0ec3-24c8-49a6-a959-5e4bf1288bfb"
CHILD_GUID: Final = "0c3bb3a7-3f10-4c6c-9f2d-51a4b5a0d0c1"
DISK_GUID: Final = "11d6a0e4-70f6-4bb5-8f5a-7c4f7f2a2f10"
_TIME: Final = 0x27198E1B  # 2020-10-14
ALL: Final = "all"

Bits = Iterable[int] | str


def filling(tag: int, block: int, sector: int) -> bytes:
    """512 bytes that say whose they are."""
    return (b"%02x/%06x/%06x " % (tag, block, sector)).ljust(32, b".") * 16


def _fill_block(patient: Patient, at: int, tag: int, block: int, length: int) -> None:
    sectors = length // SECTOR
    for sector in sorted({*range(min(8, sectors)), *range(max(0, sectors - 8), sectors)}):
        patient.write(at + sector * SECTOR, filling(tag, block, sector))


def _geometry(size: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track by the specification's algorithm."""
    total = min(size // SECTOR, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        sectors, heads, tracks = 255, 16, total // 255
    else:
        sectors, tracks = 17, total // 17
        heads = max(4, (tracks + 1023) // 1024)
        if tracks >= heads * 1024 or heads > 16:
            sectors, heads, tracks = 31, 16, total // 31
        if tracks >= heads * 1024:
            sectors, heads, tracks = 63, 16, total // 63
    return tracks // heads, heads, sectors


def a_footer(size: int, kind: int, unique_id: bytes) -> bytes:
    """The bytes of a sound footer."""
    patient = Patient(512)
    footer = Record(patient, 0, FOOTER, "big")
    cylinders, heads, sectors = _geometry(size)
    values: dict[str, int | bytes] = {
        "Cookie": b"conectix",
        "Features": 2,
        "File Format Version": 0x10000,
        "Data Offset": 0xFFFFFFFFFFFFFFFF if kind == 2 else 512,
        "Time Stamp": _TIME,
        "Creator Application": b"win ",
        "Creator Version": 0xA0000,
        "Creator Host OS": b"Wi2k",
        "Original Size": size,
        "Current Size": size,
        "Cylinders": cylinders,
        "Heads": heads,
        "Sectors per track": sectors,
        "Disk Type": kind,
        "Unique Id": unique_id,
    }
    for name, value in values.items():
        footer[name] = value
    VhdSurgeon(patient).repair(footer)
    return patient.read(0, 512)


def a_vhd(
    *,
    kind: int = 3,
    size: int = 8 << 20,
    block_size: int = 2 << 20,
    blocks: Mapping[int, Bits] | None = None,
    tag: int = 0x50,
    unique_id: str = PARENT_GUID,
    parent_id: str | None = None,
    parent_name: str = "",
    locators: Mapping[bytes, bytes] | None = None,
    entries: int | None = None,
) -> Patient:
    """A sound VHD of ``kind`` 2, 3 or 4 (fixed, dynamic, differencing).

    Args:
        blocks: stored blocks and the sectors whose bit is set, or ``ALL``.
        locators: data of Parent Locators by their code.
        entries: Max Table Entries; what the disk needs when it is None.
    """
    patient = Patient()
    footer = a_footer(size, kind, guid(unique_id))
    if kind == 2:
        patient.resize(size)
        _fill_block(patient, 0, tag, 0, size)
        patient.write(size, footer)
        return patient
    blocks = {0: ALL, 2: ALL} if blocks is None else blocks
    count = -(-size // block_size) if entries is None else entries
    patient.write(0, footer)
    header = Record(patient, 512, HEADER, "big")
    table_at = 1536
    values: dict[str, int | bytes] = {
        "Cookie": b"cxsparse",
        "Data Offset": 0xFFFFFFFFFFFFFFFF,
        "Table Offset": table_at,
        "Header Version": 0x10000,
        "Max Table Entries": count,
        "Block Size": block_size,
        "Parent Unique ID": guid(parent_id) if parent_id else bytes(16),
        "Parent Unicode Name": parent_name.encode("utf-16-be", "surrogatepass"),
    }
    for name, value in values.items():
        header[name] = value
    table_stop = table_at + -(-4 * count // SECTOR) * SECTOR
    patient.write(table_at, b"\xff" * (table_stop - table_at))
    # The surgeon finds the header through the footer at the end, so there must be one at all times.
    patient.write(table_stop, footer)
    surgeon = VhdSurgeon(patient)
    at = -(-table_stop // 4096) * 4096
    for number, (code, data) in enumerate((locators or {}).items(), 1):
        patient.resize(at)
        patient.write(at, footer)
        surgeon.write_locator(number, code, data, at=at)
        at += max(4096, -(-len(data) // 4096) * 4096)
        patient.resize(at)
        patient.write(at, footer)
    bitmap_size = surgeon.bitmap_size
    for block, bits in blocks.items():
        # Data at multiples of 4096, the bitmap right in front, as Windows places them.
        at = -(-(at + bitmap_size) // 4096) * 4096
        start, stop = at - bitmap_size, at + block_size
        patient.resize(start)
        patient.write(stop, footer)
        surgeon.set_bat(block, start // SECTOR)
        sectors = block_size // SECTOR
        there = min(sectors, (size - block * block_size) // SECTOR)
        for sector in range(there) if isinstance(bits, str) else bits:
            surgeon.set_bit(block, sector, 1)
        _fill_block(patient, at, tag, block, min(block_size, size - block * block_size))
        if not isinstance(bits, str):
            wanted = set(bits)
            for sector in {*range(min(8, there)), *range(max(0, there - 8), there)} - wanted:
                patient.write(at + sector * SECTOR, bytes(SECTOR))
            for sector in wanted:
                patient.write(at + sector * SECTOR, filling(tag, block, sector))
        at = stop
    return surgeon.close_up()


def a_child_vhd(
    *,
    parent_name: str = "parent.vhd",
    relative: str | None = None,
    size: int = 8 << 20,
    block_size: int = 2 << 20,
    blocks: Mapping[int, Bits] | None = None,
    unique_id: str = CHILD_GUID,
    parent_id: str = PARENT_GUID,
) -> Patient:
    """A sound differencing VHD whose locators name ``parent_name`` beside it."""
    relative = f".\\{parent_name}" if relative is None else relative
    return a_vhd(
        kind=4,
        size=size,
        block_size=block_size,
        blocks={0: (1, 9)} if blocks is None else blocks,
        tag=0xC0,
        unique_id=unique_id,
        parent_id=parent_id,
        parent_name=parent_name,
        locators={
            b"W2ku": f"C:\\VMs\\{parent_name}".encode("utf-16-le"),
            b"W2ru": relative.encode("utf-16-le", "surrogatepass"),
        },
    )


# ------------------------------------------------------------------ VHDX


@functools.lru_cache(maxsize=64)
def _template(
    size: int,
    block_size: int,
    flags: int,
    sector_size: int,
    bat_mib: int,
    data_write_guid: str,
    locator: bytes | None,
) -> Patient:
    """A VHDX without a single block."""
    patient = Patient((3 + bat_mib) * MIB)
    patient.write(0, b"vhdxfile" + "surgery".encode("utf-16-le"))
    surgeon = VhdxSurgeon(patient)
    for number, at in enumerate(HEADER_AT, 1):
        header = surgeon.header(number)
        assert header.offset == at
        header["Signature"] = b"head"
        header["SequenceNumber"] = 6 + number
        header["FileWriteGuid"] = guid("8e90ea6d-b636-1c49-b7d4-35109e600c0c")
        header["DataWriteGuid"] = guid(data_write_guid)
        header["Version"] = 1
        header["LogLength"] = MIB
        header["LogOffset"] = MIB
        table = surgeon.region_table(number)
        table["Signature"] = b"regi"
    surgeon.add_region(BAT_REGION, 3 * MIB, bat_mib * MIB, 1)
    surgeon.add_region(METADATA_REGION, 2 * MIB, MIB, 1)
    surgeon.metadata_table["Signature"] = b"metadata"
    contents = {
        "FileParameters": block_size.to_bytes(4, "little") + flags.to_bytes(4, "little"),
        "VirtualDiskSize": size.to_bytes(8, "little"),
        "VirtualDiskId": guid(DISK_GUID),
        "LogicalSectorSize": sector_size.to_bytes(4, "little"),
        "PhysicalSectorSize": (4096).to_bytes(4, "little"),
    }
    if locator is not None:
        contents["ParentLocator"] = locator
    for name, data in contents.items():
        surgeon.add_item(ITEMS[name], data, 6 if name in VIRTUAL_DISK_ITEMS else 4)
    return surgeon.close_up()


def a_vhdx(
    *,
    size: int = 4 * MIB + 4096,
    block_size: int = MIB,
    flags: int = 0,
    blocks: Mapping[int, int] | None = None,
    bits: Mapping[int, Bits] | None = None,
    sector_size: int = 512,
    tag: int = 0x50,
    bat_mib: int = 1,
    data_write_guid: str = PARENT_GUID,
    locator: bytes | None = None,
) -> Patient:
    """A sound VHDX.

    Args:
        flags: 1 fixed (LeaveBlockAllocated), 2 differencing (HasParent).
        blocks: their states; 6 and 7 are stored.  All other blocks are in state 0.
        bits: set sectors of blocks in state 7, or ``ALL``; a sector bitmap is stored for their chunks.
        locator: a Parent Locator item.
    """
    patient = _template(size, block_size, flags, sector_size, bat_mib, data_write_guid, locator).copy()
    surgeon = VhdxSurgeon(patient)
    if blocks is None:
        blocks = dict.fromkeys(range(-(-size // block_size)), 6) if flags & 1 else {0: 6, 2: 6, 3: 2}
    for block, state in blocks.items():
        if state not in (6, 7):
            surgeon.set_block(block, state, 0)
            continue
        at = patient.size
        patient.resize(at + block_size)
        surgeon.set_block(block, state, at)
        _fill_block(patient, at, tag, block, min(block_size, size - block * block_size))
    per_block = block_size // sector_size
    for block, wanted in (bits or {}).items():
        chunk = block // surgeon.ratio
        if surgeon.bat(surgeon.bitmap_index(chunk)) == 0:
            at = patient.size
            patient.resize(at + MIB)
            surgeon.set_bat(surgeon.bitmap_index(chunk), at | 6)
        base = surgeon.bitmap_at(chunk)
        first = block % surgeon.ratio * per_block
        if isinstance(wanted, str):
            patient.write(base + first // 8, b"\xff" * (per_block // 8))
            continue
        for sector in wanted:
            place = base + (first + sector) // 8
            byte = patient.read(place, 1)[0]
            patient.write(place, bytes([byte | 1 << (first + sector) % 8]))
            where = surgeon.data_at(block) + sector * sector_size
            patient.write(where, filling(tag, block, sector) * (sector_size // SECTOR))
    return patient


def a_locator(
    *,
    parent_id: str = PARENT_GUID,
    relative: str = ".\\parent.vhdx",
    absolute: str = "C:\\VMs\\parent.vhdx",
) -> bytes:
    """A sound Parent Locator item."""
    return encode_locator(
        {
            "parent_linkage": "{" + parent_id + "}",
            "parent_linkage2": "{00000000-0000-0000-0000-000000000000}",
            "relative_path": relative,
            "absolute_win32_path": absolute,
        }
    )


def a_child_vhdx(
    *,
    size: int = 4 * MIB + 4096,
    block_size: int = MIB,
    blocks: Mapping[int, int] | None = None,
    bits: Mapping[int, Bits] | None = None,
    sector_size: int = 512,
    data_write_guid: str = CHILD_GUID,
    locator: bytes | None = None,
    parent_id: str = PARENT_GUID,
    relative: str = ".\\parent.vhdx",
) -> Patient:
    """A sound differencing VHDX: block 0 partial, 2 ZERO, 3 present, the rest from the parent."""
    return a_vhdx(
        size=size,
        block_size=block_size,
        flags=2,
        blocks={0: 7, 2: 2, 3: 6} if blocks is None else blocks,
        bits={0: (1, 7, 8)} if bits is None else bits,
        sector_size=sector_size,
        tag=0xC0,
        data_write_guid=data_write_guid,
        locator=a_locator(parent_id=parent_id, relative=relative) if locator is None else locator,
    )


assert UNUSED == 0xFFFFFFFF
