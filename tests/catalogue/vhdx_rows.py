"""Damaged VHDXs: each rule of the digest broken on its own, then hostile logs, tables and cuts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.catalogue.row import Maker, Row, child_vhdx, file_of, row, vhdx
from tests.surgery.healthy import ALL, CHILD_GUID, PARENT_GUID, a_child_vhdx, a_locator, a_vhdx
from tests.surgery.patient import Patient
from tests.surgery.vhdx import (
    BAT_REGION,
    ITEMS,
    METADATA_REGION,
    MIB,
    LogEntry,
    LogWrite,
    LogZero,
    VhdxSurgeon,
    encode_locator,
    guid,
)

LOG: Final = guid("5b1f9a6a-0f7c-4b55-9a53-7f3a4d8a1c11")
FOREIGN: Final = guid("11111111-0f7c-4b55-9a53-7f3a4d8a1c11")
STRANGE: Final = guid("deadbeef-0f7c-4b55-9a53-7f3a4d8a1c11")
SYSTEM_REQUIRED: Final = 4
USER: Final = 1

Change = Callable[[VhdxSurgeon], object]
_four_k = functools.cache(lambda: a_vhdx(sector_size=4096))
_fixed = functools.cache(lambda: a_vhdx(flags=1, size=2 * MIB))


def _header(number: int, *, repair: bool = True, **values: int | bytes) -> Maker:
    def change(surgeon: VhdxSurgeon) -> None:
        for name, value in values.items():
            surgeon.header(number)[name] = value
        if repair:
            surgeon.repair_header(number)

    return vhdx(change, repair=False)


def _headers(**values: int | bytes) -> Maker:
    return vhdx(lambda s: s.both_headers(**values))


def _equal_numbers(surgeon: VhdxSurgeon) -> None:
    surgeon.header(1)["SequenceNumber"] = surgeon.header(2)["SequenceNumber"]
    surgeon.header(1)["FileWriteGuid"] = STRANGE


def _equal_headers(surgeon: VhdxSurgeon) -> None:
    surgeon.patient.write(0x10000, surgeon.patient.read(0x20000, 4096))


def _bad_header_sums(surgeon: VhdxSurgeon) -> None:
    for number in (1, 2):
        surgeon.header(number)["Checksum"] ^= 1


def _bad_region_sums(surgeon: VhdxSurgeon) -> None:
    for number in (1, 2):
        surgeon.region_table(number)["Checksum"] ^= 1


def _region_table(number: int, *, repair: bool, **values: int | bytes) -> Maker:
    def change(surgeon: VhdxSurgeon) -> None:
        for name, value in values.items():
            surgeon.region_table(number)[name] = value
        if repair:
            surgeon.repair_region_table(number)

    return vhdx(change, repair=False)


def _both_region_tables(**values: int | bytes) -> Maker:
    def change(surgeon: VhdxSurgeon) -> None:
        for number in (1, 2):
            for name, value in values.items():
                surgeon.region_table(number)[name] = value

    return vhdx(change)


def _regions(guid_: bytes, **values: int | bytes) -> Maker:
    return vhdx(lambda s: s.both_regions(guid_, **values))


def _further_region(guid_: bytes) -> Maker:
    """A required region behind everything else, inside the file."""

    def change(surgeon: VhdxSurgeon) -> None:
        surgeon.add_region(guid_, surgeon.patient.size, MIB, 1)
        surgeon.patient.resize(surgeon.patient.size + MIB)

    return vhdx(change)


def _log_of_holes(length: int) -> Maker:
    """A pending log of so many bytes behind everything else, nothing in it."""

    def change(surgeon: VhdxSurgeon) -> None:
        surgeon.both_headers(LogLength=length, LogOffset=surgeon.patient.size, LogGuid=LOG)
        surgeon.patient.resize(surgeon.patient.size + length)

    return vhdx(change)


def _many_regions(surgeon: VhdxSurgeon) -> None:
    """As many as a table can hold, all unknown, all at one place beyond the file."""
    for number in range(2045):
        for table in (1, 2):
            head = surgeon.region_table(table)
            at = head.offset + 16 + 32 * (2 + number)
            entry = number.to_bytes(2, "little") + bytes(13) + b"\x99"
            entry += (1 << 40).to_bytes(8, "little") + MIB.to_bytes(4, "little") + bytes(4)
            surgeon.patient.write(at, entry)
            head["EntryCount"] = 3 + number


def _item(name: str, field: str, value: int | bytes) -> Maker:
    def change(surgeon: VhdxSurgeon) -> None:
        surgeon.item(name)[field] = value

    return vhdx(change)


def _content(name: str, data: bytes, base: Callable[[], Patient] | None = None) -> Maker:
    change: Change = lambda s: s.set_item(name, data)  # noqa: E731
    return vhdx(change) if base is None else vhdx(change, base)


def _add(item_id: bytes, data: bytes, flags: int) -> Maker:
    return vhdx(lambda s: s.add_item(item_id, data, flags))


def _u32(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _many_user_items(surgeon: VhdxSurgeon) -> None:
    """2042 user items of no length: more than the half of the table that is theirs."""
    for number in range(2042):
        entry = number.to_bytes(2, "little") + bytes(13) + b"\x55" + bytes(8) + _u32(USER, 0)
        surgeon.patient.write(surgeon.metadata_at + 32 + 32 * (5 + number), entry)
    surgeon.metadata_table["EntryCount"] = 2047


def _bat(index: int, value: int, base: Callable[[], Patient] | None = None) -> Maker:
    change: Change = lambda s: s.set_bat(index, value)  # noqa: E731
    return vhdx(change) if base is None else vhdx(change, base)


def _block(block: int, state: int, offset: int | None = None) -> Maker:
    return vhdx(lambda s: s.set_block(block, state, offset))


# ------------------------------------------------------------------ logs


def _logged(
    entries: Callable[[VhdxSurgeon], Sequence[LogEntry]],
    *,
    start: int = 0,
    log_mib: int = 1,
    after: Change = lambda s: None,
    base: Callable[[], Patient] | None = None,
) -> Maker:
    """A pending log with ``entries`` from byte ``start`` of the ring on."""

    def change(surgeon: VhdxSurgeon) -> None:
        if log_mib > 1:
            at = surgeon.patient.size
            surgeon.patient.resize(at + log_mib * MIB)
            surgeon.both_headers(LogOffset=at, LogLength=log_mib * MIB)
        surgeon.write_log(entries(surgeon), log_guid=LOG, start=start)
        after(surgeon)

    return vhdx(change) if base is None else vhdx(change, base)


def _same_bat(surgeon: VhdxSurgeon) -> LogWrite:
    return LogWrite(surgeon.bat_at, surgeon.patient.read(surgeon.bat_at, 4096))


def _one(**changes: object) -> Callable[[VhdxSurgeon], Sequence[LogEntry]]:
    """One entry that writes the BAT's page as it is."""
    return lambda s: [LogEntry([_same_bat(s)], sequence=70, **changes)]  # type: ignore[arg-type]


