"""The table: its rules, its windows, and that nobody pays for a large one."""

from __future__ import annotations

import os
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders.vhd import (
    BLOCK_SIZE,
    DIFFERENCING,
    HEADER_AT,
    SIZE,
    TABLE_AT,
    UNUSED,
    Fields,
    a_dynamic_header,
    a_footer,
    a_vhd,
    codes,
    content,
    opened,
)
from vhdtool.errors import CorruptError, Finding
from vhdtool.formats.image import OpenOptions, require_sound
from vhdtool.formats.overlap import Overlaps
from vhdtool.formats.vhd import bat as bat_module
from vhdtool.formats.vhd import table as table_module
from vhdtool.formats.vhd.image import VhdImage, open_vhd
from vhdtool.model.state import BlockState
from vhdtool.source import FileSource

STORED = BLOCK_SIZE + 512
FIRST_AT = 2048
TWO_BLOCKS = {0: (b"a" * 512, None), 2: (b"b" * 512, None)}


def surveyed(**changes: object) -> VhdImage:
    image = opened(a_vhd(**{"blocks": TWO_BLOCKS, **changes}))  # type: ignore[arg-type]
    image.survey()
    return image


def findings(image: VhdImage, code: str) -> list[Finding]:
    return [finding for finding in image.findings if finding.code == code]


def states(image: VhdImage) -> list[int]:
    one_by_one = [int(image.entry(block)[0]) for block in range(image.geometry.block_count)]
    whole = image.block_map(0, image.geometry.block_count)
    assert whole.state.tolist() == one_by_one
    assert whole.file_offset.tolist() == [image.entry(b)[1] for b in range(image.geometry.block_count)]
    return one_by_one


def test_stored_blocks_are_partial_and_their_data_stand_behind_their_bitmaps() -> None:
    image = surveyed()

    assert states(image) == [BlockState.PARTIAL, BlockState.ABSENT, BlockState.PARTIAL, BlockState.ABSENT]
    assert image.entry(0) == (BlockState.PARTIAL, FIRST_AT + 512)
    assert image.entry(2) == (BlockState.PARTIAL, FIRST_AT + STORED + 512)
    assert (image.counts().total, image.counts().partial, image.counts().absent) == (4, 2, 2)


