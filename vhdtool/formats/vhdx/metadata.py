"""The metadata region: a table of items, and the items that say what the disk is."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from operator import attrgetter
from typing import Final, NamedTuple, NoReturn

from vhdtool.errors import EXIT_UNSUPPORTED, FindingLog, FormatError, Severity, raise_first_error
from vhdtool.formats.image import Section
from vhdtool.formats.vhdx import layout
from vhdtool.formats.vhdx.locator import ParentLocator, decode_locator
from vhdtool.formats.vhdx.region import Region
from vhdtool.model.geometry import Geometry
from vhdtool.model.identity import DiskType, Identity
from vhdtool.source import ByteSource

VIRTUAL_SIZE_MAX: Final = 64 << 40
BLOCK_SIZE_MIN: Final = 1 << 20
BLOCK_SIZE_MAX: Final = 256 << 20
SECTOR_SIZES: Final = (512, 4096)
_SHOWN_MAX: Final = 64
_NULL_ID: Final = bytes(16)
# Real tables have five to seven entries, and items of a few hundred bytes right behind the table.
_TABLE_PIECE: Final = 4 << 10
_ITEMS_PIECE: Final = 16 << 10


class _Known(NamedTuple):
    """What the specification says of an item: its name, its length and its IsVirtualDisk flag, if it does."""

    name: str
    length: int | None
    is_virtual_disk: bool | None


_KNOWN: Final = {
    layout.FILE_PARAMETERS_ITEM: _Known("FileParameters", 8, False),
    layout.VIRTUAL_DISK_SIZE_ITEM: _Known("VirtualDiskSize", 8, True),
    layout.VIRTUAL_DISK_ID_ITEM: _Known("VirtualDiskId", 16, True),
    layout.LOGICAL_SECTOR_SIZE_ITEM: _Known("LogicalSectorSize", 4, True),
    layout.PHYSICAL_SECTOR_SIZE_ITEM: _Known("PhysicalSectorSize", 4, True),
    layout.PARENT_LOCATOR_ITEM: _Known("ParentLocator", None, False),
    layout.CHS_PARAMETERS_ITEM: _Known("ChsParameters", 8, None),
    layout.INCOMPLETE_FILE_ITEM: _Known("IncompleteFile", None, None),
    layout.PMEM_LABEL_ITEM: _Known("PmemLabelStorage", None, None),
}
_ALWAYS_THERE: Final = (
    layout.FILE_PARAMETERS_ITEM,
    layout.VIRTUAL_DISK_SIZE_ITEM,
    layout.VIRTUAL_DISK_ID_ITEM,
    layout.LOGICAL_SECTOR_SIZE_ITEM,
    layout.PHYSICAL_SECTOR_SIZE_ITEM,
)


class Item(NamedTuple):
    """One entry of the metadata table.  ``offset`` is where the item stands in the file, in bytes.

    ``is_user`` says that it belongs to the user's program and not to the format, ``known`` what is known of
    it; a user item is never a known one, whatever its id.
    """

    item_id: bytes
    offset: int
    length: int
    flags: int
    entry_offset: int
    is_user: bool
    known: _Known | None

    @property
    def name(self) -> str:
        """The specification's name, or the GUID of an unknown one."""
        return self.known.name if self.known else str(Identity(self.item_id))


class Metadata(NamedTuple):
    """What the metadata region says of the disk, checked; ``values`` are those of the known ``items``."""

    geometry: Geometry
    type: DiskType
    disk_id: Identity | None
    locator: ParentLocator | None
    region: Region
    items: list[Item]
    values: dict[bytes, bytes]

    @property
    def sections(self) -> list[Section]:
        """The table and the locator, for people to look at."""
        table = _section(self.region, self.items, self.values)
        return [table, self.locator.section] if self.locator else [table]


def read_metadata(source: ByteSource, region: Region, log: FindingLog) -> Metadata:
    """Read, check and decode the metadata in ``region``.

    Raises:
        CorruptError: the table or an item without which nothing can be read is broken.
    """
    raw = _read_table(source, region)
    items = _faultless_items(raw, region) or _decode_items(raw, region, log)
    values = _read_values(source, items)
    if layout.INCOMPLETE_FILE_ITEM in values:
        log.note(
            Severity.ERROR,
            "vhdx.metadata.incomplete",
            "the creation of this file never completed",
            offset=items.sound[layout.INCOMPLETE_FILE_ITEM].entry_offset,
            field="metadata.IncompleteFile",
        )
    decoder = _Decoder(values, items.sound, log)
    kind = decoder.disk_type()
    geometry = decoder.geometry()
    disk_id = values.get(layout.VIRTUAL_DISK_ID_ITEM)
    locator = decoder.locator(kind, region)
    identity = Identity(disk_id) if disk_id else None
    return Metadata(geometry, kind, identity, locator, region, items.listed, values)


