"""VHDX identifier, headers, region tables, metadata and parent locator: each rule, one test."""

from __future__ import annotations

import struct
from typing import Any
from uuid import UUID

import pytest

from tests.builders import vhdx as build
from tests.builders.vhdx import (
    BAT,
    BAT_REGION,
    DATA_WRITE,
    HEADER_1,
    HEADER_2,
    ITEMS,
    KIB,
    METADATA,
    METADATA_REGION,
    MIB,
    NULL,
    REGIONS_1,
    REGIONS_2,
    STRANGER,
    TIB,
    Item,
    a_header,
    a_locator,
    a_raw_locator,
    a_region_table,
    a_vhdx,
    full,
    patched,
    the_items,
    with_headers,
)
from vhdtool.errors import CorruptError, Finding, FormatError, ReadError, Severity, UnsupportedError
from vhdtool.formats.image import OpenOptions
from vhdtool.formats.vhdx import layout
from vhdtool.formats.vhdx.image import VhdxImage, open_vhdx
from vhdtool.model.identity import DiskType, Identity, PathKind
from vhdtool.source import MemorySource

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO


def opened(image: bytes | bytearray, **options: Any) -> VhdxImage:
    return open_vhdx(MemorySource("disk.vhdx", bytes(image)), OpenOptions(**options))


def found(image: bytes | bytearray, **options: Any) -> list[tuple[str, Severity]]:
    return [(f.code, f.severity) for f in opened(image, **options).findings]


def refusal(image: bytes | bytearray, **options: Any) -> Finding:
    with pytest.raises(FormatError) as caught:
        opened(image, **options)
    assert caught.value.finding is not None
    return caught.value.finding


# ---------------------------------------------------------------- a sound image


def test_a_sound_dynamic_image_opens_without_findings() -> None:
    image = opened(a_vhdx(size=3 * MIB + 512, blocks={1: full()}))

    assert image.findings == ()
    assert image.type is DiskType.DYNAMIC
    assert image.geometry.virtual_size == 3 * MIB + 512
    assert image.geometry.block_size == MIB
    assert (image.geometry.sector_size, image.geometry.physical_sector_size) == (512, 4096)
    assert image.write_id == Identity.of_uuid(DATA_WRITE)
    assert image.disk_id == Identity.of_uuid(build.DISK_ID)
    assert image.creator == "builder"
    assert image.parent is None
    assert image.log.state == "clean"


def test_leave_block_allocated_makes_a_fixed_disk_and_has_parent_wins_over_it() -> None:
    both = the_items(MIB, MIB, 512, 512, 3, a_locator())

    assert opened(a_vhdx(fixed=True)).type is DiskType.FIXED
    assert opened(a_vhdx(parent=a_locator())).type is DiskType.DIFFERENCING
    assert opened(a_vhdx(items=both, bat_length=MIB)).type is DiskType.DIFFERENCING


def test_sections_show_the_structures_by_their_specified_names() -> None:
    names = [section.name for section in opened(a_vhdx(parent=a_locator())).sections]

    assert names == [
        "File Type Identifier",
        "Header 2 (current)",
        "Header 1",
        "Region Table",
        "Metadata",
        "Parent Locator",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "file_identifier",
        "header",
        "region_table_header",
        "region_table_entry",
        "metadata_table_header",
        "metadata_table_entry",
        "file_parameters",
        "chs_parameters",
        "parent_locator_header",
        "parent_locator_entry",
    ],
)
def test_the_fast_parsers_read_what_the_declared_shapes_read(name: str) -> None:
    shape, parse = getattr(layout, name.upper()), getattr(layout, f"parse_{name}")
    raw = bytes((i * 37 + 11) % 256 for i in range(7 + shape.sizeof()))

    declared = shape.parse(raw[7:])

    assert parse(raw, 7)._asdict() == {part.name: declared[part.name] for part in shape.subcons}