@pytest.mark.parametrize(
    ("bat", "code", "damaged"),
    [
        ({1: 0}, "vhd.block.meta", {1}),  # over the footer's copy
        ({1: 1}, "vhd.block.meta", {1}),  # over the header
        ({1: TABLE_AT // 512}, "vhd.block.meta", {1}),
        ({0: TABLE_AT // 512}, "vhd.block.meta", {0}),
        ({1: 0xFFFF_FFFE}, "vhd.block.eof", {1}),
        ({1: (FIRST_AT + STORED + 512) // 512}, "vhd.block.eof", {1}),
        ({1: FIRST_AT // 512}, "vhd.block.cross", {0, 1}),
        ({1: FIRST_AT // 512 + 1}, "vhd.block.cross", {0, 1, 2}),
    ],
)
def test_an_entry_that_breaks_a_rule_damages_its_block(
    bat: dict[int, int], code: str, damaged: set[int]
) -> None:
    image = surveyed(bat=bat)

    assert codes(image)[code] == "error"
    assert {block for block, state in enumerate(states(image)) if state == BlockState.DAMAGED} == damaged
    assert findings(image, code)[0].location.field.startswith("bat[")
    with pytest.raises(CorruptError):
        require_sound(image)


def test_entry_knows_of_cross_links_before_anybody_surveyed() -> None:
    image = opened(a_vhd(blocks=TWO_BLOCKS, bat={1: FIRST_AT // 512}))

    assert image.entry(1) == (BlockState.DAMAGED, 0)
    assert image.entry(2)[0] is BlockState.PARTIAL


def test_a_locators_data_are_metadata_by_their_length() -> None:
    text = "p.vhd".encode("utf-16-le")
    child = {"disk_type": DIFFERENCING, "locators": ((b"W2ru", text),)}

    over = surveyed(**child, bat={1: FIRST_AT // 512})
    beside = surveyed(**child)

    assert "vhd.block.meta" in codes(over)
    assert "vhd.block.meta" not in codes(beside)


def test_a_block_in_front_of_metadata_is_sound() -> None:
    """A locator behind the last block: only overlap is a fault."""
    body = a_vhd(disk_type=DIFFERENCING, blocks={0: (b"a" * 512, None)}, name="p.vhd")[:-512]
    header = {
        "parent_locator_entries": b"W2ru" + (512).to_bytes(4, "big") + (10).to_bytes(4, "big") + bytes(4)
        + len(body).to_bytes(8, "big")
    }  # fmt: skip
    image = opened(
        a_vhd(disk_type=DIFFERENCING, blocks={0: (b"a" * 512, None)}, name="p.vhd", header=header)[:-512]
        + "q.vhd".encode("utf-16-le").ljust(512, b"\0")
        + a_footer(disk_type=DIFFERENCING)
    )
    image.inspect()

    assert image.entry(0)[0] is BlockState.PARTIAL
    assert not {"vhd.block.meta", "vhd.orphan.space", "vhd.locator.range"} & codes(image).keys()


def test_a_cut_last_block_whose_missing_tail_is_not_the_disks_is_read() -> None:
    whole = a_vhd(blocks={3: (b"z" * 1024, None)})  # the last block has 12 sectors of 64
    footer, body = whole[-512:], whole[:-512]
    needed = SIZE - 3 * BLOCK_SIZE

    cut = opened(body[: FIRST_AT + 512 + needed] + footer)
    cut.survey()
    shorter = opened(body[: FIRST_AT + 512 + needed - 512] + footer)
    shorter.survey()

    assert codes(cut)["vhd.block.truncated"] == "warning"
    assert "vhd.block.eof" not in codes(cut)
    assert states(cut)[3] == BlockState.PARTIAL
    assert content(cut)[3 * BLOCK_SIZE :].startswith(b"z" * 1024)
    require_sound(cut)
    assert codes(shorter)["vhd.block.eof"] == "error"
    assert states(shorter)[3] == BlockState.DAMAGED


def test_a_cut_block_in_the_middle_of_the_disk_is_damaged() -> None:
    whole = a_vhd(blocks={1: (b"z" * 1024, None)})
    image = opened(whole[: -512 - 512] + whole[-512:])

    image.survey()

    assert codes(image)["vhd.block.eof"] == "error"
    assert states(image)[1] == BlockState.DAMAGED


def test_entries_behind_the_disks_end_are_not_used() -> None:
    image = surveyed(bat_entries=8, bat={5: 0, 7: 4})

    (finding,) = findings(image, "vhd.bat.tail")

    assert str(finding.severity) == "info"
    assert finding.location.field == "bat[5]"
    assert finding.what.startswith("2 used")
    assert states(image).count(BlockState.DAMAGED) == 0
    assert image.counts().partial == 2
    require_sound(image)


def test_blocks_without_an_entry_are_damaged() -> None:
    image = surveyed(bat_entries=2)

    assert codes(image)["vhd.bat.small"] == "error"
    assert states(image) == [BlockState.PARTIAL, BlockState.ABSENT, BlockState.DAMAGED, BlockState.DAMAGED]


def test_a_table_cut_off_by_the_files_end_is_damaged_where_it_is_not() -> None:
    image = opened(a_footer() + a_dynamic_header() + b"\xff" * 8)

    image.inspect()

    assert codes(image)["vhd.bat.eof"] == "error"
    assert states(image)[2:] == [BlockState.DAMAGED] * 2


def test_filler_of_zeros_is_only_mentioned() -> None:
    assert "vhd.bat.pad" not in codes(surveyed())
    assert codes(surveyed(filler=b"\0"))["vhd.bat.pad"] == "info"


def test_unaligned_data_are_mentioned_once() -> None:
    unaligned, aligned = surveyed(), surveyed(first_block_at=4096 - 512, block_gap=4096 - 512)

    assert len(findings(unaligned, "vhd.block.unaligned")) == 1
    assert "vhd.block.unaligned" not in codes(aligned)


def test_many_faults_of_one_kind_are_counted_and_not_listed() -> None:
    blocks = dict.fromkeys(range(100), (b"", ()))
    image = opened(a_vhd(size=100 * 512, block_size=512, blocks=blocks, bat=dict.fromkeys(range(1, 100), 0)))
    image.survey()

    listed = findings(image, "vhd.block.meta")

    assert len(listed) == 16
    assert listed[-1].what.endswith("(and 83 more like it)")


def test_more_used_entries_than_the_file_has_room_for_are_cross_linked() -> None:
    blocks = dict.fromkeys(range(10), (b"", ()))
    image = opened(a_vhd(size=512 * 1000, block_size=512, blocks=blocks, bat=dict.fromkeys(range(1000), 14)))
    image.survey()

    assert codes(image)["vhd.block.cross"] == "error"
    assert set(states(image)) == {BlockState.DAMAGED}


def test_a_table_too_crowded_to_tell_apart_damages_every_stored_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def crowded(*_: object, **__: object) -> Overlaps:
        return Overlaps(np.empty(0, np.int64), everything=True)

    monkeypatch.setattr(bat_module, "find_overlaps", crowded)

    image = surveyed()

    assert [f.what for f in findings(image, "vhd.block.cross")] == [
        "more blocks are stored than the file has room for: they overlap"
    ]
    assert states(image) == [BlockState.DAMAGED, BlockState.ABSENT, BlockState.DAMAGED, BlockState.ABSENT]


@pytest.mark.parametrize("window", [1, 3, 1024])
def test_windows_of_any_size_give_one_answer(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(table_module, "WINDOW_ENTRIES", window)
    blocks = dict.fromkeys((9, 3, 0, 6), (b"x", None))
    built = a_vhd(size=512 * 11, block_size=512, blocks=blocks, bat_entries=17, bat={12: 5})
    image = opened(built)

    image.inspect(deep=True)

    assert [block for block, state in enumerate(states(image)) if state] == [0, 3, 6, 9]
    assert image.counts().partial == 4
    parts = [image.block_map(n, min(11, n + 4)).entry for n in range(0, 11, 4)]
    assert np.array_equal(np.concatenate(parts), image.block_map(0, 11).entry)
    assert not image.block_map(0, 11).entry.flags.writeable


@given(
    entries=st.lists(
        st.one_of(st.just(UNUSED), st.integers(0, 40), st.integers(0, 0xFFFF_FFFF)), min_size=4, max_size=4
    ),
    end=st.sampled_from([None, b""]),
)
def test_single_entries_and_maps_agree_for_any_table(entries: list[int], end: bytes | None) -> None:
    image = opened(a_vhd(blocks={0: (b"", ()), 1: (b"", ())}, bat=dict(enumerate(entries)), end=end))

    assert states(image).count(BlockState.ABSENT) == entries.count(UNUSED)
    assert image.counts().absent == entries.count(UNUSED)
    spans = sorted(offset for state, offset in map(image.entry, range(4)) if state is BlockState.PARTIAL)
    assert all(later - earlier >= STORED for earlier, later in pairwise(spans))


@given(data=st.binary(max_size=400))
def test_counting_unused_entries_looks_at_whole_entries_only(data: bytes) -> None:
    data = (data + bytes(3))[: (len(data) + 3) // 4 * 4]
    data = data.replace(b"\1", b"\xff\xff\xff")[: len(data) // 4 * 4]

    expected = sum(data[i : i + 4] == b"\xff" * 4 for i in range(0, len(data), 4))

    assert table_module._count_all_ones(data) == expected


def a_sparse_vhd(
    path: Path, *, virtual_size: int, entries: int, block_size: int, **footer: int | bytes
) -> None:
    """A file whose table is one great hole."""
    fields: Fields = {"current_size": virtual_size, **footer}
    table_stop = TABLE_AT + -(-entries * 4 // 512) * 512
    with path.open("wb") as file:
        file.write(a_footer(**fields))
        file.seek(HEADER_AT)
        file.write(a_dynamic_header(max_table_entries=entries, block_size=block_size))
        file.seek(table_stop)
        file.write(a_footer(**fields))


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="holes cannot be seen here")
@pytest.mark.parametrize("virtual_size", [SIZE, ((1 << 32) - 1) * 512 & ~0x1FF])
def test_a_hostile_table_that_is_a_hole_costs_nothing(tmp_path: Path, virtual_size: int) -> None:
    path = tmp_path / "hostile.vhd"
    virtual_size = min(virtual_size, 2040 << 30)
    a_sparse_vhd(path, virtual_size=virtual_size, entries=(1 << 32) - 1, block_size=512)
    if path.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system does not keep holes")

    tracemalloc.start()
    with FileSource(path) as source:
        image = open_vhd(source, OpenOptions())
        image.inspect(deep=True)
        counts = image.counts()
        last = image.geometry.block_count - 1
        assert image.entry(last)[0] is BlockState.DAMAGED
        assert image.block_map(last - 3, last + 1).state.tolist() == [BlockState.DAMAGED] * 4
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert counts.partial == image.geometry.block_count
    assert len(findings(image, "vhd.block.meta")) <= 16
    assert peak < 32 << 20


def test_opening_does_not_read_the_table() -> None:
    class Watched:
        """A source that tells what was read."""

        name = "watched.vhd"

        def __init__(self, data: bytes) -> None:
            self.data = data
            self.size = len(data)
            self.read: list[tuple[int, int]] = []

        def read_exact(self, offset: int, length: int, *, field: str) -> bytes:
            assert offset + length <= self.size
            self.read.append((offset, offset + length))
            return self.data[offset : offset + length]

        def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
            buffer[:] = self.read_exact(offset, len(buffer), field=field)

        def data_ranges(self, start: int, stop: int) -> object:
            return iter([(start, stop)])

        def close(self) -> None: ...

    source = Watched(a_vhd(blocks=TWO_BLOCKS))

    open_vhd(source, OpenOptions())  # type: ignore[arg-type]

    assert all(stop <= TABLE_AT or start >= FIRST_AT for start, stop in source.read)
