"""The log of a VHDX: what is active in it, what is replayed, what an enemy can put there."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import vhdx as build
from tests.builders.vhdx import (
    BAT,
    HEADER_1,
    LOG,
    LOG_ID,
    MIB,
    REGIONS_1,
    REGIONS_2,
    SECTOR,
    STRANGER,
    Data,
    LogEntry,
    Zero,
    a_vhdx,
    an_entry,
    bat_page,
    full,
    page,
    with_log,
    zero,
)
from vhdtool.errors import CorruptError, Severity, UnsupportedError
from vhdtool.formats.image import OpenOptions, require_sound
from vhdtool.formats.vhdx import log as vhdx_log
from vhdtool.formats.vhdx.header import read_headers
from vhdtool.formats.vhdx.image import VhdxImage, open_vhdx
from vhdtool.formats.vhdx.log import find_active_sequence
from vhdtool.model.state import BlockState, LogState
from vhdtool.source import FileSource, MemorySource

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
FIRST = 4 * MIB


def opened(image: bytes | bytearray, **options: Any) -> VhdxImage:
    return open_vhdx(MemorySource("disk.vhdx", bytes(image)), OpenOptions(**options))


def found(image: bytes | bytearray, **options: Any) -> list[tuple[str, Severity]]:
    """Findings about the log, apart from the headers' difference that a log brings with it."""
    disk = opened(image, **options)
    disk.survey()
    return [(f.code, f.severity) for f in disk.findings]


REPLAYED = ("vhdx.log.pending", INFO)


def active(entries: list[LogEntry], **ring: Any) -> list[int]:
    """Sequence numbers of the active sequence of a log with ``entries``."""
    from vhdtool.errors import FindingLog

    source = MemorySource("disk.vhdx", bytes(with_log(a_vhdx(), entries, **ring)))
    header, _ = read_headers(source, FindingLog("disk.vhdx"))
    return [entry.sequence_number for entry in find_active_sequence(source, header)]


# ---------------------------------------------------------------- finding the active sequence


def test_entries_that_follow_each_other_are_one_sequence() -> None:
    assert active([an_entry(7, tail=0), an_entry(8, tail=0), an_entry(9, tail=0)]) == [7, 8, 9]


def test_of_several_sequences_the_one_with_the_newest_head_is_active() -> None:
    old = [an_entry(50, tail=0), an_entry(51, tail=0)]
    new = [an_entry(90, position=0x10000), an_entry(91, tail=0x10000)]

    assert active(old + new) == [90, 91]
    assert active([*new, an_entry(95, position=0x20000)]) == [95]


def test_a_sequence_wraps_around_the_end_of_the_ring() -> None:
    entries = [an_entry(n, page(BAT, b"x"), tail=MIB - 3 * SECTOR) for n in (3, 4, 5)]

    assert active(entries, start=MIB - 3 * SECTOR) == [3, 4, 5]


def test_an_entry_wraps_around_the_end_of_the_ring_on_a_sector() -> None:
    image = a_vhdx(blocks={0: full(b"\x11")})
    entry = an_entry(1, page(FIRST, b"A" * SECTOR), page(FIRST + SECTOR, b"B" * SECTOR), flushed=0, last=0)

    disk = opened(with_log(image, [entry], start=MIB - 2 * SECTOR))

    assert disk.log == LogState("pending", 1, 2 * SECTOR, replayed=True)
    assert disk.source.read_exact(FIRST, 2 * SECTOR, field="x") == b"A" * SECTOR + b"B" * SECTOR


def test_a_gap_in_the_numbers_ends_a_sequence() -> None:
    assert active([an_entry(1, tail=0), an_entry(2, tail=0), an_entry(4)]) == [4]
    assert active([an_entry(8, tail=0), an_entry(9, tail=0), an_entry(2)]) == [8, 9]


def test_a_head_whose_tail_is_not_in_its_sequence_is_none() -> None:
    assert active([an_entry(1), an_entry(2, tail=0x80000)]) == []
    assert active([an_entry(1), an_entry(2, tail=0x80000), an_entry(9, position=0x40000)]) == [9]


