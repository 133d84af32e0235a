"""Any byte of a VHDX may be anything: the image opens with findings, or is refused with one of our errors."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import vhdx as build
from tests.builders.vhdx import (
    BAT,
    HEADER_1,
    HEADER_2,
    ITEMS,
    LOG,
    METADATA,
    MIB,
    REGIONS_1,
    REGIONS_2,
    SECTOR,
    Zero,
    a_locator,
    a_vhdx,
    an_entry,
    bat_page,
    full,
    page,
    partial,
    repaired,
    sealed,
    unmapped,
    with_log,
    zero,
)
from vhdtool.errors import Finding, Severity, VhdtoolError
from vhdtool.formats.image import OpenOptions, require_sound
from vhdtool.formats.vhdx.image import VhdxImage, open_vhdx
from vhdtool.model.state import BlockState
from vhdtool.source import MemorySource

INTERESTING = [0, 1, 2, 3, 4, 5, 6, 7, 8, 0x7F, 0x80, 0xFF]


def the_disk() -> bytes:
    """A differencing disk with every kind of structure, and a log over it."""
    blocks = {0: partial(b"\xc0", {1, 7}), 1: full(b"\xc1"), 2: zero(), 3: unmapped(6 * MIB)}
    locator = a_locator(relative_path=".\\p.vhdx", absolute_win32_path="C:\\p.vhdx")
    image = a_vhdx(size=8 * MIB, parent=locator, blocks=blocks, extra_mib=1)
    entries = [
        an_entry(1, tail=0),
        an_entry(2, bat_page(image, 5, 2), Zero(8 * MIB, MIB), page(build.ITEMS + 0x1000, b""), tail=SECTOR),
    ]
    return bytes(with_log(image, entries))


DISK = the_disk()
ENTRY = LOG + SECTOR  # where the entry stands that is replayed
ENTRY_SIZE = SECTOR * 3
PLACES = {
    "identifier": (0, 520),
    "header 1": (HEADER_1, 96),
    "header 2": (HEADER_2, 96),
    "region table 1": (REGIONS_1, 96),
    "region table 2": (REGIONS_2, 96),
    "log entry": (ENTRY, 64 + 3 * 32),
    "metadata table": (METADATA, 32 + 6 * 32),
    "metadata items": (ITEMS, 400),
    "BAT": (BAT, 64),
    "bitmap entry": (BAT + 8 * 4096, 8),
}


def examined(image: bytes, *, ignore_checksums: bool = False, before: bool = False) -> VhdxImage | None:
    """Everything that can be asked of an image; None when it was refused."""
    options = OpenOptions("before" if before else "after", ignore_checksums)
    refused: VhdtoolError | None = None
    disk: VhdxImage | None = None
    try:
        disk = open_vhdx(MemorySource("disk.vhdx", image), options)
        disk.counts()
        disk.inspect(deep=True)
        count = min(disk.geometry.block_count, 20)
        mapped = disk.block_map(0, count)
        for block in range(count):
            state, offset = disk.entry(block)
            assert (state, offset) == (mapped.state[block], mapped.file_offset[block])
            if state is BlockState.PARTIAL:
                assert len(disk.bitmap(block)) == disk.geometry.sectors_per_block // 8
            if state in (BlockState.DATA, BlockState.PARTIAL):
                disk.source.read_exact(offset, disk.geometry.block_length(block), field="block")
    except VhdtoolError as error:
        refused = error
    if refused is not None:
        assert refused.exit_code in (65, 69)
        assert isinstance(refused.finding, Finding)
        assert str(refused).isprintable()
    if disk is not None:
        assert all(str(finding).isprintable() for finding in disk.findings)
    return disk


def test_the_disk_that_is_mutated_is_sound() -> None:
    disk = examined(DISK)

    assert disk is not None
    require_sound(disk)
    assert disk.log.entries == 1


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=120)
@given(data=st.data())
def test_any_bytes_of_a_structure_may_be_anything(place: str, data: st.DataObject) -> None:
    start, size = PLACES[place]
    image = bytearray(DISK)
    for _ in range(data.draw(st.integers(1, 3))):
        at = start + data.draw(st.integers(0, size - 1))
        image[at] = data.draw(st.sampled_from(INTERESTING) | st.integers(0, 255))
    # Checksums are repaired, or every example dies at one.
    repaired(image)
    image[ENTRY : ENTRY + ENTRY_SIZE] = sealed(bytes(image[ENTRY : ENTRY + ENTRY_SIZE]))

    examined(bytes(image), before=data.draw(st.booleans()))


@settings(max_examples=100)
@given(st.integers(0, 2**32), st.booleans())
def test_many_numbers_may_be_anything_at_once(seed: int, ignore_checksums: bool) -> None:
    rng = random.Random(seed)
    image = bytearray(DISK)
    for _ in range(rng.randrange(1, 8)):
        start, size = PLACES[rng.choice(list(PLACES))]
        at = start + rng.randrange(0, size, 4)
        width, code = rng.choice([(2, "<H"), (4, "<I"), (8, "<Q")])
        value = rng.choice([0, 1, 2 ** (8 * width) - 1, rng.getrandbits(8 * width), MIB, 4096, 7 * MIB])
        image[at : at + width] = struct.pack(code, value % 2 ** (8 * width))
    if not ignore_checksums:
        repaired(image)

    examined(bytes(image), ignore_checksums=ignore_checksums)


@settings(max_examples=60)
@given(st.integers(0, len(DISK)))
def test_a_file_may_end_anywhere(size: int) -> None:
    disk = examined(DISK[:size])

    if disk is not None and size < len(DISK) - MIB:
        assert any(f.severity is Severity.ERROR for f in disk.findings)


@settings(max_examples=60)
@given(st.binary(max_size=600))
def test_a_locator_may_be_anything(item: bytes) -> None:
    # After a right locator type, so that more than that is looked at.
    locator = build.LOCATOR_TYPE.bytes_le + b"\0\0" + item
    items = build.the_items(8 * MIB, MIB, 512, 4096, 2, locator)

    examined(bytes(a_vhdx(size=8 * MIB, items=items, bat_length=MIB)))
