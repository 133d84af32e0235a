"""The crew: who reads a disk with several threads moves what one thread moves, and fails where that fails."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.export.kit import CHUNK, MIB, a_disk, naive_root, some_data
from tests.export.test_copy import Chunks, Damage, MemorySink, increment_digests, quiet, runs_of_a_disk
from vhdtool.chain.engine import Engine
from vhdtool.errors import CorruptError, ExportError
from vhdtool.export.moving import crew
from vhdtool.export.moving.copy import Moved, Mover
from vhdtool.export.moving.fill import takes_room
from vhdtool.export.moving.pipeline import Consumer
from vhdtool.export.moving.progress import CancelledError, CancelToken, Progress, Reporter
from vhdtool.export.proof.digest import RootDigester, WholeDigest
from vhdtool.model.plan import ReadPlan
from vhdtool.model.state import DAMAGED, UNHELD, ZEROS, Run
from vhdtool.source import FileSource


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine has."""
    monkeypatch.setattr("vhdtool.export.moving.crew.cpu_count", lambda: 3)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Guest offsets of the tasks that were done."""
    if not hasattr(os, "pread"):
        pytest.skip("no positioned reads: one thread reads")
    begun: list[int] = []
    work = crew.Crew._work

    def seen(self: crew.Crew, *arguments: object) -> crew.Done:
        done = work(self, *arguments)  # type: ignore[arg-type]
        begun.append(done.start)
        return done

    monkeypatch.setattr(crew.Crew, "_work", seen)
    return begun


def on_files(stack: ExitStack, files: Sequence[bytes]) -> list[FileSource]:
    folder = Path(stack.enter_context(TemporaryDirectory()))
    sources = []
    for number, data in enumerate(files):
        path = folder / f"file {number}"
        path.write_bytes(data)
        sources.append(stack.enter_context(FileSource(path)))
    return sources


@pytest.mark.parametrize("engine", ["numpy", "numba"])
@given(
    case=runs_of_a_disk(gaps=(UNHELD, UNHELD)),
    rows=st.sampled_from([1, 3, 1 << 12]),
    spans=st.sampled_from([2, 5, 1 << 12]),
    whole=st.booleans(),
)
def test_a_crew_moves_and_digests_what_one_thread_does(
    case: tuple[list[Run], bytes, list[bytes]], rows: int, spans: int, whole: bool, engine: Engine
) -> None:
    if engine == "numba":
        pytest.importorskip("numba")
    runs, disk, files = case
    chunks = Chunks()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(crew, "cpu_count", lambda: 3)
        patch.setattr(crew, "_ROWS", rows)
        patch.setattr("vhdtool.export.moving.fill.SPANS_MAX", spans)
        sources = on_files(stack, files)
        sink = MemorySink(len(disk)) if whole else None

        mover = Mover(sources, sink, reporter=quiet(len(disk)), chunks=chunks, engine=engine)
        moved = mover.run([runs])

    assert chunks.digests == increment_digests(runs, disk)
    assert moved.read == sum(run.length for run in runs if run.layer >= 0)
    if sink is not None:
        expected = bytearray(len(disk))
        for run in runs:
            expected[run.offset : run.offset + run.length] = bytes([run.layer != UNHELD]) * run.length
        assert sink.held() == expected
        assert bytes(sink.data) == disk
        assert sink.writes == sorted(sink.writes)


@st.composite
def plans(draw: st.DrawFn) -> list[ReadPlan]:
    """Plans that tile a disk, cut anywhere."""
    lengths = st.one_of(st.integers(1, 40).map(lambda n: n * 512), st.sampled_from([CHUNK, 9 * CHUNK, 3000]))
    found, position, runs = [], 0, []
    rows = st.tuples(st.sampled_from([ZEROS, UNHELD, 0, 0, 1, DAMAGED]), lengths, st.integers(0, 9))
    for layer, length, cut in draw(st.lists(rows, min_size=1, max_size=60)):
        runs.append(Run(position, length, layer, -1 if layer < 0 else position * 3))
        position += length
        if cut == 0:
            found.append(ReadPlan.of_runs(runs))
            runs = []
    return [plan for plan in (*found, ReadPlan.of_runs(runs)) if len(plan)]


@given(given_plans=plans(), factor=st.sampled_from([1, 4]), edges=st.sampled_from([None, 2, 8]))
def test_tasks_are_the_plans_cut_at_ends_of_chunks(
    given_plans: list[ReadPlan], factor: int, edges: int | None
) -> None:
    size = 64 << 10
    edge = (
        (lambda position: 1 << 62) if edges is None else lambda at: (at // (edges * size) + 1) * edges * size
    )
    stop = max(plan.stop for plan in given_plans)

    found = list(crew.tasks(given_plans, chunk_size=size, size=factor * size, edge=edge))

    assert list(ReadPlan.joined(found)) == list(ReadPlan.joined(given_plans))
    assert found[-1].stop == stop
    for task in found:
        assert task.start % size == 0
        assert task.stop % size == 0 or task.stop == stop
        assert task.length[takes_room(task)].sum() <= factor * size
        if edges is not None:
            assert task.stop <= edge(task.start)


def a_source(tmp_path: Path, size: int = 40 * MIB) -> FileSource:
    return FileSource(a_disk(tmp_path / "a.raw", size, {0: some_data(size)}))


def moved(source: FileSource, runs: list[Run], size: int, **options: object) -> tuple[str, Moved]:
    root = RootDigester(size)
    mover = Mover([source], None, chunks=root, **{"reporter": quiet(size), **options})  # type: ignore[arg-type]
    done = mover.run([runs])
    return root.hexdigest(), done


def test_whole_digests_have_the_disk_in_order(tmp_path: Path, busy: list[int]) -> None:
    size = 40 * MIB
    whole = WholeDigest("sha256")
    consumers: list[Consumer] = [whole]
    with a_source(tmp_path) as source:
        root, done = moved(source, [Run(0, size, 0, 0)], size, consumers=consumers)
        disk = source.read_exact(0, size, field="all")

    assert whole.hexdigest() == hashlib.sha256(disk).hexdigest()
    assert root == naive_root(disk)
    assert done.read == size
    assert len(busy) == size // CHUNK


def test_digests_alone_take_larger_tasks(tmp_path: Path, busy: list[int]) -> None:
    with a_source(tmp_path) as source:
        root, _ = moved(source, [Run(0, source.size, 0, 0)], source.size)
        assert root == naive_root(source.read_exact(0, source.size, field="all"))

    assert 1 < len(busy) < 10


@pytest.mark.parametrize("missing", [1, CHUNK, 5 * CHUNK + 4096])
def test_the_first_range_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    size = 40 * MIB
    path = a_disk(tmp_path / "a.raw", size - missing, {0: some_data(size - missing)})
    with FileSource(path) as source:
        with pytest.raises(CorruptError) as caught:
            moved(source, [Run(0, size, 0, 0)], size)
        # As one thread says it.
        monkeypatch.setattr("vhdtool.export.moving.crew.cpu_count", lambda: 1)
        with pytest.raises(CorruptError) as one:
            moved(source, [Run(0, size, 0, 0)], size)

    assert str(caught.value) == str(one.value)
    assert threading.active_count() == 1


def test_damage_is_told_in_order_and_becomes_zeros(tmp_path: Path, busy: list[int]) -> None:
    size = 40 * MIB
    path = a_disk(tmp_path / "a.raw", 30 * MIB, {0: some_data(30 * MIB)})
    runs = [
        Run(0, CHUNK, 0, 0),
        Run(CHUNK, 512, DAMAGED, -1),
        Run(CHUNK + 512, size - CHUNK - 512, 0, CHUNK + 512),
    ]
    damage, sink = Damage(), MemorySink(size)
    with FileSource(path) as source:
        root = RootDigester(size)
        Mover([source], sink, chunks=root, reporter=quiet(size), damaged="zero", damage=damage).run([runs])
        disk = bytearray(source.read_exact(0, 30 * MIB, field="all") + bytes(10 * MIB))
    disk[CHUNK : CHUNK + 512] = bytes(512)

    assert sink.data == disk
    assert root.hexdigest() == naive_root(bytes(disk))
    assert [(start, length) for start, length, _ in damage] == [(CHUNK, 512), (30 * MIB, 10 * MIB)]
    assert busy


class FailingSink(MemorySink):
    def __init__(self, size: int, at: int, error: BaseException) -> None:
        super().__init__(size)
        self._at = at
        self._error = error

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        if len(self.writes) == self._at:
            raise self._error
        super().write_at(offset, data)


@pytest.mark.parametrize("at", [0, 3, 19])
@pytest.mark.parametrize("error", [ExportError("no space left"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_a_sink_that_fails_ends_all_threads(tmp_path: Path, at: int, error: BaseException) -> None:
    with a_source(tmp_path) as source:
        size = source.size
        sink = FailingSink(size, at, error)
        mover = Mover([source], sink, chunks=RootDigester(size), reporter=quiet(size))
        with pytest.raises(type(error)):
            mover.run([[Run(0, size, 0, 0)]])

    assert len(sink.writes) == at
    assert threading.active_count() == 1


def test_a_token_stops_a_crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = CancelToken()

    def progress(state: Progress) -> None:
        if state.done >= 8 * MIB:
            token.cancel()

    monkeypatch.setattr("vhdtool.export.moving.progress._PROGRESS_SECONDS", 0)
    with a_source(tmp_path) as source:
        size = source.size
        reporter = Reporter("copy", size, progress=progress, cancel=token)
        with pytest.raises(CancelledError):
            moved(source, [Run(0, size, 0, 0)], size, reporter=reporter, consumers=[WholeDigest("md5")])

    assert threading.active_count() == 1


def test_who_waits_for_a_slow_reader_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrowing down what cannot be read takes seconds for each piece on a dying disk."""
    path = a_disk(tmp_path / "a.raw", 4 * MIB, {0: some_data(4 * MIB)})
    token = CancelToken()

    def slow(*arguments: object) -> int:
        time.sleep(0.05)
        return 0

    monkeypatch.setattr("vhdtool.export.moving.fill._preadv", slow)
    monkeypatch.setattr(FileSource, "read_into", _failing_slowly)
    threading.Timer(0.3, token.cancel).start()
    began = time.monotonic()
    with FileSource(path) as source:
        size = source.size
        options = {"reporter": Reporter("copy", size, cancel=token), "damage": Damage()}
        with pytest.raises(CancelledError):
            moved(source, [Run(0, size, 0, 0)], size, damaged="zero", engine="numpy", **options)

    assert time.monotonic() - began < 20  # reading all of it would take 50 seconds
    assert threading.active_count() == 1