def test_a_torn_last_entry_leaves_the_ones_before_it() -> None:
    assert active([an_entry(1, tail=0), an_entry(2, tail=0), an_entry(3, tail=0, torn=True)]) == [1, 2]


def test_entries_of_another_log_are_not_replayed() -> None:
    stale = [an_entry(n, page(BAT, b"stale"), guid=STRANGER) for n in range(90, 96)]

    assert active([*stale, an_entry(7)]) == [7]


@pytest.mark.parametrize(
    "broken",
    [
        an_entry(2, tail=0, length=SECTOR + 1),
        an_entry(2, tail=0, length=0),
        an_entry(2, tail=0, length=2 * SECTOR),
        an_entry(2, tail=0, length=2 * MIB),
        an_entry(2, tail=MIB),
        an_entry(2, tail=1),
        an_entry(0, tail=0),
        an_entry(2, tail=0, count=1),
        an_entry(2, tail=0, count=2**32 - 1),
        an_entry(2, page(BAT, b"x"), tail=0, count=0),
        an_entry(2, page(BAT, b"x"), tail=0, length=SECTOR),
    ],
)
def test_an_entry_that_breaks_a_rule_is_none(broken: LogEntry) -> None:
    assert active([an_entry(1), broken]) == [1]


@pytest.mark.parametrize("at", [64, 64 + 24, SECTOR, SECTOR + 4, 2 * SECTOR - 4])
def test_descriptors_and_data_sectors_carry_signatures_and_numbers(at: int) -> None:
    image = with_log(a_vhdx(), [an_entry(1), an_entry(2, page(BAT, b"x"), tail=SECTOR)])
    start = LOG + SECTOR
    raw = bytearray(image[start : start + 2 * SECTOR])
    raw[at] ^= 1
    image[start : start + 2 * SECTOR] = build.sealed(bytes(raw))

    assert opened(image).log.entries == 1


def test_a_sequence_may_fill_the_whole_ring() -> None:
    entries = [an_entry(n, tail=0) for n in range(1, 257)]

    assert len(active(entries)) == 256
    assert len(active([an_entry(n, tail=0x7000) for n in range(1, 257)], start=0x7000)) == 256