def test_the_packed_forms_of_log_structures_agree_with_the_declared_ones() -> None:
    raw = build.an_entry(7, build.page(0x300000, b"x" * 4096)).encode(0)

    declared = layout.LOG_ENTRY_HEADER.parse(raw)
    packed = layout.LOG_ENTRY_FIELDS.unpack(raw[:64])
    descriptor = layout.DATA_DESCRIPTOR.parse(raw[64:])
    assert packed == tuple(value for key, value in declared.items() if not key.startswith("_"))
    signature, trailing, leading, offset, sequence = layout.DESCRIPTOR_FIELDS.unpack(raw[64:96])
    assert (descriptor.signature, descriptor.trailing_bytes, descriptor.leading_bytes) == (
        signature,
        trailing,
        leading,
    )
    assert (descriptor.file_offset, descriptor.sequence_number) == (offset, sequence) == (0x300000, 7)


# ---------------------------------------------------------------- identifier


def test_a_damaged_identifier_is_refused_and_headers_behind_it_are_mentioned() -> None:
    finding = refusal(patched(a_vhdx(), 0, b"VHDXFILE"))

    assert finding.code == "vhdx.signature"
    assert "valid headers follow" in finding.what
    assert "VHDXFILE" not in str(finding)


@pytest.mark.parametrize("size", [8, 519, 520, 64 * KIB, MIB - 1])
def test_a_file_that_ends_in_the_header_area_is_refused(size: int) -> None:
    assert refusal(a_vhdx()[:size]).code == "file.too_short"


def test_a_creator_with_control_characters_is_printed_escaped() -> None:
    assert opened(a_vhdx(creator="\x1b[31mevil")).creator == "\\x1b[31mevil"


# ---------------------------------------------------------------- headers


def test_the_header_with_the_larger_sequence_number_counts() -> None:
    image = a_vhdx()
    newer_first = with_headers(image, a_header(9, data_write=STRANGER), a_header(8))
    wrapped = with_headers(image, a_header(2**64 - 1, data_write=STRANGER), a_header(0))

    assert opened(newer_first).write_id == Identity.of_uuid(STRANGER)
    assert opened(wrapped).write_id == Identity.of_uuid(STRANGER)
    assert found(newer_first) == [("vhdx.header.differ", INFO)]


@pytest.mark.parametrize(("at", "other"), [(HEADER_1, 2), (HEADER_2, 1)])
def test_one_lost_header_is_a_warning_and_the_other_one_is_used(at: int, other: int) -> None:
    image = opened(patched(a_vhdx(), at + 9, b"\xff", repair=False))

    assert [(f.code, f.severity) for f in image.findings] == [("vhdx.header.one", WARNING)]
    assert image.header.name == f"header {other}"


def test_two_lost_headers_are_refused() -> None:
    assert refusal(with_headers(a_vhdx(), bytes(4096), bytes(4096))).code == "vhdx.header.none"


def test_identical_headers_are_accepted_and_different_ones_of_one_number_are_an_error() -> None:
    identical = with_headers(a_vhdx(), a_header(1), a_header(1))
    different = with_headers(a_vhdx(), a_header(1), a_header(1, data_write=STRANGER))

    assert found(identical) == []
    assert found(different) == [("vhdx.header.equal", ERROR)]


def test_another_version_of_the_format_is_not_supported() -> None:
    image = with_headers(a_vhdx(), a_header(1), a_header(2, version=2))

    with pytest.raises(UnsupportedError) as caught:
        opened(image)
    assert caught.value.exit_code == 69
    assert caught.value.finding is not None
    assert caught.value.finding.code == "vhdx.header.version"


def test_another_version_of_the_log_matters_only_while_the_log_is_pending() -> None:
    clean = with_headers(a_vhdx(), a_header(1), a_header(2, log_version=1))
    pending = with_headers(a_vhdx(), a_header(1), a_header(2, log_version=1, log_id=build.LOG_ID))

    assert found(clean) == []
    findings = opened(pending).findings
    assert ("vhdx.header.log_version", ERROR, 69) in [(f.code, f.severity, f.exit_code) for f in findings]