def _read_table(source: ByteSource, region: Region) -> bytes:
    """The table to the end of its last entry: few tables fill more of it than the beginning."""
    # A file that ends inside the table is refused, wherever its last entry is.
    is_whole = region.file_offset + layout.METADATA_TABLE_SIZE <= source.size
    size = _TABLE_PIECE if is_whole else layout.METADATA_TABLE_SIZE
    raw = source.read_exact(region.file_offset, size, field="metadata table")
    count = layout.parse_metadata_table_header(raw).entry_count
    stop = layout.METADATA_TABLE_HEADER_SIZE + count * layout.METADATA_ENTRY_SIZE
    if _TABLE_PIECE < stop <= layout.METADATA_TABLE_SIZE:
        return source.read_exact(region.file_offset, stop, field="metadata table")
    return raw[:stop]


class _Items(NamedTuple):
    """The items of a table.

    ``listed``: all of them; ``sound``: the system items that can be read, by their ids; ``known``: those of
    them that are known, which stand in the file from ``start`` to ``stop``.
    """

    listed: list[Item]
    sound: dict[bytes, Item]
    known: list[Item]
    start: int
    stop: int


@lru_cache(maxsize=32)
def _faultless_items(raw: bytes, region: Region) -> _Items | None:
    """``_decode_items`` of a table in which nothing is wrong; None for any other.  Not to be changed.

    Whoever makes a thousand disks writes the same table into each, and it is judged once.
    """
    log = FindingLog("")
    try:
        items = _decode_items(raw, region, log)
    except FormatError:
        return None
    return None if log.all() else items


def _decode_items(raw: bytes, region: Region, log: FindingLog) -> _Items:
    """The items in the table ``raw``, judged."""
    items = _decode_table(raw, region, log)
    sound = _judge_items(items, region, log)
    known = [item for item in sound.values() if item.known]
    start = min((item.offset for item in known if item.length), default=0)
    stop = max((item.offset + item.length for item in known if item.length), default=0)
    return _Items(items, sound, known, start, stop)


def _decode_table(raw: bytes, region: Region, log: FindingLog) -> list[Item]:
    head = layout.parse_metadata_table_header(raw)
    if head.signature != layout.METADATA_SIGNATURE:
        log.refuse(
            "vhdx.metadata.signature",
            "there is no metadata table in its region",
            offset=region.file_offset,
            field="metadata.Signature",
            found=head.signature,
            expected=layout.METADATA_SIGNATURE,
        )
    if head.entry_count > layout.METADATA_COUNT_MAX:
        log.refuse(
            "vhdx.metadata.count",
            "the metadata table has more entries than it can hold",
            offset=region.file_offset + 10,
            field="metadata.EntryCount",
            found=str(head.entry_count),
            expected=f"at most {layout.METADATA_COUNT_MAX}",
        )
    if head.reserved or any(head.reserved2):
        _reserved(log, region.file_offset + 8, "metadata.Reserved")
    items = []
    for start in range(layout.METADATA_TABLE_HEADER_SIZE, len(raw), layout.METADATA_ENTRY_SIZE):
        item_id, offset, length, flags, reserved = layout.parse_metadata_table_entry(raw, start)
        place = region.file_offset + start
        is_user = bool(flags & layout.IS_USER)
        known = None if is_user else _KNOWN.get(item_id)
        items.append(Item(item_id, region.file_offset + offset, length, flags, place, is_user, known))
        if reserved:
            _reserved(log, place + 28, f"metadata.{items[-1].name}.Reserved")
    user_count = sum(item.is_user for item in items)
    if user_count > layout.METADATA_USER_COUNT_MAX:
        log.note(
            Severity.ERROR,
            "vhdx.metadata.count",
            "the metadata table has too many user items",
            offset=region.file_offset + 10,
            field="metadata.EntryCount",
            found=str(user_count),
            expected=f"at most {layout.METADATA_USER_COUNT_MAX}",
        )
    return items


def _judge_items(items: list[Item], region: Region, log: FindingLog) -> dict[bytes, Item]:
    """Judge every entry; the system items that can be read, the first of each id."""
    sound: dict[bytes, Item] = {}
    seen: set[tuple[bytes, bool]] = set()
    for item in items:
        key = item.item_id, item.is_user
        faults = _faults(item, region)
        if key in seen:
            faults.append(("vhdx.metadata.duplicate", "it stands in the table twice", "", ""))
        for code, what, found, expected in faults:
            log.note(
                Severity.ERROR,
                code,
                f"metadata item {item.name}: {what}",
                offset=item.entry_offset,
                field=f"metadata.{item.name}",
                found=found,
                expected=expected,
            )
        _judge_flags(item, log)
        if not faults and not item.is_user:
            sound[item.item_id] = item
        seen.add(key)
    _judge_overlap(items, log)
    return sound


