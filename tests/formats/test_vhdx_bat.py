"""The BAT of a VHDX: its arithmetic, every state in every kind of disk, every rule an entry can break."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import vhdx as build
from tests.builders.vhdx import (
    BAT,
    GIB,
    KIB,
    MIB,
    TIB,
    Block,
    Padded,
    a_locator,
    a_vhdx,
    full,
    partial,
    the_child,
    undefined,
    unmapped,
    zero,
)
from vhdtool.errors import CorruptError, Severity
from vhdtool.formats.image import OpenOptions, require_sound
from vhdtool.formats.vhdx.chunk import ChunkLayout, chunk_ratio
from vhdtool.formats.vhdx.image import VhdxImage, open_vhdx
from vhdtool.model.state import BlockCounts, BlockState
from vhdtool.source import FileSource, MemorySource

ABSENT, ZERO, DATA, PARTIAL, DAMAGED = BlockState
ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
FIRST = 4 * MIB  # where the first block stands


def opened(image: bytes | bytearray, **options: Any) -> VhdxImage:
    return open_vhdx(MemorySource("disk.vhdx", bytes(image)), OpenOptions(**options))


def surveyed(image: bytes | bytearray) -> list[tuple[str, Severity]]:
    disk = opened(image)
    disk.survey()
    return [(f.code, f.severity) for f in disk.findings]


def states(image: VhdxImage) -> list[BlockState]:
    """States of all blocks, after checking that both roads to them agree."""
    count = image.geometry.block_count
    mapped = image.block_map(0, count)
    single = [image.entry(b) for b in range(count)]
    assert [(int(s), int(o)) for s, o in zip(mapped.state, mapped.file_offset)] == single
    return [BlockState(int(s)) for s in mapped.state]


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(
    ("block_mib", "ratio", "ratio_4k"),
    [(1, 4096, 32768), (2, 2048, 16384), (32, 128, 1024), (64, 64, 512), (256, 16, 128)],
)
def test_the_chunk_ratio_is_the_specifications(block_mib: int, ratio: int, ratio_4k: int) -> None:
    assert chunk_ratio(block_mib * MIB, 512) == ratio
    assert chunk_ratio(block_mib * MIB, 4096) == ratio_4k


def test_the_worked_example_of_10_gib_in_blocks_of_32_mib() -> None:
    dynamic = ChunkLayout(320, 128, differencing=False)
    differencing = ChunkLayout(320, 128, differencing=True)

    assert [dynamic.index_of_block(b) for b in (0, 127, 128, 256, 319)] == [0, 127, 129, 258, 321]
    assert [dynamic.index_of_bitmap(c) for c in (0, 2)] == [128, 386]
    assert (dynamic.chunk_count, dynamic.entry_count, differencing.entry_count) == (3, 322, 387)


def test_the_worked_example_of_a_small_disk_has_its_bitmap_far_behind_its_blocks() -> None:
    assert ChunkLayout(5, 4096, differencing=False).entry_count == 5
    assert ChunkLayout(5, 4096, differencing=True).entry_count == 4097
    assert ChunkLayout(5, 4096, differencing=True).index_of_bitmap(0) == 4096


def test_the_order_of_entries_with_four_blocks_in_a_chunk() -> None:
    chunks = ChunkLayout(8, 4, differencing=True)

    assert [chunks.owner_of(i) for i in range(10)] == [
        *((False, b) for b in range(4)),
        (True, 0),
        *((False, b) for b in range(4, 8)),
        (True, 1),
    ]


@given(st.integers(0, 2**26), st.sampled_from([2**n for n in range(4, 16)]))
def test_an_entry_belongs_to_the_block_it_was_found_by(block: int, ratio: int) -> None:
    chunks = ChunkLayout(block + 1, ratio, differencing=True)

    assert chunks.owner_of(chunks.index_of_block(block)) == (False, block)
    number = chunks.chunk_of_block(block)
    assert chunks.owner_of(chunks.index_of_bitmap(number)) == (True, number)
    assert chunks.entry_count == chunks.index_of_bitmap(number) + 1


# ---------------------------------------------------------------- states


EVERY_STATE = {0: Block(0), 1: undefined(), 2: zero(), 3: unmapped(), 6: full(b"\x66")}


def test_states_of_a_disk_without_parent_read_as_zeros_or_data() -> None:
    image = opened(a_vhdx(size=8 * MIB, blocks={**EVERY_STATE, 7: Block(7, b"\x77")}))

    assert states(image) == [ABSENT, ZERO, ZERO, ZERO, ABSENT, ABSENT, DATA, DATA]
    assert image.counts() == BlockCounts(total=8, data=2, partial=0, zero=3, absent=3)
    # A bitmap slot in use and a partial block: neither has a meaning here, so both are said.
    assert [(f.code, f.severity) for f in image.findings] == [("vhdx.bat.state", WARNING)]


def test_states_of_a_differencing_disk_leave_only_not_present_to_the_parent() -> None:
    image = opened(a_vhdx(size=8 * MIB, parent=a_locator(), blocks={**EVERY_STATE, 7: partial(b"\x77", {0})}))

    assert states(image) == [ABSENT, ZERO, ZERO, ZERO, ABSENT, ABSENT, DATA, PARTIAL]
    assert image.counts() == BlockCounts(total=8, data=1, partial=1, zero=3, absent=3)
    assert image.findings == ()
    require_sound(image)


@pytest.mark.parametrize("state", [4, 5])
@pytest.mark.parametrize("parent", [None, a_locator()])
def test_reserved_states_are_errors_in_every_disk(state: int, parent: bytes | None) -> None:
    image = opened(a_vhdx(parent=parent, entries={2: state}))

    assert states(image) == [ABSENT, ABSENT, DAMAGED, ABSENT]
    assert [(f.code, f.severity) for f in image.findings] == [("vhdx.bat.state", ERROR)]
    assert image.counts() == BlockCounts(total=4, absent=3)
    with pytest.raises(CorruptError):
        require_sound(image)


def test_a_fixed_disk_with_holes_is_a_warning() -> None:
    whole = a_vhdx(size=2 * MIB, fixed=True, blocks={0: full(), 1: full()})
    holes = a_vhdx(size=2 * MIB, fixed=True, blocks={0: full()})

    assert surveyed(whole) == []
    assert surveyed(holes) == [("vhdx.fixed.holes", WARNING)]


# ---------------------------------------------------------------- rules of one entry


def test_reserved_bits_are_a_warning_and_do_not_move_the_block() -> None:
    image = opened(a_vhdx(blocks={0: full()}, entries={0: FIRST | 0xFFFF8 | 6}))

    assert states(image)[0] is DATA
    assert image.entry(0) == (DATA, FIRST)
    assert [(f.code, f.severity) for f in image.findings] == [("vhdx.bat.reserved", WARNING)]


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (6, "vhdx.bat.zero_offset"),
        (build.LOG | 6, "vhdx.bat.region"),
        (build.METADATA | 6, "vhdx.bat.region"),
        (BAT | 6, "vhdx.bat.region"),
        (5 * MIB | 6, "vhdx.bat.eof"),
        (2**63 | 6, "vhdx.bat.eof"),
        (0xFFFFFFFFFFF << 20 | 6, "vhdx.bat.eof"),
        (2**44 | 6, "vhdx.bat.eof"),
    ],
)
def test_a_block_where_none_can_be_is_an_error(entry: int, code: str) -> None:
    image = opened(a_vhdx(blocks={0: full()}, entries={2: entry}))

    assert states(image) == [DATA, ABSENT, DAMAGED, ABSENT]
    assert [(f.code, f.severity) for f in image.findings] == [(code, ERROR)]
    assert str(image.findings[0].location) == f"disk.vhdx at {BAT + 16:#x} (BAT[2], block 2)"


def test_a_block_over_an_unknown_region_is_an_error() -> None:
    regions = [
        (build.BAT_REGION, BAT, MIB, 1),
        (build.METADATA_REGION, build.METADATA, MIB, 1),
        (build.STRANGER, 5 * MIB, MIB, 0),
    ]
    image = a_vhdx(block_size=2 * MIB, blocks={0: full()}, regions=regions)

    assert surveyed(image) == [("vhdx.bat.region", ERROR)]


def test_a_misplaced_log_that_is_not_needed_reserves_nothing() -> None:
    image = a_vhdx(blocks={0: full()})
    headers = [build.a_header(n, log_offset=FIRST, log_length=64 * MIB) for n in (1, 2)]

    assert surveyed(build.with_headers(image, *headers)) == [("vhdx.log.eof", WARNING)]


def test_the_last_block_of_a_disk_may_be_stored_short() -> None:
    image = a_vhdx(size=2 * MIB + 512, block_size=2 * MIB, blocks={0: full(), 1: full()})
    enough, too_short = image[: 6 * MIB + 512], image[: 6 * MIB + 511]

    assert surveyed(enough) == [("vhdx.bat.short_block", INFO)]
    assert states(opened(enough)) == [DATA, DATA]
    assert surveyed(too_short) == [("vhdx.bat.eof", ERROR)]
    # Strict reading refuses it for the finding; what is left of the block can be asked for.
    assert states(opened(too_short)) == [DATA, DATA]


def test_a_block_that_is_not_the_last_must_be_whole() -> None:
    image = a_vhdx(size=4 * MIB, block_size=2 * MIB, blocks={0: full()})[: 5 * MIB]

    assert surveyed(image) == [("vhdx.bat.eof", ERROR)]


def test_a_bat_that_the_file_cuts_off_is_damaged_where_it_is_cut() -> None:
    image = opened(a_vhdx(size=8 * MIB)[: BAT + 4096 + 16])

    assert [f.code for f in image.findings] == ["vhdx.region.eof"]
    assert states(image) == [ABSENT] * 8
    cut = opened(a_vhdx(size=8 * MIB)[: BAT + 40])
    assert states(cut) == [ABSENT] * 5 + [DAMAGED] * 3
    assert cut.counts() == BlockCounts(total=8, absent=5)


# ---------------------------------------------------------------- sector bitmap entries


SMALL = 4096  # the bitmap's entry of a disk of less than 4 GiB in blocks of 1 MiB


def test_a_partial_block_without_bitmap_is_an_error() -> None:
    child = a_vhdx(parent=a_locator(), blocks={0: partial(b"x", {0}), 1: full()}, entries={SMALL: 0})

    image = opened(child)
    assert states(image) == [DAMAGED, DATA, ABSENT, ABSENT]
    assert [(f.code, f.severity) for f in image.findings] == [("vhdx.bat.no_bitmap", ERROR)]


@pytest.mark.parametrize(
    ("entry", "codes"),
    [
        (7 * MIB | 7, ["vhdx.bat.state", "vhdx.bat.no_bitmap"]),
        (7 * MIB | 1, ["vhdx.bat.state", "vhdx.bat.no_bitmap"]),
        (6, ["vhdx.bat.zero_offset"]),
        (BAT | 6, ["vhdx.bat.region"]),
        (2**60 | 6, ["vhdx.bat.eof"]),
    ],
)
def test_a_bitmap_entry_that_breaks_a_rule_takes_its_partial_blocks_along(
    entry: int, codes: list[str]
) -> None:
    child = a_vhdx(parent=a_locator(), blocks={0: partial(b"x", {0}), 1: full()}, entries={SMALL: entry})

    image = opened(child)
    assert states(image)[:2] == [DAMAGED, DATA]
    assert [f.code for f in image.findings] == codes
    assert all(f.severity is ERROR for f in image.findings)


def test_a_bitmap_in_a_disk_without_parent_is_a_warning_and_not_consulted() -> None:
    image = a_vhdx(size=5 * GIB, block_size=32 * MIB, blocks={0: full()}, entries={128: 40 * MIB | 6})

    assert surveyed(image) == [("vhdx.bat.state", WARNING)]


def test_entries_past_the_need_are_padding() -> None:
    assert surveyed(a_vhdx(blocks={0: full()}, entries={4: 6, 5: 2**63 | 4, SMALL: 7})) == []
    differencing = a_vhdx(parent=a_locator(), blocks={0: full()}, entries={4: 4, 4000: 6, 4097: 4})
    assert surveyed(differencing) == []


# ---------------------------------------------------------------- rules between entries


def test_blocks_that_share_bytes_are_errors_and_both_are_damaged() -> None:
    image = opened(a_vhdx(blocks={0: full(), 1: full()}, entries={3: FIRST + MIB | 6}))

    assert states(image) == [DATA, DAMAGED, ABSENT, DAMAGED]
    assert [(f.code, f.severity) for f in image.findings] == [("vhdx.bat.cross", ERROR)]


def test_one_entry_alone_knows_that_another_claims_its_bytes() -> None:
    image = opened(a_vhdx(blocks={0: full(), 1: full()}, entries={3: FIRST + MIB | 6}))

    assert image.entry(1) == (DAMAGED, 0)


def test_a_bitmap_over_a_block_damages_both() -> None:
    child = a_vhdx(parent=a_locator(), blocks={0: partial(b"x", {0}), 1: full()})
    (there,) = struct.unpack_from("<Q", child, BAT + 8)
    image = opened(build.patched(child, BAT + 8 * SMALL, struct.pack("<Q", there)))

    assert states(image)[:2] == [DAMAGED, DAMAGED]
    assert [f.code for f in image.findings] == ["vhdx.bat.cross"]


def test_old_content_is_told_and_does_no_harm() -> None:
    image = a_vhdx(blocks={0: full(), 1: unmapped(FIRST + MIB), 2: undefined()}, extra_mib=1)

    assert surveyed(image) == [("vhdx.bat.anchor", INFO)]


@pytest.mark.parametrize(
    ("place", "code"),
    [(2**62, "vhdx.bat.eof"), (5 * MIB, "vhdx.bat.eof"), (BAT, "vhdx.bat.region"), (FIRST, "vhdx.bat.cross")],
)
def test_old_content_where_it_cannot_be_is_a_warning(place: int, code: str) -> None:
    image = opened(a_vhdx(blocks={0: full(), 1: unmapped(place)}))

    assert states(image) == [DATA, ZERO, ABSENT, ABSENT]
    assert [(f.code, f.severity) for f in image.findings] == [(code, WARNING), ("vhdx.bat.anchor", INFO)]


def test_a_million_broken_entries_are_a_few_findings_and_a_count() -> None:
    image = a_vhdx(size=100 * GIB, bat_length=MIB)
    image[BAT : BAT + 8 * 102000] = struct.pack("<Q", 5) * 102000

    disk = opened(image)
    disk.survey()
    wrong = [f for f in disk.findings if f.code == "vhdx.bat.state"]
    assert len(wrong) <= 32
    assert "more like it" in wrong[15].what


def test_more_blocks_than_the_file_has_room_for_are_an_overlap() -> None:
    image = a_vhdx(size=100 * GIB, bat_length=MIB, blocks={0: full()})
    image[BAT : BAT + 8 * 102000] = struct.pack("<Q", FIRST | 6) * 102000

    disk = opened(image)
    disk.survey()
    assert {f.code for f in disk.findings if f.severity is ERROR} == {"vhdx.bat.cross"}
    assert set(disk.block_map(0, 4000).state.tolist()) == {DAMAGED}


# ---------------------------------------------------------------- maps, windows, bitmaps


@st.composite
def small_images(draw: st.DrawFn) -> bytearray:
    """Images whose BAT holds anything, in few chunks: blocks of 256 MiB, sixteen or 128 in a chunk."""
    differencing = draw(st.booleans())
    sector = draw(st.sampled_from([512, 4096]))
    count = draw(st.integers(1, 40))
    place = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 260, 262, 2**43]).map(lambda mib: mib * MIB)
    entry = st.builds(lambda p, s, r: p | s | r << 3, place, st.integers(0, 7), st.sampled_from([0, 0, 0, 1]))
    entries = draw(st.dictionaries(st.integers(0, 44), entry, max_size=20))
    return a_vhdx(
        size=count * 256 * MIB - draw(st.sampled_from([0, sector])),
        block_size=256 * MIB,
        sector=sector,
        parent=a_locator() if differencing else None,
        entries=entries,
    )


@settings(max_examples=150)
@given(small_images(), st.sampled_from([4, 300, 600, 530]))
def test_one_entry_and_the_map_agree_on_any_table(image: bytearray, mib: int) -> None:
    disk = open_vhdx(Padded(bytes(image), mib * MIB + 512), OpenOptions())
    count = disk.geometry.block_count
    mapped = disk.block_map(0, count)

    assert [disk.entry(b) for b in range(count)] == list(
        zip(mapped.state.tolist(), mapped.file_offset.tolist())
    )
    pieces = [disk.block_map(b, min(count, b + 7)).entry for b in range(0, count, 7)]
    assert np.array_equal(np.concatenate(pieces), mapped.entry)


@settings(max_examples=60)
@given(small_images())
def test_counts_agree_with_the_states_in_the_table(image: bytearray) -> None:
    disk = opened(image)
    count, ratio = disk.geometry.block_count, disk.chunks.ratio
    raw = [struct.unpack_from("<Q", image, BAT + 8 * (b + b // ratio))[0] & 7 for b in range(count)]
    seven = raw.count(7)

    assert disk.counts() == BlockCounts(
        total=count,
        data=raw.count(6) + (0 if disk.parent else seven),
        partial=seven if disk.parent else 0,
        zero=raw.count(1) + raw.count(2) + raw.count(3),
        absent=raw.count(0),
    )


def test_windows_cross_chunks_and_end_with_the_disk() -> None:
    blocks = {b: full(bytes([b % 256])) for b in (0, 4095, 4096, 8191, 8192)}
    image = opened(a_vhdx(size=8200 * MIB, parent=a_locator(), blocks=blocks))

    whole = image.block_map(0, 8200)
    assert np.flatnonzero(whole.state == DATA).tolist() == sorted(blocks)
    for start, stop in ((4090, 4100), (4095, 4096), (4096, 4097), (8191, 8200), (5, 5)):
        part = image.block_map(start, stop)
        assert part.first == start
        assert np.array_equal(part.entry, whole.entry[start:stop])
    assert image.counts().data == 5


def test_bitmaps_are_least_significant_bit_first() -> None:
    image = opened(the_child())

    assert image.bitmap(0) == b"\x82\x01" + bytes(254)
    assert image.entry(0)[0] is PARTIAL
    with pytest.raises(ValueError, match="not partial"):
        image.bitmap(3)


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("sector_count", [1, 2, 4, 8, 64, 256])
def test_pieces_of_bitmaps_agree_with_whole_ones(sector: int, sector_count: int) -> None:
    rng = np.random.default_rng(sector_count)
    ratio = 2**23 * sector // (32 * MIB)
    per_block = 32 * MIB // sector
    numbers = [0, 1, 5, ratio - 1, ratio, ratio + 3]
    blocks = {b: partial(b"", set(rng.integers(0, per_block, 300).tolist())) for b in numbers}
    places = {b + b // ratio: (100 + 32 * i) * MIB | 7 for i, b in enumerate(numbers)}
    raw = a_vhdx(
        size=(ratio + 8) * 32 * MIB,
        block_size=32 * MIB,
        sector=sector,
        parent=a_locator(),
        blocks={b: Block(7, None, block.sectors) for b, block in blocks.items()},
        entries=places,
    )
    image = open_vhdx(Padded(bytes(raw), 400 * MIB), OpenOptions())
    image.survey()
    assert image.findings == ()

    asked = np.sort(rng.choice(len(numbers) * (per_block // sector_count), 180, replace=False))
    block = np.array(numbers)[asked // (per_block // sector_count)]
    first = block * per_block + asked % (per_block // sector_count) * sector_count
    pieces = image.bitmaps(first.astype(np.int64), sector_count)

    assert pieces.shape == (180, -(-sector_count // 8))
    for piece, at in zip(pieces, first.tolist()):
        bits = np.unpackbits(np.frombuffer(image.bitmap(at // per_block), np.uint8), bitorder="little")
        expected = np.packbits(bits[at % per_block :][:sector_count], bitorder="little")
        assert np.array_equal(piece, expected)


def test_no_pieces_of_bitmaps_are_an_empty_array() -> None:
    assert opened(the_child()).bitmaps(np.empty(0, np.int64), 8).shape == (0, 1)


# ---------------------------------------------------------------- inspection


def inspected(image: VhdxImage) -> dict[str, str]:
    image.inspect(deep=True)
    image.inspect(deep=True)
    assert len({f.code for f in image.findings}) == len(image.findings)
    return {f.code: f.found for f in image.findings}


def test_bitmaps_that_say_nothing_are_told() -> None:
    everything = set(range(2048))
    image = a_vhdx(
        size=3 * MIB + KIB,
        parent=a_locator(),
        blocks={
            0: partial(b"x", ()),
            1: partial(b"x", everything),
            2: partial(b"x", {3}),
            3: partial(b"x", {0, 1}),
        },
    )

    assert inspected(opened(image)) == {"vhdx.bitmap.empty": "1 blocks", "vhdx.bitmap.full": "2 blocks"}


def test_room_that_nothing_refers_to_is_told() -> None:
    assert inspected(opened(a_vhdx(blocks={0: full()}, extra_mib=3))) == {"vhdx.space": "3 MiB"}
    assert inspected(opened(a_vhdx(blocks={0: full()}))) == {}
    assert inspected(opened(the_child())) == {}


# ---------------------------------------------------------------- huge tables


def test_the_next_stored_block_is_never_passed_over(tmp_path: Path) -> None:
    blocks = [0, 5000, 4096 * 3, 4096 * 200 + 7]
    image = a_vhdx(size=4096 * 300 * MIB, entries={b + b // 4096: FIRST + 6 for b in blocks})
    with FileSource(build.save(image, tmp_path / "sparse.vhdx")) as source:
        disk = open_vhdx(source, OpenOptions())

        assert disk.next_stored(0) == 0
        for one, other in zip(blocks, [*blocks[1:], disk.geometry.block_count]):
            following = disk.next_stored(one + 1)
            assert one < following <= other
            assert disk.entry(other - 1)[0] is ABSENT


def test_blocks_behind_the_end_of_a_cut_table_are_not_passed_over() -> None:
    cut = opened(a_vhdx(size=8 * MIB)[: BAT + 40])

    assert cut.next_stored(6) == 6


def test_a_table_of_half_a_gibibyte_costs_what_is_in_it(tmp_path: Path) -> None:
    length = 513 * MIB
    image = a_vhdx(
        size=64 * TIB,
        bat_length=MIB,
        regions=[
            (build.BAT_REGION, BAT, length, 1),
            (build.METADATA_REGION, build.METADATA, MIB, 1),
        ],
    )
    path = build.save(image, tmp_path / "huge.vhdx", BAT + length + 4 * MIB)
    blocks = [0, 4095, 4096, 30_000_000, 64 * MIB - 1]
    with path.open("r+b") as file:
        for i, b in enumerate(blocks[:4]):
            file.seek(BAT + 8 * (b + b // 4096))
            file.write(struct.pack("<Q", BAT + length + i * MIB | 6))
        file.seek(BAT + 8 * (blocks[4] + blocks[4] // 4096))
        file.write(struct.pack("<Q", 2))

    started = time.perf_counter()
    tracemalloc.start()
    with FileSource(path) as source:
        disk = open_vhdx(source, OpenOptions())
        assert disk.counts() == BlockCounts(total=64 * MIB, data=4, zero=1, absent=64 * MIB - 5)
        disk.inspect()
        assert disk.findings == ()
        assert [disk.entry(b)[0] for b in blocks] == [DATA] * 4 + [ZERO]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * MIB
    assert time.perf_counter() - started < 5