def _writes(*writes: LogWrite | LogZero) -> Callable[[VhdxSurgeon], Sequence[LogEntry]]:
    return lambda s: [LogEntry(writes, sequence=70)]


def _ring_of_failures(entry_count: int) -> Callable[[VhdxSurgeon], Sequence[LogEntry]]:
    """Entries without a descriptor, one number after the other, none of which is the others' tail."""
    return lambda s: [LogEntry(sequence=100 + i, tail=(entry_count + 7) * 4096) for i in range(entry_count)]


def _ring_of_liars(entry_count: int, length: int) -> Callable[[VhdxSurgeon], Sequence[LogEntry]]:
    """Entries that claim the whole ring, so that judging each costs a checksum over all of it."""
    return lambda s: [
        LogEntry(sequence=100 + i, overrides={"EntryLength": length}) for i in range(entry_count)
    ]


def _ring_of_pairs(entry_count: int) -> Callable[[VhdxSurgeon], Sequence[LogEntry]]:
    """Every entry is a sequence of its own: each number is two more than the last."""
    return lambda s: [LogEntry(sequence=100 + 2 * i) for i in range(entry_count)]


def _zero_storm(count: int) -> Callable[[VhdxSurgeon], Sequence[LogEntry]]:
    """``count`` zero descriptors over the unused end of the BAT's region, each over its neighbour's half."""

    def entries(surgeon: VhdxSurgeon) -> Sequence[LogEntry]:
        base = surgeon.bat_at + 0x10000
        return [LogEntry([LogZero(base + i % 96 * 4096, 8192) for i in range(count)], sequence=70)]

    return entries


def _storm_over_bitmaps(folder: Path) -> Path:
    """65536 patches and 256 sector bitmaps: whoever sorts all patches for each bitmap is slow."""
    chunks, patches = 256, 65536
    size = chunks * 4096 * MIB
    patient = a_vhdx(
        size=size, flags=2, bat_mib=9, blocks={}, data_write_guid=CHILD_GUID, locator=a_locator()
    )
    surgeon = VhdxSurgeon(patient)
    block_at = patient.size
    for chunk in range(chunks):
        at = block_at + chunk * 2 * MIB
        surgeon.set_bat(surgeon.index(chunk * surgeon.ratio), at | 7)
        surgeon.set_bat(surgeon.bitmap_index(chunk), (at + MIB) | 6)
    unused = block_at + chunks * 2 * MIB
    log_at = unused + patches * 8192
    patient.resize(log_at + 8 * MIB)
    surgeon.both_headers(LogOffset=log_at, LogLength=8 * MIB)
    writes = [LogZero(unused + i * 8192, 4096) for i in range(patches)]
    surgeon.write_log([LogEntry(writes, sequence=70)], log_guid=LOG)
    a_vhdx(size=size, bat_mib=9, blocks={}).save(folder / "parent.vhdx")
    return surgeon.close_up().save(folder / "child.avhdx")


def _moved_bat(surgeon: VhdxSurgeon) -> Sequence[LogEntry]:
    """The log holds a whole region table, which says what the one in the file says."""
    table = surgeon.patient.read(0x30000, 4096)
    return [LogEntry([LogWrite(0x30000, table)], sequence=70)]


def _log_length(length: int, **more: int | bytes) -> Maker:
    return _headers(LogLength=length, LogGuid=LOG, **more)


# ------------------------------------------------------------------ large ones


def _huge(size: int, block_size: int, bat_mib: int, blocks: dict[int, int]) -> Maker:
    return vhdx(
        lambda s: None,
        lambda: a_vhdx(size=size, block_size=block_size, bat_mib=bat_mib, blocks=blocks),
    )


def _full_of_nothing(folder: Path) -> Path:
    """64 TiB of blocks of 1 MiB, whose BAT of 513 MiB is a hole of the file but for its last page."""
    patient = a_vhdx(size=64 << 40, block_size=MIB, bat_mib=513, blocks={0: 6, (64 << 20) - 1: 6})
    return patient.save(folder / "disk.vhdx")