def test_one_entry_may_fill_the_whole_ring() -> None:
    zeros = tuple(Zero(FIRST, SECTOR) for _ in range((MIB - 64) // 32))

    assert active([an_entry(1, *zeros)]) == [1]


def test_a_log_of_several_mebibytes_is_one_ring() -> None:
    entries = [an_entry(n, tail=3 * MIB - SECTOR) for n in range(1, 600)]

    assert len(active(entries, length=3 * MIB, at=8 * MIB, start=3 * MIB - SECTOR)) == 599


# ---------------------------------------------------------------- replay


def test_replay_begins_at_the_heads_tail_and_not_before() -> None:
    image = a_vhdx(blocks={0: full()})
    entries = [
        an_entry(1, page(FIRST, b"old" * 1365 + b"x"), tail=0),
        an_entry(2, page(FIRST + SECTOR, b"new" * 1365 + b"x"), tail=2 * SECTOR),
    ]

    disk = opened(with_log(image, entries))

    assert disk.log == LogState("pending", 1, SECTOR, replayed=True)
    assert disk.source.read_exact(FIRST, 3, field="x") == b"\xff\xff\xff"
    assert disk.source.read_exact(FIRST + SECTOR, 3, field="x") == b"new"


def test_a_later_descriptor_hides_an_earlier_one() -> None:
    image = a_vhdx(blocks={0: full()})
    pages = (page(FIRST, b"a" * SECTOR), Zero(FIRST, 3 * SECTOR), page(FIRST + SECTOR, b"b" * SECTOR))

    disk = opened(with_log(image, [an_entry(1, *pages)]))

    data = disk.source.read_exact(FIRST, 4 * SECTOR, field="x")
    assert data == bytes(SECTOR) + b"b" * SECTOR + bytes(SECTOR) + b"\xff" * SECTOR
    assert disk.source.read_exact(FIRST + SECTOR - 3, 6, field="x") == b"\0\0\0bbb"


def test_a_page_is_put_together_from_descriptor_and_data_sector() -> None:
    image = a_vhdx(blocks={0: full()})
    data = b"LEADING!" + bytes(range(256)) * 15 + bytes(244) + b"TAIL"

    disk = opened(with_log(image, [an_entry(2**40 + 5, Data(FIRST, data))]))

    assert disk.source.read_exact(FIRST, SECTOR, field="x") == data
    assert disk.source.read_exact(FIRST + 4, 8, field="x") == data[4:12]
    assert disk.source.read_exact(FIRST + SECTOR - 6, 6, field="x") == data[-6:]


def test_metadata_of_every_kind_is_read_through_the_log() -> None:
    image = a_vhdx(size=4 * MIB, blocks={0: full(b"\x11"), 1: full(b"\x22")})
    table = bytes(image[REGIONS_1 : REGIONS_1 + 65536])
    sizes = bytearray(image[build.ITEMS : build.ITEMS + SECTOR])
    sizes[8:16] = struct.pack("<Q", 3 * MIB)
    good = with_log(
        build.patched(
            build.patched(image, REGIONS_1, b"torn", repair=False), REGIONS_2, b"torn", repair=False
        ),
        [
            an_entry(
                1,
                *(Data(REGIONS_1 + at, table[at : at + SECTOR]) for at in range(0, 65536, SECTOR)),
                Data(build.ITEMS, bytes(sizes)),
                bat_page(image, 1, 2),
            )
        ],
    )

    disk = opened(good)

    assert disk.geometry.virtual_size == 3 * MIB
    assert [disk.entry(b)[0] for b in range(3)] == [BlockState.DATA, BlockState.ZERO, BlockState.ABSENT]
    assert ("vhdx.region.one", WARNING) in found(good)
    with pytest.raises(CorruptError, match=r"vhdx\.region\.both"):
        opened(good, log="before")


def test_the_file_is_not_written(tmp_path: Path) -> None:
    path = build.save(with_log(a_vhdx(), [an_entry(1, bat_page(a_vhdx(), 0, 2))]), tmp_path / "dirty.vhdx")
    before = path.read_bytes()

    with FileSource(path) as source:
        open_vhdx(source, OpenOptions()).survey()

    assert path.read_bytes() == before


def test_leaving_the_log_out_shows_the_file_as_it_is_with_a_warning() -> None:
    image = with_log(a_vhdx(), [an_entry(1, bat_page(a_vhdx(), 0, 2))])

    before, after = opened(image, log="before"), opened(image)

    assert before.entry(0)[0] is BlockState.ABSENT
    assert after.entry(0)[0] is BlockState.ZERO
    assert before.log == LogState("pending", 0, 0, replayed=False)
    assert [(f.code, f.severity) for f in before.findings] == [("vhdx.log.left_out", WARNING)]
    assert [(f.code, f.severity) for f in after.findings] == [REPLAYED]
    require_sound(before)


def test_a_clean_log_is_not_looked_at() -> None:
    image = a_vhdx()
    image[LOG : LOG + MIB] = build.a_log([an_entry(1, bat_page(image, 0, 2))]).data

    assert opened(image).entry(0)[0] is BlockState.ABSENT
    assert found(image) == []


def test_entries_are_shown_as_sections() -> None:
    names = [s.name for s in opened(with_log(a_vhdx(), [an_entry(5, tail=0), an_entry(6, tail=0)])).sections]

    assert names[-2:] == ["Log Entry 5", "Log Entry 6"]


# ---------------------------------------------------------------- logs that cannot be replayed


def test_a_log_that_is_needed_and_has_no_sequence_is_an_error_unless_it_is_left_out() -> None:
    image = with_log(a_vhdx(), [an_entry(1, torn=True)])

    assert found(image) == [("vhdx.log.no_sequence", ERROR)]
    assert found(image, log="before") == [("vhdx.log.left_out", WARNING)]
    with pytest.raises(CorruptError):
        require_sound(opened(image))


def test_a_file_that_was_cut_after_the_log_was_written_is_an_error() -> None:
    image = with_log(a_vhdx(blocks={0: full()}), [an_entry(1, flushed=6 * MIB)])

    assert ("vhdx.log.truncated", ERROR) in found(image)


def test_what_the_log_itself_adds_does_not_hide_that_the_file_was_cut() -> None:
    image = with_log(a_vhdx(), [an_entry(1, flushed=8 * MIB, last=8 * MIB)])

    assert ("vhdx.log.truncated", ERROR) in found(image)


def test_only_the_heads_lengths_count() -> None:
    entries = [an_entry(1, tail=0, flushed=2**60, last=2**60), an_entry(2, tail=0)]

    assert found(with_log(a_vhdx(), entries)) == [REPLAYED]


def header_geometry(**fields: Any) -> bytearray:
    headers = [build.a_header(n, **fields) for n in (1, 2)]
    return build.with_headers(a_vhdx(), *headers)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"log_length": MIB + 4096}, "vhdx.log.align"),
        ({"log_offset": MIB + 4096}, "vhdx.log.align"),
        ({"log_offset": 0}, "vhdx.log.align"),
        ({"log_length": 64 * MIB}, "vhdx.log.eof"),
        ({"log_offset": 2**63}, "vhdx.log.eof"),
        ({"log_length": 0}, "vhdx.log.zero_length"),
    ],
)
def test_a_log_where_none_can_be_is_an_error_when_it_is_needed(fields: dict[str, int], code: str) -> None:
    needed = found(header_geometry(**fields, log_id=LOG_ID))
    not_needed = found(header_geometry(**fields))
    left_out = found(header_geometry(**fields, log_id=LOG_ID), log="before")

    assert (code, ERROR) in needed
    assert (code, ERROR) in left_out
    assert ERROR not in {severity for _, severity in not_needed}
    assert ((code, WARNING) in not_needed) == (code != "vhdx.log.zero_length")


