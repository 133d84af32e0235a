"""Limits hold in any second and are used up; slow storage slows a job; the page cache stays as it was."""

from __future__ import annotations

import math
import os
import pickle
import random
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.export.kit import HookedSource, a_disk, chain_over, failing_at, open_raw, some_data
from vhdtool.errors import CorruptError, ReadError
from vhdtool.export.gentle import priority
from vhdtool.export.gentle.cache import SEGMENT_SIZE, CacheKeeper
from vhdtool.export.gentle.throttle import Limits, Pace, milliseconds_text, rate_text
from vhdtool.export.moving.progress import CancelledError
from vhdtool.export.proof.compare import compare_contents
from vhdtool.source import (
    ByteSource,
    FileSource,
    JoinedSource,
    MemorySource,
    Patch,
    PatchedSource,
    file_ranges,
    files_of,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class FakeTime:
    """A clock that only sleeping and reading move on; ``late`` is how much longer each sleep takes."""

    def __init__(self, late: Callable[[], float] = lambda: 0.0, start: float = 1_000_000.25) -> None:
        self.now = start
        self.start = start
        self.sleeps = 0
        self._late = late
        self._lock = threading.Lock()

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 0.1
        with self._lock:
            self.sleeps += 1
            self.now += seconds + self._late()

    @property
    def passed(self) -> float:
        return self.now - self.start


class Storage:
    """Gigabytes of nothing: takes ``latency()`` for a read and writes down when reads began and ended."""

    name = "storage"
    size = 1 << 50
    descriptor = None

    def __init__(self, time: FakeTime, latency: Callable[[], float] = lambda: 0.0) -> None:
        self.reads: list[tuple[float, float, int]] = []
        self._time = time
        self._latency = latency
        self._lock = threading.Lock()

    def read_exact(self, offset: int, length: int, *, field: str) -> bytes:
        raise NotImplementedError

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        with self._lock:
            began = self._time.now
            self._time.now += self._latency()
            self.reads.append((began, self._time.now, len(buffer)))

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        yield start, stop

    def close(self) -> None:
        pass

    def bytes_until(self, moment: float) -> int:
        return sum(length for began, _, length in self.reads if began < moment)


def most_in_a_second(moments: list[float], amounts: list[int]) -> int:
    """The most that lies in any second, both of its ends included."""
    order = sorted(range(len(moments)), key=moments.__getitem__)
    times = [moments[i] for i in order]
    sums = [0, *accumulate(amounts[i] for i in order)]
    return max(sums[bisect_right(times, time + 1.0)] - sums[i] for i, time in enumerate(times))


def read_for(
    seconds: float, pace: Pace, source: ByteSource, time: FakeTime, length: int | Callable[[], int]
) -> None:
    """Read in order, in pieces of ``length``, until the clock is so far."""
    paced = pace.source(source)
    offset = 0
    buffer = memoryview(bytearray(512 * KIB))
    while time.passed < seconds:
        count = length if isinstance(length, int) else length()
        paced.read_into(offset, buffer[:count], field="payload")
        offset += count


def a_pace(limits: Limits, time: FakeTime, check: Callable[[], None] = lambda: None) -> Pace:
    return Pace(limits, check=check, clock=time.clock, sleep=time.sleep)


RATES = [10, 10_000, 12_345, MIB, 10 * MIB, 100 * MIB, 10 * GIB]


@pytest.mark.parametrize("rate", RATES)
def test_the_mean_of_ten_seconds_is_the_rate_and_no_second_has_more(rate: int) -> None:
    # A device that is as fast as ten times the rate, and sleeps that come a little late.
    chance = random.Random(1)
    time = FakeTime(late=lambda: chance.random() * 0.002)
    read = min(512 * KIB, rate)
    storage = Storage(time, latency=lambda: min(read, rate / 100) / rate / 10)

    read_for(10, a_pace(Limits(rate=rate), time), storage, time, read)

    began, ended, lengths = (list(column) for column in zip(*storage.reads))
    assert most_in_a_second(began, lengths) <= rate
    assert most_in_a_second(ended, lengths) <= rate
    done = storage.bytes_until(time.start + 10)
    assert 0.95 * 10 * rate <= done <= 10 * rate


@pytest.mark.parametrize("rate", [10_000, MIB, 100 * MIB])
def test_reads_of_any_length_keep_to_the_rate(rate: int) -> None:
    time, chance = FakeTime(), random.Random(2)
    storage = Storage(time)

    read_for(10, a_pace(Limits(rate=rate), time), storage, time, lambda: 512 * chance.randint(1, 200))

    began, _, lengths = (list(column) for column in zip(*storage.reads))
    assert most_in_a_second(began, lengths) <= rate
    assert storage.bytes_until(time.start + 10) >= 0.95 * 10 * rate


def test_slow_storage_does_not_cost_rate() -> None:
    # Every read takes 60 ms, whatever its length: without looking at that, a second would be one of 1.06.
    time = FakeTime()
    storage = Storage(time, latency=lambda: 0.06)

    read_for(10, a_pace(Limits(rate=4 * MIB), time), storage, time, 512 * KIB)

    ended, lengths = [end for _, end, _ in storage.reads], [length for _, _, length in storage.reads]
    assert most_in_a_second(ended, lengths) <= 4 * MIB
    assert storage.bytes_until(time.start + 10) >= 0.95 * 40 * MIB


def test_after_a_stall_nobody_catches_up_faster_than_allowed() -> None:
    stalls = iter([0.0] * 50 + [3.0])
    time = FakeTime()
    storage = Storage(time, latency=lambda: next(stalls, 0.0))

    read_for(10, a_pace(Limits(rate=MIB), time), storage, time, 64 * KIB)

    began, ended, lengths = (list(column) for column in zip(*storage.reads))
    assert most_in_a_second(began, lengths) <= MIB
    assert most_in_a_second(ended, lengths) <= MIB
    assert storage.bytes_until(time.start + 10) >= 0.95 * 7 * MIB


@pytest.mark.parametrize("iops", [1, 7, 100, 5000])
def test_reads_a_second_are_limited(iops: int) -> None:
    time = FakeTime()
    storage = Storage(time)

    read_for(10, a_pace(Limits(iops=iops), time), storage, time, 4096)

    assert most_in_a_second([began for began, _, _ in storage.reads], [1] * len(storage.reads)) <= iops
    before = sum(began < time.start + 10 for began, _, _ in storage.reads)
    assert 0.95 * 10 * iops <= before <= 10 * iops
    assert {length for _, _, length in storage.reads} == {4096}


def test_both_limits_hold_and_splitting_for_one_does_not_use_up_the_other() -> None:
    time = FakeTime()
    storage = Storage(time)

    read_for(10, a_pace(Limits(rate=10 * MIB, iops=50), time), storage, time, 512 * KIB)

    began, _, lengths = (list(column) for column in zip(*storage.reads))
    assert most_in_a_second(began, lengths) <= 10 * MIB
    assert most_in_a_second(began, [1] * len(began)) <= 50
    assert storage.bytes_until(time.start + 10) >= 0.95 * 100 * MIB


@pytest.mark.parametrize("limits", [Limits(rate=20 * MIB), Limits(iops=300)], ids=["rate", "iops"])
def test_several_threads_share_one_limit(limits: Limits) -> None:
    time = FakeTime()
    storage = Storage(time)
    pace = a_pace(limits, time)
    threads = [
        threading.Thread(target=read_for, args=(5, pace, storage, time, 64 * KIB), daemon=True)
        for _ in range(6)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert not any(thread.is_alive() for thread in threads)
    began, _, lengths = (list(column) for column in zip(*storage.reads))
    amounts, limit = (lengths, limits.rate) if limits.rate else ([1] * len(began), limits.iops)
    assert limit is not None
    assert most_in_a_second(began, amounts) <= limit
    before = sum(amount for moment, amount in zip(began, amounts) if moment < time.start + 5)
    assert before >= 0.95 * 5 * limit


def test_many_small_reads_are_not_many_sleeps() -> None:
    time = FakeTime()

    read_for(10, a_pace(Limits(rate=5 * MIB), time), Storage(time), time, 512)

    assert time.sleeps < 10 * 500


# --- latency ------------------------------------------------------------------------------------------------


def speed_of(storage: Storage, start: float, stop: float) -> float:
    """The share of the time in which storage was read."""
    busy = sum(min(end, stop) - max(began, start) for began, end, _ in storage.reads if began < stop > start)
    return busy / (stop - start)


def test_when_reads_become_slow_the_job_is_slowed_within_two_seconds_and_recovers() -> None:
    time = FakeTime()
    storage = Storage(time, latency=lambda: 0.045 if 5 <= time.passed < 15 else 0.002)
    pace = a_pace(Limits(max_latency=0.020), time)
    said: dict[int, str] = {}
    paced = pace.source(storage)
    buffer = memoryview(bytearray(64 * KIB))

    while time.passed < 25:
        paced.read_into(0, buffer, field="payload")
        said[int(time.passed)] = pace.slowed

    def reads(start: float, stop: float) -> int:
        return sum(time.start + start <= began < time.start + stop for began, _, _ in storage.reads)

    assert reads(0, 5) == pytest.approx(2500, abs=2)
    assert said[4] == ""
    # Undisturbed it would be 22 reads a second; two seconds later it is a quarter of that at most.
    assert reads(7, 8) <= 22 / 4
    assert said[7] == "reads take 45 ms (p95), more than 20 ms"
    # It never stops: no three seconds without a read.
    assert all(reads(second, second + 3) for second in range(22))
    assert reads(24, 25) == pytest.approx(500, abs=2)
    assert said[24] == ""
    assert "speeding up again" in " ".join(said.values())


def test_storage_that_is_never_fast_enough_is_still_read() -> None:
    time = FakeTime()
    storage = Storage(time, latency=lambda: 0.5)

    read_for(600, a_pace(Limits(max_latency=0.001), time), storage, time, 4096)

    began = [began for began, _, _ in storage.reads]
    assert max(later - earlier for earlier, later in pairwise(began)) < 3
    assert len(began) >= 200


def test_one_slow_read_among_a_hundred_slows_nothing() -> None:
    time = FakeTime()
    number = iter(range(1 << 30))
    storage = Storage(time, latency=lambda: 0.05 if next(number) % 100 == 50 else 0.001)
    pace = a_pace(Limits(max_latency=0.02), time)

    read_for(20, pace, storage, time, 4096)

    assert pace.slowed == ""
    assert speed_of(storage, time.start, time.now) == pytest.approx(1, abs=0.01)


def test_more_reads_than_are_kept_are_no_burden() -> None:
    time = FakeTime()
    storage = Storage(time, latency=lambda: 0.00002)
    pace = a_pace(Limits(max_latency=0.02), time)

    read_for(1, pace, storage, time, 512)

    assert pace._governor is not None
    assert len(pace._governor._reads) == 4096
    assert pace.slowed == ""


# --- what is said, and stopping -----------------------------------------------------------------------------


def test_what_limits_is_said_while_it_does() -> None:
    time = FakeTime()
    pace = a_pace(Limits(rate=10 * MIB, iops=1000), time)
    assert pace.slowed == ""

    read_for(2, pace, Storage(time), time, 512 * KIB)
    assert pace.slowed == "limited to 10.0 MiB/s"

    time.now += 5
    assert pace.slowed == ""
    pace.source(Storage(time)).read_into(0, memoryview(bytearray(100)), field="payload")
    assert pace.slowed == ""

    pace = a_pace(Limits(rate=GIB, iops=10), time)
    read_for(time.passed + 2, pace, Storage(time), time, 4096)
    assert pace.slowed == "limited to 10 reads/s"


@pytest.mark.parametrize(
    ("rate", "text"),
    [(1, "1 bytes/s"), (1536, "1.5 KiB/s"), (10 * MIB, "10.0 MiB/s"), (5 * GIB, "5.0 GiB/s")],
)
def test_rates_are_read_easily(rate: int, text: str) -> None:
    assert rate_text(rate) == text


def test_milliseconds_are_read_easily() -> None:
    assert [milliseconds_text(seconds) for seconds in (0.0451, 0.0025, 0.00004, 12.0)] == [
        "45 ms",
        "2.5 ms",
        "0.04 ms",
        "12000 ms",
    ]


@pytest.mark.parametrize("limits", [Limits(rate=1000), Limits(iops=1), Limits(max_latency=0.001)], ids=str)
def test_who_stops_the_job_does_not_wait_for_the_limit(limits: Limits) -> None:
    time = FakeTime()
    stop_at = time.now + 3

    def check() -> None:
        if time.now >= stop_at:
            raise CancelledError("stopped")

    pace = a_pace(limits, time, check)
    storage = Storage(time, latency=lambda: 0.5)
    with pytest.raises(CancelledError):
        read_for(1000, pace, storage, time, 512 * KIB)

    assert time.now <= stop_at + 0.5 + 0.1
    # Others who wait for their turn get it.
    stop_at = math.inf
    pace.source(storage).read_into(0, memoryview(bytearray(8)), field="payload")


def test_a_failed_read_uses_up_the_limit_and_blocks_nobody(tmp_path: Path) -> None:
    time = FakeTime()
    pace = a_pace(Limits(rate=MIB), time)
    with HookedSource(a_disk(tmp_path / "disk"), failing_at(1)) as file:
        paced = pace.source(file)

        with pytest.raises(ReadError):
            paced.read_exact(0, 4096, field="payload")
        read_for(3, pace, file, time, 4096)

    assert pace._bytes is not None
    assert pace._bytes._in_flight == 0


# --- values and wrapped sources -----------------------------------------------------------------------------


def test_limits_are_values() -> None:
    limits = Limits(rate=5, iops=6, max_latency=0.5, idle=True, drop_cache=True)

    assert pickle.loads(pickle.dumps(limits)) == limits
    assert not Limits()
    assert not Limits().active
    for some in (Limits(rate=1), Limits(iops=1), Limits(max_latency=1), Limits(drop_cache=True)):
        assert some
        assert some.touches_reads
    assert Limits(idle=True)
    assert not Limits(idle=True).touches_reads


@pytest.mark.parametrize("name", ["rate", "iops", "max_latency"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_limits_that_nobody_can_keep_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_without_limits_a_source_stays_what_it_is() -> None:
    source = MemorySource("memory", b"abc")

    assert Pace(Limits()).source(source) is source
    assert Pace(Limits(idle=True)).source(source) is source


def test_a_paced_source_reads_the_same_and_passes_everything_on(tmp_path: Path) -> None:
    path = a_disk(tmp_path / "disk")
    data = path.read_bytes()
    time = FakeTime()
    pace = a_pace(Limits(rate=GIB, drop_cache=True), time)

    with FileSource(path) as file:
        paced = pace.source(file)
        assert (paced.name, paced.size, paced.descriptor) == (str(path), len(data), None)
        assert paced.read_exact(0, len(data), field="payload") == data
        assert paced.read_exact(69_000, 2000, field="payload") == data[69_000:71_000]
        assert list(paced.data_ranges(0, len(data))) == list(file.data_ranges(0, len(data)))
        assert files_of(paced) == [file]
        with pytest.raises(CorruptError, match="ends inside"):
            paced.read_exact(len(data) - 10, 11, field="payload")
        paced.close()
        assert file.descriptor == -1 or file.descriptor is None


def test_two_paced_sides_of_one_file_are_equal_without_being_read(tmp_path: Path) -> None:
    path = a_disk(tmp_path / "disk")
    pace = a_pace(Limits(rate=GIB), FakeTime())
    with open_raw(path) as a, open_raw(path) as b:
        sides = [chain_over(pace.source(chain.images[0].source), path) for chain in (a, b)]

        comparison = compare_contents(*sides)

    assert comparison.equal
    assert comparison.read_bytes == 0


def test_where_bytes_stand_is_known_through_every_source(tmp_path: Path) -> None:
    for name, length in (("a", 100), ("b", 50)):
        (tmp_path / name).write_bytes(bytes(length))
    a, b = FileSource(tmp_path / "a"), FileSource(tmp_path / "b")
    with JoinedSource([a, b]) as joined:
        patched = PatchedSource(joined, [Patch(10, 10)], size=1000)
        paced = Pace(Limits(rate=1000)).source(patched)

        assert list(file_ranges(paced, 90, 20)) == [(a, 90, 10), (b, 0, 10)]
        assert list(file_ranges(paced, 140, 500)) == [(b, 40, 10)]
        assert list(file_ranges(paced, 500, 10)) == []
        assert list(file_ranges(MemorySource("m", b"abc"), 0, 3)) == []


# --- page cache ---------------------------------------------------------------------------------------------

PAGE = 4096


def cached_pages(path: Path) -> list[int]:
    with FileSource(path) as file:
        pages = file.resident(0, file.size)
    assert pages is not None
    return [i for i, there in enumerate(pages) if there]


@pytest.fixture
def cold_disk(tmp_path: Path) -> Path:
    """A disk of 40 MiB of which nothing is in the page cache; skips where that cannot be had."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        for i in range(40):
            file.write(some_data(MIB, i))
        file.flush()
        os.fsync(file.fileno())
    with FileSource(path) as source:
        if source.resident(0, source.size) is None:
            pytest.skip("this platform does not say what its page cache holds")
        source.drop(0, source.size)
    if cached_pages(path):
        pytest.skip("this file system keeps its pages (tmpfs does)")
    return path


def test_what_a_job_read_is_dropped_and_what_was_there_stays(cold_disk: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(cold_disk, os.O_RDONLY)
    try:
        # A host's own pages, here and there, at segment edges too; read without readahead.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for offset in (0, 5 * MIB, SEGMENT_SIZE - PAGE, SEGMENT_SIZE, 17 * MIB, 40 * MIB - PAGE):
            os.lseek(descriptor, offset, os.SEEK_SET)
            os.read(descriptor, 2 * PAGE)
    finally:
        os.close(descriptor)
    before = cached_pages(cold_disk)
    assert 6 <= len(before) < 100

    with FileSource(cold_disk) as file:
        pace = Pace(Limits(drop_cache=True))
        paced = pace.source(file)
        with pace:
            for offset in range(0, 40 * MIB, 512 * KIB):
                paced.read_exact(offset, 512 * KIB, field="payload")

    assert cached_pages(cold_disk) == before


def test_readahead_is_not_taken_for_somebody_elses_pages(cold_disk: Path) -> None:
    chance = random.Random(5)

    with FileSource(cold_disk) as file:
        pace = Pace(Limits(drop_cache=True))
        paced = pace.source(file)
        with pace:
            # Jumps, each followed by reading in order, which is what makes the kernel read ahead.
            for _ in range(40):
                start = chance.randrange(0, 36 * MIB, 512)
                for i in range(8):
                    paced.read_exact(start + i * 256 * KIB, 256 * KIB, field="payload")

    assert cached_pages(cold_disk) == []


def test_it_is_dropped_while_the_job_runs_and_not_only_at_its_end(
    cold_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhdtool.export.gentle.cache._READ_MAX", SEGMENT_SIZE)
    keeper = CacheKeeper()

    with FileSource(cold_disk) as file:
        for offset in range(0, 40 * MIB, MIB):
            keeper.reading(file, offset, MIB)
            file.read_exact(offset, MIB, field="payload")
        there = cached_pages(cold_disk)
        keeper.finish()

    assert not [page for page in there if page < 16 * MIB // PAGE]
    assert cached_pages(cold_disk) == []


def test_files_that_were_closed_before_the_job_ended_are_dropped_too(cold_disk: Path) -> None:
    with Pace(Limits(drop_cache=True)) as pace, FileSource(cold_disk) as file:
        pace.source(file).read_exact(0, 20 * MIB, field="payload")

    assert cached_pages(cold_disk) == []


def test_where_nobody_can_tell_what_is_there_nothing_is_dropped(
    cold_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhdtool.source._mincore", lambda: None)
    drops: list[int] = []
    monkeypatch.setattr(FileSource, "drop", lambda self, offset, length: drops.append(offset))

    with FileSource(cold_disk) as file, Pace(Limits(drop_cache=True)) as pace:
        pace.source(file).read_exact(0, 20 * MIB, field="payload")

    assert drops == []


def test_memory_and_files_that_are_gone_are_no_matter(cold_disk: Path) -> None:
    keeper = CacheKeeper()
    keeper.reading(MemorySource("memory", bytes(100)), 0, 100)
    with FileSource(cold_disk) as file:
        keeper.reading(file, 0, 100)
    cold_disk.unlink()

    keeper.finish()


def test_the_keeper_of_huge_files_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 42)
    monkeypatch.setattr(FileSource, "resident", lambda self, offset, length: bytes(length // PAGE))
    chance = random.Random(3)
    keeper = CacheKeeper()

    with FileSource(path) as source:
        for _ in range(3000):
            keeper.reading(source, chance.randrange(1 << 42), 4096)
            assert len(keeper._segments) <= 2048
        keeper._segments.clear()


# --- priority -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "setpriority"), reason="this platform has no nice values")
def test_idle_lowers_the_priority_and_gives_back_what_it_may() -> None:
    seen: list[Any] = []

    def job() -> None:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        with Pace(Limits(idle=True)):
            seen.append(os.getpriority(os.PRIO_PROCESS, 0))
        seen.append((before, os.getpriority(os.PRIO_PROCESS, 0)))

    # In a thread of its own: where only root may take it back, it ends with the thread.
    thread = threading.Thread(target=job)
    thread.start()
    thread.join()

    if sys.platform == "linux":
        assert seen[0] == 19
        before, after = seen[1]
        assert after in ((before,) if os.geteuid() == 0 else (before, 19))


def test_idle_uses_the_idle_class_of_io_where_there_is_one() -> None:
    psutil = pytest.importorskip("psutil")
    if not sys.platform.startswith("linux"):
        pytest.skip("I/O classes are Linux's")
    seen: list[Any] = []

    def job() -> None:
        def ioclass() -> Any:
            return psutil.Process(threading.get_native_id()).ionice().ioclass

        seen.append(ioclass())
        with Pace(Limits(idle=True)) as pace:
            seen.append(ioclass())
            assert pace.notes == ()
        seen.append(ioclass())

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()

    before, during, after = seen
    assert during == psutil.IOPRIO_CLASS_IDLE
    assert before == after


def test_without_psutil_a_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        raise ImportError(name)

    monkeypatch.setattr(priority, "import_module", missing)

    assert "psutil is not installed" in Pace(Limits(idle=True)).notes[0]
    assert Pace(Limits(rate=5)).notes == ()


def test_on_windows_the_priority_classes_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Process:
        def nice(self, value: int | None = None) -> int:
            calls.append(("nice", value))
            return 32

        def ionice(self, value: int | None = None) -> int:
            calls.append(("ionice", value))
            return 2

    fake = SimpleNamespace(Process=Process, Error=OSError, IDLE_PRIORITY_CLASS=64, IOPRIO_VERYLOW=0)
    monkeypatch.setattr(priority, "import_module", lambda name: fake)
    monkeypatch.setattr(priority, "sys", SimpleNamespace(platform="win32"))

    with Pace(Limits(idle=True)) as pace:
        assert calls == [("ionice", None), ("ionice", 0), ("nice", None), ("nice", 64)]

    assert calls[4:] == [("nice", 32), ("ionice", 2)]
    assert pace.notes == ()