def test_reserved_bytes_of_a_header_are_worth_a_note() -> None:
    assert found(patched(a_vhdx(), HEADER_2 + 4000, b"\1")) == [("vhdx.header.reserved", INFO)]


def test_wrong_checksums_are_ignored_only_when_asked_and_no_copy_is_right() -> None:
    image = a_vhdx()
    one_bad = patched(image, HEADER_2 + 4, b"\0\0\0\0", repair=False)
    both_bad = patched(one_bad, HEADER_1 + 4, b"\0\0\0\0", repair=False)

    assert refusal(both_bad).code == "vhdx.header.none"
    assert found(one_bad, ignore_checksums=True) == [("vhdx.header.one", WARNING)]
    assert found(both_bad, ignore_checksums=True) == [("vhdx.header.checksum", WARNING)] * 2
    assert opened(both_bad, ignore_checksums=True).header.sequence_number == 2


def test_an_implausible_header_does_not_count_even_without_checksums() -> None:
    bad = a_header(9, version=7)[:4] + bytes(4) + a_header(9, version=7)[8:]
    good = a_header(3)[:4] + bytes(4) + a_header(3)[8:]

    assert opened(with_headers(a_vhdx(), bad, good), ignore_checksums=True).header.sequence_number == 3


# ---------------------------------------------------------------- region tables


def regions_of(*regions: build.Region) -> bytearray:
    return a_vhdx(regions=regions)


BAT_ENTRY: build.Region = (BAT_REGION, BAT, MIB, 1)
METADATA_ENTRY: build.Region = (METADATA_REGION, METADATA, MIB, 1)


def test_tables_that_were_sound_in_one_file_are_judged_in_every_other_one() -> None:
    image = a_vhdx()
    log_on_metadata = with_headers(image, a_header(1), a_header(2, log_offset=METADATA))

    assert found(image) == []
    assert found(image[: BAT + 4 * KIB]) == [("vhdx.region.eof", ERROR)]
    assert found(log_on_metadata) == [("vhdx.region.overlap", WARNING)]
    assert found(image) == []


def test_the_same_fault_in_two_files_is_found_in_both_and_names_each() -> None:
    image = patched(a_vhdx(), METADATA + 12, b"\1")

    for name in ("one.vhdx", "two.vhdx"):
        (finding,) = open_vhdx(MemorySource(name, bytes(image)), OpenOptions()).findings
        assert (finding.code, finding.location.file) == ("vhdx.metadata.reserved", name)


@pytest.mark.parametrize("at", [REGIONS_1, REGIONS_2])
def test_one_lost_region_table_is_a_warning(at: int) -> None:
    assert found(patched(a_vhdx(), at + 40, b"\xff", repair=False)) == [("vhdx.region.one", WARNING)]


class _Unreadable(MemorySource):
    """Bytes of which the second region table cannot be read."""

    def read_exact(self, offset: int, length: int, *, field: str) -> bytes:
        if field == "region table 2":
            raise ReadError(f"cannot read {self.name}, {field}: Input/output error")
        return super().read_exact(offset, length, field=field)


def test_the_second_region_table_is_read_only_when_findings_are_asked_for() -> None:
    image = open_vhdx(_Unreadable("disk.vhdx", bytes(a_vhdx())), OpenOptions())

    assert image.errors == ()
    (finding,) = image.findings
    assert (finding.code, finding.severity) == ("vhdx.region.one", WARNING)
    assert finding.found == "cannot read disk.vhdx, region table 2: Input/output error"
    assert image.findings == (finding,)


def test_a_closed_file_is_not_read_for_its_findings() -> None:
    image = opened(patched(a_vhdx(), REGIONS_2 + 40, b"\xff", repair=False))
    image.close()

    assert image.findings == ()


