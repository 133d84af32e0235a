"""Bytes measured on real files (the test vectors of the format digest), without the files."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from tests.builders.vhd import (
    a_dynamic_header,
    a_footer,
    a_windows_differencing_head,
    checksum,
    codes,
    opened,
    repaired,
)
from vhdtool.formats.vhd import layout

HYPERV_2012R2 = bytes.fromhex(
    "636f6e65637469780000000200010000"
    "00000000000002001e598ef777696e20"
    "000600035769326b0000001fc0000000"
    "0000001fc0000000fefe10ff00000003"
    "ffffe9db6d2d5fc8eebade4c8ceede3a"
    "12db7c9800"
).ljust(512, b"\0")


def a_dynamic_127_gib(footer: bytes) -> bytes:
    """Header at 0x200, BAT at 0x600 with 65024 unused entries, as both Windows and Virtual PC write it."""
    header = a_dynamic_header(table_offset=0x600, max_table_entries=0xFE00, block_size=2 << 20)
    return footer + header + b"\xff" * (0xFE00 * 4) + footer


def test_the_footer_of_hyper_v_2012_r2() -> None:
    image = opened(a_dynamic_127_gib(HYPERV_2012R2))
    image.inspect()

    assert codes(image) == {}
    assert image.created.isoformat() == "2016-02-19T08:29:43+00:00"
    assert image.creator == "win 6.3"
    assert image.geometry.virtual_size == 136_365_211_648
    assert str(image.disk_id) == "c85f2d6d-baee-4cde-8cee-de3a12db7c98"
    assert image.counts().absent == 65_024


def test_the_header_of_hyper_v_2012_r2_has_the_stated_checksum() -> None:
    header = a_dynamic_header(table_offset=0x600, max_table_entries=0xFE00, block_size=2 << 20)

    assert header[36:40] == bytes.fromhex("fffff379")


@pytest.mark.parametrize(
    ("app", "version", "stamp", "created"),
    [
        (b"vpc ", 0x0001_0000, 0x1E56_F9C4, "2016-02-17T09:28:36+00:00"),
        (b"d2v\0", 0x0001_0000, 0x1E61_ED8F, "2016-02-25T16:51:27+00:00"),
        (b"qemu", 0x0005_0003, 0x288C_3827, "2021-07-22T14:07:35+00:00"),
        (b"win ", 0x000A_0000, 0x2719_8E1B, "2020-10-14T10:23:23+00:00"),
        (b"qemu", 0x0005_0003, 0x1A39_73EA, "2013-12-10T06:40:42+00:00"),
    ],
)
def test_creators_and_times(app: bytes, version: int, stamp: int, created: str) -> None:
    footer = a_footer(creator_application=app, creator_version=version, time_stamp=stamp)
    image = opened(footer + a_dynamic_header() + b"\xff" * 512 + footer)

    assert image.created.isoformat() == created
    assert image.creator == f"{app.decode().strip(chr(0)).strip()} {version >> 16}.{version & 0xFFFF}"


@pytest.mark.parametrize(("entries", "expected"), [(126, 0xFFFF_F3F9), (3, 0xFFFF_F474), (1, 0xFFFF_F476)])
def test_header_checksums_of_other_programs(entries: int, expected: int) -> None:
    header = a_dynamic_header(table_offset=0x600, max_table_entries=entries, block_size=2 << 20)

    assert struct.unpack(">I", header[36:40]) == (expected,)


def test_the_checksums_of_the_differencing_disk_are_right() -> None:
    head = a_windows_differencing_head()
    footer, header = head[:512], head[512:1536]

    assert layout.byte_sum_checksum(footer, 64) == 0xFFFF_F02C == struct.unpack(">I", footer[64:68])[0]
    assert layout.byte_sum_checksum(header, 36) == 0xFFFF_D951 == struct.unpack(">I", header[36:40])[0]
    assert repaired(footer) == footer
    assert repaired(header) == header
    assert sum(footer) - sum(footer[64:68]) == 4051


def test_a_checksum_is_the_complement_of_the_byte_sum() -> None:
    assert checksum(b"\1" * 512) == ~512 & 0xFFFF_FFFF == layout.byte_sum_checksum(b"\1" * 60, 0) - 456


def test_disk2vhds_geometry_is_larger_than_its_disk_on_purpose() -> None:
    image = opened(
        a_dynamic_127_gib(
            a_footer(
                creator_application=b"d2v\0",
                current_size=263_454_720,
                cylinders=65535,
                heads=16,
                sectors_per_track=255,
            )
        )
    )

    assert image.geometry.virtual_size == 263_454_720
    assert codes(image)["vhd.geometry.mismatch"] == "info"


@pytest.mark.parametrize(
    ("shape", "parse"),
    [
        (layout.FOOTER, layout.parse_footer),
        (layout.DYNAMIC_HEADER, layout.parse_dynamic_header),
        (layout.PARENT_LOCATOR_ENTRY, layout.parse_parent_locator),
        (layout.BATMAP_HEADER, layout.parse_batmap_header),
    ],
)
def test_the_fast_parsers_read_what_the_shapes_declare(shape: Any, parse: Callable[[bytes], Any]) -> None:
    raw = random.Random(1).randbytes(shape.sizeof())

    slow, fast = shape.parse(raw), parse(raw)

    assert {name: slow[name] for name in slow if not name.startswith("_")} == fast._asdict()
    assert shape.build(fast._asdict()) == raw
