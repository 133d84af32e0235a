"""Guest bytes in, an image's file out: right in every format, sparse, and gone on with bit by bit."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.kit import allocated
from tests.export.pieces import (
    CHILDREN,
    DATA,
    GAP,
    KINDS,
    MIB,
    ZEROS,
    Disk,
    Kind,
    Piece,
    a_parent,
    a_shape,
    an_image,
    disk_of,
    disks,
    feed,
    kind_id,
    size_of,
)
from vhdtool.chain.discover import open_chain
from vhdtool.errors import Severity
from vhdtool.export.containers.container import BlockContainer, container_for, file_size_known
from vhdtool.export.containers.shape import Shape, TargetFormat
from vhdtool.export.containers.target import TargetFile
from vhdtool.model.state import UNHELD, BlockState
from vhdtool.model.state import ZEROS as READS_AS_ZEROS

GIB = 1 << 30
TIB = 1 << 40
every_kind = pytest.mark.parametrize("kind", KINDS, ids=kind_id)
every_child = pytest.mark.parametrize("kind", CHILDREN, ids=kind_id)


@contextmanager
def a_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def prepared(folder: Path, kind: Kind, size: int) -> tuple[Path, Shape, Disk | None]:
    """Where an image of that kind goes, what it is to be, and the disk below it."""
    path = folder / f"image.{kind[0]}"
    if kind[1] != "differencing":
        return path, a_shape(kind, size, path), None
    parent, below = a_parent(folder, kind, size)
    return path, a_shape(kind, size, path, parent), below


def read(path: Path) -> bytes:
    """The disk, by our own reader, which must find nothing wrong with the image."""
    with open_chain(path) as chain:
        chain.leaf.inspect(deep=True)
        assert [finding for finding in chain.all_findings() if finding.severity is not Severity.INFO] == []
        return chain.read(0, chain.virtual_size)


@every_kind
@settings(max_examples=25)
@given(st.data())
def test_what_goes_in_is_what_a_reader_sees(kind: Kind, data: st.DataObject) -> None:
    pieces = data.draw(disks(kind[3], kind[2] or MIB))
    with a_folder() as folder:
        path, shape, below = prepared(folder, kind, size_of(pieces))
        an_image(path, shape, pieces)

        assert read(path) == disk_of(pieces, below).tobytes()
        if file_size_known(shape) is not None:
            assert path.stat().st_size == file_size_known(shape)


# ------------------------------------------------------------ going on


class Job:
    """An image on its way, with what its journal would hold."""

    def __init__(self, path: Path, shape: Shape, pieces: list[Piece], token: str | None = None) -> None:
        self.target = TargetFile(path, sync=False, token=token or "first", reopen=token is not None)
        self.container = container_for(shape, self.target)
        self.pieces = pieces
        self.position = 0
        self.rows: list[list[int]] = []

    def go_to(self, position: int) -> None:
        feed(self.container, self.pieces, self.position, position)
        self.position = position

    def finish(self) -> bytes:
        self.go_to(size_of(self.pieces))
        self.target.finish(self.container.finish())
        content = self.target.partial.read_bytes()
        self.target.abort()
        return content


def checkpoints(shape: Shape, path: Path, size: int) -> list[int]:
    with TargetFile(path, sync=False) as target:
        step = container_for(shape, target).checkpoint_size
    assert step % (2 * MIB) == 0
    return [*range(0, size, step), size]


def what_is_there(job: Job, position: int) -> tuple[Disk, Disk]:
    """Bytes in front of ``position`` by reading back, and where there are any (1) or a gap (0)."""
    disk, here = np.zeros(position, np.uint8), np.zeros(position, np.uint8)
    source, plans = job.container.read_back(position)
    at = 0
    with source:  # type: ignore[attr-defined]
        for run in (run for plan in plans for run in plan):
            assert run.offset == at
            assert run.length > 0
            at += run.length
            if run.layer == 0:
                data = source.read_exact(run.file_offset, run.length, field="payload")
                disk[run.offset : at] = np.frombuffer(data, np.uint8)
            else:
                assert run.layer in (UNHELD, READS_AS_ZEROS)
            here[run.offset : at] = run.layer != UNHELD
    assert at == position
    return disk, here


@every_kind
@settings(max_examples=6)
@given(st.data())
def test_an_image_that_is_gone_on_with_at_any_checkpoint_is_the_same_bit_by_bit(
    kind: Kind, data: st.DataObject
) -> None:
    pieces = data.draw(disks(kind[3], kind[2] or MIB))
    size = size_of(pieces)
    with a_folder() as folder:
        path, shape, _ = prepared(folder, kind, size)
        expected = Job(path, shape, pieces).finish()
        is_child = kind[1] == "differencing"
        truth = disk_of(pieces)
        held = np.ones(size, np.uint8)
        for piece in pieces:
            held[piece.start : piece.stop] = piece.what != GAP or not is_child
        steps = checkpoints(shape, path, size)
        for position in steps:
            job = Job(path, shape, pieces)
            for step in (step for step in steps if step <= position):
                job.go_to(step)
                if step == position or data.draw(st.booleans()):
                    job.rows += job.container.placed()
            job.go_to(data.draw(st.sampled_from([position, (position + size) // 2 // 4096 * 4096, size])))
            if job.position == size and data.draw(st.booleans()):
                job.container.finish()  # killed a moment later
            job.target.keep()

            again = Job(path, shape, pieces, token="first")
            again.target.set_size(again.container.restore(position, iter(job.rows)))
            disk, here = what_is_there(again, position)
            again.position = position

            assert (here == held[:position]).all()
            assert (disk == truth[:position]).all()
            assert again.finish() == expected


@every_kind
def test_nothing_is_left_of_what_came_behind_the_checkpoint(kind: Kind, tmp_path: Path) -> None:
    """Another time it may be something else: zeros, for example, where a disk cannot be read any more."""
    step = max(kind[2], 2 * MIB)
    size = 4 * step
    first, again = (
        [Piece(0, 4096, DATA), Piece(4096, step, GAP), Piece(step, size, what)] for what in (DATA, GAP)
    )
    first[2:] = [Piece(at, at + 4096, DATA) for at in range(step, size, 8192)]
    path, shape, _ = prepared(tmp_path, kind, size)
    expected = Job(path, shape, again).finish()
    job = Job(path, shape, first)
    job.go_to(step)
    rows = job.container.placed()
    job.go_to(size)
    job.container.finish()
    job.target.keep()

    job = Job(path, shape, again, token="first")
    job.target.set_size(job.container.restore(step, rows))
    job.position = step

    assert job.finish() == expected


def test_a_flipped_bit_in_a_bitmap_shows_when_it_is_read_back(tmp_path: Path) -> None:
    kind: Kind = ("vhdx", "differencing", MIB, 512)
    pieces = [Piece(0, 512, DATA), Piece(512, 4 * MIB, GAP)]
    path, shape, _ = prepared(tmp_path, kind, 4 * MIB)
    job = Job(path, shape, pieces)
    job.go_to(2 * MIB)
    rows = job.container.placed()
    assert rows == [[0, 1, BlockState.PARTIAL]]
    partial = job.target.keep()
    assert partial is not None
    with partial.open("r+b") as file:
        content = file.read()
        bitmap = content.index(b"\1" + bytes(255), 5 * MIB)
        file.seek(bitmap)
        file.write(b"\3")

    again = Job(path, shape, pieces, token="first")
    again.target.set_size(again.container.restore(2 * MIB, rows))
    _, here = what_is_there(again, 2 * MIB)
    again.target.abort()

    assert here.sum() == 1024


@every_kind
def test_a_file_that_was_cut_short_reads_back_as_zeros_there(kind: Kind, tmp_path: Path) -> None:
    size = 4 * max(kind[2], 2 * MIB)
    path, shape, _ = prepared(tmp_path, kind, size)
    job = Job(path, shape, [Piece(0, size, DATA)])
    job.go_to(size)
    rows = job.container.placed()
    partial = job.target.keep()
    assert partial is not None
    with partial.open("r+b") as file:
        file.truncate(partial.stat().st_size - size // 2)

    again = Job(path, shape, [Piece(0, size, DATA)], token="first")
    again.container.restore(size, rows)
    disk, here = what_is_there(again, size)
    again.target.abort()

    if kind[:2] != ("vhd", "differencing"):  # whose bitmaps are lost too
        assert here.all()
    assert disk[: size // 4].all()
    assert not disk[3 * size // 4 :].any()


def test_blocks_side_by_side_are_read_back_as_one_run_past_the_entries_of_bitmaps(tmp_path: Path) -> None:
    kind: Kind = ("vhdx", "differencing", 256 * MIB, 512)
    size = 40 * 256 * MIB  # sixteen blocks and a bitmap, twice, and eight more
    parent = a_shape(("vhdx", "dynamic", 256 * MIB, 512), size, tmp_path / "parent.vhdx")
    page = bytes(range(256)) * 16
    with TargetFile(tmp_path / "image.vhdx", sync=False) as target:
        container = container_for(a_shape(kind, size, tmp_path / "image.vhdx", parent), target)
        for block in (14, 15, 16, 17):
            container.write_at(block * 256 * MIB, page)
            container.zeros(block * 256 * MIB + 4096, 256 * MIB - 4096)
        container.write_at(18 * 256 * MIB, page)
        container.zeros(20 * 256 * MIB, 12 * 256 * MIB)
        container.write_at(33 * 256 * MIB, page)
        assert container.placed() == [[14, 4, 2], [18, 1, 3], [20, 12, 1], [33, 1, 3]]
        source, plans = container.read_back(size)
        runs = [run for plan in plans for run in plan]
        source.close()

    block_size = 256 * MIB
    assert [(run.offset / block_size, run.length, run.layer) for run in runs] == [
        (0, 14 * block_size, UNHELD),
        (14, 4 * block_size, 0),
        (18, 4096, 0),
        (18 + 4096 / block_size, block_size - 4096, UNHELD),
        (19, block_size, UNHELD),
        (20, 12 * block_size, READS_AS_ZEROS),
        (32, block_size, UNHELD),
        (33, 4096, 0),
        (33 + 4096 / block_size, block_size - 4096, UNHELD),
        (34, 6 * block_size, UNHELD),
    ]


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 0, 2]],
        [[0, 2, 2], [1, 1, 2]],
        [[1, 1, 2], [0, 1, 2]],
        [[3, 2, 2]],
        [[0, 1, 0]],
        [[0, 1, 9]],
        [[0, 1]],
        [[0, 1, 2, 3]],
    ],
    ids=str,
)
@every_kind
def test_rows_that_were_never_placed_are_refused(kind: Kind, rows: list[list[int]], tmp_path: Path) -> None:
    path, shape, _ = prepared(tmp_path, kind, 4 * (kind[2] or MIB))
    with TargetFile(path) as target:
        container = container_for(shape, target)
        with pytest.raises(ValueError, match=r"placed|state|unpack"):
            container.restore(4 * (kind[2] or MIB), rows)


def test_states_that_only_children_have_are_refused_for_others(tmp_path: Path) -> None:
    path, shape, _ = prepared(tmp_path, ("vhdx", "dynamic", MIB, 512), 4 * MIB)
    with TargetFile(path) as target, pytest.raises(ValueError, match="state 3"):
        container_for(shape, target).restore(4 * MIB, [[0, 1, 3]])


# ------------------------------------------------------------ size and space


@every_kind
def test_a_disk_of_little_takes_little(kind: Kind, tmp_path: Path) -> None:
    size = GIB + 4096
    pieces = [
        Piece(0, 4096, DATA),
        Piece(4096, 3 * MIB, ZEROS),
        Piece(3 * MIB, size - 4096, GAP),
        Piece(size - 4096, size, DATA),
    ]
    path = tmp_path / f"image.{kind[0]}"
    parent = None
    if kind[1] == "differencing":
        parent = a_shape((kind[0], "dynamic", 2 * MIB, kind[3]), size, tmp_path / f"parent.{kind[0]}")
    an_image(path, a_shape(kind, size, path, parent), pieces)

    assert allocated(path) < 3 * MIB
    if kind[1] == "fixed":
        assert path.stat().st_size >= size
    else:
        assert path.stat().st_size < 16 * MIB


class Nothing:
    """A sink that counts."""

    def __init__(self) -> None:
        self.bytes = self.largest = self.last = 0

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self.bytes += len(data)
        self.largest = max(self.largest, len(data))
        self.last = max(self.last, offset + len(data))


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_table_of_a_huge_disk_takes_no_memory_that_is_not_touched(tmp_path: Path) -> None:
    sink = Nothing()
    shape = a_shape(("vhdx", "dynamic", MIB, 512), 64 * TIB, tmp_path / "image.vhdx")

    def work() -> None:
        container = container_for(shape, sink)
        for at in (0, 32 * TIB, 64 * TIB - MIB):
            container.write_at(at, bytes(4096))
        container.finish()

    assert peak_of(work) < MIB
    assert sink.bytes < MIB


def test_a_child_of_nothing_but_zeros_takes_a_window_of_memory(tmp_path: Path) -> None:
    sink = Nothing()
    parent = a_shape(("vhdx", "dynamic", MIB, 512), 4 * TIB, tmp_path / "parent.vhdx")
    shape = a_shape(("vhdx", "differencing", MIB, 512), 4 * TIB, tmp_path / "image.vhdx", parent)

    def work() -> None:
        container = container_for(shape, sink)
        container.zeros(0, 4 * TIB)
        assert container.placed() == [[0, 4 << 20, BlockState.ZERO]]
        container.finish()

    assert peak_of(work) < 4 * MIB
    assert sink.bytes > 32 * MIB
    assert sink.last <= 64 * MIB


def test_without_a_journal_nothing_is_kept_for_one(tmp_path: Path) -> None:
    shape = a_shape(("vhd", "dynamic", 512, 512), 512 << 10, tmp_path / "image.vhd")
    container = container_for(shape, Nothing(), record=False)
    for at in range(0, 512 << 10, 1024):
        container.write_at(at, bytes(512))

    assert isinstance(container, BlockContainer)
    assert container.placed() == []


def test_checkpoints_are_whole_blocks_and_at_least_two_mib(tmp_path: Path) -> None:
    for block_size in (512, 64 << 10, 2 * MIB, 256 * MIB):
        shape = a_shape(("vhd", "dynamic", block_size, 512), MIB, tmp_path / "image.vhd")
        assert container_for(shape, Nothing()).checkpoint_size == max(block_size, 2 * MIB)


# ------------------------------------------------------------ mistakes of callers


@every_child
def test_a_child_takes_whole_sectors_in_order(kind: Kind, tmp_path: Path) -> None:
    sector_size = kind[3]
    parent = a_shape((kind[0], "dynamic", 2 * MIB, sector_size), 4 * MIB, tmp_path / f"p.{kind[0]}")
    shape = a_shape(kind, 4 * MIB, tmp_path / f"c.{kind[0]}", parent)
    container = container_for(shape, Nothing())
    container.zeros(2 * sector_size, sector_size)

    for offset, length in [
        (3 * sector_size + 1, sector_size),
        (3 * sector_size, sector_size - 1),
        (0, sector_size),
        (2 * sector_size, sector_size),
        (2 * sector_size, 3 * MIB),
    ]:
        with pytest.raises(ValueError, match=r"whole sectors|in order"):
            container.zeros(offset, length)
        with pytest.raises(ValueError, match=r"whole sectors|in order"):
            container.write_at(offset, bytes(min(length, 2 * sector_size)))
    container.zeros(2 * MIB, 2 * MIB - sector_size)
    for offset in (MIB, 2 * MIB, 3 * MIB):
        with pytest.raises(ValueError, match=r"in order"):
            container.zeros(offset, MIB)
        with pytest.raises(ValueError, match=r"in order"):
            container.write_at(offset, bytes(sector_size))
    with pytest.raises(ValueError, match=r"end with the disk"):
        container.zeros(4 * MIB - sector_size, 2 * sector_size)
    container = container_for(shape, Nothing())
    container.zeros(0, 4 * MIB)
    with pytest.raises(ValueError, match=r"in order"):
        container.zeros(2 * MIB, 2 * MIB)


@every_child
def test_the_disks_last_sector_may_be_known_in_part(kind: Kind, tmp_path: Path) -> None:
    path, shape, below = prepared(tmp_path, kind, 3 * MIB)
    assert below is not None
    with TargetFile(path, sync=False) as target:
        container = container_for(shape, target)
        container.write_at(3 * MIB - kind[3], b"a" * 100)
        target.finish(container.finish())
        target.publish()

    below[-kind[3] :] = 0
    below[-kind[3] :][:100] = ord("a")
    assert read(path) == below.tobytes()


def test_only_files_are_gone_on_with_and_packed_formats_are_made_elsewhere(tmp_path: Path) -> None:
    shape = a_shape(("vhdx", "dynamic", MIB, 512), MIB, tmp_path / "image.vhdx")
    container = container_for(shape, Nothing())
    with pytest.raises(ValueError, match="only a file"):
        container.restore(0, [])
    with pytest.raises(ValueError, match="only a file"):
        container.read_back(0)
    packed = a_shape(("raw.zst", "fixed", 0, 512), MIB, tmp_path / "image.raw.zst")
    assert packed.format is TargetFormat.RAW_ZST
    with pytest.raises(ValueError, match="elsewhere"):
        container_for(packed, Nothing())
