"""Does a limit hold on a real clock: the mean of ten seconds within 5 %, and no second above it?

And how soon does the governor slow down when the storage gets slow, and recover?  The file is in the page
cache, so that only the limit slows: the storage must be faster than that.  Slow storage is the same file
behind a source that sleeps before each read.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.contest import note
from vhdtool.export.gentle.throttle import Limits, Pace
from vhdtool.source import ByteSource, FileSource, WrappingSource

KIB, MIB = 1 << 10, 1 << 20
READ = 512 * KIB
SIZE = 64 * MIB


class Noting(WrappingSource):
    """Writes down when each read ended and how much it was."""

    def __init__(self, below: FileSource) -> None:
        super().__init__(below)
        self.moments: list[float] = []
        self.lengths: list[int] = []

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        super().read_into(offset, buffer, field=field)
        self.moments.append(time.monotonic())
        self.lengths.append(len(buffer))

    def most_in_a_second(self) -> int:
        """Bytes in the second, both ends included, that has the most."""
        sums = [0, *accumulate(self.lengths)]
        ends = [bisect_right(self.moments, moment + 1.0) for moment in self.moments]
        return max(sums[end] - sums[start] for start, end in enumerate(ends))


class Enough(Exception):  # noqa: N818
    """The time is up."""


def read_for(seconds: float, limits: Limits, source: Noting) -> float:
    """Read in order for so long; seconds that it took."""
    began = time.monotonic()

    def check() -> None:
        if time.monotonic() - began >= seconds:
            raise Enough

    buffer = memoryview(bytearray(READ))
    paced = Pace(limits, check=check).source(source)
    offset = 0
    try:
        while True:
            paced.read_into(offset % SIZE, buffer, field="payload")
            offset += READ
    except Enough:
        return time.monotonic() - began


@pytest.fixture(scope="module")
def warm_file(room: Path) -> Path:
    path = room / "file"
    path.write_bytes(bytes(SIZE))
    path.read_bytes()
    return path


@pytest.mark.parametrize("rate", [10_000, MIB, 40 * MIB, 400 * MIB], ids="rate={}".format)
def test_limited_rate(benchmark: BenchmarkFixture, warm_file: Path, measuring: bool, rate: int) -> None:
    seconds = 10.0 if measuring else 0.3
    with FileSource(warm_file) as file:
        source = Noting(file)

        took = benchmark.pedantic(  # type: ignore[no-untyped-call]
            read_for, args=(seconds, Limits(rate=rate), source), rounds=1, iterations=1
        )

        most = source.most_in_a_second()
        assert most <= rate
        note(benchmark, "off the rate", abs(sum(source.lengths) / took / rate - 1), 0.05)
        note(benchmark, "most in a second / rate", most / rate, 1.0)
        benchmark.extra_info.update(bytes=sum(source.lengths), seconds=took, rate=rate)


@pytest.mark.parametrize("iops", [20, 1000], ids="iops={}".format)
def test_limited_reads(benchmark: BenchmarkFixture, warm_file: Path, measuring: bool, iops: int) -> None:
    seconds = 10.0 if measuring else 0.3
    with FileSource(warm_file) as file:
        source = Noting(file)

        took = benchmark.pedantic(  # type: ignore[no-untyped-call]
            read_for, args=(seconds, Limits(iops=iops), source), rounds=1, iterations=1
        )

        source.lengths = [1] * len(source.lengths)
        most = source.most_in_a_second()
        assert most <= iops
        note(benchmark, "off the rate", abs(len(source.lengths) / took / iops - 1), 0.05)
        note(benchmark, "most in a second / rate", most / iops, 1.0)
        benchmark.extra_info.update(reads=len(source.lengths), seconds=took, iops=iops)


# Seconds: what is allowed, and what a read takes longer while the storage is quick, and while it is slow.
LATENCY_MAX, QUICK, SLOW = 0.020, 0.001, 0.060
SLOWED_SECONDS_TARGET = 2.0
# Longer than anybody can take who recovers at all: from the least speed, with the longest pause.
RECOVERY_SECONDS_MAX = 30.0


class Latent(Noting):
    """Takes ``latency`` seconds longer for each read."""

    latency = QUICK

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        time.sleep(self.latency)
        super().read_into(offset, buffer, field=field)


class Storage:
    """Storage whose latency changes, read at the pace of a governor."""

    def __init__(self, source: Latent) -> None:
        self.source = source
        self.pace = Pace(Limits(max_latency=LATENCY_MAX))
        self._paced = self.pace.source(source)
        self._buffer = memoryview(bytearray(READ))

    def read_until(self, latency: float, enough: Callable[[], bool], seconds_max: float) -> float:
        """Read with this latency until it is ``enough``; seconds that it took, ``seconds_max`` at most."""
        self.source.latency = latency
        began = time.monotonic()
        offset = 0
        while not enough() and time.monotonic() - began < seconds_max:
            self._paced.read_into(offset % SIZE, self._buffer, field="payload")
            offset += READ
        return time.monotonic() - began

    def is_slowed(self) -> bool:
        """Whether the governor holds back."""
        return bool(self.pace.slowed)

    def is_at_ease(self) -> bool:
        """Whether it does not."""
        return not self.is_slowed()


def test_governor(benchmark: BenchmarkFixture, warm_file: Path, measuring: bool) -> None:
    """Seconds until it slows down, how busy that keeps slow storage, and seconds until it has recovered."""
    with FileSource(warm_file) as file:
        storage = Storage(Latent(file))

        def story() -> tuple[float, float, float]:
            storage.read_until(QUICK, lambda: False, 2.0 if measuring else 0.1)
            storage.read_until(QUICK, storage.is_at_ease, RECOVERY_SECONDS_MAX)
            slowed = storage.read_until(SLOW, storage.is_slowed, RECOVERY_SECONDS_MAX)
            storage.source.moments.clear()
            slow = storage.read_until(SLOW, lambda: False, 4.0 if measuring else 0.1)
            busy = len(storage.source.moments) * SLOW / slow
            recovered = storage.read_until(QUICK, storage.is_at_ease, RECOVERY_SECONDS_MAX)
            return slowed, busy, recovered

        slowed, busy, recovered = benchmark.pedantic(  # type: ignore[no-untyped-call]
            story, rounds=1, iterations=1
        )

    assert slowed < RECOVERY_SECONDS_MAX
    assert recovered < RECOVERY_SECONDS_MAX
    note(benchmark, "seconds until slowed", slowed, SLOWED_SECONDS_TARGET)
    note(benchmark, "share of the time that slow storage is busy", busy)
    note(benchmark, "seconds until recovered", recovered)


def test_cost_of_a_limit_that_is_never_reached(
    benchmark: BenchmarkFixture, warm_file: Path, measuring: bool
) -> None:
    """CPU of pacing beside that of the bare reads, in pieces of 512 KiB that are in the page cache."""
    reads = (16 if measuring else 1) * SIZE // READ
    buffer = memoryview(bytearray(READ))
    limits = Limits(rate=1 << 50, iops=1 << 30, max_latency=60)
    with FileSource(warm_file) as file:

        def read_all(source: ByteSource) -> float:
            began = time.process_time()
            for i in range(reads):
                source.read_into(i * READ % SIZE, buffer, field="payload")
            return time.process_time() - began

        paced = Pace(limits).source(file)
        ratios: list[float] = []

        def race() -> None:
            bare = read_all(file)
            ratios.append(read_all(paced) / max(bare, 1e-9))

        benchmark.pedantic(race, rounds=9, iterations=1)  # type: ignore[no-untyped-call]

    note(benchmark, "paced / bare", sorted(ratios)[len(ratios) // 2])
