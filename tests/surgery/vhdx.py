"""Surgery on VHDXs: identifier, headers, region tables, metadata, BAT, bitmaps, log."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.surgery.patient import Patient, Record

KIB: Final = 1 << 10
MIB: Final = 1 << 20
HEADER_AT: Final = (0x10000, 0x20000)
REGION_TABLE_AT: Final = (0x30000, 0x40000)

HEADER: Final = {
    "Signature": (0, "4"),
    "Checksum": (4, "u32"),
    "SequenceNumber": (8, "u64"),
    "FileWriteGuid": (16, "16"),
    "DataWriteGuid": (32, "16"),
    "LogGuid": (48, "16"),
    "LogVersion": (64, "u16"),
    "Version": (66, "u16"),
    "LogLength": (68, "u32"),
    "LogOffset": (72, "u64"),
    "Reserved": (80, "4016"),
}
REGION_TABLE: Final = {
    "Signature": (0, "4"),
    "Checksum": (4, "u32"),
    "EntryCount": (8, "u32"),
    "Reserved": (12, "u32"),
}
REGION: Final = {
    "Guid": (0, "16"),
    "FileOffset": (16, "u64"),
    "Length": (24, "u32"),
    "Required": (28, "u32"),
}
METADATA_TABLE: Final = {
    "Signature": (0, "8"),
    "Reserved": (8, "u16"),
    "EntryCount": (10, "u16"),
    "Reserved2": (12, "20"),
}
ITEM: Final = {
    "ItemId": (0, "16"),
    "Offset": (16, "u32"),
    "Length": (20, "u32"),
    "Flags": (24, "u32"),
    "Reserved2": (28, "u32"),
}
LOG_ENTRY: Final = {
    "Signature": (0, "4"),
    "Checksum": (4, "u32"),
    "EntryLength": (8, "u32"),
    "Tail": (12, "u32"),
    "SequenceNumber": (16, "u64"),
    "DescriptorCount": (24, "u32"),
    "Reserved": (28, "u32"),
    "LogGuid": (32, "16"),
    "FlushedFileOffset": (48, "u64"),
    "LastFileOffset": (56, "u64"),
}


def guid(text: str) -> bytes:
    """A GUID as it stands on disk."""
    return uuid.UUID(text).bytes_le


BAT_REGION: Final = guid("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_REGION: Final = guid("8B7CA206-4790-4B9A-B8FE-575F050F886E")
ITEMS: Final = {
    "FileParameters": guid("CAA16737-FA36-4D43-B3B6-33F0AA44E76B"),
    "VirtualDiskSize": guid("2FA54224-CD1B-4876-B211-5DBED83BF4B8"),
    "VirtualDiskId": guid("BECA12AB-B2E6-4523-93EF-C309E000C746"),
    "LogicalSectorSize": guid("8141BF1D-A96F-4709-BA47-F233A8FAAB5F"),
    "PhysicalSectorSize": guid("CDA348C7-445D-4471-9CC9-E9885251C556"),
    "ParentLocator": guid("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C"),
    "IncompleteFile": guid("71CC85F0-1B69-4E28-9558-C3BF83AE75D3"),
}
VIRTUAL_DISK_ITEMS: Final = {
    "VirtualDiskSize",
    "VirtualDiskId",
    "LogicalSectorSize",
    "PhysicalSectorSize",
}
LOCATOR_TYPE: Final = guid("B04AEFB7-D19E-4A81-B789-25B8E9445913")

_CRC_TABLE: Final = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0x82F63B78 if _byte & 1 else 0)
    _CRC_TABLE.append(_byte)


def crc32c_slowly(data: bytes, crc: int = 0) -> int:
    """CRC-32C by its table: the definition, which judges the fast one."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


try:
    import google_crc32c

    def crc32c(data: bytes) -> int:
        """CRC-32C (Castagnoli)."""
        return int(google_crc32c.value(data))