def test_a_log_of_more_than_a_gibibyte_is_not_supported(tmp_path: Path) -> None:
    length = 2 * 1024 * MIB
    image = header_geometry(log_id=LOG_ID, log_length=length, log_offset=8 * MIB)
    path = build.save(image, tmp_path / "long.vhdx", 8 * MIB + length)

    with FileSource(path) as source, pytest.raises(UnsupportedError) as caught:
        require_sound(open_vhdx(source, OpenOptions()))
    assert caught.value.finding is not None
    assert caught.value.finding.code == "vhdx.log.limit"


def test_more_descriptors_than_fit_into_memory_are_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vhdx_log, "REPLAYED_DESCRIPTORS_MAX", 3)
    image = with_log(a_vhdx(), [an_entry(1, *(Zero(FIRST, SECTOR) for _ in range(4)))])

    with pytest.raises(UnsupportedError):
        require_sound(opened(image))


# ---------------------------------------------------------------- where descriptors may write


@pytest.mark.parametrize(
    "descriptor",
    [
        page(0, b"vhdxfile"),
        page(HEADER_1, b"head"),
        page(0x2F000, b"x"),
        Zero(0x20000, 0x20000),
        page(LOG, b"x"),
        page(LOG + MIB - SECTOR, b"x"),
        Zero(0x80000, MIB),
        page(FIRST + 1, b"x"),
        page(FIRST + 512, b"x"),
        Zero(FIRST, 100),
        Zero(FIRST + 8, SECTOR),
        Zero(0x50000, 2**64 - SECTOR),
    ],
)
def test_a_descriptor_that_writes_where_it_must_not_is_an_error(descriptor: Data | Zero) -> None:
    image = with_log(a_vhdx(), [an_entry(1, bat_page(a_vhdx(), 0, 2), descriptor)])

    codes = found(image)
    assert ("vhdx.log.target", ERROR) in codes
    assert REPLAYED not in codes
    assert opened(image).entry(0)[0] is BlockState.ABSENT


def test_an_entry_before_the_tail_may_write_anywhere_it_is_not_applied() -> None:
    image = with_log(a_vhdx(), [an_entry(1, page(0, b"bad"), tail=0), an_entry(2, tail=2 * SECTOR)])

    assert found(image) == [REPLAYED]


