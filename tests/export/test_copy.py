"""The mover: every byte in its place, zeros nowhere, and damage told exactly."""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chain.fake import FakeImage, chain_of, fake_chains, truth
from tests.export.kit import (
    CHUNK,
    MIB,
    HookedSource,
    a_disk,
    allocated,
    failing_at,
    failing_in,
    naive_root,
    some_data,
)
from vhdtool.errors import CorruptError, ExportError, ReadError
from vhdtool.export.moving.copy import Mover, estimated_data
from vhdtool.export.moving.pipeline import BUFFER_SIZE, Consumer
from vhdtool.export.moving.progress import CancelledError, CancelToken, Progress, Reporter
from vhdtool.export.moving.spans import CELL_SIZE, DATA, Span, zero_spans
from vhdtool.export.proof.digest import INHERITED, ChunkDigester, ChunkSink, RootDigester, WholeDigest
from vhdtool.model.state import DAMAGED, UNHELD, ZEROS, Run
from vhdtool.source import ByteSource, FileSource, MemorySource


class MemorySink:
    """Keeps what is written, and where; zeros and gaps as well."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.writes: list[tuple[int, int]] = []
        self.zeroed: list[tuple[int, int]] = []

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        assert offset + len(data) <= len(self.data)
        self.data[offset : offset + len(data)] = data
        self.writes.append((offset, len(data)))

    def zeros(self, offset: int, length: int) -> None:
        assert offset + length <= len(self.data)
        self.zeroed.append((offset, length))

    def held(self) -> bytes:
        """One byte for each of the disk: 1 where it was written or said to be zero."""
        held = bytearray(len(self.data))
        stop = 0
        for offset, length in sorted(self.writes + self.zeroed):
            assert stop <= offset, "twice"
            stop = offset + length
            held[offset:stop] = b"\1" * length
        return bytes(held)


class Damage(list[tuple[int, int, str]]):
    def add(self, start: int, length: int, reason: str) -> None:
        if self and self[-1][0] + self[-1][1] == start and self[-1][2] == reason:
            self[-1] = (self[-1][0], self[-1][1] + length, reason)
        else:
            self.append((start, length, reason))


def quiet(size: int) -> Reporter:
    return Reporter("copy", size)


def move(
    sources: Sequence[ByteSource], runs: list[Run], size: int, chunks: ChunkSink | None = None
) -> tuple[MemorySink, str]:
    """What arrives, and the root of what was digested."""
    sink, root = MemorySink(size), RootDigester(size)
    Mover(sources, sink, reporter=quiet(size), consumers=[ChunkDigester(chunks or root)]).run([runs])
    return sink, root.hexdigest()


@given(images=fake_chains())
def test_the_disk_of_any_chain_arrives(images: list[FakeImage]) -> None:
    chain = chain_of(*images)
    expected = truth(images)
    sink, root = MemorySink(len(expected)), RootDigester(len(expected))
    whole = WholeDigest("md5")
    sources = [image.source for image in images]
    consumers: list[Consumer] = [ChunkDigester(root), whole]

    Mover(sources, sink, reporter=quiet(len(expected)), consumers=consumers).run(chain.windows())

    assert bytes(sink.data) == expected
    assert root.hexdigest() == naive_root(expected)


@st.composite
def runs_of_a_disk(draw: st.DrawFn, gaps: Sequence[int] = ()) -> tuple[list[Run], bytes, list[bytes]]:
    """Runs around all boundaries that the mover knows, over two files with zeros in them."""
    lengths = st.one_of(
        st.integers(1, 9).map(lambda n: n * 512),
        st.sampled_from([CELL_SIZE, BUFFER_SIZE, 4096, CELL_SIZE - 512, BUFFER_SIZE + 512, CHUNK]),
    )
    kinds = st.sampled_from([ZEROS, 0, 0, 1, 2, *gaps])
    files = [b"", b"", b""]
    runs: list[Run] = []
    disk = b""
    for number, (layer, length) in enumerate(
        draw(st.lists(st.tuples(kinds, lengths), min_size=1, max_size=25))
    ):
        if layer < 0:
            runs.append(Run(len(disk), length, layer, -1))
            disk += bytes(length)
            continue
        # The third file is all zeros: found by reading only.
        piece = bytes(length) if layer == 2 else bytes([number + 1]) * length
        if layer == 1 and length > 2048:
            piece = bytes(length - 512) + piece[:512]
        runs.append(Run(len(disk), length, layer, len(files[layer])))
        files[layer] += piece
        disk += piece
    return runs, disk, files


@given(case=runs_of_a_disk())
def test_runs_of_any_length_arrive_and_cells_of_zeros_are_not_written(
    case: tuple[list[Run], bytes, list[bytes]],
) -> None:
    runs, disk, files = case
    sources = [MemorySource(f"file {i}", data) for i, data in enumerate(files)]

    sink, root = move(sources, runs, len(disk))

    assert bytes(sink.data) == disk
    assert root == naive_root(disk)
    written = bytearray(len(disk))
    for offset, length in sink.writes:
        assert length <= BUFFER_SIZE
        assert not any(written[offset : offset + length]), "written twice"
        written[offset : offset + length] = b"\1" * length
    for cell in range(0, len(disk) - CELL_SIZE + 1, CELL_SIZE):
        if not any(disk[cell : cell + CELL_SIZE]):
            assert not any(written[cell : cell + CELL_SIZE])


@given(case=runs_of_a_disk(gaps=(UNHELD, UNHELD)), halved=st.booleans())
def test_gaps_are_neither_written_nor_digested_as_anything(
    case: tuple[list[Run], bytes, list[bytes]], halved: bool
) -> None:
    runs, disk, files = case
    if halved:
        runs = _halved(runs)
    chunks = Chunks()

    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder, ExitStack() as stack:
        patch.setattr("vhdtool.export.moving.fill.SPANS_MAX", 5)
        paths = [Path(folder) / f"file {i}" for i in range(len(files))]
        for path, data in zip(paths, files):
            path.write_bytes(data)
        # Files, not memory: many small pieces of those are read at once.
        sources = [stack.enter_context(FileSource(path)) for path in paths]
        sink, _ = move(sources, runs, len(disk), chunks)

    expected = bytearray(len(disk))
    for run in runs:
        expected[run.offset : run.offset + run.length] = bytes([run.layer != UNHELD]) * run.length
    assert sink.held() == expected
    assert bytes(sink.data) == disk
    assert chunks.digests == increment_digests(runs, disk)


@pytest.mark.parametrize("void", [ZEROS, UNHELD])
@pytest.mark.parametrize("first", [512, 4096, BUFFER_SIZE - 4096, BUFFER_SIZE - 8192])
def test_voids_begin_and_end_anywhere_in_a_buffer(tmp_path: Path, void: int, first: int) -> None:
    data = some_data(4 * BUFFER_SIZE)
    path = a_disk(tmp_path / "a.raw", len(data), {0: data})
    runs = [Run(0, first, 0, 0)]
    while (at := runs[-1].offset + runs[-1].length) < 3 * BUFFER_SIZE:
        runs.append(Run(at, 4096, void, -1) if len(runs) % 2 else Run(at, 4096, 0, at))

    size = runs[-1].offset + runs[-1].length
    with FileSource(path) as source:  # which is read many pieces at a time
        sink, _ = move([source], runs, size)

    expected = bytearray(size)
    for run in runs:
        if run.layer == 0:
            expected[run.offset : run.offset + run.length] = data[run.offset : run.offset + run.length]
    assert sink.data == expected


def _halved(runs: list[Run]) -> list[Run]:
    """Each run in two: of one kind, and so in the end the same."""
    halves = []
    for run in runs:
        first = run.length // 1024 * 512
        place = run.file_offset + first if run.layer >= 0 else -1
        halves += [run._replace(length=first), Run(run.offset + first, run.length - first, run.layer, place)]
    return [run for run in halves if run.length]


class Chunks:
    """The digest of each chunk."""

    def __init__(self) -> None:
        self.digests: list[bytes | None] = []

    def add(self, digest: bytes | None, count: int) -> None:
        self.digests += [digest] * count


def increment_digests(runs: list[Run], disk: bytes) -> list[bytes | None]:
    """What digest.py's head promises for an increment that holds ``disk`` but for the gaps in ``runs``."""
    held = np.zeros(len(disk), np.bool_)
    for run in runs:
        held[run.offset : run.offset + run.length] = run.layer != UNHELD
    digests: list[bytes | None] = []
    for start in range(0, len(disk), CHUNK):
        here, data = held[start : start + CHUNK], disk[start : start + CHUNK]
        if not here.any():
            digests.append(INHERITED)
        elif here.all():
            digests.append(hashlib.sha256(data).digest() if any(data) else None)
        else:
            digest = hashlib.sha256()
            edges = np.flatnonzero(np.diff(here.astype(np.int8), prepend=0, append=0)).tolist()
            for first, last in zip(edges[::2], edges[1::2]):
                digest.update(data[first:last] + struct.pack("<QQ", start + first, last - first))
            digests.append(digest.digest())
    return digests


