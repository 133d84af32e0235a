"""Which footer is used, and what is said about it."""

from __future__ import annotations

import time

import pytest

from tests.builders.vhd import (
    ALL_ONES,
    DIFFERENCING,
    DYNAMIC,
    FIXED,
    SIZE,
    Fields,
    a_fixed_vhd,
    a_footer,
    a_vhd,
    codes,
    content,
    opened,
    patched,
)
from vhdtool.errors import FormatError, Severity
from vhdtool.formats.vhd.chs import geometry_of
from vhdtool.formats.vhd.footer import has_footer_cookie
from vhdtool.model.identity import DiskType
from vhdtool.source import MemorySource

A_BLOCK = {0: (b"guest" * 100, None)}
USUAL = {"vhd.header.block_size", "vhd.block.unaligned"}  # of the builder's small blocks


def refusal(image: bytes, *, ignore_checksums: bool = False) -> FormatError:
    with pytest.raises(FormatError) as caught:
        opened(image, ignore_checksums=ignore_checksums)
    return caught.value


def code_of(error: FormatError) -> str:
    assert error.finding is not None
    return error.finding.code


def test_a_sound_image_has_no_findings_worth_a_word() -> None:
    image = opened(a_vhd(blocks=A_BLOCK))
    image.inspect(deep=True)

    assert image.type is DiskType.DYNAMIC
    assert image.geometry.virtual_size == SIZE
    assert set(codes(image)) == USUAL
    assert all(finding.severity is Severity.INFO for finding in image.findings)


@pytest.mark.parametrize("cookie", [b"conectix", b"v_poison"])
@pytest.mark.parametrize(("before", "after"), [(1024, 504), (1024, 503), (0, 2000)])
def test_a_cookie_at_the_end_or_the_start_makes_a_vhd(cookie: bytes, before: int, after: int) -> None:
    assert has_footer_cookie(MemorySource("x", bytes(before) + cookie + bytes(after)))


@pytest.mark.parametrize(
    "data", [b"", b"conectix", bytes(600) + b"conectix" + bytes(100), b"CONECTIX" + bytes(1016)]
)
def test_a_cookie_elsewhere_makes_none(data: bytes) -> None:
    assert not has_footer_cookie(MemorySource("x", data))


def test_a_footer_of_511_bytes_is_read_and_mentioned() -> None:
    image = opened(a_fixed_vhd()[:-1])

    assert image.type is DiskType.FIXED
    assert codes(image) == {"vhd.footer.511": "info"}


def test_a_511_byte_footer_counts_only_where_the_size_says_so() -> None:
    shifted = bytes(7) + a_fixed_vhd()[:-1]

    assert code_of(refusal(shifted)) == "vhd.footer.missing"


def test_a_damaged_end_footer_is_replaced_by_its_copy() -> None:
    image = opened(patched(a_vhd(blocks=A_BLOCK), -512 + 70, b"\xaa"))
    image.survey()

    assert codes(image)["vhd.footer.end_bad"] == "warning"
    assert image.footer.offset == 0
    assert image.footer.length == 512
    assert content(image).startswith(b"guest")


def test_a_footer_that_was_cut_off_leaves_its_room_to_the_blocks() -> None:
    image = opened(a_vhd(blocks=A_BLOCK, end=b""))
    image.survey()

    assert image.footer.length == 0
    assert codes(image)["vhd.footer.end_bad"] == "warning"
    assert "vhd.block.eof" not in codes(image)
    assert content(image).startswith(b"guest")