def _faults(item: Item, region: Region) -> list[tuple[str, str, str, str]]:
    """What makes ``item`` unreadable: code, clause, found, expected of each fault."""
    faults = []
    start = item.offset - region.file_offset
    if item.item_id == _NULL_ID:
        faults.append(("vhdx.metadata.zero_id", "its id is zero", "", ""))
    if item.length == 0:
        outside = start != 0
    else:
        outside = start < layout.METADATA_TABLE_SIZE or start + item.length > region.length
    if outside or item.length > layout.METADATA_ITEM_SIZE_MAX:
        faults.append(
            (
                "vhdx.metadata.range",
                "it is not where items can be",
                f"{item.length:#x} bytes at {start:#x} of the region",
                f"at most 1 MiB within 0x10000 to {region.length:#x}, offset 0 when empty",
            )
        )
    if item.known and item.known.length not in (None, item.length):
        faults.append(
            (
                "vhdx.metadata.size",
                "it has the wrong length",
                f"{item.length} bytes",
                f"{item.known.length} bytes",
            )
        )
    if item.is_user and item.flags & layout.IS_REQUIRED:
        faults.append(("vhdx.metadata.user_required", "a user item must not be required", "", ""))
    return faults


def _judge_flags(item: Item, log: FindingLog) -> None:
    known = item.known
    if item.flags & layout.IS_REQUIRED and not item.is_user and known is None:
        log.note(
            Severity.ERROR,
            "vhdx.metadata.unknown_required",
            "an unknown metadata item is required",
            offset=item.entry_offset,
            field=f"metadata.{item.name}",
            found=item.name,
            exit_code=EXIT_UNSUPPORTED,
        )
    wrong = bool(item.flags >> 3)
    if known and known.is_virtual_disk is not None:
        wrong = wrong or bool(item.flags & layout.IS_VIRTUAL_DISK) != known.is_virtual_disk
    if wrong:
        log.note(
            Severity.WARNING,
            "vhdx.metadata.flags",
            f"metadata item {item.name} is marked wrongly",
            offset=item.entry_offset + 24,
            field=f"metadata.{item.name}.Flags",
            found=item.flags,
            expected=layout.IS_REQUIRED | layout.IS_VIRTUAL_DISK * bool(known and known.is_virtual_disk)
            if known
            else "reserved bits zero",
        )


def _judge_overlap(items: list[Item], log: FindingLog) -> None:
    placed = sorted((item for item in items if item.length), key=attrgetter("offset", "length"))
    for first, second in pairwise(placed):
        if second.offset < first.offset + first.length:
            log.note(
                Severity.ERROR,
                "vhdx.metadata.overlap",
                f"metadata item {second.name} overlaps {first.name}",
                offset=second.entry_offset + 16,
                field=f"metadata.{second.name}.Offset",
                found=second.offset,
                expected=f"at least {first.offset + first.length:#x}",
            )


def _read_values(source: ByteSource, items: _Items) -> dict[bytes, bytes]:
    """The bytes of the known items by their ids; read at once where they stand together."""
    if items.stop - items.start > _ITEMS_PIECE or items.stop > source.size:
        return {
            item.item_id: source.read_exact(item.offset, item.length, field=item.name) if item.length else b""
            for item in items.known
        }
    start = items.start
    raw = source.read_exact(start, items.stop - start, field="metadata items")
    return {
        item.item_id: raw[item.offset - start : item.offset - start + item.length] for item in items.known
    }