except ImportError:  # pragma: no cover
    crc32c = crc32c_slowly


def encode_locator(
    values: Mapping[str, str | bytes] | Sequence[tuple[str | bytes, str | bytes]],
    *,
    locator_type: bytes = LOCATOR_TYPE,
    count: int | None = None,
) -> bytes:
    """A Parent Locator item; keys and values are text, or bytes as they are to stand there."""
    pairs = list(values.items()) if isinstance(values, Mapping) else list(values)
    head = locator_type + bytes(2) + (len(pairs) if count is None else count).to_bytes(2, "little")
    at = 20 + 12 * len(pairs)
    entries, strings = b"", b""
    for key, value in pairs:
        raw_key, raw_value = (
            s if isinstance(s, bytes) else s.encode("utf-16-le", "surrogatepass") for s in (key, value)
        )
        entries += (at + len(strings)).to_bytes(4, "little")
        strings += raw_key
        entries += (at + len(strings)).to_bytes(4, "little")
        strings += raw_value
        entries += len(raw_key).to_bytes(2, "little") + (len(raw_value) & 0xFFFF).to_bytes(2, "little")
    return head + entries + strings


@dataclass(slots=True)
class LogWrite:
    """A data descriptor: the 4096 bytes that are to stand at ``offset``."""

    offset: int
    page: bytes


@dataclass(slots=True)
class LogZero:
    """A zero descriptor."""

    offset: int
    length: int