def test_what_is_written_beyond_the_logical_length_is_dropped_with_a_warning() -> None:
    image = with_log(
        a_vhdx(blocks={0: full()}),
        [an_entry(1, page(64 * MIB, b"x"), Zero(FIRST, 100 * MIB), page(2**62, b"x"), last=5 * MIB)],
    )

    disk = opened(image)

    assert disk.source.size == 5 * MIB
    assert disk.source.read_exact(FIRST, MIB, field="x") == bytes(MIB)
    targets = [f for f in disk.findings if f.code == "vhdx.log.target"]
    assert [f.severity for f in targets] == [WARNING]


def test_zeros_of_an_exabyte_stay_a_range() -> None:
    image = with_log(
        a_vhdx(blocks={0: full()}), [an_entry(1, Zero(FIRST, 2**60), page(FIRST, b"y" * SECTOR))]
    )

    started = time.perf_counter()
    disk = opened(image)

    assert disk.log.patched_bytes == MIB
    assert disk.source.read_exact(FIRST, 8192, field="x") == b"y" * SECTOR + bytes(SECTOR)
    assert time.perf_counter() - started < 1


def test_a_log_may_make_the_file_longer_and_what_is_missing_reads_as_zeros() -> None:
    image = a_vhdx(blocks={0: full()})
    log = [an_entry(1, bat_page(image, 2, 6 * MIB | 6), page(6 * MIB, b"z" * SECTOR), last=7 * MIB)]

    disk = opened(with_log(image, log))
    disk.survey()

    assert disk.source.size == 7 * MIB
    assert disk.entry(2) == (BlockState.DATA, 6 * MIB)
    assert disk.source.read_exact(6 * MIB, 8192, field="x") == b"z" * SECTOR + bytes(SECTOR)
    assert [f.code for f in disk.findings if f.severity is WARNING] == [
        "vhdx.log.extends",
        "vhdx.log.payload",
    ]


def test_a_length_that_no_vhdx_needs_is_an_error() -> None:
    assert ("vhdx.log.last_offset", ERROR) in found(with_log(a_vhdx(), [an_entry(1, last=2**47 + MIB)]))
    assert found(with_log(a_vhdx(), [an_entry(1, last=2**47)])) == [("vhdx.log.extends", WARNING), REPLAYED]


def test_a_log_that_writes_payload_is_a_warning() -> None:
    image = a_vhdx(blocks={0: full(), 1: zero()}, extra_mib=1)

    payload = with_log(image, [an_entry(1, page(FIRST + 8192, b"x"))])
    unused = with_log(image, [an_entry(1, page(FIRST + MIB, b"x"))])

    assert found(payload) == [REPLAYED, ("vhdx.log.payload", WARNING)]
    assert found(unused) == [REPLAYED]


# ---------------------------------------------------------------- crafted rings stay cheap


class Counting(MemorySource):
    """Counts the bytes that are read."""

    read = 0

    def read_exact(self, offset: int, length: int, *, field: str) -> bytes:
        self.read += length
        return super().read_exact(offset, length, field=field)