def _overfull(folder: Path) -> Path:
    """A table whose every entry names the same block: more blocks than the file has room for."""
    surgeon = VhdxSurgeon(a_vhdx(size=1 << 40, block_size=MIB, bat_mib=9, blocks={0: 6}))
    at = surgeon.data_at(0)
    surgeon.patient.write(surgeon.bat_at, (at | 6).to_bytes(8, "little") * (1 << 20))
    return surgeon.close_up().save(folder / "disk.vhdx")


def _cut(size: int) -> Maker:
    return vhdx(lambda s: s.patient.resize(s.patient.size + size if size < 0 else size), repair=False)


def _signatures_only(surgeon: VhdxSurgeon) -> None:
    for at, signature in ((0x10000, b"head"), (0x20000, b"head"), (0x30000, b"regi"), (0x40000, b"regi")):
        surgeon.patient.write(at, signature.ljust(0x10000, b"\0"))


# ------------------------------------------------------------------ locators


def _locator(item: bytes) -> Maker:
    return child_vhdx(lambda s: s.set_locator(item))


def _keys(**changes: str | None) -> bytes:
    values = {
        "parent_linkage": "{" + PARENT_GUID + "}",
        "relative_path": ".\\parent.vhdx",
        "absolute_win32_path": "C:\\VMs\\parent.vhdx",
    }
    for key, value in changes.items():
        values.pop(key, None)
        if value is not None:
            values[key] = value
    return encode_locator(values)


