"""The region table: where the BAT and the metadata are.

Two copies; the first valid one counts, and when that is the first, reading needs no other: what is wrong
with the second is told to who asks (``judge_second_table``).  Region tables go through the log, so they are
read after it has been replayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple

from vhdtool.checksum import crc32c_without_field
from vhdtool.errors import EXIT_UNSUPPORTED, FindingLog, FormatError, ReadError, Severity
from vhdtool.formats.image import Section
from vhdtool.formats.vhdx import layout
from vhdtool.formats.vhdx.header import Header
from vhdtool.model.identity import Identity
from vhdtool.source import ByteSource

_SHOWN_MAX: Final = 64
_SIZE_ANY: Final = 1 << 128  # farther than a region can reach
_NAMES: Final = {layout.BAT_REGION: "BAT", layout.METADATA_REGION: "Metadata"}


class Region(NamedTuple):
    """One region.  ``file_offset`` and ``length`` are bytes; ``entry_offset`` is where its entry stands."""

    guid: bytes
    file_offset: int
    length: int
    required: int
    entry_offset: int

    @property
    def name(self) -> str:
        """The specification's name, or the GUID of an unknown one."""
        return _NAMES.get(self.guid) or str(Identity(self.guid))

    @property
    def is_known(self) -> bool:
        """Whether it is the BAT or the metadata."""
        return self.guid in _NAMES

    @property
    def shown(self) -> str:
        """Its fields for people to look at."""
        place = f"FileOffset {self.file_offset:#x}, Length {self.length:#x}"
        return f"{place}, Required {self.required & 1}"

    @property
    def stop(self) -> int:
        """The first byte behind it."""
        return self.file_offset + self.length


class RegionTable(NamedTuple):
    """The region table in use.  ``offset`` is where it stands."""

    offset: int
    checksum: int
    regions: tuple[Region, ...]
    bat: Region
    metadata: Region

    @property
    def section(self) -> Section:
        """The table for people to look at."""
        entries = tuple((region.name, region.shown) for region in self.regions[:_SHOWN_MAX])
        head = (("Checksum", f"{self.checksum:#010x}"), ("EntryCount", len(self.regions)))
        return Section("Region Table", self.offset, (*head, *entries))


def read_region_table(
    source: ByteSource, header: Header, log: FindingLog, *, ignore_checksums: bool = False
) -> RegionTable:
    """The region table that counts, judged.

    Raises:
        CorruptError: neither copy is valid, its count cannot be, or the BAT or the metadata is missing.
    """
    raw, offset = _choose(source, log, ignore_checksums=ignore_checksums)
    count = min(layout.parse_region_table_header(raw).entry_count, layout.REGION_COUNT_MAX)
    used = raw[: layout.REGION_TABLE_HEADER_SIZE + count * layout.REGION_ENTRY_SIZE]
    table = _faultless_table(used, offset)
    if table is not None and _are_apart(table.regions, source.size, header):
        return table
    return _decode_table(used, offset, source.size, header, log)


@lru_cache(maxsize=32)
def _faultless_table(raw: bytes, offset: int) -> RegionTable | None:
    """The region table in ``raw`` if nothing is wrong with it, whatever file it stands in; None otherwise.

    Whoever makes a thousand disks writes much the same table into each, and it is judged once.
    """
    log = FindingLog("")
    try:
        table = _decode_table(raw, offset, _SIZE_ANY, None, log)
    except FormatError:
        return None
    return None if log.all() else table


def _are_apart(regions: tuple[Region, ...], size: int, header: Header) -> bool:
    """Whether all ``regions`` lie within ``size`` and clear of the log."""
    for _, start, length, *_ in regions:
        stop = start + length
        if stop > size or (start < header.log_stop and header.log_offset < stop):
            return False
    return True


def _decode_table(raw: bytes, offset: int, size: int, header: Header | None, log: FindingLog) -> RegionTable:
    """The region table in ``raw``, judged as part of a file of ``size`` bytes with the log of ``header``."""
    fields = layout.parse_region_table_header(raw)
    if fields.entry_count > layout.REGION_COUNT_MAX:
        log.refuse(
            "vhdx.region.count",
            "the region table has more entries than it can hold",
            offset=offset + 8,
            field="region_table.EntryCount",
            found=str(fields.entry_count),
            expected=f"at most {layout.REGION_COUNT_MAX}",
        )
    if fields.reserved:
        _reserved(log, offset + 12, "region_table.Reserved", fields.reserved)
    regions = tuple(_decode(raw, i, offset) for i in range(fields.entry_count))
    _judge_each(regions, size, log)
    _judge_overlap(regions, header, log)
    return RegionTable(
        offset,
        fields.checksum,
        regions,
        _required(regions, layout.BAT_REGION, offset, log),
        _required(regions, layout.METADATA_REGION, offset, log),
    )