@dataclass(slots=True)
class LogEntry:
    """One entry to be written into the ring; None means the value that is right.

    ``overrides`` change header fields after everything else was filled in and before the checksum.
    """

    writes: Sequence[LogWrite | LogZero] = ()
    sequence: int = 1
    tail: int | None = None
    flushed: int | None = None
    last: int | None = None
    log_guid: bytes | None = None
    overrides: Mapping[str, int | bytes] = field(default_factory=dict)
    good_checksum: bool = True

    def encode(self, position: int, log_guid: bytes, file_size: int) -> bytes:
        """The entry's bytes when it stands at ``position`` of the ring."""
        area = -(-(64 + 32 * len(self.writes)) // 4096) * 4096
        pages = [write for write in self.writes if isinstance(write, LogWrite)]
        entry = Patient(area + 4096 * len(pages))
        head = Record(entry, 0, LOG_ENTRY, "little")
        head["Signature"] = b"loge"
        head["EntryLength"] = entry.size
        head["Tail"] = position if self.tail is None else self.tail
        head["SequenceNumber"] = self.sequence
        head["DescriptorCount"] = len(self.writes)
        head["LogGuid"] = log_guid if self.log_guid is None else self.log_guid
        head["FlushedFileOffset"] = file_size if self.flushed is None else self.flushed
        head["LastFileOffset"] = file_size if self.last is None else self.last
        number = self.sequence.to_bytes(8, "little")
        descriptors = bytearray()
        for write in self.writes:
            if isinstance(write, LogZero):
                descriptors += b"zero" + bytes(4) + write.length.to_bytes(8, "little")
            else:
                descriptors += b"desc" + write.page[4092:] + write.page[:8]
            descriptors += write.offset.to_bytes(8, "little") + number
        entry.write(64, bytes(descriptors))
        for i, write in enumerate(pages):
            sector = b"data" + number[4:] + write.page[8:4092] + number[:4]
            entry.write(area + 4096 * i, sector)
        for name, value in self.overrides.items():
            head[name] = value
        head["Checksum"] = 0
        length = min(head["EntryLength"], entry.size)
        head["Checksum"] = crc32c(entry.read(0, length)) ^ (not self.good_checksum)
        return entry.read(0, entry.size)


class VhdxSurgeon:
    """A VHDX with its structures by name.  ``close_up`` repairs checksums."""

    def __init__(self, patient: Patient) -> None:
        self.patient = patient

    # ------------------------------------------------------------ structures

    def header(self, number: int) -> Record:
        """Header 1 or 2."""
        return Record(self.patient, HEADER_AT[number - 1], HEADER, "little")

    @property
    def current(self) -> Record:
        """The header with the larger sequence number."""
        return max(
            (self.header(1), self.header(2)), key=lambda h: (h["SequenceNumber"], h.offset == HEADER_AT[0])
        )

    def region_table(self, number: int) -> Record:
        """Region table 1 or 2."""
        return Record(self.patient, REGION_TABLE_AT[number - 1], REGION_TABLE, "little")

    def region(self, guid_: bytes, table: int = 1) -> Record:
        """A region's entry in a region table."""
        head = self.region_table(table)
        for i in range(head["EntryCount"]):
            entry = Record(self.patient, head.offset + 16 + 32 * i, REGION, "little")
            if entry.raw("Guid") == guid_:
                return entry
        raise KeyError(guid_.hex())

    @property
    def metadata_at(self) -> int:
        """File offset of the metadata region."""
        return self.region(METADATA_REGION)["FileOffset"]

    @property
    def metadata_table(self) -> Record:
        """The metadata table's header."""
        return Record(self.patient, self.metadata_at, METADATA_TABLE, "little")

    def item(self, name: str) -> Record:
        """A known item's entry in the metadata table."""
        for i in range(self.metadata_table["EntryCount"]):
            entry = Record(self.patient, self.metadata_at + 32 + 32 * i, ITEM, "little")
            if entry.raw("ItemId") == ITEMS[name]:
                return entry
        raise KeyError(name)

    def item_at(self, name: str) -> int:
        """File offset of an item's content."""
        return self.metadata_at + self.item(name)["Offset"]

    # ------------------------------------------------------------ BAT

    @property
    def bat_at(self) -> int:
        """File offset of the BAT."""
        return self.region(BAT_REGION)["FileOffset"]

    @property
    def block_size(self) -> int:
        """Bytes."""
        return int.from_bytes(self.patient.read(self.item_at("FileParameters"), 4), "little")

    @property
    def ratio(self) -> int:
        """Payload blocks per sector bitmap."""
        sector = int.from_bytes(self.patient.read(self.item_at("LogicalSectorSize"), 4), "little")
        return (sector << 23) // self.block_size

    def index(self, block: int) -> int:
        """The BAT index of a payload block."""
        return block + block // self.ratio

    def bitmap_index(self, chunk: int) -> int:
        """The BAT index of a chunk's sector bitmap."""
        return (chunk + 1) * self.ratio + chunk

    def bat(self, index: int) -> int:
        """A BAT entry as a number."""
        return int.from_bytes(self.patient.read(self.bat_at + 8 * index, 8), "little")

    def set_bat(self, index: int, value: int) -> None:
        """Change a BAT entry."""
        self.patient.write(self.bat_at + 8 * index, value.to_bytes(8, "little"))

    def set_block(self, block: int, state: int, offset: int | None = None) -> None:
        """Change a payload block's entry: its state, and its file offset unless it stays."""
        place = self.bat(self.index(block)) & ~0xFFFFF if offset is None else offset
        self.set_bat(self.index(block), place | state)

    def data_at(self, block: int) -> int:
        """File offset of a stored block."""
        return self.bat(self.index(block)) & ~0xFFFFF

    def bitmap_at(self, chunk: int = 0) -> int:
        """File offset of a chunk's sector bitmap."""
        return self.bat(self.bitmap_index(chunk)) & ~0xFFFFF

    # ------------------------------------------------------------ sewing up

    def repair_header(self, number: int) -> None:
        """The right checksum in one header."""
        self._repair(self.header(number), 4096)

    def repair_region_table(self, number: int) -> None:
        """The right checksum in one region table."""
        self._repair(self.region_table(number), 0x10000)

    def _repair(self, record: Record, size: int) -> None:
        record["Checksum"] = 0
        record["Checksum"] = crc32c(self.patient.read(record.offset, size))

    def close_up(self) -> Patient:
        """Repair the checksums of both headers and both region tables; the patient is done."""
        for number in (1, 2):
            self.repair_header(number)
            self.repair_region_table(number)
        return self.patient

    def both_headers(self, **values: int | bytes) -> None:
        """Change fields in both headers and repair them."""
        for number in (1, 2):
            for name, value in values.items():
                self.header(number)[name] = value
            self.repair_header(number)

    def both_regions(self, guid_: bytes, **values: int | bytes) -> None:
        """Change fields of a region's entry in both tables and repair them."""
        for number in (1, 2):
            entry = self.region(guid_, number)
            for name, value in values.items():
                entry[name] = value
        for number in (1, 2):
            self.repair_region_table(number)

    def add_region(self, guid_: bytes, offset: int, length: int, required: int = 0) -> None:
        """A further entry in both region tables."""
        for number in (1, 2):
            head = self.region_table(number)
            entry = Record(self.patient, head.offset + 16 + 32 * head["EntryCount"], REGION, "little")
            entry["Guid"] = guid_
            entry["FileOffset"] = offset
            entry["Length"] = length
            entry["Required"] = required
            head["EntryCount"] += 1
            self.repair_region_table(number)

    # ------------------------------------------------------------ metadata

    def add_item(self, item_id: bytes, data: bytes, flags: int, *, offset: int | None = None) -> Record:
        """A further entry in the metadata table, its content behind all others."""
        count = self.metadata_table["EntryCount"]
        if offset is None:
            entries = [
                Record(self.patient, self.metadata_at + 32 + 32 * i, ITEM, "little") for i in range(count)
            ]
            offset = max((e["Offset"] + e["Length"] for e in entries if e["Length"]), default=0x10000)
        entry = Record(self.patient, self.metadata_at + 32 + 32 * count, ITEM, "little")
        entry["ItemId"] = item_id
        entry["Offset"] = offset if data else 0
        entry["Length"] = len(data)
        entry["Flags"] = flags
        self.patient.write(self.metadata_at + offset, data)
        self.metadata_table["EntryCount"] = count + 1
        return entry

    def drop_item(self, name: str) -> None:
        """Take an item out of the table."""
        self.item(name)["ItemId"] = bytes(15) + b"\x77"
        # What is left is an unknown item that nobody requires.
        for i in range(self.metadata_table["EntryCount"]):
            entry = Record(self.patient, self.metadata_at + 32 + 32 * i, ITEM, "little")
            if entry.raw("ItemId") == bytes(15) + b"\x77":
                entry["Flags"] = 0

    def set_item(self, name: str, data: bytes) -> None:
        """Change an item's content, in place."""
        if len(data) != self.item(name)["Length"]:
            raise ValueError(f"{name} has {self.item(name)['Length']} bytes")
        self.patient.write(self.item_at(name), data)

    def set_locator(self, item: bytes) -> None:
        """Another Parent Locator, in place; it is the last item."""
        self.patient.write(self.item_at("ParentLocator"), item)
        self.item("ParentLocator")["Length"] = len(item)

    # ------------------------------------------------------------ log

    def write_log(self, entries: Iterable[LogEntry], *, log_guid: bytes, start: int = 0) -> list[int]:
        """Write ``entries`` one behind the other into the ring from ``start`` on; both headers name them.

        Returns:
            Their positions in the ring.
        """
        base, length = self.current["LogOffset"], self.current["LogLength"]
        position = start
        positions = []
        for entry in entries:
            raw = entry.encode(position, log_guid, self.patient.size)
            positions.append(position)
            for at in range(0, len(raw), 4096):
                self.patient.write(base + (position + at) % length, raw[at : at + 4096])
            position = (position + len(raw)) % length
        self.both_headers(LogGuid=log_guid)
        return positions