ROWS: Final[list[Row]] = [
    # ------------------------------------------------------------ identifier and headers
    row(
        "the identifier is destroyed",
        vhdx(lambda s: s.patient.write(0, b"nothing!")),
        "E vhdx.signature",
        opens=False,
    ),
    row(
        "the creator is an escape sequence",
        vhdx(lambda s: s.patient.write(8, "\x1b]0;pwned\7\x1b[2J".encode("utf-16-le"))),
    ),
    row("the creator has lone surrogates", vhdx(lambda s: s.patient.write(8, b"\x00\xd8" * 256))),
    row("header 1 has a wrong checksum", _header(1, repair=False, Checksum=3), "W vhdx.header.one"),
    row("header 2 has no signature", _header(2, Signature=b"haed"), "W vhdx.header.one"),
    row(
        "both headers have wrong checksums",
        vhdx(_bad_header_sums, repair=False),
        "E vhdx.header.none",
        opens=False,
    ),
    row(
        "both headers have wrong checksums that are to be ignored",
        vhdx(_bad_header_sums, repair=False),
        "W vhdx.header.checksum",
        options=["--ignore-checksums"],
    ),
    row(
        "both headers lack their signature",
        _headers(Signature=b"\0\0\0\0"),
        "E vhdx.header.none",
        opens=False,
    ),
    row("the headers carry one number and differ", vhdx(_equal_numbers), "E vhdx.header.equal"),
    row("the headers are the same to the last byte", vhdx(_equal_headers)),
    row("the last update was not doubled", _header(1, DataWriteGuid=STRANGE), "I vhdx.header.differ"),
    row("the format's version is 2", _headers(Version=2), "E vhdx.header.version", exit_code=69, opens=False),
    row(
        "the log's version is unknown and a log is pending",
        _logged(_one(), after=lambda s: s.both_headers(LogVersion=1)),
        "E vhdx.header.log_version",
        exit_code=69,
    ),
    row("the log's version is unknown and nothing is pending", _headers(LogVersion=1)),
    row("reserved bytes of the header are set", _headers(Reserved=b"\1"), "I vhdx.header.reserved"),
    # ------------------------------------------------------------ the log's place
    row(
        "an unused log is not at a mebibyte",
        _headers(LogOffset=MIB + 4096),
        "W vhdx.log.align",
        "W vhdx.region.overlap",
    ),
    row("an unused log lies in the headers", _headers(LogOffset=0), "W vhdx.log.align"),
    row("an unused log lies beyond the file", _headers(LogOffset=1 << 60), "W vhdx.log.eof"),
    row("an unused log lies over the metadata", _headers(LogOffset=2 * MIB), "W vhdx.region.overlap"),
    row(
        "a pending log lies over the metadata",
        vhdx(lambda s: s.both_headers(LogOffset=2 * MIB, LogGuid=LOG)),
        "E vhdx.log.no_sequence",
        "E vhdx.region.overlap",
    ),
    row(
        "a pending log is not at a mebibyte",
        _headers(LogOffset=MIB + 4096, LogGuid=LOG),
        "E vhdx.log.align",
        "E vhdx.region.overlap",
    ),
    row("a pending log lies beyond the file", _headers(LogOffset=1 << 60, LogGuid=LOG), "E vhdx.log.eof"),
    row("a pending log has no length", _log_length(0), "E vhdx.log.zero_length"),
    row("an unused log has no length", _headers(LogLength=0)),
    row(
        "a pending log of 2 GiB is a hole",
        _log_of_holes(2 << 30),
        "E vhdx.log.limit",
        exit_code=69,
    ),
    row(
        "a pending log of 256 MiB is a hole",
        _log_of_holes(256 * MIB),
        "E vhdx.log.no_sequence",
    ),
    # ------------------------------------------------------------ pending logs
    row("a log is pending", _logged(_one()), "I vhdx.log.pending"),
    row("a log is pending and left out", _logged(_one()), "W vhdx.log.left_out", options=["--log", "before"]),
    row("a log rewrites the region table", _logged(_moved_bat), "I vhdx.log.pending"),
    row("a log's entries wrap around its end", _logged(_one(), start=MIB - 4096), "I vhdx.log.pending"),
    row("a pending log is empty", _headers(LogGuid=LOG), "E vhdx.log.no_sequence"),
    row(
        "a pending log is empty and left out",
        _headers(LogGuid=LOG),
        "W vhdx.log.left_out",
        options=["--log", "before"],
    ),
    row(
        "all of the log's entries are another log's",
        _logged(lambda s: [LogEntry(sequence=i, log_guid=FOREIGN) for i in range(1, 257)]),
        "E vhdx.log.no_sequence",
    ),
    row(
        "the newest entry is torn",
        _logged(
            lambda s: [
                LogEntry([_same_bat(s)], sequence=70),
                LogEntry([LogZero(s.bat_at, 4096)], sequence=71, tail=0, good_checksum=False),
            ]
        ),
        "I vhdx.log.pending",
    ),
    row("the only entry is torn", _logged(_one(good_checksum=False)), "E vhdx.log.no_sequence"),
    row("the head's tail is not an entry", _logged(_one(tail=0x80000)), "E vhdx.log.no_sequence"),
    row("the head's tail lies beyond the log", _logged(_one(tail=MIB)), "E vhdx.log.no_sequence"),
    row("the head's tail is not at a sector", _logged(_one(tail=17)), "E vhdx.log.no_sequence"),
    row(
        "an entry's number is zero",
        _logged(lambda s: [LogEntry([_same_bat(s)], sequence=0)]),
        "E vhdx.log.no_sequence",
    ),
    row(
        "an entry has the last number there is",
        _logged(lambda s: [LogEntry([_same_bat(s)], sequence=(1 << 64) - 1)]),
        "I vhdx.log.pending",
    ),
    row(
        "an entry claims 2**32 - 1 descriptors",
        _logged(_one(overrides={"DescriptorCount": 0xFFFFFFFF})),
        "E vhdx.log.no_sequence",
    ),
    row(
        "an entry claims one descriptor more than it has",
        _logged(_one(overrides={"DescriptorCount": 2})),
        "E vhdx.log.no_sequence",
    ),
    row(
        "an entry claims fewer descriptors than pages",
        _logged(_one(overrides={"DescriptorCount": 0})),
        "E vhdx.log.no_sequence",
    ),
    row("an entry has no length", _logged(_one(overrides={"EntryLength": 0})), "E vhdx.log.no_sequence"),
    row(
        "an entry is longer than the log",
        _logged(_one(overrides={"EntryLength": 2 * MIB})),
        "E vhdx.log.no_sequence",
    ),
    row(
        "an entry claims 4 GiB",
        _logged(_one(overrides={"EntryLength": 0xFFFFF000})),
        "E vhdx.log.no_sequence",
    ),
    row(
        "an entry's length is no sectors",
        _logged(_one(overrides={"EntryLength": 8191})),
        "E vhdx.log.no_sequence",
    ),
    row(
        "a descriptor's signature is unknown",
        _logged(_one(), after=lambda s: s.patient.write(MIB + 64, b"desk")),
        "E vhdx.log.no_sequence",
    ),
    row(
        "a data sector's number is another entry's",
        _logged(_one(), after=lambda s: s.patient.write(MIB + 8188, b"\0\0\0\7")),
        "E vhdx.log.no_sequence",
    ),
    row(
        "the log zeros an exabyte",
        _logged(_writes(LogZero(8 * MIB, 1 << 60))),
        "I vhdx.log.pending",
        "W vhdx.log.target",
    ),
    row(
        "the log zeros an exabyte of payload",
        _logged(_writes(LogZero(4 * MIB, 1 << 60))),
        "I vhdx.log.pending",
        "W vhdx.log.target",
        "W vhdx.log.payload",
    ),
    row(
        "the log writes at the end of all offsets",
        _logged(_writes(LogZero((1 << 64) - 4096, 1 << 63))),
        "I vhdx.log.pending",
        "W vhdx.log.target",
    ),
    row("the log writes nothing at all", _logged(_writes(LogZero(4 * MIB, 0))), "I vhdx.log.pending"),
    row("the log writes into the headers", _logged(_writes(LogZero(0x10000, 4096))), "E vhdx.log.target"),
    row("the log writes into itself", _logged(_writes(LogZero(MIB + 0x8000, 4096))), "E vhdx.log.target"),
    row("the log writes half a page", _logged(_writes(LogZero(3 * MIB + 512, 4096))), "E vhdx.log.target"),
    row(
        "the log zeros the metadata",
        _logged(_writes(LogZero(2 * MIB, 0x10000))),
        "E vhdx.metadata.signature",
        opens=False,
    ),
    row(
        "the log zeros both region tables",
        _logged(_writes(LogZero(0x30000, 0x20000))),
        "E vhdx.region.both",
        opens=False,
    ),
    row(
        "the file is shorter than the log says",
        _logged(_one(flushed=1 << 40)),
        "E vhdx.log.truncated",
        "I vhdx.log.pending",
    ),
    row(
        "the log makes the file longer",
        _logged(_one(last=64 * MIB)),
        "W vhdx.log.extends",
        "I vhdx.log.pending",
    ),
    row(
        "the log makes the file 64 TiB long",
        _logged(_one(last=64 << 40)),
        "W vhdx.log.extends",
        "I vhdx.log.pending",
    ),
    row("the log makes the file 2**60 bytes long", _logged(_one(last=1 << 60)), "E vhdx.log.last_offset"),
    row(
        "the log makes the file 2**64 bytes long",
        _logged(_one(last=(1 << 64) - MIB)),
        "E vhdx.log.last_offset",
    ),
    row(
        "a ring of 4096 entries leads nowhere",
        _logged(_ring_of_failures(4080), log_mib=16),
        "E vhdx.log.no_sequence",
    ),
    row(
        "a ring of 4096 entries, each a sequence of its own",
        _logged(_ring_of_pairs(4096), log_mib=16),
        "I vhdx.log.pending",
    ),
    row("256 entries claim the whole ring each", _logged(_ring_of_liars(256, MIB)), "E vhdx.log.no_sequence"),
    row(
        "4096 entries claim the whole ring each",
        _logged(_ring_of_liars(4096, 16 * MIB), log_mib=16),
        "E vhdx.log.no_sequence",
    ),
    row("a log has 32000 zero descriptors", _logged(_zero_storm(32000)), "I vhdx.log.pending"),
    row("a log has 262144 zero descriptors", _logged(_zero_storm(1 << 18), log_mib=16), "I vhdx.log.pending"),
    row(
        "a log has 262145 zero descriptors",
        _logged(_zero_storm((1 << 18) + 1), log_mib=16),
        "E vhdx.log.limit",
        exit_code=69,
    ),
    row(
        "a log of 65536 patches beside 256 sector bitmaps",
        _storm_over_bitmaps,
        "I vhdx.log.pending",
        "I vhdx.bitmap.empty",
        exports=False,
    ),
    # ------------------------------------------------------------ region tables
    row(
        "region table 1 has a wrong checksum", _region_table(1, repair=False, Checksum=1), "W vhdx.region.one"
    ),
    row(
        "region table 2 has no signature",
        _region_table(2, repair=True, Signature=b"rege"),
        "W vhdx.region.one",
    ),
    row(
        "both region tables have wrong checksums",
        vhdx(_bad_region_sums, repair=False),
        "E vhdx.region.both",
        opens=False,
    ),
    row(
        "both region tables have wrong checksums that are to be ignored",
        vhdx(_bad_region_sums, repair=False),
        "W vhdx.region.checksum",
        options=["--ignore-checksums"],
    ),
    row("the region tables differ", _region_table(2, repair=True, Reserved=5), "W vhdx.region.differ"),
    row(
        "a region table claims 2048 entries",
        _both_region_tables(EntryCount=2048),
        "E vhdx.region.count",
        opens=False,
    ),
    row(
        "a region table claims 2**32 - 1 entries",
        _both_region_tables(EntryCount=0xFFFFFFFF),
        "E vhdx.region.count",
        opens=False,
    ),
    row(
        "2045 unknown regions lie beyond the file",
        vhdx(_many_regions),
        "W vhdx.region.eof",
        "E vhdx.region.overlap",
    ),
    row("reserved bits of a region table are set", _both_region_tables(Reserved=1), "W vhdx.region.reserved"),
    row("reserved bits of a region are set", _regions(BAT_REGION, Required=3), "W vhdx.region.reserved"),
    row(
        "the BAT stands in the region table twice",
        _further_region(BAT_REGION),
        "E vhdx.region.duplicate",
    ),
    row(
        "the BAT is not at a mebibyte", _regions(BAT_REGION, FileOffset=3 * MIB + 512), "E vhdx.region.align"
    ),
    row(
        "the metadata region has no length",
        _regions(METADATA_REGION, Length=0),
        "E vhdx.region.align",
        opens=False,
    ),
    row(
        "the metadata lie over the log",
        _regions(METADATA_REGION, FileOffset=MIB),
        "E vhdx.metadata.signature",
        opens=False,
    ),
    row(
        "the BAT lies over the metadata",
        _regions(BAT_REGION, FileOffset=2 * MIB),
        "E vhdx.region.overlap",
        "E vhdx.bat.eof",
        "E vhdx.bat.state",
        "W vhdx.bat.state",
        "W vhdx.bat.reserved",
    ),
    row("the BAT lies beyond the file", _regions(BAT_REGION, FileOffset=1 << 40), "E vhdx.region.eof"),
    row(
        "the metadata lie beyond the file",
        _regions(METADATA_REGION, FileOffset=1 << 40),
        "E vhdx.region.eof",
        opens=False,
    ),
    row(
        "the BAT lies at 2**64 - 1 MiB", _regions(BAT_REGION, FileOffset=(1 << 64) - MIB), "E vhdx.region.eof"
    ),
    row(
        "an unknown region lies beyond the file",
        vhdx(lambda s: s.add_region(STRANGE, 1 << 40, MIB)),
        "W vhdx.region.eof",
    ),
    row(
        "an unknown region lies at 2**64 - 1 MiB",
        vhdx(lambda s: s.add_region(STRANGE, (1 << 64) - MIB, MIB)),
        "W vhdx.region.eof",
    ),
    row(
        "an unknown region is required",
        _further_region(STRANGE),
        "E vhdx.region.unknown_required",
        exit_code=69,
    ),
    row(
        "there is no BAT region",
        _regions(BAT_REGION, Guid=STRANGE, Required=0),
        "E vhdx.region.missing",
        opens=False,
    ),
    row(
        "there is no metadata region",
        _regions(METADATA_REGION, Guid=STRANGE, Required=0),
        "E vhdx.region.missing",
        opens=False,
    ),
    row("the BAT is not marked as required", _regions(BAT_REGION, Required=0), "I vhdx.region.not_required"),
    # ------------------------------------------------------------ metadata
    row(
        "the metadata table has no signature",
        vhdx(lambda s: s.metadata_table.__setitem__("Signature", b"metadatA")),
        "E vhdx.metadata.signature",
        opens=False,
    ),
    row(
        "the metadata table claims 2048 entries",
        vhdx(lambda s: s.metadata_table.__setitem__("EntryCount", 2048)),
        "E vhdx.metadata.count",
        opens=False,
    ),
    row("the metadata table holds 2042 user items", vhdx(_many_user_items), "E vhdx.metadata.count"),
    row(
        "reserved bytes of the metadata table are set",
        vhdx(lambda s: s.metadata_table.__setitem__("Reserved2", b"\1")),
        "W vhdx.metadata.reserved",
    ),
    row(
        "an item lies in the metadata table",
        _item("VirtualDiskId", "Offset", 64),
        "E vhdx.metadata.range",
        "E vhdx.metadata.missing",
    ),
    row(
        "an item lies beyond its region",
        _item("VirtualDiskId", "Offset", 0xFFFFFFF0),
        "E vhdx.metadata.range",
        "E vhdx.metadata.missing",
    ),
    row(
        "the file parameters lie beyond their region",
        _item("FileParameters", "Offset", MIB - 4),
        "E vhdx.metadata.range",
        opens=False,
    ),
    row(
        "an item has 4 GiB",
        _item("VirtualDiskId", "Length", 0xFFFFFFFF),
        "E vhdx.metadata.range",
        "E vhdx.metadata.size",
        "E vhdx.metadata.missing",
        "E vhdx.metadata.overlap",
    ),
    row(
        "two items share bytes",
        _item("PhysicalSectorSize", "Offset", 0x10000 + 8 + 8),
        "E vhdx.metadata.overlap",
        "E vhdx.sector_size",
    ),
    row(
        "an item stands in the table twice",
        _add(ITEMS["VirtualDiskSize"], _u64(MIB), 6),
        "E vhdx.metadata.duplicate",
    ),
    row(
        "an item has the wrong length",
        _item("VirtualDiskId", "Length", 15),
        "E vhdx.metadata.size",
        "E vhdx.metadata.missing",
    ),
    row("an item's id is zero", _add(bytes(16), b"1234", 0), "E vhdx.metadata.zero_id"),
    row("a user item is required", _add(STRANGE, b"1234", 5), "E vhdx.metadata.user_required"),
    row("an unknown user item is no finding", _add(STRANGE, b"1234", USER)),
    row("an unknown item is no finding", _add(STRANGE, b"1234", 0)),
    row(
        "an unknown item is required",
        _add(STRANGE, b"1234", SYSTEM_REQUIRED),
        "E vhdx.metadata.unknown_required",
        exit_code=69,
    ),
    row(
        "the virtual disk id is missing",
        vhdx(lambda s: s.drop_item("VirtualDiskId")),
        "E vhdx.metadata.missing",
    ),
    row(
        "the virtual disk size is missing",
        vhdx(lambda s: s.drop_item("VirtualDiskSize")),
        "E vhdx.metadata.missing",
        opens=False,
    ),
    row(
        "the file parameters are missing",
        vhdx(lambda s: s.drop_item("FileParameters")),
        "E vhdx.metadata.missing",
        opens=False,
    ),
    row("an item is marked as the file's own", _item("VirtualDiskSize", "Flags", 4), "W vhdx.metadata.flags"),
    row(
        "reserved flags of an item are set", _item("VirtualDiskSize", "Flags", 0x86), "W vhdx.metadata.flags"
    ),
    row(
        "the file was never finished",
        _add(ITEMS["IncompleteFile"], b"", SYSTEM_REQUIRED),
        "E vhdx.metadata.incomplete",
    ),
    row(
        "the block size is 3 MiB",
        _content("FileParameters", _u32(3 * MIB, 0)),
        "E vhdx.block_size",
        opens=False,
    ),
    row("the block size is 0", _content("FileParameters", _u32(0, 0)), "E vhdx.block_size", opens=False),
    row(
        "the block size is 512 MiB",
        _content("FileParameters", _u32(512 * MIB, 0)),
        "E vhdx.block_size",
        opens=False,
    ),
    row(
        "reserved flags of the file parameters are set",
        _content("FileParameters", _u32(MIB, 0x80)),
        "W vhdx.metadata.reserved",
    ),
    row("the disk has no size", _content("VirtualDiskSize", _u64(0)), "E vhdx.disk_size", opens=False),
    row(
        "the disk is no whole number of sectors",
        _content("VirtualDiskSize", _u64(MIB + 1)),
        "E vhdx.disk_size",
        opens=False,
    ),
    row(
        "the disk is no whole number of 4096-byte sectors",
        _content("VirtualDiskSize", _u64(MIB + 512), _four_k),
        "E vhdx.disk_size",
        opens=False,
    ),
    row(
        "the disk is larger than 64 TiB",
        _content("VirtualDiskSize", _u64((64 << 40) + 512)),
        "E vhdx.disk_size",
        opens=False,
    ),
    row(
        "the disk has 2**64 - 512 bytes",
        _content("VirtualDiskSize", _u64((1 << 64) - 512)),
        "E vhdx.disk_size",
        opens=False,
    ),
    row(
        "the logical sector size is 1024",
        _content("LogicalSectorSize", _u32(1024)),
        "E vhdx.sector_size",
        opens=False,
    ),
    row("the physical sector size is 0", _content("PhysicalSectorSize", _u32(0)), "E vhdx.sector_size"),
    # ------------------------------------------------------------ BAT
    row(
        "the BAT is too small for a disk of 64 TiB",
        _content("VirtualDiskSize", _u64(64 << 40)),
        "E vhdx.bat.small",
    ),
    row("a block is in reserved state 4", _block(1, 4, 0), "E vhdx.bat.state"),
    row("a block is in reserved state 5", _block(1, 5, 0), "E vhdx.bat.state"),
    row("a partial block in a disk without parent", _block(0, 7), "W vhdx.bat.state"),
    row(
        "a sector bitmap in a disk without parent",
        vhdx(
            lambda s: s.set_bat(s.bitmap_index(0), 4 * MIB | 6),
            lambda: a_vhdx(size=5 << 30, block_size=256 * MIB, blocks={}),
        ),
        "W vhdx.bat.state",
    ),
    row(
        "a sector bitmap is in a reserved state",
        child_vhdx(lambda s: s.set_bat(s.bitmap_index(0), s.bat(s.bitmap_index(0)) & ~7 | 3)),
        "E vhdx.bat.state",
        "E vhdx.bat.no_bitmap",
    ),
    row("reserved bits of an entry are set", _bat(3, 2 | 1 << 9), "W vhdx.bat.reserved"),
    row("a present block has no place", _block(1, 6, 0), "E vhdx.bat.zero_offset"),
    row("a block lies beyond the file", _block(1, 6, 1 << 40), "E vhdx.bat.eof"),
    row("a block lies at the largest offset there is", _bat(1, 0xFFFFFFFFFFF00006), "E vhdx.bat.eof"),
    row(
        "a block reaches over the file's end",
        vhdx(lambda s: s.set_block(1, 6, s.patient.size)),
        "E vhdx.bat.eof",
    ),
    row("two entries name one block", vhdx(lambda s: s.set_block(1, 6, s.data_at(0))), "E vhdx.bat.cross"),
    row(
        "two blocks share a mebibyte",
        vhdx(
            lambda s: s.set_block(1, 6, s.data_at(0) + MIB),
            lambda: a_vhdx(size=12 * MIB, block_size=4 * MIB, blocks={0: 6, 2: 6}),
        ),
        "E vhdx.bat.cross",
    ),
    row(
        "a block and a sector bitmap share bytes",
        child_vhdx(lambda s: s.set_block(3, 6, s.bitmap_at(0))),
        "E vhdx.bat.cross",
    ),
    row("a block lies over the log", _block(1, 6, MIB), "E vhdx.bat.region"),
    row("a block lies over the BAT", _block(1, 6, 3 * MIB), "E vhdx.bat.region"),
    row("a block lies over the metadata", _block(1, 6, 2 * MIB), "E vhdx.bat.region"),
    row("a block keeps its old content", _block(0, 3), "I vhdx.bat.anchor"),
    row("an undefined block keeps its old content", _block(0, 1), "I vhdx.bat.anchor"),
    row("old content lies beyond the file", _block(1, 3, 1 << 40), "I vhdx.bat.anchor", "W vhdx.bat.eof"),
    row("old content lies over the log", _block(1, 3, MIB), "I vhdx.bat.anchor", "W vhdx.bat.region"),
    row(
        "old content is another block's",
        vhdx(lambda s: s.set_block(1, 3, s.data_at(0))),
        "I vhdx.bat.anchor",
        "W vhdx.bat.cross",
    ),
    row(
        "a partial block has no sector bitmap",
        child_vhdx(lambda s: s.set_bat(s.bitmap_index(0), 0)),
        "E vhdx.bat.no_bitmap",
    ),
    row(
        "a sector bitmap lies beyond the file",
        child_vhdx(lambda s: s.set_bat(s.bitmap_index(0), 1 << 40 | 6)),
        "E vhdx.bat.eof",
    ),
    row(
        "a sector bitmap is all clear",
        child_vhdx(lambda s: s.patient.write(s.bitmap_at(0), bytes(256))),
        "I vhdx.bitmap.empty",
    ),
    row(
        "a sector bitmap is all set",
        child_vhdx(lambda s: s.patient.write(s.bitmap_at(0), b"\xff" * 256)),
        "I vhdx.bitmap.full",
    ),
    row(
        "a mebibyte of the file belongs to nothing",
        vhdx(lambda s: s.patient.resize(s.patient.size + MIB)),
        "I vhdx.space",
    ),
    row(
        "a fixed disk has a hole",
        vhdx(lambda s: s.set_block(1, 0, 0), _fixed),
        "W vhdx.fixed.holes",
        "I vhdx.space",
    ),
    row(
        "the last block is stored short",
        vhdx(lambda s: s.patient.resize(s.patient.size - MIB + 4096), lambda: a_vhdx(blocks={0: 6, 4: 6})),
        "I vhdx.bat.short_block",
    ),
    row("every entry of the BAT names one block", _overfull, "E vhdx.bat.cross", "W vhdx.bat.state"),
    # ------------------------------------------------------------ large ones
    row(
        "a disk of 64 TiB has three blocks",
        _huge(64 << 40, 32 * MIB, 17, {0: 6, 1 << 20: 6, (2 << 20) - 1: 6}),
        exports=False,
    ),
    row("a disk of 64 TiB has a BAT of 513 MiB", _full_of_nothing, exports=False),
    # ------------------------------------------------------------ parent locators
    row(
        "a child has no parent locator",
        child_vhdx(lambda s: s.drop_item("ParentLocator")),
        "E vhdx.parent.no_locator",
        "E chain.parent.missing",
    ),
    row(
        "the locator is another format's",
        _locator(
            encode_locator(
                {"parent_linkage": "{" + PARENT_GUID + "}", "relative_path": ".\\parent.vhdx"},
                locator_type=STRANGE,
            )
        ),
        "E vhdx.parent.type",
    ),
    row(
        "the locator is cut short", _locator(a_locator()[:12]), "E vhdx.parent.keys", "E chain.parent.missing"
    ),
    row(
        "the locator claims 65535 keys",
        _locator(encode_locator({}, count=0xFFFF)),
        "E vhdx.parent.keys",
        "E chain.parent.missing",
    ),
    row(
        "the locator has no identity",
        _locator(_keys(parent_linkage=None)),
        "E vhdx.parent.linkage",
        "E chain.parent.missing",
    ),
    row(
        "the locator's identity is no GUID",
        _locator(_keys(parent_linkage="{not-a-guid}")),
        "E vhdx.parent.linkage",
        "E chain.parent.missing",
    ),
    row(
        "the locator has two identities",
        _locator(
            encode_locator(
                [("parent_linkage", "{" + PARENT_GUID + "}")] * 2 + [("relative_path", ".\\parent.vhdx")]
            )
        ),
        "E vhdx.parent.linkage",
    ),
    row(
        "a second identity is recorded",
        _locator(_keys(parent_linkage2="{0c3bb3a7-3f10-4c6c-9f2d-51a4b5a0d0c9}")),
        "W vhdx.parent.linkage2",
    ),
    row(
        "only the second identity agrees",
        _locator(
            _keys(
                parent_linkage="{0c3bb3a7-3f10-4c6c-9f2d-51a4b5a0d0c9}",
                parent_linkage2="{" + PARENT_GUID + "}",
            )
        ),
        "W vhdx.parent.linkage2",
        "W chain.parent.linkage2",
    ),
    row(
        "a key stands in the locator twice",
        _locator(
            encode_locator(
                [
                    ("parent_linkage", "{" + PARENT_GUID + "}"),
                    ("relative_path", ".\\parent.vhdx"),
                    ("relative_path", ".\\other.vhdx"),
                ]
            )
        ),
        "W vhdx.parent.keys",
    ),
    row(
        "a key of the locator is empty",
        _locator(
            encode_locator(
                [("parent_linkage", "{" + PARENT_GUID + "}"), ("relative_path", ".\\parent.vhdx"), ("", "x")]
            )
        ),
        "W vhdx.parent.keys",
    ),
    row(
        "a value of the locator is cut in a surrogate pair",
        _locator(
            encode_locator(
                [
                    ("parent_linkage", "{" + PARENT_GUID + "}"),
                    ("relative_path", ".\\parent.vhdx"),
                    ("volume_path", b"\x00\xd8"),
                ]
            )
        ),
        "W vhdx.parent.keys",
    ),
    row(
        "the locator names no file",
        _locator(_keys(relative_path=None, absolute_win32_path=None)),
        "W vhdx.parent.keys",
    ),
    row(
        "a disk without parent has a locator",
        vhdx(lambda s: None, lambda: a_vhdx(locator=a_locator())),
        "W vhdx.locator.unused",
    ),
    # ------------------------------------------------------------ cuts
    row("an empty file is called .vhdx", file_of(b"", "disk.vhdx"), "E image.unknown", opens=False),
    row("a file of one byte is called .vhdx", file_of(b"v", "disk.vhdx"), "E image.unknown", opens=False),
    row(
        "a file holds a VHDX's signature and nothing else",
        file_of(b"vhdxfile", "disk.vhdx"),
        "E file.too_short",
        opens=False,
    ),
    row(
        "a file holds signatures only",
        vhdx(lambda s: _signatures_only(s), repair=False),
        "E vhdx.header.none",
        opens=False,
    ),
    *(
        row(f"a VHDX ends behind {what}", _cut(size), "E file.too_short", opens=False)
        for what, size in (
            ("its identifier", 0x10000),
            ("its first header", 0x11000),
            ("its second header", 0x21000),
            ("its first region table", 0x40000),
        )
    ),
    row("a VHDX ends behind its second region table", _cut(0x50000), "E file.too_short", opens=False),
    row("a VHDX ends in its unused log", _cut(MIB + 4096), "E vhdx.region.eof", opens=False),
    row("a VHDX ends in its metadata table", _cut(2 * MIB + 100), "E vhdx.region.eof", opens=False),
    row("a VHDX ends in its metadata", _cut(2 * MIB + 0x10004), "E vhdx.region.eof", opens=False),
    row("a VHDX ends behind its metadata", _cut(3 * MIB), "E vhdx.region.eof"),
    row("a VHDX ends in its BAT", _cut(3 * MIB + 8), "E vhdx.region.eof", "E vhdx.bat.eof"),
    row("a VHDX ends behind its BAT", _cut(4 * MIB), "E vhdx.bat.eof"),
    row("a VHDX ends in its first block", _cut(4 * MIB + 4096), "E vhdx.bat.eof"),
    row("a VHDX lacks its last byte", _cut(-1), "E vhdx.bat.eof"),
    row("a VHDX is called .vhd", vhdx(lambda s: None, name="disk.vhd")),
    row("a VHDX is called .raw", vhdx(lambda s: None, name="disk.raw")),
    row(
        "a child with 4096-byte sectors",
        child_vhdx(base=lambda: a_child_vhdx(sector_size=4096, bits={0: (1, 7, 255)}), parent=_four_k),
    ),
    row(
        "all sectors of a partial block are here",
        child_vhdx(base=lambda: a_child_vhdx(bits={0: ALL})),
        "I vhdx.bitmap.full",
    ),
]
