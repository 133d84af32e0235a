"""VHDX images that we write: what stands where, and that reading gives back what was written."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.vhdx import MIB, TIB, Padded, a_vhdx, full
from vhdtool.formats.image import OpenOptions, require_sound
from vhdtool.formats.vhdx.image import VhdxImage, open_vhdx
from vhdtool.formats.vhdx.write import ParentRecord, VhdxWriter
from vhdtool.model.identity import DiskType, Identity, PathKind
from vhdtool.model.state import BlockCounts, BlockState
from vhdtool.source import MemorySource

ABSENT, ZERO, DATA, PARTIAL, DAMAGED = BlockState
DISK = Identity.of_uuid(UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"))
WRITE = Identity.of_uuid(UUID("83ed0ec3-24c8-49a6-a959-5e4bf1288bfb"))
PARENT = ParentRecord(WRITE, ".\\parent.vhdx", "C:\\vm\\parent.vhdx")


class Memory:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        if offset + len(data) > len(self.data):
            self.data.extend(bytes(offset + len(data) - len(self.data)))
        self.data[offset : offset + len(data)] = data


def a_writer(**changes: Any) -> tuple[VhdxWriter, Memory]:
    sink = Memory()
    options: dict[str, Any] = {"virtual_size": 4 * MIB, "block_size": MIB, "disk_id": DISK, "write_id": WRITE}
    return VhdxWriter(sink, **(options | changes)), sink


def finished(writer: VhdxWriter, sink: Memory) -> VhdxImage:
    size = writer.finish()
    image = open_vhdx(Padded(bytes(sink.data), size), OpenOptions())
    require_sound(image)
    assert image.findings == ()
    return image


def test_an_empty_dynamic_disk_is_laid_out_as_windows_does_it() -> None:
    writer, sink = a_writer(virtual_size=1 << 30, block_size=32 * MIB, creator="vhdtool 1.0")

    image = finished(writer, sink)

    assert image.source.size == 4 * MIB
    assert image.sections[3].fields[0] == ("Checksum", "0xc66b8cae")
    assert (image.header.name, image.header.sequence_number) == ("header 2", 2)
    assert (image.header.log_offset, image.header.log_length) == (MIB, MIB)
    assert (image.regions.metadata.file_offset, image.regions.bat.file_offset) == (2 * MIB, 3 * MIB)
    assert image.creator == "vhdtool 1.0"
    assert (image.disk_id, image.write_id) == (DISK, WRITE)
    assert image.counts() == BlockCounts(total=32, absent=32)


def test_it_equals_what_the_independent_builder_makes() -> None:
    writer, sink = a_writer(
        creator="builder", file_write_id=Identity.of_uuid(UUID("11111111-2222-3333-4444-555555555555"))
    )
    writer.write_block(1, b"\xff" * MIB)
    writer.finish()

    assert bytes(sink.data) == bytes(a_vhdx(blocks={1: full()}))


def test_blocks_stand_in_the_order_of_their_first_writing() -> None:
    writer, sink = a_writer()
    for block in (2, 0, 2, 1):
        writer.write_block(block, bytes([block + 1]) * MIB)

    image = finished(writer, sink)

    assert [image.entry(b) for b in range(4)] == [
        (DATA, 5 * MIB),
        (DATA, 6 * MIB),
        (DATA, 4 * MIB),
        (ABSENT, 0),
    ]
    assert image.source.size == 7 * MIB
    assert image.source.read_exact(4 * MIB, 1, field="x") == b"\x03"


def test_a_short_last_block_is_stored_whole() -> None:
    writer, sink = a_writer(virtual_size=MIB + 512)
    writer.write_block(1, b"x" * 512)

    assert finished(writer, sink).source.size == 5 * MIB


def test_states_without_data_are_written_as_told() -> None:
    writer, sink = a_writer(virtual_size=8 * MIB)
    for block, state in enumerate((0, 1, 2, 3)):
        writer.set_state(block, state)
    writer.write_block(4, b"old")
    writer.set_state(4, 3, 4 * MIB)

    size = writer.finish()
    image = open_vhdx(Padded(bytes(sink.data), size), OpenOptions())
    image.survey()

    assert image.counts() == BlockCounts(total=8, zero=4, absent=4)
    assert [f.code for f in image.findings] == ["vhdx.bat.anchor"]


@pytest.mark.parametrize("count", [1, 17, 600])
def test_a_fixed_disk_has_all_its_blocks(count: int) -> None:
    writer, sink = a_writer(virtual_size=count * 256 * MIB, block_size=256 * MIB, disk_type=DiskType.FIXED)
    writer.write_block(0, b"first")
    place = writer.place_block(count // 2)

    image = finished(writer, sink)

    assert image.type is DiskType.FIXED
    assert image.source.size == 4 * MIB + count * 256 * MIB
    offsets = image.block_map(0, count).file_offset
    assert offsets.tolist() == [4 * MIB + i * 256 * MIB for i in range(count)]
    assert place == offsets[count // 2]
    assert image.source.read_exact(4 * MIB, 5, field="x") == b"first"


def test_the_table_of_the_largest_fixed_disk_is_not_kept() -> None:
    class Counting(Memory):
        """Takes tables, whose bytes would be 512 MiB, without keeping them."""

        largest = total = 0

        def write_at(self, offset: int, data: bytes | memoryview) -> None:
            self.largest = max(self.largest, len(data))
            self.total += len(data)

    sink = Counting()
    writer = VhdxWriter(
        sink,
        virtual_size=64 * TIB,
        block_size=64 * MIB,
        disk_type=DiskType.FIXED,
        disk_id=DISK,
        write_id=WRITE,
    )

    assert writer.place_block(1 << 19) == writer.first_offset + 32 * TIB
    assert writer.finish() == writer.first_offset + 64 * TIB
    assert sink.largest <= 2 * MIB
    assert sink.total > 8 * MIB


def test_a_table_is_written_as_blocks_come() -> None:
    writer, sink = a_writer(virtual_size=1 << 30, disk_type=DiskType.DIFFERENCING, parent=PARENT)
    other, expected = a_writer(virtual_size=1 << 30, disk_type=DiskType.DIFFERENCING, parent=PARENT)
    bitmap = b"\1" + bytes(255)
    for block in range(0, 1024, 5):
        for one in (writer, other):
            one.place_block(block, bitmap if block % 2 else None)
        writer.flush(block)
    writer.zero_blocks(1021, 3)
    for block in range(1021, 1024):
        other.set_state(block, 2)

    assert writer.finish() == other.finish()
    assert sink.data == expected.data
    with pytest.raises(ValueError, match="flush"):
        writer.place_block(3)


def test_zeros_over_many_chunks_leave_out_the_entries_of_bitmaps() -> None:
    writer, sink = a_writer(virtual_size=700 * 256 * MIB, block_size=256 * MIB)
    writer.zero_blocks(3, 600)

    image = finished(writer, sink)

    assert image.counts() == BlockCounts(total=700, zero=600, absent=100)
    assert [image.entry(block)[0] for block in (2, 3, 602, 603)] == [ABSENT, ZERO, ZERO, ABSENT]


def test_a_large_table_has_room_and_costs_only_what_is_in_it() -> None:
    writer, sink = a_writer(virtual_size=2 * TIB, block_size=MIB)
    writer.set_state(2 * MIB - 1, 2)

    image = finished(writer, sink)

    assert image.regions.bat.length == 17 * MIB
    assert image.entry(2 * MIB - 1) == (ZERO, 0)


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_differencing_disk_records_its_parent_and_its_sectors(sector: int) -> None:
    record = ParentRecord(WRITE, "..\\ba\u00df\U0001f4be.vhdx", "D:\\p.vhdx", "\\\\?\\Volume{x}\\p.vhdx")
    writer, sink = a_writer(
        disk_type=DiskType.DIFFERENCING,
        parent=record,
        logical_sector_size=sector,
        physical_sector_size=sector,
    )
    bitmap = b"\x82\x01".ljust(MIB // sector // 8, b"\0")
    writer.write_block(0, b"\xc0" * MIB, bitmap)
    writer.write_block(3, b"\xc3" * MIB)
    writer.write_block(2, b"\xc2" * MIB, bitmap[::-1])

    image = finished(writer, sink)

    assert image.geometry.sector_size == image.geometry.physical_sector_size == sector
    assert image.parent is not None
    assert image.parent.identities == (WRITE,)
    assert [(p.kind, p.path) for p in image.parent.paths] == [
        (PathKind.RELATIVE_PATH, record.relative_path),
        (PathKind.VOLUME_PATH, record.volume_path),
        (PathKind.ABSOLUTE_PATH, record.absolute_win32_path),
    ]
    assert [image.entry(b)[0] for b in range(4)] == [PARTIAL, ABSENT, PARTIAL, DATA]
    assert (image.bitmap(0), image.bitmap(2)) == (bitmap, bitmap[::-1])


def test_a_partial_block_may_become_a_full_one() -> None:
    writer, sink = a_writer(disk_type=DiskType.DIFFERENCING, parent=PARENT)
    writer.write_block(0, b"a", b"\1" + bytes(255))
    writer.write_block(0, b"b" * MIB)

    image = finished(writer, sink)
    assert image.entry(0)[0] is DATA
    assert image.source.read_exact(image.entry(0)[1], 2, field="x") == b"bb"


@pytest.mark.parametrize(
    "changes",
    [
        {"block_size": MIB // 2},
        {"block_size": 3 * MIB},
        {"virtual_size": 0},
        {"virtual_size": MIB + 1},
        {"virtual_size": 64 * TIB + 512},
        {"logical_sector_size": 1024},
        {"disk_type": DiskType.DIFFERENCING},
        {"parent": PARENT},
        {"creator": "x" * 256},
        {"disk_type": DiskType.DIFFERENCING, "parent": ParentRecord(WRITE, "x" * 40000, "y")},
        {"disk_type": DiskType.DIFFERENCING, "parent": ParentRecord(WRITE, "x\0", "y")},
    ],
)
def test_what_no_vhdx_can_be_is_the_callers_mistake(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        a_writer(**changes)


def test_blocks_that_cannot_be_are_the_callers_mistake() -> None:
    writer, _ = a_writer()

    with pytest.raises(ValueError, match="not one of 4"):
        writer.write_block(4, b"")
    with pytest.raises(ValueError, match="more than a block"):
        writer.write_block(0, bytes(MIB + 1))
    with pytest.raises(ValueError, match="differencing"):
        writer.write_block(0, b"", bytes(256))
    with pytest.raises(ValueError, match="none of 0 to 3"):
        writer.set_state(0, 6)
    with pytest.raises(ValueError, match="multiple of 1 MiB"):
        writer.set_state(0, 3, 5)
    with pytest.raises(ValueError, match="no place"):
        a_writer(disk_type=DiskType.DIFFERENCING, parent=PARENT)[0].write_bitmap(0, bytes(256))
    with pytest.raises(ValueError, match="all its blocks"):
        a_writer(disk_type=DiskType.FIXED)[0].set_state(0, 2)


@settings(max_examples=40)
@given(st.data(), st.sampled_from([1, 2, 8]), st.sampled_from([512, 4096]))
def test_what_is_written_is_read_back(data: st.DataObject, block_mib: int, sector: int) -> None:
    block_size = block_mib * MIB
    count = data.draw(st.integers(1, 6))
    writer, sink = a_writer(
        virtual_size=count * block_size - data.draw(st.sampled_from([0, sector])),
        block_size=block_size,
        logical_sector_size=sector,
        disk_type=DiskType.DIFFERENCING,
        parent=PARENT,
    )
    expected: dict[int, tuple[BlockState, bytes, bytes]] = {}
    for block in data.draw(st.permutations(range(count))):
        kind = data.draw(st.sampled_from(["absent", "zero", "data", "partial"]))
        content = data.draw(st.binary(min_size=1, max_size=16))
        bitmap = data.draw(st.binary(min_size=2, max_size=2)) + bytes(block_size // sector // 8 - 2)
        if kind == "zero":
            writer.set_state(block, 2)
            expected[block] = (ZERO, b"", b"")
        elif kind == "data":
            writer.write_block(block, content)
            expected[block] = (DATA, content, b"")
        elif kind == "partial":
            writer.write_block(block, content, bitmap)
            expected[block] = (PARTIAL, content, bitmap)

    image = finished(writer, sink)

    for block in range(count):
        state, content, bitmap = expected.get(block, (ABSENT, b"", b""))
        found, offset = image.entry(block)
        assert found is state
        if content:
            assert image.source.read_exact(offset, len(content), field="x") == content
        if bitmap:
            assert image.bitmap(block) == bitmap
    assert np.array_equal(
        image.block_map(0, count).state, [expected.get(b, (ABSENT, b"", b""))[0] for b in range(count)]
    )


def test_memory_sources_read_what_the_writer_wrote() -> None:
    writer, sink = a_writer()
    writer.write_block(0, b"x" * MIB)
    writer.finish()

    assert open_vhdx(MemorySource("x", bytes(sink.data)), OpenOptions()).findings == ()