def judge_second_table(source: ByteSource, log: FindingLog) -> None:
    """Compare the second region table with the first one, which is valid and in use.

    A pass of its own because it takes as long as half of opening a file, and finds nothing but warnings.
    """
    try:
        second = _read_copy(source, 1)
        if second == _read_copy(source, 0):
            return
        fault = _fault(second)
    except ReadError as error:
        fault = str(error)
    if fault:
        _note_lost(1, fault, log)
    else:
        log.note(
            Severity.WARNING,
            "vhdx.region.differ",
            "the two region tables differ, the first one is used",
            offset=layout.REGION_TABLE_OFFSETS[1],
            field="region_table",
        )


def _choose(source: ByteSource, log: FindingLog, *, ignore_checksums: bool) -> tuple[bytes, int]:
    """The first valid copy and where it stands."""
    first = _read_copy(source, 0)
    fault = _fault(first)
    if not fault:
        return first, layout.REGION_TABLE_OFFSETS[0]
    second = _read_copy(source, 1)
    second_fault = _fault(second)
    if not second_fault:
        _note_lost(0, fault, log)
        return second, layout.REGION_TABLE_OFFSETS[1]
    if ignore_checksums:
        for raw, offset in zip((first, second), layout.REGION_TABLE_OFFSETS):
            if _is_plausible(raw):
                log.note(
                    Severity.WARNING,
                    "vhdx.region.checksum",
                    "the checksum of the region table is wrong and was ignored as asked",
                    offset=offset + layout.CHECKSUM_OFFSET,
                    field="region_table.Checksum",
                    found=int.from_bytes(raw[4:8], "little"),
                    expected=crc32c_without_field(raw, layout.CHECKSUM_OFFSET),
                )
                return raw, offset
    log.refuse(
        "vhdx.region.both",
        "neither region table is valid",
        offset=layout.REGION_TABLE_OFFSETS[0],
        field="region_table",
        found=f"{fault}; table 2: {second_fault}",
        expected="a signature 'regi' and the right checksum in one of them",
    )


def _read_copy(source: ByteSource, i: int) -> bytes:
    offset = layout.REGION_TABLE_OFFSETS[i]
    return source.read_exact(offset, layout.REGION_TABLE_SIZE, field=f"region table {i + 1}")


def _note_lost(i: int, fault: str, log: FindingLog) -> None:
    log.note(
        Severity.WARNING,
        "vhdx.region.one",
        f"region table {i + 1} is lost, the other one is used",
        offset=layout.REGION_TABLE_OFFSETS[i],
        field="region_table",
        found=fault,
        expected="a signature 'regi' and the right checksum",
    )


def _fault(raw: bytes) -> str:
    if not raw.startswith(layout.REGION_TABLE_SIGNATURE):
        return "no signature"
    stored = int.from_bytes(raw[4:8], "little")
    return "" if crc32c_without_field(raw, layout.CHECKSUM_OFFSET) == stored else "wrong checksum"


def _is_plausible(raw: bytes) -> bool:
    """Whether a table with a wrong checksum could be one: what counts when no checksum is right."""
    if not raw.startswith(layout.REGION_TABLE_SIGNATURE):
        return False
    count = layout.parse_region_table_header(raw).entry_count
    if count > layout.REGION_COUNT_MAX:
        return False
    regions = [_decode(raw, i, 0) for i in range(count)]
    guids = [region.guid for region in regions]
    return (
        all(guids.count(known) == 1 for known in _NAMES)
        and not any(_misplaced(region) for region in regions)
        and not any(region.required & 1 and not region.is_known for region in regions)
    )


def _decode(raw: bytes, i: int, table_offset: int) -> Region:
    start = layout.REGION_TABLE_HEADER_SIZE + i * layout.REGION_ENTRY_SIZE
    guid, file_offset, length, required = layout.parse_region_table_entry(raw, start)
    return Region(guid, file_offset, length, required, table_offset + start)


