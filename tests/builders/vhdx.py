"""Whole small VHDX images as bytes, built without our reader and writer: ``struct`` and the specification.

::

    image = a_vhdx(size=4 * MIB, blocks={0: full(b"\\x50"), 2: zero()})
    child = a_vhdx(size=4 * MIB, parent=a_locator(linkage), blocks={0: partial(b"\\xC0", {1, 7, 8})})
    dirty = with_log(image, [an_entry(7, page(0x300000, bytes(4096)))])
    broken = patched(image, HEADER_1 + 66, b"\\2\\0")          # one field changed, checksums repaired

An image is a ``bytearray``; ``save`` writes one as a sparse file.  All images keep the layout of Windows:
log at 1 MiB, metadata at 2 MiB, BAT at 3 MiB, blocks behind it in the order of their numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

from vhdtool.checksum import crc32c
from vhdtool.source import MemorySource

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
HEADER_1, HEADER_2 = 64 * KIB, 128 * KIB
REGIONS_1, REGIONS_2 = 192 * KIB, 256 * KIB
LOG, METADATA, BAT = 1 * MIB, 2 * MIB, 3 * MIB
ITEMS = METADATA + 64 * KIB
SECTOR = 4096

Raw = bytes | bytearray

NULL = UUID(int=0)
DATA_WRITE = UUID("83ed0ec3-24c8-49a6-a959-5e4bf1288bfb")
FILE_WRITE = UUID("11111111-2222-3333-4444-555555555555")
DISK_ID = UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")
LOG_ID = UUID("e6fc743c-81ed-4fe8-bf54-698ed57ba0b8")
STRANGER = UUID("deadbeef-0000-4000-8000-000000000001")

BAT_REGION = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA_REGION = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
VIRTUAL_DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
VIRTUAL_DISK_ID = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR_SIZE = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR_SIZE = UUID("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
INCOMPLETE_FILE = UUID("71cc85f0-1b69-4e28-9558-c3bf83ae75d3")
LOCATOR_TYPE = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
USER, DISK, REQUIRED = 1, 2, 4


def sealed(raw: bytes, at: int = 4) -> bytes:
    """``raw`` with its CRC-32C at byte ``at``."""
    return raw[:at] + struct.pack("<I", crc32c(raw[:at] + bytes(4) + raw[at + 4 :])) + raw[at + 4 :]


# ---------------------------------------------------------------- blocks


@dataclass(frozen=True)
class Block:
    """One payload block: its state, its bytes, which of its sectors are here, where it stands.

    ``data`` shorter than a block is repeated to fill it; None stores nothing.  ``file_offset`` None lays it
    behind the blocks before it.
    """

    state: int
    data: bytes | None = None
    sectors: frozenset[int] = frozenset()
    file_offset: int | None = None


def full(data: bytes = b"\xff", file_offset: int | None = None) -> Block:
    return Block(6, data, file_offset=file_offset)


def partial(data: bytes, sectors: Iterable[int], file_offset: int | None = None) -> Block:
    return Block(7, data, frozenset(sectors), file_offset)


def zero() -> Block:
    return Block(2)


def undefined(file_offset: int | None = None) -> Block:
    return Block(1, file_offset=file_offset)


def unmapped(file_offset: int | None = None) -> Block:
    return Block(3, file_offset=file_offset)


# ---------------------------------------------------------------- structures


def a_header(
    sequence: int = 1,
    *,
    signature: bytes = b"head",
    file_write: UUID = FILE_WRITE,
    data_write: UUID = DATA_WRITE,
    log_id: UUID = NULL,
    log_version: int = 0,
    version: int = 1,
    log_length: int = MIB,
    log_offset: int = LOG,
) -> bytes:
    guids = file_write.bytes_le + data_write.bytes_le + log_id.bytes_le
    numbers = struct.pack("<HHIQ", log_version, version, log_length, log_offset)
    raw = signature + bytes(4) + struct.pack("<Q", sequence) + guids + numbers
    return sealed(raw.ljust(4096, b"\0"))


Region = tuple[UUID, int, int, int]  # guid, file offset, length, required


def a_region_table(regions: Sequence[Region], *, count: int | None = None, reserved: int = 0) -> bytes:
    raw = b"regi" + struct.pack("<III", 0, len(regions) if count is None else count, reserved)
    for guid, offset, length, required in regions:
        raw += guid.bytes_le + struct.pack("<QII", offset, length, required)
    return sealed(raw.ljust(64 * KIB, b"\0"))


@dataclass(frozen=True)
class Item:
    """One metadata item; ``offset`` and ``length`` None mean where it is laid and what it has."""

    guid: UUID
    value: bytes
    flags: int = REQUIRED
    offset: int | None = None
    length: int | None = None


def a_metadata_region(
    items: Sequence[Item], *, count: int | None = None, signature: bytes = b"metadata"
) -> bytes:
    """The used part of a metadata region: its table and items one behind the other."""
    table = signature + struct.pack("<HH20x", 0, len(items) if count is None else count)
    values = b""
    for item in items:
        offset = (64 * KIB + len(values) if item.value else 0) if item.offset is None else item.offset
        length = len(item.value) if item.length is None else item.length
        table += item.guid.bytes_le + struct.pack("<IIII", offset, length, item.flags, 0)
        values += item.value
    return table.ljust(64 * KIB, b"\0") + values


def a_locator(
    linkage: UUID | str | None = DATA_WRITE,
    *,
    kind: UUID = LOCATOR_TYPE,
    values: Mapping[str, str] | None = None,
    extra: Iterable[tuple[str, str]] = (),
    **more: str,
) -> bytes:
    """A parent locator item: ``linkage``, then ``values`` and ``more`` by key, then ``extra``.

    The path is ``.\\parent.vhdx`` unless there are values.
    """
    values = {**(values or {}), **more}
    text = f"{{{linkage}}}" if isinstance(linkage, UUID) else linkage
    pairs = [("parent_linkage", text)] if text is not None else []
    pairs += list((values or {"relative_path": ".\\parent.vhdx"}).items()) + list(extra)
    return a_raw_locator(
        [(k.encode("utf-16-le"), v.encode("utf-16-le", "surrogatepass")) for k, v in pairs], kind
    )


def a_raw_locator(pairs: Sequence[tuple[bytes, bytes]], kind: UUID = LOCATOR_TYPE) -> bytes:
    table, strings = b"", b""
    first = 20 + 12 * len(pairs)
    for key, value in pairs:
        at = first + len(strings)
        table += struct.pack("<IIHH", at, at + len(key), len(key), len(value))
        strings += key + value
    return kind.bytes_le + struct.pack("<HH", 0, len(pairs)) + table + strings


def the_items(
    size: int, block_size: int, sector: int, physical: int, flags: int, locator: bytes | None
) -> list[Item]:
    """The items that every disk has, in Windows' order."""
    items = [
        Item(FILE_PARAMETERS, struct.pack("<II", block_size, flags)),
        Item(VIRTUAL_DISK_SIZE, struct.pack("<Q", size), REQUIRED | DISK),
        Item(LOGICAL_SECTOR_SIZE, struct.pack("<I", sector), REQUIRED | DISK),
        Item(PHYSICAL_SECTOR_SIZE, struct.pack("<I", physical), REQUIRED | DISK),
        Item(VIRTUAL_DISK_ID, DISK_ID.bytes_le, REQUIRED | DISK),
    ]
    return items if locator is None else [*items, Item(PARENT_LOCATOR, locator)]