def test_a_block_over_a_damaged_footer_clobbers_it() -> None:
    whole = a_vhd(blocks=A_BLOCK)
    moved = a_vhd(blocks=A_BLOCK, bat={0: 2048 // 512 + 1})
    assert len(whole) == len(moved)

    image = opened(patched(moved, -512 + 70, b"\xaa"))
    image.survey()

    assert codes(image)["vhd.block.eof"] == "error"


def test_a_fixed_disk_has_no_copy_whatever_its_guest_keeps_in_its_first_sector() -> None:
    guest = a_footer(disk_type=FIXED, current_size=SIZE) + bytes(SIZE - 512)

    image = opened(a_fixed_vhd(guest))
    assert codes(image) == {}
    assert content(image) == guest

    assert code_of(refusal(patched(a_fixed_vhd(guest), -512, bytes(8)))) == "vhd.footer.missing"


def test_a_dynamic_copy_in_the_guest_of_a_fixed_disk_is_not_looked_at() -> None:
    guest = a_footer(disk_type=DYNAMIC) + bytes(SIZE - 512)

    image = opened(a_fixed_vhd(guest))

    assert image.type is DiskType.FIXED
    assert codes(image) == {}


@pytest.mark.parametrize(
    ("copy", "code"),
    [
        (bytes(512), "vhd.footer.copy_bad"),
        (a_footer(checksum=1), "vhd.footer.copy_bad"),
        (a_footer(file_format_version=0x0002_0000), "vhd.footer.copy_bad"),
        (a_footer(time_stamp=1), "vhd.footer.differ"),
        (a_footer(reserved=b"\1"), "vhd.footer.differ"),
    ],
)
def test_a_copy_that_is_bad_or_other_is_a_warning(copy: bytes, code: str) -> None:
    image = opened(a_vhd(copy=copy))

    assert codes(image) == {code: "warning", "vhd.header.block_size": "info"}
    assert image.footer.offset > 0


def test_differing_fields_are_named() -> None:
    image = opened(a_vhd(copy=a_footer(time_stamp=1, unique_id=b"x" * 16)))

    (finding,) = (f for f in image.findings if f.code == "vhd.footer.differ")

    assert finding.found == "other values of time_stamp, checksum, unique_id"


def test_xens_hidden_flag_that_was_not_mirrored_is_only_mentioned() -> None:
    tap: Fields = {"creator_application": b"tap\0", "creator_version": 0x0001_0001}
    hidden = a_footer(**tap, reserved=b"\1")

    image = opened(a_vhd(footer=tap, end=hidden))

    assert codes(image)["vhd.footer.differ"] == "info"
    assert codes(image)["vhd.reserved.nonzero"] == "info"
    assert any("hidden" in finding.what for finding in image.findings)


def test_a_checksum_that_is_wrong_everywhere_is_an_error_and_a_warning_on_request() -> None:
    bad = a_vhd(blocks=A_BLOCK, footer={"checksum": 0x1234})

    strict, trusting = opened(bad), opened(bad, ignore_checksums=True)

    assert codes(strict)["vhd.footer.checksum"] == "error"
    assert codes(trusting)["vhd.footer.checksum"] == "warning"
    assert content(trusting).startswith(b"guest")
    (finding,) = (f for f in strict.findings if f.code == "vhd.footer.checksum")
    assert finding.found == "0x00001234"
    assert finding.location.offset == len(bad) - 512 + 64


@pytest.mark.parametrize(
    "changes",
    [
        {"current_size": 0},
        {"current_size": 1000},
        {"current_size": 1 << 62},
        {"disk_type": 7},
        {"file_format_version": 0},
    ],
)
def test_a_footer_that_is_not_plausible_either_is_not_trusted(changes: dict[str, int]) -> None:
    bad = a_footer(checksum=0x1234, **changes)

    assert code_of(refusal(a_vhd(copy=bad, end=bad), ignore_checksums=True)) == "vhd.footer.checksum"


def test_no_footer_at_all_is_a_refusal() -> None:
    error = refusal(bytes(4096))

    assert (code_of(error), error.exit_code) == ("vhd.footer.missing", 65)


@pytest.mark.parametrize(("number", "exit_code"), [(0, 65), (1, 69), (5, 69), (6, 69), (7, 65)])
def test_other_disk_types_are_refused(number: int, exit_code: int) -> None:
    error = refusal(a_vhd(footer={"disk_type": number}))

    assert (code_of(error), error.exit_code) == ("vhd.footer.type", exit_code)


def test_another_major_version_in_every_copy_is_not_read() -> None:
    error = refusal(a_vhd(footer={"file_format_version": 0x0002_0000}))

    assert (code_of(error), error.exit_code) == ("vhd.footer.version", 69)


def test_another_minor_version_is_read() -> None:
    assert (
        codes(opened(a_vhd(footer={"file_format_version": 0x0001_0001})))["vhd.footer.version"] == "warning"
    )


@pytest.mark.parametrize(
    ("changes", "code", "severity"),
    [
        ({"cookie": b"v_poison"}, "vhd.cookie.poison", "warning"),
        ({"features": 0}, "vhd.footer.features", "warning"),
        ({"features": 6}, "vhd.footer.features", "warning"),
        ({"features": 3}, "vhd.footer.temporary", "info"),
        ({"time_stamp": 0xFFFF_FFFF}, "vhd.time.future", "info"),
        ({"creator_application": b"??\x1b\0"}, "vhd.footer.creator", "info"),
        ({"creator_host_os": b"Amig"}, "vhd.footer.host_os", "info"),
        ({"original_size": 512}, "vhd.size.original", "info"),
        ({"current_size": SIZE + 1}, "vhd.size.align", "error"),
        ({"current_size": 2041 << 30}, "vhd.size.max", "error"),
        ({"cylinders": 4}, "vhd.geometry.mismatch", "warning"),
        ({"cylinders": 2}, "vhd.geometry.mismatch", "info"),
        ({"unique_id": bytes(16)}, "vhd.uuid.null", "warning"),
        ({"saved_state": 1}, "vhd.footer.saved_state", "info"),
        ({"saved_state": 2}, "vhd.footer.saved_state", "warning"),
        ({"reserved": b"\0\0x"}, "vhd.reserved.nonzero", "info"),
    ],
)
def test_each_field_has_its_finding(changes: dict[str, int | bytes], code: str, severity: str) -> None:
    image = opened(a_vhd(footer=changes))

    assert codes(image)[code] == severity


def test_a_time_stamp_of_today_is_not_in_the_future() -> None:
    now = int(time.time()) - 946_684_800

    assert "vhd.time.future" not in codes(opened(a_vhd(footer={"time_stamp": now})))


def test_virtual_pc_shows_less_than_the_disk() -> None:
    image = opened(a_vhd(size=SIZE + 512, footer={"creator_application": b"vpc "}))

    assert image.geometry.virtual_size == SIZE + 512
    assert codes(image)["vhd.geometry.chs"] == "info"


@pytest.mark.parametrize(
    ("size", "code"), [(0, "vhd.size.zero"), (1 << 63, "vhd.size.max"), ((1 << 64) - 512, "vhd.size.max")]
)
def test_sizes_that_nothing_can_be_done_with_are_refused(size: int, code: str) -> None:
    assert code_of(refusal(a_vhd(footer={"current_size": size}))) == code


def test_a_size_beyond_the_maximum_can_still_be_looked_at() -> None:
    image = opened(a_vhd(footer={"current_size": 1 << 58}))
    image.inspect()

    assert codes(image)["vhd.bat.small"] == "error"
    assert image.counts().total == 1 << 43


@pytest.mark.parametrize("offset", [0, 256, 1 << 40, ALL_ONES])
def test_a_data_offset_where_no_header_can_be_is_refused(offset: int) -> None:
    assert code_of(refusal(a_vhd(footer={"data_offset": offset}))) == "vhd.footer.data_offset"


def test_a_header_between_sectors_is_refused() -> None:
    assert code_of(refusal(a_vhd(footer={"data_offset": 513}))) == "vhd.header.align"


@pytest.mark.parametrize("offset", [0xFFFF_FFFF, 0, 512])
def test_a_fixed_disk_with_a_data_offset_is_read(offset: int) -> None:
    assert codes(opened(a_fixed_vhd(data_offset=offset))) == {"vhd.footer.data_offset": "warning"}


def test_a_fixed_disk_longer_or_shorter_than_its_file_says_so() -> None:
    assert codes(opened(a_fixed_vhd(current_size=SIZE + 512)))["vhd.fixed.short"] == "error"
    assert codes(opened(a_fixed_vhd(current_size=SIZE - 512)))["vhd.fixed.long"] == "warning"


def test_a_file_of_no_whole_number_of_sectors_is_read_from_its_copy() -> None:
    image = opened(a_vhd(blocks=A_BLOCK) + b"tail")

    assert codes(image)["vhd.file.size"] == "warning"
    assert codes(image)["vhd.footer.end_bad"] == "warning"
    assert content(image).startswith(b"guest")


@pytest.mark.parametrize("application", [b"win ", b"d2v\0", bytes(4)])
def test_programs_of_windows_keep_their_identities_as_windows_does(application: bytes) -> None:
    image = opened(a_vhd(footer={"creator_application": application}))

    assert str(image.disk_id) == "c85f2d6d-baee-4cde-8cee-de3a12db7c98"
    assert image.write_id == image.disk_id


@pytest.mark.parametrize("application", [b"vpc ", b"qemu", b"tap\0"])
def test_other_programs_keep_theirs_in_network_order(application: bytes) -> None:
    image = opened(a_vhd(footer={"creator_application": application}))

    assert str(image.disk_id) == "6d2d5fc8-eeba-de4c-8cee-de3a12db7c98"


def test_a_creator_cannot_reach_the_terminal() -> None:
    image = opened(a_vhd(footer={"creator_application": b"\x1b[2J"}))

    assert image.creator == "\\x1b[2J 10.0"
    assert "\x1b" not in "".join(str(finding) for finding in image.findings)
    assert "\x1b" not in str(image.sections)


@pytest.mark.parametrize("disk_type", [DYNAMIC, DIFFERENCING])
def test_the_sections_tell_of_footer_copy_and_header(disk_type: int) -> None:
    sections = opened(a_vhd(disk_type=disk_type, name="p.vhd")).sections

    assert [section.name for section in sections] == [
        "Hard Disk Footer",
        "Copy of Hard Disk Footer",
        "Dynamic Disk Header",
    ]
    assert dict(sections[0].fields)["Current Size"] == SIZE
    assert dict(sections[1].fields) == {"State": "equal"}


@pytest.mark.parametrize(
    ("size", "expected", "product"),
    [
        (104_448, (3, 4, 17), 104_448),
        (4_194_304, (120, 4, 17), 4_177_920),
        (4_212_736, (121, 4, 17), 4_212_736),
        (20_971_520, (602, 4, 17), 20_959_232),
        (1_073_741_824, (2080, 16, 63), 1_073_479_680),
        (10_737_418_240, (20805, 16, 63), 10_737_377_280),
        (136_365_211_648, (65278, 16, 255), 136_363_130_880),
        (136_899_993_600, (65535, 16, 255), 136_899_993_600),
        (2_190_433_320_960, (65535, 16, 255), 136_899_993_600),
    ],
)
def test_the_geometry_of_the_specification(size: int, expected: tuple[int, ...], product: int) -> None:
    assert geometry_of(size) == expected
    assert geometry_of(size).size == product