def _failing_slowly(self: FileSource, offset: int, buffer: memoryview, *, field: str) -> None:
    time.sleep(0.05)
    raise CorruptError(f"cannot read at {offset:#x}")


class Notes:
    """Checkpoints that are always due."""

    size = 4 * MIB
    is_waiting = True

    def __init__(self, sink: MemorySink, chunks: Chunks) -> None:
        self._sink, self._chunks = sink, chunks
        self.noted: list[int] = []

    def due(self, position: int, moved: Moved) -> Callable[[], None]:
        written = sum(length for _, length in self._sink.writes + self._sink.zeroed)
        assert written == position

        def note() -> None:
            assert len(self._chunks.digests) * CHUNK == position
            self.noted.append(position)

        return note


@pytest.mark.parametrize("threads", [1, 3])
def test_checkpoints_come_when_everything_in_front_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr("vhdtool.export.moving.crew.cpu_count", lambda: threads)
    size = 40 * MIB
    runs = [Run(0, 10 * MIB, 0, 0), Run(10 * MIB, 13 * MIB, ZEROS, -1), Run(23 * MIB, 17 * MIB, 0, 23 * MIB)]
    sink, chunks = MemorySink(size), Chunks()
    notes = Notes(sink, chunks)
    with a_source(tmp_path) as source:
        Mover([source], sink, chunks=chunks, reporter=quiet(size), checkpoints=notes).run([runs])

    assert notes.noted[-1] == size
    assert all(position % notes.size == 0 for position in notes.noted)
    assert len(notes.noted) > 5
    assert notes.noted == sorted(set(notes.noted))


def endless(size: int) -> Iterator[ReadPlan]:
    for start in range(0, size, 1 << 40):
        yield ReadPlan.of_runs([Run(start, 1 << 40, ZEROS, -1)])


def test_a_huge_range_of_zeros_is_one_task(busy: list[int]) -> None:
    size = 64 << 40
    root = RootDigester(size)
    Mover([], None, chunks=root, reporter=quiet(size)).run(endless(size))

    assert len(busy) == 1
    assert len(root.hexdigest()) == 64