def test_two_lost_region_tables_are_refused_unless_checksums_are_ignored() -> None:
    image = patched(a_vhdx(), REGIONS_1 + 4, b"\0\0\0\0", repair=False)
    image = patched(image, REGIONS_2 + 4, b"\0\0\0\0", repair=False)

    assert refusal(image).code == "vhdx.region.both"
    assert found(image, ignore_checksums=True) == [("vhdx.region.checksum", WARNING)]


def test_region_tables_that_differ_are_a_warning_and_the_first_counts() -> None:
    image = a_vhdx()
    table = a_region_table([(BAT_REGION, 8 * MIB, MIB, 1), METADATA_ENTRY])
    image[REGIONS_2 : REGIONS_2 + len(table)] = table

    assert found(image) == [("vhdx.region.differ", WARNING)]
    assert opened(image).regions.bat.file_offset == BAT


def test_too_many_regions_are_refused() -> None:
    image = a_vhdx()
    table = a_region_table([BAT_ENTRY, METADATA_ENTRY], count=2048)
    for at in (REGIONS_1, REGIONS_2):
        image[at : at + len(table)] = table

    assert refusal(image).code == "vhdx.region.count"


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ((BAT_ENTRY, METADATA_ENTRY, (STRANGER, 4 * MIB, MIB, 0)), ("vhdx.region.eof", WARNING)),
        ((BAT_ENTRY, METADATA_ENTRY, (STRANGER, 4 * MIB, MIB, 1)), ("vhdx.region.unknown_required", ERROR)),
        ((BAT_ENTRY, METADATA_ENTRY, BAT_ENTRY), ("vhdx.region.duplicate", ERROR)),
        (((BAT_REGION, BAT + KIB, MIB, 1), METADATA_ENTRY), ("vhdx.region.align", ERROR)),
        (((BAT_REGION, BAT, MIB + 1, 1), METADATA_ENTRY), ("vhdx.region.align", ERROR)),
        (((BAT_REGION, BAT, 0, 1), METADATA_ENTRY), ("vhdx.region.align", ERROR)),
        (((BAT_REGION, 0, MIB, 1), METADATA_ENTRY), ("vhdx.region.overlap", ERROR)),
        (((BAT_REGION, METADATA, MIB, 1), METADATA_ENTRY), ("vhdx.region.overlap", ERROR)),
        (((BAT_REGION, build.LOG, MIB, 1), METADATA_ENTRY), ("vhdx.region.overlap", WARNING)),
        (((BAT_REGION, 2**63, MIB, 1), METADATA_ENTRY), ("vhdx.region.eof", ERROR)),
        (((BAT_REGION, BAT, MIB, 0), METADATA_ENTRY), ("vhdx.region.not_required", INFO)),
        (((BAT_REGION, BAT, MIB, 3), METADATA_ENTRY), ("vhdx.region.reserved", WARNING)),
    ],
)
def test_a_region_that_breaks_a_rule_is_a_finding(
    regions: tuple[build.Region, ...], expected: tuple[str, Severity]
) -> None:
    assert expected in found(regions_of(*regions))


def test_errors_are_not_crowded_out_by_warnings_of_the_same_kind() -> None:
    beyond = [(UUID(int=n), (100 + n) * MIB, MIB, 0) for n in range(1, 200)]

    codes = found(regions_of(*beyond, METADATA_ENTRY, (BAT_REGION, 2**62, MIB, 1)))

    assert ("vhdx.region.eof", WARNING) in codes
    assert ("vhdx.region.eof", ERROR) in codes


@pytest.mark.parametrize("regions", [(BAT_ENTRY,), (METADATA_ENTRY,), ()])
def test_a_missing_region_is_refused(regions: tuple[build.Region, ...]) -> None:
    assert refusal(regions_of(*regions)).code == "vhdx.region.missing"