def _misplaced(region: Region) -> str:
    """Which field of ``region`` breaks a rule of its own, with its value; empty when none does."""
    if region.file_offset % layout.MIB or region.file_offset < layout.HEADER_AREA_SIZE:
        return f"FileOffset {region.file_offset:#x}"
    if region.length % layout.MIB or region.length == 0:
        return f"Length {region.length:#x}"
    return ""


def _judge_each(regions: tuple[Region, ...], size: int, log: FindingLog) -> None:
    seen: set[bytes] = set()
    for region in regions:
        field = f"region_table.{region.name}"
        if region.guid in seen:
            log.note(
                Severity.ERROR,
                "vhdx.region.duplicate",
                f"region {region.name} stands in the table twice",
                offset=region.entry_offset,
                field=field,
            )
        seen.add(region.guid)
        misplaced = _misplaced(region)
        if misplaced:
            log.note(
                Severity.ERROR,
                "vhdx.region.align",
                f"region {region.name} is misplaced",
                offset=region.entry_offset + 16,
                field=field,
                found=misplaced,
                expected="multiples of 1 MiB, not zero, behind the first MiB",
            )
        if region.stop > size:
            needed = region.is_known or region.required & 1
            log.note(
                Severity.ERROR if needed else Severity.WARNING,
                "vhdx.region.eof",
                f"region {region.name} lies beyond the end of the file",
                offset=region.entry_offset + 16,
                field=field,
                found=f"{region.file_offset:#x} to {region.stop:#x}",
                expected=f"within {size:#x}",
            )
        if region.required >> 1:
            _reserved(log, region.entry_offset + 28, f"{field}.Required", region.required)
        if region.required & 1 and not region.is_known:
            log.note(
                Severity.ERROR,
                "vhdx.region.unknown_required",
                "an unknown region is required",
                offset=region.entry_offset,
                field=field,
                found=region.name,
                expected="BAT or Metadata",
                exit_code=EXIT_UNSUPPORTED,
            )
        if not region.required & 1 and region.is_known:
            log.note(
                Severity.INFO,
                "vhdx.region.not_required",
                f"region {region.name} is not marked as required",
                offset=region.entry_offset + 28,
                field=f"{field}.Required",
                found=0,
                expected=1,
            )


def _judge_overlap(regions: tuple[Region, ...], header: Header | None, log: FindingLog) -> None:
    """Regions, the first MiB and the log must be apart; an unused log may lie where it likes (a warning)."""
    places = [(region.file_offset, region.stop, region.name, region.entry_offset) for region in regions]
    places.append((0, layout.HEADER_AREA_SIZE, "the header area", 0))
    for first, second in _overlaps(places):
        log.note(
            Severity.ERROR,
            "vhdx.region.overlap",
            f"region {second[2]} overlaps {first[2]}",
            offset=max(first[3], second[3]),
            field="region_table",
            found=f"{second[0]:#x} to {second[1]:#x}",
            expected=f"nothing within {first[0]:#x} to {first[1]:#x}",
        )
    if header is None or not header.log_length:
        return
    for region in (r for r in regions if r.file_offset < header.log_stop and header.log_offset < r.stop):
        log.note(
            Severity.ERROR if header.log_is_pending else Severity.WARNING,
            "vhdx.region.overlap",
            f"region {region.name} overlaps the log",
            offset=region.entry_offset + 16,
            field="region_table",
            found=f"{region.file_offset:#x} to {region.stop:#x}",
            expected=f"nothing within {header.log_offset:#x} to {header.log_stop:#x}",
        )


_Place = tuple[int, int, str, int]


def _overlaps(places: list[_Place]) -> Iterator[tuple[_Place, _Place]]:
    """Pairs of ``places`` that share bytes: each place with the farthest-reaching one before it."""
    places = sorted(place for place in places if place[0] < place[1])
    reach = places[0]
    for _, place in pairwise(places):
        if place[0] < reach[1]:
            yield reach, place
        if place[1] > reach[1]:
            reach = place


def _required(regions: tuple[Region, ...], guid: bytes, table_offset: int, log: FindingLog) -> Region:
    for region in regions:
        if region.guid == guid:
            return region
    log.refuse(
        "vhdx.region.missing",
        f"there is no region {_NAMES[guid]}",
        offset=table_offset,
        field="region_table",
        expected=str(Identity(guid)),
    )


def _reserved(log: FindingLog, offset: int, field: str, found: int) -> None:
    log.note(
        Severity.WARNING,
        "vhdx.region.reserved",
        "reserved bits of the region table are not zero",
        offset=offset,
        field=field,
        found=found,
        expected="zeros",
    )
