"""The dynamic header and Xen's batmap."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.builders.vhd import (
    A_PARENT_ID,
    DIFFERENCING,
    FIXED,
    SIZE,
    TABLE_AT,
    Fields,
    a_vhd,
    codes,
    content,
    opened,
    patched,
)
from vhdtool.errors import FormatError
from vhdtool.model.identity import Identity, utc_from_2000
from vhdtool.model.state import BlockState

XEN_1_3: Fields = {"creator_application": b"tap\0", "creator_version": 0x0001_0003}


def refusal(image: bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        opened(image)
    return caught.value


def test_no_header_where_the_footer_points_is_a_refusal() -> None:
    error = refusal(a_vhd(header={"cookie": b"cxsparsE"}))

    assert error.finding is not None
    assert error.finding.code == "vhd.header.missing"
    assert error.finding.location.offset == 512


@pytest.mark.parametrize("size", [0, 1, 256, 0x8001, 0xFFFF_FFFF])
def test_a_block_size_that_is_no_power_of_two_is_a_refusal(size: int) -> None:
    error = refusal(a_vhd(header={"block_size": size}))

    assert error.finding is not None
    assert error.finding.code == "vhd.header.block_size"


def test_a_wrong_checksum_is_an_error_and_a_warning_on_request() -> None:
    bad = a_vhd(header={"checksum": 7})

    assert codes(opened(bad))["vhd.header.checksum"] == "error"
    assert codes(opened(bad, ignore_checksums=True))["vhd.header.checksum"] == "warning"


@pytest.mark.parametrize(
    ("changes", "code", "severity"),
    [
        ({"header_version": 0x0002_0000}, "vhd.header.version", "error"),
        ({"data_offset": 0xFFFF_FFFF}, "vhd.header.next", "warning"),
        ({"data_offset": 512}, "vhd.header.next", "warning"),
        ({"table_offset": 0}, "vhd.bat.overlap", "error"),
        ({"table_offset": 1024}, "vhd.bat.overlap", "error"),
        ({"table_offset": 1537}, "vhd.bat.align", "error"),
        ({"table_offset": 1 << 40}, "vhd.bat.eof", "error"),
        ({"table_offset": (1 << 64) - 512}, "vhd.bat.eof", "error"),
        ({"max_table_entries": 3}, "vhd.bat.small", "error"),
        ({"max_table_entries": 0}, "vhd.bat.small", "error"),
        ({"max_table_entries": 5}, "vhd.bat.large", "info"),
        ({"max_table_entries": 0xFFFF_FFFF}, "vhd.bat.eof", "error"),
        ({"block_size": 512}, "vhd.bat.small", "error"),
        ({"block_size": 1 << 31}, "vhd.header.block_size", "info"),
        ({"reserved": 1}, "vhd.reserved.nonzero", "info"),
        ({"reserved_2": b"x"}, "vhd.reserved.nonzero", "info"),
        ({"parent_unique_id": A_PARENT_ID}, "vhd.parent.fields", "warning"),
        ({"parent_time_stamp": 1}, "vhd.parent.fields", "warning"),
        ({"parent_unicode_name": b"\0p"}, "vhd.parent.fields", "warning"),
        ({"parent_locator_entries": b"W2ru"}, "vhd.parent.fields", "warning"),
    ],
)
def test_each_field_has_its_finding(changes: dict[str, int | bytes], code: str, severity: str) -> None:
    image = opened(a_vhd(header=changes))
    image.inspect(deep=True)  # and nothing of it stops a further look

    assert codes(image)[code] == severity


def test_another_header_version_is_not_read() -> None:
    image = opened(a_vhd(header={"header_version": 0x0002_0000}))

    (finding,) = (f for f in image.findings if f.code == "vhd.header.version")

    assert finding.exit_code == 69


def test_the_cookie_of_an_unknown_next_header_is_told() -> None:
    image = opened(patched(a_vhd(header={"data_offset": 2048}, bat_entries=200), 2048, b"\x1bNEXT\0\0\0"))

    (finding,) = (f for f in image.findings if f.code == "vhd.header.next")

    assert finding.found == "0x800, where \\x1bNEXT\\x00\\x00\\x00 stands"


def test_a_table_over_a_locator_is_an_error() -> None:
    text = "p.vhd".encode("utf-16-le")
    image = a_vhd(disk_type=DIFFERENCING, locators=((b"W2ru", text),), header={"table_offset": 2048})

    assert codes(opened(image))["vhd.bat.overlap"] == "error"


def test_a_table_behind_the_blocks_is_sound() -> None:
    whole = a_vhd(blocks={1: (b"data", None)})
    footer, body = whole[-512:], whole[:-512]
    table = body[TABLE_AT : TABLE_AT + 512]
    moved = a_vhd(blocks={1: (b"data", None)}, header={"table_offset": len(body)})[:-512] + table + footer

    image = opened(moved)
    image.survey()

    assert not {"vhd.bat.overlap", "vhd.block.meta", "vhd.bat.eof"} & codes(image).keys()
    assert content(image)[32768:32772] == b"data"


def test_what_a_differencing_disk_records_of_its_parent() -> None:
    image = opened(a_vhd(disk_type=DIFFERENCING, name="p.vhd", header={"parent_time_stamp": 86400}))

    assert image.parent is not None
    assert image.parent.identities == (Identity(A_PARENT_ID),)
    assert image.parent.name == "p.vhd"
    assert image.parent.timestamp == utc_from_2000(86400)


def test_a_parent_time_stamp_of_zero_is_none() -> None:
    image = opened(a_vhd(disk_type=DIFFERENCING, name="p.vhd"))

    assert image.parent is not None
    assert image.parent.timestamp is None


def test_a_dynamic_disk_has_no_parent_even_if_it_names_one() -> None:
    assert opened(a_vhd(header={"parent_unique_id": A_PARENT_ID})).parent is None


def test_a_parent_without_identity_is_an_error() -> None:
    image = opened(a_vhd(disk_type=DIFFERENCING, name="p", header={"parent_unique_id": b""}))

    assert codes(image)["vhd.parent.null"] == "error"


def test_xens_raw_parent_is_not_read() -> None:
    image = opened(a_vhd(disk_type=DIFFERENCING, name="p", header={"parent_unique_id": b""}, footer=XEN_1_3))

    (finding,) = (f for f in image.findings if f.code == "vhd.parent.raw")

    assert (finding.severity, finding.exit_code) == ("error", 69)


@pytest.mark.parametrize(("mark", "codec"), [(b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")])
def test_tapdisk_0_1_wrote_the_name_in_its_own_order(mark: bytes, codec: str) -> None:
    name = mark + "p.vhd".encode(codec)
    tap: Fields = {"creator_application": b"tap\0", "creator_version": 1}
    image = opened(a_vhd(disk_type=DIFFERENCING, header={"parent_unicode_name": name}, footer=tap))

    assert image.parent is not None
    assert image.parent.name == "p.vhd"


def a_xen_vhd(batmap: bytes | None, map_bytes: bytes = bytes(512), **footer: int | bytes) -> bytes:
    """Batmap header at 0x800, the map at 0xA00, one block at 0xC00."""
    image = a_vhd(blocks={0: (b"data", None)}, first_block_at=0xC00, footer={**XEN_1_3, **footer})
    return image if batmap is None else patched(patched(image, 0x800, batmap), 0xA00, map_bytes)


def a_batmap(
    offset: int = 0xA00, size: int = 1, version: int = 0x0001_0002, checksum: int = 0xFFFF_FFFF, flag: int = 0
) -> bytes:
    return struct.pack(">8sQIIIBB", b"tdbatmap", offset, size, version, checksum, 0, flag)


@pytest.mark.parametrize(
    ("batmap", "found"),
    [
        (a_batmap(), {}),
        (None, {"vhd.batmap.cookie": "warning"}),
        (a_batmap(version=3), {"vhd.batmap.version": "warning"}),
        (a_batmap(flag=1), {"vhd.batmap.encrypted": "warning"}),
        (a_batmap(offset=1 << 40), {"vhd.batmap.range": "warning"}),
        (a_batmap(offset=0x600), {"vhd.batmap.range": "warning"}),
        (a_batmap(offset=0xC00, size=2, checksum=0xFFFF_F807), {"vhd.block.meta": "error"}),
    ],
)
def test_the_batmap_is_looked_at_and_never_needed(batmap: bytes | None, found: dict[str, str]) -> None:
    image = opened(a_xen_vhd(batmap))
    image.inspect(deep=True)

    seen = {c: s for c, s in codes(image).items() if c.startswith(("vhd.batmap", "vhd.block.meta"))}
    assert seen == found
    if "vhd.block.meta" not in found:
        assert content(image).startswith(b"data")


@pytest.mark.parametrize(("version", "total"), [(0x0001_0001, 1 - 256 + 0xFF), (0x0001_0002, 1 + 0xFF)])
def test_the_batmaps_checksum_is_over_signed_or_unsigned_bytes(version: int, total: int) -> None:
    size = 3 << 33  # 12288 blocks of 2 MiB: 1536 bytes of map
    map_bytes = bytes([1, 0xFF]).ljust(1536, b"\0")

    def built(checksum: int) -> bytes:
        image = a_vhd(
            size=size, block_size=2 << 20, blocks={0: (b"", ())}, first_block_at=0xE000, footer=XEN_1_3
        )
        batmap = a_batmap(offset=0xC800, size=3, version=version, checksum=checksum)
        return patched(patched(image, TABLE_AT + 12288 * 4, batmap), 0xC800, map_bytes)

    right, wrong = opened(built(~total & 0xFFFF_FFFF)), opened(built(5))
    right.inspect()
    wrong.inspect()

    assert not [code for code in codes(right) if code.startswith("vhd.batmap")]
    assert codes(wrong)["vhd.batmap.checksum"] == "warning"


def test_a_batmap_smaller_than_the_disk_is_a_warning() -> None:
    image = a_vhd(size=3 << 33, block_size=2 << 20, first_block_at=0xE000, footer=XEN_1_3)
    image = patched(image, TABLE_AT + 12288 * 4, a_batmap(offset=0xC800, size=2))

    looked_at = opened(image)
    looked_at.inspect()

    assert codes(looked_at)["vhd.batmap.small"] == "warning"


@pytest.mark.parametrize("version", [0x0000_0001, 0x0001_0001])
def test_old_tapdisks_need_no_batmap(version: int) -> None:
    image = opened(a_xen_vhd(None, creator_version=version))
    image.inspect()

    assert not [code for code in codes(image) if code.startswith("vhd.batmap")]


def test_tapdisk_0_1_counts_bits_from_the_least_significant() -> None:
    tap: Fields = {"creator_application": b"tap\0", "creator_version": 1}
    image = opened(a_vhd(blocks={0: (b"\x11" * 512 * 64, (7,))}, footer=tap))

    assert image.entry(0)[0] is BlockState.PARTIAL
    assert image.bitmap(0)[0] == 1
    assert image.bitmaps(np.array([0]), 8).tolist() == [[1]]
    assert content(image)[:513] == b"\x11" * 512 + b"\0"


def test_a_header_is_not_looked_for_on_a_fixed_disk() -> None:
    image = opened(
        a_vhd(footer={"disk_type": FIXED, "data_offset": (1 << 64) - 1, "current_size": SIZE // 102})
    )

    assert image.header is None