def test_an_unknown_required_region_exits_with_69() -> None:
    findings = opened(regions_of(BAT_ENTRY, METADATA_ENTRY, (STRANGER, 0x40000000, MIB, 1))).findings

    assert {f.exit_code for f in findings if f.code == "vhdx.region.unknown_required"} == {69}


def test_reserved_fields_of_the_region_table_are_a_warning() -> None:
    image = patched(patched(a_vhdx(), REGIONS_1 + 12, b"\1"), REGIONS_2 + 12, b"\1")

    assert found(image) == [("vhdx.region.reserved", WARNING)]


def test_metadata_beyond_the_end_of_the_file_is_refused_for_that_reason() -> None:
    finding = refusal(regions_of(BAT_ENTRY, (METADATA_REGION, 512 * MIB, MIB, 1)))

    assert finding.code == "vhdx.region.eof"


# ---------------------------------------------------------------- metadata


def items_with(*changes: Item, without: tuple[UUID, ...] = ()) -> list[Item]:
    """The usual items, some replaced by ``changes`` of the same id, the other changes added."""
    by_id = {item.guid: item for item in changes}
    usual = [item for item in the_items(4 * MIB, MIB, 512, 4096, 0, None) if item.guid not in without]
    kept = [by_id.pop(item.guid, item) for item in usual]
    return kept + list(by_id.values())


def test_a_metadata_table_without_signature_or_with_too_many_entries_is_refused() -> None:
    assert refusal(patched(a_vhdx(), METADATA, b"METADATA")).code == "vhdx.metadata.signature"
    assert refusal(patched(a_vhdx(), METADATA + 10, struct.pack("<H", 2048))).code == "vhdx.metadata.count"


def test_more_than_1024_user_items_are_an_error() -> None:
    users = [Item(UUID(int=n), b"", build.USER) for n in range(1, 1026)]

    assert ("vhdx.metadata.count", ERROR) in found(a_vhdx(items=[*items_with(), *users]))


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (items_with(Item(STRANGER, b"x", 0)), None),
        (items_with(Item(STRANGER, b"x", build.USER)), None),
        (items_with(Item(STRANGER, b"x", build.REQUIRED)), ("vhdx.metadata.unknown_required", ERROR)),
        (items_with(Item(STRANGER, b"x", build.USER | 4)), ("vhdx.metadata.user_required", ERROR)),
        (items_with(Item(STRANGER, b"x", 8)), ("vhdx.metadata.flags", WARNING)),
        (items_with(Item(NULL, b"x", 0)), ("vhdx.metadata.zero_id", ERROR)),
        (items_with(Item(STRANGER, b"x", 0, offset=4)), ("vhdx.metadata.range", ERROR)),
        (items_with(Item(STRANGER, b"", 0, offset=70000)), ("vhdx.metadata.range", ERROR)),
        (items_with(Item(STRANGER, b"x", 0, offset=MIB)), ("vhdx.metadata.range", ERROR)),
        (items_with(Item(STRANGER, b"x", 0, length=MIB + 1)), ("vhdx.metadata.range", ERROR)),
        (items_with(Item(STRANGER, b"x", 0, offset=0x10004)), ("vhdx.metadata.overlap", ERROR)),
        (items_with(Item(build.INCOMPLETE_FILE, b"", 4)), ("vhdx.metadata.incomplete", ERROR)),
        (items_with(Item(build.PARENT_LOCATOR, a_locator())), ("vhdx.locator.unused", WARNING)),
        (items_with(without=(build.VIRTUAL_DISK_ID,)), ("vhdx.metadata.missing", ERROR)),
        (items_with(without=(build.PHYSICAL_SECTOR_SIZE,)), ("vhdx.metadata.missing", ERROR)),
        (items_with(Item(build.VIRTUAL_DISK_ID, bytes(15), 6)), ("vhdx.metadata.size", ERROR)),
        (items_with(Item(build.VIRTUAL_DISK_ID, bytes(16), 4)), ("vhdx.metadata.flags", WARNING)),
        (items_with(Item(build.PHYSICAL_SECTOR_SIZE, b"\0\1\0\0", 6)), ("vhdx.sector_size", ERROR)),
        (
            items_with(Item(build.FILE_PARAMETERS, struct.pack("<II", MIB, 4))),
            ("vhdx.metadata.reserved", WARNING),
        ),
    ],
)
def test_a_metadata_item_that_breaks_a_rule_is_a_finding(
    items: list[Item], expected: tuple[str, Severity] | None
) -> None:
    codes = found(a_vhdx(items=items))

    assert codes == [] if expected is None else expected in codes


