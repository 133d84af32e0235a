"""Seekable zstd as a target: what is written reads back, and a job that goes on writes the same bytes."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.kit import MIB, names_in, some_data
from vhdtool.errors import ExportError, MissingPackageError
from vhdtool.export.containers.target import TargetFile
from vhdtool.export.containers.zstd import GROUP_SIZE, ZstdContainer, _thread_count
from vhdtool.export.moving.copy import Mover
from vhdtool.export.moving.progress import Reporter
from vhdtool.export.proof.digest import CHUNK_SIZE
from vhdtool.formats import zstd
from vhdtool.formats.seekable import open_seekable
from vhdtool.model.state import Run
from vhdtool.source import FileSource, MemorySource

pytest.importorskip("zstandard", reason="the package zstandard is not installed")

Write = tuple[int, bytes]


class Memory:
    """A sink in memory that takes bytes at its end only."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        assert offset == len(self.data)
        self.data += data


class Counting:
    """A sink that only counts."""

    def __init__(self) -> None:
        self.size = 0

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        assert offset == self.size
        self.size += len(data)


class Disk:
    """Guest bytes in memory."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self.data[offset : offset + len(data)] = data

    def zeros(self, offset: int, length: int) -> None:
        """They are zeros."""


def compressed(size: int, writes: Iterable[Write], folder: Path, **options: Any) -> bytes:
    sink = Memory()
    container = ZstdContainer(sink, size, folder=folder, **options)
    for offset, data in writes:
        container.write_at(offset, data)
    assert container.finish() == len(sink.data)
    return bytes(sink.data)


def disk_of(size: int, writes: Iterable[Write]) -> bytes:
    disk = bytearray(size)
    for offset, data in writes:
        disk[offset : offset + len(data)] = data
    return bytes(disk)


def content(data: bytes) -> bytes:
    source = open_seekable(MemorySource("disk.raw.zst", data))
    return source.read_exact(0, source.size, field="payload")


def sizes_of(data: bytes) -> list[int]:
    """What each frame holds."""
    return [frame.size for frame in open_seekable(MemorySource("x", data)).table.frames(0)]


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, list[Write]]:
    """A disk of some groups and pieces of data in order, zeros among them."""
    size = draw(st.integers(1, 5 * GROUP_SIZE // 512)) * 512
    places = sorted(draw(st.sets(st.integers(0, size - 1), max_size=6)))
    writes: list[Write] = []
    for start, stop in zip(places, [*places[1:], size]):
        length = min(stop - start, draw(st.sampled_from([1, 513, 70_000, CHUNK_SIZE, 3 * CHUNK_SIZE])))
        writes.append((start, draw(st.sampled_from([bytes(length), b"x" * length, some_data(length)]))))
    return size, writes


@settings(max_examples=25)
@given(disks())
def test_what_is_written_reads_back_and_zeros_in_between_are_zeros(
    tmp_path_factory: pytest.TempPathFactory, disk: tuple[int, list[Write]]
) -> None:
    size, writes = disk

    data = compressed(size, writes, tmp_path_factory.getbasetemp(), threads=2)

    assert content(data) == disk_of(size, writes)


def test_the_bytes_do_not_depend_on_threads_or_on_how_they_come(tmp_path: Path) -> None:
    size = 3 * GROUP_SIZE + 512
    writes = [(at, some_data(5 * MIB, at)) for at in (0, 20 * MIB, 40 * MIB)]
    pieces = [(at + i, data[i : i + 70_001]) for at, data in writes for i in range(0, len(data), 70_001)]

    one = compressed(size, writes, tmp_path, threads=1)

    assert compressed(size, writes, tmp_path, threads=3) == one
    assert compressed(size, pieces, tmp_path, threads=2) == one
    # Zeros that come as bytes are zeros like those that do not.
    assert compressed(size, [*writes[:1], (5 * MIB, bytes(15 * MIB)), *writes[1:]], tmp_path) == one


def test_frames_are_chunks_and_zeros_are_one_frame_within_a_group(tmp_path: Path) -> None:
    size = 2 * GROUP_SIZE + 6 * MIB + 512

    data = compressed(size, [(4 * MIB, b"x" * (3 * MIB)), (size - 1, b"z")], tmp_path)

    assert sizes_of(data) == [4 * MIB, 2 * MIB, 2 * MIB, 8 * MIB, GROUP_SIZE, 6 * MIB, 512]


def test_a_disk_of_nothing_but_zeros_is_a_few_bytes_over_and_over(tmp_path: Path) -> None:
    sink = Counting()
    container = ZstdContainer(sink, 1 << 40, folder=tmp_path)

    assert container.finish() == sink.size < 40 * MIB
    assert names_in(tmp_path) == set()


def test_memory_does_not_grow_with_the_disk(tmp_path: Path) -> None:
    """Thirty-two TiB, data at two hundred places: rows in a file, frames of zeros made once."""
    size = 32 << 40
    sink = Counting()
    container = ZstdContainer(sink, size, folder=tmp_path, threads=1, record=False)
    tracemalloc.start()
    try:
        for at in range(0, size, size // 200):
            container.write_at(at, b"some data")
        container.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 48 * MIB


def test_bytes_come_in_order_and_inside_the_disk(tmp_path: Path) -> None:
    container = ZstdContainer(Memory(), 4096, folder=tmp_path)
    container.write_at(1024, b"x" * 512)

    with pytest.raises(ValueError, match="in order"):
        container.write_at(1535, b"y")
    with pytest.raises(ValueError, match="more"):
        container.write_at(4095, b"yy")
    container.close()


@pytest.mark.parametrize("level", [0, 20, -1])
def test_a_level_that_is_none_is_refused(tmp_path: Path, level: int) -> None:
    with pytest.raises(ValueError, match="level"):
        ZstdContainer(Memory(), 4096, folder=tmp_path, level=level)


def test_high_levels_get_fewer_threads_because_they_take_more_memory() -> None:
    assert 1 == _thread_count(19) <= _thread_count(9) <= _thread_count(3)


def test_without_a_package_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingPackageError("zstd files need the package zstandard")

    monkeypatch.setattr("vhdtool.export.containers.zstd.codec", missing)

    with pytest.raises(MissingPackageError):
        ZstdContainer(Memory(), 4096, folder=tmp_path)


def write_some_of_each_chunk(container: ZstdContainer, count: int) -> None:
    for at in range(0, count * CHUNK_SIZE, CHUNK_SIZE):
        container.write_at(at, b"x")


def test_what_fails_in_a_thread_is_raised_to_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def compressor(self, level: int) -> zstd.Compress:
            def compress(data: bytes | memoryview) -> bytes:
                raise zstd.FrameError("no memory for a context")

            return compress

    monkeypatch.setattr("vhdtool.export.containers.zstd.codec", Broken)
    container = ZstdContainer(Memory(), 100 * CHUNK_SIZE, folder=tmp_path, threads=2)

    with pytest.raises(ExportError, match="no memory for a context"):
        write_some_of_each_chunk(container, 100)
    container.close()


def test_a_full_disk_is_raised_to_the_writer(tmp_path: Path) -> None:
    class Full:
        def write_at(self, offset: int, data: bytes | memoryview) -> None:
            raise ExportError("cannot write: No space left on device")

    container = ZstdContainer(Full(), 10 * CHUNK_SIZE, folder=tmp_path, threads=2)

    with pytest.raises(ExportError, match="No space"):
        write_some_of_each_chunk(container, 10)
    container.close()


# ------------------------------------------------------------------ going on

SIZE = 5 * GROUP_SIZE + 3 * MIB + 512
WRITES = [
    (0, some_data(3 * MIB)),
    (17 * MIB, b"x" * MIB),
    (GROUP_SIZE * 2 - 512, some_data(1024, 2)),
    (GROUP_SIZE * 4, some_data(512, 3)),
    (SIZE - 700, b"y" * 700),
]


def pieces(start: int, stop: int) -> Iterator[Write]:
    for offset, data in WRITES:
        first, last = max(offset, start), min(offset + len(data), stop)
        if first < last:
            yield first, data[first - offset : last - offset]


@pytest.mark.parametrize("groups", range(6))
def test_going_on_at_a_checkpoint_gives_the_same_bytes(tmp_path: Path, groups: int) -> None:
    whole = compressed(SIZE, WRITES, tmp_path)
    position = groups * GROUP_SIZE
    rows: list[list[int]] = []
    with TargetFile(tmp_path / "disk.raw.zst", sync=False) as target:
        first = ZstdContainer(target, SIZE, folder=tmp_path)
        for at in range(0, position, GROUP_SIZE):
            for write in pieces(at, at + GROUP_SIZE):
                first.write_at(*write)
            first.zeros(at, GROUP_SIZE)
            rows += first.placed()
        # What a kill leaves: something behind the checkpoint, and not all of it.
        for write in pieces(position, SIZE):
            first.write_at(*write)
        first.close()

        second = ZstdContainer(target, SIZE, folder=tmp_path)
        target.set_size(second.restore(position, rows))
        source, plans = second.read_back(position)
        with closing(source):
            sink = Disk(position)
            Mover([source], sink, reporter=Reporter("resume", position)).run(plans)
        for write in pieces(position, SIZE):
            second.write_at(*write)
        target.finish(second.finish())
        target.publish()

    assert sink.data == disk_of(SIZE, WRITES)[:position]
    assert (tmp_path / "disk.raw.zst").read_bytes() == whole
    assert names_in(tmp_path) == {"disk.raw.zst"}


def test_what_is_placed_is_told_once_and_equal_frames_are_one_row(tmp_path: Path) -> None:
    container = ZstdContainer(Memory(), 100 * GROUP_SIZE, folder=tmp_path)
    container.zeros(0, 60 * GROUP_SIZE)

    placed = container.placed()

    assert [row[1:] for row in placed] == [[GROUP_SIZE, 60]]
    assert container.placed() == []
    container.close()


def test_nothing_is_placed_between_checkpoints(tmp_path: Path) -> None:
    container = ZstdContainer(Memory(), 100 * GROUP_SIZE, folder=tmp_path)
    container.write_at(CHUNK_SIZE, b"x")

    with pytest.raises(ValueError, match="go on"):
        container.placed()
    container.close()


def test_without_a_journal_nothing_is_kept_for_one(tmp_path: Path) -> None:
    container = ZstdContainer(Memory(), GROUP_SIZE, folder=tmp_path, record=False)
    container.write_at(0, b"x" * GROUP_SIZE)

    assert container.placed() == []
    container.close()


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [[100, GROUP_SIZE, 1]],
        [[100, GROUP_SIZE, 3]],
        [[100, GROUP_SIZE, 1 << 60]],
        [[100, 2 * GROUP_SIZE, 1]],
        [[100, 0, 1], [100, GROUP_SIZE, 2]],
        [[100, GROUP_SIZE, -1], [100, GROUP_SIZE, 3]],
        [[8, GROUP_SIZE, 2]],
        [[1 << 40, GROUP_SIZE, 2]],
    ],
)
def test_a_forged_journal_is_refused(tmp_path: Path, rows: list[list[int]]) -> None:
    container = ZstdContainer(Memory(), 10 * GROUP_SIZE, folder=tmp_path)

    with pytest.raises(ValueError, match="frames"):
        container.restore(2 * GROUP_SIZE, rows)
    container.close()


def test_a_moved_disk_is_read_by_position_with_its_holes(tmp_path: Path) -> None:
    """Mover, container, file and reader together: what they are made for."""
    chance = random.Random(3)
    disk = bytearray(50 * MIB + 512)
    for _ in range(5):
        at = chance.randrange(len(disk) - 100_000)
        disk[at : at + 100_000] = chance.randbytes(100_000)
    path = tmp_path / "disk.raw.zst"
    with TargetFile(path, sync=False) as target:
        container = ZstdContainer(target, len(disk), folder=tmp_path)
        source = MemorySource("disk", bytes(disk))
        Mover([source], container, reporter=Reporter("copy", len(disk))).run([[Run(0, len(disk), 0, 0)]])
        target.finish(container.finish())
        target.publish()

    with open_seekable(FileSource(path)) as read:
        assert read.read_exact(0, read.size, field="payload") == disk
        ranges = list(read.data_ranges(0, read.size))

    assert 1 <= len(ranges) <= 10
    assert sum(stop - start for start, stop in ranges) <= 10 * CHUNK_SIZE