def rings() -> Iterator[tuple[str, list[LogEntry]]]:
    """Rings of 4 MiB made to be expensive."""
    sectors = 4 * MIB // SECTOR
    yield "every sector an entry with a lying tail", [an_entry(n, tail=0x3FF000) for n in range(1, sectors)]
    yield (
        "every sector an entry of the whole ring",
        [an_entry(1, position=n * SECTOR, length=4 * MIB, count=4 * MIB // 32 - 2) for n in range(sectors)],
    )
    yield "every sector its own sequence", [an_entry(2 * n, position=n * SECTOR) for n in range(1, sectors)]
    yield (
        "one run with a lying tail over and over",
        [an_entry(1 + n % 50, position=n * SECTOR, tail=0x3FF000) for n in range(sectors)],
    )
    pages = tuple(page(BAT, b"x") for _ in range(500))
    yield "long entries that are torn", [an_entry(n, *pages, torn=True) for n in (1, 2)]


@pytest.mark.parametrize(
    ("name", "entries"), list(rings()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_crafted_ring_costs_a_few_passes(name: str, entries: list[LogEntry]) -> None:
    image = with_log(a_vhdx(), entries, length=4 * MIB, at=8 * MIB)
    source = Counting("disk.vhdx", bytes(image))

    started = time.perf_counter()
    disk = open_vhdx(source, OpenOptions())

    assert disk.log.state == "pending"
    assert source.read < 4 * len(image), name
    assert time.perf_counter() - started < 2, name


def test_an_ordinary_log_is_scanned_in_milliseconds() -> None:
    image = with_log(a_vhdx(), [an_entry(n, page(BAT, b"x"), tail=0) for n in range(1, 100)])
    disk = MemorySource("disk.vhdx", bytes(image))

    best = min(_seconds(disk) for _ in range(3))

    assert best < 0.1


def _seconds(source: MemorySource) -> float:
    started = time.perf_counter()
    open_vhdx(source, OpenOptions())
    return time.perf_counter() - started


# ---------------------------------------------------------------- against a naive reader


def naive_sequence(ring: bytes, guid: UUID) -> list[int]:
    """Positions of the active sequence, as section 7.2 states it, without a thought for cost."""
    length = len(ring)
    doubled = ring + ring

    def valid(at: int) -> tuple[int, int, int] | None:
        raw = doubled[at : at + length]
        sig, _, size, tail, seq, count, _, log, _, _ = struct.unpack_from("<4sIIIQII16sQQ", raw)
        area = -(-(64 + 32 * count) // SECTOR) * SECTOR
        if sig != b"loge" or log != guid.bytes_le or size % SECTOR or not SECTOR <= size <= length:
            return None
        if tail % SECTOR or tail >= length or not seq or 64 + 32 * count > size:
            return None
        pages = 0
        for i in range(count):
            kind, number = struct.unpack_from("<4s20xQ", raw, 64 + 32 * i)
            if kind not in (b"desc", b"zero") or number != seq:
                return None
            pages += kind == b"desc"
        if area + pages * SECTOR != size or build.sealed(raw[:size]) != raw[:size]:
            return None
        for i in range(pages):
            kind, high = struct.unpack_from("<4sI", raw, area + i * SECTOR)
            (low,) = struct.unpack_from("<I", raw, area + i * SECTOR + SECTOR - 4)
            if kind != b"data" or high << 32 | low != seq:
                return None
        return size, tail, seq

    best: list[tuple[int, int, int]] = []
    for start in range(0, length, SECTOR):
        run: list[tuple[int, int, int]] = []
        at, total = start, 0
        while (entry := valid(at)) and (not run or entry[2] == run[-1][1] + 1):
            total += entry[0]
            if total > length:
                break
            run.append((at, entry[2], entry[1]))
            at = (at + entry[0]) % length
        if run and any(e[0] == run[-1][2] for e in run) and (not best or run[-1][1] > best[-1][1]):
            best = run
    return [number for _, number, _ in best]


entries_anywhere = st.lists(
    st.builds(
        lambda seq, tail, position, descriptors, guid, torn: LogEntry(
            seq, descriptors, tail and tail * SECTOR, position and position * SECTOR, guid, torn=torn
        ),
        st.integers(1, 6),
        st.none() | st.integers(0, 12),
        st.none() | st.integers(0, 12) | st.integers(250, 255),
        st.lists(st.sampled_from([page(BAT, b"x"), Zero(FIRST, SECTOR)]), max_size=3).map(tuple),
        st.sampled_from([LOG_ID, LOG_ID, LOG_ID, STRANGER]),
        st.sampled_from([False, False, False, True]),
    ),
    max_size=10,
)


@settings(max_examples=150)
@given(entries_anywhere, st.sampled_from([0, SECTOR, MIB - SECTOR, MIB - 3 * SECTOR]))
def test_the_active_sequence_is_the_one_that_the_specification_gives(
    entries: list[LogEntry], start: int
) -> None:
    ring = bytes(build.a_log(entries, start=start).data)

    ours, theirs = active(entries, start=start), naive_sequence(ring, LOG_ID)

    # Sequences may end in heads of equal numbers; then the specification does not say which one counts.
    assert ours[-1:] == theirs[-1:]
    assert bool(ours) == bool(theirs)