def test_an_item_that_stands_in_the_table_twice_is_an_error() -> None:
    items = [*items_with(), Item(build.VIRTUAL_DISK_ID, bytes(16), 6)]

    assert ("vhdx.metadata.duplicate", ERROR) in found(a_vhdx(items=items))
    assert opened(a_vhdx(items=items)).disk_id == Identity.of_uuid(build.DISK_ID)


def test_a_user_item_with_a_known_id_is_not_the_known_item() -> None:
    image = opened(a_vhdx(items=[Item(build.VIRTUAL_DISK_SIZE, b"12345", build.USER), *items_with()]))

    assert image.findings == ()
    assert image.geometry.virtual_size == 4 * MIB


@pytest.mark.parametrize(
    "missing", [build.FILE_PARAMETERS, build.VIRTUAL_DISK_SIZE, build.LOGICAL_SECTOR_SIZE]
)
def test_without_an_item_that_blocks_are_found_by_nothing_can_be_read(missing: UUID) -> None:
    assert refusal(a_vhdx(items=items_with(without=(missing,)))).code == "vhdx.metadata.missing"


@pytest.mark.parametrize(
    ("item", "code"),
    [
        (Item(build.FILE_PARAMETERS, struct.pack("<II", MIB // 2, 0)), "vhdx.block_size"),
        (Item(build.FILE_PARAMETERS, struct.pack("<II", 512 * MIB, 0)), "vhdx.block_size"),
        (Item(build.FILE_PARAMETERS, struct.pack("<II", 3 * MIB, 0)), "vhdx.block_size"),
        (Item(build.FILE_PARAMETERS, struct.pack("<II", 0, 0)), "vhdx.block_size"),
        (Item(build.LOGICAL_SECTOR_SIZE, struct.pack("<I", 1024), 6), "vhdx.sector_size"),
        (Item(build.LOGICAL_SECTOR_SIZE, bytes(4), 6), "vhdx.sector_size"),
        (Item(build.VIRTUAL_DISK_SIZE, struct.pack("<Q", 0), 6), "vhdx.disk_size"),
        (Item(build.VIRTUAL_DISK_SIZE, struct.pack("<Q", MIB + 1), 6), "vhdx.disk_size"),
        (Item(build.VIRTUAL_DISK_SIZE, struct.pack("<Q", 64 * TIB + 512), 6), "vhdx.disk_size"),
    ],
)
def test_sizes_outside_of_the_rules_are_refused(item: Item, code: str) -> None:
    assert refusal(a_vhdx(items=items_with(item))).code == code


@pytest.mark.parametrize("block_size", [MIB << n for n in range(9)])
@pytest.mark.parametrize("sector", [512, 4096])
def test_every_block_and_sector_size_opens(block_size: int, sector: int) -> None:
    regions = [(BAT_REGION, BAT, 513 * MIB, 1), METADATA_ENTRY]
    image = opened(
        a_vhdx(size=64 * TIB, block_size=block_size, sector=sector, bat_length=MIB, regions=regions)
    )

    assert image.geometry.block_size == block_size
    assert image.chunks.ratio == 2**23 * sector // block_size
    assert [f.code for f in image.findings] == ["vhdx.region.eof"]


def test_reserved_fields_of_the_metadata_table_are_a_warning() -> None:
    assert found(patched(a_vhdx(), METADATA + 20, b"\1")) == [("vhdx.metadata.reserved", WARNING)]
    assert found(patched(a_vhdx(), METADATA + 60, b"\1")) == [("vhdx.metadata.reserved", WARNING)]


def test_an_error_that_caused_a_refusal_is_the_one_that_is_told() -> None:
    items = items_with(Item(build.VIRTUAL_DISK_SIZE, bytes(7), 6))

    assert refusal(a_vhdx(items=items)).code == "vhdx.metadata.size"


def test_a_region_for_the_bat_that_is_too_short_is_an_error_and_counts_still_work() -> None:
    image = opened(a_vhdx(size=2 * TIB, bat_length=MIB))

    assert [f.code for f in image.findings] == ["vhdx.bat.small"]
    assert image.counts().absent == 131072 - 131072 // 4097
    image.survey()
    assert image.entry(2 * 1024 * 1024 - 1)[0].name == "DAMAGED"


# ---------------------------------------------------------------- parent locator


def parent_findings(item: bytes | None, **options: Any) -> list[tuple[str, Severity]]:
    items = the_items(4 * MIB, MIB, 512, 4096, 2, item)
    return found(a_vhdx(items=items, bat_length=MIB), **options)


def paths_of(**values: str) -> list[tuple[PathKind, str, str]]:
    image = opened(a_vhdx(parent=a_locator(values=values)))
    assert image.parent is not None
    return [(p.kind, p.path, p.locator) for p in image.parent.paths]


def test_paths_come_in_the_order_in_which_they_are_tried() -> None:
    image = opened(
        a_vhdx(
            parent=a_locator(
                absolute_win32_path="C:\\vm\\p.vhdx",
                volume_path="\\\\?\\Volume{0eba351e-5634-46d6-a8cf-4ddc2d6ac0b9}\\vm\\p.vhdx",
                relative_path="..\\p.vhdx",
                parent_linkage2="{00000000-0000-0000-0000-000000000000}",
            )
        )
    )

    assert image.findings == ()
    assert image.parent is not None
    assert image.parent.identities == (Identity.of_uuid(DATA_WRITE),)
    assert [p.kind for p in image.parent.paths] == [
        PathKind.RELATIVE_PATH,
        PathKind.VOLUME_PATH,
        PathKind.ABSOLUTE_PATH,
    ]
    assert image.parent.name == "p.vhdx"


def test_normal_windows_prefixes_are_no_devices() -> None:
    for path in ("\\\\?\\D:\\vm\\p.vhdx", "\\\\?\\UNC\\host\\share\\p.vhdx", "\\\\host\\share\\p.vhdx"):
        assert paths_of(absolute_win32_path=path) == [(PathKind.ABSOLUTE_PATH, path, "absolute_win32_path")]


@pytest.mark.parametrize(
    "path", ["\\\\.\\PhysicalDrive0", "//./PhysicalDrive0", "\\\\?\\globalroot\\Device\\x"]
)
@pytest.mark.parametrize("key", ["relative_path", "volume_path", "absolute_win32_path"])
def test_a_device_is_a_warning_and_leaves_a_bare_name_at_most(path: str, key: str) -> None:
    item = a_locator(values={key: path})

    assert ("vhdx.parent.path", WARNING) in parent_findings(item)
    assert [kind for kind, _, _ in paths_of(**{key: path})] == [PathKind.NAME]


@pytest.mark.parametrize(
    "path", ["\\vm\\p.vhdx", "/vm/p.vhdx", "C:p.vhdx", "c:\\vm\\p.vhdx", "\\\\host\\x\\p.vhdx"]
)
def test_a_relative_path_that_is_none_counts_by_its_name_alone(path: str) -> None:
    assert paths_of(relative_path=path) == [(PathKind.NAME, "p.vhdx", "relative_path")]
    assert parent_findings(a_locator(relative_path=path)) == [("vhdx.parent.path", WARNING)]


@pytest.mark.parametrize("path", ["\\\\.\\", "\\", "\\..", "C:"])
def test_a_false_path_without_a_name_leaves_nothing(path: str) -> None:
    assert paths_of(relative_path=path) == []


def test_a_differencing_disk_without_locator_is_an_error() -> None:
    assert parent_findings(None) == [("vhdx.parent.no_locator", ERROR)]


def utf16(key: str, value: str) -> tuple[bytes, bytes]:
    return key.encode("utf-16-le"), value.encode("utf-16-le")


LINK = utf16("parent_linkage", f"{{{DATA_WRITE}}}")
PATH = utf16("relative_path", ".\\p.vhdx")


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (a_locator(kind=STRANGER), ("vhdx.parent.type", ERROR)),
        (a_locator(None), ("vhdx.parent.linkage", ERROR)),
        (a_locator("no guid"), ("vhdx.parent.linkage", ERROR)),
        (a_locator("{83ed0ec3-24c8-49a6-a959-5e4bf1288bf}"), ("vhdx.parent.linkage", ERROR)),
        (a_locator(parent_linkage2=f"{{{STRANGER}}}"), ("vhdx.parent.linkage2", WARNING)),
        (a_locator(parent_linkage2="x"), ("vhdx.parent.keys", WARNING)),
        (a_locator(extra=[("parent_linkage", f"{{{STRANGER}}}")]), ("vhdx.parent.linkage", ERROR)),
        (a_locator(extra=[("relative_path", "b")]), ("vhdx.parent.keys", WARNING)),
        (a_raw_locator([LINK]), ("vhdx.parent.keys", WARNING)),
        (a_raw_locator([LINK, PATH, (b"odd", b"xy")]), ("vhdx.parent.keys", WARNING)),
        (a_raw_locator([LINK, (PATH[0], b"\0\xd8")]), ("vhdx.parent.keys", WARNING)),
        (a_raw_locator([LINK, (PATH[0], b"a\0\0\0")]), ("vhdx.parent.keys", WARNING)),
        (a_raw_locator([LINK, PATH, (PATH[0], b"")]), ("vhdx.parent.keys", WARNING)),
        (a_raw_locator([(LINK[0], b"\0\xd8"), PATH]), ("vhdx.parent.linkage", ERROR)),
        (a_locator()[:19], ("vhdx.parent.keys", ERROR)),
        (a_locator()[:30], ("vhdx.parent.keys", ERROR)),
        (a_locator(extra=[(f"key{n}", "x") for n in range(300)]), ("vhdx.parent.keys", ERROR)),
    ],
)
def test_a_locator_that_breaks_a_rule_is_a_finding(item: bytes, expected: tuple[str, Severity]) -> None:
    assert expected in parent_findings(item)


def test_either_identity_may_be_the_parents() -> None:
    image = opened(a_vhdx(parent=a_locator(parent_linkage2=f"{{{STRANGER}}}".upper())))

    assert image.parent is not None
    assert image.parent.identities == (Identity.of_uuid(DATA_WRITE), Identity.of_uuid(STRANGER))


def test_a_truncated_item_table_says_so_in_one_line_without_control_characters() -> None:
    image = opened(a_vhdx(parent=a_locator("\x1b]0;evil\x07")))

    assert all(str(f).isprintable() for f in image.findings)


def test_a_file_too_large_for_its_structures_costs_nothing_to_open() -> None:
    image = opened(a_vhdx(extra_mib=2))

    assert image.findings == ()
    assert isinstance(image.source, MemorySource)
    assert ITEMS > METADATA
    with pytest.raises(CorruptError):
        image.source.read_exact(image.source.size, 1, field="past the end")
