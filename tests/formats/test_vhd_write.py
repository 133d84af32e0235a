"""What is written reads back, lies where Windows would put it, and is refused when a VHD cannot be so."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders.vhd import (
    A_PARENT_ID,
    AN_ID,
    BytesSink,
    a_windows_differencing_head,
    codes,
    content,
    opened,
)
from vhdtool.errors import ExportError
from vhdtool.formats.vhd.image import VhdImage
from vhdtool.formats.vhd.write import (
    ParentRecord,
    VhdWriter,
    encode_footer,
    seconds_from_2000,
    write_fixed_footer,
)
from vhdtool.model.identity import DiskType, Identity
from vhdtool.model.state import BlockState

WHEN = datetime(2020, 10, 14, 10, 23, 23, tzinfo=UTC)
MIB = 1 << 20


def a_writer(
    sink: BytesSink, size: int, block_size: int = 2 * MIB, parent: ParentRecord | None = None
) -> VhdWriter:
    return VhdWriter(
        sink,
        virtual_size=size,
        block_size=block_size,
        unique_id=Identity(AN_ID),
        timestamp=WHEN,
        disk_type=DiskType.DIFFERENCING if parent else DiskType.DYNAMIC,
        parent=parent,
    )


def finished(writer: VhdWriter, sink: BytesSink) -> VhdImage:
    size = writer.finish()
    assert size == len(sink.data)
    image = opened(bytes(sink.data))
    image.inspect(deep=True)
    return image


def test_an_empty_disk_of_127_gib_lies_as_hyper_v_lays_it() -> None:
    sink = BytesSink()

    image = finished(a_writer(sink, 127 << 30), sink)

    assert len(sink.data) == 266_240
    assert image.footer.offset == 0x40E00
    assert image.header is not None
    assert image.header.table_offset == 0x600
    assert image.header.max_table_entries == 65_024
    assert bytes(sink.data[0x600:0x40000]) == b"\xff" * (0x40000 - 0x600)
    assert not any(sink.data[0x40000:0x40E00])
    assert image.footer.raw[56:60] == bytes.fromhex("fefe10ff")
    assert codes(image) == {}


def test_a_differencing_disk_is_the_one_that_windows_made_to_the_byte() -> None:
    sink = BytesSink()
    parent = ParentRecord(
        Identity(A_PARENT_ID), "C:\\Projects\\dfvfs\\test_data\\fat-parent.vhd", ".\\fat-parent.vhd"
    )
    writer = VhdWriter(
        sink,
        virtual_size=4 * MIB,
        unique_id=Identity(bytes.fromhex("f84f1636cd9e9041a69edcc2380e416a")),
        timestamp=WHEN,
        disk_type=DiskType.DIFFERENCING,
        parent=parent,
    )
    bits = [134, 143, *range(152, 160), 184, 185, 188, 190, 191, 192, 194, 196]
    bitmap = bytearray(512)
    for bit in bits:
        bitmap[bit // 8] |= 1 << bit % 8
    writer.write_block(0, b"", bytes(bitmap))

    image = finished(writer, sink)

    expected = a_windows_differencing_head()
    assert len(sink.data) == 0x215000
    assert bytes(sink.data[:0x14000]) == expected
    assert image.footer.offset == 0x214E00
    assert codes(image) == {}


@given(
    blocks=st.dictionaries(
        st.integers(0, 9), st.tuples(st.integers(1, 255), st.integers(0, (1 << 64) - 1)), max_size=8
    ),
    short=st.integers(0, 63),
    block_size=st.sampled_from([512, 4096, 32768]),
    is_child=st.booleans(),
)
def test_what_is_written_reads_back(
    blocks: dict[int, tuple[int, int]], short: int, block_size: int, is_child: bool
) -> None:
    per_block = block_size // 512
    size = 9 * block_size + (1 + short % per_block) * 512
    sink = BytesSink()
    parent = ParentRecord(Identity(A_PARENT_ID), "C:\\p.vhd", ".\\p.vhd", WHEN) if is_child else None
    writer = a_writer(sink, size, block_size, parent)
    expected = bytearray(size)
    for block, (byte, mask) in blocks.items():
        start, stop = block * block_size, min(size, (block + 1) * block_size)
        data = bytearray(stop - start)
        for sector in range(len(data) // 512):
            if mask >> sector & 1:
                data[sector * 512 : sector * 512 + 512] = bytes([byte]) * 512
        expected[start:stop] = data
        bitmap = (mask & (1 << per_block) - 1).to_bytes(-(-per_block // 8), "little")
        assert writer.write_block(block, bytes(data), bitmap) % 512 == 0

    image = finished(writer, sink)

    assert content(image) == expected
    assert image.counts().partial == len(blocks)
    loud = {code: severity for code, severity in codes(image).items() if severity != "info"}
    assert loud == {}
    assert len(sink.data) % 512 == 0
    if block_size >= 4096:
        assert "vhd.block.unaligned" not in codes(image)
        assert len(sink.data) % 4096 == 0


def test_blocks_without_a_bitmap_are_there_up_to_the_disks_end() -> None:
    sink = BytesSink()
    writer = a_writer(sink, 2 * MIB + 512 * 3)
    writer.write_block(1, memoryview(b"end"))
    writer.write_block(0, b"start")

    image = finished(writer, sink)

    assert image.bitmap(1) == b"\x07".ljust(512, b"\0")
    assert image.bitmap(0) == b"\xff" * 512
    assert image.entry(1) == (BlockState.PARTIAL, 0x2000)
    assert image.entry(0)[1] == 0x2000 + 2 * MIB + 4096
    assert content(image) == b"start".ljust(2 * MIB, b"\0") + b"end".ljust(1536, b"\0")
    assert "vhd.bitmap.tail" not in codes(image)


def test_a_child_records_its_parent() -> None:
    sink = BytesSink()
    image = finished(
        a_writer(
            sink, 4 * MIB, parent=ParentRecord(Identity(A_PARENT_ID), "D:\\VMs\\p.vhd", "..\\p.vhd", WHEN)
        ),
        sink,
    )

    assert image.parent is not None
    assert image.parent.timestamp == WHEN
    assert [(path.locator, path.path) for path in image.parent.paths] == [
        ("W2ru", "..\\p.vhd"),
        ("W2ku", "D:\\VMs\\p.vhd"),
        ("Parent Unicode Name", "D:\\VMs\\p.vhd"),
    ]


def test_a_path_too_long_for_the_header_leaves_its_file_name_there() -> None:
    sink = BytesSink()
    path = "D:\\" + "long\\" * 1000 + "p.vhd"
    image = finished(a_writer(sink, 4 * MIB, parent=ParentRecord(Identity(A_PARENT_ID), path, "")), sink)

    assert image.parent is not None
    assert [(p.locator, p.path) for p in image.parent.paths] == [
        ("W2ku", path),
        ("Parent Unicode Name", "p.vhd"),
    ]
    assert "vhd.orphan.space" not in codes(image)


def test_a_parent_without_a_full_path_has_a_name() -> None:
    sink = BytesSink()
    image = finished(
        a_writer(sink, 4 * MIB, parent=ParentRecord(Identity(A_PARENT_ID), "", ".\\p.vhd")), sink
    )

    assert image.parent is not None
    assert image.parent.paths[1].path == "p.vhd"
    assert image.header is not None
    assert image.header.table_offset == 0x1000


def test_a_fixed_disk_is_its_data_and_a_footer() -> None:
    sink = BytesSink()
    sink.write_at(0, b"guest")

    size = write_fixed_footer(sink, virtual_size=1 * MIB, unique_id=Identity(AN_ID), timestamp=WHEN)

    image = opened(bytes(sink.data))
    assert size == len(sink.data) == MIB + 512
    assert codes(image) == {}
    assert content(image) == b"guest".ljust(MIB, b"\0")


@pytest.mark.parametrize("size", [0, 511, 513, -512, (2040 << 30) + 512])
def test_sizes_that_a_vhd_cannot_have_are_the_callers_mistake(size: int) -> None:
    with pytest.raises(ValueError, match="virtual size"):
        encode_footer(DiskType.FIXED, size, Identity(AN_ID), WHEN)


@pytest.mark.parametrize("block_size", [0, 256, 3000, 1 << 32])
def test_block_sizes_that_a_vhd_cannot_have_are_the_callers_mistake(block_size: int) -> None:
    with pytest.raises(ValueError, match="block size"):
        a_writer(BytesSink(), 1 * MIB, block_size)


def test_a_parent_and_a_type_that_do_not_agree_are_the_callers_mistake() -> None:
    for disk_type in (DiskType.FIXED, DiskType.DIFFERENCING):
        with pytest.raises(ValueError, match="parent"):
            VhdWriter(
                BytesSink(), virtual_size=MIB, unique_id=Identity(AN_ID), timestamp=WHEN, disk_type=disk_type
            )


def test_a_block_is_written_once_and_fits() -> None:
    writer = a_writer(BytesSink(), 4 * MIB)
    writer.write_block(0, b"")

    with pytest.raises(ValueError, match="written already"):
        writer.write_block(0, b"")
    with pytest.raises(ValueError, match="for a block"):
        writer.write_block(1, bytes(2 * MIB + 1))
    with pytest.raises(ValueError, match="bitmap"):
        writer.write_block(1, b"", b"\xff")
    with pytest.raises(IndexError):
        writer.write_block(2, b"")


def test_blocks_beyond_the_reach_of_sector_numbers_are_refused() -> None:
    writer = a_writer(BytesSink(), 4 * MIB)
    writer._stop = 1 << 41

    with pytest.raises(ExportError, match="2 TiB"):
        writer.place_block(0)


def test_a_locator_has_an_end() -> None:
    with pytest.raises(ValueError, match="too long"):
        a_writer(BytesSink(), MIB, parent=ParentRecord(Identity(A_PARENT_ID), "C:\\" + "x" * 40000, ""))


@pytest.mark.parametrize(
    ("when", "seconds"),
    [
        (datetime(2000, 1, 1, tzinfo=UTC), 0),
        (datetime(1999, 1, 1, tzinfo=UTC), 0),
        (datetime(2200, 1, 1, tzinfo=UTC), 0xFFFF_FFFF),
        (WHEN, 0x2719_8E1B),
    ],
)
def test_times_are_seconds_since_2000(when: datetime, seconds: int) -> None:
    assert seconds_from_2000(when) == seconds