@given(
    cells=st.lists(st.sampled_from([0, 1]), min_size=1, max_size=6),
    start=st.integers(0, 300).map(lambda n: n * 512),
    first=st.integers(0, 5).map(lambda n: n * 1000),
    length=st.integers(1, 6 * CELL_SIZE),
)
def test_spans_tile_the_buffer_and_tell_zeros(cells: list[int], start: int, first: int, length: int) -> None:
    data = bytearray(b"".join(bytes([cell]) * CELL_SIZE for cell in cells))
    length = min(length, len(data))

    first = min(first, length - 1)
    spans: list[Span] = []
    zero_spans(data, start + first, first, length, spans)

    position = first
    for one, two in pairwise(spans):
        assert one.kind != two.kind
    for kind, count, at in spans:
        assert count
        assert at == position
        assert any(data[position : position + count]) == (kind == DATA)
        position += count
    assert position == length


def test_neighbouring_runs_become_one_write() -> None:
    files = [MemorySource("a", some_data(MIB)), MemorySource("b", some_data(MIB, 2))]
    runs = [Run(at, 512, (at // 512) % 2, at) for at in range(0, 256 * 1024, 512)]

    sink, _ = move(files, runs, 256 * 1024)

    assert sink.writes == [(0, 256 * 1024)]


def test_holes_of_a_source_are_not_read(tmp_path: Path) -> None:
    path = a_disk(tmp_path / "a.raw", 64 * MIB, {MIB: some_data(4096), 63 * MIB: some_data(4096)})
    if allocated(path) > MIB:
        pytest.skip("no sparse files here")
    read = []
    with HookedSource(path, lambda number, offset, length: read.append(length)) as source:
        if next(source.data_ranges(0, source.size))[0] == 0:
            pytest.skip("holes cannot be asked for here")
        sink, root = move([source], [Run(0, source.size, 0, 0)], source.size)

    assert bytes(sink.data) == path.read_bytes()
    assert root == naive_root(path.read_bytes())
    assert sum(read) < MIB


def test_a_huge_range_of_zeros_costs_nothing() -> None:
    size = 64 << 40
    runs = [
        Run(0, 1 << 40, ZEROS, -1),
        Run(1 << 40, 4096, 0, 0),
        Run((1 << 40) + 4096, size - (1 << 40) - 4096, ZEROS, -1),
    ]
    root = RootDigester(size)
    before = time.process_time()

    Mover(
        [MemorySource("a", some_data(4096))], None, reporter=quiet(size), consumers=[ChunkDigester(root)]
    ).run([runs])

    assert len(root.hexdigest()) == 64
    assert time.process_time() - before < 10


def test_runs_that_do_not_tile_the_disk_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="tile"):
        move([], [Run(0, 512, ZEROS, -1), Run(1024, 512, ZEROS, -1)], 2048)


# ------------------------------------------------------------ failing reads


@pytest.mark.parametrize("number", range(1, 6))
def test_any_failing_read_is_refused_with_its_place_and_range(tmp_path: Path, number: int) -> None:
    path = a_disk(tmp_path / "a.raw", 2 * MIB, {0: some_data(2 * MIB)})
    with HookedSource(path, failing_at(number)) as source:
        if number > 4:
            move([source], [Run(0, 2 * MIB, 0, 0)], 2 * MIB)
            return
        with pytest.raises(ReadError) as caught:
            move([source], [Run(0, 2 * MIB, 0, 0)], 2 * MIB)

    start = (number - 1) * BUFFER_SIZE
    assert f"at {start:#x}" in str(caught.value)
    assert f"guest bytes {start:#x} to {start + BUFFER_SIZE:#x}" in str(caught.value)
    assert threading.active_count() == 1


def test_only_what_cannot_be_read_becomes_zeros(tmp_path: Path) -> None:
    disk = some_data(2 * MIB)
    path = a_disk(tmp_path / "a.raw", 2 * MIB, {0: disk})
    bad = MIB + 5000
    sink, damage = MemorySink(MIB), Damage()
    with HookedSource(path, failing_in(bad, bad + 3000)) as source:
        mover = Mover([source], sink, reporter=quiet(MIB), damaged="zero", damage=damage)
        # The disk's first MiB stands in the file's second one.
        mover.run([[Run(0, 512, 0, MIB), Run(512, MIB - 512, 0, MIB + 512)]])

    assert damage == [(4096, 4096, damage[0][2])]
    assert "Input/output error" in damage[0][2]
    assert str(path) in damage[0][2]
    expected = bytearray(disk[MIB:])
    expected[4096:8192] = bytes(4096)
    assert sink.data == expected


def test_a_file_that_ends_early_is_refused_or_its_rest_zeros(tmp_path: Path) -> None:
    disk = some_data(MIB)
    path = a_disk(tmp_path / "a.raw", MIB, {0: disk})
    runs = [Run(0, 2 * MIB, 0, 0)]
    with FileSource(path) as source:
        with pytest.raises(CorruptError) as caught:
            move([source], runs, 2 * MIB)
        sink, damage = MemorySink(2 * MIB), Damage()
        Mover([source], sink, reporter=quiet(2 * MIB), damaged="zero", damage=damage).run([runs])

    assert caught.value.finding is not None
    assert caught.value.finding.code == "file.too_short"
    assert "guest bytes" in str(caught.value)
    assert bytes(sink.data) == disk + bytes(MIB)
    assert [(start, length) for start, length, _ in damage] == [(MIB, MIB)]


def test_a_damaged_run_is_refused_or_zeros() -> None:
    runs = [Run(0, 512, ZEROS, -1), Run(512, 1024, DAMAGED, -1)]
    source = MemorySource("a", b"")
    with pytest.raises(CorruptError) as caught:
        move([source], runs, 1536)
    sink, damage = MemorySink(1536), Damage()
    Mover([source], sink, reporter=quiet(1536), damaged="zero", damage=damage).run([runs])

    assert caught.value.finding is not None
    assert caught.value.finding.code == "chain.damaged_range"
    assert "0x200 to 0x600" in str(caught.value)
    assert [(start, length) for start, length, _ in damage] == [(512, 1024)]
    assert not any(sink.data)


def test_zeroing_damage_that_nobody_hears_of_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="told"):
        Mover([], None, reporter=quiet(1), damaged="zero")


# ------------------------------------------------------------ threads


class Failing:
    """A consumer that fails at its ``at``-th call."""

    def __init__(self, at: int, error: BaseException) -> None:
        self._left = at
        self._error = error

    def data(self, view: memoryview) -> None:
        self._left -= 1
        if self._left == 0:
            raise self._error

    def zeros(self, length: int) -> None:
        pass

    def gap(self, length: int) -> None:
        raise AssertionError

    def finish(self) -> None:
        if self._left > 0:
            raise self._error


@pytest.mark.parametrize("at", [1, 3, 16, 1000])
@pytest.mark.parametrize(
    "error", [RuntimeError("digest"), MemoryError()], ids=["RuntimeError", "MemoryError"]
)
def test_a_consumer_that_fails_stops_the_mover(at: int, error: BaseException) -> None:
    source = MemorySource("a", some_data(8 * MIB))
    runs = [Run(0, 8 * MIB, 0, 0)]
    consumers: list[Consumer] = [ChunkDigester(RootDigester(8 * MIB)), Failing(at, error)]

    with pytest.raises(type(error)):
        Mover([source], None, reporter=quiet(8 * MIB), consumers=consumers).run([runs])

    assert threading.active_count() == 1


def test_a_slow_consumer_bounds_the_buffers() -> None:
    seen: list[int] = []

    class Slow:
        def data(self, view: memoryview) -> None:
            time.sleep(0.005)
            seen.append(view[0])

        def zeros(self, length: int) -> None:
            raise AssertionError

        gap = zeros

        def finish(self) -> None:
            seen.append(-1)

    data = b"".join(bytes([n]) * BUFFER_SIZE for n in range(1, 20))
    runs = [Run(0, len(data), 0, 0)]

    Mover([MemorySource("a", data)], None, reporter=quiet(len(data)), consumers=[Slow()]).run([runs])

    assert seen == [*range(1, 20), -1]


def test_a_sink_that_fails_stops_the_mover() -> None:
    class Full:
        def write_at(self, offset: int, data: bytes | memoryview) -> None:
            raise ExportError("no space left")

        def zeros(self, offset: int, length: int) -> None:
            raise AssertionError

    source = MemorySource("a", some_data(MIB))
    consumers = [ChunkDigester(RootDigester(MIB))]

    with pytest.raises(ExportError):
        Mover([source], Full(), reporter=quiet(MIB), consumers=consumers).run([[Run(0, MIB, 0, 0)]])

    assert threading.active_count() == 1


@pytest.mark.parametrize("number", [1, 2, 5])
def test_an_interrupt_in_a_read_ends_all_threads(tmp_path: Path, number: int) -> None:
    def hook(reads: int, offset: int, length: int) -> None:
        if reads == number:
            raise KeyboardInterrupt

    path = a_disk(tmp_path / "a.raw", 4 * MIB, {0: some_data(4 * MIB)})
    with HookedSource(path, hook) as source, pytest.raises(KeyboardInterrupt):
        move([source], [Run(0, 4 * MIB, 0, 0)], 4 * MIB)

    assert threading.active_count() == 1


# ------------------------------------------------------------ progress


def test_a_token_stops_the_mover() -> None:
    token = CancelToken()
    sink = MemorySink(4 * MIB)
    seen = []

    def progress(state: Progress) -> None:
        seen.append(state)
        token.cancel()

    reporter = Reporter("copy", 4 * MIB, progress=progress, cancel=token)
    with pytest.raises(CancelledError) as caught:
        Mover([MemorySource("a", some_data(4 * MIB))], sink, reporter=reporter).run([[Run(0, 4 * MIB, 0, 0)]])

    assert caught.value.exit_code == 130
    assert len(seen) == 1


def test_progress_ends_with_everything_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhdtool.export.moving.progress._PROGRESS_SECONDS", 0)
    seen: list[Progress] = []
    size = 6 * MIB
    reporter = Reporter("copy", size, estimate=3 * MIB, progress=seen.append)
    runs = [Run(0, 2 * MIB, 0, 0), Run(2 * MIB, 4 * MIB, ZEROS, -1)]

    Mover([MemorySource("a", some_data(2 * MIB))], None, reporter=reporter).run([runs])

    assert [state.position for state in seen] == sorted(state.position for state in seen)
    assert [state.done for state in seen] == sorted(state.done for state in seen)
    assert seen[-1] == Progress("copy", 2 * MIB, 2 * MIB, size, size)
    assert all(state.total is not None and state.done <= state.total <= size for state in seen)


def test_the_estimate_of_a_raw_disk_is_its_size() -> None:
    from tests.export.kit import chain_over

    assert estimated_data(chain_over(MemorySource("a", bytes(4096)))) == 4096


def test_a_digest_of_endless_zeros_can_be_stopped() -> None:
    size = 64 << 40
    token = CancelToken()
    threading.Timer(0.3, token.cancel).start()
    before = time.monotonic()
    mover = Mover([], None, reporter=Reporter("copy", size, cancel=token), consumers=[WholeDigest("md5")])

    with pytest.raises(CancelledError):
        mover.run([[Run(0, size, ZEROS, -1)]])

    assert time.monotonic() - before < 60
    assert threading.active_count() == 1