# ---------------------------------------------------------------- whole images


def a_vhdx(
    *,
    size: int = 4 * MIB,
    block_size: int = MIB,
    sector: int = 512,
    physical: int = 4096,
    fixed: bool = False,
    parent: bytes | None = None,
    blocks: Mapping[int, Block] | None = None,
    entries: Mapping[int, int] | None = None,
    items: Sequence[Item] | None = None,
    regions: Sequence[Region] | None = None,
    data_write: UUID = DATA_WRITE,
    creator: str = "builder",
    bat_length: int | None = None,
    extra_mib: int = 0,
) -> bytearray:
    """A whole image.

    Args:
        parent: a locator item; makes it differencing.
        blocks: what is stored, by block number.
        entries: raw BAT entries, by index; they win over what ``blocks`` gives.
        items, regions: instead of the usual ones.
        bat_length: of the BAT region, when it is not what the disk needs.
        extra_mib: unused mebibytes at the end.
    """
    ratio = (1 << 23) * sector // block_size
    count = -(-size // block_size)
    needed = -(-count // ratio) * (ratio + 1) if parent is not None else count + (count - 1) // ratio
    if bat_length is None:
        bat_length = max(1, -(-needed * 8 // MIB)) * MIB
    bat = {}
    following = BAT + bat_length
    stored: list[tuple[int, bytes]] = []
    for number, block in sorted((blocks or {}).items()):
        place = block.file_offset
        if place is None and block.data is not None:
            place, following = following, following + block_size
        if block.data is not None and place is not None:
            stored.append((place, (block.data * (block_size // max(1, len(block.data)) + 1))[:block_size]))
        bat[number + number // ratio] = (place or 0) | block.state
        if block.state == 7:
            index = (number // ratio + 1) * ratio + number // ratio
            if index not in bat:
                bat[index], following = following | 6, following + MIB
            bits = bytearray(block_size // sector // 8)
            for at in block.sectors:
                bits[at // 8] |= 1 << at % 8
            stored.append((bat[index] - 6 + number % ratio * len(bits), bytes(bits)))
    bat |= dict(entries or {})
    image = bytearray(following + extra_mib * MIB)
    put(image, 0, b"vhdxfile" + creator.encode("utf-16-le"))
    put(image, HEADER_1, a_header(1, data_write=data_write))
    put(image, HEADER_2, a_header(2, data_write=data_write))
    if regions is None:
        regions = [(BAT_REGION, BAT, bat_length, 1), (METADATA_REGION, METADATA, MIB, 1)]
    for at in (REGIONS_1, REGIONS_2):
        put(image, at, a_region_table(regions))
    if items is None:
        flags = 2 if parent is not None else int(fixed)
        items = the_items(size, block_size, sector, physical, flags, parent)
    put(image, METADATA, a_metadata_region(items))
    for index, entry in bat.items():
        put(image, BAT + 8 * index, struct.pack("<Q", entry))
    for at, data in stored:
        put(image, at, data)
    return image


def put(image: bytearray, at: int, data: bytes) -> None:
    """Overwrite, growing the image by whole mebibytes where it is too short."""
    if at + len(data) > len(image):
        image.extend(bytes(-(-(at + len(data)) // MIB) * MIB - len(image)))
    image[at : at + len(data)] = data


def patched(image: Raw, at: int, data: bytes, *, repair: bool = True) -> bytearray:
    """A copy of ``image`` with ``data`` at byte ``at``, checksums of headers and region tables repaired."""
    changed = bytearray(image)
    changed[at : at + len(data)] = data
    return repaired(changed) if repair else changed


def repaired(image: bytearray) -> bytearray:
    """``image`` itself, with the checksums of its headers and region tables right again."""
    for at, size in ((HEADER_1, 4096), (HEADER_2, 4096), (REGIONS_1, 64 * KIB), (REGIONS_2, 64 * KIB)):
        if len(image) >= at + size:
            image[at : at + size] = sealed(bytes(image[at : at + size]))
    return image


def with_headers(image: Raw, first: bytes, second: bytes) -> bytearray:
    """A copy of ``image`` with both headers replaced."""
    changed = bytearray(image)
    changed[HEADER_1 : HEADER_1 + len(first)] = first
    changed[HEADER_2 : HEADER_2 + len(second)] = second
    return changed


def save(image: Raw, path: Path, size: int | None = None) -> Path:
    """Write ``image`` as a sparse file, extended to ``size`` bytes when that is given."""
    with path.open("wb") as sink:
        for at in range(0, len(image), 64 * KIB):
            piece = image[at : at + 64 * KIB]
            if any(piece):
                sink.seek(at)
                sink.write(piece)
        sink.truncate(max(len(image), size or 0))
    return path


class Padded(MemorySource):
    """A file that goes on as zeros to a length that holds some blocks, without their memory."""

    def __init__(self, data: bytes, size: int) -> None:
        super().__init__("disk.vhdx", data)
        self._there = self.size
        self.size = size

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        there = max(0, min(len(buffer), self._there - offset))
        buffer[there:] = bytes(len(buffer) - there)
        if there:
            super().read_into(offset, buffer[:there], field=field)

    def read_exact(self, offset: int, length: int, *, field: str) -> bytes:
        self._check(offset, length, field)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer), field=field)
        return bytes(buffer)


# ---------------------------------------------------------------- log


@dataclass(frozen=True)
class Data:
    """A descriptor that writes one page of 4096 bytes."""

    file_offset: int
    page: bytes


@dataclass(frozen=True)
class Zero:
    """A descriptor that writes zeros."""

    file_offset: int
    length: int


@dataclass(frozen=True)
class LogEntry:
    """One log entry; every field can be a lie.

    Attributes:
        tail: position of the oldest entry that counts; None for its own.
        position: where in the ring it stands; None for behind the entry before it.
        length: what EntryLength says; None for the truth.
        torn: leave the checksum wrong.
    """

    sequence: int
    descriptors: tuple[Data | Zero, ...] = ()
    tail: int | None = None
    position: int | None = None
    guid: UUID = LOG_ID
    flushed: int = 4 * MIB
    last: int = 4 * MIB
    length: int | None = None
    count: int | None = None
    torn: bool = False

    @property
    def size(self) -> int:
        """Bytes that it takes in the ring."""
        pages = sum(isinstance(d, Data) for d in self.descriptors)
        return -(-(64 + 32 * len(self.descriptors)) // SECTOR) * SECTOR + pages * SECTOR

    def encode(self, position: int) -> bytes:
        """Its bytes when it stands at ``position``."""
        head = struct.pack(
            "<4sIIIQII16sQQ",
            b"loge",
            0,
            self.size if self.length is None else self.length,
            position if self.tail is None else self.tail,
            self.sequence,
            len(self.descriptors) if self.count is None else self.count,
            0,
            self.guid.bytes_le,
            self.flushed,
            self.last,
        )
        sectors = b""
        for d in self.descriptors:
            if isinstance(d, Zero):
                head += struct.pack("<4sIQQQ", b"zero", 0, d.length, d.file_offset, self.sequence)
                continue
            head += b"desc" + d.page[4092:] + d.page[:8] + struct.pack("<QQ", d.file_offset, self.sequence)
            high, low = struct.pack("<I", self.sequence >> 32), struct.pack("<I", self.sequence & 0xFFFFFFFF)
            sectors += b"data" + high + d.page[8:4092] + low
        raw = sealed(head.ljust(-(-len(head) // SECTOR) * SECTOR, b"\0") + sectors)
        return raw[:4] + bytes(a ^ 0xFF for a in raw[4:8]) + raw[8:] if self.torn else raw


def an_entry(sequence: int, *descriptors: Data | Zero, **changes: object) -> LogEntry:
    return replace(LogEntry(sequence, descriptors), **changes)  # type: ignore[arg-type]


def page(file_offset: int, data: bytes) -> Data:
    return Data(file_offset, data.ljust(SECTOR, b"\0"))


@dataclass
class ALog:
    """A ring with entries in it: its bytes, and where each entry stands."""

    data: bytearray
    positions: list[int] = field(default_factory=list)


def a_log(entries: Iterable[LogEntry], *, length: int = MIB, start: int = 0) -> ALog:
    """A ring of ``length`` bytes, entries one behind the other from ``start`` on, wrapping at its end."""
    log = ALog(bytearray(length))
    position = start
    for entry in entries:
        position = position if entry.position is None else entry.position
        raw = entry.encode(position)
        for at in range(0, len(raw), SECTOR):
            place = (position + at) % length
            log.data[place : place + SECTOR] = raw[at : at + SECTOR]
        log.positions.append(position)
        position = (position + len(raw)) % length
    return log


def with_log(
    image: Raw,
    entries: Iterable[LogEntry],
    *,
    log_id: UUID = LOG_ID,
    length: int = MIB,
    at: int = LOG,
    start: int = 0,
) -> bytearray:
    """A copy of ``image`` with a pending log; its other header is as stale as a writer would leave it."""
    changed = bytearray(image)
    put(changed, at, bytes(a_log(entries, length=length, start=start).data))
    guid = UUID(bytes_le=bytes(changed[HEADER_1 + 32 : HEADER_1 + 48]))
    headers = [a_header(n, data_write=guid, log_id=log_id, log_length=length, log_offset=at) for n in (3, 4)]
    return with_headers(changed, *headers)


def bat_page(image: Raw, index: int, entry: int) -> Data:
    """The descriptor that sets one BAT entry: its whole page as it is in ``image``, that entry changed."""
    at = BAT + 8 * index
    start = at - at % SECTOR
    data = bytearray(image[start : start + SECTOR])
    data[at - start : at - start + 8] = struct.pack("<Q", entry)
    return Data(start, bytes(data))


# ---------------------------------------------------------------- the pair of section 11.5


def the_parent() -> bytearray:
    """Five blocks filled 0x50 to 0x54, of a disk of 4 MiB and 1 KiB."""
    return a_vhdx(size=4 * MIB + KIB, blocks={b: full(bytes([0x50 + b])) for b in range(5)})


def the_child(second: Block | None = None, third: Block | None = None) -> bytearray:
    """Its child: block 0 has sectors 1, 7 and 8, block 1 is absent, block 2 zero, block 3 full."""
    blocks = {0: partial(b"\xc0", {1, 7, 8}), 2: third or zero(), 3: full(b"\xc3")}
    if second is not None:
        blocks[1] = second
    return a_vhdx(
        size=4 * MIB + KIB, parent=a_locator(DATA_WRITE), blocks=blocks, data_write=UUID(int=0xC411D)
    )