class _Decoder:
    """From the bytes of the known items to what they say."""

    def __init__(self, values: dict[bytes, bytes], items: dict[bytes, Item], log: FindingLog) -> None:
        self._values = values
        self._items = items
        self._log = log
        missing = [item_id for item_id in _ALWAYS_THERE if item_id not in values]
        for item_id in missing:
            log.note(
                Severity.ERROR,
                "vhdx.metadata.missing",
                f"there is no usable metadata item {_KNOWN[item_id].name}",
                field=f"metadata.{_KNOWN[item_id].name}",
            )
        if missing and set(missing) - {layout.VIRTUAL_DISK_ID_ITEM, layout.PHYSICAL_SECTOR_SIZE_ITEM}:
            # Without these no block can be found: the first of the reasons why they are missing counts.
            raise_first_error(log.all())
        self._parameters = layout.parse_file_parameters(values[layout.FILE_PARAMETERS_ITEM])

    def _number(self, item_id: bytes) -> int:
        return int.from_bytes(self._values[item_id], "little")

    def disk_type(self) -> DiskType:
        """What the flags of the file parameters say."""
        flags = self._parameters.flags
        if flags >> 2:
            _reserved(
                self._log, self._items[layout.FILE_PARAMETERS_ITEM].offset + 4, "FileParameters.Reserved"
            )
        if flags & layout.HAS_PARENT:
            return DiskType.DIFFERENCING
        return DiskType.FIXED if flags & layout.LEAVE_BLOCK_ALLOCATED else DiskType.DYNAMIC

    def geometry(self) -> Geometry:
        """The sizes, within the rules."""
        block_size = self._parameters.block_size
        if not BLOCK_SIZE_MIN <= block_size <= BLOCK_SIZE_MAX or block_size & (block_size - 1):
            self._refuse(
                layout.FILE_PARAMETERS_ITEM,
                "vhdx.block_size",
                "the block size cannot be",
                block_size,
                "a power of two from 1 MiB to 256 MiB",
            )
        logical = self._number(layout.LOGICAL_SECTOR_SIZE_ITEM)
        if logical not in SECTOR_SIZES:
            self._refuse(
                layout.LOGICAL_SECTOR_SIZE_ITEM,
                "vhdx.sector_size",
                "the logical sector size cannot be",
                logical,
                "512 or 4096 bytes",
            )
        size = self._number(layout.VIRTUAL_DISK_SIZE_ITEM)
        if not 0 < size <= VIRTUAL_SIZE_MAX or size % logical:
            self._refuse(
                layout.VIRTUAL_DISK_SIZE_ITEM,
                "vhdx.disk_size",
                "the virtual disk size cannot be",
                size,
                "whole sectors, at most 64 TiB",
            )
        return Geometry(size, block_size, logical, self._physical_sector_size())

    def _physical_sector_size(self) -> int:
        if layout.PHYSICAL_SECTOR_SIZE_ITEM not in self._values:
            return 4096
        physical = self._number(layout.PHYSICAL_SECTOR_SIZE_ITEM)
        if physical not in SECTOR_SIZES:
            self._log.note(
                Severity.ERROR,
                "vhdx.sector_size",
                "the physical sector size cannot be",
                offset=self._items[layout.PHYSICAL_SECTOR_SIZE_ITEM].offset,
                field="metadata.PhysicalSectorSize",
                found=physical,
                expected="512 or 4096 bytes",
            )
            return 4096
        return physical

    def locator(self, kind: DiskType, region: Region) -> ParentLocator | None:
        """The parent locator of a differencing disk."""
        item = self._items.get(layout.PARENT_LOCATOR_ITEM)
        if kind is not DiskType.DIFFERENCING:
            if item:
                self._log.note(
                    Severity.WARNING,
                    "vhdx.locator.unused",
                    "there is a parent locator, and the disk has no parent",
                    offset=item.entry_offset,
                    field="metadata.ParentLocator",
                )
            return None
        if item is None:
            self._log.note(
                Severity.ERROR,
                "vhdx.parent.no_locator",
                "the disk has a parent, and there is no usable parent locator",
                offset=region.file_offset,
                field="metadata.ParentLocator",
            )
            return None
        return decode_locator(self._values[layout.PARENT_LOCATOR_ITEM], item.offset, self._log)

    def _refuse(self, item_id: bytes, code: str, what: str, found: int, expected: str) -> NoReturn:
        raise_first_error(self._log.all())
        self._log.refuse(
            code,
            what,
            offset=self._items[item_id].offset,
            field=f"metadata.{_KNOWN[item_id].name}",
            found=found,
            expected=expected,
        )


def _section(region: Region, items: list[Item], values: dict[bytes, bytes]) -> Section:
    fields: list[tuple[str, str | int]] = [("EntryCount", len(items))]
    for item in items[:_SHOWN_MAX]:
        value = values.get(item.item_id) if item.known else None
        fields.append((item.name, _shown(item, value)))
    return Section("Metadata", region.file_offset, tuple(fields))


def _shown(item: Item, value: bytes | None) -> str | int:
    if value is None or item.known is None or item.known.length is None:
        owner = "user item" if item.is_user else "item"
        return f"{owner} of {item.length} bytes at {item.offset:#x}"
    if item.item_id == layout.FILE_PARAMETERS_ITEM:
        fields = layout.parse_file_parameters(value)
        return (
            f"BlockSize {fields.block_size}, LeaveBlockAllocated {fields.flags & 1}, "
            f"HasParent {fields.flags >> 1 & 1}"
        )
    if item.item_id == layout.CHS_PARAMETERS_ITEM:
        fields = layout.parse_chs_parameters(value)
        return f"HeadsPerCylinder {fields.heads_per_cylinder}, SectorsPerTrack {fields.sectors_per_track}"
    return str(Identity(value)) if len(value) == 16 else int.from_bytes(value, "little")


def _reserved(log: FindingLog, offset: int, field: str) -> None:
    log.note(
        Severity.WARNING,
        "vhdx.metadata.reserved",
        "reserved bits of the metadata are not zero",
        offset=offset,
        field=field,
        expected="zeros",
    )
